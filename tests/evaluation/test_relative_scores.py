"""MASE and WQL over datasets, compared step by step with their definitions."""

import numpy as np
import pytest
import torch

from llata_fast.data.corpora import open_corpus
from llata_fast.data.corpus_windows import LastWindows
from llata_fast.data.corpus_writer import CorpusLayout, CorpusSeries, new_corpus, write_shards
from llata_fast.data.mixture import WindowSizes
from llata_fast.evaluation.relative_scores import score_sets
from llata_fast.settings import DECILES

SIZES = WindowSizes(context=30, horizon=5, shortest_context=3)


def make_set(folder, values, freq="D"):
    with new_corpus(folder, CorpusLayout()) as partial:
        series = [
            CorpusSeries(f"s{n}", np.datetime64("2020-01-01"), freq, np.asarray(row, np.float32)[None])
            for n, row in enumerate(values)
        ]
        write_shards(partial, "data", series, CorpusLayout())
    return LastWindows(open_corpus(str(folder)), SIZES, 100)


@pytest.fixture
def sets(tmp_path):
    rng = np.random.default_rng(0)
    rows = [50 + 9 * np.sin(np.arange(80) * 2 * np.pi / 7) + rng.normal(size=80) for _ in range(6)]
    rows[1][-8] = np.nan
    rows[2][-3] = np.nan
    return [make_set(tmp_path / "a", rows), make_set(tmp_path / "b", [1000 * row for row in rows[:3]])]


def last_value(past, observed):
    """Points and quantiles that spread around the last value."""
    last = past[:, -1:].float().expand(-1, 5, -1)
    return last, last[..., None] + torch.tensor(DECILES) - 0.5


def by_definition(windows):
    past, future = (torch.from_numpy(part).double().numpy()[..., 0] for part in windows.raw(range(len(windows))))
    mase, loss, size = [], 0.0, 0.0
    for lookback, target in zip(past, future, strict=True):
        mean, deviation = np.nanmean(lookback), np.nanstd(lookback)
        last = (lookback[-1] - mean) / deviation if np.isfinite(lookback[-1]) else 0.0
        point = mean + deviation * np.float32(last)
        scale = np.nanmean(np.abs(lookback[7:] - lookback[:-7]))
        mase.append(np.nanmean(np.abs(target - point)) / scale)
        for value in target[np.isfinite(target)]:
            size += abs(value)
            for level in DECILES:
                quantile = point + deviation * (level - 0.5)
                loss += 2 * max(level * (value - quantile), (level - 1) * (value - quantile)) / len(DECILES)
    return np.mean(mase), loss / size


def test_scores_match_their_definitions(sets):
    scores = score_sets(last_value, sets, batch_size=4)
    for windows in sets:
        mase, wql = by_definition(windows)
        row = scores["per_set"][windows.name]
        assert row["windows"] == len(windows)
        assert row["mase"] == pytest.approx(mase, rel=1e-5) and row["wql"] == pytest.approx(wql, rel=1e-5)
    for name in ("mase", "wql"):
        ratios = [row[name] / row[f"naive_{name}"] for row in scores["per_set"].values()]
        assert scores[f"relative_{name}"] == pytest.approx(np.sqrt(np.prod(ratios)))


def test_seasonal_naive_scores_one(sets):
    def naive(past, observed):
        return past[:, -7:-2], None

    # without gaps in the season that it repeats
    scores = score_sets(naive, [make_set_without_gaps(sets)])
    assert scores["relative_mase"] == pytest.approx(1, rel=1e-5)
    assert scores["relative_wql"] == pytest.approx(1, rel=1e-5)


def make_set_without_gaps(sets):
    windows = sets[0]
    kept = [index for index in range(len(windows)) if np.isfinite(windows.raw([index]).past).all()]
    windows._rows, windows._origins, windows.seasons = (
        part[kept] for part in (windows._rows, windows._origins, windows.seasons)
    )
    return windows


def test_a_set_without_a_defined_score_is_excluded_from_the_means(sets, tmp_path):
    constant = make_set(tmp_path / "c", [np.zeros(80)])
    alone = score_sets(last_value, sets)
    both = score_sets(last_value, [*sets, constant])
    assert both["relative_mase"] == alone["relative_mase"] and both["relative_wql"] == alone["relative_wql"]
    assert np.isnan(both["per_set"]["c"]["mase"]) and both["per_set"]["c"]["windows"] == 1
    assert np.isnan(score_sets(last_value, [constant])["relative_mase"])


def test_scores_do_not_depend_on_the_batch_size(sets):
    assert score_sets(last_value, sets, batch_size=1)["per_set"]["a"] == pytest.approx(
        score_sets(last_value, sets, batch_size=100)["per_set"]["a"], rel=1e-9
    )
