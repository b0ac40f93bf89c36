"""One training loop for the dense model, the search and every retraining."""

import time
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from timm.layers import DropPath
from timm.scheduler import create_scheduler_v2
from timm.utils import ModelEmaV3
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from slimsweep.config import Recipe, Search
from slimsweep.data import Data, eval_loader, mixup_fn, train_loader
from slimsweep.errors import OutOfTime, TrainingDiverged
from slimsweep.slimming.architectures import architecture_of
from slimsweep.slimming.gate_optimizer import GateOptimizer, GateTraining
from slimsweep.slimming.gates import GatedModel
from slimsweep.training.criterion import Criterion, Teacher, has_two_heads, student_of
from slimsweep.training.evaluate import Reference, autocast, evaluate
from slimsweep.training.optimizer import weight_optimizer
from slimsweep.training.ranks import mean_over_ranks, on_any_rank, ranks, share_damaged
from slimsweep.training.recorder import Recorder, Row

GONE_BELOW = 1e-2  # in the curves, a gate below this counts as gone
STEPS_PER_CHECK = 50  # that losses are finite: each check makes the host wait for the device


def train(
    model: nn.Module,
    data: Data,
    recipe: Recipe,
    recorder: Recorder,
    *,
    seed: int = 0,
    device: torch.device,
    teacher: Teacher | None = None,
    reference: Reference | None = None,
    until: float | None = None,
    evaluated: dict[str, float] | None = None,
) -> nn.Module:
    """Train a model by a recipe and return it, or its moving average where the recipe asks for one; 0 epochs leave it as it is.

    Goes on from the recorder's last checkpoint and gives it one per epoch. Every rank of a process group calls this with the
    same arguments and trains its share of each batch.

    Args:
        model: of timm; where it is gated and the recipe is a search, its gates learn too.
        data: its training split is trained on, its validation split evaluated after each epoch.
        recorder: takes the curve, checkpoints and damaged images.
        seed: of the order of images, augmentation and drop path.
        teacher: model whose answers are learned from; a backbone learns from nothing else.
        reference: with which a backbone is compared after each epoch; None evaluates top-1.
        until: when (time.time()) no further epoch begins.
        evaluated: takes what the returned model has on validation, by the columns of results: val_top1, or all of `Agreement`.
            It stays empty where no epoch was trained here: 0 epochs, or a start that resumes after the last one. So it is the
            same on all ranks.

    Raises:
        TrainingDiverged: a loss that is not finite; names stage, epoch and step.
        OutOfTime: `until` came before the last epoch was trained.
        ConfigError: the batch size does not divide by the ranks, or images that cannot be read or labelled.
    """
    rank, world = ranks()
    model.to(device)
    set_drop_path(model, recipe.drop_path)
    if not recipe.epochs:
        return model
    if recipe.grad_checkpointing:
        model.set_grad_checkpointing(True)  # type: ignore[operator]
    loader = train_loader(data.train, data.settings, rank=rank, world=world, seed=seed)
    val = eval_loader(data.val, data.settings, rank, world)

    def on_validation() -> tuple[dict[str, float], float]:
        """(columns of results, of which the curve has the first; a number that is finite where the model's answers are)."""
        if reference is not None:
            agreed = reference.agreement(state.averaged, "val", device, recipe)
            return {f"val_{name}": value for name, value in agreed._asdict().items()}, agreed.r2
        top1, _, loss = evaluate(state.averaged, val, device, recipe)
        return {"val_top1": top1}, loss

    state = State.start(model, recipe)
    scheduler, _ = create_scheduler_v2(
        state.optimizer,
        sched=recipe.scheduler,
        num_epochs=recipe.epochs,
        warmup_epochs=recipe.warmup_epochs,
        warmup_lr=recipe.min_lr,
        min_lr=recipe.min_lr,
        step_on_epochs=False,
        updates_per_epoch=len(loader),
    )
    mixup = mixup_fn(data.settings.augment, data.num_classes, label_smoothing=recipe.label_smoothing)
    if data.num_classes == 0 and teacher is None:
        raise ValueError("a model without a head learns from a teacher's features: give train a teacher")
    criterion = Criterion(recipe, device, mixup=mixup, teacher=teacher, gates=state.gates)

    first = 0
    if (found := recorder.resume()) is not None:
        first, saved = found
        state.load_state_dict(saved)
    else:  # where it starts from: after a cut, what the cut alone costs
        quality, _ = on_validation()
        if rank == 0:
            recorder.epoch(curve_row(recorder, model, epoch=0, loss=None, quality=quality, seconds=0.0, lr=recipe.lr))
    network = as_network(student_of(model, teacher), recipe, device)  # shares the model's weights

    for epoch in range(first, recipe.epochs):
        if until is not None and on_any_rank(time.time() >= until, device):
            raise OutOfTime(f"{recorder.point or recorder.stage} stopped after epoch {epoch} of {recipe.epochs}")
        began = time.perf_counter()
        # Each epoch draws from its own seed, so an epoch that is run again after a restart is the same epoch.
        draw = (seed * 1_000_003 + epoch) * 1_009 + rank
        torch.manual_seed(draw)
        np.random.seed(draw % 2**32)  # noqa: NPY002 (timm's Mixup draws from it)
        loader.set_epoch(epoch)
        model.train()
        losses: list[Tensor] = []
        for step, (images, labels) in enumerate(loader):
            updates = epoch * len(loader) + step  # optimizer steps so far
            scheduler.step_update(updates)
            state.anneal(updates / (recipe.epochs * len(loader)))
            losses.append(backward(network, criterion, images, labels, recipe, device))
            state.step(recipe, updates)
            if len(losses) % STEPS_PER_CHECK == 0 or step + 1 == len(loader):
                check_finite(losses, recorder, epoch, recipe)
        state.anneal((epoch + 1) / recipe.epochs)
        share_damaged(loader.damaged, device)
        loss = float(mean_over_ranks(torch.stack(losses).mean()))
        seconds = time.perf_counter() - began
        quality, finite = on_validation()
        # Validation shows what the last step made of the weights.
        check_finite([*losses, torch.tensor(finite, device=device)], recorder, epoch, recipe)
        if rank == 0:
            lr = state.optimizer.param_groups[0]["lr"]
            recorder.damaged(loader.damaged, data.val.damaged)
            recorder.epoch(curve_row(recorder, model, epoch=epoch + 1, loss=loss, quality=quality, seconds=seconds, lr=lr))
            recorder.checkpoint(epoch + 1, state.state_dict())
        if evaluated is not None and epoch + 1 == recipe.epochs:
            evaluated.update(quality)
    for trained in (model, state.averaged):
        if has_two_heads(trained):  # as timm has it: both heads' answers are averaged
            trained.set_distilled_training(False)  # type: ignore[operator]
    return state.averaged


