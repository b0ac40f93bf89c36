"""Which of a run's workers wait for CPUs or GPUs, and saying so.

The workers of Ray Train and Ray Tune get their room through placement groups, whose ids end with that of their job: a group
that Ray has not placed is a worker that waits. Plain tasks have none: they say when they begin.
"""

import logging
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress

import ray
from ray.util.placement_group import placement_group_table

from slimsweep.cluster.tasks import Held, Resources, plain
from slimsweep.errors import RunLost
from slimsweep.ledger.run import Run

log = logging.getLogger(__name__)

LOOK_SECONDS = 1.0
WAITING_SECONDS = 3.0  # a placement group that waits shorter is between two trainings
BEGIN_SECONDS = 10.0  # a plain task that waits shorter may have room, and a process that starts
SAY_AGAIN_SECONDS = 60.0  # between two lines that differ only in how much is free


def held(job: str) -> Held:
    """The room that the run of this process has and asks for.

    Args:
        job: the id of its job, in hexadecimal digits.
    """
    found = Held(list(plain.waiting), list(plain.placed))
    for identity, group in placement_group_table().items():
        if identity.endswith(job) and group["state"] in ("PENDING", "RESCHEDULING", "CREATED"):
            (found.placed if group["state"] == "CREATED" else found.waiting).append(list(group["bundles"].values()))
    return found


def sentence(group: Sequence[Resources], nodes: Sequence[Resources], free: Sequence[Resources], grows: bool) -> str:
    """What one group waits for: "waiting for 1 CPU (0 of 8 free)".

    Args:
        group: the resources of each of its bundles.
        nodes: what each node has.
        free: what is free on each node.
        grows: whether an autoscaler may add nodes.
    """
    largest = max(group, key=lambda bundle: sorted(bundle.items()))
    each = amounts(largest)
    what = each if len(group) == 1 else f"{len(group)} workers of {each} each"
    if not any(fits(largest, node) for node in nodes):
        if grows:
            return f"waiting for {what}: no node has {each} yet, and the cluster may grow"
        return f"waiting for {what}: no node has {each}; start one that has, or stop the run and lower resources.*_per_worker"
    total = {kind: (sum(n.get(kind, 0.0) for n in free), sum(n.get(kind, 0.0) for n in nodes)) for kind in largest}
    if len(total) == 1 and len(group) == 1:
        ((here, of),) = total.values()
        have = f"{here:g} of {of:g} free"
    else:
        have = ", ".join(f"{here:g} of {of:g} {named(kind, of)}" for kind, (here, of) in total.items()) + " free"
    if all(here >= largest[kind] for kind, (here, _) in total.items()) and not any(fits(largest, node) for node in free):
        have += ", on no node together"
    return f"waiting for {what} ({have})"


def fits(bundle: Resources, node: Resources) -> bool:
    return all(node.get(kind, 0.0) >= amount - 1e-9 for kind, amount in bundle.items())


def amounts(bundle: Resources) -> str:
    """Resources as people write them: "4 CPUs and 1 GPU"."""
    return " and ".join(f"{amount:g} {named(kind, amount)}" for kind, amount in bundle.items())


def named(kind: str, amount: float) -> str:
    """The name of a kind of resources; those of nodes' own keep theirs."""
    if kind == "memory":
        return "bytes of memory"
    return f"{kind}s" if kind in ("CPU", "GPU") and amount != 1 else kind


def waits_for_others(room: Held, nodes: Sequence[Resources]) -> list[Resources] | None:
    """What a run asks for and could have, were it alone on the cluster; None where its workers wait for each other at most.

    Args:
        room: what it has and asks for.
        nodes: what each node has.
    """
    for group in room.waiting:
        kinds = {kind for part in group for kind in part}
        wanted = {kind: sum(part.get(kind, 0.0) for one in [group, *room.placed] for part in one) for kind in kinds}
        has = {kind: sum(node.get(kind, 0.0) for node in nodes) for kind in kinds}
        if not room.placed or all(wanted[kind] <= has[kind] + 1e-9 for kind in kinds):
            return group
    return None


def look(job: str, grows: bool) -> str:
    """What the run of a job waits for, as `sentence` says it; empty where it waits for nothing but its own workers."""
    room = held(job)
    if not room.waiting:
        return ""
    nodes = {node["NodeID"]: node["Resources"] for node in ray.nodes() if node["Alive"]}
    group = waits_for_others(room, list(nodes.values()))
    if group is None:
        return ""
    free = ray._private.state.available_resources_per_node()
    return sentence(group, list(nodes.values()), [free.get(node, {}) for node in nodes], grows)


@contextmanager
def waiting_said(run: Run, say: Callable[[str], None]) -> Iterator[None]:
    """While the block runs: say which CPUs or GPUs the run's workers wait for, and keep it in the run's folder for others.

    Args:
        run: the driver's run.
        say: prints a line.
    """
    job, stop = ray.get_runtime_context().get_job_id(), threading.Event()
    grows = run.config.resources.max_workers is not None

    def watch() -> None:
        since, written, printed = 0.0, "", float("-inf")
        while not stop.wait(LOOK_SECONDS):
            try:
                text = look(job, grows)
            except Exception as problem:  # a cluster that is gone ends the run elsewhere, with its reason
                log.debug("the cluster could not be asked for its room (%s)", problem)
                continue
            now = time.monotonic()
            since = (since or now) if text else 0.0
            text = text if text and now - since >= (BEGIN_SECONDS if plain.waiting else WAITING_SECONDS) else ""
            if text == written:
                continue
            if text and (not written or now - printed >= SAY_AGAIN_SECONDS):
                say(text)
                printed = now
            written = text
            # It is said above, and written again when it changes. A driver that lost its run ends elsewhere, with its reason.
            with suppress(OSError, RunLost):
                run.write_waiting(text)

    thread = threading.Thread(target=watch, daemon=True, name="room")
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join(5)
        with suppress(OSError):
            run.write_waiting("")
