"""Calls of models in a latency setting, and a timer of structures: cuts that nobody trained, timed in interleaved rounds."""

import copy
import functools
import importlib
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from slimsweep.errors import RefusedInput
from slimsweep.latency.curve import DENSE
from slimsweep.latency.device import hardware, keep_memory, reference, room_for_graphs, seconds_without_pause, torch_threads
from slimsweep.latency.onnx_files import (
    PROVIDERS,
    refuse_missing,
    runtime_version,
    session,
    session_call,
    write_onnx,
    write_reference,
)
from slimsweep.latency.quiet_timing import (
    ONNXRUNTIME_SETTLE,
    REFERENCE_CALLS,
    Call,
    Machine,
    Measured,
    seconds_by_wall,
    time_rounds,
)
from slimsweep.latency.setting import LatencySetting
from slimsweep.slimming.cut import slim
from slimsweep.slimming.structure import Structure, image_size

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
WARM_UP_CALLS = 3
GROUP_BYTES = 2_000_000_000  # of weights that are held at the same time; more models are timed in groups
ROUNDS = 8
MIN_SECONDS = 0.1  # for which a model is called in a round, at least once


def copies_on(place: torch.device, models: Mapping[str, nn.Module], dtype: str) -> dict[str, nn.Module]:
    """Copies of models in evaluation mode, on a device and in a dtype (a name in DTYPES)."""
    return {name: copy.deepcopy(model).eval().to(place, DTYPES[dtype]) for name, model in models.items()}


@contextmanager
def prepared_calls(
    models: Mapping[str, nn.Module], setting: LatencySetting, copies: Mapping[str, nn.Module] | None = None
) -> Iterator[dict[str, Call]]:
    """One call of each model on random images, warmed up, while the block runs.

    Copies are called, so the models are left as they are. On a CPU this process keeps its memory from then on.

    Args:
        models: by name.
        setting: its threads are set by who times.
        copies: `copies_on` the device, where they are made already; torch calls those.

    Raises:
        RefusedInput: onnxruntime is missing, or has no provider for the device.
        ExportError: torch cannot export a model.
    """
    if setting.device == "cpu":
        keep_memory()
    with ExitStack() as stack:
        stack.enter_context(torch.inference_mode())
        if setting.compile:
            stack.enter_context(room_for_graphs(len(models)))
        folder = None
        if setting.runtime == "onnxruntime":
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="slimsweep-latency-")))
        calls: dict[str, Call] = {}
        ready = (copies or copies_on(torch.device(setting.device), models, setting.dtype)) if folder is None else {}
        for name, model in models.items():
            calls[name] = _torch_call(ready[name], setting) if folder is None else _onnx_call(model, setting, folder)
            for _ in range(WARM_UP_CALLS):
                calls[name]()
        yield calls


def _torch_call(model: nn.Module, setting: LatencySetting) -> Call:
    images = torch.randn(setting.batch_size, *image_size(model), device=setting.device, dtype=DTYPES[setting.dtype])
    forward: Callable[..., object] = torch.compile(model, fullgraph=True, dynamic=False) if setting.compile else model
    return lambda: forward(images)


def _onnx_call(model: nn.Module, setting: LatencySetting, folder: Path) -> Call:
    path = folder / "model.onnx"  # a session has read its file when it is made
    with torch.inference_mode(False):  # whose tensors torch.export cannot trace
        write_onnx(copy.deepcopy(model).cpu().eval(), path)
    return session_call(session(path, threads=setting.threads, device=setting.device), setting.batch_size)


def time_calls(
    calls: Mapping[str, Call],
    setting: LatencySetting,
    *,
    rounds: int = ROUNDS,
    min_seconds: float = MIN_SECONDS,
    known: float | None = None,
    machine: Machine | None = None,
) -> Measured:
    """Time calls of `prepared_calls` in interleaved rounds; the arguments are those of `time_rounds`."""
    place = torch.device(setting.device)
    # onnxruntime returns when its results are in main memory: a call takes as long as this thread waits, also without a core.
    own_clock = setting.device == "cuda" and setting.runtime == "torch"
    seconds_of: Callable[[Call, int], float] | None = None
    if setting.device == "cuda":
        seconds_of = (lambda call, count: seconds_without_pause(call, count, place)) if own_clock else seconds_by_wall
    with torch_threads(setting.threads) as used:
        return time_rounds(
            calls,
            reference(place, waits=not own_clock),
            rounds=rounds,
            min_seconds=min_seconds,
            threads=used if setting.device == "cpu" else 1,
            known=known,
            settle=ONNXRUNTIME_SETTLE if setting.runtime == "onnxruntime" else 0.0,
            seconds_of=seconds_of,
            machine=machine,
        )


