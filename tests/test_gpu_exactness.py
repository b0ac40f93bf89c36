"""On a GPU: cuts are exact, saved models come back, axes and repair find what they find on a CPU, attention is fused."""

import copy
import math
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from test_axes_and_repair import calibration
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from zoo import MODELS, build, close_gates, images, random_gates, small_vit

from slimsweep import add_gates, load, macs, principal_axes, repair, save, slim, solve
from slimsweep.methods.taylor import taylor_scores
from slimsweep.slimming.gate_modules import GuardedLog, TokenBias
from slimsweep.slimming.gates import GatedModel
from slimsweep.slimming.scores_from_images import activation_scores
from slimsweep.slimming.structure import Structure

pytestmark = pytest.mark.gpu

EXACT = 1e-5  # relative to the largest output, in float32
# Two devices sum in another order. What the zoo's models make of that rounding stays far below this; another cut does not.
OTHER_DEVICE = 1e-3
BACKENDS: dict[str, SDPBackend | None] = {
    "torch's choice": None,
    "flash": SDPBackend.FLASH_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
    "cudnn": SDPBackend.CUDNN_ATTENTION,
    "math": SDPBackend.MATH,
}


@torch.no_grad()
def outputs(model: nn.Module, dtype: torch.dtype = torch.float32) -> Tensor:
    """Of two images, in float64 on the CPU; in bfloat16 by autocast, as training computes."""
    place = next(model.parameters()).device
    with torch.autocast(place.type, torch.bfloat16, enabled=dtype == torch.bfloat16):
        return model(images(model).to(place)).double().cpu()


def relative(expected: Tensor, got: Tensor) -> float:
    """The largest difference, relative to the largest value that is expected."""
    return float((got - expected).abs().max() / expected.abs().max())


def closed_and_cut(kind: str, device: torch.device) -> tuple[GatedModel, nn.Module, Structure]:
    """(a gated model on the device whose gates that leave are 0, what the cut leaves of it, the structure)."""
    gated = add_gates(build(kind).to(device))
    gates = random_gates(gated)
    gated.set_gates(gates)
    structure = solve(gated, 0.6)
    close_gates(gated, gates, structure)
    return gated, slim(gated, structure), structure


# Cuts.


@pytest.mark.parametrize("kind", MODELS)
def test_a_model_that_is_cut_on_the_device_computes_what_the_gated_one_does(
    kind: str, device: torch.device, tmp_path: Path, record_property: Any
) -> None:
    gated, small, structure = closed_and_cut(kind, device)
    assert {p.device.type for p in (*small.parameters(), *small.buffers())} == {device.type}
    expected = outputs(gated)
    in_float32 = relative(expected, outputs(small))
    record_property("gated against cut, float32", in_float32)
    print(f"{kind}: gated against cut in float32 {in_float32:.2e}")
    assert in_float32 < EXACT
    assert macs(small) == macs(structure)

    # A gate too few is seen, so the tolerance says something.
    masks = {family: [mask.clone() for mask in of] for family, of in structure.masks.items()}
    one = masks["mlp" if "mlp" in masks else "attention"][0]
    one[tuple(one.nonzero()[0])] = False
    assert relative(expected, outputs(slim(gated, Structure(structure.shape, masks)))) > 3 * EXACT

    # In bfloat16 both round, each at other places: they are as far apart as two models are that round as the dense one does.
    # Its error, the largest of 20 outputs, varies by half from one rounding to another.
    dense = build(kind).to(device)
    rounding = relative(outputs(dense), outputs(dense, torch.bfloat16))
    in_bf16 = relative(outputs(gated, torch.bfloat16), outputs(small, torch.bfloat16))
    said = f"{kind}: gated against cut in bf16 {in_bf16:.2e}; the dense model in bf16 against float32 {rounding:.2e}"
    print(said)
    record_property("bf16", said)
    assert in_bf16 < 3 * rounding

    save(small, tmp_path)
    again = load(tmp_path).to(device)
    assert torch.equal(outputs(again), outputs(small))
    assert torch.equal(outputs(again, torch.bfloat16), outputs(small, torch.bfloat16))
    assert relative(outputs(small), outputs(load(tmp_path))) < OTHER_DEVICE  # where there is no GPU


