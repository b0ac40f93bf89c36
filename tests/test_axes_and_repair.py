"""Principal axes leave the function as it is and order a head's dims; repair brings a cut model back towards the dense one."""

import copy

import pytest
import torch
from torch import Tensor, nn
from zoo import MODELS, build, difference, small_vit

from slimsweep import add_gates, principal_axes, repair, slim, solve
from slimsweep.errors import RefusedInput
from slimsweep.slimming import reconstruction

TOLERANCE = 1e-5


def calibration(model: nn.Module, count: int = 48) -> Tensor:
    return torch.randn(count, model.in_chans, *model.patch_embed.img_size, generator=torch.Generator().manual_seed(5))


def cut_dims(model: nn.Module, kept: int) -> nn.Module:
    """The model with the first `kept` dims of each head."""
    gated = add_gates(model, families=("attention",))
    structure = gated.shape.full()
    for mask in structure.masks["attention"]:
        mask[:, kept:] = False
    return slim(gated, structure)


@torch.no_grad()
def distance(dense: nn.Module, other: nn.Module) -> float:
    """Mean squared difference of the outputs on images that neither axes nor repair saw, relative to the outputs' variance."""
    x = torch.randn(64, dense.in_chans, *dense.patch_embed.img_size, generator=torch.Generator().manual_seed(6))
    expected = dense(x)
    return float((other(x) - expected).square().sum() / (expected - expected.mean(0)).square().sum())


@pytest.mark.parametrize("kind", MODELS)
def test_principal_axes_change_weights_and_not_the_function(kind):
    dense = build(kind)
    before = copy.deepcopy(dense.state_dict())
    turned = principal_axes(dense, calibration(dense, 8))
    assert difference(dense, turned) < TOLERANCE
    assert any(not torch.equal(turned.state_dict()[name], value) for name, value in before.items()), "nothing was turned"
    assert all(torch.equal(dense.state_dict()[name], value) for name, value in before.items()), "the given model was changed"
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in turned.modules())


@pytest.mark.parametrize("kind", ["class token", "swin", "qk-norm", "dinov3"])
def test_queries_and_keys_turn_only_where_nothing_holds_them(kind):
    dense = build(kind)
    turned = principal_axes(dense, calibration(dense, 8))
    attention = turned.get_submodule("layers.0.blocks.0.attn" if kind == "swin" else "blocks.0.attn")
    old = dense.get_submodule("layers.0.blocks.0.attn" if kind == "swin" else "blocks.0.attn")
    query, old_query = (a.qkv.weight.chunk(3)[0] for a in (attention, old))
    assert torch.equal(query, old_query) == (kind in ("qk-norm", "dinov3"))
    assert not torch.equal(attention.proj.weight, old.proj.weight)


def test_the_first_axes_keep_more_of_the_function_than_as_many_dims():
    dense = small_vit(depth=2)
    turned = principal_axes(dense, calibration(dense))
    for kept in (6, 4, 2):
        assert distance(dense, cut_dims(turned, kept)) < 0.5 * distance(dense, cut_dims(dense, kept))
    assert distance(dense, cut_dims(turned, 6)) < distance(dense, cut_dims(turned, 2))


def test_both_sides_of_an_axis_have_weights_of_one_norm():
    turned = principal_axes(small_vit(), calibration(small_vit()))
    for block in turned.blocks:
        query, key, value = block.attn.qkv.weight.chunk(3)
        torch.testing.assert_close(query.norm(dim=1), key.norm(dim=1))
        torch.testing.assert_close(value.norm(dim=1), block.attn.proj.weight.norm(dim=0))


def test_axes_of_a_cut_model_are_taken_of_what_is_left():
    dense = small_vit()
    small = slim(add_gates(dense), solve(add_gates(dense), 0.5))
    turned = principal_axes(small, calibration(small))
    assert difference(small, turned) < TOLERANCE
    assert turned.structure == small.structure


@pytest.mark.parametrize("kind", MODELS)
def test_repair_brings_a_cut_model_nearer_and_leaves_an_uncut_one_as_it_is(kind):
    dense = build(kind)
    gated = add_gates(dense)
    images = calibration(dense)
    assert difference(dense, repair(slim(gated, gated.shape.full()), dense, images[:4])) < TOLERANCE
    small = slim(gated, solve(gated, 0.6))
    before = copy.deepcopy(small.state_dict())
    repaired = repair(small, dense, images.split(20))  # batches of uneven sizes are as good as one tensor
    assert distance(dense, repaired) < distance(dense, small)
    assert all(torch.equal(small.state_dict()[name], value) for name, value in before.items()), "the given model was changed"
    assert repaired.structure == small.structure
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in (*repaired.modules(), *dense.modules()))


