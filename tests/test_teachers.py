"""Teachers: what is learned from them, what they see, who may teach, and what they cost."""

import copy
import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import pytest
import timm
import timm.data
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from zoo import small_vit

from slimsweep import load, save
from slimsweep.checks import check
from slimsweep.cluster.worker import data_for, teacher_of
from slimsweep.config import Config, ConfigError, Distill, load_config
from slimsweep.config.identity import checkpoint_token
from slimsweep.earlier_start import start_or_continue
from slimsweep.ledger.planning import expected_points, search_macs
from slimsweep.ledger.recorder import RunRecorder
from slimsweep.ledger.run import Run
from slimsweep.report.page_data import page_data
from slimsweep.report.run_tables import read_run
from slimsweep.run import main
from slimsweep.slimming.cut import slim
from slimsweep.slimming.gates import add_gates
from slimsweep.slimming.removal_path import RemovalPath, equal_gates, solve
from slimsweep.slimming.structure import macs
from slimsweep.tools.estimate import Images
from slimsweep.tools.plan import plan
from slimsweep.training import Criterion, MemoryRecorder, Teacher, build_dense, check_model, train
from slimsweep.training.criterion import student_of
from slimsweep.training.teachers import Teachers, TeacherView, check_teachers, features_of, teacher_model

CPU = torch.device("cpu")
QUICK = ["--data.limit", "128", "--data.batch_size", "32", "--dense.epochs", "1", "--dense.warmup_epochs", "0"]
TAUGHT = ["--retrain.distill.alpha", "0.5"]
SIZES: dict[str, Any] = {"patch_size": 8, "embed_dim": 32, "depth": 1, "num_heads": 2}


def config_of(*more: str) -> Config:
    return load_config([*QUICK, *more])[0]


def batch(model: nn.Module, count: int = 6) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(count, 3, 32, 32, generator=generator)
    return images, torch.arange(count) % 10


def differing(count: int) -> list[nn.Module]:
    """Models of the same sizes, each with weights of its own."""
    models = []
    for seed in range(count):
        torch.manual_seed(seed)
        model = small_vit()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.1 * torch.randn_like(parameter))
        models.append(model.eval())
    return models


# What is learned.


def loss_of(student: nn.Module, teacher: Teacher, images: Tensor, labels: Tensor) -> Tensor:
    recipe = Config().retrain.model_copy(update={"label_smoothing": 0.0})
    found: Tensor = Criterion(recipe, CPU, teacher=teacher)(student_of(student, teacher), images, labels)
    return found


def test_soft_and_hard_answers_and_features_give_the_loss_of_their_formula():
    student, model = differing(2)
    images, labels = batch(student)
    logits, answers = student(images), model(images)
    plain = F.cross_entropy(logits, labels)

    soft = Teacher.of(model, Distill(alpha=0.3, temperature=2.0))
    p, q = (answers / 2).softmax(1), (logits / 2).softmax(1)
    divergence = (p * (p.log() - q.log())).sum(1).mean()
    assert torch.allclose(loss_of(student, soft, images, labels), 0.7 * plain + 0.3 * 4 * divergence, atol=1e-6)

    hard = Teacher.of(model, Distill(alpha=0.3, answers="hard"))
    named = -logits.log_softmax(1)[range(len(images)), answers.argmax(1)].mean()
    assert torch.allclose(loss_of(student, hard, images, labels), 0.7 * plain + 0.3 * named, atol=1e-6)

    features = Teacher.of(model, Distill(alpha=0.3, answers="features"))
    s, t = (m.forward_head(m.forward_features(images), pre_logits=True) for m in (student, model))
    difference = ((s - s.mean(1, True)) / (s.var(1, False, True) + 1e-5).sqrt()) - (
        (t - t.mean(1, True)) / (t.var(1, False, True) + 1e-5).sqrt()
    )
    smooth = torch.where(difference.abs() < 1, difference**2 / 2, difference.abs() - 0.5).mean()
    cosine = ((s * t).sum(1) / (s.norm(dim=1) * t.norm(dim=1))).mean()
    assert torch.allclose(loss_of(student, features, images, labels), 0.7 * plain + 0.3 * (smooth + 1 - cosine), atol=1e-5)


