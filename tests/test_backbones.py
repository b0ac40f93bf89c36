"""Models without a head (num_classes 0) are slimmed on images without labels, and compared with the dense model by features."""

import copy
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import timm
import torch
from PIL import Image
from zoo import randomised

from slimsweep import add_gates, load, save, slim, solve
from slimsweep.checks import check
from slimsweep.config import Config, ConfigError, load_config
from slimsweep.data import load_data
from slimsweep.ledger.planning import distinct_paces, make_plan, plan_points
from slimsweep.ledger.run import Run
from slimsweep.ledger.status import read_status
from slimsweep.methods.taylor import taylor_of_gates
from slimsweep.slimming.structure import image_size
from slimsweep.tools.display import final_table
from slimsweep.tools.estimate import Images, Training
from slimsweep.tools.plan import plan
from slimsweep.training import MemoryRecorder, build_dense, check_model, train
from slimsweep.training.backbone import families_to_cut, tokens_of
from slimsweep.training.criterion import Criterion, Teacher, student_of
from slimsweep.training.evaluate import Reference, probed

CPU = torch.device("cpu")
TINY = {"img_size": 28, "patch_size": 7, "embed_dim": 32, "depth": 2, "num_heads": 2, "num_classes": 0}


def tiny(**arguments: Any) -> Any:
    return randomised(timm.create_model("vit_tiny_patch16_224", **{**TINY, **arguments}))


def write_images(folder: Path, count: int, seed: int = 0) -> None:
    """Images of 28 x 28 pixels, some directly in a folder and some in folders below it: waves of random colours."""
    draw, places = np.random.default_rng(seed), ("", "a/", "b/c/")
    rows, columns = np.mgrid[:28, :28] / 28
    for number in range(count):
        waves = [np.sin(6 * draw.random() * rows + 6 * draw.random() * columns + 6 * draw.random()) for _ in range(3)]
        path = folder / f"{places[number % 3]}{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(((np.stack(waves, -1) + 1) * 127).astype(np.uint8)).save(path)


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("images")
    write_images(folder, 96)
    return folder


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dense") / "dense"
    save(tiny(), folder)
    return folder


def settings(images: Path, checkpoint: Path, **more: Any) -> dict[str, Any]:
    """Of a run whose augmentation leaves images as they are."""
    kwargs = {key: value for key, value in TINY.items() if key != "num_classes"}
    values: dict[str, Any] = {
        "model": {"name": "vit_tiny_patch16_224", "checkpoint": str(checkpoint), "kwargs": {**kwargs, "num_classes": 0}},
        "data": {"name": "folder", "root": str(images), "batch_size": 16, "augment": {"scale": None, "hflip": 0.0}},
        "budgets": [0.5],
        "search": {"epochs": 0, "paces": [{}]},
        "retrain": {"epochs": 2, "lr": 1e-3},
    }
    return {
        key: {**values.get(key, {}), **value} if isinstance(value, dict) else value for key, value in {**values, **more}.items()
    }


def config_of(images: Path, checkpoint: Path, **more: Any) -> Config:
    return Config(**settings(images, checkpoint, **more))


# Images without labels.


def test_all_images_of_a_folder_are_found_and_divided_alike_each_time(images: Path, checkpoint: Path) -> None:
    config = config_of(images, checkpoint)
    data = load_data(config, (3, 28, 28))
    assert (data.num_classes, data.class_names) == (0, None)
    assert [len(data.train), len(data.val), len(data.test)] == [76, 10, 10]
    parts = [set(split.indices.tolist()) for split in (data.train, data.val, data.test)]
    assert set.union(*parts) == set(range(96))
    assert sum(map(len, parts)) == 96
    again = load_data(config.changed(seed=5), (3, 28, 28))
    assert [split.indices.tolist() for split in (again.train, again.val, again.test)] == [
        split.indices.tolist() for split in (data.train, data.val, data.test)
    ]
    assert data.fingerprint == again.fingerprint


