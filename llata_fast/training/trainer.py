"""The Hugging Face Trainer, overridden only where a forecaster differs from a language model."""

import copy
import functools
import logging
import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import SequentialSampler
from transformers import Trainer
from transformers.trainer_callback import PrinterCallback, ProgressCallback
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from ..backbone.placing import finish_partitioning, whole_models
from ..data import Splits, collate
from ..data.units import forecast_windows
from ..data.windows import Windows
from ..durable import delete_tree, partial_name, settle_folder, writing
from ..metrics import ForecastMetrics
from ..modeling import LlataForPrediction
from ..ranks import on_first_rank
from ..run_folder import BEST_CHECKPOINT, TRAINER_STATE, UNAVERAGED, RunFolder
from .arguments import ForecastTrainingArguments
from .averaging import UnaveragedWeights, WeightAverage
from .best_checkpoint import BEST_BY, OwnBest, measure
from .deepspeed_state import is_universal, trained_state
from .finite import WINDOW_INDEX, FiniteGuard, NumberedWindows, check_finite
from .progress import ProgressLine, TrainingLog
from .resuming import check_whole, reading
from .stopping import Stopping
from .throughput import EarlyStopping, ThroughputCallback, matmul_rate, micro_step_flops

_log = logging.getLogger(__name__)

# the reference trains these at a separate rate: attention of encoder and cross-attention, alignment projections
_PROJECTIONS = re.compile(r"alignment\.|(encoder|cross_attention)\.(q|kv|qkv|out)_proj\.")
_TARGET_TERMS = ("task_loss", "quantile_loss")
"""Loss terms that are sums over targets."""
_LOSS_TERMS = ("task_loss", "quantile_loss", "consistency_loss", "alignment_loss")