def test_several_teachers_answer_by_the_weighted_average_of_their_probabilities():
    student, one, other = differing(3)
    images, labels = batch(student)
    both = Teacher.of(Teachers([one, other], [3.0, 1.0]), Distill(alpha=1.0, temperature=2.0))
    mean = 0.75 * (one(images) / 2).softmax(1) + 0.25 * (other(images) / 2).softmax(1)
    assert torch.allclose(both.log_probabilities(images).exp(), mean, atol=1e-6)
    divergence = (mean * (mean.log() - (student(images) / 2).log_softmax(1))).sum(1).mean()
    assert torch.allclose(loss_of(student, both, images, labels), 4 * divergence, atol=1e-5)


def distilled() -> nn.Module:
    torch.manual_seed(0)
    return timm.create_model("deit_tiny_distilled_patch16_224", img_size=32, num_classes=10, **SIZES)


@pytest.mark.parametrize("answers", ["soft", "hard"])
def test_each_head_of_a_distilled_model_learns_from_its_own_target_only(answers: str):
    student, model = distilled(), differing(1)[0]
    images, labels = batch(student)
    teacher = Teacher(model, 0.5, 1.0, answers, heads_apart=True)

    def gradients(labels: Tensor, teacher: Teacher) -> list[Tensor]:
        network = student_of(student.train(), teacher)
        student.zero_grad()
        Criterion(Config().retrain, CPU, teacher=teacher)(network, images, labels).backward()
        return [head.weight.grad.clone() for head in (student.head, student.head_dist)]

    first = gradients(labels, teacher)
    of_other_labels = gradients((labels + 1) % 10, teacher)
    assert not torch.allclose(first[0], of_other_labels[0])
    assert torch.equal(first[1], of_other_labels[1])
    contrary = copy.deepcopy(model)
    with torch.no_grad():
        contrary.head.weight.neg_()
        contrary.head.bias.neg_()
    of_other_teacher = gradients(labels, Teacher(contrary, 0.5, 1.0, answers, heads_apart=True))
    assert torch.equal(first[0], of_other_teacher[0])
    assert not torch.allclose(first[1], of_other_teacher[1])


def test_the_heads_of_a_distilled_model_are_averaged_again_after_its_training():
    config = config_of("--model.name", "deit_tiny_distilled_patch16_224", *TAUGHT, "--retrain.distill.answers", "hard")
    config = config.changed(**{"retrain.epochs": 1, "retrain.warmup_epochs": 0, "retrain.ema_decay": 0.9})
    data = data_for(config)
    dense = build_dense(config, data.num_classes)
    teacher = Teacher.for_stage(config, "retrain", copy.deepcopy(dense), data)
    assert teacher.heads_apart
    student = train(add_gates(dense), data, config.retrain, MemoryRecorder("retrain"), device=CPU, teacher=teacher)
    images = torch.stack([data.val[i][0] for i in range(4)])
    tokens = student.forward_features(images)
    heads = (student.head(tokens[:, 0]) + student.head_dist(tokens[:, 1])) / 2
    assert torch.allclose(student.eval()(images), heads, atol=1e-5)
    assert isinstance(student.train()(images), Tensor)  # whoever trains it further finds it as timm makes it


def test_soft_answers_of_the_dense_model_teach_both_heads_as_in_earlier_versions():
    config = config_of("--model.name", "deit_tiny_distilled_patch16_224", *TAUGHT)
    data = data_for(config)
    teacher = Teacher.for_stage(config, "retrain", build_dense(config, data.num_classes), data)
    assert not teacher.heads_apart


