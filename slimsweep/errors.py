"""What slimsweep raises, and how a command ends: the exit code, and the sentence that the person reads.

| exit code | what happened | what is shown |
| --- | --- | --- |
| 0 | all went well | |
| 1 | something failed: training, an export, a bug | one line; for a bug also the file that holds the whole traceback |
| 2 | the input was refused | one sentence that names the field, its value and the way out |

Light to import (no torch, no Ray): every other module may import it.
"""

import os
import re
import tempfile
import traceback
from collections.abc import Callable, Collection, Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console


class SlimsweepError(Exception):
    """Base class of all errors that slimsweep raises on purpose; the text says what is wrong and what to do."""


class RefusedInput(SlimsweepError, ValueError):
    """Something that the person gave cannot work; the text names it, its value and the way out. Commands exit with 2."""


class ExportError(SlimsweepError, RuntimeError):
    """What was exported does not compute what the model computes, or the model cannot be exported; no file is left."""


class StageFailed(SlimsweepError, RuntimeError):
    """Training went wrong on a worker; the text is its own reason, not Ray's account of it."""


class TrainingDiverged(SlimsweepError, RuntimeError):
    """The loss became NaN or infinite; the last checkpoint is from before it did."""


class OutOfTime(SlimsweepError):
    """The hours that the run may take are over; what was trained so far is in the last checkpoint."""


def causes(problem: BaseException) -> Iterator[BaseException]:
    """An exception and what caused it, the outermost first: through Ray's wrappers, then through `raise ... from ...`."""
    seen: set[int] = set()
    current: BaseException | None = problem
    while current is not None and id(current) not in seen:
        seen.add(id(current))
        yield current
        current = wrapped(current) or current.__cause__


def wrapped(problem: BaseException) -> BaseException | None:
    """The exception of a worker that an exception of Ray carries; None where it carries none."""
    workers = list(getattr(problem, "worker_failures", {}).values())
    inner = workers[0] if workers else getattr(problem, "_base_exc", None) or getattr(problem, "cause", None)
    return inner if isinstance(inner, BaseException) else None


def explain(problem: BaseException | str, stage: str | None = None) -> str:
    """Why something failed, in one sentence: the worker's own reason, without the tracebacks that Ray puts around it.

    Args:
        problem: an exception, or the text of one, such as the error in a point's row.
        stage: dense, search or retrain: whose settings to change where a GPU's memory was too small; None for no training.
    """
    if (said := memory_of_gpu(problem)) is not None:
        return out_of_gpu_memory(said, stage)
    if isinstance(problem, str):
        return problem
    while (inner := wrapped(problem)) is not None:
        problem = inner
    lines = str(problem).strip().splitlines() or [type(problem).__name__]
    return lines[0] if len(lines) == 1 else f"{lines[0]} ... {lines[-1]}"


def memory_of_gpu(problem: BaseException | str) -> str | None:
    """What torch said where a GPU's memory was too small, also as the cause of another exception; None for anything else."""
    if isinstance(problem, str):
        return problem if "CUDA out of memory" in problem else None
    for cause in causes(problem):
        # By name, as torch must not be imported here. Ray has a class of this name too, for the memory of a node.
        of_torch = type(cause).__name__ == "OutOfMemoryError" and type(cause).__module__.partition(".")[0] == "torch"
        if of_torch or "CUDA out of memory" in str(cause):
            return str(cause)
    return None


def out_of_gpu_memory(said: str, stage: str | None) -> str:
    """What to change where a GPU's memory was too small.

    Args:
        said: torch's own text, which says how much it asked for.
        stage: as for `explain`.
    """
    tried = re.search(r"Tried to allocate [0-9.]+ [KMGT]i?B", said)
    what = f"out of GPU memory{f' ({tried[0]})' if tried else ''}"
    if stage is None:
        return f"{what}: take smaller batches, or a GPU with more memory"
    return (
        f"{what}: raise {stage}.accumulate, which leaves the result as it is; or set {stage}.amp to bf16 or "
        f"{stage}.grad_checkpointing to true; or lower data.batch_size; where workers share a GPU, raise "
        "resources.gpus_per_worker"
    )


def exit_code(
    action: Callable[[], int | None],
    console: "Console",
    *,
    verbose: bool = False,
    log: Callable[[str], str] | None = None,
    given: Collection[str] = (),
) -> int:
    """Do something and say in one line what went wrong, if anything did.

    Args:
        action: what to do; returns an exit code, or None for 0.
        console: where the line is printed.
        verbose: print the whole traceback in place of writing it to a file.
        log: writes a traceback to a file that is kept and returns where; without it, or where it fails, a temporary file is
            written.
        given: paths that the person gave: an OSError about one of them is refused input too.

    Returns:
        What the action returned, 2 where the input was refused, 1 where something else went wrong.
    """
    try:
        return action() or 0
    except Exception as problem:
        about_input = isinstance(problem, RefusedInput) or any(is_about(problem, path) for path in given)
        if verbose:
            console.print_exception()
        if about_input or isinstance(problem, SlimsweepError) or memory_of_gpu(problem) is not None:
            said = explain(problem)
        else:
            said = last_line(problem)
            if not verbose:
                where = written("".join(traceback.format_exception(problem)), log)
                said += f" (the whole traceback is in {where}; --verbose shows it here)"
        console.print(f"slimsweep: {said}", style="red", soft_wrap=True, markup=False)
        return 2 if about_input else 1


def is_about(problem: Exception, path: str) -> bool:
    """Whether an exception is the operating system's or a file system's, about a path or something in it."""
    if not isinstance(problem, OSError):
        return False
    if isinstance(problem.filename, str):
        return os.path.abspath(problem.filename).startswith(os.path.abspath(os.path.expanduser(path)))
    return path in str(problem)  # pyarrow names the path only in its text


def last_line(problem: BaseException) -> str:
    """The last line of an exception's traceback, such as `KeyError: 'lr'`."""
    return traceback.format_exception_only(problem)[-1].strip()


def written(text: str, log: Callable[[str], str] | None) -> str:
    """Write a traceback to the log, or to a temporary file where there is none or it cannot be written; returns where."""
    if log is not None:
        try:
            return log(text)
        except (OSError, ValueError):  # a run's folder that is full, or gone
            pass
    handle, path = tempfile.mkstemp(prefix="slimsweep-error-", suffix=".log")
    with os.fdopen(handle, "w") as file:
        file.write(text)
    return path
