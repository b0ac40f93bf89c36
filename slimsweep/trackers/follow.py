"""Threads of the driver that read a run's folder and tell each tracker what is new there.

The folder is the queue: a tracker that is slow, or does not answer for a while, gets the rest later, also at the next start of
the same command. What it has been told stands in the run's folder, so that nothing is told twice.
"""

import contextlib
import hashlib
import logging
import math
import secrets
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import pyarrow as pa
import yaml

from slimsweep.errors import RunLost
from slimsweep.ledger import tables
from slimsweep.ledger.run import Run
from slimsweep.storage import Folder
from slimsweep.trackers.check import module_of
from slimsweep.trackers.protocol import CURVE, Result, State, Sweep, TrackedSweep, TrackedTraining, Values
from slimsweep.trackers.secrets import values_without_secrets, without_secrets

log = logging.getLogger(__name__)

PAUSE = 3.0  # seconds between two looks at the folder, at least
LONGEST_PAUSE = 120.0  # while a tracker fails
CPU_SHARE = 0.003  # of the time may be spent by each thread, as points train on the driver's machine too
CALL_SECONDS = 20.0  # after which a tracker counts as one that does not answer
BYTES_PER_SECOND = 1e6  # that an upload may take beyond that
INTERRUPTED_SECONDS = 5.0  # for trackers at Ctrl+C
ROWS_PER_CALL = 100
STAGES = ("dense", "search")
OF_A_POINT = ("method", "budget", "unit", "budget_ms", "shares", "terms", "seed", "lr", "epochs")
NUMBERS = [field.name for field in tables.RESULTS if pa.types.is_integer(field.type) or pa.types.is_floating(field.type)]
# Of the numbers of a row: what is equal for all points of a run, or known before.
NO_RESULT = {*OF_A_POINT, "samples_seen", "classes", "val_images", "test_images", "test_top1_untouched"}
NO_RESULT |= {name for name in NUMBERS if name.endswith("_dense")}
RUNNING_ON = "the run goes on; what is missing is sent later, at the latest by the next start of the same command"


class Tracking:
    """Tells the trackers of a run's configuration how it goes, while the block runs; at its end waits for them, for a while.

    Nothing that a tracker does ends the block or keeps it waiting before its end.

    Args:
        tell: prints one line.
    """

    def __init__(self, run: Run, tell: Callable[[str], None]) -> None:
        self.run = run
        self.followers = [Follower(name, run, tell) for name in run.config.trackers]
        self.over = threading.Event()
        self.watch = threading.Thread(target=self._watch, daemon=True, name="trackers")

    def __enter__(self) -> "Tracking":
        for follower in self.followers:
            follower.thread.start()
        if self.followers:
            self.watch.start()
        return self

    def _watch(self) -> None:
        """Say which trackers do not answer: their own threads hang."""
        while not self.over.wait(0.5):
            for follower in self.followers:
                if follower.overdue:
                    follower.warn(f"does not answer; {RUNNING_ON}")

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        if not self.followers:
            return
        seconds = self.run.config.tracking.wait_seconds
        if kind is not None and issubclass(kind, KeyboardInterrupt):
            seconds = min(seconds, INTERRUPTED_SECONDS)
        state = None if kind is not None and issubclass(kind, RunLost) else self._state(kind)
        for follower in self.followers:
            follower.finish(state)
        end = time.monotonic() + seconds
        for follower in self.followers:
            while follower.thread.is_alive() and time.monotonic() < end and not follower.overdue:
                follower.thread.join(0.05)
        for follower in self.followers:
            if follower.overdue:
                follower.warn(f"does not answer; {RUNNING_ON}")
            elif follower.thread.is_alive():
                follower.warn(f"has not taken all within {seconds:g} s; the next start of the same command sends the rest")
        self.over.set()
        self.watch.join()

    def _state(self, kind: type[BaseException] | None) -> State:
        """What becomes of the sweep's own run."""
        if kind is not None:
            return "stopped" if issubclass(kind, KeyboardInterrupt) else "failed"
        try:
            plan, rows = self.run.plan(), self.run.refresh().rows
        except OSError as problem:  # a store that fails just now: the points are not known
            log.warning("the points of %s could not be read (%s)", self.run.uri, problem)
            return "stopped"
        names = {point.name for point in plan.points} if plan is not None else set()
        status: dict[str, str] = dict(rows.loc[rows.point.isin(names), ["point", "status"]].itertuples(index=False))
        if "failed" in status.values():
            return "failed"
        return "stopped" if names - status.keys() else "finished"


