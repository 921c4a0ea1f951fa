"""Batches of a mixture: their contents, which depend only on the seed, the batch's number and its size."""

import numpy as np
import pytest
import yaml

from llata_fast.data.corpora import open_corpus
from llata_fast.data.corpus_writer import CorpusLayout, CorpusSeries, new_corpus, write_shards
from llata_fast.data.mixture import Mixture, MixtureEntry, WindowSizes, read_mixture, training_lengths
from llata_fast.errors import InputError

SIZES = WindowSizes(context=16, horizon=4, shortest_context=3)


def write(folder, shapes, base=0.0):
    """Series whose values tell their position: base + 1000 * row + step / 4."""
    row, series = 0, []
    for number, (channels, steps) in enumerate(shapes):
        values = np.stack([base + 1000 * (row + c) + np.arange(steps) / 4 for c in range(channels)])
        series.append(CorpusSeries(f"s{number}", np.datetime64("2020-01-01"), "h", values.astype(np.float32)))
        row += channels
    layout = CorpusLayout(multivariate=any(channels > 1 for channels, _ in shapes))
    with new_corpus(folder, layout) as partial:
        write_shards(partial, "data", series, layout)
    return str(folder)


@pytest.fixture
def two_corpora(tmp_path):
    return [
        MixtureEntry(write(tmp_path / "a", [(1, 60), (1, 200), (1, 9)]), weight=1),
        MixtureEntry(write(tmp_path / "b", [(1, 40)] * 5, base=100_000), weight=3, sample="uniform"),
    ]


def located(values):
    """(row, step) of every observed value."""
    observed = values[np.isfinite(values)]
    return np.divmod(observed, 1000)[0], (observed % 1000) * 4


