"""The fingerprint of the splits: by it, every process and every later start sees that it has the images of the first one.

Paths in it begin inside the data set, so that the data set may move, and only a few images are read for it.
"""

import hashlib
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
from torch import Tensor
from torch.utils.data import ConcatDataset, Subset, TensorDataset

from slimsweep.config import ConfigError
from slimsweep.data.damaged import UNREADABLE, DamagedImage
from slimsweep.data.images import ImageSet, ImageStream
from slimsweep.data.labels import per_image, spread
from slimsweep.data.looks import alike, look
from slimsweep.data.readers import decode

Fingerprint = dict[str, Any]  # JSON values

VERSION = 1
LOOKED_AT = 8  # images per split
COMPARED = 64  # images per data set that are compared to see whether two hold the same ones
FILE_LISTS = (
    *("samples", "imgs", "image_paths", "img_paths", "paths", "files", "filenames", "image_files"),
    *("_samples", "_image_files", "_images"),  # of torchvision's Food101, DTD, GTSRB, OxfordIIITPet and others
)


def fingerprint_of(splits: Mapping[str, ImageSet | ImageStream], num_classes: int, names: Sequence[str] | None) -> Fingerprint:
    """What can be told of the splits by reading a few images of each.

    Args:
        splits: by train, val and test.
        num_classes: number of classes.
        names: of the classes by number, where they are known.

    Returns:
        `version`; `classes`, a hash of their number and names; and `splits`: of each its number of `images`, hashes of `labels`
        and `order` (which images, in which order), and of some images label and look. What is not known is None.
    """
    known: dict[int, Any] = {}  # what training and validation have in common is looked at once
    found = {}
    for split, images in splits.items():
        if isinstance(images, ImageStream):
            found[split] = _of_stream(images)
            continue
        source = images.source
        if id(source) not in known:
            known[id(source)] = file_names(source)
        found[split] = _of_set(images, known[id(source)])
    classes = _hash([str(num_classes), *(names or ())])
    return {"version": VERSION, "classes": classes, "splits": found}


def _of_set(images: ImageSet, files: list[str] | None) -> Fingerprint:
    source: Any = images.source
    chosen = images.indices
    labels = source.known_labels
    places = chosen if files is not None else _base(source.dataset)[1][chosen]
    seen: list[dict[str, Any] | None] = []
    for item in spread(len(chosen), LOOKED_AT):
        try:
            image, label = source.image(int(chosen[item]))
        except DamagedImage:  # counted and named where it is used
            seen.append(None)
            continue
        seen.append({"image": item, "label": label, "look": None if source.draws else look(image)})
    return {
        "images": len(chosen),
        "labels": None if labels is None else _hash([np.ascontiguousarray(labels[chosen], dtype="<i8").tobytes()]),
        "order": _hash([np.ascontiguousarray(places, dtype="<i8").tobytes()] if files is None else [files[i] for i in places]),
        "some": seen,
    }


def _of_stream(images: ImageStream) -> Fingerprint:
    source = images.source
    urls = getattr(source, "urls", None)
    sizes = None
    if urls is not None and all(os.path.isfile(url) for url in urls):
        sizes = _hash([str(os.path.getsize(url)) for url in urls])
    seen: list[dict[str, Any] | None] = []
    for place, (_, stored, label) in enumerate(islice(images.part(0, 1, range(1)), LOOKED_AT)):  # of the first shard
        try:
            with source.open(stored) as file:
                seen.append({"image": place, "label": label, "look": look(decode(file, images.view.mode))})
        except UNREADABLE:  # counted and named where it is used
            seen.append(None)
    return {
        "images": len(images),
        "labels": None,
        "order": _hash([str(source.shards), *(url.rpartition("/")[2] for url in urls or ())]),
        "shards": sizes,
        "some": seen,
    }


