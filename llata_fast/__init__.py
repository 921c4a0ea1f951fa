"""LLaTA, fast: a pre-trained language model turned into a time-series forecaster.

    from llata_fast import Forecaster, read_csv

    forecaster = Forecaster.from_pretrained("runs/Metro-336-96")
    print(forecaster.predict_df(read_csv("my.csv")))

The names below cover everyday use. Each is imported on first access, so importing the package loads neither torch nor
transformers.
"""

import importlib
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

# Our folder kernels/ is installed as llata_fast.kernels. Anything started from a checkout (python train.py, python -m
# llata_fast, python bench/...) has the checkout's root on sys.path, where that folder would be found as the top-level
# package "kernels": the name of Hugging Face's package, which transformers imports. So the root leaves the path here,
# before any third-party import, and every script in the root imports llata_fast first.
_root = Path(__file__).resolve().parent.parent
if (_root / "setup.py").is_file():
    sys.path[:] = [entry for entry in sys.path if Path(entry).resolve() != _root]

__version__ = "0.1.0"

_HOMES = {
    "Forecaster": "forecasting.forecaster",
    "LlataConfig": "config",
    "LlataForPrediction": "modeling",
    "Panel": "data.panel",
    "read_csv": "data.panel",
    "train": "experiment",
}

__all__ = ["Forecaster", "LlataConfig", "LlataForPrediction", "Panel", "__version__", "read_csv", "train"]

if TYPE_CHECKING:
    from .config import LlataConfig
    from .data.panel import Panel, read_csv
    from .experiment import train
    from .forecasting.forecaster import Forecaster
    from .modeling import LlataForPrediction


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f".{_HOMES[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
