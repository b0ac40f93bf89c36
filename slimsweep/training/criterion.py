"""The loss of a training step: on labels, on a teacher's answers, and the penalty on gates."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from slimsweep.config import Config, Distill, Recipe, Stage
from slimsweep.data import Data
from slimsweep.slimming.gate_optimizer import GateOptimizer
from slimsweep.training.backbone import Tokens, WithTokens, tokens_of
from slimsweep.training.teachers import Teachers, TeacherView, check_dims, features_of, teacher_alike, teacher_model


@dataclass(frozen=True)
class Teacher:
    """A model whose answers are learned from (Hinton, Vinyals and Dean 2015)."""

    model: nn.Module  # takes the student's images; several in one are `slimsweep.training.teachers.Teachers`
    alpha: float  # share of the loss that its answers make up, from 0 to 1
    temperature: float  # logits are divided by it: the higher, the softer the answers
    answers: str = "soft"  # what is learned from it: soft, hard or features, as in `slimsweep.config.Distill`
    heads_apart: bool = False  # whether of a distilled student one head learns from the labels, the other from the teacher

    @classmethod
    def of(cls, model: nn.Module, distill: Distill) -> "Teacher | None":
        """The teacher that a recipe asks for; None where its share of the loss is 0."""
        if distill.alpha == 0:
            return None
        return cls(model, distill.alpha, distill.temperature, distill.answers, heads_apart=distill.answers == "hard")

    @classmethod
    def for_stage(cls, config: Config, stage: Stage, dense: nn.Module, data: Data) -> "Teacher | None":
        """The teacher of a search or a retraining, with its weights; None where there is none.

        Args:
            dense: the dense model, which teaches where `config.teacher` is null.
            data: whose images the teacher is shown.

        Raises:
            ConfigError: weights that cannot be read or downloaded, or that are for other classes.
        """
        model = teacher_model(config, stage, dense, data)
        return None if model is None else cls._of_stage(config, stage, model)

    @classmethod
    def alike(cls, config: Config, stage: Stage, dense: nn.Module, num_classes: int) -> "Teacher | None":
        """One that costs what `for_stage` does, without its weights."""
        model = teacher_alike(config, stage, dense, num_classes)
        return None if model is None else cls._of_stage(config, stage, model)

    @classmethod
    def _of_stage(cls, config: Config, stage: Stage, model: nn.Module) -> "Teacher":
        distill = config.distills(stage)
        apart = distill.answers != "features" and config.teaches_anew(stage)
        return cls(model, distill.alpha, distill.temperature, distill.answers, heads_apart=apart)

    def log_probabilities(self, images: Tensor) -> Tensor:
        """The logarithms of the probabilities that it gives all classes at its temperature, (B, classes); no gradient."""
        with torch.no_grad():
            if isinstance(self.model, Teachers):
                return self.model.log_probabilities(images, self.temperature)
            answers: Tensor = self.model(images)
            return F.log_softmax(answers.float() / self.temperature, dim=1)


class WithFeatures(nn.Module):
    """A timm model that answers with its logits (B, classes) and its features before the head (B, dims)."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        model: Any = self.model
        tokens = model.forward_features(images)
        return model.forward_head(tokens), model.forward_head(tokens, pre_logits=True)


def student_of(model: nn.Module, teacher: Teacher | None) -> nn.Module:
    """The module that a training step calls, which answers as `Criterion` takes it: a pair where two parts of it are taught,
    and `Tokens` of a backbone, which has no head.

    Args:
        model: of timm; the module that is returned has its weights.
    """
    if teacher is None:
        return model
    if teacher.answers == "features":
        return WithTokens(model) if getattr(model, "num_classes", None) == 0 else WithFeatures(model)
    if teacher.heads_apart and has_two_heads(model):
        model.set_distilled_training(True)  # type: ignore[operator]
    return model


def has_two_heads(model: nn.Module) -> bool:
    """Whether a model has a head for the labels and one for a teacher (timm's distilled DeiT)."""
    return hasattr(model, "set_distilled_training")


