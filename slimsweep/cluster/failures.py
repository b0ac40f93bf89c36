"""What Ray's own failures mean, as one sentence each that says what to do. What a worker itself raised keeps its own words.

Ray's messages have up to eighty lines, tracebacks of its own processes among them; they go to the run's log of errors.
"""

import os
import re
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

from ray import exceptions as core
from ray.train.v2._internal import exceptions as train
from ray.train.v2.api import exceptions as train_api
from ray.tune.error import TuneError

from slimsweep.cluster.joining import TOKEN
from slimsweep.config import ConfigError
from slimsweep.errors import ClusterFailed, SlimsweepError, causes, explain_and_log, innermost, written

RAYS = (core.RayError, train.RayTrainError, TuneError)  # the base classes of Ray's exceptions

AGAIN = "the same command goes on from the last epoch"
LOGS = "its node's logs say more (`ray logs`)"
MEMORY = (
    "a node ran out of memory{where}, and Ray ended a process there: train fewer at the same time "
    "(resources.max_concurrent_trials), raise resources.cpus_per_worker so that fewer workers share a node, lower data.workers "
    f"or data.batch_size, or take nodes with more memory; {AGAIN}"
)
SNAPSHOT = f"Ray's own state of this training is damaged (checkpoint_manager_snapshot.json): start again, {AGAIN} without it"
DISK = (
    "the disk of a node is full: free space in Ray's folder there (by default /tmp/ray), or start Ray with another --temp-dir"
)


class Kind(NamedTuple):
    """One kind of failure: Ray's exceptions that stand for it, and the sentence, with {last} for the end of Ray's message."""

    types: tuple[type[BaseException], ...]
    sentence: str


# The first that fits counts: a class stands before its base class.
KINDS = (
    Kind((core.AuthenticationError,), TOKEN),
    Kind(
        (core.RuntimeEnvSetupError,),
        "a node could not set up the job's environment ({last}): see that what --working-dir and --runtime-env name can be had "
        "from every node",
    ),
    Kind((core.OutOfMemoryError,), MEMORY),
    Kind((core.OutOfDiskError,), DISK),
    Kind(
        (core.ObjectStoreFullError,),
        "Ray's object store is full on a node: start Ray there with a larger --object-store-memory, or see by `ray memory` who "
        "fills it",
    ),
    Kind((train_api.PreemptionError,), f"a node was taken away by its provider in the middle of the training: {AGAIN}"),
    Kind((core.NodeDiedError,), f"a node of the cluster died or could no longer be reached ({{last}}): {AGAIN}"),
    Kind((core.LocalRayletDiedError,), f"Ray's process on a node (the raylet) died: {LOGS}; {AGAIN}"),
    Kind((core.ActorUnavailableError,), f"a process of the run could no longer be reached: {LOGS}; {AGAIN}"),
    Kind(
        (core.ActorPlacementGroupRemoved, core.TaskPlacementGroupRemoved),
        f"the place that Ray had reserved for a worker was removed: somebody ended its job, or its node died; {AGAIN}",
    ),
    Kind(
        (core.ActorUnschedulableError, core.TaskUnschedulableError),
        f"Ray can place a worker nowhere ({{last}}): see by `ray status` that the nodes are there; {AGAIN}",
    ),
    Kind(
        (core.RayActorError, core.WorkerCrashedError),
        f"a process of the run died unexpectedly (killed, or out of memory): {LOGS}; {AGAIN}",
    ),
    Kind((core.ObjectLostError,), f"data that Ray kept on a node was lost with its node or process: {AGAIN}"),
    Kind((core.TaskCancelledError, core.AsyncioActorExit), f"somebody cancelled a task or process of the run: {AGAIN}"),
    Kind((train.CheckpointManagerInitializationError,), SNAPSHOT),
    Kind(
        (train.WorkerGroupStartupTimeoutError, train.InsufficientClusterResourcesError),
        "Ray found no room for the workers in time: see by `ray status` who holds the CPUs and GPUs; lower "
        "resources.search_workers, retrain.workers_per_trial, resources.cpus_per_worker or resources.gpus_per_worker, or start "
        "more nodes",
    ),
    Kind((train.WorkerGroupStartupFailedError,), f"a worker died while it started, perhaps with its node: {AGAIN}"),
    Kind(
        (train.WorkerHealthCheckTimeoutError, train.WorkerHealthCheckFailedError),
        f"a worker no longer answered: {LOGS}; {AGAIN}",
    ),
    Kind(
        (train.CollectiveTimeoutError, train_api.NCCLHangError),
        f"the workers of a training waited too long for one of them: see that their nodes reach each other; {AGAIN}",
    ),
    Kind(
        (core.RpcError, core.RaySystemError, core.GetTimeoutError),
        f"Ray's own processes failed or no longer answered ({{last}}): see by `ray status` that the cluster runs; {AGAIN}",
    ),
)


