"""The baselines: what each keeps and starts from, on equal terms with the search, and the plan over learning rates."""

import itertools
import json
import shutil
from collections import Counter
from dataclasses import asdict
from pathlib import Path

import pandas as pd
import pytest
import timm
import torch
from conftest import QUICK
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from zoo import build, difference, images, random_gates, slow, small_vit

from slimsweep import add_gates, load, macs, params, save, solve
from slimsweep.cluster.retrain_job import trial
from slimsweep.cluster.worker import data_for
from slimsweep.config import Config, ConfigError
from slimsweep.ledger.lock import hold
from slimsweep.ledger.points import Point, chosen_path, plan_points, points_to_do, to_choose
from slimsweep.ledger.tables import gate_rows, read_rows, write_gates, write_row
from slimsweep.methods.baselines import (
    RANKED,
    accumulate_gradients,
    check_baseline,
    choose,
    extra_epochs,
    random_scores,
    small_costs,
    small_structure,
    starting_model,
    taylor_scores,
    training_images,
    uniform_scores,
)
from slimsweep.run import compare, main
from slimsweep.slimming.cut import slim
from slimsweep.slimming.removal_path import RemovalPath
from slimsweep.slimming.structure import Structure
from slimsweep.storage import Folder
from slimsweep.tools.status import read_config, read_status

SEARCH = Config().search
BUDGETS = [0.7, 0.5, 0.35]
DENSE = small_vit()


def some_images(model: nn.Module, count: int = 48) -> tuple[torch.Tensor, torch.Tensor]:
    return images(model, count), torch.randint(0, 10, (count,), generator=torch.Generator().manual_seed(2))


def chosen(method: str, model: nn.Module = DENSE, budgets: list = BUDGETS, seed: int = 0, **search) -> list:
    x, y = some_images(model)
    return choose(method, budgets, model, SEARCH.model_copy(update=search), seed=seed, images=x, labels=y)


# What is kept.


@pytest.mark.parametrize("granularity", ["dim", "head", "uniform"])
@pytest.mark.parametrize("method", [m for m in RANKED if m != "torch-pruning"])
def test_every_method_meets_its_budget(method: str, granularity: str):
    check_budgets(method, granularity)


@pytest.mark.parametrize("granularity", ["dim", "head", *slow("uniform")])
def test_torch_pruning_meets_its_budget(granularity: str):
    pytest.importorskip("torch_pruning", reason="the extra `baselines` is not installed")
    check_budgets("torch-pruning", granularity)


def check_budgets(method: str, granularity: str) -> None:
    budgets = [0.7] if granularity == "head" else BUDGETS  # of four heads at most one or two can go
    for budget, structure in zip(budgets, chosen(method, budgets=budgets, granularity=granularity), strict=True):
        assert structure.macs() <= budget * macs(DENSE)
        assert macs(starting_model(method, DENSE, structure, 0)) == structure.macs()
        # Steps of so small a model are some percent of it: a dim of all heads, a width of all layers.
        assert structure.macs() >= (budget - 0.06) * macs(DENSE)


@pytest.mark.parametrize("method", ["uniform", "taylor", "random"])
def test_a_solved_baseline_is_short_of_its_budget_by_less_than_the_next_step(method: str):
    gated = add_gates(DENSE)
    x, y = some_images(DENSE)
    scores = {
        "uniform": lambda: uniform_scores(DENSE, gated.shape),
        "taylor": lambda: taylor_scores(DENSE, SEARCH, x, y),
        "random": lambda: random_scores(gated.shape, 0),
    }[method]()
    costs = RemovalPath(gated.shape, scores, SEARCH.floors.model_dump()).macs
    for budget, structure in zip(BUDGETS, chosen(method), strict=True):
        assert costs[costs > structure.macs()].min() > budget * macs(DENSE)


