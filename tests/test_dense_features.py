"""A cut backbone serves dense features as its dense model does: the same grids, saved and loaded, and a head trains on them."""

from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from zoo import randomised, slow

from slimsweep.slimming import Structure, add_gates, load, save, slim, solve

SMALL: dict[str, Any] = {"depth": 2, "embed_dim": 48, "num_heads": 3, "num_classes": 0}
BACKBONES: dict[str, tuple[str, dict[str, Any]]] = {
    "vit": ("vit_tiny_patch16_224", {"img_size": 32, "patch_size": 8, "dynamic_img_size": True}),
    "dinov2": ("vit_small_patch14_reg4_dinov2", {"img_size": 56}),
    "eva02": ("eva02_tiny_patch14_224", {"img_size": 56}),
    "dinov3": ("vit_small_patch16_dinov3", {"img_size": 64}),  # takes images of other sizes
}
ANY_SIZE = ("vit", "dinov3")


def dense_of(kind: str) -> nn.Module:
    name, arguments = BACKBONES[kind]
    return randomised(timm.create_model(name, **SMALL, **arguments))


def cut_of(dense: nn.Module, budget: float = 0.5, *, families: list[str] | None = None) -> nn.Module:
    """Cut by gates that are all different, of attention and MLPs where nothing is said."""
    gated = add_gates(dense, families=families or ["attention", "mlp"])
    generator = torch.Generator().manual_seed(2)
    gated.set_gates({f: [torch.rand(v.shape, generator=generator) for v in vs] for f, vs in gated.gates.items()})
    return slim(gated, solve(gated, budget)).eval()


def images(model: Any, count: int = 2, more: tuple[int, int] = (0, 0)) -> Tensor:
    """Random images of a model's size, with `more` rows and columns of patches."""
    size = [
        side + extra * patch
        for side, extra, patch in zip(model.patch_embed.img_size, more, model.patch_embed.patch_size, strict=True)
    ]
    return torch.randn(count, 3, *size, generator=torch.Generator().manual_seed(3))


def shapes(features: list[Tensor]) -> list[tuple[int, ...]]:
    return [tuple(one.shape) for one in features]


@pytest.mark.parametrize("kind", ["vit", "dinov3", *slow("dinov2", "eva02")])
@torch.no_grad()
def test_a_cut_backbone_gives_the_grids_of_its_dense_model(kind: str, tmp_path: Path) -> None:
    dense = dense_of(kind)
    small = cut_of(dense)
    assert sum(p.numel() for p in small.parameters()) < 0.8 * sum(p.numel() for p in dense.parameters())
    save(small, tmp_path / "small")
    again = load(tmp_path / "small")
    for more in ((0, 0), (2, -1))[: 2 if kind in ANY_SIZE else 1]:
        x = images(dense, more=more)
        final, grids = small.forward_intermediates(x, output_fmt="NCHW")
        expected = dense.forward_intermediates(x, output_fmt="NCHW")
        assert shapes(grids) == shapes(expected[1]) == [(2, 48, 4 + more[0], 4 + more[1])] * 2
        assert final.shape == expected[0].shape
        assert small(x).shape == dense(x).shape == (2, 48)
        assert not torch.allclose(grids[-1], expected[1][-1])  # it was cut
        torch.testing.assert_close(again.forward_intermediates(x, output_fmt="NCHW")[1], grids, rtol=0, atol=0)
        # Prefix tokens come beside the grid, and the last grid normalised is what the embedding is pooled from.
        (_, prefix), *_ = small.forward_intermediates(x, 1, return_prefix_tokens=True, norm=True)[1]
        assert prefix.shape == (2, small.num_prefix_tokens, 48)


