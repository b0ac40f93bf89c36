"""The rows of many small files in one file, so that who looks at a run of thousands of points reads one and not thousands.

Nothing depends on it. A row counts only while its own file has the size and time of change that stand beside it here; any
other is read from its own file.
"""

from collections.abc import Mapping

import numpy as np
import pyarrow as pa

from slimsweep.errors import DamagedFile
from slimsweep.ledger import tables
from slimsweep.storage import Folder

Version = tuple[int, int]  # bytes of a file, and time of its last change in ns

FILE, BYTES, CHANGED = "file_name", "file_bytes", "file_changed"
OF_FILE = [(FILE, pa.string()), (BYTES, pa.int64()), (CHANGED, pa.int64())]


def write_collected(folder: Folder, path: str, found: Mapping[str, tuple[Version, pa.Table]], schema: pa.Schema) -> None:
    """Write the rows of files to one file, whole or not at all.

    Args:
        found: the version of each file, and its rows.
        schema: of the rows; columns that a file of an earlier version lacks are null.
    """
    order = sorted(found)
    rows = pa.concat_tables([schema.empty_table(), *(found[name][1] for name in order)], promote_options="default")
    counts = [found[name][1].num_rows for name in order]
    for (column, kind), values in zip(OF_FILE, (order, *zip(*(found[name][0] for name in order), strict=True)), strict=True):
        rows = rows.append_column(column, pa.array(np.repeat(np.array(values, dtype=object), counts), type=kind))
    tables.write_arrow(folder, path, rows)


def read_collected(folder: Folder, path: str, schema: pa.Schema) -> dict[str, tuple[Version, pa.Table]]:
    """What `write_collected` wrote; empty where there is no such file, or it is damaged, or of another version of slimsweep."""
    whole = pa.schema([*schema, *(pa.field(name, kind) for name, kind in OF_FILE)])
    try:
        rows = tables.read_table(folder, path, whole)
    except (FileNotFoundError, DamagedFile):  # each row is in its own file
        return {}
    if rows.column_names != whole.names or not rows.num_rows:
        return {}
    rows = rows.combine_chunks()
    names = rows[FILE].to_numpy()
    starts = [0, *(np.flatnonzero(names[1:] != names[:-1]) + 1).tolist()]
    sizes, times = rows[BYTES].to_pylist(), rows[CHANGED].to_pylist()
    plain = rows.select(schema.names).cast(schema)
    return {
        str(names[start]): ((sizes[start], times[start]), plain.slice(start, end - start))
        for start, end in zip(starts, [*starts[1:], len(names)], strict=True)
    }
