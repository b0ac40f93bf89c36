"""Which Ray cluster is joined, and whether it answers: asked before `ray.init`, which would wait for many minutes.

A cluster is named by RAY_ADDRESS, or by the file that `ray start` leaves on its machine. The file stays where a machine or a
container went down without `ray stop`.
"""

import os
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import grpc  # type: ignore[import-untyped]
from ray._private import services
from ray._private.grpc_utils import init_grpc_channel
from ray.core.generated import gcs_service_pb2, gcs_service_pb2_grpc

from slimsweep.config import ConfigError

GIVE_UP_SECONDS = 60.0  # a cluster's head that restarts answers again within this time
ANSWER_SECONDS = 5.0  # one try
VARIABLE = "RAY_ADDRESS"
TOKEN = (
    "the Ray cluster refused this driver's token: set RAY_AUTH_MODE=token, and the cluster's token as RAY_AUTH_TOKEN or in the "
    "file that RAY_AUTH_TOKEN_PATH names (by default ~/.ray/auth_token), on this machine as on all nodes"
)

Say = Callable[[str], None]


class NoAnswer(Exception):
    """No Ray cluster answers at an address; the text says why, as the end of a sentence."""


@dataclass(frozen=True)
class Named:
    """A cluster that RAY_ADDRESS or a file names."""

    address: str  # host:port of the cluster's GCS, or ray://host:port
    source: str  # RAY_ADDRESS, or the path of the file

    @property
    def by_file(self) -> bool:
        return self.source != VARIABLE


def current_cluster_file() -> Path:
    """Where `ray start` notes the address of the cluster that it started or joined."""
    return Path(os.environ.get("RAY_TMPDIR", "/tmp"), "ray", "ray_current_cluster")


def named_cluster() -> Named | None:
    """The cluster to join; None where one is to be started on this machine.

    Raises:
        ConfigError: RAY_ADDRESS is no address of a cluster.
    """
    given = os.environ.get(VARIABLE, "").strip()
    if given == "local":
        return None
    if given == "auto":
        running = sorted(services.find_gcs_addresses())
        noted = _noted()
        if not noted and not running:
            raise ConfigError(
                f"{VARIABLE} is auto, and no Ray cluster runs on this machine: start one (`ray start --head`), give host:port, "
                "or unset it"
            )
        return Named(noted or running[0], VARIABLE)
    if given.startswith(("http://", "https://")):
        raise ConfigError(
            f"{VARIABLE} is {given}, which is where `ray job submit` sends jobs to: submit this command there, or give "
            "host:port of the cluster's GCS (by default port 6379), or unset it"
        )
    if given:
        host_and_port(given)
        return Named(given, VARIABLE)
    noted = _noted()
    return Named(noted, str(current_cluster_file())) if noted else None


def _noted() -> str:
    try:
        return current_cluster_file().read_text(encoding="utf-8", errors="replace").strip()
    except OSError:  # none, or one that only its owner may read
        return ""


def host_and_port(address: str) -> tuple[str, int]:
    """The parts of host:port, [IPv6]:port or ray://host:port.

    Raises:
        ConfigError: it is none of these.
    """
    host, _, port = address.removeprefix("ray://").rstrip("/").rpartition(":")
    try:
        host.strip("[]").encode("idna")  # as the system asks for a name
        named = bool(host) and "://" not in host
    except UnicodeError:
        named = False
    if not named or not port.isdecimal() or not 0 < int(port) < 65536:
        raise ConfigError(f"{VARIABLE} is {address!r}, which is not host:port, such as 10.0.0.1:6379: correct it, or unset it")
    return host.strip("[]"), int(port)


