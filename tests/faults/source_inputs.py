"""Damage cases for other inputs of a training: panels, sources of corpora, mixtures, and weights to start from."""

import csv
import gzip
import io
import json
import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow
import pyarrow.parquet
import yaml
from faults.cases import Case

from llata_fast.config import LlataConfig
from llata_fast.data.corpus_sources import SourceOptions, read_source
from llata_fast.data.mixture import read_mixture
from llata_fast.data.panel import Panel
from llata_fast.modeling import LlataForPrediction
from llata_fast.training.initial import load_initial, model_settings_of

ITEMS, ROWS = 3, 30


def source_cases(folder: Path) -> list[Case]:
    """All cases except the weights to start from."""
    return [*_panels(folder), *_sources(folder), _mixture(folder)]


def _long_table() -> pd.DataFrame:
    rng = np.random.default_rng(0)
    dates = pd.date_range("2024-01-01", periods=ROWS, freq="D")
    parts = [
        pd.DataFrame(
            {"id": f"item-{item}", "date": dates, "sold": rng.normal(50, 9, ROWS).round(2), "price": 1.5 + item}
        )
        for item in range(ITEMS)
    ]
    return pd.concat(parts, ignore_index=True)


def _panels(folder: Path) -> list[Case]:
    table = _long_table()
    text, parquet = folder / "panel.csv", folder / "panel.parquet"
    table.to_csv(text, index=False)
    table.to_parquet(parquet)
    how = {"id_column": "id", "timestamp_column": "date", "target": ["sold", "price"]}

    def as_text_says(panel: Panel) -> bool:
        rows = list(csv.reader(io.StringIO(text.read_bytes().decode("utf-8-sig"))))
        rows = [row for row in rows if any(cell.strip() for cell in row)]
        header = [name.strip() for name in rows[0]]
        cells = [dict(zip(header, row, strict=True)) for row in rows[1:]]
        return _same_items(panel, [(row["id"], row["date"], row["sold"], row["price"]) for row in cells])

    def as_parquet_says(panel: Panel) -> bool:
        said = pyarrow.parquet.read_table(parquet).to_pylist()
        return _same_items(panel, [(row["id"], row["date"], row["sold"], row["price"]) for row in said])

    return [
        Case("panel: CSV", text, lambda: Panel.from_csv(text, **how), as_text_says),
        Case("panel: Parquet", parquet, lambda: Panel.from_parquet(parquet, **how), as_parquet_says),
    ]


def _same_items(panel: Panel, rows: list[tuple]) -> bool:
    """Whether a panel contains these rows (id, date, two values), sorted by id and date, without gaps."""
    said: dict[str, dict] = {}
    for name, date, *values in rows:
        numbers = [math.nan if value in ("", None) else float(value) for value in values]
        said.setdefault(str(name).strip(), {})[pd.Timestamp(date)] = numbers
    found = panel.to_df()
    numbers = found[["sold", "price"]]
    for name, group in found.groupby(found["id"].astype(str), sort=False):
        mine = {
            pd.Timestamp(date): list(values)
            for date, *values in zip(group["date"], *(numbers.loc[group.index, c] for c in numbers), strict=True)
            if not all(map(math.isnan, values))
        }
        theirs = {date: v for date, v in said.pop(name).items() if not all(map(math.isnan, v))}
        if mine.keys() != theirs.keys():
            return False
        if not all(np.allclose(mine[date], theirs[date], rtol=1e-6, equal_nan=True) for date in mine):
            return False
    return not said


def _sources(folder: Path) -> list[Case]:
    """Cases for files that corpora are built from."""
    values = [[round(math.sin(step / 3 + item) * 10, 3) for step in range(ROWS)] for item in range(ITEMS)]
    lines = [
        {"item_id": f"s{item}", "start": "2024-01-01 00:00:00", "freq": "D", "target": values[item]}
        for item in range(ITEMS)
    ]
    text = "".join(json.dumps(line) + "\n" for line in lines)
    tsf = "@relation made_up\n@attribute series_name string\n@attribute start_timestamp date\n@frequency daily\n@data\n"
    tsf += "".join(f"s{n}:2024-01-01 00-00-00:{','.join(map(str, row))}\n" for n, row in enumerate(values))
    table = pyarrow.table(
        {
            "item_id": [line["item_id"] for line in lines],
            "start": pyarrow.array([pd.Timestamp("2024-01-01")] * ITEMS, pyarrow.timestamp("s")),
            "freq": ["D"] * ITEMS,
            "target": pyarrow.array(values, pyarrow.list_(pyarrow.float64())),
        }
    )
    written = {}
    for name, data in {
        "s.jsonl": text.encode(),
        "z.jsonl.gz": gzip.compress(text.encode()),
        "s.tsf": tsf.encode(),
    }.items():
        written[name] = folder / name
        written[name].write_bytes(data)
    written["s.parquet"], written["s.arrow"] = folder / "s.parquet", folder / "s.arrow"
    pyarrow.parquet.write_table(table, written["s.parquet"])
    with pyarrow.OSFile(str(written["s.arrow"]), "wb") as sink, pyarrow.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)
    said = {"s.jsonl": _json_says, "z.jsonl.gz": _json_says, "s.tsf": _tsf_says}
    return [
        Case(
            f"source: {name[1:]}",
            path,
            lambda path=path: list(read_source(path, SourceOptions())[0]),
            lambda found, path=path, name=name: _same_series(found, said.get(name, _arrow_says)(path)),
        )
        for name, path in written.items()
    ]


