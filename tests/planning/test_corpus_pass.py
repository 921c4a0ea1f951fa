"""The cost of a pre-training follows from its steps and the plan of one step."""

import json

import pytest

from llata_fast.__main__ import main

PLAN = ["plan", "--backbone", "gpt2", "--gpus", "8", "--batch_size", "512", "--channels", "1"]
PLAN += ["--context_length", "512", "--patch_length", "32", "--patch_stride", "32"]


def test_a_pass_forecasts_every_step_once(capsys):
    main([*PLAN, "--corpus_steps", "27e9", "--json"])
    plan = json.loads(capsys.readouterr().out)
    cost, stage = plan["pretraining"], plan["stages"][plan["recommended"]]
    # a window has 96 targets, and 16 patches in its lookback
    assert cost["windows"] * 96 == pytest.approx(27e9)
    assert cost["tokens"] == pytest.approx(cost["windows"] * 16)
    assert cost["training_steps"] == pytest.approx(cost["windows"] / 512)
    assert cost["hours"] * 3600 == pytest.approx(cost["training_steps"] * stage["step_seconds"])
    assert cost["gpu_hours"] == pytest.approx(8 * cost["hours"])
    assert cost["petaflops"] * 1e15 == pytest.approx(cost["training_steps"] * stage["flops_per_step"])


def test_in_words(capsys):
    main([*PLAN, "--corpus_steps", "27e9"])
    assert (
        "A pass over 27,000,000,000 time steps of corpora: 281,250,000 windows, 4,500,000,000 tokens"
        in capsys.readouterr().out
    )
    main(PLAN)
    assert "A pass over" not in capsys.readouterr().out


def test_fewer_than_one_step_is_refused(capsys):
    with pytest.raises(SystemExit):
        main([*PLAN, "--corpus_steps", "0"])
    assert "corpus_steps must be at least 1" in capsys.readouterr().err
