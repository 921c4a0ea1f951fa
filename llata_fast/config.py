"""Everything that determines a forecaster's weights: one table of fields for the command line and `config.json`."""

from dataclasses import fields
from typing import TYPE_CHECKING, Any

from transformers import AutoConfig, PreTrainedConfig

from .errors import InputError
from .settings import ABLATIONS, ModelSettings

MOST_MAPS = 64
"""At most this many channels get a linear map each; more maps would outweigh the model."""
TOKENS_AT_ONCE = 8192
"""Limit on tokens in one call of the backbone in a forecast, unless a single sequence is longer."""

MOST_LAYERS = 1000
"""Limit on a decoder's blocks: a configuration with more is damaged, and building it would never end."""
_DEPTHS = ("num_hidden_layers", "num_layers", "n_layer", "n_layers")


def check_depth(stored: Any, where: str):
    """Raise InputError if a stored configuration, or one nested in it, has more than MOST_LAYERS blocks."""
    if not isinstance(stored, dict):
        return
    for name, value in stored.items():
        if name in _DEPTHS and isinstance(value, (int, float)) and not value <= MOST_LAYERS:
            raise InputError(f"{where}: {name} is {str(value)[:20]}, more than {MOST_LAYERS}")
        check_depth(value, where)


class LlataConfig(PreTrainedConfig, ModelSettings):
    """Configuration of `LlataForPrediction`: the fields of `ModelSettings`, and the backbone's own configuration.

    Args:
        backbone_config: configuration of the backbone, already cut to `num_layers` blocks; the model's
            `from_backbone` fills it in.
        merged: LoRA and tuned norms are folded into the backbone, which the checkpoint then includes.
        includes_backbone: the checkpoint also holds the frozen base.
        num_channels: C of the training series; if given, each channel gets its own linear map.
        season_length: steps of the training series' season; the linear skip has a mean one if the lookback holds it.
        covariates: role (known, past, static) -> for each column its number of categories, 0 for a numeric column.
        backbone_fingerprint: identifies the frozen base (`backbone/fingerprint.py`); taken when the base is first read.
        **kwargs: fields of `ModelSettings`, then those of `PreTrainedConfig`.
    """

    model_type = "llata"
    if TYPE_CHECKING:
        # None until `from_backbone` has read the backbone; no model is built before that
        backbone_config: PreTrainedConfig
        num_heads: int
        num_prototypes: int
        alignment_rank: int
    # evaluation gathers only the forecast from the ranks
    keys_to_ignore_at_inference = [
        "quantile_outputs",
        "text_outputs",
        "task_loss",
        "quantile_loss",
        "consistency_loss",
        "alignment_loss",
    ]

    def __init__(
        self,
        backbone_config: PreTrainedConfig | dict | None = None,
        merged: bool = False,
        includes_backbone: bool = False,
        num_channels: int | None = None,
        season_length: int | None = None,
        backbone_fingerprint: dict | None = None,
        covariates: dict[str, list[int]] | None = None,
        **kwargs,
    ):
        # only an older version wrote both fields, and its skips were different
        if kwargs.get("linear_skip") and "zero_head" in kwargs:
            raise InputError("this run's linear skip was written by an older version and cannot be read: train again")
        own = {item.name: kwargs.pop(item.name) for item in fields(ModelSettings) if item.name in kwargs}
        # transformers writes None for "not requested"
        if own.get("attn_implementation", "auto") is None:
            del own["attn_implementation"]
        vars(self).update(vars(ModelSettings(**own)))
        if isinstance(backbone_config, dict):
            check_depth(backbone_config, "backbone_config")
            backbone_config = AutoConfig.for_model(**backbone_config)
        self.backbone_config = backbone_config  # type: ignore[assignment]  # as declared above
        self.merged = merged
        self.includes_backbone = includes_backbone
        self.num_channels = num_channels
        self.season_length = season_length
        self.backbone_fingerprint = backbone_fingerprint
        self.covariates = covariates
        if covariates is not None and set(covariates) != {"known", "past", "static"}:
            raise InputError("covariates must hold the sizes of the known, past and static columns")
        super().__init__(**kwargs)
        if backbone_config is not None:
            self._resolve()

    def to_diff_dict(self) -> dict:
        """What `config.json` holds: everything but attention and base precision, which depend on the machine."""
        stored = super().to_diff_dict()
        for name in ("attn_implementation", "base_precision"):
            stored.pop(name, None)
        return stored

    def _resolve(self):
        """Resolve the defaults that depend on the backbone's width, and check the sizes against it."""
        D = self.hidden_size
        if self.num_heads is None:
            self.num_heads = 12 if D % 12 == 0 else self.backbone_config.num_attention_heads
        if D % self.num_heads:
            raise InputError(f"num_heads {self.num_heads} does not divide the backbone's width {D}: give --num_heads")
        if self.num_prototypes is None:
            self.num_prototypes = min(500, D - 1)
        if self.num_prototypes > D - 1:
            raise InputError(f"num_prototypes {self.num_prototypes}: a backbone of width {D} has at most {D - 1}")
        if self.alignment_rank is None:
            # two full projections per layer would outweigh the rest of the trained weights
            self.alignment_rank = D if D <= 1024 else 256
        if self.alignment_rank > D:
            raise InputError(f"alignment_rank {self.alignment_rank} is larger than the backbone's width {D}")

    @property
    def hidden_size(self) -> int:
        """D, the backbone's width (DeepSpeed sizes its automatic buckets by it)."""
        return self.backbone_config.hidden_size

    @property
    def has_text_branch(self) -> bool:
        """Whether training also runs the textual branch."""
        return ABLATIONS[self.ablation].text_branch

    @property
    def has_language_model(self) -> bool:
        """Whether tokens pass through a decoder, with pre-trained or random weights."""
        return ABLATIONS[self.ablation].language_model

    @property
    def has_frozen_base(self) -> bool:
        """Whether the forecaster contains the frozen pre-trained backbone."""
        return ABLATIONS[self.ablation].frozen_base

    @property
    def num_own_maps(self) -> int:
        """Number of channels with their own linear map: 0 for very many, or for a single one without a season."""
        channels = self.num_channels or 0
        return channels if (1 if self.num_season_steps else 2) <= channels <= MOST_MAPS else 0

    @property
    def num_season_steps(self) -> int:
        """P, the steps of the mean season beside the linear skip's maps: 0 unless the lookback holds a season."""
        length = self.season_length or 0
        return length if 1 < length <= self.context_length else 0

    @property
    def variate_tokens(self) -> bool:
        """One token per channel, with attention over channels; otherwise patches, one sequence per channel."""
        return self.patch_length in (None, self.context_length)

    @property
    def patching(self) -> tuple[int, int]:
        """Patch length P and stride S in time steps."""
        length = self.patch_length or self.context_length
        return length, self.patch_stride or length

    @property
    def num_patches(self) -> int:
        """N, patches per channel."""
        length, stride = self.patching
        return (self.context_length - length) // stride + 1

    @property
    def num_covariate_tokens(self) -> int:
        """K, the covariates that get a token each: those that vary over time."""
        return 0 if self.covariates is None else len(self.covariates["known"]) + len(self.covariates["past"])

    def num_tokens(self, num_channels: int) -> int:
        """T, the tokens in one sequence of the backbone for a series of `num_channels`."""
        return self.num_covariate_tokens + (num_channels if self.variate_tokens else self.num_patches)

    def tokens_per_window(self, num_channels: int) -> int:
        """Tokens of one window of `num_channels`, over all its sequences, for one branch."""
        return self.num_tokens(num_channels) * (1 if self.variate_tokens else num_channels)

    def channel_groups(self, num_channels: int) -> list[slice]:
        """Channels that a forecast computes together: all, unless each is a sequence and they are too many."""
        if self.variate_tokens or self.tokens_per_window(num_channels) <= TOKENS_AT_ONCE:
            return [slice(None)]
        size = max(1, TOKENS_AT_ONCE // self.num_tokens(num_channels))
        return [slice(start, start + size) for start in range(0, num_channels, size)]


AutoConfig.register(LlataConfig.model_type, LlataConfig)
