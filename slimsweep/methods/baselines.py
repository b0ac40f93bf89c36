"""The cheap ways to the same budgets that a search has to beat, all on the same solver, cut and retraining.

| method | what it keeps | starts from |
| --- | --- | --- |
| uniform | the same share of every layer and head, the largest weights of each; the inner tokens | dense weights |
| taylor | what has the largest squared gate x gradient, over all layers of a family; no search | dense weights |
| random | anything, drawn by the point's seed | dense weights |
| scratch | what the search found | fresh weights, drawn by the point's seed |
| small | nothing: a plain narrower or shallower model | fresh weights, drawn by the point's seed |
| torch-pruning | what Torch-Pruning keeps (`slimsweep.methods.torch_pruning`) | dense weights |

Everything here is plain torch: nothing knows of Ray or of a run's folder.
"""

import bisect
import importlib.util
import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache
from typing import Any

import timm
import torch
import torch.nn.functional as F
from timm.layers import Mlp
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from slimsweep.config import Config, ConfigError, Search
from slimsweep.data.images import Data, ImageSet, ImageStream, train_loader
from slimsweep.methods import torch_pruning
from slimsweep.slimming.architectures import (
    MLP_ROWS,
    QUERY_FIRST,
    Timm,
    architecture_of,
    attention_rows,
    model_name,
    tensor_at,
)
from slimsweep.slimming.budget import BUDGET_TOLERANCE
from slimsweep.slimming.cut import slim
from slimsweep.slimming.dense_shape import refused_families, shape_of, whole_heads_reason
from slimsweep.slimming.gates import add_gates
from slimsweep.slimming.removal_path import RemovalPath, Scores, absolute, size_multiple
from slimsweep.slimming.structure import Shape, Structure, macs
from slimsweep.slimming.timm_arguments import arguments_of

Budget = float | str

FROM_SEARCH = ("searched", "scratch")  # methods that need the search, and so get none of its compute
FRESH = ("scratch", "small")  # methods that start from fresh weights
RANKED = ("uniform", "taylor", "random", "small", "torch-pruning")  # methods whose structures `choose` finds

TAYLOR_IMAGES = 512  # that the gradients of taylor and torch-pruning are taken on
TAYLOR_BATCH = 16


def choose(
    method: str, budgets: Sequence[Budget], dense: nn.Module, search: Search, *, seed: int, images: Tensor, labels: Tensor
) -> list[Structure | ValueError]:
    """What a method keeps of the dense model at each budget; for a budget that it cannot meet, the error that says so.

    Args:
        method: one of RANKED.
        dense: the trained dense model, left alone, on the device to compute on.
        search: granularity, families, floors and round_to hold for all methods.
        seed: what `random` draws from.
        images: (n, C, H, W) training images without augmentation, for the methods that need gradients; on any device.
        labels: (n,) their classes.
    """
    shape = add_gates(dense, search.granularity, search.families).shape
    floors = search.floors.model_dump()
    round_to = size_multiple(shape, search.round_to)
    if method == "small":
        cost = small_costs(dense)
        return [_or_error(small_structure, dense, budget, round_to, cost) for budget in budgets]
    if method == "torch-pruning":
        backward = lambda model: accumulate_gradients(model, images, labels)  # noqa: E731
        limits = [absolute(budget, shape.full().macs()) for budget in budgets]
        options = {"floors": floors, "round_to": round_to, "backward": backward}
        return [_or_error(torch_pruning.pruned_structure, dense, shape, limit, **options) for limit in limits]
    scores = {
        "uniform": lambda: uniform_scores(dense, shape),
        "taylor": lambda: taylor_scores(dense, search, images, labels),
        "random": lambda: random_scores(shape, seed),
    }[method]()
    path = RemovalPath(shape, scores, floors, round_to)
    return [_or_error(path.solve, budget) for budget in budgets]


def _or_error(find: Any, *arguments: Any, **options: Any) -> Structure | ValueError:
    try:
        found: Structure = find(*arguments, **options)
    except ValueError as problem:
        return problem
    return found


def starting_model(method: str, source: nn.Module, structure: Structure, seed: int) -> nn.Module:
    """The model that a point's retraining starts from.

    Args:
        source: the searched model with its gates for `searched`, the dense model for all others; left alone.
        structure: what the point keeps; for `small` it is a whole model's.
        seed: what fresh weights are drawn from.
    """
    if method not in FRESH:
        return slim(source, structure)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build_small(source, structure) if method == "small" else fresh(source, structure)


