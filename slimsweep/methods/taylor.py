"""taylor: keeps the gates with the largest squared gate x gradient over all layers of a family; no search.

The score is that of Molchanov et al., "Importance Estimation for Neural Network Pruning" (CVPR 2019), equation 8.
"""

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from slimsweep.methods.by_scores import structures_by_scores
from slimsweep.methods.choice import Choice
from slimsweep.methods.gradients import batches
from slimsweep.slimming.gates import GatedModel, add_gates
from slimsweep.slimming.removal_path import Scores
from slimsweep.slimming.structure import Structure


def choose(choice: Choice) -> list[Structure | ValueError]:
    """A structure per budget that keeps the gates whose removal changes the loss most, to first order."""
    scores = taylor_scores(choice.dense, choice.images, choice.labels, granularity=choice.granularity, families=choice.families)
    return structures_by_scores(choice, scores)


def taylor_scores(
    dense: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    granularity: Literal["dim", "head", "uniform"] = "dim",
    families: Sequence[str] | None = None,
) -> Scores:
    """Squares of gate x gradient of the loss, all gates at 1, as means over batches of images (Molchanov et al. 2019).

    Args:
        dense: on the device to compute on; left as it is.
        images: (n, C, H, W), on any device.
        labels: (n,).
        granularity: of attention gates.
        families: of gates; None for all that the model has.

    Returns:
        For each family a tensor per layer, in the gates' shapes.
    """
    return taylor_of_gates(add_gates(dense, granularity, families).eval(), images, labels)


def taylor_of_gates(gated: GatedModel, images: Tensor, labels: Tensor) -> dict[str, list[Tensor]]:
    """`taylor_scores` of a model that has gates, at the values that they have.

    Args:
        gated: in evaluation mode, on the device to compute on; left as it is.
    """
    gates = gated.gate_parameters()
    flat = [gate for layers in gates.values() for gate in layers]
    sums = [torch.zeros_like(gate) for gate in flat]
    for x, y in batches(gated, images, labels):
        loss = F.cross_entropy(gated(x), y)
        gradients = torch.autograd.grad(loss, flat)
        squares = [(gate.detach() * gradient).square() for gate, gradient in zip(flat, gradients, strict=True)]
        sums = [total + square * len(x) for total, square in zip(sums, squares, strict=True)]
    means = iter([total.cpu() / len(images) for total in sums])
    return {family: [next(means) for _ in layers] for family, layers in gates.items()}