@pytest.mark.parametrize("answers", ["soft", "hard", "features"])
def test_a_search_and_a_cut_model_learn_from_each_kind_of_answer(answers: str):
    config = config_of("--search.distill.alpha", "0.5", *TAUGHT, "--search.epochs", "1")
    config = config.changed(**{f"{s}.distill.answers": answers for s in ("search", "retrain")})
    config = config.changed(**{"retrain.epochs": 1, "retrain.warmup_epochs": 0})
    data = data_for(config)
    torch.manual_seed(0)
    dense = build_dense(config, data.num_classes)
    gated, recorder = add_gates(dense), MemoryRecorder("search")
    taught = Teacher.for_stage(config, "search", dense, data)
    train(gated, data, config.search, recorder, device=CPU, teacher=taught)
    small = slim(gated, solve(gated, 0.5))
    before = copy.deepcopy(small.state_dict())
    taught = Teacher.for_stage(config, "retrain", dense, data)
    train(small, data, config.retrain, MemoryRecorder("retrain"), device=CPU, teacher=taught)
    assert any(not torch.equal(value, before[name]) for name, value in small.state_dict().items())
    assert math.isfinite(recorder.curve[-1]["loss"])


# What a teacher sees.


def prepared(image: Image.Image, size: int, mean: list[float], std: list[float]) -> Tensor:
    values = torch.tensor(list(image.tobytes()), dtype=torch.float32).view(image.height, image.width, -1).permute(2, 0, 1) / 255
    if size != image.width:
        values = F.interpolate(values[None], (size, size), mode="bilinear", antialias=True)[0]
    return (values - torch.tensor(mean).view(-1, 1, 1)) / torch.tensor(std).view(-1, 1, 1)


@pytest.mark.parametrize(("size", "mode"), [(32, "RGB"), (48, "RGB"), (16, "RGB"), (48, "L")])
def test_a_teacher_sees_the_student_s_batch_as_by_its_own_preprocessing(size: int, mode: str):
    own = {"mean": [0.1, 0.4, 0.7], "std": [0.2, 0.3, 0.5]}
    seen: dict[str, Any] = {"mean": [0.5, 0.45, 0.4], "std": [0.22, 0.23, 0.24]}
    model = small_vit(img_size=size, pretrained_cfg_overlay=own)
    generator = torch.Generator().manual_seed(3)
    pixels = torch.randint(0, 256, (32, 32, 3), generator=generator, dtype=torch.uint8)
    image = Image.fromarray(pixels.numpy()).convert(mode)
    if mode == "L":
        seen = {"mean": [0.5], "std": [0.22]}
    student = prepared(image, 32, **seen)
    expected = model(prepared(image.convert("RGB"), size, **own)[None])
    view = TeacherView(model, {"input_size": [len(student), 32, 32], **seen})
    assert torch.allclose(view(student[None]), expected, rtol=1e-4, atol=1e-4)


def test_a_grey_teacher_sees_colours_as_pillow_turns_them_grey():
    model = small_vit(in_chans=1, pretrained_cfg_overlay={"mean": [0.3], "std": [0.2]})
    pixels = torch.randint(0, 256, (32, 32, 3), generator=torch.Generator().manual_seed(3), dtype=torch.uint8)
    image = Image.fromarray(pixels.numpy())
    seen: dict[str, Any] = {"mean": [0.5, 0.45, 0.4], "std": [0.22, 0.23, 0.24]}
    view = TeacherView(model, {"input_size": [3, 32, 32], **seen}).view(prepared(image, 32, **seen)[None])
    assert (view - prepared(image.convert("L"), 32, [0.3], [0.2])[None]).abs().max() < 1.01 / 255 / 0.2


