"""The kernels page: its code runs, it lists every op, and the model in the example learns."""

import re
import sys
from pathlib import Path

import llata_fast.kernels
import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "kernels.md").read_text()

pytestmark = pytest.mark.usefixtures("plain_ops")


def test_code_runs():
    (block,) = re.findall(r"^```python\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
    names = {}
    exec(compile(block, "kernels.md", "exec"), names)
    assert names["tokens"].shape == (8, 7, 11, 64) and names["memory"].grad.any()


def test_every_op_has_a_contract():
    ops = {name for name in llata_fast.kernels.__all__ if not name.endswith("_ref")}
    table = PAGE.partition("## One alone")[0]
    assert ops == set(
        re.findall(r"`(\w+)`", "\n".join(row.split("|")[1] for row in re.findall(r"^\| `.*", table, re.M)))
    )


def test_example_learns(launch):
    output = launch(
        sys.executable, ROOT / "examples" / "kernels_alone.py", "--steps", "40", "--batch", "4", "--channels", "2"
    )
    before, after = map(float, re.findall(r"(\d+\.\d+) (?:before|after)", output))
    assert after < 0.6 * before