def test_the_same_structure_is_solved_and_cut_on_both_devices(device: torch.device) -> None:
    dense = small_vit()
    here, there = add_gates(dense), add_gates(dense.to(device))
    for gated in (here, there):
        gated.set_gates(random_gates(gated))
    assert solve(there, 0.5) == solve(here, 0.5)
    first, second = slim(here, solve(here, 0.5)).state_dict(), slim(there, solve(there, 0.5)).state_dict()
    assert first.keys() == second.keys()
    for name, value in first.items():  # a gate is multiplied into each row: one rounding, the same everywhere
        torch.testing.assert_close(second[name].cpu(), value, rtol=1e-6, atol=1e-7)


def test_a_model_without_the_first_patches_has_no_nan_in_its_fused_attention(device: torch.device) -> None:
    """A kernel that takes keys in blocks meets a first block without any key where there is no prefix token."""
    dense = small_vit(img_size=128, class_token=False, global_pool="avg", depth=2, embed_dim=64)  # 256 patches
    gated = add_gates(dense.to(device), families=["token"])
    gates = random_gates(gated)
    structure = gated.shape.full()
    for mask in structure.masks["token"]:
        mask[:200] = False
    close_gates(gated, gates, structure)
    small = slim(gated, structure)
    assert relative(outputs(gated), outputs(small)) < EXACT
    with torch.autocast(device.type, torch.bfloat16):
        gated.train()(images(gated).to(device)).float().square().mean().backward()
    found = {name: p.grad for name, p in gated.named_parameters() if p.grad is not None}
    assert all(bool(g.isfinite().all()) for g in found.values())
    assert all(float(found[f"blocks.{i}.token_gate"][:200].abs().max()) == 0 for i in range(2)), "an absent token moved"
    assert all(float(found[f"blocks.{i}.token_gate"][200:].abs().min()) > 0 for i in range(2))


# Axes, repair and scores.


@pytest.mark.parametrize("kind", ["class token", "registers, layer scale", "swiglu", "eva02", "dinov3", "swin"])
def test_axes_and_repair_find_on_the_device_what_they_find_on_a_cpu(kind: str, device: torch.device) -> None:
    dense = build(kind)
    given = calibration(dense)
    on_device = copy.deepcopy(dense).to(device)
    turned = principal_axes(on_device, given[:8])  # images may be elsewhere
    assert relative(outputs(dense), outputs(turned)) < OTHER_DEVICE
    assert relative(outputs(on_device), outputs(turned)) < EXACT

    structure = solve(add_gates(dense), 0.6)
    cut_here, cut_there = slim(dense, structure), slim(on_device, structure)
    here, there = repair(cut_here, dense, given), repair(cut_there, on_device, given.to(device))
    assert {p.device.type for p in there.parameters()} == {device.type}
    before, after = (float((outputs(m) - outputs(dense)).square().mean()) for m in (cut_there, there))
    on_cpu = float((outputs(here) - outputs(dense)).square().mean())
    assert after < before
    assert after == pytest.approx(on_cpu, rel=0.05)  # solved in float64, from products in float32
    assert relative(outputs(here), outputs(there)) < 10 * OTHER_DEVICE


@pytest.mark.parametrize("kind", ["class token", "average pooling, registers", "dinov3"])
def test_scores_of_gates_are_those_of_a_cpu(kind: str, device: torch.device) -> None:
    dense = build(kind)
    x, y = calibration(dense, 8), torch.arange(8) % 10
    on_device = copy.deepcopy(dense).to(device)
    pairs = [
        (activation_scores(add_gates(dense), x), activation_scores(add_gates(on_device), x)),
        (taylor_scores(dense, x, y), taylor_scores(on_device, x, y)),
    ]
    for here, there in pairs:
        assert here.keys() == there.keys()
        for family, of in here.items():
            for one, other in zip(of, there[family], strict=True):
                assert other.device.type == "cpu"
                assert relative(one, other) < 10 * OTHER_DEVICE, family


