"""Models, images, folders and files as users hold them: the right result, or one sentence that says what to do."""

import copy
import logging
import os
import pkgutil
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import timm
import torch
from processes import in_processes
from safetensors.torch import save_file
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from zoo import build, difference, images, random_gates, randomised, small_vit

import slimsweep.slimming
from slimsweep import add_gates, load, macs, params, principal_axes, repair, save, slim, solve
from slimsweep.config import ConfigError, load_config
from slimsweep.errors import RefusedInput
from slimsweep.training.dense_model import build_dense, check_model

TOLERANCE = 1e-5


def cut(dense, budget=0.5, families=None):
    gated = add_gates(dense, families=families)
    return slim(gated, solve(gated, budget))


@torch.no_grad()
def squares(dense, other, x) -> float:
    return float((dense(x).double() - other(x).double()).square().mean())


def sentence(problem) -> str:
    assert "\n" not in str(problem.value)
    return str(problem.value)


# Images and models for axes and repair.

IMAGES = {
    "one": lambda x: x[:1],
    "all the same": torch.ones_like,
    "all zero": torch.zeros_like,
    "half precision": lambda x: x.half(),
    "double precision": lambda x: x.double(),
    "batches with labels": lambda x: DataLoader(TensorDataset(x, torch.zeros(len(x))), batch_size=3),
    "an empty batch among them": lambda x: [x[:0], x, x[:3]],
    "huge": lambda x: 1e18 * x,
}


@pytest.mark.parametrize("kind", IMAGES)
def test_any_images_leave_axes_exact_and_make_repair_no_worse(kind):
    dense = small_vit()
    small = cut(dense)
    x = images(dense, 8)
    assert difference(dense, principal_axes(dense, IMAGES[kind](x))) < TOLERANCE
    repaired = repair(small, dense, IMAGES[kind](x))
    given = IMAGES[kind](x)
    batches = (
        [given] if isinstance(given, torch.Tensor) else [batch[0] if isinstance(batch, list) else batch for batch in given]
    )
    seen = torch.cat(batches).float()
    assert squares(dense, repaired, seen) < squares(dense, small, seen)


def test_repair_takes_batches_of_several_image_sizes():
    """Rotary embeddings differ with the size: each batch has its own."""
    dense = build("dinov3", dynamic_img_size=True)
    small = cut(dense)
    generator = torch.Generator().manual_seed(0)
    wide, tall, square = (torch.randn(6, 3, *size, generator=generator) for size in ((64, 128), (128, 64), (96, 96)))
    repaired = repair(small, dense, [wide, tall, square])
    for x in (wide, tall, square):
        assert squares(dense, repaired, x) < 0.1 * squares(dense, small, x)


NO_IMAGES = {
    "bytes": (lambda x: x.byte(), "are torch.uint8, not normalised"),
    "another size": (lambda x: torch.randn(2, 3, 40, 40), "have 40 x 40 pixels, and the model takes 32 x 32"),
    "one image": (lambda x: x[0], "are a tensor of shape"),
    "grey": (lambda x: x[:, :1], "have 1 channels, and the model takes 3"),
    "none": (lambda x: x[:0], "there are no images"),
    "NaN": (lambda x: [x, x * torch.nan], "have values that are not finite"),
    "overflow": (lambda x: x * 1e30, "computes values that are not finite"),
    "an array": (lambda x: x.numpy(), "are given as a ndarray"),
    "a path": (lambda x: "images/", "are given as a str"),
    "None": (lambda x: None, "are given as a NoneType"),
    "dictionaries": (lambda x: [{"image": x}], "are given as a dict"),
    "no values": (lambda x: x.to("meta"), "without values"),
}


@pytest.mark.parametrize("kind", NO_IMAGES)
def test_what_are_no_images_is_said_in_a_sentence(kind):
    make, said = NO_IMAGES[kind]
    dense = small_vit()
    small = cut(dense)
    for use in (lambda x: principal_axes(dense, x), lambda x: repair(small, dense, x)):
        with pytest.raises(RefusedInput) as problem:
            use(make(images(dense)))
        assert said in sentence(problem)


