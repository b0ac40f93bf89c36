"""A run: its folder, its configuration, and what it holds so far."""

import copy
import functools
import hashlib
import json
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
import yaml

from slimsweep.config import Config, ConfigError, Fitted, Stage, with_earlier_ways
from slimsweep.config.yaml_text import read_yaml
from slimsweep.errors import DamagedFile
from slimsweep.ledger import tables
from slimsweep.ledger.collected import read_collected, write_collected
from slimsweep.ledger.files import (
    BEGUN,
    CHECKPOINT_NAME,
    CHECKPOINTS,
    CHOICES,
    COLLECTED_CURVES,
    COLLECTED_RESULTS,
    CONFIG,
    CONFIG_END,
    CURVES,
    DENSE,
    DERIVED,
    DRIVER,
    EXPORTS,
    HOLDER,
    IDENTITY,
    LARGEST_CONFIG,
    LATENCY,
    LISTED,
    LISTED_FILES,
    MODEL_CONFIG,
    MODEL_WEIGHTS,
    MODELS,
    PLAN,
    RAY,
    REPORT,
    REPORT_PAGE,
    RESULTS,
    SEARCH,
    SEARCH_GATES,
    SEARCH_MODEL,
    SEARCH_PATH,
    SEARCH_SHAPE,
    SPLITS,
    STAGES,
    STARTED_AGAIN,
    STARTS,
    TENSORBOARD,
    TRACKERS,
    WAITING,
    WRITTEN_AGAIN,
)
from slimsweep.ledger.holder import Holder, lost_to
from slimsweep.ledger.points import Plan
from slimsweep.ledger.readable import Readable
from slimsweep.ledger.run_latency import LatencyFiles
from slimsweep.ledger.run_logs import Logs
from slimsweep.ledger.run_products import Products
from slimsweep.storage import Folder

if TYPE_CHECKING:  # torch and the solver are imported only by the functions that need a run's gates
    from torch import Tensor

    from slimsweep.slimming.removal_path import RemovalPath
    from slimsweep.slimming.shape import Shape

SETTLED = 60 * 10**9  # ns: stores count whole seconds, by clocks of their own; a newer file may change and look the same
MANY_FILES = 200  # from so many rows on, reading them from one file is worth writing it
MOMENT_SECONDS = 2.0  # in which a file that cannot be read for a moment can be read again


@dataclass(frozen=True)
class Listing:
    """The files that a status or a page is made of, at a moment: bytes and time of the last change in ns, by path.

    Two equal listings mean that nothing has to be read again.
    """

    files: Mapping[str, tuple[int, int]]
    heartbeat: tuple[int, int] | None  # of its driver; None where none is at work

    @property
    def is_run(self) -> bool:
        """Whether a driver has started on the folder."""
        return CONFIG in self.files

    def only_more_results(self, other: "Listing") -> bool:
        """Whether another listing differs in rows, curves and begun points alone, which a `Run` reads again by itself."""
        changed = {path for path, _ in self.files.items() ^ other.files.items()}
        return all(path.startswith((f"{RESULTS}/", f"{CURVES}/", f"{BEGUN}/")) for path in changed)


