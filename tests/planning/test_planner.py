"""The planner against the model itself: parameters, FLOPs, published sizes, and recommendations."""

import json

import pytest
import torch
from tiny import random_backbone, tiny_config, tiny_model
from transformers import AutoConfig, AutoModelForCausalLM

from llata_fast.__main__ import main
from llata_fast.backbone.families import PUBLISHED, published
from llata_fast.backbone.loading import read_backbone_config
from llata_fast.config import LlataConfig
from llata_fast.planning import STAGES
from llata_fast.planning.flops import count_flops
from llata_fast.planning.hardware import DEVICES, collective_seconds
from llata_fast.planning.plan_text import model_config
from llata_fast.planning.planner import Request, make_plan
from llata_fast.planning.stages import weigh
from llata_fast.planning.trace import LiveMemory, Workload, trace_step
from llata_fast.settings import ModelSettings
from llata_fast.training.parameters import parameter_counts

# parameters of the complete language models, as published
PARAMETERS = {
    "meta-llama/Llama-2-7b": 6_738_415_616,
    "meta-llama/Llama-2-13b": 13_015_864_320,
    "meta-llama/Llama-2-70b": 68_976_648_192,
    "meta-llama/Llama-3-8B": 8_030_261_248,
    "meta-llama/Llama-3-70B": 70_553_706_496,
    "meta-llama/Llama-3.1-8B": 8_030_261_248,
    "meta-llama/Llama-3.1-70B": 70_553_706_496,
    "meta-llama/Llama-3.1-405B": 405_853_388_800,
    "meta-llama/Llama-3.2-1B": 1_235_814_400,
    "meta-llama/Llama-3.2-3B": 3_212_749_824,
    "meta-llama/Llama-3.3-70B": 70_553_706_496,
    "mistralai/Mistral-7B-v0.1": 7_241_732_096,
    "mistralai/Mistral-7B-v0.2": 7_241_732_096,
    "mistralai/Mistral-7B-v0.3": 7_248_023_552,
    "mistralai/Ministral-8B-2410": 8_019_808_256,
    "mistralai/Mistral-Nemo-2407": 12_247_782_400,
    "mistralai/Codestral-22B-v0.1": 22_247_282_688,
    "mistralai/Mistral-Small-2409": 22_247_282_688,
    "mistralai/Mistral-Small-24B-2501": 23_572_403_200,
    "mistralai/Mistral-Large-2407": 122_610_069_504,
    "Qwen/Qwen2.5-0.5B": 494_032_768,
    "Qwen/Qwen2.5-1.5B": 1_543_714_304,
    "Qwen/Qwen2.5-3B": 3_085_938_688,
    "Qwen/Qwen2.5-7B": 7_615_616_512,
    "Qwen/Qwen2.5-14B": 14_770_033_664,
    "Qwen/Qwen2.5-32B": 32_763_876_352,
    "Qwen/Qwen2.5-72B": 72_706_203_648,
    "Qwen/Qwen3-0.6B": 596_049_920,
    "Qwen/Qwen3-1.7B": 1_720_574_976,
    "Qwen/Qwen3-4B": 4_022_468_096,
    "Qwen/Qwen3-8B": 8_190_735_360,
    "Qwen/Qwen3-14B": 14_768_307_200,
    "Qwen/Qwen3-32B": 32_762_123_264,
    "google/gemma-2-2b": 2_614_341_888,
    "google/gemma-2-9b": 9_241_705_984,
    "google/gemma-2-27b": 27_227_128_320,
    "google/gemma-3-270m": 268_098_176,
    "google/gemma-3-1b": 999_885_952,
    "google/gemma-3-4b": 3_880_263_168,
    "google/gemma-3-12b": 11_766_034_176,
    "google/gemma-3-27b": 27_009_346_304,
    "HuggingFaceTB/SmolLM2-135M": 134_515_008,
    "HuggingFaceTB/SmolLM2-360M": 361_821_120,
    "HuggingFaceTB/SmolLM2-1.7B": 1_711_376_384,
    "openai-community/gpt2": 124_439_808,
    "openai-community/gpt2-medium": 354_823_168,
    "openai-community/gpt2-large": 774_030_080,
    "openai-community/gpt2-xl": 1_557_611_200,
}


