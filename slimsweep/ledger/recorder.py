"""A run as a recorder of its trainings: epochs, curves, checkpoints, damaged images and rows."""

import os
import time
from collections.abc import Mapping
from typing import Any

from slimsweep.data.damaged import Damaged
from slimsweep.ledger.checkpoints import Checkpoints
from slimsweep.ledger.run import Run
from slimsweep.training.recorder import Recorder


class RunRecorder:
    """Keeps one training in a run's folder.

    Args:
        run: the run that it is part of.
        stage: dense, search or retrain.
        point: name of the point that is trained; empty for the dense model and the search.
    """

    def __init__(self, run: Run, stage: str, point: str = "") -> None:
        self.run, self.stage, self.point = run, stage, point
        self.name = point or stage  # of its files
        self.checkpoints = Checkpoints(run, self.name)
        self.curve: list[dict[str, Any]] = []

    def resume(self) -> tuple[int, dict[str, Any]] | None:
        """(epochs finished, state) of the newest checkpoint that can be read; None where there is none."""
        found = self.checkpoints.load()
        self.curve = [] if found is None else [row for row in self.run.curve(self.name) if row["epoch"] <= found[0]]
        return found

    def epoch(self, row: dict[str, Any]) -> None:
        """Write the curve so far, and for an epoch that was trained one line to the log of epochs."""
        self.curve.append(row)
        if row["epoch"] > 0:
            entry = {"stage": self.stage, "point": self.point, "epoch": row["epoch"], "pid": os.getpid(), "time": time.time()}
            self.run.log_epoch(entry)
        self.run.write_curve(self.name, self.curve)

    def checkpoint(self, epoch: int, state: Mapping[str, Any]) -> None:
        """Register the state after an epoch; the last two are kept."""
        self.checkpoints.save(epoch, dict(state))

    def damaged(self, *splits: Damaged) -> None:
        """Add each damaged image that it does not name yet to the run's log of damaged images."""
        named = self.run.damaged_images() if any(split.reasons for split in splits) else {}
        for split in splits:
            for image, reason in split.reasons.items():
                if image not in named:
                    self.run.log_damaged(split.split, image, reason)

    def finished(self, row: dict[str, Any] | None) -> None:
        """Write a point's row, and delete the checkpoints: what they led to is saved."""
        if row is not None:
            self.run.write_row(row)
        self.checkpoints.clear()


def recorder_of(run: Run, stage: str, point: str = "") -> Recorder:
    """Where a training of a run is recorded: in the run itself. Trackers join it here, by `Recorders`."""
    return RunRecorder(run, stage, point)
