"""Repair: the last projection of each branch of a cut model, solved to give what it gave before the cut.

After a cut each branch lacks what its lost dims, units and tokens gave. Attention's projection and fc2 are linear, so what
they can make up for is a least-squares problem: in the order of the layers, from the inputs that the cut model really feeds
them to what the stream was after the branch, on the tokens that stay (layer-wise reconstruction, as in "Channel Pruning for
Accelerating Very Deep Neural Networks", He et al., ICCV 2017, arXiv 1707.06168, section 3.1, which aims at the branch's own
output). So a branch also makes up for what those before it could not. It takes some images and no labels.
"""

import copy
import logging
import math
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any, Literal, NamedTuple, get_args

import torch
from torch import Tensor, nn

from slimsweep.errors import RefusedInput
from slimsweep.slimming.architectures import Architecture, Scale, Timm, architecture_of
from slimsweep.slimming.axes import NOT_FINITE, as_the_weights, batches_of, check_weights, full_precision
from slimsweep.slimming.cut import RemovedBranch, check_sizes
from slimsweep.slimming.gates import GatedModel, fold_gates
from slimsweep.slimming.plain_layers import check_layers
from slimsweep.slimming.read_back import in_eval_mode
from slimsweep.slimming.structure import Structure
from slimsweep.slimming.wrapped_models import uncompiled, unwrapped

log = logging.getLogger(__name__)

RIDGE = 1e-3
Target = Literal["stream", "branch"]
SHARES = (1.0, 0.5, 0.25, 0.125)  # of the change of weights, the first of which that brings the outputs nearer is taken
COMPARED_IMAGES = 256  # whose outputs tell that, at least; a pass over a whole model costs as much as all else for its images


def repair(
    small: Timm, dense: Timm, images: Tensor | Iterable[Tensor], ridge: float = RIDGE, *, target: Target = "stream"
) -> nn.Module:
    """A copy of a cut model whose tokens are after each branch what they were before the cut, as well as that branch's last
    linear layer can make them.

    Memory: what goes into one layer, for all images and of both models (images x tokens x embed_dim x 4 bytes each), and what
    one batch needs. Time, where there are many images: about two forward passes of the cut model and one of the other one, and
    the products of the least squares. The first 256 images, and all with rotary embeddings, take two or three passes more.

    Layers that are nearer one by one can be farther off together, where images are few. The change is halved then, until the
    outputs for these images (the first 256 of many) are nearer to those before the cut than they were; where no part of it
    brings them nearer, the copy is as `small` was, with a warning in the log.

    Args:
        small: what `slim` returned; left alone. Where nothing was cut, nothing changes.
        dense: the model whose outputs are aimed at; also the one with gates, or one that was cut less.
        images: (N, C, H, W), or batches of such, normalised as the models take them; of the batches of a DataLoader the labels
            are left out. Some hundred to a thousand.
        ridge: how strongly weights are held where they are, relative to the mean second moment of a layer's inputs.
        target: what a branch is solved for. "stream": the residual stream after it, so that it also makes up for what the
            branches before it lack; attention in windows (Swin) is solved for its own output all the same. "branch": its own
            output.

    Raises:
        RefusedInput: a ValueError: `small` was not cut, or from another architecture; `dense` lacks what it keeps; there are
            no images, or they are not such as the models take.
    """
    small, before = unwrapped(small), unwrapped(dense)
    structure: Structure | None = getattr(small, "structure", None)
    if structure is None:
        raise RefusedInput("this model was not cut, so there is nothing to repair: give what slim returned")
    if not 0 <= ridge < math.inf:
        raise RefusedInput(f"ridge is {ridge}; it must be at least 0 and finite")
    if target not in get_args(Target):
        raise RefusedInput(f"target is {target!r}; it must be one of {', '.join(get_args(Target))}")
    architecture = architecture_of(before)
    for model in (small, before):
        check_weights(model, "to repair" if model is small else "to aim at")
    check_layers(fold_gates(before) if isinstance(before, GatedModel) else before)
    check_layers(small)
    whole: Structure = getattr(before, "structure", structure.shape.full())
    if not hasattr(before, "structure"):
        check_sizes(before, structure)
    elif not whole.holds(structure):
        raise RefusedInput(
            "the model to aim at was cut itself, and lacks some of what this one keeps: give the dense one, or the one that "
            "this was cut from"
        )
    repaired: Timm = copy.deepcopy(small)
    given = list(batches_of(batches_of(images, before), small))
    if not given:
        raise RefusedInput("there are no images to repair the model with: give some hundred")
    with full_precision(), uncompiled(small, before), in_eval_mode(repaired), in_eval_mode(before):
        streams, calls, outputs = before_the_blocks(repaired, architecture.blocks(repaired), given)
        aims, aim_calls, wanted_outputs = before_the_blocks(before, architecture.blocks(before), given)
        for index, (block, aim) in enumerate(zip(architecture.blocks(repaired), architecture.blocks(before), strict=True)):
            kept = kept_tokens(structure, whole, index)
            branches, aim_branches = branches_of(block, architecture, target), branches_of(aim, architecture, target)
            targets: list[list[Tensor]] = [[] for _ in branches]
            for place, x in enumerate(aims):
                with watched(aim_branches) as seen:
                    aims[place] = aim(architecture.before(before, index)(x), **aim_calls[place][index])
                for wanted, branch, passed in zip(targets, aim_branches, seen, strict=True):
                    found = branch.after(passed)
                    wanted.append(found if kept is None else found[:, kept.to(found.device)])
            streams = [architecture.before(repaired, index)(x) for x in streams]
            for branch, wanted in zip(branches, targets, strict=True):
                fit = LeastSquares(branch.last)
                for x, call, after in zip(streams, calls, wanted, strict=True):
                    with watched([branch], only=True) as seen:
                        block(x, **call[index])
                    fit.add(seen[0].inputs, seen[0].output, branch.output_for(after, seen[0]))
                fit.solve(ridge)
            streams = [block(x, **call[index]) for x, call in zip(streams, calls, strict=True)]
        take_what_helps(repaired, small, given, outputs, wanted_outputs)
    return repaired