@pytest.mark.parametrize("kind", ["class token", "eva02", "dinov3", "swin"])
def test_the_outputs_of_the_first_images_are_enough(kind, monkeypatch):
    """Passes over the other images end early, and the result is the same; rotary embeddings and windows are not lost."""
    dense = build(kind)
    gated = add_gates(dense)
    small, batches = slim(gated, solve(gated, 0.6)), calibration(dense).split(16)
    whole = repair(small, dense, batches)
    passes = []
    monkeypatch.setattr(reconstruction, "COMPARED_IMAGES", 16)
    head = dense.get_classifier()
    counted = head.register_forward_hook(lambda module, args, output: passes.append(len(output)))
    short = repair(small, dense, batches)
    counted.remove()
    assert difference(whole, short) < TOLERANCE
    rotary = kind in ("eva02", "dinov3")
    assert passes == ([16, 16, 16] if rotary else [16])


def test_axes_and_repair_together_beat_each_alone():
    dense = small_vit()
    images = calibration(dense, 256)
    plain, turned = cut_dims(dense, 3), cut_dims(principal_axes(dense, images), 3)
    both = distance(dense, repair(turned, dense, images))
    assert both < distance(dense, turned)
    assert both < distance(dense, repair(plain, dense, images))


@torch.no_grad()
def lost(dense: nn.Module, other: nn.Module, images: Tensor) -> float:
    """The squared difference of the residual stream's last state, summed."""
    seen: list[Tensor] = []
    hooks = [model.blocks[-1].register_forward_hook(lambda block, args, out: seen.append(out)) for model in (dense, other)]
    dense(images), other(images)
    for hook in hooks:
        hook.remove()
    return float((seen[0] - seen[1]).square().sum())


@pytest.mark.parametrize("kind", ["class token", "layer scale", "eva02", "dinov3"])
def test_a_branch_makes_up_for_what_those_before_it_lack(kind):
    dense = build(kind)
    images = calibration(dense)
    gated = add_gates(dense, families=("attention", "mlp"))
    small = slim(gated, solve(gated, 0.5))
    stream, branch = (repair(small, dense, images, target=target) for target in ("stream", "branch"))
    assert lost(dense, stream, images) < lost(dense, branch, images) < lost(dense, small, images)


def test_dims_of_scale_0_stay_as_they_are():
    dense = build("layer scale")
    with torch.no_grad():
        dense.blocks[0].ls1.gamma[:3] = 0
    small = slim(add_gates(dense), solve(add_gates(dense), 0.5))
    repaired = repair(small, dense, calibration(dense))
    old, new = (model.blocks[0].attn.proj.weight for model in (small, repaired))
    torch.testing.assert_close(new[:3], old[:3])
    assert not torch.equal(new[3:], old[3:])


def test_a_removed_branch_is_repaired_by_its_mean():
    dense = small_vit(depth=2)
    gated = add_gates(dense)
    structure = gated.shape.full()
    structure.masks["mlp"][0][:] = False
    structure.masks["attention"][1][:] = False
    small = slim(gated, structure)
    images = calibration(dense, 128)
    repaired = repair(small, dense, images)
    found = []
    handle = dense.blocks[0].mlp.register_forward_hook(lambda module, args, output: found.append(output))
    with torch.no_grad():
        dense(images)
    handle.remove()
    torch.testing.assert_close(repaired.blocks[0].mlp.bias, found[0].mean((0, 1)), rtol=1e-2, atol=1e-2)
    assert distance(dense, repaired) < distance(dense, small)


def test_training_mode_and_what_is_refused():
    dense = small_vit()
    gated = add_gates(dense)
    images = calibration(dense)
    with pytest.raises(RefusedInput, match="has gates"):
        principal_axes(gated, images)
    with pytest.raises(RefusedInput, match="no images"):
        principal_axes(dense, iter(()))
    with pytest.raises(RefusedInput, match="was not cut"):
        repair(dense, dense, images)
    small = slim(gated, solve(gated, 0.5))
    with pytest.raises(RefusedInput, match="no images"):
        repair(small, dense, iter(()))
    with pytest.raises(ValueError, match="3"):
        repair(small, small_vit(depth=3), images)
    small.train()
    dense.train()
    assert repair(small, dense, images).training
    assert dense.training
