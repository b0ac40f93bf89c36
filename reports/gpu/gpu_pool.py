"""Processes that prepare variants side by side, and time them one at a time while all others wait.

Each process keeps what it has prepared, so that variants of different processes can be timed in the same interleaved rounds.
What fails becomes a text; a process that dies, hangs, or whose GPU context is broken is replaced by a fresh one.
"""

import fcntl
import importlib
import os
import signal
import time
import traceback
from collections.abc import Iterator, Set
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from multiprocessing import connection, get_context
from pathlib import Path
from typing import Any

from gpu_plan import Job

BROKEN = ("cuda error", "illegal memory access", "cublas_status", "device-side assert", "unspecified launch failure")
LONGEST_ERROR = 600  # characters
SETTLE = 0.3  # seconds
# One compiling thread per process: the processes themselves fill the cores.
ENVIRONMENT = {"OMP_NUM_THREADS": "1", "TORCHINDUCTOR_COMPILE_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}


@contextmanager
def gpu_alone(lock: Path) -> Iterator[None]:
    """One process of many at a time, so that what needs much GPU memory does not meet; a process that dies lets go."""
    with lock.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def as_text(problem: BaseException) -> str:
    """An error in a line: its type and what it says, without traceback."""
    words = " ".join(f"{type(problem).__name__}: {problem}".split())
    return words if len(words) <= LONGEST_ERROR else words[:LONGEST_ERROR] + " ..."


def serve(pipe: Any, module: str, lock: str) -> None:
    """A process: answers ("prepare", job), ("turn", name, known) and ("drop", names) until None comes."""
    made: dict[str, Any] = {}
    try:
        variants = importlib.import_module(module)
        pipe.send(("ready", os.getpid()))
        while (asked := pipe.recv()) is not None:
            what, *given = asked
            if what == "prepare":
                (job,) = given
                began = time.perf_counter()
                answers = {}
                try:
                    # One by one: a variant that fails leaves the others of its job as they are.
                    for name, turn, info in getattr(variants, job.make)(job.names, Path(lock), **job.arguments):
                        if isinstance(turn, BaseException):
                            answers[name] = (as_text(turn), info)
                        else:
                            made[name] = turn
                            answers[name] = (None, info)
                except Exception as problem:
                    answers |= {name: (as_text(problem), {}) for name in job.names if name not in answers}
                pipe.send(("prepared", answers, time.perf_counter() - began))
            elif what == "turn":
                name, known = given
                try:
                    pipe.send(("turned", made[name](known), None))
                except Exception as problem:
                    made.pop(name, None)
                    pipe.send(("turned", None, as_text(problem)))
            else:
                for name in given[0]:
                    made.pop(name, None)
                variants.free_memory()
    except (EOFError, BrokenPipeError):
        return  # the main process is gone
    except BaseException as problem:
        traceback.print_exc()
        pipe.send(("died", as_text(problem)))
        raise


@dataclass
class Worker:
    process: Any
    pipe: Any
    ready: bool = False
    job: Job | None = None
    since: float = 0.0  # when the job, or the process, began
    holds: set[str] = field(default_factory=set)


class Pool:
    """Processes, and where each prepared variant is.

    Args:
        size: processes.
        module: is imported in each, and has the functions that jobs name.
        lock: a file that processes lock.
    """

    def __init__(self, size: int, module: str, lock: Path) -> None:
        os.environ.update({name: value for name, value in ENVIRONMENT.items() if name not in os.environ})
        self.context = get_context("spawn")
        self.module, self.lock = module, lock
        self.unready = 0  # processes that ended before they were ready
        self.workers = [self._start() for _ in range(size)]
        self.lost: dict[str, str] = {}  # variants that went with their process, and why

    def _start(self) -> Worker:
        ours, theirs = self.context.Pipe()
        process = self.context.Process(target=serve, args=(theirs, self.module, str(self.lock)), daemon=False)
        process.start()
        theirs.close()  # so that the end of that process is noticed
        return Worker(process, ours, since=time.monotonic())

    def give(self, job: Job, avoid: Set[str] = frozenset()) -> bool:
        """Let a free process prepare a job, one that holds few variants; False where none is free.

        Args:
            avoid: processes that hold one of these are left free, so that it can be timed.
        """
        free = [worker for worker in self.workers if worker.ready and worker.job is None and not worker.holds & avoid]
        for worker in sorted(free, key=lambda worker: len(worker.holds)):
            worker.job, worker.since = job, time.monotonic()
            try:
                worker.pipe.send(("prepare", job))
            except OSError:
                self.replace(worker, "its process ended")
                continue
            return True
        return False

    @property
    def busy(self) -> list[Job]:
        return [worker.job for worker in self.workers if worker.job is not None]

    def answers(self, wait: float) -> list[tuple[Job, dict[str, tuple[str | None, dict[str, Any]]], float]]:
        """(job, per name an error or None and what is known, seconds) of jobs that are prepared now."""
        found = []
        by_pipe = {worker.pipe: worker for worker in self.workers}
        for pipe in connection.wait(list(by_pipe), timeout=wait):
            worker = by_pipe[pipe]
            job, took = worker.job, time.monotonic() - worker.since
            try:
                kind, *answer = worker.pipe.recv()
            except (EOFError, OSError):
                kind, answer = "died", ["its process ended"]
            if kind == "ready":
                worker.ready = True
            elif kind == "prepared" and job is not None:
                errors, seconds = answer
                worker.job = None
                worker.holds |= {name for name, (error, _) in errors.items() if error is None}
                found.append((job, errors, seconds))
                if any(error and _broken(error) for error, _ in errors.values()):
                    self.replace(worker, "the GPU context of its process broke")
            else:
                self.replace(worker, str(answer[0]))
                if job is not None:
                    found.append((job, {name: (str(answer[0]), {}) for name in job.names}, took))
        return found

    def can_time(self, name: str) -> bool:
        """Whether a variant is in a process that does nothing else."""
        return any(name in worker.holds and worker.job is None for worker in self.workers)

    def turn(self, name: str, known: float | None, limit: float) -> tuple[dict[str, Any] | None, str | None]:
        """Time a variant once: (times, None) or (None, error).

        Args:
            known: fastest seconds of the reference so far.
            limit: seconds after which it is given up, and its process replaced.
        """
        worker = next((worker for worker in self.workers if name in worker.holds), None)
        if worker is None or worker.job is not None:
            return None, self.lost.get(name, "its process was still preparing another variant")
        try:
            worker.pipe.send(("turn", name, known))
            if not worker.pipe.poll(limit):
                self.replace(worker, f"a turn of {name} took more than {limit:.0f} s")
                return None, self.lost[name]
            kind, *answer = worker.pipe.recv()
        except (EOFError, OSError):
            self.replace(worker, f"its process ended in a turn of {name}")
            return None, self.lost[name]
        if kind != "turned":
            self.replace(worker, str(answer[0]))
            return None, self.lost[name]
        times, error = answer
        if error:
            worker.holds.discard(name)
            if _broken(error):
                self.replace(worker, "the GPU context of its process broke")
        return times, error

    @contextmanager
    def quiet(self) -> Iterator[None]:
        """Processes that are still preparing stand still while the block runs, so that what is timed has the machine."""
        stopped = [worker.process for worker in self.workers if worker.job is not None or not worker.ready]
        for process in stopped:
            _signal(process, signal.SIGSTOP)
        time.sleep(SETTLE)  # what they have queued on the GPU comes to its end
        try:
            yield
        finally:
            for process in stopped:
                _signal(process, signal.SIGCONT)

    def drop(self, names: set[str]) -> None:
        """Let processes forget variants, and what memory they held."""
        for worker in self.workers:
            if worker.job is None and (gone := worker.holds & names):
                worker.holds -= gone
                try:
                    worker.pipe.send(("drop", sorted(gone)))
                except OSError:
                    self.replace(worker, "its process ended")

    def replace(self, worker: Worker, why: str) -> None:
        """End a process and start a fresh one; what it held is lost."""
        self.lost.update(dict.fromkeys(worker.holds, why))
        self.unready += not worker.ready
        _end(worker)
        if self.unready > len(self.workers):
            raise RuntimeError(f"processes cannot start: {why}")
        self.workers[self.workers.index(worker)] = self._start()

    def close(self) -> None:
        for worker in self.workers:
            if worker.job is None:
                with suppress(OSError):  # it has ended already
                    worker.pipe.send(None)
        end = time.monotonic() + 3.0
        for worker in self.workers:
            worker.process.join(max(0.0, end - time.monotonic()) if worker.job is None else 0.0)
            _end(worker)


def _signal(process: Any, number: int) -> None:
    with suppress(ProcessLookupError):  # it has ended already
        os.kill(process.pid, number)


def _end(worker: Worker) -> None:
    worker.process.kill()
    worker.process.join(5)
    worker.pipe.close()


def _broken(error: str) -> bool:
    """Whether nothing more works on the GPU in the process that had this error."""
    words = error.lower()
    # Too little memory, and a capture that was refused, leave the context as it was.
    return any(one in words for one in BROKEN) and "out of memory" not in words and "captur" not in words