@pytest.mark.parametrize(
    ("splits", "sizes"),
    [
        ({"train": 40, "validation": 6, "test": 8}, (40, 6, 8)),
        ({"train": 40, "validation": 6}, (36, 4, 6)),  # the one split beside train is the test split, as with labels
        ({"train": 40}, (32, 4, 4)),
    ],
)
def test_split_folders_are_used_where_they_exist(
    tmp_path: Path, checkpoint: Path, splits: dict[str, int], sizes: tuple[int, ...]
) -> None:
    for seed, (name, count) in enumerate(splits.items()):
        write_images(tmp_path / name, count, seed)
    data = load_data(config_of(tmp_path, checkpoint), (3, 28, 28))
    assert (len(data.train), len(data.val), len(data.test)) == sizes


@pytest.mark.parametrize("preset", ["dinov2-small", "dinov3-small", "siglip-base"])
def test_a_preset_takes_images_of_one_s_own_as_its_first_lines_say(images: Path, preset: str) -> None:
    asked = ["--config", preset, "--data.root", str(images), "--data.batch_size", "16"]
    with pytest.raises(ConfigError, match=r"data\.test_split is 'validation', but .* has no such folder: set it to null"):
        load_data(load_config(asked)[0], (3, 28, 28))
    more = ["--data.test_split", "null", "--data.val_share", "0.1"]
    assert " ".join(more) in (files("slimsweep.config") / "presets" / f"{preset}.yaml").read_text()
    data = load_data(load_config([*asked, *more])[0], (3, 28, 28))
    assert (len(data.train), len(data.val), len(data.test)) == (76, 10, 10)


def test_labels_of_a_labelled_set_are_not_looked_at(checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = (
        "import torch\nfrom torch.utils.data import TensorDataset\nimages = torch.rand(60, 3, 28, 28)\n"
        "def labelled(config):\n    return [(i, None) for i in images[:40]], None, [(i, 'cat') for i in images[40:]]\n"
        "def alone(config):\n    return list(images[:40]), None, list(images[40:])\n"
    )
    (tmp_path / "backbone_sets.py").write_text(source)
    monkeypatch.syspath_prepend(str(tmp_path))
    for function in ("labelled", "alone"):
        config = config_of(tmp_path, checkpoint, data={"name": f"backbone_sets:{function}", "root": None})
        data = load_data(config, (3, 28, 28))
        assert (len(data.train), len(data.val), len(data.test)) == (36, 4, 20)
        assert data.val[0][0].shape == (3, 28, 28)
    digits = Config(model={"pretrained": True}, data={"num_classes": 0})
    assert load_data(digits, (1, 8, 8)).num_classes == 0


# Loss.


def loss_of(student: Any, teacher: Any, batch: torch.Tensor) -> torch.Tensor:
    config = Config(model={"pretrained": True}, data={"num_classes": 0})
    taught = Teacher.of(teacher, config.distills("retrain"))
    assert taught is not None
    return Criterion(config.retrain, CPU, teacher=taught)(student_of(student, taught), batch, torch.zeros(len(batch)))


def test_the_loss_is_0_for_the_dense_model_and_knows_size_and_both_kinds_of_tokens() -> None:
    dense, batch = tiny(), torch.randn(4, 3, 28, 28)
    assert float(loss_of(tiny(), dense, batch).detach()) == pytest.approx(0, abs=1e-5)
    for change in ("size", "class token", "patches"):
        other = tiny()
        with torch.no_grad():
            if change == "size":
                other.norm.weight *= 1.5
                other.norm.bias *= 1.5
            elif change == "class token":
                other.cls_token[..., 0] += 5.0
            else:
                other.pos_embed[:, 3, 0] += 5.0
        loss = loss_of(other, dense, batch)
        assert float(loss.detach()) > 1e-3, change
        loss.backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in other.parameters())


