"""Gradients of the mean loss over some images, in batches that fit into memory."""

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

BATCH = 16


def accumulate_gradients(model: nn.Module, images: Tensor, labels: Tensor) -> None:
    """Leave in a model the gradient of its mean loss over the images."""
    for x, y in batches(model, images, labels):
        (F.cross_entropy(model(x), y) * len(x) / len(images)).backward()


def batches(model: nn.Module, images: Tensor, labels: Tensor) -> Any:
    place = next(model.parameters()).device
    parts = zip(images.split(BATCH), labels.split(BATCH), strict=True)
    return ((x.to(place), y.to(place)) for x, y in parts)
