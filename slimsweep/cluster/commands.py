"""Commands of slimsweep that others ask for: each in a process of its own, on a worker of the cluster where there is one."""

import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import ray

import slimsweep
from slimsweep.errors import ClusterFailed, explain

GRACE = 60.0  # seconds beyond a command's own limit in which a worker may be found for it


@dataclass(frozen=True, kw_only=True)
class Ended:
    """How a command ended."""

    code: int
    output: str  # standard output
    errors: str  # standard error


def own_folder() -> str:
    """The folder that slimsweep is imported from."""
    return str(Path(slimsweep.__file__).parents[1])


def with_own_folder(environment: Mapping[str, str]) -> dict[str, str]:
    """An environment in which Python finds this slimsweep, also where it is a checkout that nobody installed."""
    path = [part for part in environment.get("PYTHONPATH", "").split(os.pathsep) if part]
    here = own_folder()
    return {**environment, "PYTHONPATH": os.pathsep.join([here, *(part for part in path if part != here)])}


def run_command(words: Sequence[str], *, seconds: float, files: Mapping[str, str] | None = None) -> Ended:
    """Run `python WORDS` in an empty folder: as a task on a worker where this process is in a Ray cluster, else here.

    Args:
        seconds: after which it is ended.
        files: texts by name, which lie in that folder.

    Raises:
        TimeoutError: it took longer than `seconds`, or no worker was free for it.
        ClusterFailed: its worker or node died.
    """
    if not ray.is_initialized():
        return _run(list(words), seconds, dict(files or {}))
    task = ray.remote(num_cpus=1, max_retries=1)(_run).remote(list(words), seconds, dict(files or {}))
    try:
        ended: Ended = ray.get(task, timeout=seconds + GRACE)
    except ray.exceptions.GetTimeoutError as problem:
        ray.cancel(task, force=True)
        raise TimeoutError(f"no worker of the cluster ended it in {seconds + GRACE:.0f} seconds") from problem
    except ray.exceptions.RayTaskError as problem:
        if isinstance(problem.cause, TimeoutError):
            raise TimeoutError(str(problem.cause)) from problem
        raise
    except ray.exceptions.RayError as problem:
        raise ClusterFailed(explain(problem)) from problem
    return ended


def _run(words: list[str], seconds: float, files: dict[str, str]) -> Ended:
    with tempfile.TemporaryDirectory(prefix="slimsweep-") as folder:
        for name, text in files.items():
            Path(folder, name).write_text(text, encoding="utf-8")
        environment = {**with_own_folder(os.environ), "PYTHONUTF8": "1"}
        command = [sys.executable, *words]
        # What it runs into is wide enough that no line of its tables is broken.
        environment["COLUMNS"] = "110"
        try:
            done = subprocess.run(
                command, cwd=folder, env=environment, capture_output=True, text=True, timeout=seconds, check=False
            )
        except subprocess.TimeoutExpired as late:
            raise TimeoutError(f"it took longer than {seconds:.0f} seconds") from late
        return Ended(code=done.returncode, output=done.stdout, errors=done.stderr)
