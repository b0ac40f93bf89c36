"""timm models of every family that can be cut, shallow and on small images, with nothing left at its initial value.

Fresh timm models have zero biases, which would hide a bias that the cut loses: here every parameter is random.
"""

from typing import Any

import pytest
import timm
import torch
from timm.layers import SwiGLU
from torch import Tensor, nn

MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "class token": ("vit_tiny_patch16_224", {"depth": 3}),
    "map pooling": ("vit_base_patch16_siglip_224", {}),
    "registers, layer scale": ("vit_small_patch14_reg4_dinov2", {"img_size": 84}),
    "average pooling": ("vit_medium_patch16_gap_256", {}),
    "average pooling, registers": ("vit_so150m_patch16_reg4_gap_256", {}),
    "pre-norm": ("vit_base_patch16_clip_224", {}),
    "deit": ("deit_tiny_patch16_224", {}),
    "distilled": ("deit_small_distilled_patch16_224", {}),
    "layer scale": ("deit3_small_patch16_224", {}),
    "qk-norm": ("vit_small_patch16_224", {"qk_norm": True}),
    "swiglu": ("vit_small_patch16_224", {"mlp_layer": SwiGLU}),
    "packed swiglu": ("vit_giant_patch14_dinov2", {"img_size": 84}),
    "eva02": ("eva02_tiny_patch14_224", {"depth": 3, "img_size": 84}),
    "eva02 with a norm over MLP units": ("eva02_base_patch14_448", {"img_size": 84}),
    "dinov3": ("vit_small_patch16_dinov3", {"dynamic_img_size": False}),
    "rotary, average pooling": ("vit_medium_patch16_rope_reg1_gap_256", {}),
    "rotary of each head's own": ("vit_small_patch16_rope_mixed_224", {"depth": 3}),
    "swin": ("swin_tiny_patch4_window7_224", {"depths": (2, 1, 1, 1), "img_size": 112, "embed_dim": 24}),
}
SHALLOW = {"depth": 2, "img_size": 96, "embed_dim": 96, "num_heads": 3}

# Matrices this small are slower on several threads, and far slower where those are shared.
torch.set_num_threads(1)


def slow(*values: Any) -> list[Any]:
    """Parameters of a test that only the slow tests run."""
    return [pytest.param(value, marks=pytest.mark.slow) for value in values]


def build(kind: str, **arguments: Any) -> nn.Module:
    """One of MODELS with 10 classes, random in every parameter, in eval mode."""
    name, kwargs = MODELS[kind]
    shallow = {} if name.startswith("swin") else SHALLOW
    return randomised(timm.create_model(name, num_classes=10, **{**shallow, **kwargs, **arguments}))


def small_vit(**arguments: Any) -> nn.Module:
    """A ViT of 4 layers, 4 heads of 8 dims, 64 MLP units and 16 patches, random in every parameter."""
    shape = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 4, "num_heads": 4, "mlp_ratio": 2, "num_classes": 10}
    return randomised(timm.create_model("vit_tiny_patch16_224", **{**shape, **arguments}))


def randomised(model: nn.Module) -> nn.Module:
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.08 if parameter.ndim > 1 else 0.5, generator=generator)
    return model.eval()


def images(model: nn.Module, count: int = 2) -> Tensor:
    return torch.randn(count, model.in_chans, *model.patch_embed.img_size, generator=torch.Generator().manual_seed(1))


def random_gates(gated: nn.Module, seed: int = 0) -> dict[str, list[Tensor]]:
    """Gates between 0.2 and 1.2, in the shapes of `gated.gates`."""
    generator = torch.Generator().manual_seed(seed)
    return {f: [0.2 + torch.rand(v.shape, generator=generator) for v in vs] for f, vs in gated.gates.items()}


def close_gates(gated: nn.Module, gates: dict[str, list[Tensor]], structure: Any) -> None:
    """Set the gates as the cut leaves them: 0 outside the masks, 1 for kept tokens, the others as they are."""
    gated.set_gates(
        {
            f: [
                torch.where(m, torch.ones_like(v) if f == "token" else v, 0.0)
                for v, m in zip(vs, structure.masks[f], strict=True)
            ]
            for f, vs in gates.items()
        }
    )


def last_of(path: Any) -> Any:
    """The last structure of a removal path whose structures are nested and have the MACs that it says."""
    earlier = path.prefix(0)
    for length in range(path.length + 1):
        structure = path.prefix(length)
        assert earlier.holds(structure)
        assert structure.macs() == path.macs[length]
        earlier = structure
    return earlier


@torch.no_grad()
def difference(a: nn.Module, b: nn.Module) -> float:
    """Largest difference of two models' outputs, relative to the largest output of the first."""
    x = images(a)
    expected, got = a(x), b(x)
    return float((expected - got).abs().max() / expected.abs().max())
