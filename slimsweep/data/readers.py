"""Stored images: a split with random access (`Source`), or as shards that are streamed (`Shards`), one class per format."""

import io
import json
import os
import tarfile
import traceback
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from functools import cached_property
from typing import Any, BinaryIO, Protocol, cast

import numpy as np
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from slimsweep.config import ConfigError
from slimsweep.data.class_names import class_names_of, names_below
from slimsweep.data.damaged import UNREADABLE, DamagedImage, named, reason_of
from slimsweep.data.folders import ImageFiles, TarMember, image_endings
from slimsweep.data.labels import class_number, image_and_label, label_groups, numbers_of, spread, verified_labels
from slimsweep.data.looks import looks_drawn
from slimsweep.data.pixels import in_mode
from slimsweep.errors import SlimsweepError

PROBED = 4  # images that are read to see whether a data set draws random numbers


class Source(Protocol):
    """A split as it is stored, with random access to its images, which are not transformed yet."""

    class_names: list[str] | None
    labels: np.ndarray | None  # (images,): what validation is split off by, so that each class keeps its share

    @property
    def draws(self) -> bool:
        """Whether it draws random numbers for its images."""
        ...

    @property
    def known_labels(self) -> np.ndarray | None:
        """(images,): the class numbers, where they are known without reading all images."""
        ...

    def __len__(self) -> int: ...

    def image(self, index: int) -> tuple[Image.Image | Tensor, int]:
        """One image and its label.

        Raises:
            DamagedImage: it cannot be read.
        """
        ...

    def name(self, index: int) -> str:
        """What an image is called in a message."""
        ...


class Shards(Protocol):
    """A split as it is streamed: some shards, each read from its beginning."""

    class_names: list[str] | None
    images: int  # in all shards together
    shards: int

    def read(self, shard: int) -> Iterator[tuple[str, Any, int]]:
        """Name, image as `open` takes it, and label of all images of a shard, in their order.

        Raises:
            ConfigError: the shard cannot be read to its end, or something in it is not an image with a label.
        """
        ...

    def open(self, stored: Any) -> BinaryIO:
        """An image's file; raises OSError where it is not there."""
        ...


class DataSetError(SlimsweepError):
    """A data set's own code failed at an image; the text names the data set, the split, the index and the line."""


class IndexedImages:
    """A data set of (image, label) by index, such as a user's function or torchvision gives.

    Args:
        dataset: `classes` and `targets` are used where it has them.
        called: what messages call it.
        num_classes: data.num_classes. Subsets of fewer classes than what they are made from have other names. With 0, labels
            are not looked at, and what is given by index may be the image alone.

    Raises:
        ConfigError: the names of its classes contradict each other.
    """

    users_code = True  # images and labels are made by code that is not slimsweep's, such as a user's

    def __init__(self, dataset: Any, called: str, num_classes: int | None = None) -> None:
        self.dataset = dataset
        self.called = called
        self.labelled = num_classes != 0
        self.labels: np.ndarray | None = None
        self.class_names: list[str] | None = None
        if not self.labelled:
            return
        self.class_names = class_names_of(dataset, called)
        if self.class_names is None:  # names of a larger set tell nothing where fewer are asked for
            below = names_below(dataset, called)
            self.class_names = below if below and num_classes in (None, len(below)) else None
        self.labels = label_groups(dataset)

    def __len__(self) -> int:
        return len(self.dataset)

    def image(self, index: int) -> tuple[Image.Image | Tensor, int]:
        with named(lambda: self.name(index)):
            item = self._stored(index)
        if not self.labelled:
            image, label = item[0] if isinstance(item, tuple | list) and item else item, 0
        else:
            image, label = image_and_label(item, f"image {index} of {self.called}")
        if isinstance(image, Image.Image):
            with named(lambda: self.name(index)):
                image.load()  # Pillow decodes a picture that was only opened when its pixels are asked for
        return image, class_number(label, f"image {index} of {self.called}", self.class_names)

    @cached_property
    def known_labels(self) -> np.ndarray | None:
        """(images,): the class numbers, where they are known without reading all images.

        Raises:
            ConfigError: a label that is no whole number.
        """
        if not self.labelled:
            return None
        if self.users_code:
            return verified_labels(self.dataset, self.called, self.class_names, self._stored)
        return None if self.labels is None else numbers_of(self.labels, self.called)

    @cached_property
    def draws(self) -> bool:
        """Whether the data set draws random numbers for its images, as one with an augmentation of its own does."""
        for index in spread(len(self), PROBED) if self.users_code else ():
            try:
                if looks_drawn(lambda place=index: self.image(place)[0])[1]:  # type: ignore[misc]
                    return True
            except DamagedImage:  # counted and named where it is used
                continue
        return False

    def name(self, index: int) -> str:
        """What an image is called in a message: its file where that is known."""
        files = getattr(self.dataset, "samples", None)
        entry = files[index] if isinstance(files, list) and index < len(files) else None
        if isinstance(entry, tuple) and isinstance(entry[0], (str, os.PathLike)):
            return str(entry[0])
        return f"{index} of {self.called}"

    def _stored(self, index: int) -> Any:
        """What the data set has at an index.

        Raises:
            DataSetError: a fault in its code; what it raises for a damaged image (UNREADABLE) is passed on.
        """
        try:
            return self.dataset[index]
        except (*UNREADABLE, SlimsweepError, MemoryError):
            raise
        except Exception as problem:
            frames = traceback.extract_tb(problem.__traceback__)
            if isinstance(problem, RuntimeError) and any("torchvision/io" in frame.filename for frame in frames):
                raise OSError(reason_of(problem)) from problem  # what torchvision's own decoders raise
            raise DataSetError(
                f"image {index} of {self.called} cannot be read: its data set raised {said_with_line(problem)}: "
                "fix that line, or what it reads"
            ) from problem


