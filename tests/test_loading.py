"""What `save` writes is loaded by slimsweep and by plain timm, in a process that knows nothing but the folder."""

import json
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from timm.data import resolve_model_data_config
from zoo import build, difference, images, random_gates, slow, small_vit

from slimsweep import add_gates, load, macs, params, save, slim, solve


def cut(model, budget=0.5):
    gated = add_gates(model)
    gated.set_gates(random_gates(gated))
    return slim(gated, solve(gated, budget))


STANDARD = """
import sys
import slimsweep
assert "ray" not in sys.modules
import timm, timm.optim, torch
folder = sys.argv[1]
x, features, logits = torch.load(folder + "/expected.pt").values()
model = timm.create_model("local-dir:" + folder, pretrained=True).eval()
with torch.no_grad():
    assert torch.equal(model(x), logits)
    assert torch.equal(model.forward_features(x), features)

other = timm.create_model("local-dir:" + folder, pretrained=True, num_classes=3, drop_path_rate=0.1).eval()
with torch.no_grad():
    assert other(x).shape == (2, 3)
    assert torch.equal(other.forward_features(x), features)
model.reset_classifier(7)
assert model(x).shape == (2, 7)
model.reset_classifier(0)
assert model(x).shape == (2, model.num_features)

other.train()
other.set_grad_checkpointing(True)
optimizer = torch.optim.AdamW(timm.optim.param_groups_weight_decay(other), lr=1e-3)
losses = []
for _ in range(6):
    optimizer.zero_grad()
    loss = torch.nn.functional.cross_entropy(other(x), torch.tensor([0, 2]))
    loss.backward()
    optimizer.step()
    losses.append(loss.item())
assert losses[-1] < losses[0], losses

# Saved again, with the new head, and loaded by the library.
slimsweep.save(other.eval(), folder + "/again")
again = slimsweep.load(folder + "/again")
with torch.no_grad():
    assert torch.equal(again(x), other(x))
"""


