"""The whole pipeline: `python -m slimsweep.run [--config FILE] [--FIELD VALUE ...]`.

Dense training and search, then the sweep over all budgets, then the report. Results that the run's folder already has are not
made again, so the same command resumes a run after any end.
"""

import functools
import signal
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from typing import TYPE_CHECKING, Any

from rich.console import Console

from slimsweep import __version__
from slimsweep.config import ConfigError, Refusals, load_configs
from slimsweep.errors import LOST, REFUSED, STOPPED, StageFailed, exit_code, stop_asked
from slimsweep.imports import load_timm
from slimsweep.terminal import end_command, outlive_output, plain_console, say

if TYPE_CHECKING:
    from slimsweep.ledger.run import Run

# Modules that load torch or Ray are imported after the input has been read, so that a refused field is answered at once.


def main(argv: Sequence[str] | None = None) -> int:
    """Run a sweep.

    Returns:
        The exit code: 0 when all points are done or max_hours are over, 1 when something failed, 2 when the input was
        refused, 3 when another driver took over, 130 when it was stopped (Ctrl+C, SIGTERM, a terminal that was closed). Output
        that cannot be written changes nothing.
    """
    outlive_output(work_goes_on=True)
    stop_asked.clear()
    console = plain_console()
    interrupt = _interrupt(console)
    signal.signal(signal.SIGTERM, interrupt)
    if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) == signal.SIG_DFL:  # nohup has set it to be ignored
        signal.signal(signal.SIGHUP, interrupt)
    if signal.getsignal(signal.SIGINT) == signal.default_int_handler:  # a script's `cmd &` has set it to be ignored
        signal.signal(signal.SIGINT, interrupt)
    words = list(sys.argv[1:] if argv is None else argv)
    if "--version" in words:
        say(console, f"slimsweep {__version__}")
        return 0
    at_end = ExitStack()  # what takes time after the last line
    try:
        return exit_code(lambda: run_all(words, console, at_end), console, verbose="--verbose" in words)
    except KeyboardInterrupt:
        say(console, "slimsweep: stopped; what is done is kept, and the same command goes on from the last epoch", "yellow")
        return STOPPED
    finally:
        with suppress(KeyboardInterrupt):  # the exit code stays
            at_end.close()
        if signal.getsignal(signal.SIGINT) == interrupt:
            signal.signal(signal.SIGINT, signal.default_int_handler)


def run_all(words: Sequence[str], console: Console, at_end: ExitStack) -> int:
    """Run the sweep of each model that the command line asks for, one after another; where one fails, the others go on.

    A driver that lost a run to another one ends: the other one does the other models too.

    Args:
        at_end: is given what is still to be done when all was said.

    Returns:
        The largest exit code of the sweeps.
    """
    configs, options = load_configs(words)

    from slimsweep.cluster import set_ray_defaults

    set_ray_defaults()
    from slimsweep.cluster.own_cluster import end_unused, start_ahead
    from slimsweep.ledger.run import Run, group_report
    from slimsweep.storage import Folder

    runs = [Run(Folder(config.output) / config.name, config) for config in configs]
    if not all(run.is_begun for run in runs):
        start_ahead(configs, options.verbose)
        at_end.callback(end_unused)
    load_timm()

    from slimsweep.checks import check
    from slimsweep.earlier_start import start_or_continue
    from slimsweep.fit_to_data import fit_to_data, say_fitted
    from slimsweep.ledger.damage import look_over
    from slimsweep.ledger.lock import hold
    from slimsweep.report.page import write_page
    from slimsweep.trackers import Tracking

    fits = {}
    refusals = Refusals()
    notes: list[str] = []
    for run in runs:
        with refusals.kept():
            config, fits[run.uri] = fit_to_data(run.config, options.unset, run=run, quick=options.quick)
            run.take_config(config)
            # Models of one sweep share their data, so what is said of it is said once.
            notes = list(dict.fromkeys([*notes, *check(config, begun=run.is_begun)]))
    refusals.raise_all()
    configs = [run.config for run in runs]
    for note in notes:
        say(console, note, "yellow")
    hours = configs[0].resources.max_hours
    until = None if hours is None else time.time() + 3600 * hours

    def drive(run: Run) -> int:
        with hold(run, run.config.resources.takeover_seconds, lambda text: say(console, text, "dim")):
            for sentence in look_over(run):
                say(console, sentence, "yellow")
            start_or_continue(run, quick=options.quick, fitted=fits[run.uri])
            say_fitted(run.config, fits[run.uri], console)
            run.logs.write_notes(notes)
            with Tracking(run, lambda text: say(console, text, "yellow")):
                return sweep(run.patient(), console, options.verbose, until)

    codes = []
    for run in runs:
        codes.append(exit_code(functools.partial(drive, run), console, verbose=options.verbose, log=run.logs.add_error))
        if codes[-1] == LOST:
            return LOST
    swept = [run.refresh() for run, code in zip(runs, codes, strict=True) if code != REFUSED]
    if len(runs) > 1 and swept:
        page = group_report(Folder(configs[0].output))
        write_page(swept, page)
        say(console, f"All {len(swept)} models on one page: {page}")
    return max(codes)