def check_baseline(method: str, model: nn.Module, search: Search, budgets: Sequence[Budget]) -> None:
    """Refuse a baseline that this model cannot have; weights are not looked at.

    Raises:
        ConfigError: names method and model, and says why.
    """
    refused = f"baselines: {method!r} cannot be had for {model_name(model)}: "
    if method == "torch-pruning" and importlib.util.find_spec("torch_pruning") is None:
        raise ConfigError(f"baselines: {method!r} needs Torch-Pruning: pip install 'slimsweep[baselines]'")
    if method in ("small", "torch-pruning") and not isinstance(model, VisionTransformer):
        what = "its width and depth are not single numbers" if method == "small" else "its blocks are not plain ones"
        raise ConfigError(f"{refused}it is no VisionTransformer, and {what}; leave {method!r} out")
    if method == "torch-pruning":
        families = [f for f in ("attention", "mlp") if f not in refused_families(model)]
        reason = whole_heads_reason(model)
        if any(type(block.mlp) is not Mlp for block in architecture_of(model).blocks(model)):
            reason = "its MLPs are gated"
        elif search.families is not None and not set(search.families) & set(families):
            reason = f"it cuts attention and MLPs, and search.families is {', '.join(search.families)}"
        if reason:
            raise ConfigError(f"{refused}{reason}; leave {method!r} out")
    if method == "small":
        widths, total = small_widths(model, size_multiple(shape_of(model, "dim", ()), search.round_to)), macs(model)
        least = small_costs(model)(widths[0], 1)
        lowest = min(budgets, key=lambda budget: absolute(budget, total))
        if absolute(lowest, total) < least:
            raise ConfigError(
                f"{refused}the smallest plain model has {least / 1e6:,.2f} MMACs, more than budget {lowest!r} allows; "
                f"leave {method!r} or that budget out"
            )


def extra_epochs(search_macs: float, frontier: int, point_macs: int) -> int:
    """Epochs of retraining that cost as much as a point's share of the search.

    The search trains the gated model, which costs what the dense one does, on the images that retraining sees too; so in
    multiply-accumulates the images cancel, and so do backward passes.

    Args:
        search_macs: of the search, an image: the gated model's in each of its epochs, and those of trying paces.
        frontier: searched points that share the search equally: one a budget, or point of shares. Seeds repeat
            the whole frontier.
        point_macs: of one image through the point's model.
    """
    return max(0, round(search_macs / (frontier * point_macs)))


# Scores: in the gates' shapes, the smallest leave first.


