"""Plot the kernel benchmarks' CSV files: python bench/plot.py [FOLDER ...], by default all under bench/results.

Writes one PNG beside each CSV, with one panel per mode and one group of bars per case: every provider's time, and the
lower bound.
"""

import argparse
import csv
import pathlib

RESULTS = pathlib.Path(__file__).with_name("results")
COLORS = {"reference": "tab:gray", "ref": "tab:blue", "compile": "tab:orange", "triton": "tab:green"}


def read_rows(path: pathlib.Path) -> list[dict[str, str]]:
    """Rows of a kernel benchmark that have a time; no rows for any other CSV."""
    with path.open(newline="") as file:
        return [row for row in csv.DictReader(file) if row.get("ms_p50") and "floor_fraction" in row]


def draw(rows: list[dict[str, str]], path: pathlib.Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    unique = lambda name: list(dict.fromkeys(row[name] for row in rows))
    modes, cases, providers = unique("mode"), unique("case"), unique("provider")
    figure, panels = plt.subplots(1, len(modes), figsize=(4 * len(modes), 4), squeeze=False, layout="constrained")
    for mode, axes in zip(modes, panels[0], strict=True):
        for index, provider in enumerate(providers):
            here = {row["case"]: row for row in rows if row["mode"] == mode and row["provider"] == provider}
            times = {case: [float(row[f"ms_p{q}"]) for q in (50, 20, 80)] for case, row in here.items()}
            places = [cases.index(case) + (index - (len(providers) - 1) / 2) * 0.8 / len(providers) for case in times]
            middle, low, high = zip(*times.values(), strict=True) if times else ((), (), ())
            spread = [
                [m - l for m, l in zip(middle, low, strict=True)],
                [h - m for h, m in zip(high, middle, strict=True)],
            ]
            bars = {"width": 0.8 / len(providers), "color": COLORS.get(provider), "label": provider}
            axes.bar(places, middle, yerr=spread, **bars)
        for place, case in enumerate(cases):
            row = next((row for row in rows if row["mode"] == mode and row["case"] == case), None)
            if row:
                floor = float(row["ms_p50"]) * float(row["floor_fraction"])
                axes.hlines(floor, place - 0.45, place + 0.45, color="black", linestyle="dotted")
        axes.set(title=mode, yscale="log", ylabel="ms (median, 20th to 80th percentile)")
        axes.set_xticks(range(len(cases)), cases, rotation=20, ha="right")
    panels[0, -1].legend()
    figure.suptitle(f"{rows[0]['op']}, {rows[0]['dtype']}, {rows[0]['device']}; dotted: lower bound measured there")
    figure.savefig(path, dpi=110)
    plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="*", type=pathlib.Path, metavar="FOLDER")
    for folder in parser.parse_args().folders or [RESULTS]:
        for path in sorted(folder.glob("**/*.csv")):
            if rows := read_rows(path):
                draw(rows, path.with_suffix(".png"))
                print(path.with_suffix(".png"))


if __name__ == "__main__":
    main()
