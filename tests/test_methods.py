"""The methods: what each keeps and starts from, at budgets of both units, and what it refuses; the table that lists them."""

import pickle
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import timm
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from zoo import build, difference, images, random_gates, slow, small_vit

from slimsweep import add_gates, load, macs, params, save, solve
from slimsweep import methods as table
from slimsweep.methods import METHODS, Method, check_method, choose, extra_epochs, register, starting_model
from slimsweep.methods.choice import Choice, Settings
from slimsweep.methods.gradients import accumulate_gradients
from slimsweep.methods.random_order import random_scores
from slimsweep.methods.small import small_costs, small_structure
from slimsweep.methods.taylor import taylor_scores
from slimsweep.methods.uniform import uniform_scores
from slimsweep.slimming.budget import Budget
from slimsweep.slimming.cut import slim
from slimsweep.slimming.removal_path import RemovalPath, size_multiple
from slimsweep.slimming.structure import Structure

FLOORS = {"attention": 0.1, "mlp": 0.1, "token": 0.1}
BUDGETS = [0.7, 0.5, 0.35]
DENSE = small_vit()
COUNTS = {"macs": macs, "params": params}


def some_images(model: nn.Module, count: int = 48) -> tuple[torch.Tensor, torch.Tensor]:
    return images(model, count), torch.randint(0, 10, (count,), generator=torch.Generator().manual_seed(2))


def choice_of(model: nn.Module = DENSE, budgets: list = BUDGETS, seed: int = 0, granularity="dim", families=None) -> Choice:
    shape = add_gates(model, granularity, families).shape
    x, y = some_images(model)
    what = {"dense": model, "shape": shape, "budgets": budgets, "seed": seed, "images": x, "labels": y}
    return Choice(**what, granularity=granularity, families=families, floors=FLOORS, round_to=size_multiple(shape, None))


def chosen(method: str, *arguments, **options) -> list:
    return choose(method, choice_of(*arguments, **options))


def checked(method: str, model: nn.Module, budgets: list, families: list[str] | None = None) -> None:
    check_method(method, model, Settings(floors=FLOORS, round_to=1, families=families), budgets)


# What is kept.


@pytest.mark.parametrize("unit", COUNTS)
@pytest.mark.parametrize("granularity", ["dim", "head", "uniform"])
@pytest.mark.parametrize("method", [m.name for m in METHODS.values() if m.chooses and m.name != "torch-pruning"])
def test_every_method_meets_its_budget(method: str, granularity: str, unit: str):
    check_budgets(method, granularity, unit)


@pytest.mark.parametrize("unit", COUNTS)
@pytest.mark.parametrize("granularity", ["dim", *slow("head", "uniform")])
def test_torch_pruning_meets_its_budget(granularity: str, unit: str):
    pytest.importorskip("torch_pruning", reason="the extra `baselines` is not installed")
    check_budgets("torch-pruning", granularity, unit)


def check_budgets(method: str, granularity: str, unit: str) -> None:
    budgets = [0.7] if granularity == "head" else BUDGETS  # of four heads at most one or two can go
    count = COUNTS[unit]
    asked = [f"{budget} {unit}" for budget in budgets] if unit == "params" else budgets
    for budget, structure in zip(budgets, chosen(method, budgets=asked, granularity=granularity), strict=True):
        assert count(structure) <= budget * count(DENSE)
        model = starting_model(method, DENSE, structure, 0)
        assert macs(model) == structure.macs()
        assert params(model) == structure.params()
        # Steps of so small a model are some percent of it: a dim of all heads, a width of all layers.
        assert count(structure) >= (budget - 0.06) * count(DENSE)
        if unit == "params" and method != "small":  # tokens have no parameters
            assert all(mask.all() for mask in structure.masks["token"])


@pytest.mark.parametrize(
    "method", [*(m.name for m in METHODS.values() if m.chooses and m.name != "torch-pruning"), *slow("torch-pruning")]
)
def test_a_list_may_hold_budgets_of_both_units_and_absolute_ones(method: str):
    if method == "torch-pruning":
        pytest.importorskip("torch_pruning", reason="the extra `baselines` is not installed")
    limits = int(0.6 * macs(DENSE)), int(0.5 * params(DENSE))
    asked = [0.6, "50% params", f"{limits[0] / 1e6!r}M", f"{limits[1] / 1e3!r}K params"]
    of_macs, of_params, *absolute = chosen(method, budgets=asked)
    assert absolute == [of_macs, of_params]
    assert of_macs.macs() <= limits[0]
    assert of_params.params() <= limits[1]


