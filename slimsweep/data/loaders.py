"""Loaders whose batches depend on seed and epoch alone, for one worker or its share of many workers' batches."""

from collections.abc import Iterator
from itertools import islice
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset, Sampler

from slimsweep.config import ConfigError, DataConfig
from slimsweep.data.damaged import Damaged, DamagedImage
from slimsweep.data.images import ImageSet, ImageStream, stacked
from slimsweep.data.splits import Data
from slimsweep.errors import SlimsweepError

T = TypeVar("T")

SHUFFLE_BUFFER = 2048  # stored images that a loading process holds and draws from, in training on a stream


class Loader(DataLoader[Any]):
    """Batches of (images (B, C, H, W), labels (B,)); `damaged` says which images could not be read.

    Raises:
        TooManyDamaged: from its iterator, more images cannot be read than data.max_damaged.
    """

    @property
    def damaged(self) -> Damaged:
        """The images of its split that could not be read so far."""
        return self.dataset.images.damaged  # type: ignore[attr-defined]

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        batches: Any = super().__iter__()
        try:
            # Loading processes send what they could not read along with the batch: only here is it known whether that is new.
            for found in batches:
                if isinstance(found, SlimsweepError):
                    raise found
                images, labels, damaged = found
                self.damaged.skip(damaged)
                if len(labels):
                    yield images, labels
        except Exception:
            if self.num_workers:  # the error's traceback holds them: torch would end them at some time, and wait 5 s for it
                batches._shutdown_workers()
                self._iterator = None
            raise


class TrainLoader(Loader):
    """A loader of training batches: `set_epoch` before each epoch decides order and augmentation."""

    def set_epoch(self, epoch: int) -> None:
        """Make the next iteration the one of this epoch, counted from 0."""
        ordered: Any = self.sampler if isinstance(self.sampler, _ShuffledBatches) else self.dataset
        ordered.set_epoch(epoch)
        # Loading processes take their seeds from here.
        self.generator.manual_seed(ordered.seed * 1_000_003 + epoch)


def train_loader(
    images: ImageSet | ImageStream, settings: DataConfig, *, rank: int = 0, world: int = 1, seed: int = 0
) -> TrainLoader:
    """Training batches of one of `world` workers: each holds its share of the same global batch, whatever `world` is.

    Order and augmentation are functions of (seed, epoch) alone, so a resumed run sees what an uninterrupted one would
    have seen; for a stream, also of the number of workers and loading processes, among which its shards are shared out.
    Images that do not fill a last batch are left out of the epoch.

    Args:
        images: the training split.
        settings: its batch_size is divided by `world`.
        rank: which worker this is, from 0.
        world: number of workers.
        seed: of order and augmentation.

    Raises:
        ConfigError: the batch size does not divide by `world`.
    """
    batch, workers = settings.batch_size, settings.workers
    if batch % world:
        raise ConfigError(f"data.batch_size is {batch}, which does not divide by {world} workers: take a multiple of {world}")
    common: dict[str, Any] = {
        "batch_size": None,
        "num_workers": workers,
        "generator": torch.Generator(),
        "pin_memory": torch.cuda.is_available(),
    }
    if isinstance(images, ImageStream):
        # Fresh processes each epoch: ones that stay would not hear of the new epoch.
        return TrainLoader(_StreamedTraining(images, batch=batch, rank=rank, world=world, seed=seed), **common)
    batches = _ShuffledBatches(
        size=len(images), batch=batch, rank=rank, world=world, seed=seed, repeated=settings.augment.repeated
    )
    return TrainLoader(_Fetch(images), sampler=batches, collate_fn=_unchanged, persistent_workers=workers > 0, **common)


def images_seen(data: Data) -> int:
    """Images that one epoch trains on, over all workers: whole batches only."""
    return len(data.train) // data.settings.batch_size * data.settings.batch_size


