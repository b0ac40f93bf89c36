"""A run folder, on a local path or on any file system that pyarrow knows (s3://, gs://, hdfs://).

Everything that outlives a process is read and written through here, and every file appears whole or not at all.
"""

import json
import os
import shutil
import tempfile
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow.fs as pafs

from slimsweep.errors import RefusedInput


def joined(uri: str, name: str) -> str:
    """The path or URI of something inside a folder; a URI's options stay at its end."""
    base, mark, options = uri.partition("?") if "://" in uri else (uri, "", "")
    return f"{base.rstrip('/')}/{name}{mark}{options}"


def parted(uri: str) -> tuple[str, str]:
    """(the folder, the name in it) of a path or URI: what `joined` puts together again."""
    path, mark, options = uri.partition("?") if "://" in uri else (uri, "", "")
    parent, _, name = path.rstrip("/").rpartition("/")
    return (parent or ("/" if path.startswith("/") else ".")) + mark + options, name


class Folder:
    """A folder and what lies below it; names inside it are relative and may not lead out of it.

    Args:
        uri: a local path or a URI that `pyarrow.fs` can open.

    Raises:
        ValueError: the URI's scheme is unknown.
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

    def __repr__(self) -> str:
        return f"Folder({self.uri!r})"

    def __truediv__(self, name: str) -> "Folder":
        self._full(name)
        return Folder(joined(self.uri, name))

    @property
    def is_local(self) -> bool:
        return isinstance(self._fs, pafs.LocalFileSystem)

    def _full(self, name: str) -> str:
        parts = name.split("/")
        if name.startswith("/") or ".." in parts:
            raise RefusedInput(f"{name!r} leads out of {self.uri}; names inside a run folder are relative")
        return f"{self._path}/{name}" if name else self._path

    def exists(self, name: str = "") -> bool:
        return self._fs.get_file_info(self._full(name)).type != pafs.FileType.NotFound

    def list(self, name: str = "") -> list[str]:
        """The names of the files and folders directly inside, sorted; empty where there is no such folder."""
        found = self._fs.get_file_info(pafs.FileSelector(self._full(name), allow_not_found=True))
        # A name that starts with a dot is a file still being written.
        return sorted(info.base_name for info in found if not info.base_name.startswith("."))

    def files(self, name: str) -> dict[str, tuple[int, int]]:
        """The files directly inside by name, each with what changes when it is written again: (bytes, mtime in ns)."""
        found = self._fs.get_file_info(pafs.FileSelector(self._full(name), allow_not_found=True))
        files = (info for info in found if info.type == pafs.FileType.File and not info.base_name.startswith("."))
        return {info.base_name: (int(info.size), int(info.mtime_ns or 0)) for info in files}

    def read_bytes(self, name: str) -> bytes:
        with self._fs.open_input_stream(self._full(name)) as stream:
            return stream.read()

    def read_json(self, name: str) -> Any:
        return json.loads(self.read_bytes(name))

    def write_bytes(self, name: str, data: bytes) -> None:
        """Write a file whole or not at all: a reader never sees half of it, and neither does the next start after a kill."""
        full = self._full(name)
        parent, _, base = full.rpartition("/")
        if not self.is_local:  # an object store shows an object only once it is complete
            with self._fs.open_output_stream(full) as stream:
                stream.write(data)
            return
        os.makedirs(parent, exist_ok=True)
        temporary = f"{parent}/.{base}.{uuid.uuid4().hex[:8]}"
        try:
            with open(temporary, "wb") as stream:
                stream.write(data)
                stream.flush()
                os.fsync(stream.fileno())
            os.replace(temporary, full)
        finally:
            if os.path.exists(temporary):
                os.remove(temporary)

    def write_json(self, name: str, value: Any) -> None:
        self.write_bytes(name, json.dumps(value, indent=1).encode())

    def append_line(self, name: str, line: str) -> None:
        """Add one line to a log; a single write of less than a page, so that lines of several processes do not mix."""
        if self.is_local:
            full = self._full(name)
            os.makedirs(os.path.dirname(full), exist_ok=True)
            with open(full, "ab", buffering=0) as stream:
                stream.write((line + "\n").encode())
        else:  # objects cannot grow: one object a line, in a folder of the log's name
            self.write_bytes(f"{name}.d/{uuid.uuid4().hex}", (line + "\n").encode())

    def read_lines(self, name: str) -> Sequence[str]:
        """The lines of a log, as `append_line` left them; none where there is no log."""
        if self.is_local:
            return self.read_bytes(name).decode().splitlines() if self.exists(name) else []
        return [self.read_bytes(f"{name}.d/{part}").decode().rstrip() for part in self.list(f"{name}.d")]

    def delete(self, name: str) -> None:
        """Remove a file or a folder with all below it; nothing happens where there is none."""
        info = self._fs.get_file_info(self._full(name))
        if info.type == pafs.FileType.Directory:
            self._fs.delete_dir(self._full(name))
        elif info.type == pafs.FileType.File:
            self._fs.delete_file(self._full(name))

    def upload(self, local: Path, name: str) -> None:
        """Copy a local folder's files to `name`, replacing it; on a local path the folder appears at once."""
        full = self._full(name)
        if self.is_local:
            parent, _, base = full.rpartition("/")
            os.makedirs(parent, exist_ok=True)
            temporary = f"{parent}/.{base}.{uuid.uuid4().hex[:8]}"
            os.mkdir(temporary)  # with the rights that the umask gives; those of a temporary folder are its owner's alone
            for file in local.iterdir():
                shutil.copyfile(file, f"{temporary}/{file.name}")
            shutil.rmtree(full, ignore_errors=True)
            os.replace(temporary, full)
        else:
            # config.json last: where it is, the model is whole.
            for file in sorted(local.iterdir(), key=lambda f: (f.name == "config.json", f.name)):
                self.write_bytes(f"{name}/{file.name}", file.read_bytes())

    @contextmanager
    def local(self) -> Iterator[Path]:
        """The folder as a local path: itself, or a temporary copy where it lies on an object store."""
        if self.is_local:
            yield Path(self._path)
            return
        with tempfile.TemporaryDirectory(prefix="slimsweep-") as folder:
            for file in self.list():
                Path(folder, file).write_bytes(self.read_bytes(file))
            yield Path(folder)