@pytest.mark.parametrize("kind", ["class token", *slow("eva02")])
def test_plain_timm_loads_a_cut_model_in_a_fresh_process(kind, tmp_path):
    small = cut(build(kind))
    folder = tmp_path / "a folder, with #?@ in its name"
    save(small, folder)
    x = images(small)
    with torch.no_grad():
        torch.save({"x": x, "features": small.forward_features(x), "logits": small(x)}, folder / "expected.pt")
    done = subprocess.run(
        [sys.executable, "-c", STANDARD, str(folder)], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    assert not done.stderr, "loading warns about something"


def test_preprocessing_labels_and_metrics_travel_along(tmp_path):
    labels = [f"digit {i}" for i in range(10)]
    wanted = {
        "mean": (0.1, 0.2, 0.3),
        "std": (0.4, 0.5, 0.6),
        "input_size": (3, 32, 32),
        "interpolation": "bilinear",
        "crop_pct": 1.0,
    }
    save(cut(small_vit()), tmp_path, preprocessing=wanted, labels=labels, metrics={"test_top1": 97.5})
    loaded = load(tmp_path)
    found = resolve_model_data_config(loaded)
    assert {k: tuple(v) if isinstance(v, list) else v for k, v in found.items() if k in wanted} == wanted
    assert list(loaded.pretrained_cfg["label_names"]) == labels
    assert json.loads((tmp_path / "config.json").read_text())["metrics"] == {"test_top1": 97.5}


def test_grey_images(tmp_path):
    small = cut(small_vit(in_chans=1))
    save(small, tmp_path, preprocessing={"mean": (0.5,), "std": (0.5,), "input_size": (1, 32, 32)})
    loaded = load(tmp_path)
    assert difference(small, loaded) == 0
    assert tuple(resolve_model_data_config(loaded)["mean"]) == (0.5,)


def test_a_head_that_was_replaced_is_saved_as_it_is(tmp_path):
    small = cut(small_vit())
    small.reset_classifier(4)
    save(small, tmp_path)
    assert load(tmp_path)(images(small)).shape == (2, 4)
    assert difference(small.eval(), load(tmp_path)) == 0


def test_dense_models_are_saved_alike(tmp_path):
    model = small_vit()
    save(model, tmp_path)
    assert difference(model, load(tmp_path)) == 0
    assert difference(model, timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()) == 0


def test_a_loaded_model_is_saved_again(tmp_path):
    small = cut(build("swiglu"))
    save(small, tmp_path / "1")
    save(load(tmp_path / "1"), tmp_path / "2")
    assert difference(small, load(tmp_path / "2")) == 0
    assert (tmp_path / "1" / "config.json").read_text() == (tmp_path / "2" / "config.json").read_text()
    assert load(tmp_path / "2").structure == small.structure


def test_a_folder_is_small_and_holds_no_pickle(tmp_path):
    small = cut(small_vit())
    save(small, tmp_path)
    assert {p.name for p in tmp_path.iterdir()} == {"config.json", "model.safetensors"}
    weights = sum(t.numel() for t in load_file(tmp_path / "model.safetensors").values())
    assert weights == sum(p.numel() for p in small.parameters())


def test_models_that_timm_cannot_name_are_not_saved(tmp_path):
    with pytest.raises(ValueError, match=r"not made by timm\.create_model"):
        save(timm.models.VisionTransformer(depth=1, embed_dim=32, num_heads=2), tmp_path)


def rewrite(folder, change):
    config = json.loads((folder / "config.json").read_text())
    change(config)
    (folder / "config.json").write_text(json.dumps(config))


def cut_in_half(folder):
    data = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(data[: len(data) // 2])


def lose_a_tensor(folder):
    tensors = load_file(folder / "model.safetensors")
    tensors.pop("blocks.1.attn.proj.weight")
    save_file(tensors, folder / "model.safetensors")


def only_a_pickle(folder):
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


def other_weights(folder):
    save_file(small_vit().state_dict(), folder / "model.safetensors")


DAMAGE = {
    "no config": lambda f: (f / "config.json").unlink(),
    "no weights": lambda f: (f / "model.safetensors").unlink(),
    "only a pickle": only_a_pickle,
    "half of the weights": cut_in_half,
    "empty weights": lambda f: (f / "model.safetensors").write_bytes(b""),
    "a tensor less": lose_a_tensor,
    "weights of another model": other_weights,
    "binary config": lambda f: (f / "config.json").write_bytes(b"\xff\xfe\x00"),
    "half a config": lambda f: (f / "config.json").write_text((f / "config.json").read_text()[:200]),
    "a list for a config": lambda f: (f / "config.json").write_text("[]"),
    "no architecture": lambda f: rewrite(f, lambda c: c.pop("architecture")),
    "an architecture of somebody else": lambda f: rewrite(f, lambda c: c.update(architecture="bert_base")),
    "no structure": lambda f: rewrite(f, lambda c: c["model_args"].pop("structure")),
    "a damaged structure": lambda f: rewrite(f, lambda c: c["model_args"]["structure"]["masks"]["mlp"].pop()),
    "no dense model": lambda f: rewrite(f, lambda c: c["model_args"].pop("base")),
    "a dense model from elsewhere": lambda f: rewrite(f, lambda c: c["model_args"].update(base="hf-hub:somebody/else")),
    "other arguments": lambda f: rewrite(f, lambda c: c["model_args"]["base_args"].update(depth=3)),
    "a layer that timm lacks": lambda f: rewrite(
        f, lambda c: c["model_args"]["base_args"].update(mlp_layer={"timm.layers": "SwoGLU"})
    ),
    "no preprocessing": lambda f: rewrite(f, lambda c: c.update(pretrained_cfg=3)),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_and_foreign_folders_give_one_clear_sentence(damage, tmp_path):
    save(cut(small_vit()), tmp_path)
    DAMAGE[damage](tmp_path)
    with pytest.raises(ValueError, match=r"\w") as problem:
        load(tmp_path)
    message = str(problem.value)
    assert str(tmp_path) in message
    assert "\n" not in message
    assert len(message) < 600


def test_a_missing_folder_and_a_file_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"has no config\.json"):
        load(tmp_path / "nowhere")
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match=r"has no config\.json"):
        load(tmp_path / "file")


def test_the_architecture_needs_its_structure():
    with pytest.raises(ValueError, match="needs a structure"):
        timm.create_model("slimmed_vit")


def test_loading_gives_eval_mode_and_the_same_costs(tmp_path):
    small = cut(build("swin"))
    save(small.train(), tmp_path)
    loaded = load(tmp_path)
    assert not any(m.training for m in loaded.modules())
    assert macs(loaded) == macs(small) == macs(loaded.structure)


BOTH_ORDERS = {
    "slimsweep first": "import slimsweep; import timm",
    "timm first": "import timm; import slimsweep",
    "a module of slimsweep first": "import slimsweep.slimming.gates; import timm",
    "what knows nothing of timm first": "import slimsweep.config; from timm import create_model; import timm",
}


@pytest.mark.slow
@pytest.mark.parametrize("imports", BOTH_ORDERS.values(), ids=BOTH_ORDERS)
def test_timm_knows_cut_models_in_any_order_of_imports(imports, tmp_path):
    small = cut(build("class token"))
    save(small, tmp_path / "model")
    code = f"{imports}\nprint(timm.create_model('local-dir:' + sys.argv[1], pretrained=True).structure.macs())"
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", f"import sys\n{code}", str(tmp_path / "model")],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == str(small.structure.macs())


EARLIER = Path(__file__).parent / "data" / "finished-run"


@pytest.mark.parametrize("point", sorted(folder.name for folder in (EARLIER / "models").iterdir()))
def test_models_of_an_earlier_version_load_exactly(point):
    model = load(EARLIER / "models" / point)
    stored = load_file(EARLIER / "models" / point / "model.safetensors")
    state = model.state_dict()
    assert state.keys() == stored.keys()
    assert all(torch.equal(state[name], tensor) for name, tensor in stored.items())
    (row,) = pq.read_table(EARLIER / "results" / f"{point}.parquet", columns=["macs", "params"]).to_pylist()
    assert (macs(model), params(model)) == (row["macs"], row["params"])
