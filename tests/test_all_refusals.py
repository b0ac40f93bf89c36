"""All that is wrong with a configuration is said at once, so that one more try is enough."""

from pathlib import Path

import pytest

from slimsweep.checks import check
from slimsweep.cluster.cluster import Cluster
from slimsweep.config import Config, ConfigError, load_config
from slimsweep.run import main


def refusal(*words: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load_config(list(words))
    return str(caught.value).splitlines()


def test_every_wrong_value_and_unknown_field_is_named_with_its_source() -> None:
    said = refusal("--search.epochs", "-1", "--dense.lr", "fast", "--data.split", "0.5,0.5", "--retrain.lr", "-1")
    assert said[0] == "4 settings cannot work:"
    assert [line.partition(" is ")[0] for line in said[1:]] == [
        "1. data.split",
        "2. dense.lr",
        "3. search.epochs",
        "4. retrain.lr",
    ]
    assert all("from the command line" in line for line in said[1:])


def test_settings_that_do_not_go_together_are_said_together() -> None:
    said = refusal("--search.ema_decay", "0.9", "--dense.warmup_epochs", "99", "--retrain.min_lr", "1", "--search.min_lr", "1")
    assert said[0] == "4 settings cannot work:"
    for line, field in zip(
        said[1:], ("search.ema_decay", "dense.warmup_epochs", "search.min_lr", "retrain.min_lr"), strict=True
    ):
        assert field in line


def test_a_batch_that_several_stages_cannot_divide_is_said_once() -> None:
    (said,) = refusal("--data.batch_size", "64", "--resources.search_workers", "3", "--retrain.workers_per_trial", "5")
    assert said.startswith("data.batch_size is 64, which does not divide by")


def test_one_wrong_value_stays_one_sentence_also_where_a_field_takes_several_kinds() -> None:
    (said,) = refusal("--teacher", '{"name": "vit_tiny_patch16_224", "weight": 0}')
    assert "teacher.weight" in said
    (said,) = refusal("--budgets", "1.0")
    assert "1.0 is the whole dense model" in said


def test_what_is_wrong_with_the_images_and_with_the_budgets_is_said_together() -> None:
    config = load_config(["--data.batch_size", "4096", "--budgets", "900G"])[0]
    assert isinstance(config, Config)
    with pytest.raises(ConfigError) as caught:
        check(config)
    first, *said = str(caught.value).splitlines()
    assert first == "2 settings cannot work:"
    assert "data.batch_size is 4096" in said[0]
    assert "900G" in said[1]


def refused(*words: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        check(load_config(list(words))[0])
    return str(caught.value).splitlines()


def test_a_teacher_a_folder_and_a_method_that_cannot_work_are_all_named_in_one_try() -> None:
    teacher = ["--teacher.name", "vit_tinny_patch16_224", "--teacher.pretrained", "--search.distill.alpha", "0.5"]
    data = ["--data.name", "folder", "--data.root", "/not/there"]
    first, *said = refused(*teacher, *data, "--baselines", "torch-pruning", "--search.families", "token", "--budgets", "0.9")
    assert first == "3 settings cannot work:"
    assert "data.root is '/not/there'" in said[0]
    assert "torch-pruning" in said[1]
    assert "teacher.name is 'vit_tinny_patch16_224'" in said[2]


def test_each_budget_each_teacher_and_the_workers_are_named_in_one_try(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr("slimsweep.checks.local_cluster", lambda: Cluster([{"CPU": 2.0}]))
    teachers = '[{"checkpoint": "/no/first"}, {"checkpoint": "/no/second"}]'
    words = ["--budgets", "0.5,900G,0.0001", "--teacher", teachers, "--retrain.distill.alpha", "0.5"]
    first, *said = refused(*words, "--resources.search_workers", "4", "--data.num_classes", "7")
    assert first == "6 settings cannot work:"
    named = ("resources.search_workers is 4", "data.num_classes is 7", "900G", "0.0001", "/no/first", "/no/second")
    assert all(name in line for name, line in zip(named, said, strict=True))


def test_a_model_that_does_not_exist_hides_neither_the_folder_nor_the_teacher() -> None:
    words = ["--model.name", "vit_tinny_patch16_224", "--data.name", "folder", "--data.root", "/not/there"]
    first, *said = refused(*words, "--teacher.checkpoint", "/no/teacher", "--search.distill.alpha", "0.5")
    assert first == "3 settings cannot work:"
    named = ("model.name is 'vit_tinny_patch16_224'", "data.root is '/not/there'", "teacher.checkpoint is '/no/teacher'")
    assert all(name in line for name, line in zip(named, said, strict=True))


def test_files_that_did_not_come_along_with_a_job_are_named_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    job = tmp_path / "runtime_resources" / "working_dir_files" / "_ray_pkg_1"
    job.mkdir(parents=True)
    monkeypatch.chdir(job)
    first, *said = refused("--output", "results", "--data.name", "folder", "--data.root", "images", "--budgets", "900G")
    assert first == "3 settings cannot work:"
    assert "output is" in said[0]
    assert "data.root is" in said[1]
    assert "900G" in said[2]


def test_models_of_one_sweep_are_all_looked_at(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    models = '[{"name": "vit_tinny_patch16_224"}, {"name": "deit_smal_patch16_224"}]'
    assert main(["--model", models, "--output", str(tmp_path)]) == 2
    out = capsys.readouterr().out
    assert "vit_tinny_patch16_224" in out
    assert "deit_smal_patch16_224" in out
    assert not list(tmp_path.iterdir())


def test_an_output_that_cannot_be_written_is_named_with_the_rest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "notes").write_text("no folder")
    first, *said = refused("--output", str(tmp_path / "notes" / "runs"), "--budgets", "900G")
    assert first == "2 settings cannot work:"
    assert f"{tmp_path / 'notes'} is a file" in said[0]
    assert "900G" in said[1]
    monkeypatch.setattr("os.access", lambda path, mode: str(path) != str(tmp_path))  # root may write everywhere
    (only,) = refused("--output", str(tmp_path / "runs"))
    assert f"{tmp_path} may not be written" in only
