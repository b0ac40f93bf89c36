"""What a configuration will cost, before any of it is run: `slimsweep plan`.

Times are those of a few real training steps on the device at hand, of the dense model, of the gated one and of every
structure, cut as gates that are all alike cut it where no search has been done. All else is arithmetic.
"""

import functools
import heapq
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from rich.console import Console
from torch import Tensor, nn

from slimsweep.checks import check_cuts
from slimsweep.cluster.cluster import Cluster, check_placement, local_cluster, trials_at_once
from slimsweep.cluster.worker import data_for, set_threads
from slimsweep.config import Config, ConfigError, Distill, Recipe
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
from slimsweep.terminal import plain_table
from slimsweep.training.criterion import Criterion, Teacher
from slimsweep.training.dense_model import build_dense
from slimsweep.training.evaluate import autocast
from slimsweep.training.loop import State, as_network, backward, set_drop_path

FLOAT = 4  # bytes of a weight
TIMED_SECONDS = 1.0  # seconds that one model's training steps are timed for, at least two steps
LONGEST_STEP = 6.0  # seconds that one step may take before a smaller batch is timed in its place
# Beside what is trained: Ray's start, and the driver, the search and the first trials, each of which begins with a process that
# imports torch, timm and Ray. Ray's own part was seen with the default job on 2 cores.
RAY_SECONDS, STAGE_SECONDS = 8.0, 3.0


@dataclass(frozen=True, kw_only=True)
class Images:
    """How many images the splits have."""

    train: int
    val: int
    test: int


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What one worker needs for one image, in one kind of training."""

    train_seconds: float
    eval_seconds: float
    weight_bytes: int  # weights, gradients, the optimizer's state, a moving average and a teacher
    image_bytes: int  # activations that wait for the backward pass
    batch: int  # images of the step that was timed
    scaled: bool  # whether a worker's real batch is larger


@dataclass(frozen=True, kw_only=True)
class Training:
    """One training: the dense model, the search, or a point (then for all its seeds and learning rates)."""

    name: str
    macs: int
    params: int
    epochs: int
    step_seconds: float
    seconds: float  # of one trial, evaluation included
    workers: int
    trials: int
    worker_bytes: int

    @property
    def worker_seconds(self) -> float:
        return self.seconds * self.workers * self.trials


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What a configuration will cost."""

    trainings: list[Training]
    at_once: int  # points that train side by side
    wall_seconds: float
    start_seconds: float  # of the wall time, what Ray and processes take to start
    sweep_seconds: float
    disk_bytes: int
    device: str  # that was timed, or what was assumed
    gpus_per_worker: float
    known: bool  # whether the times are those of the device that will be used
    notes: list[str] = field(default_factory=list)

    @property
    def gpu_hours(self) -> float:
        return sum(t.worker_seconds for t in self.trainings) * self.gpus_per_worker / 3600


