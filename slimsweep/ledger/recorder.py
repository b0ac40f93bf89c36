"""The recorder that writes a training to the run's folder: epochs, curve, checkpoints, damaged images and row."""

import os
import time
from collections.abc import Mapping
from typing import Any

from slimsweep.data.damaged import Damaged
from slimsweep.ledger.checkpoints import Checkpoints
from slimsweep.ledger.run import Run
from slimsweep.training.recorder import Recorder


class RunRecorder:
    """Records one training in a run's folder (`slimsweep.training.recorder.Recorder`).

    Each of its writes raises RunLost once another driver has taken the run (`Run`), so a training ends with its next epoch.

    Args:
        run: the run that it is part of.
        stage: dense, search or retrain.
        point: name of the point that is trained; empty for the dense model and the search.
    """

    def __init__(self, run: Run, stage: str, point: str = "") -> None:
        self.run, self.stage, self.point = run, stage, point
        self.name = point or stage  # names its curve and checkpoints
        self.checkpoints = Checkpoints(run, self.name)
        self.curve: list[dict[str, Any]] = []

    def resume(self) -> tuple[int, dict[str, Any]] | None:
        """(epochs finished, state) of the newest readable checkpoint, where the curve goes on; None where there is none."""
        found = self.checkpoints.load()
        self.curve = [] if found is None else [row for row in self.run.curve(self.name) if row["epoch"] <= found[0]]
        return found

    def epoch(self, row: dict[str, Any]) -> None:
        """Add an epoch (`tables.CURVES`) to the curve and write it; a trained epoch also gets a line in the log of epochs."""
        self.curve.append(row)
        if row["epoch"] > 0:
            entry = {"stage": self.stage, "point": self.point, "epoch": row["epoch"], "pid": os.getpid(), "time": time.time()}
            self.run.logs.add_epoch(entry)
        self.run.write_curve(self.name, self.curve)

    def checkpoint(self, epoch: int, state: Mapping[str, Any]) -> None:
        """Save the state after `epoch` epochs; the last two checkpoints are kept."""
        self.checkpoints.save(epoch, dict(state))

    def damaged(self, *splits: Damaged) -> None:
        """Add the damaged images of these splits to the run's log, each image once."""
        named = self.run.logs.damaged_images() if any(split.reasons for split in splits) else {}
        for split in splits:
            for image, reason in split.reasons.items():
                if image not in named:
                    self.run.logs.add_damaged_image(split.split, image, reason)

    def finished(self, row: dict[str, Any] | None) -> None:
        """Write the point's row, if any, and delete the checkpoints, which are no longer needed."""
        if row is not None:
            self.run.write_row(row)
        self.checkpoints.clear()


def recorder_of(run: Run, stage: str, point: str = "") -> Recorder:
    """Where a training of a run is recorded: in the run itself, from which trackers get it. Called on every rank."""
    return RunRecorder(run, stage, point)
