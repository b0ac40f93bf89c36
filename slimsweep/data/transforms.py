"""How a stored image becomes what the network sees: timm's transforms, a batched affine warp, Mixup, and their random numbers.

The affine warp works on whole batches of tensors, because that is what makes small images cheap.
"""

import functools
import logging
import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import timm.data
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from slimsweep.config import Affine, Augment, Config, ConfigError
from slimsweep.data.pixels import WrongPixels, from_tensor, in_mode

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class View:
    """How a stored image becomes a tensor (C, H, W)."""

    transform: Any
    random: bool  # whether the transform draws random numbers
    affine: Affine | None
    channels: int
    black: Tensor  # (C, 1, 1): black after normalization
    normalized: bool = False  # tensors are normalised already (data.normalized)

    @property
    def mode(self) -> str:
        """Pillow's mode of the images that the transform takes."""
        return "L" if self.channels == 1 else "RGB"

    def pixels(self, image: Image.Image | Tensor) -> Image.Image | Tensor:
        """A stored image as the transform takes it: an image of `mode`, or a tensor (C, H, W) of floats.

        Raises:
            WrongPixels: what its pixels mean is not known.
            ValueError, OSError, ...: it is damaged (UNREADABLE).
        """
        if isinstance(image, Tensor):
            return from_tensor(image, self.channels, self.normalized)
        if not isinstance(image, Image.Image):
            raise WrongPixels(f"is of type {type(image).__name__}: give a PIL image or a tensor (C, H, W)")
        if self.normalized:
            raise WrongPixels("is a PIL image, but data.normalized is true: leave that out, or return normalised floats")
        return in_mode(image, self.mode)

    def warp(self, images_BCHW: Tensor, uniform_B5: np.ndarray) -> Tensor:
        """Transformed images after `affine_warp`, black outside; as they are where there is none."""
        if self.affine is None:
            return images_BCHW
        return affine_warp(images_BCHW - self.black, self.affine, uniform_B5) + self.black


def views_of(config: Config, preprocessing: Mapping[str, Any]) -> tuple[View, View]:
    """(the view for training, the view for evaluation).

    Raises:
        ConfigError: an augmentation that timm cannot build.
    """
    augment = config.data.augment
    shared = {key: preprocessing[key] for key in ("input_size", "interpolation", "mean", "std")}
    mean, std = (torch.tensor(preprocessing[key]).view(-1, 1, 1) for key in ("mean", "std"))
    plain = timm.data.create_transform(**shared, crop_pct=preprocessing["crop_pct"], crop_mode=preprocessing["crop_mode"])
    view = View(
        transform=plain,
        random=False,
        affine=None,
        channels=preprocessing["input_size"][0],
        black=-mean / std,
        normalized=config.data.normalized,
    )
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
    return replace(view, transform=drawn, random=drawn is not plain, affine=affine), view


def _keep_some_bits(transform: Any) -> None:
    """timm's Posterize at full strength asks for 0 bits, which Pillow refuses (it used to give a black image): ask for 1."""
    for step in transform.transforms:
        for op in [*getattr(step, "ops", ()), *(op for policy in getattr(step, "policy", ()) for op in policy)]:
            if op.name.startswith("Posterize"):
                op.level_fn = functools.partial(_one_bit_or_more, op.level_fn)


def _one_bit_or_more(level_fn: Any, level: float, hparams: Mapping[str, Any]) -> tuple[int]:
    return (max(1, level_fn(level, hparams)[0]),)


def preprocessing_of(
    config: Config, input_size: tuple[int, int, int], model_cfg: Mapping[str, Any], num_classes: int
) -> dict[str, Any]:
    """How images are prepared for the network, in timm's words: the configuration's values, else the model's, else usual ones.

    Raises:
        ConfigError: mean or std have neither one number nor one per channel.
    """
    data, channels = config.data, input_size[0]
    own = {}
    for field, plain in (("mean", 0.5), ("std", 0.5)):
        asked, model = getattr(data, field), model_cfg.get(field)
        if asked is not None and len(asked) not in (1, channels):
            raise ConfigError(
                f"data.{field} has {len(asked)} numbers, but the model takes {channels} channels: give one per channel"
            )
        if data.normalized:
            own[field] = [0.0 if field == "mean" else 1.0] * channels  # the tensors are left as they are
        elif asked is not None:
            own[field] = [float(v) for v in (asked if len(asked) == channels else asked * channels)]
        else:
            own[field] = [float(v) for v in model] if model is not None and len(model) == channels else [plain] * channels
    _say_other_channels(config, model_cfg, own)
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


def _say_other_channels(config: Config, model_cfg: Mapping[str, Any], taken: Mapping[str, list[float]]) -> None:
    """Warn where weights were trained with a mean and std that do not fit the model's channels, and usual ones are taken."""
    usual = [tuple(model_cfg.get(field) or ()) for field in ("mean", "std")]
    starts = config.model.pretrained or config.model.checkpoint is not None
    asked = config.data.normalized or config.data.mean is not None or config.data.std is not None
    if not starts or asked or not all(usual) or all(len(of) == len(taken["mean"]) for of in usual):
        return
    means = [sum(of) / len(of) for of in usual]
    if all(abs(mean - value) < 5e-4 for mean, field in zip(means, ("mean", "std"), strict=True) for value in taken[field]):
        return  # what is taken is what the weights know
    near = [f"{mean:.3f}" for mean in means]
    log.warning(
        "the weights of %s were trained with mean %s and std %s, but the model takes %d channel(s), so data.mean and data.std "
        "are 0.5: data.mean %s and data.std %s are nearer to them",
        *(config.model.name, *usual, len(taken["mean"]), *near),
    )


def mixup_fn(augment: Augment, num_classes: int, *, label_smoothing: float = 0.0) -> Any:
    """timm's Mixup as configured, or None where neither Mixup nor CutMix is on.

    It draws from NumPy's global generator, takes (images (B, C, H, W), labels (B,)) with an even B, changes the images
    in place, and returns them with soft labels (B, num_classes), which are smoothed already.
    """
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


def affine_warp(images_BCHW: Tensor, affine: Affine, uniform_B5: np.ndarray) -> Tensor:
    """Each image rotated, shifted, zoomed and sheared about its middle; bilinear, 0 outside.

    Args:
        images_BCHW: images (B, C, H, W).
        affine: the ranges; in the units of torchvision's RandomAffine.
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


# Random numbers.


def uniforms(seeds: np.ndarray, count: int) -> np.ndarray:
    """(len(seeds), count) numbers in [0, 1), a hash of seed and column (splitmix64): no generator per image is needed."""
    with np.errstate(over="ignore"):
        z = seeds.astype(np.uint64)[:, None] + np.arange(1, count + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        z ^= z >> np.uint64(31)
    return (z >> np.uint64(11)).astype(np.float64) / 2.0**53


def seed_all(seed: int) -> None:
    """timm's and torchvision's transforms draw from all three; not torch.manual_seed, which would reach the GPU's generator."""
    random.seed(seed)
    np.random.seed(seed & 0xFFFFFFFF)  # noqa: NPY002
    torch.default_generator.manual_seed(seed)


@contextmanager
def random_state_kept() -> Iterator[None]:
    """Augmentation that runs in the training process must not touch the random numbers of drop path."""
    kept = random.getstate(), np.random.get_state(), torch.default_generator.get_state()  # noqa: NPY002
    try:
        yield
    finally:
        random.setstate(kept[0])
        np.random.set_state(kept[1])  # noqa: NPY002
        torch.default_generator.set_state(kept[2])
