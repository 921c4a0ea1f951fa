"""Which attention backend is chosen, and what reaches it: stand-ins for flash attention record their calls."""

import inspect
import json
import sys
import time
from types import ModuleType

import pytest
import torch
import torch.nn.functional as F
from tiny import BACKBONES, random_backbone, tiny_config, tiny_model
from transformers import modeling_flash_attention_utils
from transformers.integrations import hub_kernels
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from llata_fast.backbone import attention
from llata_fast.backbone.attention import FLASH_PACKAGES, HUB_KERNEL, choose_attention
from llata_fast.backbone.loading import read_backbone_config
from llata_fast.errors import InputError
from llata_fast.modeling import LlataForPrediction

pytestmark = pytest.mark.usefixtures("plain_ops")

NUM_TOKENS = 6
FA4, FA3, FA2 = FLASH_PACKAGES


class StandIn(ModuleType):
    """A flash package, computed by SDPA: q [B, T, A, E], k and v [B, T, A / groups, E] -> [B, T, A, E], all 16-bit."""

    widths = range(4, 257, 4)
    windows = True
    error = None

    def __init__(self, name="flash_attn"):
        super().__init__(name)
        self.calls = []

    def flash_attn_func(self, q, k, v, dropout_p=0.0, softmax_scale=None, causal=False, window_size=(-1, -1)):
        if self.error is not None:
            raise self.error
        if q.shape[-1] not in self.widths:
            raise ValueError(f"head width {q.shape[-1]} is not supported")
        if {t.dtype for t in (q, k, v)} not in ({torch.bfloat16}, {torch.float16}):
            raise RuntimeError("FlashAttention only supports fp16 and bf16")
        self.calls.append({"shapes": [tuple(t.shape) for t in (q, k, v)], "causal": causal, "window": window_size})
        T = q.shape[1]
        distance = torch.arange(T)[:, None] - torch.arange(T)
        mask = (distance >= 0) | torch.tensor(not causal)
        if self.windows and window_size[0] >= 0:
            mask = mask & (distance <= window_size[0])
        q, k, v = (t.transpose(1, 2) for t in (q, k, v))
        out = F.scaled_dot_product_attention(q, k, v, mask, dropout_p, scale=softmax_scale, enable_gqa=True)
        return out.transpose(1, 2)

    def flash_attn_varlen_func(self, q, k, v, dropout_p=0.0, softmax_scale=None, causal=False, window_size=(-1, -1)):
        raise AssertionError("for padded or packed sequences, which ours are not")


class WithoutDropout(StandIn):
    def flash_attn_func(self, q, k, v, softmax_scale=None, causal=False, window_size=(-1, -1)):
        return super().flash_attn_func(q, k, v, 0.0, softmax_scale, causal, window_size)

    def flash_attn_varlen_func(self, q, k, v, softmax_scale=None, causal=False, window_size=(-1, -1)):
        raise AssertionError("for padded or packed sequences, which ours are not")


@pytest.fixture(autouse=True)
def machine(monkeypatch):
    """`machine(flash_attention_2=StandIn())` installs only these backends, and lets the CPU pass for a GPU."""

    def install(**backends):
        monkeypatch.setattr(attention, "FLASH_DEVICE", "cpu")
        monkeypatch.setattr(attention, "FLASH_MIN_TOKENS", NUM_TOKENS)
        monkeypatch.setattr(modeling_flash_attention_utils, "_loaded_implementation", None)
        for backend in FLASH_PACKAGES:
            check = f"is_flash_attn_{backend[-1]}_available"
            monkeypatch.setattr(modeling_flash_attention_utils, check, lambda backend=backend: backend in backends)
        # versions 2 and 4 share a package
        package = backends.get(FA2) or backends.get(FA4) or ModuleType("flash_attn")
        package.cute, package.bert_padding = backends.get(FA4), ModuleType("flash_attn.bert_padding")
        package.bert_padding.pad_input = package.bert_padding.unpad_input = None
        package.flash_attn_with_kvcache = None
        if FA3 in backends:
            backends[FA3].flash_attn_with_kvcache = None
        names = {
            "flash_attn": package,
            "flash_attn.bert_padding": package.bert_padding,
            "flash_attn.cute": package.cute,
            "flash_attn_interface": backends.get(FA3),
        }
        for name, module in names.items():
            monkeypatch.setitem(sys.modules, name, module)
        attention._tried.cache_clear()
        return next(iter(backends.values()), None)

    attention._tried.cache_clear()
    yield install
    attention._tried.cache_clear()


