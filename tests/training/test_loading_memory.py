"""Loading a base of 2 GiB for training takes little more memory than a rank's share, with and without ZeRO-3."""

import json
import re
import struct
from pathlib import Path

import pytest
from transformers import LlamaConfig

ROOT = Path(__file__).resolve().parents[2]
LAYERS, SHARDS, USED = 18, 9, 16
D, F, VOCABULARY = 2048, 8192, 1024
SHAPES = {
    **{f"self_attn.{name}_proj.weight": (D, D) for name in "qkvo"},
    "mlp.gate_proj.weight": (F, D),
    "mlp.up_proj.weight": (F, D),
    "mlp.down_proj.weight": (D, F),
    "input_layernorm.weight": (D,),
    "post_attention_layernorm.weight": (D,),
}


def mark(layer: int, index: int) -> float:
    """Value of a projection's first element; its negative is that of the last. Exact in bf16."""
    return float(8 * layer + index + 1)


def bf16(value: float) -> bytes:
    return struct.pack("<f", value)[2:]


def write_shard(path: Path, tensors: dict[str, tuple[tuple[int, ...], float]]) -> int:
    """A bf16 safetensors file: zeros (sparse on disk) except for first and last elements. Returns its size in bytes."""
    header, marks, end = {}, {}, 0
    for name, (shape, value) in tensors.items():
        start, end = end, end + 2 * shape[0] * (shape[1] if len(shape) > 1 else 1)
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [start, end]}
        marks |= {start: bf16(value), end - 2: bf16(-value)}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + end)
        for offset, value in marks.items():
            file.seek(8 + len(text) + offset)
            file.write(value)
    return end


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """Folder of a Llama with 18 layers in 9 shards, and the size of a shard in bytes."""
    folder = tmp_path_factory.mktemp("base")
    LlamaConfig(
        hidden_size=D,
        intermediate_size=F,
        num_hidden_layers=LAYERS,
        num_attention_heads=16,
        num_key_value_heads=16,
        vocab_size=VOCABULARY,
    ).save_pretrained(folder)
    files = {}
    for shard in range(SHARDS):
        layers = range(shard * LAYERS // SHARDS, (shard + 1) * LAYERS // SHARDS)
        tensors = {
            f"model.layers.{layer}.{name}": (shape, mark(layer, index))
            for layer in layers
            for index, (name, shape) in enumerate(SHAPES.items())
        }
        if shard == 0:
            tensors |= {"model.embed_tokens.weight": ((VOCABULARY, D), 1.0), "model.norm.weight": ((D,), 1.0)}
        size = write_shard(folder / f"model-{shard}.safetensors", tensors)
        files |= dict.fromkeys(tensors, f"model-{shard}.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": files}))
    # a rank that reads more than it needs fails without it
    (folder / f"model-{SHARDS - 1}.safetensors").unlink()
    yield folder, size
    for path in folder.iterdir():
        path.unlink()


# stage -> number of layers used
STAGES = {"zero3": USED, "zero2": 4}


@pytest.fixture(scope="module")
def loaded(checkpoint, launch, free_port, tmp_path_factory):
    """The measurements of both ranks, by stage."""
    folder = tmp_path_factory.mktemp("noted")
    arguments = ["--backbone", str(checkpoint[0]), "--num_prototypes", "4", "--precision", "bf16"]
    arguments += ["--use_cpu", "true", "--output_dir", str(folder / "run")]
    cases = [
        {
            "arguments": [*arguments, f"--num_layers={layers}", f"--deepspeed={ROOT}/ds_configs/{stage}.json"],
            "output": str(folder / stage),
        }
        for stage, layers in STAGES.items()
    ]
    (folder / "cases.json").write_text(json.dumps(cases))
    script = ROOT / "tests" / "training" / "loading_cases.py"
    launch("deepspeed", "--num_gpus", 2, "--master_port", free_port, script, folder / "cases.json")
    return {stage: [json.loads((folder / f"{stage}-{rank}.json").read_text()) for rank in range(2)] for stage in STAGES}


def test_the_base_is_large(checkpoint):
    _, shard = checkpoint
    assert shard * USED // 2 >= 2 * 2**30


@pytest.mark.parametrize("stage", STAGES)
def test_a_rank_needs_its_share_and_one_shard(stage, loaded, checkpoint):
    _, shard = checkpoint
    base = shard * STAGES[stage] // 2
    for rank in loaded[stage]:
        share = base / 2 if stage == "zero3" else base
        # trained weights come on top
        assert share <= rank["share"] <= 1.5 * share + shard
        assert rank["peak"] <= 1.3 * rank["share"] + shard


@pytest.mark.parametrize("stage", STAGES)
def test_every_projection_is_where_it_belongs(stage, loaded):
    """A rank's part begins and ends with the ends of the tensor; under ZeRO-3 it has one of them."""
    names = [name for name in SHAPES if "_proj" in name]
    for number, rank in enumerate(loaded[stage]):
        expected = {}
        for layer in range(STAGES[stage]):
            for index, name in enumerate(names):
                first, last = mark(layer, index), -mark(layer, index)
                if stage == "zero3":
                    first, last = (first, 0.0) if number == 0 else (0.0, last)
                # LoRA wraps what it updates
                stem = re.sub(r"([qkv]_proj)", r"\1.base", name)
                expected[f"model.layers.{layer}.{stem}"] = [first, last]
        assert rank["marks"] == expected
