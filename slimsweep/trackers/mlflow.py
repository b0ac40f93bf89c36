"""MLflow: a run per sweep, and in it a nested run per stage and point.

Runs are found again by their ids, or by tags where the ids were lost. The server says which epochs it has, so that a metric is
not logged twice even where a start was killed right after it had sent one.
"""

import json
import logging
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from slimsweep.config import Config
from slimsweep.ledger.run import Run
from slimsweep.trackers.protocol import SWEEP, Ids, Result, State, Sweep, Values
from slimsweep.trackers.secrets import without_secrets

if TYPE_CHECKING:
    from mlflow import MlflowClient

PACKAGE = "mlflow"
OF_SWEEP, OF_TRAINING = "slimsweep.sweep", "slimsweep.training"  # tags
NOW = "now."  # begins the tags of parameters that a later start has changed
OF_EXPERIMENT = {"mlflow.experimentKind": "custom_model_development"}  # its page then begins with the runs and their metrics
STATUS = {"finished": "FINISHED", "failed": "FAILED", "stopped": "KILLED"}
METRICS_PER_CALL, PARAMETERS_PER_CALL = 900, 100  # the server takes at most 1,000 and 100
LONGEST = 500  # characters of a parameter, which old servers refuse beyond that
# Where nothing is set, MLflow waits two minutes for an answer, tries seven more times, and prints addresses.
UNLESS_SET = {
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "15",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",  # two lines at the end of each point, in the middle of the driver's own
}


def check(config: Config) -> None:
    """Nothing can be refused without asking the server."""


def place_of(config: Config, run: Run) -> str:
    """The server and the experiment."""
    return f"{without_secrets(_uri(config) or 'default')} {_experiment(config.tracking.project)}"


def _uri(config: Config) -> str | None:
    import mlflow

    return config.tracking.mlflow_uri or mlflow.get_tracking_uri()


def _experiment(project: str | None) -> str:
    return project or os.environ.get("MLFLOW_EXPERIMENT_NAME") or "slimsweep"


def connect(sweep: Sweep, ids: Ids) -> "MlflowSweep":
    """Connect to the server that the configuration or MLFLOW_TRACKING_URI names."""
    return MlflowSweep(sweep, ids)


class MlflowSweep:
    """A sweep in MLflow (`slimsweep.trackers.protocol.TrackedSweep`)."""

    def __init__(self, sweep: Sweep, ids: Ids) -> None:
        for name, value in UNLESS_SET.items():
            os.environ.setdefault(name, value)
        for name in ("mlflow", "alembic"):  # what they say while they make a database is not for the driver's terminal
            logging.getLogger(name).setLevel(logging.WARNING)
        from mlflow import MlflowClient

        self.sweep, self.ids = sweep, ids
        self.client = MlflowClient(tracking_uri=sweep.settings.mlflow_uri)
        known = os.environ.get("MLFLOW_EXPERIMENT_ID") if sweep.settings.project is None else None
        self.experiment: str = known or self._experiment_id(_experiment(sweep.settings.project))
        self.run = self.run_of(SWEEP, sweep.name, {"slimsweep.folder": sweep.folder})
        self.id = self.run.info.run_id
        log_parameters(self.client, self.run, dict(flat(sweep.config)))
        self.client.log_text(self.id, sweep.config_yaml, sweep.config_name)

    def _experiment_id(self, name: str) -> str:
        from mlflow.exceptions import MlflowException

        if (found := self.client.get_experiment_by_name(name)) is not None:
            return str(found.experiment_id)
        try:
            return str(self.client.create_experiment(name, tags=OF_EXPERIMENT))
        except MlflowException:  # another sweep has made it just now
            if (found := self.client.get_experiment_by_name(name)) is None:
                raise
            return str(found.experiment_id)

    def run_of(self, training: str, name: str, tags: Mapping[str, str], began: float | None = None) -> Any:
        """The run of the sweep, a stage or a point; made where there is none, or where somebody has deleted it."""
        from mlflow.exceptions import MlflowException

        found = None
        if training in self.ids:
            try:
                found = self.client.get_run(self.ids[training])
            except MlflowException as problem:
                if problem.error_code != "RESOURCE_DOES_NOT_EXIST":
                    raise
        if found is None or found.info.lifecycle_stage != "active":
            known = f"tags.`{OF_SWEEP}` = '{self.sweep.id}' and tags.`{OF_TRAINING}` = '{training}'"
            found = next(iter(self.client.search_runs([self.experiment], known, max_results=1)), None)
        if found is None:
            of_sweep = {OF_SWEEP: self.sweep.id, OF_TRAINING: training, "mlflow.source.name": "slimsweep", **tags}
            start = int(1000 * (time.time() if began is None else began))
            found = self.client.create_run(self.experiment, start_time=start, tags=of_sweep, run_name=name)
        elif found.info.status != "RUNNING":
            self.client.update_run(found.info.run_id, status="RUNNING")
        self.ids[training] = found.info.run_id
        return found

    def training(self, name: str, parameters: Mapping[str, Any], began: float) -> "MlflowTraining":
        run = self.run_of(name, name, {"mlflow.parentRunId": self.id}, began)
        log_parameters(self.client, run, parameters)
        return MlflowTraining(self.client, run)

    def page(self, page: Path) -> None:
        self.client.log_artifact(self.id, str(page))

    def end(self, state: State) -> None:
        self.client.set_terminated(self.id, STATUS[state])