def take_what_helps(repaired: Timm, small: Timm, given: list[Tensor], outputs: list[Tensor], wanted: list[Tensor]) -> None:
    """Keep the largest of SHARES of the change, in place, that brings the outputs nearer to those wanted; else none of it."""
    if any(old.shape != new.shape for old, new in zip(outputs, wanted, strict=True)):
        return  # of models with other heads only the branches can be compared
    compared = given[: len(wanted)]
    farthest = squares(outputs, wanted)
    if not math.isfinite(farthest):
        raise RefusedInput(NOT_FINITE)
    old = {name: value.clone() for name, value in small.named_parameters()}
    change = {name: value - old[name] for name, value in repaired.named_parameters()}
    for share in (*SHARES, 0.0):
        if share < 1:
            for name, value in repaired.named_parameters():
                value.copy_(old[name] + share * change[name] if share else old[name])
        if not share or squares([repaired(as_the_weights(batch, repaired)) for batch in compared], wanted) <= farthest:
            break
    if not share:
        log.warning(
            "repair brought the outputs for %d of these %d images no nearer to those before the cut, so nothing was changed: "
            "give more images",
            sum(map(len, compared)),
            sum(map(len, given)),
        )


def squares(outputs: list[Tensor], wanted: list[Tensor]) -> float:
    """The sum of squared differences."""
    return sum(float((a.double() - b.to(a.device).double()).square().sum()) for a, b in zip(outputs, wanted, strict=True))


class LeastSquares:
    """The change of a layer's weights and bias that brings its outputs nearest to targets, from sums over batches.

    Args:
        layer: linear, or what is left of a branch without units: a bias alone.
    """

    def __init__(self, layer: Timm) -> None:
        self.layer = layer
        self.second = torch.zeros((), dtype=torch.float64)  # (inputs, inputs), a 1 for the bias: second moments, summed
        self.cross = torch.zeros((), dtype=torch.float64)  # (inputs, outputs): of inputs and what the outputs lack

    def add(self, inputs: Tensor, outputs: Tensor, targets: Tensor) -> None:
        """Add a batch: the layer's inputs (..., in), its outputs as it is and as they should be (..., out)."""
        x = inputs.flatten(0, -2).float()
        if isinstance(self.layer, RemovedBranch):
            x = x[:, :0]
        if self.layer.bias is not None:
            x = torch.cat([x, x.new_ones(len(x), 1)], 1)
        lacking = (targets.to(outputs.device).float() - outputs.float()).flatten(0, -2)
        # Products of one batch in float32, twice as fast as in float64: what they round is far below the ridge.
        self.second = self.second.to(x.device) + (x.T @ x).double()
        self.cross = self.cross.to(x.device) + (x.T @ lacking).double()

    def solve(self, ridge: float) -> None:
        """Change the layer in place, by ridge regression towards its weights as they are."""
        if not len(self.second):
            return
        held = (
            ridge * self.second.diagonal().mean() * torch.eye(len(self.second), dtype=torch.float64, device=self.second.device)
        )
        if not (self.second.isfinite().all() and self.cross.isfinite().all()):
            raise RefusedInput(NOT_FINITE)
        change, singular = torch.linalg.solve_ex(self.second + held, self.cross)
        if singular or not change.isfinite().all():  # inputs that are all 0, or no ridge: the smallest change of the best ones
            change = torch.linalg.pinv(self.second + held, hermitian=True) @ self.cross
        if self.layer.bias is not None:
            self.layer.bias += change[-1].to(self.layer.bias.dtype)
            change = change[:-1]
        if not isinstance(self.layer, RemovedBranch):
            self.layer.weight += change.T.to(self.layer.weight.dtype)


