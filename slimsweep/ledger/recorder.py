"""The run folder as a recorder of trainings: epochs.log, curves/, checkpoints/, damaged.log and results/."""

import json
import os
import time
from collections.abc import Mapping
from typing import Any

from slimsweep.data.damaged import Damaged
from slimsweep.ledger.checkpoints import Checkpoints
from slimsweep.ledger.tables import damaged_images, read_curve, write_curve, write_row
from slimsweep.storage import Folder


class RunRecorder:
    """Keeps one training in a run folder.

    Args:
        run: the run folder.
        stage: dense, search or retrain.
        point: name of the point that is trained; empty for the dense model and the search.
    """

    def __init__(self, run: Folder, stage: str, point: str = "") -> None:
        self.run, self.stage, self.point = run, stage, point
        self.name = point or stage  # of its files
        self.checkpoints = Checkpoints(run, self.name)
        self.curve: list[dict[str, Any]] = []

    def resume(self) -> tuple[int, dict[str, Any]] | None:
        """(epochs finished, state) of the newest checkpoint that can be read; None where there is none."""
        found = self.checkpoints.load()
        self.curve = [] if found is None else [row for row in read_curve(self.run, self.name) if row["epoch"] <= found[0]]
        return found

    def epoch(self, row: dict[str, Any]) -> None:
        """Write the curve so far to curves/NAME.parquet, and for an epoch that was trained one line to epochs.log."""
        self.curve.append(row)
        if row["epoch"] > 0:
            entry = {"stage": self.stage, "point": self.point, "epoch": row["epoch"], "pid": os.getpid(), "time": time.time()}
            self.run.append_line("epochs.log", json.dumps(entry))
        write_curve(self.run, self.name, self.curve)

    def checkpoint(self, epoch: int, state: Mapping[str, Any]) -> None:
        """Write checkpoints/NAME/epoch-EPOCH.safetensors; the last two are kept."""
        self.checkpoints.save(epoch, dict(state))

    def damaged(self, *splits: Damaged) -> None:
        """Add a line to damaged.log for each damaged image that it does not name yet."""
        named = damaged_images(self.run) if any(split.reasons for split in splits) else {}
        for split in splits:
            for image, reason in split.reasons.items():
                if image not in named:
                    entry = {"split": split.split, "image": image, "reason": reason}
                    self.run.append_line("damaged.log", json.dumps(entry))

    def finished(self, row: dict[str, Any] | None) -> None:
        """Write a point's row to results/, and delete the checkpoints: what they led to is saved."""
        if row is not None:
            write_row(self.run, row)
        self.checkpoints.clear()
