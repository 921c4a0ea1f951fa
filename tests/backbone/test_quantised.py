"""A frozen base in 8 or 4 bits computes what its dequantised weights compute, during and after training.

A stand-in stores weights as bitsandbytes does (packed, with separate scales, in its own classes), so that everything
but the arithmetic is tested without bitsandbytes. Where it is installed, the same tests run it on the CPU.
"""

import importlib
import json
import runpy
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from tiny import perturb, random_backbone, tiny_config, write_series
from torch import nn
from training.distributed_cases import train

from llata_fast.backbone import quantised
from llata_fast.backbone.quantised import quantised_bytes, quantised_modules
from llata_fast.errors import InputError
from llata_fast.modeling import LlataForPrediction
from llata_fast.settings import ModelSettings
from llata_fast.training.parameters import parameter_counts

ROOT = Path(__file__).resolve().parents[2]
PRECISIONS = ("int8", "int4")

pytestmark = pytest.mark.usefixtures("plain_ops")


class Packed(nn.Parameter):
    """A weight [out, in] that becomes integers and one scale per row when it is moved to a device."""

    def __new__(cls, data=None, requires_grad=False, bits=8, scale=None, **more):
        weight = torch.Tensor._make_subclass(cls, data, requires_grad)
        weight.bits, weight.scale = bits, scale
        return weight

    def to(self, *args, **kwargs):
        if self.scale is not None:
            return super().to(*args, **kwargs)
        largest = 2 ** (self.bits - 1) - 1
        self.scale = self.data.abs().amax(1, keepdim=True).float() / largest
        values = (self.data / self.scale).round()
        if self.bits == 4:
            pairs = (values + 8).to(torch.uint8).reshape(-1, 2)
            self.data = pairs[:, :1] + 16 * pairs[:, 1:]
        else:
            self.data = values.to(torch.int8)
        return self

    def dequantised(self):
        if self.bits == 8:
            return self.data * self.scale
        return (torch.cat((self.data % 16, self.data // 16), 1).view(len(self.scale), -1) - 8.0) * self.scale


class Linear(nn.Linear):
    """Records the dtypes of its inputs."""

    def __init__(self, bits, *sizes, device):
        super().__init__(*sizes, device=device)
        self.weight = Packed(self.weight.data, bits=bits)
        self.inputs = set()

    def forward(self, x):
        assert not self.weight.is_floating_point(), "it was not quantised"
        self.inputs.add(x.dtype)
        return F.linear(x, self.weight.dequantised().to(x.dtype), self.bias).to(x.dtype)

    def _save_to_state_dict(self, destination, prefix, keep_vars):
        super()._save_to_state_dict(destination, prefix, keep_vars)
        destination[f"{prefix}weight.scale"] = self.weight.scale


class Linear8bitLt(Linear):
    def __init__(self, in_features, out_features, bias, has_fp16_weights, threshold, device):
        assert not has_fp16_weights, "it would keep the weight in 16 bits"
        super().__init__(8, in_features, out_features, bias, device=device)


class Linear4bit(Linear):
    def __init__(self, in_features, out_features, bias, compute_dtype, compress_statistics, quant_type, device):
        assert quant_type == "nf4" and compress_statistics
        self.compute_dtype = compute_dtype
        super().__init__(4, in_features, out_features, bias, device=device)


@pytest.fixture(params=["stand-in", "bitsandbytes"])
def package(request, monkeypatch):
    """A function from a bitsandbytes module to its dequantised weight; permits quantising on the CPU."""
    monkeypatch.setattr(quantised, "QUANTISED_DEVICE", "cpu")
    if request.param == "stand-in":
        module = ModuleType("bitsandbytes")
        module.nn = SimpleNamespace(Linear8bitLt=Linear8bitLt, Linear4bit=Linear4bit)
        monkeypatch.setitem(sys.modules, "bitsandbytes", module)
        return lambda projection: projection.weight.dequantised()
    functional = pytest.importorskip("bitsandbytes").functional

    def dequantised(projection):
        if isinstance(projection, sys.modules["bitsandbytes"].nn.Linear4bit):
            return functional.dequantize_4bit(projection.weight.data, projection.weight.quant_state)
        scales = projection.weight.SCB if projection.weight.SCB is not None else projection.state.SCB
        return functional.int8_vectorwise_dequant(projection.weight.data, scales)

    return dequantised


@pytest.fixture(params=["gpt2", "llama"])
def backbone(request, tmp_path):
    """GPT-2's matrices are transposed; no width is a multiple of the block size 64."""
    return random_backbone(tmp_path, request.param)


def step(model, autocast=False):
    """Forecast, loss and every gradient of a training step."""
    torch.manual_seed(3)
    past, future = torch.randn(3, 12, 4).cumsum(1), torch.randn(3, 5, 4)
    model.zero_grad()
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        output = model(past, future)
    output.loss.backward()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.requires_grad}
    return {"forecast": output.prediction_outputs, "text": output.text_outputs, "loss": output.loss} | gradients


def both(backbone, precision, dequantise=None):
    """A model on a quantised base, and one with the same trained weights on the plain (or dequantised) base."""
    models = []
    for base_precision in (precision, "auto"):
        torch.manual_seed(0)
        model = LlataForPrediction.from_backbone(tiny_config(backbone, base_precision=base_precision))
        torch.manual_seed(1)
        perturb(model)
        models.append(model.train())
    model, plain = models
    modules = dict(plain.named_modules())
    for name, module in model.named_modules():
        if dequantise and module in quantised_modules(model):
            weight = dequantise(module.projection).float()
            modules[name].weight.data = weight if isinstance(modules[name], nn.Linear) else weight.T.contiguous()
    return model, plain


def distances(ours, theirs):
    return {name: (ours[name] - theirs[name]).norm() / theirs[name].norm().clamp(min=1e-6) for name in theirs}


@pytest.mark.parametrize("precision", PRECISIONS)
def test_twin_pass_over_dequantised_weights(backbone, precision, package):
    """Every projection of the base is quantised, and gradients flow through it as through a matrix."""
    model, plain = both(backbone, precision, package)
    projections = [name for name in plain.backbone.frozen_keys() if plain.backbone.state_dict()[name].ndim == 2]
    assert len(quantised_modules(model)) == len([name for name in projections if "positions" not in name]) > 0
    ours, theirs = step(model), step(plain)
    assert ours.keys() == theirs.keys() and any("lora_a" in name for name in ours)
    for name, distance in distances(ours, theirs).items():
        assert distance < 1e-4, name


@pytest.mark.parametrize("precision", PRECISIONS)
def test_forecasts_stay_near_the_plain_base(backbone, precision, package):
    model, plain = both(backbone, precision)
    distance = distances(step(model), step(plain))
    forecast, gradient = distance["forecast"], max(distance[name] for name in distance if "lora_" in name)
    nearest, farthest = {"int8": (0.05, 0.1), "int4": (0.3, 0.6)}[precision]
    assert 0 < forecast < nearest and 0 < gradient < farthest


@pytest.mark.parametrize("precision", PRECISIONS)
def test_autocast_reaches_it(backbone, precision, package):
    """Otherwise activations would be fp32."""
    model, plain = both(backbone, precision, package)
    seen = set()
    for module in quantised_modules(model):
        module.register_forward_hook(lambda _, inputs, output: seen.add(output.dtype))
    ours, theirs = step(model, autocast=True), step(plain, autocast=True)
    assert seen == {torch.bfloat16}
    assert distances(ours, theirs)["forecast"] < 0.05


@pytest.mark.parametrize("precision", PRECISIONS)
def test_bytes_and_parameters(backbone, precision, package):
    model, plain = both(backbone, precision)
    assert parameter_counts(model) == parameter_counts(plain)
    held = sum(module.projection.weight.nbytes for module in quantised_modules(model))
    counted = sum(
        quantised_bytes(module.out_features, module.in_features, precision) for module in quantised_modules(model)
    )
    assert held < counted < 1.2 * held


@pytest.mark.parametrize("precision", PRECISIONS)
def test_saved_weights_are_the_trained_ones(backbone, precision, package, tmp_path):
    """A saved run forecasts with the plain base by default, and with the quantised one on request."""
    model, _ = both(backbone, precision)
    parameters = dict(model.named_parameters()) | dict(model.named_buffers())
    assert model.state_dict().keys() <= parameters.keys(), "a statistic would be taken for a trained weight"
    model.save_pretrained(tmp_path)
    saved = load_file(tmp_path / "model.safetensors")
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert saved.keys() == trained | {"prototypes"}
    assert "base_precision" not in json.loads((tmp_path / "config.json").read_text())
    past = torch.randn(2, 12, 4)
    with torch.no_grad():
        expected = model.eval()(past).prediction_outputs
        again = LlataForPrediction.from_pretrained(tmp_path, base_precision=precision)(past).prediction_outputs
        whole = LlataForPrediction.from_pretrained(tmp_path)
        near = whole(past).prediction_outputs
    assert torch.equal(again, expected)
    assert not quantised_modules(whole) and not torch.equal(near, expected)
    assert (near - expected).norm() < 0.3 * expected.norm()


def test_what_a_quantised_base_cannot_do(package, tmp_path):
    backbone = random_backbone(tmp_path)
    model, plain = both(backbone, "int4")
    with pytest.raises(InputError, match="cannot be merged"):
        model.merge()
    with pytest.raises(InputError, match="cannot be saved"):
        model.save_pretrained(tmp_path / "run", include_backbone=True)
    assert not (tmp_path / "run").exists()
    plain.merge().save_pretrained(tmp_path / "merged")
    with pytest.raises(InputError, match="includes its backbone"):
        LlataForPrediction.from_pretrained(tmp_path / "merged", base_precision="int4")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"ablation": "random_init"}, "ablation random_init has no frozen base"),
        ({"backbone_pass": "two_pass"}, "needs backbone_pass twin"),
        ({"base_precision": "int3"}, "base_precision must be one of auto, int8, int4"),
    ],
)
def test_contradictory_settings_are_refused(fields, message):
    with pytest.raises(InputError, match=message):
        ModelSettings(**{"base_precision": "int8"} | fields)


