"""Prototypes equal scikit-learn's PCA scores in float64, do not vary between runs, and are cached on disk."""

import logging
import threading

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.utils._python_dispatch import TorchDispatchMode

from llata_fast.backbone import prototypes
from llata_fast.backbone.prototypes import load_prototypes, principal_prototypes
from llata_fast.errors import InputError


def embeddings(vocabulary=3000, D=48, dtype=torch.float32):
    """Word embeddings with a common offset and a spectrum over three orders of magnitude, like real ones."""
    factors = torch.randn(D, D, dtype=torch.float64) * torch.logspace(0, -3, D, dtype=torch.float64)
    words = torch.randn(vocabulary, D, dtype=torch.float64) @ factors.T + 0.5 * torch.randn(D, dtype=torch.float64)
    return words.to(dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize(
    "vocabulary, num_prototypes", [(3000, 1), (3000, 20), (3000, 47), (20_001, 47)], ids=["1", "20", "D-1", "blocks"]
)
def test_equals_pca(vocabulary, num_prototypes, dtype):
    decomposition = pytest.importorskip("sklearn.decomposition")
    words = embeddings(vocabulary, dtype=dtype)
    pca = decomposition.PCA(num_prototypes, svd_solver="full")
    expected = pca.fit_transform(words.double().numpy().T).T
    actual = principal_prototypes(words, num_prototypes)
    assert actual.shape == (num_prototypes, 48) and actual.dtype == torch.float32
    actual = actual.numpy()
    actual = actual * np.sign((actual * expected).sum(1, keepdims=True))
    error = np.abs(actual - expected).max(1) / np.abs(expected).max(1)  # per component
    assert error.max() <= 1e-4


def test_signs_are_fixed():
    words = embeddings()
    result = principal_prototypes(words, 47)
    peaks = result.gather(1, result.abs().argmax(1, keepdim=True))
    assert (peaks > 0).all()
    # the order of the words changes the rounding of every sum, but no prototype
    shuffled = principal_prototypes(words[torch.randperm(len(words))], 47)
    torch.testing.assert_close(shuffled, result, rtol=1e-5, atol=1e-5 * result.abs().max().item())


def test_components_beyond_the_rank_are_zero():
    result = principal_prototypes(embeddings(vocabulary=10), 47)
    assert (result[:10].abs().amax(1) > 0).all() and not result[10:].any()


def test_no_float64_copy_of_the_vocabulary():
    words = embeddings(40_000, 16)

    class Largest(TorchDispatchMode):
        numel = 0

        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            result = function(*args, **(kwargs or {}))
            for tensor in result if isinstance(result, tuple | list) else [result]:
                if isinstance(tensor, torch.Tensor) and tensor.dtype == torch.float64:
                    self.numel = max(self.numel, tensor.numel())
            return result

    with Largest() as largest:
        principal_prototypes(words, 15)
    assert 0 < largest.numel < words.numel() / 4


@pytest.mark.parametrize("num_prototypes", [-1, 0, 48])
def test_impossible_counts(num_prototypes):
    with pytest.raises(InputError, match=rf"num_prototypes is {num_prototypes}.*width 48.*1 to 47"):
        principal_prototypes(embeddings(100), num_prototypes)


def test_broken_embeddings():
    words = embeddings(100)
    words[3, 4] = torch.nan
    with pytest.raises(InputError, match="NaN"):
        principal_prototypes(words, 5)


@pytest.fixture
def computed(monkeypatch):
    """A list with one entry, the number of prototypes, for every time that prototypes are computed."""
    counts = []

    def compute(words, num_prototypes):
        counts.append(num_prototypes)
        return principal_prototypes(words, num_prototypes)

    monkeypatch.setattr(prototypes, "principal_prototypes", compute)
    return counts


def test_cache_is_keyed_by_content(tmp_path, computed):
    words = embeddings(100)
    first = load_prototypes(words, 5, cache_dir=tmp_path)
    assert torch.equal(first, principal_prototypes(words, 5))
    assert torch.equal(load_prototypes(words.clone(), 5, cache_dir=tmp_path), first)
    assert computed == [5]
    load_prototypes(words, 6, cache_dir=tmp_path)
    words[-1, -1] += 1e-6
    load_prototypes(words, 5, cache_dir=tmp_path)
    assert computed == [5, 6, 5]
    assert len(list(tmp_path.iterdir())) == 3


def test_cache_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    load_prototypes(embeddings(100), 5)
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    load_prototypes(embeddings(100), 5)
    for folder in ("xdg", "home/.cache"):
        (file,) = (tmp_path / folder / "llata_fast" / "prototypes").iterdir()
        assert file.suffix == ".safetensors"


def truncate(file):
    file.write_bytes(file.read_bytes()[:-8])


def poison(file):
    save_file({"prototypes": load_file(file)["prototypes"] * torch.nan}, file)


def reshape(file):
    save_file({"prototypes": load_file(file)["prototypes"][:, :-1].contiguous()}, file)


def rename(file):
    save_file({"components": load_file(file)["prototypes"]}, file)


@pytest.mark.parametrize("damage", [truncate, poison, reshape, rename])
def test_damaged_cache_is_replaced(damage, tmp_path, computed, caplog):
    words = embeddings(100)
    expected = load_prototypes(words, 5, cache_dir=tmp_path)
    (file,) = tmp_path.iterdir()
    damage(file)
    with caplog.at_level(logging.WARNING):
        assert torch.equal(load_prototypes(words, 5, cache_dir=tmp_path), expected)
    assert file.name in caplog.text
    assert torch.equal(load_prototypes(words, 5, cache_dir=tmp_path), expected)
    assert computed == [5, 5]


def test_unusable_cache_folder_is_a_warning(tmp_path, caplog):
    (tmp_path / "file").touch()
    with caplog.at_level(logging.WARNING):
        result = load_prototypes(embeddings(100), 5, cache_dir=tmp_path / "file" / "below")
    assert result.shape == (5, 48) and "could not be cached" in caplog.text


def test_ranks_may_race(tmp_path, monkeypatch, caplog):
    """All write before any renames: if they shared a temporary file, only the first rename would succeed."""
    words = embeddings(100)
    everyone = threading.Barrier(4)

    def save_together(*args):
        save_file(*args)
        everyone.wait(timeout=30)

    monkeypatch.setattr(prototypes, "save_file", save_together)
    results = []
    ranks = [
        threading.Thread(target=lambda: results.append(load_prototypes(words, 5, cache_dir=tmp_path))) for _ in range(4)
    ]
    for rank in ranks:
        rank.start()
    for rank in ranks:
        rank.join()
    assert len(results) == 4 and all(torch.equal(result, results[0]) for result in results)
    assert not caplog.records
    (file,) = tmp_path.iterdir()
    assert torch.equal(load_file(file)["prototypes"], results[0])
