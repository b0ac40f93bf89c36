"""What a run says while it waits: for a cluster that does not answer, for room on it, and for a store that fails."""

import io
import logging
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pyarrow.fs as pafs
import pytest
from rich.console import Console

from slimsweep.cluster import joining
from slimsweep.cluster.joining import wait_for_answer
from slimsweep.cluster.waiting import Held, sentence, waits_for_others
from slimsweep.config import Config, ConfigError
from slimsweep.ledger.files import HOLDER
from slimsweep.ledger.holder import Holder
from slimsweep.ledger.lock import hold
from slimsweep.ledger.measures import TOP1
from slimsweep.ledger.run import Run
from slimsweep.ledger.status import read_status
from slimsweep.report.page_data import _progress
from slimsweep.storage import Folder
from slimsweep.tools.display import Progress
from slimsweep.tools.status import status_table

# The cluster.


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[str]:
    """What `wait_for_answer(said.append)` says, on a machine where nobody has started Ray; it gives up after a second."""
    monkeypatch.setattr(joining, "GIVE_UP_SECONDS", 1.0)
    monkeypatch.setattr(joining, "ANSWER_SECONDS", 0.3)
    monkeypatch.setattr(joining.services, "find_node_ids", list)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    return []


@pytest.fixture
def silent() -> Iterator[str]:
    """The address of something that accepts connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"127.0.0.1:{server.getsockname()[1]}"


@pytest.fixture
def nobody() -> str:
    """An address where nobody listens."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        return f"127.0.0.1:{server.getsockname()[1]}"


def note(tmp_path: Path, address: str) -> Path:
    """The file that `ray start` leaves."""
    file = tmp_path / "ray" / "ray_current_cluster"
    file.parent.mkdir()
    file.write_text(address)
    return file


