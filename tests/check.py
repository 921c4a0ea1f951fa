"""The tolerance rule for every kernel, and the memory layouts of its inputs."""

import dataclasses

import torch
from llata_fast.kernels import configs, providers
from llata_fast.kernels._launch import INTERPRET, target_name
from torch import Tensor

ATOL = {torch.float32: 1e-5, torch.float16: 1e-4, torch.bfloat16: 1e-3}
LAYOUTS = ("contiguous", "transposed", "scattered")

# on a GPU nearly every example compiles new kernels, which takes a second
EXAMPLES = 200 if INTERPRET else 30

# the interpreter does not compute bf16 as a GPU does
DTYPES = (torch.float32, torch.float16) + ((torch.bfloat16,) if torch.cuda.is_available() else ())


def assert_close_to_ref(name: str, out: Tensor, eager: Tensor, exact: Tensor, factor: float = 2.0, steps: int = 0):
    """The error of `out` against the float64 `exact` is at most `factor` times that of `eager`, in the same dtype.

    `steps` allows that many further rounding steps of the largest element: eager may happen to round every one of a
    few elements well.
    """
    assert out.dtype == eager.dtype, f"{name}: {out.dtype}, expected {eager.dtype}"
    assert out.shape == exact.shape, f"{name}: {list(out.shape)}, expected {list(exact.shape)}"
    if out.numel() == 0:
        return
    assert torch.isfinite(out).all(), f"{name}: not finite"
    error = (out.double() - exact).abs().max().item()
    allowed = factor * (eager.double() - exact).abs().max().item() + ATOL[eager.dtype]
    allowed += steps * torch.finfo(eager.dtype).eps * exact.abs().max().item()
    assert error <= allowed, f"{name}: error {error:.3e}, allowed {allowed:.3e}"


def in_layout(tensor: Tensor, layout: str) -> Tensor:
    """The same values with the strides of `layout`; NaN (True for masks) fills the gaps around scattered elements."""
    if layout == "contiguous":
        return tensor.contiguous()
    if layout == "transposed":
        return tensor.transpose(0, -1).contiguous().transpose(0, -1)
    filler = True if tensor.dtype == torch.bool else float("nan")
    room = torch.full([2 * size + 3 for size in tensor.shape], filler, dtype=tensor.dtype, device=tensor.device)
    scattered = room[tuple(slice(1, 1 + 2 * size, 2) for size in tensor.shape)]
    return scattered.copy_(tensor)


def grads_of(outputs: Tensor, cotangent: Tensor, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    grads = torch.autograd.grad(outputs, list(inputs.values()), cotangent.to(outputs.dtype))
    return {f"d{name}": grad for name, grad in zip(inputs, grads, strict=True)}


def compare(run, *tensors: Tensor, op, op_ref, steps: int = 0) -> None:
    """Apply the tolerance rule to every output of `run(fn, *tensors)`, which returns a dict by name."""
    out = run(op, *tensors)
    # for some strides eager takes other, more exact paths, so measure it on contiguous inputs
    eager = run(op_ref, *(t.contiguous() for t in tensors))
    exact = run(op_ref, *(t.double() for t in tensors))
    for name in out:
        assert_close_to_ref(name, out[name], eager[name], exact[name], steps=steps)


def gpu_configs(op: str) -> list[configs.Config]:
    """Rows of the op in the config table that can run here: this GPU's, or every GPU's in the interpreter."""
    targets = None if INTERPRET else ("any", target_name(torch.device("cuda")))
    rows = [config for config in configs.TABLE.values() if config.kernel.startswith(op)]
    return [row for row in rows if row.target != "interpreter" and (targets is None or row.target in targets)]


def use_config(monkeypatch, config: configs.Config, device: torch.device) -> None:
    monkeypatch.setitem(configs.TABLE, (config.kernel, config.shape_class, target_name(device)), config)


def use_provider(monkeypatch, op: str, provider: str) -> None:
    """Make `provider` compute every shape class of `op`."""
    for key, row in list(providers.TABLE.items()):
        if row.op == op:
            monkeypatch.setitem(providers.TABLE, key, dataclasses.replace(row, provider=provider))


def config_id(config: configs.Config) -> str:
    return f"{config.kernel}-{config.shape_class}-{config.target}"


def config_dtype(config: configs.Config) -> torch.dtype:
    return torch.float16 if "16-bit" in config.shape_class else torch.float32