def said_with_line(problem: Exception) -> str:
    """What an exception of the user's code says, and the line that raised it."""
    if isinstance(problem, SyntaxError):
        return f"{type(problem).__name__}: {problem.msg} ({problem.filename}, line {problem.lineno})"
    last = traceback.extract_tb(problem.__traceback__)[-1]
    return f"{type(problem).__name__}: {reason_of(problem)} ({last.filename}, line {last.lineno})"


class StoredImages(IndexedImages, ABC):
    """Images that are stored as files, of some kind.

    Args:
        called: what messages call it.
        mode: Pillow's mode of the images, L or RGB.
    """

    users_code = False
    labelled = True

    def __init__(self, called: str, mode: str) -> None:
        self.called = called
        self.mode = mode

    @abstractmethod
    def open(self, index: int) -> tuple[BinaryIO, Any]:
        """An image's file and its label; raises one of UNREADABLE."""

    @abstractmethod
    def name(self, index: int) -> str:
        """What an image is called in a message."""

    def image(self, index: int) -> tuple[Image.Image | Tensor, int]:
        with named(lambda: self.name(index)):
            stored, label = self.open(index)
            with stored:
                image = decode(stored, self.mode)
        return image, label_number(label, self.called)


class FolderImages(StoredImages):
    """Images in a folder, with a folder per class where labels are used.

    Args:
        root: the split's folder.
        found: what it holds.
    """

    def __init__(self, root: str, found: ImageFiles, called: str, mode: str) -> None:
        super().__init__(called, mode)
        self.dataset = self  # it holds its images itself
        self.root = root
        self.found = found
        self.labelled = bool(found.class_names)
        self.class_names = found.class_names or None
        self.labels = found.labels if self.labelled else None
        self.notes = found.notes
        self.parts: dict[str, np.ndarray] | None = None  # the indices of each split, where all splits are of this one source
        self.draw: dict[str, Any] | None = None  # how they were drawn

    def __len__(self) -> int:
        return len(self.found.files)

    @property
    def files(self) -> list[str]:
        """The whole path of each image."""
        return [self.name(index) for index in range(len(self))]

    def open(self, index: int) -> tuple[BinaryIO, Any]:
        return open(self.name(index), "rb"), self.found.labels[index]

    def name(self, index: int) -> str:
        return f"{self.root}/{self.found.files[index]}"


class TarImages(FolderImages):
    """Images in a tar file with a folder per class, or in a folder of tar files: one per class, or with such folders."""

    def open(self, index: int) -> tuple[BinaryIO, Any]:
        member = cast(TarMember, self.found.files[index])
        # A tar file that stays open would be shared, and its position with it, by loading processes.
        with open(os.path.join(self.root, member.tar) if member.tar else self.root, "rb") as tar:
            tar.seek(member.offset)
            content = tar.read(member.size)
        if len(content) < member.size:
            raise OSError(f"{os.path.basename(member.tar or self.root)} ends in the middle of it")
        return io.BytesIO(content), self.found.labels[index]

    def name(self, index: int) -> str:
        member = cast(TarMember, self.found.files[index])
        return "/".join([self.root, *(part for part in (member.tar, member.inner, member.name) if part)])


