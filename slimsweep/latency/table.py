"""Times of structures on a device as a CSV file, which any program, or a person, can fill.

One row per structure in one setting; docs/latency.md describes the columns. Light to import (no torch, no numpy).
"""

import csv
import io
import math
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import astuple, dataclass, fields
from pathlib import Path

from slimsweep.errors import RefusedInput

STRUCTURE = re.compile(r"[0-9a-f]{12}")  # Structure.id
DELIMITERS = (",", ";", "\t")  # that spreadsheets write
BYTE_ORDER_MARKS = (b"\xff\xfe", b"\xfe\xff")  # of UTF-16
MS = (1e-6, 1e9)  # a nanosecond to eleven days; what is outside was not measured
MOST_IMAGES = 1_000_000  # per call
NOT_BUSY = ("", "0", "-", "no", "false", "none")  # what a person puts into the column where all is well


@dataclass(frozen=True, order=True)
class Setting:
    """What a time depends on beside the structure: only times that agree in it compare."""

    device: str  # its name, such as "Jetson Orin Nano"
    runtime: str  # the program that computes, and what it was told: "TensorRT 10.3", "onnxruntime 1.22, 2 threads"
    batch_size: int  # images per call
    dtype: str  # float32, fp16, int8: of the weights and images, as the runtime's users call it

    @property
    def label(self) -> str:
        """The setting in words."""
        return f"{self.device}, {self.runtime}, batch {self.batch_size}, {self.dtype}"


@dataclass(frozen=True)
class Time:
    """The time of one structure on a device.

    Attributes:
        structure: `Structure.id`, 12 hex digits.
        ms: milliseconds of one call with a whole batch, the median.
        spread: width of the middle half of repeated measurements, as a share of their median; None where it is not known.
        device, runtime, batch_size, dtype: as in `Setting`.
        busy: why the time is not to be trusted; empty where it is.
    """

    structure: str
    ms: float
    spread: float | None
    device: str
    runtime: str
    batch_size: int
    dtype: str
    busy: str = ""

    @property
    def setting(self) -> Setting:
        """What the time depends on beside the structure."""
        return Setting(self.device, self.runtime, self.batch_size, self.dtype)


COLUMNS = tuple(field.name for field in fields(Time))
NEEDED = tuple(name for name in COLUMNS if name not in ("spread", "busy"))


def read_times(path: str | os.PathLike[str]) -> list[Time]:
    """The times in a CSV file, in its order.

    The first line that is not empty and no comment (#) names the columns, in any order; columns of other names are ignored.
    Files of spreadsheets are read too: with a byte order mark, with semicolons or tabs between the fields, and then also with
    a comma in decimal numbers, where no number of the file has a point: 1,234 beside 2.5 is no 1.234.

    Raises:
        RefusedInput: the file cannot be read, lacks a column or any row, or a value is wrong; names line, column and value.
    """
    where = Path(path)
    lines = _lines(where)
    if not lines:
        raise RefusedInput(f"{where} has no line that names its columns: begin with {','.join(COLUMNS)}")
    delimiter = max(DELIMITERS, key=lines[0][1].count)
    at, header = lines[0]
    names = [name.lower() for name in _fields(header, delimiter, f"{where}, line {at}")]
    if missing := [name for name in NEEDED if name not in names]:
        raise RefusedInput(
            f"{where} has no column {' and none '.join(map(repr, missing))}: its first line must name {', '.join(NEEDED)}"
            + ("; it is a row of times, so put such a line above it" if any(map(STRUCTURE.fullmatch, names)) else "")
        )
    if twice := sorted({name for name in names if name in COLUMNS and names.count(name) > 1}):
        raise RefusedInput(f"{where} has two columns {twice[0]!r}: keep one")
    rows: list[tuple[int, dict[str, str]]] = []
    for number, line in lines[1:]:
        values = _fields(line, delimiter, f"{where}, line {number}")
        if len(values) > len(names) and any(values[len(names) :]):
            raise RefusedInput(
                f"{where}, line {number} has {len(values)} fields, the first line has {len(names)}: put a text that contains "
                f'{delimiter!r} into double quotes, as in "2,5"'
            )
        row = dict(zip(names, values, strict=False))
        if any(row.values()):  # not what a spreadsheet leaves of an empty row
            rows.append((number, row))
    comma = delimiter != "," and not any("." in row.get(name, "") for _, row in rows for name in ("ms", "spread"))
    found: list[Time] = []
    seen: dict[tuple[str, Setting], int] = {}
    for number, row in rows:
        time = _time(row, f"{where}, line {number}", comma=comma)
        first = seen.setdefault((time.structure, time.setting), number)
        if first != number:
            raise RefusedInput(
                f"{where}, line {number}: structure {time.structure} stands in line {first} already with the same device, "
                "runtime, batch_size and dtype: keep one of them"
            )
        found.append(time)
    if not found:
        raise RefusedInput(f"{where} has no row of times: add one per structure below its first line")
    return found


