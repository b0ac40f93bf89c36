"""taylor: keeps the gates with the largest squared gate x gradient over all layers of a family; no search.

The score is that of Molchanov et al., "Importance Estimation for Neural Network Pruning" (CVPR 2019), equation 8. A model
without a head has no labels, and the loss on its own features is 0 with a gradient of 0: there the second term of the loss
counts, which is the square of the features' derivative by the gate.
"""

from collections.abc import Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from slimsweep.methods.by_scores import structures_by_scores
from slimsweep.methods.choice import Choice
from slimsweep.methods.gradients import DIRECTIONS, batches, features_along
from slimsweep.slimming.gates import GatedModel, add_gates
from slimsweep.slimming.removal_path import Scores
from slimsweep.slimming.structure import Structure


def choose(choice: Choice) -> list[Structure | ValueError]:
    """A structure per budget that keeps the gates whose removal changes the loss most, to first order."""
    kinds: dict[str, Any] = {"granularity": choice.granularity, "families": choice.families}
    scores = taylor_scores(choice.dense, choice.images, choice.labels, **kinds, seed=choice.seed)
    return structures_by_scores(choice, scores)


def taylor_scores(
    dense: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    granularity: Literal["dim", "head", "uniform"] = "dim",
    families: Sequence[str] | None = None,
    seed: int = 0,
) -> Scores:
    """Squares of gate x gradient of the loss, all gates at 1, as means over batches of images (Molchanov et al. 2019).

    Args:
        dense: on the device to compute on; left as it is.
        images: (n, C, H, W), on any device.
        labels: (n,).
        granularity: of attention gates.
        families: of gates; None for all that the model has.
        seed: of the directions in which the features of a model without a head are differentiated.

    Returns:
        For each family a tensor per layer, in the gates' shapes.
    """
    return taylor_of_gates(add_gates(dense, granularity, families).eval(), images, labels, seed)


def taylor_of_gates(gated: GatedModel, images: Tensor, labels: Tensor, seed: int = 0) -> dict[str, list[Tensor]]:
    """`taylor_scores` of a model that has gates, at the values that they have.

    Args:
        gated: in evaluation mode, on the device to compute on; left as it is.
        seed: as for `taylor_scores`.
    """
    gates = gated.gate_parameters()
    flat = [gate for layers in gates.values() for gate in layers]
    sums = [torch.zeros_like(gate) for gate in flat]
    draw = torch.Generator().manual_seed(seed)
    for x, y in batches(gated, images, labels):
        # A batch of independent directions: the expected square of its sum is the sum over its images of their squares.
        losses, share = (
            (features_along(gated, x, draw), 1 / DIRECTIONS)
            if gated.num_classes == 0
            else ([F.cross_entropy(gated(x), y)], len(x))
        )
        for left, loss in zip(reversed(range(len(losses))), losses, strict=True):
            gradients = torch.autograd.grad(loss, flat, retain_graph=left > 0)
            squares = [(gate.detach() * gradient).square() for gate, gradient in zip(flat, gradients, strict=True)]
            sums = [total + square * share for total, square in zip(sums, squares, strict=True)]
    means = iter([total.cpu() / len(images) for total in sums])
    return {family: [next(means) for _ in layers] for family, layers in gates.items()}
