"""Pre-training as a task: trains on a mixture of corpora, and is scored on the last windows of every dataset."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
from torch import Tensor, nn

from ..data import Splits
from ..data.corpus_windows import JoinedWindows, LastWindows, MixtureWindows
from ..data.mixture import Mixture, WindowSizes, read_mixture
from ..errors import InputError
from ..linear_start import LinearStart, start_linear_part
from ..preprocessor import Preprocessor
from ..settings import DataSettings, ModelSettings
from .relative_scores import score_sets, seasonal_naive_windows

if TYPE_CHECKING:
    from .tasks import Predictor

COLUMN = "target"
VALIDATION_WINDOWS = 64
"""Windows per dataset for validation during training."""
TEST_WINDOWS = 512
"""Windows per dataset for the final test."""
_SKIP_WINDOWS = 4096
"""Number of windows that the linear start is fitted to."""


class CorpusTask:
    """Windows of a mixture, each in its own units; a dataset of weight 0 is scored, but never trained on."""

    columns = [COLUMN]
    season_length: int | None = None

    def __init__(self, mixture: Mixture, batch_size: int, num_steps: int):
        self.mixture = mixture
        joint = mixture.joint
        sets = [LastWindows(corpus, mixture.sizes, TEST_WINDOWS, joint=joint) for corpus in mixture.corpora]
        self.sets = [windows for windows in sets if len(windows)]
        # a held-out dataset must not influence any choice: its scores are those of unseen series
        trained = [
            LastWindows(corpus, mixture.sizes, VALIDATION_WINDOWS, joint=joint)
            for corpus, entry in zip(mixture.corpora, mixture.entries, strict=True)
            if entry.weight > 0
        ]
        trained = [windows for windows in trained if len(windows)]
        if not trained:
            raise InputError("no series of the mixture is long enough to hold out steps for validation")
        # all windows in a batch have the same number of channels: that of the first dataset
        validation = JoinedWindows([windows for windows in trained if windows.num_channels == trained[0].num_channels])
        train = MixtureWindows(mixture, batch_size, num_steps)
        self.splits = Splits(train, validation, JoinedWindows(self.sets), None)

    def start(self, model: nn.Module) -> LinearStart | None:
        """Choose the model's linear skip, if it has one, on a sample of the windows."""
        return start_linear_part(
            model, MixtureWindows(self.mixture, _SKIP_WINDOWS, 1), self.splits.val, unit="deviation"
        )

    def preprocessor(self, dataset: str) -> Preprocessor:
        """For any series: the model has no unit, level or date of its own."""
        return Preprocessor.of_any_series(dataset)

    def test(self, predictor: "Predictor") -> dict[str, Any]:
        """Scores relative to seasonal naive's, as returned by `score_sets`."""
        return score_sets(predictor.forecast_quantiles, self.sets)

    def example(self) -> tuple[Tensor, Tensor]:
        """The first window of the first dataset [1, L, C], and its observed mask."""
        item = self.splits.test.__getitems__([0])
        return item["past_values"], item["past_observed_mask"]

    def baselines(self) -> tuple[dict[str, dict[str, Any]], dict[str, Tensor]]:
        """Seasonal naive, the reference of the relative scores."""
        past, observed = self.example()
        first = self.sets[0]
        forecast = seasonal_naive_windows(past, observed, first.seasons[:1], first.prediction_length)
        return {"seasonal_naive": {"relative_mase": 1.0, "relative_wql": 1.0}}, {"seasonal_naive": forecast}

    def picture(self, forecasts: dict[str, Tensor]) -> dict[str, Any]:
        """The example's first channel in units of its past, by step, as arguments of `plot_forecast`."""
        item, name = self.splits.test.__getitems__([0]), self.sets[0].name
        L, H = self.mixture.sizes.context, self.mixture.sizes.horizon
        past = item["past_values"].where(item["past_observed_mask"], float("nan"))

        def table(values: Tensor, first: int) -> pd.DataFrame:
            steps = range(first, first + values.shape[1])
            return pd.DataFrame(values[0, :, :1].double().cpu().numpy(), steps, self.columns)

        return {
            "history": table(past, 0).iloc[-min(L, 4 * H) :],
            "truth": table(item["future_values"], L),
            "forecasts": {forecaster: table(forecast, L) for forecaster, forecast in forecasts.items()},
            "title": f"{Path(name).name}: {H} steps, in deviations of the {L} before",
        }


def read_corpus_task(
    data: DataSettings, model: ModelSettings, batch_size: int, num_steps: int, seed: int
) -> CorpusTask:
    """The task of `data.corpus`. Raises InputError for settings that do not apply, and unreadable corpora."""
    assert data.corpus is not None
    if num_steps < 1:
        raise InputError("a mixture has no end: give the length of training with --max_steps")
    for name in ("columns", "date_column", "few_shot_percent"):
        if getattr(data, name) is not None:
            raise InputError(f"{name} is for the file of one series, not for a mixture of corpora")
    # variate tokens: a window has all channels of its series; patch tokens: each channel is a series
    patch_length = model.patch_length or model.context_length
    joint = patch_length == model.context_length
    shortest = max(1, patch_length // 16) if joint else patch_length
    sizes = WindowSizes(model.context_length, model.prediction_length, shortest_context=shortest)
    return CorpusTask(Mixture(read_mixture(data.corpus), sizes, seed=seed, joint=joint), batch_size, num_steps)
