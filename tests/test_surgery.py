"""The cut computes what the gated model computes, costs what the structure says, and can be trained on."""

import copy

import pytest
import timm
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from zoo import MODELS, build, close_gates, difference, images, random_gates, slow, small_vit

from slimsweep import Structure, add_gates, load, macs, params, save, slim, solve
from slimsweep.training.loop import set_drop_path

TOLERANCE = 1e-5


def counted_macs(model: nn.Module) -> int:
    with FlopCounterMode(display=False) as counter:
        model(images(model, 1))
    return counter.get_total_flops() // 2


@pytest.mark.parametrize("kind", MODELS)
def test_the_cut_model_computes_what_the_gated_one_computes(kind, tmp_path):
    gated = add_gates(build(kind))
    gates = random_gates(gated)
    gated.set_gates(gates)
    structure = solve(gated, 0.6)
    assert len({str(row | {"layer": ""}) for row in structure.summary()}) > 1, (
        "the masks are not uneven, the test would be weak"
    )
    close_gates(gated, gates, structure)
    small = slim(gated, structure)

    assert difference(gated, small) < TOLERANCE
    assert macs(small) == macs(structure) == counted_macs(small)
    assert params(small) == params(structure)
    save(small, tmp_path)
    loaded = load(tmp_path)
    assert difference(small, loaded) == 0
    assert macs(loaded) == macs(small)
    assert loaded.structure == structure

    # The tolerance is real: one gate more or less is seen.
    for family in gates:
        masks = {f: [m.clone() for m in ms] for f, ms in structure.masks.items()}
        layer = max(i for i, mask in enumerate(masks[family]) if mask.sum() > 1)
        kept = masks[family][layer].nonzero()[0]
        masks[family][layer][tuple(kept)] = False
        assert difference(gated, slim(gated, Structure(structure.shape, masks))) > 3 * TOLERANCE, (
            f"a lost {family} gate goes unseen"
        )


@pytest.mark.parametrize("granularity", ["dim", "head", "uniform"])
def test_every_granularity_is_cut_exactly(granularity):
    gated = add_gates(small_vit(), granularity=granularity)
    gates = random_gates(gated)
    gated.set_gates(gates)
    for structure in solve(gated, [0.8, 0.4, 0.2]):
        close_gates(gated, gates, structure)
        small = slim(gated, structure)
        assert difference(gated, small) < TOLERANCE
        assert macs(small) == macs(structure) == counted_macs(small)
        gated.set_gates(gates)


@st.composite
def masks(draw, shape):
    """Masks of any density, heads of any width, whole heads and branches gone, tokens nested."""
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**32)))
    densities = st.sampled_from([0.0, 0.1, 0.5, 0.9, 1.0])
    found: dict[str, list[Tensor]] = {}
    for family, sizes in shape.gate_shapes.items():
        found[family] = [torch.rand(size, generator=generator) < draw(densities) for size in sizes]
    for index in range(1, len(shape.layers)):
        found["token"][index] &= found["token"][index - 1]
    return found


@pytest.mark.parametrize("pooling", ["token", *slow("avg")])
@given(data=st.data())
@settings(max_examples=25, deadline=None)
def test_any_masks_are_cut_exactly(pooling, data):
    gated = add_gates(small_vit(global_pool=pooling, reg_tokens=2, init_values=0.1))
    chosen = data.draw(masks(gated.shape))
    if pooling == "avg":
        for mask in chosen["token"]:
            mask[3] = True
    structure = Structure(gated.shape, chosen)
    gates = random_gates(gated)
    close_gates(gated, gates, structure)
    small = slim(gated, structure)
    assert difference(gated, small) < TOLERANCE
    assert macs(small) == macs(structure) == counted_macs(small)
    assert params(small) == params(structure)


@pytest.mark.parametrize("kind", ["class token", "qk-norm", "swiglu", "eva02", "dinov3", "rotary of each head's own", "swin"])
def test_whole_heads_and_branches_go_and_their_bias_stays(kind, tmp_path):
    gated = add_gates(build(kind))
    gates = random_gates(gated)
    structure = gated.shape.full()
    structure.masks["attention"][0][0] = False  # a head
    structure.masks["attention"][1][:] = False  # a branch
    structure.masks["mlp"][1][:] = False  # and nothing is left of layer 1
    structure.masks["mlp"][0][:] = False
    if "token" in gates:
        structure.masks["token"][1][5:] = False
        for mask in structure.masks["token"][2:]:
            mask[5:] = False
    close_gates(gated, gates, structure)
    small = slim(gated, structure)
    assert difference(gated, small) < TOLERANCE
    assert macs(small) == macs(structure) == counted_macs(small)
    assert params(small) == params(structure)
    save(small, tmp_path)
    assert difference(small, load(tmp_path)) == 0
    small.train()(images(small)).square().mean().backward()
    assert all(p.grad is not None for n, p in small.named_parameters()), "a parameter of the cut model takes no part in it"