@pytest.fixture
def llama(tmp_path):
    return random_backbone(tmp_path, "llama")


def chosen(backbone, requested="auto", num_tokens=NUM_TOKENS, dtype=torch.bfloat16):
    choice = choose_attention(read_backbone_config(backbone, 2), requested)
    return choice.explain(num_tokens, dtype, torch.device("cpu"))


def step(model, channels=NUM_TOKENS, autocast=True):
    """Loss and gradients of a training step."""
    torch.manual_seed(3)
    past, future = torch.randn(3, 12, channels).cumsum(1), torch.randn(3, 5, channels)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        loss = model(past, future).loss
    loss.backward()
    return {"loss": loss} | {name: p.grad.float() for name, p in model.named_parameters() if p.requires_grad}


@pytest.mark.parametrize("family", [family for family in BACKBONES if family != "gemma2"])
@pytest.mark.parametrize("autocast", [True, False], ids=["autocast", "all bf16"])
def test_flash_gets_bf16_heads_and_windows(machine, tmp_path, family, autocast):
    """Despite LoRA, and norms and rotary positions that return fp32."""
    backbone = random_backbone(tmp_path, family)
    plain = tiny_model(backbone, attn_implementation="sdpa")
    flash = machine(flash_attention_2=StandIn())
    model = tiny_model(backbone)
    model.load_state_dict(plain.state_dict())
    assert model.attention_choice.backend == FA2
    flash.calls.clear()
    results = []
    for each in (plain, model):
        # as DeepSpeed's bf16 does: everything except what our ops keep in fp32
        results.append(step(each if autocast else each.bfloat16(), autocast=autocast))
    num_key_value_heads = 4 if family == "gpt2" else 2
    head_dim = 12 if family == "gpt2" else 8
    kv = (6, NUM_TOKENS, num_key_value_heads, head_dim)
    assert [call["shapes"] for call in flash.calls] == 2 * [[(6, NUM_TOKENS, 4, head_dim), kv, kv]]
    assert all(call["causal"] for call in flash.calls)
    layer_types = BACKBONES[family].get("layer_types", 2 * [BACKBONES[family].get("sliding_window", "full_attention")])
    # inclusive: 2 steps back mean the last 3 tokens
    windows = [(-1, -1) if layer_type == "full_attention" else (2, 2) for layer_type in layer_types[:2]]
    assert [call["window"] for call in flash.calls] == windows
    for name, expected in results[0].items():
        error = (results[1][name] - expected).abs().max() / expected.abs().max().clamp(min=1e-6)
        assert error < 0.1, f"{name}: {error}"


def test_flash_is_chosen_only_if_possible_and_faster(machine, llama):
    flash = machine(flash_attention_2=StandIn())
    model = tiny_model(llama)
    flash.calls.clear()
    step(model, channels=NUM_TOKENS - 1)
    step(model, autocast=False)
    assert not flash.calls
    step(model)
    assert len(flash.calls) == 2


def test_fp32_values_follow_autocast(machine, llama):
    """Some families also normalise values; then only autocast itself says which dtype to compute in."""
    flash = machine(flash_attention_2=StandIn())
    choice = choose_attention(read_backbone_config(llama, 2))
    flash.calls.clear()
    q, k, v = torch.randn(2, 4, NUM_TOKENS, 8), torch.randn(2, 2, NUM_TOKENS, 8), torch.randn(2, 2, NUM_TOKENS, 8)
    with torch.autocast("cpu", torch.bfloat16):
        ALL_ATTENTION_FUNCTIONS[choice.name](None, q, k, v, None)
    assert len(flash.calls) == 1


