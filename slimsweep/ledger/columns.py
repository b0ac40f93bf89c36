"""Columns that the report shows: their title, unit and decimals stand in the metadata of a table's schema."""

import json
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Literal

import pyarrow as pa

if TYPE_CHECKING:
    import pandas as pd

KEY = b"shown"  # of a field's metadata


@dataclass(frozen=True, kw_only=True)
class Column:
    """A numeric column that the report shows in its table and beside each point; it may also be an axis of the figure."""

    name: str
    title: str
    unit: str  # %, nats, MACs, parameters, B, s, ms or images/s; empty for a plain number
    decimals: int | None = None  # shown decimals; None: three significant digits
    axis: Literal["x", "y"] | None = None  # x: a cost or speed, y: a quality; None: no axis
    more: bool = False  # whether larger values are better


def shown(
    name: str,
    kind: pa.DataType,
    title: str,
    unit: str,
    decimals: int | None = None,
    *,
    axis: Literal["x", "y"] | None = None,
    more: bool = False,
) -> pa.Field:
    """A schema field that the report shows; arguments are those of `Column`."""
    column = Column(name=name, title=title, unit=unit, decimals=decimals, axis=axis, more=more)
    return pa.field(name, kind, metadata={KEY: json.dumps(asdict(column))})


def quality_column(rows: "pd.DataFrame") -> Literal["val_r2", "val_top1"]:
    """The column by which choices among results are made, more being better: val_r2 where they have it, as backbones do.

    Where there is a configuration, it says the same (`Config.quality`).

    Args:
        rows: of the results; those of earlier versions lack val_r2.
    """
    return "val_r2" if "val_r2" in rows and bool(rows["val_r2"].notna().any()) else "val_top1"


def shown_columns(schema: pa.Schema) -> list[Column]:
    """The columns of a table that the report shows, in the schema's order."""
    return [Column(**json.loads(field.metadata[KEY])) for field in schema if field.metadata and KEY in field.metadata]