def plan(
    config: Config,
    *,
    images: Images | None = None,
    cluster: Cluster | None = None,
    tflops: float | None = None,
    run: Run | None = None,
) -> Plan:
    """Cost a configuration; nothing is written and no Ray is started.

    Args:
        images: sizes of the splits, where the data set is not here; then no loading is timed.
        cluster: what will run it; this machine, or for one that it cannot hold, as many workers as the search has.
        tflops: what a GPU that is not here sustains in training, in 10^12 floating-point operations a second (two a
            multiply-accumulate, three passes a training step): times are then computed and not measured.
        run: a run whose search has ended: its gates give the structures. Else all gates are taken to be alike.

    Raises:
        ConfigError: the data set is not here and `images` is not given, `run` has no search, or the cluster holds no worker.
    """
    notes: list[str] = []
    cluster = cluster or _cluster(config, notes)
    check_placement(config, cluster)
    num_classes, sizes, load_seconds = _data(config, images, notes)
    dense = build_dense(_without_weights(config), num_classes)
    check_cuts(config, dense)
    settings = config.search
    gated = add_gates(dense, settings.granularity, settings.families, settings.token_gate)
    gates: Scores = gated.gates
    if run is not None:
        if not run.search_done:
            raise ConfigError(f"--run is {run.uri}, but no search has ended there: leave it out, and gates count as all alike")
        gates = run.gates
        notes.append(f"structures are those of the search in {run.uri}")
    pace = settings.paces[0].model_dump() if run is None else run.pace
    points = expected_points(config, gated.shape, gates, pace, run)

    cuda = config.resources.gpus_per_worker > 0 and torch.cuda.is_available()
    device = torch.device("cuda" if cuda else "cpu")
    if tflops is None:  # what is timed has the threads of a worker
        set_threads(config)
    known = cuda or config.resources.gpus_per_worker == 0
    if tflops is not None:
        name = f"a device of {tflops:g} TFLOP/s, computed"
    else:
        name = torch.cuda.get_device_name() if cuda else f"this machine's CPU, {torch.get_num_threads()} threads a worker"
    if not known and tflops is None:
        notes.append("there is no GPU here: times are this CPU's; plan on a GPU, or say with --tflops what one sustains")

    def cost(model: nn.Module, recipe: Recipe, workers: int, distill: Distill | None) -> Cost:
        batch = config.data.batch_size // workers // recipe.accumulate
        teacher = None if distill is None else Teacher.of(dense, distill)
        if tflops is not None:
            return _computed(model, recipe, batch, tflops, teacher)
        return time_training(model, config, recipe, batch, device, teacher)

    stages: list[Training] = []
    search_workers = config.resources.search_workers
    if config.dense.epochs:
        found = cost(dense, config.dense, search_workers, None)
        stages.append(_training("dense", dense, config, config.dense, found, sizes, load_seconds, search_workers, 1))
    found = cost(gated, settings, search_workers, settings.distill)
    stages.append(_training("search", gated, config, settings, found, sizes, load_seconds, search_workers, 1))
    per_trial = config.retrain.workers_per_trial
    tries: list[Training] = []
    paces, smallest = paces_tried(config, gated.shape, run)
    if paces:
        of_gated = {family: pace[family] for family in gates}
        path = RemovalPath(gated.shape, gates, settings.floors.model_dump(), settings.round_to, of_gated)
        small = slim(gated, path.solve(smallest))
        recipe = config.pace_recipe()
        found = cost(small, recipe, 1, config.retrain.distill)
        tries.append(_training("paces", small, config, recipe, found, sizes, load_seconds, 1, paces))
    retrained: list[Training] = []
    costs: dict[str, Cost] = {}
    groups: dict[tuple[str, str, int], list[Point]] = {}  # seeds and learning rates cost the same
    for point in points:
        terms = "" if point.terms == "retraining" else f", {point.terms}"
        unit = "" if point.unit == "macs" else f" {point.unit}"
        groups.setdefault((f"{point.method} {point.budget:.4f}{unit}{terms}", point.structure, point.epochs), []).append(point)
    for (label, structure, epochs), members in groups.items():
        small = slim(gated, Structure.from_json(structure))
        recipe = config.retrain.at(members[0].lr, epochs)
        if structure not in costs:
            costs[structure] = cost(small, recipe, per_trial, config.retrain.distill)
        retrained.append(
            _training(label, small, config, recipe, costs[structure], sizes, load_seconds, per_trial, len(members))
        )
    if any(c.scaled for c in costs.values()):
        some = next(c for c in costs.values() if c.scaled)
        notes.append(f"steps were timed with {some.batch} images and scaled to a worker's batch")
    if load_seconds and config.data.workers == 0:
        notes.append(f"loading takes {1e3 * load_seconds:.2f} ms an image, in the training process (data.workers is 0)")

    at_once = trials_at_once(config, cluster, len(points))
    side_by_side = min(config.resources.max_concurrent_trials or paces, cluster.workers(config))  # one worker tries a pace
    trying = makespan([t.seconds for t in tries for _ in range(paces)], side_by_side)
    sweep = makespan([t.seconds for t in retrained for _ in range(t.trials)], at_once)
    if config.retrain.start == "larger":  # the dense and the searched points of one seed wait for each other
        chain = [t.seconds for t, group in zip(retrained, groups.values(), strict=True) if METHODS[group[0].method].chained]
        sweep = max(sweep, sum(chain))
    starting = RAY_SECONDS + 3 * (STAGE_SECONDS + import_seconds())
    return Plan(
        trainings=[*stages, *tries, *retrained],
        at_once=at_once,
        wall_seconds=starting + sum(t.seconds for t in stages) + trying + sweep,
        start_seconds=starting,
        sweep_seconds=sweep,
        disk_bytes=_disk(config, dense, gated, retrained, at_once),
        device=name,
        gpus_per_worker=config.resources.gpus_per_worker,
        known=known or tflops is not None,
        notes=notes,
    )


