"""What the network sees: data sets, their splits, transforms, and loaders whose batches depend on seed and epoch alone.

`digits` is embedded, all else comes through timm's create_dataset or the user's own function. Transforms are timm's; the
affine warp works on whole batches of tensors, because that is what makes small images cheap.
"""

import functools
import importlib
import importlib.util
import itertools
import random
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import timm.data
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset, Sampler
from torchvision.transforms.functional import to_pil_image

from slimsweep.config import Affine, Config, ConfigError, did_you_mean

SPLIT_SEED = 20_210  # not the run's seed: all runs on a data set share its splits, so that they can be compared
CACHE_BYTES = 2**28  # images that need no random transform are kept ready up to here
TRAIN_NAMES = ("train", "training")
VAL_NAMES = ("val", "valid", "validation", "eval", "evaluation")
FOLDER_NAMES = ("", "folder", "imagefolder", "image_folder", "torch/folder", "torch/image_folder")
TORCH_TWO_SPLITS = ("cifar10", "cifar100", "mnist", "kmnist", "fashion_mnist", "qmnist")
TORCH_NAMES = (*TORCH_TWO_SPLITS, "imagenet", "places365", "inaturalist", "inat")
STREAMS = ("wds", "hfids", "tfds")
PACKAGES = {"hfds": "datasets", "hfids": "datasets", "wds": "webdataset", "tfds": "tensorflow_datasets"}


