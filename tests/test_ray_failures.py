"""What Ray's own failures are called: one sentence each, with what to do; what a worker raised keeps its own words."""

import inspect
import os
import re
import socket
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import pytest
import ray._private.worker
import ray.exceptions as core
from ray.core.generated.common_pb2 import ActorDiedErrorContext
from ray.train.v2._internal import exceptions as train
from ray.train.v2.api import exceptions as train_api
from ray.tune.error import TuneError

from slimsweep.cluster import GCS_SECONDS
from slimsweep.cluster.alive import gcs_answers, give_up_seconds
from slimsweep.cluster.cluster import connected
from slimsweep.cluster.failures import as_sentences, explained, sentence
from slimsweep.cluster.own_cluster import in_environment
from slimsweep.cluster.retrain_job import process_died
from slimsweep.config import ConfigError
from slimsweep.errors import ClusterFailed, StageFailed, TrainingDiverged

# What Ray's memory monitor writes, shortened in the middle.
FULL_NODE = """2 worker(s) were killed due to the node running low on memory. Memory usage: 30.52GB / 31.00GB (0.984677)
Object store memory usage: [- objects spillable: 0]
Top 10 memory users on the node (IP: 10.0.0.7, ID: 08f4):
PID     MEM(GB) COMMAND
10345   14.20   ray::trial
Refer to the documentation on how to address the out of memory issue."""
# The same from a node that had one percent of its memory to give.
SEEN = """1 worker(s) were killed due to the node running low on memory. \
Memory on the node (IP: 192.0.2.2, ID: 2973) was 6.34GB used / 23.54GB limit (0.269433)
OOM kill reason: Memory usage 6787395584B exceeded threshold of 252765104B (1.0% of 25276510208B limit)
Top 10 memory users: PID\tMEM(GB)\tCOMMAND
5312\t1.09\tray::RayTrainWorker"""
VERSIONS = """Version mismatch: The cluster was started with:
    Ray: 2.55.1
    Python: 3.12.4
This process on node 10.0.0.2 was started with:
    Ray: 2.60.0
    Python: 3.11.9
"""


def in_creation(text: str) -> core.ActorDiedError:
    """How Ray says that an actor could not be made: the error of its constructor as a text."""
    return core.ActorDiedError(
        core.RayTaskError("Controller.__init__", f"Traceback ...\n{text}", ValueError("x"), actor_id="a")
    )


def example(kind: type[Exception]) -> Exception:
    """An exception of one of Ray's classes, as its constructor wants it."""
    given = {
        "message": "as Ray says",
        "error_message": "as Ray says",
        "object_ref_hex": "00ff",
        "owner_address": None,
        "call_site": "",
        "actor_id": None,
        "client_exc": "as Ray says",
        "num_workers": 4,
        "time_elapsed": 3.0,
        "missing_ranks": [1],
        "timeout_s": 3.0,
        "failure": OSError("gone"),
        "worker_failures": {},
    }
    if kind is train_api.PreemptionError:
        return kind(type("Info", (), {"preempted_ranks": [0]})())
    names = [
        name
        for name, one in inspect.signature(kind.__init__).parameters.items()
        if name != "self" and one.default is inspect.Parameter.empty and one.kind is inspect.Parameter.POSITIONAL_OR_KEYWORD
    ]
    return kind(**{name: given[name] for name in names})


# Those that carry another exception, those of parts of Ray that slimsweep does not use, and those that stand for a bug.
ELSEWHERE = {
    "CrossLanguageError", "RayTaskError", "UserCodeException", "UnserializableException", "PendingCallsLimitExceeded",
    "PlasmaObjectNotAvailable", "ObjectRefStreamEndOfStreamError", "OufOfBandObjectRefSerializationException",
    "ActorAlreadyExistsError", "ActorHandleNotFoundError", "RayError",
    "RayTrainError", "TrainingFailedError", "WorkerGroupError", "ControllerError", "UserExceptionWithTraceback",
}  # fmt: skip


def classes_of_ray() -> list[type[Exception]]:
    found = {
        one
        for module in (core, train, train_api)
        for one in vars(module).values()
        if isinstance(one, type) and issubclass(one, core.RayError | train.RayTrainError)
    }
    return sorted((one for one in found if one.__name__ not in ELSEWHERE), key=lambda one: one.__name__)


