"""What a folder of images holds, for somebody who has no configuration yet: splits, classes, sizes and channels.

Files are listed as a sweep lists them (`slimsweep.data.folders`), so a folder that a sweep would refuse is refused here too.
Torch is not needed.
"""

import io
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from slimsweep.config import ConfigError
from slimsweep.data.damaged import UNREADABLE, printable, reason_of
from slimsweep.data.folders import (
    ImageFiles,
    Split,
    TarMember,
    few,
    is_hidden,
    is_tar,
    list_images,
    list_unlabelled,
)
from slimsweep.data.split_names import TEST_NAMES, TRAIN_NAMES, VAL_NAMES, split_of

SAMPLE = 64  # images whose sizes are looked at
GREY_MODES = ("1", "L", "LA", "La")  # and those of 16 bits


@dataclass(frozen=True, kw_only=True)
class Survey:
    """What a folder of images holds.

    Attributes:
        root: the folder.
        splits: the names of the folders or tar files of the splits, by train, val and test; empty where there are none.
        counts: images per split; of `train` alone where there are no splits.
        classes: training images per class, in the order of the classes; empty where images have no labels.
        width, height: medians over a sample of the training images, in pixels.
        grey: whether all images of the sample are grey.
        unreadable: why images of the sample cannot be read, by their names.
        notes: sentences on what is not used.
    """

    root: Path
    splits: dict[str, str]
    counts: dict[str, int]
    classes: dict[str, int]
    width: int
    height: int
    grey: bool
    unreadable: dict[str, str]
    notes: list[str]

    @property
    def images(self) -> int:
        """Of all splits together."""
        return sum(self.counts.values())


def survey(folder: Path, unlabelled: bool = False) -> Survey:
    """Look at a folder of images.

    Args:
        folder: with a folder per class; with folders or tar files of splits, and in each a folder per class; or with images
            that have no labels.
        unlabelled: take images at any depth, whatever folders they are in.

    Raises:
        ConfigError: no such folder, no images in it, or images and folders that do not fit together.
    """
    if not folder.is_dir():
        what = "is a file" if folder.exists() else "is not there"
        raise ConfigError(f"the folder {printable(str(folder))} {what}: give a folder of images")
    root = folder.resolve()
    try:
        places = _split_places(root)
        if not places:
            return _survey(root, {"train": root}, {}, unlabelled)
        return _survey(root, places, {split: _name_of(place) for split, place in places.items()}, unlabelled)
    except OSError as problem:
        raise ConfigError(f"{root} cannot be listed ({reason_of(problem)}): make it readable") from problem


def _survey(root: Path, places: dict[str, Path], names: dict[str, str], unlabelled: bool) -> Survey:
    train = _list(places["train"], names.get("train", root.name), None, unlabelled)
    labelled = bool(train.class_names)
    if labelled and names and not {"val", "test"} & names.keys():
        raise ConfigError(
            f"{root} has {names['train']} but neither validation nor test: move some images of each class to "
            f"{root / 'validation'}, or give {places['train']} itself, whose images are then divided"
        )
    counts, notes = {"train": len(train.files)}, list(train.notes)
    for split, place in places.items():
        if split != "train":
            found = _list(place, names[split], train.class_names if labelled else None, not labelled)
            counts[split] = len(found.files)
            notes += found.notes
    per_class = Counter(train.labels.tolist())
    classes = {name: per_class[number] for number, name in enumerate(train.class_names)}
    sizes, modes, unreadable = _sample(places["train"], train.files)
    if not sizes:
        name, reason = next(iter(unreadable.items()))
        raise ConfigError(
            f"none of {len(unreadable)} images of {root} can be read, such as {name} ({reason}): write them again"
        )
    width, height = (int(np.median(side)) for side in zip(*sizes, strict=True))
    return Survey(
        root=root,
        splits=names,
        counts=counts,
        classes=classes,
        width=width,
        height=height,
        grey=all(mode in GREY_MODES or mode.startswith("I;16") for mode in modes),
        unreadable=unreadable,
        notes=notes,
    )


def _split_places(root: Path) -> dict[str, Path]:
    """The folders or tar files of splits by train, val and test; empty where there is no training split."""
    found: dict[str, Path] = {}
    for path in sorted(root.iterdir()):
        if is_hidden(path.name) or not (path.is_dir() or is_tar(path.name)):
            continue
        for split, names in (("train", TRAIN_NAMES), ("val", VAL_NAMES), ("test", TEST_NAMES)):
            if _name_of(path).lower() in names:
                found.setdefault(split, path)
    if found and "train" not in found:
        there = few([path.name for path in found.values()])
        raise ConfigError(f"{root} has {there} but no train: put the training images into {root / 'train'}")
    return found


def _name_of(place: Path) -> str:
    return place.stem if is_tar(place.name) else place.name


def _list(place: Path, name: str, classes: list[str] | None, unlabelled: bool) -> ImageFiles:
    """The images of a split, or of a folder without splits: with labels where they lie in two class folders or more."""
    called = f"the {'split' if split_of(name) else 'folder'} {name}"
    split = Split(place=place, name=name, called=called)
    if unlabelled:
        return list_unlabelled(split)
    if classes is None and place.is_dir():
        found = list_unlabelled(split)
        if not any("/" in (file.name if isinstance(file, TarMember) else file) for file in found.files):
            tars = any(isinstance(file, TarMember) and file.tar for file in found.files)  # one per class
            return list_images(split) if tars else found
    advice = "; or, if folders are no classes, give --unlabelled" if classes is None else ""
    found = list_images(Split(place=place, name=name, called=called, advice=advice), classes)
    if classes is None and len(found.class_names) == 1:
        raise ConfigError(
            f"all images of {printable(str(place))} lie in one folder, {found.class_names[0]}, so there is nothing to tell "
            "apart: make a folder per class; or, if folders are no classes, give --unlabelled"
        )
    return found


def _sample(place: Path, files: Sequence[str] | Sequence[TarMember]) -> tuple[list[tuple[int, int]], list[str], dict[str, str]]:
    """((width, height) in pixels and Pillow's mode of some images, and why others cannot be read, by name)."""
    sizes, modes, unreadable = [], [], {}
    for index in np.unique(np.linspace(0, len(files) - 1, SAMPLE).round().astype(int)).tolist():
        file = files[index]
        name = printable(file.name if isinstance(file, TarMember) else file)
        try:
            with Image.open(_opened(place, file)) as image:  # reads the header alone
                sizes.append(image.size)
                modes.append(image.mode)
        except UNREADABLE as problem:
            unreadable[name] = reason_of(problem)
    return sizes, modes, unreadable


def _opened(place: Path, file: str | TarMember) -> str | io.BytesIO:
    if not isinstance(file, TarMember):
        return str(place / file)
    with open(place / file.tar if file.tar else place, "rb") as tar:
        tar.seek(file.offset)
        return io.BytesIO(tar.read(file.size))