def weights(dense, kind):
    """Rows of the first head's values, or of all projections, that are zero, equal, or next to nothing."""
    qkv, proj = dense.blocks[0].attn.qkv, dense.blocks[0].attn.proj
    with torch.no_grad():
        if kind == "a zero head":
            for which in range(3):
                qkv.weight[32 * which : 32 * which + 8] = qkv.bias[32 * which : 32 * which + 8] = 0
        elif kind == "values with a bias alone":
            qkv.weight[64:72] = 0
        elif kind == "zero columns":
            proj.weight[:, :8] = 0
        elif kind == "equal rows":
            qkv.weight[1:8], qkv.weight[65:72] = qkv.weight[:1], qkv.weight[64:65]
        elif kind == "next to nothing":
            qkv.weight[64:] *= 1e-12
            qkv.weight[:64] *= 1e-6
    return dense


@pytest.mark.parametrize("proj_bias", [True, False])
@pytest.mark.parametrize("kind", ["a zero head", "values with a bias alone", "zero columns", "equal rows", "next to nothing"])
def test_weights_of_low_rank_leave_axes_exact_and_repair_finite(kind, proj_bias):
    dense = weights(small_vit(proj_bias=proj_bias), kind)
    x = images(dense, 8)
    turned = principal_axes(dense, x)
    assert difference(dense, turned) < TOLERANCE
    half = principal_axes(copy.deepcopy(dense).half(), x)
    assert difference(dense, half.float()) < 0.02
    repaired = repair(cut(turned), dense, x)
    assert all(value.isfinite().all() for value in repaired.parameters())
    assert squares(dense, repaired, x) < squares(dense, cut(turned), x)


WRAPPERS = {
    "compiled": torch.compile,
    "data parallel": nn.DataParallel,
    "an average": torch.optim.swa_utils.AveragedModel,
}


@pytest.mark.parametrize("kind", WRAPPERS)
def test_axes_and_repair_take_wrappers_off(kind):
    dense = small_vit()
    small = cut(dense)
    x = images(dense, 8)
    assert difference(dense, principal_axes(WRAPPERS[kind](copy.deepcopy(dense)), x)) < TOLERANCE
    expected = repair(small, dense, x)
    assert difference(expected, repair(WRAPPERS[kind](copy.deepcopy(small)), WRAPPERS[kind](copy.deepcopy(dense)), x)) == 0


def test_repair_of_one_precision_towards_a_model_of_another():
    dense = small_vit()
    small = cut(dense)
    x = images(dense, 8)
    for dtype in (torch.bfloat16, torch.float16):
        repaired = repair(copy.deepcopy(small).to(dtype), dense, x)
        assert repaired.head.weight.dtype == dtype
        assert squares(dense, repaired.float(), x) < 0.1 * squares(dense, small, x)


def test_layers_that_axes_cannot_turn_are_refused():
    x = images(small_vit())
    tied = small_vit()
    tied.blocks[1].attn.qkv = tied.blocks[0].attn.qkv
    with pytest.raises(RefusedInput, match=r"blocks\.1\.attn\.qkv shares weights"):
        principal_axes(tied, x)
    wrapped = small_vit()
    wrapped.blocks[1] = torch.compile(wrapped.blocks[1])
    with pytest.raises(RefusedInput, match=r"its blocks are wrapped by torch\.compile\(block\)"):
        add_gates(wrapped)
    tied = small_vit()
    tied.blocks[1].norm1 = tied.blocks[0].norm1
    with pytest.raises(RefusedInput, match=r"blocks\.1\.norm1 shares weights"):
        add_gates(tied)  # a budget of parameters would count it twice
    small = cut(small_vit())
    small.blocks[1].attn.proj = nn.Sequential(small.blocks[1].attn.proj)
    for use in (lambda: principal_axes(small, x), lambda: repair(small, small_vit(), x), lambda: slim(small, small.structure)):
        with pytest.raises(RefusedInput, match=r"blocks\.1\.attn\.proj is a torch Sequential"):
            use()
    with pytest.raises(RefusedInput, match="no weights"):
        principal_axes(small_vit().to("meta"), x)


def test_repair_keeps_each_modules_mode_and_is_no_worse_where_layers_together_are():
    shape = {"depth": 2, "img_size": 96, "embed_dim": 48, "num_heads": 3, "reg_tokens": 3, "global_pool": "max"}
    dense = randomised(timm.create_model("vit_tiny_patch16_224", num_classes=10, **shape))
    gated = add_gates(dense)
    gated.set_gates(random_gates(gated))
    x = torch.randn(4, 3, 96, 96, generator=torch.Generator().manual_seed(2))
    dense.train()
    dense.blocks[0].eval()  # as people freeze a part
    for budget in (0.4, 0.5, 0.7):
        small = slim(gated, solve(gated, budget))
        repaired = repair(small, dense, x)
        assert dense.training
        assert not dense.blocks[0].training
        frozen = copy.deepcopy(dense).eval()
        assert squares(frozen, repaired, x) <= squares(frozen, small, x)


