"""The kernels in a model without a language model: patches of raw series attend to a memory of learned vectors.

    python examples/kernels_alone.py                # takes seconds on a CPU; on a GPU the same code launches Triton
    python examples/kernels_alone.py --steps 500 --channels 21

The series are waves with gaps. The last line gives the mean absolute error before and after training.
"""

# must come first; llata_fast/__init__.py says why
import llata_fast  # noqa: F401, I001

import argparse

import torch
from torch import Tensor, nn

from llata_fast.kernels import patch_embed, prototype_attention


class MemoryForecaster(nn.Module):
    """past [B, L, C], observed [B, L, C] -> forecast [B, H, C]. Every patch adds what it reads from the memory."""

    def __init__(self, context_length: int, horizon: int, width: int = 64, heads: int = 4, memory: int = 32):
        super().__init__()
        self.patch = {"patch_length": 16, "patch_stride": 8}
        num_patches = (context_length - 16) // 8 + 1
        patches = nn.Linear(16, width)
        self.weight, self.bias = patches.weight, patches.bias
        self.keys, self.values = (nn.Parameter(torch.randn(memory, heads, width // heads)) for _ in range(2))
        self.queries, self.found = nn.Linear(width, width), nn.Linear(width, width)
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(num_patches * width, horizon)

    def forward(self, past: Tensor, observed: Tensor) -> Tensor:
        # one op takes the raw series, gaps included, and returns tokens, level and scale of every window
        tokens, loc, scale = patch_embed(past, self.weight, self.bias, **self.patch, observed_mask=observed)
        queries = self.queries(tokens).view(-1, *self.keys.shape[1:])
        # the patches of all windows form one block of queries, so no key is copied per window
        found = prototype_attention(queries, self.keys, self.values).view(tokens.shape)
        tokens = self.norm(tokens + self.found(found))  # [B, C, N, D]
        return (self.head(tokens.flatten(2)) * scale[..., None] + loc[..., None]).transpose(1, 2)


def waves(batch: int, steps: int, channels: int, device: str) -> tuple[Tensor, Tensor]:
    """Series [B, steps, C] with random levels, amplitudes and phases, and the mask of observed values."""
    draw = lambda *shape: torch.rand(batch, *shape, channels, device=device)
    phase = torch.arange(steps, device=device)[:, None] * 0.26 + 6.28 * draw(1)
    series = 50 * draw(1) + (1 + 5 * draw(1)) * (phase.sin() + 0.1 * torch.randn_like(phase))
    return series, torch.rand_like(series) > 0.1


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--channels", type=int, default=7)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options = parser.parse_args()
    torch.manual_seed(0)
    model = MemoryForecaster(context_length=96, horizon=24).to(options.device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    errors = []
    for _ in range(options.steps):
        series, observed = waves(options.batch, 96 + 24, options.channels, options.device)
        past = series[:, :96].where(observed[:, :96], torch.nan)
        loss = (model(past, observed[:, :96]) - series[:, 96:]).abs().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        errors.append(loss.item())
    print(f"mean absolute error: {errors[0]:.2f} before, {errors[-1]:.2f} after {options.steps} steps")


if __name__ == "__main__":
    main()
