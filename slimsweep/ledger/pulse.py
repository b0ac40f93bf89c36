"""Whether the driver of a run is alive, for a reader that looks at the run again and again.

`lock.driver_alive` watches one run for some seconds and then knows. Who shows hundreds of runs cannot wait for each: a `Pulse`
remembers from look to look when the heartbeat changed last, and reads it only where its file has changed.
"""

import time

from slimsweep.ledger import process
from slimsweep.ledger.holder import BEATS_PER_WATCH, Look
from slimsweep.ledger.lock import WATCH_SECONDS, RunBoard
from slimsweep.ledger.run import Run

# A heartbeat that is older at the first look is that of a dead driver: the clocks of two machines differ by less.
OLD_SECONDS = 3600.0


class Pulse:
    """The heartbeat of one run's driver, from look to look."""

    def __init__(self) -> None:
        self._beat: tuple[int, int] | None = None
        self._since = 0.0  # when it was first seen as it is now, on this process's monotonic clock
        self._look: Look | None = None

    def alive(self, run: Run, beat: tuple[int, int] | None, now: float | None = None) -> bool:
        """Whether a driver works on the run. One whose heartbeat is seen for the first time counts as alive for a while.

        Args:
            beat: of the run's `Listing`, taken just now.
            now: seconds on a monotonic clock.
        """
        now = time.monotonic() if now is None else now
        if beat is None:
            self._beat = self._look = None
            return False
        if beat != self._beat or self._look is None:
            first = self._beat is None
            self._beat, self._since, self._look = beat, now, RunBoard(run, every=0.0).look()
            if first and beat[1] and time.time() - beat[1] / 1e9 > OLD_SECONDS:
                self._since = now - OLD_SECONDS
        look = self._look
        if look.heartbeat is None or look.process == "gone" or process.state(dict(look.record)) == "gone":
            return False
        return now - self._since < max(WATCH_SECONDS, BEATS_PER_WATCH * look.every)
