"""With depth, the rest of a branch is one more step of the removal path: whole branches leave, and nothing in between."""

import pytest
import timm
import torch
from zoo import build, close_gates, difference, images, last_of, random_gates, small_vit

from slimsweep import add_gates, load, macs, save, slim, solve
from slimsweep.slimming.removal_path import RemovalPath

FLOORS = {"attention": 0.25, "mlp": 0.25, "token": 0.25}


@pytest.mark.parametrize("kind", ["class token", "swin", "dinov3"])
@pytest.mark.parametrize("granularity", ["dim", "head"])
def test_a_branch_keeps_its_floor_or_leaves_whole(kind, granularity):
    gated = add_gates(build(kind), granularity)
    gated.set_gates(random_gates(gated))
    plain = RemovalPath(gated.shape, gated.gates, FLOORS)
    path = RemovalPath(gated.shape, gated.gates, FLOORS, depth=True)
    assert path.macs[-1] < plain.macs[-1]
    assert (path.macs[1:] <= path.macs[:-1]).all()
    earlier = path.prefix(0)
    for length in range(0, path.length + 1, max(1, path.length // 40)):
        structure = path.prefix(length)
        assert earlier.holds(structure)
        assert structure.macs() == path.macs[length]
        for index, row in enumerate(structure.summary()):
            layer = gated.shape.layers[index]
            assert row["mlp_units"] == 0 or row["mlp_units"] >= FLOORS["mlp"] * layer.hidden
            dims = row["heads"] * row["head_dim"]
            assert dims == 0 or dims >= FLOORS["attention"] * layer.heads * layer.head_dim
        earlier = structure
    last = path.prefix(path.length).summary()
    assert all(row["heads"] == row["mlp_units"] == 0 for row in last)
    if "token" in gated.gates:
        assert all(row["tokens"] >= FLOORS["token"] * row["tokens_dense"] for row in last)


def test_the_branch_that_is_worth_least_leaves_first_and_the_cut_is_exact(tmp_path):
    gated = add_gates(small_vit(depth=3))
    gates = random_gates(gated)
    gates["mlp"][1] = gates["mlp"][1] * 0.01
    gated.set_gates(gates)
    path = RemovalPath(gated.shape, gated.gates, FLOORS, depth=True)
    first = next(s for s in map(path.prefix, range(path.length + 1)) if any(not row["mlp_units"] for row in s.summary()))
    assert [bool(row["mlp_units"]) for row in first.summary()] == [True, False, True]
    small = slim(gated, first)
    close_gates(gated, gates, first)
    assert difference(gated, small) < 1e-5
    save(small, tmp_path / "small")
    with torch.no_grad():
        assert torch.equal(load(tmp_path / "small")(images(small)), small(images(small)))


def test_a_block_that_has_nothing_left_still_drops_tokens():
    small = {"img_size": 56, "embed_dim": 32, "depth": 4, "num_heads": 4, "num_classes": 5}
    gated = add_gates(timm.create_model("aimv2_large_patch14_224", **small))  # without biases, which would be left
    structure = solve(gated, 0.26, paces={"token": 0.3})
    gone = [row["heads"] == row["mlp_units"] == 0 for row in structure.summary()]
    assert any(gone)
    cut = slim(gated, structure)
    assert macs(cut) == structure.macs()
    close_gates(gated, gated.gates, structure)
    assert difference(gated, cut) < 1e-5


def test_budgets_below_the_floors_can_be_met_with_depth():
    gated = add_gates(small_vit())
    least = RemovalPath(gated.shape, gated.gates, FLOORS).macs[-1] / macs(gated)
    budget = 0.8 * least
    assert solve(gated, budget, floors=FLOORS, depth=True).macs() <= budget * macs(gated)


@pytest.mark.parametrize("depth", [True, 0.2])
@pytest.mark.parametrize("granularity", ["dim", "head", "uniform"])
def test_the_attention_that_is_worth_most_may_be_kept(granularity, depth):
    gated = add_gates(small_vit(depth=3), granularity)
    gates = random_gates(gated)
    gates["attention"][1] = gates["attention"][1] + 5.0
    gated.set_gates(gates)
    path = RemovalPath(gated.shape, gated.gates, FLOORS, depth=depth, keep_attention=True)
    whole = RemovalPath(gated.shape, gated.gates, FLOORS, depth=depth)
    last = last_of(path)
    assert [bool(row["heads"]) for row in last.summary()] == [False, True, False]
    assert not any(row["mlp_units"] for row in last.summary())
    assert path.macs[-1] > whole.macs[-1]
    close_gates(gated, gates, last)
    assert difference(gated, slim(gated, last)) < 1e-5
