"""Trackers get what a run's folder holds, each thing once, and nothing that they do ends or delays a run."""

import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from slimsweep.checks import check_trackers
from slimsweep.config import Config, ConfigError
from slimsweep.ledger.points import Plan, Point
from slimsweep.ledger.recorder import RunRecorder
from slimsweep.ledger.run import Run
from slimsweep.trackers import Tracking, check, follow
from slimsweep.trackers.secrets import without_secrets

POINT = Point(method="searched", budget=0.5, seed=0, structure="", hash="ab12cd34ef560718", lr=1e-3, epochs=3)


@dataclass
class Server:
    """A tracker's server: what it was told, and how it behaves."""

    told: list[tuple[Any, ...]] = field(default_factory=list)
    problem: Exception | None = None
    hangs: threading.Event | None = None
    last: dict[str, int] | None = None  # the last epoch per training, where it says that

    def say(self, *what: Any) -> None:
        if self.hangs is not None:
            self.hangs.wait(60)
        if self.problem is not None:
            raise self.problem
        self.told.append(what)

    def epochs_of(self, name: str) -> list[int]:
        return [epoch for kind, of, *rows in self.told if (kind, of) == ("epochs", name) for epoch in rows]

    def connect(self, sweep: Any, ids: dict[str, str]) -> "Session":
        self.say("connect", sweep.id)
        return Session(self, ids)


@dataclass
class Session:
    server: Server
    ids: dict[str, str]

    def training(self, name: str, parameters: dict[str, Any], began: float) -> "Training":
        self.server.say("training", name, parameters)
        self.ids[name] = f"id of {name}"
        return Training(self.server, name, None if self.server.last is None else self.server.last.get(name, -1))

    def page(self, page: Path) -> None:
        self.server.say("page", page.read_bytes())

    def end(self, state: str) -> None:
        self.server.say("end", state)


@dataclass
class Training:
    server: Server
    name: str
    last_epoch: int | None

    def epochs(self, rows: list[tuple[int, dict[str, float]]]) -> None:
        self.server.say("epochs", self.name, *(epoch for epoch, _ in rows))

    def result(self, result: Any, model: Path | None) -> None:
        self.server.say("result", self.name, result, model and sorted(file.name for file in model.iterdir()))

    def end(self, state: str) -> None:
        self.server.say("over", self.name, state)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Server:
    """What the configuration calls mlflow."""
    found = Server()
    module = SimpleNamespace(PACKAGE="json", check=lambda config: None, place_of=lambda c, r: "here", connect=found.connect)
    monkeypatch.setattr(follow, "module_of", lambda name: module)
    monkeypatch.setattr(follow, "PAUSE", 0.05)
    monkeypatch.setattr(follow, "CPU_SHARE", 1.0)
    return found


@pytest.fixture
def run(tmp_path: Path) -> Run:
    config = Config(name="mine", output=str(tmp_path), dense={"epochs": 1}, trackers=["mlflow"])
    found = Run(tmp_path / "mine", config)
    found.write_config()
    found.write_plan(Plan(attempt="a", points=(POINT,)))
    return found


def epoch(number: int) -> dict[str, Any]:
    return {"stage": "retrain", "point": POINT.name, "epoch": number, "val_top1": 50.0 + number, "seconds": 1.0, "loss": None}


def trained(run: Run, epochs: range, row: dict[str, Any] | None = None) -> None:
    """What a worker records of a training that goes on from its last checkpoint."""
    recorder = RunRecorder(run, "retrain", POINT.name)
    recorder.curve = [one for one in run.curve(POINT.name) if one["epoch"] < epochs.start]
    for number in epochs:
        recorder.epoch(epoch(number))
    if row is not None:
        recorder.finished({"point": POINT.name, "method": "searched", "budget": 0.5, "lr": 1e-3, **row})


def until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def tracked(run: Run, block: Callable[[], None] = lambda: None) -> list[str]:
    """Run a block with the run's trackers; returns what was printed."""
    said: list[str] = []
    with Tracking(run, said.append):
        block()
    return said


