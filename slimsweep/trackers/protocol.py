"""What a tracker is: a module of this room with `PACKAGE`, `check`, `place_of` and `connect`.

PACKAGE: the package that it needs, which is also the name of slimsweep's extra.
check(config): raises ConfigError where settings cannot work. It neither asks a server nor waits.
place_of(config, run): a text without passwords that differs where the tracker logs to another place.
connect(sweep, ids): the tracker of a sweep.
"""

from collections.abc import Mapping, MutableMapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

from slimsweep.config import Tracking

State = Literal["finished", "failed", "stopped"]
SWEEP = "sweep"  # the name of the sweep's own run beside those of stages and points
CURVE = ("loss", "val_top1", "val_r2", "learning_rate", "seconds", "gates_kept")  # what trackers get of an epoch

Values = Mapping[str, float]
Ids = MutableMapping[str, str]  # what a tracker needs to find its runs again, by name of stage or point, and SWEEP


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """What a tracker is told of a sweep. Nothing in it holds a password."""

    name: str
    id: str  # 16 hex digits that no other run has
    folder: str  # path or URI of the run's folder
    config: Mapping[str, Any]  # nested
    config_name: str  # name of its file
    config_yaml: str
    settings: Tracking
    tensorboard: str | None  # local path for TensorBoard's files; None where there is none

    @property
    def group(self) -> str:
        """A name for all runs of the sweep, which differs from that of another sweep of the same name."""
        return f"{self.name}-{self.id[:4]}"


@dataclass(frozen=True, kw_only=True)
class Result:
    """What became of a stage or a point."""

    state: State
    epochs: int
    ended: float  # when, in seconds of Unix time
    values: Values  # numbers, by the columns of the results
    structure: str = ""  # JSON
    error: str = ""


class TrackedTraining(Protocol):
    """One stage or point in a tracker."""

    @property
    def last_epoch(self) -> int | None:
        """The last epoch that the tracker has, -1 where it has none; None where it does not say."""
        ...

    def epochs(self, rows: Sequence[tuple[int, Values]]) -> None:
        """Add epochs: (epoch, values by CURVE); 0 is before any training. Rising, and each once."""
        ...

    def result(self, result: Result, model: Path | None) -> None:
        """Add what became of it.

        Args:
            model: local folder of its model, if that is to be uploaded.
        """
        ...

    def end(self, state: State) -> None:
        """Nothing more comes of it in this start."""
        ...


class TrackedSweep(Protocol):
    """A run's sweep in a tracker. All methods are called by one thread; they may wait, and raise anything."""

    def training(self, name: str, parameters: Mapping[str, Any], began: float) -> TrackedTraining:
        """A stage or point, found again where an earlier start has made it.

        Args:
            parameters: what tells it from the others: method, budget, learning rate and so on.
            began: when its first epoch began, in seconds of Unix time: it may have ended before the tracker is told of it.
        """
        ...

    def page(self, page: Path) -> None:
        """Add the report; it replaces an earlier one."""
        ...

    def end(self, state: State) -> None:
        """The driver ends."""
        ...