def file_names(source: Any) -> list[str] | None:
    """The names of a split's files below the folder that holds them all, by index; None where it shows none."""
    found = _file_paths(source.dataset)
    if found is None:
        return None
    folder = _folder_of(found)
    return [path[len(folder) :] for path in found]


def _file_paths(dataset: Any) -> list[str] | None:
    if isinstance(dataset, Subset):
        inner = _file_paths(dataset.dataset)
        return None if inner is None else [inner[index] for index in dataset.indices]
    if isinstance(dataset, ConcatDataset):
        parts = [_file_paths(part) for part in dataset.datasets]
        return None if any(part is None for part in parts) else [path for part in parts for path in part or ()]
    for attribute in FILE_LISTS:
        listed = per_image(dataset, getattr(dataset, attribute, None))
        paths = [] if listed is None else [_path(entry) for entry in listed]
        if paths and all(path is not None for path in paths):
            return [path for path in paths if path is not None]
    return None


def _path(entry: Any) -> str | None:
    """The path of an entry in a list of files: a path, (path, label), or the members of tar files."""
    if isinstance(entry, tuple | list | np.ndarray) and len(entry) == 2 and isinstance(entry[0], str | os.PathLike):
        entry = entry[0]
    if isinstance(entry, str | os.PathLike):
        return os.fspath(entry) if isinstance(os.fspath(entry), str) else None
    if isinstance(entry, tuple | list | np.ndarray) and len(entry) == 3 and hasattr(entry[0], "name"):  # timm's, in tar files
        member, tar, inner = entry
        parts = (tar, inner.name if inner else None, member.name)
        return "/".join(part for part in parts if part).lstrip("/")  # no whole path: other tar files have the same ones
    return None


def _hash(parts: Iterable[str | bytes]) -> str:
    found = hashlib.sha256()
    for part in parts:
        content = part if isinstance(part, bytes) else part.encode(errors="surrogateescape")
        found.update(len(content).to_bytes(8, "little") + content)
    return found.hexdigest()[:16]


def difference(known: Fingerprint, found: Fingerprint) -> str | None:
    """In what two fingerprints differ first, as the end of a sentence; None where they agree in all that both hold.

    Args:
        known: the one that was recorded.
        found: the one of the data set as it is now.
    """
    if known.get("version") != found["version"]:
        return None  # of another version of slimsweep, which looked at other things
    for split, now in found["splits"].items():
        before = known["splits"].get(split)
        if before is None:
            continue
        if before["images"] != now["images"]:
            return f"the {split} split has {now['images']:,} images instead of {before['images']:,}"
        for part, said in (
            ("labels", "has other labels"),
            ("order", "consists of other images, or has them in another order"),
            ("shards", "has shards of other sizes"),
        ):
            if before.get(part) is not None and now.get(part) is not None and before[part] != now[part]:
                return f"the {split} split {said}"
        for one, other in zip(before["some"], now["some"], strict=False):
            if one is None or other is None:
                continue
            if one["label"] != other["label"]:
                return f"image {other['image']} of the {split} split has the label {other['label']} instead of {one['label']}"
            if one["look"] is not None and other["look"] is not None and not alike(one["look"], other["look"]):
                return f"image {other['image']} of the {split} split is another one"
    return "the classes are others" if known["classes"] != found["classes"] else None


def check_apart(splits: Mapping[str, Any], called: str) -> None:
    """Refuse splits that have images in common, as far as that is seen without reading images (`shared_images`).

    Args:
        splits: data sets by index, by train, val and test.
        called: what messages call the data set.

    Raises:
        ConfigError: names the splits, how many images they share, and one of them.
    """
    for one, other in (("train", "test"), ("val", "test"), ("train", "val")):
        common = shared_images(splits[one], splits[other]) if one in splits and other in splits else None
        if common is not None:
            way_out = "give each image to one split"
            if "val" in (one, other):
                way_out += "; where there is no validation split, " + ("let it be None" if ":" in called else "leave it out")
            raise ConfigError(
                f"the {one} and {other} splits of {called} have {common[0]:,} images in common, such as {common[1]}, so "
                f"that results on {other} would be of images known before: {way_out}"
            )


