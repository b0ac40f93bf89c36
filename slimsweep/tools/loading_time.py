"""How long training images take to load: when they are read, and where a process keeps them in memory, after that."""

import itertools
import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from slimsweep.config import DataConfig
from slimsweep.data import ImageSet, ImageStream, train_loader

BATCH = 64  # images at most that are timed together: a large batch would take long, and a small set would have one alone
clock = time.perf_counter


@dataclass(frozen=True, kw_only=True)
class LoadingTime:
    """Seconds that one process takes per training image."""

    first: float  # read and transformed
    later: float  # in epochs in which the process has the image in memory; as `first` where images are not kept

    def average(self, epochs: int, processes: int) -> float:
        """Seconds per image of one process, over all epochs of a training.

        Each process keeps the images that it has loaded itself. In every epoch an image comes to one of the processes by
        chance, so the share that is still read in epoch e, from 0, is (1 - 1 / processes)^e.

        Args:
            epochs: 0 counts as 1.
            processes: that load images, of all workers of the training.
        """
        epochs = max(1, epochs)
        read = processes * (1 - (1 - 1 / processes) ** epochs) / epochs
        return self.later + read * (self.first - self.later)

    def in_words(self) -> str:
        """Milliseconds per image, for a note."""
        once = f"{1e3 * self.first:.3g} ms per image"
        return once if self.later == self.first else f"{once}, and {1e3 * self.later:.2g} ms once the image is in memory"


NOT_TIMED = LoadingTime(first=0.0, later=0.0)


def time_loading(images: ImageSet | ImageStream, settings: DataConfig, *, seed: int, seconds: float) -> LoadingTime:
    """Load training images in this process, and time them.

    What only the first call pays (imports, opening files, decoders, memory of the cache) is not counted: one image is read
    before, and the first batch counts only where there is no other. Of the batches the median counts, since other processes
    may hold one up.

    Args:
        images: the training split; an `ImageSet` is left as it is, with what it has in memory.
        seconds: after which no further batch is timed, of reading and of loading from memory each; at least one batch is.
    """
    if isinstance(images, ImageSet):
        # Another set of the same images has none of them in memory yet.
        images = ImageSet(images.source, images.indices, images.view, images.num_classes, images.cache, images.damaged)
        images.read([0], [0])
    batch = min(settings.batch_size, BATCH)
    loader = train_loader(images, settings.model_copy(update={"workers": 0, "batch_size": batch}), seed=seed)
    loader.set_epoch(0)
    read = _seconds_per_image(iter(loader), seconds)
    if not read:
        return NOT_TIMED
    first = _usual(read)
    if isinstance(images, ImageStream) or not images.cache:
        return LoadingTime(first=first, later=first)
    loader.set_epoch(0)  # the same batches
    kept = _seconds_per_image(itertools.islice(loader, len(read)), seconds)
    return LoadingTime(first=first, later=min(first, _usual(kept)))


def _seconds_per_image(batches: Iterator[Any], limit: float) -> list[float]:
    """Seconds per image of each batch, until `limit` seconds are over."""
    found: list[float] = []
    began = last = clock()
    for images, _ in batches:
        now = clock()
        found.append((now - last) / len(images))
        last = now
        if now - began > limit:
            break
    return found


def _usual(seconds: list[float]) -> float:
    return statistics.median(seconds[1:] or seconds)
