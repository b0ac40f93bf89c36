"""Sums of squared weights per attention dim and per MLP unit."""

from torch import Tensor

from slimsweep.slimming.architectures import MLP_ROWS, Timm, attention_rows, tensor_at


def attention_squares(block: Timm, heads: int, head_dim: int) -> Tensor:
    """(heads, head_dim) sums of squares of all weights of each attention dim: its rows in q, k and v, its column in proj."""
    total = block.attn.proj.weight.detach().square().sum(0).cpu()
    for name, stacks in attention_rows(block.attn).items():
        rows = tensor_at(block.attn, name)
        assert rows is not None
        total = total + rows.detach().cpu().reshape(stacks, heads * head_dim, -1).square().sum((0, 2))
    return total.view(heads, head_dim)


def mlp_squares(block: Timm) -> Tensor:
    """(hidden,) sums of squares of all weights of each MLP unit: its rows in the projections to it, its column in fc2."""
    mlp = block.mlp
    hidden = mlp.fc2.in_features
    total = mlp.fc2.weight.detach().square().sum(0).cpu()
    for name, stacks in MLP_ROWS[type(mlp)].items():
        for rows in getattr(mlp, name).parameters():
            total = total + rows.detach().cpu().reshape(stacks, hidden, -1).square().sum((0, 2))
    return total
