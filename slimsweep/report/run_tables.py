"""The tables of one run that a report shows, and reading them from the run's folder."""

from dataclasses import dataclass, field
from typing import Any

import pandas as pd
import pyarrow as pa

from slimsweep.ledger.run import Run
from slimsweep.ledger.status import Status
from slimsweep.ledger.tables import BENCH, CURVES, GATES, last_timed


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
    status: Status | None = None  # without it the page shows no progress and does not refresh
    pace: dict[str, Any] | None = None  # `Run.pace_choice`

    @property
    def live(self) -> bool:
        """Whether a driver still works on the run, so that the page will be rewritten."""
        return self.status is not None and self.status.live


def read_run(run: Run, status: Status | None = None) -> RunTables:
    """The tables of a run; those that do not exist yet are empty.

    Args:
        status: the run's status, where the report is to show it.
    """
    written = run.rows["run"].dropna()
    return RunTables(
        name=status.name if status is not None else written.iloc[0] if len(written) else run.folder.name,
        uri=run.uri,
        results=run.rows,
        curves=run.curves(),
        gates=run.gates_table(),
        bench=last_timed(run.bench()),
        status=status,
        pace=run.pace_choice() if run.is_begun else None,
    )
