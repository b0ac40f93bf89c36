"""Models as training scripts hold them: unwrapped where that is exact, else refused. Gates in any precision; their copies."""

import copy

import pytest
import torch
from timm.utils import ModelEmaV3
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune, weight_norm
from zoo import difference, images, random_gates, small_vit

from slimsweep import add_gates, load, macs, save, slim, solve
from slimsweep.errors import RefusedInput
from slimsweep.slimming.removal_path import RemovalPath


class Adapter(nn.Module):
    """A LoRA layer as peft builds it: the layer, and two small matrices beside it."""

    def __init__(self, base_layer: nn.Linear) -> None:
        super().__init__()
        self.base_layer = base_layer
        self.lora_A = nn.ModuleDict({"default": nn.Linear(base_layer.in_features, 2, bias=False)})
        self.lora_B = nn.ModuleDict({"default": nn.Linear(2, base_layer.out_features, bias=False)})
        self.in_features, self.out_features = base_layer.in_features, base_layer.out_features

    @property
    def weight(self):
        return self.base_layer.weight

    def forward(self, x):
        return self.base_layer(x) + self.lora_B["default"](self.lora_A["default"](x))


class PeftModel(nn.Module):
    """peft's model around a model with adapters."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.base_model = model

    def merge_and_unload(self):
        return self.base_model


class Scaled(nn.Linear):
    """A layer that computes something else than its weights say."""

    def forward(self, x):
        return 2 * super().forward(x)


def changed(path, make):
    """A model in which the layer at `path` is what `make` makes of it."""
    model = small_vit()
    owner, _, name = path.rpartition(".")
    parent = model.get_submodule(owner)
    made = make(getattr(parent, name))
    if isinstance(made, nn.Module):
        setattr(parent, name, made)
    return model


def scaled(linear):
    return Scaled(linear.in_features, linear.out_features)


def own_forward(linear):
    linear.forward = lambda x: 0 * x


def dynamic(linear):
    return torch.ao.nn.quantized.dynamic.Linear(linear.in_features, linear.out_features)


def own_attention(attention):
    own = type("OwnAttention", (type(attention),), {"forward": lambda self, x, **kwargs: x, "__module__": "my.package"})
    attention.__class__ = own


def pruned(linear):
    prune.l1_unstructured(linear, "weight", 0.5)


LINEAR_KINDS = {
    "LoRA": (Adapter, "merge_and_unload"),
    "a subclass": (scaled, "not torch.nn.Linear"),
    "a replaced forward": (own_forward, "forward was replaced"),
    "masks": (pruned, "prune.remove"),
    "weight norm": (weight_norm, "remove_weight_norm"),
    "parametrized": (parametrizations.spectral_norm, "remove_parametrizations"),
    "quantized": (dynamic, "quantize"),
}


@pytest.mark.parametrize("kind", LINEAR_KINDS)
@pytest.mark.parametrize("path", ["blocks.1.attn.proj", "blocks.0.attn.qkv", "blocks.1.mlp.fc1", "blocks.1.mlp.fc2"])
@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning", "ignore:torch.quantize_per_tensor")
def test_layers_that_are_not_plain_are_refused_when_gates_are_added(kind, path):
    make, way_out = LINEAR_KINDS[kind]
    model = changed(path, make)
    with pytest.raises(RefusedInput) as caught:
        add_gates(model)
    assert path in str(caught.value)
    assert way_out in str(caught.value)
    assert "\n" not in str(caught.value)


class Packed(torch.Tensor):
    """A weight of another kind, as torchao's quantized tensors and FSDP's DTensor are."""


class Params4bit(nn.Parameter):
    """A parameter of another kind, as bitsandbytes has."""


@pytest.mark.parametrize("kind", [Packed, Params4bit])
def test_weights_that_are_no_plain_tensors_are_refused(kind):
    model = small_vit()
    weight = model.blocks[1].mlp.fc1.weight.detach()
    model.blocks[1].mlp.fc1.weight = Params4bit(weight) if kind is Params4bit else nn.Parameter(weight.as_subclass(Packed))
    with pytest.raises(RefusedInput, match=rf"blocks\.1\.mlp\.fc1\.weight is a {kind.__name__}.*cut the plain model first"):
        add_gates(model)


def test_a_forward_of_ones_own_is_refused():
    with pytest.raises(RefusedInput, match=r"blocks\.0\.attn is a OwnAttention with a forward of its own.*timm's Attention"):
        add_gates(changed("blocks.0.attn", own_attention))
    model = small_vit()
    model.blocks[1].mlp.fc1 = model.blocks[0].mlp.fc1
    with pytest.raises(RefusedInput, match=r"blocks\.1\.mlp\.fc1 shares weights"):
        add_gates(model)


def test_a_layer_that_no_cut_touches_may_be_anything():
    model = small_vit()
    model.head = parametrizations.weight_norm(model.head)
    gated = add_gates(model)
    assert difference(gated, model) < 1e-6
    assert difference(slim(gated, solve(gated, 0.5)), gated) > 0


def test_a_layer_that_was_replaced_after_gates_were_added_is_refused_by_the_cut():
    gated = add_gates(small_vit())
    gated.blocks[1].attn.proj = Adapter(gated.blocks[1].attn.proj)
    with pytest.raises(RefusedInput, match=r"blocks\.1\.attn\.proj is a .*Adapter with LoRA adapters: merge"):
        slim(gated, solve(gated, 0.5))


def test_adapters_around_a_whole_model_are_refused():
    with pytest.raises(RefusedInput, match=r"PeftModel has adapters beside its weights.*merge_and_unload"):
        add_gates(PeftModel(changed("blocks.0.attn.qkv", Adapter)))


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::torch.jit.TracerWarning")
def test_programs_are_refused():
    model = small_vit()
    traced = torch.jit.trace(model, images(model))
    graph = torch.fx.symbolic_trace(nn.Linear(2, 2))  # as torch.export gives them too
    for program, what in ((traced, "TorchScript"), (graph, "graph")):
        with pytest.raises(RefusedInput, match=what):
            add_gates(program)


def test_a_model_inside_another_is_named():
    outer = nn.Module()
    outer.backbone = small_vit()
    with pytest.raises(RefusedInput, match=r"its backbone is one: give model\.backbone"):
        add_gates(outer)


def test_gates_are_added_once():
    with pytest.raises(RefusedInput, match="has gates already"):
        add_gates(add_gates(small_vit()))


WRAPPERS = {
    "DataParallel": nn.DataParallel,
    "compile": torch.compile,
    "compiled in place": lambda model: (model.compile(), model)[1],
    "an average of weights": torch.optim.swa_utils.AveragedModel,
    "timm's average of weights": ModelEmaV3,
    "two wrappers": lambda model: torch.compile(nn.DataParallel(model)),
}


@pytest.mark.parametrize("kind", WRAPPERS)
def test_wrappers_that_compute_the_same_are_taken_off(kind, tmp_path):
    model = small_vit()
    wrapped = WRAPPERS[kind](copy.deepcopy(model))
    gated = add_gates(wrapped)
    assert difference(gated, model) < 1e-6
    gated.set_gates(random_gates(gated))
    structure = solve(gated, 0.5)
    around = WRAPPERS[kind](copy.deepcopy(gated))
    assert solve(around, 0.5).to_json() == structure.to_json()
    assert macs(around) == macs(gated)
    small = slim(gated, structure)
    assert difference(slim(around, structure), small) == 0
    save(WRAPPERS[kind](copy.deepcopy(small)), tmp_path)
    assert difference(load(tmp_path), small) == 0


def test_a_distributed_model_is_taken_out(tmp_path):
    store = torch.distributed.FileStore(str(tmp_path / "store"), 1)
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        model = small_vit()
        assert difference(add_gates(nn.parallel.DistributedDataParallel(model)), model) < 1e-6
    finally:
        torch.distributed.destroy_process_group()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("token_gate", ["linear", "tanh"])
def test_half_precision_ranks_its_gates_exactly(dtype, token_gate):
    model = small_vit()
    gated = add_gates(model, token_gate=token_gate)
    gated.set_gates({f: [v.clamp(max=1) if f == "token" else v for v in vs] for f, vs in random_gates(gated).items()})
    half = copy.deepcopy(gated).to(dtype)
    structure = solve(half, 0.5)
    as_float = {family: [value.float() for value in values] for family, values in half.gates.items()}
    assert structure.to_json() == RemovalPath(gated.shape, as_float).solve(0.5).to_json()
    x = images(model)
    with torch.no_grad():
        expected = slim(gated, structure)(x)
        got = slim(half, structure)(x.to(dtype))
    assert got.dtype == dtype
    assert float((got.float() - expected).abs().max() / expected.abs().max()) < 0.05
    loss = add_gates(model.to(dtype))(x.to(dtype)).float().square().sum()
    loss.backward()


def test_a_penalty_over_the_copies_of_gates_is_refused_and_over_the_parameters_trains():
    gated = add_gates(small_vit())
    parameters = [p for layers in gated.gate_parameters().values() for p in layers]
    loss = gated(images(gated)).square().mean()
    copies = [value for layers in gated.gates.values() for value in layers]
    for penalty in (
        lambda: loss + 0.1 * sum(value.abs().sum() for value in copies),
        lambda: torch.stack([loss, copies[0].sum()]).sum(),
        lambda: torch.cat([parameters[0].flatten(), *(value.flatten() for value in copies)]).abs().sum(),
    ):
        with pytest.raises(RefusedInput, match=r"copies.*trains nothing.*gate_parameters"):
            penalty()
    for train in (Tensor.requires_grad_, lambda value: setattr(value, "requires_grad", True)):
        with pytest.raises(RefusedInput, match=r"copies.*changes nothing in the model.*gate_parameters"):
            train(copies[0])
    assert copies[0].detach().requires_grad_().requires_grad
    (loss + 0.1 * sum(p.abs().sum() for p in parameters)).backward()
    assert all(p.grad is not None for p in parameters)
    anchored = sum((p - value.detach()).square().sum() for p, value in zip(parameters, copies, strict=True))
    anchored.backward()


def test_copies_of_gates_are_tensors_like_any_other(tmp_path):
    gated = add_gates(small_vit())
    gates = gated.gates
    gates["mlp"][0][3] = 0.25
    gated.set_gates(gates)
    assert float(gated.gates["mlp"][0][3]) == 0.25
    assert gates["mlp"][0].numpy()[3] == 0.25
    torch.save(gates, tmp_path / "gates.pt")
    read = torch.load(tmp_path / "gates.pt", weights_only=True)
    assert torch.equal(read["mlp"][0], gates["mlp"][0])
    assert type(copy.deepcopy(gates)["mlp"][0]) is torch.Tensor
    with torch.no_grad():
        assert float(gated(images(gated)).sum() + gates["mlp"][0].sum()) != 0
    solve(gated, 0.5, scores={family: [2 * value for value in values] for family, values in gates.items()})
