"""The search: one data-parallel Ray Train job that trains the dense model, and then its gates and weights together."""

import signal
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any, cast

import ray.train
import ray.train.torch
import torch
from ray.train import BackendConfig, FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchConfig
from ray.train.v2._internal.execution.scaling_policy.autoscaling_coordinator_client import get_or_create_autoscaling_coordinator
from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer
from ray.train.v2.api.exceptions import TrainingFailedError
from torch import Tensor

from slimsweep.cluster.failures import explained
from slimsweep.cluster.tasks import in_workers_place, loading_first, search_is_task
from slimsweep.cluster.worker import (
    check_shared,
    data_of,
    device_of,
    giving_memory_back,
    job_arguments,
    note_begun,
    run_of,
    save_model,
    set_threads,
    teacher_of,
    wait_for_all_ranks,
    worker_resources,
)
from slimsweep.config import Config
from slimsweep.data import Data, calibration_images, training_images
from slimsweep.errors import OutOfTime, RunLost, StageFailed
from slimsweep.ledger.files import DENSE, SEARCH
from slimsweep.ledger.recorder import recorder_of
from slimsweep.ledger.run import Run
from slimsweep.ledger.searched_model import save_searched
from slimsweep.methods.taylor import taylor_of_gates
from slimsweep.saved_models import load
from slimsweep.slimming.axes import principal_axes
from slimsweep.slimming.gates import GatedModel, add_gates
from slimsweep.slimming.scores_from_images import activation_scores
from slimsweep.training.backbone import families_to_cut
from slimsweep.training.dense_model import build_dense
from slimsweep.training.evaluate import Reference, evaluate_split
from slimsweep.training.loop import train

if TYPE_CHECKING:
    from slimsweep.cluster.cluster import Cluster  # workers, which import this module, need nothing of it

# Ray Train's callbacks that start a process: one shares out Ray's data sets, where slimsweep loads images itself; the other
# gives the room of a training back whose controller died, for the trials that still run.
DATASETS, CLEANER = "DatasetsCallback", "PlacementGroupCleanerCallback"


def run_search(run: Run, attempt: str, cluster: "Cluster", until: float | None = None) -> None:
    """Train the dense model and search, unless the run's folder has their results already.

    Args:
        attempt: a name that no earlier start used: training resumes from slimsweep's checkpoints, not from Ray's state.
        cluster: the one that is joined.
        until: no further epoch begins after this time (time.time()).

    Raises:
        StageFailed: a worker raised, or died more often than resources.max_failures; or Ray failed.
    """
    arguments = job_arguments(run, attempt=attempt, until=until)
    workers = run.config.resources.search_workers
    work = in_workers_place(search_alone, cluster.loading) if search_is_task(run.config) else loading_first(search_worker)
    trainer = data_parallel(work, arguments, run, name=f"search-{attempt}", workers=workers)
    trainer.left_out |= {CLEANER} if cluster.is_own else set()  # what a failed search holds there ends with the cluster
    on_interrupt = signal.getsignal(signal.SIGINT)
    try:
        trainer.fit()
    except SystemExit:  # Ray Train raises it at Ctrl+C
        raise KeyboardInterrupt from None
    except (TrainingFailedError, ray.exceptions.RayError) as problem:
        raise StageFailed(explained(problem, "search", run.logs.add_error)) from problem
    finally:
        signal.signal(signal.SIGINT, on_interrupt)


class Trainer(DataParallelTrainer):
    """Ray Train's trainer with fewer processes of Ray's own, and the driver's handler of Ctrl+C before Ray's.

    Each of these processes takes seconds to start. Ray's handler waits for Ray without a word.
    """

    left_out: frozenset[str] = frozenset()  # Ray's callbacks that are not wanted

    def _create_default_callbacks(self) -> list[Any]:
        callbacks: list[Any] = super()._create_default_callbacks()
        return [callback for callback in callbacks if type(callback).__name__ not in self.left_out]

    def _initialize_and_run_controller(self, **settings: Any) -> Any:
        get_or_create_autoscaling_coordinator()  # the controller, which starts now too, would start it later and wait for it
        return super()._initialize_and_run_controller(**settings)

    def _register_sigint_handler(self, controller: Any) -> None:
        drivers = signal.getsignal(signal.SIGINT)
        super()._register_sigint_handler(controller)
        rays = signal.getsignal(signal.SIGINT)

        def both(number: int, frame: Any) -> None:
            if callable(drivers):
                with suppress(KeyboardInterrupt):  # Ray's handler ends the training
                    drivers(number, frame)
            if callable(rays):
                rays(number, frame)

        signal.signal(signal.SIGINT, both)


