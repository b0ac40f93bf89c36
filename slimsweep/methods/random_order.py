"""random: gates leave in an order drawn by the point's seed."""

import torch

from slimsweep.slimming.removal_path import Scores
from slimsweep.slimming.structure import Shape


def random_scores(shape: Shape, seed: int) -> Scores:
    """Uniform numbers, the same for the same seed."""
    generator = torch.Generator().manual_seed(seed)
    return {f: [torch.rand(s, generator=generator) for s in shapes] for f, shapes in shape.gate_shapes.items()}
