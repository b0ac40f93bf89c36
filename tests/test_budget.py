"""The solver: nested structures, within their budgets and close to them, the same every time."""

import itertools
import time

import numpy as np
import pytest
import timm
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from zoo import build, random_gates, small_vit

from slimsweep import BudgetError, Structure, add_gates, macs, params, solve
from slimsweep.slimming.budget import Budget
from slimsweep.slimming.removal_path import RemovalPath

GATED = {g: add_gates(small_vit(global_pool="avg"), granularity=g) for g in ("dim", "head", "uniform")}

budgets = st.floats(0.15, 1.0)
paces = st.fixed_dictionaries({f: st.sampled_from([0.5, 1.0, 2.0]) for f in ("attention", "mlp", "token")})
floors = st.fixed_dictionaries({f: st.sampled_from([0.0, 0.1, 0.25]) for f in ("attention", "mlp", "token")})


@st.composite
def scores(draw, gated):
    """Values that are random, all alike, or alike in part: ties are what a solver gets wrong."""
    levels = draw(st.sampled_from([1, 3, 1000]))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**32)))
    return {f: [torch.randint(1, levels + 1, v.shape, generator=generator) / 7 for v in vs] for f, vs in gated.gates.items()}


def kept(structure: Structure) -> torch.Tensor:
    return torch.cat([m.flatten() for ms in structure.masks.values() for m in ms])


@given(
    data=st.data(), granularity=st.sampled_from(list(GATED)), floors=floors, round_to=st.sampled_from([1, 2, 4]), paces=paces
)
@settings(max_examples=60, deadline=None)
def test_structures_keep_every_promise(data, granularity, floors, round_to, paces):
    gated = GATED[granularity]
    values = data.draw(scores(gated))
    metric = data.draw(st.sampled_from(["macs", "params"]))
    count = macs if metric == "macs" else params
    asked = sorted(data.draw(st.lists(budgets, min_size=2, max_size=4)), reverse=True)
    dense = count(gated)
    ranked = {f: v for f, v in values.items() if f != "token" or metric == "macs"}
    path = RemovalPath(gated.shape, ranked, floors, round_to, paces)
    left = path.macs if metric == "macs" else path.params
    asked = [b for b in asked if b * dense >= left[-1]]
    options = {"scores": values, "floors": floors, "round_to": round_to, "paces": paces, "metric": metric}
    structures = solve(gated, asked, **options)

    for budget, structure in zip(asked, structures, strict=True):
        structure.validate()
        # Within the budget, and the step before would not be.
        assert count(structure) <= budget * dense
        assert count(structure) in left
        larger = left[left > count(structure)]
        assert budget == 1.0 or not len(larger) or larger.min() > budget * dense
        # Deterministic, alone or in a list.
        assert solve(gated, budget, **options) == structure
        for index, layer in enumerate(gated.shape.layers):
            heads, width, units, tokens = structure.sizes(index)
            dims = structure.attention_mask(index).sum(1)
            assert set(dims.tolist()) <= {0, width}, "kept heads differ in width"
            assert heads * width >= floors["attention"] * layer.heads * layer.head_dim
            assert units >= floors["mlp"] * layer.hidden
            assert tokens >= max(1, floors["token"] * layer.tokens if metric == "macs" else layer.tokens)
            assert units % round_to == 0
            assert tokens == layer.tokens or (tokens + layer.prefix) % round_to == 0
            if granularity != "head":
                assert width % round_to == 0
    # Nested.
    for larger, smaller in itertools.pairwise(structures):
        assert not (kept(smaller) & ~kept(larger)).any()


@given(data=st.data())
@settings(max_examples=20, deadline=None)
def test_every_prefix_of_the_path_is_priced_to_the_unit(data):
    gated = GATED[data.draw(st.sampled_from(list(GATED)))]
    path = RemovalPath(gated.shape, data.draw(scores(gated)), data.draw(floors), 1)
    for length in {0, path.length, data.draw(st.integers(0, path.length)), data.draw(st.integers(0, path.length))}:
        structure = path.prefix(length)
        assert (macs(structure), params(structure)) == (path.macs[length], path.params[length])
    assert (path.macs[1:] <= path.macs[:-1]).all()


def test_families_leave_at_their_pace():
    """Where a family of pace 1 keeps a share s, one of pace p keeps s ** p, to a step of each."""
    gated = add_gates(small_vit())
    for structure in solve(gated, [0.7, 0.5, 0.3], scores=random_gates(gated), paces={"mlp": 2.0, "token": 0.5}):
        kept = {f: float(torch.cat([m.flatten() for m in ms]).float().mean()) for f, ms in structure.masks.items()}
        assert kept["mlp"] == pytest.approx(kept["attention"] ** 2, abs=0.05)
        assert kept["token"] == pytest.approx(kept["attention"] ** 0.5, abs=0.05)