class WebDatasetShards:
    """The shards of a WebDataset, as timm's reader finds them.

    Args:
        reader: of timm.
        called: what messages call it.
        image_key: the ending of the images in a sample, such as left.png; None takes any type that Pillow reads.
        label_key: the ending of the labels, or their field in the JSON; None takes cls, or what _info.json says.
        labelled: whether labels are used; without, samples need none.
    """

    class_names = None  # it has none

    def __init__(
        self, reader: Any, called: str, image_key: str | None = None, label_key: str | None = None, labelled: bool = True
    ) -> None:
        self.labelled = labelled
        split = reader.split_info
        self.urls = [os.path.join(reader.root, name) for name in split.filenames]
        self.lengths = split.shard_lengths if len(split.shard_lengths) == len(self.urls) else ()
        self.image_key = image_key.lower().lstrip(".") if image_key else None
        self.asked_label = bool(label_key)
        self.label_key = (label_key or "").lstrip(".") or split.alt_label  # an ending, or a field of the JSON, in place of .cls
        self.images = int(reader.num_samples or 0)
        self.shards = len(self.urls)
        if not self.images:
            way_out = "write _info.json beside them, or give their number behind the split's name and a |"
            raise ConfigError(f"{called} does not say how many images its shards hold: {way_out}")

    def read(self, shard: int) -> Iterator[tuple[str, bytes, int]]:
        import webdataset

        url, count = self.urls[shard], 0
        try:
            for sample in webdataset.tarfile_to_samples()([{"url": url}]):
                count += 1
                yield from self._labelled(sample, url)
        except ConfigError:
            raise
        except (OSError, EOFError, ValueError, tarfile.TarError) as problem:
            raise ConfigError(f"the shard {url} cannot be read to its end ({reason_of(problem)}): write it again") from problem
        if self.lengths and count != self.lengths[shard]:
            says = f"_info.json says {self.lengths[shard]}"
            raise ConfigError(f"the shard {url} holds {count} images, but {says}: write it again, or fix _info.json")

    def open(self, stored: bytes) -> BinaryIO:
        return io.BytesIO(stored)

    def _labelled(self, sample: Mapping[str, Any], url: str) -> Iterator[tuple[str, bytes, int]]:
        name = f"{url}/{sample['__key__']}"
        there = [key for key in sample if not key.startswith("__")]
        kind = self.image_key if self.image_key in sample else None
        if self.image_key is None:
            usual = [key for key in ("jpg", "jpeg", "png", "webp") if key in sample]
            kind = next(iter([*usual, *(key for key in there if f".{key}" in image_endings())]), None)
        stored: Any = None
        of_json = self.label_key not in sample and self.label_key != ""
        labelled = "json" in sample if of_json else (self.label_key or "cls") in sample
        if kind is not None and not self.labelled:
            yield f"{name}.{kind}", sample[kind], 0
            return
        if kind is None or not labelled:
            image = self.image_key or "an image (jpg, png, webp or another type that Pillow reads)"
            raise ConfigError(
                f"the sample {name} holds {', '.join(there)}, but must hold {image} and {self._label_place()}: write it again, "
                "or set data.image_key and data.label_key to what it holds"
            )
        if of_json:
            try:
                fields = json.loads(sample["json"])
            except ValueError as problem:
                raise ConfigError(f"the JSON of {name} cannot be read ({reason_of(problem)}): write it again") from problem
            if not isinstance(fields, dict):
                raise ConfigError(f"the JSON of {name} holds {type(fields).__name__}, not fields by name: write it again")
            if self.label_key not in fields and self.asked_label:
                raise ConfigError(
                    f"the sample {name} has no label {self.label_key!r}: it holds {', '.join(there)}, and its JSON "
                    f"{', '.join(fields)}: set data.label_key to one of them"
                )
            stored = fields.get(self.label_key)
        else:
            stored = sample[self.label_key or "cls"]
        label = label_number(stored, name)
        if label >= 0 or not of_json:  # in the JSON, -1 is for images that another set of classes leaves out
            yield f"{name}.{kind}", sample[kind], label

    def _label_place(self) -> str:
        return f"json with {self.label_key!r}" if self.label_key else "cls"


def label_number(stored: Any, name: str) -> int:
    """A stored label as a number (-1 for none); `name` is the image's, for the message."""
    return -1 if stored is None else class_number(stored, name)


def decode(stored: BinaryIO, mode: str) -> Image.Image:
    """An image in mode L or RGB; raises one of UNREADABLE, or WrongPixels, which `named` turns into sentences."""
    try:
        with Image.open(stored) as image:
            return in_mode(image, mode)
    except UnidentifiedImageError:  # its own text names an object in memory
        raise UnidentifiedImageError("Pillow knows no image format like it") from None
