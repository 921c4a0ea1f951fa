"""Whether the language model earned its place: the same training without it, from the same linear start."""

import copy
import tempfile
import time

from transformers import set_seed

from ..config import LlataConfig
from ..modeling import LlataForPrediction
from .learned_share import LearnedShare, weigh_learned_part
from .stopping import Stopping
from .trainer import ForecastTrainer


def learned_without_language_model(trainer: ForecastTrainer) -> LearnedShare | None:
    """Train with the same steps, windows and settings, but pass the tokens on unchanged instead of to the model.

    It takes a fraction of `trainer`'s time. None without a language model or a linear start, on several ranks, or
    under DeepSpeed, which supports one model per process.
    """
    model, args = trainer.model, trainer.args
    if not model.config.has_language_model or model.skip is None or args.world_size > 1 or args.deepspeed is not None:
        return None
    set_seed(args.seed)
    settings = model.config.to_dict() | {"ablation": "no_llm", "base_precision": "auto"}
    other = LlataForPrediction.from_backbone(LlataConfig(**settings))
    assert other.skip is not None
    other.skip.load_state_dict(model.skip.state_dict())
    other.skip.keep(1.0)
    with tempfile.TemporaryDirectory() as folder:
        args = copy.copy(args)
        vars(args).update(output_dir=folder, report_to=[], disable_tqdm=True, resume_from_checkpoint=None)
        beside = ForecastTrainer(other, args, trainer.splits, list(trainer.metrics.columns))
        # a stop may end at once: the run is already written, and these checkpoints are discarded
        beside.remove_callback(Stopping)
        began = time.perf_counter()
        beside.train()
        return weigh_learned_part(beside, time.perf_counter() - began)