def test_table_is_complete():
    assert PARAMETERS.keys() == PUBLISHED.keys()


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_size(name):
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**PUBLISHED[name]))
    assert sum(parameter.numel() for parameter in model.parameters()) == PARAMETERS[name]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("gpt2", "openai-community/gpt2"),
        ("meta-llama/Llama-3.1-70B-Instruct", "meta-llama/Llama-3.1-70B"),
        ("meta-llama/Meta-Llama-3-8B", "meta-llama/Llama-3-8B"),
        ("meta-llama/Llama-2-7b-chat-hf", "meta-llama/Llama-2-7b"),
        ("mistralai/Mistral-7B-Instruct-v0.3", "mistralai/Mistral-7B-v0.3"),
        ("google/gemma-3-27b-it", "google/gemma-3-27b"),
        ("Qwen/Qwen3-8B-Base", "Qwen/Qwen3-8B"),
    ],
)
def test_names_of_one_model(name, expected):
    assert published(name) is PUBLISHED[expected]


def test_another_model_of_the_same_name():
    assert published("somebody/gpt2") is None


def config_of(backbone, num_layers, **fields):
    config = read_backbone_config(backbone, num_layers)
    return LlataConfig(**tiny_config(backbone, num_layers=num_layers, **fields).to_dict() | {"backbone_config": config})


PATCHES = {"patch_length": 4, "dropout": 0.1, "lora_dropout": 0.1}


@pytest.mark.parametrize(("family", "fields"), [("gpt2", {}), ("llama", PATCHES), ("gemma2", {})])
def test_flops_and_parameters_match_the_model(family, fields, tmp_path, plain_ops):
    """Six blocks, of which the planner traces three, against the count for a real step."""
    layers = {"n_layer" if family == "gpt2" else "num_hidden_layers": 6, "layer_types": None}
    backbone = random_backbone(tmp_path, family, **layers)
    config = config_of(backbone, 6, **fields)
    model = tiny_model(backbone, num_layers=6, **fields)
    past, future = torch.randn(4, 12, 3), torch.randn(4, 5, 3)
    measured = count_flops(lambda: model(past, future).loss.backward())
    traced = trace_step(config, Workload(4, 3, on_gpu=False))
    assert traced.flops == pytest.approx(measured, rel=0.02)
    # the kernels' count for a step on a GPU: the same products
    assert trace_step(config, Workload(4, 3, "bf16")).flops == pytest.approx(measured, rel=0.02)
    counts = parameter_counts(model)
    weights = weigh(config, "fp32")
    assert (weights.frozen, weights.trained) == (counts["frozen"], counts["trained"])


def test_checkpointing_computes_blocks_twice(tmp_path, plain_ops):
    backbone = random_backbone(tmp_path, "llama", num_hidden_layers=7)
    model = tiny_model(backbone, num_layers=7)
    past, future = torch.randn(4, 12, 3), torch.randn(4, 5, 3)
    plain = count_flops(lambda: model(past, future).loss.backward())
    model.gradient_checkpointing_enable({"use_reentrant": False})
    measured = count_flops(lambda: model(past, future).loss.backward())
    assert measured > 1.1 * plain
    traced = trace_step(config_of(backbone, 7), Workload(4, 3, checkpointing=True, on_gpu=False))
    assert traced.flops == pytest.approx(measured, rel=0.02)


# garbage that has not been collected counts as live memory
@pytest.mark.parametrize(("checkpointing", "share"), [(False, 0.02), (True, 0.1)])
def test_activations_of_a_deep_model_match_real_tensors(checkpointing, share, tmp_path, plain_ops):
    """Twelve blocks; the planner traces two models of at most five blocks."""
    backbone = random_backbone(tmp_path, "llama", num_hidden_layers=12)
    model = tiny_model(backbone, num_layers=12)
    if checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    memory = LiveMemory()
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.register_post_accumulate_grad_hook(memory.note_gradient)
    past, future = torch.randn(64, 12, 8), torch.randn(64, 5, 8)
    with memory:
        model(past, future).loss.backward()
    traced = trace_step(config_of(backbone, 12), Workload(64, 8, checkpointing=checkpointing, on_gpu=False))
    assert traced.activation_bytes == pytest.approx(memory.peak_beside_gradients, rel=share)
    assert traced.step_bytes == pytest.approx(memory.peak, rel=share)


def test_memory_of_gradients_is_never_negative():
    """A model so wide that gradients set the peak of few blocks, and activations that of many."""
    fields = {"backbone": "meta-llama/Llama-3.1-70B", "num_layers": 80, "context_length": 96}
    trace = trace_step(model_config(ModelSettings(**fields)), Workload(32, 7, "bf16"))
    assert trace.step_bytes >= trace.activation_bytes + trace.gradient_bytes > trace.activation_bytes


