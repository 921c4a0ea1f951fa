"""Damages every file that the package reads, and judges what the reader does.

A reader may refuse the file with one line, or return its content. For files with a checksum the content must be what
was written; for other files an independent reader of the same bytes decides.
"""

import bz2
import csv
import functools
import gzip
import io
import json
import lzma
import random
import shutil
import zipfile
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow
import torch
import yaml
from faults.cases import Case
from faults.mutations import damaged_bytes, damaged_values, json_bytes
from faults.outcomes import Tally, outcome_of
from faults.source_inputs import source_cases, start_cases
from faults.vouched_inputs import vouched_cases
from safetensors.torch import save_file
from tiny import BACKBONES, random_backbone, write_series
from training.distributed_cases import train

from llata_fast.backbone.loading import build_backbone, load_backbone_weights, read_backbone_config
from llata_fast.backbone.prototypes import load_prototypes
from llata_fast.data import read_wide_csv
from llata_fast.data.corpora import open_corpus
from llata_fast.durable import find_damage
from llata_fast.forecasting.forecaster import Forecaster
from llata_fast.reference_checkpoint import load_reference_checkpoint
from llata_fast.run_folder import RunFolder
from llata_fast.training.arguments import parse_arguments

L, H, STEPS = 12, 6, 2


def settings_of(folder: Path) -> dict:
    """Settings for two training steps of a tiny model, each with a checkpoint."""
    return {
        "dataset": str(write_series(folder / "series.csv", 90)),
        "backbone": random_backbone(folder),
        "num_layers": 1,
        "num_prototypes": 9,
        "context_length": L,
        "prediction_length": H,
        "batch_size": 8,
        "max_steps": STEPS,
        "precision": "fp32",
        "eval_strategy": "steps",
        "eval_steps": 1,
        "save_strategy": "steps",
        "save_steps": 1,
        "average_decay": 0.5,
        "report_to": "none",
        "disable_tqdm": True,
    }


def make_run(folder: Path) -> tuple[Path, dict]:
    settings = settings_of(folder)
    run = folder / "run"
    train([f"--{name}={value}" for name, value in settings.items()] + [f"--output_dir={run}"])
    return run, settings


def input_cases(folder: Path) -> list[Case]:
    """All cases; trains a run of two steps for them."""
    run, settings = make_run(folder)
    return [
        *_tables(folder),
        *_settings(folder, settings),
        *_run_files(run),
        *_checkpoint_files(run),
        *_backbones(folder),
        *_caches(folder),
        *_corpora(folder),
        *source_cases(folder),
        *start_cases(run),
        *vouched_cases(folder, run, settings),
    ]


def _tables(folder: Path) -> list[Case]:
    plain = write_series(folder / "table.csv", 40)
    text = plain.read_bytes()
    whole = read_wide_csv(plain)
    cases = [Case("CSV", plain, lambda: read_wide_csv(plain), lambda series: _says(series, plain.read_bytes()))]
    packed = {"gz": gzip.compress(text), "xz": lzma.compress(text), "bz2": bz2.compress(text)}
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("table.csv", text)
    packed["zip"] = archive.getvalue()
    with suppress(ImportError):
        from compression import zstd

        packed["zst"] = zstd.compress(text)
    with suppress(ImportError):
        import zstandard

        packed["zst"] = zstandard.compress(text)
    for kind, data in packed.items():
        path = folder / f"table.csv.{kind}"
        path.write_bytes(data)

        def same(series):
            return np.array_equal(series.values, whole.values) and (series.dates == whole.dates).all()

        cases.append(Case(f"CSV .{kind}", path, lambda path=path: read_wide_csv(path), same))
    return cases


def _says(series, data: bytes) -> bool:
    """Whether a series matches what Python's csv reader finds in the bytes."""
    rows = [row for row in csv.reader(io.StringIO(data.decode("utf-8-sig"))) if any(cell.strip() for cell in row)]
    header = [name.strip() for name in rows[0]]
    cells = [dict(zip(header, row, strict=True)) for row in rows[1:]]
    values = [[float(row[name]) for name in series.columns] for row in cells]
    dates = [pd.Timestamp(row[series.date_column]) for row in cells]
    order = np.argsort(dates, kind="stable")
    return np.allclose(series.values, np.array(values)[order], rtol=1e-6) and list(series.dates) == [
        dates[index] for index in order
    ]


