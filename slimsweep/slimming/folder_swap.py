"""A model's folder is replaced whole or not at all.

Two files cannot be moved at once. So the old ones are kept under another name until both new ones are in place, and
config.json, without which nobody takes the folder for a model, leaves first and comes last.
"""

import contextlib
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

    Where the body raises, `folder` stays as it was. Files of other names in it are left alone in any case.

    Raises:
        RefusedInput: a ValueError: `folder` is a file.
    """
    if folder.exists() and not folder.is_dir():
        raise RefusedInput(f"{folder} is a file, so no model can be saved to it: give a folder")
    missing = [place for place in (folder, *folder.parents) if not place.exists()]
    for left in folder.glob(f"{SAVING}*"):  # of a process that was killed
        if time.time() - left.stat().st_mtime > OLD:
            shutil.rmtree(left, ignore_errors=True)
    mark = uuid.uuid4().hex[:8]
    beside = folder.parent / f".{folder.name}.{mark}" if missing else folder / f"{SAVING}{mark}"
    beside.mkdir(parents=True)
    try:
        yield beside
        for name in (WEIGHTS, CONFIG):
            with open(beside / name, "rb") as file:
                os.fsync(file.fileno())
        if missing:
            os.rename(beside, folder)
        else:
            _move_in(beside, folder)
    except BaseException:
        shutil.rmtree(beside, ignore_errors=True)
        for place in missing[1:]:
            with contextlib.suppress(OSError):  # somebody else uses it by now
                place.rmdir()
        raise
    shutil.rmtree(beside, ignore_errors=True)


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
