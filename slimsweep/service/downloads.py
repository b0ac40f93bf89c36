"""Models to take away: a point as a timm folder, an ONNX file or a program of torch.export, made when somebody asks for it.

A file is made once, by a worker (`python -m slimsweep.service.make_download`), checked to compute what the model computes, and
kept in the run's folder for who asks next; a model that was trained again is exported again. At most AT_ONCE files are made at
a time, and each by one worker only. Who may read may download.
"""

import json
import re
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Annotated, Any

from fastapi import APIRouter, Depends, HTTPException, Query, Request, Response
from fastapi.responses import HTMLResponse, StreamingResponse

from slimsweep.errors import RefusedInput, SlimsweepError
from slimsweep.ledger.measures import images_of, measure_of
from slimsweep.ledger.run import Run
from slimsweep.report.action_pages import build_downloads_page
from slimsweep.service.access import Reader
from slimsweep.service.make_download import KINDS, Kind, file_name, refuse_too_large
from slimsweep.service.pages import PAGE_POLICY
from slimsweep.service.run_of_request import run_named

AT_ONCE = 2
WAITING = 8  # files that may wait to be made
SECONDS = 900.0  # that making a file may take
CHUNK = 8 << 20  # bytes of a file that are read at once, by two requests where it is in an object store
POINT = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.,=+-]{0,199}", re.ASCII)  # the name of a point, and of no file elsewhere

router = APIRouter()
Named = Annotated[str, Query(max_length=500)]


class Making:
    """The files that are being made, and why the last try of others failed."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._pool = ThreadPoolExecutor(AT_ONCE, thread_name_prefix="download")
        self._at_work: set[tuple[str, str, Kind]] = set()
        self._failed: dict[tuple[str, str, Kind], str] = {}

    def state(self, run: Run, point: str, kind: Kind) -> dict[str, Any]:
        """What is known of a file: `state` (missing, making, ready, failed), `bytes` of one that is ready, `why` it failed."""
        key = (run.uri, point, kind)
        with self._lock:
            if key in self._at_work:
                return {"state": "making"}
            failed = self._failed.get(key)
        size = run.products.export_state(point, file_name(point, kind))
        if size is not None:
            return {"state": "ready", "bytes": size}
        return {"state": "missing"} if failed is None else {"state": "failed", "why": failed}

    def begin(self, run: Run, point: str, kind: Kind) -> None:
        """Have a file made, unless it is being made already.

        Raises:
            HTTPException: too many others wait.
        """
        key = (run.uri, point, kind)
        with self._lock:
            if key in self._at_work:
                return
            if len(self._at_work) >= AT_ONCE + WAITING:
                raise HTTPException(503, f"{len(self._at_work)} other files are being made: try again in a minute")
            self._at_work.add(key)
            self._failed.pop(key, None)
        self._pool.submit(self._make, key)

    def _make(self, key: tuple[str, str, Kind]) -> None:
        uri, point, kind = key
        try:
            why = _made(uri, point, kind)
        except Exception as problem:  # also what nobody foresaw is said to who waits
            why = f"{type(problem).__name__}: {problem}"
        with self._lock:
            self._at_work.discard(key)
            if why:
                self._failed[key] = " ".join(why.split())


def _made(uri: str, point: str, kind: Kind) -> str:
    """Have a worker make a file; returns why it failed, empty where it is there."""
    from slimsweep.cluster.commands import run_command  # here, so that a service that makes nothing loads no Ray

    try:
        ended = run_command(["-m", "slimsweep.service.make_download", uri, point, kind], seconds=SECONDS)
    except (TimeoutError, SlimsweepError) as problem:
        return f"{file_name(point, kind)} could not be made: {problem}"
    if ended.code == 0:
        return ""
    said = (ended.output.strip() or ended.errors.strip()).splitlines()
    return said[-1].removeprefix("slimsweep: ") if said else f"making it ended with code {ended.code}"


def making_of(request: Request) -> Making:
    """What the application that answers a request is making; one per application."""
    state = request.app.state
    if not hasattr(state, "making"):
        state.making = Making()
    found: Making = state.making
    return found


def the_point(request: Request, run: Named, point: Named) -> tuple[Run, str]:
    """The run and the point that a request names: a point that is done, so that no path is made from what the request says.

    Raises:
        HTTPException: 404, there is no such run or point.
    """
    found = run_named(request, run)
    rows = found.rows
    # What a row says is no better: whoever may write to the run's folder chose it.
    if not POINT.fullmatch(point) or point not in set(rows[rows["status"] == "ok"]["point"]):
        raise HTTPException(404, f"{run} has no model {point[:200]!r} that is done")
    return found, point


ThePoint = Annotated[tuple[Run, str], Depends(the_point)]
OfMaking = Annotated[Making, Depends(making_of)]


def how_to_load(point: str, kind: Kind) -> str:
    """The two lines that load a downloaded file."""
    name = json.dumps(file_name(point, kind))
    if kind == "onnx":
        return f"import onnxruntime\nmodel = onnxruntime.InferenceSession({name})"
    if kind == "pt2":
        return f"import torch\nmodel = torch.export.load({name}).module()"
    unpacked, packed = json.dumps(f"local-dir:{point}"), file_name(point, kind)
    return f"import slimsweep, timm  # after: unzip {packed}\nmodel = timm.create_model({unpacked}, pretrained=True).eval()"


def in_words(run: Run, point: str) -> str:
    """What a point costs and how good it is: "searched, 1.73 MMACs (49.6 % of dense), 124,057 parameters, test top-1 84 %"."""
    rows, row = run.rows, run.row(point)
    measure, images = measure_of(rows), images_of(rows, run.known_data).get("test")
    amount, unit = (row["macs"] / 1e9, "GMACs") if row["macs"] >= 1e9 else (row["macs"] / 1e6, "MMACs")
    costs = f"{amount:.3g} {unit} ({100 * row['macs'] / row['macs_dense']:.3g} % of dense), {row['params']:,} parameters"
    return f"{row['method']}, {costs}, test {measure.title} {measure.text(row[measure.test], images)}"


@router.get("/downloads")
def downloads_page(_: Reader, found: ThePoint) -> HTMLResponse:
    """The page of a point's files."""
    run, point = found
    return HTMLResponse(build_downloads_page(run.folder.name, point, in_words(run, point)), headers=PAGE_POLICY)


