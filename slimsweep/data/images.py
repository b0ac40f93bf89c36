"""What the network sees: splits, transforms, and loaders whose batches depend on seed and epoch alone.

Transforms are timm's; the affine warp works on whole batches of tensors, because that is what makes small images cheap.
"""

import functools
import logging
import random
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from typing import Any, TypeVar

import numpy as np
import timm.data
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset, Sampler
from torchvision.transforms.functional import to_pil_image

from slimsweep.config import Affine, Config, ConfigError
from slimsweep.data.sources import (
    UNREADABLE,
    DamagedImage,
    Indexed,
    Shards,
    Source,
    check_data,
    decoded,
    said,
    sources_of,
    split_off,
    title,
)

log = logging.getLogger(__name__)
T = TypeVar("T")

CACHE_BYTES = 2**28  # images that need no random transform are kept ready up to here
SHUFFLED = 2048  # stored images of a stream that a loading process holds and draws from, in training


class TooManyDamaged(ConfigError):
    """More images of a split are damaged than data.max_damaged."""


class Damaged:
    """What images of a split could not be read so far: each once, in however many epochs and loading processes.

    Args:
        split: train, val or test.
        limit: how many may be skipped.
    """

    def __init__(self, split: str, limit: int) -> None:
        self.split = split
        self.limit = limit
        self.reasons: dict[str, str] = {}

    def skip(self, found: Mapping[str, str]) -> None:
        """Warn of damaged images that are new, of which `found` has the reasons by name.

        Raises:
            TooManyDamaged: with them there are more than the limit.
        """
        for name, reason in found.items():
            if name not in self.reasons:
                self.add({name: reason})
                log.warning("the image %s cannot be read (%s): it is skipped in %s", name, reason, self.split)

    def add(self, found: Mapping[str, str]) -> None:
        """`skip`, without a warning: another worker has given it."""
        self.reasons.update(found)
        if len(self.reasons) > self.limit:
            raise self.refusal(*list(self.reasons.items())[-1])

    def refusal(self, name: str, reason: str) -> TooManyDamaged:
        """The sentence that stops a run at this image."""
        if not self.limit:
            mend = "replace or remove it, or set data.max_damaged to skip so many in each split"
            return TooManyDamaged(f"the image {name} cannot be read ({reason}): {mend}")
        count = f"{self.limit} other{'s' * (self.limit > 1)} of {self.split} are damaged too"
        mend = f"replace or remove them, or raise data.max_damaged, which is {self.limit}"
        return TooManyDamaged(f"the image {name} cannot be read ({reason}), and {count}: {mend}")


@dataclass(frozen=True, kw_only=True)
class Data:
    """Three splits, ready for a network. A random-access split is an ImageSet, a streamed one an ImageStream."""

    train: "ImageSet | ImageStream"  # with the training transform
    val: "ImageSet | ImageStream"
    test: "ImageSet | ImageStream"
    num_classes: int
    class_names: list[str] | None
    preprocessing: dict[
        str, Any
    ]  # what a saved model needs: mean, std, input_size, interpolation, crop_pct, crop_mode, num_classes


@dataclass(frozen=True, kw_only=True)
class View:
    """How a stored image becomes a tensor (C, H, W)."""

    transform: Any
    random: bool  # whether the transform draws random numbers
    affine: Affine | None
    channels: int
    black: Tensor  # (C, 1, 1): black after normalization

    @property
    def mode(self) -> str:
        """Pillow's name of the images that the transform takes."""
        return "L" if self.channels == 1 else "RGB"

    def tensor(self, image: Image.Image | Tensor) -> Tensor:
        if isinstance(image, Tensor) and image.dtype == torch.uint8:
            image = to_pil_image(image)
        if isinstance(image, Image.Image) and image.mode != self.mode:
            image = image.convert(self.mode)
        return self.transform(image)

    def warp(self, images_BCHW: Tensor, uniform_B5: np.ndarray) -> Tensor:
        if self.affine is None:
            return images_BCHW
        return affine_warp(images_BCHW - self.black, self.affine, uniform_B5) + self.black


