"""A look over a run's files: which were cut short or overwritten, and what that means. It loads neither torch nor a model.

What is read only when it is needed, such as weights, is found here before it is.
"""

import json

import pandas as pd

from slimsweep.config import ConfigError
from slimsweep.errors import DamagedFile
from slimsweep.ledger.files import (
    CHECKPOINTS,
    CHOICES,
    CONFIG,
    DENSE,
    LATENCY,
    MODEL_CONFIG,
    MODEL_WEIGHTS,
    MODELS,
    SEARCH,
    SEARCH_GATES,
    SEARCH_MODEL,
    SEARCH_SHAPE,
    WRITTEN_AGAIN,
)
from slimsweep.ledger.run import Run
from slimsweep.storage import Folder

SOURCES_LOST = (
    "points cannot be trained without it: restore it from a copy, or take another --name; what is done stays, and where no "
    "point is done yet, the same command makes it again"
)
HEADER_BYTES = 8  # a safetensors file begins with the length of its header, in 8 bytes


def look_over(run: Run) -> list[str]:
    """Read what a run's folder holds, and say which files are damaged: one sentence each, also in `run.damaged`.

    Sizes of the points' models are compared with their rows, and the other weights' with their own headers, so that no weights
    are read.
    """
    if run.is_begun:
        try:
            run.stored_config()
        except DamagedFile as problem:
            run.damaged[CONFIG] = str(problem)
        except ConfigError:  # of another version of slimsweep: whole, and refused where it is needed
            run.damaged.pop(CONFIG, None)
    run.refresh()
    run.plan()
    if run.folder.is_local:  # reading thousands from an object store takes long
        run.read_curves()
    else:
        for name in (name for name, size in run.curve_sizes().items() if not size):
            run.curve(name)
    run.products.bench()
    run.products.device_times()
    run.products.quantized()
    run.gates_table()
    run.logs.damaged_images()
    assert run.known_checkpoint is not None  # read, and noted where it is damaged
    run.read_fitted()  # as well
    for folder in (SEARCH, CHOICES, LATENCY):
        for name in run.folder.list(folder):
            if name.endswith(".json") and f"{folder}/{name}" != SEARCH_SHAPE:
                run.json_or_none(f"{folder}/{name}")
    if run.search_done:
        note(run, SEARCH_SHAPE, shape_problem(run), WRITTEN_AGAIN)
        note(run, SEARCH_MODEL, weights_problem(run.folder, SEARCH_MODEL), SOURCES_LOST)
    if run.dense_done:
        note(run, f"{DENSE}/{MODEL_CONFIG}", description_problem(run.folder, f"{DENSE}/{MODEL_CONFIG}"), SOURCES_LOST)
        note(run, f"{DENSE}/{MODEL_WEIGHTS}", weights_problem(run.folder, f"{DENSE}/{MODEL_WEIGHTS}"), SOURCES_LOST)
    damaged_models(run)
    for name in run.checkpoint_names():
        for file in run.checkpoints(name).list():
            path = f"{CHECKPOINTS}/{name}/{file}"
            meaning = f"{name} goes on from an earlier checkpoint, or from its beginning"
            note(run, path, weights_problem(run.folder, path), meaning)
    return list(run.damaged.values())


def damaged_models(run: Run) -> list[str]:
    """The points with an ok row whose model is there and damaged. A model whose whole folder was deleted is not damaged."""
    files = run.folder.files(MODELS, recursive=True)
    ok = run.rows[run.rows.status == "ok"]
    found = []
    for point, model, size in zip(ok.point, ok.model_path, ok.model_bytes, strict=True):
        folder = (
            str(model or "").removeprefix(f"{MODELS}/") or point
        )  # of the point that was trained alike, where it is not its own
        weights, described = f"{folder}/{MODEL_WEIGHTS}", f"{folder}/{MODEL_CONFIG}"
        if weights not in files and described not in files:
            continue
        problem, path = None, f"{MODELS}/{weights}"
        if weights not in files:
            problem = "it is missing"
        elif pd.notna(size) and files[weights][0] != size:
            problem = f"it has {files[weights][0]} bytes of {int(size)}"
        elif described not in files:
            problem, path = "it is missing", f"{MODELS}/{described}"
        elif run.folder.is_local or not files[described][0]:  # on an object store, which shows no half of a file, sizes will do
            problem = weights_problem(run.folder, path)
            if problem is None:
                problem, path = description_problem(run.folder, f"{MODELS}/{described}"), f"{MODELS}/{described}"
        note(run, path, problem, f"point {point} counts as not done, and the same command trains it again")
        if problem is not None:
            found.append(str(point))
    return found


def note(run: Run, path: str, problem: str | None, meaning: str) -> None:
    """Say in `run.damaged` that a file is damaged, or that it no longer is."""
    run.damaged.pop(path, None)
    if problem is not None:
        run.damaged[path] = f"{(run.folder / path).uri} is damaged ({problem}): {meaning}"


def weights_problem(folder: Folder, path: str) -> str | None:
    """What is wrong with a safetensors file, as far as its header and its length say; None where it is whole."""
    try:
        start = folder.read_range(path, 0, HEADER_BYTES)
        length = int.from_bytes(start, "little")
        if len(start) < HEADER_BYTES:
            return "it is empty" if not start else "it ends too early"
        size = folder.size(path)
        if HEADER_BYTES + length > size:
            return "it ends too early"
        header = json.loads(folder.read_range(path, HEADER_BYTES, length))
        ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
        expected = HEADER_BYTES + length + max(ends, default=0)
        return None if size == expected else f"it has {size} bytes of {expected}"
    except FileNotFoundError:
        return "it is missing"
    except (ValueError, KeyError, TypeError, AttributeError, IndexError) as problem:
        return f"its header cannot be read: {problem!r}"


def description_problem(folder: Folder, path: str) -> str | None:
    """What is wrong with the description beside a model's weights; None where it is whole."""
    try:
        found = folder.read_json(path)
    except FileNotFoundError:
        return "it is missing"
    except ValueError as problem:
        return str(problem)
    return None if isinstance(found, dict) and "architecture" in found else "it names no architecture"


def shape_problem(run: Run) -> str | None:
    """What is wrong with the file of the searched model's sizes; None where it is whole."""
    try:
        found = run.folder.read_json(SEARCH_SHAPE)
    except ValueError as problem:
        return str(problem)
    return None if isinstance(found, dict) and isinstance(found.get("shape"), dict) else "it holds no shape"


def refuse_lost_sources(run: Run) -> None:
    """Refuse to train points where the dense or the searched model, which they start from, is damaged.

    Raises:
        DamagedFile: names the file and the way out.
    """
    sources = [f"{DENSE}/{MODEL_CONFIG}", f"{DENSE}/{MODEL_WEIGHTS}", SEARCH_MODEL, SEARCH_SHAPE, SEARCH_GATES]
    for path in sources:
        if path in run.damaged:
            raise DamagedFile(run.damaged[path])
