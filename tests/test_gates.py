"""Gates: what they do to the forward, that they train, and which models get them."""

import copy

import pytest
import timm
import torch
from timm.layers import Attention
from zoo import MODELS, build, close_gates, difference, images, random_gates, small_vit

from slimsweep import add_gates, slim, solve
from slimsweep.slimming.gate_modules import TokenBias


@pytest.mark.parametrize("kind", MODELS)
def test_fresh_gates_change_nothing(kind):
    model = build(kind)
    assert difference(model, add_gates(model)) < 1e-6


@pytest.mark.parametrize("token_gate", ["linear", "tanh"])
@pytest.mark.parametrize(("granularity", "shape"), [("dim", (4, 8)), ("head", (4, 1)), ("uniform", (1, 8))])
def test_gates_round_trip(granularity, shape, token_gate):
    gated = add_gates(small_vit(), granularity=granularity, token_gate=token_gate)
    gates = {f: [v.clamp(max=1) for v in vs] for f, vs in random_gates(gated).items()}
    gates["token"][1][:] = torch.tensor([0.0, 1.0] * 8)
    assert [tuple(v.shape) for v in gates["attention"]] == [shape] * 4
    gated.set_gates(gates)
    for family, values in gated.gates.items():
        for value, expected in zip(values, gates[family], strict=True):
            torch.testing.assert_close(value, expected, rtol=1e-5, atol=1e-6)
    assert all(p.isfinite().all() for p in gated.parameters())
    assert torch.equal(gated.gates["token"][1], gates["token"][1])


def test_gates_are_copies():
    gated = add_gates(small_vit())
    gated.gates["mlp"][0].zero_()
    assert (gated.gates["mlp"][0] == 1).all()


def test_gates_of_another_model_are_refused_and_nothing_is_set():
    gated = add_gates(small_vit())
    ones = [torch.ones(16)] * 4
    half = [torch.full((64,), 0.5)] * 4
    for wrong, reason in [
        ({"mlp": half, "tokens": ones}, "no tokens gates"),
        ({"mlp": half, "token": ones[:3]}, "shapes"),
        ({"mlp": half, "token": [-v for v in ones]}, "at least 0"),
        ({"mlp": half, "token": [v * torch.nan for v in ones]}, "at least 0"),
    ]:
        with pytest.raises(ValueError, match=reason):
            gated.set_gates(wrong)
    with pytest.raises(ValueError, match="at most 1"):
        add_gates(small_vit(), token_gate="tanh").set_gates({"token": [v * 1.5 for v in ones]})
    assert (gated.gates["mlp"][0] == 1).all()


def test_families_can_be_left_out():
    gated = add_gates(small_vit(), families=["mlp"])
    assert list(gated.gates) == ["mlp"]
    assert set(gated.gate_parameters()) == {"mlp"}
    with pytest.raises(ValueError, match="is not a family of gates"):
        add_gates(small_vit(), families=["neurons"])
    with pytest.raises(ValueError, match="'dim', 'head' or 'uniform'"):
        add_gates(small_vit(), granularity="layer")


@pytest.mark.parametrize("kind", ["class token", "map pooling", "average pooling", "eva02", "swin"])
def test_gradients_are_finite_where_gates_are_zero(kind):
    gated = add_gates(build(kind)).train()
    gates = random_gates(gated)
    for values in gates.values():
        for value in values:
            value[..., ::2] = 0
    gated.set_gates(gates)
    gated(images(gated)).square().mean().backward()
    for name, parameter in gated.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
    for family, parameters in gated.gate_parameters().items():
        assert any((p.grad != 0).any() for p in parameters), f"no {family} gate is pulled anywhere"


def test_gate_gradients_are_those_of_finite_differences():
    gated = add_gates(small_vit()).double()
    gates = {f: [v.double() for v in vs] for f, vs in random_gates(gated).items()}
    gated.set_gates(gates)
    x = images(gated).double()
    gated(x).square().sum().backward()
    for family, parameters in gated.gate_parameters().items():
        parameter = parameters[2]
        index = (0,) * parameter.ndim
        values = []
        for shift in (1e-5, -1e-5):
            moved = {f: [v.clone() for v in vs] for f, vs in gates.items()}
            moved[family][2][index] += shift
            gated.set_gates(moved)
            with torch.no_grad():
                values.append(gated(x).square().sum())
        torch.testing.assert_close(parameter.grad[index], (values[0] - values[1]) / 2e-5, rtol=1e-4, atol=1e-6, msg=family)


