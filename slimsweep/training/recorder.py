"""Where the training loop puts what it finds: it knows no storage, only a `Recorder`.

The run folder is one (`slimsweep.ledger.recorder.RunRecorder`), from which the driver tells MLflow and the like
(`slimsweep.trackers`). What else is to be told epochs where they are trained is a class with two methods.
"""

from collections.abc import Mapping
from typing import Any, Protocol

from slimsweep.data.damaged import Damaged

Row = dict[str, Any]


class Tracker(Protocol):
    """Is told how a training goes. Only rank 0 calls it."""

    def epoch(self, row: Row) -> None:
        """One row of the curve, by the columns of `slimsweep.ledger.tables.CURVES`.

        Row 0 is the evaluation before the first epoch. An epoch that is trained again after a restart is given again.
        """
        ...

    def finished(self, row: Row | None) -> None:
        """The training has ended and its model is saved.

        Args:
            row: the row of the results table (`slimsweep.ledger.tables.RESULTS`); None for a stage, which has none.
        """
        ...


class Recorder(Tracker, Protocol):
    """Where one training is kept. Only rank 0 writes; all ranks call `resume`."""

    @property
    def stage(self) -> str:
        """dense, search or retrain."""
        ...

    @property
    def point(self) -> str:
        """The name of the point that is trained; empty for the dense model and the search."""
        ...

    def resume(self) -> tuple[int, dict[str, Any]] | None:
        """(epochs finished, state) of the last checkpoint; None where the training starts from its beginning.

        The curve goes on from there: rows of later epochs are forgotten.
        """
        ...

    def checkpoint(self, epoch: int, state: Mapping[str, Any]) -> None:
        """The state after `epoch` epochs: a nested mapping of tensors and of what JSON can hold."""
        ...

    def damaged(self, *splits: Damaged) -> None:
        """The images of some splits that could not be read so far; those that were named before are given again."""
        ...


class Recorders:
    """A recorder whose epochs and finished row go to trackers as well.

    Args:
        recorder: keeps the training, and is the one to resume from.
        trackers: are told after it.
    """

    def __init__(self, recorder: Recorder, *trackers: Tracker) -> None:
        self.recorder = recorder
        self.trackers = trackers
        self.stage, self.point = recorder.stage, recorder.point
        self.resume, self.checkpoint, self.damaged = recorder.resume, recorder.checkpoint, recorder.damaged

    def epoch(self, row: Row) -> None:
        for tracker in (self.recorder, *self.trackers):
            tracker.epoch(row)

    def finished(self, row: Row | None) -> None:
        for tracker in (self.recorder, *self.trackers):
            tracker.finished(row)


class MemoryRecorder:
    """Keeps the curve in memory and nothing else: for a training that no later start goes on with."""

    def __init__(self, stage: str, point: str = "") -> None:
        self.stage, self.point = stage, point
        self.curve: list[Row] = []

    def resume(self) -> None:
        return None

    def epoch(self, row: Row) -> None:
        self.curve.append(row)

    def checkpoint(self, epoch: int, state: Mapping[str, Any]) -> None:
        """Nothing is kept."""

    def damaged(self, *splits: Damaged) -> None:
        """Each is in its split's `damaged.reasons` anyway."""

    def finished(self, row: Row | None) -> None:
        """Nothing is kept."""