class ForecastTrainer(Trainer):
    """Adds two learning-rate groups, streaming forecast metrics, and the terms of the loss in the log."""

    args: ForecastTrainingArguments
    model: LlataForPrediction
    optimizer: torch.optim.Optimizer
    lr_scheduler: LambdaLR
    train_dataset: NumberedWindows

    def __init__(self, model: LlataForPrediction, args: ForecastTrainingArguments, splits: Splits, columns: list[str]):
        splits = splits._replace(**{name: getattr(splits, name).to(args.device) for name in ("train", "val", "test")})
        if args.deepspeed is not None:
            finish_partitioning(model, args.hf_deepspeed_config.dtype(), args.device)
            frozen = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
            # checkpoints leave the frozen base out
            model.register_load_state_dict_post_hook(functools.partial(_may_lack, frozen))
        self.metrics = ForecastMetrics(columns)
        self._terms: dict[str, Tensor] = {}
        self._num_steps = 0.0
        self._micro_steps, self._windows = 1, 1
        self._target_scale: Tensor | None = None
        # the Trainer would delete old checkpoints before the new one is complete
        self.checkpoint_limit, args.save_total_limit = args.save_total_limit, None
        assert args.output_dir is not None, "the run's folder is claimed"
        self.run = RunFolder(args.output_dir)
        self.average = WeightAverage(model, args.average_decay) if args.average_decay else None
        weights = self.average or UnaveragedWeights(model)
        self.stopping = Stopping()
        self.guard = FiniteGuard(self, args.skip_nonfinite)
        callbacks = [self.stopping, self.guard, OwnBest(self.run), weights]
        if args.patience and args.load_best_model_at_end:
            callbacks.append(EarlyStopping(early_stopping_patience=args.patience))
        super().__init__(
            model=model,
            args=args,
            data_collator=collate,
            train_dataset=NumberedWindows(splits.train),
            eval_dataset=splits.val,
            compute_metrics=self.metrics,
            callbacks=callbacks,
        )
        for kind in (PrinterCallback, ProgressCallback):
            self.remove_callback(kind)
        self.add_callback(ProgressLine(bar=not args.disable_tqdm))
        self.add_callback(TrainingLog())
        self.splits = splits
        self.throughput = self._watch(len(columns))
        self.add_callback(self.throughput)

    def _watch(self, num_channels: int) -> ThroughputCallback:
        args, config, micro_batch = self.args, self.model.config, self.args.micro_batch
        figures = {}
        if self.is_world_process_zero():
            # transformers would partition a model without memory, and wait for the other ranks
            with whole_models():
                flops = micro_step_flops(self.model, micro_batch, num_channels)
            figures = {
                "flops_per_window": flops / micro_batch,
                "peak_flops": matmul_rate(args.device, args.compute_dtype),
            }
        tokens = config.tokens_per_window(num_channels)
        return ThroughputCallback(args.device, num_ranks=args.world_size, tokens_per_window=tokens, **figures)

    def get_train_dataloader(self):
        args, given = self.args, self.args.dataloader_drop_last
        step = args.micro_batch * args.world_size
        left = len(self.train_dataset) % step
        if args.torch_compile and 0 < left < len(self.train_dataset):
            # a compiled step has one batch size: the rest of an epoch (drawn anew each time) would need another one
            _log.info("each epoch of the compiled step leaves out %d windows, less than a batch of %d", left, step)
            args.dataloader_drop_last = True
        try:
            return super().get_train_dataloader()
        finally:
            args.dataloader_drop_last = given

    def _get_train_sampler(self, train_dataset=None):
        # a dataset that draws at random is read in order
        if self.train_dataset.in_order:
            return SequentialSampler(self.train_dataset)
        return super()._get_train_sampler(train_dataset)

    def get_batch_samples(self, *args, **kwargs):
        if self.state.global_step >= self.state.max_steps:
            # the Trainer checks the count after a step: a run resumed at its end would train beyond it
            return [], None
        fetched = self.throughput.fetch(lambda: super(ForecastTrainer, self).get_batch_samples(*args, **kwargs))
        self._micro_steps, self._windows = len(fetched[0]), sum(len(batch["past_values"]) for batch in fetched[0])
        self._target_scale = self._unobserved_scale(fetched[0])
        return fetched

    def _unobserved_scale(self, batches: list[dict[str, Tensor]]) -> Tensor | None:
        """All targets of a step divided by the observed ones, over all ranks; None if the dataset needs no rescaling.

        The losses divide by all targets, but any share of a mixture's step may be padding.
        """
        if not self.train_dataset.in_order or not batches:
            return None
        targets = [batch["future_values"] for batch in batches]
        counts = torch.tensor([sum(t.numel() for t in targets), sum(int((~t.isnan()).sum()) for t in targets)])
        total, observed = self.accelerator.reduce(counts.to(self.args.device, torch.float64)).float()
        return total / observed.clamp(min=1)

    def _maybe_log_save_evaluate(self, *args, **kwargs):
        super()._maybe_log_save_evaluate(*args, **kwargs)
        self.stopping.leave_if_agreed(self.state)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False):
        """Write the trained weights, in fp32, and the configuration; every rank calls it.

        Raises:
            InputError: on every rank, if a weight is not finite.
        """
        self._write_model(output_dir, _internal_call, checked=True)

    def write_model(self, output_dir: str):
        """`save_model` without the check for weights that are not finite."""
        self._write_model(output_dir, True, checked=False)

    def _write_model(self, output_dir: str | None, internal_call: bool, checked: bool):
        when = f"step {self.state.global_step}"
        if self.is_deepspeed_enabled:
            state = trained_state(self.model, keep=self.args.should_save)
            if checked:
                on_first_rank(lambda: check_finite(state, when))
            self._save(output_dir, state_dict=state)
        else:
            if checked:
                check_finite({name: p for name, p in self.model.named_parameters() if p.requires_grad}, when)
            super().save_model(output_dir, internal_call)

    def _save_checkpoint(self, model, trial):
        """Write the Trainer's checkpoint under a temporary name, and rename it once its manifest is complete."""
        args, state, name = self.args, self.state, f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}"
        partial = partial_name(self.run / name)
        on_first_rank(lambda: delete_tree(partial))
        args.output_dir = str(partial)
        with writing(partial):
            try:
                super()._save_checkpoint(model, trial)
            finally:
                args.output_dir = str(self.run)
            best = self.best_checkpoint
            if args.should_save:
                # a path would point a moved run to another run's weights
                state.best_model_checkpoint = None
                notes: Any = state.stateful_callbacks
                notes[BEST_CHECKPOINT], notes[BEST_BY] = best, measure(args)
                state.save_to_json(str(partial / name / TRAINER_STATE))
                if self.average is not None:
                    self.average.save(partial / name / UNAVERAGED)
            self.accelerator.wait_for_everyone()
            if args.should_save:
                settle_folder(partial / name, self.run / name)
                partial.rmdir()
                self.run.rotate(self.checkpoint_limit, best)
            self.accelerator.wait_for_everyone()
        state.best_model_checkpoint = best and str(self.run / best)

    @property
    def best_checkpoint(self) -> str | None:
        """Name of the checkpoint with the best validation score so far."""
        path = self.state.best_model_checkpoint
        return Path(path).name if path else None

    def _save_optimizer_and_scheduler(self, output_dir: str):
        if not self.is_deepspeed_enabled:
            return super()._save_optimizer_and_scheduler(output_dir)
        engine: Any = self.model_wrapped
        # the Trainer sets this only for PEFT models
        engine.save_checkpoint = functools.partial(engine.save_checkpoint, exclude_frozen_parameters=True)
        try:
            super()._save_optimizer_and_scheduler(output_dir)
        finally:
            del engine.save_checkpoint

    def _prepare_for_training(self, max_steps, train_dataloader, resume_from_checkpoint):
        if self.is_deepspeed_enabled and resume_from_checkpoint is not None:
            # DeepSpeed reads it when it creates its engine
            config = self.accelerator.state.deepspeed_plugin.deepspeed_config
            config["checkpoint"] = config.get("checkpoint", {}) | {
                "load_universal": is_universal(resume_from_checkpoint)
            }
        with reading(resume_from_checkpoint, self.args.trust_checkpoint):
            return super()._prepare_for_training(max_steps, train_dataloader, resume_from_checkpoint)

    def _init_training_state(
        self, max_steps, num_update_steps_per_epoch, num_train_epochs, resume_from_checkpoint, trial
    ):
        with reading(resume_from_checkpoint, self.args.trust_checkpoint):
            arguments = (max_steps, num_update_steps_per_epoch, num_train_epochs, resume_from_checkpoint, trial)
            return super()._init_training_state(*arguments)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None):
        with reading(resume_from_checkpoint, self.args.trust_checkpoint):
            super()._load_from_checkpoint(resume_from_checkpoint, model)

    def _load_rng_state(self, checkpoint: str | None):
        with reading(checkpoint, self.args.trust_checkpoint):
            super()._load_rng_state(checkpoint)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None):
        super()._load_optimizer_and_scheduler(checkpoint)
        if self.is_deepspeed_enabled and checkpoint is not None and is_universal(checkpoint):
            # ZeRO-3 restores the first group's rate, and one shared step counter, for all groups
            for group, rate in zip(self.optimizer.param_groups, self.lr_scheduler.get_last_lr(), strict=True):
                group["lr"] = rate
            for state in self.optimizer.state.values():
                state["step"] = copy.deepcopy(state["step"])
        if checkpoint is not None:
            self._take_over_rates()

    def _take_over_rates(self):
        """Replace the checkpoint's learning rates, weight decay and beta2 by the settings', which may have changed."""
        args, groups = self.args, self.optimizer.param_groups
        rates = [args.learning_rate, args.projection_learning_rate]
        for group in groups:
            group["weight_decay"] = args.weight_decay
            if "betas" in group:
                group["betas"] = (args.adam_beta1, args.adam_beta2)
        # accelerate wraps the schedule for DeepSpeed
        schedule = getattr(self.lr_scheduler, "scheduler", self.lr_scheduler)
        if isinstance(schedule, LambdaLR):
            schedule.base_lrs = [*rates]
            factors = [factor(schedule.last_epoch) for factor in schedule.lr_lambdas]
            schedule._last_lr = [rate * factor for rate, factor in zip(rates, factors, strict=True)]
            for group, rate, start in zip(groups, schedule._last_lr, rates, strict=True):
                group["lr"], group["initial_lr"] = rate, start

    def _load_best_model(self):
        assert self.state.best_model_checkpoint is not None
        best = Path(self.state.best_model_checkpoint)
        on_first_rank(lambda: check_whole(best))
        if self.is_deepspeed_enabled:
            engine: Any = self.model_wrapped
            universal = is_universal(best)
            engine.load_universal_checkpoint = lambda: universal
        with reading(best, self.args.trust_checkpoint):
            super()._load_best_model()

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        if self.optimizer is None:
            optimizer_cls, kwargs = self.get_optimizer_cls_and_kwargs(self.args, self.model)
            self.optimizer = optimizer_cls(self._parameter_groups(), **kwargs)
        return self.optimizer

    def _parameter_groups(self) -> list[dict]:
        groups: tuple[list[nn.Parameter], list[nn.Parameter]] = ([], [])
        for name, parameter in self.model.named_parameters():
            if parameter.requires_grad:
                groups[bool(_PROJECTIONS.match(name))].append(parameter)
        rest, projections = groups
        decay = self.args.weight_decay
        return [
            {"params": rest, "weight_decay": decay},
            {"params": projections, "weight_decay": decay, "lr": self.args.projection_learning_rate},
        ]

    def _prepare_input(self, data):
        # the Trainer would cast every float to DeepSpeed's half precision; series and targets must stay fp32
        return data.to(self.args.device) if isinstance(data, Tensor) else super()._prepare_input(data)

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        inputs = dict(inputs)
        windows = inputs.pop(WINDOW_INDEX, None)
        random = self.guard.random_state() if model.training else {}
        outputs = model(**inputs)
        loss = outputs.loss
        if model.training:
            terms = {name: outputs[name] for name in ("loss", *_LOSS_TERMS) if name in outputs}
            self.guard.watch(inputs, windows, random, terms)
            # the Trainer averages micro-batches with equal weight, but an epoch's last one may be smaller
            if self._target_scale is not None:
                for name in [name for name in _TARGET_TERMS if name in outputs]:
                    loss = loss + outputs[name] * (self._target_scale - 1)
                    outputs[name] = outputs[name] * self._target_scale
            share = len(inputs["past_values"]) / self._windows
            loss = loss * (len(inputs["past_values"]) * self._micro_steps / self._windows)
            # an ablation may lack some terms
            for name in [name for name in _LOSS_TERMS if name in outputs]:
                # the product also copies: a CUDA graph overwrites these buffers in its next step
                self._terms[name] = self._terms.get(name, 0) + outputs[name].detach() * share
            self._num_steps += share
        return (loss, outputs) if return_outputs else loss

    def log(self, logs: dict[str, float], *args, **kwargs):
        if "loss" in logs and self._num_steps:
            means = torch.stack(list(self._terms.values())) / self._num_steps
            means = self.accelerator.gather(means[None]).mean(0)
            logs |= dict(zip(self._terms, means.tolist(), strict=True))
            self._terms, self._num_steps = {}, 0.0
            logs |= self.throughput.report()
        super().log(logs, *args, **kwargs)

    def test(self, windows: Windows) -> dict[str, Any]:
        """{"mse", "mae", "per_channel"} over all the windows; the same on every rank."""
        # it would look for the validation score in these metrics
        self.remove_callback(EarlyStopping)
        scores = self.evaluate(windows.to(self.args.device), metric_key_prefix="test")
        return {"mse": scores["test_mse"], "mae": scores["test_mae"], "per_channel": self.metrics.per_channel}

    def kept_validation(self) -> dict[str, float] | None:
        """{"step", "mse", "mae", "loss"}: validation scores of the kept weights; None if they were not validated."""
        best = self.best_checkpoint
        kept = int(best.rpartition("-")[2]) if best else self.state.global_step
        for entry in reversed(self.state.log_history):
            if entry["step"] == kept and "eval_mse" in entry:
                return {"step": kept} | {name: entry[f"eval_{name}"] for name in ("mse", "mae", "loss")}
        return None

    def forecast(
        self, past_values: Tensor, past_observed_mask: Tensor, covariates: dict[str, Tensor] | None = None
    ) -> Tensor:
        """Standardised lookbacks [B, L, C] -> standardised forecasts [B, H, C]; every rank passes the same lookbacks.

        `covariates`: the model's covariate inputs, by name.
        """
        return forecast_windows(
            lambda inputs: self.outputs(inputs)[0],
            past_values,
            past_observed_mask,
            reads_level=self.model.reads_level,
            covariates=covariates,
        )

    @torch.inference_mode()
    def outputs(self, inputs: dict[str, Tensor]) -> tuple[Tensor, ...]:
        """The model's forecasts [B, H, C] and, with a quantile head, quantiles [B, H, C, Q]; every rank calls it."""
        self.model.eval()
        with self.compute_loss_context_manager():
            output = self.model(**self._prepare_inputs(inputs))
        both = (output.prediction_outputs, output.quantile_outputs)
        return both if output.quantile_outputs is not None else both[:1]

    def forecast_quantiles(self, past_values: Tensor, past_observed_mask: Tensor) -> tuple[Tensor, Tensor | None]:
        """Lookbacks [B, L, C] in their own units -> forecasts [B, H, C], and quantiles [B, H, C, Q] or None."""
        result = self.outputs({"past_values": past_values, "past_observed_mask": past_observed_mask})
        return result[0], result[1] if len(result) > 1 else None


def _may_lack(keys: set[str], module: nn.Module, incompatible):
    incompatible.missing_keys[:] = [key for key in incompatible.missing_keys if key not in keys]
