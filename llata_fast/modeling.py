"""LLaTA: a forecaster distilled across modalities from a pre-trained language model (arXiv 2403.07300).

    series -> PatchEmbedding -> EncoderLayer -> time tokens -+---------------------> temporal branch -> head -> forecast
                                                             +-> CrossAttention over
                                                                 word prototypes --> textual branch  -> head -> forecast

Both branches are rows of one batch through one frozen backbone (`backbone/twin.py`). Training pulls the forecasts
together (consistency), and also the features of every block (alignment). At inference only the temporal branch
forecasts. Letters: B windows, L lookback, H horizon, C channels, N patches, T tokens, D width, A heads, E head width,
V prototypes.
"""

from dataclasses import dataclass, fields
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import torch
import torch.nn.functional as F
from huggingface_hub import load_torch_model
from torch import Tensor, nn
from transformers import AutoModelForTimeSeriesPrediction, PreTrainedModel
from transformers.pytorch_utils import Conv1D
from transformers.utils import ModelOutput

from .ablations import AttentionBlock, StandIn
from .backbone.attention import choose_attention
from .backbone.base import load_base
from .backbone.loading import build_backbone, max_tokens, read_backbone_config, settled_source
from .backbone.prototypes import backbone_prototypes
from .backbone.quantised import quantised_modules
from .backbone.twin import PlainBackbone, TwinBackbone
from .config import LlataConfig
from .covariate_tokens import COVARIATE_INPUTS, CovariateTokens, input_shapes
from .errors import InputError
from .kernels import deep_alignment_loss, forecast_losses, patch_embed, prototype_attention, twin_norm
from .linear import LinearSkip
from .linear_covariates import LinearCovariates
from .losses import check_loss, forecast_loss
from .masters import cast_masters
from .quantiles import QuantileHead, in_order, pinball_loss
from .ranks import from_first_rank
from .settings import ModelSettings
from .stored_model import HUB_OPTIONS, check_shapes, describing_a_model, find_model, stored_config


@dataclass
class ForecastOutput(ModelOutput):
    """What `LlataForPrediction` returns; the losses are fp32 scalars, all unweighted except `loss`.

    loss: task + quantile + consistency_weight * consistency + alignment_weight * alignment; in evaluation the task loss
        alone.
    prediction_outputs: the forecast [B, H, C], fp32, in the units of the input.
    quantile_outputs: [B, H, C, Q] in the same units, rising along Q; only with `quantile_levels`.
    text_outputs: the textual branch's forecast [B, H, C]; only in training, like the single losses.

    An ablation leaves out the outputs of what it removes.
    """

    loss: Tensor | None = None
    prediction_outputs: Tensor | None = None
    quantile_outputs: Tensor | None = None
    text_outputs: Tensor | None = None
    task_loss: Tensor | None = None
    quantile_loss: Tensor | None = None
    consistency_loss: Tensor | None = None
    alignment_loss: Tensor | None = None


