"""An ASGI application on Ray Serve: as an application to deploy, and deployed while a command runs."""

import logging
import time
from collections.abc import Callable
from typing import Any

import ray
from ray import serve
from ray.serve.config import HTTPOptions
from ray.serve.schema import LoggingConfig

from slimsweep.config import ConfigError

NAME = "slimsweep"
AT_ONCE = 200  # requests that a replica answers at the same time; further ones wait
LOOK_SECONDS = 1.0  # between two looks at whether the command is to end


def application(make_app: Callable[[], Any], here: bool = False) -> serve.Application:
    """An ASGI application for Ray Serve, as one replica that takes no CPU from trainings.

    Args:
        make_app: makes the application, in the replica's process.
        here: whether it runs on this node, whose paths and addresses are meant; else anywhere on the cluster.
    """
    place = {f"node:{ray.util.get_node_ip_address()}": 0.001} if here else {}

    def build() -> Any:  # Serve wants a plain function
        return make_app()

    deployment: Any = serve.deployment(
        serve.ingress(build)(),
        name=NAME,
        max_ongoing_requests=AT_ONCE,
        ray_actor_options={"num_cpus": 0, "resources": place},
        logging_config=LoggingConfig(log_level="WARNING", enable_access_log=False),
    )
    return deployment.bind()


def serve_until_stopped(make_app: Callable[[], Any], host: str, port: int, ready: Callable[[], None]) -> None:
    """Serve an ASGI application on the cluster that this process has joined, until an exception such as KeyboardInterrupt.

    Args:
        make_app: makes the application.
        ready: is called when it answers.

    Raises:
        ConfigError: Ray Serve runs on the cluster already: where it listens cannot be changed while it runs.
    """
    for name in ("ray.serve", "ray._private"):
        logging.getLogger(name).setLevel(logging.ERROR)
    status = serve.status()
    if status.proxies or status.applications:
        running = ", ".join(sorted(status.applications)) or "no application"
        raise ConfigError(
            f"Ray Serve runs on this cluster already ({running}), and where it listens was set at its start: end it by "
            "`serve shutdown`, or set RAY_ADDRESS=local, which starts a Ray of its own for this service"
        )
    try:
        serve.start(
            proxy_location="EveryNode",  # that has a replica: this one
            http_options=HTTPOptions(host=host, port=port),
            logging_config=LoggingConfig(log_level="WARNING", enable_access_log=False),
        )
        serve.run(application(make_app, here=True), name=NAME, route_prefix="/")
        ready()
        while True:
            time.sleep(LOOK_SECONDS)
    finally:
        if ray.is_initialized():  # on a cluster that others use, Serve would stay
            serve.shutdown()
