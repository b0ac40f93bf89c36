"""What a configuration will cost, before any of it is run: `slimsweep plan`.

A few real training steps of the dense model, of the gated model and of every structure are timed on this machine; the rest is
arithmetic. Where no search has been done, structures are those of equal gates.
"""

import functools
import heapq
import itertools
import math
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from slimsweep.checks import check_cuts
from slimsweep.cluster.cluster import Cluster, check_placement, loads_at_once, local_cluster, trials_at_once
from slimsweep.cluster.worker import data_for, probe_for, set_threads
from slimsweep.config import Config, ConfigError, Recipe, Refusals, Stage
from slimsweep.data import calibration_count, check_batch, mixup_fn
from slimsweep.latency.calls import ROUNDS, TimingCost, timing_cost
from slimsweep.latency.curve import PREFIXES, PREFIXES_OF_A_TRY
from slimsweep.ledger.checkpoints import KEEP
from slimsweep.ledger.planning import distinct_paces, expected_points, paces_tried
from slimsweep.ledger.points import Point
from slimsweep.ledger.run import Run
from slimsweep.methods import METHODS
from slimsweep.slimming.budget import Budget
from slimsweep.slimming.cost import LATENCY
from slimsweep.slimming.cut import slim
from slimsweep.slimming.gates import GatedModel, add_gates
from slimsweep.slimming.reconstruction import COMPARED_IMAGES
from slimsweep.slimming.removal_path import RemovalPath, Scores
from slimsweep.slimming.structure import Structure, image_size, macs, params
from slimsweep.terminal import counted
from slimsweep.tools.estimate import Estimate, ImageCost, Images, Training
from slimsweep.tools.loading_time import NOT_TIMED, LoadingTime, time_loading
from slimsweep.training.backbone import families_to_cut
from slimsweep.training.criterion import Criterion, Teacher, student_of
from slimsweep.training.dense_model import build_dense, check_model
from slimsweep.training.evaluate import autocast
from slimsweep.training.loop import State, as_network, backward, set_drop_path
from slimsweep.training.teachers import check_answers, forward_macs, weightless

FLOAT = 4  # bytes of a weight
USUAL_TRIES = 3  # sessions in which the structure of a budget in ms is found, where the machine is quiet
TIMED_SECONDS = 1.0  # for which each model's training steps are timed, at least two steps
WAIT = 0.1  # share of a step's computing that loading may take in the training process before it is said
LONGEST_STEP = 6.0  # seconds; where a step would take longer, a smaller batch is timed
# Seconds outside training and imports, measured with the default job on 2 cores: of Ray's start beyond the driver's imports, of
# Ray Train's and Ray Tune's own processes, of preparing data, and of the report.
OTHER_SECONDS = 13.0
# What principal axes and repair take, in forward passes over their images. Axes: one pass, and second moments of each layer's
# inputs, a quarter of its products. Repair: of the model before the cut its blocks once; of the small one a third for attention
# and twice for the MLP and what the next block gets, and as many products for the least squares of two layers per block. Images
# whose outputs are compared take a pass of the one and two of the other more.
AXES_PASSES, SOURCE_PASSES, SMALL_PASSES = 1.25, 1.0, 3.5