class Criterion:
    """The mean loss of a batch: cross entropy on its labels, mixed with what is learned from the teacher.

    With alpha a: (1 - a) times the cross entropy, plus a times

    - soft: T^2 times the Kullback-Leibler divergence of the answers from the teacher's, both at temperature T;
    - hard: the cross entropy with the class that the teacher finds most probable (DeiT, arXiv 2012.12877, section 3);
    - features: the smooth L1 distance of the layer-normed features of both, plus 1 - their cosine.

    A network that answers with a pair (`student_of`) learns the labels with the first and from the teacher with the second:
    logits of two heads, or logits and features. One that answers with `Tokens`, a backbone, learns from the teacher alone
    (`tokens_loss`).

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

    def __call__(
        self, network: Callable[[Tensor], Tensor | tuple[Tensor, Tensor] | Tokens], images: Tensor, labels: Tensor
    ) -> Tensor:
        """The loss (a scalar) of a network on images (B, C, H, W) and labels (B,)."""
        if self.mixup is not None:
            images, labels = self.mixup(images, labels)  # labels become (B, classes)
        answers = network(images)
        if isinstance(answers, Tokens):
            assert self.teacher is not None  # `student_of` makes such networks where there is one
            loss = tokens_loss(answers, images, self.teacher)
            return loss if self.gates is None else loss + self.gates.penalty()
        logits, taught = answers if isinstance(answers, tuple) else (answers, answers)
        smoothing = 0.0 if labels.ndim == 2 else self.smoothing
        loss = F.cross_entropy(logits.float(), labels, label_smoothing=smoothing)
        if self.teacher is not None:
            loss = (1 - self.teacher.alpha) * loss + self.teacher.alpha * from_teacher(taught, images, self.teacher)
        return loss if self.gates is None else loss + self.gates.penalty()


def from_teacher(taught: Tensor, images: Tensor, teacher: Teacher) -> Tensor:
    """The loss on a teacher's answers, a scalar.

    Args:
        taught: the student's logits (B, classes), or its features (B, dims).
        images: as the student saw them.
    """
    if teacher.answers == "features":
        return features_loss(taught, images, teacher)
    if teacher.answers == "hard":
        return F.cross_entropy(taught.float(), teacher.log_probabilities(images).argmax(dim=1))
    return teacher.temperature**2 * divergence(taught, images, teacher)


def divergence(logits: Tensor, images: Tensor, teacher: Teacher) -> Tensor:
    """Mean Kullback-Leibler divergence of the answers from the teacher's, in nats, both at the teacher's temperature."""
    student = F.log_softmax(logits.float() / teacher.temperature, dim=1)
    return F.kl_div(student, teacher.log_probabilities(images), reduction="batchmean", log_target=True)


def features_loss(features: Tensor, images: Tensor, teacher: Teacher) -> Tensor:
    """Smooth L1 distance between layer-normed features (B, dims) and the teacher's, plus 1 - their cosine, on average.

    Raises:
        ConfigError: the teacher has another number of dims.
    """
    loss = features.new_zeros((), dtype=torch.float32)
    student = features.float()
    for share, member in _weighted(teacher):
        with torch.no_grad():
            target = features_of(member, images).float()
        check_dims(student.shape[1], target.shape[1])
        dims = student.shape[1:]
        distance = F.smooth_l1_loss(F.layer_norm(student, dims), F.layer_norm(target, dims))
        loss = loss + share * (distance + 1 - F.cosine_similarity(student, target, dim=1).mean())
    return loss


def tokens_loss(student: Tokens, images: Tensor, teacher: Teacher) -> Tensor:
    """The distance of a backbone's embedding, class token and patch tokens from the teacher's, as a mean over these kinds.

    Of each kind that both have: the smooth L1 distance plus 1 - the cosine, on average over images and tokens. Both vectors are
    standardised by the mean and deviation of the teacher's, so that their size is learned too: an embedding takes the dense
    model's place as it is. Patches that one of both lost do not count, and the student's token gates weigh the others.

    Args:
        images: as the student saw them.

    Raises:
        ConfigError: the teacher has another number of dims.
    """
    loss = student.embedding.new_zeros((), dtype=torch.float32)
    for share, member in _weighted(teacher):
        with torch.no_grad():
            if isinstance(member, TeacherView):
                target = tokens_of(member.model, member.view(images))
            else:
                target = tokens_of(member, images)
        check_dims(student.embedding.shape[1], target.embedding.shape[1])
        kinds = [_standard_distance(student.embedding, target.embedding).mean()]
        if student.class_token.numel() and target.class_token.numel():
            kinds.append(_standard_distance(student.class_token, target.class_token).mean())
        if student.patches.shape[1] and len(student.patch_weights) == len(target.patch_weights):
            own, patches, weights = student.patches, target.patches, student.patch_weights
            if not own.shape[1] == patches.shape[1] == len(weights):  # some are gone
                both = (weights > 0) & (target.patch_weights > 0)
                own, patches, weights = _patches_at(both, student), _patches_at(both, target), weights[both]
            distances = _standard_distance(own, patches).mean(0)
            kinds.append((distances * weights).sum() / weights.sum().clamp(min=1e-6))
        loss = loss + share * torch.stack(kinds).mean()
    return loss


def _patches_at(places: Tensor, tokens: Tokens) -> Tensor:
    """The patches (B, chosen, dims) at some places of the dense model's, (patches,) bool, of a model that has them all."""
    has_all = tokens.patches.shape[1] == len(places)
    return tokens.patches[:, places if has_all else places[tokens.patch_weights > 0]]


def _standard_distance(student: Tensor, target: Tensor) -> Tensor:
    """Smooth L1 distance plus 1 - cosine, (...), of vectors (..., dims) standardised by the target's mean and deviation."""
    student, target = student.float(), target.float()
    deviation, mean = torch.std_mean(target, dim=-1, keepdim=True, correction=0)
    scale = deviation.clamp(min=1e-6)
    distance = F.smooth_l1_loss((student - mean) / scale, (target - mean) / scale, reduction="none").mean(-1)
    return distance + 1 - F.cosine_similarity(student, target, dim=-1)


def _weighted(teacher: Teacher) -> list[tuple[float, nn.Module]]:
    """(share, model) of the teacher's members, the shares adding up to 1."""
    model = teacher.model
    return model.weighted if isinstance(model, Teachers) else [(1.0, model)]