@pytest.mark.parametrize("kind", ["class token", "swin", "eva02", "packed swiglu"])
def test_uniform_keeps_the_same_share_everywhere(kind: str):
    model = build(kind)
    for structure in chosen("uniform", model, [0.7, 0.5]):
        for family, position in (("mlp", 2), ("token", 3)):
            if family in structure.masks:
                whole = [(layer.hidden, layer.tokens)[position - 2] for layer in structure.shape.layers]
                shares = [structure.sizes(i)[position] / size for i, size in enumerate(whole)]
                assert max(shares) - min(shares) <= 1.5 / min(whole)
        layers = structure.shape.layers
        kept = [structure.attention_mask(i).float().mean().item() for i in range(len(layers))]
        step = 1 / min(x.heads if structure.masks["attention"][0].shape[1] == 1 else x.head_dim for x in layers)
        assert max(kept) - min(kept) <= step + 1e-6
        if structure.masks["attention"][0].shape[1] > 1:  # every head its own best dims, as many as any other
            assert all(len(set(structure.attention_mask(i).sum(1).tolist())) == 1 for i in range(len(layers)))


def test_uniform_keeps_the_largest_weights_of_each_layer():
    model = small_vit()
    with torch.no_grad():
        model.blocks[1].mlp.fc1.weight[5], model.blocks[1].mlp.fc1.bias[5], model.blocks[1].mlp.fc2.weight[:, 5] = 0, 0, 0
        attention = model.blocks[2].attn  # head 1 of 4 heads of 8 dims, its third dim
        for stack in range(3):
            attention.qkv.weight[32 * stack + 8 + 2], attention.qkv.bias[32 * stack + 8 + 2] = 0, 0
        attention.proj.weight[:, 8 + 2] = 0
        model.blocks[3].mlp.fc1.weight.mul_(0.1)  # a layer of small weights loses no more than others
        model.blocks[3].mlp.fc2.weight.mul_(0.1)
    structure = chosen("uniform", model, [0.8])[0]
    assert not structure.masks["mlp"][1][5]
    assert not structure.masks["attention"][2][1, 2]
    units = [structure.sizes(i)[2] for i in range(4)]
    assert max(units) - min(units) <= 1


def test_uniform_drops_tokens_evenly_and_the_border_first():
    for structure in chosen("uniform"):
        inner = torch.zeros(4, 4, dtype=torch.bool)
        inner[1:3, 1:3] = True
        for mask in structure.masks["token"]:
            assert mask.all() or mask.view(4, 4)[inner].all() or not mask.view(4, 4)[~inner].any()


def test_taylor_ranks_what_has_no_effect_last():
    model = small_vit()
    with torch.no_grad():
        model.blocks[0].mlp.fc2.weight[:, [3, 60]] = 0
        model.blocks[2].attn.proj.weight[:, 17] = 0
        model.blocks[2].attn.qkv.weight[[17, 32 + 17]] = 0
        model.blocks[2].attn.qkv.bias[[17, 32 + 17]] = 0
    x, y = some_images(model)
    scores = taylor_scores(model, SEARCH, x, y)
    assert {f: [tuple(s.shape) for s in ss] for f, ss in scores.items()} == {
        f: [tuple(g.shape) for g in gs] for f, gs in add_gates(model).gates.items()
    }
    units = torch.stack(scores["mlp"])
    assert (units[0, [3, 60]] == 0).all()
    assert (units == 0).sum() == 2
    dims = torch.stack(scores["attention"])
    assert dims[2].flatten()[17] == 0
    assert (dims == 0).sum() == 1
    structure = solve(add_gates(model), 0.8, scores=scores)
    assert not structure.masks["mlp"][0][[3, 60]].any()