class PatchEmbedding(nn.Module):
    """Instance norm, patches and a linear layer: series [B, L, C] -> tokens [B, C, N, D], loc and scale [B, C]."""

    def __init__(self, hidden_size: int, patch_length: int, patch_stride: int):
        super().__init__()
        linear = nn.Linear(patch_length, hidden_size)
        self.weight, self.bias = linear.weight, linear.bias
        self.patch_length, self.patch_stride = patch_length, patch_stride

    def forward(self, series: Tensor, observed_mask: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        return patch_embed(
            series,
            self.weight,
            self.bias,
            patch_length=self.patch_length,
            patch_stride=self.patch_stride,
            observed_mask=observed_mask,
        )


class _SumNorm(nn.LayerNorm):
    """Norm of x + update [..., D], in `dtype` or else in x's dtype."""

    # unlike other layer norms, of two tensors
    def forward(self, x: Tensor, update: Tensor, dtype: torch.dtype | None = None) -> Tensor:  # type: ignore[override]
        weights = self.weight, self.bias, self.weight, self.bias
        rows = x.flatten(0, -2)
        y, _ = twin_norm(
            rows,
            *weights,
            num_time_rows=rows.shape[0],
            eps=self.eps,
            kind="layer",
            update=update.flatten(0, -2),
            out_dtype=dtype,
        )
        return y.view(x.shape)


class EncoderLayer(nn.Module):
    """Post-norm Transformer encoder layer, bidirectional, ReLU (arXiv 1706.03762): [B, T, D] -> the same."""

    def __init__(self, hidden_size: int, num_heads: int, intermediate_size: int, dropout: float):
        super().__init__()
        self.num_heads, self.dropout = num_heads, dropout
        self.qkv_proj = nn.Linear(hidden_size, 3 * hidden_size)
        self.out_proj = nn.Linear(hidden_size, hidden_size)
        self.up_proj = nn.Linear(hidden_size, intermediate_size)
        self.down_proj = nn.Linear(intermediate_size, hidden_size)
        self.norm1, self.norm2 = _SumNorm(hidden_size), _SumNorm(hidden_size)
        _init_attention(self.qkv_proj, self.out_proj)

    def forward(self, x: Tensor) -> Tensor:
        B, T, D = x.shape
        q, k, v = self.qkv_proj(x).view(B, T, 3, self.num_heads, D // self.num_heads).permute(2, 0, 3, 1, 4)
        attended = F.scaled_dot_product_attention(q, k, v, dropout_p=self.dropout if self.training else 0.0)
        x = self.norm1(x, self._drop(self.out_proj(attended.transpose(1, 2).reshape(B, T, D))))
        update = self._drop(self.down_proj(self._drop(F.relu(self.up_proj(x)))))
        # the output is a residual stream, so it keeps the weights' precision
        return self.norm2(x, update, torch.promote_types(x.dtype, self.norm2.weight.dtype))

    def _drop(self, x: Tensor) -> Tensor:
        return F.dropout(x, self.dropout, self.training)


class CrossAttention(nn.Module):
    """Time tokens [B, T, D] attend to the word prototypes [V, D] -> text tokens [B, T, D].

    All queries share the prototypes, so keys and values are projected once per step.
    """

    def __init__(self, hidden_size: int, num_heads: int):
        super().__init__()
        self.num_heads = num_heads
        self.q_proj = nn.Linear(hidden_size, hidden_size)
        self.kv_proj = nn.Linear(hidden_size, 2 * hidden_size)
        self.out_proj = nn.Linear(hidden_size, hidden_size)
        _init_attention(self.q_proj, self.out_proj)
        _init_attention(self.kv_proj, self.out_proj)

    def forward(self, time: Tensor, prototypes: Tensor) -> Tensor:
        q = self.q_proj(time).view(-1, self.num_heads, time.shape[-1] // self.num_heads)  # [M, A, E]
        keys_values = self.kv_proj(prototypes.to(time.dtype)).view(len(prototypes), 2, *q.shape[1:])  # [V, 2, A, E]
        k, v = keys_values.unbind(1)
        return self.out_proj(prototype_attention(q, k, v).reshape(time.shape))


class FeatureAlignment(nn.Module):
    """Distance between the branches' projected features, over all depths: [time; text] [2B, T, D] -> fp32 scalar.

    The projections are [depths, rank, D]: at every depth, each branch has its own map into a common space of `rank`
    dimensions, where the mean distance is taken; features k before the last are weighted by decay**k. With rank = D
    this is the published method. A smaller rank compares fewer learned directions; they are initialised like rows of
    the full map, so the loss starts at the same size. A second factor [D, rank] that leads back to D dimensions would
    only reweight the same `rank` differences.
    """

    def __init__(self, hidden_size: int, rank: int, num_depths: int, kind: str, decay: float):
        super().__init__()
        self.kind = kind
        self.depth_weights = [decay**k for k in reversed(range(num_depths))]
        linears = [[nn.Linear(hidden_size, rank, bias=False).weight for _ in range(2)] for _ in range(num_depths)]
        self.time_weight, self.text_weight = (
            nn.Parameter(torch.stack(weights).detach()) for weights in zip(*linears, strict=True)
        )
        self.register_load_state_dict_pre_hook(_stack_depths)

    def forward(self, features: tuple[Tensor, ...]) -> Tensor:
        rows = [feature.flatten(0, 1) for feature in features]
        weights = self.time_weight, self.text_weight
        return deep_alignment_loss(rows, *weights, depth_weights=self.depth_weights, kind=self.kind)


def _stack_depths(module: FeatureAlignment, state: dict[str, Tensor], prefix: str, *args):
    """Read checkpoints that store one projection per depth, "alignment.0.time_weight" and so on."""
    for name in ("time_weight", "text_weight"):
        keys = [f"{prefix}{depth}.{name}" for depth in range(len(module.depth_weights))]
        if all(key in state for key in keys):
            state[prefix + name] = torch.stack([state.pop(key) for key in keys])


def _init_attention(in_proj: nn.Linear, out_proj: nn.Linear):
    """Initialise attention like `torch.nn.MultiheadAttention`: Xavier over stacked q, k, v, and zero biases."""
    hidden_size = in_proj.in_features
    bound = (6 / (hidden_size + 3 * hidden_size)) ** 0.5
    nn.init.uniform_(in_proj.weight, -bound, bound)
    nn.init.zeros_(in_proj.bias)
    nn.init.zeros_(out_proj.bias)


# modules whose weights enter products in autocast's dtype
_WITH_PRODUCTS = (nn.Linear, Conv1D, PatchEmbedding, FeatureAlignment)


class LlataForPrediction(PreTrainedModel):
    """The forecaster: `from_backbone` creates a new one, `from_pretrained` loads a trained one."""

    config_class = LlataConfig
    config: LlataConfig
    backbone: TwinBackbone | PlainBackbone | StandIn
    alignment: FeatureAlignment | None
    prototypes: Tensor
    _keys_to_ignore_on_save: set[str]
    base_model_prefix = ""
    main_input_name = "past_values"
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    # with **kwargs the Trainer would assume that the model divides by the global batch, and rescale the loss
    accepts_loss_kwargs = False

    def __init__(self, config: LlataConfig, backbone: PreTrainedModel | None = None):
        """Build the forecaster around `backbone` (default: random weights), wrapping its modules in place."""
        super().__init__(config)
        self.attention_choice = choose_attention(config.backbone_config, config.attn_implementation)
        D = config.hidden_size
        self.max_tokens = max_tokens(config.backbone_config) if config.has_language_model else None
        self.embedding = PatchEmbedding(D, *config.patching)
        lengths = (config.context_length, config.prediction_length)
        self.covariates: CovariateTokens | None = None
        if config.covariates is not None:
            self.covariates = CovariateTokens(config.covariates, *lengths, D, config.dropout)
        self.encoder = EncoderLayer(D, config.num_heads, config.intermediate_size, config.dropout)
        self.head = nn.Linear(D * (1 if config.variate_tokens else config.num_patches), config.prediction_length)
        if config.linear_skip:
            nn.init.zeros_(self.head.weight)
            nn.init.zeros_(self.head.bias)
        self.quantile_head: QuantileHead | None = None
        if config.quantile_levels:
            self.quantile_head = QuantileHead(self.head.in_features, config.prediction_length, config.quantile_levels)
        self.skip: LinearSkip | None = None
        if config.linear_skip:
            self.skip = LinearSkip(*lengths, config.num_own_maps, config.num_season_steps)
        if self.skip is not None and config.covariates is not None and config.num_covariate_tokens:
            channels = config.num_channels or 1
            self.skip.covariates = LinearCovariates(config.covariates, config.prediction_length, channels)
        two_branches = config.has_text_branch and not config.merged
        if two_branches:
            self.cross_attention = CrossAttention(D, config.num_heads)
            self.register_buffer("prototypes", torch.zeros(config.num_prototypes, D))
        self.backbone = self._build_backbone(backbone)
        if two_branches:
            sizes = (D, config.alignment_rank, config.num_layers + 1)
            align = FeatureAlignment(*sizes, config.alignment_loss, config.alignment_decay)
            self.alignment = None if config.ablation == "no_alignment" else align
        self.post_init()
        if config.merged:
            self.backbone.requires_grad_(False)
        else:
            # a checkpoint names the frozen base instead of storing a copy
            self._keys_to_ignore_on_save = self.backbone.frozen_keys("backbone.")

    def _build_backbone(self, backbone: PreTrainedModel | None) -> TwinBackbone | PlainBackbone | StandIn:
        """The module that the tokens pass through, built around `backbone` or around random weights."""
        config = self.config
        D = config.hidden_size
        if config.ablation == "no_llm":
            return StandIn(nn.Identity())
        if config.ablation == "llm_to_attention":
            return StandIn(AttentionBlock(D))
        if config.ablation == "llm_to_transformer":
            return StandIn(EncoderLayer(D, config.num_heads, config.intermediate_size, config.dropout))
        if backbone is None:
            # what is overwritten need not be drawn
            stored = config.merged or config.includes_backbone
            backbone = build_backbone(config.backbone_config, self.attention_choice.name, draw_words=not stored)
        if config.merged or config.ablation == "random_init":
            return PlainBackbone(backbone)
        return TwinBackbone(
            backbone,
            rank=config.lora_r,
            alpha=config.lora_alpha,
            dropout=config.lora_dropout,
            mode=config.backbone_pass if config.has_text_branch else "temporal",
        )

    if TYPE_CHECKING:
        # transformers' decorator hides its signature
        def to(self, *args: Any, **kwargs: Any) -> Self: ...  # type: ignore[override]

    def init_weights(self):
        """Do nothing: every module has initialised itself or was loaded."""

    @classmethod
    def from_backbone(cls, config: LlataConfig, *, frozen_dtype: torch.dtype = torch.float32) -> "LlataForPrediction":
        """Create a forecaster around the pre-trained `config.backbone`; the model's config then also holds that
        backbone's configuration, fingerprint and resolved name (`settled_source`).

        The backbone's projections are stored in `frozen_dtype`, so that autocast to that dtype need not cast them in
        every step, or with `config.base_precision` in fewer bits. While a TrainingArguments with a ZeRO-3 configuration
        exists, every rank must call it and holds its share of the weights.

        Raises:
            InputError: the backbone is not found, has too few blocks, lacks weights, or cannot be quantised here.
        """
        backbone_config = read_backbone_config(config.backbone, config.num_layers)
        # through the constructor, which resolves the defaults that depend on the backbone's width
        settled = {"backbone_config": backbone_config.to_dict(), "backbone": settled_source(config.backbone)}
        config = LlataConfig(**(config.to_dict() | settled))
        if not config.has_frozen_base:
            return cls(config)
        backbone, weights = load_base(config, frozen_dtype)
        model = cls(config, backbone)
        if config.has_text_branch:
            prototypes = from_first_rank(lambda: backbone_prototypes(weights, config.num_prototypes))
            if config.ablation == "random_prototypes":
                prototypes = torch.randn_like(prototypes) * prototypes.std(1, keepdim=True)
            model.prototypes.copy_(prototypes)
        return model

    @classmethod
    def from_pretrained(cls, source: str | Path, **kwargs) -> "LlataForPrediction":  # type: ignore[override]
        """Load the trained forecaster that `save_pretrained` wrote to a folder or hub id, in evaluation mode.

        The frozen base comes from the checkpoint if it holds one, else from `config.backbone`. Keywords override fields
        of `ModelSettings`, for instance `backbone` if the base has moved; `config` replaces the folder's configuration.
        `revision`, `token`, `cache_dir`, `force_download` and `local_files_only` go to the hub.

        Raises:
            InputError: no checkpoint there, the base cannot be loaded, a weight is missing, or a field is unknown.
        """
        config = kwargs.pop("config", None)
        # transformers' auto classes pass these; a checkpoint's code is never run
        for name in ("adapter_kwargs", "trust_remote_code"):
            kwargs.pop(name, None)
        hub = {name: kwargs.pop(name) for name in HUB_OPTIONS if name in kwargs}
        if unknown := kwargs.keys() - {item.name for item in fields(ModelSettings)}:
            raise InputError(f"from_pretrained: the configuration has no field {min(unknown)!r} to override")
        folder = find_model(source, **hub)
        with describing_a_model(folder):
            config = stored_config(folder, **kwargs) if config is None else config
            held = config.merged or config.includes_backbone or not config.has_frozen_base
            if held and config.base_precision != "auto":
                raise InputError(f"{folder} includes its backbone, so base_precision cannot be applied to it")
            check_shapes(cls, config, folder)
            model = cls(config, None if held else load_base(config)[0])
            missing, unexpected = load_torch_model(model, folder)
        absent = model.backbone.shared_keys("backbone.") if held else model._keys_to_ignore_on_save
        lacking = set(missing) - absent
        if lacking or unexpected:
            problem = f"lacks {min(lacking)}" if lacking else f"holds {unexpected[0]}, which the model does not have"
            raise InputError(f"the checkpoint {folder} does not fit its configuration: it {problem}")
        return model.eval()

    def save_pretrained(self, save_directory: str | PathLike[str], *args, include_backbone: bool = False, **kwargs):
        """Write config.json and model.safetensors; the frozen base only if requested or merged.

        Raises:
            InputError: `include_backbone` for a model whose base is quantised.
        """
        if include_backbone and quantised_modules(self):
            raise InputError("a quantised base cannot be saved: reload the trained model with base_precision auto")
        ignored = self._keys_to_ignore_on_save
        if include_backbone:
            self._keys_to_ignore_on_save = self.backbone.shared_keys("backbone.")
        self.config.includes_backbone = include_backbone
        try:
            super().save_pretrained(save_directory, *args, **kwargs)
        finally:
            self._keys_to_ignore_on_save = ignored

    def merge(self) -> "LlataForPrediction":
        """Fold LoRA, tuned norms and positions into a plain backbone, in place, and drop the textual branch.

        Raises:
            InputError: the base is quantised, so nothing can be folded into it.
        """
        if quantised_modules(self):
            raise InputError("a quantised base cannot be merged: reload the trained model with base_precision auto")
        if not self.config.merged:
            if isinstance(self.backbone, TwinBackbone):
                self.backbone = PlainBackbone(self.backbone.merge())
            self.backbone.requires_grad_(False)
            if self.config.has_text_branch:
                del self.cross_attention, self.prototypes, self.alignment
            self.config.merged, self._keys_to_ignore_on_save = True, set()
        return self.eval()

    def forward(
        self,
        past_values: Tensor,
        future_values: Tensor | None = None,
        past_observed_mask: Tensor | None = None,
        insample_scale: Tensor | None = None,
        window_level: Tensor | None = None,
        window_scale: Tensor | None = None,
        past_covariates: Tensor | None = None,
        future_covariates: Tensor | None = None,
        static_covariates: Tensor | None = None,
        return_dict: bool | None = None,
    ) -> ForecastOutput | tuple:
        """Forecast; with targets, also compute the losses.

        Args:
            past_values: the lookback [B, L, C].
            future_values: the targets [B, H, C]; NaN marks a missing value. With `window_scale`, minus the level.
            past_observed_mask: [B, L, C] bool, False where `past_values` is missing.
            insample_scale: [B, C], the divisor of errors in the mase loss.
            window_level, window_scale: [B, C], for a lookback in normalised units: the series is `window_level` +
                `window_scale` * past_values. Forecasts are then in the series' units minus the level, and 0 where the
                scale is 0; a skip that returns to a level reads `window_level`.
            past_covariates: [B, L, K] for a model trained with covariates: the known ones, then the past ones, as
                encoded by `CovariateEncoding`; NaN is missing.
            future_covariates: [B, H, K'] of the K' known ones; static_covariates: [B, S].
            return_dict: False for a plain tuple of the outputs that are not None.

        Raises:
            InputError: lookback, horizon or covariates do not match the configuration, or there are more tokens than
                the backbone has positions.
        """
        if self.training and self.config.merged:
            raise RuntimeError("a merged model has no textual branch and cannot be trained")
        self.check_shapes(past_values, future_values)
        covariates = (past_covariates, future_covariates, static_covariates)
        self.check_covariates(past_values.shape[0], *covariates)
        with cast_masters(module for module in self.modules() if isinstance(module, _WITH_PRODUCTS)):
            output = self._output(
                past_values, future_values, past_observed_mask, insample_scale, window_level, window_scale, covariates
            )
        return output.to_tuple() if return_dict is False else output

    def _output(
        self,
        past_values: Tensor,
        future_values: Tensor | None,
        past_observed_mask: Tensor | None,
        insample_scale: Tensor | None,
        window_level: Tensor | None,
        window_scale: Tensor | None,
        covariates: tuple[Tensor | None, ...],
    ) -> ForecastOutput:
        """`forward` with validated inputs."""
        two_branches = self.training and self.config.has_text_branch
        learned: Tensor | None
        if two_branches:
            time, loc, scale = self.time_tokens(past_values, past_observed_mask, *covariates)
            features = self.backbone(torch.cat((time, self.cross_attention(time, self.prototypes))))
            learned, spread = self._heads(features[-1], loc)
        else:
            learned, spread, loc, scale = self._temporal(past_values, past_observed_mask, covariates)
        units = (loc, scale) if window_scale is None else (window_scale * loc, window_scale * scale)
        skipped = None
        if self.skip is not None:
            level = units[0] if window_level is None else window_level + units[0]
            skipped = self.skip(past_values, past_observed_mask, loc, scale, level, units[1], *covariates[:2])
        if two_branches and future_values is not None:
            assert learned is not None, "training runs the backbone"
            output = self._training_output(features, learned, units, skipped, future_values, insample_scale)
        elif two_branches:
            prediction, text = self._forecasts(learned, *units, skipped).chunk(2)
            output = ForecastOutput(prediction_outputs=prediction, text_outputs=text)
        else:
            forecasts, task = self._forecasts(learned, *units, skipped), None
            if future_values is not None:
                task = forecast_loss(self.config.task_loss, forecasts, future_values, insample_scale)
            output = ForecastOutput(loss=task, prediction_outputs=forecasts, task_loss=task)
        if spread is not None:
            self._add_quantiles(output, spread, units[1], future_values)
        return output

    def _temporal(
        self, past_values: Tensor, past_observed_mask: Tensor | None, covariates: tuple[Tensor | None, ...]
    ) -> tuple[Tensor | None, Tensor | None, Tensor, Tensor]:
        """The temporal branch's outputs of `_heads`, and loc and scale [B, C].

        If each channel is a sequence and a window has too many tokens, channels are computed in groups.
        """
        groups = [slice(None)] if self.training else self.config.channel_groups(past_values.shape[2])
        parts = []
        for group in groups:
            mask = None if past_observed_mask is None else past_observed_mask[..., group]
            if self.forecasts_without_backbone:
                parts.append((None, None, *self.embedding(past_values[..., group], mask)[1:]))
                continue
            time, loc, scale = self.time_tokens(past_values[..., group], mask, *covariates)
            parts.append((*self._heads(self.backbone(time)[-1], loc), loc, scale))
        if len(parts) == 1:
            return parts[0]
        *outputs, locs, scales = zip(*parts, strict=True)
        learned, spread = (None if values[0] is None else torch.cat(values, 1) for values in outputs)
        return learned, spread, torch.cat(locs, 1), torch.cat(scales, 1)

    def _heads(self, last: Tensor, loc: Tensor) -> tuple[Tensor, Tensor | None]:
        """Last features of one or both branches -> the head's [B or 2B, C, H], temporal quantiles [B, C, H, Q].

        loc is [B, C].
        """
        # the covariates' tokens do not forecast
        last = last[:, self.config.num_covariate_tokens :] if self.config.num_covariate_tokens else last
        rows = last.reshape(-1, loc.shape[1], self.head.in_features)
        return self.head(rows), None if self.quantile_head is None else self.quantile_head(rows[: loc.shape[0]])

    @property
    def forecasts_without_backbone(self) -> bool:
        """Whether the forecast is the linear skip alone, because validation kept nothing of the learned part."""
        return not self.training and self.skip is not None and self.skip.is_all and self.quantile_head is None

    @property
    def reads_level(self) -> bool:
        """Whether the linear skip reads the level, so that a forecast depends on more than the normalised lookback."""
        return self.skip is not None and self.skip.reads_level

    def time_tokens(
        self, past_values: Tensor, past_observed_mask: Tensor | None, *covariates: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """past_values [B, L, C] -> time tokens [B, C, D] or [B * C, N, D], loc and scale [B, C].

        With covariates (as in `forward`) there are K + C or K + N tokens; the covariates come first, so that the
        targets see them through a causal mask.
        """
        tokens, loc, scale = self.embedding(past_values, past_observed_mask)  # [B, C, N, D]
        if self.covariates is not None:
            tokens = self.covariates.add_static(tokens, covariates[2])
        num_channels = tokens.shape[1]
        tokens = tokens.squeeze(2) if self.config.variate_tokens else tokens.flatten(0, 1)
        if self.covariates is not None and self.config.num_covariate_tokens:
            own = self.covariates(*covariates[:2]).to(tokens.dtype)
            # each channel's patches are a separate sequence
            own = own if self.config.variate_tokens else own.repeat_interleave(num_channels, 0)
            tokens = torch.cat((own, tokens), 1)
        return self.encoder(tokens), loc, scale

    def _forecasts(self, learned: Tensor | None, loc: Tensor, scale: Tensor, skipped: Tensor | None) -> Tensor:
        """The head's output for one or both branches -> forecasts [B or 2B, H, C], fp32; None: `skipped` alone.

        loc and scale are [B, C]; `skipped` [B, C, H] is added to the normalised forecasts.
        """
        if learned is None:
            assert skipped is not None
            return (skipped * scale[..., None] + loc[..., None]).transpose(1, 2)
        branches = self._normalised(learned, loc, skipped).float().unflatten(0, (-1, loc.shape[0]))
        return (branches * scale[..., None] + loc[..., None]).flatten(0, 1).transpose(1, 2)

    def _normalised(self, learned: Tensor, loc: Tensor, skipped: Tensor | None) -> Tensor:
        """The head's output for one or both branches -> normalised forecasts [B or 2B, C, H]."""
        if self.skip is None or skipped is None:
            return learned
        branches = learned.float().unflatten(0, (-1, loc.shape[0]))
        return (branches * self.skip.learned_share + skipped).flatten(0, 1)

    def _add_quantiles(self, output: ForecastOutput, spread: Tensor, scale: Tensor, target: Tensor | None):
        """Give `output` quantiles `spread` [B, C, H, Q], normalised, from its points, and in training their loss."""
        points, levels = output.prediction_outputs, self.config.quantile_levels
        assert points is not None and levels is not None
        spread = (spread * scale[..., None, None]).transpose(1, 2)
        # the quantile loss must not move the point forecast
        output.quantile_outputs = in_order(points.detach()[..., None] + spread)
        if self.training and target is not None:
            assert output.loss is not None, "targets give a loss"
            output.quantile_loss = pinball_loss(output.quantile_outputs, target, levels)
            output.loss = output.loss + output.quantile_loss

    def _training_output(
        self,
        features: tuple[Tensor, ...],
        learned: Tensor,
        units: tuple[Tensor, Tensor],
        skipped: Tensor | None,
        target: Tensor,
        insample_scale: Tensor | None,
    ) -> ForecastOutput:
        config = self.config
        consistency = None if config.ablation == "no_consistency" else config.consistency_loss
        check_loss(config.task_loss, insample_scale)
        check_loss(consistency, insample_scale)
        forecasts, task_loss, consistency_loss, loss = forecast_losses(
            self._normalised(learned, units[0], skipped),
            *units,
            target,
            task=config.task_loss,
            consistency=consistency,
            consistency_weight=config.consistency_weight,
            insample_scale=insample_scale,
        )
        prediction, text = forecasts.chunk(2)
        output = ForecastOutput(loss, prediction, None, text, task_loss, None, consistency_loss)
        if self.alignment is not None:
            distance = self.alignment(features)
            output.alignment_loss, output.loss = distance, loss + config.alignment_weight * distance
        return output

    @property
    def covariate_shapes(self) -> dict[str, tuple[int, ...]]:
        """Covariate input of `forward` -> its shape without the batch axis."""
        return input_shapes(self.config.covariates, self.config.context_length, self.config.prediction_length)

    def check_covariates(self, batch_size: int, *covariates: Tensor | None):
        """Raise InputError unless the covariates (as in `forward`) match those that the model was trained with."""
        expected = self.covariate_shapes
        for name, tensor in zip(COVARIATE_INPUTS, covariates, strict=True):
            shape = [batch_size, *expected[name]] if name in expected else None
            if shape is None and tensor is not None:
                raise InputError(f"this model was trained without {name}")
            if shape is not None and (tensor is None or list(tensor.shape) != shape):
                got = "none" if tensor is None else list(tensor.shape)
                raise InputError(f"this model was trained with covariates: {name} must be {shape}, got {got}")

    def check_shapes(self, past_values: Tensor, future_values: Tensor | None = None):
        """Raise InputError if the inputs' sizes do not match the model's; reads no values."""
        L, H = self.config.context_length, self.config.prediction_length
        if past_values.ndim != 3 or past_values.shape[1] != L:
            raise InputError(f"past_values must be [B, {L}, C], got {list(past_values.shape)}")
        expected = (past_values.shape[0], H, past_values.shape[2])
        if future_values is not None and future_values.shape != expected:
            raise InputError(f"future_values must be {list(expected)}, got {list(future_values.shape)}")
        num_tokens = self.config.num_tokens(past_values.shape[2])
        if self.max_tokens is not None and num_tokens > self.max_tokens:
            raise InputError(
                f"{num_tokens} tokens per sequence, but {self.config.backbone} has only {self.max_tokens} positions: "
                "use fewer channels, longer patches or a backbone without learned positions"
            )


AutoModelForTimeSeriesPrediction.register(LlataConfig, LlataForPrediction)