def test_a_package_that_takes_long_to_load_delays_no_epoch(run: Run, server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """At the share of a core that a tracker may take, loading it for a second would be paid by a pause of minutes."""
    monkeypatch.setattr(follow, "CPU_SHARE", 0.05)
    connect = follow.module_of("mlflow").connect

    def slow(sweep: Any, ids: dict[str, str]) -> Session:
        end = time.thread_time() + 1.5
        while time.thread_time() < end:
            sum(range(10_000))
        return connect(sweep, ids)

    monkeypatch.setattr(follow.module_of("mlflow"), "connect", slow)

    def block() -> None:
        trained(run, range(1))
        until(lambda: server.epochs_of(POINT.name) == [0])
        trained(run, range(1, 2))
        until(lambda: server.epochs_of(POINT.name) == [0, 1])

    assert tracked(run, block) == []


def test_epochs_are_told_as_they_come_and_then_the_result(run: Run, server: Server) -> None:
    def block() -> None:
        trained(run, range(2))
        until(lambda: server.epochs_of(POINT.name) == [0, 1])
        trained(run, range(2, 4), {"val_top1": 53.0, "test_top1": 52.0, "macs": 7})
        until(lambda: ("over", POINT.name, "finished") in server.told)
        run.write_report("html", b"page")

    assert tracked(run, block) == []
    assert server.epochs_of(POINT.name) == [0, 1, 2, 3]
    (result,) = [one[2] for one in server.told if one[0] == "result"]
    assert (result.state, result.epochs) == ("finished", 3)
    assert result.values == {"test_top1": 52.0, "macs": 7.0}  # the last epoch has val_top1
    assert server.told[-2:] == [("page", b"page"), ("end", "finished")]
    (parameters,) = [one[2] for one in server.told if one[0] == "training"]
    assert parameters["method"] == "searched"
    assert (parameters["budget"], parameters["lr"]) == (0.5, 1e-3)


def test_the_next_start_tells_what_is_new_and_nothing_twice(run: Run, server: Server) -> None:
    tracked(run, lambda: trained(run, range(3)))
    assert ("end", "stopped") in server.told  # its point is not done
    before = len(server.told)
    # The epoch after the last checkpoint is trained again.
    tracked(Run(run.folder, run.config), lambda: trained(run, range(2, 4), {"test_top1": 52.0}))
    assert server.epochs_of(POINT.name) == [0, 1, 2, 3]
    assert len({one[1] for one in server.told if one[0] == "connect"}) == 1
    assert any(one[0] == "result" for one in server.told[before:])
    before = len(server.told)
    tracked(Run(run.folder, run.config))
    assert [one[0] for one in server.told[before:]] == ["connect", "end"]


def test_a_server_that_has_more_than_was_noted_is_told_no_epoch_again(run: Run, server: Server) -> None:
    """As after a kill between an epoch that was sent and the note of it."""
    trained(run, range(3))
    server.last = {POINT.name: 1}
    tracked(run)
    assert server.epochs_of(POINT.name) == [2]


def test_a_point_that_failed_and_is_tried_again_is_told_again(run: Run, server: Server) -> None:
    tracked(run, lambda: trained(run, range(2), {"status": "failed", "error": "no memory"}))
    (failed,) = [one[2] for one in server.told if one[0] == "result"]
    assert (failed.state, failed.error) == ("failed", "no memory")
    assert server.told[-1] == ("end", "failed")
    tracked(Run(run.folder, run.config), lambda: trained(run, range(2, 4), {"test_top1": 52.0}))
    assert [one[2].state for one in server.told if one[0] == "result"] == ["failed", "finished"]
    assert server.epochs_of(POINT.name) == [0, 1, 2, 3]


def test_models_are_uploaded_unless_that_is_switched_off(run: Run, server: Server) -> None:
    def block() -> None:
        path = run.model_path(POINT.name)
        run.folder.write_bytes(f"{path}/weights", b"1")
        trained(run, range(2), {"model_path": path})

    tracked(run, block)
    assert [one[3] for one in server.told if one[0] == "result"] == [["weights"]]
    server.told.clear()
    run.folder.delete("trackers")
    run.take_config(run.config.changed(**{"tracking.models": False}))
    tracked(run)
    assert [one[3] for one in server.told if one[0] == "result"] == [None]


def test_a_tracker_that_fails_is_one_warning_and_gets_everything_later(run: Run, server: Server) -> None:
    server.problem = ConnectionError("http://me:secret@mlflow:5000 refused")
    began = time.monotonic()
    run.logs.write_notes(["a note of the start"])
    said = tracked(run, lambda: (trained(run, range(4), {"test_top1": 52.0}), time.sleep(0.5))[0])
    assert time.monotonic() - began < 5
    (warning,) = said
    assert "mlflow: ConnectionError" in warning
    assert "the run goes on" in warning
    assert "secret" not in warning
    assert (Path(run.uri) / "notes.log").read_text() == f"a note of the start\n{warning}\n"
    assert server.told == []
    server.problem = None
    assert tracked(Run(run.folder, run.config)) == []
    assert server.epochs_of(POINT.name) == [0, 1, 2, 3]


def test_a_tracker_that_answers_again_gets_the_rest_in_the_same_run(run: Run, server: Server) -> None:
    server.problem = ConnectionError("down")

    def block() -> None:
        trained(run, range(2))
        until((Path(run.uri) / "notes.log").exists)
        server.problem = None
        until(lambda: server.epochs_of(POINT.name) == [0, 1])

    assert len(tracked(run, block)) == 1


def test_one_point_that_a_tracker_refuses_keeps_no_other_from_it(
    run: Run, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = Session.training

    def training(self: Session, name: str, parameters: dict[str, Any], began: float) -> Training:
        if name == "dense":
            raise ValueError("this one not")
        return told(self, name, parameters, began)

    monkeypatch.setattr(Session, "training", training)
    run.write_curve("dense", [{**epoch(0), "stage": "dense", "point": ""}])
    (warning,) = tracked(run, lambda: trained(run, range(2)))
    assert "this one not" in warning
    assert server.epochs_of(POINT.name) == [0, 1]


@pytest.fixture
def hanging(server: Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setattr(follow, "CALL_SECONDS", 0.3)
    server.hangs = threading.Event()
    yield server
    server.hangs.set()  # so that no thread outlives the test


def test_a_tracker_that_hangs_is_one_warning_and_delays_nothing(run: Run, hanging: Server) -> None:
    def block() -> None:
        trained(run, range(4), {"test_top1": 52.0})
        until((Path(run.uri) / "notes.log").exists)

    ends: list[float] = []
    said = tracked(run, lambda: (block(), ends.append(time.monotonic()))[0])
    assert time.monotonic() - ends[0] < 0.5  # it is not waited for again
    assert len(said) == 1
    assert "does not answer" in said[0]


def test_a_tracker_that_hangs_at_the_end_is_waited_for_briefly(run: Run, hanging: Server) -> None:
    began = time.monotonic()
    (warning,) = tracked(run)
    assert 0.2 < time.monotonic() - began < 3
    assert "does not answer" in warning


def test_a_tracker_that_is_slow_is_waited_for_as_long_as_the_configuration_says(
    run: Run, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Training, "epochs", lambda self, rows: time.sleep(0.2))
    monkeypatch.setattr(follow, "ROWS_PER_CALL", 1)
    run.take_config(run.config.changed(**{"tracking.wait_seconds": 0.5}))
    trained(run, range(30))
    began = time.monotonic()
    (warning,) = tracked(run)
    assert time.monotonic() - began < 3
    assert "tracking.wait_seconds" in warning or "0.5 s" in warning
    assert "next start" in warning


# What is refused, and what counts.


def test_a_package_that_is_missing_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(check.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"^trackers names mlflow, .* pip install mlflow .*$"):
        check_trackers(Config(trackers=["mlflow"]))


def test_all_that_is_wrong_with_trackers_is_said_at_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(check.importlib.util, "find_spec", lambda name: True)
    monkeypatch.setattr("slimsweep.trackers.wandb._settings_mode", lambda: "online")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    for name in ("WANDB_MODE", "WANDB_API_KEY", "WANDB_IDENTITY_TOKEN_FILE"):
        monkeypatch.delenv(name, raising=False)
    config = Config(trackers=["wandb", "tensorboard"], output="s3://bucket/sweeps")
    with pytest.raises(ConfigError) as refused:
        check_trackers(config)
    assert "wandb login" in str(refused.value)
    assert "output is s3://bucket/sweeps: set tracking.tensorboard" in str(refused.value)
    (tmp_path / "netrc").write_text("machine api.wandb.ai login user password 0123\n")
    check_trackers(config.changed(**{"tracking.tensorboard": str(tmp_path)}))


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"trackers": ["comet"]}, "trackers"),
        ({"trackers": ["mlflow", "mlflow"]}, "twice"),
        ({"tracking": {"mlflow_uri": "http://me:pw@host"}}, "MLFLOW_TRACKING_PASSWORD"),
    ],
)
def test_fields_that_cannot_work_are_refused(values: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said) as refused:
        Config(**values)
    assert "pw@" not in str(refused.value)


