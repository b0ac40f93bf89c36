"""Folders on a local path or on a file system that pyarrow knows (s3://, gs://, hdfs://).

Runs are read and written through `Folder`. Each file appears whole or not at all.
"""

import copy
import json
import logging
import os
import posixpath
import shutil
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import pyarrow.fs as pafs

from slimsweep.errors import RefusedInput

log = logging.getLogger(__name__)

T = TypeVar("T")
Item = TypeVar("Item")

FIRST_PAUSE, LONGEST_PAUSE = 1.0, 60.0  # seconds between two tries at a store that fails
AT_ONCE = 8  # files of an object store that are asked for at the same time
PATIENCE = 1800.0  # seconds: credentials are renewed, and stores are back, within this time or by somebody's hand


def joined(uri: str, name: str) -> str:
    """The path or URI of `name` inside a folder; the options of a URI (after ?) stay at its end."""
    base, mark, options = uri.partition("?") if "://" in uri else (uri, "", "")
    return f"{base.rstrip('/')}/{name}{mark}{options}"


def parted(uri: str) -> tuple[str, str]:
    """(folder, name in it) of a path or URI; `joined` puts them together again."""
    path, mark, options = uri.partition("?") if "://" in uri else (uri, "", "")
    parent, name = posixpath.split(path.rstrip("/"))
    return (parent or ".") + mark + options, name