def broken():
    raise OSError("libbitsandbytes.so: cannot open shared object file")


@pytest.mark.parametrize(
    ("module", "device", "zero3", "message"),
    [
        (None, "cuda", False, "base_precision int8 needs bitsandbytes: pip install llata-fast[quantization]"),
        (broken, "cuda", False, "which cannot be imported (OSError: libbitsandbytes.so: cannot open"),
        (ModuleType, "cuda", False, "base_precision int8 needs a CUDA device, but there is none here"),
        (ModuleType, "cpu", True, "base_precision int8 cannot be partitioned by ZeRO-3: use a lower stage"),
    ],
    ids=["absent", "broken", "no GPU", "ZeRO-3"],
)
def test_the_reason_for_a_refusal_is_named(module, device, zero3, message, monkeypatch, tmp_path, capsys):
    """`train.py` prints one line, exits with 2 and writes nothing."""
    imported = importlib.import_module

    def import_module(name, *package):
        if name != "bitsandbytes":
            return imported(name, *package)
        if module is None:
            raise ModuleNotFoundError(name)
        return broken() if module is broken else ModuleType(name)

    monkeypatch.setattr(quantised.importlib, "import_module", import_module)
    monkeypatch.setattr(quantised, "QUANTISED_DEVICE", device)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr("llata_fast.backbone.base.is_deepspeed_zero3_enabled", lambda: zero3)
    series = write_series(tmp_path / "series.csv")
    argv = ["train.py", "--dataset", str(series), "--backbone", random_backbone(tmp_path), "--num_layers", "1"]
    argv += ["--context_length", "12", "--prediction_length", "5", "--num_prototypes", "9", "--base_precision", "int8"]
    monkeypatch.setattr(sys, "argv", [*argv, "--use_cpu", "--output_dir", str(tmp_path / "run")])
    with pytest.raises(SystemExit) as exit:
        runpy.run_path(str(ROOT / "train.py"), run_name="__main__")
    error = capsys.readouterr().err
    assert exit.value.code == 2 and message in error and error.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_training_resumes(package, tmp_path):
    """The base is quantised again, with the same result."""
    flags = {
        "dataset": write_series(tmp_path / "series.csv", 300),
        "backbone": random_backbone(tmp_path),
        "base_precision": "int4",
        "num_layers": 1,
        "context_length": 12,
        "prediction_length": 5,
        "num_prototypes": 9,
        "batch_size": 8,
        "max_steps": 2,
        "logging_steps": 1,
        "eval_strategy": "no",
        "save_strategy": "steps",
        "save_steps": 1,
        "precision": "fp32",
        "use_cpu": "true",
        "report_to": "none",
        "disable_tqdm": "true",
    }
    flags = [part for name, value in flags.items() for part in (f"--{name}", str(value))]
    train([*flags, "--output_dir", str(tmp_path / "whole")])
    checkpoint = str(tmp_path / "whole" / "checkpoint-1")
    train([*flags, "--output_dir", str(tmp_path / "resumed"), "--resume_from_checkpoint", checkpoint])
    states = [tmp_path / run / "checkpoint-2" / "trainer_state.json" for run in ("whole", "resumed")]
    losses = [[row["loss"] for row in json.loads(path.read_text())["log_history"] if "loss" in row] for path in states]
    assert losses[0][-1] == losses[1][-1] and np.isfinite(losses[0]).all()
    assert "base_precision: int4" in (tmp_path / "whole" / "run.yaml").read_text()