@pytest.mark.parametrize("method", ["uniform", "taylor", "random"])
def test_a_solved_baseline_is_short_of_its_budget_by_less_than_the_next_step(method: str):
    gated = add_gates(DENSE)
    x, y = some_images(DENSE)
    scores = {
        "uniform": lambda: uniform_scores(DENSE, gated.shape),
        "taylor": lambda: taylor_scores(DENSE, x, y),
        "random": lambda: random_scores(gated.shape, 0),
    }[method]()
    costs = RemovalPath(gated.shape, scores, FLOORS).macs
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
    scores = taylor_scores(model, x, y)
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
    scores = taylor_scores(model, x, y)
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


# What it starts from.


@pytest.mark.parametrize("kind", ["class token", "swin", *slow("eva02")])
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
        # By the median, for of millions of timm's draws one can lie at their bound, a hundred widths away.
        assert mine.abs().median().item() == pytest.approx(whole.abs().median().item(), rel=0.1)


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
@pytest.mark.parametrize("budget", [0.6, *slow(0.2)])
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
    costs = small_costs(dense)
    for budget in (0.303, 0.423, 0.843):
        structure = small_structure(dense, budget, costs=costs)
        assert 0.98 * budget * macs(dense) < structure.macs() <= budget * macs(dense)


# Torch-Pruning.


@pytest.mark.parametrize("kind", ["class token", *slow("distilled", "map pooling", "registers, layer scale")])
@pytest.mark.parametrize("granularity", ["dim", *slow("head")])
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


def test_a_layer_that_torch_pruning_leaves_whole_is_kept_whole():
    from slimsweep.methods.torch_pruning import _kept

    history = [("fc1", True, []), ("fc2", False, [0, 2]), ("fc2", False, [])]
    kept = _kept(history, {"fc1": (3, 8), "fc2": (8, 4)})
    assert {name: left.tolist() for name, left in kept.items()} == {"fc1": [0, 1, 2], "fc2": [1, 3]}


def test_torch_pruning_leaves_alone_what_the_search_may_not_cut():
    pytest.importorskip("torch_pruning", reason="the extra `baselines` is not installed")
    structure = chosen("torch-pruning", budgets=[0.8], families=["mlp"])[0]
    assert set(structure.masks) == {"mlp"}
    structure = chosen("torch-pruning", budgets=[0.7])[0]
    assert all(mask.all() for mask in structure.masks["token"])
    assert all(structure.sizes(i)[2] >= 0.1 * 64 for i in range(4))


def test_torch_pruning_rounds_a_floor_down_to_its_steps():
    """A tenth of 16 dims per head is more than one dim, and it goes from two to one at once: one is enough."""
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


# What is refused.


@pytest.mark.parametrize(
    ("method", "kind", "search", "named"),
    [
        ("small", "swin", {}, "'small' does not work with swin_tiny_patch4_window7_224"),
        ("small", "eva02", {}, "'small' does not work with eva02_tiny_patch14_224"),
        ("torch-pruning", "swin", {}, "'torch-pruning' does not work with swin_tiny_patch4_window7_224"),
        ("torch-pruning", "qk-norm", {}, "norms of queries and keys"),
        ("torch-pruning", "packed swiglu", {}, "its MLPs are gated"),
        ("torch-pruning", "class token", {"families": ["token"]}, "search.families is token"),
    ],
)
def test_a_baseline_that_a_model_cannot_have_is_refused(method: str, kind: str, search: dict, named: str):
    pytest.importorskip("torch_pruning", reason="the extra `baselines` is not installed")
    with pytest.raises(ValueError, match=named) as problem:
        checked(method, build(kind), [0.5], **search)
    assert f"leave {method!r} out" in str(problem.value)


@pytest.mark.parametrize(("budget", "unit"), [("1K", "KMACs"), ("1% params", "params")])
def test_a_budget_below_the_smallest_plain_model_is_refused(budget: str, unit: str):
    with pytest.raises(ValueError, match=rf"smallest plain model has [\d.]+ {unit}, more than budget '{budget}' allows"):
        checked("small", DENSE, [0.5, budget])


def test_without_torch_pruning_it_is_said_what_to_install(monkeypatch: pytest.MonkeyPatch):
    import importlib.util

    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"needs Torch-Pruning: pip install 'torch-pruning>=1.6,<1.7'"):
        checked("torch-pruning", DENSE, [0.5])


# Equal terms.


@given(
    epochs=st.integers(1, 300),
    shares=st.lists(st.floats(0.05, 0.95), min_size=1, max_size=6),
)
@settings(max_examples=100, deadline=None)
def test_equal_compute_spends_the_search_on_all_targets(epochs: int, shares: list[float]):
    dense = 4_598_882_304
    points = [int(share * dense) for share in shares]
    spent = sum(extra_epochs(epochs * dense, len(points), cost) * cost for cost in points)
    assert abs(spent - epochs * dense) <= sum(points) / 2  # half an epoch of each point is rounding


