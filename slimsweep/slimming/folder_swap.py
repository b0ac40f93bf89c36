"""A model's folder is replaced whole or not at all.

Two files cannot be moved at once. So the old ones are kept under another name until both new ones are in place, and
config.json, without which nobody takes the folder for a model, leaves first and comes last.
"""

import contextlib
import fcntl
import os
import shutil
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from slimsweep.errors import RefusedInput

CONFIG, WEIGHTS = "config.json", "model.safetensors"
REPLACED = ".replaced"  # the folder inside a model's folder that has the old files until the new ones are complete
SAVING = ".saving."  # begins the names of the folders in which new files are written
OLD = 24 * 3600  # seconds after which nobody writes to such a folder any more


@contextmanager
def replacing(folder: Path) -> Iterator[Path]:
    """An empty folder on the same file system, whose files replace those of `folder` at the end.

    Where the body raises, `folder` stays as it was. Files of other names in it are left alone in any case. Where several
    threads or processes do this at the same time, one after the other replaces the files, and those of the last one stay.

    Raises:
        RefusedInput: a ValueError: `folder` is a file, or no files can be written there.
    """
    if folder.is_symlink():  # of a folder that may not be there yet
        folder = Path(os.path.realpath(folder))
    _check_place(folder)
    missing = [place for place in (folder, *folder.parents) if not place.exists()]
    for left in folder.glob(f"{SAVING}*"):  # of a process that was killed
        with contextlib.suppress(FileNotFoundError):  # it is complete by now
            if time.time() - left.stat().st_mtime > OLD:
                shutil.rmtree(left, ignore_errors=True)
    mark = uuid.uuid4().hex[:8]
    beside = folder.parent / f".{folder.name}.{mark}" if missing else folder / f"{SAVING}{mark}"
    try:
        beside.mkdir(parents=True)
    except OSError as problem:
        raise RefusedInput(
            f"no model can be saved to {folder} ({problem.strerror or problem}): give a folder that you may write to"
        ) from problem
    try:
        yield beside
        for name in (WEIGHTS, CONFIG):
            with open(beside / name, "rb") as file:
                os.fsync(file.fileno())
        if not (missing and _renamed(beside, folder)):
            with _alone(folder):
                _move_in(beside, folder)
    except BaseException:
        shutil.rmtree(beside, ignore_errors=True)
        for place in missing[1:]:
            with contextlib.suppress(OSError):  # somebody else uses it by now
                place.rmdir()
        raise
    shutil.rmtree(beside, ignore_errors=True)


def _check_place(folder: Path) -> None:
    there = next(place for place in (folder, *folder.absolute().parents) if place.exists())
    if not there.is_dir():
        what = "it" if there == folder else folder
        raise RefusedInput(f"{there} is a file, so no model can be saved to {what}: give a folder")
    for name in (WEIGHTS, CONFIG):
        if (folder / name).is_dir():
            raise RefusedInput(f"{folder / name} is a folder, where the model's file has to be: give another folder")


def _renamed(beside: Path, folder: Path) -> bool:
    """Make the finished folder the one that was missing; False where somebody else made that one meanwhile."""
    try:
        os.rename(beside, folder)
    except OSError:
        if not folder.is_dir():
            raise
        return False
    return True


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """One thread and process at a time, by a lock on the folder itself, which leaves no file and ends with its process."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):  # file systems without locks on folders
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def _move_in(beside: Path, folder: Path) -> None:
    _settle(folder)
    old = folder / REPLACED
    present = [name for name in (WEIGHTS, CONFIG) if (folder / name).exists()]
    keeping = beside / "old"
    keeping.mkdir()
    for name in present:
        try:
            os.link(folder / name, keeping / name, follow_symlinks=False)
        except OSError:  # a file system without links
            shutil.copy2(folder / name, keeping / name)
    os.rename(keeping, old)
    try:
        (folder / CONFIG).unlink(missing_ok=True)
        os.replace(beside / WEIGHTS, folder / WEIGHTS)
        os.replace(beside / CONFIG, folder / CONFIG)
    except BaseException:
        (folder / CONFIG).unlink(missing_ok=True)
        if WEIGHTS not in present:
            (folder / WEIGHTS).unlink(missing_ok=True)
        _settle(folder)
        raise
    for file in beside.iterdir():  # others that were written along
        os.replace(file, folder / file.name)
    shutil.rmtree(old, ignore_errors=True)


def _settle(folder: Path) -> None:
    """End a replacement that was interrupted: the old files come back where the new ones are not complete."""
    old = folder / REPLACED
    if not (folder / CONFIG).exists():
        for name in (WEIGHTS, CONFIG):
            if (old / name).exists():
                os.replace(old / name, folder / name)
    shutil.rmtree(old, ignore_errors=True)


def complete_folder(folder: Path) -> Path:
    """Where the model of this folder is: in it, or, where its replacement was interrupted, the old one inside it."""
    old = folder / REPLACED
    return old if not (folder / CONFIG).exists() and (old / CONFIG).exists() else folder
