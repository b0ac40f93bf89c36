"""Repair: the last projection of each branch of a cut model, solved to give what the dense model gave there.

After a cut each branch lacks what its lost dims, units and tokens gave. Attention's projection and fc2 are linear, so what
they can make up for is a least-squares problem: in the order of the layers, from the inputs that the cut model really feeds
them to the dense branch's output on the tokens that stay (layer-wise reconstruction, as in "Channel Pruning for Accelerating
Very Deep Neural Networks", He et al., ICCV 2017, arXiv 1707.06168, section 3.1). It takes some images and no labels.
"""

import copy
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from slimsweep.errors import RefusedInput
from slimsweep.slimming.architectures import Timm, architecture_of
from slimsweep.slimming.axes import batches_of
from slimsweep.slimming.cut import RemovedBranch, check_sizes
from slimsweep.slimming.structure import Structure

RIDGE = 1e-3


def repair(small: Timm, dense: Timm, images: Tensor | Iterable[Tensor], ridge: float = RIDGE) -> nn.Module:
    """A copy of a cut model whose branches give what the dense model's give, as well as their last linear layer can.

    Memory: what goes into one layer, for all images and of both models (images x tokens x embed_dim x 4 bytes each), and what
    one batch needs. Time: about four forward passes of the cut model and two of the dense one.

    Args:
        small: what `slim` returned; left alone. Where nothing was cut, nothing changes.
        dense: the model whose outputs are aimed at, of the architecture that `small` was cut from.
        images: (N, C, H, W), or batches of such, as the models take them. Some hundred to a thousand.
        ridge: how strongly weights are held where they are, relative to the mean second moment of a layer's inputs.

    Raises:
        RefusedInput: a ValueError: `small` was not cut, or from another architecture; or there are no images.
    """
    structure: Structure | None = getattr(small, "structure", None)
    if structure is None:
        raise RefusedInput("this model was not cut, so there is nothing to repair: give what slim returned")
    architecture = architecture_of(dense)
    check_sizes(dense, structure)
    repaired: Timm = copy.deepcopy(small)
    given = list(batches_of(images))
    if not given:
        raise RefusedInput("there are no images to repair the model with: give some hundred")
    with torch.no_grad(), evaluating(repaired), evaluating(dense):
        streams, calls = before_the_blocks(repaired, architecture.blocks(repaired), given)
        dense_streams, dense_calls = before_the_blocks(dense, architecture.blocks(dense), given)
        for index, (block, dense_block) in enumerate(
            zip(architecture.blocks(repaired), architecture.blocks(dense), strict=True)
        ):
            kept = kept_tokens(structure, index)
            branches, dense_branches = last_layers(block), last_layers(dense_block)
            targets: list[list[Tensor]] = [[] for _ in branches]
            for place, x in enumerate(dense_streams):
                with watched(dense_branches) as seen:
                    dense_streams[place] = dense_block(architecture.before(dense, index)(x), **dense_calls[index])
                for branch, (_, output) in enumerate(seen):
                    targets[branch].append(output if kept is None else output[:, kept.to(output.device)])
            streams = [architecture.before(repaired, index)(x) for x in streams]
            for layer, wanted in zip(branches, targets, strict=True):
                fit = LeastSquares(layer)
                for x, target in zip(streams, wanted, strict=True):
                    with watched([layer]) as seen:
                        block(x, **calls[index])
                    fit.add(*seen[0], target)
                fit.solve(ridge)
            streams = [block(x, **calls[index]) for x in streams]
    return repaired


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
        lacking = (targets.float() - outputs.float()).flatten(0, -2)
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
        change = torch.linalg.solve(self.second + held, self.cross)
        if self.layer.bias is not None:
            self.layer.bias += change[-1].to(self.layer.bias.dtype)
            change = change[:-1]
        if not isinstance(self.layer, RemovedBranch):
            self.layer.weight += change.T.to(self.layer.weight.dtype)


def last_layers(block: Timm) -> list[Timm]:
    """The last layer of a block's attention and of its MLP; the whole branch where it has no units left."""
    return [
        branch if isinstance(branch, RemovedBranch) else getattr(branch, name)
        for branch, name in ((block.attn, "proj"), (block.mlp, "fc2"))
    ]


def kept_tokens(structure: Structure, layer: int) -> Tensor | None:
    """Positions of the tokens that a layer keeps, its prefix included, among the dense model's; None where it keeps all."""
    kept = structure.token_mask(layer)
    prefix = structure.shape.layers[layer].prefix
    return None if kept.all() else torch.cat([torch.arange(prefix), kept.nonzero().flatten() + prefix])


def before_the_blocks(model: Timm, blocks: list[Timm], batches: list[Tensor]) -> tuple[list[Tensor], list[Mapping[str, Any]]]:
    """What the first block gets from each batch, and what each block gets besides (rotary embeddings)."""
    streams: list[Tensor] = []
    calls: dict[int, Mapping[str, Any]] = {}

    def watch(place: int, block: Timm) -> torch.utils.hooks.RemovableHandle:
        def at_block(module: nn.Module, args: tuple[Tensor, ...], others: Mapping[str, Any]) -> None:
            calls[place] = others
            if place == 0:
                streams.append(args[0])

        return block.register_forward_pre_hook(at_block, with_kwargs=True)

    hooks = [watch(place, block) for place, block in enumerate(blocks)]
    try:
        for batch in batches:
            model(batch.to(next(model.parameters()).device))
    finally:
        for hook in hooks:
            hook.remove()
    return streams, [calls[place] for place in range(len(blocks))]


@contextmanager
def watched(layers: list[Timm]) -> Iterator[list[tuple[Tensor, Tensor]]]:
    """Inputs and outputs of layers in the forward pass inside the block, in their order."""
    seen: list[tuple[Tensor, Tensor]] = []
    hooks = [layer.register_forward_hook(lambda module, args, output: seen.append((args[0], output))) for layer in layers]
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """The model in eval mode inside the block, then as it was."""
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)