def test_taylor_is_the_squared_change_that_a_gate_makes():
    """Against a finite difference of the loss, one batch of images, in double precision."""
    model = small_vit().double()
    x, y = images(model, 8).double(), torch.arange(8)
    scores = taylor_scores(model, SEARCH, x, y)
    gated = add_gates(model).double()
    for family, layer, index in (("mlp", 1, (7,)), ("attention", 0, (2, 3)), ("token", 3, (5,))):
        losses = []
        for value in (1 - 1e-4, 1 + 1e-4):
            gates = gated.gates
            gates[family][layer][index] = value
            gated.set_gates(gates)
            with torch.no_grad():
                losses.append(nn.functional.cross_entropy(gated(x), y))
            gates[family][layer][index] = 1.0
            gated.set_gates(gates)
        slope = float(losses[1] - losses[0]) / 2e-4
        assert float(scores[family][layer][index]) == pytest.approx(slope**2, rel=1e-3)


def test_random_follows_the_seed_alone():
    first, again, other = (chosen("random", seed=s) for s in (0, 0, 1))
    changed = small_vit()
    with torch.no_grad():
        changed.blocks[0].mlp.fc1.weight.mul_(3)
    assert first == again == chosen("random", changed)
    assert all(a != b for a, b in zip(first, other, strict=True))


def test_images_for_gradients_are_the_same_each_time_and_without_augmentation():
    config = Config(name="x", model={"name": "vit_tiny_patch16_224", "kwargs": SMALL}, data={"limit": 300})
    model = timm.create_model("vit_tiny_patch16_224", num_classes=10, **SMALL)
    data = data_for(config, model)
    (x, y), (again, _) = training_images(data, config), training_images(data, config)
    assert torch.equal(x, again)
    assert x.shape == (300, 1, 8, 8)
    assert data.train.view.random  # while training images are not the same each time
    assert y.unique().tolist() == list(range(10))


# What it starts from.


@pytest.mark.parametrize("kind", ["class token", "eva02", "swin"])
def test_scratch_has_the_searched_sizes_and_fresh_weights(kind: str):
    dense = timm.create_model(*_named(kind))
    gated = add_gates(dense)
    gated.set_gates(random_gates(gated))
    structure = solve(gated, 0.4, floors={"attention": 0.2, "mlp": 0.2})
    searched = starting_model("searched", gated, structure, 0)
    first, again, other = (starting_model("scratch", dense, structure, s) for s in (0, 0, 1))
    shapes = {n: p.shape for n, p in searched.named_parameters()}
    assert {n: p.shape for n, p in first.named_parameters()} == shapes
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), again.parameters(), strict=True))
    drawn = [
        (a, b, c) for a, b, c in zip(first.parameters(), other.parameters(), searched.parameters(), strict=True) if a.std() > 0
    ]
    assert not any(torch.equal(a, b) or torch.equal(a, c) for a, b, c in drawn if a.numel() > 1)
    # Query weights are as wide as timm draws them, though the heads are narrower.
    for mine, whole in zip(_queries(first), _queries(dense), strict=True):
        assert mine.std().item() == pytest.approx(whole.std().item(), rel=0.1)


def _named(kind: str) -> tuple[str, bool]:
    return {
        "class token": ("vit_tiny_patch16_224", False),
        "eva02": ("eva02_tiny_patch14_224", False),
        "swin": ("swin_tiny_patch4_window7_224", False),
    }[kind]