def plan(
    config: Config,
    *,
    images: Images | None = None,
    cluster: Cluster | None = None,
    tflops: float | None = None,
    run: Run | None = None,
    progress: Callable[[int, int, str], None] = lambda done, total, what: None,
) -> Estimate:
    """Estimate what a configuration costs. Nothing is written, and Ray is not started.

    Args:
        images: sizes of the splits, where the data set is not on this machine; loading is then not timed, and a probe's images
            are not counted.
        cluster: the cluster that will run it. Default: this machine, or if its workers do not fit here, one with just enough
            room for the search and for one trial.
        tflops: speed in training of a GPU that is not on this machine, in 10^12 floating-point operations per second (two per
            multiply-accumulate, three passes per training step). Times are then computed and not measured.
        run: a run whose search has ended: structures are those of its gates. Without it they are those of equal gates.
        progress: called before each model is timed: how many were timed, how many there are, and what is timed now.

    Raises:
        ConfigError: the data set is not here and `images` is not given, `run` has no search, or workers do not fit.
        BudgetError: a budget below the smallest model that can be cut.
    """
    notes: list[str] = []
    cluster = cluster or _cluster(config, notes)
    set_threads(config)  # times are taken with as many threads as a worker has
    num_classes, sizes, loading, probed = _checked(config, images, cluster, notes)
    dense = build_dense(_without_weights(config), num_classes)
    settings = config.search
    gated = add_gates(dense, settings.granularity, families_to_cut(config, dense), settings.token_gate)
    gates, pace = _ranking(config, gated, run, notes)
    timing = _timing(config, dense, notes)
    points = expected_points(config, gated.shape, gates, pace, run, timing.ms_dense if timing else None)
    notes += _above_dense(config, timing.ms_dense) if timing else []
    name, device, known = _device(config, tflops, notes)
    paces, smallest = paces_tried(config, gated.shape, run)
    groups = _alike(points)
    to_time = bool(config.dense.epochs) + 1 + bool(paces) + len({structure for _, structure, _ in groups})
    timed = itertools.count()
    trainer = _Trainer(
        tell=lambda what: progress(next(timed), to_time, what),
        config=config,
        sizes=sizes,
        loading=loading,
        taught=_teachers(config, dense, num_classes, notes),
        device=device,
        tflops=tflops,
        calibration=min(calibration_count(dense), sizes.train),
        probed=probed,
    )
    stages, searched = trainer.stages(dense, gated)
    tries = trainer.tries(gated, gates, pace, paces, smallest, searched)
    retrained = trainer.retrained(gated, groups, searched, notes)
    if loading.first and config.data.workers == 0:
        notes.append(f"loading takes {loading.in_words()}, in the training process (data.workers is 0)")
    notes += _waiting_gpus(config, [*stages, *tries, *retrained]) if known or tflops is not None else []

    at_once = trials_at_once(config, cluster, len(points))
    side_by_side = min(config.resources.max_concurrent_trials or paces, cluster.workers(config))  # one worker tries a pace
    trying = makespan([t.seconds for t in tries for _ in range(paces)], side_by_side)
    sweep = makespan([t.seconds for t in retrained for _ in range(t.trials)], at_once)
    if config.retrain.start == "larger":  # the dense and the searched points of one seed wait for each other
        chain = [t.seconds for t, group in zip(retrained, groups.values(), strict=True) if METHODS[group[0].method].chained]
        sweep = max(sweep, sum(chain))
    starting = starting_seconds(config, cluster, at_once)
    timing_seconds, timed_said = _timed(config, timing, points, len(distinct_paces(config, gated.shape.gate_shapes)))
    return Estimate(
        trainings=[*stages, *tries, *retrained],
        at_once=at_once,
        wall_seconds=starting + sum(t.seconds for t in stages) + trying + timing_seconds + sweep,
        start_seconds=starting,
        sweep_seconds=sweep,
        disk_bytes=_disk(config, dense, gated, retrained, at_once),
        device=name,
        timed=tflops is None,
        gpus_per_worker=config.resources.gpus_per_worker,
        known=known or tflops is not None,
        timing_seconds=timing_seconds,
        timing=timed_said,
        notes=notes,
    )


