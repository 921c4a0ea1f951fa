"""Measure the host's overhead of one of our ops before any launch, with and without PyTorch's dispatcher.

    python bench/op_overhead.py

Times an op with two inputs and two outputs, whose launcher only allocates the outputs, in microseconds per call,
forward and backward, and compares it with `F.linear` of two numbers and a bare `autograd.Function`. The last line on
stdout is one JSON object.
"""

# must come first; llata_fast/__init__.py says why
import llata_fast  # noqa: F401, I001

import functools
import json
import timeit
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from llata_fast.kernels._operation import Operation

CALLS, ROUNDS = 500, 15


def launcher(x: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape), weight.new_empty(weight.shape)


def backward_launcher(dx: Tensor, x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape), weight.new_empty(weight.shape)


def save(ctx, inputs, output):
    ctx.save_for_backward(*inputs[:2])
    ctx.mark_non_differentiable(output[1])


def backward(ctx, dx, _):
    return *_backward_op(dx, *ctx.saved_tensors), None


_backward_op = Operation("overhead_probe_backward", backward_launcher, fake=backward_launcher)
_op = Operation("overhead_probe", launcher, fake=launcher, setup_context=save, backward=backward)


class _Bare(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight, eps):
        output = launcher(x, weight, eps)
        save(ctx, (x, weight), output)
        return output

    @staticmethod
    def backward(ctx, dx, _):
        return *backward_launcher(dx, *ctx.saved_tensors), None


WAYS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "the dispatcher's custom op": lambda x, weight: _op.registered(x, weight, 0.1)[0],
    "the op as it is called": lambda x, weight: _op(x, weight, 0.1)[0],
    "a bare autograd.Function": lambda x, weight: _Bare.apply(x, weight, 0.1)[0],
    "F.linear": F.linear,
}


def microseconds(call: Callable[[], object]) -> float:
    """Time of one call: the fastest round, as the machine may be busy."""
    return min(timeit.repeat(call, number=CALLS, repeat=ROUNDS)) / CALLS * 1e6


def main():
    x, weight = torch.ones(1, 2, requires_grad=True), torch.ones(1, 2, requires_grad=True)
    rows = {}
    for name, way in WAYS.items():
        ones = torch.ones_like(way(x, weight))

        def step(way=way, ones=ones):
            torch.autograd.grad(way(x, weight), (x, weight), ones)

        forward = functools.partial(way, x, weight)
        rows[name] = {"forward": microseconds(forward), "step": microseconds(step)}
        with torch.no_grad():
            rows[name]["no_grad"] = microseconds(forward)
    print("| way | forward | forward and backward | without gradients |\n| - | - | - | - |")
    for name, row in rows.items():
        print(f"| {name} | {row['forward']:.1f} | {row['step']:.1f} | {row['no_grad']:.1f} |")
    print(json.dumps({"torch": torch.__version__, "microseconds": rows}))


if __name__ == "__main__":
    main()
