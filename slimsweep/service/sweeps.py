"""Sweeps that are started, stopped and gone on with from a browser: each is a job of the cluster, `python -m slimsweep.run`.

There is no second way of running: what a person asks for becomes the arguments of that command, and its output is always the
folder that the service shows. All of it needs the token, also looking at a plan, which takes a worker's time, and at what jobs
print. Paths in a configuration are those of the cluster's machines.
"""

import json
import shlex
import threading
from dataclasses import asdict
from typing import Annotated, Any

from fastapi import APIRouter, Depends, HTTPException, Query, Request
from fastapi.responses import HTMLResponse
from pydantic import BaseModel, ConfigDict, Field

from slimsweep.errors import REFUSED, ClusterFailed
from slimsweep.report.action_pages import build_sweeps_page
from slimsweep.service.access import Actor, Reader, settings_of
from slimsweep.service.asked_sweep import (
    CONFIG_FILE,
    AskedSweep,
    Looked,
    Problem,
    form_fields,
    form_presets,
    look,
    problems_of,
    sentences_of,
)
from slimsweep.service.pages import PAGE_POLICY
from slimsweep.service.run_of_request import run_named
from slimsweep.storage import Folder, parted

PLAN_SECONDS = 600.0

router = APIRouter()


class Budgets(BaseModel):
    """Budgets to add to those of a run."""

    model_config = ConfigDict(extra="forbid")

    budgets: Annotated[list[Annotated[str, Field(max_length=100)]], Field(max_length=100)] = []


class Sweeps:
    """Who starts sweeps for one application.

    Args:
        output: the folder that it shows.
        address: of the cluster's dashboard; found where not given, as `slimsweep.cluster.jobs.Jobs` says.
    """

    def __init__(self, output: str, address: str | None = None) -> None:
        self.output = Folder(output).uri
        self._address = address
        self._starting = threading.Lock()
        self.planning = threading.Lock()  # one plan at a time: it times models

    @property
    def jobs(self) -> Any:
        """The cluster's jobs. Ray is imported here, by the first who asks."""
        from slimsweep.cluster.jobs import Jobs

        return Jobs(self.output, self._address)

    def start(self, run: str, words: list[str], files: dict[str, str]) -> dict[str, Any]:
        """Submit a sweep, unless a job of the same run is alive, or one of the group that it is in or of a run in that.

        Raises:
            HTTPException: 409, one is.
            ClusterFailed: the cluster does not take it.
        """
        with self._starting:
            jobs = self.jobs
            alive = next((job for job in jobs.all() if job.is_alive and _share_a_run(job.run, run)), None)
            if alive is not None:
                raise HTTPException(409, f"{alive.run} is {alive.state} already, as job {alive.id}: stop it first")
            return _shown(jobs.submit(run, words, files))


def sweeps_of(request: Request) -> Sweeps:
    """Who starts sweeps for the application that answers a request."""
    state = request.app.state
    if not hasattr(state, "sweeps"):
        state.sweeps = Sweeps(settings_of(request).output)
    found: Sweeps = state.sweeps
    return found


OfSweeps = Annotated[Sweeps, Depends(sweeps_of)]
RunName = Annotated[str, Query(max_length=300)]


@router.get("/sweeps")
def sweeps_page(_: Reader) -> HTMLResponse:
    """The page to start sweeps with."""
    return HTMLResponse(build_sweeps_page(form_presets(), form_fields()), headers=PAGE_POLICY)


@router.post("/api/sweeps/check")
def check_sweep(_: Actor, asked: AskedSweep, sweeps: OfSweeps) -> dict[str, Any]:
    """What cannot work in a configuration, and the command that would be run."""
    looked = look(asked, sweeps.output)
    return {"problems": _as_json(looked.problems), "run": looked.run, "command": _command(asked, sweeps)}


@router.post("/api/sweeps/plan")
def plan_sweep(_: Actor, asked: AskedSweep, sweeps: OfSweeps) -> dict[str, Any]:
    """What `slimsweep plan` says of a sweep, on a worker of the cluster where the service runs in one."""
    looked = _refuse_problems(look(asked, sweeps.output))

    from slimsweep.cluster.commands import run_command

    if not sweeps.planning.acquire(blocking=False):
        raise HTTPException(503, "another plan is being made, and it times models: try again in a minute")
    try:
        words = ["-m", "slimsweep.cli", "plan", *asked.words(sweeps.output)]
        ended = run_command(words, seconds=PLAN_SECONDS, files=asked.files)
    except TimeoutError as late:
        raise HTTPException(504, f"the plan could not be made: {late}") from late
    except ClusterFailed as problem:
        raise HTTPException(503, str(problem)) from problem
    finally:
        sweeps.planning.release()
    if ended.code:
        said = ended.output.strip().partition("slimsweep: ")[2] or ended.errors.strip() or f"it ended with code {ended.code}"
        if ended.code == REFUSED:
            _refuse_problems(Looked(problems=problems_of(sentences_of(said), asked.text)))
        raise HTTPException(500, f"the plan could not be made: {' '.join(said.split())}")
    return {"run": looked.run, "text": ended.output, "command": _command(asked, sweeps)}


