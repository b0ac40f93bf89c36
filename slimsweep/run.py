"""The whole pipeline: `python -m slimsweep.run [--config FILE] [--FIELD VALUE ...]`.

Dense training and search, then the sweep over all budgets, then the report. What a run folder already holds is not done
again, so the same command goes on after any end.
"""

import signal
import sys
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from rich.console import Console

# Light imports only: --help and a refused key are answered without torch, timm, Ray and pandas, which functions import below.
from slimsweep.config import Config, ConfigError, changed_keys, load_configs
from slimsweep.errors import LOG, exit_code
from slimsweep.storage import Folder, joined

if TYPE_CHECKING:
    import pandas as pd


def main(argv: Sequence[str] | None = None) -> int:
    """Run a sweep.

    Returns:
        The exit code: 0 when every point is done or the hours are over, 1 when something failed, 2 when the input was
        refused.
    """
    console = Console(highlight=False)
    signal.signal(signal.SIGTERM, _interrupt)
    words = list(sys.argv[1:] if argv is None else argv)
    try:
        return exit_code(lambda: sweep_all(words, console), console, verbose="--verbose" in words)
    except KeyboardInterrupt:
        console.print(
            "\nslimsweep: stopped; what is done is kept, and the same command goes on from the last epoch", style="yellow"
        )
        return 130


def sweep_all(words: Sequence[str], console: Console) -> int:
    """The runs of all models that the command line asks for, one after another."""
    configs, options = load_configs(words)

    from slimsweep.report.page import write_page

    for config in configs:
        check(config)
    until = None if configs[0].resources.max_hours is None else time.time() + 3600 * configs[0].resources.max_hours
    codes = [sweep_base(config, console, options.verbose, until) for config in configs]
    if len(configs) > 1 and 2 not in codes:
        page = joined(Folder(configs[0].output).uri, "report.html")
        write_page([Folder(config.output) / config.name for config in configs], page)
        console.print(f"All {len(configs)} models on one frontier: {page}", soft_wrap=True)
    return max(codes)


def sweep_base(config: Config, console: Console, verbose: bool, until: float | None) -> int:
    """The run of one model; where it fails, those of others go on."""
    from slimsweep.ledger.lock import hold

    run = Folder(config.output) / config.name
    with hold(run):
        begin(config, run)
        return exit_code(lambda: sweep(config, run, console, verbose, until), console, verbose=verbose, log=log_of(run))


def log_of(run: Folder) -> Callable[[str], str]:
    """What appends a traceback to the log of errors in a run's folder and returns its path."""

    def log(text: str) -> str:
        run.append_line(LOG, text)
        return joined(run.uri, LOG)

    return log