class DeviceTimer:
    """Times structures of a dense model on this machine.

    Args:
        dense: the dense model, whose weights do not matter; left as it is.
        setting: in which latencies are measured.
        build: makes the model of a structure; where not given, the dense model is cut to it.
        rounds, min_seconds: as in `time_rounds`.
        machine: its clocks and load; the real ones where not given.

    Raises:
        RefusedInput: there is no such device, or onnxruntime is missing.
    """

    def __init__(
        self,
        dense: nn.Module,
        setting: LatencySetting,
        *,
        build: Callable[[Structure], nn.Module] | None = None,
        rounds: int = ROUNDS,
        min_seconds: float = MIN_SECONDS,
        machine: Machine | None = None,
    ) -> None:
        check_device(setting)
        self.dense, self.setting, self.machine = dense, setting, machine
        self.build = build or functools.partial(slim, dense)
        self.rounds, self.min_seconds = rounds, min_seconds

    def __call__(self, structures: Mapping[str, Structure]) -> Measured:
        """Time structures in the same interleaved rounds.

        Where their weights are too many to be held at once they are timed in groups, each with the dense model, and times of
        later groups are scaled by how long the dense model took there.

        Args:
            structures: by name; the whole structure of the dense model is under DENSE.
        """
        groups = self._groups(structures)
        found: Measured | None = None
        for names in groups:
            measured = self._timed({name: structures[name] for name in names})
            found = measured if found is None else _joined(found, measured)
        assert found is not None
        return found

    def _timed(self, structures: Mapping[str, Structure]) -> Measured:
        models = {name: self.dense if name == DENSE else self.build(kept) for name, kept in structures.items()}
        with torch_threads(self.setting.threads), prepared_calls(models, self.setting) as calls:
            return time_calls(calls, self.setting, rounds=self.rounds, min_seconds=self.min_seconds, machine=self.machine)

    def _groups(self, structures: Mapping[str, Structure]) -> list[list[str]]:
        """The names in groups that fit into memory, the dense model's in each."""
        size = 4 if self.setting.dtype == "float32" else 2
        bytes_of = {name: size * kept.params() for name, kept in structures.items()}
        groups: list[list[str]] = [[DENSE]]
        for name in structures:
            if name == DENSE:
                continue
            if len(groups[-1]) > 1 and sum(bytes_of[n] for n in groups[-1]) + bytes_of[name] > GROUP_BYTES:
                groups.append([DENSE])
            groups[-1].append(name)
        return groups

    @property
    def about(self) -> dict[str, object]:
        """What the times were measured with: the setting, the hardware's name, and versions."""
        return about(self.setting)


@dataclass(frozen=True)
class TimingCost:
    """How long it takes to time models on this machine, from the dense model.

    Attributes:
        ms_dense: latency of the dense model.
        prepare_seconds: until a model can be called: its copy, compilation or ONNX file.
        look_seconds: of the reference, beside each turn.
    """

    ms_dense: float
    prepare_seconds: float
    look_seconds: float

    def seconds(self, models: float) -> float:
        """Seconds of one session with that many models, each of which takes as long as the dense one at most."""
        call = self.ms_dense / 1e3
        return models * (self.prepare_seconds + ROUNDS * (max(MIN_SECONDS, call) + call + self.look_seconds))


def timing_cost(dense: nn.Module, setting: LatencySetting) -> TimingCost:
    """Time the dense model once, to say how long timing takes.

    Raises:
        RefusedInput: as for `check_device`.
    """
    check_device(setting)
    began = time.perf_counter()
    with torch_threads(setting.threads), prepared_calls({DENSE: dense}, setting) as calls:
        prepared = time.perf_counter() - began
        found = time_calls(calls, setting, rounds=3)
    looks = (REFERENCE_CALLS + 1) * found.reference
    return TimingCost(1e3 * found.calls[DENSE].median, prepared, looks)


def about(setting: LatencySetting) -> dict[str, object]:
    """A setting with the hardware's name and the versions that times in it are of, on this machine."""
    versions: dict[str, str] = {"torch_version": str(torch.__version__)}
    if setting.runtime == "onnxruntime":
        versions["onnxruntime_version"] = runtime_version()
    return {**setting.to_dict(), "hardware": hardware(torch.device(setting.device)), **versions}


def check_device(setting: LatencySetting) -> None:
    """Refuse a setting that this machine cannot time.

    Raises:
        RefusedInput: there is no such device, or onnxruntime is missing or has no provider for it.
    """
    if setting.runtime == "onnxruntime":
        refuse_missing("latency.runtime onnxruntime")
        onnxruntime = importlib.import_module("onnxruntime")  # an optional dependency
        if PROVIDERS[setting.device] not in onnxruntime.get_available_providers():
            raise RefusedInput(
                f"latency.device is {setting.device}, but onnxruntime has no {PROVIDERS[setting.device]} on this machine: "
                "install onnxruntime-gpu in place of onnxruntime, or take device cpu"
            )
    if setting.device == "cuda" and not torch.cuda.is_available():
        raise RefusedInput("latency.device is cuda, but this machine has no GPU that torch can use: take cpu")
    if setting.runtime == "onnxruntime" and setting.device == "cuda":
        with tempfile.TemporaryDirectory(prefix="slimsweep-latency-") as folder:
            write_reference(Path(folder, "reference.onnx"), setting.device)
            session(Path(folder, "reference.onnx"), device=setting.device)  # whether the provider's libraries load


def _joined(first: Measured, later: Measured) -> Measured:
    """Two measurements as one: times of the later one in units of the first, by the dense model's in both."""
    scale = first.calls[DENSE].median / later.calls[DENSE].median
    for name, timed in later.calls.items():
        if name != DENSE:
            for times in (timed.seconds, timed.rounds, timed.together):
                times[:] = [scale * seconds for seconds in times]
            first.calls[name] = timed
    return first