def test_only_patches_that_stay_are_compared() -> None:
    """A patch token that has left is not there to be compared: of the others, each is compared with its own."""
    dense, batch = tiny(), torch.randn(4, 3, 28, 28)
    gated = add_gates(dense, families=["token"])
    structure = solve(gated, 0.8)
    cut = slim(gated, structure)
    kept = structure.token_mask(1)
    assert 0 < int(kept.sum()) < 16
    found = tokens_of(cut, batch)
    assert found.patches.shape[1] == int(kept.sum())
    assert torch.equal(found.patch_weights > 0, kept)
    # A teacher that gives the kept patches what the cut model gives, and the others something else, is agreed with.
    ours = tokens_of(cut, batch)
    theirs = torch.full((4, 17, 32), 100.0)
    theirs[:, 0] = ours.embedding
    theirs[:, 1:][:, kept] = ours.patches

    class Made(type(dense)):  # type: ignore[misc]
        def forward_features(self, images: torch.Tensor, *args: Any) -> torch.Tensor:
            return theirs.detach()

    made = tiny()
    made.__class__ = Made
    assert float(loss_of(cut, made, batch).detach()) == pytest.approx(0, abs=1e-5)
    # So is a cut model as the teacher, by a student with the same patches and by one with all.
    assert float(loss_of(cut, copy.deepcopy(cut), batch).detach()) == pytest.approx(0, abs=1e-5)
    whole = loss_of(dense, cut, batch)
    assert 0 < float(whole.detach()) < 0.1
    # During a search, a patch whose gate is 0 counts as little.
    gated.set_gates({"token": [torch.ones(16), kept.float()]})
    assert torch.equal(tokens_of(gated, batch).patch_weights, kept.float())


def test_tokens_stay_by_default_and_leave_where_they_are_asked_for(images: Path, checkpoint: Path) -> None:
    config, dense = config_of(images, checkpoint), tiny()
    assert families_to_cut(config, dense) == ["attention", "mlp"]
    asked = config.changed(**{"search.families": ["mlp", "token"]})
    assert families_to_cut(asked, dense) == ["mlp", "token"]
    headed = Config()
    assert families_to_cut(headed, dense) is None


# Ranking without labels.


def test_taylor_scores_of_a_backbone_are_the_squared_derivatives_of_its_features() -> None:
    gated = add_gates(tiny(embed_dim=8), families=["attention", "mlp"]).eval()
    batch = torch.randn(2, 3, 28, 28)
    scores = taylor_of_gates(gated, batch.repeat(16, 1, 1, 1), torch.zeros(32))
    gate = gated.gate_parameters()["mlp"][1]
    exact = torch.zeros_like(gate)
    for image in batch:
        tokens = gated.forward_features(image[None])
        outputs = torch.cat([gated.forward_head(tokens).flatten(), tokens.flatten() / 17**0.5])
        for output in outputs:
            exact += torch.autograd.grad(output, gate, retain_graph=True)[0].square() / 2
    assert torch.corrcoef(torch.stack([scores["mlp"][1], exact]))[0, 1] > 0.9
    assert scores["mlp"][1].sum() == pytest.approx(float(exact.sum()), rel=0.3)
    assert all(score.sum() > 0 for layers in scores.values() for score in layers)


# Evaluation and training.


def test_retraining_brings_features_nearer_to_the_dense_model_s(images: Path, checkpoint: Path) -> None:
    config = config_of(images, checkpoint)
    dense = build_dense(config, 0)
    data = load_data(config, image_size(dense), dense.pretrained_cfg)
    reference = Reference(dense, data)
    assert reference.agreement(build_dense(config, 0), "test", CPU) == pytest.approx((1.0, 1.0, 100.0), abs=1e-4)
    gated = add_gates(dense, families=["attention", "mlp"])
    small = slim(gated, solve(gated, 0.6))
    recorder = MemoryRecorder("retrain", "one")
    teacher = Teacher.for_stage(config, "retrain", dense, data)
    recipe = config.retrain.at(2e-3, 6)
    trained = train(small, data, recipe, recorder, device=CPU, teacher=teacher, reference=reference)
    r2 = [row["val_r2"] for row in recorder.curve]
    assert len(r2) == 7
    assert r2[-1] > r2[0]
    assert all(row["val_top1"] is None for row in recorder.curve)
    assert reference.agreement(trained, "val", CPU).r2 == pytest.approx(r2[-1])