def eval_loader(images: ImageSet | ImageStream, settings: DataConfig, rank: int = 0, world: int = 1) -> Loader:
    """Batches of one of `world` workers, in order; all workers together give each image exactly once."""
    batch = settings.eval_batch_size or max(1, settings.batch_size // world)
    common: dict[str, Any] = {
        "batch_size": None,
        "num_workers": settings.workers,
        "pin_memory": torch.cuda.is_available(),
    }
    if isinstance(images, ImageStream):
        return Loader(_StreamedEvaluation(images, batch=batch, rank=rank, world=world), **common)
    mine = range(rank, len(images), world)
    batches = [list(mine[start : start + batch]) for start in range(0, len(mine), batch)]
    # Loading processes stay from one evaluation to the next: a training evaluates after each epoch.
    return Loader(_Fetch(images), sampler=batches, collate_fn=_unchanged, persistent_workers=settings.workers > 0, **common)


class _ShuffledBatches(Sampler[list[tuple[int, int]]]):
    """For each step, this worker's (item, seed of its augmentation) pairs."""

    def __init__(self, *, size: int, batch: int, rank: int, world: int, seed: int, repeated: int) -> None:
        self.size, self.global_batch, self.rank, self.world, self.seed, self.repeated = size, batch, rank, world, seed, repeated
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return self.size // self.global_batch

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        draw = np.random.default_rng([self.seed, self.epoch])
        # Repeats of an image are neighbours: in one batch, and on different workers. An epoch stays as long.
        order = np.repeat(draw.permutation(self.size), self.repeated)[: self.size]
        seeds = draw.integers(2**63, size=self.size)
        for step in range(len(self)):
            mine = slice(step * self.global_batch + self.rank, (step + 1) * self.global_batch, self.world)
            yield list(zip(order[mine].tolist(), seeds[mine].tolist(), strict=True))


class _Fetch(Dataset[Any]):
    """Whole batches from an ImageSet, by lists of items or of (item, seed) pairs; what is refused is given back as a value.

    A DataLoader makes a traceback of several lines out of what its loading processes raise.
    """

    def __init__(self, images: ImageSet) -> None:
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, wanted: list[Any]) -> tuple[Tensor, Tensor, dict[str, str]] | SlimsweepError:
        items, seeds = zip(*wanted, strict=True) if isinstance(wanted[0], tuple) else (wanted, None)
        try:
            return self.images.read(items, seeds)
        except SlimsweepError as problem:
            return problem


class _Stream(IterableDataset[Any]):
    """Batches of a stream; what is refused is given back as a value, as in `_Fetch`."""

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor, dict[str, str]] | SlimsweepError]:
        try:
            yield from self.batches()
        except SlimsweepError as problem:
            yield problem

    def batches(self) -> Iterator[tuple[Tensor, Tensor, dict[str, str]]]:
        raise NotImplementedError


class _StreamedTraining(_Stream):
    """A worker's training batches from a stream.

    Loading processes take turns: of n processes, each gives every n-th step of the epoch. One whose images are used up before
    the epoch ends begins with them again.
    """

    def __init__(self, images: ImageStream, *, batch: int, rank: int, world: int, seed: int) -> None:
        self.images, self.global_batch, self.rank, self.world, self.seed = images, batch, rank, world, seed
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.images) // self.global_batch

    def batches(self) -> Iterator[tuple[Tensor, Tensor, dict[str, str]]]:
        loader, loaders = _loading_process()
        damaged: dict[str, str] = {}
        images = self._endless(self.rank * loaders + loader, self.world * loaders, damaged)
        for _ in range(loader, len(self), loaders):
            found, labels = stacked(islice(images, self.global_batch // self.world))
            yield found, labels, dict(damaged)

    def _endless(self, part: int, parts: int, damaged: dict[str, str]) -> Iterator[tuple[Tensor, int]]:
        """Readable images of one share, over and over, until more are `damaged` than the limit."""
        order = np.random.default_rng([self.seed, self.epoch]).permutation(self.images.source.shards).tolist()
        draw = np.random.default_rng([self.seed, self.epoch, part])
        while True:
            readable = 0
            for stored in _shuffled(self.images.part(part, parts, order), draw):
                try:
                    image = self.images.tensor(*stored, seed=int(draw.integers(2**63)))
                except DamagedImage as problem:
                    damaged[problem.name] = problem.reason
                    if len(damaged) > self.images.damaged.limit:
                        return
                    continue
                readable += 1
                yield image
            if not readable and parts == 1:
                raise ConfigError("the training images cannot be read, not one of them: fix data.root or the split's name")
            if not readable:  # more shares than images in a shard: this one has none, and takes from all
                part, parts = 0, 1


class _StreamedEvaluation(_Stream):
    """A worker's share of a stream, in batches."""

    def __init__(self, images: ImageStream, *, batch: int, rank: int, world: int) -> None:
        self.images, self.batch, self.rank, self.world = images, batch, rank, world

    def batches(self) -> Iterator[tuple[Tensor, Tensor, dict[str, str]]]:
        loader, loaders = _loading_process()
        stream = self.images.part(self.rank * loaders + loader, self.world * loaders, range(self.images.source.shards))
        while some := list(islice(stream, self.batch)):
            readable, damaged = [], {}
            for stored in some:
                try:
                    readable.append(self.images.tensor(*stored))
                except DamagedImage as problem:
                    damaged[problem.name] = problem.reason
            yield *stacked(readable), damaged


def _loading_process() -> tuple[int, int]:
    """(which of a worker's loading processes this is, how many there are)."""
    process = torch.utils.data.get_worker_info()
    return (process.id, process.num_workers) if process else (0, 1)


def _shuffled(stored: Iterator[T], draw: np.random.Generator) -> Iterator[T]:
    """All of them in a random order, as random as a buffer of SHUFFLE_BUFFER allows."""
    held = list(islice(stored, SHUFFLE_BUFFER))
    for new in stored:
        place = int(draw.integers(len(held)))
        yield held[place]
        held[place] = new
    yield from (held[place] for place in draw.permutation(len(held)))


def _unchanged(batch: Any) -> Any:
    return batch
