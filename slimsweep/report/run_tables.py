"""The tables of one run that a report shows, and reading them from the run's folder."""

from dataclasses import dataclass, field, replace
from typing import Any

import pandas as pd
import pyarrow as pa

from slimsweep.config.messages import without_password
from slimsweep.errors import DamagedFile, RefusedInput
from slimsweep.ledger.measures import TOP1
from slimsweep.ledger.run import Run
from slimsweep.ledger.status import Status
from slimsweep.ledger.tables import (
    BENCH,
    CURVES,
    DEVICE_TIMES,
    GATES,
    QUANTIZED,
    RESULTS,
    joined,
    last_timed,
    not_trusted,
    read_table,
    results_of,
)
from slimsweep.storage import Folder, parted

TABLE = ".parquet"
ROWS = f"results{TABLE}"  # in a folder of tables alone, such as a study's; curves.parquet and the others may lie beside it
TO_SHOW = f"give a run's folder, a table of results, or a folder with {ROWS}"


def _empty(schema: pa.Schema) -> pd.DataFrame:
    frame: pd.DataFrame = schema.empty_table().to_pandas()
    return frame


@dataclass(frozen=True, kw_only=True)
class RunTables:
    """All that a report shows of one run; the tables are those of `slimsweep.ledger.tables`."""

    name: str
    uri: str | None  # the run's folder, for the commands that load its models; None where there are tables alone
    results: pd.DataFrame
    curves: pd.DataFrame = field(default_factory=lambda: _empty(CURVES))
    gates: pd.DataFrame = field(default_factory=lambda: _empty(GATES))
    bench: pd.DataFrame = field(default_factory=lambda: _empty(BENCH))  # only timings that can be trusted
    quantized: pd.DataFrame = field(default_factory=lambda: _empty(QUANTIZED))
    not_trusted: str = ""  # what is said of the timings that are left out, because the machine was busy
    device_times: pd.DataFrame = field(default_factory=lambda: _empty(DEVICE_TIMES))  # of structures, on other devices
    status: Status | None = None  # without it the page shows no progress and does not refresh
    pace: dict[str, Any] | None = None  # `Run.pace_choice`
    known_data: dict[str, Any] | None = None  # `Run.known_data`, for the number of images that rows do not tell
    classes: int | None = None  # of the labels, where rows do not tell
    untouched_val: float | None = None  # what the dense model that the search started from has on validation
    config: str | None = None  # the whole configuration, as YAML; None where there are tables alone
    config_path: str | None = None  # of the file with it, where --config takes it: a path on this machine

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
    timings = run.products.bench()
    uri = without_password(run.uri)  # pages are given away
    return RunTables(
        name=status.name if status is not None else written.iloc[0] if len(written) else run.folder.name,
        uri=uri,
        results=run.rows,
        curves=run.curves(),
        gates=run.gates_table(),
        bench=last_timed(timings),
        quantized=run.products.quantized(),
        not_trusted=not_trusted(timings, f"slimsweep bench {uri}"),
        device_times=run.products.device_times(),
        status=status,
        pace=run.pace_choice() if run.is_begun else None,
        known_data=run.known_data,
        **_of_dense(run),
        config=run.config.to_yaml() if run.is_begun else None,
        config_path=run.config_path if run.is_begun else None,
    )


def _of_dense(run: Run) -> dict[str, Any]:
    """What the description of a run's dense model tells; nothing where it is not written yet or cannot be read."""
    if not run.dense_done:
        return {}
    try:
        described = run.dense_description
    except DamagedFile:  # the status says so, and how it is made again
        return {}
    return {"classes": described.get("num_classes"), "untouched_val": described["metrics"].get(TOP1.val)}


def has_tables_alone(path: str) -> bool:
    """Whether a path is a Parquet file, or a folder that holds results.parquet without being a run's.

    Raises:
        RefusedInput: there is nothing at the path.
    """
    if path.endswith(TABLE):
        return True
    if Run(path).is_begun:
        return False
    if not (folder := Folder(path)).is_folder:
        raise RefusedInput(f"{folder.uri} does not exist: {TO_SHOW}")
    return folder.exists(ROWS)


def table_in(path: str) -> tuple[str, str]:
    """(folder, name in it) of the table of results that a path names, itself or by its folder."""
    return parted(path) if path.endswith(TABLE) else (path, ROWS)


def read_tables(path: str) -> list[RunTables]:
    """The runs whose rows a table holds, one by one, as a study keeps them: results alone, without a run's folder.

    Args:
        path: a Parquet file of results, or a folder with results.parquet. Where a folder has curves.parquet, gates.parquet,
            bench.parquet or device-times.parquet too, and results of one run, these are shown.

    Raises:
        RefusedInput: there is no such file, or it has no results.
        DamagedFile: it cannot be read.
    """
    parent, name = table_in(path)
    folder = Folder(parent)
    where = (folder / name).uri
    if not folder.exists(name):
        raise RefusedInput(f"{where} does not exist: {TO_SHOW}")
    rows = results_of([read_table(folder, name, RESULTS)])
    if rows.empty or rows[["run", "method", "macs_dense"]].isna().all().any():
        raise RefusedInput(f"{where} has no rows of results, such as a run's results/*.parquet have")
    shown = [
        RunTables(name=str(run), uri=None, results=of_one.reset_index(drop=True))
        for (run, *_), of_one in rows.groupby(["run", "model", "data", "macs_dense"], sort=False, dropna=False)
    ]
    if len(shown) > 1 or name != ROWS:
        return shown
    curves, gates, bench = (_table_beside(folder, *of) for of in (("curves", CURVES), ("gates", GATES), ("bench", BENCH)))
    device_times = _table_beside(folder, "device-times", DEVICE_TIMES)
    measured: dict[str, Any] = {"bench": last_timed(bench), "not_trusted": not_trusted(bench), "device_times": device_times}
    return [replace(shown[0], curves=curves, gates=gates, **measured)]


def _table_beside(folder: Folder, name: str, schema: pa.Schema) -> pd.DataFrame:
    """A table in a study's folder; empty where there is none."""
    file = f"{name}{TABLE}"
    return joined([read_table(folder, file, schema)] if folder.exists(file) else [], schema)
