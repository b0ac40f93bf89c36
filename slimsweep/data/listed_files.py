"""A CSV, TSV or Parquet file that lists images: a column of paths, one of labels, and where they are divided one of splits."""

import os
from collections import Counter
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from slimsweep.config import ConfigError
from slimsweep.data.damaged import reason_of
from slimsweep.data.folders import ImageFiles, few, natural_order
from slimsweep.data.readers import FolderImages

KINDS = ("csv", "tsv", "parquet")  # endings of such files
PATHS, LABELS, SPLIT = "path", "label", "split"  # columns, where the configuration names no others


class ListedImages(FolderImages):
    """Images that a file lists, with their paths below the file's folder or from the root.

    Args:
        listed: the file.
        splits: by each row's entry in its column `split`; None where it has none.
    """

    def __init__(self, listed: Path, found: ImageFiles, called: str, mode: str, splits: list[str] | None) -> None:
        super().__init__(str(listed.parent), found, called, mode)
        self.splits = splits

    def open(self, index: int) -> tuple[BinaryIO, Any]:
        return open(self.name(index), "rb"), self.found.labels[index]

    def name(self, index: int) -> str:
        return os.path.join(self.root, str(self.found.files[index]))


def is_list(path: Path) -> bool:
    """Whether a file's name says that it lists images."""
    return _kind(path) in KINDS


def _kind(path: Path) -> str:
    return path.suffix.lower().removeprefix(".")


def read_list(
    listed: Path, called: str, mode: str, path_key: str | None, label_key: str | None, labelled: bool
) -> ListedImages:
    """The images of a list.

    Args:
        listed: the file.
        called: what messages call the data set.
        mode: Pillow's mode of the images, L or RGB.
        path_key: data.image_key; None takes the column `path`.
        label_key: data.label_key; None takes the column `label`.
        labelled: whether labels are used.

    Raises:
        ConfigError: it cannot be read, has no such columns, or a row has no path, no label, a path that an earlier row has, or
            one where no file is.
    """
    table = _table(listed)
    columns = [str(name) for name in table.columns]
    wanted = {"data.image_key": path_key or PATHS} | ({"data.label_key": label_key or LABELS} if labelled else {})
    for field, column in wanted.items():
        if column not in columns:
            what = "paths" if field == "data.image_key" else "labels"
            raise ConfigError(
                f"{listed} has no column {column!r} for the {what}, it has {few(columns, 12)}: set {field} to one of them"
            )
    paths = _paths(table[path_key or PATHS].tolist(), listed, path_key or PATHS)
    classes: list[str] = []
    labels = np.zeros(len(paths), dtype=np.int64)
    if labelled:
        texts = _texts(table[label_key or LABELS].tolist(), listed, label_key or LABELS)
        classes = sorted(set(texts), key=natural_order)
        numbers = {name: number for number, name in enumerate(classes)}
        labels = np.array([numbers[text] for text in texts], dtype=np.int64)
    splits = _texts(table[SPLIT].tolist(), listed, SPLIT) if SPLIT in columns else None
    order = sorted(range(len(paths)), key=lambda row: natural_order(paths[row]))
    found = ImageFiles([paths[row] for row in order], labels[order], classes, {}, [])
    return ListedImages(listed, found, called, mode, None if splits is None else [splits[row] for row in order])


def _table(listed: Path) -> Any:
    """The file as a data frame; of a CSV all entries are texts."""
    import pandas as pd

    try:
        if _kind(listed) == "parquet":
            table = pd.read_parquet(listed)
        else:
            with open(listed, encoding="utf-8-sig") as file:
                header = file.readline()
            separator = "\t" if "\t" in header else ";" if ";" in header and "," not in header else ","
            table = pd.read_csv(listed, sep=separator, dtype=str, keep_default_na=False, encoding="utf-8-sig", index_col=False)
    except (OSError, ValueError) as problem:  # pandas' and pyarrow's own errors are ValueErrors
        raise ConfigError(f"data.root {str(listed)!r} cannot be read ({reason_of(problem)}): write it again") from problem
    if not len(table):
        raise ConfigError(f"data.root {str(listed)!r} lists no images: give it a row for each")
    return table


def _paths(stored: list[Any], listed: Path, column: str) -> list[str]:
    wrong = next((row for row, path in enumerate(stored) if not isinstance(path, str) or not path.strip()), None)
    if wrong is not None:
        inside = "; where the images themselves are in the file, set data.name to hfds/FOLDER" * isinstance(
            stored[wrong], dict | bytes
        )
        raise ConfigError(
            f"row {wrong + 1} of {listed} has no path in its column {column!r}: give the path of an image, from "
            f"{listed.parent} or absolute{inside}"
        )
    paths = [os.path.normpath(path.strip().replace("\\", "/")) for path in stored]
    times = Counter(paths)
    if twice := [path for path in times if times[path] > 1]:
        others = f" (and {len(twice) - 1} other files)" if len(twice) > 1 else ""
        raise ConfigError(
            f"{listed} names {twice[0]} {times[twice[0]]} times{others}, so that training and test might have it in common: "
            "leave one row for each image"
        )
    missing = [path for path in paths if not os.path.isfile(os.path.join(listed.parent, path))]
    if missing:
        more = f" (and {len(missing) - 1:,} more of {len(paths):,})" if len(missing) > 1 else ""
        raise ConfigError(
            f"{listed} names {missing[0]}{more}, which is not a file in {listed.parent}: fix the path, relative to that folder "
            "or absolute"
        )
    return paths


def _texts(stored: list[Any], listed: Path, column: str) -> list[str]:
    """The entries of a column as texts: whole numbers without a point."""
    texts = []
    for row, value in enumerate(stored):
        number = isinstance(value, float | np.floating)
        text = (
            str(int(value)) if number and float(value).is_integer() else "" if number or value is None else str(value).strip()
        )
        if not text:
            raise ConfigError(
                f"row {row + 1} of {listed} has no {column} ({value!r}): give one, or leave the row out"
                if column == SPLIT
                else f"row {row + 1} of {listed} has no label in its column {column!r} ({value!r}): give the class's name or "
                "number, or leave the row out"
            )
        texts.append(text)
    return texts
