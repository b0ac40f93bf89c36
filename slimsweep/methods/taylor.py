"""taylor: what has the largest squared gate x gradient, over all layers of a family."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from slimsweep.config.schema import Search
from slimsweep.methods.gradients import batches
from slimsweep.slimming.gates import add_gates
from slimsweep.slimming.removal_path import Scores


def taylor_scores(dense: nn.Module, search: Search, images: Tensor, labels: Tensor) -> Scores:
    """Squares of gate x gradient on the dense model, all gates at 1, as means over batches of images (Molchanov et al. 2019).

    Args:
        dense: on the device to compute on.
        images: (n, C, H, W).
        labels: (n,).
    """
    gated = add_gates(dense, search.granularity, search.families).eval()
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
