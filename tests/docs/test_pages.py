"""The manual: its code runs at a small size, its command lines parse, its links work, and its contents are complete."""

import re
import shlex
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from tiny import random_backbone, write_series

from llata_fast.__main__ import command_parser
from llata_fast.training.arguments import given_flags

pytestmark = pytest.mark.usefixtures("plain_ops")

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
FOLDERS = (".", "docs", "ds_configs", "kernels", "bench/results/*")
PAGES = [page for folder in FOLDERS for page in sorted(ROOT.glob(f"{folder}/*.md"))]
# settings that make a documented training small
TINY = (
    "max_steps=2, batch_size=8, backbone=BACKBONE, num_layers=1, num_prototypes=9, intermediate_size=20, "
    'report_to="none", disable_tqdm=True'
)


def python_blocks(page):
    return re.findall(r"^```python\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("page", [DOCS / "quickstart.md", DOCS.parent / "README.md"], ids=lambda path: path.name)
def test_first_steps_run(page, tmp_path, monkeypatch):
    blocks = python_blocks(page)
    assert "max_steps=200" in blocks[0]
    days = pd.date_range("2024-01-01", periods=120)
    rng = np.random.default_rng(0)
    frames = [
        pd.DataFrame({"sku": name, "date": days, "qty": 20 + rng.poisson(5, len(days))}) for name in ("A-1", "B-2")
    ]
    pd.concat(frames).to_csv(tmp_path / "sales.csv", index=False)
    monkeypatch.chdir(tmp_path)
    names = {"BACKBONE": random_backbone(tmp_path)}
    for block in blocks:
        exec(compile(block.replace("max_steps=200", TINY), page.name, "exec"), names)
    table = names["f"].predict_df(names["panel"])
    assert list(table) == ["sku", "date", "target_name", "predictions", "0.1", "0.5", "0.9"]
    assert len(table) == 2 * 7
    if page.stem == "quickstart":
        assert {"MASE", "WQL"} <= set(names["scores"])
        # the second page forecasts with the first one's run
        for block in python_blocks(DOCS / "forecasting.md"):
            exec(compile(block, "forecasting.md", "exec"), names)
        assert list(names["wide_interval"].columns[-2:]) == ["0.05", "0.95"] and len(names["days"]) == 2 * 3
        assert names["points"][0].shape == (7, 1) and "coverage" in names["scores"]


def test_panels_page_runs(tmp_path, monkeypatch):
    (block,) = python_blocks(DOCS / "panels.md")
    block = block.replace('    backbone="SmolLM2-135M-Instruct",\n', "").replace("max_steps=200", TINY)
    block = block.replace("context_length=104", "context_length=16")
    days = pd.date_range("2024-01-01", periods=160).append(pd.date_range("2024-02-01", periods=150))
    items = ["a"] * 160 + ["b"] * 150
    df = pd.DataFrame({"item_id": items, "timestamp": days, "target": np.random.default_rng(0).normal(20, 3, 310)})
    monkeypatch.chdir(tmp_path)
    names = {"df": df, "list_of_arrays": [np.arange(90.0)], "folder": tmp_path / "saved"}
    exec(compile(block, "panels.md", "exec"), names | {"BACKBONE": random_backbone(tmp_path)}, names)
    assert len(names["out"]) == 2 * 8 and names["cv"]["cutoff"].nunique() == 6
    assert names["points"][0].shape == (8, 1) and names["quantiles"][0].shape == (8, 1, 3)
    assert {"MASE", "WQL"} <= set(names["scores"]) and (tmp_path / "saved" / "calibration.npz").exists()


def test_runs_page_runs(tmp_path, monkeypatch, capsys):
    (block,) = python_blocks(DOCS / "runs.md")
    write_series(tmp_path / "my.csv", 1000)
    monkeypatch.chdir(tmp_path)
    exec(compile(block.replace("max_steps=200", TINY), "runs.md", "exec"), {"BACKBONE": random_backbone(tmp_path)})
    folder, error = capsys.readouterr().out.split()[-2:]
    assert (tmp_path / folder / "metrics.json").exists() and float(error) > 0


def test_every_page_with_code_is_run():
    """Here, or in the file of tests/docs named after the page."""
    here = {"README", "quickstart", "forecasting", "panels", "runs"}
    pages = {page.stem for page in PAGES if python_blocks(page)}
    assert pages == here | {"covariates", "kernels", "neighbours", "pretraining"}


def command_lines():
    for page in PAGES:
        text = page.read_text().replace("\\\n", " ")
        for line in re.findall(r"^ {4}((?:python|pytest|deepspeed|torchrun|llata-fast) .*)$", text, re.MULTILINE):
            yield pytest.param(line, id=f"{page.relative_to(ROOT)}: {line[:40]}")


@pytest.mark.parametrize("line", list(command_lines()))
def test_command_lines_parse(line):
    words = shlex.split(line.replace(" ...", ""), comments=True)
    if "train.py" in words:
        # an unknown option exits the program
        given_flags(words[words.index("train.py") + 1 :])
    elif words[0] == "llata-fast" or "llata_fast" in words:
        # after an interpreter or a launcher
        command, *options = words[1:] if words[0] == "llata-fast" else words[words.index("llata_fast") + 1 :]
        command_parser(command).parse_args(options)
    else:
        script = ROOT / words[1]
        assert words[0] in ("python", "pytest") and script.exists()
        # its parser can only be reached by running it
        if words[0] == "python" and "ArgumentParser" in script.read_text():
            assert all(f'"{word}"' in script.read_text() for word in words[2:] if word.startswith("--"))


def anchors(page):
    """The anchors that GitHub and the manual generate from a page's headings."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_somewhere(page):
    broken = []
    for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        target, _, anchor = link.partition("#")
        if target.partition(":")[0] in ("http", "https", "mailto"):
            continue
        path = page.parent / target if target else page
        if not path.exists() or (anchor and path.suffix == ".md" and anchor not in anchors(path)):
            broken.append(link)
    assert not broken


def test_every_page_is_in_the_contents():
    listed = re.findall(r"^([a-z_]+)$", (DOCS / "index.md").read_text(), re.MULTILINE)
    assert {path.stem for path in DOCS.glob("*.md")} - {"index"} == set(listed)