@pytest.mark.parametrize("ridge", [-1.0, float("nan"), float("inf")])
def test_a_ridge_that_means_nothing_is_refused(ridge):
    dense = small_vit()
    with pytest.raises(RefusedInput, match=f"ridge is {ridge}"):
        repair(cut(dense), dense, images(dense), ridge=ridge)


def test_no_ridge_takes_the_smallest_change():
    dense = small_vit()
    small = cut(dense)
    repaired = repair(small, dense, torch.zeros(1, 3, 32, 32), ridge=0)
    assert all(value.isfinite().all() for value in repaired.parameters())


@pytest.mark.parametrize("aim", ["gated", "cut less"])
def test_repair_aims_at_whatever_the_model_was_cut_from(aim):
    dense = small_vit()
    gated = add_gates(dense)
    gated.set_gates({family: [1.2 - 0.5 * torch.rand_like(g) for g in of] for family, of in gated.gates.items()})
    larger, smaller = solve(gated, [0.7, 0.4])
    before = gated if aim == "gated" else slim(gated, larger)
    small, x = slim(before, smaller), images(dense)
    assert squares(before, repair(small, before, x), x) < 0.5 * squares(before, small, x)


def test_repair_needs_a_model_that_has_what_is_kept():
    dense = small_vit()
    gated = add_gates(dense)
    larger, smaller = (slim(gated, one) for one in solve(gated, [0.7, 0.4]))
    with pytest.raises(RefusedInput, match="lacks some of what this one keeps"):
        repair(larger, smaller, images(dense))


# Arguments in the wrong place.


@pytest.mark.parametrize("use", [add_gates, lambda m: principal_axes(m, None), lambda m: solve(m, 0.5), lambda m: save(m, "x")])
@pytest.mark.parametrize("given", [None, "vit_tiny_patch16_224", {"weight": torch.zeros(1)}])
def test_what_is_no_model_is_said(use, given):
    with pytest.raises(RefusedInput, match=f"a timm model is needed, not a {type(given).__name__}"):
        use(given)


def test_models_without_gates_and_structures_are_told_apart():
    dense = small_vit()
    gated = add_gates(dense)
    for model in (dense, cut(dense)):
        with pytest.raises(RefusedInput, match="no gates to rank: give what add_gates returns"):
            solve(model, 0.5)
    with pytest.raises(RefusedInput, match="structure is a float"):
        slim(gated, 0.5)
    with pytest.raises(RefusedInput, match="needed, not a Structure"):
        slim(solve(gated, 0.5), gated)


def test_a_model_that_cannot_compute_its_own_image_size_is_refused():
    model = small_vit(img_size=30, dynamic_img_pad=True)
    with pytest.raises(RefusedInput, match=r"cannot compute an image of its own size, \(3, 30, 30\)"):
        add_gates(model)