class Passed(NamedTuple):
    """What passed through a branch in one forward pass."""

    stream: Tensor  # what its output is added to
    inputs: Tensor  # of its last layer
    output: Tensor  # of its last layer


class Branch(NamedTuple):
    """The attention or the MLP of a block."""

    norm: Timm  # its first layer, which takes the stream
    last: Timm  # linear; the whole branch where it has no units left
    scale: Scale  # by which its output is multiplied before it is added; None where its own output is aimed at

    def after(self, passed: Passed) -> Tensor:
        """What is aimed at: the stream after the branch, or its own output."""
        return passed.output if self.scale is None else passed.stream + self.scale * passed.output

    def output_for(self, after: Tensor, passed: Passed) -> Tensor:
        """The output that brings what is aimed at to `after`; as it is in dims where the scale is 0."""
        if self.scale is None:
            return after
        lacking = after.to(passed.output.device) - self.after(passed)
        scale = torch.as_tensor(self.scale, device=lacking.device)
        return passed.output + torch.where(scale == 0, 0.0, lacking / scale.where(scale != 0, 1.0))


def branches_of(block: Timm, architecture: Architecture, target: Target) -> list[Branch]:
    """Attention and MLP of a block."""
    scales: tuple[Scale, Scale] = architecture.scales(block) if target == "stream" else (None, None)
    return [
        Branch(norm, branch if isinstance(branch, RemovedBranch) else getattr(branch, name), scale)
        for norm, branch, name, scale in zip(
            (block.norm1, block.norm2), (block.attn, block.mlp), ("proj", "fc2"), scales, strict=True
        )
    ]


def kept_tokens(structure: Structure, whole: Structure, layer: int) -> Tensor | None:
    """Positions of the tokens that a layer keeps, its prefix included, among those of `whole`; None where it keeps all."""
    kept = structure.token_mask(layer)[whole.token_mask(layer)]
    prefix = structure.shape.layers[layer].prefix
    return None if kept.all() else torch.cat([torch.arange(prefix), kept.nonzero().flatten() + prefix])


class Begun(NamedTuple):
    """What forward passes over batches give to the blocks."""

    streams: list[Tensor]  # what the first block got from each batch
    calls: list[list[Mapping[str, Any]]]  # what each block got besides, for each batch: of other sizes, other embeddings
    outputs: list[Tensor]  # of the model, for each of the first batches, of COMPARED_IMAGES together


class Enough(BaseException):
    """Raised by a hook: the forward pass has come as far as is wanted. No `except Exception` of a model's own code stops it."""


def before_the_blocks(model: Timm, blocks: list[Timm], batches: list[Tensor]) -> Begun:
    """What the first block gets from each batch, and what each block gets besides (rotary embeddings).

    Passes whose outputs are not wanted end at the first block, where blocks get nothing besides (None or False).
    """
    begun, compared = Begun([], [], []), 0

    def watch(place: int, block: Timm) -> torch.utils.hooks.RemovableHandle:
        def at_block(module: nn.Module, args: tuple[Tensor, ...], others: Mapping[str, Any]) -> None:
            if place == 0:
                begun.streams.append(args[0])
                besides = [value for call in (*begun.calls[:1], [others]) for one in call for value in one.values()]
                if compared >= COMPARED_IMAGES and all(value is None or value is False for value in besides):
                    begun.calls.append(begun.calls[0])
                    raise Enough
                begun.calls.append([])
            begun.calls[-1].append(others)

        return block.register_forward_pre_hook(at_block, with_kwargs=True)

    hooks = [watch(place, block) for place, block in enumerate(blocks)]
    try:
        for batch in batches:
            with suppress(Enough):
                output = model(as_the_weights(batch, model))
                if compared < COMPARED_IMAGES:
                    begun.outputs.append(output)
                compared += len(batch)
    finally:
        for hook in hooks:
            hook.remove()
    return begun


@contextmanager
def watched(branches: list[Branch], only: bool = False) -> Iterator[list[Passed]]:
    """What passes through branches in the forward pass inside the block, in their order.

    Args:
        only: the forward pass ends behind them.
    """
    streams: list[Tensor] = []
    seen: list[Passed] = []

    def after_last(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
        seen.append(Passed(streams[len(seen)], args[0], output))
        if only and len(seen) == len(branches):
            raise Enough

    hooks = [branch.norm.register_forward_pre_hook(lambda module, args: streams.append(args[0])) for branch in branches]
    hooks += [branch.last.register_forward_hook(after_last) for branch in branches]
    try:
        with suppress(Enough):
            yield seen
    finally:
        for hook in hooks:
            hook.remove()
