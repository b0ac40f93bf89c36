"""What tools make of a run's models, in its folder: timings, times on other devices, quantized models, other formats."""

import uuid
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import pandas as pd
import pyarrow as pa

from slimsweep.ledger import tables
from slimsweep.ledger.files import (
    BENCH,
    DEVICE_TIMES,
    EXPORTS,
    LATENCY_EXPORTS,
    MODEL_CONFIG,
    MODEL_WEIGHTS,
    QUANTIZED,
)
from slimsweep.storage import Folder

if TYPE_CHECKING:
    from slimsweep.ledger.run import Run


class Products:
    """What was made of a run's models after they were trained; results do not depend on it."""

    def __init__(self, run: "Run") -> None:
        self._run = run

    def bench(self) -> pd.DataFrame:
        """All timings (`tables.BENCH`), the latest last; empty where there are none."""
        meaning = "its timings are missing; `slimsweep bench` measures again, and the file can be deleted"
        found = self._joined(BENCH, tables.BENCH, meaning)
        timed = found.sort_values("created_at", kind="stable", ignore_index=True)
        return timed.assign(runtime=timed["runtime"].fillna("torch"))  # the only one of earlier versions

    def write_bench(self, rows: list[dict[str, Any]]) -> None:
        """Write the timings of one benchmark (`tables.BENCH`) to a file of their own."""
        self._write_part(BENCH, rows, tables.BENCH)

    def device_times(self) -> pd.DataFrame:
        """The times of structures on other devices (`tables.DEVICE_TIMES`); of one structure and setting the latest alone."""
        meaning = "its times are missing; `slimsweep latency add` adds them again, and the file can be deleted"
        times = self._joined(DEVICE_TIMES, tables.DEVICE_TIMES, meaning).sort_values("created_at", kind="stable")
        return times.drop_duplicates(["structure", *tables.DEVICE_SETTING], keep="last", ignore_index=True)

    def write_device_times(self, rows: list[dict[str, Any]]) -> None:
        """Write the times of one CSV file (`tables.DEVICE_TIMES`) to a file of their own."""
        self._write_part(DEVICE_TIMES, rows, tables.DEVICE_TIMES)

    def quantized(self) -> pd.DataFrame:
        """The rows of all quantized models (`tables.QUANTIZED`), by point; empty where there are none."""
        meaning = "its model counts as not quantized; `slimsweep quantize` makes it again, and the file can be deleted"
        return self._joined(QUANTIZED, tables.QUANTIZED, meaning)

    def write_quantized(self, row: dict[str, Any]) -> None:
        """Write the row of a quantized model (`tables.QUANTIZED`); it replaces an older row of the same point."""
        tables.write_table(self._run.folder, f"{QUANTIZED}/{row['point']}.parquet", [row], tables.QUANTIZED)

    def export_state(self, point: str, name: str) -> int | None:
        """The bytes of a file of a point's model in EXPORTS; None where there is none, or it is older than the model.

        Args:
            name: of the file.
        """
        made = self._run.folder.files(EXPORTS).get(name)
        model = self._run.folder.files(self._run.model_path(point))
        newest = max((changed for file, (_, changed) in model.items() if file in (MODEL_WEIGHTS, MODEL_CONFIG)), default=0)
        return made[0] if made is not None and made[1] >= newest else None

    def write_export(self, name: str, content: bytes) -> None:
        """Write a model in another format to EXPORTS, whole or not at all."""
        self._run.folder.write_bytes(f"{EXPORTS}/{name}", content)

    def read_export(self, name: str, start: int, count: int) -> bytes:
        """A part of such a file.

        Raises:
            FileNotFoundError: there is no such file.
        """
        return self._run.folder.read_range(f"{EXPORTS}/{name}", start, count)

    @property
    def latency_exports(self) -> Folder:
        """The folder for the models that are timed on other devices."""
        return self._run.folder / LATENCY_EXPORTS

    @staticmethod
    def int8_path(point: str) -> str:
        """The path of a point's INT8 file inside the run's folder."""
        return f"{EXPORTS}/{point}-int8.onnx"

    def _joined(self, folder: str, schema: pa.Schema, meaning: str) -> pd.DataFrame:
        """One table from all Parquet files of a folder, in the order of their names, without those that are damaged.

        Args:
            meaning: what it means that a file is damaged, and what to do.
        """
        of_run = self._run.folder

        def read(path: str) -> Any:
            return self._run.unless_damaged(path, lambda: tables.read_table(of_run, path, schema), None, meaning)

        paths = [f"{folder}/{name}" for name in of_run.list(folder) if name.endswith(".parquet")]
        return tables.joined([part for part in of_run.each(read, paths) if part is not None], schema)

    def _write_part(self, folder: str, rows: list[dict[str, Any]], schema: pa.Schema) -> None:
        """Write rows to a new file of a folder."""
        name = f"{datetime.now(UTC):%Y%m%dT%H%M%S}-{uuid.uuid4().hex[:6]}"
        tables.write_table(self._run.folder, f"{folder}/{name}.parquet", rows, schema)
