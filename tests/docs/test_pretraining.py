"""The commands and the code of docs/pretraining.md, at toy size, in their order."""

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
# what a page shows with a real backbone, and what a toy needs instead
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
    """Where the page's commands are typed: its tables and its mixture are there."""
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
    """The page's commands, all typed, in the folder; what was printed is not kept."""
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
                    # its model comes with the weights
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


def test_its_commands_leave_what_they_promise(typed):
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
