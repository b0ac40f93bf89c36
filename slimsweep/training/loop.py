"""One training loop for the dense model, the search and every retraining; and evaluation."""

import json
import os
import time
from collections.abc import Callable
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from timm.layers import DropPath
from timm.optim import create_optimizer_v2
from timm.scheduler import create_scheduler_v2
from timm.utils import ModelEmaV3
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from slimsweep.config import Config, ConfigError, Distill, Recipe, Search
from slimsweep.data.images import (
    Damaged,
    Data,
    ImageSet,
    ImageStream,
    Loader,
    TooManyDamaged,
    eval_loader,
    mixup_fn,
    train_loader,
)
from slimsweep.errors import OutOfTime, TrainingDiverged
from slimsweep.ledger.checkpoints import Checkpoints
from slimsweep.ledger.tables import damaged_images, read_curve, write_curve
from slimsweep.slimming.architectures import architecture_of
from slimsweep.slimming.gate_optimizer import GateOptimizer, GateTraining
from slimsweep.slimming.gates import GatedModel
from slimsweep.storage import Folder

SMALL = 1e-2  # a gate below this counts as gone in the curves
FUSED = ("adam", "adamw", "sgd")  # timm's names of torch's own optimizers; timm makes sgd with Nesterov's momentum
CHECK_EVERY = 50  # steps between looks at the losses: a look makes the host wait for the device


@dataclass
class State:
    """What one training changes, and so what a checkpoint holds.

    The schedule follows from the step and randomness from the epoch, so neither is kept.
    """

    model: nn.Module
    optimizer: torch.optim.Optimizer
    gates: GateOptimizer | None
    ema: ModelEmaV3 | None

    @classmethod
    def start(cls, model: nn.Module, recipe: Recipe) -> "State":
        """Of a training that begins."""
        return cls(
            model,
            create_optimizer_v2(
                weights_of(model),
                opt=recipe.optimizer,
                lr=recipe.lr,
                weight_decay=recipe.weight_decay,
                **optimizer_arguments(recipe),
            ),
            gates=GateOptimizer(model, gate_training(recipe))
            if isinstance(model, GatedModel) and isinstance(recipe, Search)
            else None,
            ema=ModelEmaV3(model, decay=recipe.ema_decay) if recipe.ema_decay else None,
        )

    @property
    def kept(self) -> nn.Module:
        """What is evaluated and saved: the moving average where there is one."""
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

    def step(self, recipe: Recipe, updates: int) -> None:
        """One step along the gradients that the model holds, which it clears."""
        if recipe.clip_grad:
            nn.utils.clip_grad_norm_(self.model.parameters(), recipe.clip_grad)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        if self.gates is not None:
            self.gates.step()
        if self.ema is not None:
            self.ema.update(self.model, step=updates)


class Metrics(NamedTuple):
    """What `evaluate` measures: percent, percent, nats."""

    top1: float
    top5: float
    loss: float


