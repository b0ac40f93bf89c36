"""The Ray cluster: joining or starting one, and how many workers it holds."""

import os
import signal
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import ray
import torch
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from slimsweep.cluster import alive, set_ray_defaults
from slimsweep.cluster.failures import as_sentences
from slimsweep.cluster.joining import current_cluster_file, wait_for_answer
from slimsweep.cluster.own_cluster import (
    PROCESSES_STAY,
    Start,
    in_environment,
    keep_quiet,
    logging_of,
    settings_for,
    start,
    starts_ahead,
    take_over,
)
from slimsweep.cluster.tasks import loading_ahead, points_are_tasks, search_is_task, wait_for_loads
from slimsweep.cluster.worker import worker_resources
from slimsweep.config import Config, ConfigError
from slimsweep.errors import ClusterFailed, RunLost, explain, written
from slimsweep.ledger.files import HOLDER, SEARCH
from slimsweep.ledger.run import Run


@dataclass(frozen=True)
class Cluster:
    """The resources of a cluster's nodes."""

    nodes: list[dict[str, float]]  # per node, in Ray's names: CPU, GPU, ...
    is_own: bool = False  # whether the run has started it, and is alone on it
    processes_stay: bool = False  # whether processes that have loaded what tasks need wait for these
    loading: Sequence[Any] = ()  # what loads for the search, as `tasks.load_for_search` returns it

    def workers(self, config: Config) -> int:
        """How many training workers fit at the same time, each on one node; at least resources.max_workers, if it is set."""
        cpus, gpus = config.resources.cpus_per_worker, config.resources.gpus_per_worker
        fit = 0
        for node in self.nodes:
            by_cpus, has = int(node.get("CPU", 0) / cpus + 1e-9), int(node.get("GPU", 0))
            # A fraction is of one GPU: remainders on several GPUs do not add up.
            by_gpus = by_cpus if not gpus else has * int(1 / gpus + 1e-9) if gpus < 1 else int(has / gpus)
            fit += min(by_cpus, by_gpus)
        # Ray does not say how far an autoscaler may grow the cluster, so max_workers does.
        return max(fit, config.resources.max_workers or 0)

    def keeps_search_process(self, config: Config) -> bool:
        """Whether the search's process loads beside the driver, and stays for the tries of paces and the points."""
        return self.processes_stay and search_is_task(config)

    @property
    def gpus(self) -> float:
        """GPUs of all nodes."""
        return sum(node.get("GPU", 0.0) for node in self.nodes)


@contextmanager
def connected(
    verbose: bool = False,
    say: Callable[[str], None] = print,
    log: Callable[[str], str] | None = None,
    config: Config | None = None,
) -> Iterator[Cluster]:
    """Join the cluster that RAY_ADDRESS or `ray start` names, or start one on this machine while the block runs.

    Args:
        verbose: show Ray's own log.
        say: is told which cluster is tried, as `joining.wait_for_answer` does.
        log: writes what Ray said to a file and returns its path, as for `slimsweep.errors.explain_and_log`.
        config: of the model that is swept, if one is.

    Raises:
        ConfigError: RAY_ADDRESS names a cluster that cannot be reached, or that refuses the token.
        ClusterFailed: Ray, or a part of the cluster, failed while it was joined or in the block.
    """
    set_ray_defaults()
    if alive.lost:
        raise ClusterFailed(alive.lost[0])
    keep_quiet(verbose)
    ahead = take_over()
    already = ahead is None and ray.is_initialized()
    address = "local" if ahead is not None else None if already else wait_for_answer(say)
    configs = [] if config is None else [config]
    loading: list[Any] = []
    with ahead or in_environment(settings_for(configs) if address == "local" else {}):
        if not already:
            loading = join_or_start(address, configs, verbose, log, ahead)
        watch = alive.Watch()
        if not verbose:
            set_messages_aside(log)
        try:
            with watch, as_sentences(log):
                nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
                own = not already and address == "local"
                stay = own and bool(PROCESSES_STAY.keys() & os.environ.keys())
                yield Cluster(nodes, is_own=own, processes_stay=stay, loading=loading)
        finally:
            if not already:
                watch.leave() if watch.gone else ray.shutdown()
            watch.end()


