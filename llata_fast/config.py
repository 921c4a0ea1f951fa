"""All that shapes the weights of a forecaster: one table of fields for the command line and `config.json` alike."""

from dataclasses import asdict, dataclass, field, fields

from transformers import AutoConfig, PreTrainedConfig

from .errors import InputError

LOSS_NAMES = ("l1", "smooth_l1", "mse")
FORECAST_LOSS_NAMES = (*LOSS_NAMES, "smape", "mase")

ABLATIONS = {
    "none": "LLaTA whole",
    "no_llm": "no language model: the head reads the time tokens",
    "llm_to_attention": "one attention layer, random at first, for the language model",
    "llm_to_transformer": "one encoder layer, random at first, for the language model",
    "random_init": "the language model with random weights, all of them trained",
    "no_text_branch": "the temporal branch alone",
    "no_consistency": "forecasts are not pulled together",
    "no_alignment": "features are not pulled together",
    "random_prototypes": "random text prototypes, spread as the words' principal components are",
}
"""What is taken out of the method. The first five after `none` have no textual branch, hence the task loss alone; the
first four of these are the ablations of Tan et al. (arXiv 2406.16964), with or without our options."""

_REPLACED = ("no_llm", "llm_to_attention", "llm_to_transformer", "random_init")


def _field(default, doc: str, choices: tuple[str, ...] | None = None):
    return field(default=default, metadata={"help": doc} | ({"choices": choices} if choices else {}))


