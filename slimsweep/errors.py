"""slimsweep's exceptions, and how a command ends: its exit code, and the one sentence that it prints.

| exit code | what happened | what is printed |
| --- | --- | --- |
| 0 | success | |
| 1 | something failed: training, an export, a bug | one line; for a bug also the file that holds the whole traceback |
| 2 | the input was refused | one sentence that names the field, its value and the way out |
| 3 | another driver took over the run (`slimsweep.run`) | one sentence that says which, and when |
| 130 | a run was stopped (Ctrl-C, SIGTERM, a closed terminal; `slimsweep.run`) | one line that says how to go on |

Every module may import this one: it loads neither torch nor Ray.
"""

import os
import re
import tempfile
import traceback
from collections.abc import Callable, Collection, Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console


REFUSED = 2  # the exit code of refused input
LOST = 3  # the exit code of a driver whose run another driver took over
STOPPED = 130  # the exit code of a run that was stopped


class Flag:
    """What a signal's handler may set: threading.Event has a lock, on which a second signal would wait for ever."""

    def __init__(self) -> None:
        self._is_set = False

    def is_set(self) -> bool:
        """Whether it was set, and not cleared since."""
        return self._is_set

    def set(self) -> None:
        """From now on it is set."""
        self._is_set = True

    def clear(self) -> None:
        """From now on it is not."""
        self._is_set = False


stop_asked = Flag()  # a signal has told this process to stop: what fails from then on may fail because of it


class SlimsweepError(Exception):
    """Base class of slimsweep's errors; the text says what is wrong and what to do."""


class RefusedInput(SlimsweepError, ValueError):
    """Input that cannot work; the text names the field, its value and the way out. Commands exit with 2."""

    has_lines = False  # whether the text has a line for each of several refusals


class DamagedFile(RefusedInput):
    """A file of a run that was cut short or overwritten; the text names it, and says what is wrong with it."""


class ExportError(SlimsweepError, RuntimeError):
    """The model cannot be exported, or the export does not compute the same; no file is left."""


class StageFailed(SlimsweepError, RuntimeError):
    """Training failed on a worker; the text is the worker's error, without Ray's tracebacks."""


class ClusterFailed(SlimsweepError, RuntimeError):
    """Ray, or a part of its cluster, failed; the text says which, and what to do."""


class TrainingDiverged(SlimsweepError, RuntimeError):
    """The loss became NaN or infinite; the last checkpoint is from before that."""


class RunLost(SlimsweepError, RuntimeError):
    """Another driver took over the run: this one, and the workers and trials that it started, write nothing more to it."""


class OutOfTime(SlimsweepError):
    """resources.max_hours are over; the last checkpoint has all epochs that have ended."""


def reason_of(problem: OSError) -> str:
    """Why a file cannot be read or written, as the system says it, without what pyarrow adds."""
    return os.strerror(problem.errno) if problem.errno else " ".join(str(problem).split()) or type(problem).__name__


def causes(problem: BaseException) -> Iterator[BaseException]:
    """An exception and its causes, the outermost first: through Ray's wrappers and `raise ... from ...`."""
    seen: set[int] = set()
    current: BaseException | None = problem
    while current is not None and id(current) not in seen:
        seen.add(id(current))
        yield current
        current = wrapped(current) or current.__cause__


def wrapped(problem: BaseException) -> BaseException | None:
    """The worker's exception inside one of Ray's; None where there is none."""
    workers = list(getattr(problem, "worker_failures", {}).values())
    names = ("_base_exc", "cause", "controller_failure")
    inner = [*workers, *(getattr(problem, name, None) for name in names)]
    return next((one for one in inner if isinstance(one, BaseException)), None)


def explain(problem: BaseException | str, stage: str | None = None) -> str:
    """Why something failed, in one line: the worker's own error, without Ray's tracebacks. Several refusals have a line each.

    What slimsweep or Ray says is a sentence of its own; any other error begins with its type, such as `KeyError: 'lr'`.

    Args:
        problem: an exception, or the text of one, such as the error in a point's row.
        stage: dense, search or retrain, whose settings the sentence names if a GPU ran out of memory; None outside training.
    """
    if (said := memory_of_gpu(problem)) is not None:
        return out_of_gpu_memory(said, stage)
    if isinstance(problem, str):
        return problem
    problem = innermost(problem)
    if type(problem).__module__.partition(".")[0] == "ray":
        lines = str(problem).strip().splitlines() or [type(problem).__name__]
        return lines[0] if len(lines) == 1 else f"{lines[0]} ... {lines[-1]}"
    if isinstance(problem, RefusedInput) and problem.has_lines:
        return "\n".join(" ".join(line.split()) for line in str(problem).splitlines())
    said = " ".join(str(problem).split())
    return said if isinstance(problem, SlimsweepError) and said else f"{type(problem).__name__}: {said}".removesuffix(": ")


