"""Image folders without split folders, single tar files and lists of files: found, read, and divided into splits."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from slimsweep.config import Config, ConfigError, DataConfig
from slimsweep.data.damaged import printable, reason_of
from slimsweep.data.folders import (
    Split,
    TarMember,
    few,
    holds_tars,
    is_hidden,
    is_tar,
    list_images,
    list_unlabelled,
    natural_order,
    plain_order,
)
from slimsweep.data.listed_files import KINDS, SPLIT, ListedImages, is_list, read_list
from slimsweep.data.readers import FolderImages, TarImages
from slimsweep.data.split_names import FOLDER_NAMES, TRAIN_NAMES, split_of
from slimsweep.data.undivided import SPLITS, drawn_parts, how_divided, record_of_draw

CALLED = "the image folder"
NAMED = ("train_split", "val_split", "test_split")  # fields that name splits


def check_one_file(root: Path) -> None:
    """Refuse a file as data.root that is no tar file and no list of images, or that is one split among others.

    Raises:
        ConfigError: says what data.root may be.
    """
    if split_of(root.name.partition(".")[0]) and any(
        path != root and split_of(path.name.partition(".")[0]) for path in root.parent.iterdir()
    ):
        raise ConfigError(
            f"data.root is {str(root)!r}, which is one file for all splits, and other splits lie beside it: set data.root to "
            f"{root.parent}"
        )
    if not is_tar(root.name) and not is_list(root):
        raise ConfigError(
            f"data.root is {str(root)!r}, which is no folder here, no tar file with a folder per class and no list of images "
            f"({', '.join(KINDS)}): unpack it, and set data.root to the folder"
        )


def is_undivided(config: Config) -> bool:
    """Whether data.root is one file, or has class folders, and neither split folders nor what looks like some."""
    settings = config.data
    root = Path(settings.root or "").expanduser()
    if settings.name not in FOLDER_NAMES:
        return False
    if root.is_file():
        return True
    if settings.train_split not in TRAIN_NAMES or settings.val_split is not None or settings.test_split is not None:
        return False
    seen = [path for path in root.iterdir() if not is_hidden(path.name)]
    if any(split_of(path.name.partition(".")[0]) for path in seen):
        return False
    folders = [path for path in seen if path.is_dir()]
    inside = any(split_of(path.name) for folder in folders for path in folder.iterdir() if path.is_dir())
    return not inside and bool(folders or any(is_tar(path.name) for path in seen))


def check_split_used(config: Config) -> None:
    """Refuse data.split where the data set has its own splits, or its images have no labels.

    Raises:
        ConfigError: names data.split.
    """
    asked = config.data.split
    if asked == DataConfig().split or config.probe is not None:  # the probe's images may be those that are divided
        return
    if config.data.num_classes == 0:
        why = "images without labels are divided by data.val_share"
    elif config.data.name not in FOLDER_NAMES:
        why = f"{config.data.name} has splits of its own"
    elif not is_undivided(config):
        why = "data.root has folders for splits, or fields name some"
    else:
        return
    said = ",".join(f"{share:g}" for share in asked)
    raise ConfigError(f"data.split is {said}, but {why}: leave data.split out")


def undivided_source(config: Config, mode: str) -> FolderImages:
    """All images of data.root; where their splits are drawn or listed, its attribute `parts` has the indices of each.

    Args:
        mode: Pillow's mode of the images, L or RGB.

    Raises:
        ConfigError: something about the images or their classes does not fit.
    """
    assert config.data.root is not None  # check_data refuses it
    root, settings = Path(config.data.root).expanduser(), config.data
    labelled = settings.num_classes != 0
    for field in NAMED:
        value = getattr(settings, field)
        if value is not None and value not in TRAIN_NAMES:
            raise ConfigError(
                f"data.{field} is {value!r}, but data.root {str(root)!r} is one file, which has no folders for splits: leave "
                "it out"
            )
    if is_list(root) and root.is_file():
        source: FolderImages = read_list(root, CALLED, mode, settings.image_key, settings.label_key, labelled)
    else:
        source = _files(root, settings, mode, labelled)
    if not labelled:
        return source
    if isinstance(source, ListedImages) and source.splits is not None:
        source.parts = _listed_parts(source.splits, root)
        return source
    names = source.class_names or []
    if any(split_of(name) for name in names):
        raise ConfigError(
            f"the classes of {root} would be its folders {few(names)}, which are names of splits: unpack it, and set data.root "
            "to the folder that holds them"
        )
    source.parts = drawn_parts(_names_below(source), source.found.labels, names, settings.split, f"{CALLED} {root.name}")
    source.draw = record_of_draw(settings.split)
    source.notes.append(printable(how_divided(f"data.root ({root.name})", source.parts, len(names), settings.split)))
    return source


def _files(root: Path, settings: DataConfig, mode: str, labelled: bool) -> FolderImages:
    split = Split(place=root, name=root.name, called=CALLED)
    order = plain_order if settings.name.startswith("torch/") else natural_order
    try:
        found = list_images(split, None, order) if labelled else list_unlabelled(split)
        return (TarImages if holds_tars(root) else FolderImages)(str(root), found, CALLED, mode)
    except OSError as problem:
        raise ConfigError(
            f"{CALLED} cannot be listed ({reason_of(problem)}): make {root} readable, or fix data.root"
        ) from problem


def _names_below(source: FolderImages) -> list[str]:
    """The name of each image as its folder has it: the same in a tar file of the folder, and in one per class."""
    names = []
    files: Sequence[str | TarMember] = source.found.files
    for index, file in enumerate(files):
        path = "/".join(part for part in (Path(file.inner).stem, file.name) if part) if isinstance(file, TarMember) else file
        label = source.found.class_names[source.found.labels[index]]
        parts = [part for part in path.split("/") if part != "."]
        inside = parts[parts.index(label) + 1 :] if label in parts[:-1] else parts
        names.append(path if isinstance(source, ListedImages) else "/".join([label, *inside]))
    return names


def _listed_parts(words: list[str], listed: Path) -> dict[str, np.ndarray]:
    """The indices of each split by a list's own column; without test images those for validation are for test."""
    places: dict[str, Any] = {split: [] for split in SPLITS}
    for index, word in enumerate(words):
        split = split_of(word)
        if split is None:
            raise ConfigError(
                f"the column {SPLIT!r} of {listed} holds {word!r}, which is none of train, validation and test: write one of "
                "them, or rename the column to let data.split divide the images"
            )
        places[split].append(index)
    if not places["test"]:
        places["test"], places["val"] = places["val"], []
    if not places["train"] or not places["test"]:
        raise ConfigError(
            f"the column {SPLIT!r} of {listed} names no images for {'train' if not places['train'] else 'validation or test'}: "
            "name some, or rename the column to let data.split divide the images"
        )
    return {split: np.array(found, dtype=np.int64) for split, found in places.items() if found}