def test_heads_of_uneven_width_made_by_hand_are_padded_and_counted():
    gated = add_gates(small_vit())
    structure = gated.shape.full()
    structure.masks["attention"][0][:] = torch.arange(8) < torch.tensor([[8], [3], [0], [1]])
    gates = random_gates(gated)
    close_gates(gated, gates, structure)
    small = slim(gated, structure)
    assert structure.sizes(0)[:2] == (3, 8)
    assert (small.blocks[0].attn.num_heads, small.blocks[0].attn.head_dim) == (3, 8)
    assert difference(gated, small) < TOLERANCE
    assert macs(small) == macs(structure) == counted_macs(small)


def test_tokens_that_left_are_gone_from_the_sequence():
    gated = add_gates(small_vit())
    structure = gated.shape.full()
    for layer, left in enumerate([16, 9, 4, 0]):
        structure.masks["token"][layer][left:] = False
    small = slim(gated, structure)
    lengths = []
    for block in small.blocks:
        block.norm2.register_forward_pre_hook(lambda module, inputs: lengths.append(inputs[0].shape[1]))
    small(images(small))
    assert lengths == [17, 10, 5, 1]


def test_the_given_model_and_gated_model_are_left_alone():
    model = small_vit()
    before = copy.deepcopy(model.state_dict())
    gated = add_gates(model)
    gated.set_gates(random_gates(gated))
    gated(images(gated)).sum().backward()
    gated_before = copy.deepcopy(gated.state_dict())
    small = slim(gated, solve(gated, 0.4))
    for parameter in small.parameters():
        assert parameter.grad is None
        parameter.data.zero_()
    assert type(model) is timm.models.VisionTransformer
    for name, value in model.state_dict().items():
        torch.testing.assert_close(value, before[name], rtol=0, atol=0)
    for name, value in gated.state_dict().items():
        torch.testing.assert_close(value, gated_before[name], rtol=0, atol=0)
    assert gated.blocks[0].attention_gate.grad is not None


def test_blocks_of_the_cut_model_are_plain_timm_blocks():
    small = slim(add_gates(small_vit()), add_gates(small_vit()).shape.full())
    assert {type(m).__module__.split(".")[0] for m in small.modules()} <= {"timm", "torch"}
    gated = add_gates(small_vit(), families=["attention", "mlp"])
    gated.set_gates(random_gates(gated))
    small = slim(gated, solve(gated, 0.5))
    assert {type(m).__module__.split(".")[0] for m in small.modules()} <= {"timm", "torch"}
    assert {n.split(".")[-1] for n, _ in small.named_parameters()} == {
        n.split(".")[-1] for n, _ in small_vit().named_parameters()
    }


def test_a_dense_model_is_cut_without_gates():
    model = small_vit()
    gated = add_gates(model)
    structure = solve(gated, 0.5, scores=random_gates(gated))
    close_gates(gated, {f: [torch.ones_like(v) for v in vs] for f, vs in gated.gates.items()}, structure)
    assert difference(gated, slim(model, structure)) < TOLERANCE


@pytest.mark.parametrize("kind", ["layer scale", "eva02", "swin"])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_training_goes_on(kind, checkpointing):
    torch.manual_seed(0)
    gated = add_gates(build(kind, drop_path_rate=0.1))
    gates = random_gates(gated)
    gated.set_gates(gates)
    small = slim(gated, solve(gated, 0.4, scores=random_gates(gated, seed=3))).train()
    small.set_grad_checkpointing(checkpointing)
    x, y = images(small, 4), torch.tensor([0, 1, 2, 3])
    optimizer = torch.optim.AdamW(small.parameters(), lr=3e-3)
    losses = []
    for _ in range(8):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(small(x), y)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.7 * losses[0]


