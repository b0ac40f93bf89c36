"""torch.compile takes gated and cut models as one graph, forward and backward."""

import pytest
import torch
from torch import nn
from zoo import build, images, random_gates, slow

from slimsweep import add_gates, slim, solve

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
