"""Tables and words for a terminal or a log, and output that work does not depend on."""

import atexit
import contextlib
import errno
import io
import os
import select
import stat
import sys
import threading
import time
from collections.abc import Sequence
from copy import copy
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn

from rich.console import Console, ConsoleOptions, JustifyMethod, RenderableType, RenderResult
from rich.measure import Measurement
from rich.style import Style
from rich.table import Table
from rich.text import Text


def counted(number: int, thing: str) -> str:
    """A number of things: "1 thread", "2 threads"."""
    return f"{number} {thing}" if number == 1 else f"{number} {thing}s"


# What is printed. Names and paths stay whole, so that they can be found and copied: a narrow window wraps the line itself.

WIDEST = 1_000_000  # columns: more than any table has


def plain_console(stderr: bool = False) -> Console:
    """A console that prints text as it is: nothing in a path or a name is read as markup, an emoji or a number to colour."""
    return Console(highlight=False, markup=False, emoji=False, stderr=stderr)


def say(console: Console, text: str, style: str | None = None) -> None:
    """Print text on one line, without wrapping and without rich's markup."""
    console.print(text, style=style, soft_wrap=True, markup=False, emoji=False)


def show_whole(console: Console, table: Table) -> None:
    """Print a table as wide as it is, with its title on a line of its own."""
    console.print(_Whole(table), crop=False, soft_wrap=True)


NARROWEST_NOTE = 16  # columns of a note that wraps, beside columns that do not


def show_fitting(console: Console, table: Table, drop: Sequence[str] = (), wraps: str | None = None) -> None:
    """Print a table so that names and numbers stay whole: in a narrow terminal the less important columns are left out.

    A log or a pipe gets the whole table.

    Args:
        drop: headings of the columns that may be left out, the least important first.
        wraps: heading of the column whose text may wrap at its words.
    """
    if not console.is_terminal:
        show_whole(console, table)
        return
    left_out: list[str] = []
    while (width := _width(console, shown := _without(table, left_out), wraps)) > console.width:
        more = next((heading for heading in drop if heading not in left_out and _has(table, heading)), None)
        if more is None:
            break
        left_out.append(more)
    for column in shown.columns:
        column.no_wrap = column.header != wraps
    fit = width <= console.width
    console.print(_Whole(shown, console.width if fit else WIDEST), crop=False, soft_wrap=not fit)
    if left_out:
        say(console, f"A wider window also shows: {', '.join(left_out)}.", "dim")


def _has(table: Table, heading: str) -> bool:
    return any(column.header == heading for column in table.columns)


def _without(table: Table, headings: Sequence[str]) -> Table:
    """A copy of a table without some of its columns."""
    found = copy(table)
    kept = [column for column in table.columns if column.header not in headings]
    found.columns = [replace(column, _index=index) for index, column in enumerate(kept)]
    return found


def _width(console: Console, table: Table, wraps: str | None) -> int:
    """Columns of the terminal that a table needs: its own width, but no more than it must for the column that wraps."""
    whole = _without(table, [] if wraps is None else [wraps])
    whole.title = None
    width = Measurement.get(console, console.options.update(max_width=WIDEST), whole).maximum
    return width + (NARROWEST_NOTE if wraps is not None and _has(table, wraps) else 0)


def say_path(console: Console, label: str, uri: str) -> None:
    """Print a file's path on one line; in a terminal a local one can be clicked."""
    link = Path(uri).absolute().as_uri() if console.is_terminal and "://" not in uri else None
    console.print(Text.assemble(label, (uri, Style(link=link))), soft_wrap=True)


class _Whole:
    """A table that is drawn as wide as it is, and not as wide as the terminal.

    Args:
        width: at which its text wraps.
    """

    def __init__(self, table: Table, width: int = WIDEST) -> None:
        self.table, self.title, self.width = copy(table), table.title, width
        self.table.title = None
        if width == WIDEST:  # nothing wraps there, and to look for it takes long in a table of thousands of rows
            self.table.columns = [replace(column, no_wrap=True) for column in table.columns]

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        if self.title:
            title = self.title if isinstance(self.title, Text) else Text(str(self.title), style=self.table.title_style or "")
            yield Text.assemble(title, no_wrap=True, overflow="ignore")  # with the line's end
        yield from console.render(self.table, options.update(width=self.width))  # it takes no more than it needs


