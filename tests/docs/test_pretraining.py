"""The commands and the code of docs/pretraining.md, run in order at toy size."""

import os
import re
import runpy
import shlex
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from tiny import random_backbone, write_series

from llata_fast.__main__ import main

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "pretraining.md").read_text()
COMMANDS = re.findall(r"^    ((?:llata-fast|python) .*)$", PAGE, re.MULTILINE)
# what the page shows with a real backbone -> what a toy needs instead
TOY = {
    "--context_length": 32,
    "--prediction_length": 8,
    "--patch_length": 8,
    "--patch_stride": 8,
    "--num_layers": 1,
    "--num_prototypes": 9,
    "--intermediate_size": 20,
    "--batch_size": 8,
    "--max_steps": 2,
    "--eval_steps": 2,
    "--save_steps": 2,
    "--precision": "fp32",
    "--use_cpu": "true",
    "--report_to": "none",
}

_SMALL = {"1000": "40", "meta-llama/Llama-3.1-70B": "gpt2", "80": "2"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The folder for the page's commands, with its tables and its mixture."""
    folder = tmp_path_factory.mktemp("page")
    write_series(folder / "load.csv", rows=300)
    rng = np.random.default_rng(0)
    days = pd.date_range("2024-01-01", periods=90)
    shops = [pd.DataFrame({"sku": sku, "day": days, "qty": rng.poisson(5, 90)}) for sku in ("a", "b", "c")]
    pd.concat(shops).to_csv(folder / "sales.csv", index=False)
    (folder / "mixture.yaml").write_text(re.search(r"```yaml\n(.*?)```", PAGE, re.DOTALL)[1])
    return folder


@pytest.fixture(scope="module")
def typed(folder):
    """The folder after all of the page's commands have run in it."""
    before, options = Path.cwd(), [str(part) for pair in TOY.items() for part in pair]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("llata_fast.kernels._launch.ENABLED", False)
        os.chdir(folder)
        try:
            for command in COMMANDS:
                program, *arguments = shlex.split(command)
                if program == "llata-fast":
                    main([_SMALL.get(part, part) for part in arguments])
                    continue
                if "--init" in arguments:
                    # the weights bring their model's settings
                    arguments += ["--max_steps", "1", "--precision", "fp32", "--use_cpu", "true", "--report_to", "none"]
                else:
                    arguments += [*options, "--backbone", random_backbone(folder)]
                patch.setattr(sys, "argv", arguments)
                runpy.run_path(str(ROOT / arguments[0]), run_name="__main__")
        finally:
            os.chdir(before)
    return folder


def test_the_page_has_commands():
    assert len(COMMANDS) == 10


def test_its_commands_write_the_promised_files(typed):
    assert {path.name for path in (typed / "corpora").iterdir()} == {"load", "sales", "made_up"}
    assert (typed / "made_up.png").is_file()
    assert len(pd.read_csv(typed / "forecast.csv")) == TOY["--prediction_length"]
    assert (typed / "runs" / "tuned" / "model.safetensors").is_file()


@pytest.mark.filterwarnings("ignore:prediction_length")
def test_its_code_runs(typed, monkeypatch):
    monkeypatch.chdir(typed)
    code = re.search(r"```python\n(.*?)```", PAGE, re.DOTALL)[1]
    names = {"df": pd.read_csv("sales.csv", parse_dates=["day"])}
    exec(code, names)
    assert len(names["table"]) == 3 * 12 and np.isfinite(names["table"]["predictions"]).all()


def test_its_pictures_and_files_exist():
    for target in re.findall(r"\]\((?!http)([^)]+)\)", PAGE):
        assert (ROOT / "docs" / target).exists(), target
