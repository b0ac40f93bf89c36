"""TensorBoard: a folder of event files per stage and point, with a line of hyperparameters and results each."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from slimsweep.config import Config, ConfigError
from slimsweep.ledger.run import Run
from slimsweep.trackers.protocol import SWEEP, Ids, Result, State, Sweep, Values

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

PACKAGE = "tensorboard"


def check(config: Config) -> None:
    """Refuse a store as the place of event files, which grow.

    Raises:
        ConfigError: says what to set.
    """
    field, place = (
        ("tracking.tensorboard", config.tracking.tensorboard) if config.tracking.tensorboard else ("output", config.output)
    )
    if "://" in place:
        raise ConfigError(
            f"trackers names tensorboard, whose files need a local folder, but {field} is {place}: set tracking.tensorboard to "
            "a local folder"
        )


def place_of(config: Config, run: Run) -> str:
    """The folder; the run's own may be moved with the run."""
    return config.tracking.tensorboard or "the run's folder"


def connect(sweep: Sweep, ids: Ids) -> "TensorboardSweep":
    """Open the folder."""
    return TensorboardSweep(sweep)


class TensorboardSweep:
    """A sweep in TensorBoard (`slimsweep.trackers.protocol.TrackedSweep`)."""

    def __init__(self, sweep: Sweep) -> None:
        assert sweep.tensorboard is not None  # `check` has refused that
        self.folder = Path(sweep.tensorboard)
        if not has_events(self.folder / SWEEP):
            with writer(self.folder / SWEEP) as events:
                events.add_text("configuration", "\n".join(f"    {line}" for line in sweep.config_yaml.splitlines()))
                events.add_text("folder", sweep.folder)

    def training(self, name: str, parameters: Mapping[str, Any], began: float) -> "TensorboardTraining":
        return TensorboardTraining(self.folder / name, parameters)

    def page(self, page: Path) -> None:
        """It lies beside the event files already."""

    def end(self, state: State) -> None:
        """Files are closed when a training ends."""


class TensorboardTraining:
    """A stage or point in TensorBoard (`slimsweep.trackers.protocol.TrackedTraining`)."""

    def __init__(self, folder: Path, parameters: Mapping[str, Any]) -> None:
        self.folder, self.parameters = folder, parameters
        self.last_epoch = None if has_events(folder) else -1
        self.events: SummaryWriter | None = None

    def epochs(self, rows: Sequence[tuple[int, Values]]) -> None:
        if self.events is None:
            # Readers drop what earlier files have from this step on: an epoch that a killed start has written counts once.
            self.events = writer(self.folder, purge_step=rows[0][0])
        for epoch, values in rows:
            for name, value in values.items():
                self.events.add_scalar(name, value, epoch)
        self.events.flush()

    def result(self, result: Result, model: Path | None) -> None:
        from torch.utils.tensorboard.summary import hparams

        with writer(self.folder) as events:
            for name, value in result.values.items():
                events.add_scalar(f"result/{name}", value, result.epochs)
            plain = {k: v if isinstance(v, (bool, int, float)) else str(v) for k, v in self.parameters.items()}
            for summary in hparams(plain, dict.fromkeys((f"result/{name}" for name in result.values), 0.0)):
                events._get_file_writer().add_summary(summary)
            for name, text in (("error", result.error), ("structure", as_lines(result.structure))):
                if text:
                    events.add_text(name, text, result.epochs)

    def end(self, state: State) -> None:
        if self.events is not None:
            self.events.close()
            self.events = None


def has_events(folder: Path) -> bool:
    """Whether a folder holds event files."""
    return any(folder.glob("events.out.tfevents.*"))


def writer(folder: Path, **options: Any) -> "SummaryWriter":
    """A new event file in a folder."""
    from torch.utils.tensorboard import SummaryWriter

    return SummaryWriter(str(folder), **options)


def as_lines(text: str) -> str:
    """JSON as a block of Markdown."""
    return "\n".join(f"    {line}" for line in json.dumps(json.loads(text), indent=1).splitlines()) if text else ""
