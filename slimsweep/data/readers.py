"""Stored images: a split with random access (`Source`), or as shards that are streamed (`Shards`), one class per format."""

import io
import json
import os
import tarfile
import traceback
from collections.abc import Iterator, Mapping
from typing import Any, BinaryIO, Protocol

import numpy as np
from PIL import Image, UnidentifiedImageError
from timm.data.readers.reader_image_in_tar import ReaderImageInTar
from torch import Tensor

from slimsweep.config import ConfigError
from slimsweep.data.damaged import UNREADABLE, named, reason_of
from slimsweep.data.pixels import in_mode
from slimsweep.errors import SlimsweepError


class Source(Protocol):
    """A split as it is stored, with random access to its images, which are not transformed yet."""

    class_names: list[str] | None
    labels: np.ndarray | None  # (images,), where they are known without reading the images

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
    """

    def __init__(self, dataset: Any, called: str) -> None:
        self.dataset = dataset
        self.called = called
        names = getattr(dataset, "classes", None)
        self.class_names: list[str] | None = [str(n) for n in names] if names is not None else None
        labels = getattr(dataset, "targets", None)
        self.labels: np.ndarray | None = np.asarray(labels).astype(np.int64) if labels is not None else None

    def __len__(self) -> int:
        return len(self.dataset)

    def image(self, index: int) -> tuple[Image.Image | Tensor, int]:
        with named(lambda: self.name(index)):
            stored = self._stored(index)
        image, label = stored
        if isinstance(image, Image.Image):
            with named(lambda: self.name(index)):
                image.load()  # Pillow decodes a picture that was only opened when its pixels are asked for
        return image, int(label)

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
            said = f"{type(problem).__name__}: {reason_of(problem)} ({frames[-1].filename}, line {frames[-1].lineno})"
            raise DataSetError(
                f"image {index} of {self.called} cannot be had: its data set raised {said}: fix that line, or what it reads"
            ) from problem


class TimmImages(IndexedImages):
    """What a reader of timm finds, without timm's ImageDataset, which would take the next image in place of a damaged one.

    Args:
        reader: of timm.
        called: what messages call it.
        mode: Pillow's mode of the images, L or RGB.
    """

    def __init__(self, reader: Any, called: str, mode: str) -> None:
        self.dataset = reader
        self.called = called
        self.mode = mode
        self.class_names = self._known_classes()
        self.labels = self._known_labels() if self.class_names else None

    def image(self, index: int) -> tuple[Image.Image | Tensor, int]:
        with named(lambda: self.name(index)):
            stored, label = self.dataset[index][:2]
            with stored:
                image = decode(stored, self.mode)
        return image, label_number(label, self.called)

    def name(self, index: int) -> str:
        """What an image is called in a message."""
        return str(self.dataset.filename(index, absolute=True))

    def _known_classes(self) -> list[str] | None:
        return classes_by_index(self.dataset.class_to_idx)

    def _known_labels(self) -> np.ndarray:
        return np.array([label for _, label in self.dataset.samples])


class TarImages(TimmImages):
    """Images in a tar file with one folder per class, or in a folder of tar files: one per class, or with such folders."""

    def __init__(self, root: str, called: str, mode: str) -> None:
        # A tar file that stays open would be shared, and its position with it, by loading processes.
        reader = ReaderImageInTar(root, cache_tarfiles=False)
        # Files of the same name in several tar files: timm's order is the one in which the file system lists those.
        order = sorted(range(len(reader)), key=lambda index: self._place(*reader.samples[index]))
        reader.samples, reader.targets = reader.samples[order], reader.targets[order]
        super().__init__(reader, called, mode)

    def name(self, index: int) -> str:
        return "/".join([self.dataset.root, *(part for part in self._place(*self.dataset.samples[index]) if part)])

    def _known_classes(self) -> list[str] | None:
        return classes_by_index(self.dataset.class_name_to_idx)

    def _known_labels(self) -> np.ndarray:
        return self.dataset.targets

    @staticmethod
    def _place(image: tarfile.TarInfo, tar: str | None, inner: tarfile.TarInfo | None) -> tuple[str, ...]:
        """(its tar file, the tar file inside that, its own name)."""
        return tar or "", inner.name if inner else "", image.name


class HubImages(TimmImages):
    """Images of a Hugging Face data set on this machine."""

    def name(self, index: int) -> str:
        return f"{self.dataset.filename(index) or index} (number {index} of {self.called})"

    def _known_labels(self) -> np.ndarray:
        column = self.dataset.dataset.select_columns([self.dataset.label_key]).with_format("numpy")
        return np.asarray(column[:][self.dataset.label_key])


class WebDatasetShards:
    """The shards of a WebDataset, as timm's reader finds them."""

    class_names = None  # it has none

    def __init__(self, reader: Any, called: str) -> None:
        split = reader.split_info
        self.urls = [os.path.join(reader.root, name) for name in split.filenames]
        self.lengths = split.shard_lengths if len(split.shard_lengths) == len(self.urls) else ()
        self.label_key = split.alt_label  # in the JSON, in place of .cls
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
        kind = next((key for key in ("jpg", "jpeg", "png", "webp") if key in sample), None)
        labels = "json" if self.label_key else "cls"
        if kind is None or labels not in sample:
            there = ", ".join(key for key in sample if not key.startswith("__"))
            raise ConfigError(
                f"the sample {name} holds {there}, but must hold an image (jpg, jpeg, png or webp) and {labels}: write it again"
            )
        label = label_number(json.loads(sample["json"]).get(self.label_key) if self.label_key else sample["cls"], name)
        if label >= 0 or not self.label_key:  # in the JSON, -1 is for images that another set of classes leaves out
            yield f"{name}.{kind}", sample[kind], label


