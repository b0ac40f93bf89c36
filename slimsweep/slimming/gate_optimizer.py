"""How gates learn: towards the task along its gradient, and towards zero under an l1 penalty.

Adam divides the l1's gradient by its own size, so under Adam every gate falls at one speed whatever its weight. Proximal
steps keep the two apart: a step along the gradient, divided by the running rms of the whole family's gradients (so that
gates of one family keep their order), then a soft threshold, which is the l1's own step and reaches zero exactly.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from slimsweep.slimming.gate_families import GATE_FAMILIES
from slimsweep.slimming.gates import GatedModel, effective_gates
from slimsweep.slimming.shape import Shape

SQUARES_DECAY = 0.9  # of the running mean of squared gradients


@dataclass(frozen=True, kw_only=True)
class GateTraining:
    """How gates are trained.

    Attributes:
        lr: learning rate of the gates.
        optimizer: "proximal" steps with a soft threshold, or "adam" on the l1's gradient (the paper's way).
        penalty: what a gate costs: "l1" the same for all of a family, "macs" its multiply-accumulates.
        l1: the l1 factor of each family.
        token_anneal: last share of the training, over which kept token gates move to 1.
    """

    lr: float
    optimizer: Literal["proximal", "adam"] = "proximal"
    penalty: Literal["l1", "macs"] = "l1"
    l1: Mapping[str, float]
    token_anneal: float = 0.0


class GateOptimizer:
    """The optimizer of a gated model's gates; the weights have another one.

    Args:
        gated: the model itself, not a parallel wrapper around it.
        training: learning rate, optimizer, penalty and annealing.
    """

    def __init__(self, gated: GatedModel, training: GateTraining) -> None:
        self.gated = gated
        self.training = training
        self.gates = gated.gate_parameters()
        self.weights = penalty_weights(gated.shape, training)
        self.mean_square = {family: torch.zeros((), device=gates[0].device) for family, gates in self.gates.items()}
        self.counts = {  # per family: gates of each layer
            family: self.mean_square[family].new_tensor([g.numel() for g in gates]) for family, gates in self.gates.items()
        }
        self.steps = 0
        self.power = 1.0
        self.power_of_model: float | None = None  # not known before the first `anneal`: a checkpoint may have brought one
        everything = [g for gates in self.gates.values() for g in gates]
        self.adam = torch.optim.Adam(everything, lr=training.lr, fused=True) if training.optimizer == "adam" else None

    def penalty(self) -> Tensor | float:
        """The l1 as a term of the loss, where Adam follows its gradient; 0 for proximal steps, which apply it themselves.

        The sum over all gates of factor times |gate|, as in ViT-Slim (arXiv 2201.00814, section 3).
        """
        if self.adam is None:
            return 0.0
        terms = [
            w * self.pressure(f) * effective_gates(block, f).abs().sum()
            for f, weights in self.weights.items()
            for block, w in zip(self.gated.gated_blocks(), weights, strict=True)
        ]
        return torch.stack(terms).sum()

    def pressure(self, family: str) -> float:
        """The share of its l1 factor that a family has now, from 0 to 1.

        Annealing takes the token gates' effect on the task away, and with it what holds them up: their l1 shrinks alongside.
        """
        return self.power if family == "token" else 1.0

    def anneal(self, progress: float) -> None:
        """Move kept token gates towards 1, where the cut will have them, over the last share of the search (0 to 1)."""
        share = self.training.token_anneal
        self.power = 1.0 if share == 0 or progress < 1 - share else (1 - progress) / share
        if self.power != self.power_of_model:  # a kernel per layer, and most steps change nothing
            self.gated.set_token_power(self.power)
            self.power_of_model = self.power

    @torch.no_grad()
    def step(self) -> None:
        """One step along the gradients that the gates hold, which it clears."""
        self.steps += 1
        if self.adam is not None:
            self.adam.step()
            self.adam.zero_grad(set_to_none=True)
            return
        for family, gates in self.gates.items():
            gradients = [g.grad for g in gates if g.grad is not None]
            if len(gradients) < len(gates):
                raise RuntimeError(f"the {family} gates got no gradient; they take no part in the loss")
            # All layers at once, as torch's own optimizers do it: one kernel in place of one per layer.
            square = (torch.stack(torch._foreach_norm(gradients)).square() / self.counts[family]).mean()
            self.mean_square[family].mul_(SQUARES_DECAY).add_(square, alpha=1 - SQUARES_DECAY)
            rms = (self.mean_square[family] / (1 - SQUARES_DECAY**self.steps)).sqrt().clamp(min=1e-12)
            values: list[Tensor] = list(gates)
            torch._foreach_sub_(values, list(torch._foreach_mul(gradients, self.training.lr / rms)))
            shrink = self.training.lr * self.pressure(family)
            torch._foreach_sub_(values, [shrink * weight for weight in self.weights[family]])
            torch._foreach_clamp_min_(values, 0.0)
            for gate in gates:
                gate.grad = None

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps. Searches of earlier versions are resumed, so the keys stay as they are."""
        return {"steps": self.steps, "second": self.mean_square, "adam": self.adam.state_dict() if self.adam else None}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from what `state_dict` gave."""
        self.steps = state["steps"]
        for family, value in state["second"].items():
            self.mean_square[family].copy_(value)
        if self.adam:
            self.adam.load_state_dict(state["adam"])


def penalty_weights(shape: Shape, training: GateTraining) -> dict[str, list[float]]:
    """For each family a list: the l1 factor of each layer's gates.

    It is the family's own, times what a gate costs where the penalty counts MACs. Costs are relative to the mean over all gates
    of the network, so the factors keep their size.
    """
    if training.penalty == "l1":
        return {f: [training.l1[f]] * len(shape.layers) for f in shape.gate_shapes}
    costs: dict[str, list[float]] = {f: [] for f in shape.gate_shapes}
    total, count = 0.0, 0
    for family, sizes in shape.gate_shapes.items():
        for layer, size in zip(shape.layers, sizes, strict=True):
            cost, gates = float(GATE_FAMILIES[family].macs(layer)), math.prod(size)
            costs[family].append(cost / gates)
            total, count = total + cost, count + gates
    return {f: [training.l1[f] * c * count / total for c in cs] for f, cs in costs.items()}
