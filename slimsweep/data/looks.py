"""What an image looks like, in a few numbers: enough to tell images apart, and the same on every machine.

Not a hash: decoders and libraries of other versions, and other processors, may differ in the last bits of a pixel.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor

from slimsweep.data.damaged import UNREADABLE
from slimsweep.data.transforms import random_state_kept, seed_all

Look = list[int] | list[float]

PIXELS = 24  # looked at in each image
TOLERANCE = 0.02  # of the largest number
SEEDS = (0, 1, 2)  # an image that looks alike with all of these draws no random numbers


def look(image: Any) -> Look | None:
    """The shape of an image, and the values of some pixels all over it.

    None for what is neither a picture nor a tensor, and for a picture that cannot be read.
    """
    if isinstance(image, Image.Image):
        try:
            values = np.asarray(image.convert("RGB") if image.mode in ("P", "PA") else image)
        except UNREADABLE:  # a picture that is read only now; it is counted and named where it is used
            return None
    elif isinstance(image, Tensor):
        values = image.detach().cpu().float().numpy() if image.is_floating_point() else image.detach().cpu().numpy()
    else:
        return None
    flat = values.reshape(-1)
    if not flat.size:
        return [*values.shape]
    # Multiples of the golden ratio: they fill any image evenly, and stay in no row or column.
    places = (np.arange(1, PIXELS + 1) * 0.6180339887498949 % 1 * flat.size).astype(int)
    if flat.dtype.kind == "f":
        return [*values.shape, *(float(f"{value:.6g}") for value in np.nan_to_num(flat[places]))]
    return [*values.shape, *(int(value) for value in flat[places])]


def alike(one: Look, other: Look) -> bool:
    """Whether two looks are of the same image."""
    if len(one) != len(other) or one[:-PIXELS] != other[:-PIXELS]:
        return False
    a, b = np.array(one[-PIXELS:], dtype=float), np.array(other[-PIXELS:], dtype=float)
    whole = all(isinstance(value, int) for value in (*one, *other))
    return bool(np.abs(a - b).max(initial=0) <= TOLERANCE * np.abs(a).max(initial=0) + (1.0 if whole else 1e-5))


def looks_drawn(read: Callable[[], Any]) -> tuple[Look | None, bool]:
    """(the look of what `read` returns, whether that depends on random numbers).

    The caller's random numbers stay as they were.
    """
    found = []
    with random_state_kept():
        for seed in SEEDS:
            seed_all(seed)
            found.append(look(read()))
    first = found[0]
    return first, first is not None and not all(other is not None and alike(first, other) for other in found[1:])