def wait_for_answer(say: Say) -> str | None:
    """Wait until the cluster to join answers, for at most `GIVE_UP_SECONDS`; says what is tried.

    Returns:
        What to give `ray.init` as its address: "local" where a cluster is to be started on this machine, because there is none
        or because the file of an earlier `ray start` names one that is gone; None where Ray finds the cluster itself.

    Raises:
        ConfigError: nothing answers at RAY_ADDRESS, or at the address in the file though its processes run on this machine.
    """
    named = named_cluster()
    if named is None:
        return "local"
    if named.by_file:
        try:
            host_and_port(named.address)
        except ConfigError:  # which names the variable
            say(f"{named.source} is damaged, and names no Ray cluster: starting one on this machine; delete the file")
            return "local"
    say(f"connecting to the Ray cluster at {named.address} (from {named.source}) ...")
    began, told = time.monotonic(), False
    while True:
        try:
            ask(named)
            return None
        except NoAnswer as problem:
            if named.by_file and not runs_here(named.address):
                say(
                    f"{named.source} is left from an earlier `ray start`, and its cluster no longer runs ({problem}): starting "
                    f"one on this machine; `ray stop`, or deleting the file, ends this message"
                )
                return "local"
            waited = time.monotonic() - began
            if waited >= GIVE_UP_SECONDS:
                raise ConfigError(unreachable(named, str(problem), waited)) from problem
            if not told:
                say(f"{problem}; trying for {GIVE_UP_SECONDS:.0f} s")
                told = True
        time.sleep(min(2.0, GIVE_UP_SECONDS / 10))


def unreachable(named: Named, reason: str, seconds: float) -> str:
    """The sentence that ends the tries: what was tried, for how long, and the way out."""
    if named.by_file:
        return (
            f"{named.source} names a Ray cluster at {named.address}, and it could not be joined in {seconds:.0f} s ({reason}): "
            "end what is left of it (`ray stop`) or delete the file, and a cluster is started on this machine"
        )
    return (
        f"{named.source} is {named.address}, and no Ray cluster could be joined there in {seconds:.0f} s ({reason}): unset it, "
        "and a cluster is started on this machine; or start that cluster, with this machine as one of its nodes; or submit the "
        "command to it (`ray job submit`)"
    )


def runs_here(address: str) -> bool:
    """Whether processes of the cluster with this address run on this machine."""
    services.find_gcs_addresses.cache_clear()  # type: ignore[attr-defined]
    return address in services.find_gcs_addresses()


def ask(named: Named, seconds: float | None = None) -> None:
    """Return where the cluster answers and this machine can join it.

    Args:
        seconds: how long to wait for the answer; `ANSWER_SECONDS` where not given.

    Raises:
        NoAnswer: it does not.
        ConfigError: it refuses this process's token.
    """
    seconds = ANSWER_SECONDS if seconds is None else seconds
    host, port = host_and_port(named.address)
    try:
        socket.create_connection((host, port), timeout=seconds).close()
    except TimeoutError as problem:
        raise NoAnswer(f"no connection to {host}:{port} in {seconds:g} s") from problem
    except OSError as problem:
        raise NoAnswer(f"{host}:{port}: {problem.strerror or problem}") from problem
    if named.address.startswith("ray://"):  # Ray's client has time limits of its own
        return
    try:
        check_alive(named.address, seconds)
    except grpc.RpcError as problem:
        if problem.code() in (grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED):
            # `ray.init` gives its token to a cluster that `ray start` has started here, and never to one at RAY_ADDRESS.
            if named.by_file and os.environ.get("RAY_AUTH_MODE") != "token":
                return
            raise ConfigError(f"{named.source} is {named.address}: {TOKEN}") from problem
        if problem.code() == grpc.StatusCode.DEADLINE_EXCEEDED:
            raise NoAnswer(f"something accepts connections at {host}:{port}, and does not answer like Ray") from problem
        raise NoAnswer(f"{host}:{port}: {problem.details()}") from problem
    if not services.find_node_ids():
        raise NoAnswer("it answers, but this machine is not one of its nodes")


def check_alive(address: str, seconds: float) -> None:
    """Return when the GCS of a cluster answers.

    Args:
        address: host:port of the GCS.
        seconds: how long to wait for the answer.

    Raises:
        grpc.RpcError: it does not, or refuses this process's token.
    """
    channel = init_grpc_channel(address)
    try:
        stub = gcs_service_pb2_grpc.NodeInfoGcsServiceStub(channel)
        stub.CheckAlive(gcs_service_pb2.CheckAliveRequest(), timeout=seconds)  # type: ignore[attr-defined]
    finally:
        channel.close()