def test_compiles_without_a_graph_break_around_flash(machine, llama):
    flash = machine(flash_attention_2=StandIn())
    model = tiny_model(llama, num_layers=1)
    flash.calls.clear()
    past, future = torch.randn(2, 12, NUM_TOKENS), torch.randn(2, 5, NUM_TOKENS)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    with torch.autocast("cpu", torch.bfloat16):
        # transformers installs its hooks in the first call, under a lock that cannot be compiled
        expected = model(past, future).loss
        flash.calls.clear()
        torch.testing.assert_close(compiled(past, future).loss, expected, rtol=1e-2, atol=1e-2)
    assert flash.calls


def test_newest_first(machine, llama):
    machine(flash_attention_4=StandIn(), flash_attention_3=StandIn(), flash_attention_2=StandIn())
    assert chosen(llama).startswith(f"{FA4} (")
    machine(flash_attention_3=StandIn(), flash_attention_2=StandIn())
    assert chosen(llama).startswith(f"{FA3} ({FA4}: not installed; ")


def broken(error):
    flash = StandIn()
    flash.error = error
    return flash


@pytest.mark.parametrize("error", [ImportError("undefined symbol"), ValueError("no such card"), RuntimeError("CUDA")])
def test_a_failing_backend_is_passed_over(machine, llama, error):
    flash = StandIn()
    machine(flash_attention_3=broken(error), flash_attention_2=flash)
    assert f"{FA3}: {error}; " in chosen(llama) and chosen(llama).startswith(FA2)
    machine(flash_attention_3=broken(error))
    line = chosen(llama)
    assert line.startswith(f"sdpa ({FA4}: not installed; {FA3}: {error}; {FA2}: not installed; {HUB_KERNEL}: ")
    with pytest.raises(InputError, match=f"attn_implementation {FA3} cannot be used: {error}"):
        chosen(llama, FA3)


def test_a_backend_refuses_unsupported_sizes(machine, llama, tmp_path):
    flash = machine(flash_attention_2=StandIn())
    flash.widths = (64, 128)
    assert "head width 8 is not supported" in chosen(llama)
    with pytest.raises(InputError, match="head width 8 is not supported"):
        chosen(llama, FA2)
    assert chosen(random_backbone(tmp_path, "llama", head_dim=64)).startswith(FA2)


def test_a_backend_without_sliding_windows_is_refused(machine, tmp_path):
    flash = machine(flash_attention_2=StandIn())
    flash.windows = False
    assert "differs from SDPA's" in chosen(random_backbone(tmp_path, "mistral"))
    assert chosen(random_backbone(tmp_path, "llama")).startswith(FA2)


def test_attention_dropout_is_dropped_only_on_request(machine, tmp_path):
    backbone = random_backbone(tmp_path, "gpt2", attn_pdrop=0.25)
    machine(flash_attention_3=WithoutDropout())
    assert f"{FA3}: it has no attention dropout, but the backbone has 0.25" in chosen(backbone)
    assert chosen(backbone, FA3) == f"{FA3} (forced, it has no attention dropout, but the backbone has 0.25)"
    machine(flash_attention_3=WithoutDropout(), flash_attention_2=StandIn())
    assert chosen(backbone).startswith(FA2)
    assert "dropout_p" in inspect.signature(StandIn().flash_attn_func).parameters


def test_the_reason_names_tokens_and_dtype(machine, llama):
    machine(flash_attention_2=StandIn())
    assert chosen(llama, num_tokens=5) == f"sdpa ({FA2} is faster only from {NUM_TOKENS} tokens, these are 5)"
    assert chosen(llama, dtype=torch.float32) == f"sdpa ({FA2} takes bf16 and fp16, this is torch.float32)"
    choice = choose_attention(read_backbone_config(llama, 2))
    assert "this is meta" in choice.explain(NUM_TOKENS, torch.bfloat16, torch.device("meta"))