@pytest.mark.parametrize(
    ("backbone", "num_layers", "gpu", "gpus", "expected"),
    [
        ("gpt2", 12, "rtx4090", 1, "ddp"),
        ("meta-llama/Llama-3.1-70B", 80, "h100-80g", 64, "zero3"),
        ("meta-llama/Llama-3.1-405B", 126, "l4", 1, None),
    ],
)
def test_recommendation(backbone, num_layers, gpu, gpus, expected):
    config = model_config(ModelSettings(backbone=backbone, num_layers=num_layers, context_length=96))
    plan = make_plan(config, Request(gpu, gpus, (8 if expected else 512) * gpus, checkpointing=False))
    assert (plan.recommended and plan.recommended.stage) == expected
    for variant in plan.stages:
        assert variant.fits == (variant.memory_bytes <= 0.94 * DEVICES[gpu].memory_gib * 2**30)
        assert variant.step_seconds > 0 and min(variant.memory.values()) >= 0


def test_more_gpus_need_less_memory_each():
    config = model_config(ModelSettings(backbone="Qwen/Qwen2.5-7B", num_layers=28))
    few, many = (make_plan(config, Request(gpus=gpus, batch_size=8 * gpus, checkpointing=False)) for gpus in (2, 16))
    for ours, theirs in zip(few.stages, many.stages, strict=True):
        partitioned = ours.stage != "ddp"
        assert (theirs.memory_bytes < ours.memory_bytes) == partitioned
        assert theirs.wire_bytes > ours.wire_bytes
        assert theirs.flops == pytest.approx(8 * ours.flops)


@pytest.mark.parametrize("stage", ["zero2", "zero3"])
def test_offloaded_memory_is_counted_on_the_host(stage):
    config = model_config(ModelSettings(backbone="Qwen/Qwen2.5-7B", num_layers=28))
    request = Request(gpus=16, batch_size=128, checkpointing=False)
    plan = make_plan(config, request, (stage, f"{stage}_offload"))
    kept, moved = plan.stages
    left = sum(kept.memory[part] - moved.memory[part] for part in ("weights", "optimizer"))
    # the step's fp32 gradients; on a GPU they reuse memory that is free by then
    gradients = 4 * plan.weights.trained / request.gpus
    # eight GPUs per node
    assert moved.host_bytes == pytest.approx(8 * (left + gradients)) and left > 2**26
    assert kept.host_bytes == 0


@pytest.mark.parametrize(("precision", "element"), [("fp32", 4), ("bf16", 2)])
def test_prototypes_have_keys_and_values_only_with_a_textual_branch(precision, element):
    request = Request(gpus=2, batch_size=16, checkpointing=False, precision=precision)
    for ablation, tensors in (("none", 2), ("no_text_branch", 0), ("no_llm", 0)):
        config = model_config(ModelSettings(backbone="gpt2", num_layers=2, context_length=96, ablation=ablation))
        for stage in make_plan(config, request, ("ddp", "zero2")).stages:
            assert stage.memory.get("prototype_keys_values", 0) == tensors * 500 * 768 * element


@pytest.mark.parametrize(("precision", "size"), [("int8", 1.0), ("int4", 0.52)])
def test_quantised_base(precision, size):
    """A base of 70 billion parameters on one GPU, without the stages that partition it."""
    fields = {"backbone": "meta-llama/Llama-3.1-70B", "num_layers": 80, "context_length": 96}
    config = model_config(ModelSettings(**fields, base_precision=precision))
    plan = make_plan(config, Request("h200", 1, 8, checkpointing=False))
    assert [variant.stage for variant in plan.stages] == ["ddp", "zero1", "zero2", "zero2_offload"]
    frozen = plan.weights.frozen
    assert frozen == weigh(model_config(ModelSettings(**fields)), "autocast").frozen
    assert plan.weights.frozen_bytes == pytest.approx(size * frozen, rel=0.01)
    assert plan.recommended.stage == "ddp"


def test_collectives():
    """The alpha-beta model: one rank sends nothing, bytes and latencies add up, another node is slower."""
    device = DEVICES["h100-80g"]
    assert collective_seconds(device, 1, 1e9, 10) == 0
    small, large = (collective_seconds(device, 8, sent, 1) for sent in (1e9, 2e9))
    assert large - small == pytest.approx(1e9 / (0.8 * 450e9))
    assert collective_seconds(device, 8, 1e9, 2) > small
    assert collective_seconds(device, 16, 1e9, 1) > small


