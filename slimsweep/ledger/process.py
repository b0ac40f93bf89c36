"""Whether a process that wrote its identity into a file still runs, as far as this process can tell.

A host name and a process id are no identity: containers share names, and each has a process 1. On Linux a process is known by
the boot of its machine, its PID namespace, its id and its start time, and can be looked up from within that namespace. On
other systems, and from elsewhere, nothing is known.
"""

import os
import socket
from pathlib import Path
from typing import Any, Literal

# "unknown" is also a process that is stopped (SIGSTOP): it may go on at any moment, and does nothing until then.
State = Literal["running", "gone", "unknown"]

PROC = Path("/proc")


def identity(pid: int | None = None) -> dict[str, Any]:
    """What identifies a process: its host and pid for people, and where Linux says so its boot, namespace and start time.

    Args:
        pid: of a process in the namespace of this one; this process where not given.
    """
    pid = os.getpid() if pid is None else pid
    known: dict[str, Any] = {"host": socket.gethostname(), "pid": pid}
    stat = _stat(pid)
    if stat is None or not _proc_is_ours():
        return known
    try:
        boot = (PROC / "sys/kernel/random/boot_id").read_text().strip()
        # Start times are counted in the time namespace of who asks.
        kinds = [kind for kind in ("pid", "time") if os.path.lexists(PROC / "self/ns" / kind)]
        spaces = [os.readlink(PROC / "self/ns" / kind) for kind in kinds]
    except OSError:
        return known
    return {**known, "boot": boot, "namespace": " ".join(spaces), "started": stat[1]}


def state(known: dict[str, Any]) -> State:
    """Whether the process with this identity runs.

    Args:
        known: what `identity` returned there.
    """
    here = identity()
    if "boot" not in here or any(known.get(key) != here[key] for key in ("boot", "namespace")):
        return "unknown"
    pid = int(known["pid"])
    try:
        os.kill(pid, 0)  # asks only; it sees processes of other users too, which /proc may hide
    except ProcessLookupError:
        return "gone"
    except PermissionError:  # it runs, as somebody else
        pass
    stat = _stat(pid)
    if stat is None:
        return "unknown"
    letter, started = stat
    if started != known.get("started") or letter in "ZXx":  # another process has the id now; or nobody has waited for it yet
        return "gone"
    return "unknown" if letter in "Tt" else "running"


def same(one: dict[str, Any], other: dict[str, Any]) -> bool:
    """Whether two identities are surely those of one process."""
    return all(one.get(key) is not None and one.get(key) == other.get(key) for key in ("boot", "namespace", "pid", "started"))


def _stat(pid: int) -> tuple[str, int] | None:
    """(state, start time in clock ticks since boot) of a process; None where /proc does not say."""
    try:
        fields = (PROC / str(pid) / "stat").read_text().rpartition(")")[2].split()
        return fields[0], int(fields[19])  # fields 3 and 22 of proc(5): the name before them may contain spaces
    except (OSError, ValueError, IndexError):
        return None


def _proc_is_ours() -> bool:
    """Whether /proc shows the processes of this namespace: `unshare --pid` without --mount-proc leaves that of another."""
    try:
        return os.readlink(PROC / "self") == str(os.getpid())
    except OSError:
        return False
