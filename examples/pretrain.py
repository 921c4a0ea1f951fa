"""Pre-train a forecaster on a CPU in half an hour, on series from the installed wheels and on synthetic ones.

    python examples/pretrain.py                                     # or: make pretrain
    python examples/pretrain.py --held_out ETTh1 --data_dir DATA    # also score it on an unseen dataset

Corpora and their mixture are written to --folder, the run to --output. The series and their licences:

    EIA        9 weekly series of the U.S. Energy Information Administration (public domain)
    Metro      3 channels of Metro Interstate Traffic Volume, hourly (J. Hogue, UCI, CC BY 4.0)
    daily      21 page-view counts of Wikipedia (Wikimedia, CC0), 2 of a weather station (NOAA, public domain)
    made_up    Gaussian processes, composed series, intermittent counts, weighted sums of parts of the other series
"""

# must come first; llata_fast/__init__.py says why
import llata_fast  # noqa: F401, I001

import argparse
import importlib.util
from pathlib import Path

import pandas as pd
import yaml

from llata_fast import train
from llata_fast.cli import one_line_errors
from llata_fast.data.corpus_builder import build_corpus
from llata_fast.data.corpus_sources import SourceOptions
from llata_fast.data.synthetic import SyntheticSettings, synthesize
from llata_fast.errors import InputError

DAILY = "datasets/data/holidays.zip"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path("corpora"), help="for the corpora; existing ones are kept")
    parser.add_argument("--output", help="folder of the run; default runs/mixture-512-96, numbered")
    parser.add_argument("--held_out", nargs="*", default=[], help="named datasets to score but not to train on")
    parser.add_argument("--data_dir", help="folder with the files of these datasets")
    parser.add_argument("--num_series", type=int, default=20_000, help="made-up series")
    parser.add_argument("--max_steps", type=int, default=400, help="training steps of 32 windows")
    parser.add_argument("--num_layers", type=int, default=2, help="blocks of the language model")
    parser.add_argument("--backbone", default="SmolLM2-135M-Instruct", help="as for train.py")
    options = parser.parse_args()
    with one_line_errors():
        mixture = prepare(options)
        outcome = train(
            corpus=str(mixture),
            output_dir=options.output,
            backbone=options.backbone,
            num_layers=options.num_layers,
            batch_size=32,
            max_steps=options.max_steps,
            eval_steps=max(1, options.max_steps // 4),
            save_steps=max(1, options.max_steps // 4),
        )
    scores = outcome.metrics["test"]
    print(pd.DataFrame(scores["per_set"]).T.round(3).to_string())
    print(f"over seasonal naive: MASE {scores['relative_mase']:.3f}, WQL {scores['relative_wql']:.3f}")
    print(f"to forecast: llata-fast predict {outcome.folder} --input any.csv --output forecast.csv")


def prepare(options: argparse.Namespace) -> Path:
    """Build the corpora that do not exist yet; returns the path of the mixture's file."""
    folder = options.folder
    sources = {"EIA": ("EIA", None), "Metro": ("Metro", None), "daily": daily()}
    sources |= {name: (name, None) for name in options.held_out}
    for name, (source, columns) in sources.items():
        if not (folder / name).exists():
            how = SourceOptions(columns=columns, data_dir=options.data_dir)
            print(f"{name}: {build_corpus([source], folder / name, options=how)} series")
    if not (folder / "made_up").exists():
        real = tuple(str(folder / name) for name in ("EIA", "Metro", "daily"))
        synthesize(SyntheticSettings(options.num_series, mix=real), folder / "made_up", progress=True)
    weights = {"Metro": 2, "EIA": 1, "daily": 2, "made_up": 5} | dict.fromkeys(options.held_out, 0)
    mixture = folder / "mixture.yaml"
    mixture.write_text(yaml.safe_dump([{"path": name, "weight": weight} for name, weight in weights.items()]))
    return mixture


def daily() -> tuple[Path, tuple[str, ...]]:
    """A file inside the wheel autots, whose code is never imported, and those of its columns that are free to use."""
    package = importlib.util.find_spec("autots")
    if package is None:
        raise InputError("the daily series come inside a wheel: pip install --no-deps autots==1.0.4")
    path = Path(package.submodule_search_locations[0]) / DAILY
    columns = pd.read_csv(path, nrows=0).columns
    return path, tuple(name for name in columns if name.startswith(("wiki_", "USW00014771_")))


if __name__ == "__main__":
    main()
