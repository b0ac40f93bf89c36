"""The three splits of a data set, ready for a network: training, validation and test, with what does not fit refused."""

import functools
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor

from slimsweep.config import Config, ConfigError, DataConfig
from slimsweep.data.damaged import Damaged, DamagedImage, named
from slimsweep.data.fingerprint import Fingerprint, check_apart, fingerprint_of
from slimsweep.data.folders import few
from slimsweep.data.images import ImageSet, ImageStream
from slimsweep.data.label_checks import check_known_labels
from slimsweep.data.labels import spread
from slimsweep.data.pixels import is_grey, stays_tensor
from slimsweep.data.readers import IndexedImages, StoredImages
from slimsweep.data.sources import check_data, sources_of, split_off, title
from slimsweep.data.transforms import preprocessing_of, random_state_kept, views_of

SAMPLE = 32  # images of a split that are looked at before a run
DARK_SAMPLE = 8  # and of files, for their brightness
DARK = 0.065  # of white: 12 bits that are stored in 16 reach 1/16


@dataclass(frozen=True, kw_only=True)
class Data:
    """Three splits, ready for a network. A random-access split is an ImageSet, a streamed one an ImageStream."""

    train: ImageSet | ImageStream  # with the training transform
    val: ImageSet | ImageStream
    test: ImageSet | ImageStream
    num_classes: int  # 0 where labels are not used
    class_names: list[str] | None
    # What a saved model needs: mean, std, input_size, interpolation, crop_pct, crop_mode, num_classes.
    preprocessing: dict[str, Any]
    settings: DataConfig  # batch sizes, loading processes and augmentation, for loaders
    notes: list[str]  # what whoever starts a run should read: what is not used, what is missing
    draw: dict[str, Any] | None = None  # how the splits were drawn, where the data set has none
    sources: Mapping[str, Any] = field(default_factory=dict, repr=False)  # as `sources_of` listed them; empty for streams

    @cached_property
    def fingerprint(self) -> Fingerprint:
        """By which it is seen that another process, or a later start, has the same splits (`fingerprint_of`)."""
        with random_state_kept():
            splits = {"train": self.train, "val": self.val, "test": self.test}
            found = fingerprint_of(splits, self.num_classes, self.class_names)
        return found if self.draw is None else {**found, "draw": self.draw}


def load_data(
    config: Config,
    input_size: tuple[int, int, int],
    model_cfg: Mapping[str, Any] | None = None,
    listed: Mapping[str, Any] | None = None,
) -> Data:
    """The three splits of `config.data`, as a model with this input sees them.

    The caller's random numbers stay as they were.

    Args:
        config: the configuration; `config.data.limit` cuts each split, the same images each time.
        input_size: (C, H, W) of the model's input.
        model_cfg: timm's pretrained_cfg, for mean, std, interpolation and crop where the configuration has none.
        listed: `Data.sources` of a configuration that differs in batch sizes and augmentation alone, so that the images are not
            listed again; None or empty lists them.

    Raises:
        ConfigError: unknown data set, a root or split that is not there, classes, labels or channels that do not fit.
    """
    with random_state_kept():
        return _load(config, input_size, model_cfg or {}, listed)


