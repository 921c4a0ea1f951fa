"""Windows from corpora, as the model receives them."""

import numpy as np
import pytest
import torch

from llata_fast.data.corpora import open_corpus
from llata_fast.data.corpus_windows import JoinedWindows, LastWindows, MixtureWindows
from llata_fast.data.corpus_writer import CorpusLayout, CorpusSeries, new_corpus, write_shards
from llata_fast.data.mixture import Mixture, MixtureEntry, WindowSizes

SIZES = WindowSizes(context=16, horizon=4, shortest_context=3)


def write(folder, lengths, scale=1.0, level=0.0, freq="h", channels=1):
    rng = np.random.default_rng(7)
    layout = CorpusLayout(multivariate=channels > 1)
    with new_corpus(folder, layout) as partial:
        series = [
            CorpusSeries(
                f"s{n}", np.datetime64("2020-01-01"), freq, level + scale * rng.normal(size=(channels, length))
            )
            for n, length in enumerate(lengths)
        ]
        write_shards(partial, "data", series, layout)
    return str(folder)


def mixture(path, **options):
    return Mixture([MixtureEntry(path)], SIZES, seed=3, **options)


def assert_same(one, other):
    assert one.keys() == other.keys()
    for name in one:
        torch.testing.assert_close(one[name], other[name], rtol=0, atol=0, equal_nan=True)


def test_batches_hold_the_same_windows_in_any_access_order(tmp_path):
    windows = MixtureWindows(mixture(write(tmp_path / "a", [60, 90])), 8, 5)
    assert len(windows) == 40
    whole = windows.__getitems__(range(40))
    for pieces in ([range(0, 40)], [range(0, 3), range(3, 19), range(19, 40)], [[index] for index in range(40)]):
        parts = [windows.__getitems__(piece) for piece in pieces]
        assert_same({name: torch.cat([part[name] for part in parts]) for name in whole}, whole)
    mixed = [39, 0, 8, 1, 39, 7]
    assert_same(windows.__getitems__(mixed), {name: values[mixed] for name, values in whole.items()})
    assert_same(windows[37], {name: values[37] for name, values in whole.items()})
    # the number of batches does not change any of them
    longer = MixtureWindows(windows.mixture, 8, 9)
    assert_same(longer.__getitems__(range(40)), whole)


def test_a_window_is_in_units_of_its_own_past(tmp_path):
    small = MixtureWindows(mixture(write(tmp_path / "a", [90] * 3)), 64, 1).__getitems__(range(64))
    large = MixtureWindows(mixture(write(tmp_path / "b", [90] * 3, scale=1000, level=5000)), 64, 1)
    for name, values in large.__getitems__(range(64)).items():
        torch.testing.assert_close(values, small[name], rtol=1e-3, atol=1e-3, equal_nan=True)
    past, observed = small["past_values"], small["past_observed_mask"]
    assert (past[~observed] == 0).all()
    mean = (past * observed).sum(1) / observed.sum(1)
    assert mean.abs().max() < 1e-5
    deviation = ((past.square() * observed).sum(1) / observed.sum(1)).sqrt()
    assert deviation.sub(1).abs().max() < 1e-5


def test_a_constant_past_teaches_nothing(tmp_path):
    windows = MixtureWindows(mixture(write(tmp_path / "a", [90], scale=0.0, level=3.0)), 8, 1).__getitems__(range(8))
    assert (windows["past_values"] == 0).all() and windows["future_values"].isnan().all()


def test_last_windows_end_with_their_series(tmp_path):
    corpus = open_corpus(write(tmp_path / "a", [90, 6, 3, 1, 40]))
    windows = LastWindows(corpus, SIZES, 100)
    # of 6 steps one is held out, of 3 steps none
    assert len(windows) == 3
    past, future = windows.raw(range(3))
    for window, row, held in zip(range(3), (0, 1, 4), (4, 1, 4), strict=True):
        length = corpus.lengths[row]
        values = corpus.gather(np.array([row]), np.array([length - held - 16]), 16 + held)[0]
        np.testing.assert_array_equal(past[window, :, 0], values[:16])
        np.testing.assert_array_equal(future[window, :held, 0], values[16:])
        assert np.isnan(future[window, held:]).all()
    assert windows.seasons.tolist() == [24, 24, 24]
    assert len(LastWindows(corpus, SIZES, 2)) == 2


def test_last_windows_of_several_channels(tmp_path):
    windows = LastWindows(open_corpus(write(tmp_path / "a", [40, 50], channels=3)), SIZES, 10, joint=True)
    assert windows.raw([0, 1]).past.shape == (2, 16, 3)
    assert LastWindows(open_corpus(str(tmp_path / "a")), SIZES, 10).raw([0, 1]).past.shape == (2, 16, 1)


def test_joined_sets_keep_their_order(tmp_path):
    sets = [
        LastWindows(open_corpus(write(tmp_path / name, [40] * count)), SIZES, 9) for name, count in (("a", 3), ("b", 2))
    ]
    joined = JoinedWindows(sets)
    assert len(joined) == 5
    whole = joined.__getitems__(range(5))
    parts = [one.__getitems__(range(len(one))) for one in sets]
    assert_same(whole, {name: torch.cat([part[name] for part in parts]) for name in whole})
    # as when ranks that have too few windows get some twice
    for some in ([2, 3], [4, 0, 3, 1, 0, 4]):
        assert_same(joined.__getitems__(some), {name: values[some] for name, values in whole.items()})


@pytest.mark.parametrize("joint", [True, False])
def test_a_mixture_of_channels(tmp_path, joint):
    windows = MixtureWindows(mixture(write(tmp_path / "a", [60], channels=3), joint=joint), 4, 2)
    assert windows.__getitems__(range(4))["past_values"].shape == (4, 16, 3 if joint else 1)
