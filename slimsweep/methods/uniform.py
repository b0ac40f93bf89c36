"""uniform: keeps the same share of every layer and head, the largest weights of each, and the inner tokens."""

import torch
from torch import Tensor, nn

from slimsweep.methods.by_scores import structures_by_scores
from slimsweep.methods.choice import Choice
from slimsweep.methods.weight_squares import attention_squares, mlp_squares
from slimsweep.slimming.architectures import architecture_of
from slimsweep.slimming.removal_path import Scores
from slimsweep.slimming.shape import Shape
from slimsweep.slimming.structure import Structure


def choose(choice: Choice) -> list[Structure | ValueError]:
    """A structure per budget that keeps the same share of every layer and head."""
    return structures_by_scores(choice, uniform_scores(choice.dense, choice.shape))


@torch.no_grad()
def uniform_scores(dense: nn.Module, shape: Shape) -> Scores:
    """Ranks by weight magnitude within each head and MLP, as shares of its size, so that all lose the same share.

    The magnitude of a dim or unit is the norm of all its weights: its rows in the projections to it, its column in the
    projection from it. Tokens have no weights: all have the same score, and then the removal path takes them from all
    layers evenly, those at the border first.

    Returns:
        For each family a tensor per layer, in the gates' shapes.
    """
    scores: dict[str, list[Tensor]] = {family: [] for family in shape.gate_shapes}
    for index, block in enumerate(architecture_of(dense).blocks(dense)):
        layer = shape.layers[index]
        for family in shape.gate_shapes:
            size = shape.gate_shapes[family][index]
            if family == "token":
                scores[family].append(torch.ones(size))
            elif family == "mlp":
                scores[family].append(_ranks(mlp_squares(block)))
            else:
                dims = attention_squares(block, layer.heads, layer.head_dim)
                if size[1] == 1:  # whole heads, ranked within the layer
                    scores[family].append(_ranks(dims.sum(1)).view(size))
                else:
                    scores[family].append(_ranks(dims.sum(0, keepdim=True) if size[0] == 1 else dims))
    return scores


def _ranks(values: Tensor) -> Tensor:
    """Each value's rank from small to large along the last axis, from 1 / size to 1."""
    ranks = values.argsort(dim=-1, stable=True).argsort(dim=-1, stable=True)
    return (ranks + 1.0).double() / values.shape[-1]