def test_embeddings_that_are_not_finite_say_so(images: Path, checkpoint: Path) -> None:
    config = config_of(images, checkpoint)
    dense = build_dense(config, 0)
    data = load_data(config, image_size(dense), dense.pretrained_cfg)
    broken = build_dense(config, 0)
    with torch.no_grad():
        broken.norm.weight.fill_(torch.nan)
    assert np.isnan(Reference(dense, data).agreement(broken, "val", CPU).r2)


def write_classes(root: Path) -> None:
    """Two classes that differ in brightness, in train/ and validation/."""
    draw = np.random.default_rng(0)
    for split, count in (("train", 20), ("validation", 8)):
        for name, level in (("dark", 40), ("bright", 200)):
            (root / split / name).mkdir(parents=True)
            for number in range(count):
                pixels = np.clip(level + draw.normal(0, 10, (28, 28, 3)), 0, 255).astype(np.uint8)
                Image.fromarray(pixels).save(root / split / name / f"{number}.png")


def test_a_probe_tells_what_embeddings_are_worth(images: Path, checkpoint: Path, tmp_path: Path) -> None:
    from slimsweep.cluster.worker import probe_for

    write_classes(tmp_path / "labelled")
    config = config_of(images, checkpoint, probe={"root": str(tmp_path / "labelled")})
    dense = build_dense(config, 0)
    probe = probe_for(config, dense)
    assert probe is not None
    assert probe.num_classes == 2
    found = probed(dense, probe, CPU)
    assert set(found) == {f"{split}_{kind}_top1" for split in ("val", "test") for kind in ("knn", "probe")}
    assert min(found.values()) > 90
    with pytest.raises(ConfigError, match=r"^probe: probe\.root is .*, which is no folder here"):
        probe_for(config.changed(**{"probe.root": str(tmp_path / "nowhere")}), dense)


def test_a_plan_counts_what_a_backbone_is_judged_by(images: Path, checkpoint: Path, tmp_path: Path) -> None:
    """The dense model's features of each image, and the features of the probe's images."""
    write_classes(tmp_path / "labelled")
    plain = config_of(images, checkpoint)
    probing = plain.changed(probe={"root": str(tmp_path / "labelled")})
    slow = {"tflops": 1e-6}  # a device that is so slow that loading, which is timed here, takes no time beside it

    def forward(training: Training) -> float:
        return 2 * training.macs / 1e6

    (*_, point), (*_, probed_point) = (plan(config, **slow).trainings for config in (plain, probing))
    assert probed_point.seconds - point.seconds == pytest.approx(
        56 * forward(point), rel=0.01
    )  # as many as write_classes writes
    assert any("56 labelled images of the probe" in note for note in plan(probing, **slow).notes)
    few, many = (plan(plain, images=Images(train=64, val=16, test=test), **slow).trainings for test in (16, 26))
    assert few[0].name == "search"  # of the whole model
    assert many[-1].seconds - few[-1].seconds == pytest.approx(10 * (forward(point) + forward(few[0])))
    without_images = plan(probing, images=Images(train=64, val=16, test=16), **slow)
    assert any("the probe is not counted" in note for note in without_images.notes)
    assert without_images.trainings[-1].seconds == pytest.approx(few[-1].seconds)


def test_a_probe_and_the_way_to_ask_for_no_head_do_not_change_names(images: Path, checkpoint: Path) -> None:
    config = config_of(images, checkpoint)
    other = settings(images, checkpoint)
    other["data"]["num_classes"] = 0
    del other["model"]["kwargs"]["num_classes"]
    probing = config_of(images, checkpoint, probe={"root": "/somewhere"})
    assert config.fingerprint("retrain") == Config(**other).fingerprint("retrain") == probing.fingerprint("retrain")
    assert config.fingerprint("retrain") != config_of(images, checkpoint, data={"val_share": 0.2}).fingerprint("retrain")


