"""What counts as a hub id, and that nothing waits longer for the hub than it says."""

import time

import pytest

from llata_fast.hub_access import is_hub_id, within


@pytest.mark.parametrize("source", ["./a/b", "../b", "/a/b", "~/b", "a", "a/b/c", "random:a/b", "runs/mine"])
def test_a_path_is_no_hub_id(source, tmp_path, monkeypatch):
    (tmp_path / "runs" / "mine").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert not is_hub_id(source)


def test_owner_and_name_are_a_hub_id_unless_they_are_a_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert is_hub_id("runs/mine")


def test_a_call_returns_raises_or_is_abandoned():
    assert within(5, lambda: 7) == 7
    with pytest.raises(KeyError, match="lost"):
        within(5, lambda: {}["lost"])
    began = time.monotonic()
    with pytest.raises(TimeoutError, match="no answer within 0.05 s"):
        within(0.05, lambda: time.sleep(20))
    assert time.monotonic() - began < 10
