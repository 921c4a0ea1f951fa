"""The targets that pages and CI name exist, and CI covers every Python version that setup.py declares."""

import re
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parents[1]
JOBS = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text())["jobs"]
TARGETS = set(re.search(r"^\.PHONY: (.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)[1].split())


def test_targets_in_pages_exist():
    pages = [page for folder in (".", "docs", "kernels", "ds_configs") for page in ROOT.glob(f"{folder}/*.md")]
    named = {
        target for page in pages for target in re.findall(r"(?:`|^ {4})make ([a-z-]+)", page.read_text(), re.MULTILINE)
    }
    assert {"train", "test", "docs"} <= named <= TARGETS


def test_ci_runs_existing_targets():
    runs = {step["run"] for job in JOBS.values() for step in job["steps"] if "run" in step}
    assert runs == {"make test", "make ${{ matrix.target }}", "make docs"}
    assert {"test", "docs", *JOBS["dependencies"]["strategy"]["matrix"]["target"]} <= TARGETS


def test_ci_covers_every_declared_python():
    lowest, beyond = re.search(r"3\.\{minor\}.*range\((\d+), (\d+)\)", (ROOT / "setup.py").read_text()).groups()
    versions = JOBS["test"]["strategy"]["matrix"]["python"]
    assert versions == [f"3.{minor}" for minor in range(int(lowest), int(beyond))]