class ImageSet(Dataset[tuple[Tensor, int]]):
    """Some images of a source, as the network sees them: `dataset[i]` is (image (C, H, W), label).

    Args:
        source: the images as they are stored.
        indices: which of them, in this order.
        view: how they become tensors.
        num_classes: labels must be below.
        cache: keep tensors where nothing random happens to them and they fit.
        damaged: where images that cannot be read are noted; None allows none.
    """

    def __init__(
        self,
        source: Source,
        indices: np.ndarray,
        view: View,
        num_classes: int,
        cache: bool,
        damaged: Damaged | None = None,
    ) -> None:
        self.source = source
        self.indices = indices
        self.view = view
        self.num_classes = num_classes
        self.cache = cache and not view.random
        self.damaged = damaged or Damaged("data", 0)
        self._images: Tensor | None = None
        self._labels = torch.full((len(indices),), -1)

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        images, labels, damaged = self.read([index])
        for name, reason in damaged.items():
            raise self.damaged.refusal(name, reason)
        return images[0], int(labels[0])

    def batch(self, items: Sequence[int], seeds: Sequence[int] | None = None) -> tuple[Tensor, Tensor]:
        """(images (B, C, H, W), labels (B,)) of `items`, as `read` gives them; those that are damaged are noted.

        Raises:
            ConfigError: too many images that cannot be read, a label that is not one of the classes.
        """
        images, labels, damaged = self.read(items, seeds)
        self.damaged.skip(damaged)
        return images, labels

    def read(self, items: Sequence[int], seeds: Sequence[int] | None = None) -> tuple[Tensor, Tensor, dict[str, str]]:
        """(images (B, C, H, W), labels (B,), the reasons of damaged images by name).

        Without `seeds`, as in evaluation, damaged images are left out. With them, one an image as in training, the same
        items always look the same, and the next readable image stands in for a damaged one: B is kept, as long as
        there are not more damaged ones than may be.

        Raises:
            ConfigError: a label that is not one of the classes.
        """
        damaged: dict[str, str] = {}
        if self.view.random and seeds is not None:
            with _random_state_kept():
                images, labels = self._stack(items, seeds, damaged)
        elif self.cache:
            images, labels = self._ready(items, seeds, damaged)
        else:
            images, labels = self._stack(items, seeds, damaged)
        if self.view.affine is None or not len(labels):
            return images, labels, damaged
        if seeds is None or len(seeds) != len(labels):
            seeds = torch.randint(2**62, (len(labels),)).tolist()
        uniform = uniforms(np.asarray(seeds, dtype=np.uint64), 5)
        return self.view.warp(images, uniform), labels, damaged

    def _one(self, item: int) -> tuple[Tensor, int]:
        image, label = self.source.image(int(self.indices[item]))
        _check_label(label, self.num_classes, f"image {self.indices[item]}")
        return self.view.tensor(image), label

    def _stack(self, items: Sequence[int], seeds: Sequence[int] | None, damaged: dict[str, str]) -> tuple[Tensor, Tensor]:
        def one(item: int, seed: int | None) -> tuple[Tensor, int]:
            if self.view.random and seed is not None:
                _seed_all(seed)
            return self._one(item)

        given = [None] * len(items) if seeds is None else seeds
        reads = (
            self._readable(item, functools.partial(one, seed=seed), seed is not None, damaged)
            for item, seed in zip(items, given, strict=True)
        )
        return _stacked(found for found in reads if found is not None)

    def _readable(self, item: int, read: Callable[[int], T], training: bool, damaged: dict[str, str]) -> T | None:
        """What `read` makes of an item, or in training of the next that is not damaged; None where there is nothing."""
        for other in range(item, item + len(self) if training else item + 1):
            try:
                return read(other % len(self))
            except DamagedImage as problem:
                damaged[problem.name] = problem.reason
                if len(damaged) > self.damaged.limit:
                    break
        return None

    def _ready(self, items: Sequence[int], seeds: Sequence[int] | None, damaged: dict[str, str]) -> tuple[Tensor, Tensor]:
        chosen = torch.as_tensor(items)
        if (self._labels[chosen] < 0).any():
            kept = [self._readable(item, self._keep, seeds is not None, damaged) for item in items]
            if not self.cache:  # they do not fit
                return self._stack(items, seeds, damaged)
            chosen = torch.tensor([item for item in kept if item is not None], dtype=torch.int64)
        if self._images is None:
            return _stacked([])
        return self._images[chosen], self._labels[chosen]

    def _keep(self, item: int) -> int:
        """Keep an item's tensor ready; returns the item."""
        if self.cache and self._labels[item] < 0:
            image, label = self._one(item)
            if self._images is None:
                self.cache = len(self) * image.numel() * image.element_size() <= CACHE_BYTES
                if not self.cache:
                    return item
                self._images = torch.empty(len(self), *image.shape)
            self._images[item], self._labels[item] = image, label
        return item


