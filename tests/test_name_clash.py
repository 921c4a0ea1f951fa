"""Hugging Face's package "kernels" can be imported beside our folder kernels/, whichever program starts in the root."""

import json
import os
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

# Runs at the start of every Python process. In the process started as PROBE_ENTRY it waits for the first heavy import
# (or the end), records which "kernels" an import would find then, and stops the process to save time.
SITECUSTOMIZE = """
import atexit, importlib.metadata, importlib.util, json, os, sys

class Probe:
    def find_spec(self, name, path=None, target=None):
        if name in ("numpy", "torch", "transformers"):
            self.answer()
            os._exit(0)

    def answer(self):
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec("kernels")
        found = {"origin": spec.origin, "version": importlib.metadata.version("kernels"), "path": sys.path}
        with open(os.environ["PROBE_ANSWER"], "w") as file:
            json.dump(found, file)

if " ".join(part for part in sys.orig_argv[1:] if part != "-u").startswith(os.environ["PROBE_ENTRY"]):
    probe = Probe()
    sys.meta_path.insert(0, probe)
    atexit.register(probe.answer)
"""

WORKER = """
from importlib.util import find_spec
from multiprocessing import get_context

import llata_fast

def origins():
    return [find_spec(name).origin for name in ("llata_fast.kernels", "kernels")]

if __name__ == "__main__":
    with get_context("spawn").Pool(1) as pool:
        print(*pool.apply(origins), sep="\\n")
"""

ENTRIES = [
    ["python", "train.py"],
    pytest.param(
        ["deepspeed", "train.py"],
        marks=pytest.mark.skipif(find_spec("deepspeed") is None, reason="deepspeed is not installed"),
    ),
    ["python", "-m", "llata_fast"],
    ["python", "-m", "pytest", "--collect-only"],
    ["python", "-m", "pytest", "bench", "--collect-only"],
    *(["python", f"bench/{path.name}"] for path in sorted(ROOT.glob("bench/*.py"))),
]


@pytest.fixture
def site(tmp_path):
    """A folder with a distribution named "kernels", as pip would install it."""
    (tmp_path / "kernels").mkdir()
    (tmp_path / "kernels" / "__init__.py").touch()
    (tmp_path / "kernels-99.0.dist-info").mkdir()
    (tmp_path / "kernels-99.0.dist-info" / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: kernels\nVersion: 99.0\n"
    )
    return tmp_path


@pytest.mark.parametrize("entry", ENTRIES, ids=" ".join)
def test_program_finds_hugging_faces_kernels(entry, site, launch):
    (site / "sitecustomize.py").write_text(SITECUSTOMIZE)
    answer = site / "answer.json"
    env = {"PYTHONPATH": str(site), "PROBE_ENTRY": " ".join(entry[1:]), "PROBE_ANSWER": str(answer)}
    launch(*entry, returncode=None, timeout=120, env=env)
    found = json.loads(answer.read_text())
    assert found["origin"] == str(site / "kernels" / "__init__.py")
    assert found["version"] == "99.0"
    assert str(ROOT) not in found["path"] and "" not in found["path"]


def test_spawned_workers_find_both(site, launch):
    script = site / "worker.py"
    script.write_text(WORKER)
    output = launch("python", script, env={"PYTHONPATH": f"{ROOT}{os.pathsep}{site}"})
    assert output.splitlines() == [str(ROOT / "kernels" / "__init__.py"), str(site / "kernels" / "__init__.py")]
