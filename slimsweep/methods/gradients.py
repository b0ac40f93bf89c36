"""Gradients of the mean loss over some images, in batches that fit into memory; of a model without a head, of its features."""

import math
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

BATCH_SIZE = 16  # images
DIRECTIONS = 8  # normal vectors per batch along which features are differentiated


def accumulate_gradients(model: nn.Module, images: Tensor, labels: Tensor) -> None:
    """Add the gradient of a model's mean cross-entropy over the images to the gradients that its parameters hold.

    Args:
        images: (n, C, H, W), on any device.
        labels: (n,).
    """
    for x, y in batches(model, images, labels):
        (F.cross_entropy(model(x), y) * len(x) / len(images)).backward()


def features_along(model: nn.Module, images: Tensor, draw: torch.Generator) -> list[Tensor]:
    """The sum over images of the features of each along a normal vector of its own: scalars, one per draw of DIRECTIONS.

    The mean square of such a sum's derivative by a gate is the sum over images and features of their squared derivatives
    (Hutchinson 1990): what the squared distance from the dense features grows by, to second order, when the gate goes (half of
    that, with the gate's square; its first order is 0). Features are those that a backbone is taught by: the embedding, and all
    tokens together with the same weight.

    Args:
        model: of timm, without a head.
        images: (B, C, H, W), on the model's device.
        draw: on the CPU.
    """
    timms: Any = model
    tokens: Tensor = timms.forward_features(images)
    count = math.prod(tokens.shape[1:-1])
    parts = [timms.forward_head(tokens, pre_logits=True), tokens / math.sqrt(count)]

    def along(part: Tensor) -> Tensor:
        return (part.float() * torch.randn(part.shape, generator=draw).to(part.device)).sum()

    return [torch.stack([along(part) for part in parts]).sum() for _ in range(DIRECTIONS)]


def batches(model: nn.Module, images: Tensor, labels: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """(images, labels) of each batch in order, on the model's device."""
    device = next(model.parameters()).device
    parts = zip(images.split(BATCH_SIZE), labels.split(BATCH_SIZE), strict=True)
    return ((x.to(device), y.to(device)) for x, y in parts)
