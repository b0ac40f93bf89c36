"""What a run that was begun otherwise goes on with: --quick, a teacher's files, axes and repair that are off."""

import shutil
from pathlib import Path

import pytest
from conftest import changed

from slimsweep.cli import main as command
from slimsweep.config import Config, ConfigError, load_config
from slimsweep.earlier_start import go_on_from, refuse_incomparable, start_or_continue, take_what_fits
from slimsweep.errors import DamagedFile
from slimsweep.ledger.planning import recipe_fingerprints
from slimsweep.ledger.run import Run
from slimsweep.tools.estimate import Images
from slimsweep.tools.plan import plan

DATA = Path(__file__).parent / "data"
TAUGHT = {"teacher": {"checkpoint": "/weights/large"}, "retrain.distill.alpha": 0.5}


@pytest.fixture
def earlier(tmp_path: Path) -> Path:
    """A run of an earlier version, beside the checkpoint that it started from."""
    shutil.copytree(DATA / "finished-run", tmp_path / "finished")
    shutil.copy(DATA / "start.safetensors", tmp_path / "start.safetensors")
    return tmp_path / "finished"


@pytest.fixture
def finished(earlier: Path) -> Run:
    """The same run, with the points that need no fresh weights."""
    return changed(Run(earlier), baselines=["uniform"])


# A teacher and points that are not trained.


def test_untrained_points_depend_on_no_teacher_of_the_retraining(finished: Run) -> None:
    untrained = {"retrain.epochs": 0}
    known = recipe_fingerprints(changed(finished, **untrained))
    assert recipe_fingerprints(changed(finished, **untrained, **TAUGHT)) == known
    assert recipe_fingerprints(changed(finished, **TAUGHT)) != recipe_fingerprints(finished)


def test_untrained_points_know_the_teacher_of_the_search_by_its_content(finished: Run) -> None:
    def known(path: str, content: str) -> dict[float, str]:
        run = changed(finished, **{"teacher": {"checkpoint": path}, "search.distill.alpha": 0.5, "retrain.epochs": 0})
        run.known_teachers = {path: content}
        return recipe_fingerprints(run)

    assert known("/weights/large", "sha256:01") == known("/moved/large", "sha256:01")
    assert known("/weights/large", "sha256:01") != known("/weights/large", "sha256:02")


def test_plan_counts_a_teacher_only_where_something_learns_from_it() -> None:
    small = {"img_size": 8, "patch_size": 2, "in_chans": 1, "embed_dim": 16, "depth": 2, "num_heads": 2}
    config = Config(
        model={"name": "vit_tiny_patch16_224", "kwargs": small},
        data={"name": "digits", "batch_size": 8, "num_classes": 10},
        retrain={"distill": {"alpha": 0.5}},
        teacher={"name": "vit_tiny_patch16_224", "pretrained": True},
    )
    images = Images(train=80, val=8, test=8)
    assert "teacher" in " ".join(plan(config.changed(budgets=[0.5]), images=images, tflops=1.0).notes)
    found = plan(config.quick().changed(budgets=[0.5]), images=images, tflops=1.0)
    assert "teacher" not in " ".join(found.notes)
    untrained = [training for training in found.trainings if training.name != "dense"]
    assert {training.epochs for training in untrained} == {0}
    # A cut takes what axes and repair take, and the search, which has no epochs, its axes.
    assert all(training.seconds > 0 for training in untrained)


# --quick.


def test_quick_leaves_a_ranking_that_needs_a_search_and_takes_up_that_of_the_run(finished: Run) -> None:
    quick, _ = load_config(["--quick", "--search.rank", "gates"])
    assert quick.search.rank is None
    assert load_config(["--quick", "--search.rank", "taylor"])[0].search.rank == "taylor"
    ranked = finished.config.changed(**{"search.rank": "gates"})
    run = Run(finished.folder, ranked.quick())
    go_on_from(run, ranked, quick=True)
    assert (run.config.search.rank, run.config.search.epochs) == ("gates", ranked.search.epochs)
    refuse_incomparable(ranked, run)


# Runs without axes and repair.


def words(run: Path, *more: str) -> list[str]:
    checkpoint = str(run.parent / "start.safetensors")
    return ["--config", str(run / "config.yaml"), "--output", str(run.parent), "--model.checkpoint", checkpoint, *more]


def test_a_repaired_baseline_without_axes_and_repair_is_refused_by_its_name(earlier: Path) -> None:
    off = {"search.axes": False, "retrain.repair": False}
    with pytest.raises(ConfigError, match=r"baselines names taylor-repaired.*the same as taylor: take taylor"):
        Config().changed(**off, baselines=["taylor-repaired"])
    assert Config().changed(**{"search.axes": False}, baselines=["taylor-repaired"]).baselines == ["taylor-repaired"]
    assert Config().changed(**off, baselines=["taylor"]).baselines == ["taylor"]
    config, _ = load_config(words(earlier, "--baselines", "uniform,scratch,taylor-repaired"))
    with pytest.raises(ConfigError, match="earlier version"):
        start_or_continue(Run(earlier, config))
    lost = Run(earlier, config)  # as if its config.yaml were damaged
    lost.known_checkpoint = Run(earlier).known_checkpoint
    with pytest.raises(DamagedFile, match=r"config\.yaml is damaged"):
        take_what_fits(lost)


def test_plan_goes_on_from_an_earlier_run_as_its_next_start_would(earlier: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config, _ = load_config(words(earlier))
    run = Run(earlier, config)
    assert run.pace_choice() is None  # that of other cuts: with axes and repair
    go_on_from(run, Run(earlier).config)
    assert run.pace_choice() == Run(earlier).pace_choice() is not None

    images = ["--images", "1280,100,100", "--tflops", "1", "--nodes", "1", "--node-cpus", "2"]
    for more in ([], ["--quick"]):  # which keeps the search that is there
        assert command(["plan", *images, "--run", str(earlier), *words(earlier, *more)]) == 0
        said = capsys.readouterr().out
        (searching,) = (line.split() for line in said.splitlines() if line.startswith("search "))
        assert searching[4] == str(config.search.epochs) == "2"
        assert "principal axes" not in said