def test_mixed_images_are_shown_to_the_teacher():
    student, model = differing(2)
    shown: list[Tensor] = []
    model.register_forward_pre_hook(lambda _, given: shown.append(given[0].clone()))
    images, labels = batch(student)

    def mixup(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        return 0.6 * x + 0.4 * x.flip(0), F.one_hot(y, 10).float()

    teacher = Teacher.of(model, Distill(alpha=0.5))
    Criterion(Config().retrain, CPU, mixup=mixup, teacher=teacher)(student, images.clone(), labels)
    assert torch.equal(shown[-1], 0.6 * images + 0.4 * images.flip(0))


# Who may teach.


def folder_of(tmp_path: Path, classes: int = 10, labels: list[str] | None = None, **arguments: Any) -> Path:
    torch.manual_seed(1)
    model = timm.create_model(
        "vit_tiny_patch16_224", num_classes=classes, **{"img_size": 16, "in_chans": 1, **SIZES, **arguments}
    )
    folder = tmp_path / f"teacher-{classes}-{len(arguments)}"
    preprocessing = {"mean": [0.3] * model.in_chans, "std": [0.2] * model.in_chans}
    save(model, folder, labels=labels, preprocessing=preprocessing)
    return folder


def refused(config: Config) -> str:
    with pytest.raises(ConfigError) as problem:
        check(config)
    assert "\n" not in str(problem.value)
    return str(problem.value)


def test_a_path_without_a_teacher_is_told_from_a_folder_of_something_else(tmp_path: Path):
    gone = tmp_path / "gone"
    assert refused(config_of("--teacher.checkpoint", str(gone), *TAUGHT)).endswith("there is nothing there: fix the path")
    assert "not a folder that slimsweep or timm saved" in refused(config_of("--teacher.checkpoint", str(tmp_path), *TAUGHT))


def test_teachers_of_other_classes_are_refused_with_the_way_out(tmp_path: Path):
    said = refused(config_of("--teacher.name", "regnety_160.deit_in1k", "--teacher.pretrained", *TAUGHT))
    assert "regnety_160.deit_in1k" in said
    assert "no head for the 10 classes" in said
    assert "fine-tune it" in said
    said = refused(config_of("--teacher.checkpoint", str(folder_of(tmp_path, 7)), *TAUGHT))
    assert "are for 7 classes, not for the 10 of the data" in said
    config = config_of("--teacher.checkpoint", str(folder_of(tmp_path, labels=list("abcdefghij"))), *TAUGHT)
    data = dataclasses.replace(data_for(config), class_names=list("abcdefghik"))
    with pytest.raises(ConfigError, match=r"for other classes .only it has 'j'; only data has 'k'. than the 10 of the data"):
        check_teachers(config, check_model(config), data)
    file = folder_of(tmp_path, 7) / "model.safetensors"
    kwargs = json.dumps({"img_size": 16, "in_chans": 1, **SIZES})
    named = ["--teacher.name", "vit_tiny_patch16_224", "--teacher.kwargs", kwargs, "--teacher.checkpoint"]
    assert "no head for the 10 classes" in refused(config_of(*named, str(file), *TAUGHT))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--teacher.checkpoint", "nowhere"], "fix the path"),
        (["--teacher.name", "vit_tinny_patch16_224", "--teacher.pretrained"], "teacher.name is 'vit_tinny_patch16_224', which"),
        (["--teacher.name", "vit_tiny_patch16_224", "--teacher.checkpoint", "nowhere"], "teacher.checkpoint is"),
    ],
)
def test_what_is_no_teacher_is_refused(arguments: list[str], said: str):
    assert said in refused(config_of(*arguments, *TAUGHT))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--teacher.name", "vit_tiny_patch16_224", *TAUGHT], "without weights"),
        (["--teacher.pretrained", *TAUGHT], "teacher names no model"),
        (["--teacher.checkpoint", "x"], "alpha are both 0"),
        (["--teacher", "[]", *TAUGHT], "must name at least one model"),
        (["--teacher", '[{"checkpoint": "x", "weight": 0}]', *TAUGHT], "must be more than 0"),
        (["--teacher", '[{"checkpoint": "x", "weigth": 1}]', *TAUGHT], "did you mean weight?"),
        (["--teacher.checkpoint", "x", "--teacher.pretrained", *TAUGHT], "teacher.pretrained is set"),
        (["--retrain.distill.answers", "logits", *TAUGHT], "one of soft, hard, features"),
    ],
)
def test_settings_of_a_teacher_that_cannot_work_are_refused_at_once(arguments: list[str], said: str):
    with pytest.raises(ConfigError) as problem:
        config_of(*arguments)
    assert said in str(problem.value)