def sweep(config: Config, run: Folder, console: Console, verbose: bool = False, until: float | None = None) -> int:
    """All stages that the run folder does not hold yet; no epoch begins after `until` (time.time())."""
    from slimsweep.cluster.cluster import check_placement, check_storage, connected, trials_at_once  # before what imports Ray
    from slimsweep.cluster.retrain_job import choose_baselines, choose_pace, run_sweep
    from slimsweep.cluster.search_job import run_search
    from slimsweep.ledger.points import (
        forget_failed,
        keep_path,
        pace_is_open,
        plan_points,
        points_to_come,
        points_to_do,
        to_choose,
    )
    from slimsweep.ledger.tables import damaged_images, read_rows
    from slimsweep.report.page import write_report
    from slimsweep.tools.progress import Progress, final_table
    from slimsweep.tools.status import read_status

    began = time.time()
    attempt = time.strftime("%Y%m%d-%H%M%S", time.gmtime(began))
    searched = run.exists("search/search.json")
    points = plan_points(config, run) if searched else None
    if points is not None:
        forget_failed(points, run)
    if points is None or points_to_do(points, run) or to_choose(config, run) or pace_is_open(config, run):
        with connected(verbose) as cluster:
            check_placement(config, cluster)
            check_storage(run)
            if cluster.gpus and not config.resources.gpus_per_worker:
                console.print(
                    f"The cluster's {cluster.gpus:g} GPUs stay idle: resources.gpus_per_worker is 0",
                    style="yellow",
                    soft_wrap=True,
                )
            if points is None:
                with Progress(run, config, console, "Dense training and search"):
                    run_search(config, run, attempt, until)
                if not run.exists("search/search.json"):
                    if until is None:
                        raise ConfigError(f"the workers' results are not in {run.uri}: give an output that all nodes see")
                    return out_of_time(config, console, "the search")
            if pace_is_open(config, run):
                console.print(pace_line(config, run), style="dim", soft_wrap=True, markup=False)
                if not choose_pace(config, run, until):
                    return out_of_time(config, console, "the choice of a pace")
                console.print(pace_chosen(config, run), style="dim", soft_wrap=True, markup=False)
            keep_path(config, run)
            choose_baselines(config, run)
            points = plan_points(config, run)
            tried: set[str] = set()
            # What the first seed shows at each learning rate brings points of the other seeds: once around for each.
            while left := [point for point in points_to_do(points, run) if point.name not in tried]:
                name = f"{attempt}-{len(tried)}" if tried else attempt
                with Progress(run, config, console, f"Sweep: {len(left)} points", points):
                    run_sweep(config, run, left, name, trials_at_once(config, cluster, len(left)), until)
                tried.update(point.name for point in left)
                points = plan_points(config, run)
    later = points_to_come(config, run, points)
    no_picture = write_report(run, read_status(run, config, points, later), last=True)
    rows = read_rows(run)
    console.print(final_table(rows, config, run, time.time() - began))
    if no_picture:
        console.print(no_picture, style="dim", soft_wrap=True)
    if damaged := damaged_images(run):
        first = f"{len(damaged)} damaged images were" if len(damaged) > 1 else "One damaged image was"
        console.print(f"{first} skipped; damaged.log in the run's folder says which", style="yellow")
    missing = points_to_do(points, run)
    failed = [point for point in missing if (rows.point == point.name).any() or until is None]
    total = len(points) + later
    if len(missing) > len(failed):
        out_of_time(config, console, f"{len(missing) - len(failed) + later} of {total} points")
    if failed:
        console.print(f"{len(failed)} of {total} points failed; the same command tries them again:", style="red")
        for point in failed:
            error = rows.loc[rows.point == point.name, "error"]
            console.print(f"  {point.name}: {error.iloc[0] if len(error) else 'no row'}", markup=False, soft_wrap=True)
        if later and len(missing) == len(failed):
            console.print(f"{later} more wait for them and were not begun", style="red")
    return 1 if failed else 0


def pace_line(config: Config, run: Folder) -> str:
    """What is about to be tried, in one line."""
    from slimsweep.ledger.points import distinct_paces, load_shape

    epochs = f"{config.search.recovery} epoch{'s' if config.search.recovery > 1 else ''}"
    tries = len(distinct_paces(config, load_shape(run).gate_shapes))
    return f"Pace of the families: trying {tries}, {epochs} each at the smallest budget"


def pace_chosen(config: Config, run: Folder) -> str:
    """What was chosen, in one line."""
    from slimsweep.ledger.points import pace_path

    found = run.read_json(pace_path(config))
    pace = ", ".join(f"{family} {value:g}" for family, value in found["pace"].items())
    top1 = sorted(one["val_top1"] for one in found["tried"])
    diverged = sum(bool(one["error"]) for one in found["tried"])
    return f"Pace of the families: {pace} ({top1[-1]:.2f} % on validation; others {top1[0]:.2f} to {top1[-2]:.2f})" + (
        f"; {diverged} diverged, {pace_path(config)} in the run's folder says how" if diverged else ""
    )


def out_of_time(config: Config, console: Console, what: str) -> int:
    """Say that the hours are over and what is left; that is what was asked for, and no failure."""
    console.print(
        f"resources.max_hours ({config.resources.max_hours:g}) are over, and {what} could not be finished; what is done is "
        "kept, and the same command goes on from the last epoch",
        style="yellow",
        soft_wrap=True,
    )
    return 0