@pytest.mark.parametrize("listens", [False, True])
def test_a_dead_address_is_named_at_once_and_given_up(
    listens: bool, said: list[str], nobody: str, silent: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    address = silent if listens else nobody
    monkeypatch.setenv("RAY_ADDRESS", address)
    began = time.monotonic()
    with pytest.raises(ConfigError) as refused:
        wait_for_answer(said.append)
    assert time.monotonic() - began < 5
    assert said[0] == f"connecting to the Ray cluster at {address} (from RAY_ADDRESS) ..."
    reason = "does not answer like Ray" if listens else "Connection refused"
    assert reason in said[1]
    assert len(said) == 2
    assert str(refused.value).startswith(f"RAY_ADDRESS is {address}, and no Ray cluster could be joined there in 1 s")
    assert reason in str(refused.value)
    assert "unset it" in str(refused.value)


@pytest.mark.parametrize("listens", [False, True])
def test_the_file_of_an_earlier_ray_start_does_not_stop_a_run(
    listens: bool, said: list[str], nobody: str, silent: str, tmp_path: Path
) -> None:
    file = note(tmp_path, silent if listens else nobody)
    assert wait_for_answer(said.append) == "local"
    assert str(file) in said[0]
    assert f"{file} is left from an earlier `ray start`" in said[1]
    assert "starting one on this machine" in said[1]


def test_a_cluster_of_this_machine_that_hangs_is_not_replaced(
    said: list[str], silent: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = note(tmp_path, silent)
    monkeypatch.setattr(joining, "runs_here", lambda address: address == silent)
    with pytest.raises(ConfigError, match="`ray stop`") as refused:
        wait_for_answer(said.append)
    assert str(file) in str(refused.value)


def test_without_a_named_cluster_one_is_started_in_silence(said: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    assert wait_for_answer(said.append) == "local"
    for value in ("", "local"):
        monkeypatch.setenv("RAY_ADDRESS", value)
        assert wait_for_answer(said.append) == "local"
    assert said == []


@pytest.mark.parametrize("content", [b"garbage", b"\xff\xfe:6379", b"10.0.0.1:"])
def test_a_damaged_file_of_ray_start_is_said_and_passed_over(
    content: bytes, said: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = note(tmp_path, "")
    file.write_bytes(content)
    assert wait_for_answer(said.append) == "local"
    assert said == [f"{file} is damaged, and names no Ray cluster: starting one on this machine; delete the file"]
    file.write_bytes(b"")
    monkeypatch.setenv("RAY_ADDRESS", "auto")
    monkeypatch.setattr(joining.services, "find_gcs_addresses", list)
    with pytest.raises(ConfigError, match="RAY_ADDRESS is auto, and no Ray cluster runs"):
        wait_for_answer(said.append)


NO_ADDRESSES = ["foo", "10.0.0.1", "10.0.0.1:port", "http://127.0.0.1:8265", "auto", "10.0.0.1:99999", "head..cluster:6379"]


@pytest.mark.parametrize("value", NO_ADDRESSES)
def test_what_is_no_address_is_refused_at_once(value: str, said: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", value)
    monkeypatch.setattr(joining.services, "find_gcs_addresses", list)
    with pytest.raises(ConfigError, match=r"RAY_ADDRESS is .*unset it"):
        wait_for_answer(said.append)
    assert said == []


# Room on it.


@pytest.mark.parametrize(
    ("group", "nodes", "free", "text"),
    [
        ([{"CPU": 1}], [{"CPU": 8}], [{}], "waiting for 1 CPU (0 of 8 free)"),
        ([{"CPU": 4}], [{"CPU": 8}], [{"CPU": 3}], "waiting for 4 CPUs (3 of 8 free)"),
        ([{"CPU": 1}] * 3, [{"CPU": 2}] * 2, [{"CPU": 1}, {}], "waiting for 3 workers of 1 CPU each (1 of 4 CPUs free)"),
        ([{"GPU": 1}], [{"GPU": 4}], [{"GPU": 0.5}], "waiting for 1 GPU (0.5 of 4 free)"),
        (
            [{"CPU": 8, "GPU": 1}],
            [{"CPU": 16, "GPU": 2}],
            [{"CPU": 12}],
            "waiting for 8 CPUs and 1 GPU (12 of 16 CPUs, 0 of 2 GPUs free)",
        ),
        ([{"CPU": 4}], [{"CPU": 4}] * 2, [{"CPU": 2}] * 2, "waiting for 4 CPUs (4 of 8 free, on no node together)"),
    ],
)
def test_what_is_waited_for_and_what_is_free(group: list, nodes: list, free: list, text: str) -> None:
    assert sentence(group, nodes, free, grows=False) == text


def test_what_no_node_has_is_said() -> None:
    ask = ([{"CPU": 1, "GPU": 4}], [{"CPU": 64, "GPU": 2}], [{"CPU": 64, "GPU": 2}])
    assert "no node has 1 CPU and 4 GPUs; start one" in sentence(*ask, grows=False)
    assert "no node has 1 CPU and 4 GPUs yet, and the cluster may grow" in sentence(*ask, grows=True)


def test_workers_that_take_turns_do_not_wait() -> None:
    """Six tries of one CPU on two CPUs: four wait for the two, not for somebody else."""
    one = [{"CPU": 1.0}]
    assert waits_for_others(Held(waiting=[one] * 4, placed=[one] * 2), [{"CPU": 2.0}]) is None
    # Somebody else holds one of the two, or both.
    assert waits_for_others(Held(waiting=[one] * 5, placed=[one]), [{"CPU": 2.0}]) == one
    assert waits_for_others(Held(waiting=[one] * 6), [{"CPU": 2.0}]) == one
    # A trial of several workers holds its own place, which has no CPUs, while its workers wait.
    assert waits_for_others(Held(waiting=[one * 2], placed=[[{"memory": 1e7}]]), [{"CPU": 2.0, "memory": 1e9}]) == one * 2
    assert waits_for_others(Held(), [{"CPU": 2.0}]) is None


def test_waiting_is_in_status_page_and_log_while_the_driver_lives(tmp_path: Path) -> None:
    run = Run(tmp_path / "run", Config(name="run"))
    run.write_config()
    text = "waiting for 1 CPU (0 of 8 free)"
    output = io.StringIO()
    with hold(run):
        run.write_waiting(text)
        status = read_status(run)
        assert [stage.state for stage in status.stages] == ["waiting", "waiting"]
        assert status.next == f"dense is at epoch 0 of {run.config.dense.epochs}; {text}"
        assert text in _progress(status, TOP1)["next"]
        console = Console(file=output, width=200)
        console.print(status_table(status))
        assert output.getvalue().count(text) == 2  # above the table, and at the stage
        run.write_waiting("")
        assert read_status(run).stages[0].state == "running"
        run.write_waiting(text)
    assert text not in read_status(run).next  # a driver that is gone waits for nothing
    run.forget_begun()
    assert run.waiting() == ""


# A store that fails.


class Store(pafs.FileSystemHandler):
    """A file system like an object store's, over a local folder; it fails while `failing` is set."""

    failing = 0
    asked = 0

    def __init__(self, folder: Path) -> None:
        self.folder = pafs.SubTreeFileSystem(str(folder), pafs.LocalFileSystem())

    def get_type_name(self) -> str:
        return "store"

    def __getattribute__(self, name: str):
        if name in ("get_file_info", "open_input_stream", "open_output_stream", "get_file_info_selector"):
            return lambda *given: self.answer(name, *given)
        return super().__getattribute__(name)

    def answer(self, name: str, *given):
        self.asked += 1
        if self.failing:
            self.failing -= 1
            raise OSError("When reading: AWS Error ACCESS_DENIED: the token has expired")
        own = {"get_file_info_selector": "get_file_info"}.get(name, name)
        return getattr(self.folder, own)(given[0])


for unused in pafs.FileSystemHandler.__abstractmethods__ - set(vars(Store)):
    setattr(Store, unused, lambda self, *given: None)
Store.__abstractmethods__ = frozenset()  # type: ignore[attr-defined]


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Store, Folder]:
    """A store that can fail, and a folder on it; pauses begin at a hundredth of a second."""
    monkeypatch.setattr("slimsweep.storage.FIRST_PAUSE", 0.01)
    handler = Store(tmp_path)
    folder = Folder(tmp_path)
    folder._fs = pafs.PyFileSystem(handler)
    folder._path = ""
    return handler, folder


def test_a_store_that_fails_for_a_while_loses_nothing_and_is_one_line(
    store: tuple[Store, Folder], caplog: pytest.LogCaptureFixture
) -> None:
    handler, folder = store
    patient = folder.patient()
    patient.write_bytes("row", b"first")
    handler.failing = 4
    with caplog.at_level(logging.WARNING):
        patient.write_bytes("row", b"second")
    assert patient.read_bytes("row") == b"second"
    assert [("token has expired" in r.message, "works again" in r.message) for r in caplog.records] == [
        (True, False),
        (False, True),
    ]
    # What is no failure is answered at once, and so is a folder that is not patient.
    assert (folder / "sub").read_lines("none") == []
    with pytest.raises(FileNotFoundError):
        patient.read_bytes("none")
    handler.failing = 1
    with pytest.raises(OSError, match="token has expired"):
        patient.at_once().read_bytes("row")


def test_a_worker_that_begins_while_its_store_fails_has_not_lost_the_run(store: tuple[Store, Folder]) -> None:
    handler, folder = store
    run = Run(folder, holder=Holder(1))
    assert run.holder is not None
    run.unchecked.write_json(HOLDER, run.holder.to_json())
    handler.failing = 3
    run.patient().check_held()
    handler.failing = 1
    with pytest.raises(OSError, match="token has expired"):
        run.check_held()


def test_patience_ends_with_the_store_s_own_reason(store: tuple[Store, Folder]) -> None:
    handler, folder = store
    handler.failing, handler.asked = 1000, 0
    began = time.monotonic()
    with pytest.raises(OSError, match="token has expired"):
        folder.patient(0.5).read_bytes("row")
    assert time.monotonic() - began < 1
    assert 4 <= handler.asked <= 7  # pauses double


def test_a_display_without_its_store_says_so_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = Run(tmp_path / "run", Config(name="run"))
    run.write_config()
    output = io.StringIO()
    progress = Progress(run, Console(file=output, width=200), "Sweep")

    def fails() -> None:
        raise OSError("AWS Error ACCESS_DENIED:\nthe token has expired")

    monkeypatch.setattr(progress, "_show", fails)
    for _ in range(5):
        progress._show_if_readable()
    (line,) = output.getvalue().splitlines()
    assert "AWS Error ACCESS_DENIED: the token has expired" in line
    monkeypatch.setattr(progress, "_show", lambda: None)
    progress._show_if_readable()
    progress._show_if_readable()
    assert output.getvalue().splitlines()[1:] == [f"{run.uri} can be read and written again"]
    assert os.path.exists(tmp_path)