def plain_table(title: str, columns: Sequence[tuple[str, JustifyMethod]]) -> Table:
    """An empty table without lines, with its title in bold above.

    Args:
        columns: (heading, alignment) of each column.
    """
    table = Table(title=Text(title, style="bold") if title else None, title_justify="left", box=None, pad_edge=False)
    table.padding = (0, 2, 0, 0)
    for name, justify in columns:
        table.add_column(name, justify=justify, overflow="fold")  # what does not fit wraps and stays whole
    return table


def fits(console: Console, renderable: RenderableType) -> bool:
    """Whether something can be drawn in the console's width without breaking a word."""
    return Measurement.get(console, console.options.update(max_width=WIDEST), renderable).minimum <= console.width


# Output is not work: a terminal that was closed, a full disk under a log or a reader that has ended must not end a run.

PATIENCE_SECONDS = 5.0  # that a run waits for a reader who does not read, before it drops what it would have said
GONE = (errno.EPIPE, errno.EIO, errno.ENXIO, errno.EBADF)  # nobody will read this stream again, unless it is a file


class Output(io.RawIOBase):
    """Standard output or standard error that takes everything, also what cannot be written; `problem` says why it could not.

    Everything that a process prints goes through it: rich, logging, warnings, Ray, and Python's own flush at the exit, which
    would turn the exit code into 120.

    Args:
        descriptor: of the open file.
        patience: seconds to wait for a reader who does not read; without it as long as that takes.
        told: another stream, which is told once that this one fails.
    """

    def __init__(self, descriptor: int, patience: float | None = None, told: "Output | None" = None) -> None:
        self.descriptor, self.patience, self.told = descriptor, patience, told
        self.target = descriptor  # where it is written to
        self.problem: OSError | None = None  # the first one
        self.lost = 0  # bytes since the last that could be written

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return self.descriptor

    def isatty(self) -> bool:
        return os.isatty(self.descriptor)

    def wait_for_readers(self, patience: float | None) -> None:
        """Set `patience`."""
        self.patience = patience
        if patience is not None and self.target == self.descriptor and self.isatty():
            # A write to a terminal that was stopped (Ctrl-S) waits. Non-blocking is what an opening is, not a terminal: other
            # processes share the opening that this process was started with, so take one of its own.
            with contextlib.suppress(OSError):  # a terminal of another user: then it is written to as it is
                self.target = os.open(os.ttyname(self.descriptor), os.O_WRONLY | os.O_NOCTTY | os.O_NONBLOCK | os.O_CLOEXEC)

    def write(self, data: Any) -> int:
        """Write all of `data`, or note why it cannot be written; returns its length in bytes."""
        view = memoryview(data).cast("B")
        size = left = len(view)
        try:
            if self.lost:
                self._write_all(f"\n[{self.lost} bytes of output were lost here: {_reason(self.problem)}]\n".encode())
                self.lost = 0
            while left:
                left -= self._write_some(view[size - left :])
        except OSError as problem:
            self.lost += left
            self._note(problem)
        return size

    def _write_all(self, data: bytes) -> None:
        while data:
            data = data[self._write_some(data) :]

    def _write_some(self, data: Any) -> int:
        """The number of bytes that were written, at least one.

        Raises:
            OSError: nothing can be written.
        """
        end = None if self.patience is None else time.monotonic() + (0 if self.lost else self.patience)
        while True:
            if end is not None or not os.get_blocking(self.target):
                poll = select.poll()
                poll.register(self.target, select.POLLOUT)
                if not poll.poll(None if end is None else max(0, int(1000 * (end - time.monotonic())))):
                    raise TimeoutError(errno.ETIMEDOUT, "its reader does not read")
            try:
                # What a pipe that is ready takes without waiting.
                return os.write(self.target, data if end is None else data[: select.PIPE_BUF])
            except BlockingIOError:  # another process made it non-blocking, or filled it first
                time.sleep(0.01)

    def _note(self, problem: OSError) -> None:
        first, self.problem = self.problem is None, self.problem or problem
        if first and self.told is not None:
            line = f"slimsweep: standard output cannot be written ({_reason(problem)}); the run goes on\n"
            self.told.write(line.encode())  # which may have the same fault
        if problem.errno in GONE and not _is_file(self.descriptor):
            # Also for what writes to the descriptor itself: code in C, and streams that were made before this one.
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self.descriptor)
            os.close(nowhere)
            if self.target != self.descriptor:
                os.close(self.target)
                self.target = self.descriptor


