"""Some training images without augmentation, for methods that need gradients."""

import itertools
from dataclasses import replace

import torch
from torch import Tensor

from slimsweep.config import Config
from slimsweep.data.images import Data, ImageSet, ImageStream, train_loader

GRADIENT_IMAGES = 512  # that methods such as taylor and torch-pruning take gradients on


def training_images(data: Data, config: Config) -> tuple[Tensor, Tensor]:
    """(images (n, C, H, W), labels (n,)): GRADIENT_IMAGES training images, drawn by config.seed, without augmentation."""
    train, plain = data.train, data.val.view
    if isinstance(train, ImageSet):
        chosen = torch.randperm(len(train), generator=torch.Generator().manual_seed(config.seed))[:GRADIENT_IMAGES]
        indices = train.indices[chosen.numpy()]
        some = ImageSet(train.source, indices, plain, train.num_classes, cache=False, damaged=train.damaged)
        return some.batch(range(len(chosen)))
    stream = ImageStream(train.source, plain, train.num_classes, train.limit, train.damaged)
    batches = itertools.islice(train_loader(replace(data, train=stream), config), -(-GRADIENT_IMAGES // config.data.batch_size))
    images, labels = zip(*batches, strict=True)
    return torch.cat(images)[:GRADIENT_IMAGES], torch.cat(labels)[:GRADIENT_IMAGES]
