"""uniform: the same share of every layer and head, the largest weights of each; the inner tokens."""

import torch
from torch import Tensor, nn

from slimsweep.methods.weight_squares import attention_squares, mlp_squares
from slimsweep.slimming.architectures import family_of
from slimsweep.slimming.removal_path import Scores
from slimsweep.slimming.structure import Shape


@torch.no_grad()
def uniform_scores(dense: nn.Module, shape: Shape) -> Scores:
    """Ranks by weight magnitude within each head and MLP, as shares of its size, so that all lose the same share.

    The magnitude of a dim or unit is the norm of all weights that it owns: rows of the projections to it, the column from
    it. Tokens have no weights: all count alike, and then the solver takes them away evenly from all layers, the border first.
    """
    scores: dict[str, list[Tensor]] = {family: [] for family in shape.gate_shapes}
    for index, block in enumerate(family_of(dense).blocks(dense)):
        layer = shape.layers[index]
        for family in shape.gate_shapes:
            size = shape.gate_shapes[family][index]
            if family == "token":
                scores[family].append(torch.ones(size))
            elif family == "mlp":
                scores[family].append(_ranks(mlp_squares(block)))
            else:
                dims = attention_squares(block, layer.heads, layer.head_dim)
                if size[1] == 1:  # whole heads, ranked among each other
                    scores[family].append(_ranks(dims.sum(1)).view(size))
                else:
                    scores[family].append(_ranks(dims.sum(0, keepdim=True) if size[0] == 1 else dims))
    return scores


def _ranks(values: Tensor) -> Tensor:
    """Places in the order from small to large along the last axis, from 1 / size to 1."""
    places = values.argsort(dim=-1, stable=True).argsort(dim=-1, stable=True)
    return (places + 1.0).double() / values.shape[-1]
