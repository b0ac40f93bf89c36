"""The images of a split as the network sees them: with random access (`ImageSet`) or streamed (`ImageStream`)."""

import functools
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from slimsweep.config import ConfigError
from slimsweep.data.damaged import Damaged, DamagedImage, named
from slimsweep.data.readers import Shards, Source, decode
from slimsweep.data.transforms import View, random_state_kept, seed_all, uniforms

T = TypeVar("T")

CACHE_BYTES = 2**28  # most that an ImageSet keeps in memory as tensors


class ImageSet(Dataset[tuple[Tensor, int]]):
    """Some images of a source, as the network sees them: `dataset[i]` is (image (C, H, W), label).

    Args:
        source: the images as they are stored.
        indices: which of them, in this order.
        view: how they become tensors.
        num_classes: labels are from 0 to below this; 0 where they are not used.
        cache: keep tensors in memory, if their transform draws no random numbers and all fit into CACHE_BYTES.
        damaged: counts images that cannot be read; None allows none.
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
        self.cache = cache and not view.random and not source.draws
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
        """(images (B, C, H, W), labels (B,)) of `items`, as `read` gives them; damaged images are counted.

        Raises:
            ConfigError: too many images that cannot be read, a label that is not one of the classes.
        """
        images, labels, damaged = self.read(items, seeds)
        self.damaged.skip(damaged)
        return images, labels

    def read(self, items: Sequence[int], seeds: Sequence[int] | None = None) -> tuple[Tensor, Tensor, dict[str, str]]:
        """(images (B, C, H, W), labels (B,), the reasons of damaged images by name).

        Args:
            items: places in this set, from 0.
            seeds: of the augmentation, one per item, as in training: an item with the same seed always looks the same, and
                the next readable image takes the place of a damaged one, so that B stays, up to the limit of damaged images.
                None, as in evaluation, leaves damaged images out.

        Raises:
            ConfigError: a label that is not one of the classes.
        """
        damaged: dict[str, str] = {}
        if self.source.draws or (self.view.random and seeds is not None):
            with random_state_kept():
                images, labels = self._stack(items, seeds, damaged)
        elif self.cache:
            images, labels = self._cached(items, seeds, damaged)
        else:
            images, labels = self._stack(items, seeds, damaged)
        if self.view.affine is None or not len(labels):
            return images, labels, damaged
        if seeds is None or len(seeds) != len(labels):
            seeds = torch.randint(2**62, (len(labels),)).tolist()
        uniform = uniforms(np.asarray(seeds, dtype=np.uint64), 5)
        return self.view.warp(images, uniform), labels, damaged

    def _one(self, item: int) -> tuple[Tensor, int]:
        index = int(self.indices[item])
        image, label = self.source.image(index)
        check_label(label, self.num_classes, f"image {index} of the {self.damaged.split} split")
        with named(lambda: self.source.name(index)):
            pixels = self.view.pixels(image)
        return self.view.transform(pixels), label

    def _stack(self, items: Sequence[int], seeds: Sequence[int] | None, damaged: dict[str, str]) -> tuple[Tensor, Tensor]:
        def one(item: int, seed: int | None) -> tuple[Tensor, int]:
            if self.source.draws:  # also in evaluation: the same image in each process
                seed_all(int(self.indices[item]) if seed is None else seed)
            elif self.view.random and seed is not None:
                seed_all(seed)
            return self._one(item)

        given = [None] * len(items) if seeds is None else seeds
        reads = (
            self._readable(item, functools.partial(one, seed=seed), seed is not None, damaged)
            for item, seed in zip(items, given, strict=True)
        )
        return stacked(found for found in reads if found is not None)

    def _readable(self, item: int, read: Callable[[int], T], training: bool, damaged: dict[str, str]) -> T | None:
        """What `read` returns for an item, or in training for the next that is not damaged; None where there is none."""
        for other in range(item, item + len(self) if training else item + 1):
            try:
                return read(other % len(self))
            except DamagedImage as problem:
                damaged[problem.name] = problem.reason
                if len(damaged) > self.damaged.limit:
                    break
        return None

    def _cached(self, items: Sequence[int], seeds: Sequence[int] | None, damaged: dict[str, str]) -> tuple[Tensor, Tensor]:
        chosen = torch.as_tensor(items)
        if (self._labels[chosen] < 0).any():
            cached = [self._readable(item, self._fill_cache, seeds is not None, damaged) for item in items]
            if not self.cache:  # they do not fit
                return self._stack(items, seeds, damaged)
            chosen = torch.tensor([item for item in cached if item is not None], dtype=torch.int64)
        if self._images is None:
            return stacked([])
        return self._images[chosen], self._labels[chosen]

    def _fill_cache(self, item: int) -> int:
        """Put an item's tensor into the cache; returns the item."""
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
    """A split that is streamed (WebDataset, Hugging Face), as the network sees it; loaders share it out among workers.

    Args:
        source: its shards.
        view: how images become tensors.
        num_classes: labels are from 0 to below this; 0 where they are not used.
        limit: how many images are used at most: the first ones of each shard.
        damaged: counts images that cannot be read; None allows none.
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
        """Name, stored image and label of each image in one share; shares do not overlap, and together hold each image once.

        Args:
            part: which share, from 0. A share is whole shards; where there are more shares than shards, every n-th image of one
                shard that n shares have in common.
            parts: number of shares.
            order: the shards, in the order in which they are given to shares and read.
        """
        shards = len(order)
        sharing = len(range(part % shards, parts, shards))  # 1 where there are enough shards
        for shard in order[part % shards :: parts]:
            most = None if self.limit is None else len(range(shard, self.limit, shards))
            yield from islice(islice(self.source.read(shard), most), part // shards, None, sharing)

    def tensor(self, name: str, stored: Any, label: int, seed: int | None = None) -> tuple[Tensor, int]:
        """An image (C, H, W) and its label; with the same seed, an image always looks the same.

        Raises:
            DamagedImage: it cannot be read.
            ConfigError: a label that is not one of the classes.
        """
        check_label(label, self.num_classes, name)
        with named(lambda: name), self.source.open(stored) as file:
            image = decode(file, self.view.mode)
        if seed is None:
            return self.view.transform(image), label
        with random_state_kept():
            seed_all(seed)
            tensor = self.view.transform(image)
        return self.view.warp(tensor[None], uniforms(np.array([seed], dtype=np.uint64), 5))[0], label


def stacked(found: Iterable[tuple[Tensor, int]]) -> tuple[Tensor, Tensor]:
    """(images (B, C, H, W), labels (B,)) from single images and labels; two empty tensors where there are none."""
    pairs = list(found)
    images = torch.stack([image for image, _ in pairs]) if pairs else torch.empty(0)
    return images, torch.tensor([label for _, label in pairs], dtype=torch.int64)


def check_label(label: int, num_classes: int, name: str) -> None:
    """Refuse a label that is not one of the classes, where there are any; `name` is the image's, for the message."""
    if num_classes and not 0 <= label < num_classes:
        raise ConfigError(
            f"{name} has the label {label}, but there are {num_classes} classes, 0 to {num_classes - 1}: "
            "set data.num_classes, or fix the labels"
        )