@torch.no_grad()
def uniform_scores(dense: nn.Module, shape: Shape) -> Scores:
    """Ranks by weight magnitude within each head and MLP, as shares of its size, so that all lose the same share.

    The magnitude of a dim or unit is the norm of all weights that it owns: rows of the projections to it, the column from
    it. Tokens have no weights: all count alike, and then the solver takes them away evenly from all layers, the border first.
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
                if size[1] == 1:  # whole heads, ranked among each other
                    scores[family].append(_ranks(dims.sum(1)).view(size))
                else:
                    scores[family].append(_ranks(dims.sum(0, keepdim=True) if size[0] == 1 else dims))
    return scores


def attention_squares(block: Timm, heads: int, head_dim: int) -> Tensor:
    """(heads, head_dim) sums of the squares of all weights that an attention dim owns."""
    total = block.attn.proj.weight.detach().square().sum(0).cpu()
    for name, stacks in attention_rows(block.attn).items():
        rows = tensor_at(block.attn, name)
        assert rows is not None
        total = total + rows.detach().cpu().reshape(stacks, heads * head_dim, -1).square().sum((0, 2))
    return total.view(heads, head_dim)


def mlp_squares(block: Timm) -> Tensor:
    """(hidden,) sums of the squares of all weights that an MLP unit owns."""
    mlp = block.mlp
    hidden = mlp.fc2.in_features
    total = mlp.fc2.weight.detach().square().sum(0).cpu()
    for name, stacks in MLP_ROWS[type(mlp)].items():
        for rows in getattr(mlp, name).parameters():
            total = total + rows.detach().cpu().reshape(stacks, hidden, -1).square().sum((0, 2))
    return total


def _ranks(values: Tensor) -> Tensor:
    """Places in the order from small to large along the last axis, from 1 / size to 1."""
    places = values.argsort(dim=-1, stable=True).argsort(dim=-1, stable=True)
    return (places + 1.0).double() / values.shape[-1]


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
    for x, y in _batches(gated, images, labels):
        loss = F.cross_entropy(gated(x), y)
        gradients = torch.autograd.grad(loss, flat)
        squares = [(gate.detach() * gradient).square() for gate, gradient in zip(flat, gradients, strict=True)]
        sums = [total + square * len(x) for total, square in zip(sums, squares, strict=True)]
    means = iter([total.cpu() / len(images) for total in sums])
    return {family: [next(means) for _ in layers] for family, layers in gates.items()}


def accumulate_gradients(model: nn.Module, images: Tensor, labels: Tensor) -> None:
    """Leave in a model the gradient of its mean loss over the images."""
    for x, y in _batches(model, images, labels):
        (F.cross_entropy(model(x), y) * len(x) / len(images)).backward()


def _batches(model: nn.Module, images: Tensor, labels: Tensor) -> Any:
    place = next(model.parameters()).device
    parts = zip(images.split(TAYLOR_BATCH), labels.split(TAYLOR_BATCH), strict=True)
    return ((x.to(place), y.to(place)) for x, y in parts)


def random_scores(shape: Shape, seed: int) -> Scores:
    """Uniform numbers, the same for the same seed."""
    generator = torch.Generator().manual_seed(seed)
    return {f: [torch.rand(s, generator=generator) for s in shapes] for f, shapes in shape.gate_shapes.items()}


def training_images(data: Data, config: Config) -> tuple[Tensor, Tensor]:
    """(images (n, C, H, W), labels (n,)): TAYLOR_IMAGES of the training images, drawn by config.seed, without augmentation."""
    train, plain = data.train, data.val.view
    if isinstance(train, ImageSet):
        chosen = torch.randperm(len(train), generator=torch.Generator().manual_seed(config.seed))[:TAYLOR_IMAGES]
        indices = train.indices[chosen.numpy()]
        some = ImageSet(train.source, indices, plain, train.num_classes, cache=False, damaged=train.damaged)
        return some.batch(range(len(chosen)))
    stream = ImageStream(train.source, plain, train.num_classes, train.limit, train.damaged)
    batches = itertools.islice(train_loader(replace(data, train=stream), config), -(-TAYLOR_IMAGES // config.data.batch_size))
    images, labels = zip(*batches, strict=True)
    return torch.cat(images)[:TAYLOR_IMAGES], torch.cat(labels)[:TAYLOR_IMAGES]


# Fresh weights.


def fresh(dense: nn.Module, structure: Structure) -> nn.Module:
    """The cut model with weights as timm draws them, from torch's generator.

    timm's draws for these models do not depend on the sizes that are cut, so a part of a fresh model is a fresh model,
    but for the query weights, which the cut stretches so that narrower heads compute the same.
    """
    model: Timm = slim(_like(dense), structure)
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


def build_small(dense: nn.Module, structure: Structure) -> nn.Module:
    """The plain timm model whose sizes a structure of `small_structure` names, with weights from torch's generator."""
    first = structure.shape.layers[0]
    sizes: dict[str, float] = {"embed_dim": first.embed_dim, "depth": len(structure.shape.layers), "num_heads": first.heads}
    model = _like(dense, **sizes)
    if model.blocks[0].mlp.fc2.in_features != first.hidden:  # half a unit more, for timm rounds down
        model = _like(dense, **sizes, mlp_ratio=(first.hidden + 0.5) / first.embed_dim)
    return model


def _like(dense: nn.Module, **sizes: float) -> Timm:
    """A fresh model of a dense one's architecture and arguments, with other sizes."""
    arguments: dict[str, Any] = {**arguments_of(dense), **sizes}
    return timm.create_model(model_name(dense), pretrained=False, **arguments).eval()


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
            if limit - one > BUDGET_TOLERANCE * total:
                break
    if not found:
        raise ValueError(f"budget {budget!r} is below the smallest plain model's {cost(widths[0], 1) / 1e6:,.2f} MMACs")
    near = [f for f in found if limit + f[1] <= BUDGET_TOLERANCE * total] or [min(found, key=lambda f: f[1])]
    _, _, chosen, blocks = min(near)
    sizes = {"embed_dim": chosen, "depth": blocks, "num_heads": heads_of_small(dense, chosen)}
    with torch.device("meta"):
        model = _like(dense, **sizes)
    shape = shape_of(model, "dim", ())
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
        model = _like(dense, **sizes, mlp_ratio=(units + 0.5) / sizes["embed_dim"])
    return shape_of(model, "dim", ())


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
            one, two = (_like(dense, embed_dim=width, depth=d, num_heads=heads_of_small(dense, width)) for d in (1, 2))
        return macs(one), macs(two) - macs(one)

    return lambda width, depth: first_and_next(width)[0] + (depth - 1) * first_and_next(width)[1]