def spoil(file: Path, how: str) -> None:
    state = load_file(file)
    if how == "missing":
        file.unlink()
    elif how == "cut off":
        file.write_bytes(file.read_bytes()[:1000])
    else:
        name = "blocks.0.mlp.fc1.bias"
        save_file({**state, name: state[name][:-1] if how == "of another model" else state[name] * math.nan}, file)


@pytest.mark.parametrize("how", ["missing", "cut off", "of another model", "not finite"])
def test_a_folder_whose_weights_cannot_teach_is_refused_before_any_training(tmp_path: Path, how: str):
    folder = folder_of(tmp_path)
    config = config_of("--teacher.checkpoint", str(folder), *TAUGHT)
    assert check(config) == []
    spoil(folder / "model.safetensors", how)
    said = refused(config)
    assert said.startswith("teacher.checkpoint")
    assert str(folder) in said


@pytest.mark.parametrize("how", ["missing", "cut off", "of another model", "not finite"])
def test_a_file_of_weights_that_cannot_teach_is_refused_before_any_training(tmp_path: Path, how: str):
    file = folder_of(tmp_path) / "model.safetensors"
    kwargs = json.dumps({"img_size": 16, "in_chans": 1, **SIZES})
    config = config_of(
        *("--teacher.name", "vit_tiny_patch16_224", "--teacher.kwargs", kwargs, "--teacher.checkpoint", str(file), *TAUGHT)
    )
    assert check(config) == []
    spoil(file, how)
    said = refused(config)
    assert "teacher.checkpoint" in said
    assert str(file) in said


def test_a_teacher_that_gives_more_than_one_value_per_class_is_refused(tmp_path: Path):
    kwargs = {"img_size": 16, "in_chans": 1, **SIZES, "global_pool": ""}
    file = folder_of(tmp_path) / "model.safetensors"
    named = ["--teacher.name", "vit_tiny_patch16_224", "--teacher.kwargs", json.dumps(kwargs), "--teacher.checkpoint"]
    assert "answers an image with values of shape (5, 10), not with one per class" in refused(
        config_of(*named, str(file), *TAUGHT)
    )
    with pytest.raises(ConfigError, match=r"must not set features_only"):
        config_of("--teacher", json.dumps({"name": "resnet18", "pretrained": True, "kwargs": {"features_only": True}}), *TAUGHT)


def test_features_of_another_width_are_refused_with_both_widths(tmp_path: Path):
    config = config_of("--teacher.checkpoint", str(folder_of(tmp_path)), *TAUGHT, "--retrain.distill.answers", "features")
    width = check_model(config).embed_dim
    said = refused(config)
    assert f"features of 32 dims and the model of {width}" in said
    with pytest.raises(ConfigError, match=f"features of 32 dims and the model of {width}"):
        plan(config, images=Images(train=1000, val=100, test=100), tflops=1.0)
    same = folder_of(tmp_path, embed_dim=width, num_heads=1)
    check(config.changed(**{"teacher.checkpoint": str(same)}))
    assert "leave small out" in refused(
        config.changed(**{"teacher.checkpoint": str(same), "baselines": ["small"], "search.round_to": 1})
    )