@dataclass(frozen=True, kw_only=True)
class _Trainer:
    """What all trainings of a plan have in common, and what each of them costs."""

    tell: Callable[[str], None]  # is called before each model is timed
    config: Config
    sizes: Images
    loading: LoadingTime
    taught: Mapping[Stage, Teacher | None]
    device: torch.device
    tflops: float | None
    calibration: int  # images that principal axes and repair look at
    probed: int  # labelled images of `config.probe`, all splits together

    def stages(self, dense: nn.Module, gated: GatedModel) -> tuple[list[Training], ImageCost]:
        """The trainings before the sweep, and what the gated model costs per image."""
        config, workers = self.config, self.config.resources.search_workers
        found: list[Training] = []
        if config.dense.epochs:
            cost = self.cost(dense, config.dense, workers, "dense")
            found.append(self.training("dense", dense, config.dense, cost, workers))
        cost = self.cost(gated, config.search, workers, "search")
        before = self.axes_seconds(cost)
        if config.search.epochs:
            before += self.features_seconds(cost, self.sizes.val, workers)
        return [*found, self.training("search", gated, config.search, cost, workers, before=before)], cost

    def tries(
        self,
        gated: GatedModel,
        gates: Scores,
        pace: Mapping[str, float],
        paces: int,
        smallest: Budget,
        searched: ImageCost,
    ) -> list[Training]:
        """The short trainings by which `paces` paces are compared at the smallest budget; none where there is no choice."""
        if not paces:
            return []
        settings, recipe = self.config.search, self.config.pace_recipe()
        of_gated = {family: pace[family] for family in gates}
        path = RemovalPath(gated.shape, gates, settings.floors.model_dump(), settings.round_to, of_gated, settings.depth)
        small = slim(gated, path.solve(smallest))
        cost = self.cost(small, recipe, 1, "retrain")
        before = self.cut_seconds(searched, cost, True) + self.features_seconds(searched, self.sizes.val, 1)
        return [self.training("paces", small, recipe, cost, 1, paces, before=before)]

    def retrained(
        self, gated: GatedModel, groups: Mapping[tuple[str, str, int], list[Point]], searched: ImageCost, notes: list[str]
    ) -> list[Training]:
        """The trainings of all points, one per group of `_alike`."""
        workers, found = self.config.retrain.workers_per_trial, []
        costs: dict[str, ImageCost] = {}
        for (label, structure, epochs), members in groups.items():
            small = slim(gated, Structure.from_json(structure))
            recipe = self.config.retrain.at(members[0].lr, epochs)
            if structure not in costs:
                costs[structure] = self.cost(small, recipe, workers, "retrain")
            cost = costs[structure]
            method = METHODS[members[0].method]
            before = self.cut_seconds(searched, cost, method.from_searched and not members[0].start) if method.repaired else 0.0
            before += self.features_seconds(searched, self.sizes.val + self.sizes.test, workers)
            before += self.probed * cost.eval_seconds / workers
            found.append(self.training(label, small, recipe, cost, workers, len(members), before=before))
        if some := next((cost for cost in costs.values() if cost.scaled), None):
            notes.append(f"steps were timed with {some.batch} images and scaled to a worker's batch")
        return found

    def cost(self, model: nn.Module, recipe: Recipe, workers: int, stage: Stage) -> ImageCost:
        batch, teacher = self.config.data.batch_size // workers // recipe.accumulate, self.taught[stage]
        self.tell({"dense": "the dense model", "search": "the search", "retrain": "the points"}[stage])
        if self.tflops is not None:
            return _computed(model, recipe, batch, self.tflops, teacher)
        return time_training(model, self.config, recipe, batch, self.device, teacher)

    def training(
        self,
        name: str,
        model: nn.Module,
        recipe: Recipe,
        cost: ImageCost,
        workers: int,
        trials: int = 1,
        before: float = 0.0,
    ) -> Training:
        """One training.

        Args:
            before: seconds of each trial that are neither its epochs nor evaluations on validation and test.
        """
        data = self.config.data
        share = data.batch_size // workers
        per_image = self.loading.average(recipe.epochs, workers * max(1, data.workers))
        computing, loading = share * cost.train_seconds, share * per_image
        # Loading processes work while the model trains; without them, the training process loads too.
        step = max(computing, loading / data.workers) if data.workers else computing + loading
        evaluation = cost.eval_seconds / workers
        steps = self.sizes.train // data.batch_size
        seconds = recipe.epochs * (steps * step + self.sizes.val * evaluation)
        return Training(
            name=name,
            macs=macs(model),
            params=params(model),
            epochs=recipe.epochs,
            step_seconds=step,
            seconds=before + seconds + (self.sizes.val + self.sizes.test) * evaluation,  # val: before the first epoch
            workers=workers,
            trials=trials,
            worker_bytes=cost.weight_bytes + cost.image_bytes * share // recipe.accumulate,
            loaders=loading / computing,
        )

    def axes_seconds(self, source: ImageCost) -> float:
        """Seconds of the principal axes of a model (search.axes), its images' loading included."""
        if not self.config.search.axes:
            return 0.0
        return self.calibration * (self.loading.first + AXES_PASSES * source.eval_seconds)

    def cut_seconds(self, source: ImageCost, small: ImageCost, from_searched: bool) -> float:
        """Seconds of axes and repair of one cut (search.axes, retrain.repair), their images' loading included.

        Args:
            source: the model before the cut.
            small: the model after it.
            from_searched: the cut is one of the searched model, whose axes are known where the search trains nothing.
        """
        known = from_searched and not self.config.search.epochs
        axes, repair = self.config.search.axes and not known, self.config.retrain.repair
        if not axes and not repair:
            return 0.0
        compared = min(1.0, COMPARED_IMAGES / self.calibration)
        per_image = (AXES_PASSES * axes + (SOURCE_PASSES + compared) * repair) * source.eval_seconds
        per_image += (SMALL_PASSES + 2 * compared) * repair * small.eval_seconds
        return self.calibration * (self.loading.first + per_image)

    def features_seconds(self, dense: ImageCost, images: int, workers: int) -> float:
        """Seconds that the dense model takes for the features with which a backbone is compared; 0 for a model with a head.

        They are taken in full precision, and counted as fast as the model was timed.
        """
        return images * dense.eval_seconds / workers if self.config.backbone else 0.0


