"""A run's folder: everything that outlives a process, with each file's name written here and nowhere else.

config.yaml, identity.json         what was asked for
plan.json, begun/, driver.json     what the driver has planned, which points have begun, who is at work
dense/, search/, baselines/        what the points are cut from, and what each method keeps
results/, curves/, models/         a row, a curve and a model per point
checkpoints/, epochs.log, ray/     what is needed to go on
bench/, damaged.log, errors.log    timings, images that were skipped, tracebacks
report.html, report.svg, report.png
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
import yaml

from slimsweep.config import Config, ConfigError, Stage
from slimsweep.errors import LOG
from slimsweep.ledger import tables
from slimsweep.ledger.points import Plan
from slimsweep.storage import Folder

if TYPE_CHECKING:  # the solver and torch load only where a run's gates are asked for
    from torch import Tensor

    from slimsweep.slimming.removal_path import RemovalPath
    from slimsweep.slimming.structure import Shape

CONFIG, IDENTITY = "config.yaml", "identity.json"
PLAN, BEGUN, DRIVER = "plan.json", "begun", "driver.json"
DENSE, SEARCH, CHOICES = "dense", "search", "baselines"
RESULTS, CURVES, MODELS, BENCH = "results", "curves", "models", "bench"
CHECKPOINTS, RAY = "checkpoints", "ray"
EPOCHS_LOG, DAMAGED_LOG, ERRORS_LOG = "epochs.log", "damaged.log", LOG
REPORT = "report"  # .html, .svg, .png
SEARCH_SHAPE, SEARCH_MODEL = f"{SEARCH}/search.json", f"{SEARCH}/model.safetensors"
SEARCH_GATES, SEARCH_PATH = f"{SEARCH}/gates.parquet", f"{SEARCH}/path.safetensors"
MODEL_CONFIG = "config.json"  # in a model's folder, written last: where it is, the model is whole


class Run:
    """One run: its folder, its configuration, and what it holds so far.

    What is read from the folder once stays as it was: `rows` is a snapshot that `refresh` renews, the shape and the gates do
    not change once the search has ended.

    Args:
        folder: the run's folder, or its path or URI.
        config: what the driver or a worker was started with; read from the folder where not given.
    """

    def __init__(self, folder: Folder | str | Path, config: Config | None = None) -> None:
        self.folder = folder if isinstance(folder, Folder) else Folder(folder)
        self._config = config
        self._rows: dict[str, tuple[tuple[int, int], Any]] = {}  # per file: what tells its state, and its table
        self._snapshot: pd.DataFrame | None = None

    def __repr__(self) -> str:
        return f"Run({self.uri!r})"

    @property
    def uri(self) -> str:
        """The path or URI of the folder."""
        return self.folder.uri

    # What was asked for.

    @property
    def is_begun(self) -> bool:
        """Whether a driver has begun it."""
        return self.folder.exists(CONFIG)

    @property
    def config(self) -> Config:
        """The configuration that this object was made with, or else the one that the run was started with."""
        if self._config is None:
            self._config = self.stored_config()
        return self._config

    def stored_config(self) -> Config:
        """The configuration that the run was last started with.

        Raises:
            ConfigError: the folder is no run.
        """
        if not self.is_begun:
            runs = [name for name in self.folder.list() if self.folder.exists(f"{name}/{CONFIG}")]  # of several models
            fix = f"give one of the runs in it: {', '.join(runs)}" if runs else "give the folder that --output and --name made"
            raise ConfigError(f"{self.uri} is not a run of slimsweep: it has no {CONFIG}; {fix}")
        return Config(**yaml.safe_load(self.folder.read_bytes(CONFIG)))

    def write_config(self) -> None:
        self.folder.write_bytes(CONFIG, self.config.to_yaml().encode())

    @cached_property
    def known_checkpoint(self) -> dict[str, str]:
        """What stands for `model.checkpoint` in this run's names (`token`), and its content; empty where there is none."""
        return dict(self.folder.read_json(IDENTITY)) if self.folder.exists(IDENTITY) else {}

    def write_known_checkpoint(self) -> None:
        """Keep `known_checkpoint` for later starts and for workers."""
        if self.known_checkpoint:
            self.folder.write_json(IDENTITY, self.known_checkpoint)

    def identity(self, stage: Stage, **changes: Any) -> dict[str, Any]:
        """All that changes the result of a stage (`Config.identity`), with this run's token for the checkpoint.

        Args:
            changes: fields of the configuration, by dotted name, that are taken to have other values.
        """
        config = self.config.changed(**changes) if changes else self.config
        return config.identity(stage, self.known_checkpoint.get("token"))

    def fingerprint(self, stage: Stage, **changes: Any) -> str:
        """Ten hex digits that stand for `identity(stage, **changes)`."""
        config = self.config.changed(**changes) if changes else self.config
        return config.fingerprint(stage, self.known_checkpoint.get("token"))

    # The dense model and the search.

    @property
    def dense_done(self) -> bool:
        return self.folder.exists(f"{DENSE}/{MODEL_CONFIG}")

    @property
    def dense_description(self) -> dict[str, Any]:
        """What was saved beside the dense model's weights: labels, preprocessing, metrics."""
        return dict(self.folder.read_json(f"{DENSE}/{MODEL_CONFIG}"))

    @property
    def search_done(self) -> bool:
        return self.folder.exists(SEARCH_SHAPE)

    def write_search(self, shape: "Shape", gates: Mapping[str, Sequence["Tensor"]], weights: bytes) -> None:
        """Write what the search found; it counts as done once its shape is there, so that comes last.

        Args:
            weights: the searched model's tensors, as safetensors.
        """
        tables.write_table(self.folder, SEARCH_GATES, tables.gate_rows(gates), tables.GATES)
        self.folder.write_bytes(SEARCH_MODEL, weights)
        self.folder.write_json(SEARCH_SHAPE, {"shape": json.loads(shape.full().to_json())["shape"]})

    def search_weights(self) -> bytes:
        return self.folder.read_bytes(SEARCH_MODEL)

    @cached_property
    def shape(self) -> "Shape":
        """The dense model's sizes and costs, as the search left them, without building the model."""
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
        """Where the chosen pace is kept; the search and all that the cut depends on are in the name."""
        return f"{SEARCH}/pace-{self._cut_key()}.json"

    def pace_choice(self) -> dict[str, Any] | None:
        """What was chosen (`pace`), what was tried for it (`tried`), and by which recipe (`key`); None before that."""
        return dict(self.folder.read_json(self.pace_file)) if self.folder.exists(self.pace_file) else None

    def write_pace_choice(self, choice: Mapping[str, Any]) -> None:
        self.folder.write_json(self.pace_file, dict(choice))

    def pace_try(self, name: str) -> dict[str, Any] | None:
        """The result of one pace that was tried, of this start or an earlier one."""
        path = f"{SEARCH}/{name}.json"
        return dict(self.folder.read_json(path)) if self.folder.exists(path) else None

    def write_pace_try(self, name: str, result: Mapping[str, Any]) -> None:
        self.folder.write_json(f"{SEARCH}/{name}.json", dict(result))

    @property
    def pace(self) -> dict[str, float]:
        """The pace of each family: the one that was chosen, or the first that was proposed."""
        choice = self.pace_choice()
        return dict(choice["pace"]) if choice is not None else self.config.search.paces[0].model_dump()

    def path_at(self, pace: Mapping[str, float]) -> "RemovalPath":
        """The removal path that the search's gates give under the configuration's floors, at some pace."""
        from slimsweep.slimming.removal_path import RemovalPath

        settings = self.config.search
        of_gated = {family: pace[family] for family in self.gates}
        return RemovalPath(self.shape, self.gates, settings.floors.model_dump(), settings.round_to, of_gated)

    @property
    def path(self) -> "RemovalPath":
        """The removal path at the run's pace."""
        return self.path_at(self.pace)

    def keep_path(self) -> None:
        """Write the removal path that points are cut by, where the folder holds another."""
        from safetensors.torch import save

        tensors = save(self.path.tensors())
        if not self.folder.exists(SEARCH_PATH) or self.folder.read_bytes(SEARCH_PATH) != tensors:
            self.folder.write_bytes(SEARCH_PATH, tensors)

    # What methods keep, which workers choose once.

    def choice_file(self, method: str, budget: float, unit: str, seed: int | None) -> str:
        """Where a method's structure at a budget is kept; all that it depends on is in the name.

        Args:
            seed: of a method that draws; None for one that does not.
        """
        counted = "" if unit == "macs" else f"-{unit}"
        drawn = "" if seed is None else f"-s{seed}"
        return f"{CHOICES}/{method}-{budget:.9f}{counted}{drawn}-{self._cut_key()}.json"

    def choice(self, method: str, budget: float, unit: str, seed: int | None) -> str | None:
        """A method's structure as JSON text; empty where it cannot meet the budget, None where nobody has tried yet."""
        path = self.choice_file(method, budget, unit, seed)
        return str(self.folder.read_json(path)["structure"]) if self.folder.exists(path) else None

    def choice_error(self, method: str, budget: float, unit: str, seed: int | None) -> str:
        """Why a method cannot meet a budget."""
        return str(self.folder.read_json(self.choice_file(method, budget, unit, seed))["error"])

    def write_choice(self, method: str, budget: float, unit: str, seed: int | None, *, structure: str, error: str) -> None:
        self.folder.write_json(self.choice_file(method, budget, unit, seed), {"structure": structure, "error": error})

    def _cut_key(self) -> str:
        """Eight hex digits that stand for the search and how budgets become structures."""
        identity = self.identity("retrain")
        return hashlib.sha256(json.dumps([identity["search"], identity["cut"]], sort_keys=True).encode()).hexdigest()[:8]

    # Rows: the truth of what is done.

    @property
    def rows(self) -> pd.DataFrame:
        """The results table as it was at the first look or the last `refresh` (`tables.RESULTS`)."""
        if self._snapshot is None:
            self.refresh()
            assert self._snapshot is not None
        return self._snapshot

    def refresh(self) -> "Run":
        """Look at the results again; only files that are new or have changed are read."""
        files = {name: state for name, state in self.folder.files(RESULTS).items() if name.endswith(".parquet")}
        for name, state in files.items():
            if name not in self._rows or self._rows[name][0] != state:
                try:
                    self._rows[name] = state, tables.read_table(self.folder, f"{RESULTS}/{name}", tables.RESULTS)
                except FileNotFoundError:  # a point that is tried again has taken its failed row away just now
                    continue
        self._rows = {name: known for name, known in self._rows.items() if name in files}
        self._snapshot = tables.results_of([known[1] for _, known in sorted(self._rows.items())])
        return self

    def write_row(self, row: dict[str, Any]) -> None:
        """Write one point's row, whole or not at all, over an older row of the same point."""
        tables.write_table(self.folder, f"{RESULTS}/{row['point']}.parquet", [tables.complete_row(row)], tables.RESULTS)

    def has_row(self, point: str) -> bool:
        return self.folder.exists(f"{RESULTS}/{point}.parquet")

    def has_ok_row(self, point: str) -> bool:
        """Whether one point is done, from its own file alone: the others may be thousands."""
        path = f"{RESULTS}/{point}.parquet"
        return self.has_row(point) and tables.read_table(self.folder, path, tables.RESULTS)["status"].to_pylist() == ["ok"]

    def delete_row(self, point: str) -> None:
        self.folder.delete(f"{RESULTS}/{point}.parquet")

    # Curves.

    def curve(self, name: str) -> list[dict[str, Any]]:
        """The epochs so far of a stage or point, a dict per epoch (`tables.CURVES`); empty where nothing was written."""
        path = f"{CURVES}/{name}.parquet"
        return tables.read_table(self.folder, path, tables.CURVES).to_pylist() if self.folder.exists(path) else []

    def write_curve(self, name: str, epochs: list[dict[str, Any]]) -> None:
        tables.write_table(self.folder, f"{CURVES}/{name}.parquet", epochs, tables.CURVES)

    def curves(self) -> pd.DataFrame:
        """All epochs of all stages and points."""
        return tables.read_folder(self.folder, CURVES, tables.CURVES)

    def curve_names(self) -> set[str]:
        """The stages and points that have a curve."""
        return {name.removesuffix(".parquet") for name in self.folder.list(CURVES)}

    def delete_curve(self, name: str) -> None:
        self.folder.delete(f"{CURVES}/{name}.parquet")

    def checkpoint_names(self) -> list[str]:
        """The stages and points that have a checkpoint."""
        return self.folder.list(CHECKPOINTS)

    # The plan, and which points have begun.

    def write_plan(self, plan: Plan) -> None:
        self.folder.write_json(PLAN, plan.to_json())

    def plan(self) -> Plan | None:
        """What the driver has planned; None in the folder of an earlier version that no driver has started again."""
        return Plan.from_json(self.folder.read_json(PLAN)) if self.folder.exists(PLAN) else None

    def begin(self, name: str, attempt: str) -> None:
        """Say that a stage or point is under way in a start of the driver."""
        self.folder.write_bytes(f"{BEGUN}/{attempt}/{name}", b"")

    def begun_in(self, attempt: str) -> set[str]:
        """The stages and points that have begun in a start of the driver."""
        return set(self.folder.list(f"{BEGUN}/{attempt}"))

    def forget_begun(self) -> None:
        """Forget what earlier starts began: none of it is under way any more."""
        self.folder.delete(BEGUN)

    # Models, timings, logs and the report.

    @property
    def models(self) -> Folder:
        return self.folder / MODELS

    @staticmethod
    def model_path(point: str) -> str:
        """Where a point's model lies in the run's folder."""
        return f"{MODELS}/{point}"

    @property
    def ray_folder(self) -> Folder:
        """Where Ray keeps its own state."""
        return self.folder / RAY

    def bench(self) -> pd.DataFrame:
        """All timings, the latest last; an empty table where there is none."""
        timings = tables.read_folder(self.folder, BENCH, tables.BENCH)
        return timings.sort_values("created_at", kind="stable", ignore_index=True)

    def write_bench(self, rows: list[dict[str, Any]]) -> str:
        """Write the timings of one benchmark to a file of its own; returns its name in the folder."""
        return tables.write_timings(self.folder, BENCH, rows)

    def log_epoch(self, entry: Mapping[str, Any]) -> None:
        self.folder.append_line(EPOCHS_LOG, json.dumps(dict(entry)))

    def damaged_images(self) -> dict[str, str]:
        """The images that could not be read in any stage or point so far and were skipped, and why."""
        found = [json.loads(line) for line in self.folder.read_lines(DAMAGED_LOG)]
        return {entry["image"]: entry["reason"] for entry in found}

    def log_damaged(self, split: str, image: str, reason: str) -> None:
        self.folder.append_line(DAMAGED_LOG, json.dumps({"split": split, "image": image, "reason": reason}))

    def log_error(self, text: str) -> str:
        """Add a traceback to the run's log of errors; returns where that is."""
        self.folder.append_line(ERRORS_LOG, text)
        return (self.folder / ERRORS_LOG).uri

    def write_report(self, ending: str, content: bytes) -> None:
        """Write report.html, report.svg or report.png."""
        self.folder.write_bytes(f"{REPORT}.{ending}", content)

    @property
    def report_uri(self) -> str:
        return (self.folder / f"{REPORT}.html").uri


def group_report(output: Folder) -> str:
    """Where the page over the runs of several models lies, beside their folders."""
    return (output / f"{REPORT}.html").uri