def _settings(folder: Path, settings: dict) -> list[Case]:
    path = folder / "settings.yaml"
    path.write_text(yaml.safe_dump(settings))

    def as_given(parsed) -> bool:
        given = yaml.safe_load(path.read_text(encoding="utf-8"))
        given = {name.replace("-", "_"): value for name, value in given.items()}
        groups = [vars(group) for group in parsed]
        found = {name: value for group in reversed(groups) for name, value in group.items()}
        # how the Trainer's own class interprets its arguments, and what null means, is not judged here
        ours = [name for name, value in given.items() if name in settings and name in found and value is not None]
        return all(_same_setting(found[name], given[name]) for name in ours if name != "report_to")

    deepspeed = folder / "zero.json"
    config = json.loads((Path(__file__).parents[2] / "ds_configs" / "zero2.json").read_text())
    deepspeed.write_bytes(json_bytes(config))

    def read_deepspeed():
        from transformers.integrations import unset_hf_deepspeed_config

        try:
            return parse_arguments(["--use_cpu", "true", "--deepspeed", str(deepspeed)])[2].deepspeed
        finally:
            unset_hf_deepspeed_config()

    return [
        Case("settings YAML", path, lambda: parse_arguments(["--config", str(path)]), as_given, settings),
        Case("DeepSpeed JSON", deepspeed, read_deepspeed, lambda named: named == str(deepspeed), config),
    ]


def _same_setting(found: Any, given: Any) -> bool:
    found = getattr(found, "value", found)
    if str(found) == str(given):
        return True
    if isinstance(found, list):
        return [str(item) for item in found] == [str(item) for item in (given if isinstance(given, list) else [given])]
    with suppress(TypeError, ValueError, OverflowError):
        return float(found) == float(given)
    return str(found).lower() == str(given).lower()


def _run_files(run: Path) -> list[Case]:
    series = read_wide_csv(write_series(run.parent / "new.csv", 30))
    expected = Forecaster.from_pretrained(run).wide.predict(series)

    def forecast():
        return Forecaster.from_pretrained(run).wide.predict(series)

    folder = RunFolder(run)
    cases = []
    for path in sorted(path for path in run.iterdir() if path.suffix in (".json", ".yaml", ".safetensors", ".npz")):
        if path.name == "metrics.json":
            metrics = folder.read_metrics()
            cases.append(Case("metrics.json", path, folder.read_metrics, lambda _: True, metrics))
            continue
        structure = None if path.suffix in (".safetensors", ".npz") else yaml.safe_load(path.read_text())
        cases.append(Case(f"run: {path.name}", path, forecast, expected.equals, structure))
    return cases


def _checkpoint_files(run: Path) -> list[Case]:
    """Every file of the newest checkpoint; `last` must pass a damaged one over."""
    newest, before = run / f"checkpoint-{STEPS}", run / f"checkpoint-{STEPS - 1}"

    def last():
        return RunFolder(run).last_checkpoint().path

    def right(path):
        return path == (newest if find_damage(newest) is None and _untouched(newest, kept) else before)

    kept = {path: path.read_bytes() for path in newest.rglob("*") if path.is_file()}
    return [Case(f"checkpoint: {path.name}", path, last, right) for path in sorted(kept)]


def _untouched(folder: Path, kept: dict[Path, bytes]) -> bool:
    # whitespace in the manifest does not matter
    return all(path.name == "manifest.json" or path.read_bytes() == data for path, data in kept.items())


