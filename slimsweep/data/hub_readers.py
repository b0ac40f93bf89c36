"""Data sets of Hugging Face: rows of a function's data set, images on this machine, and shards that are streamed."""

import io
import os
from collections import Counter
from collections.abc import Iterator, Mapping
from functools import cached_property
from typing import Any, BinaryIO

import numpy as np

from slimsweep.config import ConfigError
from slimsweep.data.damaged import reason_of
from slimsweep.data.folders import few
from slimsweep.data.labels import is_number, numbers_of
from slimsweep.data.readers import StoredImages, label_number


class HubRows:
    """A Hugging Face data set that a function returned, as (image, label) by index; its own transform is kept.

    Args:
        dataset: one of `datasets`.
        image_key: its column of images.
        label_key: its column of labels; None where they are not used, and count as 0.

    Raises:
        ConfigError: it has no such columns.
    """

    def __init__(self, dataset: Any, image_key: str, label_key: str | None, called: str) -> None:
        self.dataset = dataset
        self.keys = image_key, label_key
        if dataset.format["type"] != "custom":  # a transform of its own may make columns
            check_columns(dataset.features, image_key, label_key, called)
        stored = label_key is not None and label_key in dataset.features
        self.classes = label_names(dataset.features, label_key) if label_key and stored else None
        self.targets = dataset.with_format(None).select_columns([label_key])[:][label_key] if stored else None
        self.called = called

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> tuple[Any, Any]:
        row = self.dataset[index]
        for key, field in zip(self.keys, ("data.image_key", "data.label_key"), strict=True):
            if key is not None and key not in row:
                raise ConfigError(f"a row of {self.called} has no {key!r}, it has {', '.join(row)}: set {field} to one of them")
        return row[self.keys[0]], 0 if self.keys[1] is None else row[self.keys[1]]


class HubImages(StoredImages):
    """Images of a Hugging Face data set on this machine.

    Args:
        dataset: one of `datasets`.
        image_key: its column of images.
        label_key: its column of labels: numbers, or names in a column of texts; None where labels are not used.
        classes: the names that the texts of train stand for, in their order; None for train itself, where they are sorted.

    Raises:
        ConfigError: it has no such columns, or names a class that train lacks.
    """

    def __init__(
        self, dataset: Any, image_key: str, label_key: str | None, called: str, mode: str, classes: list[str] | None = None
    ) -> None:
        import datasets

        super().__init__(called, mode)
        self.labelled = label_key is not None
        self._column: np.ndarray | None = None
        self._texts = False  # whether labels are the names of classes
        self.image_key, self.label_key = image_key, label_key
        if label_key is None:
            check_columns(dataset.features, image_key, None, called)
            self.dataset = dataset.select_columns([image_key]).cast_column(image_key, datasets.Image(decode=False))
            self.class_names, self.labels, self.notes = None, None, []
            return
        check_columns(dataset.features, image_key, label_key, called)
        self.dataset = dataset.select_columns([image_key, label_key]).cast_column(image_key, datasets.Image(decode=False))
        self.class_names = label_names(dataset.features, label_key)
        self.labels = None
        kind = getattr(dataset.features[label_key], "dtype", "")
        if self.class_names or kind == "bool" or kind.startswith(("int", "uint")):
            column = np.asarray(dataset.select_columns([label_key]).with_format("numpy")[:][label_key])
            self._column = np.where(np.isnan(column), -1, column).astype(np.int64) if column.dtype.kind == "f" else column
            self.labels = self._column if self.class_names else None  # they decide the validation split of earlier runs
        elif kind in ("string", "large_string"):
            texts = dataset.select_columns([label_key]).with_format(None)[:][label_key]
            there = {text for text in texts if text is not None}
            if any(not is_number(text) for text in there):
                self._texts, self.class_names = True, classes or sorted(there)
                numbers = {name: number for number, name in enumerate(self.class_names)}
                if more := sorted(there - numbers.keys()):
                    raise ConfigError(
                        f"{called} has images of the class {more[0]!r}, which is none of those of train "
                        f"({few(self.class_names)}): give both the same classes"
                    )
                self.labels = self._column = np.array([numbers.get(text, -1) for text in texts], dtype=np.int64)
        self.notes = self._merged_folders() if dataset.info.builder_name == "imagefolder" and self.class_names else []

    def __len__(self) -> int:
        return len(self.dataset)

    def open(self, index: int) -> tuple[BinaryIO, Any]:
        row = self.dataset[index]
        label = 0 if self.label_key is None else row[self.label_key]
        if self._texts and self._column is not None:
            label = int(self._column[index])
        return open_hub_image(row[self.image_key]), label

    @cached_property
    def known_labels(self) -> np.ndarray | None:
        return None if self._column is None else numbers_of(self._column, self.called)

    def _merged_folders(self) -> list[str]:
        """What to say where Hugging Face's reader, which takes the last folder for the class, makes one class of several."""
        images = self.dataset.select_columns([self.image_key]).with_format("arrow")[:][self.image_key].combine_chunks()
        folders = {os.path.dirname(path) for path in images.field("path").to_pylist() if path}
        merged = sorted(name for name, times in Counter(os.path.basename(folder) for folder in folders).items() if times > 1)
        if not merged:
            return []
        return [
            f"{self.called}: Hugging Face takes the last folder for the class, so folders of one name become one class "
            f"({few(merged)}): where the first folder is the class, set data.name to folder"
        ]

    def name(self, index: int) -> str:
        path = (self.dataset[index][self.image_key] or {}).get("path")
        return f"{path or index} (number {index} of {self.called})"


