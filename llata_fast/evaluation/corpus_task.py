"""Pre-training as a task: a mixture of corpora to learn from, the last windows of every set to be scored on."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
from torch import Tensor, nn

from ..data import Splits
from ..data.corpus_windows import JoinedWindows, LastWindows, MixtureWindows
from ..data.mixture import Mixture, WindowSizes, read_mixture
from ..errors import InputError
from ..linear_start import LinearStart, start_linear_part
from ..run_folder import Preprocessor
from ..settings import DataSettings, ModelSettings
from .relative_scores import score_sets, seasonal_naive_windows

if TYPE_CHECKING:
    from .tasks import Predictor

COLUMN = "target"
VALIDATION_WINDOWS = 64
"""Of each set, while it trains."""
TEST_WINDOWS = 512
"""Of each set, at the end."""
_SKIP_WINDOWS = 4096
"""What the linear skip's start is fitted to."""


class CorpusTask:
    """Windows of a mixture in units of their own; a set of weight 0 is scored, but never trained on."""

    columns = [COLUMN]

    def __init__(self, mixture: Mixture, batch_size: int, num_steps: int):
        self.mixture = mixture
        joint = mixture.joint
        sets = [LastWindows(corpus, mixture.sizes, TEST_WINDOWS, joint=joint) for corpus in mixture.corpora]
        self.sets = [windows for windows in sets if len(windows)]
        # a set that is held out whole chooses nothing: its scores are those of series never seen
        trained = [
            LastWindows(corpus, mixture.sizes, VALIDATION_WINDOWS, joint=joint)
            for corpus, entry in zip(mixture.corpora, mixture.entries, strict=True)
            if entry.weight > 0
        ]
        trained = [windows for windows in trained if len(windows)]
        if not trained:
            raise InputError("no series of the mixture is long enough to hold steps back for validation")
        # a batch has one number of channels: that of the first set
        validation = JoinedWindows([windows for windows in trained if windows.num_channels == trained[0].num_channels])
        train = MixtureWindows(mixture, batch_size, num_steps)
        self.splits = Splits(train, validation, JoinedWindows(self.sets), None)

    def start(self, model: nn.Module) -> LinearStart | None:
        """Choose the model's linear skip, where it has one, from some of the windows."""
        return start_linear_part(
            model, MixtureWindows(self.mixture, _SKIP_WINDOWS, 1), self.splits.val, unit="deviation"
        )

    def preprocessor(self, dataset: str) -> Preprocessor:
        """Of series of every kind: no unit, no level and no date is the model's own."""
        return Preprocessor.of_any_series(dataset)

    def test(self, predictor: "Predictor") -> dict[str, Any]:
        """Scores over seasonal naive's, as `score_sets` gives them."""
        return score_sets(predictor.forecast_quantiles, self.sets)

    def example(self) -> tuple[Tensor, Tensor]:
        """The first set's first window [1, L, C], and what of it is observed."""
        item = self.splits.test.__getitems__([0])
        return item["past_values"], item["past_observed_mask"]

    def baselines(self) -> tuple[dict[str, dict[str, Any]], dict[str, Tensor]]:
        """Seasonal naive, which scores are relative to."""
        past, observed = self.example()
        first = self.sets[0]
        forecast = seasonal_naive_windows(past, observed, first.seasons[:1], first.prediction_length)
        return {"seasonal_naive": {"relative_mase": 1.0, "relative_wql": 1.0}}, {"seasonal_naive": forecast}

    def picture(self, forecasts: dict[str, Tensor]) -> dict[str, Any]:
        """The example's first channel in units of its past, as `plot_forecast` takes it, by step."""
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
    """The task of `data.corpus`. Raises InputError for settings that fit no corpus, and corpora that cannot be read."""
    assert data.corpus is not None
    if num_steps < 1:
        raise InputError("a mixture has no end: say how long to train by --max_steps")
    for name in ("columns", "date_column", "few_shot_percent"):
        if getattr(data, name) is not None:
            raise InputError(f"{name} is for the file of one series, not for a mixture of corpora")
    # a token a channel: windows have all channels of their series; patches: a channel is a series of its own
    patch_length = model.patch_length or model.context_length
    joint = patch_length == model.context_length
    shortest = max(1, patch_length // 16) if joint else patch_length
    sizes = WindowSizes(model.context_length, model.prediction_length, shortest_context=shortest)
    return CorpusTask(Mixture(read_mixture(data.corpus), sizes, seed=seed, joint=joint), batch_size, num_steps)