def test_any_number_of_ranks_sees_the_same_batches(two_corpora):
    whole = Mixture(two_corpora, SIZES, seed=5)
    for number in (0, 1, 17):
        past, future = whole.batch(number, 12)
        for ranks in (1, 2, 3, 4):
            # a rank that starts here has not seen the batches before
            parts = [
                Mixture(two_corpora, SIZES, seed=5).batch(number, 12, slice(r * 12 // ranks, (r + 1) * 12 // ranks))
                for r in range(ranks)
            ]
            np.testing.assert_array_equal(np.concatenate([part.past for part in parts]), past)
            np.testing.assert_array_equal(np.concatenate([part.future for part in parts]), future)


def test_batches_differ_by_number_seed_and_nothing_else(two_corpora):
    one = Mixture(two_corpora, SIZES, seed=5)
    first, second = one.batch(0, 32).past, one.batch(1, 32).past
    other = Mixture(two_corpora, SIZES, seed=6).batch(0, 32).past
    assert not np.array_equal(first, second, equal_nan=True)
    assert not np.array_equal(first, other, equal_nan=True)
    np.testing.assert_array_equal(one.batch(0, 32).past, first)


def test_windows_are_slices_of_one_series(two_corpora):
    past, future = Mixture(two_corpora, SIZES, seed=0).batch(0, 400)
    assert past.shape == (400, 16, 1) and future.shape == (400, 4, 1)
    for lookback, horizon in zip(past, future, strict=True):
        rows, steps = located(np.concatenate((lookback, horizon)))
        assert len(set(rows)) == 1
        assert (np.diff(steps) == 1).all()
        # values are missing only at both ends, never in between
        assert np.isfinite(lookback[-1]) and np.isfinite(horizon[0])


def test_validation_steps_are_never_trained_on(two_corpora):
    mixture = Mixture(two_corpora, SIZES, seed=0)
    for number in range(20):
        rows, steps = located(np.concatenate(mixture.batch(number, 64), axis=1))
        for entry, base in zip(mixture.corpora, (0, 100), strict=True):
            for row, length in enumerate(entry.lengths):
                seen = steps[rows == base + row]
                assert seen.max(initial=0) < length - min(4, length // 4)


def test_weights_and_ways_to_sample(two_corpora):
    past = Mixture(two_corpora, SIZES, seed=0).batch(0, 8000).past[:, -1, 0]
    rows = past // 1000
    assert np.mean(rows >= 100) == pytest.approx(0.75, abs=0.02)
    uniform = np.bincount((rows[rows >= 100] - 100).astype(int))
    assert uniform / uniform.sum() == pytest.approx([0.2] * 5, abs=0.02)
    proportional = np.bincount(rows[rows < 100].astype(int))
    # windows: origins 16 to 52, 16 to 192, and 1 to 3 for the 7 steps too short for a complete window
    windows = np.array([37, 177, 2])
    lengths = training_lengths(np.array([60, 200, 9]), 4)
    assert lengths.tolist() == [56, 196, 7]
    assert proportional / proportional.sum() == pytest.approx(windows / windows.sum(), abs=0.03)


def test_contexts_are_full_or_shortened(tmp_path):
    entry = MixtureEntry(write(tmp_path / "a", [(1, 400)]))
    past = Mixture([entry], SIZES, seed=0).batch(0, 4000).past
    shown = np.isfinite(past[:, :, 0]).sum(1)
    assert shown.min() == 3 and shown.max() == 16
    assert np.mean(shown == 16) == pytest.approx(0.5 + 0.5 / 14, abs=0.03)
    # the newest steps remain
    assert all(np.isfinite(window[-count:]).all() for window, count in zip(past[:, :, 0], shown, strict=True))


def test_held_out_corpora_are_never_drawn(two_corpora):
    entries = [two_corpora[0], MixtureEntry(two_corpora[1].path, weight=0)]
    assert np.nanmax(Mixture(entries, SIZES, seed=0).batch(0, 500).past) < 100_000
    with pytest.raises(InputError, match="holds every corpus out"):
        Mixture([MixtureEntry(two_corpora[1].path, weight=0)], SIZES, seed=0)


def test_max_series(tmp_path):
    entry = MixtureEntry(write(tmp_path / "a", [(1, 50)] * 9), max_series=3)
    rows, _ = located(Mixture([entry], SIZES, seed=0).batch(0, 300).past)
    assert set(rows) == {0, 4, 8}


def test_channels_that_stay_together(tmp_path):
    entry = MixtureEntry(write(tmp_path / "a", [(2, 60), (3, 60), (2, 80)]))
    mixture = Mixture([entry], SIZES, seed=0, joint=True)
    batches = [mixture.batch(number, 8) for number in range(40)]
    assert {batch.past.shape[2] for batch in batches} == {2, 3}
    for past, _ in batches:
        first = past[:, -1] // 1000
        assert (np.diff(first, axis=1) == 1).all()
    apart = Mixture([entry], SIZES, seed=0).batch(0, 500).past
    assert apart.shape == (500, 16, 1)
    assert set(located(apart)[0]) == set(range(7))


def test_batches_do_not_depend_on_the_files_of_series(tmp_path):
    shapes = [(1, 50), (1, 70), (1, 90)]
    whole = write(tmp_path / "a", shapes)
    with new_corpus(tmp_path / "b", CorpusLayout()) as folder:
        corpus = open_corpus(whole)
        for row, length in enumerate(corpus.lengths):
            values = corpus.gather(np.array([row]), np.array([0]), int(length))
            series = CorpusSeries(f"s{row}", np.datetime64("2020-01-01"), "h", values)
            write_shards(folder, f"part{row}", [series], CorpusLayout())
    batches = [Mixture([MixtureEntry(str(path))], SIZES, seed=1).batch(3, 64) for path in (whole, tmp_path / "b")]
    np.testing.assert_array_equal(batches[0].past, batches[1].past)


def test_a_file_of_entries(tmp_path):
    write(tmp_path / "a", [(1, 50)])
    (tmp_path / "mixture.yaml").write_text(yaml.safe_dump([{"path": "a", "weight": 2, "max_series": 5}]))
    (entry,) = read_mixture(tmp_path / "mixture.yaml")
    assert entry == MixtureEntry(str(tmp_path / "a"), 2, "proportional", 5)
    assert read_mixture(tmp_path / "a") == [MixtureEntry(str(tmp_path / "a"))]


BAD_FILES = {
    "not_yaml": ("[", "is not YAML"),
    "an_object": ("!!python/object/apply:os.mkdir [x]", "is not YAML"),
    "a_mapping": ("path: a", "must be a list of entries"),
    "empty": ("", "must be a list of entries"),
    "no_path": ("[{weight: 1}]", "entry 1 is not a mapping with a path"),
    "unknown_key": ("[{path: a, wieght: 1}]", "entry 1: unknown key wieght"),  # codespell:ignore wieght
    "negative": ("[{path: a}, {path: b, weight: -1}]", "entry 2: weight must be"),
    "nan": ("[{path: a, weight: .nan}]", "weight must be"),
    "word": ("[{path: a, weight: much}]", "weight must be"),
    "truth": ("[{path: a, weight: true}]", "weight must be"),
    "sample": ("[{path: a, sample: often}]", "sample must be uniform or proportional"),
    "none": ("[{path: a, max_series: 0}]", "max_series must be"),
    "path": ("[{path: 3}]", "path must be a folder"),
}


@pytest.mark.parametrize("case", BAD_FILES)
def test_bad_files_end_in_one_line(tmp_path, case):
    text, message = BAD_FILES[case]
    (tmp_path / "mixture.yaml").write_text(text)
    with pytest.raises(InputError, match=message) as error:
        read_mixture(tmp_path / "mixture.yaml")
    assert "\n" not in str(error.value)


def test_series_too_short_for_any_window(tmp_path):
    with pytest.raises(InputError, match="long enough to train on"):
        Mixture([MixtureEntry(write(tmp_path / "a", [(1, 1)] * 4))], SIZES, seed=0)
    two_steps = Mixture([MixtureEntry(write(tmp_path / "b", [(1, 2), (1, 1)]))], SIZES, seed=0)
    past, future = two_steps.batch(0, 8)
    assert np.isfinite(past).sum() == 8 and np.isfinite(future).sum() == 8
