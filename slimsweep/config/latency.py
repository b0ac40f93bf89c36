"""The section of the configuration that says in which setting latencies are measured."""

from typing import Literal, Self

from pydantic import Field, model_validator

from slimsweep.config.fields import Section
from slimsweep.latency.setting import LatencySetting, misfit

BRANCH_COST = 0.25  # where nothing was measured


class Latency(Section):
    """In which setting models are timed: for budgets in ms, and for the latency in each row of the results."""

    device: Literal["cpu", "cuda"] | None = None
    """Device that models are timed on; null takes cuda where resources.gpus_per_worker is above 0, else cpu."""
    batch_size: int | None = Field(None, ge=1)
    """Images per call; the latency is the time of one call with all of them. null takes 1, or the one of table."""
    threads: int | None = Field(None, ge=1)
    """CPU threads; null takes resources.cpus_per_worker on a CPU."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Of weights and images."""
    runtime: Literal["torch", "onnxruntime"] = "torch"
    """What computes the models: torch, or onnxruntime from their ONNX files."""
    compile: bool = False
    """Compute by torch.compile."""
    table: str | None = Field(None, min_length=1)
    """CSV file of latencies that were measured on another device (docs/latency.md). Budgets in ms are then met by that table
    alone, and nothing is timed here; where it has times of several batch sizes, batch_size chooses."""
    depth: bool = True
    """Under a budget in ms, a layer's whole attention or MLP may be removed, also what search.floors keeps of it, as
    search.depth does for all budgets: fewer layers are what saves most time."""

    branch_cost: float | None = Field(None, ge=0)
    """What a layer's whole attention or MLP costs on the device by itself, as a share of what its dims or units cost: the
    larger, the earlier whole ones leave. null measures it; with table it is 0.25 then."""

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if problem := misfit(self.runtime, self.compile, self.dtype, section="latency."):
            raise ValueError(problem)
        return self

    def setting(self, cpus_per_worker: float, gpus_per_worker: float) -> LatencySetting:
        """The setting that models are timed in on a worker with these resources."""
        device = self.device or ("cuda" if gpus_per_worker > 0 else "cpu")
        return LatencySetting(
            device=device,
            batch_size=self.batch_size or 1,
            # A point's name holds the setting, and a GPU's time does not depend on the CPUs of a worker.
            threads=self.threads or (max(1, int(cpus_per_worker)) if device == "cpu" else None),
            dtype=self.dtype,
            runtime=self.runtime,
            compile=self.compile,
        )
