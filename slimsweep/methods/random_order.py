"""random: gates leave in an order that the point's seed draws."""

import torch

from slimsweep.methods.by_scores import structures_by_scores
from slimsweep.methods.choice import Choice
from slimsweep.slimming.removal_path import Scores
from slimsweep.slimming.shape import Shape
from slimsweep.slimming.structure import Structure


def choose(choice: Choice) -> list[Structure | ValueError]:
    """A structure per budget that keeps whatever the seed draws."""
    return structures_by_scores(choice, random_scores(choice.shape, choice.seed))


def random_scores(shape: Shape, seed: int) -> Scores:
    """Numbers drawn uniformly from [0, 1), in the gates' shapes; the same for the same seed."""
    generator = torch.Generator().manual_seed(seed)
    return {f: [torch.rand(s, generator=generator) for s in shapes] for f, shapes in shape.gate_shapes.items()}