# The table.


def keep_half(choice: Choice) -> list:
    """Every second MLP unit, whatever the budget; of none where the budget is below a half."""
    half = choice.shape.full().masks
    for mask in half["mlp"]:
        mask[::2] = False
    limits = [Budget.parse(budget).limit(macs(choice.dense)) for budget in choice.budgets]
    structure = Structure(choice.shape, half)
    return [structure if structure.macs() <= limit else ValueError("give a larger budget") for limit in limits]


@pytest.fixture
def table_restored() -> Iterator[None]:
    before = dict(METHODS)
    yield
    METHODS.clear()
    METHODS.update(before)


@pytest.mark.usefixtures("table_restored")
def test_a_registered_method_works_as_a_built_in_one():
    def refuse(model: nn.Module, what: Settings, budgets: list) -> None:
        if 0.1 in budgets:
            raise ValueError(f"'half' cannot meet budget 0.1 at floors of {what.floors['mlp']}: take a larger one")

    half = Method(name="half", choose=keep_half, check=refuse)
    register(half)
    assert "half" in table.baselines()
    assert half.style not in [method.style for method in METHODS.values() if method is not half]
    structure, problem = chosen("half", budgets=[0.9, 0.2])
    assert isinstance(structure, Structure)
    assert isinstance(problem, ValueError)
    model = starting_model("half", DENSE, structure, 0)  # cut from the dense model, for it does not start anywhere else
    assert torch.equal(model.blocks[0].mlp.fc2.weight, DENSE.blocks[0].mlp.fc2.weight[:, 1::2])
    checked("half", DENSE, [0.5])
    with pytest.raises(ValueError, match="take a larger one"):
        checked("half", DENSE, [0.5, 0.1])
    register(Method(name="half", fresh=True, choose=keep_half, start=lambda source, structure, seed: (source, seed)))
    assert starting_model("half", DENSE, structure, 7) == (DENSE, 7)


@pytest.mark.usefixtures("table_restored")
def test_what_was_registered_can_be_sent_to_another_process():
    assert table.registered_beyond_built_in() == []
    first = Method(name="half", choose=keep_half)
    instead = Method(name="random", draws=True, choose="slimsweep.methods.uniform:choose")
    register(first, instead)
    added = table.registered_beyond_built_in()
    assert added == [instead, first]  # in the table's order
    text = pickle.dumps(added)
    assert b"keep_half" in text
    assert pickle.loads(text) == added
    assert pickle.loads(text)[1].choose is keep_half


def test_the_built_in_methods_hold_together():
    assert {name: method.name for name, method in METHODS.items()} == {name: name for name in METHODS}
    assert [name for name, method in METHODS.items() if method.always] == ["searched", "dense"]
    assert table.baselines() == ["uniform", "random", "taylor", "taylor-repaired", "scratch", "small", "torch-pruning"]
    for method in METHODS.values():
        for function in filter(None, (method.choose, method.start, method.check)):
            assert callable(table._function(function))


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"name": "Half way", "choose": keep_half}, "'Half way': use lower-case"),
        ({"name": "half, equal compute", "choose": keep_half}, "use lower-case"),
        ({"name": "half"}, "'half' chooses nothing"),
        ({"name": "half", "choose": keep_half, "needs_search": True}, "leave one of them out"),
        ({"name": "half", "choose": keep_half, "fresh": True}, "give it start"),
    ],
)
def test_an_entry_that_cannot_work_is_refused(fields: dict, named: str):
    with pytest.raises(ValueError, match=named):
        Method(**fields)


@pytest.mark.usefixtures("table_restored")
def test_a_method_that_answers_wrongly_is_named():
    register(Method(name="half", choose=lambda choice: []))
    with pytest.raises(ValueError, match="'half' chose 0 structures for 3 budgets"):
        chosen("half")
    with pytest.raises(ValueError, match="'scratch' finds no structures of its own"):
        chosen("scratch")
    with pytest.raises(ValueError, match="no method 'hlaf'"):
        chosen("hlaf")


def test_the_table_loads_without_torch():
    """The configuration reads it, and must refuse a wrong key at once."""
    code = (
        "import importlib.util, sys; name = 'slimsweep_methods';"
        "spec = importlib.util.spec_from_file_location(name, sys.argv[1]); module = importlib.util.module_from_spec(spec);"
        "sys.modules[name] = module; spec.loader.exec_module(module);"
        "assert module.METHODS; assert not {'torch', 'timm', 'ray'} & set(sys.modules), sorted(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code, table.__file__], check=True)