def shared_images(one: Any, other: Any) -> tuple[int, str] | None:
    """How many images two splits have in common, and what one of them is called; None where none is seen.

    Seen are files that hold one image each, and places in a data set that both are, or are made from (Subset, ConcatDataset).

    Args:
        one: a data set by index, as a function returned it or as a reader of files is.
        other: another one.
    """
    mine, theirs = _own_files(one), _own_files(other)
    if mine is not None and theirs is not None:
        if not (mine.folder.startswith(theirs.folder) or theirs.folder.startswith(mine.folder)):
            return None
        common = mine.real() & theirs.real()
        return (len(common), min(common)) if common else None
    found = [
        np.intersect1d(places, other_places)
        for base, places in _parts(one)
        for other_base, other_places in _parts(other)
        if _same_images(base, other_base)
    ]
    shared = [places for places in found if len(places)]
    return (sum(map(len, shared)), f"number {shared[0][0]}") if shared else None


@dataclass(frozen=True)
class _Files:
    """The files of a data set whose images have one file each, by whole paths."""

    paths: list[str]
    below: str  # the folder that holds all of them, as in `paths`
    folder: str  # the same without links: one split's folder may be a link to another's

    def real(self) -> set[str]:
        """The paths without links."""
        return {self.folder + path[len(self.below) :] for path in self.paths}


def _own_files(dataset: Any) -> _Files | None:
    paths = _file_paths(dataset)
    if not paths or not all(os.path.isabs(path) for path in paths) or len(set(paths)) < len(paths):
        return None
    below = _folder_of(paths)
    return _Files(paths, below, os.path.realpath(below))


def _folder_of(paths: list[str]) -> str:
    """The folder that holds all of some files."""
    first, last = min(paths), max(paths)  # what these two begin with, all do
    same = next((place for place, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), len(first))
    return first[:same].rpartition("/")[0]


def _base(dataset: Any) -> tuple[Any, np.ndarray]:
    """(the data set below all Subsets, for each image its place in that)."""
    places = np.arange(len(dataset))
    while isinstance(dataset, Subset):
        places = np.asarray([int(index) for index in dataset.indices], dtype=np.int64)[places]
        dataset = dataset.dataset
        places = np.where(places < 0, places + len(dataset), places)
    return dataset, places


def _parts(dataset: Any) -> list[tuple[Any, np.ndarray]]:
    """The data sets below all Subsets and ConcatDatasets, each with the places in it that are used."""
    base, places = _base(dataset)
    if not isinstance(base, ConcatDataset):
        return [(base, places)]
    found, start = [], 0
    for part, size in zip(base.datasets, np.diff(base.cumulative_sizes, prepend=0).tolist(), strict=True):
        inside = places[(places >= start) & (places < start + size)] - start
        found += _parts(Subset(part, inside.tolist()))
        start += size
    return found


def _same_images(one: Any, other: Any) -> bool:
    """Whether two data sets hold the same images by the same index: one object, or two objects over equal arrays."""
    if one is other:
        return True
    if type(one) is not type(other) or len(one) != len(other):
        return False
    first, second = (_array(dataset) for dataset in (one, other))
    if first is None or second is None or first.shape != second.shape:
        return False
    places = spread(len(first), COMPARED)
    first, second = np.asarray(first[places]), np.asarray(second[places])
    return bool(np.array_equal(first, second) and (first != first[:1]).any())  # images that are all alike say nothing


def _array(dataset: Any) -> Any:
    """The images of a data set as one array, as torchvision's CIFAR and MNIST and torch's TensorDataset hold them."""
    array = dataset.tensors[0] if isinstance(dataset, TensorDataset) else getattr(dataset, "data", None)
    return array if isinstance(array, np.ndarray | Tensor) and len(array) == len(dataset) else None
