"""scratch: keeps what the search found, and trains it from fresh weights, drawn by the point's seed."""

import math

import torch
from torch import nn

from slimsweep.methods.fresh_weights import drawn_by, like
from slimsweep.slimming.architectures import QUERY_FIRST, Timm, architecture_of, tensor_at
from slimsweep.slimming.cut import slim
from slimsweep.slimming.structure import Structure


def start(source: nn.Module, structure: Structure, seed: int) -> nn.Module:
    """The dense model's architecture, cut to a structure, with fresh weights.

    Args:
        source: the dense model, of which only the architecture is taken.
    """
    with drawn_by(seed):
        return cut_with_fresh_weights(source, structure)


def cut_with_fresh_weights(dense: nn.Module, structure: Structure) -> nn.Module:
    """The cut model with weights as timm draws them, from torch's generator.

    timm's draws for these models do not depend on the sizes that are cut, so a part of a fresh model is a fresh model,
    but for the query weights, which the cut stretches so that narrower heads compute the same.
    """
    model: Timm = slim(like(dense), structure)
    with torch.no_grad():
        for index, block in enumerate(architecture_of(dense).blocks(model)):
            heads, width, _, _ = structure.sizes(index)
            if heads == 0 or structure.attention_mask(index).all():
                continue
            stretch = math.sqrt(width / structure.shape.layers[index].head_dim)
            for name in QUERY_FIRST:
                rows = tensor_at(block.attn, name)
                if rows is not None:
                    rows[: heads * width] /= stretch
    return model