class HubShards:
    """The shards of a Hugging Face data set that is streamed, as timm's reader finds it."""

    def __init__(self, reader: Any, called: str) -> None:
        import datasets

        self.called = called
        stream = reader.builder.as_streaming_dataset(split=reader.split)
        self.dataset = stream.cast_column(reader.input_key, datasets.Image(decode=False))
        self.columns = reader.input_key, reader.target_key
        self.class_names = classes_by_index(reader.class_to_idx)
        self.images = int(reader.num_samples)
        self.shards = int(self.dataset.num_shards)

    def read(self, shard: int) -> Iterator[tuple[str, dict[str, Any], int]]:
        count = 0
        try:
            # Iterating over the shard itself would split it once more, among the loading processes.
            for rows in self.dataset.shard(num_shards=self.shards, index=shard).iter(batch_size=16):
                for image, label in zip(*(rows[column] for column in self.columns), strict=True):
                    name = f"{image['path'] or count} (number {count} of shard {shard} of {self.called})"
                    yield name, image, label_number(label, name)
                    count += 1
        except ConfigError:
            raise
        except (OSError, ValueError) as problem:
            raise ConfigError(
                f"shard {shard} of {self.called} cannot be read to its end ({reason_of(problem)}): write or fetch it again"
            ) from problem

    def open(self, stored: dict[str, Any]) -> BinaryIO:
        import fsspec

        return io.BytesIO(stored["bytes"]) if stored["bytes"] is not None else fsspec.open(stored["path"], "rb").open()


def classes_by_index(classes: Mapping[str, int]) -> list[str] | None:
    """The names of the classes in the order of their numbers; None where there are none."""
    return sorted(classes, key=classes.__getitem__) or None


def label_number(stored: Any, name: str) -> int:
    """A stored label as a number (-1 for none); `name` is the image's, for the message."""
    try:
        return int(-1 if stored is None else stored)
    except (TypeError, ValueError) as problem:
        raise ConfigError(f"{name} has the label {stored!r}, which is no number: write the class as a number") from problem


def decode(stored: BinaryIO, mode: str) -> Image.Image:
    """An image in mode L or RGB; raises one of UNREADABLE, or WrongPixels, which `named` turns into sentences."""
    try:
        with Image.open(stored) as image:
            return in_mode(image, mode)
    except UnidentifiedImageError:  # its own text names an object in memory
        raise UnidentifiedImageError("Pillow knows no image format like it") from None