class ImageStream:
    """A split that is streamed (WebDataset and the like), as the network sees it; loaders deal it out.

    Args:
        source: its shards.
        view: how images become tensors.
        num_classes: labels must be below.
        limit: images of it that are used at most: the first ones of each shard.
        damaged: where images that cannot be read are noted; None allows none.
    """

    def __init__(self, source: Shards, view: View, num_classes: int, limit: int | None, damaged: Damaged | None = None) -> None:
        self.source = source
        self.view = view
        self.num_classes = num_classes
        self.limit = limit
        self.damaged = damaged or Damaged("data", 0)

    def __len__(self) -> int:
        """Images, of all workers together."""
        return self.source.images if self.limit is None else min(self.source.images, self.limit)

    def part(self, part: int, parts: int, order: Sequence[int]) -> Iterator[tuple[str, Any, int]]:
        """Name, stored image and label of one share of the images: shares do not overlap, and all give each image once.

        Args:
            part: which of `parts` shares: whole shards, or of a shard that several must share, each so-and-so-many-th image.
            parts: how many there are.
            order: in which shards are dealt out and read.
        """
        shards = len(order)
        sharing = len(range(part % shards, parts, shards))  # 1 where there are enough shards
        for shard in order[part % shards :: parts]:
            most = None if self.limit is None else len(range(shard, self.limit, shards))
            yield from islice(islice(self.source.read(shard), most), part // shards, None, sharing)

    def tensor(self, name: str, stored: Any, label: int, seed: int | None = None) -> tuple[Tensor, int]:
        """An image (C, H, W) and its label; with a seed, one image always looks the same.

        Raises:
            DamagedImage: it cannot be read.
            ConfigError: a label that is not one of the classes.
        """
        _check_label(label, self.num_classes, name)
        try:
            with self.source.open(stored) as file:
                image = decoded(file, self.view.mode)
        except UNREADABLE as problem:
            raise DamagedImage(name, said(problem)) from problem
        if seed is None:
            return self.view.tensor(image), label
        with _random_state_kept():
            _seed_all(seed)
            tensor = self.view.tensor(image)
        return self.view.warp(tensor[None], uniforms(np.array([seed], dtype=np.uint64), 5))[0], label


def load_data(config: Config, input_size: tuple[int, int, int], model_cfg: Mapping[str, Any] | None = None) -> Data:
    """The three splits of `config.data`, as a model with this input sees them.

    Args:
        config: the configuration; `config.data.limit` cuts each split, the same images each time.
        input_size: (C, H, W) of the model's input.
        model_cfg: timm's pretrained_cfg, for mean, std, interpolation and crop where the configuration has none.

    Raises:
        ConfigError: unknown data set, a root or split that is not there, classes or channels that do not fit.
    """
    check_data(config)
    wanted = config.data
    if wanted.image_size is not None and (wanted.image_size, wanted.image_size) != tuple(input_size[1:]):
        size = f"{input_size[1]} x {input_size[2]}"
        raise ConfigError(
            f"data.image_size is {wanted.image_size}, but the model takes {size}: set model.kwargs.img_size alike"
        )
    sources = sources_of(config, "L" if input_size[0] == 1 else "RGB")
    train = sources["train"]
    num_classes, class_names = _classes(config, sources)
    preprocessing = _preprocessing(config, input_size, model_cfg or {}, num_classes)
    train_view, eval_view = _views(config, preprocessing)

    if not isinstance(train, Indexed):
        views = {"train": train_view, "val": eval_view, "test": eval_view}
        streams = {
            split: ImageStream(source, views[split], num_classes, wanted.limit, Damaged(split, wanted.max_damaged))
            for split, source in sources.items()
        }
        check_batch(config, len(streams["train"]))
        return Data(**streams, num_classes=num_classes, class_names=class_names, preprocessing=preprocessing)

    for split, source in sources.items():
        _check_channels(source, split, config, input_size[0])
    indices = {split: np.arange(len(source)) for split, source in sources.items()}
    if "val" not in sources:
        count = max(1, round(wanted.val_share * len(train)))
        if count >= len(train):
            raise ConfigError(
                f"the training split of {title(config)} has {len(train)} images, too few to take val_share of them"
            )
        indices["train"], indices["val"] = split_off(train.labels, len(train), count)
        sources["val"] = train
    sets = {}
    for split in ("train", "val", "test"):
        chosen, source = indices[split], sources[split]
        if wanted.limit is not None and wanted.limit < len(chosen):
            labels = None if source.labels is None else source.labels[chosen]
            chosen = chosen[split_off(labels, len(chosen), wanted.limit)[1]]
        view = train_view if split == "train" else eval_view
        damaged = Damaged(split, wanted.max_damaged)
        sets[split] = ImageSet(source, chosen, view, num_classes, cache=wanted.workers == 0, damaged=damaged)
    check_batch(config, len(sets["train"]))
    return Data(**sets, num_classes=num_classes, class_names=class_names, preprocessing=preprocessing)


# Loaders.


class Loader(DataLoader[Any]):
    """Batches of (images (B, C, H, W), labels (B,)); `damaged` says which images could not be read.

    Iterating raises TooManyDamaged where they are more than may be.
    """

    @property
    def damaged(self) -> Damaged:
        return self.dataset.images.damaged  # type: ignore[attr-defined]

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        # Loading processes send what they could not read along with the batch: only here is it known whether that is new.
        for images, labels, damaged in super().__iter__():
            self.damaged.skip(damaged)
            if len(labels):
                yield images, labels


class TrainLoader(Loader):
    """`set_epoch` before each epoch decides order and augmentation."""

    def set_epoch(self, epoch: int) -> None:
        ordered: Any = self.sampler if isinstance(self.sampler, _ShuffledBatches) else self.dataset
        ordered.set_epoch(epoch)
        # Loading processes take their seeds from here.
        self.generator.manual_seed(ordered.seed * 1_000_003 + epoch)


def train_loader(data: Data, config: Config, rank: int = 0, world: int = 1, seed: int | None = None) -> TrainLoader:
    """Training batches of one of `world` workers: each holds its share of the same global batch, whatever `world` is.

    Order and augmentation are functions of (seed, epoch) alone, so a resumed run sees what an uninterrupted one would
    have seen; of a stream, also of the number of workers and loading processes, which deal its shards among themselves.
    Images that do not fill a last batch wait for another epoch.

    Args:
        data: from `load_data`.
        config: batch_size is divided by `world`.
        rank: which worker this is, from 0.
        world: number of workers.
        seed: of order and augmentation; None takes the configuration's.

    Raises:
        ConfigError: the batch size does not divide by `world`.
    """
    batch, workers = config.data.batch_size, config.data.workers
    if batch % world:
        raise ConfigError(f"data.batch_size is {batch}, which does not divide by {world} workers: take a multiple of {world}")
    seed = config.seed if seed is None else seed
    common: dict[str, Any] = {
        "batch_size": None,
        "num_workers": workers,
        "generator": torch.Generator(),
        "pin_memory": torch.cuda.is_available(),
    }
    if isinstance(data.train, ImageStream):
        # Fresh processes each epoch: ones that stay would not hear of the new epoch.
        return TrainLoader(_StreamedTraining(data.train, batch=batch, rank=rank, world=world, seed=seed), **common)
    batches = _ShuffledBatches(
        size=len(data.train), batch=batch, rank=rank, world=world, seed=seed, repeated=config.data.augment.repeated
    )
    return TrainLoader(_Fetch(data.train), sampler=batches, collate_fn=_as_it_is, persistent_workers=workers > 0, **common)


def images_seen(data: Data, config: Config) -> int:
    """Images that one epoch trains on, over all workers: whole batches only."""
    return len(data.train) // config.data.batch_size * config.data.batch_size


def eval_loader(dataset: ImageSet | ImageStream, config: Config, rank: int = 0, world: int = 1) -> Loader:
    """Batches of one of `world` workers, in order; all workers together give each image exactly once."""
    batch = config.data.eval_batch_size or max(1, config.data.batch_size // world)
    common: dict[str, Any] = {
        "batch_size": None,
        "num_workers": config.data.workers,
        "pin_memory": torch.cuda.is_available(),
    }
    if isinstance(dataset, ImageStream):
        return Loader(_StreamedEvaluation(dataset, batch=batch, rank=rank, world=world), **common)
    mine = range(rank, len(dataset), world)
    batches = [list(mine[start : start + batch]) for start in range(0, len(mine), batch)]
    return Loader(_Fetch(dataset), sampler=batches, collate_fn=_as_it_is, **common)


def mixup_fn(config: Config, num_classes: int, *, label_smoothing: float = 0.0) -> Any:
    """timm's Mixup as configured, or None where neither Mixup nor CutMix is on.

    It draws from NumPy's global generator, takes (images (B, C, H, W), labels (B,)) with an even B, changes the images
    in place, and returns them with soft labels (B, num_classes) that hold the label smoothing already.
    """
    augment = config.data.augment
    if not augment.mixes:
        return None
    return timm.data.Mixup(
        mixup_alpha=augment.mixup,
        cutmix_alpha=augment.cutmix,
        prob=augment.mixup_prob,
        switch_prob=augment.mixup_switch_prob,
        label_smoothing=label_smoothing,
        num_classes=num_classes,
    )


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
        # Repeats stand side by side: in one batch, and on different workers. An epoch keeps its length.
        order = np.repeat(draw.permutation(self.size), self.repeated)[: self.size]
        seeds = draw.integers(2**63, size=self.size)
        for step in range(len(self)):
            mine = slice(step * self.global_batch + self.rank, (step + 1) * self.global_batch, self.world)
            yield list(zip(order[mine].tolist(), seeds[mine].tolist(), strict=True))


class _Fetch(Dataset[tuple[Tensor, Tensor, dict[str, str]]]):
    """Whole batches from an ImageSet, by lists of items or of (item, seed) pairs."""

    def __init__(self, images: ImageSet) -> None:
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, wanted: list[Any]) -> tuple[Tensor, Tensor, dict[str, str]]:
        if isinstance(wanted[0], tuple):
            items, seeds = zip(*wanted, strict=True)
            return self.images.read(items, seeds)
        return self.images.read(wanted)


class _StreamedTraining(IterableDataset[tuple[Tensor, Tensor, dict[str, str]]]):
    """A worker's training batches from a stream.

    Loading processes take turns, so each gives every so-and-so-many-th step of the epoch; one whose share of the images
    is over before that begins with it again.
    """

    def __init__(self, images: ImageStream, *, batch: int, rank: int, world: int, seed: int) -> None:
        self.images, self.global_batch, self.rank, self.world, self.seed = images, batch, rank, world, seed
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.images) // self.global_batch

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor, dict[str, str]]]:
        loader, loaders = _loading_process()
        damaged: dict[str, str] = {}
        images = self._endless(self.rank * loaders + loader, self.world * loaders, damaged)
        for _ in range(loader, len(self), loaders):
            found, labels = _stacked(islice(images, self.global_batch // self.world))
            yield found, labels, dict(damaged)

    def _endless(self, part: int, parts: int, damaged: dict[str, str]) -> Iterator[tuple[Tensor, int]]:
        """Readable images, until there are more `damaged` ones than may be."""
        order = np.random.default_rng([self.seed, self.epoch]).permutation(self.images.source.shards).tolist()
        draw = np.random.default_rng([self.seed, self.epoch, part])
        while True:
            given = 0
            for stored in _mixed(self.images.part(part, parts, order), draw):
                try:
                    image = self.images.tensor(*stored, seed=int(draw.integers(2**63)))
                except DamagedImage as problem:
                    damaged[problem.name] = problem.reason
                    if len(damaged) > self.images.damaged.limit:
                        return
                    continue
                given += 1
                yield image
            if not given and parts == 1:
                raise ConfigError("the training images cannot be read, not one of them: mend data.root or the split's name")
            if not given:  # a share without images: there are more shares than images in a shard
                part, parts = 0, 1


class _StreamedEvaluation(IterableDataset[tuple[Tensor, Tensor, dict[str, str]]]):
    """A worker's share of a stream, in batches."""

    def __init__(self, images: ImageStream, *, batch: int, rank: int, world: int) -> None:
        self.images, self.batch, self.rank, self.world = images, batch, rank, world

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor, dict[str, str]]]:
        loader, loaders = _loading_process()
        stream = self.images.part(self.rank * loaders + loader, self.world * loaders, range(self.images.source.shards))
        while some := list(islice(stream, self.batch)):
            readable, damaged = [], {}
            for stored in some:
                try:
                    readable.append(self.images.tensor(*stored))
                except DamagedImage as problem:
                    damaged[problem.name] = problem.reason
            yield *_stacked(readable), damaged