# What is refused.


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"data": {"num_classes": 10}}, "model.kwargs has num_classes 0, .* but data.num_classes is 10: leave one of them out"),
        ({"data": {"augment": {"mixup": 0.8}}}, "data.augment.mixup is 0.8, which mixes labels, .*: leave it out"),
        ({"data": {"augment": {"cutmix": 1.0}}}, "data.augment.cutmix is 1, which mixes labels, .*: leave it out"),
        ({"retrain": {"label_smoothing": 0.2}}, "retrain.label_smoothing is 0.2, .*: leave it out"),
        ({"retrain": {"distill": {"alpha": 0.5}}}, "retrain.distill.answers is 'soft', .*: leave distill out"),
        ({"search": {"distill": {"answers": "hard"}}}, "search.distill.answers is 'hard', .*: leave distill out"),
        ({"retrain": {"distill": {"alpha": 0.5, "answers": "features"}}}, "retrain.distill.alpha is 0.5, .*: leave it out"),
        ({"dense": {"epochs": 3}}, "dense.epochs is 3, .*: leave dense.epochs out"),
        ({"baselines": ["small"]}, "baselines names small, .*: leave small out"),
        (
            {"probe": {"rot": "/x"}},
            "2 settings .*\n1. probe has no root: set probe.root\n2. unknown field probe.rot; did you mean",
        ),
    ],
)
def test_what_needs_labels_is_refused(images: Path, checkpoint: Path, more: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=f"^({said})"):
        config_of(images, checkpoint, **more)


def test_a_teacher_of_another_width_is_refused_with_what_helps_a_backbone(
    images: Path, checkpoint: Path, tmp_path: Path
) -> None:
    """Soft and hard answers would be refused next: a model without a head gives none."""
    save(timm.create_model("vit_tiny_patch16_224", **{**TINY, "embed_dim": 16, "num_heads": 2}), tmp_path / "narrow")
    config = config_of(images, checkpoint, teacher={"checkpoint": str(tmp_path / "narrow")})
    with pytest.raises(ConfigError) as caught:
        check(config)
    wide = check_model(config).num_features
    assert str(caught.value).endswith(f"dims and the model of {wide}: take a teacher of the same width")
    assert "distill" not in str(caught.value)


def test_a_backbone_without_weights_and_a_probe_of_a_head_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"^model .* has no weights, .*: set model.pretrained or model.checkpoint"):
        Config(model={"kwargs": {"num_classes": 0}})
    with pytest.raises(ConfigError, match=r"^probe is '/x', but the model has a head, .* set model.kwargs.num_classes to 0"):
        Config(probe={"root": "/x"})
    with pytest.raises(ConfigError, match="must be at least 2 classes, or 0 for a model without a head"):
        Config(data={"num_classes": 1})
    config, _ = load_config(["--model.pretrained", "true", "--dense.epochs", "0", "--model.kwargs.num_classes", "0"])
    assert config.backbone


def test_a_backbone_that_gives_no_single_vector_is_refused(images: Path, checkpoint: Path) -> None:
    from slimsweep.checks import check

    config = config_of(images, checkpoint)
    assert check(config) == []
    kwargs = {**config.model.kwargs, "global_pool": ""}
    with pytest.raises(ConfigError, match=r"gives features of shape \(17, 32\) per image, .*: set model.kwargs.global_pool"):
        check(config.changed(**{"model.kwargs": kwargs}))


# A whole run.


def check_rows(run: Run, rows: pd.DataFrame, methods: set[str]) -> None:
    """What the points of a backbone's run must tell."""
    assert set(rows.method) == methods
    assert (rows.status == "ok").all()
    assert rows[["val_top1", "test_top1", "val_top1_cut", "test_top5", "test_loss", "test_top1_untouched"]].isna().all().all()
    measured = [
        f"{split}_{name}" for split in ("val", "test") for name in ("r2", "cosine", "nearest", "knn_top1", "probe_top1")
    ]
    assert rows[[*measured, "val_r2_cut"]].notna().all().all()
    dense = rows[rows.method == "dense"].iloc[0]
    assert (dense.val_r2, dense.test_nearest, dense.epochs) == (pytest.approx(1, abs=1e-5), 100, 0)
    searched = rows[rows.method == "searched"]
    # Of axes and repair alone; test_retraining_brings_... has what training adds.
    assert searched.val_r2_cut.min() > 0.5
    assert (rows[~rows.method.isin(["dense", "searched"])].val_r2_cut < 0).all()  # cuts without these
    assert searched.val_r2.max() > 0.9
    for row in searched.itertuples():
        small = load(run.models / row.point)
        assert small(torch.zeros(2, 3, 28, 28)).shape == (2, 32)
        assert small.forward_features(torch.zeros(2, 3, 28, 28)).shape == (2, 17, 32)


