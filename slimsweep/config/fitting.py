"""Defaults that fit the data: what fields that nobody sets become where training images are few, or weights pretrained.

The schema's defaults are those of ImageNet-sized training. One rule per field stands here, and in docs/configuration.md. A
value that a person or a preset gives is never changed.
"""

import math
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from slimsweep.config.schema import Config
from slimsweep.config.sections import DataConfig, Dense, Retrain

FEW = 10_000  # training images, below which they count as few
STEPS_PER_EPOCH = 8  # at least, where the batch size follows the data
SMALLEST_BATCH = 8
# Optimizer steps of each training on few images: at least so many, and where that is more, one per so many images.
STEPS = {"dense": (1000, 2), "retrain": (500, 4)}
FINE_TUNING_STEPS, FINE_TUNING_EPOCHS = (300, 8), 30  # of pretrained weights on other classes; epochs at most
USUAL_EPOCHS = {"dense": Dense().epochs, "retrain": Retrain().epochs}
FINE_TUNING_LR = {"dense": 1e-4, "search": 1e-4, "retrain": 2e-4}
# A repaired cut is so near the dense model that higher rates take it away from there: reports/dinov2.
REPAIRED_LR, REPAIRED_BACKBONE_LR = 2e-5, 1e-5
WARMUP_PART, MOST_WARMUP = 20, 5  # one epoch of warm-up per so many epochs; epochs at most
GENTLE_CROP = (0.5, 1.0)
CROP_IMAGES, CROP_SIDE = 2_000, 64  # below so many training images, or pixels, a crop of 8 % of the area shows too little

EVAL_BATCHES = 4  # images per evaluation step, in training batches: without gradients so many need no more memory

FITTING = (
    "data.batch_size",
    "data.eval_batch_size",
    "data.augment.scale",
    "dense.epochs",
    "search.epochs",  # had a rule in earlier versions, whose runs go on with the value that they recorded
    "retrain.epochs",
    *(f"{stage}.lr" for stage in ("dense", "search", "retrain")),
    "dense.warmup_epochs",
    "retrain.warmup_epochs",
)  # the fields that have a rule here


@dataclass(frozen=True, kw_only=True)
class Fitted:
    """A value that follows the data, and why."""

    value: Any
    reason: str


def fitting_defaults(
    config: Config, unset: Collection[str], *, train: int, side: int, new_head: bool = False
) -> dict[str, Fitted]:
    """The fields that nobody set and that follow the data, by dotted name. Fields that keep their defaults are not among them.

    Args:
        config: the configuration, with its defaults in the fields that nobody set.
        unset: the fields that nobody set.
        train: training images.
        side: of the images that the network sees, in pixels.
        new_head: whether the model has pretrained weights, but of a head for other classes than the data's.
    """
    found: dict[str, Fitted] = {}
    few, weights = train < FEW, bool(config.model.pretrained or config.model.checkpoint)
    images = f"{train:,} training image{'s' * (train != 1)}"

    def fit(name: str, value: Any, reason: str) -> None:
        if name in unset and value != config.value(name):
            found[name] = Fitted(value=value, reason=reason)

    def now(name: str) -> Any:
        return found[name].value if name in found else config.value(name)

    if few:
        fit("data.batch_size", _batch_size(config, train), images)
    if "data.batch_size" in found:
        batch = now("data.batch_size")
        fit("data.eval_batch_size", min(EVAL_BATCHES * batch, DataConfig().batch_size), f"batches of {batch} in training")
    if train < CROP_IMAGES or side < CROP_SIDE:
        fit("data.augment.scale", GENTLE_CROP, images if train < CROP_IMAGES else f"images of {side} pixels")
    per_epoch = max(1, train // now("data.batch_size"))

    def epochs(stage: str, steps: tuple[int, int], most: int) -> int:
        wanted = math.ceil(max(steps[0], train / steps[1]) / per_epoch)
        longer = 10 * getattr(config, stage).warmup_epochs  # a warm-up that was given is at most a tenth
        return min(most, max(wanted, longer))

    steps_said = f"{images}, {per_epoch:,} step{'s' * (per_epoch != 1)} per epoch"
    if weights and new_head and not config.backbone:
        most = max(FINE_TUNING_EPOCHS, config.dense.warmup_epochs + 1)
        fit("dense.epochs", epochs("dense", FINE_TUNING_STEPS, most), "pretrained weights have a head for other classes")
    if few:
        for stage in ("retrain",) if weights else ("dense", "retrain"):
            fit(f"{stage}.epochs", epochs(stage, STEPS[stage], USUAL_EPOCHS[stage]), steps_said)
    repaired, lowest = weights and few and config.retrain.repair, REPAIRED_BACKBONE_LR if config.backbone else REPAIRED_LR
    if repaired and config.retrain.min_lr <= lowest:
        fit("retrain.lr", lowest, "a repaired cut of pretrained weights is close to the dense model")
    if weights:
        for stage in ("dense", "search") if repaired else ("dense", "search", "retrain"):
            # On many images the search and the retraining are long enough for the usual rate.
            if (few or stage == "dense") and now(f"{stage}.epochs") and FINE_TUNING_LR[stage] >= getattr(config, stage).min_lr:
                fit(f"{stage}.lr", FINE_TUNING_LR[stage], "pretrained weights are fine-tuned")
    for stage in ("dense", "retrain"):
        if few or f"{stage}.epochs" in found:
            trained = now(f"{stage}.epochs")
            warmup = min(MOST_WARMUP, trained // WARMUP_PART)
            fit(f"{stage}.warmup_epochs", warmup, f"{trained} epochs")
    return found


def _batch_size(config: Config, train: int) -> int:
    """The largest power of two that leaves STEPS_PER_EPOCH steps, and that divides among workers and parts of a batch."""
    size = max(SMALLEST_BATCH, _power_of_two(train // STEPS_PER_EPOCH))
    size = min(size, _power_of_two(train), DataConfig().batch_size)
    pairs = 2 if config.data.augment.mixes else 1  # Mixup and CutMix take pairs
    share = math.lcm(
        config.resources.search_workers * config.dense.accumulate * pairs,
        config.resources.search_workers * config.search.accumulate * pairs,
        config.retrain.workers_per_trial * config.retrain.accumulate * pairs,
    )
    return -(-size // share) * share


def _power_of_two(most: int) -> int:
    """The largest one that is not above a number; 1 for less than that."""
    return 2 ** (max(1, most).bit_length() - 1)
