"""What a report shows of one run, and reading it from the run's folder."""

from dataclasses import dataclass, field
from typing import Any

import pandas as pd
import pyarrow as pa

from slimsweep.ledger.points import pace_path
from slimsweep.ledger.tables import BENCH, CURVES, GATES, last_timed, read_bench, read_curves, read_gates, read_rows
from slimsweep.storage import Folder
from slimsweep.tools.status import Status, read_config


def _empty(schema: pa.Schema) -> pd.DataFrame:
    frame: pd.DataFrame = schema.empty_table().to_pandas()
    return frame


@dataclass(frozen=True, kw_only=True)
class RunTables:
    """All that a report shows of one run; the tables are those of `slimsweep.ledger.tables`."""

    name: str
    uri: str  # the run's folder, for the commands that load its models
    results: pd.DataFrame
    curves: pd.DataFrame = field(default_factory=lambda: _empty(CURVES))
    gates: pd.DataFrame = field(default_factory=lambda: _empty(GATES))
    bench: pd.DataFrame = field(default_factory=lambda: _empty(BENCH))
    status: Status | None = None  # without one the page says nothing of points to come and does not refresh
    last: bool = False  # nothing more comes for now, though a driver holds the run: it is about to end
    pace: dict[str, Any] | None = None  # of the families: what was chosen, and what was tried for it

    @property
    def live(self) -> bool:
        """Whether a driver goes on with the run, so that the page is written again."""
        return self.status is not None and self.status.alive and not self.status.finished and not self.last


def read_run(folder: Folder, status: Status | None = None, last: bool = False) -> RunTables:
    """The tables of a run folder; those that are not there yet are empty.

    Args:
        status: how far the run is.
        last: nothing more comes for now, though a driver holds the run: it is about to end.
    """
    results = read_rows(folder)
    written = results["run"].dropna()
    return RunTables(
        name=status.name if status is not None else written.iloc[0] if len(written) else folder.uri.rsplit("/", 1)[-1],
        uri=folder.uri,
        results=results,
        curves=read_curves(folder),
        gates=read_gates(folder),
        bench=last_timed(read_bench(folder)),
        status=status,
        last=last,
        pace=_read_pace(folder),
    )


def _read_pace(folder: Folder) -> dict[str, Any] | None:
    if not folder.exists("config.yaml") or not folder.exists(path := pace_path(read_config(folder))):
        return None
    found: dict[str, Any] = folder.read_json(path)
    return found
