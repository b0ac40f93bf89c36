"""Sweeps as jobs of a Ray cluster, by its Jobs API: submitted, listed, stopped, and what they print.

A job is `python -m slimsweep.run ...`, as `ray job submit` would send it. Its metadata name the run, by which its
job is found; a job that was submitted by hand has none, and is not touched.
"""

import os
import re
import secrets
import shlex
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import ray
from ray.job_submission import JobStatus, JobSubmissionClient

from slimsweep.cluster.commands import own_folder
from slimsweep.errors import ClusterFailed

RUN, OUTPUT = "slimsweep_run", "slimsweep_output"  # of a job's metadata
LOG_END = 64 * 1024  # characters of what a job printed that are handed on
ALIVE = (JobStatus.PENDING, JobStatus.RUNNING)


@dataclass(frozen=True, kw_only=True)
class Job:
    """One start of a sweep."""

    id: str
    run: str  # its name inside the output folder
    command: str
    state: str  # waiting, running, stopped, done or failed
    message: str  # what Ray says about it
    started: float  # seconds since the epoch; 0 where it has not begun

    @property
    def is_alive(self) -> bool:
        """Whether it runs, or will."""
        return self.state in ("waiting", "running")


STATES = {
    JobStatus.PENDING: "waiting",
    JobStatus.RUNNING: "running",
    JobStatus.STOPPED: "stopped",
    JobStatus.SUCCEEDED: "done",
    JobStatus.FAILED: "failed",
}


class Jobs:
    """The jobs of a cluster that write into one output folder.

    Args:
        output: that folder, as the driver of a sweep is given it.
        address: of the cluster's dashboard (http://...). Where not given: RAY_API_SERVER_ADDRESS, the cluster that this process
            is in, RAY_ADDRESS, or the cluster that runs on this machine.
    """

    def __init__(self, output: str, address: str | None = None) -> None:
        self.output = output
        self._address = address

    def _client(self) -> JobSubmissionClient:
        """A new client per call: the cluster may have been started again since."""
        address = self._address
        if address is None and "RAY_API_SERVER_ADDRESS" not in os.environ and ray.is_initialized():
            address = ray.get_runtime_context().gcs_address  # of the cluster that this process is in
        try:
            return JobSubmissionClient(address)
        except Exception as problem:  # Ray raises ConnectionError, RuntimeError and others
            raise ClusterFailed(
                f"no Ray cluster takes jobs here ({_line(problem)}): start one with `ray start --head`"
            ) from problem

    def submit(self, run: str, words: Sequence[str], files: Mapping[str, str]) -> Job:
        """Start `python -m slimsweep.run WORDS` in a folder with these files.

        Args:
            run: the run's name inside the output folder.
            files: texts by name; small.

        Raises:
            ClusterFailed: the cluster cannot be reached or does not take the job.
        """
        client = self._client()
        id = f"slimsweep-{re.sub(r'[^A-Za-z0-9_-]', '-', run)[:60]}-{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(3)}"
        command = shlex.join([_python(client.get_address()), "-m", "slimsweep.run", *words])
        with tempfile.TemporaryDirectory(prefix="slimsweep-job-") as folder:
            for name, text in files.items():
                Path(folder, name).write_text(text, encoding="utf-8")
            environment: dict[str, object] = {"working_dir": folder} if files else {}
            if not _is_installed():
                environment["env_vars"] = {"PYTHONPATH": own_folder()}
            try:
                client.submit_job(
                    entrypoint=command,
                    submission_id=id,
                    runtime_env=environment,
                    metadata={RUN: run, OUTPUT: self.output},
                )
            except Exception as problem:
                raise ClusterFailed(f"the cluster did not take the job ({_line(problem)})") from problem
        return Job(id=id, run=run, command=command, state="waiting", message="", started=0.0)

    def all(self) -> list[Job]:
        """The jobs of this output folder, the latest first.

        Raises:
            ClusterFailed: the cluster cannot be asked.
        """
        client = self._client()
        try:
            found = client.list_jobs()
        except Exception as problem:
            raise ClusterFailed(f"the cluster does not list its jobs ({_line(problem)})") from problem
        own = [one for one in found if (one.metadata or {}).get(OUTPUT) == self.output and one.submission_id]
        own.sort(key=lambda one: (one.start_time or 0, one.submission_id or ""), reverse=True)
        return [
            Job(
                id=str(one.submission_id),
                run=(one.metadata or {}).get(RUN, ""),
                command=one.entrypoint,
                state=STATES[one.status],
                message=one.message or "",
                started=(one.start_time or 0) / 1000,
            )
            for one in own
        ]

    def latest(self, run: str) -> Job | None:
        """The last job of a run; None where it was not started by one."""
        return next((job for job in self.all() if job.run == run), None)

    def stop(self, job: Job) -> None:
        """Have a job stopped, as Ctrl+C would: what is done stays, and the same command goes on later.

        Raises:
            ClusterFailed: the cluster cannot be asked.
        """
        try:
            self._client().stop_job(job.id)
        except ClusterFailed:
            raise
        except Exception as problem:
            raise ClusterFailed(f"the cluster did not stop the job ({_line(problem)})") from problem

    def log(self, job: Job) -> str:
        """The end of what a job has printed.

        Raises:
            ClusterFailed: the cluster cannot be asked.
        """
        try:
            text: str = self._client().get_job_logs(job.id)
        except ClusterFailed:
            raise
        except Exception as problem:
            raise ClusterFailed(f"the cluster does not say what the job printed ({_line(problem)})") from problem
        end = text[-LOG_END:]
        return end if len(end) == len(text) else f"...\n{end.partition(chr(10))[2]}"


def _line(problem: BaseException) -> str:
    """What Ray says, in one line without its traceback."""
    said = [line.strip() for line in str(problem).splitlines() if line.strip()]
    last = said[-1] if said else type(problem).__name__
    return (last if "Traceback" in str(problem) else " ".join(said) or last)[:400]


def _python(address: str) -> str:
    """The Python that runs a job: this one where the cluster is this process's own, or on this machine; else the nodes' own."""
    here = urlsplit(address).hostname in ("localhost", "127.0.0.1", "::1")
    return sys.executable if here or ray.is_initialized() else "python"


def _is_installed() -> bool:
    """Whether slimsweep lies among Python's installed packages, as on every node of a cluster with the same image."""
    return any(part in ("site-packages", "dist-packages") for part in own_folder().split(os.sep))