class Source(Protocol):
    """A split as it is stored: random access to images, without a transform."""

    class_names: list[str] | None
    labels: np.ndarray | None  # of all images, where they are known without decoding

    def __len__(self) -> int: ...

    def image(self, index: int) -> tuple[Image.Image | Tensor, int]:
        """One image and its label.

        Raises:
            ConfigError: the image cannot be read.
        """
        ...


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

    def tensor(self, image: Image.Image | Tensor) -> Tensor:
        if isinstance(image, Tensor) and image.dtype == torch.uint8:
            image = to_pil_image(image)
        if isinstance(image, Image.Image):
            mode = "L" if self.channels == 1 else "RGB"
            image = image if image.mode == mode else image.convert(mode)
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
    """

    def __init__(self, source: Source, indices: np.ndarray, view: View, num_classes: int, cache: bool) -> None:
        self.source = source
        self.indices = indices
        self.view = view
        self.num_classes = num_classes
        self.cache = cache and not view.random
        self._images: Tensor | None = None
        self._labels = torch.full((len(indices),), -1)

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        images, labels = self.batch([index])
        return images[0], int(labels[0])

    def batch(self, items: Sequence[int], seeds: Sequence[int] | None = None) -> tuple[Tensor, Tensor]:
        """(images (B, C, H, W), labels (B,)) of `items`; with `seeds`, one an image, the same ones always look the same.

        Raises:
            ConfigError: an image that cannot be read, a label that is not one of the classes.
        """
        if self.view.random and seeds is not None:
            images, labels = self._draw(items, seeds)
        elif self.cache:
            images, labels = self._ready(items)
        else:
            images, labels = self._stack(items)
        if self.view.affine is None:
            return images, labels
        if seeds is None:
            seeds = torch.randint(2**62, (len(items),)).tolist()
        uniform = uniforms(np.asarray(seeds, dtype=np.uint64), 5)
        return self.view.warp(images, uniform), labels

    def _one(self, item: int) -> tuple[Tensor, int]:
        image, label = self.source.image(int(self.indices[item]))
        if not 0 <= label < self.num_classes:
            known = f"there are {self.num_classes} classes"
            raise ConfigError(
                f"image {self.indices[item]} has the label {label}, but {known}: set data.num_classes, or mend labels"
            )
        return self.view.tensor(image), label

    def _stack(self, items: Sequence[int]) -> tuple[Tensor, Tensor]:
        images, labels = zip(*(self._one(item) for item in items), strict=True)
        return torch.stack(images), torch.tensor(labels)

    def _draw(self, items: Sequence[int], seeds: Sequence[int]) -> tuple[Tensor, Tensor]:
        images, labels = [], []
        with _random_state_kept():
            for item, seed in zip(items, seeds, strict=True):
                _seed_all(seed)
                image, label = self._one(item)
                images.append(image)
                labels.append(label)
        return torch.stack(images), torch.tensor(labels)

    def _ready(self, items: Sequence[int]) -> tuple[Tensor, Tensor]:
        chosen = torch.as_tensor(items)
        for item in chosen[self._labels[chosen] < 0].tolist():
            image, label = self._one(item)
            if self._images is None:
                if len(self) * image.numel() * image.element_size() > CACHE_BYTES:
                    self.cache = False
                    return self._stack(items)
                self._images = torch.empty(len(self), *image.shape)
            self._images[item], self._labels[item] = image, label
        assert self._images is not None
        return self._images[chosen], self._labels[chosen]


class ImageStream(IterableDataset[tuple[Tensor, int]]):
    """A streamed split (WebDataset and the like): timm's reader shards and shuffles it, this transforms and cuts it short.

    Args:
        source: timm's IterableImageDataset, without a transform.
        view: how images become tensors.
        seed: of augmentation, with the epoch and the place in the stream.
        limit: images over all workers together, at most.
    """

    def __init__(self, source: Any, view: View, seed: int, limit: int | None) -> None:
        self.source = source
        self.view = view
        self.seed = seed
        self.limit = limit
        self.epoch = 0

    def __len__(self) -> int:
        """Images of one training worker."""
        mine = len(self.source)
        return mine if self.limit is None else min(mine, self.limit // _world())

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch
        self.source.set_epoch(epoch)

    def __iter__(self) -> Iterator[tuple[Tensor, int]]:
        process = torch.utils.data.get_worker_info()
        loaders, loader = (process.num_workers, process.id) if process else (1, 0)
        rank = torch.distributed.get_rank() if torch.distributed.is_initialized() else 0
        seeds = np.random.default_rng([self.seed, self.epoch, rank, loader])
        most = None if self.limit is None else -(-self.limit // (_world() * loaders))
        for image, label in itertools.islice(self.source, most):
            seed = int(seeds.integers(2**63))
            with _random_state_kept():
                _seed_all(seed)
                tensor = self.view.tensor(image)
            yield self.view.warp(tensor[None], uniforms(np.array([seed], dtype=np.uint64), 5))[0], int(label)


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
    sources = _sources(config, "L" if input_size[0] == 1 else "RGB")
    train = sources["train"]
    num_classes, class_names = _classes(config, sources)
    preprocessing = _preprocessing(config, input_size, model_cfg or {}, num_classes)
    train_view, eval_view = _views(config, preprocessing)

    if not isinstance(train, _Indexed):
        views = {"train": train_view, "val": eval_view, "test": eval_view}
        streams = {split: ImageStream(source, views[split], config.seed, wanted.limit) for split, source in sources.items()}
        _check_batch(config, len(streams["train"]) * _world())
        return Data(**streams, num_classes=num_classes, class_names=class_names, preprocessing=preprocessing)

    for split, source in sources.items():
        _check_channels(source, split, config, input_size[0])
    indices = {split: np.arange(len(source)) for split, source in sources.items()}
    if "val" not in sources:
        count = max(1, round(wanted.val_share * len(train)))
        if count >= len(train):
            raise ConfigError(
                f"the training split of {_called(config)} has {len(train)} images, too few to take val_share of them"
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
        sets[split] = ImageSet(source, chosen, view, num_classes, cache=wanted.workers == 0)
    _check_batch(config, len(sets["train"]))
    return Data(**sets, num_classes=num_classes, class_names=class_names, preprocessing=preprocessing)


def check_data(config: Config) -> None:
    """Refuse, without reading images, a data set that does not exist here.

    Raises:
        ConfigError: an unknown name, or a root that is not there.
    """
    name, root = config.data.name, config.data.root
    prefix, slash, rest = name.partition("/")
    prefix = prefix.lower()
    if name == "digits" or (":" in name and not slash):
        return
    if name not in FOLDER_NAMES and not (slash and (prefix in PACKAGES or (prefix == "torch" and rest.lower() in TORCH_NAMES))):
        known = ["digits", "folder", *(f"torch/{n}" for n in TORCH_NAMES)]
        other = "it may be digits, folder, torch/NAME, hfds/NAME, wds/NAME or package.module:function"
        raise ConfigError(f"data.name is {name!r}, which is no known data set; {did_you_mean(name.lower(), known, other)}")
    if root is None and prefix not in ("hfds", "hfids", "tfds"):
        raise ConfigError(f"data.root is not set, but {_called(config)} is read from a folder: set data.root to it")
    if root is not None and prefix not in STREAMS and not Path(root).expanduser().is_dir():
        raise ConfigError(f"data.root is {root!r}, which is no folder here: mend the path, or put {_called(config)} there")


# Loaders.


class TrainLoader(DataLoader[Any]):
    """Batches of (images (B, C, H, W), labels (B,)); `set_epoch` before each epoch decides order and augmentation."""

    def set_epoch(self, epoch: int) -> None:
        ordered: Any = self.sampler if isinstance(self.sampler, _ShuffledBatches) else self.dataset
        ordered.set_epoch(epoch)
        # Loading processes take their seeds from here, and streams shuffle by them.
        self.generator.manual_seed(ordered.seed * 1_000_003 + epoch)


def train_loader(data: Data, config: Config, rank: int = 0, world: int = 1, seed: int | None = None) -> TrainLoader:
    """Training batches of one of `world` workers: each holds its share of the same global batch, whatever `world` is.

    Order and augmentation are functions of (seed, epoch) alone, so a resumed run sees what an uninterrupted one would
    have seen. Images that do not fill a last batch wait for another epoch.

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
    common: dict[str, Any] = {
        "num_workers": workers,
        "persistent_workers": workers > 0,
        "generator": torch.Generator(),
        "pin_memory": torch.cuda.is_available(),
    }
    if isinstance(data.train, ImageStream):
        data.train.source.set_loader_cfg(num_workers=workers)
        # Fresh processes each epoch: ones that stay would not hear of the new epoch.
        return TrainLoader(data.train, batch_size=batch // world, drop_last=True, **{**common, "persistent_workers": False})
    batches = _ShuffledBatches(
        size=len(data.train),
        batch=batch,
        rank=rank,
        world=world,
        seed=config.seed if seed is None else seed,
        repeated=config.data.augment.repeated,
    )
    return TrainLoader(_Fetch(data.train), sampler=batches, batch_size=None, collate_fn=_as_it_is, **common)


def eval_loader(dataset: ImageSet | ImageStream, config: Config, rank: int = 0, world: int = 1) -> DataLoader[Any]:
    """Batches of one of `world` workers, in order; all workers together give each image exactly once."""
    batch = config.data.eval_batch_size or max(1, config.data.batch_size // world)
    common: dict[str, Any] = {"num_workers": config.data.workers, "pin_memory": torch.cuda.is_available()}
    if isinstance(dataset, ImageStream):
        dataset.source.set_loader_cfg(num_workers=config.data.workers)
        return DataLoader(dataset, batch_size=batch, **common)
    mine = range(rank, len(dataset), world)
    batches = [list(mine[start : start + batch]) for start in range(0, len(mine), batch)]
    return DataLoader(_Fetch(dataset), sampler=batches, batch_size=None, collate_fn=_as_it_is, **common)


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


class _Fetch(Dataset[tuple[Tensor, Tensor]]):
    """Whole batches from an ImageSet, by lists of items or of (item, seed) pairs."""

    def __init__(self, images: ImageSet) -> None:
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, wanted: list[Any]) -> tuple[Tensor, Tensor]:
        if isinstance(wanted[0], tuple):
            items, seeds = zip(*wanted, strict=True)
            return self.images.batch(items, seeds)
        return self.images.batch(wanted)


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


def _world() -> int:
    return torch.distributed.get_world_size() if torch.distributed.is_initialized() else 1


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


def split_off(labels: np.ndarray | None, size: int, count: int) -> tuple[np.ndarray, np.ndarray]:
    """(the rest, `count` of them), both sorted indices below `size`; classes keep their shares where labels are known.

    The same for the same labels, on every machine and for every seed of a run.
    """
    order = np.random.default_rng(SPLIT_SEED).permutation(size)
    place = np.empty(size)
    groups = [order] if labels is None else [order[labels[order] == c] for c in np.unique(labels)]
    for members in groups:
        place[members] = (np.arange(len(members)) + 0.5) / len(members)
    rank = np.empty(size, dtype=np.int64)
    rank[order] = np.arange(size)
    by_place = np.lexsort((rank, place))
    return np.sort(by_place[count:]), np.sort(by_place[:count])


# Sources.


class _Indexed:
    """A map-style data set of (image, label), with labels and classes where it has them."""

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
        try:
            image, label = self.dataset[index]
        except OSError as problem:
            files = getattr(self.dataset, "samples", None)
            name = files[index][0] if files else f"image {index} of {self.called}"
            raise ConfigError(f"{name} cannot be read ({problem}): replace or remove it") from problem
        return image, int(label)


class _Read(_Indexed):
    """timm's reader without its ImageDataset, which takes a neighbour's image in place of a damaged one."""

    def __init__(self, reader: Any, called: str, mode: str) -> None:
        self.dataset = reader
        self.called = called
        self.mode = mode
        classes = getattr(reader, "class_to_idx", None) or {}
        self.class_names = sorted(classes, key=classes.__getitem__) or None
        samples = getattr(reader, "samples", None)
        self.labels = np.array([label for _, label in samples]) if samples and self.class_names else None

    def image(self, index: int) -> tuple[Image.Image | Tensor, int]:
        try:
            stored, label = self.dataset[index][:2]
            with stored, Image.open(stored) as image:
                return image.convert(self.mode), int(-1 if label is None else label)
        except (OSError, SyntaxError, Image.DecompressionBombError) as problem:
            name = self.dataset.filename(index, absolute=True)
            raise ConfigError(f"the image {name} cannot be read ({problem}): replace or remove it") from problem


class _Digits:
    """scikit-learn's 1,797 images of handwritten digits, grey, 8 x 8."""

    classes = tuple("0123456789")

    def __init__(self, images: np.ndarray, targets: np.ndarray) -> None:
        self.images = images
        self.targets = targets

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        return Image.fromarray(self.images[index]), int(self.targets[index])


def _sources(config: Config, mode: str) -> dict[str, Any]:
    """train, test, and val where the data set has one; as they are stored."""
    if config.data.name == "digits":
        return _digits(config)
    if ":" in config.data.name and "/" not in config.data.name:
        return _from_function(config)
    return _from_timm(config, mode)


def _digits(config: Config) -> dict[str, _Indexed]:
    for field, value, only in (("train_split", config.data.train_split, "train"), ("val_split", config.data.val_split, "val")):
        if value not in (None, only):
            raise ConfigError(f"data.{field} is {value!r}, but digits has the splits train, val and test: leave it out")
    if config.data.test_split not in (None, "test"):
        raise ConfigError(f"data.test_split is {config.data.test_split!r}, but digits has train, val and test: leave it out")
    images, labels = _stored_digits()
    rest, test = split_off(labels, len(labels), 360)
    train, val = split_off(labels[rest], len(rest), 360)
    parts = {"train": rest[train], "val": rest[val], "test": test}
    return {split: _Indexed(_Digits(images[part], labels[part]), f"digits {split}") for split, part in parts.items()}


def _stored_digits() -> tuple[np.ndarray, np.ndarray]:
    """(images (1797, 8, 8) from 0 to 255, labels (1797,))."""
    # scikit-learn takes 3.5 s to import, in every worker anew; its file, 6 ms to read.
    package = importlib.util.find_spec("sklearn")
    if package is None or package.origin is None:
        raise ConfigError("digits needs the package scikit-learn: pip install scikit-learn")
    file = Path(package.origin).parent / "datasets" / "data" / "digits.csv.gz"
    if file.is_file():
        pixels, labels = np.split(np.loadtxt(file, delimiter=",", dtype=np.uint8), [64], axis=1)
    else:
        from sklearn.datasets import load_digits

        pixels, labels = load_digits(return_X_y=True)
    return np.round(pixels.reshape(-1, 8, 8) * (255 / 16)).astype(np.uint8), labels.reshape(-1).astype(np.int64)


def _from_function(config: Config) -> dict[str, _Indexed]:
    name = config.data.name
    module_name, _, function_name = name.partition(":")
    try:
        function = getattr(importlib.import_module(module_name), function_name)
    except (ImportError, AttributeError, ValueError) as problem:
        raise ConfigError(
            f"data.name is {name!r}, but that cannot be imported ({problem}): run where {module_name} is on Python's path"
        ) from problem
    returned = function(config)
    if not isinstance(returned, tuple) or len(returned) != 3:
        raise ConfigError(f"{name} must return (train, val or None, test), not {type(returned).__name__}: mend its return")
    found = {split: dataset for split, dataset in zip(("train", "val", "test"), returned, strict=True) if dataset is not None}
    for split in ("train", "test"):
        if split not in found:
            raise ConfigError(f"{name} returned None for {split}: only the validation set may be None")
    for split, dataset in found.items():
        if not (hasattr(dataset, "__len__") and hasattr(dataset, "__getitem__")) or len(dataset) == 0:
            raise ConfigError(f"{name} must return data sets with a length above 0 and images by index; its {split} is not one")
    return {split: _Indexed(dataset, f"{name} {split}") for split, dataset in found.items()}


def _from_timm(config: Config, mode: str) -> dict[str, Any]:
    prefix, _, rest = config.data.name.partition("/")
    prefix, rest = prefix.lower(), rest.lower()
    folder = config.data.name in FOLDER_NAMES
    names = {"train": config.data.train_split, "test": config.data.test_split or _usual_test_split(config, folder)}
    if config.data.val_split is not None:
        names["val"] = config.data.val_split
    kept = {split: ("train" if name in TRAIN_NAMES else "val" if name in VAL_NAMES else name) for split, name in names.items()}
    if prefix == "torch" and rest in TORCH_TWO_SPLITS:  # all that is not train is its test set
        kept = {split: name if name == "train" else "test" for split, name in kept.items()}
    for one, other in (("train", "test"), ("val", "test"), ("val", "train")):
        if one in kept and kept[one] == kept[other]:
            mend = "leave data.val_split out, and a share of the training images is taken" if one == "val" else "name another"
            raise ConfigError(f"the {one} and {other} splits of {_called(config)} are the same one, {names[other]!r}: {mend}")
    return {
        split: _one_from_timm(config, names[split], split, mode, folder) for split in ("train", "val", "test") if split in names
    }


def _usual_test_split(config: Config, folder: bool) -> str:
    prefix, _, rest = config.data.name.lower().partition("/")
    if folder:
        return "test" if (Path(config.data.root or "").expanduser() / "test").is_dir() else "validation"
    if prefix == "torch":
        return "test" if rest in TORCH_TWO_SPLITS else "validation"
    return "test" if config.data.val_split in VAL_NAMES else "validation"


def _one_from_timm(config: Config, name: str, split: str, mode: str, folder: bool) -> Any:
    prefix = config.data.name.partition("/")[0].lower()
    called = f"{_called(config)} {name}"
    root = None if config.data.root is None else str(Path(config.data.root).expanduser())
    if folder:
        assert root is not None
        root = str(_split_folder(Path(root), name))
    streamed: dict[str, Any] = {}
    if prefix in STREAMS:
        if config.data.val_split is None:
            raise ConfigError(
                f"data.val_split is not set, but {_called(config)} is a stream, of which no share can be kept: name one"
            )
        streamed = {"is_training": split == "train", "batch_size": config.data.batch_size, "seed": config.seed}
    package = PACKAGES.get(prefix)
    if package is not None and importlib.util.find_spec(package) is None:  # timm's readers print and raise, each its own way
        raise ConfigError(f"{_called(config)} needs the package {package}: pip install {package.replace('_', '-')}")
    try:
        dataset = timm.data.create_dataset(
            "" if folder else config.data.name,
            root=root,
            split=name,
            search_split=False,
            download=False,
            input_img_mode=mode,
            **streamed,
        )
    except (ImportError, RuntimeError, AssertionError, OSError, ValueError, KeyError) as problem:
        where = f" under {root!r}" if root else ""
        said = str(problem).splitlines()[0] if str(problem) else type(problem).__name__
        said = said.replace("You can use download=True to download it", "").strip(" .")
        raise ConfigError(
            f"the {name} split of {_called(config)} cannot be opened{where} ({said}): {_mend(config)}"
        ) from problem
    if isinstance(dataset, IterableDataset):
        return dataset
    return _Read(dataset.reader, called, mode) if hasattr(dataset, "reader") else _Indexed(dataset, called)


def _mend(config: Config) -> str:
    rest = config.data.name.partition("/")[2].lower()
    raw = {"mnist": "MNIST", "kmnist": "KMNIST", "fashion_mnist": "FashionMNIST", "qmnist": "QMNIST"}.get(rest)
    if raw:
        return f"nothing is downloaded; put its idx files into {raw}/raw below data.root"
    return "nothing is downloaded; mend data.root or the split's name"


def _split_folder(root: Path, name: str) -> Path:
    alike = TRAIN_NAMES if name in TRAIN_NAMES else VAL_NAMES if name in VAL_NAMES else ()
    for candidate in (name, *alike):
        if (root / candidate).is_dir():
            return root / candidate
    there = ", ".join(sorted(p.name for p in root.iterdir() if p.is_dir())[:8]) or "no folders"
    raise ConfigError(
        f"data.root {str(root)!r} has no folder for the split {name!r}, it has {there}: name the split, or mend data.root"
    )


def _called(config: Config) -> str:
    return "the image folder" if config.data.name in FOLDER_NAMES else config.data.name


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
        raise ConfigError(f"data.num_classes is not set, and {_called(config)} does not say how many there are: set it")
    if wanted is not None and found is not None and (wanted < found or (names and wanted != found)):
        raise ConfigError(
            f"data.num_classes is {wanted}, but {_called(config)} has {found} classes: set {found} or leave it out"
        )
    return wanted or found or 0, names


def _check_channels(source: Source, split: str, config: Config, channels: int) -> None:
    image, _ = source.image(0)
    if isinstance(image, Tensor):
        if image.ndim != 3:
            raise ConfigError(
                f"the {split} images of {_called(config)} are tensors of shape {tuple(image.shape)}: give (C, H, W)"
            )
        has = image.shape[0]
    elif isinstance(image, Image.Image):
        has = 1 if image.mode in ("1", "L", "LA", "I", "F", "I;16") else 3
    else:
        raise ConfigError(f"{_called(config)} gives images as {type(image).__name__}: give PIL images or tensors (C, H, W)")
    if has != channels:
        raise ConfigError(
            f"the {split} images of {_called(config)} have {has} channel{'s' * (has != 1)}, but the model takes {channels}: "
            f"set model.kwargs.in_chans to {has}"
        )


def _check_batch(config: Config, images: int) -> None:
    if config.data.batch_size > images:
        under = " under data.limit" if config.data.limit else ""
        raise ConfigError(
            f"data.batch_size is {config.data.batch_size}, but {_called(config)} has {images} training images{under}: lower it"
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
