"""The Ray cluster: joining or starting one, and what it can hold."""

import logging
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import ray
import torch
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from slimsweep.config import Config, ConfigError
from slimsweep.ledger.run import DRIVER, Run
from slimsweep.storage import Folder

# Tune logs a traceback for each trial that dies; the point's row, the table at the end and the exit code say it.
QUIET = {name: logging.ERROR for name in ("ray", "ray.train", "ray.data", "ray._private")} | {"ray.tune": logging.CRITICAL}


@dataclass(frozen=True)
class Cluster:
    """What the cluster's nodes hold."""

    nodes: list[dict[str, float]]

    def workers(self, config: Config) -> int:
        """How many training workers fit at the same time, or will once the cluster has grown; each must fit on one node."""
        cpus, gpus = config.resources.cpus_per_worker, config.resources.gpus_per_worker
        fit = 0
        for node in self.nodes:
            by_cpus, has = int(node.get("CPU", 0) / cpus + 1e-9), int(node.get("GPU", 0))
            # A fraction is of one GPU: what is left over on each does not add up to another.
            by_gpus = by_cpus if not gpus else has * int(1 / gpus + 1e-9) if gpus < 1 else int(has / gpus)
            fit += min(by_cpus, by_gpus)
        # Ray does not tell what an autoscaler may still add: the person does.
        return max(fit, config.resources.max_workers or 0)

    @property
    def gpus(self) -> float:
        return sum(node.get("GPU", 0.0) for node in self.nodes)


@contextmanager
def connected(verbose: bool = False) -> Iterator[Cluster]:
    """Join the cluster that RAY_ADDRESS or `ray start` names, or start one on this machine while the block runs."""
    if not verbose:
        for name, level in QUIET.items():
            logging.getLogger(name).setLevel(level)
    already = ray.is_initialized()
    if not already:
        # Ray's own SIGTERM handler ends the process where it stands; ours lets it say how to go on.
        on_sigterm = signal.getsignal(signal.SIGTERM)
        try:
            ray.init(log_to_driver=verbose, logging_level=logging.INFO if verbose else logging.ERROR)
        except ConnectionError as problem:
            raise ConfigError(
                f"{str(problem).splitlines()[0]}; see that RAY_ADDRESS is right and it runs; where it asks for a token, "
                "set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN_PATH if the token is not in ~/.ray/auth_token"
            ) from problem
        signal.signal(signal.SIGTERM, on_sigterm)
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    try:
        yield Cluster(nodes)
    finally:
        if not already:
            ray.shutdown()


def foreseen() -> Cluster | None:
    """The cluster that `connected` would start on this machine; None where there is one to join."""
    current = Path(os.environ.get("RAY_TMPDIR", "/tmp"), "ray", "ray_current_cluster")  # what `ray start` leaves
    if ray.is_initialized() or "RAY_ADDRESS" in os.environ or current.exists():
        return None
    return Cluster([{"CPU": float(os.cpu_count() or 1), "GPU": float(torch.cuda.device_count())}])


def check_placement(config: Config, cluster: Cluster) -> None:
    """Refuse what this cluster can never place, before it waits for it forever.

    Raises:
        ConfigError: names the field, what it asks for, and what there is.
    """
    fit = cluster.workers(config)
    each = f"{config.resources.cpus_per_worker:g} CPUs" + (
        f" and {config.resources.gpus_per_worker:g} GPUs" if config.resources.gpus_per_worker else ""
    )
    for field, wanted in (
        ("resources.search_workers", config.resources.search_workers),
        ("retrain.workers_per_trial", config.retrain.workers_per_trial),
    ):
        if wanted > fit:
            others = [f"resources.{kind}" for kind in ("gpus_per_worker", "cpus_per_worker") if getattr(config.resources, kind)]
            lower = [*([field] if fit else []), *others]
            raise ConfigError(
                f"{field} is {wanted}, but this cluster of {len(cluster.nodes)} nodes holds at most {fit} workers "
                f"of {each} each: lower {' or '.join(lower)}; where the cluster autoscales, say in "
                "resources.max_workers how many workers it may grow to"
            )


def check_storage(run: Run) -> None:
    """Refuse a local path that some nodes of the cluster do not share.

    Raises:
        ConfigError: names the nodes, and what to give instead.
    """
    others = [n for n in ray.nodes() if n["Alive"] and n["NodeID"] != ray.get_runtime_context().get_node_id()]
    if not run.folder.is_local or not others:
        return
    sees = ray.remote(num_cpus=0, max_retries=0)(sees_driver)
    asked = {
        node["NodeManagerAddress"]: sees.options(
            scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
        ).remote(run.uri)
        for node in others
    }
    blind = [address for address, answer in asked.items() if not ray.get(answer)]
    if blind:
        raise ConfigError(
            f"output: {run.uri} is a local path that {len(blind)} of {len(others) + 1} nodes ({', '.join(sorted(blind)[:3])}) "
            "do not share with the driver: give a folder that all nodes share, or an object store (s3://, gs://)"
        )


def sees_driver(uri: str) -> bool:
    """Whether a run's folder, as this node sees it, holds the mark that its driver keeps there."""
    return Folder(uri).exists(DRIVER)


def trials_at_once(config: Config, cluster: Cluster, points: int) -> int:
    """How many points train at the same time: what fits, what was allowed, and no more than there are."""
    fit = max(1, cluster.workers(config) // config.retrain.workers_per_trial)
    return max(1, min(points, fit, config.resources.max_concurrent_trials or fit))