def _backbones(folder: Path) -> list[Case]:
    source = folder / "backbone"
    source.mkdir()
    fields = {"model_type": "llama"} | BACKBONES["llama"]
    config = source / "config.json"
    config.write_bytes(json_bytes(fields))
    model = build_backbone(read_backbone_config(str(source)))
    words = torch.randn(fields["vocab_size"], fields["hidden_size"])
    state = {name: value.contiguous() for name, value in model.state_dict().items()} | {"embed_tokens.weight": words}

    def read(place: Path = source):
        settings = read_backbone_config(str(place), 2)
        return settings, load_backbone_weights(str(place), settings)

    def as_config_says(loaded) -> bool:
        said = json.loads(config.read_text())
        return all(getattr(loaded[0], name) == said[name] for name in ("hidden_size", "num_attention_heads"))

    def finite_shapes(loaded) -> bool:
        # a backbone has no checksum: only names and shapes must match its config
        return {name: value.shape for name, value in loaded[1].blocks.items()} == {
            name: value.shape for name, value in build_backbone(loaded[0]).state_dict().items()
        }

    weights = source / "model.safetensors"
    save_file(state, weights)
    cases = [
        Case("backbone: config.json", config, read, as_config_says, fields),
        Case("backbone: model.safetensors", weights, read, finite_shapes),
    ]
    for name, split in (("pytorch_model.bin", False), ("model.safetensors.index.json", True)):
        place = folder / f"backbone-{name}"
        place.mkdir()
        shutil.copy(config, place)
        if split:
            index = {"metadata": {}, "weight_map": dict.fromkeys(state, "shard.safetensors")}
            (place / name).write_bytes(json_bytes(index))
            shutil.copy(weights, place / "shard.safetensors")
        else:
            torch.save(state, place / name)
        structure = json.loads((place / name).read_text()) if split else None
        cases.append(Case(f"backbone: {name}", place / name, lambda place=place: read(place), finite_shapes, structure))
    return cases


def _caches(folder: Path) -> list[Case]:
    words = torch.randn(60, 24, generator=torch.Generator().manual_seed(0))
    cache = folder / "cache"
    expected = load_prototypes(words, 7, cache_dir=cache)
    (path,) = cache.glob("*.safetensors")
    published = folder / "checkpoint.pth"
    torch.save({"out_layer.weight": torch.zeros(6, 12), "in_layer.linear.weight": torch.zeros(24, 12)}, published)
    return [
        Case("prototype cache", path, lambda: load_prototypes(words, 7, cache_dir=cache), expected.equal),
        # there is no complete checkpoint of the published code here, so all of these must be refused
        Case(
            "published .pth",
            published,
            lambda: load_reference_checkpoint(published, torch.zeros(5, 24)),
            lambda _: False,
        ),
    ]


def _corpora(folder: Path) -> list[Case]:
    from datasets import Dataset

    source = folder / "corpus"
    rows = {
        "item_id": ["a", "b", "c"],
        "start": [pd.Timestamp("2024-01-01")] * 3,
        "freq": ["h"] * 3,
        "target": [np.arange(50, dtype=np.float32) + part for part in range(3)],
    }
    Dataset.from_dict(rows).save_to_disk(source)

    (arrow,) = source.glob("*.arrow")

    def read():
        corpus = open_corpus(source)
        corpus.info()
        rows = np.arange(len(corpus.lengths))
        return [corpus.gather(rows[[row]], np.zeros(1, int), corpus.lengths[row])[0] for row in rows]

    def as_arrow_says(found) -> bool:
        with pyarrow.OSFile(str(arrow)) as file:
            table = pyarrow.ipc.open_stream(file).read_all()
        table.validate(full=True)
        said = [np.array(values, dtype=np.float32) for values in table["target"].to_pylist()]
        said = [np.where(np.isfinite(values), values, np.nan) for values in said]
        return len(said) == len(found) and all(map(functools.partial(np.array_equal, equal_nan=True), said, found))

    return [
        Case(f"corpus: {path.name}", path, read, as_arrow_says, json.loads(path.read_text()) if path != arrow else None)
        for path in sorted(path for path in source.iterdir() if path.is_file())
    ]


def try_damage(case: Case, count: int, seed: int, tally: Tally):
    """Damage a case's file `count` times in different ways and count the outcomes; restores the file."""
    whole = case.path.read_bytes()
    rng = random.Random(f"{seed} {case.name}")
    try:
        for number in range(count):
            if case.structure is not None and number % 2:
                damaged = damaged_values(case.structure, rng)
                data = yaml.safe_dump(damaged).encode() if case.path.suffix == ".yaml" else json_bytes(damaged)
            else:
                data = damaged_bytes(whole, rng)
            # write a new file: a reader may still have the old one mapped
            case.path.unlink(missing_ok=True)
            case.path.write_bytes(data)
            case.vouch()
            outcome, said = outcome_of(case.read, case.is_right)
            tally.add(case.name, outcome, f"{said}\n    file: {data[:200]!r}")
    finally:
        case.path.unlink(missing_ok=True)
        case.path.write_bytes(whole)
        case.vouch()
