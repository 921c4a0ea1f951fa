"""All that shapes the weights of a forecaster: one table of fields for the command line and `config.json` alike."""

from dataclasses import fields
from typing import TYPE_CHECKING, Any

from transformers import AutoConfig, PreTrainedConfig

from .errors import InputError
from .settings import ABLATIONS, ModelSettings

MOST_MAPS = 64
"""Channels that get a linear map each: those of more would outweigh the model."""
TOKENS_AT_ONCE = 8192
"""The most that pass through the backbone in a forecast, unless one sequence alone has more."""

MOST_LAYERS = 1000
"""Blocks of a decoder; a configuration that says more is damaged, and building it would take for ever."""
_DEPTHS = ("num_hidden_layers", "num_layers", "n_layer", "n_layers")


def check_depth(stored: Any, where: str):
    """Raise InputError where a decoder's stored configuration, a multimodal model's too, says more than MOST_LAYERS."""
    if not isinstance(stored, dict):
        return
    for name, value in stored.items():
        if name in _DEPTHS and isinstance(value, (int, float)) and not value <= MOST_LAYERS:
            raise InputError(f"{where}: {name} is {str(value)[:20]}, more than {MOST_LAYERS}")
        check_depth(value, where)


class LlataConfig(PreTrainedConfig, ModelSettings):
    """Configuration of `LlataForPrediction`: the fields of `ModelSettings`, and the backbone's own configuration.

    Args:
        backbone_config: configuration of the backbone, already cut to `num_layers` blocks; `from_backbone` of the
            model fills it in.
        merged: LoRA and tuned norms are folded into the backbone, which the checkpoint then holds itself.
        includes_backbone: the checkpoint holds the frozen base, too.
        num_channels: C of the series that it is trained on; each has a linear map of its own then.
        covariates: of those that it is trained with, role (known, past, static) -> for each column the number of its
            categories, 0 for numbers.
        backbone_fingerprint: what the frozen base is known by (`backbone/fingerprint.py`); taken as it is first read.
        **kwargs: fields of `ModelSettings`, then those of `PreTrainedConfig`.
    """

    model_type = "llata"
    if TYPE_CHECKING:
        # None before `from_backbone` has read the backbone; no model is built then
        backbone_config: PreTrainedConfig
        num_heads: int
        num_prototypes: int
        alignment_rank: int
    # a forecast is all that evaluation gathers from the ranks
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
        backbone_fingerprint: dict | None = None,
        covariates: dict[str, list[int]] | None = None,
        **kwargs,
    ):
        # written by the version before, whose skips were others
        if kwargs.get("linear_skip") and "zero_head" in kwargs:
            raise InputError("a run with a linear skip of the version before cannot be read: train again")
        own = {item.name: kwargs.pop(item.name) for item in fields(ModelSettings) if item.name in kwargs}
        # transformers' way of saying that nobody asked for one
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
        self.backbone_fingerprint = backbone_fingerprint
        self.covariates = covariates
        if covariates is not None and set(covariates) != {"known", "past", "static"}:
            raise InputError("covariates must hold the sizes of known, past and static ones")
        super().__init__(**kwargs)
        if backbone_config is not None:
            self._resolve()

    def to_diff_dict(self) -> dict:
        """What `config.json` holds: all but attention and the base's precision, which are matters of the machine."""
        stored = super().to_diff_dict()
        for name in ("attn_implementation", "base_precision"):
            stored.pop(name, None)
        return stored

    def _resolve(self):
        """Settle the defaults that depend on the backbone's width, and check the sizes against it."""
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
            # two projections a layer that grow with the width's square would outweigh the rest of what is trained
            self.alignment_rank = D if D <= 1024 else 256
        if self.alignment_rank > D:
            raise InputError(f"alignment_rank {self.alignment_rank} is larger than the backbone's width {D}")

    @property
    def hidden_size(self) -> int:
        """D, the backbone's width (DeepSpeed sizes its automatic buckets by it)."""
        return self.backbone_config.hidden_size

    @property
    def has_text_branch(self) -> bool:
        """Whether training runs a textual branch beside the temporal one."""
        return ABLATIONS[self.ablation].text_branch

    @property
    def has_language_model(self) -> bool:
        """Whether tokens pass through a decoder, of pre-trained weights or random ones."""
        return ABLATIONS[self.ablation].language_model

    @property
    def has_frozen_base(self) -> bool:
        """Whether the pre-trained backbone is part of the forecaster."""
        return ABLATIONS[self.ablation].frozen_base

    @property
    def num_own_maps(self) -> int:
        """How many channels have a linear map of their own: none of a single one, none of very many."""
        channels = self.num_channels or 0
        return channels if 1 < channels <= MOST_MAPS else 0

    @property
    def variate_tokens(self) -> bool:
        """One token per channel, attention over channels; otherwise patches, each channel a sequence of its own."""
        return self.patch_length in (None, self.context_length)

    @property
    def patching(self) -> tuple[int, int]:
        """Patch length P and stride S in steps."""
        length = self.patch_length or self.context_length
        return length, self.patch_stride or length

    @property
    def num_patches(self) -> int:
        """N, patches per channel."""
        length, stride = self.patching
        return (self.context_length - length) // stride + 1

    @property
    def num_covariate_tokens(self) -> int:
        """K, covariates with a token of their own: those that move."""
        return 0 if self.covariates is None else len(self.covariates["known"]) + len(self.covariates["past"])

    def num_tokens(self, num_channels: int) -> int:
        """T, tokens that the backbone attends over for a series of `num_channels`."""
        return self.num_covariate_tokens + (num_channels if self.variate_tokens else self.num_patches)

    def tokens_per_window(self, num_channels: int) -> int:
        """Tokens of all sequences of a window of `num_channels`, of one branch."""
        return self.num_tokens(num_channels) * (1 if self.variate_tokens else num_channels)

    def channel_groups(self, num_channels: int) -> list[slice]:
        """Channels that a forecast computes together: all, unless they are sequences of their own and too many."""
        if self.variate_tokens or self.tokens_per_window(num_channels) <= TOKENS_AT_ONCE:
            return [slice(None)]
        size = max(1, TOKENS_AT_ONCE // self.num_tokens(num_channels))
        return [slice(start, start + size) for start in range(0, num_channels, size)]


AutoConfig.register(LlataConfig.model_type, LlataConfig)