def time_training(
    model: nn.Module,
    config: Config,
    recipe: Recipe,
    batch: int,
    device: torch.device,
    teacher: Teacher | None = None,
) -> Cost:
    """Time real training steps of a model by a recipe, and count the bytes that they need; images are random.

    Args:
        model: dense, gated or cut; it is trained by some steps.
        batch: images of one forward pass of one worker. Where a step of so many takes too long, fewer are timed.
    """
    model.to(device).train()
    set_drop_path(model, recipe.drop_path)
    if recipe.grad_checkpointing:
        model.set_grad_checkpointing(True)  # type: ignore[operator]
    one_part = recipe.model_copy(update={"accumulate": 1})
    state = State.start(model, one_part)
    mixup = mixup_fn(config.data.augment, int(model.num_classes), label_smoothing=recipe.label_smoothing)  # type: ignore[arg-type]
    criterion = Criterion(one_part, device, mixup=mixup, teacher=teacher, gates=state.gates)
    network = as_network(model, recipe, device)
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
    step(images.clone(), labels)  # at another batch size than before: memory is found anew
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
    return Cost(
        train_seconds=sorted(seconds)[len(seconds) // 2] / timed,
        eval_seconds=evaluated / timed,
        weight_bytes=_weight_bytes(state, teacher),
        image_bytes=saved // few,
        batch=timed,
        scaled=timed < batch,
    )


def makespan(seconds: Sequence[float], at_once: int) -> float:
    """Seconds until the last of some trials has ended, each starting in its turn as soon as one of `at_once` places is free."""
    free = [0.0] * max(1, at_once)
    for took in seconds:
        heapq.heappush(free, heapq.heappop(free) + took)
    return max(free)


@functools.cache
def import_seconds() -> float:
    """Seconds that a fresh worker process takes to import what it needs, measured on one."""
    began = time.perf_counter()
    subprocess.run([sys.executable, "-c", "import slimsweep.cluster.retrain_job"], check=True, capture_output=True)
    return time.perf_counter() - began


def show(found: Plan, console: Console, price: float | None = None) -> None:
    """Print a plan: a line for each training, then what the whole costs."""
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
    lines = [
        f"Timed on {found.device}. Trials are x workers, GiB are of one worker, 'each' is a trial's time, hours are of all."
    ]
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
        known = f"{price * hours:,.2f} at {price:g} an hour of one {unit}"
        lines.append(f"Price: {known if found.known else 'not known, for its device was not timed'}.")
    console.print(table)
    for line in lines:
        console.print(line, soft_wrap=True)


def _training(
    name: str,
    model: nn.Module,
    config: Config,
    recipe: Recipe,
    cost: Cost,
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


def _computed(model: nn.Module, recipe: Recipe, batch: int, tflops: float, teacher: Teacher | None) -> Cost:
    """From multiply-accumulates alone: a backward pass costs two forward passes. Bytes are of a step on the CPU."""
    forward = 2 * macs(model) / (tflops * 1e12)
    taught = 2 * macs(teacher.model) / (tflops * 1e12) if teacher is not None else 0.0
    few = min(batch, 2)
    state = State.start(model.train(), recipe)
    images, labels = torch.randn(few, *image_size(model)), torch.zeros(few, dtype=torch.long)

    def step() -> None:
        with autocast(recipe, torch.device("cpu")):
            nn.functional.cross_entropy(model(images).float(), labels).backward()
        state.optimizer.zero_grad(set_to_none=True)

    saved = _saved_bytes(step, model)
    return Cost(
        train_seconds=3 * forward + taught,
        eval_seconds=forward,
        weight_bytes=_weight_bytes(state, teacher),
        image_bytes=saved // few,
        batch=batch,
        scaled=False,
    )


def _weight_bytes(state: State, teacher: Teacher | None) -> int:
    """Weights, gradients and two moments, a moving average where there is one, and a teacher's weights."""
    copies = 4 + (state.ema is not None)
    held = [p.numel() * copies for p in state.model.parameters()]
    return FLOAT * (sum(held) + (params(teacher.model) if teacher is not None else 0))


def _saved_bytes(step: Callable[[], object], model: nn.Module) -> int:
    """Bytes of the tensors that a training step keeps for its backward pass, weights apart; each storage counts once."""
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
        return config.data.num_classes or 10, images, 0.0
    try:
        data = data_for(config)
    except ConfigError as problem:
        raise ConfigError(f"{problem}; to plan without the images, say how many they are: --images TRAIN,VAL,TEST") from problem
    loader = train_loader(data.train, data.settings.model_copy(update={"workers": 0}), seed=config.seed)
    loader.set_epoch(0)
    batches = iter(loader)
    next(batches)  # the first reads what is kept ready for the others
    began, seen = time.perf_counter(), 0
    for some, _ in batches:
        seen += len(some)
        if time.perf_counter() - began > TIMED_SECONDS:
            break
    seconds = (time.perf_counter() - began) / seen if seen else 0.0
    return data.num_classes, Images(train=len(data.train), val=len(data.val), test=len(data.test)), seconds


def _cluster(config: Config, notes: list[str]) -> Cluster:
    """This machine, or where it cannot hold the search, nodes that hold as many workers."""
    here = local_cluster() or Cluster([])
    per_search, per_trial = config.resources.search_workers, config.retrain.workers_per_trial
    if here.workers(config) >= max(per_search, per_trial):
        return here
    workers = max(per_search, per_trial)
    notes.append(f"this machine does not hold {workers} workers: a cluster that just does is assumed")
    each = {"CPU": config.resources.cpus_per_worker, "GPU": max(config.resources.gpus_per_worker, 0.0)}
    whole = {name: float(-(-amount // 1)) for name, amount in each.items()}
    return Cluster([whole] * workers)


def _disk(config: Config, dense: nn.Module, gated: GatedModel, retrained: list[Training], at_once: int) -> int:
    """Bytes of all models, and of the checkpoints that are there at the same time."""

    def checkpoint(recipe: Recipe, parameters: int) -> int:
        """Weights, two moments, a moving average where there is one."""
        return FLOAT * (4 if recipe.ema_decay else 3) * parameters

    models = FLOAT * (2 * params(dense) + sum(t.params * t.trials for t in retrained))
    searching = checkpoint(config.search, params(gated))
    sweeping = at_once * checkpoint(config.retrain, max(t.params for t in retrained))
    return models + KEEP * max(searching, sweeping)


def _without_weights(config: Config) -> Config:
    """The same model with fresh weights, which cost as much: nothing is downloaded."""
    return config.changed(
        **{"model.pretrained": False, "model.checkpoint": None, "dense.epochs": max(1, config.dense.epochs)}
        | ({"dense.warmup_epochs": 0} if config.dense.epochs == 0 else {})
    )


def _time(seconds: float) -> str:
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:,.1f} {unit}"
    return f"{seconds:.1f} s"
