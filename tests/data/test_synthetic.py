"""Synthetic series: the same for any number of processes, and with the properties their kinds are named after."""

import numpy as np
import pytest

from llata_fast.data import synthetic
from llata_fast.data.corpora import open_corpus
from llata_fast.data.corpus_pictures import draw_series
from llata_fast.data.corpus_writer import CorpusLayout, CorpusSeries, new_corpus, write_shards
from llata_fast.data.steps import parse_step
from llata_fast.data.synthetic import KINDS, SyntheticSettings, make_series, synthesize
from llata_fast.errors import InputError


@pytest.fixture
def real(tmp_path):
    """A corpus of two daily series."""
    rng = np.random.default_rng(0)
    with new_corpus(tmp_path / "real", CorpusLayout()) as folder:
        series = [
            CorpusSeries(f"s{n}", np.datetime64("2020-01-01"), "D", 5 + rng.normal(size=(1, 90)).astype(np.float32))
            for n in range(2)
        ]
        write_shards(folder, "data", series, CorpusLayout())
    return str(tmp_path / "real")


def values_of(kind, count, length=256, seed=0, mix=()):
    settings = SyntheticSettings(count, length, seed, (kind,), mix)
    return [make_series(settings, number).target[0] for number in range(count)]


def test_any_number_of_processes_writes_the_same_corpus(tmp_path, real, monkeypatch):
    # several files, the last one not full
    monkeypatch.setattr(synthetic, "CHUNK", 7)
    settings = SyntheticSettings(20, 64, seed=3, mix=(real,))
    hashes = set()
    for jobs in (1, 2):
        assert synthesize(settings, tmp_path / f"jobs{jobs}", jobs=jobs) == 20
        hashes.add(open_corpus(tmp_path / f"jobs{jobs}").info().hash)
    synthesize(SyntheticSettings(20, 64, seed=4, mix=(real,)), tmp_path / "other")
    assert len(hashes) == 1 and open_corpus(tmp_path / "other").info().hash not in hashes


def test_every_kind_is_made_and_none_is_broken(real):
    settings = SyntheticSettings(300, 96, mix=(real,))
    series = [make_series(settings, number) for number in range(300)]
    assert {one.item_id.rpartition("-")[0] for one in series} == set(KINDS)
    assert len({one.freq for one in series}) == 8 and all(parse_step(one.freq).seasonality >= 1 for one in series)
    for one in series:
        assert one.target.shape == (1, 96) and one.target.dtype == np.float32
        assert np.isfinite(one.target).sum() >= 90


def covariance_of(sample, count=3000):
    samples = np.stack([sample(np.random.default_rng(number)) for number in range(count)])
    return samples.T @ samples / count


def test_a_product_of_kernels_is_sampled_with_the_product_as_its_covariance():
    length, scale, period, steps = 24, 8.0, 6.0, np.arange(24)

    def sample(rng):
        smooth = synthetic._Term(0, rng.normal(size=synthetic._FEATURES) / scale)
        cosine = synthetic._Term(0, np.full(synthetic._FEATURES, 2 * np.pi / period))
        linear = synthetic._Term(1, np.zeros(synthetic._FEATURES))
        return synthetic._sample(rng, smooth.times(cosine).times(linear), length)

    apart = steps[:, None] - steps
    place = np.linspace(-1, 1, length)
    kernel = np.exp(-(apart**2) / (2 * scale**2)) * np.cos(2 * np.pi * apart / period) * np.outer(place, place)
    # three standard errors of 3,000 samples, whose variances are at most 1
    assert np.abs(covariance_of(sample) - kernel).max() < 3 * np.sqrt(2 / 3000)


def test_a_periodic_kernel_repeats():
    grid = synthetic._Grid(200, 24, 168)
    for seed in range(20):
        rng = np.random.default_rng(seed)
        frequencies = synthetic._periodic_frequencies(rng, grid)
        period = 2 * np.pi / np.min(frequencies[frequencies > 0]) if frequencies.any() else 1.0
        harmonics = frequencies * period / (2 * np.pi)
        assert harmonics == pytest.approx(harmonics.round(), abs=1e-6)


