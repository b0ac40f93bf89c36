"""`slimsweep plan`: what a configuration will cost, without a cluster."""

import re
from pathlib import Path

import pytest
import torch
from rich.console import Console

from slimsweep.cli import main
from slimsweep.cluster.cluster import Cluster, check_placement
from slimsweep.config import Config, ConfigError, load_config
from slimsweep.data import load_data
from slimsweep.ledger.run import Run
from slimsweep.slimming.structure import image_size
from slimsweep.tools.estimate import Images, show
from slimsweep.tools.plan import OTHER_SECONDS, makespan, plan, starting_seconds, time_training
from slimsweep.training.dense_model import build_dense
from slimsweep.training.loop import train
from slimsweep.training.recorder import MemoryRecorder

IMAGENET = Images(train=1_281_167, val=10_000, test=50_000)
# A step is made to count its bytes; in bf16 it takes ten times as long on a CPU that does not know it.
FLOAT = ("--search.amp", "off", "--retrain.amp", "off")


@pytest.fixture
def digits() -> Config:
    config, _ = load_config(["--config", "digits"])
    return config


@pytest.fixture
def in_short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fewer steps are timed, where a test looks at no time."""
    monkeypatch.setattr("slimsweep.tools.plan.TIMED_SECONDS", 0.05)


def test_it_refuses_what_a_run_would(digits: Config) -> None:
    for changes, images, wanted in (
        ({"budgets": ["9G"]}, None, "budget '9G' is not below the dense model's 3.50 MMACs"),
        ({"data.batch_size": 1024}, Images(train=100, val=10, test=10), "data.batch_size is 1024"),
        (
            {"resources.gpus_per_worker": 1.0},
            None,
            "0 workers of 1 CPUs and 1 GPUs each: lower resources.gpus_per_worker",
        ),
    ):
        with pytest.raises(ConfigError) as caught:
            plan(digits.changed(**changes), images=images, cluster=Cluster([{"CPU": 8.0}]))
        assert wanted in str(caught.value)


@pytest.mark.parametrize("nodes", [[{"CPU": 2.0}], [{"CPU": 4.0, "GPU": 1.0}], [{"CPU": 2.0}, {"CPU": 6.0, "GPU": 2.0}]])
def test_a_preset_for_many_gpus_is_refused_with_options_that_fit_here(nodes: list[dict[str, float]]) -> None:
    """All of them at once, so that the command with them is not refused for the next field."""
    for preset in ("dinov2-small", "deit-small-imagenet-best"):
        config, cluster = load_config(["--config", preset])[0], Cluster(nodes)
        with pytest.raises(ConfigError) as caught:
            check_placement(config, cluster)
        options = str(caught.value).split(", such as ")[1].split(";")[0].split()
        fits, _ = load_config(["--config", preset, *options])
        check_placement(fits, cluster)
        assert fits.resources.search_workers == cluster.workers(fits) > 0
        assert bool(fits.resources.gpus_per_worker) == any("GPU" in node for node in nodes)


@pytest.mark.usefixtures("in_short")
def test_it_tells_every_training_of_the_default_job(digits: Config) -> None:
    found = plan(digits)
    assert [t.name for t in found.trainings[:4]] == ["dense", "search", "paces", "dense 1.0000"]
    assert [t.name for t in found.trainings[4:]] == [f"searched {b:.4f}" for b in (0.7, 0.5, 0.35, 0.25, 0.15)]
    for training, budget in zip(found.trainings[4:], digits.sorted_budgets, strict=True):
        assert 0.9 * float(budget) < training.macs / found.trainings[0].macs <= float(budget)
    assert found.sweep_seconds + found.start_seconds < found.wall_seconds
    console = Console(record=True, width=120)
    show(found, console, price=3.0)
    text = console.export_text()
    assert "searched 0.1500" in text
    assert "Price" in text
    assert "paces: short trials" in text


@pytest.mark.parametrize(
    ("own", "cpus", "workers", "imports"),
    [
        (True, 2, 1, 1),  # the search loads beside the driver, points load while it trains
        (True, 1, 1, 1),  # and points run in its process
        (True, 2, 2, 3),  # two workers are processes of Ray Train, and leave no CPU free for what loads
        (False, 2, 1, 3),  # on other people's cluster no process stays
    ],
)
def test_imports_that_nothing_waits_for_are_not_counted(
    monkeypatch: pytest.MonkeyPatch, digits: Config, own: bool, cpus: int, workers: int, imports: int
) -> None:
    monkeypatch.setattr("slimsweep.tools.plan.import_seconds", lambda: 100.0)
    config = digits.changed(**{"resources.search_workers": workers})
    cluster = Cluster([{"CPU": float(cpus)}], is_own=own, processes_stay=own)
    assert starting_seconds(config, cluster, at_once=cpus) == OTHER_SECONDS + 100 * imports


def test_its_steps_take_as_long_as_those_of_a_real_training(digits: Config) -> None:
    torch.set_num_threads(1)
    config = digits.changed(**{"dense.epochs": 2, "dense.warmup_epochs": 0})
    model = build_dense(config, 10)
    data = load_data(config, image_size(model))
    recorder = MemoryRecorder("dense")
    train(model, data, config.dense, recorder, device=torch.device("cpu"))
    real = min(row["seconds"] for row in recorder.curve if row["epoch"])
    steps = len(data.train) // config.data.batch_size
    cost = time_training(model, config, config.dense, config.data.batch_size, torch.device("cpu"))
    assert not cost.scaled
    assert 0.4 < steps * config.data.batch_size * cost.train_seconds / real < 2.0


def test_a_small_step_stands_for_one_that_takes_too_long(digits: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("slimsweep.tools.plan.LONGEST_STEP", 0.0)
    cost = time_training(build_dense(digits, 10), digits, digits.dense, 64, torch.device("cpu"))
    assert cost.scaled
    assert cost.batch == 8


@pytest.mark.slow
def test_the_papers_search_takes_its_43_gpu_hours_on_gpus_of_its_speed() -> None:
    """What 50 epochs of the gated DeiT-S are in operations: 43 hours of a GPU that sustains 11.4 TFLOP/s in training."""
    config, _ = load_config(["--config", "deit-small-imagenet", "--shares", '[{"attention": 0.5, "mlp": 0.5}]', *FLOAT])
    found = plan(config, images=IMAGENET, tflops=11.4)
    search = next(t for t in found.trainings if t.name == "search")
    assert search.worker_seconds / 3600 == pytest.approx(43, abs=2)
    assert search.epochs == 50
    assert search.workers == 8
    assert found.gpu_hours > 6 * 0.4 * 43  # six times as many epochs, for the dense model and the one at half


@pytest.mark.slow
@pytest.mark.usefixtures("in_short")
def test_times_are_said_to_be_computed_where_none_were_taken(digits: Config, capsys: pytest.CaptureFixture) -> None:
    for tflops, wanted in (
        (35.0, "Computed for a device of 35 TFLOP/s."),
        (None, "Timed on this machine's CPU, 1 thread per worker."),
    ):
        show(plan(digits, images=Images(train=100, val=10, test=10), tflops=tflops), Console(width=200), None)
        assert wanted in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.usefixtures("in_short")
def test_gpus_that_would_wait_for_images_are_named_with_the_cores_that_feed_them(digits: Config) -> None:
    gpus, cluster = {"resources": {"gpus_per_worker": 1}}, Cluster([{"CPU": 4.0, "GPU": 2.0}])
    config = Config.model_validate(digits.model_dump(exclude_unset=True) | gpus)
    for tflops, waits in ((1000.0, True), (0.0001, False)):
        said = [note for note in plan(config, tflops=tflops, cluster=cluster).notes if "wait for images" in note]
        assert bool(said) == waits
        assert not said or int(re.search(r"(\d+) loading processes", said[0]).group(1)) > 1  # type: ignore[union-attr]


@pytest.mark.slow
def test_a_larger_cluster_trains_more_points_at_a_time() -> None:
    config, _ = load_config(["--config", "deit-tiny-imagenet-best", "--budgets", "0.7,0.5,0.45", *FLOAT])
    one, four = (
        plan(config, images=IMAGENET, tflops=30, cluster=Cluster([{"CPU": 64.0, "GPU": 8.0}] * nodes)) for nodes in (1, 4)
    )
    assert (one.at_once, four.at_once) == (1, 4)
    assert four.sweep_seconds < 0.4 * one.sweep_seconds
    assert four.gpu_hours == one.gpu_hours
    with pytest.raises(ConfigError, match="search_workers is 8"):
        plan(config, images=IMAGENET, tflops=30, cluster=Cluster([{"CPU": 64.0, "GPU": 4.0}]))


@pytest.mark.usefixtures("in_short")
def test_a_run_whose_search_has_ended_gives_the_structures(small_run: Path) -> None:
    run = Run(small_run)
    found = plan(run.config, run=run)
    rows = run.rows
    planned = {t.name: t.macs for t in found.trainings}
    for row in rows[rows.method == "searched"].itertuples():
        assert planned[f"searched {row.budget:.4f}"] == row.macs


def test_a_run_without_a_search_is_refused(digits: Config, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no search has ended there"):
        plan(digits, images=Images(train=1000, val=100, test=100), run=Run(tmp_path, digits))


@pytest.mark.parametrize(
    ("seconds", "at_once", "wanted"), [([3, 1, 1], 2, 3), ([2, 2, 2], 2, 4), ([5, 4, 3, 3, 3], 2, 10), ([], 2, 0)]
)
def test_trials_start_as_places_become_free(seconds: list[float], at_once: int, wanted: float) -> None:
    assert makespan(seconds, at_once) == wanted


def test_data_that_is_not_here_is_asked_for_in_one_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "--config", "deit-small-imagenet", "--data.root", "/nowhere"]) == 2
    said = capsys.readouterr().out
    assert "--images TRAIN,VAL,TEST" in said
    assert main(["plan", "--model.checkpoint", "/nowhere.pth"]) == 2  # no images would help
    assert "--images" not in capsys.readouterr().out
    assert main(["plan", "--images", "1000"]) == 2
    assert "three numbers" in capsys.readouterr().out
