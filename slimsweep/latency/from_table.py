"""A table of latencies from another device (`latency.table`): which of its settings counts, and a path's times in it.

Light to import (no torch).
"""

import os
from dataclasses import dataclass

from slimsweep.errors import RefusedInput
from slimsweep.latency.table import Setting, Time, by_setting, read_times


@dataclass(frozen=True)
class TableOfTimes:
    """The times of one setting in a table.

    Attributes:
        path: of the file.
        setting: that all its times are of.
        times: by `Structure.id`.
    """

    path: str
    setting: Setting
    times: dict[str, Time]

    @property
    def where(self) -> str:
        """How messages name it."""
        return f"latency.table is {self.path!r}"

    @property
    def ms(self) -> dict[str, float]:
        """Milliseconds by `Structure.id`."""
        return {name: time.ms for name, time in self.times.items()}

    @property
    def busy(self) -> str:
        """Why times in it are not to be trusted; empty where all are."""
        return next((time.busy for time in self.times.values() if time.busy), "")

    @property
    def about(self) -> dict[str, object]:
        """What the times were measured with, as `latency_setting` of the results has it."""
        setting = self.setting
        return {
            "device": setting.device,
            "hardware": setting.device,
            "batch_size": setting.batch_size,
            "dtype": setting.dtype,
            "runtime": setting.runtime,
            "threads": None,
            "compile": False,
            "table": os.path.basename(self.path),
        }


def table_of_times(path: str, batch_size: int | None = None) -> TableOfTimes:
    """The times of a table, all of one setting.

    Args:
        batch_size: whose times are taken where the table has several; None where that was not said.

    Raises:
        RefusedInput: the table cannot be read, has no times at that batch size, or has times of several settings.
    """
    found = by_setting(read_times(path))
    fits = [setting for setting in found if batch_size is None or setting.batch_size == batch_size]
    several = "; ".join(setting.label for setting in (fits or found))
    if not fits:
        raise RefusedInput(
            f"latency.batch_size is {batch_size}, but latency.table {path!r} has only times of {several}: take one of those"
        )
    if len(fits) > 1:
        raise RefusedInput(
            f"latency.table is {path!r}, which has times of {len(fits)} settings ({several}): keep those of one in the file"
            + ("" if len({s.batch_size for s in fits}) == 1 else ", or say which in latency.batch_size")
        )
    return TableOfTimes(path, fits[0], {time.structure: time for time in found[fits[0]]})
