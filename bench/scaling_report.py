"""Plots and README of a scaling study, from its CSV (`scaling.py --plot`)."""

# must come first; llata_fast/__init__.py says why
import llata_fast  # noqa: F401, I001

from pathlib import Path

import matplotlib
import pandas as pd

from llata_fast.planning.hardware import DEVICES

matplotlib.use("Agg")
from matplotlib import pyplot as plt  # noqa: E402

READING = """\
Only trained weights have gradients, so DDP, ZeRO-1 and ZeRO-2 communicate the same few bytes for any base; they differ
in the memory they need. With few windows per GPU, kernel launches limit a step, and DeepSpeed's bf16 weights save
autocast's casts. ZeRO-1 is therefore ahead of DDP until the latency of its buckets, D x D elements each, costs more
than that. ZeRO-3 gathers the base in every step: use it for a base that does not fit on one GPU."""

COLOURS = {"ddp": "tab:gray", "zero1": "tab:blue", "zero2": "tab:cyan", "zero3": "tab:red"}
MARKERS = {"ddp": "s", "zero1": "o", "zero2": "x", "zero3": "^"}


def draw(table: pd.DataFrame, folder: Path, quality: Path):
    """Draw efficiency.png, throughput.png and memory.png, and quality.png if `quality` contains results."""
    _draw_curves(table, folder / "efficiency.png", "efficiency", "throughput per GPU, relative to the fewest")
    _draw_curves(table, folder / "throughput.png", "windows_per_s", "windows a second")
    _draw_memory(table, folder / "memory.png")
    _draw_quality(quality, folder / "quality.png")


def _short(backbone: str) -> str:
    return backbone.rpartition("/")[2]


def _draw_curves(table: pd.DataFrame, path: Path, column: str, label: str):
    simulated = table[table.kind == "simulated"]
    backbones = list(dict.fromkeys(simulated.backbone))
    scalings, ticks = ("weak", "strong"), sorted(simulated.ranks.unique())
    if not backbones:
        return
    figure, grid = plt.subplots(len(scalings), len(backbones), figsize=(4.2 * len(backbones), 6.4), squeeze=False)
    for line, scaling in zip(grid, scalings, strict=True):
        for axes, backbone in zip(line, backbones, strict=True):
            rows = simulated[(simulated.scaling == scaling) & (simulated.backbone == backbone)]
            # weak: the fewest windows per GPU; strong: the step size that reaches the most GPUs
            chosen = rows.curve.min() if scaling == "weak" else rows.curve.max()
            rows = rows[rows.curve == chosen]
            for stage, curve in rows.sort_values("ranks").groupby("stage"):
                fits = curve.fits.astype(bool)
                style = {"color": COLOURS[stage], "marker": MARKERS[stage], "markersize": 4}
                axes.plot(curve.ranks, curve[column], ":", alpha=0.5, **style)
                axes.plot(curve.ranks[fits], curve[column][fits], "-", label=stage if fits.any() else None, **style)
            axes.set_xscale("log", base=2)
            axes.set_xticks(ticks, map(str, ticks))
            axes.tick_params(axis="x", labelsize=7)
            axes.grid(alpha=0.3)
            axes.set_title(f"{_short(backbone)}, {scaling} scaling", fontsize=10)
            if column == "windows_per_s":
                axes.set_yscale("log")
            else:
                axes.set_ylim(0, 1.1)
            if axes.get_legend_handles_labels()[0]:
                axes.legend(fontsize=8)
    for axes in grid[-1]:
        axes.set_xlabel(f"GPUs ({', '.join(simulated.device.unique())})")
    for line in grid:
        line[0].set_ylabel(label, fontsize=9)
    figure.suptitle("Simulated; dotted where it does not fit in memory", fontsize=10)
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _draw_memory(table: pd.DataFrame, path: Path):
    simulated = table[(table.kind == "simulated") & (table.scaling == "weak")]
    if simulated.empty:
        return
    ranks = 64 if (simulated.ranks == 64).any() else simulated.ranks.max()
    rows = simulated[(simulated.ranks == ranks) & (simulated.curve == simulated.curve.min())]
    sizes = rows.pivot_table(index="backbone", columns="stage", values="peak_gib", sort=False)
    axes = sizes.rename(index=_short).plot.bar(figsize=(7, 4), rot=0, color=[COLOURS[stage] for stage in sizes.columns])
    axes.set_yscale("log")
    for device in rows.device.unique():
        axes.axhline(DEVICES[device].memory_gib, color="black", linestyle="--", linewidth=1, label=f"one {device}")
    axes.legend(fontsize=8)
    axes.set_xlabel("")
    axes.set_ylabel("peak memory per GPU, GiB")
    axes.set_title(
        f"Memory by stage on {ranks} GPUs, {rows.windows_per_rank.iloc[0]} windows each (simulated)", fontsize=10
    )
    axes.figure.tight_layout()
    axes.figure.savefig(path, dpi=110)
    plt.close(axes.figure)