@dataclass
class ModelArguments:
    """The fields of `LlataConfig` that a user sets; letters as in CONTRIBUTING.md.

    Raises:
        InputError: a value outside its range, by name.
    """

    backbone: str = _field("SmolLM2-135M-Instruct", "language model: hub id, folder, GGUF file or random:<family>")
    num_layers: int = _field(6, "number of the backbone's first blocks that are used")
    context_length: int = _field(336, "L: steps the forecaster sees")
    prediction_length: int = _field(96, "H: steps it forecasts")
    patch_length: int | None = _field(None, "P: steps a token holds; default L, one token per channel")
    patch_stride: int | None = _field(None, "S: steps between patches; default P")
    num_prototypes: int | None = _field(None, "V: principal components of the word embeddings; default min(500, D - 1)")
    num_heads: int | None = _field(
        None, "A of encoder and cross-attention; default 12 where it divides D, else the backbone's"
    )
    intermediate_size: int = _field(2048, "feed-forward width of the encoder")
    dropout: float = _field(0.1, "dropout of the encoder")
    lora_r: int = _field(8, "R: rank of LoRA on the attention's query, key and value projections; 0 for none")
    lora_alpha: float = _field(32.0, "LoRA's scale is lora_alpha / lora_r")
    lora_dropout: float = _field(0.1, "dropout in front of LoRA")
    task_loss: str = _field(
        "mse", "forecast against target; smape and mase as in the M4 competition", FORECAST_LOSS_NAMES
    )
    consistency_loss: str = _field("mse", "forecast of one branch against the other's", FORECAST_LOSS_NAMES)
    alignment_loss: str = _field("smooth_l1", "features of one branch against the other's", LOSS_NAMES)
    consistency_weight: float = _field(1.0, "weight of the consistency loss")
    alignment_weight: float = _field(0.01, "weight of the alignment loss")
    alignment_decay: float = _field(0.8, "the alignment loss of a feature k steps before the last counts decay**k")
    alignment_rank: int | None = _field(
        None, "rows of the alignment loss's projections, at most D; default D up to a width of 1024, else 256"
    )
    linear_skip: bool = _field(
        False, "add a linear forecast of the lookback to both branches, at first least squares (not in the paper)"
    )
    skip_channels: int = _field(
        0,
        "the number of channels, for each to have a linear skip of its own; 0: one for all (not in the paper)",
    )
    skip_level: float = _field(
        0.0, "weight of a forecast that returns to the mean level in the skip's start; 0: none (not in the paper)"
    )
    zero_head: bool = _field(False, "start the head at zero, so that a linear skip alone forecasts (not in the paper)")
    channel_balance: float = _field(
        0.0, "p: in training, channels weigh (error of a linear forecast)**-p; 0 for none (not in the paper)"
    )
    ablation: str = _field("none", "; ".join(f"{name}: {doc}" for name, doc in ABLATIONS.items()), tuple(ABLATIONS))
    backbone_pass: str = _field(
        "twin", "twin: both branches in one call of the backbone; two_pass: one call each", ("twin", "two_pass")
    )
    attn_implementation: str = _field(
        "auto",
        "attention of the backbone: auto, flash_attention_4, flash_attention_3, flash_attention_2, a hub kernel "
        "(kernels-community/...), sdpa or eager; chosen anew wherever the run is loaded",
    )
    base_precision: str = _field(
        "auto",
        "how training keeps the frozen backbone: auto (in the precision that is computed in), or through bitsandbytes "
        "on a CUDA device int8 or int4 (NF4)",
        ("auto", "int8", "int4"),
    )
    backbone_seed: int = _field(0, "seed of the weights of a random: backbone")

    def __post_init__(self):
        for name in ("num_layers", "context_length", "prediction_length", "intermediate_size"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} must be at least 1, got {getattr(self, name)}")
        for name in ("patch_length", "patch_stride", "num_prototypes", "num_heads", "alignment_rank"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise InputError(f"{name} must be at least 1, got {getattr(self, name)}")
        for name in ("dropout", "lora_dropout"):
            if not 0 <= getattr(self, name) < 1:
                raise InputError(f"{name} must be in [0, 1), got {getattr(self, name)}")
        for item in fields(self):
            choices = item.metadata.get("choices")
            if choices and getattr(self, item.name) not in choices:
                raise InputError(f"{item.name} must be one of {', '.join(choices)}, got {getattr(self, item.name)!r}")
        weights = ("consistency_weight", "alignment_weight", "alignment_decay", "channel_balance")
        for name in ("lora_r", "skip_channels", *weights):
            if getattr(self, name) < 0:
                raise InputError(f"{name} must be at least 0, got {getattr(self, name)}")
        if not 0 <= self.skip_level <= 1:
            raise InputError(f"skip_level must be in [0, 1], got {self.skip_level}")
        if (self.skip_channels or self.skip_level) and not self.linear_skip:
            raise InputError(
                "skip_channels and skip_level are parts of a linear skip: give --linear_skip true, or 0 for both"
            )
        if self.patch_length is not None and self.patch_length > self.context_length:
            raise InputError(f"patch_length {self.patch_length} is longer than context_length {self.context_length}")
        if self.patch_stride is not None and self.patch_length is None:
            raise InputError("patch_stride without patch_length: patch tokens take both, variate tokens neither")
        if self.base_precision != "auto":
            if self.ablation in _REPLACED:
                raise InputError(f"base_precision {self.base_precision}: ablation {self.ablation} has no frozen base")
            if self.backbone_pass == "two_pass":
                raise InputError(f"base_precision {self.base_precision} needs backbone_pass twin")


class LlataConfig(PreTrainedConfig):
    """Configuration of `LlataForPrediction`: the fields of `ModelArguments`, and the backbone's own configuration.

    Args:
        backbone_config: configuration of the backbone, already cut to `num_layers` blocks; `from_backbone` of the
            model fills it in.
        merged: LoRA and tuned norms are folded into the backbone, which the checkpoint then holds itself.
        includes_backbone: the checkpoint holds the frozen base, too.
        **kwargs: fields of `ModelArguments`, then those of `PreTrainedConfig`.
    """

    model_type = "llata"
    # a forecast is all that evaluation gathers from the ranks
    keys_to_ignore_at_inference = ["text_outputs", "task_loss", "consistency_loss", "alignment_loss"]

    def __init__(
        self,
        backbone_config: PreTrainedConfig | dict | None = None,
        merged: bool = False,
        includes_backbone: bool = False,
        **kwargs,
    ):
        own = {item.name: kwargs.pop(item.name) for item in fields(ModelArguments) if item.name in kwargs}
        # transformers' way of saying that nobody asked for one
        if own.get("attn_implementation", "auto") is None:
            del own["attn_implementation"]
        for name, value in asdict(ModelArguments(**own)).items():
            setattr(self, name, value)
        if isinstance(backbone_config, dict):
            backbone_config = AutoConfig.for_model(**backbone_config)
        self.backbone_config = backbone_config
        self.merged = merged
        self.includes_backbone = includes_backbone
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
        return self.ablation not in (*_REPLACED, "no_text_branch")

    @property
    def has_language_model(self) -> bool:
        """Whether tokens pass through a decoder, of pre-trained weights or random ones."""
        return self.ablation in ("none", "random_init") or self.has_frozen_base

    @property
    def has_frozen_base(self) -> bool:
        """Whether the pre-trained backbone is part of the forecaster."""
        return self.ablation not in _REPLACED

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

    def num_tokens(self, num_channels: int) -> int:
        """T, tokens that the backbone attends over for a series of `num_channels`."""
        return num_channels if self.variate_tokens else self.num_patches
