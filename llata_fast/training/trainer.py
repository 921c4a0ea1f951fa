"""The Hugging Face Trainer, subclassed only where a forecaster differs from a language model."""

import re

import torch
from torch import Tensor, nn
from transformers import EarlyStoppingCallback, Trainer

from ..backbone.placing import finish_partitioning
from ..data import Splits, collate
from ..metrics import ForecastMetrics
from .arguments import ForecastTrainingArguments

# the reference trains these at a rate of their own: attention of encoder and cross-attention, alignment projections
_PROJECTIONS = re.compile(r"alignment\.|(encoder|cross_attention)\.(q|kv|qkv|out)_proj\.")
_LOSS_TERMS = ("task_loss", "consistency_loss", "alignment_loss")


class ForecastTrainer(Trainer):
    """Adds two learning-rate groups, streamed forecast metrics and the terms of the loss in the log."""

    args: ForecastTrainingArguments

    def __init__(self, model: nn.Module, args: ForecastTrainingArguments, splits: Splits, columns: list[str]):
        splits = splits._replace(**{name: getattr(splits, name).to(args.device) for name in ("train", "val", "test")})
        if args.deepspeed is not None:
            finish_partitioning(model, args.hf_deepspeed_config.dtype(), args.device)
        self.metrics = ForecastMetrics(columns)
        self._terms: dict[str, Tensor] = {}
        self._num_terms = 0
        callbacks = []
        if args.patience and args.load_best_model_at_end:
            callbacks.append(EarlyStoppingCallback(early_stopping_patience=args.patience))
        super().__init__(
            model=model,
            args=args,
            data_collator=collate,
            train_dataset=splits.train,
            eval_dataset=splits.val,
            compute_metrics=self.metrics,
            callbacks=callbacks,
        )
        self.splits = splits

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        if self.optimizer is None:
            optimizer_cls, kwargs = self.get_optimizer_cls_and_kwargs(self.args, self.model)
            self.optimizer = optimizer_cls(self._parameter_groups(), **kwargs)
        return self.optimizer

    def _parameter_groups(self) -> list[dict]:
        groups = ([], [])
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
        # the Trainer would cast every float to DeepSpeed's half precision; series and targets stay fp32
        return data.to(self.args.device) if isinstance(data, Tensor) else super()._prepare_input(data)

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        outputs = model(**inputs)
        if model.training:
            # an ablation lacks some
            for name in [name for name in _LOSS_TERMS if name in outputs]:
                # a copy: the next step of a CUDA graph writes where this one did
                term = outputs[name].detach().clone()
                self._terms[name] = self._terms[name] + term if name in self._terms else term
            self._num_terms += 1
        return (outputs.loss, outputs) if return_outputs else outputs.loss

    def log(self, logs: dict[str, float], *args, **kwargs):
        if "loss" in logs and self._num_terms:
            means = torch.stack(list(self._terms.values())) / self._num_terms
            means = self.accelerator.gather(means[None]).mean(0)
            logs |= dict(zip(self._terms, means.tolist(), strict=True))
            self._terms, self._num_terms = {}, 0
        super().log(logs, *args, **kwargs)

    def test(self) -> dict:
        """MSE and MAE over every window of the test split, and per channel; the same on every rank."""
        # it would look for the validation's score among these
        self.remove_callback(EarlyStoppingCallback)
        scores = self.evaluate(self.splits.test, metric_key_prefix="test")
        return {"mse": scores["test_mse"], "mae": scores["test_mae"], "per_channel": self.metrics.per_channel}

    def forecast(self, past_values: Tensor, past_observed_mask: Tensor | None = None) -> Tensor:
        """Standardised lookbacks [B, L, C] -> forecasts [B, H, C] likewise; every rank calls it, with the same ones."""
        inputs = {"past_values": past_values, "past_observed_mask": past_observed_mask}
        return self.prediction_step(self.model, inputs, prediction_loss_only=False)[1]
