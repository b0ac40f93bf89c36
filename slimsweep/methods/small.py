"""small: a plain narrower or shallower model of the same architecture, from fresh weights."""

import bisect
import math
from collections.abc import Callable
from functools import cache

import torch
from timm.layers import Mlp
from torch import nn

from slimsweep.methods.fresh_weights import like
from slimsweep.slimming.architectures import Timm, measure
from slimsweep.slimming.removal_path import NEAR, Budget, absolute
from slimsweep.slimming.structure import Shape, Structure, macs


def build_small(dense: nn.Module, structure: Structure) -> nn.Module:
    """The plain timm model whose sizes a structure of `small_structure` names, with weights from torch's generator."""
    first = structure.shape.layers[0]
    sizes: dict[str, float] = {"embed_dim": first.embed_dim, "depth": len(structure.shape.layers), "num_heads": first.heads}
    model = like(dense, **sizes)
    if model.blocks[0].mlp.fc2.in_features != first.hidden:  # half a unit more, for timm rounds down
        model = like(dense, **sizes, mlp_ratio=(first.hidden + 0.5) / first.embed_dim)
    return model


def small_structure(dense: Timm, budget: Budget, round_to: int = 1, cost: Callable[[int, int], int] | None = None) -> Structure:
    """The whole structure of a plain model of the dense one's architecture within a budget: narrower, shallower, or both.

    Among all widths (`small_widths`) and depths up to the dense model's that are short of the budget by at most 1 % of
    dense, the one nearest to the dense ratio of width to depth is taken; where none is so near, the largest. Its MLPs then
    get as many units more as still fit, where they are plain ones.

    Args:
        cost: `small_costs(dense)`, where there are several budgets.

    Raises:
        ValueError: no such model is small enough.
    """
    cost = cost or small_costs(dense)
    width, depth = dense.embed_dim, len(dense.blocks)
    total = macs(dense)
    limit = absolute(budget, total)
    widths = small_widths(dense, round_to)
    found: list[tuple[float, int, int, int]] = []  # how far from the dense ratio, -MACs, width, depth
    for blocks in range(1, depth + 1):
        # Costs rise with the width: the widest that fits, and those below it that are near the budget.
        fit = bisect.bisect_right(widths, limit, key=lambda w: cost(w, blocks))
        for place in range(fit - 1, -1, -1):
            one = cost(widths[place], blocks)
            found.append((abs(math.log(widths[place] / blocks * depth / width)), -one, widths[place], blocks))
            if limit - one > NEAR * total:
                break
    if not found:
        raise ValueError(f"budget {budget!r} is below the smallest plain model's {cost(widths[0], 1) / 1e6:,.2f} MMACs")
    near = [f for f in found if limit + f[1] <= NEAR * total] or [min(found, key=lambda f: f[1])]
    _, _, chosen, blocks = min(near)
    sizes = {"embed_dim": chosen, "depth": blocks, "num_heads": heads_of_small(dense, chosen)}
    with torch.device("meta"):
        model = like(dense, **sizes)
    shape = measure(model, "dim", ())
    spare = limit - shape.full().macs()
    if type(model.blocks[0].mlp) is Mlp:
        layer = shape.layers[0]
        units = layer.hidden + spare // (blocks * int(layer.mlp_macs(1, layer.tokens)))
        units -= units % round_to
        # A head that pools by attention has an MLP too, as wide, which the blocks' price leaves out.
        while (shape := _of_mlp(dense, sizes, units)).full().macs() > limit:
            units -= round_to
    return Structure(shape, {})


def _of_mlp(dense: Timm, sizes: dict[str, int], units: int) -> Shape:
    """The shape of the plain model of some sizes whose MLPs have so many hidden units."""
    with torch.device("meta"):
        model = like(dense, **sizes, mlp_ratio=(units + 0.5) / sizes["embed_dim"])
    return measure(model, "dim", ())


def small_widths(dense: Timm, round_to: int = 1) -> list[int]:
    """The embed dims of plain smaller models, from small to large: even multiples of `round_to` that divide into heads."""
    step = math.lcm(2, round_to)
    return [w for w in range(step, dense.embed_dim, step) if heads_of_small(dense, w)] + [dense.embed_dim]


def heads_of_small(dense: Timm, width: int) -> int:
    """How many heads a width divides into, each as wide as the dense model's as near as can be, within a factor of 1.5.

    A width below a dense head's is one head; 0 where a width does not divide so.
    """
    wanted = dense.blocks[0].attn.head_dim
    if width == dense.embed_dim:
        return dense.blocks[0].attn.num_heads
    if width < wanted:
        return 1
    fits = [h for h in range(1, width // 2 + 1) if width % h == 0 and 1 / 1.5 <= width / h / wanted <= 1.5]
    return min(fits, key=lambda h: (abs(math.log(width / h / wanted)), -h), default=0)


def small_costs(dense: Timm) -> Callable[[int, int], int]:
    """A function that tells the MACs of a plain model of a width and a depth, and counts each width once."""

    @cache
    def first_and_next(width: int) -> tuple[int, int]:  # blocks are all alike
        with torch.device("meta"):
            one, two = (like(dense, embed_dim=width, depth=d, num_heads=heads_of_small(dense, width)) for d in (1, 2))
        return macs(one), macs(two) - macs(one)

    return lambda width, depth: first_and_next(width)[0] + (depth - 1) * first_and_next(width)[1]
