"""The three splits of a data set, ready for a network: training, validation and test, with what does not fit refused."""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import islice
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor

from slimsweep.config import Config, ConfigError, DataConfig
from slimsweep.data.damaged import Damaged, DamagedImage
from slimsweep.data.fingerprint import Fingerprint, fingerprint_of, shared_images
from slimsweep.data.images import ImageSet, ImageStream, check_label
from slimsweep.data.labels import spread
from slimsweep.data.readers import IndexedImages, Source
from slimsweep.data.sources import SPLIT_SEED, check_data, sources_of, split_off, title
from slimsweep.data.transforms import preprocessing_of, random_state_kept, views_of

LEAST_READ = 8  # images per split whose labels are read before anything trains, however long it takes
MOST_STREAMED = 64  # and of a stream at most these


@dataclass(frozen=True, kw_only=True)
class Data:
    """Three splits, ready for a network. A random-access split is an ImageSet, a streamed one an ImageStream."""

    train: ImageSet | ImageStream  # with the training transform
    val: ImageSet | ImageStream
    test: ImageSet | ImageStream
    num_classes: int
    class_names: list[str] | None
    # What a saved model needs: mean, std, input_size, interpolation, crop_pct, crop_mode, num_classes.
    preprocessing: dict[str, Any]
    settings: DataConfig  # batch sizes, loading processes and augmentation, for loaders

    @cached_property
    def fingerprint(self) -> Fingerprint:
        """By which it is seen that another process, or a later start, has the same splits (`fingerprint_of`)."""
        with random_state_kept():
            splits = {"train": self.train, "val": self.val, "test": self.test}
            return fingerprint_of(splits, self.num_classes, self.class_names)


def load_data(config: Config, input_size: tuple[int, int, int], model_cfg: Mapping[str, Any] | None = None) -> Data:
    """The three splits of `config.data`, as a model with this input sees them.

    The caller's random numbers stay as they were.

    Args:
        config: the configuration; `config.data.limit` cuts each split, the same images each time.
        input_size: (C, H, W) of the model's input.
        model_cfg: timm's pretrained_cfg, for mean, std, interpolation and crop where the configuration has none.

    Raises:
        ConfigError: unknown data set, a root or split that is not there, classes, labels or channels that do not fit.
    """
    with random_state_kept():
        return _load(config, input_size, model_cfg or {})


def _load(config: Config, input_size: tuple[int, int, int], model_cfg: Mapping[str, Any]) -> Data:
    check_data(config)
    settings = config.data
    if settings.image_size is not None and (settings.image_size, settings.image_size) != tuple(input_size[1:]):
        size = f"{input_size[1]} x {input_size[2]}"
        raise ConfigError(
            f"data.image_size is {settings.image_size}, but the model takes {size}: set model.kwargs.img_size alike"
        )
    sources = sources_of(config, "L" if input_size[0] == 1 else "RGB")
    train = sources["train"]
    num_classes, class_names = _classes(config, sources)
    preprocessing = preprocessing_of(config, input_size, model_cfg, num_classes)
    train_view, eval_view = views_of(config, preprocessing)

    if not isinstance(train, IndexedImages):
        views = {"train": train_view, "val": eval_view, "test": eval_view}
        streams = {
            split: ImageStream(source, views[split], num_classes, settings.limit, Damaged(split, settings.max_damaged))
            for split, source in sources.items()
        }
        check_batch(config, len(streams["train"]))
        return Data(**streams, num_classes=num_classes, class_names=class_names, preprocessing=preprocessing, settings=settings)

    _check_apart(config, sources)
    for split, source in sources.items():
        _check_channels(source, split, config, input_size[0])
    indices = {split: np.arange(len(source)) for split, source in sources.items()}
    if "val" not in sources:
        count = max(1, round(settings.val_share * len(train)))
        if count >= len(train):
            raise ConfigError(
                f"the training split of {title(config)} has {len(train)} images, too few to take val_share of them"
            )
        indices["train"], indices["val"] = split_off(train.labels, len(train), count)
        sources["val"] = train
    sets = {}
    for split in ("train", "val", "test"):
        chosen, source = indices[split], sources[split]
        if settings.limit is not None and settings.limit < len(chosen):
            labels = None if source.labels is None else source.labels[chosen]
            chosen = chosen[split_off(labels, len(chosen), settings.limit)[1]]
        view = train_view if split == "train" else eval_view
        damaged = Damaged(split, settings.max_damaged)
        sets[split] = ImageSet(source, chosen, view, num_classes, cache=settings.workers == 0, damaged=damaged)
    check_batch(config, len(sets["train"]))
    return Data(**sets, num_classes=num_classes, class_names=class_names, preprocessing=preprocessing, settings=settings)


