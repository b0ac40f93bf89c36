"""Data sets: where images are stored, the three splits as a network sees them, and loaders of their batches.

Each name below is imported when it is first used: most of them load torch, which looking at a folder does not need.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from slimsweep.data.damaged import Damaged, DamagedImage, TooManyDamaged
    from slimsweep.data.fingerprint import difference
    from slimsweep.data.images import ImageSet, ImageStream
    from slimsweep.data.label_checks import check_classes, check_more_labels
    from slimsweep.data.loaders import Loader, TrainLoader, eval_loader, images_seen, train_loader
    from slimsweep.data.readers import Shards, Source
    from slimsweep.data.sample import calibration_count, calibration_images, training_images
    from slimsweep.data.sources import check_data, data_name, split_off, title
    from slimsweep.data.splits import Data, TooFewImages, check_batch, load_data
    from slimsweep.data.transforms import View, affine_warp, mixup_fn, uniforms

__all__ = [
    "Damaged",
    "DamagedImage",
    "Data",
    "ImageSet",
    "ImageStream",
    "Loader",
    "Shards",
    "Source",
    "TooFewImages",
    "TooManyDamaged",
    "TrainLoader",
    "View",
    "affine_warp",
    "calibration_count",
    "calibration_images",
    "check_batch",
    "check_classes",
    "check_data",
    "check_more_labels",
    "data_name",
    "difference",
    "eval_loader",
    "images_seen",
    "load_data",
    "mixup_fn",
    "split_off",
    "title",
    "train_loader",
    "training_images",
    "uniforms",
]

_HOME = {
    "Damaged": "damaged",
    "DamagedImage": "damaged",
    "Data": "splits",
    "ImageSet": "images",
    "ImageStream": "images",
    "Loader": "loaders",
    "Shards": "readers",
    "Source": "readers",
    "TooFewImages": "splits",
    "TooManyDamaged": "damaged",
    "TrainLoader": "loaders",
    "View": "transforms",
    "affine_warp": "transforms",
    "calibration_count": "sample",
    "calibration_images": "sample",
    "check_batch": "splits",
    "check_classes": "label_checks",
    "check_data": "sources",
    "check_more_labels": "label_checks",
    "data_name": "sources",
    "difference": "fingerprint",
    "eval_loader": "loaders",
    "images_seen": "loaders",
    "load_data": "splits",
    "mixup_fn": "transforms",
    "split_off": "sources",
    "title": "sources",
    "train_loader": "loaders",
    "training_images": "sample",
    "uniforms": "transforms",
}  # the module of each name


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
    return value