@router.get("/api/downloads")
def downloads(_: Reader, found: ThePoint, making: OfMaking) -> list[dict[str, Any]]:
    """What is known of a point's file in each format, and how it is loaded."""
    run, point = found
    return [
        {"format": kind, "file": file_name(point, kind), "load": how_to_load(point, kind), **making.state(run, point, kind)}
        for kind in KINDS
    ]


@router.post("/api/downloads", status_code=202)
def make_download(_: Reader, found: ThePoint, format: Kind, making: OfMaking) -> dict[str, Any]:
    """Have a file made; answers at once with its state."""
    run, point = found
    if making.state(run, point, format)["state"] != "ready":
        try:
            refuse_too_large(run, point)
        except RefusedInput as problem:
            raise HTTPException(413, str(problem)) from problem
        making.begin(run, point, format)
    return making.state(run, point, format)


@router.get("/api/downloads/file")
def download(_: Reader, found: ThePoint, format: Kind) -> Response:
    """A file that is ready."""
    run, point = found
    name = file_name(point, format)
    size = run.products.export_state(point, name)
    if size is None:
        raise HTTPException(409, f"{name} is not made yet: ask for it by POST /api/downloads")

    def parts() -> Iterator[bytes]:
        for start in range(0, size, CHUNK):
            yield run.products.read_export(name, start, min(CHUNK, size - start))

    headers = {"content-length": str(size), "content-disposition": f'attachment; filename="{name}"'}
    return StreamingResponse(parts(), media_type="application/octet-stream", headers=headers)