class Follower:
    """One tracker, and the thread that reads the run's folder for it.

    Args:
        name: of the tracker.
        run: the driver's run; the thread reads it through a `Run` of its own.
        tell: prints one line.
    """

    def __init__(self, name: str, run: Run, tell: Callable[[str], None]) -> None:
        self.name, self.tell = name, tell
        self.run = Run(run.folder.at_once(), run.config, run.holder)
        self.stop = threading.Event()
        self.state: State | None = None
        self.until: float | None = None  # when the call in progress is overdue, by time.monotonic()
        self.warned = self.failing = self.slow = False
        self.sweep: TrackedSweep | None = None
        self.open: dict[str, TrackedTraining] = {}
        self.seen: dict[str, tuple[int, int]] = {}  # by stage or point, the version of its curve that the tracker has
        self.troubled: set[str] = set()  # what could not be told at the last look: it comes last at the next one
        self.told: dict[str, Any] = {}
        self.known: dict[str, Any] = {}
        self.thread = threading.Thread(target=self._follow, daemon=True, name=f"tracker-{name}")

    @property
    def overdue(self) -> bool:
        """Whether the tracker has not answered for too long."""
        until = self.until
        return until is not None and time.monotonic() > until

    def finish(self, state: State | None) -> None:
        """Let the thread tell the rest, and then end.

        Args:
            state: of the sweep; None where another driver goes on with it.
        """
        self.state = state
        self.stop.set()

    def warn(self, text: str) -> None:
        """Say once what is wrong with the tracker, in the terminal and in the run's notes."""
        if self.warned:
            return
        self.warned = True
        sentence = f"{self.name}: {text}"
        self.tell(sentence)
        try:
            self.run.logs.add_note(sentence)
        except (OSError, RunLost) as problem:
            log.warning("the note %r could not be written (%s)", sentence, problem)

    def _follow(self) -> None:
        pause = 0.0
        while True:
            last = self.stop.wait(pause)
            if last and (self.state is None or (self.failing and self.slow)):
                return
            began, spent = time.monotonic(), time.thread_time()
            try:
                if self.sweep is None:
                    try:
                        self.sweep = self._connect()
                    finally:  # loading its package takes seconds of CPU, which would mean a pause of many minutes
                        spent = time.thread_time()
                self._look(last)
                self.failing = False
            except RunLost:  # the driver says so
                return
            except Exception as problem:  # whatever a tracker's package raises: it must not end the run
                self.failing, self.slow = True, time.monotonic() - began > PAUSE
                said = without_secrets(" ".join(str(problem).split()))[:300]
                self.warn(f"{type(problem).__name__}: {said}".removesuffix(": ") + f"; {RUNNING_ON}")
                log.debug("the tracker %s failed", self.name, exc_info=True)
            if last:
                return
            pause = min(2 * max(pause, PAUSE), LONGEST_PAUSE) if self.failing else PAUSE
            pause = max(pause, (time.thread_time() - spent) / CPU_SHARE)

    @contextlib.contextmanager
    def _call(self, uploaded: int = 0) -> Iterator[None]:
        """Around each call of the tracker: limits the time in which it is waited for."""
        self.until = time.monotonic() + CALL_SECONDS + uploaded / BYTES_PER_SECOND
        try:
            yield
        finally:
            self.until = None

    def _connect(self) -> TrackedSweep:
        config, run = self.run.config, self.run
        module = module_of(self.name)
        __import__(module.PACKAGE)  # takes seconds of CPU, which are no waiting
        known = run.tracked(self.name) or {"id": secrets.token_hex(8), "places": {}}
        place = hashlib.sha256(module.place_of(config, run).encode()).hexdigest()[:12]
        # Before the tracker is asked: it may have made its runs when this start is killed.
        self.told = known["places"].setdefault(place, {"ids": {}, "epochs": {}, "ended": {}, "page": ""})
        self.known = known
        self._save()
        values = values_without_secrets(config.model_dump(mode="json"))
        own, given = run.tensorboard_folder, config.tracking.tensorboard
        sweep = Sweep(
            name=config.name,
            id=known["id"],
            folder=without_secrets(run.uri),
            config=values,
            config_name=run.config_name,
            config_yaml=yaml.safe_dump(values, sort_keys=False, width=120),
            settings=config.tracking,
            tensorboard=f"{given}/{config.name}" if given else own.uri if own.is_local else None,
        )
        with self._call():
            found: TrackedSweep = module.connect(sweep, self.told["ids"])
        self._save()
        return found

    def _save(self) -> None:
        self.run.write_tracked(self.name, self.known)

    def _look(self, last: bool) -> None:
        """Tell all that is new.

        Args:
            last: whether the driver ends.
        """
        run = self.run.refresh()
        rows: dict[str, Any] = {row["point"]: row for row in run.rows.to_dict("records")}
        ended = {name: f"{row['status']} {row['created_at']}" for name, row in rows.items()}
        ended |= {name: "done" for name, done in zip(STAGES, (run.dense_done, run.search_done), strict=True) if done}
        versions = run.curve_versions()  # after the rows, so that a curve is never older than its row
        plan = run.plan()
        planned = {point.name: point for point in plan.points} if plan is not None else {}
        names = dict.fromkeys([*STAGES, *planned, *rows, *versions])
        problem: Exception | None = None
        for name in sorted(names, key=lambda name: name in self.troubled):
            new_end = name in ended and self.told["ended"].get(name) != ended[name]
            new_rows = name in versions and self.seen.get(name) != versions[name] and (name not in ended or new_end)
            if name.startswith("pace-") or not (new_end or new_rows):
                continue
            of_point = rows.get(name) or (vars(planned[name]) if name in planned else {})
            changed = versions.get(name, (0, 0))[1] / 1e9 or time.time()  # some stores do not say when
            try:
                self._bring(name, self._parameters(name, of_point), ended[name] if new_end else "", rows.get(name), changed)
                self.troubled.discard(name)
            except RunLost:
                raise
            except Exception as one:
                if self.troubled or problem is not None:
                    raise  # a tracker that fails is not asked for each of a thousand points
                problem = one
                self.troubled.add(name)
                self.open.pop(name, None)
                continue
            if name in versions:
                self.seen[name] = versions[name]
        if problem is not None:
            raise problem
        if last and self.state is not None:
            self._end(self.state)

    def _parameters(self, name: str, of_point: Mapping[str, Any]) -> dict[str, Any]:
        """What tells a stage or point from the others."""
        if name in STAGES:
            recipe = self.run.config.dense if name == "dense" else self.run.config.search
            return {"stage": name, "epochs": recipe.epochs, "lr": recipe.lr}
        known = {key: of_point.get(key) for key in OF_A_POINT}
        plain = {key: value for key, value in known.items() if is_number(value) or (isinstance(value, str) and value)}
        return {"stage": "retrain", **plain}

    def _bring(
        self, name: str, parameters: Mapping[str, Any], ending: str, row: Mapping[str, Any] | None, changed: float
    ) -> None:
        """Tell the new epochs of a stage or point, and its end.

        Args:
            ending: stands for its end; empty while it goes on, or where the end was told.
            row: the row of a point that has ended.
            changed: when its last epoch ended, in seconds of the epoch of Unix.
        """
        assert self.sweep is not None
        curve = self.run.curve(name)
        if name not in self.open:
            began = changed - sum(one["seconds"] for one in curve if is_number(one.get("seconds")))
            with self._call():
                self.open[name] = self.sweep.training(name, parameters, began)
            if (has := self.open[name].last_epoch) is not None:
                self.told["epochs"][name] = has
            self._save()
        training = self.open[name]
        new = [(int(one["epoch"]), of_epoch(one)) for one in curve if one["epoch"] > self.told["epochs"].get(name, -1)]
        for first in range(0, len(new), ROWS_PER_CALL):
            part = new[first : first + ROWS_PER_CALL]
            with self._call():
                training.epochs(part)
            self.told["epochs"][name] = part[-1][0]
            self._save()
        if not ending:
            return
        result, folder = self._result(name, row, curve, changed)
        with contextlib.ExitStack() as stack:
            model = stack.enter_context(folder.local()) if folder is not None else None
            with self._call(bytes_in(model)):
                training.result(result, model)
        with self._call(int(self.run.config.tracking.wait_seconds * BYTES_PER_SECOND)):
            training.end(result.state)
        del self.open[name]
        self.told["ended"][name] = ending
        self._save()

    def _result(
        self, name: str, row: Mapping[str, Any] | None, curve: list[dict[str, Any]], ended: float
    ) -> tuple[Result, Folder | None]:
        """What became of a stage or point, and the folder of its model, where that is to be uploaded."""
        run = self.run
        known = {key for key in CURVE if any(one.get(key) is not None for one in curve)}  # the last epoch has these
        if row is None:
            found = run.dense_description["metrics"] if name == "dense" else {}
            folder = run.dense if name == "dense" else None
            state: State = "finished"
        else:
            found = {key: row[key] for key in NUMBERS if key not in NO_RESULT}
            state = "finished" if row["status"] == "ok" else "stopped" if row["status"] == "stopped" else "failed"
            folder = run.folder / str(row["model_path"]) if state == "finished" else None
        values = {key: float(value) for key, value in found.items() if is_number(value) and key not in known}
        result = Result(
            state=state,
            epochs=int(curve[-1]["epoch"]) if curve else 0,
            ended=ended,
            values=values,
            structure=str((row or {}).get("structure") or ""),
            error=without_secrets(str((row or {}).get("error") or "")),
        )
        uploaded = run.config.tracking.models and folder is not None and folder.exists()
        return result, folder if uploaded else None

    def _end(self, state: State) -> None:
        """Tell the report and the end of the sweep."""
        assert self.sweep is not None
        for name in list(self.open):
            with self._call():
                self.open.pop(name).end("stopped")
        page = self.run.report()
        if page is not None and (hashed := hashlib.sha256(page).hexdigest()[:12]) != self.told["page"]:
            with tempfile.TemporaryDirectory(prefix="slimsweep-") as folder:
                file = Path(folder) / self.run.report_name
                file.write_bytes(page)
                with self._call(len(page)):
                    self.sweep.page(file)
            self.told["page"] = hashed
            self._save()
        with self._call(int(self.run.config.tracking.wait_seconds * BYTES_PER_SECOND)):
            self.sweep.end(state)


def of_epoch(row: Mapping[str, Any]) -> Values:
    """The numbers of a row of the curve."""
    return {name: float(row[name]) for name in CURVE if is_number(row.get(name))}


def is_number(value: Any) -> bool:
    """Whether a value of a table is a number that is there."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def bytes_in(folder: Path | None) -> int:
    """The size of a folder's files."""
    return sum(file.stat().st_size for file in folder.iterdir() if file.is_file()) if folder is not None else 0