@pytest.mark.parametrize("kind", classes_of_ray(), ids=lambda kind: kind.__name__)
def test_each_of_ray_s_failures_is_one_sentence(kind: type[Exception]) -> None:
    """A class that a later Ray adds fails here, and wants its place in the table."""
    for problem in (
        example(kind),
        train_api.WorkerGroupError("1 worker failed", {0: example(kind)}),
        train_api.ControllerError(example(kind)),
        core.RayTaskError("f", "Traceback ...", example(kind)),
    ):
        said = sentence(problem)
        assert said is not None
        assert "\n" not in said
        assert ":" in said  # what happened, and what to do
        assert len(said) < 500
        assert "{" not in said


def test_a_node_without_memory_is_named_with_what_it_had() -> None:
    """Ray tells of it in several exceptions, and in a text where Tune keeps the error of a trial."""
    died = core.ActorDiedError()
    died.error_msg = (
        f"The actor died unexpectedly before finishing this task.\n\tip: 10.0.0.7\nThe actor is dead because {FULL_NODE}"
    )
    for problem in (core.OutOfMemoryError(FULL_NODE), died, TuneError(FULL_NODE), FULL_NODE):
        said = sentence(problem)
        assert said is not None
        assert said.startswith("a node ran out of memory (10.0.0.7, 30.52GB / 31.00GB), and Ray ended a process there: ")
        assert "resources.max_concurrent_trials" in said
    assert str(sentence(core.OutOfMemoryError(SEEN))).startswith("a node ran out of memory (192.0.2.2, 6.34GB / 23.54GB), and ")
    assert process_died(TuneError(FULL_NODE)).startswith("a node ran out of memory (10.0.0.7")
    assert process_died(TuneError("one\ntwo")) == "the trial's process died: two"
    heads = [f"Failure # {number} (occurred at 2026-01-31_12-00-00)" for number in (1, 2)]
    written = f"{heads[0]}\nthe first\n{heads[1]}\n{FULL_NODE}\n"
    assert process_died(written).startswith("a node ran out of memory (10.0.0.7")
    assert process_died(f"{heads[0]}\n{FULL_NODE}\n{heads[1]}\nthe last\n") == "the trial's process died: the last"


def test_another_version_on_the_cluster_says_both() -> None:
    said = sentence(RuntimeError(VERSIONS))
    assert said is not None
    assert said.startswith("the cluster runs Ray 2.55.1 and Python 3.12.4, and this process Ray 2.60.0 and Python 3.11.9: ")
    joining = ConnectionError("Failed to connect")
    joining.__cause__ = RuntimeError(VERSIONS)
    assert sentence(joining) == said


def test_a_state_of_ray_s_that_was_cut_short_is_named() -> None:
    problem = in_creation("CheckpointManagerInitializationError: the snapshot could not be read")
    assert "checkpoint_manager_snapshot.json" in str(sentence(problem))
    assert "checkpoint_manager_snapshot.json" in str(sentence(train_api.ControllerError(problem)))


@pytest.mark.parametrize(
    "own", [KeyError("lr"), OSError("disk full"), RuntimeError("shapes differ"), TrainingDiverged("it is inf")]
)
def test_what_a_worker_raised_keeps_its_own_words(own: Exception) -> None:
    wraps = [
        own,
        core.RayTaskError("f", "Traceback ...", own),
        train_api.WorkerGroupError("1 worker failed", {0: train.UserExceptionWithTraceback(own, "Traceback ...")}),
    ]
    for problem in wraps:
        assert sentence(problem) is None
        assert re.sub(r" \(the whole.*", "", explained(problem, None, lambda text: "log")) in (
            f"{type(own).__name__}: {own}",
            str(own),
        )


def test_all_that_ray_said_is_in_the_log(tmp_path: Path) -> None:
    kept: list[str] = []

    def log(text: str) -> str:
        kept.append(text)
        return "runs/digits/errors.log"

    said = explained(core.OutOfMemoryError(FULL_NODE), "search", log)
    assert said.endswith("(Ray's own words: runs/digits/errors.log)")
    assert "Top 10 memory users" in kept[0]
    unknown = explained(core.PendingCallsLimitExceeded("too many"), "search", log)
    assert unknown == "too many (the whole traceback is in runs/digits/errors.log)"
    assert len(kept) == 2


