"""What every worker process does around the training loop: its run, its data, its threads, the model it saves."""

import ctypes
import json
import socket
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from ray import cloudpickle
from torch import nn

from slimsweep import methods
from slimsweep.config import Config
from slimsweep.data import Data, ImageStream, load_data
from slimsweep.ledger.run import DRIVER, Run
from slimsweep.slimming.hub import save
from slimsweep.slimming.structure import image_size
from slimsweep.training.dense_model import check_model
from slimsweep.training.ranks import ranks

prepared: dict[str, Data] = {}  # the data that this process prepared last, by all that it depends on

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of malloc.h


def job_arguments(run: Run, **more: Any) -> dict[str, Any]:
    """What a worker is started with, as plain data and methods that are registered beside slimsweep's own."""
    return {
        "config": run.config.model_dump(mode="json"),
        "run": run.uri,
        "methods": packed_methods(),
        **more,
    }


def packed_methods() -> bytes:
    """The methods that are registered beside slimsweep's own, with the code of their functions.

    Workers need not be able to import the module that defines one: it may be a script, a notebook or a test.
    """
    own = methods.registered_beyond_built_in()
    functions = [function for method in own for function in (method.choose, method.start, method.check) if callable(function)]
    modules = {sys.modules[function.__module__] for function in functions if function.__module__ != "__main__"}
    for module in modules:
        cloudpickle.register_pickle_by_value(module)
    try:
        return cloudpickle.dumps(own)
    finally:
        for module in modules:
            cloudpickle.unregister_pickle_by_value(module)


def run_of(arguments: Mapping[str, Any]) -> Run:
    """The run that a worker is started for; the methods that came with it are registered here too."""
    methods.register(*cloudpickle.loads(arguments["methods"]))
    return Run(arguments["run"], Config(**arguments["config"]))


def device_of(config: Config) -> torch.device:
    """The device of a worker that is no member of a Ray Train job."""
    return torch.device("cuda" if config.resources.gpus_per_worker > 0 else "cpu")


def data_for(config: Config, model: nn.Module | None = None) -> Data:
    """The splits as `model` takes them, or as the configured dense model will, where it is not built yet.

    A process keeps the last ones: the next stage or point that it trains finds their images decoded, and begins to count
    damaged ones anew.
    """
    if model is None:
        model = check_model(config)
    size, usual = image_size(model), getattr(model, "pretrained_cfg", None)
    key = json.dumps([config.data.model_dump(mode="json"), size, usual], default=str)
    if key not in prepared:
        data = load_data(config, size, usual)
        prepared.clear()
        if isinstance(data.train, ImageStream):
            return data
        prepared[key] = data
    for split in (prepared[key].train, prepared[key].val, prepared[key].test):
        split.damaged.reasons.clear()
    return prepared[key]


def set_threads(config: Config) -> None:
    """Use the CPUs that this worker owns, and no others, and keep memory for the next step."""
    torch.set_num_threads(max(1, int(config.resources.cpus_per_worker)))
    keep_memory()


def keep_memory() -> None:
    """Let this process keep freed memory for its next step, where its C library (glibc) can be told so.

    By default each large tensor is a fresh mapping whose pages the system clears anew: a twelfth of a training step on CPUs
    (reports/training).
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        mallopt(M_MMAP_THRESHOLD, 2**30)
        mallopt(M_TRIM_THRESHOLD, 2**31 - 1)


def check_shared(run: Run) -> None:
    """Refuse to train where the run's folder is another than the driver's, before time is spent on what it would never see.

    Raises:
        RuntimeError: this worker does not see the mark that the driver keeps in the folder.
    """
    if run.folder.is_local and not run.folder.exists(DRIVER):
        raise RuntimeError(
            f"output: {run.uri} on {socket.gethostname()} is not the folder that the driver writes to: give a folder that "
            "all nodes share (NFS, a persistent volume), or an object store (s3://, gs://)"
        )


def wait() -> None:
    """Until every rank is here."""
    if ranks()[1] > 1:
        dist.barrier()


def save_model(run: Run, path: str, model: nn.Module, data: Data, metrics: Mapping[str, Any]) -> int:
    """Save a model with its preprocessing, labels and metrics as a folder of the run; returns the bytes of its weights."""
    with tempfile.TemporaryDirectory(prefix="slimsweep-") as folder:
        save(model.cpu(), folder, preprocessing=data.preprocessing, labels=data.class_names, metrics=metrics)
        run.folder.upload(Path(folder), path)
        return (Path(folder) / "model.safetensors").stat().st_size
