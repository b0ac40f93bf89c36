"""Models without weights have the names, shapes and counts of those with weights."""

import pytest
import timm
import torch
from torch.utils.flop_counter import FlopCounterMode
from zoo import MODELS, build

from slimsweep import macs
from slimsweep.errors import RefusedInput
from slimsweep.slimming import shape, structure
from slimsweep.slimming.structure import image_size
from slimsweep.slimming.weightless import COMPUTED, NoValues, ProductsOnly, weightless


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


@pytest.mark.parametrize("wrong", [torch.nn.LayerNorm(64), torch.nn.LayerNorm((2, 48))])
def test_a_model_that_cannot_run_is_not_counted(wrong):
    model = build("class token")
    model.norm = wrong
    with pytest.raises(RefusedInput, match="cannot compute an image of its own size"):
        macs(model)


@pytest.mark.parametrize(
    ("name", "arguments"),
    [("twins_pcpvt_small", {"img_size": 64, "in_chans": 1}), ("mvitv2_tiny", {"img_size": 96}), ("resnet10t", {"in_chans": 1})],
)
def test_models_that_are_no_vits_are_counted_at_the_size_they_were_made_for(name, arguments):
    model = timm.create_model(name, **arguments).eval().requires_grad_(False)
    channels, *size = image_size(model)
    assert channels == arguments.get("in_chans", 3)
    if "img_size" in arguments:
        assert size == [arguments["img_size"]] * 2
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(torch.zeros(1, channels, *size))
    assert macs(model) == counter.get_total_flops() // 2


def test_an_update_of_another_shape_is_refused_where_models_run():
    x = torch.zeros(2, 3, device="meta")
    with NoValues(COMPUTED), pytest.raises(RuntimeError):
        x.mul_(torch.zeros(5, device="meta"))


def test_a_layer_norm_is_known_by_each_of_its_names():
    x, weight = torch.zeros(2, 3, device="meta"), torch.ones(3, device="meta")
    with NoValues(COMPUTED):
        assert torch.nn.functional.layer_norm(x, (3,), weight=weight).shape == x.shape
        assert torch.layer_norm(x, (3,), weight, None, 1e-5, False).shape == x.shape
        assert torch.nn.functional.layer_norm(input=x, normalized_shape=(3,)).shape == x.shape
        with pytest.raises(RuntimeError):
            torch.layer_norm(x, (2,))


def test_a_layer_whose_sizes_do_not_fit_is_refused_where_products_are_counted():
    x, weight = torch.zeros(2, 3, device="meta"), torch.zeros(4, 3, device="meta")
    heads = torch.zeros(1, 2, 5, 8, device="meta")
    linear, attention = torch.nn.functional.linear, torch.nn.functional.scaled_dot_product_attention
    with ProductsOnly():
        assert linear(x, weight, torch.zeros(4, device="meta")).shape == (2, 4)
        assert attention(heads, heads, heads, attn_mask=torch.zeros(5, 5, device="meta")).shape == heads.shape
        for wrong in (
            lambda: linear(x, weight, torch.zeros(3, device="meta")),
            lambda: linear(x, weight.T, None),
            lambda: attention(heads, heads[..., :4], heads),
            lambda: attention(heads, heads, heads, attn_mask=torch.zeros(4, 4, device="meta")),
        ):
            with pytest.raises(RuntimeError):
                wrong()


def test_what_earlier_versions_pickled_is_found_by_its_name():
    assert structure.Shape is shape.Shape
    assert structure.Layer is shape.Layer


def test_tensors_with_values_are_computed():
    tensor = torch.ones(3)
    with weightless():
        tensor.mul_(2)
        assert torch.zeros(3).is_meta
        bent = torch.nn.functional.relu(-tensor)
    assert tensor.tolist() == [2, 2, 2]
    assert bent.tolist() == [0, 0, 0]