class MlflowTraining:
    """A stage or point in MLflow (`slimsweep.trackers.protocol.TrackedTraining`)."""

    def __init__(self, client: "MlflowClient", run: Any) -> None:
        self.client, self.id = client, run.info.run_id
        self.last_epoch: int | None = int(run.data.metrics.get("epoch", -1))
        self.ended: int | None = None  # ms, where it has

    def epochs(self, rows: Sequence[tuple[int, Values]]) -> None:
        from mlflow.entities import Metric

        now = int(1000 * time.time())
        metrics: list[Metric] = []
        for epoch, values in rows:
            of_epoch = [Metric(name, value, now, epoch) for name, value in {**values, "epoch": epoch}.items()]
            if len(metrics) + len(of_epoch) > METRICS_PER_CALL:  # an epoch is logged as a whole or not at all
                self.client.log_batch(self.id, metrics=metrics)
                metrics = []
            metrics += of_epoch
        self.client.log_batch(self.id, metrics=metrics)

    def result(self, result: Result, model: Path | None) -> None:
        from mlflow.entities import Metric, RunTag

        self.ended = int(1000 * result.ended)
        metrics = [Metric(name, value, self.ended, result.epochs) for name, value in result.values.items()]
        self.client.log_batch(self.id, metrics=metrics, tags=[RunTag("error", result.error)])
        if result.structure:
            self.client.log_text(self.id, result.structure, "structure.json")
        if model is not None:
            self.client.log_artifacts(self.id, str(model), "model")

    def end(self, state: State) -> None:
        self.client.set_terminated(self.id, STATUS[state], end_time=self.ended)


def log_parameters(client: "MlflowClient", run: Any, parameters: Mapping[str, Any]) -> None:
    """Log parameters. MLflow refuses to change one: what a later start has otherwise becomes a tag `now.NAME`."""
    from mlflow.entities import Param, RunTag

    texts = {name: str(value)[:LONGEST] for name, value in parameters.items()}
    known, tags = run.data.params, run.data.tags
    new = [Param(name, text) for name, text in texts.items() if name not in known]
    last = {name: tags.get(f"{NOW}{name}", text) for name, text in known.items()}
    later = [RunTag(f"{NOW}{name}", text) for name, text in texts.items() if name in last and last[name] != text]
    if later:
        client.log_batch(run.info.run_id, tags=later)
    for first in range(0, len(new), PARAMETERS_PER_CALL):
        client.log_batch(run.info.run_id, params=new[first : first + PARAMETERS_PER_CALL])


def flat(tree: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    """Nested values by their dotted names; lists and empty sections as JSON."""
    found: list[tuple[str, Any]] = []
    for name, value in tree.items():
        if isinstance(value, Mapping) and value:
            found += flat(value, f"{prefix}{name}.")
        else:
            found.append((f"{prefix}{name}", json.dumps(value) if isinstance(value, (list, dict)) else value))
    return found
