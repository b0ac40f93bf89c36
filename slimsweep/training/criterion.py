"""The loss of a training step: on labels, on a teacher's answers, and the penalty on gates."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from slimsweep.config import Distill, Recipe
from slimsweep.slimming.gate_optimizer import GateOptimizer


@dataclass(frozen=True)
class Teacher:
    """A model whose answers are learned from (Hinton, Vinyals and Dean 2015)."""

    model: nn.Module
    alpha: float  # share of the loss that its answers make up, from 0 to 1
    temperature: float  # logits are divided by it: the higher, the softer the answers

    @classmethod
    def of(cls, model: nn.Module, distill: Distill) -> "Teacher | None":
        """The teacher that a recipe asks for; None where its share of the loss is 0."""
        return cls(model, distill.alpha, distill.temperature) if distill.alpha > 0 else None


class Criterion:
    """The mean loss of a batch: cross entropy on its labels, mixed with the divergence from the teacher's answers.

    Args:
        recipe: its label smoothing is used where Mixup is off; Mixup's labels are smoothed already.
        device: where the teacher computes.
        mixup: `slimsweep.data.mixup_fn`.
        teacher: None learns from labels alone.
        gates: their penalty is added.
    """

    def __init__(
        self,
        recipe: Recipe,
        device: torch.device,
        *,
        mixup: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]] | None = None,
        teacher: Teacher | None = None,
        gates: GateOptimizer | None = None,
    ) -> None:
        self.smoothing = recipe.label_smoothing
        self.mixup = mixup
        self.teacher = teacher
        self.gates = gates
        if teacher is not None:
            teacher.model.to(device).eval()

    def __call__(self, network: Callable[[Tensor], Tensor], images: Tensor, labels: Tensor) -> Tensor:
        """The loss (a scalar) of a network on images (B, C, H, W) and labels (B,)."""
        if self.mixup is not None:
            images, labels = self.mixup(images, labels)  # labels become (B, classes)
        logits = network(images)
        smoothing = 0.0 if labels.ndim == 2 else self.smoothing
        loss = F.cross_entropy(logits.float(), labels, label_smoothing=smoothing)
        if self.teacher is not None:
            taught = self.divergence(logits, images, self.teacher)
            loss = (1 - self.teacher.alpha) * loss + self.teacher.alpha * self.teacher.temperature**2 * taught
        return loss if self.gates is None else loss + self.gates.penalty()

    @staticmethod
    def divergence(logits: Tensor, images: Tensor, teacher: Teacher) -> Tensor:
        """Mean Kullback-Leibler divergence of the answers from the teacher's, in nats, both at the teacher's temperature."""
        with torch.no_grad():
            answers = teacher.model(images)
        student = F.log_softmax(logits.float() / teacher.temperature, dim=1)
        target = F.log_softmax(answers.float() / teacher.temperature, dim=1)
        return F.kl_div(student, target, reduction="batchmean", log_target=True)