def innermost(problem: BaseException) -> BaseException:
    """The exception of a worker at the bottom of Ray's exceptions; an exception that carries none is its own."""
    while (inner := wrapped(problem)) is not None:
        problem = inner
    return problem


def is_foreseen(problem: BaseException) -> bool:
    """Whether an error says by itself what to do, so that nobody needs its traceback."""
    return isinstance(innermost(problem), SlimsweepError) or memory_of_gpu(problem) is not None


def explain_and_log(problem: BaseException, stage: str | None, log: Callable[[str], str] | None, hint: str = "") -> str:
    """`explain`, and for an error that nobody foresaw the file that its traceback is written to.

    Args:
        log: writes a traceback to a file and returns its path; without it, or if it fails, a temporary file is written.
        hint: said behind the file.
    """
    said = explain(problem, stage)
    if is_foreseen(problem):
        return said
    file = written("".join(traceback.format_exception(problem)), log)
    return f"{said} (the whole traceback {f'is in {file}' if file else 'could not be written to any file'}{hint})"


def memory_of_gpu(problem: BaseException | str) -> str | None:
    """torch's message that a GPU ran out of memory, also where it caused another exception; None for other errors."""
    if isinstance(problem, str):
        return problem if "CUDA out of memory" in problem else None
    for cause in causes(problem):
        # By name, since torch is not imported here. Ray has an OutOfMemoryError too, for the memory of a node.
        of_torch = type(cause).__name__ == "OutOfMemoryError" and type(cause).__module__.partition(".")[0] == "torch"
        if of_torch or "CUDA out of memory" in str(cause):
            return str(cause)
    return None


def out_of_gpu_memory(said: str, stage: str | None) -> str:
    """A sentence on which settings to change when a GPU ran out of memory.

    Args:
        said: torch's message, which says how much memory it asked for.
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
    """Run an action; if it fails, print one line that says why.

    Args:
        action: returns an exit code, or None for 0.
        console: where the line is printed.
        verbose: print the whole traceback, instead of writing it to a file.
        log: writes a traceback to a file and returns its path; without it, or if it fails, a temporary file is written.
        given: paths from the command line: an OSError about one of them counts as refused input.

    Returns:
        What the action returned; 2 if the input was refused, 3 if another driver took over the run, 1 if something else
        failed.
    """
    try:
        return action() or 0
    except Exception as problem:
        about = next((path for path in given if is_about(problem, path)), None)
        about_input = isinstance(problem, RefusedInput) or about is not None
        if verbose and console.is_terminal:
            console.print_exception()
        elif verbose:  # rich would break its lines, and paths in them
            console.print("".join(traceback.format_exception(problem)), soft_wrap=True, markup=False)
        if about is not None:
            reason = getattr(problem, "strerror", None) or explain(problem)
            said = f"{about} cannot be read or written ({reason}): give another path"
        elif verbose or about_input:
            said = explain(problem)
        else:
            said = explain_and_log(problem, None, log, hint="; --verbose shows it here")
        console.print(f"slimsweep: {said}", style="red", soft_wrap=True, markup=False)
        return REFUSED if about_input else LOST if isinstance(problem, RunLost) else 1


def is_about(problem: Exception, path: str) -> bool:
    """Whether an exception is an OSError about a path, or about something in it."""
    if not isinstance(problem, OSError):
        return False
    if isinstance(problem.filename, str):
        here, asked = os.path.abspath(problem.filename), os.path.abspath(os.path.expanduser(path))
        folder, name = os.path.split(asked)
        unfinished = os.path.join(folder, f".{name}.")  # a file is written under another name beside its own first
        return here == asked or here.startswith((f"{asked}/", unfinished))
    return path in str(problem)  # pyarrow has the path only in its message


def written(text: str, log: Callable[[str], str] | None) -> str | None:
    """Write a traceback to the log, or to a temporary file if there is no log or it cannot be written.

    Returns:
        The path; None where the disk of temporary files is full too.
    """
    if log is not None:
        try:
            return log(text)
        except (OSError, ValueError):  # a run's folder that is full, or gone
            pass
    try:
        handle, path = tempfile.mkstemp(prefix="slimsweep-error-", suffix=".log")
        with os.fdopen(
            handle, "w", encoding="utf-8", errors="backslashreplace"
        ) as file:  # it may name a file that is not UTF-8
            file.write(text)
    except OSError:
        return None
    return path
