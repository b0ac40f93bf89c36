"""Folders on a local path or on a file system that pyarrow knows (s3://, gs://, hdfs://).

Runs are read and written through `Folder`. Each file appears whole or not at all.
"""

import copy
import json
import os
import posixpath
import shutil
import tempfile
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow.fs as pafs

from slimsweep.errors import RefusedInput


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
        RefusedInput: the URI's scheme is unknown.
    """

    def __init__(self, uri: str | Path) -> None:
        text = str(uri)
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
        self._check: Callable[[], None] | None = None

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

    def _full(self, name: str) -> str:
        parts = name.split("/")
        if name.startswith("/") or ".." in parts:
            raise RefusedInput(f"{name!r} leads out of {self.uri}; names inside a run folder are relative")
        return f"{self._path}/{name}" if name else self._path

    def exists(self, name: str = "") -> bool:
        """Whether there is a file or folder of this name."""
        return self._fs.get_file_info(self._full(name)).type != pafs.FileType.NotFound

    def list(self, name: str = "") -> list[str]:
        """The names of the files and folders directly inside, sorted; empty where there is no such folder."""
        found = self._fs.get_file_info(pafs.FileSelector(self._full(name), allow_not_found=True))
        # A name that starts with a dot is that of a file still being written.
        return sorted(info.base_name for info in found if not info.base_name.startswith("."))

    @property
    def is_folder(self) -> bool:
        """Whether there is such a folder, and it is not a file."""
        return self._fs.get_file_info(self._path).type == pafs.FileType.Directory

    def files(self, name: str) -> dict[str, tuple[int, int]]:
        """The files directly inside: (bytes, time of the last change in ns) by name, which change when a file is rewritten."""
        found = self._fs.get_file_info(pafs.FileSelector(self._full(name), allow_not_found=True))
        files = (info for info in found if info.type == pafs.FileType.File and not info.base_name.startswith("."))
        return {info.base_name: (int(info.size), int(info.mtime_ns or 0)) for info in files}

    def read_bytes(self, name: str) -> bytes:
        """The content of a file.

        Raises:
            FileNotFoundError: there is no such file.
        """
        with self._fs.open_input_stream(self._full(name)) as stream:
            return stream.read()

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
            self._before_change()
            with self._fs.open_output_stream(full) as stream:
                stream.write(data)
            return
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
                stream.write((line + "\n").encode())
        else:  # objects cannot grow: one object per line, in a folder with the log's name
            name = f"{name}.d/{uuid.uuid4().hex}"
            self.write_bytes(name, (line + "\n").encode())
        return joined(self.uri, name)

    def read_lines(self, name: str) -> Sequence[str]:
        """The lines of a log that `append_line` wrote; empty where there is no log. On an object store they are in no order."""
        if self.is_local:
            return self.read_bytes(name).decode().splitlines() if self.exists(name) else []
        return [self.read_bytes(f"{name}.d/{part}").decode().rstrip() for part in self.list(f"{name}.d")]

    def delete(self, name: str) -> None:
        """Delete a file, or a folder with all below it; does nothing where there is none."""
        info = self._fs.get_file_info(self._full(name))
        if info.type != pafs.FileType.NotFound:
            self._before_change()
        if info.type == pafs.FileType.Directory:
            self._fs.delete_dir(self._full(name))
        elif info.type == pafs.FileType.File:
            self._fs.delete_file(self._full(name))

    def upload(self, local: Path, name: str, *, last: str) -> None:
        """Copy the files of a local folder to the folder `name`, which is replaced.

        On a local path the folder appears as a whole; on an object store its files appear one by one.

        Args:
            last: the file that is copied last: where it is, all files are.
        """
        full = self._full(name)
        if self.is_local:
            temporary = _temporary(full)
            os.mkdir(temporary)  # not by tempfile, whose folders only their owner may read
            for file in local.iterdir():
                shutil.copyfile(file, f"{temporary}/{file.name}")
            try:
                self._before_change()
                shutil.rmtree(full, ignore_errors=True)
                os.replace(temporary, full)
            finally:
                shutil.rmtree(temporary, ignore_errors=True)
        else:
            for file in sorted(local.iterdir(), key=lambda f: (f.name == last, f.name)):
                self.write_bytes(f"{name}/{file.name}", file.read_bytes())

    @contextmanager
    def local(self) -> Iterator[Path]:
        """The folder as a local path: itself, or a temporary copy of its files where it is on an object store."""
        if self.is_local:
            yield Path(self._path)
            return
        with tempfile.TemporaryDirectory(prefix="slimsweep-") as folder:
            for file in self.list():
                Path(folder, file).write_bytes(self.read_bytes(file))
            yield Path(folder)


def _temporary(full: str) -> str:
    """A name beside a local file or folder to write it under first; makes the folder around it."""
    parent, base = posixpath.split(full)
    os.makedirs(parent, exist_ok=True)
    return f"{parent}/.{base}.{uuid.uuid4().hex[:8]}"