def _classes(config: Config, sources: Mapping[str, Any]) -> tuple[int, list[str] | None]:
    """(number of classes, their names where they are known)."""
    train, asked = sources["train"], config.data.num_classes
    names = getattr(train, "class_names", None)
    for split, source in sources.items():
        others = getattr(source, "class_names", None)
        if names and others and names != others:
            different = sorted(set(names) ^ set(others))
            which = f"such as {different[0]!r}" if different else "in another order"
            raise ConfigError(
                f"the classes of the {split} split differ from those of train, {which}: give all splits the same classes"
            )
    labels = getattr(train, "known_labels", None)
    highest = int(labels.max()) + 1 if labels is not None and len(labels) else None
    found = len(names) if names else highest if getattr(train, "labels", None) is not None else None
    if asked is None and found is None:
        seen = f" (the highest training label is {highest - 1})" if highest else ""
        raise ConfigError(f"data.num_classes is not set, and {title(config)} does not say how many there are{seen}: set it")
    if asked is not None and names and asked != found:
        raise ConfigError(f"data.num_classes is {asked}, but {title(config)} has {found} classes: set {found} or leave it out")
    count = asked or found or 0
    for split, source in sources.items():
        _check_labels(getattr(source, "known_labels", None), split, config, count)
    return count, names


def _check_labels(labels: np.ndarray | None, split: str, config: Config, num_classes: int) -> None:
    """Refuse labels, where they are known, that are not from 0 to below the number of classes."""
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
        f"which is none of the {num_classes} classes, 0 to {num_classes - 1}: {way_out}"
    )


def check_classes(data: Data) -> None:
    """Refuse labels that leave a class out where nothing else says how many classes there are.

    Raises:
        ConfigError: such as for labels from 1 to 10.
    """
    labels = data.train.source.known_labels if isinstance(data.train, ImageSet) else None
    if labels is None or data.class_names or data.settings.num_classes is not None:
        return
    used = np.unique(labels)
    if len(used) < data.num_classes:
        missing = np.setdiff1d(np.arange(data.num_classes), used[: data.num_classes])[:3]
        raise ConfigError(
            f"the training labels of {data.settings.name} go from {used[0]} to {used[-1]}, but no image has the label "
            f"{missing[0]}: number the classes from 0 without gaps, or, if some classes have no training images on purpose, "
            f"set data.num_classes to {data.num_classes}"
        )


def check_more_labels(data: Data, seconds: float = 2.0) -> None:
    """Read labels that are not known, as many as there is time for, evenly over each split, and refuse wrong ones.

    Args:
        data: the splits.
        seconds: for each split, after which no further image is read; at least a few are.

    Raises:
        ConfigError: names the first wrong label.
    """
    for split, images in (("train", data.train), ("val", data.val), ("test", data.test)):
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


def _check_apart(config: Config, sources: Mapping[str, IndexedImages]) -> None:
    """Refuse splits that have images in common, as far as that is seen without reading images."""
    for one, other in (("train", "test"), ("val", "test"), ("train", "val")):
        if one not in sources or other not in sources:
            continue
        common = shared_images(sources[one].dataset, sources[other].dataset)
        if common is not None:
            way_out = "give each image to one split"
            way_out += "; where there is no validation split, let it be None" if "val" in (one, other) else ""
            raise ConfigError(
                f"the {one} and {other} splits of {title(config)} have {common[0]:,} images in common, such as {common[1]}, so "
                f"that results on {other} would be of images known before: {way_out}"
            )


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
    raise ConfigError(f"the {split} images cannot be read, not one of them: fix data.root or the split's name")


def check_batch(config: Config, images: int) -> None:
    """Refuse a training split that does not fill one batch."""
    if config.data.batch_size > images:
        under = " under data.limit" if config.data.limit else ""
        raise ConfigError(
            f"data.batch_size is {config.data.batch_size}, but {title(config)} has {images} training images{under}: lower it"
        )