def _queries(model: nn.Module) -> list[torch.Tensor]:
    found = [m for m in model.modules() if hasattr(m, "qkv") or hasattr(m, "q_proj")]
    return [m.qkv.weight[: m.qkv.weight.shape[0] // 3] if m.qkv is not None else m.q_proj.weight for m in found]


@pytest.mark.parametrize("method", ["uniform", "taylor", "random"])
def test_methods_without_a_search_keep_dense_weights(method: str):
    structure = chosen(method, budgets=[0.6])[0]
    model = starting_model(method, DENSE, structure, 0)
    kept = structure.masks["mlp"][0]
    assert torch.equal(model.blocks[0].mlp.fc2.weight, DENSE.blocks[0].mlp.fc2.weight[:, kept])


@pytest.mark.parametrize("kind", ["class token", "map pooling", *slow("distilled", "registers, layer scale")])
@pytest.mark.parametrize("budget", [0.6, 0.2])
def test_small_is_a_plain_model_that_saves_loads_and_counts_like_any_other(kind: str, budget: float, tmp_path: Path):
    dense = build(kind)
    structure = chosen("small", dense, [budget])[0]
    model = starting_model("small", dense, structure, 3)
    assert type(model) is type(dense)
    assert not hasattr(model, "structure")
    assert macs(model) == structure.macs() <= budget * macs(dense)
    assert params(model) == structure.params()
    assert len(model.blocks) <= len(dense.blocks)
    assert model.embed_dim <= dense.embed_dim
    save(model, tmp_path)
    assert difference(model, load(tmp_path)) == 0
    assert Structure.from_json(structure.to_json()) == structure
    assert difference(model, starting_model("small", dense, structure, 3)) == 0
    assert difference(model, starting_model("small", dense, structure, 4)) > 0


def test_small_comes_near_the_budget_and_keeps_the_ratio_of_width_to_depth():
    dense = timm.create_model("deit_tiny_patch16_224")
    structure = small_structure(dense, 0.5)
    width, depth = structure.shape.layers[0].embed_dim, len(structure.shape.layers)
    assert 0.49 * macs(dense) <= structure.macs() <= 0.5 * macs(dense)
    assert 0.8 < (width / depth) / (192 / 12) < 1.25
    assert small_structure(dense, 0.5, round_to=32).shape.layers[0].embed_dim % 32 == 0


@pytest.mark.slow
def test_small_keeps_every_budget_where_the_head_has_an_mlp_too():
    dense = build("map pooling")
    cost = small_costs(dense)
    for budget in (0.303, 0.423, 0.843):
        structure = small_structure(dense, budget, cost=cost)
        assert 0.98 * budget * macs(dense) < structure.macs() <= budget * macs(dense)


# Torch-Pruning.


@pytest.mark.parametrize("kind", ["class token", *slow("distilled", "map pooling", "registers, layer scale")])
@pytest.mark.parametrize("granularity", ["dim", "head"])
def test_torch_pruning_s_own_model_and_ours_agree(kind: str, granularity: str):
    pytest.importorskip("torch_pruning", reason="the extra `baselines` is not installed")
    from slimsweep.methods.torch_pruning import _bisect, _with_gradients, structure_of

    dense = build(kind)
    shape = add_gates(dense, granularity, ["attention", "mlp"]).shape
    x, y = some_images(dense, 16)
    ready = _with_gradients(dense, lambda model: accumulate_gradients(model, x, y))
    for isomorphic in (True, False):
        theirs = _bisect(
            ready,
            int(0.6 * macs(dense)),
            lambda pruned: True,
            importance="taylor",
            embed_dim=False,
            isomorphic=isomorphic,
            round_to=None,
            whole_heads=granularity == "head",
        )
        structure = structure_of(theirs.kept, shape)
        ours = slim(dense, structure)
        assert macs(theirs.model) == macs(ours) == structure.macs() < macs(dense)
        # Theirs divides logits by the root of the narrower head dim, ours goes on computing what the dense model did.
        with torch.no_grad():
            for block, layer in zip(theirs.model.blocks, shape.layers, strict=True):
                queries = block.attn.num_heads * block.attn.head_dim
                stretch = (block.attn.head_dim / layer.head_dim) ** 0.5
                block.attn.qkv.weight[:queries] *= stretch
                block.attn.qkv.bias[:queries] *= stretch
        assert difference(theirs.model, ours) < 1e-5


def test_torch_pruning_leaves_alone_what_the_search_may_not_cut():
    pytest.importorskip("torch_pruning", reason="the extra `baselines` is not installed")
    structure = chosen("torch-pruning", budgets=[0.8], families=["mlp"])[0]
    assert set(structure.masks) == {"mlp"}
    structure = chosen("torch-pruning", budgets=[0.7])[0]
    assert all(mask.all() for mask in structure.masks["token"])
    assert all(structure.sizes(i)[2] >= 0.1 * 64 for i in range(4))


def test_torch_pruning_rounds_a_floor_down_to_its_steps():
    """A tenth of 16 dims a head is more than one dim, and it goes from two to one at once: one is enough."""
    pytest.importorskip("torch_pruning", reason="the extra `baselines` is not installed")
    (structure,) = chosen("torch-pruning", small_vit(embed_dim=64, mlp_ratio=4), budgets=[0.15])
    sizes = [structure.sizes(layer) for layer in range(4)]
    assert min(width for _, width, _, _ in sizes) == 1
    assert all(heads == 4 and units >= 0.1 * 256 for heads, _, units, _ in sizes)


def test_torch_pruning_says_when_it_cannot_reach_a_budget():
    pytest.importorskip("torch_pruning", reason="the extra `baselines` is not installed")
    (problem,) = chosen("torch-pruning", budgets=[0.05])
    assert isinstance(problem, ValueError)
    assert "give a larger budget" in str(problem)


# At the door.


@pytest.mark.parametrize(
    ("method", "kind", "search", "named"),
    [
        ("small", "swin", {}, "'small' cannot be had for swin_tiny_patch4_window7_224"),
        ("small", "eva02", {}, "'small' cannot be had for eva02_tiny_patch14_224"),
        ("torch-pruning", "swin", {}, "'torch-pruning' cannot be had for swin_tiny_patch4_window7_224"),
        ("torch-pruning", "qk-norm", {}, "norms of queries and keys"),
        ("torch-pruning", "packed swiglu", {}, "its MLPs are gated"),
        ("torch-pruning", "class token", {"families": ["token"]}, "search.families is token"),
    ],
)
def test_a_baseline_that_a_model_cannot_have_is_refused(method: str, kind: str, search: dict, named: str):
    pytest.importorskip("torch_pruning", reason="the extra `baselines` is not installed")
    with pytest.raises(ConfigError, match=named) as problem:
        check_baseline(method, build(kind), SEARCH.model_copy(update=search), [0.5])
    assert f"leave {method!r} out" in str(problem.value)


def test_a_budget_below_the_smallest_plain_model_is_refused():
    with pytest.raises(ConfigError, match="smallest plain model has"):
        check_baseline("small", DENSE, SEARCH, [0.5, "1K"])


def test_without_torch_pruning_the_extra_is_named(monkeypatch: pytest.MonkeyPatch):
    import importlib.util

    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"pip install 'slimsweep\[baselines\]'"):
        check_baseline("torch-pruning", DENSE, SEARCH, [0.5])


# Equal terms.


@given(
    epochs=st.integers(1, 300),
    shares=st.lists(st.floats(0.05, 0.95), min_size=1, max_size=6),
)
@settings(max_examples=100, deadline=None)
def test_equal_compute_spends_the_search_on_the_whole_frontier(epochs: int, shares: list[float]):
    dense = 4_598_882_304
    points = [int(share * dense) for share in shares]
    spent = sum(extra_epochs(epochs * dense, len(points), cost) * cost for cost in points)
    assert abs(spent - epochs * dense) <= sum(points) / 2  # half an epoch of each point is rounding


SMALL = {"img_size": 8, "patch_size": 2, "in_chans": 1, "embed_dim": 64, "depth": 4, "num_heads": 4}
BASE = {"name": "x", "model": {"name": "vit_tiny_patch16_224", "kwargs": SMALL}, "budgets": [0.5, 0.25]}


def searched_run(folder: Path) -> Folder:
    """A run folder as a search leaves it, as far as a plan reads it."""
    run = Folder(folder)
    gated = add_gates(timm.create_model("vit_tiny_patch16_224", num_classes=10, **SMALL))
    gates = random_gates(gated)
    write_gates(run, gate_rows(gates))
    run.write_json("search/search.json", {"shape": json.loads(gated.shape.full().to_json())["shape"]})
    return run


def write_choice(run: Folder, config: Config, method: str, seed: int = 0) -> None:
    gated = add_gates(timm.create_model("vit_tiny_patch16_224", num_classes=10, **SMALL))
    for budget in config.budgets:
        structure = solve(gated, budget, scores=random_scores(gated.shape, seed))
        run.write_json(chosen_path(config, method, budget, seed), {"structure": structure.to_json(), "error": ""})


def done(run: Folder, point: Point, top1: float = 50.0, status: str = "ok") -> None:
    row = {name: getattr(point, name) for name in ("method", "budget", "seed", "terms", "lr", "epochs")}
    write_row(run, {**row, "point": point.name, "status": status, "val_top1": top1 if status == "ok" else None})


def test_compute_terms_are_points_of_their_own_with_the_epochs_that_the_search_cost(tmp_path: Path):
    run = searched_run(tmp_path)
    config = Config(
        **BASE,
        baselines=["uniform", "scratch"],
        baseline_terms=["retraining", "compute"],
        search={"epochs": 40, "paces": [{}]},
        retrain={"epochs": 10},
    )
    assert {p.method for p in plan_points(config, run)} == {"dense", "searched", "scratch"}  # others are still to be chosen
    assert to_choose(config, run) == [("uniform", 0)]
    write_choice(run, config, "uniform")
    points = plan_points(config, run)
    assert to_choose(config, run) == []
    assert len({p.hash for p in points}) == len({p.name for p in points}) == len(points) == 1 + 4 * 2
    assert all(p.epochs == 10 for p in points if p.terms == "retraining")
    longer = [p for p in points if p.terms == "compute"]
    assert [p.method for p in longer] == ["uniform", "uniform"]  # scratch uses what the search found
    for point in longer:
        assert point.name.startswith(f"uniform-compute-{point.budget:.4f}-s0-")
        structure = Structure.from_json(point.structure)
        assert point.epochs == 10 + round(40 * structure.shape.full().macs() / 2 / structure.macs())


def test_one_rate_names_points_as_ever_and_baselines_change_no_other_point(tmp_path: Path):
    run = searched_run(tmp_path)
    plain = Config(**BASE)
    before = plan_points(plain, run)
    more = plain.changed(baselines=["uniform"], baseline_terms=["compute", "retraining"], **{"retrain.lr": [5e-4]})
    write_choice(run, more, "uniform")
    assert more.retrain.lr == 5e-4
    assert set(before) <= set(plan_points(more, run))
    assert [p.name for p in before] == [f"{p.method}-{p.budget:.4f}-s0-{p.hash[:4]}" for p in before]


def test_the_first_seed_tries_every_rate_and_the_others_take_the_best(tmp_path: Path):
    run = searched_run(tmp_path)
    config = Config(**BASE, retrain={"lr": [1e-3, 3e-3], "seeds": [5, 6, 7]})
    first = plan_points(config, run)
    assert Counter((p.method, p.budget) for p in first) == {("dense", 1.0): 2, ("searched", 0.5): 2, ("searched", 0.25): 2}
    assert {p.seed for p in first} == {5}
    assert all(f"-lr{p.lr:g}-" in p.name for p in first)
    half = [p for p in first if p.budget == 0.5]
    done(run, half[0], 80.0)
    assert plan_points(config, run) == first  # one of two rates says nothing yet
    done(run, half[1], 0, status="failed")
    new = [p for p in plan_points(config, run) if p not in first]
    assert {(p.seed, p.lr, p.budget) for p in new} == {(6, half[0].lr, 0.5), (7, half[0].lr, 0.5)}
    done(run, half[1], 81.0)  # tried again, it ended
    points = plan_points(config, run)
    new = [p for p in points if p not in first]
    assert {(p.seed, p.lr, p.budget) for p in new} == {(6, half[1].lr, 0.5), (7, half[1].lr, 0.5)}
    assert plan_points(config, run) == points
    assert {p.name for p in points_to_do(points, run)} == {p.name for p in points} - {p.name for p in half}


def test_a_point_at_one_rate_is_the_same_whichever_others_are_tried(tmp_path: Path):
    run = searched_run(tmp_path)
    two, three = (Config(**BASE, retrain={"lr": rates}) for rates in ([1e-3, 3e-3], [3e-3, 1e-3, 1e-2]))
    assert set(plan_points(two, run)) < set(plan_points(three, run))


def test_a_list_of_rates_may_grow_but_not_lose_what_was_trained(tmp_path: Path):
    run = searched_run(tmp_path)
    config = Config(**BASE, retrain={"lr": [1e-3, 3e-3]})
    for point in plan_points(config, run):
        done(run, point, status="ok" if point.lr == 1e-3 else "failed")
    compare(config, config.changed(**{"retrain.lr": [1e-3, 1e-2]}), run)
    for other in ([3e-3, 1e-2], 1e-3):
        with pytest.raises(ConfigError, match=r"retrain\.lr changed"):
            compare(config, config.changed(**{"retrain.lr": other}), run)


def test_budgets_are_fixed_once_they_share_the_search(tmp_path: Path):
    run = searched_run(tmp_path)
    config = Config(**BASE, baselines=["uniform"], baseline_terms=["compute"])
    write_choice(run, config, "uniform")
    points = plan_points(config, run)
    more = config.changed(budgets=[0.5, 0.25, 0.1])
    done(run, points[0])
    compare(config, more, run)
    done(run, next(p for p in points if p.terms == "compute"))
    with pytest.raises(ConfigError, match="budgets"):
        compare(config, more, run)
    compare(config, config.changed(budgets=[0.5, 0.3]), run)  # as many share it


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"retrain": {"lr": [1e-3, 1e-3]}}, "twice"),
        ({"retrain": {"lr": []}}, "rate above 0"),
        ({"retrain": {"lr": [1e-3, -1]}}, "rate above 0"),
        ({"retrain": {"lr": "fast"}}, "retrain.lr"),
        ({"retrain": {"lr": [1e-3, 1e-7]}}, "retrain.min_lr"),
        ({"baseline_terms": []}, "retraining, compute, or both"),
        ({"baseline_terms": ["computing"]}, "did you mean compute"),
    ],
)
def test_terms_and_rates_that_mean_nothing_are_refused(fields: dict, named: str):
    with pytest.raises(ConfigError, match=named):
        Config(**BASE, **fields)


