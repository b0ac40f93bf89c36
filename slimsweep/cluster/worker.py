"""What every worker process does around the training loop: it gets its run, data and threads, and saves a model."""

import functools
import json
import logging
import os
import re
import socket
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import timm
import torch
import torch.distributed as dist
from ray import cloudpickle
from torch import nn

from slimsweep import methods
from slimsweep.config import Config, ConfigError, Stage
from slimsweep.config.identity import checkpoint_token
from slimsweep.data import Data, ImageStream, check_classes, difference, load_data, title
from slimsweep.errors import StageFailed
from slimsweep.latency.device import give_memory_back, keep_memory
from slimsweep.ledger.files import HOLDER, MODEL_CARD, MODEL_CONFIG
from slimsweep.ledger.holder import Holder
from slimsweep.ledger.model_card import model_card, origin
from slimsweep.ledger.run import Run
from slimsweep.slimming.hub import save
from slimsweep.slimming.structure import image_size
from slimsweep.training.criterion import Teacher
from slimsweep.training.dense_model import check_model
from slimsweep.training.evaluate import computes_bf16
from slimsweep.training.ranks import ranks

log = logging.getLogger(__name__)
P = ParamSpec("P")
T = TypeVar("T")

prepared: dict[str, Data] = {}  # the data that this process prepared last; the key holds all settings that it depends on
prepared_probes: dict[str, Data] = {}  # the same of the probe's images
OF_DATA = r"\bdata\.(?=(name|root|train_split|val_split|test_split|num_classes|image_key|label_key|limit)\b)"


def job_arguments(run: Run, **more: Any) -> dict[str, Any]:
    """The arguments of a worker: the configuration and the run as plain data, and the methods of `packed_methods`.

    Args:
        more: further arguments of this job, as plain data.
    """
    return {
        "config": run.config.model_dump(mode="json"),
        "run": run.uri,
        "folder": os.getcwd(),
        "holder": None if run.holder is None else run.holder.to_json(),
        "methods": packed_methods(),
        **more,
    }


def packed_methods() -> bytes:
    """The methods that are registered beside slimsweep's own, pickled with the code of their functions.

    A worker may be unable to import the module that defines a method, such as a script, a notebook or a test.
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
    """The run that a worker is started for, which it writes as the holder that its driver was when it started the worker.

    Registers the methods that came with the arguments, and goes to the driver's folder, where its node has that: a data set's
    own code may open relative paths and import what lies there. Ray starts workers in folders of its own.
    """
    if os.path.isdir(arguments["folder"]):
        os.chdir(arguments["folder"])
    methods.register(*cloudpickle.loads(arguments["methods"]))
    holder = arguments.get("holder")
    run = Run(arguments["run"], Config(**arguments["config"]), None if holder is None else Holder.from_json(holder))
    return run.patient()


def device_of(config: Config) -> torch.device:
    """The device of a worker outside a Ray Train job: cuda where resources.gpus_per_worker is above 0, else cpu."""
    return torch.device("cuda" if config.resources.gpus_per_worker > 0 else "cpu")


def worker_resources(config: Config) -> dict[str, float]:
    """The resources of one training worker, in Ray's names (CPU, GPU)."""
    resources = {"CPU": config.resources.cpus_per_worker}
    return {**resources, "GPU": config.resources.gpus_per_worker} if config.resources.gpus_per_worker else resources


def data_for(config: Config, model: nn.Module | None = None, listed: Data | None = None) -> Data:
    """The splits with the preprocessing of `model`, or of the configured dense model where none is given.

    A process keeps the data that it prepared last, so that its next stage or point finds the images decoded. The count of
    damaged images starts again each time.

    Args:
        config: the configuration.
        model: its sizes and its weights' usual preprocessing are used.
        listed: the same data set with other batch sizes or augmentation, whose images are not listed again.

    Raises:
        ConfigError: the data set cannot be read.
    """
    if model is None:
        model = check_model(config)
    size, usual = image_size(model), getattr(model, "pretrained_cfg", None)
    # The seed: a function's data sets may be drawn by it.
    key = json.dumps([config.data.model_dump(mode="json"), config.seed, size, usual], default=str)
    if key not in prepared:
        data = load_data(config, size, usual, listed.sources if listed is not None else None)
        prepared.clear()
        if isinstance(data.train, ImageStream):
            return data
        prepared[key] = data
    for split in (prepared[key].train, prepared[key].val, prepared[key].test):
        split.damaged.reasons.clear()
    return prepared[key]


def probe_for(config: Config, model: nn.Module) -> Data | None:
    """The labelled images of `config.probe` with the preprocessing of `model`; None where there is no probe.

    Raises:
        ConfigError: they cannot be read.
    """
    if config.probe is None:
        return None
    said = config.probe.model_dump()
    plain = config.data.augment.model_copy(update={"repeated": 1})
    settings = config.data.model_copy(update={**said, "augment": plain, "normalized": False})
    # A training split smaller than a batch is enough, as nothing is trained on it.
    settings = settings.model_copy(
        update={"batch_size": 1, "eval_batch_size": config.data.eval_batch_size or config.data.batch_size}
    )
    size, usual = image_size(model), getattr(model, "pretrained_cfg", None)
    key = json.dumps([settings.model_dump(mode="json"), config.seed, size, usual], default=str)
    if key not in prepared_probes:
        try:
            data = load_data(config.model_copy(update={"data": settings}), size, usual)
            check_classes(data)
        except ConfigError as problem:
            raise ConfigError(f"probe: {as_of_probe(str(problem))}") from problem
        prepared_probes.clear()
        prepared_probes[key] = data
    for split in (prepared_probes[key].train, prepared_probes[key].val, prepared_probes[key].test):
        split.damaged.reasons.clear()
    return prepared_probes[key]


