"""A path means the same to the driver, its workers and a later start; no result is written where Ray deletes it."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from PIL import Image

from slimsweep.cli import main as command
from slimsweep.cluster.worker import data_for, job_arguments, run_of
from slimsweep.config import Config, ConfigError, check_places, load_config, load_configs
from slimsweep.earlier_start import start_or_continue
from slimsweep.ledger.run import Run
from slimsweep.run import main

DATA = Path(__file__).parent / "data"
STORE = "s3://bucket/sweeps?scheme=http"


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with images, a checkpoint and a saved model in it."""
    place = tmp_path / "here"
    for split in ("train", "validation"):
        for shade, name in ((0, "dark"), (255, "light")):
            (place / "images" / split / name).mkdir(parents=True)
            for i in range(4):
                Image.new("L", (8, 8), shade).save(place / "images" / split / name / f"{i}.png")
    shutil.copy(DATA / "start.safetensors", place / "start.safetensors")
    (place / "model").mkdir()
    monkeypatch.chdir(place)
    return place


def config_of(*words: str) -> Config:
    return load_config(words)[0]


def test_relative_paths_are_absolute_once_they_are_read(here, monkeypatch):
    (here / "sweep.yaml").write_text(
        "output: results\ndata: {name: folder, root: images}\nmodel: {checkpoint: start.safetensors}\n"
    )
    monkeypatch.setenv("SLIMSWEEP_DATA__TRAIN_SPLIT", "train")
    config = config_of("--config", "sweep.yaml")
    assert config.output == str(here / "results")
    assert config.data.root == str(here / "images")
    assert config.model.checkpoint == str(here / "start.safetensors")
    stored = yaml.safe_load(config.to_yaml())
    assert (stored["output"], stored["data"]["root"]) == (config.output, config.data.root)
    monkeypatch.setenv("SLIMSWEEP_DATA__ROOT", "../here/images")
    assert config_of("--config", "sweep.yaml").data.root == str(here / "images")
    assert config_of("--data.root", "./images/").data.root == str(here / "images")
    assert config_of("--model.name", "local-dir:model").model.name == f"local-dir:{here / 'model'}"
    assert config_of("--data.name", "hfds/images").data.name == f"hfds/{here / 'images'}"
    assert config_of("--data.name", "hfids/./images").data.name == f"hfids/{here / 'images'}"
    assert {c.output for c in load_configs(["--model", '[{"name": "a"}, {"name": "b"}]'])[0]} == {str(here / "runs" / "digits")}
    assert config_of().output == str(here / "runs")


def test_the_home_folder_is_that_of_the_driver(here, monkeypatch):
    monkeypatch.setenv("HOME", str(here))
    config = config_of("--data.root", "~/images", "--model.checkpoint", "~/start.safetensors", "--output", "~/out")
    assert (config.data.root, config.model.checkpoint) == (str(here / "images"), str(here / "start.safetensors"))
    assert config.output == str(here / "out")


@pytest.mark.parametrize("text", ["https://host/shards", STORE, "gs://b/x", "pipe:cat shards", "/there/x", "hf://datasets/a/b"])
def test_urls_and_absolute_paths_stay_as_they_are(here, text):
    assert config_of("--data.name", "wds/x", "--data.root", text).data.root == text
    if text != "pipe:cat shards":
        assert config_of("--output", text).output == text


def test_patterns_and_names_that_are_no_paths_stay_as_they_are(here):
    config = config_of(
        "--data.name", "wds/images", "--data.root", "shards", "--data.train_split", "train-{0000..0099}.tar|1000"
    )
    assert config.data.train_split == "train-{0000..0099}.tar|1000"
    assert (config.data.name, config.data.root) == ("wds/images", str(here / "shards"))
    assert config_of("--data.root", "shards-{a,b}").data.root == str(here / "shards-{a,b}")
    assert config_of("--data.name", "hfds/timm/oxford-iiit-pet").data.name == "hfds/timm/oxford-iiit-pet"
    assert config_of("--model.name", "hf-hub:timm/model").model.name == "hf-hub:timm/model"
    assert config_of("--data.root", "null").data.root is None


def test_two_points_behind_a_link_are_those_of_the_file_system(here, tmp_path):
    (tmp_path / "far" / "away").mkdir(parents=True)
    (tmp_path / "far" / "images").mkdir()
    (here / "link").symlink_to(tmp_path / "far" / "away")
    root = config_of("--data.root", "link/../images").data.root
    assert root is not None
    assert os.path.samefile(root, tmp_path / "far" / "images")


def test_both_spellings_of_a_path_are_one_run(here):
    def run_with(*words: str) -> Run:
        return Run(here / "runs" / "x", config_of("--name", "x", *words))

    relative = run_with("--model.checkpoint", "start.safetensors", "--data.root", "images")
    absolute = run_with("--model.checkpoint", str(here / "start.safetensors"), "--data.root", str(here / "images"))
    start_or_continue(relative)
    start_or_continue(absolute)
    for stage in ("dense", "search", "retrain"):
        assert relative.fingerprint(stage) == absolute.fingerprint(stage)
    for one, other in (("local-dir:model", f"local-dir:{here}/model"), ("local-dir:./model/", "local-dir:model")):
        assert config_of("--model.name", one).fingerprint("dense") == config_of("--model.name", other).fingerprint("dense")