def test_trackers_change_no_name_of_a_point() -> None:
    without, with_them = Config(), Config(trackers=["mlflow", "wandb"], tracking={"project": "mine", "models": False})
    for stage in ("dense", "search", "retrain"):
        assert without.fingerprint(stage) == with_them.fingerprint(stage)


@pytest.mark.parametrize(
    "text",
    [
        "https://me:hunter22@host/path",
        "sqlite+x://hunter22@host",
        "GET http://host/?token=hunter22&a=1",
        "the key is hunter22",
        "api_key: hunter22",
    ],
)
def test_messages_hold_no_secret(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOME_API_KEY", "hunter22")
    assert "hunter22" not in without_secrets(text)


def test_words_that_are_no_secret_stay() -> None:
    text = "ConnectionError: http://mlflow:5000/api refused (keyword a: 1)"
    assert without_secrets(text) == text


def test_the_run_s_folder_gets_no_secret(run: Run, server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://me:hunter22@host")
    module = follow.module_of("mlflow")
    monkeypatch.setattr(module, "place_of", lambda c, r: "http://me:hunter22@host")
    server.problem = ValueError("http://me:hunter22@host says no")
    tracked(run, lambda: trained(run, range(2)))
    files = [file for file in Path(run.uri).rglob("*") if file.is_file()]
    assert len(files) > 3
    assert not [file for file in files if b"hunter22" in file.read_bytes()]