def join_or_start(
    address: str | None,
    configs: Collection[Config],
    verbose: bool,
    log: Callable[[str], str] | None,
    ahead: Start | None = None,
) -> list[Any]:
    """Connect this process to a cluster, or to one that is started here ("local"); errors are those of `connected`.

    Args:
        address: as `joining.wait_for_answer` returns it.
        configs: of the models that are swept.
        ahead: a start that was begun earlier.

    Returns:
        What loads for the search; nothing on a cluster that was joined.
    """
    # Ray's SIGTERM handler ends the process at once; slimsweep's lets it say how to go on.
    on_sigterm = signal.getsignal(signal.SIGTERM)
    try:
        with as_sentences(log):
            if ahead is not None:
                return ahead.wait()
            if address == "local":
                return start(configs, verbose)
            ray.init(address, **logging_of(verbose))
            return []
    except BaseException as problem:
        if ahead is not None:
            ahead.tried.wait()
        ray.shutdown()  # what had begun
        if isinstance(problem, ConnectionError):
            raise ConfigError(
                f"{str(problem).splitlines()[0]} ({explain(problem.__cause__ or problem)}): see that RAY_ADDRESS is right, "
                "and that this machine is a node of that cluster; where it asks for a token, set RAY_AUTH_MODE=token and "
                "RAY_AUTH_TOKEN_PATH if the token is not in ~/.ray/auth_token"
            ) from problem
        if type(problem) is Exception:  # as Ray says that its processes did not start in time
            said = str(problem).splitlines()[0].rstrip(".")
            raise ClusterFailed(
                f"Ray did not start on this machine ({said}): it may be too busy, or short of memory; start the same "
                "command again when it is not"
            ) from problem
        raise
    finally:
        signal.signal(signal.SIGTERM, on_sigterm)


def set_messages_aside(log: Callable[[str], str] | None) -> None:
    """Let Ray's messages about processes and nodes, of up to fifty lines each, go to a file and not to the terminal.

    Ray prints them whatever `log_to_driver` is; it has no setting for that.
    """

    def keep(message: dict[str, Any], **_: Any) -> None:
        with suppress(RunLost):  # which ends the driver elsewhere, with its reason
            written("\n".join(message["lines"]) + "\n", log)

    ray._private.worker.print_to_stdstream = keep  # type: ignore[assignment]


def local_cluster() -> Cluster | None:
    """The cluster that `connected` would start on this machine; None where it would join one."""
    named = os.environ.get("RAY_ADDRESS") or ("auto" if current_cluster_file().exists() else "local")
    if not starts_ahead() and (ray.is_initialized() or named != "local"):
        return None
    here = {"CPU": float(os.cpu_count() or 1), "GPU": float(torch.cuda.device_count())}
    return Cluster([here], is_own=True, processes_stay=True)


