"""What stored pixels mean: any of Pillow's modes as 8 bits from black to white, and tensors whose range is checked.

Transparency is dropped, EXIF orientation is not applied, and the first frame is taken of several: as timm and torchvision do.
"""

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms.functional import to_pil_image

from slimsweep.data.damaged import WrongPixels

GREY_MODES = ("1", "L", "LA", "La", "I", "F")  # and those of 16 bits
SIXTEEN_BITS = ("PNG", "PPM")  # formats whose images of mode I go up to 65535
BITS_PER_SAMPLE, PHOTOMETRIC, WHITE_IS_ZERO = 258, 262, 0  # tags of a TIFF file
OVERSHOOT = 0.1  # bicubic resizing goes that far beyond black and white


def in_mode(image: Image.Image, mode: str) -> Image.Image:
    """An image in mode L or RGB, from 0 (black) to 255 (white), whatever the range of its own mode.

    Raises:
        WrongPixels: the range of its mode is not known (I and F).
        ValueError, OSError, ...: it is damaged (UNREADABLE).
    """
    image.load()
    if is_16_bits(image):
        image = _8_bits(image)
    elif image.mode in ("I", "F"):
        kind = "32-bit whole numbers" if image.mode == "I" else "32-bit floats"
        raise WrongPixels(
            f"has pixels of Pillow's mode {image.mode} ({kind}), which do not say what is black and what is white: store 8 or "
            "16 bits per pixel (mode L or I;16), or let a function of your own return float tensors from 0 to 1"
        )
    elif image.has_transparency_data and image.mode not in ("L", "RGB"):
        image = _opaque(image)
    elif image.mode == "LAB":
        image = image.convert("RGB")
    return image if image.mode == mode else image.convert(mode)


def is_16_bits(image: Image.Image) -> bool:
    """Whether its pixels go up to 65535."""
    return image.mode.startswith("I;16") or (image.mode == "I" and image.format in SIXTEEN_BITS)


def is_grey(image: Image.Image) -> bool:
    """Whether its mode, or its palette, has no colours."""
    if image.mode in ("P", "PA"):
        palette = np.array(image.getpalette("RGB") or [], dtype=np.uint8).reshape(-1, 3)
        return bool((palette == palette[:, :1]).all())
    return image.mode in GREY_MODES or image.mode.startswith("I;16")


def _8_bits(image: Image.Image) -> Image.Image:
    """A grey image of 16 bits as mode L: 65535 becomes 255. Pillow's own conversion makes all above 255 white."""
    tags = getattr(image, "tag_v2", {})
    bits = tags.get(BITS_PER_SAMPLE, (16,))
    top = 2 ** (bits[0] if isinstance(bits, tuple) else bits) - 1  # a TIFF of 12 bits has this mode too
    pixels = (np.asarray(image).astype(np.int64) * 255 + top // 2) // top
    if tags.get(PHOTOMETRIC) == WHITE_IS_ZERO:  # Pillow turns only smaller ones around
        pixels = 255 - pixels
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def _opaque(image: Image.Image) -> Image.Image:
    """The colours without transparency. A shape of one colour, all of it in the transparency, is put on black or white."""
    full = (image.convert("LA") if image.mode == "La" else image).convert("RGBA")
    colours, opacity = full.convert("RGB"), full.getchannel("A")
    least, most = opacity.getextrema()
    if least == most or any(low != high for low, high in colours.getextrema()):  # type: ignore[misc]
        return colours
    is_dark = colours.convert("L").getpixel((0, 0)) < 128  # type: ignore[operator]
    shown = Image.new("RGB", full.size, "white" if is_dark else "black")
    shown.paste(colours, mask=opacity)
    return shown


def stays_tensor(image: Image.Image | Tensor) -> bool:
    """Whether `from_tensor` gives a tensor, which not all of timm's augmentations take."""
    return isinstance(image, Tensor) and (image.dtype != torch.uint8 or image.shape[0] not in (1, 3))


def from_tensor(image: Tensor, channels: int, normalized: bool) -> Image.Image | Tensor:
    """A tensor (C, H, W) as timm's transforms take it: floats (C, H, W), of 0 to 1 or normalised; or an image, of uint8.

    Args:
        image: uint8 or uint16 over the whole range of the type, bool, or floats from 0 to 1.
        channels: C.
        normalized: floats are normalised already, and may be of any range.

    Raises:
        WrongPixels: another shape, type or range.
        ValueError: NaN or infinite values: it is damaged.
    """
    if image.ndim != 3 or image.shape[0] != channels:
        raise WrongPixels(f"is a tensor of shape {tuple(image.shape)}, but the model takes ({channels}, H, W): give that")
    image = image.detach()
    if normalized and not image.is_floating_point():
        kind = str(image.dtype).removeprefix("torch.")
        raise WrongPixels(f"is a tensor of {kind}, but data.normalized is true: leave that out, or return normalised floats")
    if image.dtype == torch.uint8:
        return image.float() / 255 if stays_tensor(image) else to_pil_image(image)
    if image.dtype == torch.uint16:
        return image.float() / 65535
    if image.dtype == torch.bool:
        return image.float()
    if not image.is_floating_point():
        kind = str(image.dtype).removeprefix("torch.")
        raise WrongPixels(
            f"is a tensor of {kind}, which does not say what is white: give uint8 from 0 to 255, or floats from 0 to 1"
        )
    image = image.float()
    low, high = (float(value) for value in image.aminmax())
    if not np.isfinite([low, high]).all():
        raise ValueError("it holds NaN or infinite values")
    if normalized or (low >= -OVERSHOOT and high <= 1 + OVERSHOOT):
        return image
    of_bytes = low >= 0 and 2 < high <= 255
    first = "divide them by 255, or give uint8" if of_bytes else "scale them so"
    raise WrongPixels(
        f"is a tensor of floats from {low:.3g} to {high:.3g}, but 0 is black and 1 is white: {first}; "
        "or, where they are normalised already, set data.normalized to true"
    )