def begin(config: Config, run: Folder) -> None:
    """Write the configuration to the run's folder, whose earlier results must go with it.

    Raises:
        ConfigError: the configuration changed in a way that would make them incomparable.
    """
    from slimsweep.cluster.worker import data_for
    from slimsweep.data.sources import title
    from slimsweep.tools.status import read_config

    if run.exists("config.yaml"):
        compare(read_config(run), config, run)
    if run.exists("dense/config.json"):
        known, found = run.read_json("dense/config.json").get("label_names"), data_for(config).class_names
        if known and found and known != found:
            raise ConfigError(
                f"{run.uri} was begun on other classes ({_few(known)}) than {title(config)} now has ({_few(found)}): "
                "set data.root back, or take another --name"
            )
    run.write_bytes("config.yaml", config.to_yaml().encode())


def check(config: Config) -> None:
    """Refuse, without cluster time, a model, a data set or budgets that cannot work together.

    Raises:
        ConfigError: in one sentence, what is wrong with the input.
        RefusedInput: the model cannot be cut, or not to these budgets.
    """
    from slimsweep.cluster.cluster import check_placement, foreseen
    from slimsweep.cluster.worker import data_for
    from slimsweep.data.sources import check_data, title
    from slimsweep.ledger.points import check_cuts
    from slimsweep.training.dense_model import check_model, head_is_new

    model = check_model(config)
    check_data(config)
    classes = data_for(config, model).num_classes
    if config.dense.epochs == 0 and head_is_new(config, classes):
        raise ConfigError(
            f"dense.epochs is 0, but the weights of model.{'checkpoint' if config.model.checkpoint else 'pretrained'} have no "
            f"head for the {classes} classes of {title(config)}: set dense.epochs, such as 30, to train the dense model on them"
        )
    check_cuts(config, model)
    if (cluster := foreseen()) is not None:
        check_placement(config, cluster)


def compare(old: Config, new: Config, run: Folder) -> None:
    """Refuse a change that would put results side by side that do not compare.

    Budgets, shares, seeds and resources may change; where points start from larger ones, what they start from may not.
    """
    from slimsweep.ledger.tables import read_rows

    begun = [
        stage for stage in ("dense", "search") if run.exists(f"curves/{stage}.parquet") or run.exists(f"{stage}/config.json")
    ]
    # Failed points hold nothing to compare with: their recipe may be fixed.
    done = (rows := read_rows(run))[rows.status == "ok"]
    stage: Any = "retrain" if len(done) else begun[-1] if begun else None
    changed = changed_keys(old.identity(stage), new.identity(stage)) if stage is not None else []
    if len(old.retrain.rates) > 1 and len(new.retrain.rates) > 1 and set(done.lr) <= set(new.retrain.rates):
        changed = [key for key in changed if key != "retrain.lr"]  # a list of rates may grow, and lose those that failed
    if (done.terms == "compute").any() and old.frontier != new.frontier:
        changed.append("budgets and shares (over which the search's compute is spread)")
    if new.retrain.start == "larger" and (done.method == "searched").any():
        changed += starts_changed(old, new, done)
    if changed:
        names = ", ".join(dict.fromkeys(changed))
        raise ConfigError(
            f"{names} changed since {run.uri} was begun, so its results would not compare with new ones: "
            "take another --name, or set it back"
        )


def starts_changed(old: Config, new: Config, done: "pd.DataFrame") -> list[str]:
    """What would let searched points start from other models than those did that are done, each from the next larger one's.

    Args:
        done: the rows of the points that are done.
    """
    from slimsweep.ledger.points import fraction

    dense, least = int(done.macs_dense.iloc[0]), done.budget[done.method == "searched"].min()
    before, after = ({f for b in config.budgets if (f := fraction(b, dense)) >= least} for config in (old, new))
    changed = []
    if before != after:
        changed.append(f"budgets (each starts from the next larger one's model: below {least:g} new ones can be added)")
    if old.shares != new.shares:
        changed.append("shares (whose models others may start from)")
    if len(new.retrain.rates) > 1 and old.retrain.seeds[0] != new.retrain.seeds[0]:
        changed.append("the first of retrain.seeds (which chooses the learning rate of the models that others start from)")
    if not set(new.retrain.rates) <= set(old.retrain.rates):
        changed.append("retrain.lr (whose best model others start from)")
    return changed


def _few(names: list[str]) -> str:
    return f"{', '.join(names[:3])}{f' and {len(names) - 3} more' if len(names) > 3 else ''}"


def _interrupt(number: int, frame: Any) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main())