def _draw_quality(folder: Path, path: Path):
    """Plot long-term test errors against the backbone's frozen parameters, with one panel per dataset."""
    scores = pd.read_csv(folder / "results.csv") if (folder / "results.csv").exists() else pd.DataFrame()
    if {"frozen_parameters", "horizon", "mse"} <= set(scores.columns):
        scores = scores[(scores.protocol == "long_term") & scores.frozen_parameters.notna()]
        # with and without the language model; needs several sizes under one recipe
        scores = scores[scores.model.isin(["llata", "no_llm"])]
        scores = scores[scores.groupby(["dataset", "recipe", "horizon"]).frozen_parameters.transform("nunique") > 1]
    if scores.empty:
        return
    datasets = list(scores.dataset.unique())
    figure, panels = plt.subplots(1, len(datasets), figsize=(4.5 * len(datasets), 4), squeeze=False)
    for axes, dataset in zip(panels[0], datasets, strict=True):
        means = scores[scores.dataset == dataset].groupby(["recipe", "horizon", "frozen_parameters"]).mse.mean()
        for (recipe, horizon), points in means.groupby(level=["recipe", "horizon"]):
            sizes = points.index.get_level_values("frozen_parameters") / 1e6
            axes.plot(sizes, points.to_numpy(), "o-", label=f"horizon {horizon}, {recipe}")
        axes.set_title(dataset, fontsize=10)
        axes.set_xlabel("frozen parameters of the backbone, millions")
        axes.set_ylabel("test MSE, mean of the seeds")
        axes.legend(fontsize=8)
    figure.suptitle("Error against backbone size (measured)", fontsize=10)
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)


def write_readme(table: pd.DataFrame, folder: Path, readings: list[str], assumptions: dict, corpora: list[str]):
    """Write README.md: measured rows, assumptions of the simulation, crossovers of the stages, cost of corpora."""
    lines = ["# Scaling", "", "Written by `python bench/scaling.py --plot` from `scaling.csv`.", ""]
    measured = table[table.kind == "measured"]
    if len(measured):
        columns = ["scaling", "backbone", "num_layers", "ranks", "stage", "batch", "windows_per_s", "efficiency"]
        columns += ["peak_gib", "comm_share"]
        lines += ["## Measured", "", "CPU ranks over gloo, one thread each, on one machine; fp32.", ""]
        lines += [*_markdown(measured[columns]), ""]
        lines += [
            "`comm_share` is the time of a step beyond one rank's step on as many windows: communication and waiting,",
            "and on a single machine also the memory bandwidth that ranks share.",
            "",
        ]
    simulated = table[table.kind == "simulated"]
    if len(simulated):
        lines += [
            "## Simulated",
            "",
            "The simplest stage that fits and is within 10 % of the fastest (weak scaling, no checkpointing):",
            "",
        ]
        lines += [f"- {reading}" for reading in readings]
        lines += [
            "",
            READING,
            "",
            "| assumption | value |",
            "|---|---|",
        ]
        lines += [f"| {name} | {value:,g} |" for name, value in assumptions.items()]
        for device in simulated.device.unique():
            lines += [
                f"| {device}: {name} (data sheet) | {value:g} |" for name, value in DEVICES[device]._asdict().items()
            ]
        lines += [f"| basis of the rows | {', '.join(simulated.basis.unique())} |", ""]
        lines += ["No GPU was timed for these rows. Dotted parts of the curves do not fit in a GPU's memory.", ""]
        lines += [f"![{name}]({name}.png)" for name in ("efficiency", "throughput", "memory", "quality")
                  if (folder / f"{name}.png").exists()]  # fmt: skip
        lines += [""]
    lines += corpora
    (folder / "README.md").write_text("\n".join(lines).rstrip() + "\n")


def _markdown(table: pd.DataFrame) -> list[str]:
    def cell(value) -> str:
        return "" if pd.isna(value) else f"{value:.3g}" if isinstance(value, float) else str(value)

    rows = [[cell(value) for value in row] for row in table.itertuples(index=False)]
    return [f"| {' | '.join(row)} |" for row in [list(table.columns), ["---"] * len(table.columns), *rows]]


if __name__ == "__main__":
    raise SystemExit("run python bench/scaling.py --plot")