class Run(Readable):
    """One run: its folder, its configuration, and what it holds so far.

    A file that was damaged (cut short, overwritten) counts as missing where the rest of the run can do without it; `damaged`
    says which, and what that means. `rows` is a snapshot that `refresh` renews. The shape and the gates are read once: they do
    not change after the search.

    Args:
        folder: the run's folder, or its path or URI.
        config: the configuration of the driver or worker; read from the folder where not given.
        holder: for a driver, and all that works for it: as which holder of the run it writes. Every change of the folder then
            raises RunLost once another driver has taken the run. Without one nothing is checked: for readers, and tools.
        damaged: the damaged files that are known, where they are to be shared with another `Run`.

    Raises:
        RefusedInput: the URI's scheme is unknown.
    """

    def __init__(
        self,
        folder: Folder | str | Path,
        config: Config | None = None,
        holder: Holder | None = None,
        damaged: dict[str, str] | None = None,
    ) -> None:
        # What the driver says of itself, and errors, are written whoever holds the run.
        self.unchecked = (folder if isinstance(folder, Folder) else Folder(folder)).checked(None)
        super().__init__(self.unchecked, damaged)
        self.holder = holder
        if holder is not None:
            self.hold_as(holder)
        self._config = config
        self._add_parts()
        self._rows: dict[str, tuple[tuple[int, int], Any]] = {}  # per file: (bytes, mtime), and its table; None: damaged
        self._curves: dict[str, tuple[tuple[int, int], Any]] = {}  # likewise, of curves that no longer change
        self._snapshot: pd.DataFrame | None = None
        self._in_collected: dict[str, set[tuple[str, tuple[int, int]]]] = {}  # per collected file: the versions that it has
        self._cut_keys: dict[str, str] = {}  # per token of the checkpoint
        self._choices: dict[str, str | None] = {}  # structures that were read, as text, per file; None: not there yet

    def _add_parts(self) -> None:
        self.latency, self.products, self.logs = LatencyFiles(self), Products(self), Logs(self)

    def __repr__(self) -> str:
        return f"Run({self.uri!r})"

    @property
    def uri(self) -> str:
        """The path or URI of the folder."""
        return self.folder.uri

    def read_again(self) -> "Run":
        """The same run, of which nothing counts as read but rows and curves: their files say whether they have changed."""
        other = Run(self.folder)
        other._rows = {name: found for name, found in self._rows.items() if found[1] is not None}
        other._curves = dict(self._curves)
        return other

    def patient(self) -> "Run":
        """The same run, for work that must not end because its store fails for a while (`Folder.patient`)."""
        other = copy.copy(self)
        other.folder, other.unchecked = self.folder.patient(), self.unchecked.patient()
        other._add_parts()
        return other

    # Who may write.

    def hold_as(self, holder: Holder) -> None:
        """Write as this holder of the run from now on."""
        self.holder, self.folder = holder, self.unchecked.checked(self.check_held)

    def check_held(self) -> None:
        """Do nothing where this object's holder holds the run, or where it has none.

        Raises:
            RunLost: another driver has taken the run; or its files name none, also after a moment.
        """
        if self.holder is None:
            return
        end = time.monotonic() + MOMENT_SECONDS
        while not (record := self.driver_record(HOLDER)) and time.monotonic() < end:
            time.sleep(MOMENT_SECONDS / 20)
        if record.get("token") != self.holder.token:
            raise lost_to(self.uri, record)

    def driver_record(self, name: str) -> dict[str, Any]:
        """What a driver wrote about itself in HOLDER or DRIVER; empty where there is no such file, or it is damaged.

        `token` is always there; `generation` is too where its version of slimsweep counts them.
        """
        try:
            found = self.unchecked.read_json(name)
            Holder.from_json({"generation": 0, **found})
            numbers = float(found.get("every", 0.0)), float(found.get("time", 0.0)), int(found.get("pid", 0))
        except (FileNotFoundError, ValueError, TypeError, KeyError, OverflowError):
            return {}
        return dict(found) if all(map(math.isfinite, numbers)) else {}

    def highest_generation(self) -> int:
        """The highest generation of a holder that a checkpoint names; 0 where none does."""
        paths = self.folder.files(CHECKPOINTS, recursive=True)
        names = [found for path in paths if (found := CHECKPOINT_NAME.fullmatch(path.rpartition("/")[2]))]
        return max((int(found["generation"] or 0) for found in names), default=0)

    def listing(self) -> Listing:
        """What the folder holds now; reads no file."""
        files: dict[str, tuple[int, int]] = {}
        if self.folder.is_local:
            top = self.folder.files("")
            for name in LISTED:
                inside = self.folder.files(name.rstrip("/"), recursive=name.endswith("/"))
                files |= {f"{name.rstrip('/')}/{path}": state for path, state in inside.items()}
        else:  # one request for all, where each folder would be one
            found = self.folder.files("", recursive=True)
            top = {path: state for path, state in found.items() if "/" not in path}
            wanted = {name: state for name, state in found.items() if any(_is_listed(name, folder) for folder in LISTED)}
            files |= wanted
        files |= {name: top[name] for name in LISTED_FILES if name in top}
        return Listing(files, top.get(DRIVER))

    def changed_at(self) -> datetime | None:
        """When the last epoch or result was written, or the run was started; None where the store does not say."""
        files = [self.folder.files(name) for name in (RESULTS, CURVES)]
        times = [changed for found in files for _, changed in found.values()]
        times.append(self.folder.files("").get(CONFIG, (0, 0))[1])
        return datetime.fromtimestamp(max(times) / 1e9, UTC) if any(times) else None

    # What was asked for.

    @property
    def is_begun(self) -> bool:
        """Whether a driver has started on this folder."""
        return self.folder.exists(CONFIG)

    @property
    def config_path(self) -> str | None:
        """The path of the configuration's file; None in an object store, whose files --config does not read."""
        path = (self.folder / CONFIG).uri
        return None if "://" in path else path

    @property
    def config(self) -> Config:
        """The configuration that this object was made with, or else the one in the folder."""
        if self._config is None:
            self._config = self.stored_config()
        return self._config

    def take_config(self, config: Config) -> None:
        """Use another configuration from now on."""
        self._config = config
        self._cut_keys.clear()

    def refuse_other_folders(self) -> None:
        """Refuse a folder that no driver has started on.

        Raises:
            ConfigError: says what to give instead.
        """
        if not self.is_begun:
            runs = [name for name in self.folder.list() if self.folder.exists(f"{name}/{CONFIG}")]  # of several models
            fix = f"give one of the runs in it: {', '.join(runs)}" if runs else "give the folder that --output and --name made"
            raise ConfigError(f"{self.uri} is not a run of slimsweep: it has no {CONFIG}; {fix}")

    def stored_config(self) -> Config:
        """The configuration that the run was last started with.

        Raises:
            ConfigError: the folder is not a run, or another version wrote its configuration.
            DamagedFile: its configuration was cut short or overwritten.
        """
        self.refuse_other_folders()
        where = (self.folder / CONFIG).uri
        content = self.folder.read_range(CONFIG, 0, LARGEST_CONFIG + 1)
        if len(content) > LARGEST_CONFIG:
            raise DamagedFile(f"{where} is damaged (it is larger than {LARGEST_CONFIG:,} bytes): {STARTED_AGAIN}")
        try:
            text = content.decode()
            said = read_yaml(text)
        except (yaml.YAMLError, UnicodeDecodeError) as problem:
            raise DamagedFile(f"{where} is damaged ({' '.join(str(problem).split())}): {STARTED_AGAIN}") from problem
        # A file that was cut at the end of a line is YAML too, but of fewer settings.
        whole = CONFIG_END in text.splitlines()[-1:] or CONFIG_END not in text
        if not isinstance(said, dict) or not whole or not {"name", *STAGES, "resources"} <= said.keys():
            raise DamagedFile(f"{where} is damaged ({'it ends too early' if text else 'it is empty'}): {STARTED_AGAIN}")
        try:
            return Config(**with_earlier_ways(said))
        except (TypeError, ConfigError) as problem:
            reason = " ".join(str(problem).split())
            raise ConfigError(
                f"{where} is not a configuration of this version of slimsweep ({reason}): a later version "
                "may have written it, or it is damaged"
            ) from problem

    def config_text(self) -> str:
        """The whole configuration as YAML, which --config takes.

        Raises:
            ConfigError, DamagedFile: as for `stored_config`.
        """
        return self.stored_config().to_yaml()

    def write_config(self) -> None:
        # Its first line names its last one, so that a file that was cut short can be told.
        text = f"{CONFIG_END}, if the last line says so too\n{self.config.to_yaml()}{CONFIG_END}\n"
        self.folder.write_bytes(CONFIG, text.encode())

    @cached_property
    def known_checkpoint(self) -> dict[str, str]:
        """`token`, which stands for `model.checkpoint` in names, and `content`, its hash; empty without a checkpoint."""
        if not self.folder.exists(IDENTITY):
            return {}
        meaning = "the pace that was chosen is not known until the same command writes the file again"
        nothing: dict[str, Any] = {}
        found = self.unless_damaged(IDENTITY, self._known_files, nothing, meaning)
        return {key: found[key] for key in ("token", "content") if key in found}

    def _known_files(self) -> dict[str, Any]:
        found = self.json(IDENTITY)
        return found if "teachers" in found else self.json(IDENTITY, "token", "content")

    @cached_property
    def known_teachers(self) -> dict[str, str]:
        """By path, what stands for each teacher.checkpoint in names: a hash of its content; empty where none is recorded."""
        if not self.folder.exists(IDENTITY):
            return {}
        meaning = "the files of teacher.checkpoint are read again"
        nothing: dict[str, Any] = {}
        return dict(self.unless_damaged(IDENTITY, self._known_files, nothing, meaning).get("teachers", {}))

    def write_known_checkpoint(self) -> None:
        """Write `known_checkpoint` and `known_teachers` for later starts and for workers."""
        known = {**self.known_checkpoint, **({"teachers": self.known_teachers} if self.known_teachers else {})}
        if known:
            self.folder.write_json(IDENTITY, known)
        else:
            self.folder.delete(IDENTITY)

    @cached_property
    def known_data(self) -> dict[str, Any] | None:
        """The fingerprint of the splits that the run is made on (`slimsweep.data.fingerprint`); None where none is recorded."""
        if not self.folder.exists(SPLITS):
            return None
        read = functools.partial(self.json, SPLITS, "version", "splits")
        return self.unless_damaged(SPLITS, read, None, "the splits as they are now count from here on")

    def write_known_data(self, fingerprint: Mapping[str, Any]) -> None:
        """Record the fingerprint of the splits, for workers and later starts."""
        self.folder.write_json(SPLITS, dict(fingerprint))
        self.__dict__["known_data"] = dict(fingerprint)

    def read_fitted(self) -> dict[str, Fitted] | None:
        """The fields that nobody set at the first start, by dotted name: their values, which follow the data, and why.

        None where the file is damaged. A run that an earlier version began has none, nor has one where all was given.
        """
        if not self.folder.exists(DERIVED):
            return {}
        return self.unless_damaged(DERIVED, self._fitted, None, "values that follow the data are found again")

    def _fitted(self) -> dict[str, Fitted]:
        found = self.json(DERIVED)
        try:
            return {name: Fitted(value=entry["value"], reason=str(entry["reason"])) for name, entry in found.items()}
        except (TypeError, KeyError) as problem:
            raise DamagedFile(f"{(self.folder / DERIVED).uri} is damaged (it has no value and reason per field)") from problem

    def write_fitted(self, fitted: Mapping[str, Fitted]) -> None:
        """Record the values that follow the data, for later starts, which take them as they are."""
        if fitted:
            self.folder.write_json(DERIVED, {name: {"value": f.value, "reason": f.reason} for name, f in fitted.items()})
        else:
            self.folder.delete(DERIVED)
        self.damaged.pop(DERIVED, None)

    def identity(self, stage: Stage, **changes: Any) -> dict[str, Any]:
        """All settings that change the result of a stage (`Config.identity`), with this run's token for the checkpoint.

        Args:
            changes: values that replace those of the configuration, by dotted name.
        """
        return self.identity_of(self.config.changed(**changes) if changes else self.config, stage)

    def identity_of(self, config: Config, stage: Stage) -> dict[str, Any]:
        """`identity` of another configuration of this run."""
        return config.identity(stage, self.known_checkpoint.get("token"), self.known_teachers if config.teachers else None)

    def fingerprint(self, stage: Stage, **changes: Any) -> str:
        """A hash of `identity(stage, **changes)`: ten hex digits."""
        return self.fingerprint_of(self.config.changed(**changes) if changes else self.config, stage)

    def fingerprint_of(self, config: Config, stage: Stage) -> str:
        """`fingerprint` of another configuration of this run."""
        return config.fingerprint(stage, self.known_checkpoint.get("token"), self.known_teachers if config.teachers else None)

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
        """The description beside the dense model's weights: labels, preprocessing, metrics.

        Raises:
            DamagedFile: it cannot be read.
        """
        return self.json(f"{DENSE}/{MODEL_CONFIG}", "architecture", "metrics")

    @property
    def search_done(self) -> bool:
        return self.folder.exists(SEARCH_SHAPE)

    def write_search(
        self,
        shape: "Shape",
        gates: Mapping[str, Sequence["Tensor"]],
        scores: Mapping[str, Sequence["Tensor"]] | None,
        weights: bytes,
        axes_seconds: float,
    ) -> None:
        """Write what the search found. The shape is written last: the search counts as done where it exists.

        Args:
            shape: of the gated model.
            gates: the final gates in their shapes, a list of layers per family.
            scores: what gates are ranked by, likewise; None for the gates themselves.
            weights: the searched model's tensors, as safetensors bytes.
            axes_seconds: that the principal axes took.
        """
        tables.write_table(self.folder, SEARCH_GATES, tables.gate_rows(gates, scores), tables.GATES)
        self.folder.write_bytes(SEARCH_MODEL, weights)
        self.write_shape(shape, axes_seconds)

    def write_shape(self, shape: "Shape", axes_seconds: float) -> None:
        """Write the sizes of the gated model, and how long its principal axes took."""
        found = {"shape": asdict(shape), "axes_seconds": axes_seconds}
        self.folder.write_json(SEARCH_SHAPE, found)

    def forget_sources(self, dense: bool) -> None:
        """Delete the search and what was begun from it, for the next stage to make it again; no point may be done.

        Args:
            dense: the dense model as well, and what methods keep of it.
        """
        begun = set(self.checkpoint_names()) | self.curve_names()
        for name in begun - (set() if dense else {"dense"}):
            self.checkpoints(name).delete("")
            self.delete_curve(name)
        # What says that a stage is done goes first.
        for path in (SEARCH_SHAPE, SEARCH, STARTS, LATENCY, *((f"{DENSE}/{MODEL_CONFIG}", DENSE, CHOICES) if dense else ())):
            self.folder.delete(path)

    def search_weights(self) -> bytes:
        """The searched model's tensors, as safetensors bytes."""
        return self.folder.read_bytes(SEARCH_MODEL)

    @cached_property
    def shape(self) -> "Shape":
        """The gated model's sizes and costs, read from the search's folder: no model is built."""
        from slimsweep.slimming.shape import Shape

        try:
            return Shape.from_dict(self.json(SEARCH_SHAPE, "shape")["shape"])
        except DamagedFile as problem:
            raise DamagedFile(f"{problem}: {WRITTEN_AGAIN}") from problem
        except (KeyError, TypeError, ValueError) as problem:
            raise DamagedFile(f"{(self.folder / SEARCH_SHAPE).uri} is damaged ({problem!r}): {WRITTEN_AGAIN}") from problem

    @cached_property
    def gates(self) -> dict[str, list["Tensor"]]:
        """The final gates in their shapes, a list of layers per family.

        Raises:
            DamagedFile: their file, or that of the shape, cannot be read.
        """
        return self._gates("value")

    @cached_property
    def scores(self) -> dict[str, list["Tensor"]]:
        """What the gates are ranked by, the smallest leaves first: in their shapes, a list of layers per family.

        Raises:
            DamagedFile: as for `gates`.
        """
        table = self.gates_table()
        return self._gates("score") if table.score.notna().any() else self.gates

    def _gates(self, column: str) -> dict[str, list["Tensor"]]:
        table = self.gates_table()
        try:
            return tables.gate_tensors(table, self.shape.gate_shapes, column)
        except (KeyError, RuntimeError) as problem:  # a layer is missing, or some of its gates
            said = self.damaged.get(SEARCH_GATES) or f"{(self.folder / SEARCH_GATES).uri} is damaged: {WRITTEN_AGAIN}"
            raise DamagedFile(said) from problem

    def gates_table(self) -> pd.DataFrame:
        """The final gates, a row per gate; empty before the search has ended, and where the file is damaged."""
        empty = tables.GATES.empty_table()
        found = empty
        if self.folder.exists(SEARCH_GATES):
            found = self.unless_damaged(
                SEARCH_GATES,
                lambda: tables.read_table(self.folder, SEARCH_GATES, tables.GATES),
                empty,
                f"the report lacks the gates, and {WRITTEN_AGAIN}",
            )
        return tables.joined([found], tables.GATES)

    # The pace of the families, and the removal path at that pace.

    @property
    def pace_file(self) -> str:
        """The file of the chosen pace; its name contains a hash of all settings of the search and of the cut."""
        return self.pace_file_of("macs")

    def pace_file_of(self, unit: str) -> str:
        """The file of the pace that was chosen for budgets in a unit: those in ms have one of their own."""
        return f"{SEARCH}/pace-ms-{self.latency.key()}.json" if unit == "ms" else f"{SEARCH}/pace-{self._cut_key()}.json"

    def pace_choice(self, unit: str = "macs") -> dict[str, Any] | None:
        """The chosen `pace`, the results of all tries (`tried`) and a hash of their recipe (`key`); None before the choice.

        Args:
            unit: "ms" for the pace of budgets in ms; any other for that of the other budgets.
        """
        return self.json_or_none(self.pace_file_of(unit), "pace", "tried")

    def write_pace_choice(self, choice: Mapping[str, Any], unit: str = "macs") -> None:
        self.folder.write_json(self.pace_file_of(unit), dict(choice))

    def pace_try(self, name: str) -> dict[str, Any] | None:
        """The result of one try of a pace, by this start or an earlier one; None where it was not tried."""
        return self.json_or_none(f"{SEARCH}/{name}.json", "pace", "budget", self.config.quality, "error")

    def write_pace_try(self, name: str, result: Mapping[str, Any]) -> None:
        self.folder.write_json(f"{SEARCH}/{name}.json", dict(result))

    @property
    def pace(self) -> dict[str, float]:
        """The pace of each family: the chosen one, or before the choice the first of search.paces."""
        return self.pace_of("macs")

    def pace_of(self, unit: str) -> dict[str, float]:
        """The pace of each family under budgets in a unit. Where none was chosen for ms, it is that of the other budgets."""
        choice = (self.pace_choice("ms") if unit == "ms" else None) or self.pace_choice()
        return dict(choice["pace"]) if choice is not None else self.config.search.paces[0].model_dump()

    def path_at(self, pace: Mapping[str, float], depth: bool | float | None = None) -> "RemovalPath":
        """The removal path over the search's ranking of gates, with the configuration's floors, at a pace.

        Args:
            pace: of each family; families without gates are ignored.
            depth: whether whole branches may leave, as for `RemovalPath`, but for the last one with attention; search.depth
                where not given.
        """
        from slimsweep.slimming.removal_path import RemovalPath

        settings = self.config.search
        of_gated = {family: pace[family] for family in self.scores}
        whole = settings.depth if depth is None else depth
        return RemovalPath(
            self.shape, self.scores, settings.floors.model_dump(), settings.round_to, of_gated, whole, depth is not None
        )

    def path_of(self, unit: str) -> "RemovalPath":
        """The removal path that budgets in a unit are cut along; it knows no latency."""
        return self.path_at(self.pace_of("ms"), self.latency.depth) if unit == "ms" else self.path

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
            found = self.json_or_none(path, "structure", "error")
            self._choices[path] = None if found is None else str(found["structure"])
        return self._choices[path]

    def choice_error(self, method: str, budget: float, unit: str, seed: int | None) -> str:
        """Why a method cannot meet a budget."""
        return str(self.json(self.choice_file(method, budget, unit, seed), "error")["error"])

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
        held = self._rows or self._collected(COLLECTED_RESULTS, files, tables.RESULTS)
        known = {name: table for name, table in held.items() if files.get(name) == table[0]}
        if self._snapshot is not None and len(known) == len(files) == len(self._rows):
            return self

        def read(name: str) -> tuple[tuple[int, int], Any] | None:
            try:
                return files[name], self._row(name.removesuffix(".parquet"))
            except FileNotFoundError:  # a point that is tried again has just deleted its failed row
                return None

        new = sorted(files.keys() - known.keys())
        known |= {name: found for name, found in zip(new, self.folder.each(read, new), strict=True) if found is not None}
        for name in self._rows.keys() - known.keys():
            self.damaged.pop(f"{RESULTS}/{name}", None)
        self._rows = known
        self._snapshot = tables.results_of([table for _, (_, table) in sorted(known.items()) if table is not None])
        return self

    def _collected(self, path: str, files: Mapping[str, Any], schema: Any) -> dict[str, tuple[tuple[int, int], Any]]:
        return read_collected(self.folder, path, schema) if len(files) >= MANY_FILES else {}

    def collect(self) -> None:
        """Write the rows and curves that were read into one file each, where many have come since that was done last.

        Readers of thousands of points then read two files. Files that may still change without a trace are left out.
        """
        now = time.time_ns()
        for path, found, schema in (
            (COLLECTED_RESULTS, self._rows, tables.RESULTS),
            (COLLECTED_CURVES, self._curves, tables.CURVES),
        ):
            still = {
                name: (version, table)
                for name, (version, table) in found.items()
                if table is not None and table.num_rows and now - version[1] > SETTLED
            }
            versions = {(name, version) for name, (version, _) in still.items()}
            if len(versions - self._in_collected.get(path, set())) >= MANY_FILES:
                write_collected(self.folder, path, still, schema)
                self._in_collected[path] = versions

    def _row(self, point: str) -> Any:
        """The row of a point as a table; None where the file is damaged.

        Raises:
            FileNotFoundError: there is none.
        """
        path = f"{RESULTS}/{point}.parquet"

        def read() -> Any:
            table = tables.read_table(self.folder, path, tables.RESULTS)
            if not table.num_rows or any(table.column_names.count(n) == 0 or table[n].null_count for n in ("point", "status")):
                raise DamagedFile(f"{(self.folder / path).uri} is damaged (it holds no row of a point)")
            return table

        return self.unless_damaged(path, read, None, "its point counts as not done, and the same command trains it again")

    @property
    def damaged_rows(self) -> set[str]:
        """The points whose rows are damaged, as of the last `refresh`: they count as not done."""
        return {name.removesuffix(".parquet") for name, (_, table) in self._rows.items() if table is None}

    def write_row(self, row: dict[str, Any]) -> None:
        """Write one point's row, whole or not at all; it replaces an older row of the same point.

        Raises:
            KeyError: a key is not a column of `tables.RESULTS`.
        """
        tables.write_table(self.folder, f"{RESULTS}/{row['point']}.parquet", [tables.complete_row(row)], tables.RESULTS)

    def row(self, point: str) -> dict[str, Any]:
        """One point's row, from its own file."""
        found: dict[str, Any] = tables.read_table(self.folder, f"{RESULTS}/{point}.parquet", tables.RESULTS).to_pylist()[0]
        return found

    def has_row(self, point: str) -> bool:
        """Whether a point has a row, ok or failed, by a look at its own file: there may be thousands of others."""
        return self._own_status(point) is not None

    def has_ok_row(self, point: str) -> bool:
        """Whether a point is done, by a look at its own file."""
        return self._own_status(point) == ["ok"]

    def _own_status(self, point: str) -> list[str] | None:
        try:
            row = self._row(point)
        except FileNotFoundError:
            return None
        return None if row is None else row["status"].to_pylist()

    def row_uri(self, point: str) -> str:
        """The path or URI of a point's row."""
        return (self.folder / f"{RESULTS}/{point}.parquet").uri

    def delete_row(self, point: str) -> None:
        self.folder.delete(f"{RESULTS}/{point}.parquet")

    # Curves.

    def curve(self, name: str) -> list[dict[str, Any]]:
        """The epochs so far of a stage or point, one dict per epoch (`tables.CURVES`); empty where nothing can be read."""
        return self._curve(name).to_pylist()

    def has_curve(self, name: str) -> bool:
        """Whether a stage or point has a curve, readable or not: whether it has begun."""
        return self.folder.exists(f"{CURVES}/{name}.parquet")

    def _curve(self, name: str) -> Any:
        path, empty = f"{CURVES}/{name}.parquet", tables.CURVES.empty_table()
        meaning = f"the curve of {name} is missing in the report; results do not depend on it, and the file can be deleted"
        try:
            return self.unless_damaged(path, lambda: tables.read_table(self.folder, path, tables.CURVES), empty, meaning)
        except FileNotFoundError:
            return empty

    def write_curve(self, name: str, epochs: list[dict[str, Any]]) -> None:
        """Write all epochs so far of a stage or point (`tables.CURVES`), whole or not at all."""
        tables.write_table(self.folder, f"{CURVES}/{name}.parquet", epochs, tables.CURVES)

    def curves(self) -> pd.DataFrame:
        """All epochs of all stages and points (`tables.CURVES`) whose curve can be read."""
        found = self.read_curves()
        return tables.joined([found[name] for name in sorted(found)], tables.CURVES)

    def read_curves(self) -> dict[str, Any]:
        """The curve of each stage and point as a table, empty where it cannot be read."""
        now, versions = time.time_ns(), self.curve_versions()
        held = self._curves or self._collected(COLLECTED_CURVES, versions, tables.CURVES)
        found = {name: table for name, (version, table) in held.items() if versions.get(name) == version}
        new = sorted(versions.keys() - found.keys())
        found |= dict(zip(new, self.folder.each(self._curve, new), strict=True))
        self._curves = {
            name: (version, found[name])
            for name, version in versions.items()
            if now - version[1] > SETTLED and f"{CURVES}/{name}.parquet" not in self.damaged
        }
        return found

    def curve_names(self) -> set[str]:
        """The stages and points that have a curve."""
        return set(self.curve_sizes())

    def curve_sizes(self) -> dict[str, int]:
        """The bytes of the curve of each stage and point that has one."""
        return {name: size for name, (size, _) in self.curve_versions().items()}

    def curve_versions(self) -> dict[str, tuple[int, int]]:
        """By stage or point, what changes when its curve is written again: (bytes, time of the change in ns)."""
        files = self.folder.files(CURVES)
        return {name.removesuffix(".parquet"): state for name, state in files.items() if name.endswith(".parquet")}

    def delete_curve(self, name: str) -> None:
        self.folder.delete(f"{CURVES}/{name}.parquet")

    def checkpoints(self, name: str) -> Folder:
        """The folder of the checkpoints of a stage or point."""
        return self.folder / f"{CHECKPOINTS}/{name}"

    def checkpoint_names(self) -> list[str]:
        """The stages and points that have a checkpoint."""
        return self.folder.list(CHECKPOINTS)

    # Models that points are trained from, as they are after the cut and the repair.

    def start_path(self, structure: str, searched: bool) -> str:
        """The file of such a model; its name contains a hash of all settings that decide what it is.

        Args:
            structure: it, as JSON text.
            searched: whether it was cut from the searched model, not from the dense one.
        """
        said = json.dumps([self.fingerprint("retrain"), structure, searched])
        return f"{STARTS}/{hashlib.sha256(said.encode()).hexdigest()[:16]}.safetensors"

    def start(self, path: str) -> dict[str, "Tensor"] | None:
        """The tensors of such a model; None where no point has written it yet, and where the file is damaged."""
        from safetensors import SafetensorError
        from safetensors.torch import load

        def read() -> dict[str, "Tensor"] | None:
            try:
                return load(self.folder.read_bytes(path))
            except FileNotFoundError:
                return None
            except SafetensorError as problem:
                raise DamagedFile(f"{(self.folder / path).uri} is damaged ({problem})") from problem

        return self.unless_damaged(path, read, None, "the model is cut and repaired again")

    def write_start(self, path: str, tensors: Mapping[str, "Tensor"]) -> None:
        """Write the tensors of such a model, whole or not at all."""
        from safetensors.torch import save

        self.folder.write_bytes(path, save({name: tensor.detach().cpu().clone() for name, tensor in tensors.items()}))

    def forget_starts(self) -> None:
        """Delete these models: no point will be trained from them."""
        self.folder.delete(STARTS)

    # The plan, and which points have begun.

    def write_plan(self, plan: Plan) -> None:
        self.folder.write_json(PLAN, plan.to_json())

    def plan(self) -> Plan | None:
        """The plan that the driver wrote; None where none can be read: earlier versions of slimsweep wrote none."""
        if not self.folder.exists(PLAN):
            return None

        def read() -> Plan:
            try:
                return Plan.from_json(self.json(PLAN))
            except DamagedFile:
                raise
            except ValueError as problem:
                raise DamagedFile(f"{(self.folder / PLAN).uri} is damaged ({problem})") from problem

        return self.unless_damaged(
            PLAN, read, None, "only points that have begun are known until the next start writes it again"
        )

    def begin(self, name: str, attempt: str) -> None:
        """Note that the search or a point has begun in a start of the driver (`attempt`)."""
        self.folder.write_bytes(f"{BEGUN}/{attempt}/{name}", b"")

    def begun_in(self, attempt: str) -> set[str]:
        """What has begun in a start of the driver: the search, and points."""
        return set(self.folder.list(f"{BEGUN}/{attempt}"))

    def forget_begun(self) -> None:
        """Delete the notes of earlier starts: nothing that they began still runs or waits."""
        self.folder.delete(BEGUN)
        self.folder.delete(WAITING)

    def write_waiting(self, text: str) -> None:
        """Note what the driver waits for, as a sentence that begins with "waiting for"; empty where it waits for nothing."""
        if text:
            self.folder.at_once().write_json(WAITING, {"waiting": text})
        else:
            self.folder.at_once().delete(WAITING)

    def waiting(self) -> str:
        """What the driver waits for; empty where it waits for nothing. It counts only while the driver is alive."""
        try:
            return str(self.folder.read_json(WAITING)["waiting"])
        except (FileNotFoundError, ValueError, LookupError, TypeError):  # none, or cut short
            return ""

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

    @staticmethod
    def exports_beside(model: Path) -> Path | None:
        """The folder for other formats of a run's own model (of models/, or the dense one); None where it is of no run."""
        model = model.resolve()
        folder = model.parent.parent if model.parent.name == MODELS else model.parent
        of_run = model.parent.name == MODELS or model.name == DENSE
        return folder / EXPORTS if of_run and Run(folder).is_begun else None

    @property
    def ray_folder(self) -> Folder:
        """The folder of Ray's own state."""
        return self.folder / RAY

    # What trackers know.

    def tracked(self, tracker: str) -> dict[str, Any]:
        """What a tracker has been told, and under which names (`slimsweep.trackers.told`); empty where nothing is known."""
        path = f"{TRACKERS}/{tracker}.json"
        if not self.folder.exists(path):
            return {}
        nothing: dict[str, Any] = {}
        meaning = "the tracker gets a new run, with all epochs, at the next start"
        return self.unless_damaged(path, lambda: self.json(path, "id", "places"), nothing, meaning)

    def write_tracked(self, tracker: str, told: Mapping[str, Any]) -> None:
        """Write what `tracked` reads."""
        self.folder.write_json(f"{TRACKERS}/{tracker}.json", dict(told))

    @property
    def tensorboard_folder(self) -> Folder:
        """The folder of TensorBoard's files, where the configuration names no other one."""
        return self.folder / TENSORBOARD

    def write_report(self, ending: str, content: bytes) -> None:
        """Write report.html, report.svg or report.png."""
        self.folder.write_bytes(f"{REPORT}.{ending}", content)

    def report(self) -> bytes | None:
        """The page; None before it was written for the first time."""
        return self.folder.read_bytes(REPORT_PAGE) if self.folder.exists(REPORT_PAGE) else None

    report_name = REPORT_PAGE  # of the page's file
    config_name = CONFIG  # of the configuration's

    @property
    def report_uri(self) -> str:
        """The path or URI of the report."""
        return (self.folder / REPORT_PAGE).uri


def _is_listed(path: str, folder: str) -> bool:
    """Whether a file is directly in a folder, or anywhere below one whose name ends with /."""
    inside = path.removeprefix(f"{folder.rstrip('/')}/")
    return inside != path and (folder.endswith("/") or "/" not in inside)


def group_report(output: Folder) -> str:
    """The path or URI of the page over the runs of several models, beside their folders."""
    return (output / REPORT_PAGE).uri
