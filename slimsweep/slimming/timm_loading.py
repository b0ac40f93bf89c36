"""How timm loads stored weights into a dense architecture, for cut models, which are loaded in the same way.

timm keeps this inside its functions that build and load a model in one go; a cut comes between the two.
"""

import sys
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

from timm.models import model_entrypoint, vision_transformer
from torch import Tensor

Weights = dict[str, Tensor]


class Loading(NamedTuple):
    """How timm loads stored weights into one of its models."""

    fit: Callable[[Weights, Any], Weights]  # (weights, model) to weights of the model's image and patch size
    strict: bool  # whether weights that the model does not have are refused
    features: dict[str, Any]  # how it builds `features_only` models


def loading_of(name: str, arguments: Mapping[str, Any]) -> Loading:
    """How timm loads a model of this name, made with these arguments."""
    file = model_entrypoint(name).__module__
    fit: Callable[..., Weights] = getattr(sys.modules[file], "checkpoint_filter_fn", lambda weights, model: weights)
    if file == vision_transformer.__name__ and ("flexi" in name or "radio" in name):
        # timm resamples the positions of these in another way.
        fit = partial(fit, interpolation="bilinear", antialias=False)
        if "radio" in name:
            fit = partial(fit, align_corners=any(kind in name for kind in vision_transformer._RADIO_ALIGN_CORNERS))
    features: dict[str, Any] = {"out_indices": 3, "feature_cls": "getter"}
    if file.endswith("swin_transformer"):
        stages = len(arguments.get("depths", (1, 1, 3, 1)))
        features = {"out_indices": tuple(range(stages)), "flatten_sequential": True}
    return Loading(fit, strict=not ("siglip" in name and arguments.get("global_pool") != "map"), features=features)
