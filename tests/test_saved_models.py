"""What is saved is what is loaded again, or is refused; a folder is replaced whole or not at all."""

import os
from functools import partial
from pathlib import Path

import pytest
import timm
import torch
from timm.layers import GluMlp
from torch import nn
from zoo import build, difference, images, random_gates, slow, small_vit

from slimsweep import add_gates, load, save, slim, solve
from slimsweep.slimming import folder_swap
from slimsweep.storage import Folder

NO_TOKENS = ("attention", "mlp")


def cut(model, budget=0.5, families=None):
    gated = add_gates(model, families=families)
    gated.set_gates(random_gates(gated))
    return slim(gated, solve(gated, budget))


def content(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def timm_model(folder: Path, **arguments) -> nn.Module:
    return timm.create_model(f"local-dir:{folder}", pretrained=True, **arguments).eval()


# What was changed since timm built the model.


def replaced_head(model):
    model.head = nn.Linear(32, 4)


def head_of_several_layers(model):
    model.head = nn.Sequential(nn.Linear(32, 10), nn.Softmax(-1))


def other_activation(model):
    model.blocks[1].mlp.act = nn.ReLU()


def other_eps(model):
    model.norm.eps = 1e-5


def fewer_blocks(model):
    model.blocks = model.blocks[:2]


def hook(model):
    model.blocks[1].register_forward_hook(lambda module, inputs, output: output * 1.01)


def other_scale(model):
    model.blocks[0].attn.scale *= 1.001


def added_adapter(model):
    model.blocks[0].attn.proj = nn.Sequential(model.blocks[0].attn.proj, nn.Linear(32, 32))


CHANGES = {
    replaced_head: r"head\.weight is of shape \(4, 32\).*\(10, 32\)",
    head_of_several_layers: r"head\.0\.weight",
    other_activation: r"blocks\.1\.mlp\.act is ReLU, and loaded it would be GELU",
    other_eps: r"eps of its norm is 1e-05, and loaded it would be 1e-06",
    fewer_blocks: r"blocks\.2\.norm1\.weight is missing",
    hook: r"blocks\.1 has hooks",
    other_scale: r"scale of its blocks\.0\.attn",
    added_adapter: r"attn\.proj\.0\.weight",
}


@pytest.mark.parametrize("make", [small_vit, lambda: cut(small_vit())], ids=["dense", "cut"])
@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_what_cannot_be_built_again_is_refused_and_the_folder_stays(change, make, tmp_path):
    model = make()
    save(model, tmp_path / "model")
    (tmp_path / "model" / "README.md").write_text("mine")
    before = content(tmp_path)
    change(model)
    model.train()
    state = torch.random.get_rng_state()
    for folder in (tmp_path / "model", tmp_path / "new" / "folder"):
        with pytest.raises(ValueError, match=CHANGES[change]) as problem:
            save(model, folder)
        assert "\n" not in str(problem.value)
    assert content(tmp_path) == before
    assert not (tmp_path / "new").exists()
    assert torch.equal(torch.random.get_rng_state(), state)
    assert model.training


@pytest.mark.parametrize("classes", [4, 0])
def test_a_head_that_timm_resets_replaces_the_one_in_the_folder(classes, tmp_path):
    save(cut(small_vit()), tmp_path, labels=[str(digit) for digit in range(10)])
    (tmp_path / "model.onnx").write_bytes(b"of an export")
    model = load(tmp_path)
    model.reset_classifier(classes)
    save(model, tmp_path)
    again = load(tmp_path)
    assert difference(model.eval(), again) < 1e-6
    assert again(images(again)).shape == (2, classes or 32)
    assert "label_names" not in again.pretrained_cfg
    assert set(content(tmp_path)) == {"config.json", "model.safetensors", "model.onnx"}


WRAPPED = {
    "compiled": torch.compile,
    "data parallel": nn.DataParallel,
    "averaged": torch.optim.swa_utils.AveragedModel,
    "compiled data parallel": lambda model: torch.compile(nn.DataParallel(model)),
}


@pytest.mark.parametrize("wrap", WRAPPED.values(), ids=WRAPPED)
def test_wrappers_that_change_nothing_are_taken_off(wrap, tmp_path):
    small = cut(small_vit())
    save(wrap(small), tmp_path)
    assert difference(small, load(tmp_path)) < 1e-6


def test_compiled_blocks_and_compiled_calls_are_saved_plain(tmp_path):
    small = cut(small_vit())
    save(small, tmp_path / "plain")
    small.blocks[0] = torch.compile(small.blocks[0])
    small.compile()
    save(small, tmp_path / "compiled")
    assert content(tmp_path / "compiled") == content(tmp_path / "plain")


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16, torch.float64])
def test_precision_is_kept(kind, tmp_path):
    small = cut(small_vit()).to(kind)
    save(small, tmp_path)
    again = load(tmp_path)
    x = images(small).to(kind)
    with torch.no_grad():
        assert again(x).dtype == kind
        torch.testing.assert_close(again(x), small(x))