@dataclass
class State:
    """What one training changes, and so what a checkpoint holds.

    The schedule follows from the step and randomness from the epoch, so neither is part of it.
    """

    model: nn.Module
    optimizer: torch.optim.Optimizer  # of the weights
    gates: GateOptimizer | None
    ema: ModelEmaV3 | None

    @classmethod
    def start(cls, model: nn.Module, recipe: Recipe) -> "State":
        """The state of a training that begins; the model is on its device."""
        return cls(
            model,
            weight_optimizer(model, recipe),
            gates=GateOptimizer(model, gate_training(recipe))
            if isinstance(model, GatedModel) and isinstance(recipe, Search)
            else None,
            ema=ModelEmaV3(model, decay=recipe.ema_decay) if recipe.ema_decay else None,
        )

    @property
    def averaged(self) -> nn.Module:
        """What is evaluated and saved: the moving average where there is one, else the model itself."""
        return self.model if self.ema is None else self.ema.module

    def state_dict(self) -> dict[str, Any]:
        found = {"model": self.model.state_dict(), "optimizer": self.optimizer.state_dict()}
        if self.gates is not None:
            found["gates"] = self.gates.state_dict()
        if self.ema is not None:
            found["ema"] = self.ema.module.state_dict()
        return found

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        if self.gates is not None:
            self.gates.load_state_dict(state["gates"])
        if self.ema is not None:
            self.ema.module.load_state_dict(state["ema"])

    def anneal(self, progress: float) -> None:
        """Set the annealing of token gates for this share (0 to 1) of the search."""
        if self.gates is not None:
            self.gates.anneal(progress)

    def step(self, recipe: Recipe, updates: int) -> None:
        """One step along the gradients that the model holds, which it clears; `updates` steps came before it."""
        if recipe.clip_grad:
            nn.utils.clip_grad_norm_(self.model.parameters(), recipe.clip_grad)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        if self.gates is not None:
            self.gates.step()
        if self.ema is not None:
            self.ema.update(self.model, step=updates)