@pytest.mark.parametrize("classes", [0, 7])
def test_where_features_are_learned_the_teacher_s_head_does_not_count(tmp_path: Path, classes: int):
    width = check_model(config_of()).embed_dim
    folder = folder_of(tmp_path, classes, embed_dim=width, num_heads=1)
    kwargs = json.dumps({"img_size": 16, "in_chans": 1, **SIZES, "embed_dim": width, "num_heads": 1})
    weights = str(folder / "model.safetensors")
    features = [*TAUGHT, "--retrain.distill.answers", "features"]
    for words in (
        ["--teacher.checkpoint", str(folder)],
        ["--teacher.name", "vit_tiny_patch16_224", "--teacher.kwargs", kwargs, "--teacher.checkpoint", weights],
    ):
        config = config_of(*words, *features)
        check(config)
        data = data_for(config)
        dense = build_dense(config, data.num_classes)
        teacher = Teacher.for_stage(config, "retrain", dense, data)
        assert teacher is not None
        images, labels = (
            torch.stack([torch.as_tensor(x) for x in xs]) for xs in zip(*(data.val[i] for i in range(4)), strict=True)
        )
        assert loss_of(dense, teacher, images, labels).isfinite()
        seen, own = teacher.model.view(images), load(folder).eval()
        aim = own.forward_head(own.forward_features(seen), pre_logits=True)
        torch.testing.assert_close(features_of(teacher.model, images), aim, rtol=0, atol=1e-5)
        # A stage that learns answers asks for the data's classes.
        for said in (
            refused(config_of(*words, *TAUGHT)),
            refused(config_of(*words, *features, "--search.epochs", "1", "--search.distill.alpha", "0.5")),
        ):
            assert "learn from its features" in said


def test_a_saved_folder_teaches_with_its_rows_in_the_order_of_the_data(tmp_path: Path):
    config = config_of(*TAUGHT)
    data = data_for(config)
    names = list(data.class_names or [])
    plain = folder_of(tmp_path, labels=names)
    turned = folder_of(tmp_path, labels=names[::-1], qk_norm=False)
    images = torch.stack([data.val[i][0] for i in range(4)])
    answers = []
    for folder in (plain, turned):
        named = config.changed(**{"teacher": {"checkpoint": str(folder)}})
        notes = check_teachers(named, check_model(named), data)
        answers.append(teacher_model(named, "retrain", nn.Identity(), data)(images))
        assert bool(notes) == (folder == turned)
    assert torch.allclose(answers[0], answers[1].flip(1))
    assert not torch.allclose(answers[0], answers[1])


def test_a_name_with_a_file_of_weights_teaches_as_the_folder_they_are_of(tmp_path: Path):
    folder = folder_of(tmp_path)
    kwargs = json.dumps({"img_size": 16, "in_chans": 1, **SIZES})
    file = str(folder / "model.safetensors")
    config = config_of(
        "--teacher.name", "vit_tiny_patch16_224", "--teacher.kwargs", kwargs, "--teacher.checkpoint", file, *TAUGHT
    )
    check(config)
    data = data_for(config)
    images = torch.stack([data.val[i][0] for i in range(4)])
    of_folder = config.changed(**{"teacher": {"checkpoint": str(folder)}})
    answers = [teacher_model(one, "retrain", nn.Identity(), data).eval()(images) for one in (config, of_folder)]
    assert torch.allclose(*answers, atol=1e-6)


def test_a_cut_model_s_folder_teaches(tmp_path: Path):
    model = small_vit(img_size=16, in_chans=1)
    save(slim(add_gates(model), solve(add_gates(model), 0.5)), tmp_path / "cut", preprocessing={"mean": [0.3], "std": [0.2]})
    config = config_of("--teacher.checkpoint", str(tmp_path / "cut"), *TAUGHT)
    check(config)
    data = data_for(config)
    images = torch.stack([data.val[i][0] for i in range(4)])
    assert teacher_model(config, "retrain", nn.Identity(), data)(images).shape == (4, 10)


def test_a_teacher_is_told_by_file_environment_and_command_line_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    file = tmp_path / "sweep.yaml"
    file.write_text("extends: digits\nteacher: {name: vit_tiny_patch16_224, checkpoint: x}\nretrain: {distill: {alpha: 0.5}}\n")
    monkeypatch.setenv("SLIMSWEEP_TEACHER__CHECKPOINT", "/weights/y.safetensors")
    config, _ = load_config(["--config", str(file), "--teacher.kwargs.depth", "3", "--teacher.kwargs.qk_norm", "true"])
    assert config.teachers[0].model_dump() == {
        "name": "vit_tiny_patch16_224",
        "pretrained": False,
        "checkpoint": "/weights/y.safetensors",
        "kwargs": {"depth": 3, "qk_norm": True},
        "weight": 1.0,
    }
    (tmp_path / "again.yaml").write_text(config.to_yaml())
    assert load_config(["--config", str(tmp_path / "again.yaml")])[0].teacher == config.teacher