def write_times(path: str | os.PathLike[str], times: Sequence[Time]) -> None:
    """Write times as `read_times` reads them, whole or not at all.

    Raises:
        OSError: the file cannot be written.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    for time in times:
        structure, ms, spread, *rest = astuple(time)
        writer.writerow([structure, f"{ms:.6g}", "" if spread is None or math.isnan(spread) else f"{spread:.4f}", *rest])
    target = Path(path)
    unfinished = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        unfinished.write_text(text.getvalue(), encoding="utf-8")
        os.replace(unfinished, target)
    finally:
        unfinished.unlink(missing_ok=True)


def by_setting(times: Iterable[Time]) -> dict[Setting, list[Time]]:
    """The times of each setting, in the order in which the settings first come."""
    found: dict[Setting, list[Time]] = {}
    for time in times:
        found.setdefault(time.setting, []).append(time)
    return found


def _lines(where: Path) -> list[tuple[int, str]]:
    """The lines that are neither empty nor comments, with their numbers from 1.

    Raises:
        RefusedInput: the file is not there, or is no text in UTF-8.
    """
    try:
        content = where.read_bytes()
    except OSError as problem:
        raise RefusedInput(f"{where} cannot be read ({problem.strerror or problem}): give a CSV file of times") from problem
    if content.startswith(BYTE_ORDER_MARKS) or b"\0" in content:
        raise RefusedInput(f"{where} is no CSV file in UTF-8: in a spreadsheet, save it as CSV UTF-8, not as a workbook")
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as problem:
        line = content[: problem.start].count(b"\n") + 1
        raise RefusedInput(f"{where}, line {line} is not UTF-8: save the file as CSV UTF-8") from problem
    numbered = enumerate(text.splitlines(), start=1)
    # A spreadsheet puts a comment with a comma into quotes.
    return [(number, line) for number, line in numbered if line.strip() and not line.lstrip(' "').startswith("#")]


def _fields(line: str, delimiter: str, where: str) -> list[str]:
    """The fields of a line, without blanks around them.

    Raises:
        RefusedInput: it is no line of a CSV file.
    """
    try:
        return [field.strip() for field in next(csv.reader([line], delimiter=delimiter, skipinitialspace=True))]
    except csv.Error as problem:
        raise RefusedInput(f"{where} cannot be read ({problem}): give a CSV file of times") from problem


def _time(row: Mapping[str, str], where: str, *, comma: bool) -> Time:
    """One row's time.

    Args:
        row: texts by column.
        where: file and line, for messages.
        comma: whether a comma may stand for the point of a decimal number.

    Raises:
        RefusedInput: a value is missing or wrong.
    """
    if empty := [name for name in NEEDED if not row.get(name)]:
        raise RefusedInput(f"{where}: {empty[0]} is empty: fill it in, or leave the line out")
    structure = row["structure"].lower()
    if not STRUCTURE.fullmatch(structure):
        raise RefusedInput(
            f"{where}: structure is {row['structure']!r}, which is no id: give the 12 hex digits of manifest.json, and in a "
            "spreadsheet make the column text, or it changes ids that look like numbers"
        )
    ms = _number(row["ms"], f"{where}: ms", comma)
    if ms <= 0:
        raise RefusedInput(f"{where}: ms is {row['ms']!r}; a time must be above 0")
    if not MS[0] <= ms <= MS[1]:
        raise RefusedInput(f"{where}: ms is {row['ms']!r}, which no call takes: give milliseconds, such as 8.25")
    spread = _number(row["spread"], f"{where}: spread", comma) if row.get("spread") else None
    if spread is not None and spread < 0:
        raise RefusedInput(f"{where}: spread is {row['spread']!r}; give a share of at least 0, or leave it empty")
    batch_size = _number(row["batch_size"], f"{where}: batch_size", comma)
    if not 1 <= batch_size <= MOST_IMAGES or batch_size != int(batch_size):
        raise RefusedInput(
            f"{where}: batch_size is {row['batch_size']!r}; it must be a whole number of at least 1 and at most {MOST_IMAGES}"
        )
    busy = row.get("busy", "")
    busy = "" if busy.lower() in NOT_BUSY else busy
    return Time(structure, ms, spread, row["device"], row["runtime"], int(batch_size), row["dtype"], busy)


def _number(text: str, what: str, comma: bool) -> float:
    try:
        number = float(text.replace(",", ".") if comma and text.count(",") == 1 and "." not in text else text)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise RefusedInput(f"{what} is {text!r}, which is no number: write it as 8.25, without a unit")
    return number
