"""Models of a dense one's architecture with fresh weights."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import timm
import torch
from torch import nn

from slimsweep.slimming.architectures import Timm, model_name
from slimsweep.slimming.timm_arguments import arguments_of


@contextmanager
def drawn_by(seed: int) -> Iterator[None]:
    """Inside, weights are drawn from torch's generator of the CPU as the seed sets it; outside it goes on as before."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


def like(dense: nn.Module, **sizes: float) -> Timm:
    """A model of a dense one's architecture and arguments, with other sizes and fresh weights from torch's generator."""
    arguments: dict[str, Any] = {**arguments_of(dense), **sizes}
    return timm.create_model(model_name(dense), pretrained=False, **arguments).eval()