class HubShards:
    """The shards of a Hugging Face data set that is streamed.

    Args:
        builder: of `datasets`.
        split: its name.
        image_key: the column of images.
        label_key: the column of labels; None where they are not used.

    Raises:
        ConfigError: it has no such columns, or does not say how many images it has.
    """

    def __init__(self, builder: Any, split: str, image_key: str, label_key: str | None, called: str) -> None:
        import datasets

        self.called = called
        sizes = builder.info.splits or {}
        self.images = int((sizes[split].num_examples if split in sizes else 0) or 0)
        if not self.images:
            known = f"; it tells those of {', '.join(sizes)}" if sizes else ""
            raise ConfigError(
                f"{called} is a stream whose length is unknown, as its card does not say how many images the split has{known}: "
                "name a split that it tells, add dataset_info to its README.md, or give hfds/ in place of hfids/"
            )
        stream = builder.as_streaming_dataset(split=split)
        features = builder.info.features or stream.features or {name: None for name in stream.column_names or ()}
        check_columns(features, image_key, label_key, called)
        self.dataset = stream.cast_column(image_key, datasets.Image(decode=False))
        self.labelled = label_key is not None
        self.columns = image_key, label_key or image_key
        self.class_names = label_names(features, label_key) if label_key is not None else None
        self.shards = int(self.dataset.num_shards)

    def read(self, shard: int) -> Iterator[tuple[str, dict[str, Any], int]]:
        count = 0
        try:
            # Iterating over the shard itself would split it once more, among the loading processes.
            for rows in self.dataset.shard(num_shards=self.shards, index=shard).iter(batch_size=16):
                for image, label in zip(*(rows[column] for column in self.columns), strict=True):
                    name = f"{image['path'] or count} (number {count} of shard {shard} of {self.called})"
                    yield name, image, label_number(label, name) if self.labelled else 0
                    count += 1
        except ConfigError:
            raise
        except (OSError, ValueError) as problem:
            raise ConfigError(
                f"shard {shard} of {self.called} cannot be read to its end ({reason_of(problem)}): write or fetch it again"
            ) from problem

    def open(self, stored: dict[str, Any]) -> BinaryIO:
        return open_hub_image(stored)


def check_columns(features: Mapping[str, Any], image_key: str, label_key: str | None, called: str) -> None:
    """Refuse columns that a Hugging Face data set does not have; None where labels are not used.

    Raises:
        ConfigError: names the columns that it has.
    """
    for key, field, of in ((image_key, "data.image_key", "images"), (label_key, "data.label_key", "labels")):
        if key is not None and key not in features:
            raise ConfigError(
                f"{called} has no column {key!r} for the {of}, it has {', '.join(features)}: set {field} to one of them"
            )
    import datasets

    kinds = features[image_key], None if label_key is None else features[label_key]
    stored = isinstance(kinds[0], datasets.Value) and kinds[0].dtype in ("string", "large_string", "binary", "large_binary")
    if kinds[0] is not None and not isinstance(kinds[0], datasets.Image | dict) and not stored:
        raise ConfigError(
            f"the column {image_key!r} holds no images in {called}, which has {', '.join(features)}: set data.image_key to "
            "another"
        )
    if kinds[1] is not None and not isinstance(kinds[1], datasets.ClassLabel | datasets.Value):
        raise ConfigError(
            f"the column {label_key!r} holds more than one number per image in {called}, which has {', '.join(features)}: set "
            "data.label_key to another"
        )


def label_names(features: Mapping[str, Any], label_key: str) -> list[str] | None:
    """The names of the classes in the order of their numbers; None where the column holds plain numbers."""
    names = getattr(features[label_key], "names", None)
    return [str(name) for name in names] if names else None


def open_hub_image(stored: dict[str, Any] | None) -> BinaryIO:
    """The file of an image as `datasets` gives it undecoded; raises OSError where it is not there."""
    import fsspec

    if stored is None:
        raise OSError("the row has no image")
    return io.BytesIO(stored["bytes"]) if stored["bytes"] is not None else fsspec.open(stored["path"], "rb").open()
