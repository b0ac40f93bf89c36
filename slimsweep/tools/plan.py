"""What a configuration will cost, before any of it is run: `slimsweep plan`.

A few real training steps of the dense model, of the gated model and of every structure are timed on this machine; the rest is
arithmetic. Where no search has been done, structures are those of equal gates.
"""

import functools
import heapq
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from rich.console import Console
from torch import Tensor, nn

from slimsweep.checks import check_cuts
from slimsweep.cluster.cluster import Cluster, check_placement, local_cluster, trials_at_once
from slimsweep.cluster.worker import data_for, set_threads
from slimsweep.config import Config, ConfigError, Recipe, Stage
from slimsweep.data import check_batch, mixup_fn, train_loader
from slimsweep.ledger.checkpoints import KEEP
from slimsweep.ledger.planning import expected_points, paces_tried
from slimsweep.ledger.points import Point
from slimsweep.ledger.run import Run
from slimsweep.methods import METHODS
from slimsweep.slimming.cut import slim
from slimsweep.slimming.gates import GatedModel, add_gates
from slimsweep.slimming.removal_path import RemovalPath, Scores
from slimsweep.slimming.structure import Structure, image_size, macs, params
from slimsweep.terminal import counted, plain_table, say, show_whole
from slimsweep.training.backbone import families_to_cut
from slimsweep.training.criterion import Criterion, Teacher, student_of
from slimsweep.training.dense_model import build_dense
from slimsweep.training.evaluate import autocast
from slimsweep.training.loop import State, as_network, backward, set_drop_path
from slimsweep.training.teachers import forward_macs

FLOAT = 4  # bytes of a weight
TIMED_SECONDS = 1.0  # for which each model's training steps are timed, at least two steps
LONGEST_STEP = 6.0  # seconds; where a step would take longer, a smaller batch is timed
# Seconds outside training, measured with the default job on 2 cores: of Ray's start, and of the start of the driver, the search
# and the first trials, apart from the imports of their processes.
RAY_SECONDS, STAGE_SECONDS = 8.0, 3.0


@dataclass(frozen=True, kw_only=True)
class Images:
    """Number of images per split."""

    train: int
    val: int
    test: int


@dataclass(frozen=True, kw_only=True)
class ImageCost:
    """What one worker needs per image, in one kind of training."""

    train_seconds: float
    eval_seconds: float
    weight_bytes: int  # weights, gradients, the optimizer's state, a moving average and a teacher
    image_bytes: int  # activations kept for the backward pass
    batch: int  # images in the step that was timed
    scaled: bool  # whether a worker's real batch is larger than that


@dataclass(frozen=True, kw_only=True)
class Training:
    """One training: of the dense model, of the search, of the tries of paces, or of a point with all its seeds and rates."""

    name: str
    macs: int  # per image
    params: int
    epochs: int
    step_seconds: float
    seconds: float  # of one trial, with its evaluations
    workers: int  # per trial
    trials: int
    worker_bytes: int  # memory of one worker

    @property
    def worker_seconds(self) -> float:
        """Of all trials and their workers."""
        return self.seconds * self.workers * self.trials


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """What a configuration will cost."""

    trainings: list[Training]
    at_once: int  # points that train side by side
    wall_seconds: float
    start_seconds: float  # part of wall_seconds: starts of Ray and of processes
    sweep_seconds: float
    disk_bytes: int
    device: str  # the device that was timed or assumed, in words
    timed: bool  # whether steps were timed; else times are computed from the device's speed
    gpus_per_worker: float
    known: bool  # whether times are of the kind of device that will be used
    notes: list[str] = field(default_factory=list)

    @property
    def gpu_hours(self) -> float:
        """Of all trainings; 0 without GPUs."""
        return sum(t.worker_seconds for t in self.trainings) * self.gpus_per_worker / 3600


