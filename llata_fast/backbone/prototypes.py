"""Word prototypes: the principal components of a language model's word embeddings.

The matrix E [vocabulary, D] is read with its D hidden dimensions as samples and the vocabulary as features. With X the
transpose of E, centred over the samples, and X = U S W^T its thin SVD, the V prototypes are the first V columns of the
scores U S, one row each: [V, D]. U and S come from the D x D Gram matrix X X^T = U S^2 U^T, so that nothing of size
vocabulary is factorised. Eigenvalues carry an error of 1e-16 of the largest; as word embeddings' spectra fall by
three to four orders of magnitude, the scores are good to far better than fp32.

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

logger = logging.getLogger(__name__)

# part of the cache's key: raise it when the result changes
_ALGORITHM = "gram-eigh-1"

# 8192 rows of width 2048, wider ones in proportion: a block in float64 stays below 128 MiB
_BLOCK_ROWS = 8192
_BLOCK_ELEMENTS = 8192 * 2048


def principal_prototypes(word_embeddings: Tensor, num_prototypes: int) -> Tensor:
    """word_embeddings [vocabulary, D] -> prototypes [V, D] fp32, in float64 throughout; V = num_prototypes.

    Each prototype's entry of largest magnitude is positive (the first one of equals). Raises InputError unless
    1 <= V <= D - 1: centring takes one of D dimensions away.
    """
    D = word_embeddings.shape[1]
    if not 1 <= num_prototypes <= D - 1:
        raise InputError(f"num_prototypes is {num_prototypes}, embeddings of width {D} allow 1 to {D - 1}")
    gram = torch.zeros(D, D, dtype=torch.float64, device=word_embeddings.device)
    # in blocks: a float64 copy of a large vocabulary would not fit beside the model
    for rows in _blocks(word_embeddings):
        rows = rows.to(torch.float64, copy=True)
        rows -= rows.mean(dim=1, keepdim=True)
        gram.addmm_(rows.T, rows)
    if not gram.isfinite().all():
        raise InputError("the word embeddings hold NaN or infinite values")

    eigenvalues, eigenvectors = torch.linalg.eigh(gram)  # ascending
    # beyond the rank (a vocabulary smaller than D) there is only rounding noise, which differs between machines
    noise = D * torch.finfo(torch.float64).eps * eigenvalues[-1]
    eigenvalues = eigenvalues.where(eigenvalues > noise, 0)
    components = eigenvectors.flip(1)[:, :num_prototypes].T  # [V, D]
    scores = components * eigenvalues.flip(0)[:num_prototypes, None].sqrt()
    peak = scores.gather(1, scores.abs().argmax(dim=1, keepdim=True))
    return torch.where(peak < 0, -scores, scores).to(torch.float32)


def backbone_prototypes(weights: BackboneWeights, num_prototypes: int) -> Tensor:
    """Prototypes [V, D] fp32 of a backbone: of its word embeddings, or the first V that its bundle holds.

    They are principal components in order, so the first ones are what their own computation gives. Raises InputError
    where there are fewer.
    """
    if weights.word_embeddings is not None:
        return load_prototypes(weights.word_embeddings, num_prototypes)
    assert weights.prototypes is not None, "a bundle holds its prototypes instead"
    held = len(weights.prototypes)
    if not 1 <= num_prototypes <= held:
        raise InputError(f"num_prototypes is {num_prototypes}, a bundle of {held} prototypes allows 1 to {held}")
    return weights.prototypes[:num_prototypes].to(torch.float32)


def load_prototypes(word_embeddings: Tensor, num_prototypes: int, *, cache_dir: str | Path | None = None) -> Tensor:
    """`principal_prototypes`, kept on disk: word_embeddings [vocabulary, D] -> [V, D] fp32 on the same device.

    The file is named after a hash of the embeddings' values, V and the algorithm, so it can't go stale. `cache_dir`
    defaults to llata_fast/prototypes under $XDG_CACHE_HOME or ~/.cache. A cache that can't be read or written costs
    a warning and the computation, never the run.
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
        logger.warning("prototypes are computed again, %s cannot be used: %s", path, error)

    prototypes = principal_prototypes(word_embeddings, num_prototypes)
    try:
        _write(path, prototypes.cpu())
    except (OSError, SafetensorError) as error:
        logger.warning("prototypes could not be kept in %s: %s", path, error)
    return prototypes


def _blocks(word_embeddings: Tensor) -> Iterable[Tensor]:
    rows = min(_BLOCK_ROWS, max(1, _BLOCK_ELEMENTS // word_embeddings.shape[1]))
    return word_embeddings.detach().split(rows)


def _content_key(word_embeddings: Tensor, num_prototypes: int) -> str:
    digest = hashlib.sha256(f"{_ALGORITHM} {num_prototypes} {tuple(word_embeddings.shape)}".encode())
    for rows in _blocks(word_embeddings):
        # fp32 holds every bf16 and fp16 value, so the key does not depend on the precision of storage
        digest.update(rows.to("cpu", torch.float32).contiguous().numpy().data)
    return digest.hexdigest()[:32]


def _read(path: Path) -> Tensor:
    if not path.is_file():
        raise FileNotFoundError
    with safe_open(path, framework="pt") as file:
        prototypes, metadata = file.get_tensor("prototypes"), file.metadata()
    if (metadata or {}).get("sha256") != _checksum(prototypes):
        raise ValueError("it is not what was written: its checksum differs")
    return prototypes


def _write(path: Path, prototypes: Tensor) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    prototypes = prototypes.contiguous()
    # several ranks may write at once
    with replacing(path) as partial:
        save_file({"prototypes": prototypes}, partial, {"sha256": _checksum(prototypes)})


def _checksum(prototypes: Tensor) -> str:
    return hashlib.sha256(prototypes.contiguous().numpy().data).hexdigest()