class Folder:
    """A folder and all below it. Names inside it are relative, with /; one that leads out of it raises RefusedInput.

    Args:
        uri: a local path or a URI that `pyarrow.fs` can open.

    Raises:
        RefusedInput: the URI's scheme is unknown, or the path is not UTF-8.
    """

    def __init__(self, uri: str | Path) -> None:
        text = str(uri)
        _refuse_unless_utf8(text if "://" in text else os.path.abspath(os.path.expanduser(text)))
        try:
            fs, path = (
                pafs.FileSystem.from_uri(text)
                if "://" in text
                else (pafs.LocalFileSystem(), os.path.abspath(os.path.expanduser(text)))
            )
        except Exception as problem:
            raise RefusedInput(
                f"cannot open {text!r} as a folder ({problem}); give a local path, s3://..., gs://... or hdfs://..."
            ) from problem
        self.uri = text.rstrip("/") if "://" in text else path
        self._fs = fs
        self._path = path
        self._patience = 0.0
        self._check: Callable[[], None] | None = None
        self._confines: str | None = None  # the path, without symbolic links, that nothing may lead out of

    def __repr__(self) -> str:
        return f"Folder({self.uri!r})"

    def __truediv__(self, name: str) -> "Folder":
        inner = copy.copy(self)  # on the same file system, which takes a while to find on some object stores
        inner._path, inner.uri = self._full(name), joined(self.uri, name)
        return inner

    def checked(self, check: Callable[[], None] | None) -> "Folder":
        """The same folder, and all below it, where `check` is called right before each change: one that raises prevents it.

        On a local path a new file is written beside its place first, and `check` is called before it is put there, so that
        next to no time is in between. On an object store it is called before the upload.
        """
        other = copy.copy(self)
        other._check = check
        return other

    def confined(self) -> "Folder":
        """The same folder, and all below it, where a symbolic link that leads out of it raises RefusedInput.

        For who shows to others what others again may write. Only files are read: a pipe, which never ends, is refused too. A
        link that is put in place between the look and the reading is not seen. Object stores have neither.
        """
        other = copy.copy(self)
        other._confines = os.path.realpath(self._path) if self.is_local else None
        return other

    def _before_change(self) -> None:
        if self._check is not None:
            self._check()

    @property
    def name(self) -> str:
        """The folder's own name, without those of the folders above it."""
        return parted(self.uri)[1]

    @property
    def is_local(self) -> bool:
        """Whether it is a local path."""
        return isinstance(self._fs, pafs.LocalFileSystem)

    def patient(self, seconds: float = PATIENCE) -> "Folder":
        """The same folder, which asks a store that fails again, with growing pauses, before it raises what the store said.

        For a run in its middle, which would lose its work to credentials that have expired. A local disk is asked once: one
        that is full does not become empty by waiting.

        Args:
            seconds: how long one call may take; 0 asks once.
        """
        other = copy.copy(self)
        other._patience = seconds
        return other

    def at_once(self) -> "Folder":
        """The same folder, which raises at the first failure."""
        return self.patient(0.0)

    def _ask(self, action: Callable[[], T]) -> T:
        """What `action` returns, tried again as `patient` says."""
        if self.is_local or not self._patience:
            return action()
        end, pause, said = time.monotonic() + self._patience, FIRST_PAUSE, False
        while True:
            try:
                found = action()
            except FileNotFoundError:  # an answer
                raise
            except OSError as problem:
                if time.monotonic() + pause > end:
                    raise
                if not said:
                    log.warning("%s fails (%s); trying again for %.0f minutes", self.uri, problem, self._patience / 60)
                said = True
            else:
                if said:
                    log.warning("%s works again", self.uri)
                return found
            time.sleep(pause)
            pause = min(2 * pause, LONGEST_PAUSE)

    def each(self, action: Callable[[Item], T], items: Iterable[Item]) -> list[T]:
        """What `action` returns for each item, in their order: several at a time on an object store, where each one waits.

        Raises:
            Exception: what `action` raises for the first item for which it raises something.
        """
        if self.is_local:
            return [action(item) for item in items]
        with ThreadPoolExecutor(AT_ONCE) as pool:
            return list(pool.map(action, items))

    def _info(self, full: str) -> pafs.FileInfo:
        return self._ask(lambda: self._fs.get_file_info(full))

    def _inside(self, full: str, recursive: bool = False) -> list[pafs.FileInfo]:
        selector = pafs.FileSelector(full, allow_not_found=True, recursive=recursive)
        return [info for info in self._ask(lambda: self._fs.get_file_info(selector)) if _has_a_name(info)]

    def _full(self, name: str) -> str:
        parts = name.split("/")
        if name.startswith("/") or ".." in parts:
            raise RefusedInput(f"{name!r} leads out of {self.uri}; names inside a run folder are relative")
        full = f"{self._path}/{name}" if name else self._path
        if self._confines is not None:
            real = os.path.realpath(full)
            if real != self._confines and not real.startswith(self._confines.rstrip("/") + "/"):
                raise RefusedInput(f"{full} leads out of {self._confines} by a symbolic link, and is not read")
        return full

    def _file(self, name: str) -> str:
        """The path of a file that is to be read."""
        full = self._full(name)
        if self._confines is not None and os.path.exists(full) and not os.path.isfile(full):
            raise RefusedInput(f"{full} is no file, and is not read")
        return full

    def exists(self, name: str = "") -> bool:
        """Whether there is a file or folder of this name."""
        return self._info(self._full(name)).type != pafs.FileType.NotFound

    def list(self, name: str = "") -> list[str]:
        """The names of the files and folders directly inside, sorted; empty where there is no such folder, or it is a file."""
        try:
            found = self._inside(self._full(name))
        except NotADirectoryError:  # an object store finds nothing there
            return []
        # A name that starts with a dot is that of a file still being written.
        return sorted(info.base_name for info in found if not info.base_name.startswith("."))

    @property
    def is_folder(self) -> bool:
        """Whether there is such a folder, and it is not a file."""
        return self._info(self._path).type == pafs.FileType.Directory

    def files(self, name: str, recursive: bool = False) -> dict[str, tuple[int, int]]:
        """The files directly inside: (bytes, time of the last change in ns) by name, which change when a file is rewritten.

        Args:
            recursive: those in the folders inside as well, by their path from here: one listing, however many there are.
        """
        full = self._full(name)
        found = self._inside(full, recursive)
        files = {info.path[len(full) :].lstrip("/"): info for info in found if info.type == pafs.FileType.File}
        visible = {path: info for path, info in files.items() if not any(part.startswith(".") for part in path.split("/"))}
        return {path: (int(info.size), int(info.mtime_ns or 0)) for path, info in visible.items()}

    def read_range(self, name: str, start: int, count: int) -> bytes:
        """`count` bytes of a file, or fewer where it ends before.

        Raises:
            FileNotFoundError: there is no such file.
        """

        def read() -> bytes:
            with self._fs.open_input_file(self._file(name)) as stream:
                return stream.read_at(count, start) if start < stream.size() else b""

        return self._ask(read)

    def size(self, name: str) -> int:
        """The bytes of a file.

        Raises:
            FileNotFoundError: there is no such file.
        """
        info = self._info(self._full(name))
        if info.type != pafs.FileType.File:
            raise FileNotFoundError(2, "No such file", joined(self.uri, name))
        return int(info.size)

    def read_bytes(self, name: str) -> bytes:
        """The content of a file.

        Raises:
            FileNotFoundError: there is no such file.
        """

        def read() -> bytes:
            with self._fs.open_input_stream(self._file(name)) as stream:
                return stream.read()

        return self._ask(read)

    def read_json(self, name: str) -> Any:
        """The content of a JSON file.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: it is not JSON.
        """
        return json.loads(self.read_bytes(name))

    def write_bytes(self, name: str, data: bytes) -> None:
        """Write a file, whole or not at all: neither a reader nor the next start after a kill sees half of it.

        Raises:
            OSError: it cannot be written.
        """
        full = self._full(name)
        if not self.is_local:  # an object store shows an object only once it is complete

            def write() -> None:
                self._before_change()
                with self._fs.open_output_stream(full) as stream:
                    stream.write(data)

            return self._ask(write)
        try:
            temporary = _temporary(full)
        except OSError as problem:
            raise OSError(problem.errno, problem.strerror, full) from problem
        try:
            with open(temporary, "wb") as stream:
                stream.write(data)
                stream.flush()
                os.fsync(stream.fileno())
            self._before_change()
            os.replace(temporary, full)
        except OSError as problem:  # under the name that people know
            raise OSError(problem.errno, problem.strerror, full) from problem
        finally:
            if os.path.exists(temporary):
                os.remove(temporary)

    def write_json(self, name: str, value: Any) -> None:
        """Write a JSON file, whole or not at all."""
        self.write_bytes(name, json.dumps(value, indent=1).encode())

    def append_line(self, name: str, line: str) -> str:
        """Add one line to a log, in a single write, so that lines of several processes do not mix.

        Returns:
            The path or URI of the file that holds it.
        """
        if self.is_local:
            full = self._full(name)
            os.makedirs(os.path.dirname(full), exist_ok=True)
            self._before_change()
            with open(full, "ab", buffering=0) as stream:
                stream.write(_encoded(line))
        else:  # objects cannot grow: one object per line, in a folder with the log's name
            name = f"{name}.d/{uuid.uuid4().hex}"
            self.write_bytes(name, _encoded(line))
        return joined(self.uri, name)

    def read_lines(self, name: str) -> Sequence[str]:
        """The lines of a log that `append_line` wrote; empty where there is no log. On an object store they are in no order."""
        if self.is_local:
            return self.read_bytes(name).decode(errors="replace").splitlines() if self.exists(name) else []
        parts = self.each(lambda part: self.read_bytes(f"{name}.d/{part}"), self.list(f"{name}.d"))
        return [part.decode(errors="replace").rstrip() for part in parts]

    def read_end(self, name: str, count: int) -> str:
        """The last `count` bytes of a log that `append_line` wrote, or all of it; empty where there is no log.

        On an object store: of what was added last. Stores tell seconds apart; of the same second it is any.
        """
        if not self.is_local:
            parts = self.files(f"{name}.d")
            name = f"{name}.d/{max(parts, key=lambda part: parts[part][1])}" if parts else name
        if not self.exists(name):
            return ""
        return self.read_range(name, max(0, self.size(name) - count), count).decode(errors="replace")

    def delete(self, name: str) -> None:
        """Delete a file, or a folder with all below it; does nothing where there is none."""
        full = self._full(name)
        remove = {pafs.FileType.Directory: self._fs.delete_dir, pafs.FileType.File: self._fs.delete_file}
        found = remove.get(self._info(full).type)
        if found is None:
            return

        def delete() -> None:
            self._before_change()
            found(full)

        self._ask(delete)

    def upload(self, local: Path, name: str, *, last: str) -> None:
        """Copy the files of a local folder to the folder `name`, which is replaced.

        On a local path the folder appears as a whole, and where that fails, the one that was there stays. On an object store
        its files appear one by one; `last` leaves first, so that it is never there beside files of another model.

        Args:
            last: the file that is copied last: where it is, all files are.

        Raises:
            OSError: it cannot be written.
        """
        full = self._full(name)
        if not self.is_local:
            self.delete(f"{name}/{last}")
            for file in sorted(local.iterdir(), key=lambda f: (f.name == last, f.name)):
                self.write_bytes(f"{name}/{file.name}", file.read_bytes())
            return
        temporary, old = _temporary(full), _temporary(full)
        try:
            os.mkdir(temporary)  # not by tempfile, whose folders only their owner may read
            for file in local.iterdir():
                shutil.copyfile(file, f"{temporary}/{file.name}")
                _sync(f"{temporary}/{file.name}")
            self._before_change()
            if os.path.exists(full):
                os.replace(full, old)
            try:
                os.replace(temporary, full)
            except BaseException:
                if os.path.exists(old):
                    os.replace(old, full)
                raise
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)

    @contextmanager
    def local(self) -> Iterator[Path]:
        """The folder as a local path: itself, or a temporary copy of its files where it is on an object store."""
        if self.is_local:
            yield Path(self._path)
            return
        with tempfile.TemporaryDirectory(prefix="slimsweep-") as folder:
            self.each(lambda file: Path(folder, file).write_bytes(self.read_bytes(file)), self.list())
            yield Path(folder)