def plan(
    config: Config,
    *,
    images: Images | None = None,
    cluster: Cluster | None = None,
    tflops: float | None = None,
    run: Run | None = None,
) -> Estimate:
    """Estimate what a configuration costs. Nothing is written, and Ray is not started.

    Args:
        images: sizes of the splits, where the data set is not on this machine; loading is then not timed.
        cluster: the cluster that will run it. Default: this machine, or if its workers do not fit here, one with just enough
            room for the search and for one trial.
        tflops: speed in training of a GPU that is not on this machine, in 10^12 floating-point operations per second (two per
            multiply-accumulate, three passes per training step). Times are then computed and not measured.
        run: a run whose search has ended: structures are those of its gates. Without it they are those of equal gates.

    Raises:
        ConfigError: the data set is not here and `images` is not given, `run` has no search, or workers do not fit.
        BudgetError: a budget below the smallest model that can be cut.
    """
    notes: list[str] = []
    cluster = cluster or _cluster(config, notes)
    check_placement(config, cluster)
    num_classes, sizes, load_seconds = _data(config, images, notes)
    dense = build_dense(_without_weights(config), num_classes)
    check_cuts(config, dense)
    settings = config.search
    gated = add_gates(dense, settings.granularity, families_to_cut(config, dense), settings.token_gate)
    gates: Scores = gated.gates
    if run is not None:
        if not run.search_done:
            raise ConfigError(f"--run is {run.uri}, but no search has ended there: leave it out to plan with equal gates")
        if run.shape.gate_shapes != gated.shape.gate_shapes:
            raise ConfigError(f"--run is {run.uri}, which searched another model: leave it out, or plan that model")
        gates = run.scores
        notes.append(f"structures are those of the search in {run.uri}")
    pace = settings.paces[0].model_dump() if run is None else run.pace
    points = expected_points(config, gated.shape, gates, pace, run)

    cuda = config.resources.gpus_per_worker > 0 and torch.cuda.is_available()
    device = torch.device("cuda" if cuda else "cpu")
    if tflops is None:  # time with as many threads as a worker has
        set_threads(config)
    known = cuda or config.resources.gpus_per_worker == 0
    if tflops is not None:
        name = f"a device of {tflops:g} TFLOP/s"
    elif cuda:
        name = torch.cuda.get_device_name()
    else:
        name = f"this machine's CPU, {counted(torch.get_num_threads(), 'thread')} per worker"
    if not known and tflops is None:
        notes.append("this machine has no GPU, so times are those of its CPU; plan on a GPU, or give its speed with --tflops")

    taught: dict[Stage, Teacher | None] = {"dense": None}
    trained = {"search": settings.epochs, "retrain": config.retrain.epochs or settings.recovery}
    for stage in ("search", "retrain"):
        taught[stage] = Teacher.alike(config, stage, dense, num_classes) if trained[stage] else None
    notes += _teachers_said(taught)

    def cost(model: nn.Module, recipe: Recipe, workers: int, stage: Stage) -> ImageCost:
        batch, teacher = config.data.batch_size // workers // recipe.accumulate, taught[stage]
        if tflops is not None:
            return _computed(model, recipe, batch, tflops, teacher)
        return time_training(model, config, recipe, batch, device, teacher)

    stages: list[Training] = []
    search_workers = config.resources.search_workers
    if config.dense.epochs:
        found = cost(dense, config.dense, search_workers, "dense")
        stages.append(_training("dense", dense, config, config.dense, found, sizes, load_seconds, search_workers, 1))
    found = cost(gated, settings, search_workers, "search")
    stages.append(_training("search", gated, config, settings, found, sizes, load_seconds, search_workers, 1))
    per_trial = config.retrain.workers_per_trial
    tries: list[Training] = []
    paces, smallest = paces_tried(config, gated.shape, run)
    if paces:
        of_gated = {family: pace[family] for family in gates}
        path = RemovalPath(gated.shape, gates, settings.floors.model_dump(), settings.round_to, of_gated, settings.depth)
        small = slim(gated, path.solve(smallest))
        recipe = config.pace_recipe()
        found = cost(small, recipe, 1, "retrain")
        tries.append(_training("paces", small, config, recipe, found, sizes, load_seconds, 1, paces))
    retrained: list[Training] = []
    costs: dict[str, ImageCost] = {}
    groups: dict[tuple[str, str, int], list[Point]] = {}  # seeds and learning rates cost the same
    for point in points:
        terms = "" if point.terms == "retraining" else f", {point.terms}"
        unit = "" if point.unit == "macs" else f" {point.unit}"
        groups.setdefault((f"{point.method} {point.budget:.4f}{unit}{terms}", point.structure, point.epochs), []).append(point)
    for (label, structure, epochs), members in groups.items():
        small = slim(gated, Structure.from_json(structure))
        recipe = config.retrain.at(members[0].lr, epochs)
        if structure not in costs:
            costs[structure] = cost(small, recipe, per_trial, "retrain")
        retrained.append(
            _training(label, small, config, recipe, costs[structure], sizes, load_seconds, per_trial, len(members))
        )
    if any(c.scaled for c in costs.values()):
        some = next(c for c in costs.values() if c.scaled)
        notes.append(f"steps were timed with {some.batch} images and scaled to a worker's batch")
    if load_seconds and config.data.workers == 0:
        notes.append(f"loading takes {1e3 * load_seconds:.2f} ms per image, in the training process (data.workers is 0)")

    if settings.axes or config.retrain.repair:
        notes.append("principal axes and repair take seconds per point and are not counted")

    at_once = trials_at_once(config, cluster, len(points))
    side_by_side = min(config.resources.max_concurrent_trials or paces, cluster.workers(config))  # one worker tries a pace
    trying = makespan([t.seconds for t in tries for _ in range(paces)], side_by_side)
    sweep = makespan([t.seconds for t in retrained for _ in range(t.trials)], at_once)
    if config.retrain.start == "larger":  # the dense and the searched points of one seed wait for each other
        chain = [t.seconds for t, group in zip(retrained, groups.values(), strict=True) if METHODS[group[0].method].chained]
        sweep = max(sweep, sum(chain))
    starting = RAY_SECONDS + 3 * (STAGE_SECONDS + import_seconds())
    return Estimate(
        trainings=[*stages, *tries, *retrained],
        at_once=at_once,
        wall_seconds=starting + sum(t.seconds for t in stages) + trying + sweep,
        start_seconds=starting,
        sweep_seconds=sweep,
        disk_bytes=_disk(config, dense, gated, retrained, at_once),
        device=name,
        timed=tflops is None,
        gpus_per_worker=config.resources.gpus_per_worker,
        known=known or tflops is not None,
        notes=notes,
    )