def check_placement(config: Config, cluster: Cluster) -> None:
    """Refuse a configuration whose workers do not fit on the cluster: Ray would wait for room forever.

    Raises:
        ConfigError: names the field, the workers that it asks for, and those that fit.
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
                f"of {each} each: lower {' or '.join(lower)}{_that_fits(config, cluster)}; where the cluster autoscales, "
                "say in resources.max_workers how many workers it may grow to"
            )


def _that_fits(config: Config, cluster: Cluster) -> str:
    """For the refusal: options with which the configuration fits on the cluster, all at once; empty for one without CPUs."""
    cpus = max((int(node.get("CPU", 0)) for node in cluster.nodes), default=0)
    if not cpus:
        return ""
    resources = config.resources
    options: dict[str, float] = {"resources.cpus_per_worker": min(resources.cpus_per_worker, cpus)}
    if resources.gpus_per_worker:
        most = max(int(node.get("GPU", 0)) for node in cluster.nodes)
        options["resources.gpus_per_worker"] = min(resources.gpus_per_worker, most)
    fit = cluster.workers(config.changed(**options))
    if not fit:  # the GPUs are on nodes of few CPUs
        options["resources.cpus_per_worker"] = 1
        fit = cluster.workers(config.changed(**options))
    if not fit:
        return ""
    options |= {
        "resources.search_workers": min(resources.search_workers, fit),
        "retrain.workers_per_trial": min(config.retrain.workers_per_trial, fit),
    }
    now = {name: getattr(getattr(config, name.split(".")[0]), name.split(".")[1]) for name in options}
    return ", such as " + " ".join(f"--{name} {value:g}" for name, value in options.items() if value != now[name])


def check_storage(run: Run) -> None:
    """Refuse a local output folder that some nodes of the cluster do not share.

    Raises:
        ConfigError: names the nodes, and what to give instead.
    """
    others = [n for n in ray.nodes() if n["Alive"] and n["NodeID"] != ray.get_runtime_context().get_node_id()]
    if not run.folder.is_local or not others:
        return
    sees = ray.remote(num_cpus=0, max_retries=0)(sees_driver)
    token = run.driver_record(HOLDER).get("token")
    answers = {
        node["NodeManagerAddress"]: sees.options(
            scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
        ).remote(run.uri, token)
        for node in others
    }
    unshared = [address for address, answer in answers.items() if not ray.get(answer)]
    if unshared:
        raise ConfigError(
            f"output: {run.uri} is a local path that {len(unshared)} of {len(others) + 1} nodes "
            f"({', '.join(sorted(unshared)[:3])}) do not share with the driver: "
            "give a folder that all nodes share, or an object store (s3://, gs://)"
        )


def sees_driver(uri: str, token: str | None) -> bool:
    """Whether the run's driver, known by its token, can be seen from this node: not an earlier one's folder at this path."""
    return Run(uri).driver_record(HOLDER).get("token") == token


@contextmanager
def tasks_load(run: Run, attempt: str, cluster: Cluster) -> Iterator[None]:
    """While the block searches, let processes load what the tries of paces and the points need (`loads_at_once`).

    Args:
        attempt: name of the driver's start.
    """
    config, reader = run.config, Run(run.folder.at_once(), run.config, run.holder)

    def searches() -> bool:  # before that, Ray Train starts processes of its own
        try:
            return SEARCH in reader.begun_in(attempt)
        except OSError:  # a store that is away, as the display says; it is asked again
            return False

    # The points are planned when the search is done. There can be fewer, where methods keep the same.
    points = len(config.retrain.seeds) * (1 + len(config.budgets) * (1 + len(config.baselines)))
    processes = trials_at_once(config, cluster, max(len(config.search.paces), points))
    processes -= cluster.keeps_search_process(config)  # whose process tries and trains too
    with loading_ahead(processes, loads_at_once(config, cluster), worker_resources(config), searches) as loading:
        yield
    if run.refresh().search_done:  # not where time is over
        wait_for_loads(loading)


def loads_at_once(config: Config, cluster: Cluster) -> int:
    """How many processes can load what tasks need while the search trains, each on a CPU that is free; 0 where none is to.

    Only on a cluster of this run's own: on others the processes would not stay, and other people's work wants the CPUs.
    """
    if not (cluster.processes_stay and points_are_tasks(config)):
        return 0
    resources = worker_resources(config)
    free = sum(node.get("CPU", 0.0) for node in cluster.nodes) - config.resources.search_workers * resources["CPU"]
    return max(0, int(free / resources["CPU"] + 1e-9))


def trials_at_once(config: Config, cluster: Cluster, points: int) -> int:
    """How many points train at the same time: the workers that fit, at most max_concurrent_trials, at most `points`."""
    fit = max(1, cluster.workers(config) // config.retrain.workers_per_trial)
    return max(1, min(points, fit, config.resources.max_concurrent_trials or fit))