def outlive_output(work_goes_on: bool) -> None:
    """Make the process's standard output and error streams that cannot fail (`Output`).

    Streams that somebody else put in their place, such as a notebook or a test, stay.

    Args:
        work_goes_on: whether the process has work to do that output must not hold up: it does not wait for readers then, and
            says on standard error that standard output cannot be written.
    """
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass  # a standard stream was closed: the next file that is opened must not get its number, and what is printed
    os.close(descriptor)
    for name, descriptor in (("stdout", 1), ("stderr", 2)):
        stream: Any = getattr(sys, name)
        if stream is not getattr(sys, f"__{name}__"):
            continue
        known = output_of(stream)
        if known is None:
            known = Output(descriptor if stream is None else stream.fileno())
            if stream is None and not work_goes_on:  # what it prints is its result
                known.problem = OSError(errno.EBADF, os.strerror(errno.EBADF))
            if stream is not None:
                with contextlib.suppress(OSError):  # what was printed before cannot be written: the next line notes why
                    stream.flush()
            direct = stream is not None and stream.write_through  # python -u
            again = io.TextIOWrapper(
                known if direct else io.BufferedWriter(known),  # type: ignore[type-var]  # io's own create_stdio does the same
                encoding=stream.encoding if stream is not None else "utf-8",
                # A character that the terminal's encoding lacks is no reason to stop either.
                errors="backslashreplace" if stream is None or stream.errors == "strict" else stream.errors,
                line_buffering=stream is None or stream.line_buffering,
                write_through=direct,
            )
            setattr(sys, name, again)
            setattr(sys, f"__{name}__", again)
        known.wait_for_readers(PATIENCE_SECONDS if work_goes_on else None)
        known.told = None
    if (output := output_of(sys.stdout)) is not None and work_goes_on:
        output.told = output_of(sys.stderr)


def output_of(stream: Any) -> Output | None:
    """The `Output` that a text stream writes to; None for any other stream."""
    buffer = getattr(stream, "buffer", None)
    raw = buffer if isinstance(buffer, Output) else getattr(buffer, "raw", None)
    return raw if isinstance(raw, Output) else None


def code_after_output(code: int) -> int:
    """The exit code of a command whose output is its result: 1 where that could not be written, which standard error says.

    A reader who has seen enough (`| head`) is no failure.
    """
    if (output := output_of(sys.stdout)) is None:
        return code
    sys.stdout.flush()
    if output.problem is None or output.problem.errno == errno.EPIPE:
        return code
    print(f"slimsweep: the output cannot be written ({_reason(output.problem)}): give another file", file=sys.stderr)
    return code or 1


def _reason(problem: OSError | None) -> str:
    return (problem.strerror if problem is not None else None) or str(problem)


def _is_file(descriptor: int) -> bool:
    try:
        return stat.S_ISREG(os.fstat(descriptor).st_mode)
    except OSError:  # closed: there is nothing that could be written later
        return False


def end_command(code: int) -> NoReturn:
    """End this process as `sys.exit` does, but leave the modules of large libraries as they are.

    Python takes them apart, which with torch takes two seconds. Threads are waited for, unless a signal interrupts it, and what
    was registered with `atexit` is called.
    """
    if not {"pandas", "torch"} & sys.modules.keys():
        sys.exit(code)
    with contextlib.suppress(KeyboardInterrupt):
        threading._shutdown()  # type: ignore[attr-defined]  # Python calls both by these names when it ends
    atexit._run_exitfuncs()
    end_process(code)


def end_process(code: int) -> NoReturn:
    """End with an exit code, and what was printed."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):  # a pipe that nobody reads, or a stream that is closed
            stream.flush()
    os._exit(code)
