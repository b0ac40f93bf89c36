"""Gradients of the mean loss over some images, in batches that fit into memory."""

from collections.abc import Iterator

import torch.nn.functional as F
from torch import Tensor, nn

BATCH_SIZE = 16  # images


def accumulate_gradients(model: nn.Module, images: Tensor, labels: Tensor) -> None:
    """Add the gradient of a model's mean cross-entropy over the images to the gradients that its parameters hold.

    Args:
        images: (n, C, H, W), on any device.
        labels: (n,).
    """
    for x, y in batches(model, images, labels):
        (F.cross_entropy(model(x), y) * len(x) / len(images)).backward()


def batches(model: nn.Module, images: Tensor, labels: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """(images, labels) of each batch in order, on the model's device."""
    device = next(model.parameters()).device
    parts = zip(images.split(BATCH_SIZE), labels.split(BATCH_SIZE), strict=True)
    return ((x.to(device), y.to(device)) for x, y in parts)
