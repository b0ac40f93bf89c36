"""torch.compile takes gated and cut models as one graph, forward and backward."""

from typing import Any

import pytest
import torch
from torch import nn
from zoo import build, images, random_gates, slow, small_vit

from slimsweep import activation_scores, add_gates, principal_axes, repair, slim, solve

KINDS = ["class token", *slow("average pooling, registers", "eva02", "dinov3", "swin")]


@pytest.fixture(scope="module", params=KINDS)
def gated(request: pytest.FixtureRequest) -> nn.Module:
    found = add_gates(build(request.param, drop_path_rate=0.0))
    found.set_gates(random_gates(found))
    return found


def gradients(model: nn.Module, forward: nn.Module) -> dict[str, torch.Tensor]:
    """Of a training step through `forward`, which is `model`, compiled or not."""
    model.train().zero_grad()
    forward(images(model)).square().mean().backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("kind", ["gated", "cut"])
def test_a_training_step_is_one_graph_with_the_same_gradients(gated: nn.Module, kind: str) -> None:
    model = gated if kind == "gated" else slim(gated, solve(gated, 0.5))
    torch._dynamo.reset()
    # The graph's own code generator would take a minute a model; what breaks a graph is found before it.
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    expected, found = gradients(model, model), gradients(model, compiled)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.allclose(found[name], value, rtol=1e-4, atol=1e-5 * float(value.abs().max())), name
    if kind == "gated":
        assert all(float(value.abs().max()) > 0 for name, value in found.items() if name.endswith("_gate"))


def test_scores_and_repair_look_into_compiled_parts_without_compiling_them() -> None:
    """`block.compile()` keeps the block's class, as training scripts have it, and would hide its layers from hooks."""

    def with_blocks(model: Any, compiled: bool) -> Any:
        for part in (model.patch_embed, *model.blocks) if compiled else ():
            part.compile(backend=refuse)
        return model

    def refuse(*_: object) -> None:
        raise AssertionError("a block was compiled")

    def repaired(compiled: bool) -> dict[str, torch.Tensor]:
        dense = with_blocks(small_vit(), compiled)
        gated = with_blocks(add_gates(principal_axes(dense, images(dense, 32))), compiled)
        scores = activation_scores(gated, images(dense, 32))
        small = with_blocks(slim(gated, solve(gated, 0.5, scores=scores)), compiled)
        return repair(small, dense, images(dense, 32)).state_dict()

    plain, of_compiled = repaired(False), repaired(True)
    assert plain.keys() == of_compiled.keys()
    for name, weight in plain.items():
        assert torch.equal(weight, of_compiled[name]), name