def test_every_stage_of_a_sweep_works_without_labels(images: Path, checkpoint: Path, tmp_path: Path) -> None:
    """As the driver and its workers do one after another, in this process."""
    from slimsweep.cluster.choose_job import choose_structure, name_of_try, try_pace
    from slimsweep.cluster.retrain_job import retrain
    from slimsweep.cluster.search_job import search, train_dense
    from slimsweep.cluster.worker import job_arguments

    write_classes(tmp_path / "labelled")
    config = config_of(
        images,
        checkpoint,
        name="bones",
        output=str(tmp_path),
        probe={"root": str(tmp_path / "labelled")},
        baselines=["taylor"],
        search={"epochs": 1, "paces": [{"mlp": 1.0}, {"mlp": 1.4}]},
        retrain={"epochs": 3, "lr": [1e-3, 1e-4]},
    )
    run = Run(tmp_path / "bones", config)
    run.write_config()
    train_dense(run, CPU, 0)
    search(run, CPU, 0)
    assert set(run.shape.gate_shapes) == {"attention", "mlp"}
    assert [row["epoch"] for row in run.curve("search")] == [0, 1]
    assert run.curve("search")[0]["val_r2"] == pytest.approx(1, abs=1e-4)
    tried = [try_pace(job_arguments(run, pace=pace, until=None)) for pace in distinct_paces(config, run.shape.gate_shapes)]
    assert all(one is not None and one["val_r2"] <= 1 and not one["error"] for one in tried)
    assert run.pace_try(name_of_try(run, tried[0]["pace"])) == tried[0]  # type: ignore[index]
    choose_structure(job_arguments(run, method="taylor", seed=0))
    points = plan_points(run)
    for point in points:
        retrain(run, point, CPU, 0)
    rows = run.refresh().rows
    check_rows(run, rows, {"dense", "searched", "taylor"})
    run.write_plan(make_plan(run, "one"))
    status = {point.name: point for point in read_status(run).points}
    searched = rows[rows.method == "searched"].sort_values("val_r2")
    best, worse = searched.point.iloc[-1], searched.point.iloc[0]
    assert status[best].note == ""
    assert status[worse].note == "another learning rate is better on validation"
    assert status[best].quality == f"val R2 {searched.val_r2.iloc[-1]:.4f}"
    table = final_table(run, rows, 1.0)
    assert [str(column.header) for column in table.columns][-4:] == ["test R2", "vs dense", "k-NN %", "probe %"]
    assert set(table.columns[-2].cells) <= {f"{value:.1f}" for value in rows.test_knn_top1}
    unprobed = final_table(run, rows.assign(test_knn_top1=None, test_probe_top1=None), 1.0)
    assert str(unprobed.columns[-1].header) == "vs dense"


@pytest.mark.slow
def test_a_sweep_of_a_backbone(
    ray_cluster: None, images: Path, checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    import yaml

    from slimsweep.run import main

    write_classes(tmp_path / "labelled")
    probe = {"root": str(tmp_path / "labelled")}
    values = settings(images, checkpoint, name="bones", output=str(tmp_path), probe=probe, retrain={"epochs": 4, "lr": 1e-4})
    (tmp_path / "sweep.yaml").write_text(yaml.safe_dump(values))
    assert main(["--config", str(tmp_path / "sweep.yaml")]) == 0
    printed = capsys.readouterr().out
    assert "test R2" in printed
    assert "nan" not in printed
    run = Run(tmp_path / "bones")
    check_rows(run, run.rows, {"dense", "searched"})
    assert read_status(run).finished
    before = run.rows
    assert main(["--config", str(tmp_path / "sweep.yaml")]) == 0  # nothing is made again
    pd.testing.assert_frame_equal(run.refresh().rows, before)