@pytest.mark.parametrize("known", [True, False], ids=["by content", "by path"])
def test_an_earlier_run_of_relative_paths_keeps_the_names_of_its_points(here, known):
    """It was written by a version that left paths as they were: by the same words as now."""
    folder = here / "runs" / "finished"
    shutil.copytree(DATA / "finished-run", folder)
    stored = yaml.safe_load((folder / "config.yaml").read_text())
    stored["output"], stored["data"]["root"], stored["model"]["checkpoint"] = "runs", "images", "start.safetensors"
    (folder / "config.yaml").write_text(yaml.safe_dump(stored))
    if known:
        (folder / "identity.json").write_text(json.dumps({"token": "start.safetensors", "content": _token(here)}))
    before = Run(folder)
    names = {stage: before.fingerprint(stage) for stage in ("dense", "search", "retrain")}
    now = Run(folder, config_of("--config", str(folder / "config.yaml"), "--name", "finished"))
    assert now.config.model.checkpoint == str(here / "start.safetensors")
    start_or_continue(now)  # refuses nothing
    assert {stage: now.fingerprint(stage) for stage in names} == names
    again = Run(folder, config_of("--config", str(folder / "config.yaml")))  # now written absolute
    start_or_continue(again)
    assert {stage: again.fingerprint(stage) for stage in names} == names


def _token(here: Path) -> str:
    from slimsweep.config import checkpoint_token

    return checkpoint_token(here / "start.safetensors")


OWN = """
from PIL import Image
from pathlib import Path
import labels_beside

class Images:
    classes = ["dark", "light"]
    def __init__(self, split):
        self.files = sorted(Path("images", split).rglob("*.png"))  # relative
    def __len__(self):
        return len(self.files)
    def __getitem__(self, index):
        return Image.open(self.files[index]), labels_beside.label(self.files[index])

def splits(config):
    return Images("train"), Images("validation"), Images("validation")
"""


def own_data(here: Path) -> Config:
    (here / "relative_images.py").write_text(OWN)
    (here / "labels_beside.py").write_text("def label(path):\n    return int(path.parent.name == 'light')\n")
    return config_of("--data.name", "relative_images:splits", "--data.batch_size", "2")


def test_a_worker_works_in_the_drivers_folder(here, tmp_path, monkeypatch):
    run = Run(here / "runs" / "x", own_data(here))
    arguments = job_arguments(run)
    (tmp_path / "of-ray").mkdir()
    monkeypatch.chdir(tmp_path / "of-ray")
    found = run_of(arguments)
    assert Path.cwd() == here
    assert len(data_for(found.config).train) == 8
    gone = {**arguments, "folder": str(tmp_path / "on-another-machine")}
    monkeypatch.chdir(tmp_path / "of-ray")
    run_of(gone)
    assert Path.cwd() == tmp_path / "of-ray"


@pytest.mark.slow
def test_workers_of_ray_find_what_the_driver_finds(here, ray_cluster):
    import ray

    def look(several: list[dict[str, Any]]) -> list[int]:
        found = []
        for arguments in several:
            os.chdir("/")  # as Ray does in the workers of trials and of training
            found.append(len(data_for(run_of(arguments).config).test))
        return found

    common = ("--data.batch_size", "2", "--data.augment.affine", "null")
    configs = [config_of("--data.name", "folder", "--data.root", "images", *common), own_data(here)]
    arguments = [job_arguments(Run(here / "runs" / "x", config)) for config in configs]
    assert ray.get(ray.remote(num_cpus=0)(look).remote(arguments)) == [8, 8]


# Ray's copies of a job's working directory.


@pytest.fixture
def job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder of a submitted job."""
    folder = tmp_path / "session_2026-01-01" / "runtime_resources" / "working_dir_files" / "_ray_pkg_0123456789abcdef"
    folder.mkdir(parents=True)
    monkeypatch.chdir(folder)
    return folder


@pytest.mark.parametrize("words", [[], ["--output", "results"], ["--output", "../results"], ["--output", "link"]])
def test_a_job_does_not_write_its_results_into_rays_copy(job, tmp_path, words, capsys):
    (tmp_path / "link").mkdir()
    (job / "link").symlink_to(job)
    assert main(words) == 2
    said = " ".join(capsys.readouterr().out.split())
    assert said.startswith(f"slimsweep: output is {job.parent}")
    assert "--output s3://bucket/sweeps" in said
    assert not (job / "runs").exists()


def test_a_url_of_a_local_folder_is_one_too(job, tmp_path):
    with pytest.raises(ConfigError, match="Ray's own copy of the working directory"):
        check_places(config_of("--output", f"file://{job}/results"))
    check_places(config_of("--output", f"file://{tmp_path}/shared"))


def test_a_job_may_write_to_what_lasts(job, tmp_path):
    for output in (str(tmp_path / "shared"), STORE, "../../../../shared"):
        check_places(config_of("--output", output))


def test_files_that_did_not_come_along_with_a_job_are_refused_and_others_not(job, tmp_path):
    (job / "small").mkdir()
    output = ["--output", str(tmp_path / "shared")]
    check_places(config_of(*output, "--data.root", "small"))
    check_places(config_of(*output, "--data.root", str(tmp_path / "not-there")))  # of which others say it
    for field in ("data.root", "model.checkpoint"):
        with pytest.raises(ConfigError, match=rf"{field} is {job}/large, which did not come along .* absolute path"):
            check_places(config_of(*output, f"--{field}", "large", "--dense.warmup_epochs", "0"))


def test_no_tool_writes_into_rays_copy_either(job, capsys):
    for words in (
        ["report", "s3://bucket/a", "s3://bucket/b"],
        ["report", "/a", "--output", "page.html"],
        ["export", "s3://bucket/model", "--format", "onnx"],
        ["export", "/model", "--format", "onnx", "--output", "model.onnx"],
    ):
        assert command(words) == 2
        assert "--output /shared/" in " ".join(capsys.readouterr().out.split())
