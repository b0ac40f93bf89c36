"""The run that a request names."""

from fastapi import HTTPException, Request

from slimsweep.ledger.run import Run
from slimsweep.service.shelf import NoSuchRun, Shelf


def run_named(request: Request, name: str) -> Run:
    """A `Run` of its own for this request, of a run that the shelf has found: no path is made from what a request says.

    Args:
        name: as the shelf has it: NAME, or GROUP/NAME of a sweep over several models.

    Raises:
        HTTPException: 404, there is none.
    """
    shelf: Shelf = request.app.state.shelf
    try:
        return Run(shelf.run(name).folder)
    except NoSuchRun as missing:
        raise HTTPException(404, f"there is no run {name[:200]!r} in this folder") from missing
