"""W&B: a group per sweep, with a run for the sweep and one per stage and point.

Ids follow from the sweep's own, so that a later start finds its runs. W&B sends in a process of its own: what it has not sent
when the time at the end is over stays on disk, for `wandb sync`.
"""

import hashlib
import json
import netrc
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from slimsweep.config import Config, ConfigError
from slimsweep.ledger.run import Run
from slimsweep.trackers.protocol import SWEEP, Ids, Result, State, Sweep, Values

if TYPE_CHECKING:
    import wandb

PACKAGE = "wandb"
SERVER = "https://api.wandb.ai"
NOT_SENT = ("offline", "disabled", "dryrun")
EXIT_CODES = {"finished": 0, "failed": 1, "stopped": 255}
CONNECT_SECONDS = 15.0


def check(config: Config) -> None:
    """Refuse to go online without a key, for which W&B would ask in the terminal.

    Raises:
        ConfigError: says what to set.
    """
    mode = os.environ.get("WANDB_MODE", "")
    if mode in NOT_SENT or any(os.environ.get(name) for name in ("WANDB_API_KEY", "WANDB_IDENTITY_TOKEN_FILE")):
        return
    if _in_netrc(os.environ.get("WANDB_BASE_URL") or SERVER) or (not mode and _settings_mode() in NOT_SENT):
        return
    raise ConfigError(
        "trackers names wandb, but no key of W&B is known on this machine: run `wandb login`, set WANDB_API_KEY, or set "
        "WANDB_MODE=offline, whose files `wandb sync` sends later"
    )


def _in_netrc(server: str) -> bool:
    """Whether `wandb login` has left a key for a server."""
    named = os.environ.get("NETRC")
    files = [Path(named)] if named else [Path.home() / ".netrc", Path.home() / "_netrc"]
    for file in files:
        try:
            if netrc.netrc(str(file)).authenticators(urlsplit(server).hostname or server):
                return True
        except FileNotFoundError:
            continue
        except (OSError, netrc.NetrcParseError) as problem:
            reason = problem.strerror if isinstance(problem, OSError) else problem.msg  # the rest may hold a key
            raise ConfigError(
                f"trackers names wandb, but {file} cannot be read ({reason}): fix it, or set WANDB_API_KEY"
            ) from None
    return False


def _settings_mode() -> str:
    """The mode that `wandb offline` has set for this folder, or W&B's settings name."""
    import wandb

    return str(wandb.setup().settings.mode)


def place_of(config: Config, run: Run) -> str:
    """The server, the team and the project; runs that are not sent are kept apart from those that are."""
    server = urlsplit(os.environ.get("WANDB_BASE_URL") or SERVER).hostname
    mode = os.environ.get("WANDB_MODE") or _settings_mode()
    where = "files" if mode in NOT_SENT else f"{server} {config.tracking.wandb_entity or os.environ.get('WANDB_ENTITY', '')}"
    return f"{where} {_project(config.tracking.project)}"


def _project(project: str | None) -> str:
    return project or os.environ.get("WANDB_PROJECT") or "slimsweep"


def connect(sweep: Sweep, ids: Ids) -> "WandbSweep":
    """Connect to the server that WANDB_BASE_URL names, or W&B's own; or write files (WANDB_MODE=offline)."""
    return WandbSweep(sweep, ids)


class WandbSweep:
    """A sweep in W&B (`slimsweep.trackers.protocol.TrackedSweep`)."""

    def __init__(self, sweep: Sweep, ids: Ids) -> None:
        self.sweep, self.ids = sweep, ids
        self.run = self.run_of(SWEEP, sweep.name, {**sweep.config, "folder": sweep.folder})
        import wandb

        artifact = wandb.Artifact(f"{sweep.group}-configuration", type="configuration")
        with artifact.new_file(sweep.config_name) as file:
            file.write(sweep.config_yaml)
        self.run.log_artifact(artifact)

    def run_of(self, training: str, name: str, config: Mapping[str, Any]) -> "wandb.Run":
        """The run of the sweep, a stage or a point. Several are open at the same time."""
        import wandb

        made = hashlib.sha256(f"{self.sweep.id} {training}".encode()).hexdigest()[:12]
        settings = wandb.Settings(
            init_timeout=CONNECT_SECONDS,
            finish_timeout=max(self.sweep.settings.wait_seconds, 1.0),
            console="off",  # what the driver prints is none of a point's
            silent=True,
            disable_git=True,
            save_code=False,
            x_disable_stats=True,  # of the driver's machine, where points need not train
            x_disable_machine_info=True,
        )
        run = wandb.init(
            project=_project(self.sweep.settings.project),
            entity=self.sweep.settings.wandb_entity,
            id=self.ids.setdefault(training, made),
            name=name,
            group=self.sweep.group,
            job_type=SWEEP if training == SWEEP else "stage" if training in ("dense", "search") else "point",
            config=json.loads(json.dumps(dict(config))),
            resume="allow",
            reinit="create_new",
            settings=settings,
        )
        run.define_metric("*", step_metric="epoch")
        return run

    def training(self, name: str, parameters: Mapping[str, Any], began: float) -> "WandbTraining":
        run = self.run_of(name, name, {**parameters, "sweep": self.sweep.config})
        return WandbTraining(run, f"{self.sweep.group}-{name}")

    def page(self, page: Path) -> None:
        import wandb

        artifact = wandb.Artifact(f"{self.sweep.group}-report", type="report")
        artifact.add_file(str(page))
        self.run.log_artifact(artifact)

    def end(self, state: State) -> None:
        self.run.finish(exit_code=EXIT_CODES[state])


class WandbTraining:
    """A stage or point in W&B (`slimsweep.trackers.protocol.TrackedTraining`)."""

    def __init__(self, run: "wandb.Run", artifact: str) -> None:
        self.run, self.artifact = run, artifact
        known = run.summary.get("epoch") if run.resumed else None
        self.last_epoch: int | None = None if known is None else int(known)

    def epochs(self, rows: Sequence[tuple[int, Values]]) -> None:
        for epoch, values in rows:
            self.run.log({**values, "epoch": epoch})

    def result(self, result: Result, model: Path | None) -> None:
        import wandb

        self.run.summary.update({**result.values, **({"error": result.error} if result.error else {})})
        if result.structure:
            self.run.config.update({"structure": json.loads(result.structure)}, allow_val_change=True)
        if model is not None:
            artifact = wandb.Artifact(self.artifact, type="model")
            for file in sorted(model.iterdir()):
                artifact.add_file(str(file))
            self.run.log_artifact(artifact)

    def end(self, state: State) -> None:
        self.run.finish(exit_code=EXIT_CODES[state])
