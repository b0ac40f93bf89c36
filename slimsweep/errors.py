"""What slimsweep raises, and how a command ends: the exit code, and the sentence that the person reads.

| exit code | what happened | what is shown |
| --- | --- | --- |
| 0 | all went well | |
| 1 | something failed: training, an export, a bug | one line; for a bug also the file that holds the whole traceback |
| 2 | the input was refused | one sentence that names the field, its value and the way out |

Light to import (no torch, no Ray): every other module may import it.
"""

import os
import tempfile
import traceback
from collections.abc import Callable, Collection, Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console

LOG = "errors.log"  # in a run's folder: the tracebacks of errors that are not about the input


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


def explain(problem: BaseException | str, stage: str = "retrain") -> str:
    """Why something failed, in one sentence: the worker's own reason, without the tracebacks that Ray puts around it.

    Args:
        problem: an exception, or the text of one, such as the error in a point's row.
        stage: dense, search or retrain: whose settings to change where a GPU's memory did not suffice.
    """
    if isinstance(problem, str):
        return gpu_memory(problem, stage) if "CUDA out of memory" in problem else problem
    for cause in causes(problem):
        # By name, as torch must not be imported here. Ray has a class of this name too, for the memory of a node.
        of_torch = type(cause).__name__ == "OutOfMemoryError" and type(cause).__module__.startswith("torch")
        if of_torch or "CUDA out of memory" in str(cause).partition("\n")[0]:
            return gpu_memory(str(cause), stage)
    while (inner := wrapped(problem)) is not None:
        problem = inner
    lines = str(problem).strip().splitlines() or [type(problem).__name__]
    return lines[0] if len(lines) == 1 else f"{lines[0]} ... {lines[-1]}"


def gpu_memory(said: str, stage: str) -> str:
    """What to change where a GPU's memory did not suffice.

    Args:
        said: torch's own text, which says how much it asked for.
    """
    start = said.find("Tried to allocate")
    tried = f" ({said[start:].partition('.')[0]}.{said[start:].partition('.')[2].partition('.')[0]})" if start >= 0 else ""
    return (
        f"out of GPU memory{tried}: raise {stage}.accumulate, which leaves the result as it is, set {stage}.amp to bf16 or "
        f"{stage}.grad_checkpointing to true, or lower data.batch_size; where workers share a GPU, raise "
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
        about_input = isinstance(problem, OSError) and any(path and path in str(problem) for path in given)
        refused = isinstance(problem, RefusedInput) or about_input
        if verbose:
            console.print_exception()
        said = explain(problem)
        if not isinstance(problem, SlimsweepError) and not about_input and not said.startswith("out of GPU memory"):
            said = last_line(problem)
            if not verbose:
                where = written("".join(traceback.format_exception(problem)), log)
                said += f" (the whole traceback is in {where}; --verbose shows it here)"
        console.print(f"slimsweep: {said}", style="red", soft_wrap=True, markup=False)
        return 2 if refused else 1


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
