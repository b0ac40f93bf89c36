"""Columns that people see: a table's schema says of each its title, unit and decimals, once for everybody who shows it."""

import json
from dataclasses import asdict, dataclass
from typing import Literal

import pyarrow as pa

KEY = b"shown"  # in a field's metadata


@dataclass(frozen=True, kw_only=True)
class Column:
    """A number that the report shows in its table and beside each point, and that may be an axis of its figure."""

    name: str
    title: str
    unit: str  # %, nats, MACs, parameters, B, s, ms or images/s
    decimals: int | None = None  # that are shown; None: three significant digits
    axis: Literal["x", "y"] | None = None  # x: a cost (or speed), y: a quality; None: no axis
    more: bool = False  # whether more is better


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
    """A field of a schema that the report shows."""
    column = Column(name=name, title=title, unit=unit, decimals=decimals, axis=axis, more=more)
    return pa.field(name, kind, metadata={KEY: json.dumps(asdict(column))})


def shown_columns(schema: pa.Schema) -> list[Column]:
    """The columns of a table that the report shows, in the schema's order."""
    return [Column(**json.loads(field.metadata[KEY])) for field in schema if field.metadata and KEY in field.metadata]
