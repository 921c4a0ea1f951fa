"""Sizes and paths in files are checked before memory is allocated and before anything is written."""

import bz2
import gzip
import itertools
import json
import lzma
import resource
import shutil
import zipfile

import numpy as np
import pandas as pd
import pytest
from tiny import BACKBONES, tiny_model

from llata_fast.backbone.loading import read_backbone_config
from llata_fast.data import csv_files, frames, read_wide_csv
from llata_fast.data.frames import file_frame
from llata_fast.durable import write_manifest
from llata_fast.errors import InputError
from llata_fast.forecasting.forecaster import Forecaster
from llata_fast.preprocessor import Preprocessor
from llata_fast.run_folder import RunFolder
from llata_fast.training.best_checkpoint import read_state
from llata_fast.training.deepspeed_state import reshard

HUGE = 10**9


@pytest.fixture(autouse=True)
def at_most_gibibytes():
    """A limit on this process's memory that none of these files may exceed."""
    before = resource.getrlimit(resource.RLIMIT_DATA)
    resource.setrlimit(resource.RLIMIT_DATA, (12 * 2**30, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_DATA, before)


@pytest.fixture
def run(backbone, plain_ops, tmp_path):
    """A finished run that contains its backbone."""
    model = tiny_model(backbone, quantile_levels=[0.1, 0.5, 0.9]).eval()
    series = Preprocessor("x", ["a"], "date", "D", 7, [0.0], [1.0])
    Forecaster(model, series, settings={"seed": 0}).save_pretrained(tmp_path / "run")
    return tmp_path / "run"


def rewritten(run, name, **values):
    """`run` with other values in a JSON file (keys like "a.b" for nested ones), and a manifest that matches."""
    stored = json.loads((run / name).read_text())
    for path, value in values.items():
        *outer, last = path.split(".")
        place = stored
        for key in outer:
            place = place[key]
        place[last] = value
    (run / name).write_text(json.dumps(stored))
    RunFolder(run).finish()
    return run


@pytest.mark.parametrize(
    "values",
    [
        {"backbone_config.num_hidden_layers": HUGE},
        {"backbone_config.num_hidden_layers": 50},
        {"backbone_config.hidden_size": HUGE},
        {"backbone_config.hidden_size": 96},
        {"backbone_config.intermediate_size": 10**12},
        {"backbone_config.head_dim": HUGE},
        {"backbone_config.num_attention_heads": HUGE},
        {"backbone_config.rope_parameters": {"rope_type": "unheard of"}},
        {"backbone_config.hidden_act": "../act"},
        {"backbone_config": None},
        {"backbone_config": {"model_type": "llama", "hidden_size": 48}},
        {"backbone_config": {"model_type": "bert"}},
        {"context_length": HUGE},
        {"prediction_length": HUGE},
        {"patch_length": 1},
        {"quantile_levels": [level / 10**4 for level in range(1, 10**4)]},
        {"covariates": {"known": [HUGE], "past": [], "static": []}},
    ],
    ids=lambda values: str(values)[:60],
)
def test_a_configuration_that_is_not_that_of_the_weights(values, run):
    with pytest.raises(InputError, match=str(run)):
        Forecaster.from_pretrained(rewritten(run, "config.json", **values))


def test_a_vocabulary_of_any_size_takes_no_memory(run):
    """Forecasting uses no vocabulary."""
    forecaster = Forecaster.from_pretrained(rewritten(run, "config.json", **{"backbone_config.vocab_size": 10**12}))
    assert forecaster.model.backbone.model.config.vocab_size == 10**12


@pytest.mark.parametrize("family", BACKBONES)
def test_a_backbone_of_endless_layers(family, tmp_path):
    """Some families list the type of every layer when their configuration is read."""
    fields = {name: value for name, value in BACKBONES[family].items() if name != "layer_types"}
    depth = "n_layer" if family == "gpt2" else "num_hidden_layers"
    (tmp_path / "config.json").write_text(json.dumps({"model_type": family} | fields | {depth: HUGE}))
    for source in (str(tmp_path), f"random:{tmp_path}"):
        with pytest.raises(InputError, match="more than 1000"):
            read_backbone_config(source)


@pytest.mark.parametrize(
    "values", [{"columns": ["a", "a"], "mean": [0, 0], "scale": [1, 1]}, {"other_frequencies": 5}], ids=str
)
def test_a_preprocessor_of_no_series(values, run):
    with pytest.raises(InputError, match=r"preprocessor_config\.json is damaged"):
        Forecaster.from_pretrained(rewritten(run, "preprocessor_config.json", **values))


def test_aliases_that_multiply(run):
    """Nine lines of ten aliases each expand to a billion values."""
    lines = ["a: &a [1, 1, 1, 1, 1, 1, 1, 1, 1, 1]"]
    lines += [f"{name}: &{name} [{', '.join([f'*{before}'] * 10)}]" for before, name in itertools.pairwise("abcdefghi")]
    for text in ("\n".join(lines), "a: &a [*a]"):
        (run / "run.yaml").write_text(text)
        RunFolder(run).finish()
        with pytest.raises(InputError, match=r"run\.yaml: it holds more than 1,000,000 values"):
            Forecaster.from_pretrained(run)


@pytest.mark.parametrize("name", ["model.safetensors", "run.yaml", "config.json"])
def test_a_manifest_that_leaves_out_a_file(name, run):
    write_manifest(run, [path.name for path in run.iterdir() if path.name not in (name, "manifest.json")])
    with pytest.raises(InputError, match=f"its manifest.json lacks {name}"):
        Forecaster.from_pretrained(run)


@pytest.mark.parametrize("packing", ["gz", "bz2", "xz", "zip", None])
def test_a_table_larger_than_memory_is_not_unpacked(packing, tmp_path, monkeypatch):
    free = 2**21
    monkeypatch.setattr(csv_files, "free_memory", lambda: free)
    text = b"date,a\n" + b"0" * 20 * free
    path = tmp_path / f"table.csv{'' if packing is None else f'.{packing}'}"
    if packing == "zip":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
            file.writestr("table.csv", text)
    else:
        pack = {"gz": gzip.compress, "bz2": bz2.compress, "xz": lzma.compress, None: bytes}[packing]
        path.write_bytes(pack(text))
    with pytest.raises(InputError, match="unpacked, it is larger than the 0.0 GiB of free memory"):
        read_wide_csv(path)
    with pytest.raises(InputError, match="of free memory"):
        file_frame(path)


def test_a_parquet_file_of_more_rows_than_memory_is_not_read(tmp_path, monkeypatch):
    pd.DataFrame({"a": np.zeros(10**6)}).to_parquet(tmp_path / "table.parquet")
    assert len(file_frame(tmp_path / "table.parquet")) == 10**6
    monkeypatch.setattr(frames, "free_memory", lambda: 2**22)
    with pytest.raises(InputError, match="Parquet: it takes"):
        file_frame(tmp_path / "table.parquet")


@pytest.mark.parametrize(
    "name", ["../other/checkpoint-1", "/var/checkpoint-1", "checkpoint-1/..", "", 5, ["checkpoint-1"]]
)
def test_a_best_checkpoint_that_lies_elsewhere(name, tmp_path):
    (tmp_path / "trainer_state.json").write_text(json.dumps({"stateful_callbacks": {"best_checkpoint": name}}))
    with pytest.raises(InputError, match="the best checkpoint must be named"):
        read_state(tmp_path)


@pytest.mark.parametrize("name", ["../other/states", "/var/states", "..", ".", "", "a\x00b", "x" * 5000])
def test_states_of_another_checkpoint_are_not_resharded(name, tmp_path):
    """Otherwise the result would be written beside them."""
    other = tmp_path / "other" / "states"
    other.mkdir(parents=True)
    (other / "zero_optim_states.pt").touch()
    checkpoint = tmp_path / "checkpoint-1"
    shutil.copytree(other, checkpoint / "states")
    (checkpoint / "latest").write_text(name)
    with pytest.raises(InputError, match="holds no DeepSpeed checkpoint"):
        reshard(checkpoint)
    (checkpoint / "latest").write_text("states")
    (checkpoint / "states_universal").symlink_to(other)
    with pytest.raises(InputError, match="it leads elsewhere"):
        reshard(checkpoint)
    assert [path.name for path in other.iterdir()] == ["zero_optim_states.pt"]