def train(
    model: nn.Module,
    data: Data,
    config: Config,
    recipe: Recipe,
    *,
    run: Folder,
    stage: str,
    point: str = "",
    seed: int = 0,
    device: torch.device,
    teacher: nn.Module | None = None,
    distill: Distill | None = None,
    until: float | None = None,
    on_epoch: Callable[[dict[str, Any]], None] = lambda row: None,
) -> nn.Module:
    """Train a model by a recipe and return it, or its moving average where the recipe asks for one.

    Goes on from the last checkpoint of the same stage or point, registers one an epoch, and writes the curve. Every rank
    of a process group calls it with the same arguments.

    Args:
        stage: dense, search (the model is gated: its gates learn too) or retrain.
        teacher: model whose answers are learned from, as far as `distill` says.
        until: when (time.time()) no further epoch begins.
        on_epoch: called on rank 0 with each epoch's row of the curve.

    Raises:
        TrainingDiverged: a loss that is not finite; names stage, epoch and step.
        OutOfTime: `until` came before the last epoch was trained.
    """
    rank, world = ranks()
    name = point or stage
    model.to(device)
    set_drop_path(model, recipe.drop_path)
    if recipe.grad_checkpointing:
        model.set_grad_checkpointing(True)  # type: ignore[operator]
    gated = model if isinstance(model, GatedModel) else None

    loader = train_loader(data, config, rank=rank, world=world, seed=seed)
    val = eval_loader(data.val, config, rank=rank, world=world)
    state = State.start(model, recipe)
    scheduler, _ = create_scheduler_v2(
        state.optimizer,
        sched=recipe.scheduler,
        num_epochs=max(recipe.epochs, 1),
        warmup_epochs=recipe.warmup_epochs,
        warmup_lr=recipe.min_lr,
        min_lr=recipe.min_lr,
        step_on_epochs=False,
        updates_per_epoch=len(loader),
    )
    criterion = Criterion(
        recipe, teacher, distill, mixup_fn(config, data.num_classes, label_smoothing=recipe.label_smoothing), device
    )

    # Where an earlier start of this stage stopped.
    checkpoints = Checkpoints(run, name)
    first, curve = 0, []
    if (found := checkpoints.load()) is not None:
        first, saved = found
        state.load_state_dict(saved)
        curve = [row for row in read_curve(run, name) if row["epoch"] <= first]
    elif recipe.epochs:  # where it starts from: after a cut, what the cut alone costs
        curve.append(curve_row(stage, point, 0, None, evaluate(state.kept, val, device, recipe).top1, 0.0, recipe.lr, gated))
        if rank == 0:
            write_curve(run, name, curve)

    parallel = model
    if world > 1:
        parallel = DistributedDataParallel(model, device_ids=[device] if device.type == "cuda" else None)
    forward = torch.compile(parallel) if recipe.compile else parallel

    for epoch in range(first, recipe.epochs):
        if until is not None and float(mean_over_ranks(torch.tensor(float(time.time() >= until), device=device))) > 0:
            raise OutOfTime(f"{name} stopped after epoch {epoch} of {recipe.epochs}")
        began = time.perf_counter()
        # Each epoch draws from its own seed, so an epoch that is run again after a restart is the same epoch.
        draw = (seed * 1_000_003 + epoch) * 1_009 + rank
        torch.manual_seed(draw)
        np.random.seed(draw % 2**32)  # noqa: NPY002 (timm's Mixup draws from it)
        loader.set_epoch(epoch)
        model.train()
        losses: list[Tensor] = []
        for step, (images, labels) in enumerate(loader):
            updates = epoch * len(loader) + step
            scheduler.step_update(updates)
            if state.gates is not None:
                state.gates.anneal(updates / (recipe.epochs * len(loader)))
            losses.append(backward(forward, parallel, images, labels, criterion, state.gates, recipe, device))
            state.step(recipe, updates)
            if len(losses) % CHECK_EVERY == 0 or step + 1 == len(loader):
                check_finite(losses, stage, point, epoch, recipe)
        if state.gates is not None:
            state.gates.anneal((epoch + 1) / recipe.epochs)
        share_damaged(loader.damaged, device)
        loss = float(mean_over_ranks(torch.stack(losses).mean()))
        seconds = time.perf_counter() - began
        top1, _, val_loss = evaluate(state.kept, val, device, recipe)
        check_finite([*losses, torch.tensor(val_loss, device=device)], stage, point, epoch, recipe)  # the last step's weights
        if rank == 0:
            row = curve_row(stage, point, epoch + 1, loss, top1, seconds, state.optimizer.param_groups[0]["lr"], gated)
            curve.append(row)
            entry = {"stage": stage, "point": point, "epoch": epoch + 1, "pid": os.getpid(), "time": time.time()}
            run.append_line("epochs.log", json.dumps(entry))
            note_damaged(run, loader.damaged, val.damaged)
            write_curve(run, name, curve)
            checkpoints.save(epoch + 1, state.state_dict())
            on_epoch(row)
    return state.kept


def backward(
    forward: Callable[[Tensor], Tensor],
    parallel: nn.Module,
    images: Tensor,
    labels: Tensor,
    criterion: "Criterion",
    gates: GateOptimizer | None,
    recipe: Recipe,
    device: torch.device,
) -> Tensor:
    """Gradients of one batch, in `recipe.accumulate` parts; returns its mean loss, detached."""
    parts = zip(images.chunk(recipe.accumulate), labels.chunk(recipe.accumulate), strict=True)
    total = torch.zeros((), device=device)
    for index, (some_images, some_labels) in enumerate(parts):
        x, y = some_images.to(device, non_blocking=True), some_labels.to(device, non_blocking=True)
        last = index == recipe.accumulate - 1
        # Gradients are averaged over ranks once a batch, with the last part.
        wait = parallel.no_sync() if isinstance(parallel, DistributedDataParallel) and not last else nullcontext()
        with wait:
            with autocast(recipe, device):
                loss = criterion(forward, x, y)
                if gates is not None:
                    loss = loss + gates.penalty()
            share = len(x) / len(images)
            (loss * share).backward()
        total += loss.detach() * share
    return total


