"""A run's folder: everything that outlives a process. The names of its files and folders stand here and nowhere else.

config.yaml, identity.json         the configuration, and what identifies its checkpoint
plan.json, begun/                  what the driver has planned, which points have begun
holder.json, driver.json           which driver holds the run, and its heartbeat while it is at work
dense/, search/, baselines/        the models that points are cut from, and what each method keeps
results/, curves/, models/         one row, one curve and one model per point
checkpoints/, epochs.log, ray/     what is needed to resume
bench/, damaged.log, errors.log    timings, images that were skipped, tracebacks
report.html, report.svg, report.png
"""

import hashlib
import json
import uuid
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
import yaml

from slimsweep.config import Config, ConfigError, Stage
from slimsweep.ledger import tables
from slimsweep.ledger.holder import Holder, lost_to
from slimsweep.ledger.points import Plan
from slimsweep.storage import Folder

if TYPE_CHECKING:  # torch and the solver are imported only by the functions that need a run's gates
    from torch import Tensor

    from slimsweep.slimming.removal_path import RemovalPath
    from slimsweep.slimming.structure import Shape

CONFIG, IDENTITY = "config.yaml", "identity.json"
PLAN, BEGUN = "plan.json", "begun"
HOLDER, DRIVER = "holder.json", "driver.json"
DENSE, SEARCH, CHOICES = "dense", "search", "baselines"
RESULTS, CURVES, MODELS, BENCH = "results", "curves", "models", "bench"
CHECKPOINTS, RAY = "checkpoints", "ray"
EPOCHS_LOG, DAMAGED_LOG, ERRORS_LOG = "epochs.log", "damaged.log", "errors.log"
REPORT = "report"  # .svg, .png
REPORT_PAGE = f"{REPORT}.html"
SEARCH_SHAPE, SEARCH_MODEL = f"{SEARCH}/search.json", f"{SEARCH}/model.safetensors"
SEARCH_GATES, SEARCH_PATH = f"{SEARCH}/gates.parquet", f"{SEARCH}/path.safetensors"
# The files of a model's folder, in timm's hub format. The description is written last: where it is, the model is whole.
MODEL_WEIGHTS, MODEL_CONFIG = "model.safetensors", "config.json"


