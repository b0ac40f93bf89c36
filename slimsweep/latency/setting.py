"""In which setting a latency holds: device, images per call, threads, dtype, runtime. Light to import (no torch)."""

from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

from slimsweep.errors import RefusedInput

Device = Literal["cpu", "cuda"]
Dtype = Literal["float32", "bfloat16"]
Runtime = Literal["torch", "onnxruntime"]


@dataclass(frozen=True)
class LatencySetting:
    """What a latency depends on, beside the model and the machine.

    Attributes:
        device: cpu or cuda.
        batch_size: images per call; a latency is the time of one call with all of them.
        threads: CPU threads; None leaves the runtime its own number.
        dtype: of weights and images.
        runtime: torch, or onnxruntime, which computes an ONNX file of the model.
        compile: by torch.compile.

    Raises:
        RefusedInput: a ValueError: a value outside these, or values that do not go together.
    """

    device: str = "cpu"
    batch_size: int = 1
    threads: int | None = None
    dtype: str = "float32"
    runtime: str = "torch"
    compile: bool = False

    def __post_init__(self) -> None:
        for name, kind in (("device", Device), ("dtype", Dtype), ("runtime", Runtime)):
            if (value := getattr(self, name)) not in get_args(kind):
                raise RefusedInput(f"{name} is {value!r}; it can be {' or '.join(get_args(kind))}")
        for name in ("batch_size", "threads"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise RefusedInput(f"{name} is {value}; it must be at least 1")
        if problem := misfit(self.runtime, self.compile, self.dtype):
            raise RefusedInput(problem)

    @property
    def label(self) -> str:
        """The setting in words: "cpu, 2 threads, batch size 1, float32, torch.compile"."""
        threads = [] if self.threads is None or self.device != "cpu" else [f"{self.threads} thread{'s'[: self.threads != 1]}"]
        runtime = "torch.compile" if self.compile else self.runtime
        return ", ".join([self.device, *threads, f"batch size {self.batch_size}", self.dtype, runtime])

    def to_dict(self) -> dict[str, Any]:
        """The attributes as plain values."""
        return asdict(self)


def misfit(runtime: str, compile: bool, dtype: str, section: str = "") -> str:
    """Why a runtime cannot work as it is asked to, in one sentence; empty where it can.

    Args:
        section: what stands before the names of fields in the sentence, such as "latency.".
    """
    if runtime != "onnxruntime":
        return ""
    if compile:
        return (
            f"{section}compile is true, but {section}runtime is onnxruntime, which torch.compile does nothing for: leave "
            f"compile out, or take runtime torch"
        )
    if dtype != "float32":
        return (
            f"{section}dtype is {dtype}, but {section}runtime onnxruntime computes in float32: take float32, or runtime torch"
        )
    return ""