class Criterion:
    """A batch's loss: cross entropy on labels, mixed or smoothed, and on the teacher's answers (Hinton et al. 2015)."""

    def __init__(
        self, recipe: Recipe, teacher: nn.Module | None, distill: Distill | None, mixup: Callable | None, device: torch.device
    ) -> None:
        self.smoothing = recipe.label_smoothing
        self.teacher = teacher.to(device).eval() if teacher is not None and distill is not None and distill.alpha > 0 else None
        self.distill = distill
        self.mixup = mixup

    def __call__(self, forward: Callable[[Tensor], Tensor], images: Tensor, labels: Tensor) -> Tensor:
        if self.mixup is not None:
            images, labels = self.mixup(images, labels)  # labels become (batch, classes), smoothed already
        logits = forward(images)
        smoothing = 0.0 if labels.ndim == 2 else self.smoothing
        loss = F.cross_entropy(logits.float(), labels, label_smoothing=smoothing)
        if self.teacher is None or self.distill is None:
            return loss
        with torch.no_grad():
            answers = self.teacher(images)
        alpha, temperature = self.distill.alpha, self.distill.temperature
        student = F.log_softmax(logits.float() / temperature, dim=1)
        taught = F.kl_div(student, F.log_softmax(answers.float() / temperature, dim=1), reduction="batchmean", log_target=True)
        return (1 - alpha) * loss + alpha * temperature**2 * taught


@torch.no_grad()
def evaluate(model: nn.Module, loader: Loader, device: torch.device, recipe: Recipe | None = None) -> Metrics:
    """Top-1, top-5 and loss over all ranks' shares of a data set, each image once; damaged ones are not counted.

    Raises:
        ConfigError: more images are damaged than data.max_damaged, or all are.
    """
    training = model.training
    model.eval()
    sums = torch.zeros(4, dtype=torch.float64, device=device)
    with suppress(TooManyDamaged):  # raised below, on all ranks: none waits for one that has stopped
        for batch, targets in loader:
            images, labels = batch.to(device, non_blocking=True), targets.to(device, non_blocking=True)
            with autocast(recipe, device):
                logits = model(images)
            best = logits.topk(min(5, logits.shape[1]), dim=1).indices == labels[:, None]
            loss = F.cross_entropy(logits.float(), labels, reduction="sum")
            sums += torch.stack([best[:, 0].sum(), best.sum(), loss, torch.tensor(float(len(labels)), device=device)]).double()
    if ranks()[1] > 1:
        dist.all_reduce(sums)
    share_damaged(loader.damaged, device)
    model.train(training)
    top1, top5, loss, count = sums.tolist()
    if not count:
        raise ConfigError(f"not one image of the {loader.damaged.split} split can be read: mend data.root or the split's name")
    return Metrics(100 * top1 / count, 100 * top5 / count, loss / count)


def ranks() -> tuple[int, int]:
    """(rank, world size) of the process group; (0, 1) where there is none."""
    return (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)


def measure(
    model: nn.Module, dataset: ImageSet | ImageStream, config: Config, device: torch.device, recipe: Recipe | None = None
) -> Metrics:
    """`evaluate` on a data set, each rank its share."""
    rank, world = ranks()
    return evaluate(model.to(device), eval_loader(dataset, config, rank=rank, world=world), device, recipe)


def share_damaged(damaged: Damaged, device: torch.device) -> None:
    """Count the damaged images of a split over all ranks, so that where they are too many, all ranks stop.

    Raises:
        TooManyDamaged: they are more than data.max_damaged.
    """
    world = ranks()[1]
    everyone = [damaged.reasons]
    if world > 1 and float(mean_over_ranks(torch.tensor(float(len(damaged.reasons)), device=device))) > 0:
        everyone = [{} for _ in range(world)]
        with torch.cuda.device(device) if device.type == "cuda" else nullcontext():  # where the names travel
            dist.all_gather_object(everyone, damaged.reasons)
    for reasons in everyone:
        damaged.add(reasons)


def note_damaged(run: Folder, *splits: Damaged) -> None:
    """Write the damaged images of these splits to the run's damaged.log, those that it does not name yet."""
    named = damaged_images(run) if any(damaged.reasons for damaged in splits) else {}
    for damaged in splits:
        for image, reason in damaged.reasons.items():
            if image not in named:
                run.append_line("damaged.log", json.dumps({"split": damaged.split, "image": image, "reason": reason}))


