"""The service on Ray Serve: while `slimsweep serve` runs, and as an application that a Serve config file names.

In a config file, `import_path: slimsweep.service.deployed:application` with `args: {output: /shared/runs}`.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

from slimsweep.cluster.cluster import connected
from slimsweep.cluster.serving import application as on_serve
from slimsweep.cluster.serving import serve_until_stopped
from slimsweep.errors import RefusedInput
from slimsweep.service.settings import MAKE_ONE, Reading, Settings, found_token


def serve(settings: Settings, say: Callable[[str], None]) -> None:
    """Serve until the process is stopped, on the cluster that RAY_ADDRESS names, or on a Ray of its own.

    Args:
        say: is told where the service is, once it answers.
    """
    shown = "localhost" if settings.host in ("127.0.0.1", "::1") else settings.host
    where = f"http://{f'[{shown}]' if ':' in shown else shown}:{settings.port}"
    with connected(say=say):
        serve_until_stopped(partial(_app, settings), settings.host, settings.port, lambda: say(_ready(settings, where)))


def application(args: dict[str, Any]) -> Any:
    """The application for a Serve config file. The address to listen on stands in the file's own `http_options`.

    Args:
        args: `output`; `reading` ("token", or "open") and `names`, further names under which people reach the service.

    Raises:
        RefusedInput: an argument is unknown or missing, or there is no token: a config file serves on a network.
    """
    known = {"output", "reading", "names"}
    if "output" not in args or not set(args) <= known:
        wrong = ", ".join(sorted(set(args) - known)) or "output is missing"
        raise RefusedInput(f"args of the Serve application: {wrong}; give output, and if needed reading and names")
    if not (token := found_token()):
        raise RefusedInput(f"there is no token that would keep strangers out: set RAY_AUTH_MODE=token; {MAKE_ONE}")
    reading: Reading = "open" if args.get("reading") == "open" else "token"
    settings = Settings(output=args["output"], token=token, reading=reading, names=tuple(args.get("names", ())))
    return on_serve(partial(_app, settings))


def _app(settings: Settings) -> Any:
    from slimsweep.service.app import make_app  # in the replica's process

    return make_app(settings)


def _ready(settings: Settings, where: str) -> str:
    reading = "anyone who reaches this address may read" if settings.reading == "open" else "reading asks for the token"
    acting = "acting asks for the token" if settings.token else "nobody may act, as there is no token"
    return f"{settings.output} is shown at {where} ({reading}; {acting}); Ctrl+C ends the service"