def _load(
    config: Config, input_size: tuple[int, int, int], model_cfg: Mapping[str, Any], listed: Mapping[str, Any] | None
) -> Data:
    check_data(config)
    settings = config.data
    if settings.image_size is not None and (settings.image_size, settings.image_size) != tuple(input_size[1:]):
        size = f"{input_size[1]} x {input_size[2]}"
        raise ConfigError(
            f"data.image_size is {settings.image_size}, but the model takes {size}: set model.kwargs.img_size alike"
        )
    sources = dict(listed or sources_of(config, "L" if input_size[0] == 1 else "RGB"))
    found = dict(sources)
    train = sources["train"]
    num_classes, class_names = _classes(config, sources) if settings.num_classes != 0 else (0, None)
    preprocessing = preprocessing_of(config, input_size, model_cfg, num_classes)
    train_view, eval_view = views_of(config, preprocessing)

    if not isinstance(train, IndexedImages):
        views = {"train": train_view, "val": eval_view, "test": eval_view}
        streams: dict[str, Any] = {
            split: ImageStream(source, views[split], num_classes, settings.limit, Damaged(split, settings.max_damaged))
            for split, source in sources.items()
        }
        check_batch(config, len(streams["train"]))
        return Data(
            **streams,
            num_classes=num_classes,
            class_names=class_names,
            preprocessing=preprocessing,
            settings=settings,
            notes=[],
        )

    check_apart({split: source.dataset for split, source in sources.items()}, title(config))
    indices = {split: np.arange(len(source)) for split, source in sources.items()}
    if parts := getattr(train, "parts", None):
        indices, sources = dict(parts), dict.fromkeys(parts, train)
    for split in ("test", "val"):  # folders of images without labels may have no test split
        if split not in sources:
            whole = indices["train"]
            count = max(1, round(settings.val_share * len(train)))
            if count >= len(whole):
                raise ConfigError(
                    f"the training split of {title(config)} has {len(train)} images, too few to take val_share of them"
                )
            rest, taken = split_off(None if train.labels is None else train.labels[whole], len(whole), count)
            indices["train"], indices[split] = whole[rest], whole[taken]
            sources[split] = train
    notes = [note for source in dict.fromkeys(sources.values()) for note in getattr(source, "notes", ())]
    sets = {}
    for split in ("train", "val", "test"):
        chosen, source = indices[split], sources[split]
        if num_classes and source.known_labels is not None:
            notes += _absent_classes(split, source.known_labels[chosen], num_classes, class_names)
        if settings.limit is not None and settings.limit < len(chosen):
            labels = None if source.labels is None else source.labels[chosen]
            chosen = chosen[split_off(labels, len(chosen), settings.limit)[1]]
        view = train_view if split == "train" else eval_view
        damaged = Damaged(split, settings.max_damaged)
        sets[split] = ImageSet(source, chosen, view, num_classes, cache=settings.workers == 0, damaged=damaged)
        _check_images(sets[split], split, config)
    notes += _almost_black(sets["train"])
    if num_classes == 1:
        notes.append(f"all images are of one class ({few(class_names or ['0'])}), so that any model is right: check data.root")
    check_batch(config, len(sets["train"]))
    return Data(
        **sets,
        num_classes=num_classes,
        class_names=class_names,
        preprocessing=preprocessing,
        settings=settings,
        notes=notes,
        draw=getattr(train, "draw", None),
        sources=found,
    )


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
        check_known_labels(getattr(source, "known_labels", None), split, config, count)
    return count, names


def _absent_classes(split: str, labels: np.ndarray, num_classes: int, names: list[str] | None) -> list[str]:
    """One sentence on the classes that a split has no images of; none where it has all."""
    there = set(np.unique(labels).tolist())
    absent = [names[number] if names else str(number) for number in range(num_classes) if number not in there]
    if not absent:
        return []
    what = "they are not learned" if split == "train" else "it is evaluated on the others"
    return [f"{split}: no images of {len(absent)} of the {num_classes} classes ({few(absent)}): {what}"]