def _loading_process() -> tuple[int, int]:
    """(which of a worker's loading processes this is, how many there are)."""
    process = torch.utils.data.get_worker_info()
    return (process.id, process.num_workers) if process else (0, 1)


def _mixed(stored: Iterator[T], draw: np.random.Generator) -> Iterator[T]:
    """All of them in a random order, as far as SHUFFLED at once allow."""
    held = list(islice(stored, SHUFFLED))
    for new in stored:
        place = int(draw.integers(len(held)))
        yield held[place]
        held[place] = new
    yield from (held[place] for place in draw.permutation(len(held)))


def _stacked(found: Iterable[tuple[Tensor, int]]) -> tuple[Tensor, Tensor]:
    """(images (B, C, H, W), labels (B,)); of no image, two empty tensors."""
    pairs = list(found)
    images = torch.stack([image for image, _ in pairs]) if pairs else torch.empty(0)
    return images, torch.tensor([label for _, label in pairs], dtype=torch.int64)


def _as_it_is(batch: Any) -> Any:
    return batch


# Random numbers.


def uniforms(seeds: np.ndarray, count: int) -> np.ndarray:
    """(len(seeds), count) numbers in [0, 1), a hash of seed and column (splitmix64): a batch needs no generator an image."""
    with np.errstate(over="ignore"):
        z = seeds.astype(np.uint64)[:, None] + np.arange(1, count + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        z ^= z >> np.uint64(31)
    return (z >> np.uint64(11)).astype(np.float64) / 2.0**53


def _seed_all(seed: int) -> None:
    """timm's and torchvision's transforms draw from all three; not torch.manual_seed, which would reach the GPU's generator."""
    random.seed(seed)
    np.random.seed(seed & 0xFFFFFFFF)  # noqa: NPY002
    torch.default_generator.manual_seed(seed)


@contextmanager
def _random_state_kept() -> Iterator[None]:
    """Augmentation that runs in the training process must not touch the random numbers of drop path."""
    kept = random.getstate(), np.random.get_state(), torch.default_generator.get_state()  # noqa: NPY002
    try:
        yield
    finally:
        random.setstate(kept[0])
        np.random.set_state(kept[1])  # noqa: NPY002
        torch.default_generator.set_state(kept[2])


def affine_warp(images_BCHW: Tensor, affine: Affine, uniform_B5: np.ndarray) -> Tensor:
    """Each image rotated, shifted, zoomed and sheared about its middle; bilinear, 0 outside.

    Args:
        images_BCHW: images.
        affine: the ranges; as torchvision's RandomAffine has them.
        uniform_B5: numbers in [0, 1) that choose angle, shift along x, shift along y, zoom and shear; 0.5 is the middle
            of each range.
    """
    height, width = images_BCHW.shape[2:]
    angle, shift_x, shift_y, zoom, shear = np.moveaxis(uniform_B5, 1, 0) * 2 - 1
    angle, shear = np.deg2rad(angle * affine.degrees), np.tan(np.deg2rad(shear * affine.shear))
    low, high = affine.scale or (1.0, 1.0)
    zoom = (low + high) / 2 + zoom * (high - low) / 2
    # What is sampled for an output position p is A (p - shift), with A the inverse of rotation x zoom x shear.
    cos, sin = np.cos(angle) / zoom, np.sin(angle) / zoom
    a = np.stack([np.stack([cos + shear * sin, sin - shear * cos], -1), np.stack([-sin, cos], -1)], 1)
    shift = np.stack([shift_x * affine.translate * width, shift_y * affine.translate * height], -1)
    offset = -np.einsum("bij,bj->bi", a, shift)
    # grid_sample counts from -1 to 1 over each side.
    half = np.array([width / 2, height / 2])
    theta = np.concatenate([a * half[None, None, :] / half[None, :, None], (offset / half)[..., None]], -1)
    grid = F.affine_grid(torch.from_numpy(theta).to(images_BCHW.dtype), list(images_BCHW.shape), align_corners=False)
    return F.grid_sample(images_BCHW, grid, mode="bilinear", padding_mode="zeros", align_corners=False)


# Checks and transforms.


def _classes(config: Config, sources: Mapping[str, Any]) -> tuple[int, list[str] | None]:
    train, wanted = sources["train"], config.data.num_classes
    names = getattr(train, "class_names", None)
    for split, source in sources.items():
        others = getattr(source, "class_names", None)
        if names and others and names != others:
            odd = sorted(set(names) ^ set(others))
            which = f"such as {odd[0]!r}" if odd else "in another order"
            raise ConfigError(
                f"the classes of the {split} split differ from those of train, {which}: give all splits the same classes"
            )
    labels = getattr(train, "labels", None)
    found = len(names) if names else int(labels.max()) + 1 if labels is not None and len(labels) else None
    if wanted is None and found is None:
        raise ConfigError(f"data.num_classes is not set, and {title(config)} does not say how many there are: set it")
    if wanted is not None and found is not None and (wanted < found or (names and wanted != found)):
        raise ConfigError(f"data.num_classes is {wanted}, but {title(config)} has {found} classes: set {found} or leave it out")
    return wanted or found or 0, names


def _check_channels(source: Source, split: str, config: Config, channels: int) -> None:
    image = _first_readable(source, split, config.data.max_damaged)
    if isinstance(image, Tensor):
        if image.ndim != 3:
            raise ConfigError(
                f"the {split} images of {title(config)} are tensors of shape {tuple(image.shape)}: give (C, H, W)"
            )
        has = image.shape[0]
    elif isinstance(image, Image.Image):
        has = 1 if image.mode in ("1", "L", "LA", "I", "F", "I;16") else 3
    else:
        raise ConfigError(f"{title(config)} gives images as {type(image).__name__}: give PIL images or tensors (C, H, W)")
    if has != channels:
        raise ConfigError(
            f"the {split} images of {title(config)} have {has} channel{'s' * (has != 1)}, but the model takes {channels}: "
            f"set model.kwargs.in_chans to {has}"
        )


def _first_readable(source: Source, split: str, max_damaged: int) -> Image.Image | Tensor:
    damaged = Damaged(split, max_damaged)
    for index in range(len(source)):
        try:
            return source.image(index)[0]
        except DamagedImage as problem:
            damaged.add({problem.name: problem.reason})
    raise ConfigError(f"the {split} images cannot be read, not one of them: mend data.root or the split's name")


def _check_label(label: int, num_classes: int, name: str) -> None:
    if not 0 <= label < num_classes:
        raise ConfigError(
            f"{name} has the label {label}, but there are {num_classes} classes: set data.num_classes, or mend labels"
        )


def check_batch(config: Config, images: int) -> None:
    """Refuse a training split that does not fill one batch."""
    if config.data.batch_size > images:
        under = " under data.limit" if config.data.limit else ""
        raise ConfigError(
            f"data.batch_size is {config.data.batch_size}, but {title(config)} has {images} training images{under}: lower it"
        )


def _preprocessing(
    config: Config, input_size: tuple[int, int, int], model_cfg: Mapping[str, Any], num_classes: int
) -> dict[str, Any]:
    data, channels = config.data, input_size[0]
    own = {}
    for field, plain in (("mean", 0.5), ("std", 0.5)):
        said, model = getattr(data, field), model_cfg.get(field)
        if said is not None and len(said) not in (1, channels):
            raise ConfigError(
                f"data.{field} has {len(said)} numbers, but the model takes {channels} channels: give one a channel"
            )
        if said is not None:
            own[field] = [float(v) for v in (said if len(said) == channels else said * channels)]
        else:
            own[field] = [float(v) for v in model] if model is not None and len(model) == channels else [plain] * channels
    # A model's crop belongs to its own image size; at another one, all of the image is used.
    at_own_size = tuple(model_cfg.get("input_size") or ())[1:] == tuple(input_size[1:])
    return {
        **own,
        "input_size": list(input_size),
        "interpolation": data.interpolation or model_cfg.get("interpolation") or "bicubic",
        "crop_pct": data.crop_pct or (model_cfg.get("crop_pct") if at_own_size else None) or 1.0,
        "crop_mode": model_cfg.get("crop_mode") or "center",
        "num_classes": num_classes,
    }


def _views(config: Config, preprocessing: Mapping[str, Any]) -> tuple[View, View]:
    """(of training, of evaluation)."""
    augment = config.data.augment
    shared = {key: preprocessing[key] for key in ("input_size", "interpolation", "mean", "std")}
    mean, std = (torch.tensor(preprocessing[key]).view(-1, 1, 1) for key in ("mean", "std"))
    plain = timm.data.create_transform(**shared, crop_pct=preprocessing["crop_pct"], crop_mode=preprocessing["crop_mode"])
    view = View(transform=plain, random=False, affine=None, channels=preprocessing["input_size"][0], black=-mean / std)
    chance = (augment.hflip, augment.vflip, augment.color_jitter, augment.reprob)
    drawn = plain
    if augment.scale is not None or augment.auto_augment or any(chance):
        try:
            drawn = timm.data.create_transform(
                **shared,
                is_training=True,
                scale=augment.scale or (1.0, 1.0),
                ratio=augment.ratio if augment.scale else (1.0, 1.0),
                hflip=augment.hflip,
                vflip=augment.vflip,
                color_jitter=augment.color_jitter or None,  # type: ignore[arg-type]  # timm takes None for off
                auto_augment=augment.auto_augment,
                re_prob=augment.reprob,
                re_mode=augment.remode,
                re_count=augment.recount,
            )
        except (AssertionError, ValueError, KeyError) as problem:
            raise ConfigError(
                f"data.augment cannot be built by timm ({problem}): check auto_augment, {augment.auto_augment!r}"
            ) from problem
        _keep_some_bits(drawn)
    affine = augment.affine
    if affine is not None and not (affine.degrees or affine.translate or affine.scale or affine.shear):
        affine = None
    return View(transform=drawn, random=drawn is not plain, affine=affine, channels=view.channels, black=view.black), view


def _keep_some_bits(transform: Any) -> None:
    """timm's Posterize at full strength asks for 0 bits, which Pillow refuses (it used to give a black image): ask for 1."""
    for step in transform.transforms:
        for op in [*getattr(step, "ops", ()), *(op for policy in getattr(step, "policy", ()) for op in policy)]:
            if op.name.startswith("Posterize"):
                op.level_fn = functools.partial(_one_bit_or_more, op.level_fn)


def _one_bit_or_more(level_fn: Any, level: float, hparams: Mapping[str, Any]) -> tuple[int]:
    return (max(1, level_fn(level, hparams)[0]),)
