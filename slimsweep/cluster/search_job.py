"""The search: one Ray Train job that trains the dense model and then its gates, data parallel, in one group of workers."""

import json
import signal
from collections.abc import Callable
from typing import Any, cast

import ray.train
import ray.train.torch
import torch
from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchConfig, TorchTrainer
from ray.train.v2.api.exceptions import TrainingFailedError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor, nn

from slimsweep.cluster import cluster  # sets the environment that Ray reads  # noqa: F401
from slimsweep.cluster.worker import check_shared, data_for, load_model, save_model, set_threads, wait
from slimsweep.config import Config
from slimsweep.errors import StageFailed, explain
from slimsweep.ledger.checkpoints import Checkpoints
from slimsweep.ledger.tables import gate_rows, write_gates
from slimsweep.slimming.gates import GatedModel, add_gates
from slimsweep.storage import Folder
from slimsweep.training.dense_model import build_dense
from slimsweep.training.loop import OutOfTime, measure, note_damaged, train


def run_search(config: Config, run: Folder, attempt: str, until: float | None = None) -> None:
    """Train the dense model and search, as far as the run folder does not hold them yet.

    Args:
        attempt: a name that no earlier start used: Ray's own state is not gone on from, ours is.
        until: when (time.time()) no further epoch begins.

    Raises:
        StageFailed: a worker raised, or died more often than resources.max_failures.
    """
    arguments = {"config": config.model_dump(mode="json"), "run": run.uri, "until": until}
    trainer = data_parallel(
        search_worker, arguments, config, run, name=f"search-{attempt}", workers=config.resources.search_workers
    )
    on_interrupt = signal.getsignal(signal.SIGINT)
    try:
        trainer.fit()
    except SystemExit:  # what Ray Train makes of Ctrl+C
        raise KeyboardInterrupt from None
    except TrainingFailedError as problem:
        raise StageFailed(explain(problem, "search")) from problem
    finally:
        signal.signal(signal.SIGINT, on_interrupt)


def data_parallel(
    worker: Callable[[dict[str, Any]], None], arguments: dict[str, Any], config: Config, run: Folder, *, name: str, workers: int
) -> TorchTrainer:
    """A Ray Train job of `workers` processes that call `worker(arguments)`; Ray's own state goes to ray/NAME of the run."""
    gpus = config.resources.gpus_per_worker
    return TorchTrainer(
        worker,
        train_loop_config=arguments,
        # NCCL refuses two ranks on one GPU, which fractions may bring about.
        torch_config=TorchConfig(backend="gloo" if 0 < gpus < 1 else None),
        scaling_config=ScalingConfig(num_workers=workers, use_gpu=gpus > 0, resources_per_worker=worker_resources(config)),
        run_config=RunConfig(
            name=name,
            storage_path=(run / "ray").uri,
            failure_config=FailureConfig(max_failures=config.resources.max_failures),
        ),
    )


def worker_resources(config: Config) -> dict[str, float]:
    """What one training worker holds, in Ray's names."""
    resources = {"CPU": config.resources.cpus_per_worker}
    return {**resources, "GPU": config.resources.gpus_per_worker} if config.resources.gpus_per_worker else resources


def search_worker(arguments: dict[str, Any]) -> None:
    """What each worker of the search runs."""
    config, run = Config(**arguments["config"]), Folder(arguments["run"])
    device = ray.train.torch.get_device()
    set_threads(config)
    rank = ray.train.get_context().get_world_rank()

    check_shared(run)
    try:
        if not run.exists("dense/config.json"):
            train_dense(config, run, device, rank, arguments["until"])
        wait()
        if not run.exists("search/search.json"):
            search(config, run, device, rank, arguments["until"])
        wait()
    except OutOfTime:  # on all ranks alike; no failure, which Ray would start again
        return


def train_dense(config: Config, run: Folder, device: torch.device, rank: int, until: float | None = None) -> None:
    """Train the dense model by `config.dense` and save it in dense/, with its top-1 on validation and test."""
    torch.manual_seed(config.seed)
    data = data_for(config)
    model = build_dense(config, data.num_classes)
    model = train(model, data, config, config.dense, run=run, stage="dense", seed=config.seed, device=device, until=until)
    val = measure(model, data.val, config, device, config.dense)
    test = measure(model, data.test, config, device, config.dense)  # the split's one reading for this model
    if rank == 0:
        note_damaged(run, data.test.damaged)
        metrics = {"val_top1": val.top1, "test_top1": test.top1, "test_top5": test.top5, "test_loss": test.loss}
        save_model(run, "dense", model, data, metrics)
        Checkpoints(run, "dense").clear()


def search(config: Config, run: Folder, device: torch.device, rank: int, until: float | None = None) -> None:
    """Train gates and weights together and save them in search/."""
    dense = load_model(run, "dense")
    torch.manual_seed(config.seed)
    data = data_for(config, dense)
    settings = config.search
    gated = add_gates(dense, settings.granularity, settings.families, settings.token_gate)
    teacher = dense if settings.distill.alpha > 0 else None
    trained = train(
        gated,
        data,
        config,
        settings,
        run=run,
        stage="search",
        seed=config.seed,
        device=device,
        teacher=teacher,
        distill=settings.distill,
        until=until,
    )
    if rank == 0:
        gated = cast(GatedModel, trained)
        gates = gated.gates
        write_gates(run, gate_rows(gates))
        run.write_bytes(
            "search/model.safetensors", save_tensors({n: t.detach().cpu().contiguous() for n, t in learned(gated).items()})
        )
        run.write_json(
            "search/search.json",
            {"shape": json.loads(gated.shape.full().to_json())["shape"], "fingerprint": config.fingerprint("search")},
        )
        Checkpoints(run, "search").clear()


def load_gated(config: Config, run: Folder, dense: nn.Module) -> GatedModel:
    """The searched model with its gates, as the search left it; `dense` is the run's dense model, left alone."""
    settings = config.search
    gated = add_gates(dense, settings.granularity, settings.families, settings.token_gate)
    state = load_tensors(run.read_bytes("search/model.safetensors"))
    with torch.no_grad():
        for name, tensor in learned(gated).items():
            tensor.copy_(state[name])
    return gated


def learned(gated: GatedModel) -> dict[str, Tensor]:
    """What a search changes in a gated model: parameters, and running statistics where its stem has some.

    A gate, which the state dict holds under the names of all that it multiplies, is here once; how far token gates are
    annealed, which is the search's alone, not at all.
    """
    kept = {name for name in gated.state_dict() if not name.endswith("token_bias.power")}
    return dict(gated.named_parameters()) | {name: b for name, b in gated.named_buffers() if name in kept}
