"""Checks of labels before anything trains: those that are known, all of them; of others some images are read."""

import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING

import numpy as np

from slimsweep.config import Config, ConfigError
from slimsweep.data.damaged import DamagedImage
from slimsweep.data.images import ImageSet, ImageStream, check_label
from slimsweep.data.labels import spread
from slimsweep.data.sources import SPLIT_SEED, title
from slimsweep.data.transforms import random_state_kept

if TYPE_CHECKING:
    from slimsweep.data.splits import Data

LEAST_READ = 8  # images per split whose labels are read, however long it takes
MOST_STREAMED = 64  # and of a stream at most these


def check_known_labels(labels: np.ndarray | None, split: str, config: Config, num_classes: int) -> None:
    """Refuse labels that are not from 0 to below the number of classes.

    Args:
        labels: of all images of a split (images,); None where they are not known.
        split: train, val or test.
        config: the configuration.
        num_classes: number of classes.

    Raises:
        ConfigError: names the first wrong label, and how many there are.
    """
    if labels is None:
        return
    wrong = np.flatnonzero((labels < 0) | (labels >= num_classes))
    if not len(wrong):
        return
    index = int(wrong[0])
    more = f" (and {len(wrong) - 1:,} more are wrong)" if len(wrong) > 1 else ""
    low, high = int(labels.min()), int(labels.max())
    if low < 0 and len(wrong) == len(labels):
        way_out = f"no image of the {split} split has a label, so it cannot be used: name a labelled one"
    elif low < 0:
        way_out = "give the number of its class, or leave images without a label out"
    elif low > 0 and high - low < num_classes:
        way_out = f"the labels go from {low} to {high}, but classes are numbered from 0: subtract {low}"
    elif split == "train" and config.data.num_classes is not None:
        way_out = f"set data.num_classes to {high + 1}, or fix the labels"
    else:
        way_out = "fix the labels, or set data.num_classes to how many classes there are"
    asked = f"data.num_classes is {config.data.num_classes}, but " if config.data.num_classes is not None and low >= 0 else ""
    raise ConfigError(
        f"{asked}image {index} of the {split} split of {title(config)} has the label {labels[index]}{more}, "
        f"which is not one of the {num_classes} classes, 0 to {num_classes - 1}: {way_out}"
    )


def check_classes(data: "Data") -> None:
    """Refuse labels that leave a class out where nothing else says how many classes there are.

    Raises:
        ConfigError: such as for labels from 1 to 10.
    """
    labels = data.train.source.known_labels if isinstance(data.train, ImageSet) else None
    if labels is None or not data.num_classes or data.class_names or data.settings.num_classes is not None:
        return
    used = np.unique(labels)
    if len(used) < data.num_classes:
        missing = np.setdiff1d(np.arange(data.num_classes), used[: data.num_classes])[:3]
        raise ConfigError(
            f"the training labels of {data.settings.name} go from {used[0]} to {used[-1]}, but no image has the label "
            f"{missing[0]}: number the classes from 0 without gaps, or, if some classes have no training images on purpose, "
            f"set data.num_classes to {data.num_classes}"
        )


def check_more_labels(data: "Data", seconds: float = 2.0) -> None:
    """Read labels that are not known, as many as there is time for, evenly over each split, and refuse wrong ones.

    Where labels are not used, none are read.

    Args:
        data: the splits.
        seconds: for each split, after which no further image is read; at least a few are.

    Raises:
        ConfigError: names the first wrong label.
    """
    splits = (("train", data.train), ("val", data.val), ("test", data.test)) if data.num_classes else ()
    for split, images in splits:
        began = time.perf_counter()
        with random_state_kept():
            for seen, read in enumerate(_labels_to_read(split, images)):
                read()
                if seen >= LEAST_READ and time.perf_counter() - began > seconds:
                    break


def _labels_to_read(split: str, images: ImageSet | ImageStream) -> Iterator[Callable[[], None]]:
    if isinstance(images, ImageStream):
        stored = images.part(0, 1, range(1))  # the first shard
        for name, _, label in islice(stored, MOST_STREAMED):
            yield partial(check_label, label, images.num_classes, f"{name} of the {split} split")
    elif images.source.known_labels is None:
        size = len(images)
        few = spread(size, LEAST_READ)  # so that the end is seen too, where time is short
        for item in [*few, *np.random.default_rng(SPLIT_SEED).permutation(size).tolist()]:
            yield partial(_check_one, images, item)


def _check_one(images: ImageSet, item: int) -> None:
    index = int(images.indices[item])
    with suppress(DamagedImage):  # counted and named where it is used
        check_label(images.source.image(index)[1], images.num_classes, f"image {index} of the {images.damaged.split} split")