def _refuse_unless_utf8(path: str) -> None:
    """Refuse a path that pyarrow, which takes names as UTF-8, cannot open, or that would be another one than Python's own."""
    try:
        same = "\0" not in path and path.encode() == (path.encode() if "://" in path else os.fsencode(path))
    except UnicodeEncodeError:
        same = False
    if same:
        return
    if (encoding := sys.getfilesystemencoding()) != "utf-8":
        raise RefusedInput(f"the path {path!r} cannot be opened where names of files are {encoding}: set PYTHONUTF8=1")
    raise RefusedInput(f"the path {path!r} is not UTF-8: give a folder whose name is, or a symbolic link to it")


def _has_a_name(info: pafs.FileInfo) -> bool:
    """Whether the name of a file is UTF-8. One that is not is none of slimsweep's (`_refuse_unless_utf8`)."""
    try:
        return bool(info.path)
    except UnicodeDecodeError:
        return False


def _encoded(line: str) -> bytes:
    """A line of a log as UTF-8; a file's name that is none, such as in a traceback, stays readable."""
    return (line + "\n").encode(errors="backslashreplace")


def _sync(full: str) -> None:
    """Have a file on the disk before its name counts."""
    with open(full, "rb") as file:
        os.fsync(file.fileno())


def _temporary(full: str) -> str:
    """A name beside a local file or folder to write it under first; makes the folder around it."""
    parent, base = posixpath.split(full)
    os.makedirs(parent, exist_ok=True)
    return f"{parent}/.{base}.{uuid.uuid4().hex[:8]}"