def data_parallel(
    work: Callable[[dict[str, Any]], None], arguments: dict[str, Any], run: Run, *, name: str, workers: int
) -> Trainer:
    """A Ray Train job of `workers` processes that call `work(arguments)`.

    Args:
        work: as `loading_first` or `in_workers_place` returns it.
        name: of Ray's own state in the run's folder.
    """
    resources = run.config.resources
    gpus = resources.gpus_per_worker
    # One worker needs no process group, and without one Ray Train's controller starts sooner: it does not load torch. NCCL
    # refuses two ranks on one GPU, which happens with fractions.
    group = TorchConfig(backend="gloo" if 0 < gpus < 1 else None) if workers > 1 else BackendConfig()
    trainer = Trainer(
        work,
        train_loop_config=arguments,
        backend_config=group,
        scaling_config=ScalingConfig(num_workers=workers, use_gpu=gpus > 0, resources_per_worker=worker_resources(run.config)),
        run_config=RunConfig(
            name=name,
            storage_path=run.ray_folder.uri,
            failure_config=FailureConfig(max_failures=resources.max_failures),
        ),
    )
    trainer.left_out = frozenset({DATASETS})
    return trainer


def search_worker(arguments: dict[str, Any]) -> None:
    """What each worker of the search runs."""
    run = run_of(arguments)
    dense_and_search(run, arguments, ray.train.torch.get_device(), ray.train.get_context().get_world_rank())


@giving_memory_back
def search_alone(arguments: dict[str, Any]) -> None:
    """The search as a task below its only worker."""
    run = run_of(arguments)
    dense_and_search(run, arguments, device_of(run.config), rank=0)


def dense_and_search(run: Run, arguments: Mapping[str, Any], device: torch.device, rank: int) -> None:
    """Train the dense model, and search, as far as the run's folder does not have their results.

    Args:
        arguments: of the worker.
        rank: of this worker; only rank 0 writes.
    """
    set_threads(run.config)
    try:
        check_shared(run)
        if rank == 0:
            note_begun(run, SEARCH, arguments["attempt"])
        if not run.dense_done:
            train_dense(run, device, rank, arguments["until"])
        wait_for_all_ranks()
        if not run.search_done:
            search(run, device, rank, arguments["until"])
        wait_for_all_ranks()
    except (OutOfTime, RunLost):  # if it left this function, Ray would start the workers again
        return


def train_dense(run: Run, device: torch.device, rank: int, until: float | None = None) -> None:
    """Train the dense model by `config.dense`, and save it with its top-1 (percent) on validation and test.

    A backbone is taken as it is, and not evaluated: others are compared with it.

    Args:
        rank: of this worker; only rank 0 writes.
        until: no further epoch begins after this time (time.time()).

    Raises:
        OutOfTime: `until` came first.
        TrainingDiverged: the loss became NaN or infinite.
    """
    config = run.config
    torch.manual_seed(config.seed)
    data = data_of(run)
    recorder = recorder_of(run, "dense")
    model = build_dense(config, data.num_classes, data.class_names)
    evaluated: dict[str, float] = {}
    how: dict[str, Any] = {"until": until, "evaluated": evaluated}
    model = train(model, data, config.dense, recorder, seed=config.seed, device=device, **how)
    metrics = {"val_r2": 1.0, "test_r2": 1.0}  # beside itself
    if not config.backbone:
        val = evaluated or {"val_top1": evaluate_split(model, data, "val", device, config.dense).top1}
        test = evaluate_split(model, data, "test", device, config.dense)  # the only time that this model sees the test split
        metrics = {**val, "test_top1": test.top1, "test_top5": test.top5, "test_loss": test.loss}
    if rank == 0:
        recorder.damaged(data.test.damaged)
        save_model(run, DENSE, model, data, metrics)
        recorder.finished(None)


def search(run: Run, device: torch.device, rank: int, until: float | None = None) -> None:
    """Train gates and weights together by `config.search`, and save them; arguments and errors are those of `train_dense`."""
    config, settings = run.config, run.config.search
    dense = load(run.dense)
    torch.manual_seed(config.seed)
    data = data_of(run, dense)
    recorder = recorder_of(run, "search")
    began = time.perf_counter()
    start = dense
    if settings.axes:
        start = principal_axes(dense.to(device), calibration_images(data, config.seed, dense))
    seconds = time.perf_counter() - began if settings.axes else 0.0
    gated = add_gates(start, settings.granularity, families_to_cut(config, dense), settings.token_gate)
    teacher = teacher_of(run, "search", dense, data) if settings.epochs else None
    how: dict[str, Any] = {"teacher": teacher, "reference": Reference(dense, data) if config.backbone else None, "until": until}
    gated = cast(GatedModel, train(gated, data, settings, recorder, seed=config.seed, device=device, **how))
    if rank == 0:
        save_searched(run, gated, seconds, scores_of(gated, data, config))
        recorder.finished(None)


def scores_of(gated: GatedModel, data: Data, config: Config) -> Mapping[str, list[Tensor]] | None:
    """What the gates of a searched model are ranked by (search.rank); None for their values."""
    if config.search.ranked_by == "gates":
        return None
    images, labels = training_images(data, config.seed)
    if config.search.ranked_by == "taylor":
        return taylor_of_gates(gated.eval(), images, labels, config.seed)
    return activation_scores(gated, images, config.seed)
