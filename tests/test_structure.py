"""Structures: plain data that says what is kept, what it costs, and whether it can be cut at all."""

import json

import pytest
import torch
from zoo import MODELS, build, small_vit

from slimsweep import Structure, add_gates, macs, params, solve


@pytest.fixture(scope="module")
def gated():
    return add_gates(small_vit())


@pytest.mark.parametrize("kind", MODELS)
def test_the_full_structure_costs_what_the_model_does(kind):
    model = build(kind)
    full = add_gates(model).shape.full()
    assert macs(full) == macs(model)
    assert params(full) == params(model)


def test_counting_leaves_the_model_alone():
    model = small_vit(drop_rate=0.5).train()
    model.blocks[1].eval()
    macs(model)
    assert [m.training for m in (model, model.blocks[0], model.blocks[1].mlp)] == [True, True, False]
    assert next(model.parameters()).device.type == "cpu"
    assert macs(small_vit().bfloat16()) == macs(small_vit())


def test_only_structures_and_models_have_costs():
    for count in (macs, params):
        with pytest.raises(TypeError, match="Structure or a model, not str"):
            count("deit_small_patch16_224")


def test_text_round_trip(gated):
    structure = solve(gated, 0.37)
    text = structure.to_json()
    again = Structure.from_json(text)
    assert again == structure
    assert hash(again) == hash(structure)
    assert again.shape == structure.shape
    assert (macs(again), params(again)) == (macs(structure), params(structure))
    for family, masks in structure.masks.items():
        assert all(torch.equal(a, b) for a, b in zip(masks, again.masks[family], strict=True))
    assert solve(gated, 0.36) != structure


def damaged(text: str, change) -> str:
    data = json.loads(text)
    change(data)
    return json.dumps(data)


@pytest.mark.parametrize(
    "change",
    [
        lambda d: d.pop("version"),
        lambda d: d.update(version=2),
        lambda d: d.update(masks=[]),
        lambda d: d.update(shape=3),
        lambda d: d["shape"].pop("layers"),
        lambda d: d["shape"]["layers"][0].pop("heads"),
        lambda d: d["shape"].update(grid=[]),
        lambda d: d["masks"].update(bottleneck=[]),
        lambda d: d["masks"]["mlp"].pop(),
        lambda d: d["masks"]["mlp"].__setitem__(0, "zz"),
        lambda d: d["masks"]["mlp"].__setitem__(0, "ff"),
        lambda d: d["masks"]["token"].__setitem__(0, "0000"),
    ],
)
def test_damaged_text_is_refused(gated, change):
    text = damaged(solve(gated, 0.5).to_json(), change)
    with pytest.raises(ValueError, match="not a structure that slimsweep wrote"):
        Structure.from_json(text)


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "3", '"structure"'])
def test_other_text_is_refused(text):
    with pytest.raises(ValueError, match="not a structure that slimsweep wrote"):
        Structure.from_json(text)


def test_masks_that_cannot_be_cut_are_refused(gated):
    full = gated.shape.full().masks
    with pytest.raises(ValueError, match="attention masks have the shapes"):
        Structure(gated.shape, {**full, "attention": full["attention"][:2]})
    with pytest.raises(ValueError, match="is not a family of gates"):
        Structure(gated.shape, {"tokens": full["token"]})
    with pytest.raises(ValueError, match="no token gates"):
        Structure(add_gates(small_vit(), families=["mlp"]).shape, {"token": full["token"]})
    back = [m.clone() for m in full["token"]]
    back[1][7] = False
    with pytest.raises(ValueError, match="token 7 is kept in layer 2 but dropped in layer 1"):
        Structure(gated.shape, {"token": back})


def test_pooling_needs_a_token():
    empty = {"token": [torch.zeros(16, dtype=torch.bool)] * 4}
    Structure(add_gates(small_vit()).shape, empty)  # the class token is enough
    for pooling in ({"global_pool": "avg"}, {"global_pool": "map", "class_token": False}):
        with pytest.raises(ValueError, match="keep at least one"):
            Structure(add_gates(small_vit(**pooling)).shape, empty)


def test_the_summary_has_the_sizes_of_each_layer(gated):
    structure = gated.shape.full()
    structure.masks["attention"][2][:3] = False
    structure.masks["mlp"][2][10:] = False
    structure.masks["token"][3][:] = False
    rows = structure.summary()
    assert rows[2] == {
        "layer": "blocks.2",
        **{"heads": 1, "heads_dense": 4, "head_dim": 8, "head_dim_dense": 8},
        **{"mlp_units": 10, "mlp_units_dense": 64, "tokens": 16, "tokens_dense": 16},
    }
    assert [row["tokens"] for row in rows] == [16, 16, 16, 0]
    assert "1x8/10/16" in repr(structure)
