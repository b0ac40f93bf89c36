"""The application: its routes, behind its guard."""

import logging
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI, Request, Response
from fastapi.exception_handlers import http_exception_handler
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException

from slimsweep.config.messages import without_password
from slimsweep.errors import RefusedInput, reason_of
from slimsweep.service import downloads, pages, sweeps
from slimsweep.service.access import NotSignedIn
from slimsweep.service.guard import Guard
from slimsweep.service.settings import Settings
from slimsweep.service.shelf import Shelf

log = logging.getLogger(__name__)


def make_app(settings: Settings) -> FastAPI:
    """The service over a folder of runs, as an ASGI application. It runs under any ASGI server, and knows no Ray.

    Raises:
        RefusedInput: the folder's URI has an unknown scheme.
    """
    # FastAPI's own pages of documentation load scripts from another site.
    app = FastAPI(title="slimsweep", docs_url=None, redoc_url=None, openapi_url=None, lifespan=_reading_ahead)
    app.state.settings = settings
    app.state.shelf = Shelf(settings.output, settings.look_every)
    app.add_middleware(Guard, settings=settings)
    app.add_exception_handler(HTTPException, _refused)
    app.add_exception_handler(RequestValidationError, _of_another_form)
    app.add_exception_handler(RefusedInput, _not_shown)
    app.add_exception_handler(OSError, _not_readable)
    for routes in (pages, downloads, sweeps):
        app.include_router(routes.router)
    return app


@asynccontextmanager
async def _reading_ahead(app: FastAPI) -> AsyncIterator[None]:
    """Read the folder when the service starts: hundreds of runs take seconds, for which no reader has to wait then."""

    def look() -> None:
        try:
            app.state.shelf.look()
        except Exception:  # a store that does not answer yet: the first reader's request asks again
            log.exception("%s cannot be read yet", app.state.settings.output)

    threading.Thread(target=look, daemon=True, name="first look").start()
    yield


async def _refused(request: Request, problem: Exception) -> Response:
    """A page for people, to sign in or with the sentence; the sentence for programs."""
    assert isinstance(problem, HTTPException)
    if "text/html" not in request.headers.get("accept", ""):
        return await http_exception_handler(request, problem)
    if isinstance(problem, NotSignedIn):
        return pages.sign_in_page(problem.status_code)
    return pages.message_page(request, problem.status_code, str(problem.detail))


async def _not_shown(request: Request, problem: Exception) -> Response:
    """What is wrong with files of a run."""
    return await _refused(request, HTTPException(409, without_password(str(problem))))


async def _not_readable(request: Request, problem: Exception) -> Response:
    """A store that fails, a folder that was deleted while it was read, or a right that is missing."""
    assert isinstance(problem, OSError)
    log.warning("%s: %s", request.url.path, problem)
    said = f"the files of this folder cannot be read just now ({reason_of(problem)}): try again"
    return await _refused(request, HTTPException(503, said))


async def _of_another_form(request: Request, problem: Exception) -> Response:
    """One sentence on a request whose query or body is not as the route takes it."""
    assert isinstance(problem, RequestValidationError)
    said = [f"{'.'.join(str(part) for part in one['loc'][1:]) or one['loc'][0]}: {one['msg']}" for one in problem.errors()]
    return await _refused(request, HTTPException(422, f"the request is of another form ({'; '.join(said)[:500]})"))
