"""Files that are whole or not there: written under another name, synced, renamed; and a manifest that vouches for them.

A folder's `manifest.json` is written last, over files that are on the disk by then. It names every file with its size
and SHA-256, so that what a kill, a full disk or a copy has left half-done is told from what is whole.
"""

import contextlib
import hashlib
import json
import os
import shutil
import threading
import time
from collections.abc import Container, Iterable, Iterator
from pathlib import Path

from .errors import InputError

MANIFEST = "manifest.json"
PARTIAL = ".partial"
"""How names end of what is still being written, or being deleted; they begin with a dot."""


def partial_name(path: str | Path) -> Path:
    """Where `path` is written before it takes its name, beside it."""
    path = Path(path)
    return path.with_name(f".{path.name}{PARTIAL}")


@contextlib.contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """A path to write instead of `path`, which it replaces at the end; whatever interrupts leaves `path` as it was."""
    path = Path(path)
    # several processes, and threads of one, may write one cache
    partial = partial_name(path.with_name(f"{path.name}.{os.getpid()}-{threading.get_ident()}"))
    try:
        yield partial
        sync(partial)
        partial.replace(path)
        sync(path.parent)
    except OSError as error:
        # a full disk does not say what was being written
        error.filename = error.filename or str(path)
        raise
    finally:
        partial.unlink(missing_ok=True)


@contextlib.contextmanager
def writing(partial: Path) -> Iterator[None]:
    """Turn what a full disk, a limit or a folder that is gone does to writing into an InputError; `partial` goes."""
    try:
        yield
    except OSError as error:
        delete_tree(partial)
        where = error.filename or partial.parent
        raise InputError(f"cannot write {where}: {error.strerror or error}") from error
    except Exception as error:
        # safetensors and torch have errors of their own for these
        if type(error).__name__ != "SafetensorError" and "inline_container" not in str(error):
            raise
        delete_tree(partial)
        raise InputError(f"cannot write into {partial.parent}: {error}") from error


def write_text(path: str | Path, text: str):
    """Write a file whole or not at all."""
    with replacing(path) as partial:
        partial.write_text(text, encoding="utf-8")


def sync(path: str | Path):
    """Flush a file, or a folder's entries, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_manifest(folder: str | Path, names: Iterable[str] | None = None, written: float | None = None):
    """Write the manifest of files in `folder`, by default all: they are synced and hashed first.

    `written` is when, in seconds since 1970; default now.
    """
    folder = Path(folder)
    if names is None:
        paths = (path for path in sorted(folder.rglob("*")) if path.is_file())
        names = [str(path.relative_to(folder)) for path in paths if path.name != MANIFEST and not _is_partial(path)]
    entries = {}
    for name in names:
        path = folder / name
        sync(path)
        entries[name] = {"bytes": path.stat().st_size, "sha256": _digest(path)}
    for parent in {(folder / name).parent for name in entries}:
        sync(parent)
    manifest = {"version": 1, "written": time.time() if written is None else written, "files": entries}
    write_text(folder / MANIFEST, json.dumps(manifest, indent=1) + "\n")


def read_manifest(folder: str | Path) -> dict | None:
    """{"version", "written" (seconds since 1970), "files": {name: {"bytes", "sha256"}}}; None without a valid one."""
    try:
        manifest = json.loads(Path(folder, MANIFEST).read_text(encoding="utf-8"))
        files = {
            str(name): {"bytes": int(entry["bytes"]), "sha256": str(entry["sha256"])}
            for name, entry in manifest["files"].items()
        }
        return {"version": int(manifest["version"]), "written": float(manifest["written"]), "files": files}
    except (OSError, ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError):
        return None


def find_damage(folder: str | Path, names: Container[str] | None = None) -> str | None:
    """What is wrong with `folder`, or `names` in it, by its manifest, as the end of a sentence; None: it is whole."""
    manifest = read_manifest(folder)
    if manifest is None:
        there = Path(folder, MANIFEST).exists()
        return f"its {MANIFEST} is damaged" if there else f"it has no {MANIFEST}: its writing was cut short"
    for name, entry in manifest["files"].items():
        if names is not None and name not in names:
            continue
        path = Path(folder, name)
        try:
            if not path.is_file():
                return f"{name} is missing"
            if path.stat().st_size != entry["bytes"]:
                return f"{name} has {path.stat().st_size} bytes, not {entry['bytes']}"
            if _digest(path) != entry["sha256"]:
                return f"{name} is not what was written: its checksum differs"
        except OSError as error:
            return f"{name} cannot be read: {error.strerror}"
    return None


def settle_folder(partial: Path, folder: Path):
    """Rename a complete folder to its final name, replacing one of that name."""
    write_manifest(partial)
    if folder.exists():
        delete_folder(folder)
    partial.replace(folder)
    sync(folder.parent)


def delete_tree(path: Path):
    """Delete a folder and all that is in it; a link to one goes alone. What is not there is no error."""
    if path.is_symlink():
        path.unlink(missing_ok=True)
    else:
        shutil.rmtree(path, ignore_errors=True)


def delete_folder(folder: Path):
    """Delete a folder; an interruption leaves nothing under its name."""
    doomed = partial_name(folder.with_name(f"{folder.name}.deleted"))
    delete_tree(doomed)
    folder.replace(doomed)
    delete_tree(doomed)


def delete_partials(folder: Path):
    """Delete leftovers of interrupted writes and deletions in `folder`."""
    for path in folder.glob(f".*{PARTIAL}"):
        if path.is_dir():
            delete_tree(path)
        else:
            path.unlink(missing_ok=True)


def _is_partial(path: Path) -> bool:
    return path.name.startswith(".") and path.name.endswith(PARTIAL)


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
