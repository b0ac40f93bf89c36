"""What a plan says: numbers of images, what a training costs per image, per trial and in all, and how it is printed."""

from dataclasses import dataclass, field

from rich.console import Console

from slimsweep.terminal import plain_table, say, show_fitting


@dataclass(frozen=True, kw_only=True)
class Images:
    """Number of images per split."""

    train: int
    val: int
    test: int


@dataclass(frozen=True, kw_only=True)
class ImageCost:
    """What one worker needs per image, in one kind of training."""

    train_seconds: float
    eval_seconds: float
    weight_bytes: int  # weights, gradients, the optimizer's state, a moving average and a teacher
    image_bytes: int  # activations kept for the backward pass
    batch: int  # images in the step that was timed
    scaled: bool  # whether a worker's real batch is larger than that


@dataclass(frozen=True, kw_only=True)
class Training:
    """One training: of the dense model, of the search, of the tries of paces, or of a point with all its seeds and rates."""

    name: str
    macs: int  # per image
    params: int
    epochs: int
    step_seconds: float
    seconds: float  # of one trial, with its evaluations
    workers: int  # per trial
    trials: int
    worker_bytes: int  # memory of one worker
    loaders: float  # loading processes per worker that would load as fast as it trains; 0 where loading is not timed

    @property
    def worker_seconds(self) -> float:
        """Of all trials and their workers."""
        return self.seconds * self.workers * self.trials


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """What a configuration will cost."""

    trainings: list[Training]
    at_once: int  # points that train side by side
    wall_seconds: float
    start_seconds: float  # part of wall_seconds: starts of Ray and of processes
    sweep_seconds: float
    disk_bytes: int
    device: str  # the device that was timed or assumed, in words
    timed: bool  # whether steps were timed; else times are computed from the device's speed
    gpus_per_worker: float
    known: bool  # whether times are of the kind of device that will be used
    timing_seconds: float = 0.0  # part of wall_seconds: models are timed for budgets in ms, and for the latency of points
    timing: str = ""  # what is timed, in words
    notes: list[str] = field(default_factory=list)

    @property
    def gpu_hours(self) -> float:
        """Of all trainings; 0 without GPUs."""
        return sum(t.worker_seconds for t in self.trainings) * self.gpus_per_worker / 3600


def show(found: Estimate, console: Console, price: float | None = None) -> None:
    """Print a plan: one line per training, then the totals.

    Args:
        price: of one GPU per hour, or of one worker per hour where there are no GPUs.
    """
    columns = ["MMACs", "M params", "trials", "epochs", "step", "each", "hours", "GiB"]
    table = plain_table("", [("training", "left"), *((c, "right") for c in columns)])
    table.columns[0].no_wrap = True
    for t in found.trainings:
        table.add_row(
            t.name,
            f"{t.macs / 1e6:,.1f}",
            f"{t.params / 1e6:.2f}",
            str(t.trials) if t.workers == 1 else f"{t.trials} x {t.workers}",
            str(t.epochs),
            f"{1e3 * t.step_seconds:,.1f} ms",
            _time(t.seconds),
            f"{t.worker_seconds / 3600:,.2f}",
            f"{t.worker_bytes / 2**30:.2f}",
        )
    workers = sum(t.worker_seconds for t in found.trainings) / 3600
    how = f"{'Timed on' if found.timed else 'Computed for'} {found.device}"
    lines = [f"{how}. GiB: memory of one worker; each: time of one trial; hours: of all trials and workers."]
    if any(t.name == "paces" for t in found.trainings):
        lines.append("paces: short trials that compare how fast each family of gates is removed.")
    lines += [f"Note: {note}." for note in found.notes]
    if found.timing:
        lines.append(f"Latency: about {_time(found.timing_seconds)}, while nothing else of the run is at work: {found.timing}.")
    lines += [
        f"The sweep trains {found.at_once} points at a time, for {_time(found.sweep_seconds)}.",
        f"In all: {_time(found.wall_seconds)}, of which {found.start_seconds:.0f} s for starting Ray and processes.",
        f"Disk: {found.disk_bytes / 2**30:.2f} GiB at most, including the checkpoints of running trainings.",
    ]
    if found.gpus_per_worker and found.known:
        lines.append(f"GPU hours: {found.gpu_hours:,.1f}.")
    if price is not None:
        unit, hours = ("GPU", found.gpu_hours) if found.gpus_per_worker else ("worker", workers)
        known = f"{price * hours:,.2f} at {price:g} per hour of one {unit}"
        lines.append(f"Price: {known if found.known else 'unknown, since its device was not timed'}.")
    show_fitting(console, table, drop=("M params", "step", "MMACs", "trials", "epochs"))
    for line in lines:
        say(console, line)


def _time(seconds: float) -> str:
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:,.1f} {unit}"
    return f"{seconds:.1f} s"
