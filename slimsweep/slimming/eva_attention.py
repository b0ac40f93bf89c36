"""timm's EvaAttention, cut.

EvaAttention is always as wide as its model. Narrower, it becomes timm's AttentionRope, which computes the same and may have
any width; what it lacks, a bias on queries and values alone, is here.
"""

import torch
import torch.nn.functional as F
from timm.layers import AttentionRope
from timm.models.eva import EvaAttention
from torch import Tensor, nn


class QueryValueLinear(nn.Linear):
    """EVA's projection to q, k and v: queries and values have a bias, keys have none."""

    def __init__(self, linear: nn.Linear, q_bias: nn.Parameter, v_bias: nn.Parameter) -> None:
        super().__init__(linear.in_features, linear.out_features, bias=False, device="meta")
        self.weight, self.q_bias, self.v_bias = linear.weight, q_bias, v_bias

    def forward(self, x: Tensor) -> Tensor:
        """(..., embed_dim) to (..., 3 x dims)."""
        return F.linear(x, self.weight, torch.cat([self.q_bias, torch.zeros_like(self.q_bias), self.v_bias]))


def as_attention_rope(attention: EvaAttention) -> AttentionRope:
    """The attention, whose tensors and sizes have been cut, as timm's AttentionRope."""
    new = AttentionRope(
        attention.proj.out_features,
        num_heads=attention.num_heads,
        attn_head_dim=attention.head_dim,
        qkv_fused=attention.qkv is not None,
        num_prefix_tokens=attention.num_prefix_tokens,
        attn_drop=attention.attn_drop.p,
        proj_drop=attention.proj_drop.p,
        rotate_half=attention.rotate_half,
        device="meta",
    )
    if attention.qkv is not None and attention.q_bias is not None:
        new.qkv = QueryValueLinear(attention.qkv, attention.q_bias, attention.v_bias)
    else:
        new.qkv = attention.qkv
    for name in ("q_proj", "k_proj", "v_proj", "q_norm", "k_norm", "gate", "proj"):
        setattr(new, name, getattr(attention, name))
    return new.train(attention.training)


def with_fewer_key_heads(attention: AttentionRope) -> AttentionRope:
    """The attention, whose tensors and sizes have been cut, with as many heads of keys as of queries."""
    attention.num_kv_heads, attention.kv_dim = attention.num_heads, attention.attn_dim
    return attention