def as_of_probe(text: str) -> str:
    """What is said of fields of data, as it is said of the probe's."""
    return re.sub(OF_DATA, "probe.", text)


def data_of(run: Run, model: nn.Module | None = None) -> Data:
    """`data_for` of a run, whose splits are the same in every process and at every start.

    Raises:
        ConfigError: the data set cannot be read, or it is another one than the driver's at the run's first stage.
    """
    data = data_for(run.config, model)
    if run.known_data is not None and (found := difference(run.known_data, data.fingerprint)) is not None:
        raise ConfigError(
            f"{title(run.config)} is another data set in this process than the one that {run.uri} was begun with: {found}"
            f"{drawn_once(run.config)}; set the data back, or take another --name"
        )
    return data


def teacher_of(run: Run, stage: Stage, dense: nn.Module, data: Data) -> Teacher | None:
    """`Teacher.for_stage` of a run, from the files that the run was begun with.

    Raises:
        ConfigError: a file of teacher.checkpoint has other content now, so that points of one name would have two teachers.
    """
    for one in run.config.teachers if run.config.distills(stage).alpha else []:
        path = str(one.checkpoint)
        known = run.known_teachers.get(path)
        if known is not None and checkpoint_token(path, "teacher.checkpoint") != known:
            raise ConfigError(
                f"teacher.checkpoint is {path!r}, whose weights were changed after {run.uri} was begun with them, so results "
                "would not compare: set them back, or take another --name"
            )
    return Teacher.for_stage(run.config, stage, dense, data)


def drawn_once(config: Config) -> str:
    """For messages: what may be wrong with a function whose splits change from call to call; empty for other data sets."""
    if ":" not in config.data.name or "/" in config.data.name:
        return ""
    return (
        " (each process calls it once: where it draws random numbers of its own, or takes the order of a set or of files as it "
        "comes, give it a generator with a fixed seed, and sort)"
    )


def giving_memory_back(function: Callable[P, T]) -> Callable[P, T]:
    """A function that trains, after which its process, which stays for the next, gives back the memory that it used."""

    @functools.wraps(function)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return function(*args, **kwargs)
        finally:
            give_memory_back()

    return wrapped


def set_threads(config: Config) -> None:
    """Limit torch to the CPUs of this worker, and let training be fast there (`keep_memory`, `choose_attention`).

    Before models are loaded: timm's read the choice of attention when they are made.
    """
    torch.set_num_threads(max(1, int(config.resources.cpus_per_worker)))
    keep_memory()
    choose_attention(config)


def choose_attention(config: Config) -> None:
    """Let models compute attention by plain matrix products where a CPU trains in bf16, and by torch's fused kernel elsewhere.

    On a CPU the fused kernel is slow in bf16: a training step of small models takes two to four times as long with it, that
    of DeiT-S 1.3 times (reports/training). In fp32 the two differ by a few percent. TIMM_FUSED_ATTN, where it is set, decides.
    """
    if "TIMM_FUSED_ATTN" in os.environ:
        return
    on_cpu = not config.resources.gpus_per_worker
    bf16 = config.wants_bf16() and computes_bf16(torch.device("cpu"))
    timm.layers.set_fused_attn(not (on_cpu and bf16))


@contextmanager
def attention_as_loaded() -> Iterator[None]:
    """Models made in the block compute attention as those that people load, whatever `choose_attention` chose to train."""
    before = timm.layers.use_fused_attn()
    if "TIMM_FUSED_ATTN" not in os.environ:
        timm.layers.set_fused_attn(True)
    try:
        yield
    finally:
        timm.layers.set_fused_attn(before)


def check_shared(run: Run) -> None:
    """Refuse to train where this node does not share the run's folder with the driver, which would never see the results.

    Raises:
        StageFailed: the folder names no driver.
        RunLost: another driver has taken the run.
    """
    if not run.folder.is_local or run.folder.exists(HOLDER):
        run.check_held()
    else:
        raise StageFailed(
            f"output: {run.uri} on {socket.gethostname()} is not the folder that the driver writes to: give a folder that "
            "all nodes share (NFS, a persistent volume), or an object store (s3://, gs://)"
        )


def note_begun(run: Run, name: str, attempt: str) -> None:
    """Note that the search or a point has begun in a start of the driver, where the folder can be written just now."""
    try:
        run.begin(name, attempt)
    except OSError as problem:  # the status shows the point as waiting then
        log.warning("%s: it could not be noted that it has begun (%s)", name, problem)


def wait_for_all_ranks() -> None:
    """Return when all ranks of the process group have called this."""
    if ranks()[1] > 1:
        dist.barrier()


def save_model(
    run: Run, path: str, model: nn.Module, data: Data, metrics: Mapping[str, Any], row: Mapping[str, Any] | None = None
) -> int:
    """Save a model with its preprocessing, labels, metrics and card as a folder of the run.

    Args:
        path: of that folder inside the run's.
        row: of its point, as far as it is known; None for the dense model.

    Returns:
        The size of the weights' file, in bytes.
    """
    with tempfile.TemporaryDirectory(prefix="slimsweep-") as folder:
        saved = Path(folder)
        save(model.cpu(), saved, preprocessing=data.preprocessing, labels=data.class_names, metrics=metrics)
        name = path.rpartition("/")[2]
        description = json.loads((saved / MODEL_CONFIG).read_bytes())
        card = model_card(model, description, name=name, source="local-dir:PATH", of_run=origin(run, row))
        (saved / MODEL_CARD).write_text(card, encoding="utf-8")
        return run.write_model(path, saved)