def _teachers_said(taught: Mapping[Stage, Teacher | None]) -> list[str]:
    """What the teachers add to every training step, a note per teacher."""
    found: dict[tuple[int, int], list[str]] = {}
    for stage, teacher in taught.items():
        if teacher is not None:
            found.setdefault((forward_macs(teacher.model), params(teacher.model)), []).append(stage)
    return [
        f"in each step of {' and '.join(stages)} the teacher answers too: {cost / 1e6:,.1f} MMACs per image, "
        f"{size / 1e6:.2f} M params, which times and GiB include"
        for (cost, size), stages in found.items()
    ]


def time_training(
    model: nn.Module,
    config: Config,
    recipe: Recipe,
    batch: int,
    device: torch.device,
    teacher: Teacher | None = None,
) -> ImageCost:
    """Time training steps of a model with random images, and count the bytes that they need.

    Args:
        model: dense, gated or cut; its weights change.
        batch: images per forward pass of one worker; fewer are timed where a step takes longer than LONGEST_STEP.
    """
    model.to(device).train()
    set_drop_path(model, recipe.drop_path)
    if recipe.grad_checkpointing:
        model.set_grad_checkpointing(True)  # type: ignore[operator]
    one_part = recipe.model_copy(update={"accumulate": 1})
    state = State.start(model, one_part)
    mixup = mixup_fn(config.data.augment, int(model.num_classes), label_smoothing=recipe.label_smoothing)  # type: ignore[arg-type]
    criterion = Criterion(one_part, device, mixup=mixup, teacher=teacher, gates=state.gates)
    network = as_network(student_of(model, teacher), recipe, device)
    size = image_size(model)

    def step(images: Tensor, labels: Tensor) -> float:
        began = time.perf_counter()
        loss = backward(network, criterion, images, labels, one_part, device)
        state.step(one_part, 0)
        loss.item()  # waits for the device
        return time.perf_counter() - began

    few = min(batch, 8)
    saved = _saved_bytes(lambda: step(torch.randn(few, *size), torch.zeros(few, dtype=torch.long)), model)
    took = step(torch.randn(few, *size), torch.zeros(few, dtype=torch.long))
    timed = batch if took * batch / few <= LONGEST_STEP else few
    images, labels = torch.randn(timed, *size), torch.zeros(timed, dtype=torch.long)
    step(images.clone(), labels)  # untimed: the first step at a batch size allocates memory
    seconds: list[float] = []
    while sum(seconds) < TIMED_SECONDS or len(seconds) < 2:
        seconds.append(step(images.clone(), labels))
    model.eval()
    evaluated = 0.0
    with torch.no_grad(), autocast(one_part, device):
        for _ in range(2):
            began = time.perf_counter()
            model(images.to(device)).sum().item()
            evaluated = time.perf_counter() - began
    return ImageCost(
        train_seconds=sorted(seconds)[len(seconds) // 2] / timed,
        eval_seconds=evaluated / timed,
        weight_bytes=_weight_bytes(state, teacher),
        image_bytes=saved // few,
        batch=timed,
        scaled=timed < batch,
    )


def makespan(seconds: Sequence[float], at_once: int) -> float:
    """Seconds until all trials have ended, when `at_once` of them run at a time, in the order given."""
    free = [0.0] * max(1, at_once)
    for took in seconds:
        heapq.heappush(free, heapq.heappop(free) + took)
    return max(free)


@functools.cache
def import_seconds() -> float:
    """Seconds that a new worker process takes for its imports, measured once."""
    began = time.perf_counter()
    subprocess.run([sys.executable, "-c", "import slimsweep.cluster.retrain_job"], check=True, capture_output=True)
    return time.perf_counter() - began


def show(found: Estimate, console: Console, price: float | None = None) -> None:
    """Print a plan: one line per training, then the totals.

    Args:
        price: of one GPU per hour, or of one worker per hour where there are no GPUs.
    """
    columns = ["MMACs", "M params", "trials", "epochs", "step", "each", "hours", "GiB"]
    table = plain_table("", [("training", "left"), *((c, "right") for c in columns)])
    table.columns[0].no_wrap = True
    for t in found.trainings:
        table.add_row(
            t.name,
            f"{t.macs / 1e6:,.1f}",
            f"{t.params / 1e6:.2f}",
            str(t.trials) if t.workers == 1 else f"{t.trials} x {t.workers}",
            str(t.epochs),
            f"{1e3 * t.step_seconds:,.1f} ms",
            _time(t.seconds),
            f"{t.worker_seconds / 3600:,.2f}",
            f"{t.worker_bytes / 2**30:.2f}",
        )
    workers = sum(t.worker_seconds for t in found.trainings) / 3600
    how = f"{'Timed on' if found.timed else 'Computed for'} {found.device}"
    lines = [f"{how}. GiB: memory of one worker; each: time of one trial; hours: of all trials and workers."]
    lines += [f"Note: {note}." for note in found.notes]
    lines += [
        f"The sweep trains {found.at_once} points at a time, for {_time(found.sweep_seconds)}.",
        f"In all: {_time(found.wall_seconds)}, of which {found.start_seconds:.0f} s are starts of Ray and of processes.",
        f"Disk: {found.disk_bytes / 2**30:.2f} GiB at most, checkpoints under way included.",
    ]
    if found.gpus_per_worker and found.known:
        lines.append(f"GPU hours: {found.gpu_hours:,.1f}.")
    if price is not None:
        unit, hours = ("GPU", found.gpu_hours) if found.gpus_per_worker else ("worker", workers)
        known = f"{price * hours:,.2f} at {price:g} per hour of one {unit}"
        lines.append(f"Price: {known if found.known else 'unknown, since its device was not timed'}.")
    show_whole(console, table)
    for line in lines:
        say(console, line)


def _training(
    name: str,
    model: nn.Module,
    config: Config,
    recipe: Recipe,
    cost: ImageCost,
    sizes: Images,
    load_seconds: float,
    workers: int,
    trials: int,
) -> Training:
    share = config.data.batch_size // workers
    computing, loading = share * cost.train_seconds, share * load_seconds
    # Loading processes work while the model trains; without them, the training process loads too.
    step = max(computing, loading / config.data.workers) if config.data.workers else computing + loading
    evaluation = cost.eval_seconds / workers
    steps = sizes.train // config.data.batch_size
    seconds = recipe.epochs * (steps * step + sizes.val * evaluation) + (2 * sizes.val + sizes.test) * evaluation
    return Training(
        name=name,
        macs=macs(model),
        params=params(model),
        epochs=recipe.epochs,
        step_seconds=step,
        seconds=seconds,
        workers=workers,
        trials=trials,
        worker_bytes=cost.weight_bytes + cost.image_bytes * share // recipe.accumulate,
    )


def _computed(model: nn.Module, recipe: Recipe, batch: int, tflops: float, teacher: Teacher | None) -> ImageCost:
    """The cost computed from MACs: a backward pass counts as two forward passes. Bytes are those of a step on the CPU."""
    forward = 2 * macs(model) / (tflops * 1e12)
    taught = 2 * forward_macs(teacher.model) / (tflops * 1e12) if teacher is not None else 0.0
    few = min(batch, 2)
    state = State.start(model.train(), recipe)
    images, labels = torch.randn(few, *image_size(model)), torch.zeros(few, dtype=torch.long)

    def step() -> None:
        with autocast(recipe, torch.device("cpu")):
            nn.functional.cross_entropy(model(images).float(), labels).backward()
        state.optimizer.zero_grad(set_to_none=True)

    saved = _saved_bytes(step, model)
    return ImageCost(
        train_seconds=3 * forward + taught,
        eval_seconds=forward,
        weight_bytes=_weight_bytes(state, teacher),
        image_bytes=saved // few,
        batch=batch,
        scaled=False,
    )


def _weight_bytes(state: State, teacher: Teacher | None) -> int:
    """Bytes of weights, gradients and two moments, of a moving average if there is one, and of a teacher."""
    copies = 4 + (state.ema is not None)
    held = [p.numel() * copies for p in state.model.parameters()]
    return FLOAT * (sum(held) + (params(teacher.model) if teacher is not None else 0))


def _saved_bytes(step: Callable[[], object], model: nn.Module) -> int:
    """Bytes of the tensors that a training step keeps for its backward pass, without the weights; each storage counts once."""
    own = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        step()
    return sum(kept.values())


def _data(config: Config, images: Images | None, notes: list[str]) -> tuple[int, Images, float]:
    """(classes, sizes of the splits, seconds that one process takes to load a training image)."""
    if images is not None:
        check_batch(config, images.train)
        notes.append("loading is not timed")
        return 10 if config.data.num_classes is None else config.data.num_classes, images, 0.0
    try:
        data = data_for(config)
    except ConfigError as problem:
        raise ConfigError(f"{problem}; to plan without the images, say how many they are: --images TRAIN,VAL,TEST") from problem
    notes += data.notes
    loader = train_loader(data.train, data.settings.model_copy(update={"workers": 0}), seed=config.seed)
    loader.set_epoch(0)
    batches = iter(loader)
    next(batches)  # untimed: the first batch also fills caches
    began, seen = time.perf_counter(), 0
    for some, _ in batches:
        seen += len(some)
        if time.perf_counter() - began > TIMED_SECONDS:
            break
    seconds = (time.perf_counter() - began) / seen if seen else 0.0
    return data.num_classes, Images(train=len(data.train), val=len(data.val), test=len(data.test)), seconds


def _cluster(config: Config, notes: list[str]) -> Cluster:
    """This machine as a cluster, or if its workers do not fit here, nodes with just enough room for them."""
    here = local_cluster() or Cluster([])
    per_search, per_trial = config.resources.search_workers, config.retrain.workers_per_trial
    if here.workers(config) >= max(per_search, per_trial):
        return here
    workers = max(per_search, per_trial)
    notes.append(f"{workers} workers do not fit on this machine: a cluster with just enough room is assumed")
    each = {"CPU": config.resources.cpus_per_worker, "GPU": max(config.resources.gpus_per_worker, 0.0)}
    whole = {name: float(-(-amount // 1)) for name, amount in each.items()}
    return Cluster([whole] * workers)


def _disk(config: Config, dense: nn.Module, gated: GatedModel, retrained: list[Training], at_once: int) -> int:
    """Bytes of all models, and of all checkpoints that exist at the same time."""

    def checkpoint(recipe: Recipe, parameters: int) -> int:
        """Bytes of weights, two moments, and a moving average if there is one."""
        return FLOAT * (4 if recipe.ema_decay else 3) * parameters

    models = FLOAT * (2 * params(dense) + sum(t.params * t.trials for t in retrained))
    searching = checkpoint(config.search, params(gated))
    sweeping = at_once * checkpoint(config.retrain, max(t.params for t in retrained))
    return models + KEEP * max(searching, sweeping)


def _without_weights(config: Config) -> Config:
    """The configuration with fresh weights, which cost the same and need no download."""
    if config.backbone:  # which is never trained on its own, so no configuration of it is without weights
        return config.model_copy(update={"model": config.model.model_copy(update={"pretrained": False, "checkpoint": None})})
    return config.changed(
        **{"model.pretrained": False, "model.checkpoint": None, "dense.epochs": max(1, config.dense.epochs)}
        | ({"dense.warmup_epochs": 0} if config.dense.epochs == 0 else {})
    )


def _time(seconds: float) -> str:
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:,.1f} {unit}"
    return f"{seconds:.1f} s"
