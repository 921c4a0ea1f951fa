"""Training on a bundle equals training on the backbone that it was made from."""

import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import BACKBONES, random_backbone, tiny_config
from transformers import AutoConfig, AutoModelForCausalLM

from llata_fast.__main__ import main
from llata_fast.backbone import load_backbone_weights, read_backbone_config
from llata_fast.backbone.bundled import write_bundle
from llata_fast.errors import InputError
from llata_fast.modeling import LlataForPrediction

pytestmark = pytest.mark.usefixtures("plain_ops")

D = 48


@pytest.fixture(params=["gpt2", "gemma2"])
def source(request, tmp_path):
    """A folder with a bf16 language model, as most are published; random weights would depend on the layer count."""
    config = AutoConfig.for_model(request.param, **BACKBONES[request.param])
    AutoModelForCausalLM.from_config(config).to(torch.bfloat16).save_pretrained(tmp_path / "source")
    return str(tmp_path / "source")


@pytest.fixture
def bundle(tmp_path):
    """Two blocks and every prototype of a random Llama with fp32 weights."""
    write_bundle(random_backbone(tmp_path), tmp_path / "bundle", num_layers=2)
    return str(tmp_path / "bundle")


def trained(backbone, **fields):
    """State dict and losses after a few training steps."""
    torch.manual_seed(1)
    model = LlataForPrediction.from_backbone(tiny_config(backbone, **fields)).train()
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    series = torch.randn(4, 17, 3).cumsum(1)
    losses = []
    for _ in range(3):
        losses.append(model(series[:, :12], series[:, 12:]).loss)
        losses[-1].backward()
        optimizer.step()
        optimizer.zero_grad()
    return dict(model.state_dict()) | {"losses": torch.stack(losses).detach()}


@pytest.mark.parametrize("num_layers", [1, 2])
def test_training_equals_training_on_the_source(source, tmp_path, num_layers):
    write_bundle(source, tmp_path / "bundle", num_layers=2)
    shutil.move(source, tmp_path / "gone")
    actual = trained(str(tmp_path / "bundle"), num_layers=num_layers)
    shutil.move(tmp_path / "gone", source)
    expected = trained(source, num_layers=num_layers)
    assert actual.keys() == expected.keys()
    assert all(torch.equal(actual[name], expected[name]) for name in expected)
    assert len(set(expected["losses"].tolist())) == 3


def test_contains_the_first_blocks_in_bf16_and_no_vocabulary(bundle, tmp_path):
    source = random_backbone(tmp_path)
    blocks = load_backbone_weights(source, read_backbone_config(source, 2)).blocks
    held = load_file(f"{bundle}/model.safetensors")
    assert held.keys() == blocks.keys()
    assert all(torch.equal(held[name], blocks[name].to(torch.bfloat16)) for name in blocks)
    weights = load_backbone_weights(bundle, read_backbone_config(bundle, 1))
    assert weights.word_embeddings is None and weights.prototypes.shape == (D - 1, D)
    assert not any(name.startswith("layers.1.") for name in weights.blocks)


@pytest.mark.parametrize("kept", [None, 20], ids=["all", "20"])
def test_fewer_prototypes_are_the_first_ones(source, tmp_path, kept):
    write_bundle(source, tmp_path / "bundle", num_layers=2, num_prototypes=kept)
    # a bundle made from a bundle
    write_bundle(str(tmp_path / "bundle"), tmp_path / "again", num_layers=1)
    fields = {"num_layers": 1, "num_prototypes": 7}
    expected = LlataForPrediction.from_backbone(tiny_config(source, **fields)).prototypes
    for folder in ("bundle", "again"):
        model = LlataForPrediction.from_backbone(tiny_config(str(tmp_path / folder), **fields))
        assert torch.equal(model.prototypes, expected)
        held = (kept or D - 1) + 1
        with pytest.raises(InputError, match=f"a bundle of {held - 1} prototypes|has at most {D - 1}"):
            LlataForPrediction.from_backbone(tiny_config(str(tmp_path / folder), **fields | {"num_prototypes": held}))


def test_too_many_layers_are_refused(bundle):
    with pytest.raises(InputError, match="has 2 layers: num_layers must be in 1..2, got 3"):
        LlataForPrediction.from_backbone(tiny_config(bundle, num_layers=3))


def test_without_its_prototypes_it_lacks_the_word_embedding(bundle, tmp_path):
    path = tmp_path / "bundle" / "prototypes.safetensors"
    for content in ({"prototypes": torch.ones(9, D - 1)}, {"prototypes": torch.full((9, D), torch.nan)}, {}):
        save_file(content, path)
        with pytest.raises(InputError, match="unreadable prototypes.safetensors"):
            LlataForPrediction.from_backbone(tiny_config(bundle))
    path.unlink()
    with pytest.raises(InputError, match="lacks 'embed_tokens.weight'"):
        LlataForPrediction.from_backbone(tiny_config(bundle))


def test_command(tmp_path, capsys):
    """`python -m llata_fast bundle` refuses wrong input with one line and then writes nothing."""
    source, output = random_backbone(tmp_path), tmp_path / "new" / "bundle"

    def bundle(*argv):
        main(["bundle", "--backbone", source, "--num_layers", "2", "--output", str(output), *map(str, argv)])

    def refused(*argv):
        before = {path: path.is_file() and path.read_bytes() for path in tmp_path.rglob("*")}
        capsys.readouterr()
        with pytest.raises(SystemExit) as exit:
            bundle(*argv)
        lines = capsys.readouterr().err
        assert exit.value.code == 2 and lines.count("\n") == 1
        assert before == {path: path.is_file() and path.read_bytes() for path in tmp_path.rglob("*")}
        return lines

    assert "has 3 layers: num_layers must be in 1..3, got 4" in refused("--num_layers", 4)
    assert f"allow 1 to {D - 1}" in refused("--num_prototypes", D)
    assert "neither a family" in refused("--backbone", "random:eliza")
    assert "it is a file" in refused("--output", tmp_path / "llama.json")

    bundle("--num_prototypes", 5)
    assert f"--backbone {output}" in capsys.readouterr().out
    assert sorted(path.name for path in output.iterdir()) == [
        "config.json",
        "model.safetensors",
        "prototypes.safetensors",
    ]
    assert "is not empty" in refused()
    bundle("--overwrite")
    assert load_file(output / "prototypes.safetensors")["prototypes"].shape == (D - 1, D)
    assert "it is the backbone itself" in refused("--backbone", output, "--overwrite")
