"""What people read: the shelf of all runs, the page of a run, the page that compares several; and signing in to read them.

What is at hand is answered at once; only what has to be read or built first goes to another thread.
"""

import gzip
from functools import cache
from typing import Annotated

from fastapi import APIRouter, Depends, HTTPException, Query, Request, Response
from fastapi.concurrency import run_in_threadpool

from slimsweep.report.page import figure_library
from slimsweep.report.shelf_page import build_message_page, build_shelf_page, build_sign_in_page
from slimsweep.service.access import COOKIE, Reader, check_token, reading_key, settings_of
from slimsweep.service.shelf import Document, NoSuchRun, Shelf

MOST_COMPARED = 12
HTML = "text/html; charset=utf-8"
# The pages' own policies, in their text, say what they may load: their own scripts by hashes, and nothing from elsewhere.
PAGE_POLICY = {"content-security-policy": "frame-ancestors 'none'"}

router = APIRouter()


async def shelf_of(request: Request) -> Shelf:
    """The shelf of the service that answers a request."""
    found: Shelf = request.app.state.shelf
    return found


OfRequest = Annotated[Shelf, Depends(shelf_of)]


@router.get("/")
async def shelf_page(request: Request, _: Reader) -> Response:
    """The page of all runs."""
    return answer(request, _shelf_page(), HTML)


@router.get("/api/shelf")
async def shelf_data(request: Request, shelf: OfRequest, _: Reader) -> Response:
    """What the page of all runs shows."""
    found = shelf.recent()
    if found is None:
        found = await run_in_threadpool(shelf.look)
    return answer(request, found, "application/json")


@router.get("/runs/{name}")
async def run_page(request: Request, name: str, shelf: OfRequest, _: Reader, whole: bool = False) -> Response:
    """The report of a run; `whole` gives it as one file, with the figure library."""
    return await _report(request, shelf, [name], "" if whole else "../")


@router.get("/runs/{group}/{name}")
async def grouped_run_page(
    request: Request, group: str, name: str, shelf: OfRequest, _: Reader, whole: bool = False
) -> Response:
    """The report of a run of a sweep over several models."""
    return await _report(request, shelf, [f"{group}/{name}"], "" if whole else "../../")


@router.get("/compare")
async def comparison(
    request: Request, shelf: OfRequest, _: Reader, run: Annotated[list[str] | None, Query()] = None, whole: bool = False
) -> Response:
    """One report of several runs."""
    names = list(dict.fromkeys(run or []))
    if not names:
        raise HTTPException(400, "no run is named: tick runs on the page of all runs, or open compare?run=NAME&run=NAME")
    if len(names) > MOST_COMPARED:
        raise HTTPException(400, f"{len(names)} runs are too many for one page: give at most {MOST_COMPARED}")
    return await _report(request, shelf, names, "" if whole else "./")


@router.get("/plotly-{key}.js")
def figures(request: Request, key: str) -> Response:
    """The figure library of the reports: a public package, which browsers load once."""
    library = figure_library()
    if library.name != f"plotly-{key}.js":
        raise HTTPException(404, "the figure library has another name since the service was updated: load the page again")
    headers = {"cache-control": "public, max-age=31536000, immutable", "vary": "accept-encoding"}
    if "gzip" not in request.headers.get("accept-encoding", ""):
        return Response(library.text, media_type="text/javascript", headers=headers)
    return Response(_packed_figures(), media_type="text/javascript", headers=headers | {"content-encoding": "gzip"})


@router.post("/api/sign-in", status_code=204)
def sign_in(request: Request) -> Response:
    """Give a browser that shows the token a cookie to read with."""
    check_token(request)
    settings = settings_of(request)
    response = Response(status_code=204)
    secure = request.url.scheme == "https"
    response.set_cookie(COOKIE, reading_key(settings.token), httponly=True, samesite="strict", secure=secure, path="/")
    return response


def answer(request: Request, document: Document, media_type: str) -> Response:
    """A document, compressed where the browser takes that; empty where it has it already."""
    headers = {"etag": document.etag, "vary": "accept-encoding"}
    if media_type == HTML:
        headers |= PAGE_POLICY
    if document.etag in request.headers.get("if-none-match", ""):
        return Response(status_code=304, headers=headers)
    body = document.body
    if "gzip" in request.headers.get("accept-encoding", ""):
        body = document.packed
        headers["content-encoding"] = "gzip"
    return Response(body, media_type=media_type, headers=headers)


def sign_in_page(status: int) -> Response:
    """What a browser without the token gets in place of a page."""
    return Response(build_sign_in_page(), status_code=status, media_type=HTML, headers=PAGE_POLICY)


def message_page(request: Request, status: int, sentence: str) -> Response:
    """What a person gets who asked for a page that cannot be shown."""
    depth = max(0, request.url.path.strip("/").count("/"))
    page = build_message_page("Not found" if status == 404 else "Not shown", sentence, "../" * depth or "./")
    return Response(page, status_code=status, media_type=HTML, headers=PAGE_POLICY)


async def _report(request: Request, shelf: Shelf, names: list[str], shelf_at: str) -> Response:
    try:
        page = shelf.recent_page(names, shelf_at)
        if page is None:
            page = await run_in_threadpool(shelf.page, names, shelf_at)
        return answer(request, page, HTML)
    except NoSuchRun as missing:
        raise HTTPException(404, f"there is no run {str(missing)[:200]!r} in this folder") from missing


@cache
def _packed_figures() -> bytes:
    return gzip.compress(figure_library().text.encode(), 9)


@cache
def _shelf_page() -> Document:
    return Document.of(build_shelf_page().encode())
