"""Find a named dataset's file: in a data folder, the cache, an installed package, and finally by a download."""

import hashlib
import importlib.util
import os
import urllib.request
from pathlib import Path

from tqdm.auto import tqdm

from ..cache import cache_folder
from ..durable import replacing
from ..errors import InputError
from .registry import DatasetSpec, find_dataset

DOWNLOAD_TIMEOUT = 15
"""Seconds without a response after which a download is given up."""


def cache_dir() -> Path:
    """Folder of downloaded files: `$XDG_CACHE_HOME/llata_fast/data`, default below `~/.cache`."""
    return cache_folder("data")


def settled_dataset(dataset: str) -> str:
    """The dataset by a name that is valid in any working directory: the registry's, or an absolute path."""
    path = Path(dataset).expanduser()
    return str(path.resolve()) if find_dataset(dataset) is None and path.exists() else dataset


def locate(spec: DatasetSpec, data_dir: str | os.PathLike | None = None) -> Path:
    """Path of the file of `spec`: searched in `data_dir`, `$LLATA_DATA`, the cache and the package that contains it,
    and then downloaded into the cache.

    A folder may hold the file in the usual layout (`ETT-small/ETTh1.csv`) or directly (`ETTh1.csv`). Raises InputError,
    with the file's name and source, if there is none.
    """
    if data_dir is not None and not Path(data_dir).expanduser().is_dir():
        raise InputError(f"data_dir {data_dir} is not a folder")
    folders = [Path(folder).expanduser() for folder in (data_dir, os.environ.get("LLATA_DATA"), cache_dir()) if folder]
    candidates = [folder / name for folder in folders for name in (spec.file, Path(spec.file).name)]
    if spec.package and (package := importlib.util.find_spec(spec.package)) and package.submodule_search_locations:
        candidates.append(Path(package.submodule_search_locations[0]) / spec.file)
    for path in candidates:
        if path.is_file():
            return path

    reason = ""
    if spec.url and spec.sha256:
        path = cache_dir() / spec.file
        try:
            _download(spec.url, spec.sha256, path)
            return path
        except (OSError, _ChecksumError) as error:
            reason = f"; downloading {spec.url} failed ({error})"
    raise InputError(
        f"{spec.name}: no file {spec.file} in {', '.join(map(str, folders))}{reason}; get it from {spec.source} "
        "and give its folder with --data_dir or LLATA_DATA"
    )


class _ChecksumError(Exception):
    pass


def _download(url: str, sha256: str, path: Path) -> None:
    """Download `url` to `path` atomically, and verify its checksum. Raises OSError or _ChecksumError."""
    # torch.hub.download_url_to_file does the same, but has no timeout
    path.parent.mkdir(parents=True, exist_ok=True)
    digest = hashlib.sha256()
    with replacing(path) as partial:
        with urllib.request.urlopen(url, timeout=DOWNLOAD_TIMEOUT) as response, partial.open("wb") as file:
            total = int(response.headers.get("Content-Length") or 0) or None
            with tqdm(total=total, unit="B", unit_scale=True, desc=path.name) as progress:
                while chunk := response.read(1 << 20):
                    file.write(chunk)
                    digest.update(chunk)
                    progress.update(len(chunk))
        if digest.hexdigest() != sha256:
            raise _ChecksumError(f"its SHA-256 is {digest.hexdigest()}, expected {sha256}")
