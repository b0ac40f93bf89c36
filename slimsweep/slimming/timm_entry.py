"""timm's entry point of cut models, registered as soon as timm is imported: before or after slimsweep, whichever comes first.

Light to import (no torch): what makes a model is imported when timm asks for one.
"""

from types import ModuleType
from typing import TYPE_CHECKING, Any

from wrapt import register_post_import_hook

if TYPE_CHECKING:
    from torch import nn


def slimmed_vit(pretrained: bool = False, **kwargs: Any) -> "nn.Module":
    """The entry point of every cut model: builds the dense architecture and cuts it to the structure in its arguments."""
    from slimsweep.slimming.hub import build

    return build(pretrained, **kwargs)


def _register(timm: ModuleType) -> None:
    if not timm.is_model(slimmed_vit.__name__):
        timm.models.register_model(slimmed_vit)


def register_with_timm() -> None:
    """Register the entry point now where timm is imported already, and else as soon as it is."""
    register_post_import_hook(_register, "timm")