@router.post("/api/sweeps", status_code=201)
def start_sweep(_: Actor, asked: AskedSweep, sweeps: OfSweeps) -> dict[str, Any]:
    """Start a sweep; the same one again goes on."""
    looked = _refuse_problems(look(asked, sweeps.output))
    return _asked_of_cluster(lambda: sweeps.start(looked.run, asked.words(sweeps.output), asked.files))


@router.get("/api/sweeps")
def list_sweeps(_: Actor, request: Request, sweeps: OfSweeps) -> dict[str, Any]:
    """The jobs of this folder, the latest first, and all runs in it."""
    found = json.loads(request.app.state.shelf.look().body)
    jobs = _asked_of_cluster(sweeps.jobs.all)
    return {"jobs": [_shown(job) for job in jobs], "runs": [run["name"] for run in found["runs"]]}


@router.get("/api/sweeps/log")
def sweep_log(_: Actor, run: RunName, sweeps: OfSweeps) -> dict[str, Any]:
    """The end of what the last job of a run has printed."""
    job = _job(sweeps, run)
    return {**_shown(job), "log": _asked_of_cluster(lambda: sweeps.jobs.log(job))}


@router.post("/api/sweeps/stop", status_code=202)
def stop_sweep(_: Actor, run: RunName, sweeps: OfSweeps) -> dict[str, Any]:
    """Stop the job of a run, as Ctrl+C would; what is done stays."""
    job = _job(sweeps, run)
    if not job.is_alive:
        raise HTTPException(409, f"{run} is not running: its last job is {job.state}")
    _asked_of_cluster(lambda: sweeps.jobs.stop(job))
    return _shown(job)


@router.post("/api/sweeps/go-on", status_code=201)
def go_on(_: Actor, request: Request, run: RunName, more: Budgets, sweeps: OfSweeps) -> dict[str, Any]:
    """Go on with a run from the configuration in its folder, with more budgets where they are given."""
    found = run_named(request, run)
    text, config = found.config_text(), found.stored_config()
    added = [budget for budget in more.budgets if budget.strip() not in map(str, config.budgets)]
    fields = {"name": parted(found.folder.uri)[1]}
    if added:
        fields["budgets"] = ",".join(map(str, [*config.budgets, *added]))
    asked = AskedSweep(text=text, fields=fields)
    output = parted(found.folder.uri)[0]  # of a sweep over several models the folder of the group
    _refuse_problems(look(asked, output))
    return _asked_of_cluster(lambda: sweeps.start(run, asked.words(output), asked.files))


def _asked_of_cluster(ask: Any) -> Any:
    """What the cluster answers; that it cannot be reached is no fault of the request's."""
    try:
        return ask()
    except ClusterFailed as problem:
        raise HTTPException(503, str(problem)) from problem


def _share_a_run(one: str, other: str) -> bool:
    """Whether two names are of the same run, or one is of a sweep over several models and the other of one of its runs."""
    return one == other or one.startswith(f"{other}/") or other.startswith(f"{one}/")


def _job(sweeps: Sweeps, run: str) -> Any:
    found = _asked_of_cluster(lambda: sweeps.jobs.latest(run))
    if found is None:
        raise HTTPException(404, f"{run[:200]!r} was not started from here, so there is no job of it")
    return found


def _refuse_problems(looked: Looked) -> Looked:
    """Refuse a sweep that cannot work.

    Raises:
        HTTPException: 422 with what is wrong, a sentence each.
    """
    if looked.problems:
        raise HTTPException(422, {"problems": _as_json(looked.problems)})
    return looked


def _as_json(problems: list[Problem]) -> list[dict[str, Any]]:
    return [asdict(problem) for problem in problems]


def _command(asked: AskedSweep, sweeps: Sweeps) -> str:
    """The command as a person would type it, beside a file with the text."""
    words = [word if word != CONFIG_FILE else f"./{CONFIG_FILE}" for word in asked.words(sweeps.output)]
    return shlex.join(["python", "-m", "slimsweep.run", *words])


def _shown(job: Any) -> dict[str, Any]:
    return {**asdict(job), "alive": job.is_alive}
