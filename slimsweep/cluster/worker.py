"""What the search and every retraining share around the training loop: data for a model, threads, the saved model."""

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
from torch import nn

from slimsweep.config import Config
from slimsweep.data.images import Data, ImageStream, load_data
from slimsweep.ledger.lock import FILE as MARK
from slimsweep.saved_models import load
from slimsweep.slimming.hub import save
from slimsweep.slimming.structure import image_size
from slimsweep.storage import Folder
from slimsweep.training.dense_model import check_model
from slimsweep.training.loop import ranks

KEPT: dict[str, Data] = {}  # one, by all that it depends on

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of malloc.h


def data_for(config: Config, model: nn.Module | None = None) -> Data:
    """The splits as `model` takes them, or as the configured dense model will, where it is not built yet.

    A process keeps the last ones: the next stage or point that it trains finds their images decoded, and begins to count
    damaged ones anew.
    """
    if model is None:
        model = check_model(config)
    size, usual = image_size(model), getattr(model, "pretrained_cfg", None)
    key = json.dumps([config.data.model_dump(mode="json"), size, usual], default=str)
    if key not in KEPT:
        data = load_data(config, size, usual)
        KEPT.clear()
        if isinstance(data.train, ImageStream):
            return data
        KEPT[key] = data
    for split in (KEPT[key].train, KEPT[key].val, KEPT[key].test):
        split.damaged.reasons.clear()
    return KEPT[key]


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


def check_shared(run: Folder) -> None:
    """Refuse to train where the run's folder is another than the driver's, before time is spent on what it would never see.

    Raises:
        RuntimeError: this worker does not see the mark that the driver keeps in the folder.
    """
    if run.is_local and not run.exists(MARK):
        raise RuntimeError(
            f"output: {run.uri} on {socket.gethostname()} is not the folder that the driver writes to: give a folder that "
            "all nodes share (NFS, a persistent volume), or an object store (s3://, gs://)"
        )


def wait() -> None:
    """Until every rank is here."""
    if ranks()[1] > 1:
        dist.barrier()


def save_model(run: Folder, name: str, model: nn.Module, data: Data, metrics: Mapping[str, Any]) -> int:
    """Save a model with its preprocessing, labels and metrics as a folder of the run; returns the bytes of its weights."""
    with tempfile.TemporaryDirectory(prefix="slimsweep-") as folder:
        save(model.cpu(), folder, preprocessing=data.preprocessing, labels=data.class_names, metrics=metrics)
        run.upload(Path(folder), name)
        return (Path(folder) / "model.safetensors").stat().st_size


def load_model(run: Folder, name: str) -> nn.Module:
    """A model that `save_model` saved in the run, in eval mode."""
    return load(run / name)