def test_torch_pruning_cuts_a_model_on_the_device_as_on_a_cpu(device: torch.device) -> None:
    pytest.importorskip("torch_pruning")
    from slimsweep.methods.torch_pruning import prune

    dense = small_vit()
    budget = macs(dense) // 2
    here = prune(dense, budget, importance="magnitude")
    there = prune(copy.deepcopy(dense).to(device), budget, importance="magnitude")
    assert macs(there) == macs(here) <= budget
    assert relative(outputs(here), outputs(there)) < OTHER_DEVICE


# Attention.


class Operations(TorchDispatchMode):
    """Keeps the names of torch's operations of attention that run inside the block."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if "scaled_dot_product" in (name := str(func)):
            self.seen.append(name.split(".")[1])
        return func(*args, **kwargs or {})


@pytest.fixture
def attention() -> dict[str, Tensor]:
    """Queries, keys, values (2, 3, 197, 64) and a gate per patch between 0.05 and 1.05, in float64 on the CPU."""
    draw = torch.Generator().manual_seed(0)
    found = {name: torch.randn(2, 3, 197, 64, generator=draw, dtype=torch.float64) for name in ("q", "k", "v", "g")}
    found["gate"] = 0.05 + torch.rand(196, generator=draw, dtype=torch.float64)
    return found


def as_bias(q: Tensor, k: Tensor, v: Tensor, gate: Tensor) -> Tensor:
    """Attention with log z on the logits of the keys, as a gated model computes it."""
    bias = TokenBias(nn.Parameter(gate.detach().float()), 1, "linear", never_empty=False).to(gate.device)
    del bias.gate
    bias.gate = gate  # type: ignore[assignment]  # the leaf whose gradient is looked at
    return F.scaled_dot_product_attention(q, k, v, attn_mask=bias(q.dtype))


def as_key_dim(q: Tensor, k: Tensor, v: Tensor, gate: Tensor) -> Tensor:
    """The same without a mask: one more dim, sqrt(head_dim) in queries and log z in keys; zeros up to a multiple of 8."""
    dims = q.shape[-1]
    log = (
        F.pad(GuardedLog.apply(gate, torch.ones((), device=gate.device)), (1, 0))
        .to(k.dtype)
        .view(1, 1, -1, 1)
        .expand(*k.shape[:-1], 1)
    )
    more = -(dims + 1) % 8
    q = torch.cat([q, torch.full_like(q[..., :1], math.sqrt(dims)), q.new_zeros(*q.shape[:-1], more)], -1)
    k = torch.cat([k, log, k.new_zeros(*k.shape[:-1], more)], -1)
    return F.scaled_dot_product_attention(q, k, F.pad(v, (0, more + 1)), scale=dims**-0.5)[..., :dims]


def computed(how: Any, given: dict[str, Tensor], dtype: torch.dtype, device: torch.device) -> dict[str, Tensor]:
    """The output and the gradients of q, k, v and the gate, in float64 on the CPU; the gate is in float32, as in models."""
    leaves = {n: given[n].to(device, dtype, copy=True).requires_grad_() for n in ("q", "k", "v")}
    exact = torch.float64 if dtype == torch.float64 else torch.float32
    leaves["gate"] = given["gate"].to(device, exact, copy=True).requires_grad_()
    out = how(*leaves.values())
    (out * given["g"].to(device, dtype)).sum().backward()
    gradients = {name: leaf.grad.double().cpu() for name, leaf in leaves.items() if leaf.grad is not None}
    if missing := leaves.keys() - gradients.keys():
        raise RuntimeError(f"no gradient comes back to {', '.join(sorted(missing))}")
    return {"output": out.detach().double().cpu(), **gradients}


def largest_error(expected: dict[str, Tensor], got: dict[str, Tensor]) -> dict[str, float]:
    return {name: relative(value, got[name]) for name, value in expected.items()}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("how", [as_bias, as_key_dim])
def test_every_backend_that_takes_gated_tokens_gives_their_values_and_gradients(
    how: Any, dtype: torch.dtype, attention: dict[str, Tensor], device: torch.device, record_property: Any
) -> None:
    with sdpa_kernel(SDPBackend.MATH):
        exact = computed(as_bias, attention, torch.float64, torch.device("cpu"))
        rounding = largest_error(exact, computed(as_bias, attention, dtype, device))
    # Kernels for float32 multiply in parts on tensor cores: exact to what a cut is held to.
    least = EXACT if dtype == torch.float32 else 4 * torch.finfo(dtype).eps
    took: list[str] = []
    for name, backend in BACKENDS.items():
        try:
            with nullcontext() if backend is None else sdpa_kernel(backend), Operations() as ran:
                got = computed(how, attention, dtype, device)
        except RuntimeError as refused:
            said = f"{name} refuses {how.__name__} in {dtype}: {str(refused).strip().splitlines()[0]}"
        else:
            took.append(name)
            error = largest_error(exact, got)
            said = f"{name} takes {how.__name__} in {dtype}: " + ", ".join(f"{n} {e:.1e}" for n, e in error.items())
            said += f"; {', '.join(dict.fromkeys(ran.seen)) or 'plain products'}"
            for which, value in error.items():
                # The mask, or the key dim, is rounded to the dtype as q and k are; a kernel's order of sums is its own.
                assert value < max(4 * rounding[which], least), f"{said}; math: {rounding[which]:.1e} of {which}"
        print(said)
        record_property(f"{name}, {how.__name__}, {dtype}", said)
    assert {"math", "torch's choice"} <= set(took)
    if device.type == "cuda":  # what is relied on: a bias with a gradient runs fused
        assert "efficient" in took
        if how is as_key_dim and dtype == torch.bfloat16:
            assert "flash" in took, "log z as a dim of the keys needs no mask"


@pytest.mark.parametrize("how", [as_bias, as_key_dim])
def test_a_token_that_is_gone_moves_nothing(
    how: Any, attention: dict[str, Tensor], device: torch.device, record_property: Any
) -> None:
    """With log 0 = -inf. As a key dim it is a value that no model uses today: its outcome is recorded, not relied on."""
    attention["gate"][:150] = 0.0
    exact = computed(as_bias, attention, torch.float64, torch.device("cpu"))
    assert float(exact["gate"][:150].abs().max()) == 0
    try:
        got = computed(how, attention, torch.bfloat16, device)
    except RuntimeError as refused:
        if how is as_bias:
            raise
        record_property("log 0 as a key dim", str(refused))
        return
    finite = {name: bool(value.isfinite().all()) for name, value in got.items()}
    print(f"{how.__name__} with tokens that are gone: finite {finite}")
    record_property(f"{how.__name__} with tokens that are gone: finite", finite)
    if how is as_bias:
        assert all(finite.values())
        assert float(got["gate"][:150].abs().max()) == 0
        assert relative(exact["output"], got["output"]) < 8 * torch.finfo(torch.bfloat16).eps


def test_a_gated_training_step_runs_fused_in_every_layer(cuda: torch.device, record_property: Any) -> None:
    gated = add_gates(build("deit", drop_path_rate=0.0).to(cuda)).train()
    depth = len(gated.gated_blocks())
    for amp in (True, False):
        with Operations() as forward, torch.autocast("cuda", torch.bfloat16, enabled=amp):
            loss = gated(images(gated).to(cuda)).float().square().mean()
        with Operations() as backward:
            loss.backward()
        said = f"{'bf16' if amp else 'float32'}: {sorted(set(forward.seen))}, {sorted(set(backward.seen))}"
        print(said)
        record_property("attention of gated tokens", said)
        assert len([name for name in forward.seen if "fused_choice" not in name and "math" not in name]) == depth, said
        assert len([name for name in backward.seen if name.endswith("_backward")]) == depth, said
