"""Scores of gates from images without labels, for a ranking without a search: what each gate adds to what comes after it.

Attention dims and MLP units are ranked by the energy that they add to the output of their branch, tokens by how much the
model's outputs move with their gate.
"""

from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from slimsweep.errors import RefusedInput
from slimsweep.slimming.architectures import Timm, architecture_of
from slimsweep.slimming.axes import NOT_FINITE, as_the_weights, batches_of, check_weights, full_precision, no_autocast
from slimsweep.slimming.gates import GatedModel
from slimsweep.slimming.read_back import in_eval_mode
from slimsweep.slimming.wrapped_models import uncompiled, unwrapped

BATCH = 16  # images whose gradients are kept at once
DRAWS = 8  # normal vectors per batch: with B batches, a token's score has a standard error of sqrt(2 / (8 B)) of itself


def activation_scores(gated: Timm, images: Tensor | Iterable[Tensor], seed: int = 0) -> dict[str, list[Tensor]]:
    """Scores to rank gates by (`solve(gated, budget, scores=...)`): float32 on the CPU, in the gates' shapes.

    Attention dims and MLP units: the variance of the activation times the squared norm of its column in the last layer of the
    branch, summed over what shares a gate; the mean is left out, for the bias can give it (repair). Tokens: the mean square of
    the derivative of the outputs by the gate as it acts, estimated with normal vectors r by the square of d(r . output)/d(gate)
    (Hutchinson 1990), times the gate's square. Whether gates or weights are trained makes no difference.

    Args:
        gated: what `add_gates` returned, best on principal axes; its gates count. Left as it is.
        images: (N, C, H, W), or batches of such, normalised as the model takes them. Some hundred.
        seed: of the normal vectors.

    Raises:
        RefusedInput: a ValueError: the model has no gates, or no weights; there are no images, or not such as it takes.
    """
    gated = unwrapped(gated)
    if not isinstance(gated, GatedModel):
        raise RefusedInput(f"this {type(gated).__name__} has no gates to score: give what add_gates returns")
    check_weights(gated, "to score the gates of")
    given = [part for batch in batches_of(images, gated) for part in batch.split(BATCH)]
    if not given:
        raise RefusedInput("there are no images to score gates by: give some hundred")
    with in_eval_mode(gated), uncompiled(gated):
        with full_precision():
            found = branch_energies(gated, given)
        if "token" in gated.shape.gate_shapes:
            found["token"] = token_sensitivity(gated, given, seed)
    if not all(score.isfinite().all() for scores in found.values() for score in scores):
        raise RefusedInput(NOT_FINITE)
    return {family: [score.float().cpu() for score in found[family]] for family in gated.shape.gate_shapes}


def branch_energies(gated: GatedModel, images: list[Tensor]) -> dict[str, list[Tensor]]:
    """The energy that each attention dim and MLP unit adds to its branch, in the gates' shapes, float64."""
    blocks = architecture_of(gated).blocks(gated)
    layers = {"attention": [block.attn.proj for block in blocks], "mlp": [block.mlp.fc2 for block in blocks]}
    layers = {family: of for family, of in layers.items() if family in gated.shape.gate_shapes}
    sums: dict[Timm, list[Tensor]] = {layer: [] for of in layers.values() for layer in of}  # inputs: tokens, sum, squares

    def watch(layer: Timm) -> torch.utils.hooks.RemovableHandle:
        def at_input(module: Timm, args: tuple[Tensor, ...]) -> None:
            x = args[0].flatten(0, -2).double()
            now = [x.new_tensor(len(x)), x.sum(0), x.square().sum(0)]
            sums[layer] = [total + one for total, one in zip(sums[layer], now, strict=True)] if sums[layer] else now

        return layer.register_forward_pre_hook(at_input)

    hooks = [watch(layer) for layer in sums]
    try:
        for batch in images:
            gated(as_the_weights(batch, gated))
    finally:
        for hook in hooks:
            hook.remove()
    energies = {}
    for layer, (count, total, squares) in sums.items():
        variance = (squares / count - (total / count).square()).clamp(min=0)
        energies[layer] = variance * layer.weight.double().square().sum(0)
    found: dict[str, list[Tensor]] = {}
    for family, of in layers.items():
        found[family] = [energies[layer] for layer in of]
    if "attention" in found:
        each = zip(found["attention"], gated.shape.layers, gated.shape.gate_shapes["attention"], strict=True)
        found["attention"] = [shared(energy.unflatten(0, (layer.heads, -1)), shape) for energy, layer, shape in each]
    return found


def shared(energy: Tensor, shape: tuple[int, ...]) -> Tensor:
    """(heads, head_dim) summed to the shape of gates: over dims where a head has one gate, over heads where a dim has one."""
    for axis in (0, 1):
        if shape[axis] == 1:
            energy = energy.sum(axis, keepdim=True)
    return energy


def token_sensitivity(gated: GatedModel, images: list[Tensor], seed: int) -> list[Tensor]:
    """How much the outputs move with each token's gate: mean squares over images, per layer (patches,), float64.

    By the logarithm of the gate, which attention adds to its logits: that is the derivative by the gate times the gate, however
    the gate is stored, and finite at 0.
    """
    layers = [block.token_bias for block in architecture_of(gated).blocks(gated)]
    draw = torch.Generator().manual_seed(seed)
    hooks = []
    # Results of inference mode cannot be differentiated: it is left, and images that were made in it are copied.
    with torch.inference_mode(False), torch.enable_grad(), no_autocast():
        # In float64, since squares of what half precision holds are often beyond its range.
        logarithms = [layer(torch.float64).detach().requires_grad_() for layer in layers]  # (1, 1, 1, prefix + patches)
        sums = [torch.zeros_like(one, requires_grad=False) for one in logarithms]

        def use(logarithm: Tensor) -> Callable[..., Tensor]:
            # At every use: the last layer's are used once more where patches are pooled.
            return lambda module, args, output: logarithm.to(output.dtype)

        try:
            hooks += [layer.register_forward_hook(use(one)) for layer, one in zip(layers, logarithms, strict=True)]
            for batch in images:
                output = gated(as_the_weights(batch.clone(), gated))
                outputs = output if isinstance(output, tuple | list) else [output]
                for left in reversed(range(DRAWS)):
                    along = [torch.randn(one.shape, generator=draw).to(one) for one in outputs]
                    gradients = torch.autograd.grad(outputs, logarithms, along, retain_graph=left > 0)
                    for total, gradient in zip(sums, gradients, strict=True):
                        total.add_(gradient.square() / DRAWS)
        finally:
            for hook in hooks:
                hook.remove()
        count = sum(map(len, images))
        return [
            total.flatten()[layer.prefix :] * (gate > 0) / count
            for total, layer, gate in zip(sums, layers, gated.gates["token"], strict=True)
        ]
