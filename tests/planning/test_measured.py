"""The planner's memory and bytes on the wire, against trainings on two CPU ranks; the twin pass against two passes.

Two launches run all trainings (`measured_cases.py`) and take most of this file's time.
"""

import json
from pathlib import Path

import pytest
from tiny import random_backbone, write_series

from llata_fast.planning import stages
from llata_fast.planning.plan_text import model_config
from llata_fast.planning.planner import Request, make_plan
from llata_fast.planning.stages import messages, weigh
from llata_fast.settings import ModelSettings

ROOT = Path(__file__).resolve().parents[2]
RANKS, CHANNELS = 2, 7

# no weight stays gathered until its next use, as with a base of many billions of parameters
LARGE = {"stage3_max_live_parameters": 0, "stage3_max_reuse_distance": 0}

# name -> (stage, more flags, more fields of zero_optimization)
WIRE = {
    "ddp": ("ddp", [], {}),
    "zero1": ("zero1", [], {}),
    "zero2": ("zero2", [], {}),
    "zero3": ("zero3", [], {}),
    "zero3, checkpointing": ("zero3", ["--gradient_checkpointing"], {}),
    "zero3, large": ("zero3", [], LARGE),
    "zero3, large, two_pass": ("zero3", ["--backbone_pass", "two_pass"], LARGE),
}
# the twin pass over GPT-2 and the published model's two copies, for each choice of stage3 fields
PUBLISHED = {"": {}, ", large": LARGE}
GPT2 = {"n_embd": 128, "n_layer": 3, "n_head": 2, "n_positions": 16, "vocab_size": 80}
HELD = {f"{stage}, 1 GiB": (stage, [], {}) for stage in ("ddp", "zero1", "zero2", "zero3")}
SMALL_FIELDS = {"context_length": 12, "prediction_length": 6, "num_layers": 3, "num_prototypes": 9}
LARGE_FIELDS = {"context_length": 96, "prediction_length": 24, "num_layers": 10, "num_prototypes": 100}
# makes glibc return every buffer above this size at once; otherwise peaks vary by 7 % between runs
RETURN_MEMORY = {"MALLOC_MMAP_THRESHOLD_": "65536"}


def zero_file(folder, stage, fields):
    """The stage's configuration with DeepSpeed's communication logger on."""
    config = json.loads((ROOT / "ds_configs" / f"{stage}.json").read_text())
    config["comms_logger"] = {"enabled": True, "verbose": False, "prof_all": True, "debug": False}
    config["zero_optimization"] |= fields
    path = folder / f"{stage}{'-large' if fields else ''}.json"
    path.write_text(json.dumps(config))
    return str(path)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("measured")


@pytest.fixture(scope="module")
def small(folder):
    """Settings for the model whose messages are counted."""
    backbone = random_backbone(folder, "llama", hidden_size=96, intermediate_size=256, head_dim=24)
    return {"backbone": backbone, "intermediate_size": 20, **SMALL_FIELDS}


@pytest.fixture(scope="module")
def heavy(folder):
    """Settings for a model that needs more than 1 GiB per rank."""
    place = folder / "heavy"
    place.mkdir()
    sizes = {"hidden_size": 1024, "intermediate_size": 4096, "head_dim": 64, "num_hidden_layers": 10}
    sizes |= {"num_attention_heads": 16, "num_key_value_heads": 4, "vocab_size": 1200}
    return {"backbone": random_backbone(place, "llama", **sizes), **LARGE_FIELDS}


@pytest.fixture(scope="module")
def flags(folder):
    """(case, settings, data, stage, more flags, fields of zero_optimization) -> flags of its training."""
    common = {"max_steps": 3, "precision": "fp32", "use_cpu": True, "eval_strategy": "no", "save_strategy": "no"}
    common |= {"report_to": "none", "disable_tqdm": True, "recipe": "paper"}

    def of(name, settings, data, stage, more, fields):
        named = settings | common | {"dataset": data, "output_dir": folder / "runs" / name}
        zero = [] if stage == "ddp" else ["--deepspeed", zero_file(folder, stage, fields)]
        return [*(f"--{key}={value}" for key, value in named.items()), *zero, *more]

    return of


@pytest.fixture(scope="module")
def measure(folder, launch, free_port):
    """(name of a launch, its cases) -> {name of a case: its measurements}."""
    script = ROOT / "tests" / "planning" / "measured_cases.py"

    def launched(name, cases):
        file = folder / f"{name}.json"
        file.write_text(json.dumps(cases))
        command = ("deepspeed", "--num_gpus", RANKS, "--master_port", free_port, script, file)
        launch(*command, timeout=500, env=RETURN_MEMORY)
        return {name: json.loads((folder / f"{name}.measured").read_text()) for name in cases}

    return launched


