"""Find where FlashAttention starts to pay: time causal self-attention over 7 to 1,024 tokens in all implementations.

    python bench/attention.py

Implementations take turns in every round, and medians are compared. For every length the number of sequences gives
`--tokens` tokens in total. Writes attention.csv, and attention.png if matplotlib is installed, to
bench/results/<device>; the last line on stdout is one JSON object.
"""

# must come first; llata_fast/__init__.py says why
import llata_fast  # noqa: F401, I001

import argparse
import csv
import datetime
import functools
import json
import pathlib
import re
from collections.abc import Callable

import torch
from torch import Tensor
from tqdm import tqdm
from train_step import interleaved
from transformers import LlamaConfig
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from llata_fast.backbone.attention import FLASH_PACKAGES, HUB_KERNEL, causal_sdpa, choose_attention
from llata_fast.errors import InputError

# channels of ETT, Weather, ECL and Traffic, 196 patches, and powers of two
LENGTHS = (7, 21, 64, 128, 196, 321, 512, 862, 1024)
RESULTS = pathlib.Path(__file__).with_name("results")
Attention = Callable[[Tensor, Tensor, Tensor], Tensor]


def eager(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Scores, mask, softmax and sum as separate tensors, like transformers' eager attention."""
    T = query.shape[2]
    key, value = (t.repeat_interleave(query.shape[1] // t.shape[1], 1) for t in (key, value))
    scores = query @ key.transpose(2, 3) * query.shape[-1] ** -0.5
    ahead = torch.full((T, T), torch.finfo(query.dtype).min, device=query.device, dtype=query.dtype).triu(1)
    weights = torch.softmax(scores + ahead, dim=-1, dtype=torch.float32).to(query.dtype)
    return (weights @ value).transpose(1, 2).contiguous()


def implementations(options: argparse.Namespace) -> dict[str, Attention]:
    """{name: attention}, each q [B, A, T, E], k and v [B, A / groups, T, E] -> [B, T, A, E]."""
    found = {"eager": eager, "sdpa": lambda q, k, v: causal_sdpa(None, q, k, v, None)[0]}
    config = LlamaConfig(
        hidden_size=options.heads * options.head_dim,
        num_attention_heads=options.heads,
        num_key_value_heads=options.key_value_heads,
    )
    for backend in (*FLASH_PACKAGES, HUB_KERNEL):
        try:
            name = choose_attention(config, backend).name
        except InputError as error:
            print(f"without {backend}: {error}")
        else:
            function = ALL_ATTENTION_FUNCTIONS[name]
            found[backend] = lambda q, k, v, function=function: function(None, q, k, v, None)[0]
    return found


def call(attention: Attention, inputs: list[Tensor], mode: str):
    if mode == "fwd":
        with torch.no_grad():
            return attention(*inputs)
    output = attention(*inputs)
    return torch.autograd.grad(output, inputs, torch.ones_like(output))


def measure(attentions: dict[str, Attention], num_tokens: int, mode: str, options: argparse.Namespace) -> list[dict]:
    batch = max(1, options.tokens // num_tokens)
    shapes = [(batch, heads, num_tokens, options.head_dim) for heads in (options.heads, *2 * [options.key_value_heads])]
    dtype = torch.bfloat16 if options.device == "cuda" else torch.float32
    inputs = [torch.randn(shape, device=options.device, dtype=dtype, requires_grad=True) for shape in shapes]
    outputs = {name: call(attention, inputs, "fwd").float() for name, attention in attentions.items()}
    for name, output in outputs.items():
        error = (output - outputs["sdpa"]).abs().max().item()
        if not error < 0.05:
            raise SystemExit(f"{name} differs from sdpa by {error:.2g} at {num_tokens} tokens: nothing was written")
    calls = {name: functools.partial(call, attention, inputs, mode) for name, attention in attentions.items()}
    taken = interleaved(calls, options.rounds, options.device, f"{mode}, {num_tokens} tokens")
    return [
        {
            "implementation": name,
            "mode": mode,
            "tokens": num_tokens,
            "batch": batch,
            "heads": options.heads,
            "key_value_heads": options.key_value_heads,
            "head_dim": options.head_dim,
            "dtype": str(dtype).removeprefix("torch."),
            "ms_p50": round(1e3 * seconds, 4),
            "device": options.device_name,
            "torch": torch.__version__,
            "date": datetime.date.today().isoformat(),
        }
        for name, seconds in taken.items()
    ]


def draw(rows: list[dict], path: pathlib.Path):
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4), layout="constrained")
    modes = list(dict.fromkeys(row["mode"] for row in rows))
    for mode, axis in zip(modes, figure.subplots(1, len(modes), squeeze=False)[0], strict=True):
        for name in dict.fromkeys(row["implementation"] for row in rows):
            points = [(r["tokens"], r["ms_p50"]) for r in rows if (r["mode"], r["implementation"]) == (mode, name)]
            axis.plot(*zip(*points, strict=True), marker="o", label=name)
        axis.set(title=mode, xlabel="tokens a sequence", ylabel="ms", xscale="log", yscale="log")
        lengths = sorted({row["tokens"] for row in rows})
        axis.set_xticks(lengths, lengths, rotation=45)
        axis.minorticks_off()
    figure.legend(*axis.get_legend_handles_labels(), loc="outside upper right", ncols=6, frameon=False)
    figure.suptitle(f"{rows[0]['dtype']}, {rows[0]['device']}", x=0.01, ha="left")
    figure.savefig(path, dpi=110)


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    cuda = torch.cuda.is_available()
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if cuda else "cpu")
    parser.add_argument("--tokens", type=int, default=65536 if cuda else 4096, help="total over all sequences")
    parser.add_argument("--heads", type=int, default=12)
    parser.add_argument("--key_value_heads", type=int, default=12)
    parser.add_argument("--head_dim", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=20 if cuda else 7)
    parser.add_argument("--lengths", type=int, nargs="+", default=LENGTHS)
    parser.add_argument("--out", type=pathlib.Path, default=RESULTS)
    options = parser.parse_args()
    options.device_name = torch.cuda.get_device_name() if options.device == "cuda" else "cpu"
    return options


def main():
    options = parse_options()
    torch.manual_seed(0)
    attentions = implementations(options)
    cases = [(mode, length) for mode in ("fwd", "fwd+bwd") for length in options.lengths]
    rows = [row for mode, length in tqdm(cases) for row in measure(attentions, length, mode, options)]
    for mode, length in cases:
        here = {r["implementation"]: r["ms_p50"] for r in rows if (r["mode"], r["tokens"]) == (mode, length)}
        print(f"{mode:8} {length:5} tokens  " + "  ".join(f"{name} {ms:.3f} ms" for name, ms in here.items()))
    folder = options.out / re.sub(r"\W+", "-", options.device_name.lower())
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "attention.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0], lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    try:
        draw(rows, folder / "attention.png")
    except ImportError:
        print("no picture: matplotlib is not installed")
    print(json.dumps({"rows": rows}))


if __name__ == "__main__":
    main()