def test_forced(machine, llama, tmp_path):
    flash = machine(flash_attention_2=StandIn())
    assert chosen(llama, FA2, num_tokens=1) == f"{FA2} (forced)"
    model = tiny_model(llama, attn_implementation=FA2)
    flash.calls.clear()
    step(model, channels=2)
    assert len(flash.calls) == 2
    with pytest.raises(InputError, match="takes bf16 and fp16, this is torch.float32"):
        chosen(llama, FA2, dtype=torch.float32)
    with pytest.raises(InputError, match="takes bf16 and fp16, this is torch.float32"):
        step(model, autocast=False)
    assert chosen(llama, "sdpa") == "sdpa (forced)"
    assert chosen(llama, "eager") == "eager (forced)"
    with pytest.raises(InputError, match="cannot cap attention scores, as gemma2 does"):
        chosen(random_backbone(tmp_path, "gemma2"), "sdpa")
    for unknown in ("flash", "flash_attention_5", "flex_attention"):
        with pytest.raises(InputError, match=f"must be one of auto, .* or a hub kernel like .*, got '{unknown}'"):
            chosen(llama, unknown)


def test_without_a_gpu(llama, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert chosen(llama) == "sdpa (no cuda device)"
    for backend in (*FLASH_PACKAGES, HUB_KERNEL):
        with pytest.raises(InputError, match=f"{backend} cannot be used: no cuda device"):
            chosen(llama, backend)


def test_soft_capped_scores(machine, tmp_path):
    machine(flash_attention_2=StandIn())
    capped = random_backbone(tmp_path, "gemma2")
    assert chosen(capped) == "eager (gemma2 caps attention scores)"
    # the stand-in does not support softcap
    with pytest.raises(InputError, match="softcap"):
        chosen(capped, FA2)


@pytest.fixture
def hub(machine, monkeypatch):
    """`hub(get_kernel)` installs only Hugging Face's package `kernels`, which downloads with `get_kernel`."""

    def install(get_kernel):
        machine()
        monkeypatch.setattr(attention, "is_kernels_available", lambda: True)
        monkeypatch.setattr(hub_kernels, "load_and_register_attn_kernel", lambda *args, **kwargs: get_kernel())

    return install


def test_hub_kernel(hub, llama):
    kernel = StandIn()
    hub(lambda: kernel)
    assert chosen(llama).startswith(f"{HUB_KERNEL} (")
    model = tiny_model(llama)
    kernel.calls.clear()
    step(model)
    assert len(kernel.calls) == 2


def test_unreachable_hub_is_passed_over(hub, llama, monkeypatch):
    def fail():
        raise OSError("no route to host")

    hub(fail)
    assert chosen(llama).startswith("sdpa (") and "no route to host" in chosen(llama)
    with pytest.raises(InputError, match=f"{HUB_KERNEL} cannot be used: .*no route to host"):
        chosen(llama, HUB_KERNEL)

    def wait():
        time.sleep(0.5)
        return StandIn()

    hub(wait)
    monkeypatch.setattr(attention, "KERNEL_SECONDS", 0.05)
    assert "no answer within 0.05 s" in chosen(llama)
    # a user who asks for it by name waits for it
    assert chosen(llama, HUB_KERNEL).startswith(HUB_KERNEL)


def test_attention_is_chosen_where_a_checkpoint_is_loaded(machine, llama, tmp_path):
    flash = machine(flash_attention_2=StandIn())
    run = tmp_path / "run"
    tiny_model(llama, attn_implementation=FA2).save_pretrained(run)
    assert "attn" not in (run / "config.json").read_text()
    # a machine without flash attention
    machine()
    flash.calls.clear()
    model = LlataForPrediction.from_pretrained(run)
    assert model.attention_choice.backend == "sdpa" and model.config.attn_implementation == "auto"
    model(torch.randn(2, 12, NUM_TOKENS))
    assert not flash.calls
    assert LlataForPrediction.from_pretrained(run, attn_implementation="eager").attention_choice.name == "eager"
    with pytest.raises(InputError, match=f"{FA2} cannot be used"):
        LlataForPrediction.from_pretrained(run, attn_implementation=FA2)


def test_every_model_in_a_process_keeps_its_choice(machine, llama):
    flash = machine(flash_attention_2=StandIn())
    forced, free, plain = (tiny_model(llama, attn_implementation=name) for name in (FA2, "auto", "sdpa"))
    counts = []
    for model in (forced, free, plain):
        flash.calls.clear()
        step(model, channels=2)
        counts.append(len(flash.calls))
    assert counts == [2, 0, 0]
    assert json.loads(forced.config.to_json_string(use_diff=False))["attn_implementation"] == FA2
    assert tiny_config(llama).attn_implementation == "auto"
