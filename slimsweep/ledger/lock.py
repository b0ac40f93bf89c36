"""One driver per run: a heartbeat file in the run's folder names the process that works on it."""

import _thread
import logging
import os
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from slimsweep.errors import RefusedInput
from slimsweep.ledger.run import DRIVER, Run

log = logging.getLogger(__name__)

BEAT_SECONDS = 5.0
STALE_SECONDS = 60.0  # a driver whose last heartbeat is older counts as dead
WATCH_SECONDS = 3 * BEAT_SECONDS  # a driver on another machine counts as alive if it beats within this time


class RunTaken(RefusedInput):
    """Another driver works on this run."""


@contextmanager
def hold(run: Run) -> Iterator[None]:
    """Be the run's driver while the block runs; a dead driver is replaced.

    Raises:
        RunTaken: another driver works on the run and is alive.
        RefusedInput: the folder cannot be written to.
    """
    token = uuid.uuid4().hex
    me = {"token": token, "host": socket.gethostname(), "pid": os.getpid()}
    try:
        _refuse_if_alive(run)
        run.folder.write_json(DRIVER, {**me, "time": time.time()})
    except OSError as problem:
        raise RefusedInput(f"output: nothing can be written to {run.uri} ({problem}); give a folder that can be") from problem
    # Two drivers that start at the same moment both get here: the later write wins.
    time.sleep(0.2)
    if _read(run).get("token") != token:
        _refuse_if_alive(run)
    stop = threading.Event()

    def beat() -> None:
        while not stop.wait(BEAT_SECONDS):
            try:
                if _read(run).get("token", token) != token:  # another driver took us for dead: two would overwrite each other
                    _thread.interrupt_main()
                    return
                run.folder.write_json(DRIVER, {**me, "time": time.time()})
            except OSError as problem:  # a full disk, or a store that fails for a moment: the next beat tries again
                log.warning("no heartbeat could be written (%s)", problem)

    thread = threading.Thread(target=beat, daemon=True, name="heartbeat")
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
        if _read(run).get("token") == token:
            run.folder.delete(DRIVER)


def driver_alive(run: Run) -> bool:
    """Whether a driver works on the run: its heartbeat is recent and, if it is on this machine, its process exists."""
    found = _read(run)
    if not found:
        return False
    fresh = time.time() - float(found["time"]) < STALE_SECONDS
    return fresh and (found.get("host") != socket.gethostname() or _running(int(found["pid"])))


def _refuse_if_alive(run: Run) -> None:
    found = _read(run)
    # A restarted pod has another host name than the dead one, whose last beat may be only seconds old: watch for new beats.
    end = time.monotonic() + (WATCH_SECONDS if found.get("host", socket.gethostname()) != socket.gethostname() else 0)
    while driver_alive(run) and time.monotonic() < end and _read(run) == found:
        time.sleep(0.5)
    if driver_alive(run) and (found.get("host") == socket.gethostname() or _read(run) != found):
        raise RunTaken(
            f"{run.uri} is being worked on by process {found['pid']} on {found['host']}; "
            "wait for it, stop it, or take another --name"
        )


def _read(run: Run) -> dict[str, Any]:
    try:
        return run.folder.read_json(DRIVER)
    except (FileNotFoundError, ValueError):  # none, or one cut short by a full disk
        return {}


def _running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # it runs, as somebody else
        return True
    return True
