"""LLaTA as its published implementation computes it: the baseline of the train-step benchmark.

Written from the description of the method, with the published code's order of operations: two full copies of the
backbone and two passes, eager attention that returns its maps, prototypes copied for every window and then projected to
keys and values, features projected and stored layer by layer, both branches at test time, fp32. Its state-dict keys are
the published ones, so `load_reference_checkpoint` can load its weights into our model for comparison.
"""

from types import SimpleNamespace

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AutoModel, GPT2Config, LlamaConfig, PreTrainedConfig

LOSSES = {"l1": F.l1_loss, "smooth_l1": F.smooth_l1_loss, "mse": F.mse_loss}


def backbone_config(family: str, hidden_size: int, num_layers: int, dropout: float) -> PreTrainedConfig:
    """GPT-2's proportions, or those of Llama 3 8B."""
    if family == "gpt2":
        return GPT2Config(
            n_embd=hidden_size,
            n_layer=num_layers,
            n_head=hidden_size // 64,
            resid_pdrop=dropout,
            embd_pdrop=dropout,
            attn_pdrop=dropout,
            use_cache=False,
        )
    return LlamaConfig(
        hidden_size=hidden_size,
        intermediate_size=hidden_size * 7 // 2,
        num_hidden_layers=num_layers,
        num_attention_heads=hidden_size // 128,
        num_key_value_heads=hidden_size // 512,
        use_cache=False,
    )


class LoraLinear(nn.Module):
    """A projection with a low-rank update."""

    def __init__(self, base_layer: nn.Module, rank: int, alpha: float, dropout: float):
        super().__init__()
        in_features, out_features = base_layer.weight.shape
        if isinstance(base_layer, nn.Linear):
            in_features, out_features = out_features, in_features
        self.base_layer = base_layer
        self.lora_A = nn.ModuleDict({"default": nn.Linear(in_features, rank, bias=False)})
        self.lora_B = nn.ModuleDict({"default": nn.Linear(rank, out_features, bias=False)})
        self.lora_dropout = nn.Dropout(dropout)
        self.scaling = alpha / rank
        nn.init.zeros_(self.lora_B["default"].weight)

    def forward(self, x: Tensor) -> Tensor:
        low = self.lora_A["default"](self.lora_dropout(x))
        return self.base_layer(x) + self.lora_B["default"](low) * self.scaling


class PrototypeEncoder(nn.Module):
    """Lookback [B, C, L] -> time tokens, text tokens [B, C, D]."""

    def __init__(self, context_length: int, hidden_size: int, num_heads: int, dropout: float):
        super().__init__()
        self.linear = nn.Linear(context_length, hidden_size)
        layer = nn.TransformerEncoderLayer(hidden_size, num_heads, dropout=dropout, batch_first=True)
        self.transformer_encoder = nn.TransformerEncoder(layer, num_layers=1, enable_nested_tensor=False)
        self.cross_attention = nn.MultiheadAttention(hidden_size, num_heads, batch_first=True)

    def forward(self, x: Tensor, prototypes: Tensor) -> tuple[Tensor, Tensor]:
        time = self.transformer_encoder(self.linear(x))
        copies = prototypes[None].repeat(len(x), 1, 1)
        text, _ = self.cross_attention(time, copies, copies)
        return time, text


class ReferenceModel(nn.Module):
    """x [B, L, C] -> forecasts of both branches [B, H, C] and the features the alignment loss compares."""

    def __init__(
        self,
        prototypes: Tensor,
        config: PreTrainedConfig,
        *,
        context_length: int,
        prediction_length: int,
        lora_r: int = 8,
        lora_alpha: float = 32,
        dropout: float = 0.1,
    ):
        super().__init__()
        hidden_size, num_layers = config.hidden_size, config.num_hidden_layers
        num_heads = hidden_size // 64
        self.prototypes = prototypes
        temporal, self.gpt2_text = (AutoModel.from_config(config, attn_implementation="eager") for _ in range(2))
        self.gpt2_text.load_state_dict(temporal.state_dict())
        for parent in list(temporal.modules()):
            for name in {"c_attn", "q_proj", "k_proj", "v_proj"} & dict(parent.named_children()).keys():
                setattr(parent, name, LoraLinear(getattr(parent, name), lora_r, lora_alpha, dropout))
        # nested like PEFT, for the names of the weights
        self.gpt2 = nn.ModuleDict({"base_model": nn.ModuleDict({"model": temporal})})
        for name, parameter in temporal.named_parameters():
            parameter.requires_grad = any(part in name for part in ("ln", "norm", "wpe", "lora"))
        for name, parameter in self.gpt2_text.named_parameters():
            parameter.requires_grad = "wpe" in name
        self.in_layer = PrototypeEncoder(context_length, hidden_size, num_heads, dropout)
        self.time_proj = nn.ModuleList(nn.Linear(hidden_size, hidden_size, bias=False) for _ in range(num_layers + 1))
        self.text_proj = nn.ModuleList(nn.Linear(hidden_size, hidden_size, bias=False) for _ in range(num_layers + 1))
        self.out_layer = nn.Linear(hidden_size, prediction_length)

    def forward(self, x: Tensor) -> SimpleNamespace:
        means = x.mean(1, keepdim=True).detach()
        x = x - means
        stdev = torch.sqrt(x.var(1, keepdim=True, unbiased=False) + 1e-5).detach()
        time, text = self.in_layer((x / stdev).transpose(1, 2), self.prototypes)
        outputs, features = [], []
        for backbone, tokens, projections in (
            (self.gpt2["base_model"]["model"], time, self.time_proj),
            (self.gpt2_text, text, self.text_proj),
        ):
            result = backbone(inputs_embeds=tokens, output_attentions=True, output_hidden_states=True)
            # in place, because the last hidden state includes the residual
            last = result.last_hidden_state
            last += tokens
            features.append([project(h) for project, h in zip(projections, result.hidden_states, strict=True)])
            outputs.append(self.out_layer(last).transpose(1, 2) * stdev + means)
        return SimpleNamespace(time=outputs[0], text=outputs[1], time_features=features[0], text_features=features[1])


def reference_loss(output: SimpleNamespace, target: Tensor, kind: str, *, gamma: float = 0.8) -> Tensor:
    """task + 1.0 * output consistency + 0.01 * feature loss, in which the last feature has the largest weight."""
    loss = LOSSES[kind]
    pairs = zip(reversed(output.time_features), reversed(output.text_features), strict=True)
    feature = sum(gamma**depth * loss(time, text) for depth, (time, text) in enumerate(pairs))
    return loss(output.time, target) + loss(output.time, output.text) + 0.01 * feature
