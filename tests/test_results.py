"""Tables of a run, as they are read from storage that somebody else may write to."""

import contextlib
import pickle
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from slimsweep.ledger.run import Run
from slimsweep.report.page import read_run


class Code:
    """What is unpickled as this leaves a file behind."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return Path.touch, (self.path,)


def forge(path: Path, column: str, proof: Path) -> None:
    """Give a Parquet file a column of the Arrow type whose values Ray unpickles."""
    table = pq.read_table(path)
    if column in table.column_names:
        table = table.drop_columns([column])
    metadata = {"ARROW:extension:name": "ray.data.arrow_pickled_object", "ARROW:extension:metadata": ""}
    field = pa.field(column, pa.large_binary(), metadata=metadata)
    pq.write_table(table.append_column(field, pa.array([pickle.dumps(Code(proof))] * len(table), pa.large_binary())), path)


@pytest.mark.parametrize("column", ["extra", "error", "status"])
def test_a_forged_table_runs_no_code(column: str, tmp_path: Path) -> None:
    import ray.tune  # what a driver has imported: it registers the type  # noqa: F401

    run, proof = Run(tmp_path / "run"), tmp_path / "proof"
    run.write_row({"point": "a", "method": "dense", "budget": 1.0, "seed": 0})
    row = tmp_path / "run" / "results" / "a.parquet"
    forge(row, column, proof)
    for name in ("curves/a.parquet", "search/gates.parquet", "bench/a.parquet"):
        (tmp_path / "run" / name).parent.mkdir()
        pq.write_table(pa.table({"point": ["a"]}), tmp_path / "run" / name)
        forge(tmp_path / "run" / name, column, proof)
    of_point = (lambda run: run.has_ok_row("a"), lambda run: run.curve("a"))
    for read in (Run.refresh, *of_point, Run.curves, Run.gates_table, lambda run: run.products.bench(), read_run):
        with contextlib.suppress(ValueError, TypeError):  # refused is as good as left out
            read(run)
    assert not proof.exists()
    # The forgery is one that works where types are taken as the file has them.
    pq.read_table(row).to_pandas()
    assert proof.exists()