def plan_json(launch, *options):
    output = launch("python", "-W", "ignore", "-m", "llata_fast", "plan", *options, "--json")
    return json.loads(output)


def test_command(tmp_path, launch, capsys):
    backbone = random_backbone(tmp_path, "llama", num_hidden_layers=4)
    options = ("--backbone", backbone, "--num_layers", 3, "--gpus", 4, "--num_prototypes", 9, "--batch_size", 32)
    plan = plan_json(launch, *options)
    assert set(plan["stages"]) == set(STAGES)
    assert plan["recommended"] in STAGES and plan["reason"]
    for stage in plan["stages"].values():
        assert stage["memory_gib"] == pytest.approx(sum(stage["memory_by_part_gib"].values()))
        assert stage.keys() >= {"wire_bytes_per_step", "step_seconds", "fits"}
    weights = weigh(model_config(ModelSettings(backbone=backbone, num_layers=3, num_prototypes=9)), "fp32")
    assert plan["frozen_parameters"] == weights.frozen
    assert plan["trained_parameters"] == weights.trained
    main(["plan", *map(str, options), "--stage", "zero3_offload", "--gradient_checkpointing"])
    text = capsys.readouterr().out
    assert f"{weights.frozen:,}" in text and "Use zero3_offload with --gradient_checkpointing" in text


COVARIATES = ("--known_covariates", "price", "week=7", "--past_covariates", "visits", "--static_covariates", "store=9")


@pytest.mark.parametrize(("patches", "more_tokens"), [((), 3), (("--patch_length", "16"), 7 * 3)])
def test_covariates_are_tokens_and_parameters(tmp_path, capsys, patches, more_tokens):
    backbone = random_backbone(tmp_path, "llama")
    options = [
        "plan",
        "--backbone",
        backbone,
        "--num_layers",
        "1",
        "--num_prototypes",
        "9",
        "--batch_size",
        "32",
        *patches,
    ]
    plans = []
    for roles in ((), COVARIATES):
        main([*options, *roles, "--stage", "ddp", "--json"])
        plans.append(json.loads(capsys.readouterr().out))
    plain, covered = plans
    assert covered["tokens_per_step"] == plain["tokens_per_step"] + 32 * more_tokens
    L, H, D = 336, 96, 48
    moving = (L + H) * D + D + (4 * (L + H) * D + D + 4 * 8) + L * D + D
    assert covered["trained_parameters"] == plain["trained_parameters"] + moving + 10 * D
    flops = [plan["stages"]["ddp"]["flops_per_step"] for plan in plans]
    assert flops[1] > flops[0]


@pytest.mark.parametrize("stage", STAGES)
def test_one_stage_on_one_gpu(tmp_path, capsys, stage):
    """The stage that was asked for is planned, although there is no other rank to share with."""
    backbone = random_backbone(tmp_path, "llama")
    main(["plan", "--backbone", backbone, "--num_layers", "1", "--num_prototypes", "9", "--stage", stage])
    assert f"Use {stage}: " in capsys.readouterr().out


def test_without_a_language_model(tmp_path, capsys):
    backbone = random_backbone(tmp_path, "llama")
    main(["plan", "--backbone", backbone, "--num_layers", "1", "--num_prototypes", "9", "--ablation", "no_llm"])
    assert "0 parameters frozen" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--gpu", "h1000"], "gpu 'h1000' is not one of"),
        (["--stage", "zero4"], "stage 'zero4' is not one of"),
        (["--gpus", "0"], "gpus must be at least 1"),
        (["--gpus", "3", "--batch_size", "32"], "is not a multiple of 3 GPUs"),
        (["--num_layers", "13"], "has 12 layers, not 13"),
        (["--base_precision", "int4", "--gpu", "cpu"], "base_precision int4 needs a CUDA device"),
        (["--base_precision", "int8", "--stage", "zero3"], "base_precision int8 cannot be partitioned by ZeRO-3"),
        (["--backbone", "no/such/place"], "no such file or folder"),
        (["--known_covariates", "week=seven"], "'week=seven' must be NAME, or NAME=N"),
        (["--gradient_accumulation_steps", "0"], "gradient_accumulation_steps must be at least 1"),
        (["--ablation", "no_llm", "--gradient_checkpointing"], "ablation no_llm has no backbone blocks"),
    ],
)
def test_bad_input_is_one_line(options, message, capsys):
    with pytest.raises(SystemExit) as exit:
        main(["plan", "--backbone", "gpt2", *options])
    assert exit.value.code == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