# Names and costs.


def test_a_teacher_counts_by_its_content_in_the_stages_that_learn_from_it(tmp_path: Path):
    folder = folder_of(tmp_path)
    plain = config_of(*TAUGHT)
    taught = plain.changed(**{"teacher": {"checkpoint": str(folder)}})
    for stage in ("dense", "search"):
        assert taught.fingerprint(stage) == plain.fingerprint(stage)
    assert taught.fingerprint("retrain") != plain.fingerprint("retrain")
    searching = [config.changed(**{"search.distill.alpha": 0.5}) for config in (plain, taught)]
    assert len({config.fingerprint("search") for config in searching}) == 2

    moved = folder.rename(tmp_path / "moved")
    elsewhere = plain.changed(**{"teacher": [{"checkpoint": str(moved), "weight": 2}]})
    token = checkpoint_token(moved)
    assert taught.fingerprint("retrain", None, {str(folder): token}) == elsewhere.fingerprint(
        "retrain", None, {str(moved): token}
    )
    two = plain.changed(**{"teacher": [{"checkpoint": str(moved)}, {"checkpoint": "x"}]})
    assert two.identity("retrain", None, {str(moved): token})["teacher"] == [{"checkpoint": token}, {"checkpoint": "x"}]


def test_a_third_of_a_teacher_s_macs_counts_as_compute_of_search_and_of_retraining(tmp_path: Path):
    config = config_of(
        *("--budgets", "0.5", "--search.epochs", "90", "--search.paces", "[{}]", "--search.distill.alpha", "0.5", *TAUGHT),
        *("--baselines", "taylor", "--baseline_terms", "compute"),
    )
    model = check_model(config)
    gated = add_gates(model)
    path = RemovalPath(gated.shape, equal_gates(gated.shape), config.search.floors.model_dump(), config.search.round_to)
    dense = macs(model)
    assert search_macs(config, path) == 90 * dense  # as earlier versions counted
    folder = folder_of(tmp_path, img_size=64)
    taught = config.changed(**{"teacher": {"checkpoint": str(folder)}})
    teaching = macs(timm.create_model(f"local-dir:{folder}"))
    assert search_macs(taught, path) == pytest.approx(90 * (dense + teaching / 3))
    hard = config.changed(**{"search.distill.answers": "hard"})
    assert search_macs(hard, path) == pytest.approx(90 * (dense + dense / 3))

    pace = config.search.paces[0].model_dump()
    points = expected_points(taught, gated.shape, equal_gates(gated.shape), pace)
    longer = next(point for point in points if point.terms == "compute")
    cost = path.solve(0.5).macs() + teaching / 3
    assert longer.epochs == config.retrain.epochs + round(90 * (dense + teaching / 3) / cost)


def test_the_plan_counts_the_teacher_s_time_and_memory_and_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("slimsweep.tools.plan.import_seconds", lambda: 0.0)  # takes long, and is the same for both
    images = Images(train=1000, val=100, test=100)
    folder = folder_of(tmp_path, img_size=64)
    config = config_of("--budgets", "0.5", "--search.paces", "[{}]", *TAUGHT)
    taught = config.changed(**{"teacher": {"checkpoint": str(folder)}})
    alone = config.changed(**{"retrain.distill.alpha": 0.0})
    found = {name: plan(one, images=images, tflops=1.0) for name, one in (("alone", alone), ("taught", taught))}
    model = timm.create_model(f"local-dir:{folder}")
    for before, after in zip(found["alone"].trainings, found["taught"].trainings, strict=True):
        learns = after.name not in ("dense", "search")
        more = config.data.batch_size * 2 * macs(model) / 1e12 if learns else 0.0
        assert after.step_seconds - before.step_seconds == pytest.approx(more, abs=1e-12)
        size = 4 * sum(p.numel() for p in model.parameters()) if learns else 0
        assert after.worker_bytes - before.worker_bytes == size
    note = next(note for note in found["taught"].notes if "teacher" in note)
    assert f"{macs(model) / 1e6:,.1f} MMACs" in note