def test_the_smallest_gates_leave_first():
    gated = add_gates(small_vit())
    values = gated.gates
    for family in ("attention", "mlp"):
        for layer, value in enumerate(values[family]):
            value.flatten()[:] = torch.linspace(0.1, 1, value.numel()).roll(layer)
    structure = solve(gated, 0.6, scores=values, floors={"attention": 0.1, "mlp": 0.1, "token": 0.5})
    for layer in range(4):
        mask, value = structure.masks["mlp"][layer], values["mlp"][layer]
        assert value[mask].min() > value[~mask].max()
        for head in range(4):
            mask, value = structure.masks["attention"][layer][head], values["attention"][layer][head]
            if mask.any() and not mask.all():
                assert value[mask].min() > value[~mask].max()


def test_signs_do_not_matter():
    gated = add_gates(small_vit())
    gates = random_gates(gated)
    signs = {f: [v * (-1) ** torch.arange(v.numel()).reshape(v.shape) for v in vs] for f, vs in gates.items()}
    assert solve(gated, 0.5, scores=signs) == solve(gated, 0.5, scores=gates)


@pytest.mark.parametrize("value", [1.0, 0.1, 0.3])
@pytest.mark.parametrize("round_to", [1, 4])
def test_gates_that_are_all_alike_leave_every_layer_evenly(value, round_to):
    """For values whose sums round, too."""
    gated = add_gates(small_vit())
    alike = {f: [torch.full_like(v, value) for v in vs] for f, vs in gated.gates.items()}
    for structure in solve(gated, [0.8, 0.5, 0.3], scores=alike, round_to=round_to):
        for position, most in ((2, round_to), (3, round_to)):
            sizes = [structure.sizes(i)[position] for i in range(4)]
            assert max(sizes) - min(sizes) <= most
        dims = [structure.sizes(i)[0] * structure.sizes(i)[1] for i in range(4)]
        assert max(dims) - min(dims) <= 4 * round_to


def test_null_rounds_for_speed_where_heads_are_wide_and_not_in_small_models():
    wide, narrow = add_gates(small_vit(embed_dim=128, num_heads=2)), add_gates(small_vit())
    for gated, multiple in ((wide, 16), (narrow, 1)):
        gates = random_gates(gated)
        assert solve(gated, 0.5, scores=gates, round_to=None) == solve(gated, 0.5, scores=gates, round_to=multiple)
    assert solve(wide, 0.5, scores=random_gates(wide), round_to=None) != solve(wide, 0.5, scores=random_gates(wide))


def test_tokens_that_left_stay_away():
    gated = add_gates(small_vit())
    values = gated.gates
    values["token"] = [torch.rand(16, generator=torch.Generator().manual_seed(i)) for i in range(4)]
    for structure in solve(gated, [0.9, 0.6, 0.4], scores=values):
        for earlier, later in zip(structure.masks["token"], structure.masks["token"][1:], strict=False):
            assert not (later & ~earlier).any()


def test_parameters_leave_tokens_alone():
    gated = add_gates(small_vit())
    gated.set_gates(random_gates(gated))
    structure = solve(gated, 0.5, metric="params")
    assert params(structure) <= 0.5 * params(gated)
    assert all(mask.all() for mask in structure.masks["token"])


def test_one_path_is_solved_in_either_unit():
    """The budget says in which; structures of one unit are nested, and tokens are left alone where parameters count."""
    gated = add_gates(small_vit())
    path = RemovalPath(gated.shape, random_gates(gated))
    asked = [0.8, "0.6 params", "40%", f"{0.5 * params(gated) / 1e3:.3f}K params", Budget(0.4, "params"), 0.3]
    structures = [path.solve(budget) for budget in asked]
    for budget, structure in zip(map(Budget.parse, asked), structures, strict=True):
        count = macs if budget.unit == "macs" else params
        assert count(structure) <= budget.limit(count(gated)) < count(structure) + 0.02 * count(gated)
        assert all(mask.all() for mask in structure.masks["token"]) == (budget.unit == "params")
        assert solve(gated, budget, scores=random_gates(gated)) == structure
    assert path.solve(0.6, "params") == path.solve("60% params", "params") == structures[1]
    for unit in ("macs", "params"):
        of_unit = [s for b, s in zip(map(Budget.parse, asked), structures, strict=True) if b.unit == unit]
        for larger, smaller in itertools.pairwise(of_unit):
            assert not (kept(smaller) & ~kept(larger)).any()
    assert path.tensors()["params"].tolist() == path.params.tolist()
    assert len(path.params) == path.length + 1 > path.for_unit("params").length + 1
    with pytest.raises(BudgetError, match="counts macs, but metric is 'params'"):
        path.solve("0.5 macs", "params")
    with pytest.raises(BudgetError, match=r"budget '0.001 params' cannot be reached.*of its params"):
        RemovalPath(gated.shape, random_gates(gated), {"mlp": 0.5}).solve(Budget(0.001, "params"))