@pytest.mark.parametrize("kind", ["vit", "dinov3", *slow("dinov2", "eva02")])
@torch.no_grad()
def test_timm_makes_a_feature_extractor_of_the_saved_folder(kind: str, tmp_path: Path) -> None:
    dense = dense_of(kind)
    small = cut_of(dense)
    save(small, tmp_path / "small")
    name, arguments = BACKBONES[kind]
    for layers in ((0, 1), (-1,)):
        asked = {"features_only": True, "out_indices": layers}
        extractor = timm.create_model(f"local-dir:{tmp_path / 'small'}", pretrained=True, **asked).eval()
        usual = timm.create_model(name, **SMALL, **arguments, **asked)
        x = images(dense)
        torch.testing.assert_close(extractor(x), small.forward_intermediates(x, list(layers), intermediates_only=True))
        assert extractor.feature_info.channels() == usual.feature_info.channels() == [48] * len(layers)
        assert extractor.feature_info.reduction() == usual.feature_info.reduction()
    # At another image size the positions are resampled, as of the dense model.
    side = 2 * dense.patch_embed.img_size[0]
    larger = timm.create_model(
        f"local-dir:{tmp_path / 'small'}", pretrained=True, features_only=True, out_indices=1, img_size=side
    ).eval()
    assert shapes(larger(torch.zeros(1, 3, side, side))) == [(1, 48, 8, 8)]


@torch.no_grad()
def test_a_layer_without_attention_or_mlp_still_has_its_grid(tmp_path: Path) -> None:
    dense = dense_of("dinov3")
    gated = add_gates(dense, families=["attention", "mlp"])
    masks = {family: [mask.clone() for mask in layers] for family, layers in solve(gated, 0.9).masks.items()}
    masks["attention"][1][:] = False
    masks["mlp"][0][:] = False
    small = slim(gated, Structure(gated.shape, masks)).eval()
    save(small, tmp_path / "small")
    x = images(dense)
    extractor = timm.create_model(f"local-dir:{tmp_path / 'small'}", pretrained=True, features_only=True, out_indices=2).eval()
    assert shapes(extractor(x)) == [(2, 48, 4, 4)] * 2
    torch.testing.assert_close(extractor(x), small.forward_intermediates(x, intermediates_only=True))


@pytest.mark.parametrize("kind", ["vit", *slow("dinov3")])
def test_a_dense_head_trains_on_a_cut_backbone(kind: str, tmp_path: Path) -> None:
    """Which patches are bright: a 1 x 1 convolution on the grid learns it, and the backbone with it."""
    torch.manual_seed(0)
    name, arguments = BACKBONES[kind]
    save(cut_of(timm.create_model(name, **SMALL, **arguments)), tmp_path / "small")
    backbone = load(tmp_path / "small").train()
    head = nn.Conv2d(48, 2, kernel_size=1)
    x = images(backbone, 8) + F.interpolate(torch.randn(8, 1, 4, 4), size=backbone.patch_embed.img_size)
    bright = (F.adaptive_avg_pool2d(x.mean(1, keepdim=True), (4, 4))[:, 0] > 0).long()
    optimizer = torch.optim.AdamW([*backbone.parameters(), *head.parameters()], lr=5e-3)
    before = backbone.blocks[0].mlp.fc2.weight.clone()
    losses = []
    for _ in range(12):
        grid = backbone.forward_intermediates(x, 1, norm=True, output_fmt="NCHW", intermediates_only=True)[0]
        loss = F.cross_entropy(head(grid), bright)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.7 * losses[0]
    assert not torch.equal(backbone.blocks[0].mlp.fc2.weight, before)


def test_where_tokens_were_cut_the_grid_is_refused_in_one_sentence(tmp_path: Path) -> None:
    dense = dense_of("dinov2")
    small: Any = cut_of(dense, families=["attention", "mlp", "token"])
    save(small, tmp_path / "small")
    x = images(dense)
    with pytest.raises(ValueError, match="lost tokens, so its features are no full grid: ask for output_fmt='NLC'"):
        small.forward_intermediates(x)
    with pytest.raises(ValueError, match="lost tokens, so its features are no full grid"):
        small.get_intermediate_layers(x, 2, reshape=True)
    with pytest.raises(ValueError, match="features_only cannot give them"):
        timm.create_model(f"local-dir:{tmp_path / 'small'}", pretrained=True, features_only=True)
    tokens = small.forward_intermediates(x, output_fmt="NLC")[1]
    assert [one.shape[1] for one in tokens] == [int(small.structure.token_mask(i).sum()) for i in range(2)]
