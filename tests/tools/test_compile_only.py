"""kernels/RESOURCES.md matches what the compiler gives for the sources: no spills, tensor cores, full waves."""

import dataclasses
import os
import re
import subprocess
import sys
from operator import attrgetter

import pytest

pytest.importorskip("triton")

import assembly
import compile_only
import kernel_launches
import triton
from llata_fast.kernels import configs


def output(*command: str) -> str:
    """What Python prints in a process without the interpreter of kernels."""
    env = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    env["PYTHONPATH"] = os.path.dirname(compile_only.__file__)
    run = subprocess.run([sys.executable, *command], env=env, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    return run.stdout


def compiled(target: str, *options: str) -> list[compile_only.Resources]:
    return compile_only.parse_rows(output(compile_only.__file__, "--targets", target, *options))


def table_compiler() -> str:
    return re.search(r"compiled without a GPU by Triton (\S+)\.\n", compile_only.TABLE.read_text())[1]


def test_table_matches_the_sources():
    digest = re.search(r"^Sources: `(\w+)`$", compile_only.TABLE.read_text(), re.MULTILINE)[1]
    assert digest == compile_only.source_digest(), "kernels/RESOURCES.md is stale: run `make resources`"


def test_table_has_every_config():
    rows = compile_only.read_table()
    assert {row.target for row in rows} == set(compile_only.TARGETS)
    written = {(row.kernel, row.shape_class, row.config) for row in rows}
    assert written == {key for key in configs.TABLE if key[2] in {"any", *compile_only.TARGETS}}


def test_no_config_has_a_fault():
    faults = {str(row): row.faults() for row in compile_only.read_table() if row.faults()}
    assert not faults


@pytest.mark.parametrize("target", compile_only.TARGETS)
def test_every_kernel_compiles(target):
    """Compiles a sample. Compiling everything takes minutes, which `make resources` does after every change."""
    rows = compiled(target, "--sample")
    assert {row.kernel for row in rows} == {key[0] for key in configs.TABLE}
    assert not [row for row in rows if row.faults()]
    if triton.__version__ == table_compiler():
        key = attrgetter("kernel", "shape_class", "variant", "target", "config")
        table = {key(row): row for row in compile_only.read_table()}
        for row in [row for row in rows if row.target in {target for *_, target, _ in table}]:
            # the table contains the worst launch of a config, the sample one of its launches
            worst = table[key(row)]
            for fact in ("registers", "spill_bytes", "shared_bytes"):
                assert getattr(row, fact) <= getattr(worst, fact), (row, worst)
            assert row.matrix_instructions >= worst.matrix_instructions, (row, worst)


BINARIES = """
import compile_only
for shape, *windows in (("ETT", 256, 57), ("Weather", 64, 63), ("Traffic", 16, 5), ("ECL patches", 32, 9)):
    first, last = (compile_only.binaries(shape, number) for number in windows)
    print(len(first), *sorted(first ^ last))
"""


def test_a_last_smaller_batch_compiles_nothing():
    """As long as it is of the same size class: a handful of windows has tiles and splits of its own."""
    for line in output("-c", BINARIES).splitlines():
        count, *others = line.split(" ", 1)
        assert int(count) >= 6 and not others


def test_waves_are_full():
    waves = compile_only.parse_waves(compile_only.TABLE.read_text())
    assert {row.shape for row in waves} == set(kernel_launches.NAMED)
    # the lowest is twin_norm_fwd's at ETT and Weather: 3,584 and 2,688 programs in four and three waves of 1,056
    idle = [row for row in waves if row.waves >= 1 and row.efficiency < 0.848]
    assert not idle


def test_splits_fit_what_is_resident():
    """For a config that splits its work, `waves` is the number of programs that a multiprocessor holds."""
    waves = compile_only.parse_waves(compile_only.TABLE.read_text())
    split = [row for row in waves if row.kernel in ("prototype_attention_bwd_dkv", "patch_embed_bwd")]
    # there blocks of keys times heads fill several waves, so nothing is split
    split = [row for row in split if row.shape != "large backbone"]
    assert split
    for row in split:
        config = configs.TABLE[row.kernel, row.shape_class, row.config]
        assert row.programs <= config.waves * compile_only.MULTIPROCESSORS


def test_waves_by_hand():
    # 168 registers per thread are 5,376 per warp: three programs of four warps fit in 65,536
    assert assembly.Multiprocessor().resident(168, 66_560, 4) == (3, "registers")
    # 229,376 bytes plus 1,024 reserved are 230,400 of 233,472
    assert assembly.Multiprocessor().resident(32, 229_376, 4) == (1, "shared memory")
    assert assembly.Multiprocessor().resident(16, 0, 32) == (2, "threads")
    assert assembly.Multiprocessor().resident(16, 0, 1) == (32, "programs")
    row = compile_only.Waves("k", "any", "ETT", "any", 480, 3, "registers")
    assert row.waves == pytest.approx(480 / 396) and row.efficiency == pytest.approx(480 / 792)


LOOP = """
$L__BB0_1:
\tcp.async.cg.shared.global [ %r1 + 0 ], [ %rd1 + 0 ], 0x10, %r2;
\tcp.async.commit_group;
$L__BB0_2:
\tcp.async.wait_group 	{left};
\twgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 {{}};
\twgmma.wait_group.sync.aligned 0;
\t@%p1 cp.async.ca.shared.global [ %r3 + 0 ], [ %rd2 + 0 ], 0x4, %r4;
\tcp.async.commit_group;
\t@%p2 bra 	$L__BB0_2;
\tcp.async.wait_group 	0;
\tld.global.v4.b32 {{%r5, %r6, %r7, %r8}}, [ %rd3 + 0 ];
\t@%p3 bra 	$L__BB0_1;
"""


@pytest.mark.parametrize("left", [0, 2])
def test_waits_of_the_innermost_loop(left):
    facts = assembly.loop_facts(LOOP.format(left=left), "wgmma.mma_async.")
    assert facts == {"waits": "2", "in_flight": str(left), "load_bytes": "4-16"}


def test_a_loop_without_copies_waits_for_none():
    facts = assembly.loop_facts("$L__BB0_1:\n\tld.global.b16 %r1, [ %rd1 ];\n\tbra.uni $L__BB0_1;", "mma.sync.")
    assert facts == {"waits": "-", "in_flight": "-", "load_bytes": "2"}


def test_faults_are_detected():
    facts = 255, 0, 227 * 1024, 1, "3", "2", "4-16"
    good = compile_only.Resources("k", "E <= 64, 16-bit", "", "sm_90", "any", *facts)
    assert not good.faults()
    for change, fault in (
        ({"spill_bytes": 8}, "spills 8 bytes"),
        ({"shared_bytes": 227 * 1024 + 1}, "needs 232449 of 232448 bytes of shared memory"),
        ({"matrix_instructions": 0}, "has no wgmma.mma_async."),
        ({"in_flight": "0"}, "waits for the copy that it has just issued"),
    ):
        assert dataclasses.replace(good, **change).faults() == [fault]
    assert not compile_only.Resources("k", "any", "", "sm_90", "any", 255, 0, 0, 0, "-", "-", "4").faults()