def test_who_taught_stands_in_words():
    config = config_of(*TAUGHT)
    assert config.teacher_in_words("retrain") == "dense, soft, alpha 0.5"
    assert config.teacher_in_words("search") == ""
    several = config.changed(
        **{
            "teacher": [{"name": "a.b", "pretrained": True, "weight": 2}, {"checkpoint": "/runs/x/models/y"}],
            "retrain.distill.temperature": 2,
        }
    )
    assert several.teacher_in_words("retrain") == "2 x a.b + 1 x x/models/y, soft, alpha 0.5, temperature 2"


def begin(folder: Path, config: Config) -> Run:
    run = Run(folder, config)
    start_or_continue(run)
    return run


def test_a_run_goes_on_with_a_moved_teacher_and_not_with_a_changed_one(tmp_path: Path):
    folder = folder_of(tmp_path)
    config = config_of("--teacher.checkpoint", str(folder), "--search.distill.alpha", "0.5")
    run = begin(tmp_path / "run", config)
    row: Any = {"stage": "search", "point": "", "epoch": 1, "loss": 1.0, "val_top1": 1.0, "seconds": 1.0, "learning_rate": 1.0}
    RunRecorder(run, "search").epoch({**row, "gates_kept": None, "gates": None})
    name = run.fingerprint("search")
    assert Run(tmp_path / "run", config).fingerprint("search") == name  # as a worker finds it

    moved = folder.rename(tmp_path / "moved")
    run = begin(tmp_path / "run", config.changed(**{"teacher.checkpoint": str(moved)}))
    assert run.fingerprint("search") == name
    save(differing(1)[0], moved)
    with pytest.raises(ConfigError, match=r"teacher\.checkpoint changed since .* was begun"):
        begin(tmp_path / "run", config.changed(**{"teacher.checkpoint": str(moved)}))


def test_a_worker_learns_from_no_other_weights_than_those_that_the_run_was_begun_with(tmp_path: Path):
    folder = folder_of(tmp_path)
    config = config_of("--teacher.checkpoint", str(folder), *TAUGHT)
    begin(tmp_path / "run", config)
    run = Run(tmp_path / "run", config)  # as a worker finds it
    data = data_for(config)
    assert teacher_of(run, "retrain", nn.Identity(), data) is not None
    state = load_file(folder / "model.safetensors")
    save_file({name: tensor * 2 for name, tensor in state.items()}, folder / "model.safetensors")
    with pytest.raises(ConfigError, match=r"teacher\.checkpoint is .*, whose weights were changed after .* was begun"):
        teacher_of(run, "retrain", nn.Identity(), data)
    assert teacher_of(run, "search", nn.Identity(), data) is None  # which learns from nobody


@pytest.mark.slow
def test_a_run_learns_from_a_folder_and_its_rows_and_page_say_so(ray_cluster: None, tmp_path: Path):
    folder = folder_of(tmp_path, labels=[str(digit) for digit in range(10)])
    arguments = [
        *("--output", str(tmp_path), "--name", "taught", "--budgets", "0.5", *QUICK, "--search.epochs", "2"),
        *("--retrain.epochs", "1", "--retrain.warmup_epochs", "0", "--teacher.checkpoint", str(folder)),
        *("--search.distill.alpha", "0.5", *TAUGHT, "--retrain.distill.answers", "hard"),
    ]
    assert main(arguments) == 0
    rows = Run(tmp_path / "taught").rows
    assert len(rows) == 2
    label = "/".join(folder.parts[-2:])
    assert set(rows.teacher) == {f"{label}, hard, alpha 0.5"}
    assert set(page_data([read_run(Run(tmp_path / "taught"))])["points"]["teacher"]) == set(rows.teacher)
    assert main(arguments) == 0
    assert list(Run(tmp_path / "taught").rows.created_at) == list(rows.created_at)
