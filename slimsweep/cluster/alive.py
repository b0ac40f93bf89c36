"""Whether the cluster under a running driver is still there.

Ray ends the process of a driver by itself, with lines of its own, when the cluster's GCS has been gone for a while, and when
the raylet of the driver's machine died. The driver ends sooner here, with one sentence, and so closes its run.
"""

import atexit
import os
import select
import signal
import socket
import sys
import threading
import time
from types import FrameType

import grpc  # type: ignore[import-untyped]
import ray
from ray._private.worker import global_worker
from ray.util.client import ray as client

from slimsweep.cluster import GCS_SECONDS
from slimsweep.cluster.failures import AGAIN
from slimsweep.cluster.joining import check_alive
from slimsweep.errors import STOPPED, ClusterFailed, StageFailed, stop_asked
from slimsweep.terminal import end_process

LOOK_SECONDS = 2.0  # between two looks at the GCS
ANSWER_SECONDS = 5.0  # for which one look waits
EARLIER_SECONDS = 30.0  # by which the driver gives a GCS up before Ray does: what it takes to end in order
END_SECONDS = 20.0  # that the driver has to end, before its process is ended
# Wakes the main thread, as ledger/lock.py does: by default systems ignore it, and no program sends it.
WAKE = signal.SIGURG

lost: list[str] = []  # why this process has no cluster any more: Ray cannot be started in it again


def gcs_answers(address: str, seconds: float = ANSWER_SECONDS) -> bool:
    """Whether the GCS of a cluster answers, be it with a refusal.

    Args:
        address: host:port of the GCS.
        seconds: how long to wait for the answer.
    """
    try:
        check_alive(address, seconds)
    except grpc.RpcError as problem:
        return problem.code() not in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED)
    return True


def give_up_seconds() -> float:
    """For how long a GCS may be gone: a head that restarts with its state kept answers again in this time."""
    return max(10.0, float(os.environ.get(GCS_SECONDS) or 60) - EARLIER_SECONDS)


def gcs_gone(address: str, seconds: float | None = None) -> str:
    """The sentence for a GCS that no longer answers."""
    waited = "" if seconds is None else f" for {seconds:.0f} s"
    return (
        f"the head of the Ray cluster (its GCS at {address}) has not answered{waited}, so the cluster is lost: see in Ray's "
        f"logs on its machine (gcs_server.out) why it ended, and start a cluster again; {AGAIN}"
    )


RAYLET_GONE = (
    "Ray's process on the driver's node (the raylet) died, and with it the workers there: raylet.out in the logs of Ray's "
    f"session says why; {AGAIN} on a cluster that runs"
)


class Watch:
    """Looks in a thread whether the cluster of this process is there, and interrupts the main thread when it is gone.

    As a context manager it turns that interrupt, and what Ray raises on a cluster that is gone, into ClusterFailed; where the
    process was told to stop, into KeyboardInterrupt, since the same signal may have ended Ray. `end` is called when the process
    has left the cluster: until then a driver that does not end by itself is ended.
    """

    def __init__(self) -> None:
        self.gone: str | None = None  # why the driver has to end
        self.failed = False  # whether the block ended because of that, and not just before
        here = not client.is_connected()  # Ray's client speaks to a server in the cluster, and has time limits of its own
        self.address = ray.get_runtime_context().gcs_address if here else None
        self.raylet = global_worker.node.raylet_socket_name if here and global_worker.node is not None else None
        self.left, self.ended = threading.Event(), threading.Event()
        self.interrupts = threading.current_thread() is threading.main_thread()
        self.threads = [
            threading.Thread(target=target, daemon=True, name=f"cluster-{number}")
            for number, target in enumerate((self._watch_gcs, self._watch_raylet, self._end_driver))
        ]

    def __enter__(self) -> None:
        if self.interrupts:
            self.handler_before = signal.signal(WAKE, self._wake)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, [WAKE])
        for thread in self.threads:
            thread.start()

    def __exit__(self, kind: object, problem: BaseException | None, trace: object) -> None:
        self.left.set()
        if self.interrupts:
            signal.signal(WAKE, self.handler_before or signal.SIG_DFL)
        if stop_asked.is_set() and isinstance(problem, KeyboardInterrupt | ClusterFailed | StageFailed):
            self.gone = self.gone or self._look()
            self.failed = self.gone is not None
            raise KeyboardInterrupt from problem
        if isinstance(problem, ClusterFailed | StageFailed):  # Ray names what it met first
            self.gone = self.gone or self._look()
        if self.gone is not None and problem is not None:
            self.failed = True
            raise ClusterFailed(self.gone) from problem

    def end(self) -> None:
        """The process has left the cluster."""
        self.ended.set()

    def leave(self) -> None:
        """Leave a cluster that is gone, where `ray.shutdown` would wait, or end this process in the middle.

        The processes of the cluster that this process started are killed. The process itself ends, when it does, without what
        Ray's library does at the end of a process.
        """
        lost.append(str(self.gone))
        node = global_worker.node
        if node is not None:
            node.kill_all_processes(check_alive=False, allow_graceful=False)
        if self.failed:
            atexit.register(end_process, self._code())

    def _code(self) -> int:
        """The exit code of a process whose cluster is gone."""
        return STOPPED if stop_asked.is_set() else 1

    def _look(self) -> str | None:
        if self.raylet is not None:
            if (connection := reached(self.raylet)) is None:
                return RAYLET_GONE
            connection.close()
        return gcs_gone(self.address) if self.address is not None and not gcs_answers(self.address) else None

    def _end_driver(self) -> None:
        while self.gone is None:
            if self.ended.wait(0.2):
                return
        end = time.monotonic() + END_SECONDS
        while self.interrupts and not self.ended.is_set():
            if not self.left.is_set():
                signal.pthread_kill(threading.main_thread().ident or 0, WAKE)
            self.ended.wait(END_SECONDS / 4)  # a library that swallowed an interrupt gets another one
            if time.monotonic() >= end and not self.ended.is_set():
                try:
                    print(f"slimsweep: {self.gone}", file=sys.stderr, flush=True)
                finally:  # also where standard error is closed
                    os._exit(self._code())

    def _watch_gcs(self) -> None:
        silent_since: float | None = None
        answered = False
        while self.address is not None and self.gone is None and not self.left.wait(LOOK_SECONDS):
            if gcs_answers(self.address):
                silent_since, answered = None, True
            elif answered:
                silent_since = silent_since or time.monotonic()
                if (silent := time.monotonic() - silent_since) >= give_up_seconds():
                    self.gone = self.gone or gcs_gone(self.address, silent)

    def _watch_raylet(self) -> None:
        """Hold a connection to the raylet, which the system closes at the moment that the raylet dies."""
        held = reached(self.raylet) if self.raylet is not None else None
        while held is not None and self.gone is None and not self.left.is_set():
            if select.select([held], [], [], 0.2)[0]:
                held.close()
                self.left.wait(0.3)
                if (held := reached(str(self.raylet))) is None and not self.left.is_set():
                    self.gone = RAYLET_GONE
        if held is not None:
            held.close()

    def _wake(self, number: int, frame: FrameType | None) -> None:
        if self.gone is not None and not self.left.is_set():
            raise KeyboardInterrupt
        if callable(self.handler_before):
            self.handler_before(number, frame)


def reached(path: str) -> socket.socket | None:
    """A connection to the process that listens at a path; None where none does."""
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        connection.connect(path.removeprefix("unix:"))
    except OSError:
        connection.close()
        return None
    return connection
