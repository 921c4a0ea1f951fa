"""kernels/RESOURCES.md is what the compiler makes of these sources, and holds no spill and no missing tensor core."""

import dataclasses
import os
import re
import subprocess
import sys
from operator import attrgetter

import pytest

pytest.importorskip("triton")

import compile_only
import triton
from llata_fast.kernels import configs


def compiled(target: str, *options: str) -> list[compile_only.Resources]:
    env = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    command = [sys.executable, compile_only.__file__, "--targets", target, *options]
    run = subprocess.run(command, env=env, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    return compile_only.parse_rows(run.stdout)


def table_compiler() -> str:
    return re.search(r"compiled without a GPU by Triton (\S+)\.\n", compile_only.TABLE.read_text())[1]


def test_table_is_of_these_sources():
    digest = re.search(r"^Sources: `(\w+)`$", compile_only.TABLE.read_text(), re.MULTILINE)[1]
    assert digest == compile_only.source_digest(), "kernels/RESOURCES.md is stale: run `make resources`"


def test_table_has_every_config():
    rows = compile_only.read_table()
    assert {row.target for row in rows} == set(compile_only.TARGETS)
    written = {(row.kernel, row.shape_class, row.config) for row in rows}
    assert written == {key for key in configs.TABLE if key[2] != "interpreter"}


def test_no_config_is_at_fault():
    faults = {str(row): row.faults() for row in compile_only.read_table() if row.faults()}
    assert not faults


@pytest.mark.parametrize("target", compile_only.TARGETS)
def test_every_kernel_compiles(target):
    """A sample, compiled here and now: all of it takes minutes, which `make resources` spends after every change."""
    rows = compiled(target, "--sample")
    assert {row.kernel for row in rows} == {key[0] for key in configs.TABLE}
    assert not [row for row in rows if row.faults()]
    if triton.__version__ == table_compiler():
        key = attrgetter("kernel", "shape_class", "variant", "target", "config")
        table = {key(row): row for row in compile_only.read_table()}
        for row in rows:
            # the table holds the worst of a config's launches, the sample one of them
            worst = table[key(row)]
            for fact in ("registers", "spill_bytes", "shared_bytes"):
                assert getattr(row, fact) <= getattr(worst, fact), (row, worst)
            assert row.matrix_instructions >= worst.matrix_instructions, (row, worst)


def test_faults_are_seen():
    good = compile_only.Resources("k", "E <= 64, 16-bit", "", "sm_90", "any", 255, 0, 227 * 1024, 1)
    assert not good.faults()
    for change, fault in (
        ({"spill_bytes": 8}, "spills 8 bytes"),
        ({"shared_bytes": 227 * 1024 + 1}, "needs 232449 of 232448 bytes of shared memory"),
        ({"matrix_instructions": 0}, "has no wgmma.mma_async."),
    ):
        assert dataclasses.replace(good, **change).faults() == [fault]
    assert not compile_only.Resources("k", "any", "", "sm_90", "any", 255, 0, 0, 0).faults()
