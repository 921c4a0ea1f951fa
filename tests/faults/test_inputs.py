"""A short run of `inputs.py`: some damage to every file that the package reads."""

import logging

import pytest
from faults.inputs import input_cases, try_damage
from faults.outcomes import BAD, Tally

EACH = 6


@pytest.fixture(scope="module")
def cases(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("llata_fast.kernels._launch.ENABLED", False)
        yield input_cases(tmp_path_factory.mktemp("inputs"))


def test_damage_ends_in_one_line_or_the_right_result(cases):
    """In between, every undamaged file must be read correctly."""
    tally = Tally()
    logging.disable(logging.CRITICAL)
    try:
        for case in cases:
            try_damage(case, 1 if case.slow else EACH, seed=0, tally=tally)
    finally:
        logging.disable(logging.NOTSET)
    assert tally.total() == sum(1 if case.slow else EACH for case in cases) and len(cases) > 25
    assert not tally.examples, "\n".join(tally.examples[:5])
    counts = tally.counts.values()
    # the damage must really be damage
    assert sum(count["clear line"] for count in counts) > tally.total() / 3
    assert not any(count[outcome] for count in counts for outcome in BAD)


@pytest.mark.parametrize("number", range(3))
def test_an_untouched_file_is_right(cases, number):
    """Judges accept the result for an undamaged file and reject any other result."""
    for case in cases:
        if case.name.startswith(("CSV", "run: model", "prototype", "backbone: model.safetensors")):
            assert case.is_right(case.read())
    tables = [case for case in cases if case.name.startswith("CSV .")]
    series = tables[0].read()
    series.values[number, 0] += 1
    assert not tables[0].is_right(series)
