"""Steps are compiled by default only up to the batch size for which trainings end sooner."""

import importlib
import re
from pathlib import Path

import pytest

from llata_fast.training import arguments


@pytest.fixture
def compiled(monkeypatch):
    monkeypatch.syspath_prepend(Path(__file__).resolve().parents[2] / "bench")
    return importlib.import_module("compiled")


def rows(*steps):
    return [{"windows": 10 * 2**k, "steps_to_pay": number} for k, number in enumerate(steps)]


def test_compiled_up_to_the_last_batch_before_one_does_not_pay(compiled):
    assert compiled.compiled_below(rows(300.0, 1999.0, 2001.0, 5.0)) == 21
    assert compiled.compiled_below(rows(300.0, None)) == 11
    assert compiled.compiled_below(rows(None, 300.0)) == compiled.compiled_below(rows(9999.0)) == 0


def test_only_the_one_number_is_changed(compiled, tmp_path):
    source = Path(arguments.__file__).read_text()
    path = tmp_path / "arguments.py"
    path.write_text(source)
    compiled.write(129, path)
    assert path.read_text() == re.sub(r"\nCOMPILED_BELOW = \d+\n", "\nCOMPILED_BELOW = 129\n", source)
    path.write_text("")
    with pytest.raises(SystemExit, match="nothing is written"):
        compiled.write(129, path)