def test_autocast_around_axes_and_repair_changes_nothing():
    dense = small_vit()
    small, x = cut(dense), images(dense, 8)
    expected = principal_axes(dense, x), repair(small, dense, x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = principal_axes(dense, x), repair(small, dense, x)
    assert all(difference(a, b) == 0 for a, b in zip(expected, found, strict=True))


def test_no_name_that_is_imported_late_is_also_a_file():
    """The file, imported by itself, would take the place of the function."""
    late = [slimsweep, slimsweep.slimming]
    assert all("__getattr__" in vars(package) for package in late)
    for package in late:
        files = {file.name for file in pkgutil.iter_modules(package.__path__)}
        assert not files & set(package.__all__), package.__name__


def test_gates_are_set_from_anything_that_holds_finite_numbers_of_their_shapes():
    gated = add_gates(small_vit())
    for values in ([[0.5] * 64] * 4, [np.full(64, 0.5)] * 4):
        gated.set_gates({"mlp": values})
        assert float(gated.gates["mlp"][3].sum()) == 32
    with pytest.raises(ValueError, match="mlp gates were given with values that are not finite"):
        gated.set_gates({"mlp": [torch.full((64,), torch.nan)] * 4})
    assert float(gated.gates["mlp"][3].sum()) == 32
    assert solve(gated, torch.tensor(0.5)) == solve(gated, 0.5)
    with pytest.raises(ValueError, match=r"round_to is 2\.5; it must be a whole number"):
        solve(gated, 0.5, round_to=2.5)


def test_words_that_choose_gates_are_checked():
    with pytest.raises(RefusedInput, match="token_gate is 'sigmoid'; it can be 'linear' or 'tanh'"):
        add_gates(small_vit(), token_gate="sigmoid")
    assert list(add_gates(small_vit(), families="mlp").gates) == ["mlp"]


# timm's own methods on models with gates.


def test_a_gated_models_head_can_be_reset_and_its_costs_follow(tmp_path):
    gated = add_gates(small_vit())
    gated.reset_classifier(300, "avg")
    dense = small_vit(num_classes=300, global_pool="avg", fc_norm=False)
    assert macs(gated) == macs(dense)
    assert params(gated) == sum(p.numel() for n, p in gated.named_parameters() if not n.endswith("_gate"))
    structure = solve(gated, 0.42)
    small = slim(gated, structure)
    assert macs(small) == macs(structure) <= 0.42 * macs(dense)
    assert all(structure.token_mask(layer).any() for layer in range(4)), "the mean has no token"
    save(small, tmp_path)
    assert difference(small, load(tmp_path)) < 1e-6


def test_what_gates_cannot_follow_is_refused_before_the_search():
    gated = add_gates(small_vit())
    with pytest.raises(RefusedInput, match="token gates, and global_pool=''"):
        gated.reset_classifier(3, "")
    assert gated.num_classes == 10
    for model in (gated, add_gates(small_vit(), families=("mlp",))):
        with pytest.raises(RefusedInput, match="set_input_size on the dense model"):
            model.set_input_size(48)


def test_a_head_that_save_will_refuse_is_said_when_gates_are_added(caplog):
    model = small_vit()
    with caplog.at_level(logging.WARNING):
        add_gates(model)
        model.reset_classifier(4)
        add_gates(model)
        assert not caplog.records
        model.head = nn.Linear(32, 3)
        add_gates(model)
    assert "save will not take" in caplog.text
    assert "head.weight is of shape (3, 32)" in caplog.text
    assert "reset_classifier" in caplog.text


# Folders.


@pytest.mark.parametrize("folder", ["s3://bucket/model", "file:///tmp/model", "hf-hub:timm/model", "", None, 3])
def test_what_is_no_local_folder_is_refused(folder):
    with pytest.raises(RefusedInput, match="the folder to save a model to is"):
        save(small_vit(), folder)


def test_places_where_no_folder_can_be_are_refused(tmp_path):
    small = small_vit()
    (tmp_path / "file").write_text("mine")
    (tmp_path / "taken" / "model.safetensors").mkdir(parents=True)
    for place in ("file", "file/model", "taken"):
        with pytest.raises(RefusedInput, match=r"is a file, so no model can|is a folder, where the model's file"):
            save(small, tmp_path / place)
    with pytest.raises(RefusedInput, match=r"no model can be saved to /proc/nothing/model .*that you may write to"):
        save(small, "/proc/nothing/model")
    with pytest.raises(RefusedInput, match=r"is a file, .*give the folder that save wrote"):
        load(tmp_path / "file")
    assert (tmp_path / "file").read_text() == "mine"


def test_links_and_the_home_folder_mean_what_they_point_to(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    small = small_vit()
    (tmp_path / "link").symlink_to(tmp_path / "not yet there")
    for _ in range(2):
        save(small, tmp_path / "link")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "not yet there" / "config.json").is_file()
    save(small, "~/models/small")
    assert difference(small, load("~/models/small")) < 1e-6
    assert (tmp_path / "models" / "small" / "model.safetensors").is_file()


def save_often(folder, scale):
    model = small_vit()
    with torch.no_grad():
        model.head.weight *= scale
        model.head.bias *= scale
    for _ in range(4):
        save(model, folder, metrics={"scale": scale})


def test_threads_and_processes_save_to_one_folder_one_after_the_other(tmp_path):
    folder = tmp_path / "model"
    with ThreadPoolExecutor(4) as threads:
        list(threads.map(lambda scale: save_often(folder, scale), (1, 2, 3, 4)))
    in_processes(save_often, [(folder, scale) for scale in (5, 6)])
    found = load(folder)
    scale = float((found.head.weight / small_vit().head.weight).mean().detach())
    assert min(abs(scale - written) for written in (5, 6)) < 1e-4
    assert sorted(os.listdir(folder)) == ["config.json", "model.safetensors"]
    assert os.listdir(tmp_path) == ["model"]


def test_labels_are_one_name_for_each_output(tmp_path):
    small = small_vit()
    for labels, said in (
        (["a", "b"], "2 names, and the model has 10 outputs"),
        ("abcdefghij", "is a str"),
        ({0: "a"}, "is a dict"),
    ):
        with pytest.raises(RefusedInput, match=said):
            save(small, tmp_path, labels=labels)
    save(small, tmp_path, labels=np.array(list("abcdefghij")), metrics={"top1": np.float32(81.5), "loss": np.float64(0.5)})
    assert load(tmp_path).pretrained_cfg["label_names"] == list("abcdefghij")


# Files of weights.


@pytest.fixture(scope="module")
def config():
    kwargs = {"patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2, "img_size": 32}
    return load_config([])[0].changed(**{"model.name": "vit_tiny_patch16_224", "model.kwargs": kwargs})


@pytest.fixture(scope="module")
def state(config):
    return randomised(build_dense(config, 10)).state_dict()


FILES = {
    "arrays of numpy": ("a.pth", lambda state, path: torch.save({k: v.numpy() for k, v in state.items()}, path)),
    "safetensors under torch's name": ("pytorch_model.bin", save_file),
    "torch's under the name of safetensors": ("a.safetensors", lambda state, path: torch.save({"model": state}, path)),
    "a name in capitals": ("MODEL.SAFETENSORS", save_file),
    "of before torch 1.6": ("a.pth.tar", lambda state, path: torch.save(state, path, _use_new_zipfile_serialization=False)),
}


@pytest.mark.parametrize("kind", FILES)
def test_a_file_is_read_by_what_it_holds(kind, config, state, tmp_path):
    name, write = FILES[kind]
    write(state, tmp_path / name)
    asked = config.changed(**{"model.checkpoint": str(tmp_path / name)})
    check_model(asked)
    assert all(torch.equal(value, state[key]) for key, value in build_dense(asked, 10).state_dict().items())


NO_WEIGHTS = {
    "empty": (b"", "is empty: copy or download it again"),
    "a pointer": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n", "pointer of Git LFS.*git lfs pull"),
    "a page": (b"\n<!DOCTYPE html><html>Sign in</html>", "is a web page"),
    "compressed": (b"\x1f\x8b\x08" + bytes(50), "gzip: unpack it"),
    "of Keras": (b"\x89HDF\r\n\x1a\n" + bytes(50), "HDF5"),
}


@pytest.mark.parametrize("name", ["a.pth", "a.safetensors"])
@pytest.mark.parametrize("kind", NO_WEIGHTS)
def test_what_people_find_in_place_of_weights_is_named(kind, name, config, tmp_path):
    content, said = NO_WEIGHTS[kind]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ConfigError, match=said) as problem:
        check_model(config.changed(**{"model.checkpoint": str(tmp_path / name)}))
    sentence(problem)


@pytest.mark.parametrize("place", ["https://x.org/a.pth", "hf-hub:timm/vit_tiny", "s3://bucket/a.pth"])
def test_an_address_is_no_path(place, config):
    with pytest.raises(ConfigError, match="download it and give the path"):
        check_model(config.changed(**{"model.checkpoint": place}))


OTHERS = {
    "vit.embeddings.patch_embeddings.projection.weight": "Hugging Face transformers",
    "visual.transformer.resblocks.0.ln_1.weight": "OpenAI's CLIP or OpenCLIP",
    "encoder.layers.encoder_layer_0.ln_1.weight": "torchvision",
}


@pytest.mark.parametrize("name", OTHERS)
def test_names_of_other_packages_are_told(name, config, tmp_path):
    torch.save({name: torch.zeros(3, 3), "classifier.weight": torch.zeros(10, 32)}, tmp_path / "a.pth")
    with pytest.raises(ConfigError, match=f"has the names of {OTHERS[name]}") as problem:
        check_model(config.changed(**{"model.checkpoint": str(tmp_path / "a.pth")}))
    assert name in sentence(problem)
