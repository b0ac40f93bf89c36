"""The slimming room: what is public, what it may import, and that its tables agree with each other."""

import ast
from pathlib import Path

import pytest
import timm
import torch
from zoo import MODELS, build, random_gates, small_vit

import slimsweep.slimming
from slimsweep import add_gates
from slimsweep.slimming.architectures import ARCHITECTURES, architecture_of
from slimsweep.slimming.budget import Budget
from slimsweep.slimming.cost import COSTS, Cost
from slimsweep.slimming.gate_families import GATE_FAMILIES
from slimsweep.slimming.gate_optimizer import GateTraining, penalty_weights
from slimsweep.slimming.removal_path import RemovalPath
from slimsweep.slimming.shape import FAMILIES, LayerSizes

ROOM = Path(slimsweep.slimming.__file__).parent


@pytest.mark.parametrize("name", slimsweep.slimming.__all__)
def test_public_names_are_there(name):
    assert name in dir(slimsweep.slimming)
    assert getattr(slimsweep.slimming, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'prune'"):
        slimsweep.slimming.__getattr__("prune")


@pytest.mark.parametrize("file", sorted(ROOM.glob("*.py")), ids=lambda file: file.stem)
def test_the_room_imports_no_other_room(file):
    names = []
    for node in ast.walk(ast.parse(file.read_text())):
        names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
    inside = {name for name in names if name.split(".")[0] == "slimsweep"}
    assert all(name.startswith(("slimsweep.slimming", "slimsweep.errors")) for name in inside), inside
    assert not {name.split(".")[0] for name in names} & {"ray", "pydantic", "pyarrow", "yaml"}


def test_quantities_have_their_unit():
    assert COSTS["macs"].text(1_234_560_000) == "1,234.56 MMACs"
    assert COSTS["params"].text(11_500_000) == "11.50 M params"
    assert COSTS["params"].quantity("20") == "20 params"


def test_tables_name_the_same_families():
    assert tuple(GATE_FAMILIES) == FAMILIES
    assert {family for cost in COSTS.values() for family in cost.families} == set(FAMILIES)
    assert all(name == cost.name for name, cost in COSTS.items())


@pytest.mark.parametrize("kind", MODELS)
def test_a_costs_families_are_those_that_lower_it(kind):
    gated = add_gates(build(kind))
    scores = random_gates(gated)
    for family, values in scores.items():
        path = RemovalPath(gated.shape, {family: values})
        for cost in COSTS.values():
            left = cost.of_path(path)
            assert (left[0], left[-1]) == (cost.of_dense(gated.shape), cost.of(path.prefix(path.length)))
            assert (left[-1] < left[0]) == (family in cost.families)


def test_a_further_cost_is_one_entry(monkeypatch):
    """Here tokens in all layers: budgets in it, paths and structures need nothing else."""
    tokens = Cost("tokens", "tokens", "tokens", ("token",), lambda shape, kept: sum(sizes.tokens for sizes in kept))
    monkeypatch.setitem(COSTS, "tokens", tokens)
    gated = add_gates(small_vit())
    structure = RemovalPath(gated.shape, random_gates(gated)).solve(Budget(0.5, "tokens"))
    assert tokens.of(structure) == 32 == tokens.of_dense(gated.shape) // 2
    assert structure.masks["mlp"][0].all()


def test_the_architectures_of_the_zoo_are_those_of_the_table():
    found = {architecture_of(build(kind)).model for kind in MODELS}
    assert found == {architecture.model for architecture in ARCHITECTURES}
    swin = timm.create_model("swin_tiny_patch4_window7_224", img_size=112)
    architecture = architecture_of(swin)
    first, last = (architecture.tokens(swin, architecture.blocks(swin)[i]) for i in (0, -1))
    assert (first.patches, first.prefix, first.window, first.padded) == (784, 0, 49, 784)
    assert (last.patches, last.padded) == (16, 16)


def test_sizes_of_paths_are_those_of_their_prefixes():
    gated = add_gates(small_vit())
    path = RemovalPath(gated.shape, random_gates(gated))
    sizes = path.layer_sizes()
    for length in (0, 7, path.length):
        here = [LayerSizes(*(int(values[length]) for values in layer)) for layer in sizes]
        assert here == path.prefix(length).layer_sizes()
    assert [layer.sizes for layer in gated.shape.layers] == path.prefix(0).layer_sizes()


def test_penalty_weights_are_the_families_own_on_average():
    shape = add_gates(small_vit()).shape
    factors = {"attention": 0.1, "mlp": 0.1, "token": 0.1}
    flat = penalty_weights(shape, GateTraining(lr=0.1, l1=factors))
    by_macs = penalty_weights(shape, GateTraining(lr=0.1, l1=factors, penalty="macs"))
    assert flat == {family: [0.1] * 4 for family in FAMILIES}
    total = sum(w * torch.Size(s).numel() for f, ws in by_macs.items() for w, s in zip(ws, shape.gate_shapes[f], strict=True))
    assert total == pytest.approx(0.1 * sum(torch.Size(s).numel() for sizes in shape.gate_shapes.values() for s in sizes))
