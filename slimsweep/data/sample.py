"""Some training images at once, for methods that need gradients or activations rather than a training."""

from itertools import islice

import torch
from torch import Tensor

from slimsweep.data.images import ImageSet, ImageStream
from slimsweep.data.loaders import train_loader
from slimsweep.data.splits import Data
from slimsweep.slimming.architectures import Timm

SAMPLE_IMAGES = 512
# Principal axes and repair solve for some hundred to some thousand weights per output, from one equation per token. Repair
# holds the tokens of all images: at 768 dims this many are 150 MB per layer's inputs.
CALIBRATION_TOKENS = 1024 * 49
CALIBRATION_LIMITS = 256, 4096  # images


def training_images(data: Data, seed: int, count: int = SAMPLE_IMAGES) -> tuple[Tensor, Tensor]:
    """(images (n, C, H, W), labels (n,)): `count` training images without augmentation, or all where there are fewer.

    Args:
        data: its training split is sampled, as its validation split transforms images.
        seed: of the sample.
        count: images at most.

    Raises:
        ConfigError: too many images that cannot be read, a label that is not one of the classes.
    """
    train, plain = data.train, data.val.view
    if isinstance(train, ImageSet):
        chosen = torch.randperm(len(train), generator=torch.Generator().manual_seed(seed))[:count]
        indices = train.indices[chosen.numpy()]
        some = ImageSet(train.source, indices, plain, train.num_classes, cache=False, damaged=train.damaged)
        return some.batch(range(len(chosen)))
    stream = ImageStream(train.source, plain, train.num_classes, train.limit, train.damaged)
    batches = islice(train_loader(stream, data.settings, seed=seed), -(-count // data.settings.batch_size))
    images, labels = zip(*batches, strict=True)
    return torch.cat(images)[:count], torch.cat(labels)[:count]


def calibration_count(model: Timm) -> int:
    """How many images `calibration_images` takes at most: the more patches the model makes of an image, the fewer."""
    least, most = CALIBRATION_LIMITS
    return min(max(CALIBRATION_TOKENS // model.patch_embed.num_patches, least), most)


def calibration_images(data: Data, seed: int, model: Timm) -> Tensor:
    """(n, C, H, W): the training images that principal axes and repair look at, without augmentation.

    Args:
        seed: of the sample.
        model: of timm; n is its `calibration_count`, or all training images where there are fewer.
    """
    return training_images(data, seed, calibration_count(model))[0]
