"""Scores without labels, and axes for a known cut: what adds least to the function leaves first, for every kind of model."""

import copy

import pytest
import torch
from test_axes_and_repair import calibration, distance
from zoo import MODELS, build, difference, random_gates, small_vit

from slimsweep import add_gates, principal_axes, repair, slim, solve
from slimsweep.errors import RefusedInput
from slimsweep.slimming.axes import strongest_kept
from slimsweep.slimming.scores_from_images import activation_scores


@pytest.mark.parametrize("kind", MODELS)
def test_scores_have_the_gates_shapes_and_solve_takes_them(kind):
    gated = add_gates(build(kind))
    scores = activation_scores(gated, calibration(gated, 8))
    assert {family: tuple(score.shape for score in of) for family, of in scores.items()} == gated.shape.gate_shapes
    assert all(score.isfinite().all() and (score >= 0).all() for of in scores.values() for score in of)
    assert any((score > 0).any() for of in scores.values() for score in of)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in gated.modules())
    assert all(gate.grad is None for of in gated.gate_parameters().values() for gate in of)
    solve(gated, 0.7, scores=scores)


@pytest.mark.parametrize("granularity", ["dim", "head", "uniform"])
def test_what_adds_nothing_leaves_first(granularity):
    dense = small_vit(depth=2)
    with torch.no_grad():
        dense.blocks[0].mlp.fc2.weight[:, 5] = 0.0
        dense.blocks[1].attn.proj.weight[:, : dense.blocks[1].attn.head_dim] = 0.0  # the first head
    scores = activation_scores(add_gates(dense, granularity), calibration(dense))
    assert scores["mlp"][0].argmin() == 5
    if granularity != "uniform":
        assert scores["attention"][1][0].max() == 0 < scores["attention"][1][1:].min()


def test_the_energy_is_the_variance_that_a_unit_adds_to_its_branch():
    dense = small_vit(depth=1)
    x = calibration(dense)
    given = []
    hook = dense.blocks[0].mlp.fc2.register_forward_pre_hook(lambda module, args: given.append(args[0].detach()))
    with torch.no_grad():
        dense(x)
    hook.remove()
    added = given[0][..., 3, None] * dense.blocks[0].mlp.fc2.weight[:, 3]  # (images, tokens, embed_dim)
    expected = added.flatten(0, 1).var(0, correction=0).sum()
    torch.testing.assert_close(activation_scores(add_gates(dense), x)["mlp"][0][3], expected, rtol=1e-4, atol=0)


def test_a_token_that_is_looked_at_by_nobody_is_worth_least():
    """Its derivative is that of the outputs by its gate: compared with a difference of two forward passes."""
    dense = small_vit(depth=2)
    gated, x = add_gates(dense), calibration(dense, 64)
    scores = torch.stack(activation_scores(gated, x)["token"])
    moved = torch.empty_like(scores)
    with torch.no_grad():
        whole = gated(x)
        for layer, of_layer in enumerate(gated.gate_parameters()["token"]):
            for patch in range(len(of_layer)):
                of_layer[patch] -= 1e-2
                moved[layer, patch] = (gated(x) - whole).square().sum() / len(x)
                of_layer[patch] += 1e-2
    ranks = [value.flatten().argsort().argsort().float() for value in (scores, moved)]
    assert torch.corrcoef(torch.stack(ranks))[0, 1] > 0.75  # 1 but for the few normal vectors


def test_scores_need_gates_and_images():
    dense = small_vit()
    with pytest.raises(RefusedInput, match="give what add_gates returns"):
        activation_scores(dense, calibration(dense, 2))
    with pytest.raises(RefusedInput, match="no images to score gates by"):
        activation_scores(add_gates(dense), [])


@pytest.mark.parametrize("kind", MODELS)
def test_axes_for_a_cut_change_nothing_and_serve_it_better(kind):
    dense = build(kind)
    gated, x = add_gates(dense), calibration(dense, 24)
    structure = gated.shape.full()
    generator = torch.Generator().manual_seed(2)
    for mask in structure.masks.get("attention", []):
        width = mask.shape[1]
        for head in mask:  # any dims, as many in each head
            head[torch.randperm(width, generator=generator)[: width // 2]] = False
    turned = principal_axes(dense, x, structure)
    assert difference(dense, turned) < 1e-5
    if gated.granularity == "dim":
        assert distance(dense, slim(turned, structure)) < distance(dense, slim(dense, structure))
    # Axes that were taken before, when nothing was known of a cut, serve it alike once they lie at the dims that it keeps.
    ordered = strongest_kept(principal_axes(dense, x), structure)
    assert difference(dense, ordered) < 1e-5
    assert difference(slim(turned, structure), slim(ordered, structure)) < 1e-4


def test_axes_are_taken_of_a_model_that_was_cut_for_its_next_cut():
    dense = small_vit(depth=2)
    larger, smaller = solve(add_gates(dense), [0.7, 0.4])
    x = calibration(dense)
    cut = repair(slim(principal_axes(dense, x, larger), larger), dense, x)
    turned = principal_axes(cut, x, smaller)
    assert difference(cut, turned) < 1e-5
    assert distance(cut, repair(slim(turned, smaller), cut, x)) <= distance(cut, repair(slim(cut, smaller), cut, x))
    with pytest.raises(RefusedInput, match="does not hold all of this one"):
        principal_axes(slim(cut, smaller), x, larger)


def test_scores_of_tokens_do_not_depend_on_how_gates_are_stored_or_who_is_trained():
    """Gates as they act count: as a tanh, frozen, without gradients around, in float16, in wrappers."""
    dense = small_vit(depth=2)
    gated, tanh = add_gates(dense), add_gates(dense, token_gate="tanh")
    gates = random_gates(gated)
    gates["token"] = [value / 1.25 for value in gates["token"]]
    gates["token"][1][3] = 0.0
    gated.set_gates(gates)
    tanh.set_gates(gates)
    x = calibration(dense, 16)
    expected = activation_scores(gated, x)["token"]
    assert expected[1][3] == 0 < expected[0].min()
    torch.testing.assert_close(activation_scores(tanh, x)["token"], expected, rtol=1e-3, atol=0)
    half = activation_scores(copy.deepcopy(gated).half(), x)["token"]
    assert ((half[0] - expected[0]).abs() / expected[0]).max() < 0.1
    checkpointing = copy.deepcopy(gated)
    checkpointing.set_grad_checkpointing()
    same = [checkpointing, torch.nn.DataParallel(gated), gated.requires_grad_(False)]
    assert all(torch.equal(activation_scores(one, x)["token"][0], expected[0]) for one in same)
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(activation_scores(gated, x.clone())["token"][0], expected[0])


def test_what_is_no_structure_and_models_without_weights_are_refused():
    dense = small_vit(depth=2)
    gated, x = add_gates(dense), calibration(dense, 2)
    with pytest.raises(RefusedInput, match="the structure is a list: give one that solve returns"):
        principal_axes(dense, x, solve(gated, [0.5, 0.4]))
    small, nothing = slim(gated, solve(gated, 0.5)), copy.deepcopy(dense).to("meta")
    refused = {
        "to score the gates of": lambda: activation_scores(add_gates(nothing), x),
        "to aim at": lambda: repair(small, nothing, x),
        "to repair": lambda: repair(copy.deepcopy(small).to("meta"), dense, x),
    }
    for purpose, call in refused.items():
        with pytest.raises(RefusedInput, match=f"on the meta device, so it has no weights {purpose}"):
            call()
