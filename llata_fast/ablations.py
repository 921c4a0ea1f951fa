"""What replaces the language model in the ablations that remove it (`LlataConfig.ablation`).

As in the experiments of Tan et al. (arXiv 2406.16964), the encoder stays, and its tokens reach the head unchanged,
through one attention layer or through one encoder layer.
"""

import torch.nn.functional as F
from torch import Tensor, nn

_ATTENTION_HEADS = 8


class AttentionBlock(nn.Module):
    """One layer of bidirectional attention with its residual, then a norm: tokens [B, T, D] -> the same."""

    def __init__(self, hidden_size: int):
        super().__init__()
        # known language models have widths that are multiples of 8; those in tests may not
        self.num_heads = _ATTENTION_HEADS if hidden_size % _ATTENTION_HEADS == 0 else 1
        self.qkv_proj = nn.Linear(hidden_size, 3 * hidden_size)
        self.out_proj = nn.Linear(hidden_size, hidden_size)
        self.norm = nn.LayerNorm(hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        B, T, D = x.shape
        q, k, v = self.qkv_proj(x).view(B, T, 3, self.num_heads, D // self.num_heads).permute(2, 0, 3, 1, 4)
        attended = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(B, T, D)
        return self.norm(x + self.out_proj(attended))


class StandIn(nn.Module):
    """`block` in place of a `TwinBackbone`: tokens [B, T, D] -> (features [B, T, D],), all of it trained."""

    def __init__(self, block: nn.Module):
        super().__init__()
        self.block = block

    def forward(self, tokens: Tensor) -> tuple[Tensor]:
        return (self.block(tokens),)

    def frozen_keys(self, prefix: str = "") -> set[str]:
        return set()

    def shared_keys(self, prefix: str = "") -> set[str]:
        return set()