def _timing(config: Config, dense: nn.Module, notes: list[str]) -> TimingCost | None:
    """How long it takes to time models in the configured setting; None where none is timed, or not on this machine."""
    if not config.times_models:
        return None
    setting = config.latency_setting
    if setting.device == "cuda" and not torch.cuda.is_available():
        notes.append("latencies are not planned, as this machine has no GPU; budgets in ms are assumed to be half of dense")
        return None
    return timing_cost(dense, setting)


def _timed(config: Config, cost: TimingCost | None, points: Sequence[Point], paces: int) -> tuple[float, str]:
    """Seconds that timing takes in all, and what is timed, in words."""
    if cost is None:
        return 0.0, ""
    structures, budgets = len({point.structure for point in points}), len(config.budgets_in_ms)
    seconds, said = cost.seconds(structures), [f"{counted(structures, 'structure')} of points"]
    if budgets:
        solving = cost.seconds(PREFIXES) + USUAL_TRIES * cost.seconds(1 + budgets)
        methods = 1 + sum(METHODS[name].chooses for name in config.baselines)
        seconds += methods * solving
        said.insert(0, f"{PREFIXES} prefixes of {counted(methods, 'removal path')}, then {counted(budgets, 'budget')} in ms")
        if paces > 1:
            seconds += paces * (cost.seconds(PREFIXES_OF_A_TRY) + USUAL_TRIES * cost.seconds(2))
            said.insert(0, f"{PREFIXES_OF_A_TRY} prefixes at each of {paces} paces")
    return seconds, f"{', '.join(said)}, in {ROUNDS} rounds each ({config.latency_setting.label})"


def _ranking(config: Config, gated: GatedModel, run: Run | None, notes: list[str]) -> tuple[Scores, Mapping[str, float]]:
    """What gates are removed by, and each family's pace: of a run's search, or alike for all gates.

    Raises:
        ConfigError: no search has ended in the run, or it was of another model.
    """
    if run is None:
        return gated.gates, config.search.paces[0].model_dump()
    if not run.search_done:
        raise ConfigError(f"--run is {run.uri}, but no search has ended there: leave it out to plan with equal gates")
    if run.shape.gate_shapes != gated.shape.gate_shapes:
        raise ConfigError(f"--run is {run.uri}, which searched another model: leave it out, or plan that model")
    notes.append(f"structures are those of the search in {run.uri}")
    return run.scores, run.pace


def _device(config: Config, tflops: float | None, notes: list[str]) -> tuple[str, torch.device, bool]:
    """(the device that times are of, in words; where steps are timed; whether that is of the kind that will be used)."""
    cuda = config.resources.gpus_per_worker > 0 and torch.cuda.is_available()
    known = cuda or config.resources.gpus_per_worker == 0
    if tflops is not None:
        name = f"a device of {tflops:g} TFLOP/s"
    elif cuda:
        name = torch.cuda.get_device_name()
    else:
        name = f"this machine's CPU, {counted(torch.get_num_threads(), 'thread')} per worker"
    if not known and tflops is None:
        notes.append("this machine has no GPU, so times are those of its CPU; plan on a GPU, or give its speed with --tflops")
    return name, torch.device("cuda" if cuda else "cpu"), known


def _teachers(config: Config, dense: nn.Module, num_classes: int, notes: list[str]) -> dict[Stage, Teacher | None]:
    """Who teaches each stage, with fresh weights; None where nobody does, or nothing is trained."""
    taught: dict[Stage, Teacher | None] = {"dense": None}
    trained = {"search": config.search.epochs, "retrain": config.retrain.epochs or config.search.recovery}
    for stage in ("search", "retrain"):
        taught[stage] = Teacher.alike(config, stage, dense, num_classes) if trained[stage] else None
    notes += _teachers_said(taught)
    return taught


def _alike(points: Sequence[Point]) -> dict[tuple[str, str, int], list[Point]]:
    """Points by (label, structure, epochs): seeds and learning rates cost the same."""
    groups: dict[tuple[str, str, int], list[Point]] = {}
    for point in points:
        terms = "" if point.terms == "retraining" else f", {point.terms}"
        groups.setdefault((f"{point.method} {_budget_said(point)}{terms}", point.structure, point.epochs), []).append(point)
    return groups


def _budget_said(point: Point) -> str:
    """A point's budget in the table of trainings; of milliseconds as it is written, as a fraction of them looks like a time."""
    if point.unit == LATENCY.name:
        amount, relative = (point.budget, True) if point.budget_ms is None else (point.budget_ms, False)
        return str(Budget(amount, point.unit, relative))
    return f"{point.budget:.4f}" + ("" if point.unit == "macs" else f" {point.unit}")