class Run:
    """One run: its folder, its configuration, and what it holds so far.

    `rows` is a snapshot that `refresh` renews. The shape and the gates are read once: they do not change after the search.

    Args:
        folder: the run's folder, or its path or URI.
        config: the configuration of the driver or worker; read from the folder where not given.
        holder: for a driver, and all that works for it: as which holder of the run it writes. Every change of the folder then
            raises RunLost once another driver has taken the run. Without one nothing is checked: for readers, and tools.

    Raises:
        RefusedInput: the URI's scheme is unknown.
    """

    def __init__(self, folder: Folder | str | Path, config: Config | None = None, holder: Holder | None = None) -> None:
        # What the driver says of itself, and errors, are written whoever holds the run.
        self.unchecked = (folder if isinstance(folder, Folder) else Folder(folder)).checked(None)
        self.folder, self.holder = self.unchecked, holder
        if holder is not None:
            self.hold_as(holder)
        self._config = config
        self._rows: dict[str, tuple[tuple[int, int], Any]] = {}  # per file: (bytes, mtime), and its table
        self._snapshot: pd.DataFrame | None = None
        self._cut_keys: dict[str, str] = {}  # per token of the checkpoint
        self._choices: dict[str, str | None] = {}  # structures that were read, as text, per file; None: not there yet

    def __repr__(self) -> str:
        return f"Run({self.uri!r})"

    @property
    def uri(self) -> str:
        """The path or URI of the folder."""
        return self.folder.uri

    # Who may write.

    def hold_as(self, holder: Holder) -> None:
        """Write as this holder of the run from now on."""
        self.holder, self.folder = holder, self.unchecked.checked(self.check_held)

    def check_held(self) -> None:
        """Do nothing where this object's holder holds the run, or where it has none.

        Raises:
            RunLost: another driver has taken the run.
        """
        if self.holder is None:
            return
        record = self.driver_record(HOLDER)
        if record.get("token") != self.holder.token:
            raise lost_to(self.uri, record)

    def driver_record(self, name: str) -> dict[str, Any]:
        """What a driver wrote about itself in HOLDER or DRIVER; empty where there is no such file, or it is damaged.

        `token` is always there; `generation` is too where its version of slimsweep counts them.
        """
        try:
            found = self.unchecked.read_json(name)
            Holder.from_json({"generation": 0, **found})
            float(found.get("every", 0.0)), float(found.get("time", 0.0)), int(found.get("pid", 0))
        except (FileNotFoundError, ValueError, TypeError, KeyError):
            return {}
        return dict(found)

    # What was asked for.

    @property
    def is_begun(self) -> bool:
        """Whether a driver has started on this folder."""
        return self.folder.exists(CONFIG)

    @property
    def config(self) -> Config:
        """The configuration that this object was made with, or else the one in the folder."""
        if self._config is None:
            self._config = self.stored_config()
        return self._config

    def stored_config(self) -> Config:
        """The configuration that the run was last started with.

        Raises:
            ConfigError: the folder is not a run, or its configuration cannot be read.
        """
        if not self.is_begun:
            inside = self.folder.list() if self.folder.is_folder else []
            runs = [name for name in inside if self.folder.exists(f"{name}/{CONFIG}")]  # of several models
            fix = f"give one of the runs in it: {', '.join(runs)}" if runs else "give the folder that --output and --name made"
            raise ConfigError(f"{self.uri} is not a run of slimsweep: it has no {CONFIG}; {fix}")
        try:
            return Config(**yaml.safe_load(self.folder.read_bytes(CONFIG)))
        except (yaml.YAMLError, TypeError, ConfigError) as problem:
            reason = " ".join(str(problem).split())
            raise ConfigError(
                f"{(self.folder / CONFIG).uri} is not a configuration of this version of slimsweep ({reason}): a later version "
                "may have written it, or it is damaged"
            ) from problem

    def write_config(self) -> None:
        self.folder.write_bytes(CONFIG, self.config.to_yaml().encode())

    @cached_property
    def known_checkpoint(self) -> dict[str, str]:
        """`token`, which stands for `model.checkpoint` in names, and `content`, its hash; empty without a checkpoint."""
        return dict(self.folder.read_json(IDENTITY)) if self.folder.exists(IDENTITY) else {}

    def write_known_checkpoint(self) -> None:
        """Write `known_checkpoint` for later starts and for workers."""
        if self.known_checkpoint:
            self.folder.write_json(IDENTITY, self.known_checkpoint)
        else:
            self.folder.delete(IDENTITY)

    def identity(self, stage: Stage, **changes: Any) -> dict[str, Any]:
        """All settings that change the result of a stage (`Config.identity`), with this run's token for the checkpoint.

        Args:
            changes: values that replace those of the configuration, by dotted name.
        """
        config = self.config.changed(**changes) if changes else self.config
        return config.identity(stage, self.known_checkpoint.get("token"))

    def fingerprint(self, stage: Stage, **changes: Any) -> str:
        """A hash of `identity(stage, **changes)`: ten hex digits."""
        config = self.config.changed(**changes) if changes else self.config
        return config.fingerprint(stage, self.known_checkpoint.get("token"))

    # The dense model and the search.

    @property
    def dense(self) -> Folder:
        """The folder of the dense model."""
        return self.folder / DENSE

    @property
    def dense_done(self) -> bool:
        return self.folder.exists(f"{DENSE}/{MODEL_CONFIG}")

    @property
    def dense_description(self) -> dict[str, Any]:
        """The description beside the dense model's weights: labels, preprocessing, metrics."""
        return dict(self.folder.read_json(f"{DENSE}/{MODEL_CONFIG}"))

    @property
    def search_done(self) -> bool:
        return self.folder.exists(SEARCH_SHAPE)

    def write_search(self, shape: "Shape", gates: Mapping[str, Sequence["Tensor"]], weights: bytes) -> None:
        """Write what the search found. The shape is written last: the search counts as done where it exists.

        Args:
            shape: of the gated model.
            gates: the final gates in their shapes, a list of layers per family.
            weights: the searched model's tensors, as safetensors bytes.
        """
        tables.write_table(self.folder, SEARCH_GATES, tables.gate_rows(gates), tables.GATES)
        self.folder.write_bytes(SEARCH_MODEL, weights)
        self.folder.write_json(SEARCH_SHAPE, {"shape": json.loads(shape.full().to_json())["shape"]})

    def search_weights(self) -> bytes:
        """The searched model's tensors, as safetensors bytes."""
        return self.folder.read_bytes(SEARCH_MODEL)

    @cached_property
    def shape(self) -> "Shape":
        """The gated model's sizes and costs, read from the search's folder: no model is built."""
        from slimsweep.slimming.structure import Shape

        return Shape.from_dict(self.folder.read_json(SEARCH_SHAPE)["shape"])

    @cached_property
    def gates(self) -> dict[str, list["Tensor"]]:
        """The final gates in their shapes, a list of layers per family."""
        return tables.gate_tensors(self.gates_table(), self.shape.gate_shapes)

    def gates_table(self) -> pd.DataFrame:
        """The final gates, a row per gate; empty before the search has ended."""
        return tables.read_file(self.folder, SEARCH_GATES, tables.GATES)

    # The pace of the families, and the removal path at that pace.

    @property
    def pace_file(self) -> str:
        """The file of the chosen pace; its name contains a hash of all settings of the search and of the cut."""
        return f"{SEARCH}/pace-{self._cut_key()}.json"

    def pace_choice(self) -> dict[str, Any] | None:
        """The chosen `pace`, the results of all tries (`tried`) and a hash of their recipe (`key`); None before the choice."""
        return dict(self.folder.read_json(self.pace_file)) if self.folder.exists(self.pace_file) else None

    def write_pace_choice(self, choice: Mapping[str, Any]) -> None:
        self.folder.write_json(self.pace_file, dict(choice))

    def pace_try(self, name: str) -> dict[str, Any] | None:
        """The result of one try of a pace, by this start or an earlier one; None where it was not tried."""
        path = f"{SEARCH}/{name}.json"
        return dict(self.folder.read_json(path)) if self.folder.exists(path) else None

    def write_pace_try(self, name: str, result: Mapping[str, Any]) -> None:
        self.folder.write_json(f"{SEARCH}/{name}.json", dict(result))

    @property
    def pace(self) -> dict[str, float]:
        """The pace of each family: the chosen one, or before the choice the first of search.paces."""
        choice = self.pace_choice()
        return dict(choice["pace"]) if choice is not None else self.config.search.paces[0].model_dump()

    def path_at(self, pace: Mapping[str, float]) -> "RemovalPath":
        """The removal path over the search's gates, with the configuration's floors, at a pace.

        Args:
            pace: of each family; families without gates are ignored.
        """
        from slimsweep.slimming.removal_path import RemovalPath

        settings = self.config.search
        of_gated = {family: pace[family] for family in self.gates}
        return RemovalPath(self.shape, self.gates, settings.floors.model_dump(), settings.round_to, of_gated)

    @property
    def path(self) -> "RemovalPath":
        """The removal path at the run's pace."""
        return self.path_at(self.pace)

    def write_path(self) -> None:
        """Write the removal path that points are cut along, unless the folder has the same one already."""
        from safetensors.torch import save

        tensors = save(self.path.tensors())
        if not self.folder.exists(SEARCH_PATH) or self.folder.read_bytes(SEARCH_PATH) != tensors:
            self.folder.write_bytes(SEARCH_PATH, tensors)

    # Structures that methods keep; workers choose them once.

    def choice_file(self, method: str, budget: float, unit: str, seed: int | None) -> str:
        """The file of a method's structure at a budget; its name contains a hash of all settings of the search and of the cut.

        Args:
            seed: the point's seed for a method with randomness, else None.
        """
        counted = "" if unit == "macs" else f"-{unit}"
        drawn = "" if seed is None else f"-s{seed}"
        return f"{CHOICES}/{method}-{budget:.9f}{counted}{drawn}-{self._cut_key()}.json"

    def choice(self, method: str, budget: float, unit: str, seed: int | None) -> str | None:
        """A method's structure as JSON text; empty where it cannot meet the budget, None where it was not tried yet."""
        path = self.choice_file(method, budget, unit, seed)
        if self._choices.get(path) is None:
            self._choices[path] = str(self.folder.read_json(path)["structure"]) if self.folder.exists(path) else None
        return self._choices[path]

    def choice_error(self, method: str, budget: float, unit: str, seed: int | None) -> str:
        """Why a method cannot meet a budget."""
        return str(self.folder.read_json(self.choice_file(method, budget, unit, seed))["error"])

    def write_choice(self, method: str, budget: float, unit: str, seed: int | None, *, structure: str, error: str) -> None:
        """Write a method's structure (JSON), or the error where it cannot meet the budget; the other one is empty."""
        path = self.choice_file(method, budget, unit, seed)
        self.folder.write_json(path, {"structure": structure, "error": error})
        self._choices.pop(path, None)

    def _cut_key(self) -> str:
        """A hash of all settings that decide how budgets become structures: eight hex digits."""
        token = self.known_checkpoint.get("token", "")
        if token not in self._cut_keys:
            identity = self.identity("retrain")
            text = json.dumps([identity["search"], identity["cut"]], sort_keys=True)
            self._cut_keys[token] = hashlib.sha256(text.encode()).hexdigest()[:8]
        return self._cut_keys[token]

    # Rows: a point is done when it has an ok row.

    @property
    def rows(self) -> pd.DataFrame:
        """The results table (`tables.RESULTS`) as of the first access or the last `refresh`."""
        if self._snapshot is None:
            self.refresh()
            assert self._snapshot is not None
        return self._snapshot

    def refresh(self) -> "Run":
        """Update `rows`; only files that are new or have changed are read. Returns this run."""
        # A budget that a method could not meet is tried again, so that only what it found stays.
        self._choices = {path: text for path, text in self._choices.items() if text}
        files = {name: state for name, state in self.folder.files(RESULTS).items() if name.endswith(".parquet")}
        known = {name: table for name, table in self._rows.items() if files.get(name) == table[0]}
        if self._snapshot is not None and len(known) == len(files) == len(self._rows):
            return self
        for name in files.keys() - known.keys():
            try:
                known[name] = files[name], tables.read_table(self.folder, f"{RESULTS}/{name}", tables.RESULTS)
            except FileNotFoundError:  # a point that is tried again has just deleted its failed row
                continue
        self._rows = known
        self._snapshot = tables.results_of([table for _, (_, table) in sorted(known.items())])
        return self

    def write_row(self, row: dict[str, Any]) -> None:
        """Write one point's row, whole or not at all; it replaces an older row of the same point.

        Raises:
            KeyError: a key is not a column of `tables.RESULTS`.
        """
        tables.write_table(self.folder, f"{RESULTS}/{row['point']}.parquet", [tables.complete_row(row)], tables.RESULTS)

    def has_row(self, point: str) -> bool:
        """Whether a point has a row, ok or failed, by a look at its own file."""
        return self.folder.exists(f"{RESULTS}/{point}.parquet")

    def has_ok_row(self, point: str) -> bool:
        """Whether a point is done, by a look at its own file: there may be thousands of others."""
        path = f"{RESULTS}/{point}.parquet"
        return self.has_row(point) and tables.read_table(self.folder, path, tables.RESULTS)["status"].to_pylist() == ["ok"]

    def delete_row(self, point: str) -> None:
        self.folder.delete(f"{RESULTS}/{point}.parquet")

    # Curves.

    def curve(self, name: str) -> list[dict[str, Any]]:
        """The epochs so far of a stage or point, one dict per epoch (`tables.CURVES`); empty where nothing was written."""
        path = f"{CURVES}/{name}.parquet"
        return tables.read_table(self.folder, path, tables.CURVES).to_pylist() if self.folder.exists(path) else []

    def write_curve(self, name: str, epochs: list[dict[str, Any]]) -> None:
        """Write all epochs so far of a stage or point (`tables.CURVES`), whole or not at all."""
        tables.write_table(self.folder, f"{CURVES}/{name}.parquet", epochs, tables.CURVES)

    def curves(self) -> pd.DataFrame:
        """All epochs of all stages and points (`tables.CURVES`)."""
        return tables.read_folder(self.folder, CURVES, tables.CURVES)

    def curve_names(self) -> set[str]:
        """The stages and points that have a curve."""
        return {name.removesuffix(".parquet") for name in self.folder.list(CURVES)}

    def delete_curve(self, name: str) -> None:
        self.folder.delete(f"{CURVES}/{name}.parquet")

    def checkpoints(self, name: str) -> Folder:
        """The folder of the checkpoints of a stage or point."""
        return self.folder / f"{CHECKPOINTS}/{name}"

    def checkpoint_names(self) -> list[str]:
        """The stages and points that have a checkpoint."""
        return self.folder.list(CHECKPOINTS)

    # The plan, and which points have begun.

    def write_plan(self, plan: Plan) -> None:
        self.folder.write_json(PLAN, plan.to_json())

    def plan(self) -> Plan | None:
        """The plan that the driver wrote; None where there is none: earlier versions of slimsweep wrote none.

        Raises:
            ConfigError: the file is not a plan.
        """
        if not self.folder.exists(PLAN):
            return None
        try:
            return Plan.from_json(self.folder.read_json(PLAN))
        except ValueError as problem:
            raise ConfigError(
                f"{(self.folder / PLAN).uri} is damaged ({problem}): start the same command again, which writes it anew"
            ) from problem

    def begin(self, name: str, attempt: str) -> None:
        """Note that a point has begun in a start of the driver (`attempt`)."""
        self.folder.write_bytes(f"{BEGUN}/{attempt}/{name}", b"")

    def begun_in(self, attempt: str) -> set[str]:
        """The points that have begun in a start of the driver."""
        return set(self.folder.list(f"{BEGUN}/{attempt}"))

    def forget_begun(self) -> None:
        """Delete the notes of earlier starts: nothing that they began still runs."""
        self.folder.delete(BEGUN)

    # Models, timings, logs and the report.

    @property
    def models(self) -> Folder:
        """The folder of the points' models, one folder per point."""
        return self.folder / MODELS

    @staticmethod
    def model_path(point: str) -> str:
        """The path of a point's model inside the run's folder."""
        return f"{MODELS}/{point}"

    def write_model(self, path: str, saved: Path) -> int:
        """Copy a saved model into the run's folder; it replaces the model that is there.

        Args:
            path: of the model inside the run's folder.
            saved: the local folder that `slimsweep.save` wrote.

        Returns:
            The size of the weights' file, in bytes.
        """
        self.folder.upload(saved, path, last=MODEL_CONFIG)
        return (saved / MODEL_WEIGHTS).stat().st_size

    @property
    def ray_folder(self) -> Folder:
        """The folder of Ray's own state."""
        return self.folder / RAY

    def bench(self) -> pd.DataFrame:
        """All timings (`tables.BENCH`), the latest last; empty where there are none."""
        timings = tables.read_folder(self.folder, BENCH, tables.BENCH)
        return timings.sort_values("created_at", kind="stable", ignore_index=True)

    def write_bench(self, rows: list[dict[str, Any]]) -> None:
        """Write the timings of one benchmark (`tables.BENCH`) to a file of their own."""
        name = f"{datetime.now(UTC):%Y%m%dT%H%M%S}-{uuid.uuid4().hex[:6]}"
        tables.write_table(self.folder, f"{BENCH}/{name}.parquet", rows, tables.BENCH)

    def log_epoch(self, entry: Mapping[str, Any]) -> None:
        """Add a trained epoch to the log of epochs, as one line of JSON, with the generation of the run's holder."""
        generation = {} if self.holder is None else {"holder": self.holder.generation}
        self.folder.append_line(EPOCHS_LOG, json.dumps({**entry, **generation}))

    def damaged_images(self) -> dict[str, str]:
        """The images that were skipped in any stage or point so far, and why each could not be read."""
        found = [json.loads(line) for line in self.folder.read_lines(DAMAGED_LOG)]
        return {entry["image"]: entry["reason"] for entry in found}

    def log_damaged(self, split: str, image: str, reason: str) -> None:
        """Add a skipped image to the log of damaged images."""
        self.folder.append_line(DAMAGED_LOG, json.dumps({"split": split, "image": image, "reason": reason}))

    def log_error(self, text: str) -> str:
        """Add a traceback to the run's log of errors; returns the log's path or URI."""
        return self.unchecked.append_line(ERRORS_LOG, text)

    def write_report(self, ending: str, content: bytes) -> None:
        """Write report.html, report.svg or report.png."""
        self.folder.write_bytes(f"{REPORT}.{ending}", content)

    @property
    def report_uri(self) -> str:
        """The path or URI of the report."""
        return (self.folder / REPORT_PAGE).uri


def group_report(output: Folder) -> str:
    """The path or URI of the page over the runs of several models, beside their folders."""
    return (output / REPORT_PAGE).uri
