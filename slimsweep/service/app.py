"""The application: its routes, behind its guard."""

from fastapi import FastAPI

from slimsweep.service.guard import Guard
from slimsweep.service.settings import Settings


def make_app(settings: Settings) -> FastAPI:
    """The service over a folder of runs, as an ASGI application. It runs under any ASGI server, and knows no Ray."""
    # Its own pages of documentation load scripts from another site.
    app = FastAPI(title="slimsweep", docs_url=None, redoc_url=None, openapi_url=None)
    app.state.settings = settings
    app.add_middleware(Guard, settings=settings)
    return app