def sweep(run: "Run", console: Console, verbose: bool = False, until: float | None = None) -> int:
    """Do all stages whose results the run's folder does not have yet.

    Args:
        verbose: show Ray's own log.
        until: no further epoch begins after this time (time.time()).

    Returns:
        The exit code: 0 when all points are done or time ran out, 1 when some failed.
    """
    from slimsweep.cluster.choose_job import choose_pace, choose_structures
    from slimsweep.cluster.cluster import check_placement, check_storage, connected, tasks_load, trials_at_once
    from slimsweep.cluster.latency_job import (
        check_room,
        check_worker,
        paces_in_ms,
        solve_budgets,
        time_done_points,
        time_paces,
        time_points,
    )
    from slimsweep.cluster.retrain_job import run_sweep
    from slimsweep.cluster.search_job import run_search
    from slimsweep.cluster.waiting import waiting_said
    from slimsweep.ledger import planning
    from slimsweep.ledger.cuts import forget_changed_table
    from slimsweep.ledger.damage import damaged_models, refuse_lost_sources
    from slimsweep.tools.display import (
        Progress,
        hours_over,
        latency_to_time,
        pace_chosen,
        pace_tried,
        paces_to_try,
        points_to_time,
        show_end,
    )

    config, began = run.config, time.time()
    attempt = time.strftime("%Y%m%d-%H%M%S", time.gmtime(began))
    run.forget_begun()

    def plan_again(over: bool = False) -> planning.Plan:
        run.refresh()
        plan = planning.make_plan(run, attempt, over=over)
        while planning.take_equal_results(run, list(plan.points)):  # which can bring further points
            plan = planning.make_plan(run, attempt, over=over)
        run.write_plan(plan)
        return plan

    if forget_changed_table(run):
        say(console, f"{config.timing.table} has other times than before: what budgets in ms leave is found anew", "dim")
    plan = plan_again()
    if run.search_done:
        planning.go_on_with_stopped(run, list(plan.points))
        planning.forget_failed(run, list(plan.points))
        if again := set(damaged_models(run)) & {point.name for point in plan.points}:
            for name in again:
                run.delete_row(name)
            plan = plan_again()
        if planning.points_to_do(run, list(plan.points)):
            refuse_lost_sources(run)

    def tell_try(tried: dict[str, Any], ended: int, count: int) -> None:
        say(console, pace_tried(run, tried, ended, count), "dim")

    points = list(plan.points)
    if not run.search_done or planning.points_to_do(run, points) or plan.choosing or planning.untimed_points(run, points):
        tell = functools.partial(say, console)
        with connected(verbose, tell, run.logs.add_error, config) as cluster, waiting_said(run, tell):
            check_placement(config, cluster)
            check_room(config, cluster)
            check_storage(run)
            if cluster.gpus and not config.resources.gpus_per_worker:
                say(console, f"The cluster's {cluster.gpus:g} GPUs stay idle: resources.gpus_per_worker is 0", "yellow")
            if not run.search_done:
                check_worker(run, cluster)
                with Progress(run, console, "Dense training and search"), tasks_load(run, attempt, cluster):
                    run_search(run, attempt, cluster, until)
                if not run.search_done:
                    if until is None:
                        raise ConfigError(f"the workers' results are not in {run.uri}: give an output that all nodes see")
                    hours_over(run, console, "the search")
                    return 0
                plan_again()
            if planning.pace_is_open(run):
                paces = planning.distinct_paces(config, run.shape.gate_shapes)
                say(console, paces_to_try(len(paces), config.search.recovery), "dim")
                if not choose_pace(run, until, tell=tell_try):
                    hours_over(run, console, "the choice of a pace")
                    return 0
                say(console, pace_chosen(run), "dim")
                plan_again()
            if planning.pace_is_open(run, "ms"):
                say(console, paces_to_try(len(paces_in_ms(run)), config.search.recovery, "ms"), "dim")
                if time_paces(run):
                    if not choose_pace(run, until, "ms", tell_try):
                        hours_over(run, console, "the choice of a pace")
                        return 0
                    say(console, pace_chosen(run, "ms"), "dim")
                    plan_again()
            if planning.to_time(run):
                say(console, latency_to_time(run), "dim")
                for refused in solve_budgets(run):
                    say(console, refused, "yellow")
                plan_again()
            run.write_path()
            choose_structures(run)
            plan = plan_again()
            tried: set[str] = set()
            waves = 0
            # Points that end can bring further points: the other seeds at the best learning rate, smaller budgets.
            while left := [p for p in planning.points_to_do(run, list(plan.points)) if p.name not in tried]:
                left = planning.cuts_apart(planning.one_of_each(left))
                time_points(run, left)
                name = f"{attempt}-{waves}" if waves else attempt
                waves += 1
                with Progress(run, console, f"Sweep: {len(left)} points", sweep=True):
                    run_sweep(run, left, attempt, name, trials_at_once(config, cluster, len(left)), until)
                tried.update(point.name for point in left)
                plan = plan_again()
                if again := planning.go_on_with_stopped(run, list(plan.points)):
                    tried -= again
                    plan = plan_again()
            if not planning.points_to_do(run, list(plan.points)):
                run.forget_starts()
            in_time = until is None or time.time() < until
            if in_time and (untimed := planning.untimed_points(run, list(plan.points))):
                say(console, points_to_time(run, len(untimed)), "dim")
                try:
                    time_done_points(run, untimed, until)
                except StageFailed as problem:  # all points are as good as they were
                    say(console, f"{problem}; points of earlier starts stay without a latency", "yellow")
    plan = plan_again(over=True)
    failed = planning.failed_points(run, list(plan.points), hours_over=until is not None)
    show_end(run, plan, failed, console, time.time() - began)
    return 1 if failed else 0


def _interrupt(console: Console) -> Callable[[int, Any], None]:
    """The handler of signals that stop the run: it says so at once, as the end of Ray takes seconds."""
    said = False

    def interrupt(number: int, frame: Any) -> None:
        nonlocal said
        stop_asked.set()
        if number == getattr(signal, "SIGHUP", None):
            # A shell that ends sends it once more, which must not interrupt the clean end that the first one has begun.
            signal.signal(number, signal.SIG_IGN)
        if not said:
            said = True
            with suppress(RuntimeError):  # it came while a line was being written: the last line says it too
                say(console, "\nstopping: Ray ends the workers, which takes some seconds", "yellow")
        raise KeyboardInterrupt

    return interrupt


if __name__ == "__main__":
    end_command(main())