def test_gradients_are_those_of_the_gated_model():
    gated = add_gates(small_vit())
    gates = random_gates(gated)
    structure = solve(gated, 0.5, scores=gates)
    close_gates(gated, gates, structure)
    small = slim(gated, structure)
    for model in (gated, small):
        model(images(model)).square().sum().backward()
    for name in ("patch_embed.proj.weight", "blocks.0.norm1.weight", "blocks.3.mlp.fc2.bias", "pos_embed"):
        torch.testing.assert_close(small.get_parameter(name).grad, gated.get_parameter(name).grad, rtol=1e-3, atol=1e-4)


def test_features_of_a_model_that_lost_tokens_are_no_grid():
    gated = add_gates(small_vit())
    gated.set_gates(random_gates(gated))
    small = slim(gated, solve(gated, 0.5))
    x = images(small)
    with pytest.raises(ValueError, match=r"lost tokens.*NLC"):
        small.forward_intermediates(x)
    final, features = small.forward_intermediates(x, output_fmt="NLC")
    assert [f.shape[1] for f in features] == [row["tokens"] for row in small.structure.summary()]
    torch.testing.assert_close(final, small.forward_features(x))
    whole = add_gates(small_vit(), families=["mlp"])
    assert slim(whole, solve(whole, 0.7)).forward_intermediates(x)[1][0].shape == (2, 32, 4, 4)


@pytest.mark.parametrize("kind", MODELS)
def test_a_cut_model_cut_further_is_the_gated_model_cut_once(kind, tmp_path):
    gated = add_gates(build(kind))
    gated.set_gates(random_gates(gated))
    larger, smaller = solve(gated, [0.75, 0.45])
    once, twice = slim(gated, smaller), slim(slim(gated, larger), smaller)
    assert difference(once, twice) < TOLERANCE
    assert twice.structure == smaller
    assert {n: p.shape for n, p in twice.named_parameters()} == {n: p.shape for n, p in once.named_parameters()}
    save(twice, tmp_path)
    assert difference(twice, load(tmp_path)) == 0


@pytest.mark.slow
@given(data=st.data())
@settings(max_examples=25, deadline=None)
def test_any_masks_are_cut_further_exactly(data):
    gated = add_gates(small_vit(reg_tokens=2, init_values=0.1))
    first, second = data.draw(masks(gated.shape)), data.draw(masks(gated.shape))
    both = {family: [a & b for a, b in zip(first[family], second[family], strict=True)] for family in first}
    larger, smaller = Structure(gated.shape, first), Structure(gated.shape, both)
    assert difference(slim(gated, smaller), slim(slim(gated, larger), smaller)) < TOLERANCE


def test_a_model_without_a_branch_is_trained_on():
    """With floors of 0 a harsh budget may take whole branches."""
    dense = small_vit()
    structure = add_gates(dense).shape.full()
    structure.masks["attention"][1][:] = False
    structure.masks["mlp"][0][:] = False
    small = slim(dense, structure)
    set_drop_path(small, 0.1)
    assert slim(small, structure).structure == structure


def test_what_has_been_cut_is_not_kept():
    gated = add_gates(small_vit())
    larger, smaller = solve(gated, [0.5, 0.3])
    small = slim(gated, smaller)
    with pytest.raises(ValueError, match=r"cut already.*does not hold"):
        slim(small, larger)
    with pytest.raises(ValueError, match="cut already"):
        add_gates(small)


@pytest.mark.parametrize(
    ("other", "reason"),
    [
        ({"depth": 3}, "4 layers.*has 3"),
        ({"embed_dim": 64}, "another model"),
        ({"img_size": 64}, "16 patches.*has 64"),
        ({"reg_tokens": 4}, "a model of 1 prefix tokens, this one has 5"),
    ],
)
def test_a_structure_of_another_model_is_refused(other, reason):
    structure = solve(add_gates(small_vit()), 0.5)
    with pytest.raises(ValueError, match=reason):
        slim(add_gates(small_vit(**other)), structure)


def test_what_cannot_be_saved_leaves_what_was_there(tmp_path):
    small = slim(gated := add_gates(small_vit()), solve(gated, 0.5))
    save(small, tmp_path)
    with pytest.raises(ValueError, match="cut it with slim first"):
        save(gated, tmp_path)
    with pytest.raises(ValueError, match="plain numbers"):
        save(slim(gated, solve(gated, 0.3)), tmp_path, metrics={"top1": torch.tensor(3.0)})
    assert difference(small, load(tmp_path)) == 0