def as_network(model: nn.Module, recipe: Recipe, device: torch.device) -> nn.Module:
    """A model as a training step calls it: its gradients averaged over all ranks, and compiled, where that is asked for.

    Evaluation and checkpoints use the model itself, whose parameters have the names that timm gives them.
    """
    network = model
    if ranks()[1] > 1:
        network = DistributedDataParallel(model, device_ids=[device] if device.type == "cuda" else None)
    return torch.compile(network) if recipe.compile else network  # type: ignore[return-value]


def backward(
    network: nn.Module, criterion: Criterion, images: Tensor, labels: Tensor, recipe: Recipe, device: torch.device
) -> Tensor:
    """Compute the gradients of one batch, in `recipe.accumulate` parts.

    Args:
        network: from `as_network`.
        images: (B, C, H, W), on any device.
        labels: (B,).

    Returns:
        The batch's mean loss, a scalar on `device`, detached.
    """
    parts = zip(images.chunk(recipe.accumulate), labels.chunk(recipe.accumulate), strict=True)
    total = torch.zeros((), device=device)
    for index, (some_images, some_labels) in enumerate(parts):
        x, y = some_images.to(device, non_blocking=True), some_labels.to(device, non_blocking=True)
        # Gradients are averaged over ranks once per batch, with its last part.
        local = ranks()[1] > 1 and index < recipe.accumulate - 1
        no_sync: Callable[[], Any] = network.no_sync if local else nullcontext  # type: ignore[assignment]
        with no_sync():
            with autocast(recipe, device):
                loss = criterion(network, x, y)
            share = len(x) / len(images)
            (loss * share).backward()
        total += loss.detach() * share
    return total


def check_finite(losses: list[Tensor], recorder: Recorder, epoch: int, recipe: Recipe) -> None:
    """Raise TrainingDiverged where one of the last losses of this epoch is NaN or infinite."""
    finite = torch.stack(losses[-STEPS_PER_CHECK:]).isfinite()
    if bool(finite.all()):
        return
    step = len(losses) - len(finite) + int((~finite).nonzero()[0]) + 1
    stage, point = recorder.stage, recorder.point
    where = f"{stage} of {point}" if point else stage
    gate_lr = ", search.gate_lr" if isinstance(recipe, Search) else ""
    raise TrainingDiverged(
        f"the loss of {where} is not finite in epoch {epoch + 1}, step {step}; "
        f"the last good checkpoint, after epoch {epoch}, is kept: lower {stage}.lr (now {recipe.lr:g}){gate_lr}, "
        f"set {stage}.clip_grad (such as 1.0) or {stage}.warmup_epochs, and start again"
        + ("" if stage == "retrain" else " under another --name")
    )


def curve_row(
    recorder: Recorder,
    model: nn.Module,
    *,
    epoch: int,
    loss: float | None,
    quality: Mapping[str, float],
    seconds: float,
    lr: float,
) -> Row:
    """One row of the curve: after `epoch` epochs (0 before the first), the seconds of the last epoch.

    Args:
        quality: val_top1 (percent), or of a backbone val_r2.
    """
    row: Row = {
        "stage": recorder.stage,
        "point": recorder.point,
        "epoch": epoch,
        "loss": loss,
        "val_top1": quality.get("val_top1"),
        "val_r2": quality.get("val_r2"),
        "seconds": seconds,
        "learning_rate": lr,
    }
    if not isinstance(model, GatedModel):
        return {**row, "gates_kept": None, "gates": None}
    gates = model.gates
    table = [
        {"family": f, "layer": i, "mean": float(g.abs().mean()), "below_1e-2": float((g.abs() < GONE_BELOW).float().mean())}
        for f, layers in gates.items()
        for i, g in enumerate(layers)
    ]
    everything = torch.cat([g.flatten() for layers in gates.values() for g in layers])
    return {**row, "gates_kept": float((everything.abs() >= GONE_BELOW).float().mean()), "gates": table}


def gate_training(search: Search) -> GateTraining:
    """The part of a search's recipe that trains the gates."""
    return GateTraining(
        lr=search.gate_lr,
        optimizer=search.gate_optimizer,
        penalty=search.penalty,
        l1=search.l1.model_dump(),
        token_anneal=search.token_anneal,
    )


def set_drop_path(model: nn.Module, rate: float) -> None:
    """Set the stochastic depth of a timm model's blocks: 0 in the first, `rate` in the last (Huang et al. 2016)."""
    blocks = architecture_of(model).blocks(model)
    for index, block in enumerate(blocks):
        share = rate * index / max(len(blocks) - 1, 1)
        for name in ("drop_path1", "drop_path2"):
            setattr(block, name, DropPath(share) if share > 0 else nn.Identity())