def test_rates_are_read_from_text():
    assert Config(**BASE, retrain={"lr": "1e-3, 3e-3"}).retrain.rates == [1e-3, 3e-3]
    assert Config(**BASE, retrain={"lr": "1e-3"}).retrain.lr == 1e-3


# On a real Ray.


def trained(run: Path) -> Counter:
    lines = [json.loads(line) for line in (run / "epochs.log").read_text().splitlines()]
    return Counter(entry["point"] for entry in lines if entry["point"])


@pytest.mark.slow
def test_a_sweep_with_baselines_terms_and_rates_finishes_and_is_not_trained_again(small_run: Path, tmp_path: Path):
    shutil.copytree(small_run, tmp_path / "small")
    shutil.rmtree(tmp_path / "small" / "results")  # only its search is gone on from
    arguments = ["--output", str(tmp_path), "--name", "small", "--budgets", "0.5", *QUICK]
    arguments += ["--baselines", "uniform,small", "--baseline_terms", "retraining,compute"]
    arguments += ["--retrain.lr", "1e-3,3e-3", "--retrain.seeds", "2"]
    assert main(arguments) == 0
    run = tmp_path / "small"
    rows = read_rows(Folder(run))
    assert (rows.status == "ok").all()
    series = rows.groupby(["method", "terms"])
    assert sorted(series.groups) == sorted(
        [
            ("dense", "retraining"),
            ("searched", "retraining"),
            *itertools.product(("small", "uniform"), ("compute", "retraining")),
        ]
    )
    for _, group in series:
        first, second = group[group.seed == 0], group[group.seed == 1]
        assert set(first.lr) == {1e-3, 3e-3}
        assert len(second) == 1
        assert second.lr.item() in first.lr[first.val_top1 == first.val_top1.max()].to_numpy()
    counts = trained(run)
    for row in rows.itertuples():
        assert counts[row.point] == row.epochs
        assert row.samples_seen == row.epochs * 256
        assert row.macs <= row.budget * row.macs_dense
        model = load(run / row.model_path)
        assert macs(model) == row.macs == Structure.from_json(row.structure).macs()
    longer = rows[rows.terms == "compute"]
    assert (longer.epochs == 1 + (2 * longer.macs_dense / longer.macs).round()).all()
    assert read_status(Folder(run)).finished
    assert "uniform, equal compute" in _methods_of_page(run)
    assert main(arguments) == 0
    assert trained(run) == counts
    pd.testing.assert_frame_equal(read_rows(Folder(run)), rows)