def sentence(problem: BaseException | str) -> str | None:
    """What a failure of Ray means and what to do; None where a worker's own code raised, and where nobody foresaw it.

    Args:
        problem: an exception, or the text of one of Ray's, such as Tune keeps of a trial that died.
    """
    if isinstance(problem, str):
        return by_text(problem)
    chain = list(causes(problem))
    if any(isinstance(one, SlimsweepError) for one in chain):
        return None
    for one in chain:
        if isinstance(one, RAYS):
            inner = innermost(one)
            return kind_of(inner) or kind_of(one) if isinstance(inner, RAYS) else None
        # Ray has no exception of its own for these two.
        if isinstance(one, RuntimeError) and (said := version_differs(str(one)) or token_refused(str(one))) is not None:
            return said
    return None


def kind_of(problem: BaseException) -> str | None:
    """The sentence for one of Ray's exceptions, without a look at its causes."""
    text = str(problem)
    if (said := by_text(text)) is not None:
        return said
    found = next((kind.sentence for kind in KINDS if isinstance(problem, kind.types)), None)
    return found.format(last=last_of(text), where="") if found else None


def by_text(text: str) -> str | None:
    """The kinds that Ray tells only in its message: the same exception stands for a killed process and for a full node."""
    if "running low on memory" in text or "NODE_OUT_OF_MEMORY" in text:
        return MEMORY.format(where=f" ({found})" if (found := memory_of_node(text)) else "")
    # To know whether an actor is still wanted, the head asks the process that made it, and takes a failed answer for no.
    if "all references to the actor were removed" in text and "never ran" in text:
        way_out = "see that nothing between them blocks it"
        if os.environ.get("RAY_AUTH_MODE") == "token":
            way_out = f"where the cluster asks for no token, unset RAY_AUTH_MODE; else {way_out}"
        return f"the head of the Ray cluster could not ask this driver: {way_out}; {AGAIN}"
    if "CheckpointManagerInitializationError" in text or "checkpoint_manager_snapshot" in text:
        return SNAPSHOT
    if re.search(r"RuntimeEnvSetupError|Failed to set up runtime environment", text):
        return next(kind for kind in KINDS if core.RuntimeEnvSetupError in kind.types).sentence.format(last=last_of(text))
    return version_differs(text) or token_refused(text)


def token_refused(text: str) -> str | None:
    """A sentence where a message says that the cluster refused this process; None for other texts."""
    return TOKEN if re.search(r"InvalidAuthToken|Unauthenticated|UNAUTHENTICATED", text) else None


def memory_of_node(text: str) -> str:
    """Which node, and how full it was, from the message of Ray's memory monitor; empty where it does not say."""
    node = re.search(r"\(IP: ([^,)]+)", text) or re.search(r"\bip: (\S+)", text)
    amount = r"([\d.]+ ?[KMGT]i?B)"
    used = re.search(rf"{amount}(?: used)? */ *{amount}", text)
    return ", ".join(part for part in (node[1] if node else "", f"{used[1]} / {used[2]}" if used else "") if part)


def version_differs(text: str) -> str | None:
    """A sentence where a cluster and this process have different versions of Ray or Python; None for other texts."""
    if "Version mismatch" not in text:
        return None
    versions = re.findall(r"(Ray|Python): (\S+)", text)
    if len(versions) != 4:
        return "the cluster runs another version of Ray or Python than this process: install the same on both"
    cluster, here = (" and ".join(f"{name} {value}" for name, value in part) for part in (versions[:2], versions[2:]))
    return (
        f"the cluster runs {cluster}, and this process {here}: use the same on both, such as the environment of the cluster's "
        "nodes, or install the versions of requirements.lock there"
    )


def last_of(text: str) -> str:
    """The last line of a message, at most 200 characters."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1][:200] if lines else "no reason given"


def explained(problem: BaseException, stage: str | None, log: Callable[[str], str] | None) -> str:
    """`slimsweep.errors.explain_and_log`, and for Ray's own failures their sentence; all that Ray said goes to the log."""
    said = sentence(problem)
    if said is None:
        return explain_and_log(problem, stage, log)
    return f"{said} (Ray's own words: {written(''.join(traceback.format_exception(problem)), log)})"


@contextmanager
def as_sentences(log: Callable[[str], str] | None = None) -> Iterator[None]:
    """Turn what Ray raises in the block into an exception of slimsweep's; others pass, and so does what nobody foresaw.

    Raises:
        ConfigError: the cluster refused the token.
        ClusterFailed: Ray, or a part of its cluster, failed.
    """
    try:
        yield
    except SlimsweepError:
        raise
    except Exception as problem:
        if (said := sentence(problem)) is None:
            raise
        kind = ConfigError if said == TOKEN else ClusterFailed
        raise kind(said if said == TOKEN else explained(problem, None, log)) from problem