def test_what_leaves_the_cluster_s_room_has_an_exit_code_of_the_table() -> None:
    with pytest.raises(ClusterFailed, match="died or could no longer be reached"), as_sentences(lambda text: "log"):
        raise core.NodeDiedError("node 7 is dead")
    with pytest.raises(ConfigError, match="refused this driver's token"), as_sentences():
        raise core.AuthenticationError("InvalidAuthToken")
    with pytest.raises(StageFailed, match="as it is"), as_sentences():
        raise StageFailed("as it is") from core.NodeDiedError("node 7 is dead")
    with pytest.raises(ZeroDivisionError), as_sentences():
        raise ZeroDivisionError
    with pytest.raises(KeyboardInterrupt), as_sentences():
        raise KeyboardInterrupt


def test_a_gcs_that_is_gone_is_told_from_one_that_refuses() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        assert not gcs_answers(address, 0.3)
    assert not gcs_answers(address, 0.3)
    server = grpc.server(ThreadPoolExecutor(1))  # without Ray's services: it answers that it does not know the question
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    assert gcs_answers(f"127.0.0.1:{port}", 5)
    server.stop(None)


def test_a_driver_gives_up_before_ray_ends_its_process(monkeypatch: pytest.MonkeyPatch) -> None:
    for seconds, expected in (("90", 60.0), ("600", 570.0), ("20", 10.0)):
        monkeypatch.setenv(GCS_SECONDS, seconds)
        assert give_up_seconds() == expected
    monkeypatch.delenv(GCS_SECONDS)
    assert give_up_seconds() == 30.0


def test_what_ray_prints_about_processes_has_the_name_that_is_replaced() -> None:
    assert callable(ray._private.worker.print_to_stdstream)


def test_a_ray_that_does_not_start_in_time_is_said_with_the_way_out(monkeypatch: pytest.MonkeyPatch) -> None:
    def slow(*_: object, **__: object) -> None:  # as ray._private.node raises it on a machine that is too busy
        raise Exception("The current node timed out during startup. This could happen because the GCS has become overloaded.")

    monkeypatch.setattr("ray.init", slow)
    monkeypatch.setattr("ray.is_initialized", lambda: False)  # a Ray of other tests may run in this process: it is left alone
    monkeypatch.setattr("ray.shutdown", lambda: None)
    monkeypatch.setenv("RAY_ADDRESS", "local")
    said = r"Ray did not start on this machine \(The current node timed out .*\): .* start the same command again"
    with pytest.raises(ClusterFailed, match=said), connected():
        raise AssertionError("it did not start")


def test_what_a_run_sets_for_its_own_cluster_ends_with_it_and_yields_to_what_was_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLIMSWEEP_TEST_SET", "theirs")
    monkeypatch.delenv("SLIMSWEEP_TEST_UNSET", raising=False)
    with in_environment({"SLIMSWEEP_TEST_SET": "ours", "SLIMSWEEP_TEST_UNSET": "ours"}):
        assert (os.environ["SLIMSWEEP_TEST_SET"], os.environ["SLIMSWEEP_TEST_UNSET"]) == ("theirs", "ours")
    assert os.environ["SLIMSWEEP_TEST_SET"] == "theirs"
    assert "SLIMSWEEP_TEST_UNSET" not in os.environ


@pytest.mark.parametrize(("mode", "way_out"), [("token", "unset RAY_AUTH_MODE"), ("disabled", "see that nothing between them")])
def test_a_head_that_cannot_ask_the_driver_is_said(monkeypatch: pytest.MonkeyPatch, mode: str, way_out: str) -> None:
    monkeypatch.setenv("RAY_AUTH_MODE", mode)
    removed = "The actor is dead because all references to the actor were removed including lineage ref count."
    lost = ActorDiedErrorContext(actor_id=bytes(16), error_message=removed, never_started=True)
    said = sentence(core.ActorDiedError(lost))
    assert said is not None
    assert said.startswith("the head of the Ray cluster could not ask this driver: ")
    assert way_out in said
    assert (mode == "token") == ("RAY_AUTH_MODE" in said)
