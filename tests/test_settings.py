"""The table of settings: every field is documented, bad values are refused by name, some fields bind a checkpoint."""

import math
import subprocess
import sys
from dataclasses import fields
from typing import get_args

import pytest

from llata_fast.errors import InputError
from llata_fast.settings import (
    ABLATIONS,
    GROUPS,
    Change,
    DataSettings,
    ModelSettings,
    TrainingSettings,
    all_fields,
    check_agreement,
)

KIND_OF = {item.name: kind for kind in GROUPS for item in fields(kind)}


def test_every_field_is_documented():
    names = [item.name for item in all_fields()]
    assert len(names) == len(set(names)) == len(KIND_OF)
    for item in all_fields():
        assert item.metadata["help"], item.name
        assert item.metadata["changes"] in get_args(Change), item.name
        choices = item.metadata["choices"]
        assert choices is None or item.default is None or item.default in choices, item.name


@pytest.mark.parametrize("name", [item.name for item in all_fields() if item.type in (float, float | None)])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf], ids=str)
def test_numbers_are_finite(name, value):
    with pytest.raises(InputError, match=f"^{name} must be "):
        KIND_OF[name](**{name: value})


@pytest.mark.parametrize("name", KIND_OF)
def test_a_value_of_another_type_is_refused_by_name(name):
    with pytest.raises(InputError, match=f"^{name} must be "):
        KIND_OF[name](**{name: object()})


def test_true_is_no_number_and_a_whole_number_is_one():
    with pytest.raises(InputError, match="num_layers must be a whole number, got True"):
        ModelSettings(num_layers=True)
    assert ModelSettings(lora_alpha=16).lora_alpha == 16
    assert TrainingSettings(num_train_epochs=2).num_train_epochs == 2
    assert DataSettings(columns=["a"]).columns == ["a"]


def test_limits_are_named():
    with pytest.raises(InputError, match=r"dropout must be in \[0, 1\), got 1.0"):
        ModelSettings(dropout=1.0)
    with pytest.raises(InputError, match="batch_size must be at least 1, got 0"):
        TrainingSettings(batch_size=0)


@pytest.mark.parametrize("item", list(all_fields()), ids=lambda item: item.name)
def test_a_resume_refuses_changed_fields_that_bind_a_checkpoint(item):
    theirs, ours = {item.name: "as it was"}, {item.name: "another"}
    if item.metadata["changes"] in ("shapes", "meaning"):
        with pytest.raises(InputError, match=f"run/checkpoint-5 was trained with {item.name} as it was, not another"):
            check_agreement(theirs, ours, "run/checkpoint-5")
    else:
        check_agreement(theirs, ours, "run/checkpoint-5")
    check_agreement({}, ours, "run/checkpoint-5")


def test_ablations_without_a_language_model_have_no_text_branch():
    for name, row in ABLATIONS.items():
        assert row.taken_out and (row.language_model or not (row.text_branch or row.frozen_base)), name
        assert row.frozen_base or not row.text_branch, name


def test_settings_need_neither_torch_nor_transformers():
    heavy = "{'torch', 'transformers', 'pandas'}"
    code = f"import sys, llata_fast.settings, llata_fast.cli; print(*{heavy} & {{*sys.modules}})"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "\n"