# DDP comes before DeepSpeed in each launch, because accelerate keeps DeepSpeed's state
@pytest.fixture(scope="module")
def held(folder, flags, measure, heavy):
    """{name of a case of `HELD`: its measurements}."""
    wide = write_series(folder / "wide.csv", 300, CHANNELS)
    return measure("held", {name: flags(name, heavy | {"batch_size": 2 * RANKS}, wide, *HELD[name]) for name in HELD})


@pytest.fixture(scope="module")
def counted(folder, flags, measure, small):
    """{name of a case of `WIRE` or `PUBLISHED`: its measurements}."""
    series = write_series(folder / "series.csv", 160, 3)
    cases = {name: flags(name, small | {"batch_size": 8}, series, *case) for name, case in WIRE.items()}
    gpt2 = small | {"backbone": random_backbone(folder, "gpt2", **GPT2), "intermediate_size": 2048, "batch_size": 8}
    sizes = {name: gpt2[name] for name in ("context_length", "prediction_length", "num_prototypes")}
    for name, fields in PUBLISHED.items():
        cases[f"twin{name}"] = flags(f"twin{name}", gpt2, series, "zero3", [], fields)
        cases[f"published{name}"] = {"backbone": GPT2, "zero_file": zero_file(folder, "zero3", fields), **sizes}
    return measure("counted", cases)


def total(case):
    """All bytes that the logger counted in a step."""
    return sum(case["messages"].values())


@pytest.mark.parametrize("case", WIRE)
def test_bytes_on_the_wire(case, counted, small, monkeypatch):
    stage, more, fields = WIRE[case]
    if fields:
        monkeypatch.setattr(stages, "REUSE_DISTANCE", 0)
    passes = {"backbone_pass": "two_pass"} if "two_pass" in more else {}
    weights = weigh(model_config(ModelSettings(**small | passes)), "fp32")
    moved = messages(stage, weights, RANKS, 1, "--gradient_checkpointing" in more)
    assert moved.sent_bytes(RANKS) == pytest.approx(total(counted[case]), rel=0.05)
    if stage == "ddp":
        return
    seen = counted[case]["messages"]
    for name, planned in (
        ("all_gather_into_tensor", moved.all_gather),
        ("reduce_scatter_tensor", moved.reduce_scatter),
    ):
        assert planned == pytest.approx(seen.get(name, 0), rel=0.05)
    assert moved.all_reduce == pytest.approx(seen["all_reduce"], rel=0.05, abs=100)


@pytest.mark.parametrize("case", HELD)
def test_memory(case, held, heavy):
    plan = make_plan(
        model_config(ModelSettings(**heavy)),
        Request("cpu", RANKS, 2 * RANKS, channels=CHANNELS, precision="fp32", checkpointing=False),
        (HELD[case][0],),
    )
    assert held[case]["peak"] > 2**30
    assert plan.stages[0].memory_bytes == pytest.approx(held[case]["peak"], rel=0.1)


@pytest.mark.parametrize("case", [name for name in WIRE if name.startswith("zero3")])
def test_shards_add_up_to_what_the_logger_counted(case, counted):
    """Except for small weights, which are gathered together after the optimizer's step."""
    shards = counted[case]["frozen_shards"] + counted[case]["trained_shards"]
    assert shards == pytest.approx(counted[case]["messages"]["all_gather_into_tensor"], rel=0.05)


def test_twin_pass_gathers_half_of_two_calls(counted):
    """If the base cannot stay gathered, calling one copy twice gathers it twice as often."""
    twin, two_pass = counted["zero3, large"], counted["zero3, large, two_pass"]
    assert 0 < twin["frozen_shards"] <= 0.55 * two_pass["frozen_shards"]
    assert twin["messages"]["all_gather_into_tensor"] < two_pass["messages"]["all_gather_into_tensor"]


@pytest.mark.parametrize("case", PUBLISHED)
def test_twin_pass_gathers_half_of_the_published_copies(case, counted):
    """The published model has two copies of the base, each as large as the single one here."""
    twin, published = counted[f"twin{case}"], counted[f"published{case}"]
    assert 0 < twin["frozen_shards"] <= 0.55 * published["frozen_shards"]
    # both train equally many weights, so the steps differ only by the copies
    assert twin["trained_shards"] == pytest.approx(published["trained_shards"], rel=0.01)
    whole = [step["messages"]["all_gather_into_tensor"] for step in (twin, published)]
    assert whole[1] - whole[0] == pytest.approx(published["frozen_shards"] - twin["frozen_shards"], rel=0.02)