def test_shares_that_mean_nothing_are_refused():
    gated = add_gates(small_vit(), families=["mlp"])
    with pytest.raises(BudgetError, match="above 0 and at most 1"):
        solve(gated, per_family={"mlp": 0.0})
    with pytest.raises(ValueError, match="no attention gates"):
        solve(gated, per_family={"attention": 0.5})
    with pytest.raises(BudgetError, match=r"floors keep 0\.5"):
        solve(gated, per_family={"mlp": 0.2}, floors={"mlp": 0.5})
    with pytest.raises(ValueError, match="either a budget or"):
        solve(gated, 0.5, per_family={"mlp": 0.5})
    with pytest.raises(ValueError, match="either a budget or"):
        solve(gated)


def test_a_hundred_budgets_of_deit_base_take_no_time():
    shape = add_gates(timm.create_model("deit_base_patch16_224", num_classes=0)).shape
    generator = torch.Generator().manual_seed(0)
    gates = {f: [torch.rand(s, generator=generator) for s in shapes] for f, shapes in shape.gate_shapes.items()}

    class Gated:
        pass

    gated = Gated()
    gated.shape, gated.gates = shape, gates
    fastest = min(timed(lambda: solve(gated, [0.2 + 0.008 * i for i in range(100)])) for _ in range(3))
    assert fastest < 1, f"{fastest:.2f} s"


def timed(work) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def test_an_unreachable_budget_names_the_least():
    gated = add_gates(small_vit())
    floors = {"attention": 0.5, "mlp": 0.5, "token": 0.5}
    with pytest.raises(BudgetError, match="the least this model can be cut to is") as problem:
        solve(gated, 0.1, floors=floors)
    least = RemovalPath(gated.shape, gated.gates, floors).macs[-1]
    assert f"{least:,}" in str(problem.value)
    assert f"{least / macs(gated):.4f}" in str(problem.value)
    assert macs(solve(gated, f"{least / 1e6:.6f}M", floors=floors)) == least


def test_without_floors_branches_may_go_and_floors_prevent_it():
    gated = add_gates(small_vit())
    gated.set_gates(random_gates(gated))
    least = RemovalPath(gated.shape, gated.gates).macs[-1]
    assert all(row["heads"] == row["mlp_units"] == 0 for row in solve(gated, f"{least / 1e6:.6f}M").summary())
    bound = solve(gated, 0.2, floors={"attention": 0.05, "mlp": 0.05})
    assert all(row["heads"] and row["mlp_units"] for row in bound.summary())


@pytest.mark.parametrize(
    ("budget", "expected"),
    [
        (0.5, 500_000),
        ("0.5", 500_000),
        (1, 1_000_000),
        ("250k", 250_000),
        (" 0.3M ", 300_000),
        ("2.3G", 2_300_000_000),
        ("50%", 500_000),
    ],
)
def test_budgets_are_fractions_or_have_a_suffix(budget, expected):
    assert Budget.parse(budget).limit(1_000_000) == expected


@pytest.mark.parametrize(
    "budget", [0, 1.5, -0.5, float("nan"), float("inf"), 2_300_000, "abc", "", "1.5", "150%", "2.3GB", "-1G", "1e9"]
)
def test_budgets_that_mean_nothing_are_refused(budget):
    with pytest.raises(BudgetError, match="fraction"):
        Budget.parse(budget)


def test_numpy_s_numbers_and_arrays_are_budgets():
    gated = add_gates(small_vit())
    assert solve(gated, np.array([0.5, 0.25])) == solve(gated, [0.5, 0.25])
    assert solve(gated, np.float32(0.5)) == solve(gated, 0.5)
    with pytest.raises(ValueError, match="leave it out beside per_family"):
        solve(gated, per_family={"mlp": 0.5}, metric="params")


def test_a_budget_above_the_dense_model_keeps_all():
    gated = add_gates(small_vit())
    assert solve(gated, "100G") == solve(gated, 1.0) == gated.shape.full()


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"metric": "latency"}, "'macs' or 'params'"),
        ({"round_to": 0}, "at least 1"),
        ({"floors": {"mlp": 1.0}}, "below 1"),
        ({"floors": {"mlps": 0.1}}, "is not a family of gates"),
        ({"paces": {"mlps": 2}}, "is not a family of gates"),
        ({"paces": {"mlp": 0}}, "above 0"),
        ({"scores": {"mlps": []}}, "is not a family of gates"),
        ({"scores": {"mlp": [torch.ones(64)] * 3}}, "shapes"),
        ({"scores": {"mlp": [torch.full((64,), torch.nan)] * 4}}, "not finite"),
        ({"scores": {"mlp": [torch.ones(64, device="meta")] * 4}}, "are on the meta device and have no values"),
    ],
)
def test_wrong_options_are_refused(options, reason):
    with pytest.raises(ValueError, match=reason):
        solve(add_gates(small_vit()), 0.5, **options)


@pytest.mark.parametrize("kind", ["swin", "eva02", "map pooling", "distilled"])
def test_every_family_of_models_keeps_its_budget(kind):
    gated = add_gates(build(kind))
    gated.set_gates(random_gates(gated))
    for budget, structure in zip([0.7, 0.4], solve(gated, [0.7, 0.4]), strict=True):
        assert 0 <= budget - macs(structure) / macs(gated) < 0.05
