"""Models of a dense one's architecture with fresh weights."""

from typing import Any

import timm
from torch import nn

from slimsweep.slimming.architectures import Timm, model_name


def like(dense: nn.Module, **sizes: float) -> Timm:
    """A fresh model of a dense one's architecture and arguments, with other sizes."""
    arguments: dict[str, Any] = {**getattr(dense, "_model_args", {}), **sizes}
    return timm.create_model(model_name(dense), pretrained=False, **arguments).eval()