def test_modes_memory_formats_and_shared_tensors_do_not_matter(tmp_path):
    small = cut(small_vit(drop_rate=0.5, drop_path_rate=0.5)).to(memory_format=torch.channels_last)
    small.blocks[1].norm1.weight = small.blocks[0].norm1.weight
    small.train()
    small.blocks[0].eval()  # frozen by its owner
    modes = [module.training for module in small.modules()]
    save(small, tmp_path)
    assert [module.training for module in small.modules()] == modes
    assert difference(small.eval(), load(tmp_path)) < 1e-6


def test_a_model_without_weights_is_refused(tmp_path):
    with pytest.raises(ValueError, match="meta device"):
        save(cut(small_vit()).to("meta"), tmp_path / "model")
    assert not (tmp_path / "model").exists()


def test_a_file_is_no_folder_to_save_to(tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(ValueError, match="is a file"):
        save(small_vit(), tmp_path / "file")
    assert (tmp_path / "file").read_text() == "mine"


# Arguments of timm.create_model.

ARGUMENTS = {
    "activation": {"act_layer": nn.ReLU},
    "partial": {"norm_layer": partial(nn.LayerNorm, eps=1e-3)},
    "timm's layer": {"mlp_layer": GluMlp},
    "partial of timm's": {"embed_layer": partial(timm.layers.PatchEmbed, bias=False)},
    "a block of timm's": {"block_fn": timm.models.vision_transformer.Block},
    "tuples": {"img_size": (32, 32), "patch_size": (8, 8)},
}


@pytest.mark.parametrize("arguments", ARGUMENTS.values(), ids=ARGUMENTS)
def test_classes_and_partials_in_arguments_are_saved(arguments, tmp_path):
    model = small_vit(**arguments)
    for name, saved in {"dense": model, "cut": cut(model)}.items():
        save(saved, tmp_path / name)
        again = load(tmp_path / name)
        assert difference(saved, again) < 1e-6
        assert difference(saved, timm_model(tmp_path / name)) < 1e-6
        save(again, tmp_path / "again")
        assert difference(saved, load(tmp_path / "again")) < 1e-6
    # The dense model that was loaded is timm's own again, and can be cut.
    later = cut(load(tmp_path / "dense"))
    save(later, tmp_path / "cut later")
    assert difference(load(tmp_path / "cut later"), load(tmp_path / "cut")) < 1e-6


class OwnActivation(nn.Module):
    def forward(self, x):
        return x.square()


def no_class():
    return nn.ReLU()


@pytest.mark.parametrize("activation", [OwnActivation, no_class, partial(OwnActivation)])
def test_arguments_that_no_file_can_hold_are_refused_before_training(activation, tmp_path):
    model = small_vit(act_layer=activation)
    with pytest.raises(ValueError, match=r"act_layer.*torch\.nn or timm\.layers"):
        add_gates(model)
    with pytest.raises(ValueError, match=r"act_layer.*torch\.nn or timm\.layers"):
        save(model, tmp_path / "model")
    assert not (tmp_path / "model").exists()


@pytest.mark.parametrize("named", [{"torch.nn": "Module.forward"}, {"timm.models": "os.system"}, {"timm.layers": "torch"}])
def test_a_file_names_layers_only(named, tmp_path):
    save(cut(small_vit(act_layer=nn.ReLU)), tmp_path)
    text = (tmp_path / "config.json").read_text()
    ((room, name),) = named.items()
    changed = text.replace('"torch.nn": "ReLU"', f'"{room}": "{name}"')
    assert changed != text
    (tmp_path / "config.json").write_text(changed)
    with pytest.raises(ValueError, match="has no layer"):
        load(tmp_path)


# A folder is replaced whole or not at all.


class Stop(BaseException):
    """An interruption, such as Ctrl-C."""


@pytest.fixture(scope="module")
def old_and_new():
    return cut(small_vit()), cut(small_vit(), 0.4)


@pytest.mark.parametrize("moment", range(7))
def test_a_save_that_is_interrupted_leaves_the_old_model(moment, old_and_new, tmp_path, monkeypatch):
    old, new = old_and_new
    save(old, tmp_path)
    (tmp_path / "notes.txt").write_text("mine")
    before = content(tmp_path)
    calls = 0

    def counted(function):
        def call(*arguments, **keywords):
            nonlocal calls
            calls += 1
            if calls == moment + 1:
                raise Stop
            return function(*arguments, **keywords)

        return call

    for name in ("fsync", "rename", "replace", "link"):
        monkeypatch.setattr(folder_swap.os, name, counted(getattr(os, name)))
    with pytest.raises(Stop):
        save(new, tmp_path)
    monkeypatch.undo()
    assert content(tmp_path) == before
    assert difference(old, load(tmp_path)) < 1e-6
    save(new, tmp_path)
    assert difference(new, load(tmp_path)) < 1e-6
    assert set(content(tmp_path)) == {"config.json", "model.safetensors", "notes.txt"}


@pytest.mark.parametrize("moment", range(8))
def test_a_save_that_is_killed_leaves_one_whole_model(moment, old_and_new, tmp_path, monkeypatch):
    """After the moment nothing more is done to the folder, as nothing is by a process that was killed."""
    old, new = old_and_new
    save(old, tmp_path)
    calls = 0

    def counted(function):
        def call(*arguments, **keywords):
            nonlocal calls
            calls += 1
            if calls > moment:
                raise Stop
            return function(*arguments, **keywords)

        return call

    for module, name in ((os, "rename"), (os, "replace"), (os, "link"), (folder_swap.shutil, "rmtree"), (Path, "unlink")):
        monkeypatch.setattr(module, name, counted(getattr(module, name)))
    with pytest.raises(Stop):
        save(new, tmp_path)
    monkeypatch.undo()
    expected = new if moment == 7 else old  # rmtree, link twice, rename, unlink, replace twice
    assert difference(expected, load(tmp_path)) < 1e-6
    save(new, tmp_path)
    assert difference(new, load(tmp_path)) < 1e-6
    assert {name for name in content(tmp_path) if ".saving" not in name} == {"config.json", "model.safetensors"}


def test_a_folder_of_a_run_is_replaced_whole_or_not_at_all(tmp_path, monkeypatch):
    for name in ("old", "new"):
        save(cut(small_vit(), 0.5 if name == "old" else 0.4), tmp_path / name)
    run = Folder(tmp_path / "run")
    run.upload(tmp_path / "old", "models/a", last="config.json")
    replace = os.replace

    def full_disk(source, target):
        if Path(target).name == "a" and (Path(source) / "config.json").read_bytes() == content(tmp_path / "new")["config.json"]:
            raise OSError(28, "No space left on device")
        replace(source, target)

    monkeypatch.setattr(os, "replace", full_disk)
    with pytest.raises(OSError, match="No space"):
        run.upload(tmp_path / "new", "models/a", last="config.json")
    monkeypatch.undo()
    assert content(tmp_path / "run" / "models") == {f"a/{name}": data for name, data in content(tmp_path / "old").items()}
    run.upload(tmp_path / "new", "models/a", last="config.json")
    assert content(tmp_path / "run" / "models") == {f"a/{name}": data for name, data in content(tmp_path / "new").items()}


# What a model that lost tokens cannot do, and one that kept them can.

REFUSED = {
    "image size": ({"img_size": 64}, "keep its image size"),
    "wide images": ({"img_size": (16, 64)}, "4 x 4.*2 x 8"),
    "patch size": ({"patch_size": 4}, "keep its image size"),
    "any image size": ({"dynamic_img_size": True}, "no fixed position"),
    "patch dropout": ({"patch_drop_rate": 0.1}, "removes tokens at random"),
    "no pooling": ({"global_pool": ""}, "returns or refines every token"),
    "features": ({"features_only": True}, "output_fmt='NLC'"),
    "class token": ({"class_token": False, "global_pool": "avg"}, "1 prefix tokens"),
    "registers": ({"reg_tokens": 2}, "1 prefix tokens"),
    "depth": ({"depth": 3}, "4 layers"),
    "heads": ({"num_heads": 2}, "another model"),
    "width": ({"embed_dim": 64}, "another model"),
    "MLP": ({"mlp_ratio": 3}, "another model"),
}


@pytest.fixture(scope="module")
def lost_tokens(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "lost"
    small = cut(small_vit())
    assert not small.structure.token_mask(3).all()
    save(small, folder)
    return folder


@pytest.mark.parametrize(("arguments", "reason"), REFUSED.values(), ids=REFUSED)
def test_a_model_that_lost_tokens_refuses_at_load_what_needs_all(arguments, reason, lost_tokens):
    with pytest.raises(ValueError, match=reason) as problem:
        timm_model(lost_tokens, **arguments)
    assert "\n" not in str(problem.value)


def test_a_model_that_lost_tokens_refuses_other_images_later(lost_tokens):
    model = load(lost_tokens)
    x = images(model)
    expected = model(x)
    with pytest.raises(ValueError, match="64 x 64 pixels"):
        model.set_input_size(64)
    with pytest.raises(ValueError, match="8 x 8"):
        model.set_input_size(patch_size=4)
    model.set_input_size((32, 32))
    assert torch.equal(model(x), expected)
    model.dynamic_img_size, model.patch_embed.strict_img_size = True, False  # as some scripts do
    with pytest.raises(ValueError, match="64 x 64 pixels"):
        model(torch.randn(1, 3, 64, 64))
    model = load(lost_tokens)
    model.patch_drop = timm.layers.PatchDropout(0.5)
    with pytest.raises(ValueError, match="drop no other tokens"):
        model.train()(x)


def test_what_does_not_need_all_tokens_goes_on_working(lost_tokens):
    x = images(load(lost_tokens))
    other = timm_model(lost_tokens, num_classes=3, drop_rate=0.1, drop_path_rate=0.1)
    assert torch.allclose(other.forward_features(x), load(lost_tokens).forward_features(x), rtol=1e-5, atol=1e-6)
    assert other(x).shape == (2, 3)
    assert timm_model(lost_tokens, in_chans=1)(x[:, :1]).shape == (2, 10)


def test_pooling_needs_a_patch_that_is_left():
    gated = add_gates(small_vit())
    structure = gated.shape.full()
    structure.masks["token"][-1][:] = False
    small = slim(gated, structure)
    with pytest.raises(ValueError, match="none to pool"):
        small.reset_classifier(3, "avg")
    small.reset_classifier(3)
    assert small(images(small)).isfinite().all()


KINDS = [
    "class token",
    "rotary of each head's own",
    *slow("map pooling", "registers, layer scale", "average pooling", "deit", "distilled", "swiglu", "eva02", "dinov3", "swin"),
]


@pytest.mark.parametrize("kind", KINDS)
def test_image_size_and_features_work_as_timms_where_tokens_are_kept(kind, tmp_path):
    dense = build(kind)
    gated = add_gates(dense, families=NO_TOKENS)
    save(dense, tmp_path / "dense")
    save(slim(gated, gated.shape.full()), tmp_path / "same")  # the dense model, as a cut one
    save(cut(dense, 0.6, NO_TOKENS), tmp_path / "cut")
    size, channels = dense.patch_embed.img_size[0], dense.in_chans
    larger = torch.randn(2, channels, 2 * size, 2 * size)
    with torch.no_grad():
        expected = timm_model(tmp_path / "dense", img_size=2 * size)(larger)
        torch.testing.assert_close(timm_model(tmp_path / "same", img_size=2 * size)(larger), expected)

        resized = timm_model(tmp_path / "cut", img_size=2 * size)
        save(resized, tmp_path / "resized")
        torch.testing.assert_close(load(tmp_path / "resized")(larger), resized(larger))

        # The zoo's models have two blocks or four; timm's default of the last three would fail for the dense one too.
        which = {} if kind == "swin" else {"out_indices": (0, 1)}
        x = images(dense)
        expected = timm_model(tmp_path / "dense", features_only=True, **which)(x)
        torch.testing.assert_close(timm_model(tmp_path / "same", features_only=True, **which)(x), expected)
        features = timm_model(tmp_path / "cut", features_only=True, **which)(x)
        assert [f.shape for f in features] == [f.shape for f in expected]
        if kind != "swin":
            small = load(tmp_path / "cut")
            torch.testing.assert_close(features, small.forward_intermediates(x, [0, 1], intermediates_only=True))


def test_positions_are_resampled_from_a_grid_that_is_not_square(tmp_path):
    dense = small_vit(img_size=(32, 64))
    gated = add_gates(dense, families=NO_TOKENS)
    save(dense, tmp_path / "dense")
    save(slim(gated, gated.shape.full()), tmp_path / "same")
    x = torch.randn(2, 3, 64, 32)
    with torch.no_grad():
        expected = timm_model(tmp_path / "dense", img_size=(64, 32))(x)
        torch.testing.assert_close(timm_model(tmp_path / "same", img_size=(64, 32))(x), expected)
