"""Word prototypes: the principal components of a language model's word embeddings.

The matrix E [vocabulary, D] is read with its D hidden dimensions as samples and the vocabulary as features. With X the
transpose of E, centred over the samples, and X = U S W^T its thin SVD, the V prototypes are the first V columns of the
scores U S, one row each: [V, D]. U and S come from the D x D Gram matrix X X^T = U S^2 U^T, so nothing of the size of
the vocabulary is factorised. Eigenvalues have an error of 1e-16 of the largest; the spectra of word embeddings fall by
three to four orders of magnitude, so the scores are far more accurate than fp32.

Letters: D hidden size, V prototypes.
"""

import hashlib
import logging
from collections.abc import Iterable
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ..cache import cache_folder
from ..durable import replacing
from ..errors import InputError
from .loading import BackboneWeights

_log = logging.getLogger(__name__)

# part of the cache key: increase it when the result changes
_ALGORITHM = "gram-eigh-1"

# 8192 rows at width 2048, scaled by width: a float64 block stays below 128 MiB
_BLOCK_ROWS = 8192
_BLOCK_ELEMENTS = 8192 * 2048


def principal_prototypes(word_embeddings: Tensor, num_prototypes: int) -> Tensor:
    """word_embeddings [vocabulary, D] -> prototypes [V, D] fp32, computed in float64; V = num_prototypes.

    The sign of a prototype makes its entry of largest magnitude positive (the first, if several are equal). Raises
    InputError unless 1 <= V <= D - 1, as centring removes one of D dimensions.
    """
    D = word_embeddings.shape[1]
    if not 1 <= num_prototypes <= D - 1:
        raise InputError(f"num_prototypes is {num_prototypes}, but embeddings of width {D} allow 1 to {D - 1}")
    gram = torch.zeros(D, D, dtype=torch.float64, device=word_embeddings.device)
    # in blocks, as a float64 copy of a large vocabulary would not fit beside the model
    for rows in _blocks(word_embeddings):
        rows = rows.to(torch.float64, copy=True)
        rows -= rows.mean(dim=1, keepdim=True)
        gram.addmm_(rows.T, rows)
    if not gram.isfinite().all():
        raise InputError("the word embeddings hold NaN or infinite values")

    eigenvalues, eigenvectors = torch.linalg.eigh(gram)  # ascending
    # beyond the rank (if the vocabulary is smaller than D) there is only rounding noise, which varies by machine
    noise = D * torch.finfo(torch.float64).eps * eigenvalues[-1]
    eigenvalues = eigenvalues.where(eigenvalues > noise, 0)
    components = eigenvectors.flip(1)[:, :num_prototypes].T  # [V, D]
    scores = components * eigenvalues.flip(0)[:num_prototypes, None].sqrt()
    peak = scores.gather(1, scores.abs().argmax(dim=1, keepdim=True))
    return torch.where(peak < 0, -scores, scores).to(torch.float32)


def backbone_prototypes(weights: BackboneWeights, num_prototypes: int) -> Tensor:
    """The prototypes [V, D] fp32 of a backbone: from its word embeddings, or the first V in its bundle.

    Principal components are ordered, so the first V of a bundle equal a computation for V. Raises InputError if it
    holds fewer.
    """
    if weights.word_embeddings is not None:
        return load_prototypes(weights.word_embeddings, num_prototypes)
    assert weights.prototypes is not None, "a bundle holds its prototypes instead"
    held = len(weights.prototypes)
    if not 1 <= num_prototypes <= held:
        raise InputError(f"num_prototypes is {num_prototypes}, but a bundle of {held} prototypes allows 1 to {held}")
    return weights.prototypes[:num_prototypes].to(torch.float32)


def load_prototypes(word_embeddings: Tensor, num_prototypes: int, *, cache_dir: str | Path | None = None) -> Tensor:
    """`principal_prototypes` with a disk cache: word_embeddings [vocabulary, D] -> [V, D] fp32 on the same device.

    The file is named after a hash of the embeddings' values, V and the algorithm, so it cannot become stale.
    `cache_dir` defaults to llata_fast/prototypes under $XDG_CACHE_HOME or ~/.cache. If the cache cannot be read or
    written, a warning says so and the prototypes are computed.
    """
    if cache_dir is None:
        cache_dir = cache_folder("prototypes")
    path = Path(cache_dir, f"{_content_key(word_embeddings, num_prototypes)}.safetensors")
    shape = (num_prototypes, word_embeddings.shape[1])
    try:
        prototypes = _read(path)
        if prototypes.shape != shape or not prototypes.isfinite().all():
            raise ValueError(f"expected finite values of shape {list(shape)}, got shape {list(prototypes.shape)}")
        return prototypes.to(word_embeddings.device)
    except FileNotFoundError:
        pass
    except (OSError, SafetensorError, KeyError, ValueError) as error:
        _log.warning("computing the prototypes again, as %s cannot be used: %s", path, error)

    prototypes = principal_prototypes(word_embeddings, num_prototypes)
    try:
        _write(path, prototypes.cpu())
    except (OSError, SafetensorError) as error:
        _log.warning("the prototypes could not be cached in %s: %s", path, error)
    return prototypes


def _blocks(word_embeddings: Tensor) -> Iterable[Tensor]:
    rows = min(_BLOCK_ROWS, max(1, _BLOCK_ELEMENTS // word_embeddings.shape[1]))
    return word_embeddings.detach().split(rows)


def _content_key(word_embeddings: Tensor, num_prototypes: int) -> str:
    digest = hashlib.sha256(f"{_ALGORITHM} {num_prototypes} {tuple(word_embeddings.shape)}".encode())
    for rows in _blocks(word_embeddings):
        # fp32 represents every bf16 and fp16 value, so the key does not depend on the stored precision
        digest.update(rows.to("cpu", torch.float32).contiguous().numpy().data)
    return digest.hexdigest()[:32]


def _read(path: Path) -> Tensor:
    if not path.is_file():
        raise FileNotFoundError
    with safe_open(path, framework="pt") as file:
        prototypes, metadata = file.get_tensor("prototypes"), file.metadata()
    if (metadata or {}).get("sha256") != _checksum(prototypes):
        raise ValueError("it was changed or damaged: its checksum differs")
    return prototypes


def _write(path: Path, prototypes: Tensor) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    prototypes = prototypes.contiguous()
    # several ranks may write at once
    with replacing(path) as partial:
        save_file({"prototypes": prototypes}, partial, {"sha256": _checksum(prototypes)})


def _checksum(prototypes: Tensor) -> str:
    return hashlib.sha256(prototypes.contiguous().numpy().data).hexdigest()
