"""Atomic files (written under a temporary name, synced, renamed) and a manifest that vouches for a folder.

A folder's `manifest.json` is written last, once its files are on disk. It lists every file's size and SHA-256, so a
folder that a kill, a full disk or a copy left incomplete can be told from a complete one, and contains its own SHA-256.
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
"""Suffix of a file or folder that is being written or deleted; its name also starts with a dot."""

# what the messages of a failed torch.save contain
_TORCH_WRITES = ("inline_container", "iostream error")


def partial_name(path: str | Path) -> Path:
    """The temporary name beside `path` under which it is written."""
    path = Path(path)
    return path.with_name(f".{path.name}{PARTIAL}")


@contextlib.contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """A temporary path that replaces `path` on success; an interruption leaves `path` unchanged."""
    path = Path(path)
    # several processes and threads may write the same cache file
    partial = partial_name(path.with_name(f"{path.name}.{os.getpid()}-{threading.get_ident()}"))
    try:
        yield partial
        sync(partial)
        partial.replace(path)
        sync(path.parent)
    except OSError as error:
        # a full-disk error does not name the file
        error.filename = error.filename or str(path)
        raise
    finally:
        partial.unlink(missing_ok=True)


@contextlib.contextmanager
def writing(partial: Path) -> Iterator[None]:
    """Turn a failed write (full disk, quota, missing folder) into an InputError, and delete `partial`."""
    try:
        yield
    except OSError as error:
        delete_tree(partial)
        where = error.filename or partial.parent
        raise InputError(f"cannot write {where}: {error.strerror or error}") from error
    except Exception as error:
        # safetensors and torch raise their own exceptions for a failed write
        known = type(error).__name__ == "SafetensorError" or any(mark in str(error) for mark in _TORCH_WRITES)
        if not known:
            raise
        delete_tree(partial)
        raise InputError(f"cannot write into {partial.parent}: {error}") from error


def write_text(path: str | Path, text: str):
    """Write a file completely or not at all."""
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
    """Sync and hash the files `names` in `folder` (default: all), then write their manifest.

    `written` is the time in seconds since 1970, by default now.
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
    manifest = {"version": 1, "written": float(time.time() if written is None else written), "files": entries}
    write_text(folder / MANIFEST, json.dumps(manifest | {"sha256": _digest_of(manifest)}, indent=1) + "\n")


def read_manifest(folder: str | Path) -> dict | None:
    """{"version", "written" (seconds since 1970), "files": {name: {"bytes", "sha256"}}}; None if absent or damaged."""
    try:
        manifest = json.loads(Path(folder, MANIFEST).read_text(encoding="utf-8"))
        files = {
            str(name): {"bytes": int(entry["bytes"]), "sha256": str(entry["sha256"])}
            for name, entry in manifest["files"].items()
        }
        content = {"version": int(manifest["version"]), "written": float(manifest["written"]), "files": files}
        # manifests of older runs do not vouch for themselves
        return content if manifest.get("sha256", _digest_of(content)) == _digest_of(content) else None
    except (OSError, ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError):
        return None


def _digest_of(manifest: dict) -> str:
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()


def find_damage(folder: str | Path, names: Container[str] | None = None) -> str | None:
    """Check `folder` (or only `names`) against its manifest; returns the end of an error message, None if intact."""
    manifest = read_manifest(folder)
    if manifest is None:
        there = Path(folder, MANIFEST).exists()
        return f"its {MANIFEST} is damaged" if there else f"it has no {MANIFEST}: it was not written to the end"
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
                return f"{name} was changed or damaged: its checksum differs"
        except OSError as error:
            return f"{name} cannot be read: {error.strerror}"
    return None


def settle_folder(partial: Path, folder: Path):
    """Rename a complete folder to its final name, replacing any folder there."""
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
    """Delete a folder; if interrupted, nothing is left under its name."""
    doomed = partial_name(folder.with_name(f"{folder.name}.deleted"))
    delete_tree(doomed)
    folder.replace(doomed)
    delete_tree(doomed)


def delete_partials(folder: Path):
    """Delete what interrupted writes and deletions left in `folder`."""
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
