"""Odd values from hypothesis for settings, tables and DeepSpeed's JSON: wrong types, huge numbers, odd texts."""

import contextlib
import csv
import io
import json
import tempfile
from pathlib import Path

import yaml
from faults.outcomes import Tally, outcome_of
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

from llata_fast.cli import training_parser
from llata_fast.data import read_wide_csv
from llata_fast.run_folder import RunFolder
from llata_fast.settings import GROUPS
from llata_fast.training.arguments import parse_arguments
from llata_fast.training.deepspeed_config import check_deepspeed_config

_SCALARS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.integers(10**300, 10**400)
    | st.floats()
    | st.text(max_size=20)
    | st.sampled_from(["auto", "nan", "inf", "1e400", "-0", "0x10", "true", "[1]"])
)
VALUES = st.recursive(
    _SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)
_NAMES = sorted({name for kind in GROUPS for name in kind.__dataclass_fields__} - {"deepspeed", "config"})
SETTINGS = st.dictionaries(st.sampled_from(_NAMES) | st.text(max_size=12), VALUES, max_size=3)
_SECTIONS = ["zero_optimization", "bf16", "fp16", "train_batch_size", "gradient_clipping", "optimizer", "scheduler"]
_KEYS = ["stage", "enabled", "offload_optimizer", "reduce_bucket_size", "overlap_comm", "loss_scale"]
DEEPSPEED = st.dictionaries(
    st.sampled_from(_SECTIONS) | st.text(max_size=8),
    VALUES | st.dictionaries(st.sampled_from(_KEYS), VALUES, max_size=3),
    max_size=4,
)
_CELLS = (
    st.text(max_size=8)
    | st.floats().map(repr)
    | st.integers(-(10**400), 10**400).map(str)
    | st.sampled_from(["", "NA", "1,5", "1e5", " 7 ", "0x1F", "١", "1_000", "True", "2024-13-01"])
)
_DATES = st.integers(0, 40).map(lambda hour: f"2024-01-{1 + hour // 24:02}T{hour % 24:02}:00") | _CELLS
TABLES = st.lists(st.tuples(_DATES, _CELLS, _CELLS), max_size=8)


def try_odd_values(number: int, numbered: int, tally: Tally):
    """Try `number` examples of every kind."""
    with tempfile.TemporaryDirectory() as folder:
        for name, strategy, attempt in _KINDS:
            _examples(
                number,
                numbered,
                strategy,
                lambda value, name=name, attempt=attempt: tally.add(
                    f"odd values: {name}", *attempt(value, Path(folder))
                ),
            )


def _examples(number: int, numbered: int, strategy: st.SearchStrategy, use):
    @seed(numbered)
    @settings(
        max_examples=number,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(strategy)
    def run(value):
        use(value)

    run()


def _settings_file(value, folder: Path):
    path = folder / "settings.yaml"
    path.write_text(yaml.safe_dump(value, allow_unicode=True), encoding="utf-8")
    return _with_example(value, outcome_of(lambda: parse_arguments(["--config", str(path)]), lambda _: True))


def _command_line(value, folder: Path):
    flags = [f"--{name}={given}" for name, given in value.items()]
    return _with_example(flags, outcome_of(lambda: training_parser().parse_args(flags), lambda _: True))


def _deepspeed(value, folder: Path):
    path = folder / "zero.json"
    path.write_text(json.dumps(value))
    return _with_example(value, outcome_of(lambda: check_deepspeed_config(str(path)), lambda _: True))


def _preprocessor(value, folder: Path):
    (folder / "preprocessor_config.json").write_text(json.dumps(value))
    return _with_example(value, outcome_of(RunFolder(folder).read_preprocessor, lambda _: True))


def _table(rows, folder: Path):
    path = folder / "table.csv"
    with path.open("w", newline="", encoding="utf-8", errors="replace") as file:
        csv.writer(file).writerows([("date", "a", "b"), *rows])
    return _with_example(rows, outcome_of(lambda: read_wide_csv(path), lambda series: _as_written(series, path)))


def _as_written(series, path: Path) -> bool:
    """Whether the series has the numbers that Python reads from the rows that are not blank."""
    with contextlib.suppress(ValueError):
        rows = list(csv.reader(io.StringIO(path.read_text(encoding="utf-8"), newline="")))[1:]
        found = sorted(map(tuple, series.values.tolist()))
        said = sorted(tuple(float(cell) for cell in row[1:]) for row in rows if any(cell.strip() for cell in row))
        return len(found) == len(said) and all(
            abs(mine - theirs) <= 1e-6 * abs(theirs)
            for ours, others in zip(found, said, strict=True)
            for mine, theirs in zip(ours, others, strict=True)
        )
    return False


def _with_example(value, outcome: tuple[str, str]) -> tuple[str, str]:
    return outcome[0], f"{value!r}: {outcome[1]}"


_KINDS = [
    ("settings YAML", SETTINGS, _settings_file),
    ("command line", SETTINGS, _command_line),
    ("DeepSpeed JSON", DEEPSPEED, _deepspeed),
    ("preprocessor", VALUES, _preprocessor),
    ("CSV", TABLES, _table),
]