def _same_series(found: list, said: list[tuple[str, list]]) -> bool:
    return len(found) == len(said) and all(
        # a file may give no name
        series.item_id == (name or series.item_id)
        and series.target.shape == np.atleast_2d(np.array(values, dtype=float)).shape
        and np.array_equal(series.target, np.atleast_2d(np.array(values, dtype=np.float32)), equal_nan=True)
        for series, (name, values) in zip(found, said, strict=True)
    )


def _json_says(path: Path) -> list[tuple[str, list]]:
    data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    # universal newlines, as any text reader handles them
    lines = data.decode().replace("\r\n", "\n").replace("\r", "\n").split("\n")
    entries = [(number, json.loads(line)) for number, line in enumerate(line for line in lines if line.strip())]
    stem = path.name.split(".")[0]
    return [
        (str(entry["item_id"]) if entry.get("item_id") is not None else f"{stem}-{number}", entry["target"])
        for number, entry in entries
        if entry["target"]
    ]


def _tsf_says(path: Path) -> list[tuple[str, list]]:
    text = path.read_bytes().decode("latin-1").replace("\r\n", "\n").replace("\r", "\n")
    lines = [line.strip() for line in text.split("\n")]
    body = [line for line in lines[lines.index("@data") + 1 :] if line and not line.startswith("#")]
    named = any(line.split()[:2] == ["@attribute", "series_name"] for line in lines)
    return [
        (
            line.split(":")[0] if named else "",
            [math.nan if cell == "?" else float(cell) for cell in line.split(":")[-1].split(",")],
        )
        for line in body
    ]


def _arrow_says(path: Path) -> list[tuple[str, list]]:
    if path.suffix == ".parquet":
        table = pyarrow.parquet.read_table(path)
    else:
        with pyarrow.OSFile(str(path)) as file:
            table = pyarrow.ipc.open_file(file).read_all()
    table.validate(full=True)
    return [(row["item_id"], row["target"]) for row in table.to_pylist() if row["target"]]


def _mixture(folder: Path) -> Case:
    path = folder / "mixture.yaml"
    entries: list[dict[str, Any]] = [{"path": "corpus", "weight": 2.0}, {"path": "other", "sample": "uniform"}]
    path.write_text(yaml.safe_dump(entries))

    def as_yaml_says(found) -> bool:
        said = yaml.safe_load(path.read_text())
        return [(str(folder / Path(e["path"]).expanduser()), e.get("weight", 1.0)) for e in said] == [
            (entry.path, entry.weight) for entry in found
        ]

    return Case("mixture.yaml", path, lambda: read_mixture(path), as_yaml_says, entries)


def start_cases(run: Path) -> list[Case]:
    """Trained weights to start another training from: a run, and a folder without a manifest."""
    expected = _started(run)
    bare = run.with_name("bare")
    bare.mkdir()
    for name in ("config.json", "model.safetensors"):
        shutil.copy(run / name, bare)

    def same(found) -> bool:
        return found.keys() == expected.keys() and all(np.array_equal(found[name], expected[name]) for name in expected)

    def fits(found) -> bool:
        return {name: value.shape for name, value in found.items()} == {n: v.shape for n, v in expected.items()}

    cases = [
        Case(f"start: {name}", run / name, lambda: _started(run), same, _json_of(run / name))
        for name in ("config.json", "model.safetensors", "manifest.json")
    ]
    # without a manifest there are no checksums for the values
    return cases + [
        Case(f"start without a manifest: {name}", bare / name, lambda: _started(bare), judge, _json_of(bare / name))
        for name, judge in (("config.json", lambda _: True), ("model.safetensors", fits))
    ]


def _json_of(path: Path) -> Any:
    return json.loads(path.read_text()) if path.suffix == ".json" else None


def _started(run: Path) -> dict[str, np.ndarray]:
    settings = model_settings_of(str(run))
    model = LlataForPrediction.from_backbone(LlataConfig(**settings, num_channels=3))
    load_initial(model, str(run))
    return {name: value.detach().numpy() for name, value in model.named_parameters() if value.requires_grad}
