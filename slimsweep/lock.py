"""One driver a run: a heartbeat in the run folder says that somebody is at work on it, and who."""

import os
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from slimsweep.storage import Folder

FILE = "driver.json"
BEAT_SECONDS = 5.0
STALE_SECONDS = 60.0  # without a heartbeat for this long, a driver on another machine counts as dead


class RunTaken(ValueError):
    """Another driver is at work on this run."""


@contextmanager
def hold(run: Folder) -> Iterator[None]:
    """Be the run's driver while the block runs.

    Raises:
        RunTaken: another driver holds it and is alive; a dead one's place is taken.
    """
    token = uuid.uuid4().hex
    me = {"token": token, "host": socket.gethostname(), "pid": os.getpid()}
    _refuse_if_alive(run)
    run.write_json(FILE, {**me, "time": time.time()})
    # Two drivers that started at one moment both got here; the later write won.
    time.sleep(0.2)
    if _read(run).get("token") != token:
        _refuse_if_alive(run)
    stop = threading.Event()

    def beat() -> None:
        while not stop.wait(BEAT_SECONDS):
            run.write_json(FILE, {**me, "time": time.time()})

    thread = threading.Thread(target=beat, daemon=True, name="heartbeat")
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
        if _read(run).get("token") == token:
            run.delete(FILE)


def driver_alive(run: Folder) -> bool:
    """Whether a driver is at work on the run: its process runs on this machine, or its heartbeat is fresh on another."""
    found = _read(run)
    if not found:
        return False
    if found.get("host") == socket.gethostname():
        return _running(int(found["pid"]))
    return time.time() - float(found["time"]) < STALE_SECONDS


def _refuse_if_alive(run: Folder) -> None:
    if driver_alive(run):
        found = _read(run)
        raise RunTaken(
            f"{run.uri} is being worked on by process {found['pid']} on {found['host']}; "
            "wait for it, stop it, or take another --name"
        )


def _read(run: Folder) -> dict[str, Any]:
    try:
        return run.read_json(FILE)
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
