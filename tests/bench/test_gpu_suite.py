"""In the GPU suite a broken part loses only that part; finished measurements are kept and every outcome is reported."""

import importlib.util
import json
import sys
import time
from argparse import Namespace
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
spec = importlib.util.spec_from_file_location("gpu_suite", ROOT / "bench" / "gpu_suite.py")
suite = sys.modules["gpu_suite"] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(suite)

WORKS = """
print('{"ms": 1.5}')
print("chatter {")
print('{"headline": "1.5 ms"}')
"""
# its child process keeps writing
HANGS = """
import subprocess, sys, time
print('{"ms": 1.5}')
child = "import sys, time\\nwhile True: open(sys.argv[1], 'a').write('x'); time.sleep(0.05)"
subprocess.Popen([sys.executable, "-c", child, sys.argv[1]])
time.sleep(60)
"""
BREAKS = "print('one'); raise SystemExit('CUDA error: an illegal memory access was encountered')"


@pytest.fixture
def run(tmp_path, monkeypatch):
    """`run(program, seconds, **fields)` returns the outcome of a part that runs this program."""
    monkeypatch.setattr(suite, "LEAST_SECONDS", 0)

    def call(program, seconds=60, **fields):
        command = lambda options: [sys.executable, "-c", program, str(tmp_path / "written")]
        monkeypatch.setitem(suite.PARTS, "probe", suite.Part(seconds, command, suite.told, "1 ms", **fields))
        return suite.run_part("probe", Namespace(), seconds, tmp_path / "suite.log")

    return call


def test_part_that_works(run, tmp_path):
    for _ in range(2):
        outcome = run(WORKS)
        assert (outcome.status, outcome.headline, outcome.target) == ("ok", "1.5 ms", "1 ms")
        assert outcome.results == [{"ms": 1.5}, {"headline": "1.5 ms"}]
    assert (tmp_path / "suite.log").read_text().count("chatter") == 2


def test_part_that_breaks(run):
    outcome = run(BREAKS)
    assert outcome.status == "failed" and "illegal memory access" in outcome.headline
    assert "lacks" in run("print(1)").headline and run("print(1)").status == "failed"


def test_part_that_hangs_is_killed_with_its_children_and_keeps_its_results(run, tmp_path):
    outcome = run(HANGS, seconds=3)
    assert outcome.status == "failed" and "stopped after 3 s" in outcome.headline
    assert outcome.results == [{"ms": 1.5}] and outcome.seconds < 20
    written = tmp_path / "written"
    size = written.stat().st_size
    time.sleep(0.5)
    assert size > 0 and written.stat().st_size == size


def test_part_that_is_skipped(run, monkeypatch):
    outcome = run(WORKS, skip=lambda options: "no such tool")
    assert (outcome.status, outcome.headline, outcome.seconds) == ("skipped", "no such tool", 0.0)
    monkeypatch.setattr(suite, "LEAST_SECONDS", 61)
    assert run(WORKS).headline == "no time left"


def test_headlines():
    assert suite.last_words("....\n===== 3 passed, 1 skipped in 2.10s =====\n", []) == "3 passed, 1 skipped in 2.10s"
    row = {"op": "patch_embed", "case": "ETT", "mode": "fwd+bwd", "error": ""}
    rows = [row | {"provider": name, "ms_p50": ms} for name, ms in (("triton", 1.0), ("compile", 2.0), ("ref", 3.0))]
    slow = [row | {"case": "ECL", "provider": name, "ms_p50": ms} for name, ms in (("triton", 2.0), ("compile", 1.0))]
    wrong = [row | {"case": "Weather", "provider": "triton", "ms_p50": "", "error": "not finite"}]
    rows = {"rows": [*rows, *slow, *wrong, row | {"mode": "fwd", "case": "Traffic"}]}
    assert suite.fastest("", [rows]) == "Triton the fastest in 1 of 2 cases"


def test_rows_of_the_providers_that_were_measured():
    output = """noise: here
twin_norm, D <= 256: triton (small, fwd+bwd: triton 0.1000 ms, library 0.2000 ms, NVIDIA H100)
alignment_loss_backward, many tiles: library (ECL, fwd+bwd: triton 2.0000 ms, library 1.0000 ms, NVIDIA H100)
"""
    told = "2 rows measured, the library's: alignment_loss_backward, many tiles"
    assert suite.written_rows(output, []) == told
    assert suite.written_rows("", []) == "0 rows measured, the library's: none"


def test_tables_are_rewritten_only_when_asked(tmp_path):
    options = lambda write, dry_run: Namespace(write=write, dry_run=dry_run)
    assert suite.reads_only(options(True, False)) is None
    assert "--write" in suite.reads_only(options(False, False)) and suite.reads_only(options(True, True))
    assert suite.compiled(options(False, True))[-1] == "--dry-run"
    suite.keep_written(tmp_path)
    for name in suite.WRITTEN:
        assert (tmp_path / "written" / name).read_bytes() == (ROOT / name).read_bytes()


def test_where_attention_starts_to_pay():
    times = {"sdpa": (1.0, 2.0, 4.0), "eager": (0.5, 3.0, 9.0), "flash": (2.0, 1.5, 2.0)}
    rows = [
        {"mode": "fwd+bwd", "implementation": name, "tokens": tokens, "ms_p50": ms}
        for name, taken in times.items()
        for tokens, ms in zip((7, 64, 512), taken, strict=True)
    ]
    assert suite.crossover("", [{"rows": rows}]) == "faster than sdpa: eager never, flash from 64 tokens"


def test_dry_run_of_a_part(launch, tmp_path):
    output = launch("python", "bench/gpu_suite.py", "--out", tmp_path, "--dry-run", "--parts", "models")
    brief = json.loads(output.splitlines()[-1])
    assert [(part["part"], part["status"]) for part in brief["parts"]] == [("environment", "ok"), ("models", "ok")]
    folder = Path(brief["folder"])
    document = json.loads((folder / "suite.json").read_text())
    assert {"date", "commit", "device", "torch", "triton", "transformers", "python"} <= document["facts"].keys()
    assert "passed" in document["parts"][1]["headline"] and "passed" in (folder / "suite.log").read_text()


def test_wrong_options(launch, tmp_path):
    for argv, words in (
        (["--parts", "kernels,coffee"], "unknown part coffee"),
        (["--bundle", "absent"], "no such folder"),
    ):
        output = launch("python", "bench/gpu_suite.py", "--out", tmp_path, *argv, returncode=2)
        assert words in output and "Traceback" not in output
