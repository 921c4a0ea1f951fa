"""The plot of a benchmark: errors relative to the linear map's in the same table at the same horizon."""

import pytest

from llata_fast.evaluation.cost_picture import errors_over_linear, plot_costs
from llata_fast.evaluation.protocols import Results, Trial, means_over_seeds


def trial(protocol="long_term", target="ETTh1", horizon=96, model="llata", seed=1):
    baseline = model == "linear"
    return Trial(
        protocol, "ETTh1", target, horizon, None, model, "" if baseline else "tuned", None if baseline else seed
    )


@pytest.fixture
def results(tmp_path):
    table = Results(tmp_path / "results.csv")
    trained = {"seconds": 10, "trained_parameters": 1000}
    for seed, mse in ((1, 0.25), (2, 0.75)):
        table.add(trial(seed=seed), mse=mse, mae=mse, **trained)
    table.add(trial(model="no_llm"), mse=4.0, mae=4.0, **trained)
    table.add(trial(model="linear"), mse=0.4, mae=0.4)
    table.add(trial("zero_shot", "ETTh2"), mse=0.5, mae=0.5, **trained)
    table.add(trial("zero_shot", "ETTh2", model="linear"), mse=2.0, mae=2.0)
    table.add(trial("short_term"), owa=0.6, **trained)
    table.add(trial("short_term", model="linear"), owa=0.8)
    table.add(trial(horizon=192), mse=0.5, mae=0.5, **trained)
    return table.path


def test_errors_are_shares_of_the_linear_maps(results):
    rows = errors_over_linear(means_over_seeds(results))
    shares = {(row.table, row.model): row.relative for row in rows.itertuples()}
    # all seeds give one point; a horizon without a linear map gives none
    assert len(rows) == 4
    assert shares[("long_term: ETTh1", "llata")] == pytest.approx(0.5 / 0.4)
    assert shares[("long_term: ETTh1", "no_llm")] == pytest.approx(10)
    assert shares[("zero_shot: ETTh1 to ETTh2", "llata")] == pytest.approx(0.25)
    assert shares[("short_term: ETTh1", "llata")] == pytest.approx(0.75)


def test_picture(results, tmp_path):
    pytest.importorskip("matplotlib")
    plot_costs(tmp_path / "costs.png", results)
    assert (tmp_path / "costs.png").read_bytes().startswith(b"\x89PNG")


def test_without_results_there_is_no_picture(tmp_path):
    pytest.importorskip("matplotlib")
    table = Results(tmp_path / "results.csv")
    table.add(trial(), mse=0.5, mae=0.5, seconds=1, trained_parameters=1)
    plot_costs(tmp_path / "costs.png", table.path)
    assert not (tmp_path / "costs.png").exists()
