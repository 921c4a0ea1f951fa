"""Files are complete or absent, and manifests detect damage."""

import hashlib
import json
import os

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llata_fast import durable
from llata_fast.durable import (
    delete_folder,
    delete_partials,
    delete_tree,
    find_damage,
    read_manifest,
    replacing,
    settle_folder,
    write_manifest,
)
from llata_fast.errors import InputError


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "sub").mkdir()
    (tmp_path / "a.bin").write_bytes(bytes(range(256)))
    (tmp_path / "sub" / "b.txt").write_text("words")
    write_manifest(tmp_path)
    return tmp_path


def changed_time(path):
    """By its time, `last` tells the newest checkpoint."""
    manifest = json.loads(path.read_text())
    path.write_text(json.dumps(manifest | {"written": manifest["written"] - 1}))


def test_an_interrupted_write_leaves_the_previous_file(tmp_path):
    path = tmp_path / "file"
    path.write_text("before")
    with pytest.raises(KeyboardInterrupt), replacing(path) as partial:
        partial.write_text("half")
        raise KeyboardInterrupt
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"] and path.read_text() == "before"
    with replacing(path) as partial:
        partial.write_text("after")
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"] and path.read_text() == "after"


def test_the_manifest_names_every_file(folder):
    files = read_manifest(folder)["files"]
    assert files == {
        "a.bin": {"bytes": 256, "sha256": hashlib.sha256(bytes(range(256))).hexdigest()},
        "sub/b.txt": {"bytes": 5, "sha256": hashlib.sha256(b"words").hexdigest()},
    }
    assert find_damage(folder) is None


def test_the_manifest_is_written_last(tmp_path, monkeypatch):
    """The files and their folder are synced to the disk before it is written."""
    for name in ("a", "b"):
        (tmp_path / name).write_text(name)
    events = []
    sync, write_text = durable.sync, durable.write_text
    monkeypatch.setattr(durable, "sync", lambda path: (events.append(os.path.basename(path)), sync(path)))
    monkeypatch.setattr(durable, "write_text", lambda path, text: (events.append(path.name), write_text(path, text)))
    write_manifest(tmp_path)
    assert events[:4] == ["a", "b", tmp_path.name, "manifest.json"]


@pytest.mark.parametrize(
    "harm, words",
    [
        (lambda folder: (folder / "sub" / "b.txt").unlink(), "sub/b.txt is missing"),
        (lambda folder: (folder / "a.bin").write_bytes(b"short"), "a.bin has 5 bytes, not 256"),
        (lambda folder: (folder / "a.bin").write_bytes(bytes(256)), "a.bin was changed or damaged"),
        (lambda folder: (folder / "manifest.json").unlink(), "no manifest.json: it was not written to the end"),
        (lambda folder: (folder / "manifest.json").write_text("[]"), "its manifest.json is damaged"),
        (lambda folder: (folder / "manifest.json").write_bytes(b"\xff"), "its manifest.json is damaged"),
        (lambda folder: (folder / "manifest.json").write_text('{"files": {"a.bin": 3}}'), "damaged"),
        (lambda folder: changed_time(folder / "manifest.json"), "its manifest.json is damaged"),
    ],
    ids=["missing", "cut", "changed", "no manifest", "list", "bytes", "types", "time"],
)
def test_damage_is_named(folder, harm, words):
    harm(folder)
    assert words in find_damage(folder)


@settings(max_examples=20)
@given(st.integers(0, 8 * 256 - 1))
def test_every_bit_counts(tmp_path_factory, bit):
    folder = tmp_path_factory.mktemp("bits")
    content = bytearray(range(256))
    (folder / "a.bin").write_bytes(content)
    write_manifest(folder)
    content[bit // 8] ^= 1 << bit % 8
    (folder / "a.bin").write_bytes(content)
    assert "a.bin" in find_damage(folder)


def test_damage_is_sought_only_in_the_named_files(folder):
    (folder / "a.bin").unlink()
    assert find_damage(folder, {"sub/b.txt"}) is None and find_damage(folder, {"a.bin"}) is not None


def test_a_folder_appears_under_its_name_once_complete(tmp_path, monkeypatch):
    old, partial = tmp_path / "checkpoint-1", durable.partial_name(tmp_path / "checkpoint-1")
    for path, text in ((old, "old"), (partial, "new")):
        path.mkdir()
        (path / "file").write_text(text)
    settle_folder(partial, old)
    assert (old / "file").read_text() == "new" and find_damage(old) is None
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-1"]


def test_an_interrupted_deletion_leaves_nothing_under_the_name(folder, monkeypatch):
    doomed = folder / "sub"

    def interrupt(path, ignore_errors=False):
        if path.exists():
            raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("llata_fast.durable.shutil.rmtree", interrupt)
        delete_folder(doomed)
    assert not doomed.exists() and (folder / ".sub.deleted.partial").exists()
    durable.delete_partials(folder)
    assert {path.name for path in folder.iterdir()} == {"a.bin", "manifest.json"}


def test_the_manifest_is_json_that_people_can_read(folder):
    assert json.loads((folder / "manifest.json").read_text())["version"] == 1


def test_a_link_is_deleted_and_not_what_it_leads_to(tmp_path):
    """Somebody's run may hold links to your folders under the names of leftovers and of checkpoints."""
    mine, run = tmp_path / "mine", tmp_path / "run"
    (mine / "deep").mkdir(parents=True)
    (mine / "deep" / "file").write_text("kept")
    run.mkdir()
    for name in (".checkpoint-1.partial", "checkpoint-2", ".checkpoint-3.deleted.partial"):
        (run / name).symlink_to(mine)
    delete_partials(run)
    delete_folder(run / "checkpoint-2")
    delete_tree(run / "nothing")
    assert not list(run.iterdir())
    assert (mine / "deep" / "file").read_text() == "kept"


def test_manifests_of_older_runs_are_read(folder):
    """They do not contain their own checksum."""
    manifest = json.loads((folder / "manifest.json").read_text())
    del manifest["sha256"]
    (folder / "manifest.json").write_text(json.dumps(manifest))
    assert find_damage(folder) is None


@pytest.mark.parametrize("message", ["[enforce fail at inline_container.cc:664]", "basic_ios::clear: iostream error"])
def test_a_failed_torch_save_is_one_line(tmp_path, message):
    with pytest.raises(InputError, match="cannot write into"), durable.writing(tmp_path / ".x.partial"):
        raise RuntimeError(message)
