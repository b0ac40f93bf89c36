"""Columns that the report shows: their title, unit and decimals stand in the metadata of a table's schema."""

import json
from dataclasses import asdict, dataclass
from typing import Literal

import pyarrow as pa

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


def shown_columns(schema: pa.Schema) -> list[Column]:
    """The columns of a table that the report shows, in the schema's order."""
    return [Column(**json.loads(field.metadata[KEY])) for field in schema if field.metadata and KEY in field.metadata]