def _methods_of_page(run: Path) -> list[str]:
    from slimsweep.report.page import page_data, read_run

    data = page_data([read_run(Folder(run))])
    assert len(data["points"]["point"]) == 2 * 6  # a point a method, terms and seed: the best rate
    assert {entry["method"] for entry in data["runs"][0]["hypervolume"]} == set(data["methods"]) - {"dense"}
    return data["methods"]


def test_a_budget_that_a_baseline_cannot_meet_is_a_failed_row_with_the_reason(small_run: Path, tmp_path: Path):
    shutil.copytree(small_run, tmp_path / "small")
    run = Folder(tmp_path / "small")
    config = read_config(run).changed(baselines=["torch-pruning"], baseline_terms=["retraining", "compute"])
    for budget in config.budgets:
        run.write_json(chosen_path(config, "torch-pruning", budget, 0), {"structure": "", "error": "give a larger budget"})
    points = points_to_do(plan_points(config, run), run)
    assert len({p.name for p in points}) == 4
    with hold(run):
        for point in points:
            arguments = {"config": config.model_dump(mode="json"), "run": run.uri, "attempt": "a", "until": None}
            assert trial({"point": asdict(point)}, arguments) == {"ok": 0.0, "error": "give a larger budget"}
    rows = read_rows(run)
    failed = rows[rows.status == "failed"]
    assert set(failed.point) == {p.name for p in points}
    assert set(failed.error) == {"give a larger budget"}
    assert to_choose(config, run) == []
    assert to_choose(config, run, again=True) == [("torch-pruning", 0)]  # the next start tries again
    status = read_status(run, config)
    assert (status.finished, status.count("done"), status.count("failed")) == (True, 3, 4)


def test_a_finished_run_is_extended_by_baselines_and_only_those_are_trained(small_run: Path, tmp_path: Path):
    shutil.copytree(small_run, tmp_path / "small")
    arguments = ["--output", str(tmp_path), "--name", "small", "--budgets", "0.5,0.25", *QUICK]
    before = trained(tmp_path / "small")
    baselines = "taylor,random,scratch"
    assert main([*arguments, "--resources.search_workers", "2", "--baselines", baselines]) == 0
    rows = read_rows(Folder(tmp_path / "small"))
    new = trained(tmp_path / "small") - before
    assert set(new) == set(rows.point[rows.method.isin(baselines.split(","))])
    assert len(new) == 6
    assert (rows.status == "ok").all()