def check_finite(losses: list[Tensor], stage: str, point: str, epoch: int, recipe: Recipe) -> None:
    """Raise TrainingDiverged where a loss of this epoch is NaN or infinite."""
    finite = torch.stack(losses[-CHECK_EVERY:]).isfinite()
    if bool(finite.all()):
        return
    step = len(losses) - len(finite) + int((~finite).nonzero()[0]) + 1
    where = f"{stage} of {point}" if point else stage
    gate_lr = ", search.gate_lr" if isinstance(recipe, Search) else ""
    raise TrainingDiverged(
        f"the loss of {where} is not finite in epoch {epoch + 1}, step {step}; "
        f"the last good checkpoint, after epoch {epoch}, is kept: lower {stage}.lr (now {recipe.lr:g}){gate_lr}, "
        f"set {stage}.clip_grad (such as 1.0) or {stage}.warmup_epochs, and start again"
        + ("" if stage == "retrain" else " under another --name")
    )


def curve_row(
    stage: str, point: str, epoch: int, loss: float | None, top1: float, seconds: float, lr: float, gated: GatedModel | None
) -> dict[str, Any]:
    """One epoch's row of `slimsweep.ledger.tables.CURVES`."""
    row = {
        "stage": stage,
        "point": point,
        "epoch": epoch,
        "loss": loss,
        "val_top1": top1,
        "seconds": seconds,
        "learning_rate": lr,
    }
    if gated is None:
        return {**row, "gates_kept": None, "gates": None}
    gates = gated.gates
    table = [
        {"family": f, "layer": i, "mean": float(g.abs().mean()), "below_1e-2": float((g.abs() < SMALL).float().mean())}
        for f, layers in gates.items()
        for i, g in enumerate(layers)
    ]
    everything = torch.cat([g.flatten() for layers in gates.values() for g in layers])
    return {**row, "gates_kept": float((everything.abs() >= SMALL).float().mean()), "gates": table}


def gate_training(search: Search) -> GateTraining:
    """The part of a search's recipe that trains the gates."""
    return GateTraining(
        lr=search.gate_lr,
        optimizer=search.gate_optimizer,
        penalty=search.penalty,
        l1=search.l1.model_dump(),
        token_anneal=search.token_anneal,
    )


def weights_of(model: nn.Module) -> nn.Module | list[dict[str, Any]]:
    """What the weights' optimizer trains: everything, or everything but the gates; decay on matrices only."""
    if not isinstance(model, GatedModel):
        return model
    gates = {id(g) for family in model.gate_parameters().values() for g in family}
    named = [(n, p) for n, p in model.named_parameters() if id(p) not in gates and p.requires_grad]
    skip = model.no_weight_decay()  # type: ignore[operator]
    plain = [p for n, p in named if p.ndim <= 1 or n in skip]
    decayed = [p for n, p in named if not (p.ndim <= 1 or n in skip)]
    return [{"params": plain, "weight_decay": 0.0}, {"params": decayed}]


def optimizer_arguments(recipe: Recipe) -> dict[str, Any]:
    """Adam's betas for the optimizers that take them, and one kernel a step for those that torch has fused."""
    name = recipe.optimizer.lower()
    arguments: dict[str, Any] = {"betas": recipe.betas} if any(kind in name for kind in ("adam", "lamb", "lion")) else {}
    return {**arguments, "fused": True} if name in FUSED else arguments


def set_drop_path(model: nn.Module, rate: float) -> None:
    """Set the stochastic depth of a timm model's blocks: 0 in the first, `rate` in the last (Huang et al. 2016)."""
    blocks = architecture_of(model).blocks(model)
    for index, block in enumerate(blocks):
        share = rate * index / max(len(blocks) - 1, 1)
        for name in ("drop_path1", "drop_path2"):
            setattr(block, name, DropPath(share) if share > 0 else nn.Identity())


def autocast(recipe: Recipe | None, device: torch.device) -> Any:
    """Mixed precision where the recipe asks for it."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=recipe is not None and recipe.amp == "bf16")


def mean_over_ranks(value: Tensor) -> Tensor:
    """The mean of a scalar over the process group."""
    world = ranks()[1]
    if world > 1:
        dist.all_reduce(value)
        value = value / world
    return value