def _above_dense(config: Config, ms_dense: float) -> list[str]:
    """A sentence for each budget in ms that the dense model meets as it is, as timed here."""
    return [
        f"budget {str(budget)!r} is not below the dense model's {ms_dense:.4g} ms, as timed here, so its points would fail: "
        "take a smaller one"
        for budget in config.budgets_in_ms
        if not budget.relative and budget.amount >= ms_dense
    ]


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


def starting_seconds(config: Config, cluster: Cluster, at_once: int) -> float:
    """Seconds of a run in which nothing trains because Ray and processes start, when `at_once` points train at a time.

    Imports are waited for by the driver; for the search's worker, where that does not load beside the driver; and for tries and
    points, where these neither load while the search trains nor all run in its process.
    """
    beside = cluster.keeps_search_process(config)
    ready = loads_at_once(config, cluster) > 0 or (beside and at_once == 1)
    return OTHER_SECONDS + (3 - beside - ready) * import_seconds()


@functools.cache
def import_seconds() -> float:
    """Seconds that a new worker process takes for its imports, measured once."""
    began = time.perf_counter()
    words = "from slimsweep.imports import load_timm; load_timm(); import slimsweep.cluster.retrain_job"
    subprocess.run([sys.executable, "-c", words], check=True, capture_output=True)
    return time.perf_counter() - began


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


def _checked(config: Config, images: Images | None, cluster: Cluster, notes: list[str]) -> tuple[int, Images, LoadingTime, int]:
    """What `_data` returns, and the number of the probe's images, where nothing is refused.

    Weights are not read, as they cost the same.

    Raises:
        RefusedInput: what cannot work, all of it at once.
    """
    refusals = Refusals()
    found: list[tuple[int, Images, LoadingTime]] = []
    probed = 0
    model: nn.Module | None = None
    with refusals.kept():
        check_placement(config, cluster)
    with refusals.kept():
        model = check_model(_without_weights(config))
    for one in config.teachers:
        with refusals.kept():
            teacher = weightless(config, one)
            if model is not None:
                check_answers(config, one, teacher, model)
    if model is not None:
        with refusals.kept():
            check_cuts(config, model)
        if images is None:
            with refusals.kept():
                probed = _probe(config, model, notes)
        elif config.probe is not None:
            notes.append("the probe is not counted, as its images are not looked for where --images says how many there are")
        with refusals.kept():
            found.append(_data(config, images, notes))
    refusals.raise_all()
    return *found[0], probed


def _probe(config: Config, model: nn.Module, notes: list[str]) -> int:
    """The number of images of `config.probe`, all splits together; 0 where there is none."""
    probe = probe_for(config, model)
    if probe is None:
        return 0
    count = len(probe.train) + len(probe.val) + len(probe.test)
    notes.append(f"each point's time includes the features of the {counted(count, 'labelled image')} of the probe")
    return count


def _waiting_gpus(config: Config, trainings: Sequence[Training]) -> list[str]:
    """What is said where GPUs train faster than their workers load images; empty elsewhere."""
    fastest = max((t for t in trainings if t.epochs), key=lambda t: t.loaders, default=None)
    # Without loading processes the training process loads too, and each step waits.
    if not config.resources.gpus_per_worker or fastest is None or fastest.loaders <= max(config.data.workers, WAIT):
        return []
    count = math.ceil(fastest.loaders)
    processes = f"{count} loading process{'es' * (count > 1)} per worker"
    return [
        f"GPUs wait for images: to load as fast as {fastest.name} trains takes {processes}, on as many CPU cores like this "
        f"machine's (data.workers is {config.data.workers})"
    ]


def _data(config: Config, images: Images | None, notes: list[str]) -> tuple[int, Images, LoadingTime]:
    """(classes, sizes of the splits, how long training images take to load)."""
    if images is not None:
        check_batch(config, images.train)
        notes.append("loading is not timed")
        return 10 if config.data.num_classes is None else config.data.num_classes, images, NOT_TIMED
    try:
        data = data_for(config)
    except ConfigError as problem:
        if str(problem).startswith(("model.", "dense.", "teacher.")):  # which are read first; the images may be as they should
            raise
        raise ConfigError(f"{problem}; to plan without the images, say how many they are: --images TRAIN,VAL,TEST") from problem
    notes += data.notes
    loading = time_loading(data.train, data.settings, seed=config.seed, seconds=TIMED_SECONDS)
    return data.num_classes, Images(train=len(data.train), val=len(data.val), test=len(data.test)), loading


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