def test_intermittent_series_are_counts_with_many_zeros():
    values = values_of("intermittent", 60)
    assert all((one >= 0).all() and (one == one.round()).all() for one in values)
    assert np.median([np.mean(one == 0) for one in values]) > 0.4


def test_composed_series_repeat_shift_and_trend():
    """A large sample contains series of each kind."""
    settings = SyntheticSettings(200, 512, 0, ("composed",))
    series = [make_series(settings, number) for number in range(200)]
    lags = [max(parse_step(one.freq).seasonality, 2) for one in series]
    season = [np.corrcoef(one.target[0, m:], one.target[0, :-m])[0, 1] for one, m in zip(series, lags, strict=True)]
    trend = [abs(np.corrcoef(one.target[0], np.arange(512))[0, 1]) for one in series]
    assert np.mean(np.array(season) > 0.8) > 0.25 and np.mean(np.array(trend) > 0.7) > 0.1
    rng = np.random.default_rng(0)
    shifts = synthetic._level_shifts(rng, synthetic._Grid(100, 1, 1))
    assert 1 <= np.count_nonzero(np.diff(shifts)) <= 3


def test_autocorrelated_noise_keeps_its_variance():
    noise = np.random.default_rng(0).normal(size=200_000)
    for memory in (0.3, 0.9):
        colored = synthetic._autoregressive(noise, memory)
        assert colored[1000:].std() == pytest.approx(1, rel=0.03)
        assert np.corrcoef(colored[1000:-1], colored[1001:])[0, 1] == pytest.approx(memory, abs=0.02)


def test_mixup_of_one_series_is_that_series(tmp_path, real, monkeypatch):
    monkeypatch.setattr(synthetic, "_in_units", lambda rng, values: values)
    corpus = open_corpus(real)
    rows = [corpus.gather(np.array([row]), np.array([0]), 90)[0].astype(float) for row in range(2)]
    scaled = np.stack([row / np.abs(row).mean() for row in rows])
    for values in values_of("mixup", 20, length=90, mix=(real,)):
        weights, *_ = np.linalg.lstsq(scaled.T, values, rcond=None)
        np.testing.assert_allclose(weights @ scaled, values, atol=1e-5)
        assert weights.sum() == pytest.approx(1, abs=1e-4) and (weights > -1e-4).all()
    assert make_series(SyntheticSettings(1, 90, 0, ("mixup",), (real,)), 0).freq == "D"


def test_a_series_shorter_than_asked_for_ends_in_missing_values(real):
    values = np.stack(values_of("mixup", 5, length=120, mix=(real,)))
    assert np.isfinite(values[:, :90]).all() and np.isnan(values[:, 90:]).all()


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"num_series": 0}, "num_series must be at least 1"),
        ({"num_series": 1, "length": 1}, "length must be at least 2"),
        ({"num_series": 1, "seed": -1}, "seed must be at least 0"),
        ({"num_series": 1, "kinds": ("waves",)}, "series 'waves'"),
        ({"num_series": 1, "kinds": ()}, "at least one kind"),
        ({"num_series": 1, "kinds": ("mixup",)}, "give --mix"),
    ],
)
def test_invalid_settings_are_refused(settings, message):
    with pytest.raises(InputError, match=message):
        SyntheticSettings(**settings)


def test_a_corpus_to_mix_must_exist(tmp_path):
    with pytest.raises(InputError, match="no corpus at"):
        synthesize(SyntheticSettings(5, 64, mix=(str(tmp_path / "absent"),)), tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_a_page_of_pictures(tmp_path, real):
    pytest.importorskip("matplotlib")
    draw_series(open_corpus(real), tmp_path / "page.png", rows=1, columns=3)
    assert (tmp_path / "page.png").read_bytes().startswith(b"\x89PNG")