@pytest.mark.parametrize("arguments", [{}, {"global_pool": "avg"}, {"global_pool": "map", "class_token": False}])
def test_a_token_of_gate_zero_is_absent(arguments):
    """What an absent patch shows is seen by nobody, in whatever layer it left, and by no pooling."""
    gated = add_gates(small_vit(**arguments))
    gates = random_gates(gated)
    for value in gates["token"]:
        value[5] = 0
    gated.set_gates(gates)
    x = images(gated)
    changed = x.clone()
    changed[:, :, 8:16, 8:16] += 100.0  # patch 5 of a 4 x 4 grid
    other = x.clone()
    other[:, :, 8:16, 16:24] += 1.0  # patch 6 is there
    with torch.no_grad():
        assert torch.equal(gated(x), gated(changed))
        assert not torch.allclose(gated(x), gated(other))


@pytest.mark.parametrize("token_gate", ["linear", "tanh"])
@pytest.mark.parametrize("pooling", ["token", "avg"])
def test_annealing_ends_where_the_cut_will_be(token_gate, pooling):
    gated = add_gates(small_vit(global_pool=pooling), families=["token"], token_gate=token_gate)
    gates = {"token": [v.clamp(max=1) for v in random_gates(gated)["token"]]}
    for layer, value in enumerate(gates["token"]):
        value[: 3 * layer] = 0
    gated.set_gates(gates)
    x = images(gated)
    as_searched = gated(x)
    gated.set_token_power(0.5)
    between = gated(x)
    gated.set_token_power(0.0)
    annealed = gated(x)
    assert not torch.allclose(as_searched, between, rtol=1e-3)
    assert not torch.allclose(between, annealed, rtol=1e-3)
    structure = gated.shape.full()
    structure.masks["token"] = [v > 0 for v in gates["token"]]
    torch.testing.assert_close(annealed, slim(gated, structure)(x), rtol=1e-4, atol=1e-5)
    annealed.sum().backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in gated.parameters())
    gated.set_token_power(1.0)
    close_gates(gated, gates, structure)
    torch.testing.assert_close(gated(x), annealed, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("arguments", [{"global_pool": "avg"}, {"global_pool": "map", "class_token": False}])
def test_a_pooling_model_survives_when_all_its_token_gates_fall_to_zero(arguments):
    model = small_vit(**arguments)
    gated = add_gates(model)
    gated.set_gates({"token": [torch.zeros(16)] * 4})
    assert difference(model, gated) < 1e-6
    gated(images(gated)).square().mean().backward()
    assert all(p.grad.isfinite().all() for p in gated.parameters())
    assert all(row["tokens"] >= 1 for row in solve(gated, 0.2).summary())


def test_a_model_with_class_token_may_lose_every_patch():
    gated = add_gates(small_vit())
    gated.set_gates({"token": [torch.zeros(16)] * 4})
    assert gated(images(gated)).isfinite().all()


def test_max_and_mixed_pooling_see_what_is_left():
    for pooling in ("max", "avgmax"):
        gated = add_gates(small_vit(global_pool=pooling))
        gates = random_gates(gated)
        structure = solve(gated, 0.5, scores=gates)
        close_gates(gated, gates, structure)
        assert difference(gated, slim(gated, structure)) < 1e-5


def test_gated_models_can_be_copied_and_stored():
    gated = add_gates(small_vit())
    gated.set_gates(random_gates(gated))
    other = add_gates(small_vit())
    other.load_state_dict(gated.state_dict())
    for twin in (other, copy.deepcopy(gated)):
        assert difference(gated, twin) == 0
        twin.set_gates({"mlp": [torch.zeros(64)] * 4})
        assert (gated.gates["mlp"][0] > 0).all()


@pytest.mark.parametrize("wrapped", [False, True])
@pytest.mark.parametrize("token_gate", ["linear", "tanh"])
def test_gates_that_are_loaded_by_assignment_act_and_are_trained(token_gate, wrapped):
    gated = add_gates(small_vit(), token_gate=token_gate)
    gated.set_gates({family: [0.8 * value for value in values] for family, values in random_gates(gated).items()})
    other = add_gates(small_vit(), token_gate=token_gate)
    # Inside another module, as data-parallel wrappers hold it, it is torch that goes on to the model's own names.
    holder = torch.nn.ModuleDict({"module": other}) if wrapped else other
    prefix = "module." if wrapped else ""
    holder.load_state_dict({prefix + name: tensor.clone() for name, tensor in gated.state_dict().items()}, assign=True)
    assert difference(gated, other) == 0
    other(images(other)).square().sum().backward()
    assert all(gate.grad.abs().sum() > 0 for gates in other.gate_parameters().values() for gate in gates[:3])
    for twin in (gated, other):
        twin.set_gates({"mlp": [torch.zeros(64)] * 4})
    assert difference(gated, other) == 0


def test_gates_follow_the_weights_dtype():
    gated = add_gates(small_vit().bfloat16())
    assert gated(images(gated).bfloat16()).dtype == torch.bfloat16


def test_autocast_keeps_absent_tokens_absent():
    gated = add_gates(small_vit())
    gates = random_gates(gated)
    structure = solve(gated, 0.5, scores=gates)
    close_gates(gated, gates, structure)
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        a, b = gated(images(gated)), slim(gated, structure)(images(gated))
    assert (a - b).abs().max() / b.abs().max() < 0.05


def refused(name: str, **arguments):
    return timm.create_model(name, **{"depth": 2, "num_classes": 0, **arguments})


@pytest.mark.parametrize(
    ("name", "arguments", "families", "reason"),
    [
        ("vit_small_patch16_18x2_224", {}, None, "parallel blocks hold several"),
        ("vit_small_patch16_224", {"block_fn": timm.models.vision_transformer.ParallelScalingBlock}, None, "in one projection"),
        (
            "vit_small_patch16_224",
            {"block_fn": timm.models.vision_transformer.DiffParallelScalingBlock},
            None,
            "parallel differential blocks",
        ),
        ("vit_small_patch16_224", {"block_fn": timm.models.vision_transformer.ResPostBlock}, None, "post-norm"),
        ("vit_small_patch16_224", {"attn_layer": "diff"}, None, "attention is DiffAttention"),
        ("vit_small_patch16_224", {"dynamic_img_size": True}, ["token"], "no fixed position"),
        ("vit_small_patch16_224", {"patch_drop_rate": 0.5}, ["token"], "patch dropout"),
        ("vit_small_patch16_224", {"global_pool": ""}, ["token"], "returns or refines every token"),
        ("vit_small_patch16_224", {"scale_attn_norm": True}, ["attention"], "norm over all attention dims"),
        ("eva02_base_patch14_448", {"img_size": 112}, ["mlp"], "norm over the MLP units"),
        ("swin_tiny_patch4_window7_224", {"depth": None}, ["token"], "windows and patch merging"),
        ("resnet18", {"depth": None}, None, "ResNet, which slimsweep cannot cut"),
        ("swinv2_tiny_window8_256", {"depth": None}, None, "SwinTransformerV2, which slimsweep cannot cut"),
    ],
)
def test_what_cannot_be_cut_is_refused_with_its_reason(name, arguments, families, reason):
    model = refused(name, **arguments)
    with pytest.raises(ValueError, match=reason) as problem:
        add_gates(model, families=families)
    assert name in str(problem.value) or "slimsweep cannot cut" in str(problem.value)
    assert "\n" not in str(problem.value)


def test_attention_gates_that_nobody_asked_for_refuse_nothing():
    gated = add_gates(build("qk-norm"), granularity="uniform", families=["mlp"])
    assert set(gated.gates) == {"mlp"}


def test_families_that_cannot_be_cut_have_no_key():
    assert set(add_gates(refused("eva02_base_patch14_448", img_size=112)).gates) == {"attention", "token"}
    assert set(add_gates(refused("vit_small_patch16_224", dynamic_img_size=True)).gates) == {"attention", "mlp"}
    assert set(add_gates(build("swin")).gates) == {"attention", "mlp"}


@pytest.mark.parametrize("kind", ["qk-norm", "eva02", "dinov3"])
def test_coupled_dims_are_gated_by_heads(kind):
    gated = add_gates(build(kind))
    assert gated.granularity == "head"
    assert all(v.shape[1] == 1 for v in gated.gates["attention"])
    with pytest.raises(ValueError, match=r"couple the dims|share statistics"):
        add_gates(build(kind), granularity="uniform")


def test_attention_masks_of_the_callers_own_are_refused():
    gated = add_gates(small_vit())
    with pytest.raises(ValueError, match="without attn_mask"):
        gated(images(gated), attn_mask=torch.zeros(17, 17))


def test_the_forward_is_timms_own():
    """Attention and MLP gates sit on the weights: no timm module is replaced or called differently."""
    gated = add_gates(small_vit(), families=["attention", "mlp"])
    assert all(type(b.attn) is Attention for b in gated.blocks)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in gated.modules())


def test_a_token_gate_that_is_not_a_number_is_seen():
    gate = torch.nn.Parameter(torch.tensor([0.0, 0.5, torch.nan]))
    bias = TokenBias(gate, 1, "linear", never_empty=False)
    bias.power.fill_(0)
    assert torch.equal(bias(torch.float32)[0, 0, 0, :3], torch.tensor([0.0, -torch.inf, 0.0]))
    assert bias(torch.float32)[0, 0, 0, 3].isnan(), "the loss would hide it"
