"""Open Parquet corpora like Arrow ones, by writing a memory-mapped copy into the cache once.

Parquet stores its values encoded and compressed in pages, so reading one window means decoding a row group. The copy
takes the disk space of the values, once, and is never loaded into memory.
"""

import hashlib
import logging
from pathlib import Path

from filelock import FileLock

from ..cache import cache_folder
from ..errors import InputError
from .corpora import Corpus, open_corpus
from .corpus_builder import build_corpus

_log = logging.getLogger(__name__)


def open_any_corpus(path: str | Path) -> Corpus:
    """Open the corpus in a folder of Arrow files, in a Parquet file, or in a folder of Parquet files.

    Raises InputError as `open_corpus` does, and for Parquet files that `build_corpus` cannot read.
    """
    source = Path(path).expanduser()
    files = _parquet_files(source)
    if not files:
        return open_corpus(path)
    copy = cache_folder("corpora") / _key(files)
    try:
        copy.parent.mkdir(parents=True, exist_ok=True)
        # one rank writes the copy, the others wait
        with FileLock(f"{copy}.lock"):
            if not copy.exists():
                _log.warning("%s is Parquet: writing a copy that can be memory-mapped to %s", path, copy)
                build_corpus([source], copy, multivariate=True, progress=True)
    except OSError as error:
        raise InputError(f"{path} is Parquet, and its copy {copy} cannot be written: {error.strerror}") from None
    corpus = open_corpus(copy)
    # a corpus is named after its source, not after the copy
    corpus.name = str(path)
    return corpus


def _parquet_files(source: Path) -> list[Path]:
    if source.suffix == ".parquet" and source.is_file():
        return [source]
    if not source.is_dir() or any((source / name).exists() for name in ("state.json", "dataset_dict.json")):
        return []
    return sorted(source.rglob("*.parquet"))


def _key(files: list[Path]) -> str:
    """A copy's name, from its files' paths, sizes and modification times: new content gets a new copy."""
    digest = hashlib.sha256()
    for file in files:
        status = file.stat()
        digest.update(f"{file.resolve()} {status.st_size} {status.st_mtime_ns}\n".encode())
    return digest.hexdigest()[:32]
