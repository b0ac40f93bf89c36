"""Data sets: where images are stored, the three splits as a network sees them, and loaders of their batches."""

from slimsweep.data.damaged import Damaged, DamagedImage, TooManyDamaged
from slimsweep.data.fingerprint import difference
from slimsweep.data.images import ImageSet, ImageStream
from slimsweep.data.label_checks import check_classes, check_more_labels
from slimsweep.data.loaders import Loader, TrainLoader, eval_loader, images_seen, train_loader
from slimsweep.data.readers import Shards, Source
from slimsweep.data.sample import calibration_count, calibration_images, training_images
from slimsweep.data.sources import check_data, data_name, split_off, title
from slimsweep.data.splits import Data, check_batch, load_data
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