def _check_images(looked_at: ImageSet, split: str, config: Config) -> None:
    """Look at some images of a split: their kind, channels and range, and whether the augmentation takes them.

    Raises:
        ConfigError: something about them does not fit; more of them are damaged than data.max_damaged.
    """
    channels, damaged = looked_at.view.channels, Damaged(split, config.data.max_damaged)
    images = _some_readable(looked_at, damaged)
    whose = f"the {split} images of {title(config)}"
    counts: dict[int, int] = {}  # per number of channels, an image that has so many
    for index, image in images.items():
        if isinstance(image, Tensor):
            last = image.ndim == 3 and image.shape[-1] == channels != image.shape[0]
            if image.ndim != 3 or last:
                say = ", such as image.permute(2, 0, 1)" if last else ""
                raise ConfigError(f"{whose} are tensors of shape {tuple(image.shape)}: give (C, H, W){say}")
            counts.setdefault(image.shape[0], index)
        elif not isinstance(image, Image.Image):
            raise ConfigError(f"{title(config)} gives images as {type(image).__name__}: give PIL images or tensors (C, H, W)")
    pictures = {index: is_grey(image) for index, image in images.items() if isinstance(image, Image.Image)}
    if pictures:  # grey pictures among coloured ones become coloured
        counts.setdefault(1 if all(pictures.values()) else 3, next(iter(pictures)))
    if len(counts) > 1:
        some = " and ".join(f"{has} (image {index})" for has, index in sorted(counts.items()))
        raise ConfigError(f"{whose} have {some} channels: give all images the same number")
    (has,) = counts
    if has != channels:
        colour = ", or give RGB images" if pictures and channels == 3 else ""
        raise ConfigError(
            f"{whose} have {has} channel{'s' * (has != 1)}, but the model takes {channels}: "
            f"set model.kwargs.in_chans to {has}{colour}"
        )
    if split == "train" and any(stays_tensor(image) for image in images.values()):
        augment = config.data.augment
        for field, takes in (("auto_augment", not augment.auto_augment), ("color_jitter", channels in (1, 3))):
            if getattr(augment, field) and not takes:
                raise ConfigError(
                    f"data.augment.{field} is {getattr(augment, field)!r}, but {whose} are tensors of {channels} channels, "
                    "which it does not take: leave it out, or give images"
                )
    for index, image in images.items():
        try:
            with named(functools.partial(looked_at.source.name, index)):
                looked_at.view.pixels(image)
        except DamagedImage as problem:
            damaged.add({problem.name: problem.reason})


def _some_readable(looked_at: ImageSet, damaged: Damaged) -> dict[int, Image.Image | Tensor]:
    """Readable images by their index in the source: up to SAMPLE, spread evenly; or the first, where there is none among those.

    Of sources that give images of the model's channels by themselves, whatever is stored, one is enough.
    """
    source, indices = looked_at.source, looked_at.indices.tolist()
    most = min(len(indices), 1 if isinstance(source, StoredImages) else SAMPLE)
    some = [indices[place * (len(indices) - 1) // max(1, most - 1)] for place in range(most)]
    found: dict[int, Image.Image | Tensor] = {}
    for place, index in enumerate([*some, *indices]):
        if place >= len(some) and found:
            break
        try:
            found[index] = source.image(index)[0]
        except DamagedImage as problem:
            damaged.add({problem.name: problem.reason})
    if not found:
        raise ConfigError(f"the {damaged.split} images cannot be read, not one of them: fix data.root or the split's name")
    return found


def _almost_black(looked_at: ImageSet) -> list[str]:
    """A sentence where some images of a split have only the darkest values, as 12 bits that are stored in 16 do."""
    brightest, seen = 0.0, 0
    for place in spread(len(looked_at), DARK_SAMPLE):
        index = int(looked_at.indices[place])
        try:
            with named(functools.partial(looked_at.source.name, index)):
                pixels = looked_at.view.pixels(looked_at.source.image(index)[0])
        except DamagedImage:  # counted and named where it is used
            continue
        channels = pixels.flatten(1).numpy() if isinstance(pixels, Tensor) else _of_bytes(pixels)
        if (channels == channels[:, :1]).all():  # of one colour, which may well be dark
            continue
        seen += 1
        brightest = max(brightest, float(channels.max()))
    if not seen or brightest > DARK or looked_at.view.normalized:
        return []
    return [
        f"{looked_at.damaged.split}: {seen} images were looked at, whose brightest value is {brightest:.3f} of white: "
        "they are almost black; where white is stored as another number than 255 (65535 in 16 bits), scale them"
    ]


def _of_bytes(image: Image.Image) -> np.ndarray:
    """An image of 8 bits as (channels, pixels) from 0 to 1."""
    pixels = np.asarray(image)
    return pixels.reshape(pixels.shape[0] * pixels.shape[1], -1).T / 255


class TooFewImages(ConfigError):
    """The training split does not fill one batch."""


def check_batch(config: Config, images: int) -> None:
    """Refuse a training split that does not fill one batch.

    Raises:
        TooFewImages: says which batch size would do.
    """
    if config.data.batch_size > images:
        under = " under data.limit" if config.data.limit else ""
        fits = 2 ** max(0, (images // 8).bit_length() - 1)  # at least 8 steps per epoch
        raise TooFewImages(
            f"data.batch_size is {config.data.batch_size}, but {title(config)} has {images} training images{under}: lower it, "
            f"such as to {fits}"
        )
