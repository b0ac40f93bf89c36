"""Models without weights have the names, shapes and counts of those with weights."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from zoo import MODELS, build

from slimsweep import macs
from slimsweep.slimming.structure import image_size
from slimsweep.slimming.weightless import weightless


def named(model):
    return {name: (tuple(tensor.shape), tensor.dtype) for name, tensor in model.state_dict().items()}


@pytest.mark.parametrize("name", MODELS)
def test_names_and_shapes_are_those_of_the_model(name):
    with weightless():
        without = build(name)
    assert named(without) == named(build(name))
    assert all(tensor.is_meta for tensor in without.parameters())


@pytest.mark.parametrize("name", MODELS)
def test_counts_are_those_of_a_real_computation(name):
    model = build(name).requires_grad_(False)  # the counter looks for gradients of what modules take
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(torch.zeros(1, *image_size(model)))
    assert macs(model) == counter.get_total_flops() // 2


def test_tensors_with_values_are_computed():
    tensor = torch.ones(3)
    with weightless():
        tensor.mul_(2)
        assert torch.zeros(3).is_meta
        bent = torch.nn.functional.relu(-tensor)
    assert tensor.tolist() == [2, 2, 2]
    assert bent.tolist() == [0, 0, 0]
