"""Corpora in Parquet, opened like those in Arrow: written once as a memory-mapped copy in the cache.

Parquet keeps its values encoded and compressed, in pages: to read one window of a series its row group has to be
decoded. The copy costs the size of the values on disk, once, and nothing of it enters memory.
"""

import hashlib
import logging
from pathlib import Path

from filelock import FileLock

from ..cache import cache_folder
from ..errors import InputError
from .corpora import Corpus, open_corpus
from .corpus_builder import build_corpus

logger = logging.getLogger(__name__)


def open_any_corpus(path: str | Path) -> Corpus:
    """The corpus in a folder of Arrow files, or in a Parquet file or a folder of them.

    Raises InputError as `open_corpus` does, and for Parquet that `build_corpus` cannot read.
    """
    source = Path(path).expanduser()
    files = _parquet_files(source)
    if not files:
        return open_corpus(path)
    copy = cache_folder("corpora") / _key(files)
    try:
        copy.parent.mkdir(parents=True, exist_ok=True)
        # one rank writes it, the others wait
        with FileLock(f"{copy}.lock"):
            if not copy.exists():
                logger.warning("%s is Parquet: a copy that can be mapped is written to %s", path, copy)
                build_corpus([source], copy, multivariate=True, progress=True)
    except OSError as error:
        raise InputError(f"{path} is Parquet, and its copy {copy} cannot be written: {error.strerror}") from None
    corpus = open_corpus(copy)
    # it is known by the name of what it was made from
    corpus.name = str(path)
    return corpus


def _parquet_files(source: Path) -> list[Path]:
    if source.suffix == ".parquet" and source.is_file():
        return [source]
    if not source.is_dir() or any((source / name).exists() for name in ("state.json", "dataset_dict.json")):
        return []
    return sorted(source.rglob("*.parquet"))


def _key(files: list[Path]) -> str:
    """Names a copy after its files' paths, sizes and times of change: another content has another copy."""
    digest = hashlib.sha256()
    for file in files:
        status = file.stat()
        digest.update(f"{file.resolve()} {status.st_size} {status.st_mtime_ns}\n".encode())
    return digest.hexdigest()[:32]
