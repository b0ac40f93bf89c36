"""The plan of a sweep, made from the configuration and from what the run's folder holds: only the driver and `plan` ask."""

import hashlib
import json
import math
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from slimsweep.config import Config, Stage
from slimsweep.errors import RefusedInput
from slimsweep.latency.curve import Solved, TimedStructure, curve_of_times, progress
from slimsweep.latency.from_table import TableOfTimes
from slimsweep.ledger.cuts import Cuts, cuts_of_run, table_of, timed_in
from slimsweep.ledger.latencies import structure_ids
from slimsweep.ledger.points import Plan, Point
from slimsweep.ledger.run import Run
from slimsweep.methods import METHODS, extra_epochs
from slimsweep.slimming.budget import Budget
from slimsweep.slimming.cost import COSTS
from slimsweep.slimming.removal_path import RemovalPath, Scores
from slimsweep.slimming.shape import FAMILIES, Shape
from slimsweep.slimming.structure import Structure
from slimsweep.training.teachers import teacher_macs

UNKNOWN_SHARE = 0.5  # of the dense model's latency, that a number of milliseconds is assumed to be before anything is timed


@dataclass(frozen=True, kw_only=True)
class Target:
    """What one point of the Pareto front is asked for: a budget, or shares and the budget that they come to."""

    budget: float  # fraction of the dense model's cost
    unit: str  # the cost: macs, params or ms
    shares: str  # JSON, or empty
    given: Budget  # as the configuration gives it; the limit that a method must keep

    @property
    def key(self) -> tuple[str, str]:
        """Equal for targets with the same limit."""
        return self.unit, f"{self.budget:.9f}"

    @property
    def ms(self) -> float | None:
        """The milliseconds that were asked for; None where the budget is no number of milliseconds."""
        return self.given.amount if self.given.is_latency and not self.given.relative else None


@dataclass(frozen=True, kw_only=True)
class Request:
    """The points to make of one method, target and terms, over all seeds; each learning rate makes points of its own."""

    method: str
    budget: float
    unit: str = "macs"
    terms: str = "retraining"
    shares: str = ""
    ms: float | None = None  # as in `Target`
    of_seed: dict[int, tuple[str, int]]  # per seed: structure (JSON; empty where the budget cannot be met) and epochs


def make_plan(run: Run, attempt: str, *, over: bool = False) -> Plan:
    """The plan as the driver writes it.

    Args:
        attempt: name of the driver's start.
        over: whether the driver has ended.

    Raises:
        BudgetError: a budget below the smallest model that can be cut.
    """
    if not run.search_done:
        return Plan(attempt=attempt, over=over)
    points = plan_points(run)
    choosing = ["the pace of each family of gates"] if pace_is_open(run) or pace_is_open(run, "ms") else []
    choosing += [f"what {budget} leaves" for budget in to_time(run)]
    choosing += [f"what {method} keeps" for method in dict.fromkeys(method for method, _ in to_choose(run))]
    return Plan(
        attempt=attempt,
        points=tuple(points),
        later=points_to_come(run, points),
        choosing=tuple(choosing),
        over=over,
    )


def plan_points(run: Run) -> list[Point]:
    """All points that can be planned now, largest budget first. The search must be done.

    Points follow from the configuration and from what the run's folder holds. Some wait for others:

    - With several learning rates, each method, terms and budget tries all rates with the first seed. The other seeds are
      planned when all those points have ended, at the rate that is best on validation (`Config.quality`); a rate that failed
      or was stopped (retrain.stopping) is not taken. With retrain.compare_rates "all seeds" every seed tries all rates, and
      the best mean counts.
    - With retrain.start "larger", a searched point is planned when the point that it starts from has an ok row. The largest
      budget starts from the dense point.
    - Methods whose structures are still to be chosen are left out (`to_choose`), and budgets in ms that are still to be timed
      (`to_time`).

    Raises:
        BudgetError: a budget below the smallest model that can be cut.
    """
    rows = run.rows
    quality: dict[str, float] = dict(rows.loc[rows.status == "ok", ["point", run.config.quality]].itertuples(index=False))
    failed = set(rows.point[rows.status == "failed"]) | stopped_points(run)

    def best(tried: list[Point]) -> float | None:
        if len({p.lr for p in tried}) == 1:
            return tried[0].lr
        ended = [p for p in tried if p.name in quality]
        if not ended or any(p.name not in quality and p.name not in failed for p in tried):
            return None
        found: dict[float, list[float]] = {}
        for p in ended:
            found.setdefault(p.lr, []).append(quality[p.name])
        most = max(map(len, found.values()))
        means = {lr: sum(values) / most for lr, values in found.items() if len(values) == most}
        return max(means, key=lambda lr: (means[lr] == means[lr], means[lr]))  # NaN last; of equals, the one given first

    def keeps(method: str, target: Target, seed: int) -> str | None:
        return run.choice(method, target.budget, target.unit, seed if METHODS[method].draws else None)

    cuts = cuts_of_run(run)
    spent = search_macs(run.config, cuts.path, run)
    fingerprints = recipe_fingerprints(run)
    requests = _requests(run.config, cuts, spent, keeps)
    return _points(run.config, requests, fingerprints, best, lambda point: point.name in quality, cuts.timed_in)


def expected_points(
    config: Config,
    shape: Shape,
    gates: Scores,
    pace: Mapping[str, float],
    run: Run | None = None,
    ms_dense: float | None = None,
) -> list[Point]:
    """All points that a sweep will have made at its end, largest budget first: an estimate that needs no run.

    It assumes that methods which choose their own structure keep what the search keeps at that budget, and that the first of
    several learning rates is the best.

    Args:
        shape: of the gated model.
        gates: what the search is assumed to rank gates by, in the gates' shapes, a list of layers per family.
        pace: the pace of each family that is assumed to be chosen.
        run: a run of this configuration, where there is one: paces count as it tried them, and budgets in ms as it timed them.
        ms_dense: latency of the dense model, where that is known; budgets in ms that no run has timed are assumed to be in
            proportion to what is left of MACs and branches.

    Raises:
        BudgetError: a budget below the smallest model that can be cut.
    """
    cuts = expected_cuts(config, shape, gates, pace, run, ms_dense)
    spent = search_macs(config, cuts.path, run)
    if config.retrain.epochs:
        fingerprints = {lr: config.changed(**{"retrain.lr": lr}).fingerprint("retrain") for lr in config.retrain.rates}
    else:
        fingerprints = dict.fromkeys(config.retrain.rates, config.untrained().fingerprint("retrain"))
    requests = _requests(config, cuts, spent)
    return _points(config, requests, fingerprints, lambda tried: tried[0].lr, lambda point: True, cuts.timed_in)


def expected_cuts(
    config: Config,
    shape: Shape,
    gates: Scores,
    pace: Mapping[str, float],
    run: Run | None = None,
    ms_dense: float | None = None,
) -> Cuts:
    """The removal paths of a sweep before it is run; the arguments are those of `expected_points`."""
    of_gated = {family: pace[family] for family in gates}
    settings = config.search
    path = RemovalPath(shape, gates, settings.floors.model_dump(), settings.round_to, of_gated, settings.depth)
    if not config.budgets_in_ms:
        return Cuts(path=path)
    if run is not None:
        in_ms, known = run.path_of("ms"), run.latency.solved(run.pace_of("ms"))
    else:
        whole = config.branch_cost()
        in_ms = RemovalPath(shape, gates, settings.floors.model_dump(), settings.round_to, of_gated, whole, keep_attention=True)
        known = {}
    left = progress(in_ms)
    solved: dict[str, Solved] = {}
    for budget in config.budgets_in_ms:
        share = budget.amount if budget.relative else min(1.0, budget.amount / ms_dense) if ms_dense else UNKNOWN_SHARE
        length = min(int((left > share).sum()), in_ms.length)
        dense = ms_dense or (1.0 if budget.relative else budget.amount / UNKNOWN_SHARE)
        timed = TimedStructure(ms=float(left[length]) * dense, ms_dense=dense, spread=math.nan)
        solved[str(budget)] = known.get(str(budget)) or Solved(length=length, timed=timed)
    return Cuts(path=path, path_in_ms=in_ms, solved=solved, timed_in=timed_in(config))


def recipe_fingerprints(run: Run) -> dict[float, str]:
    """Per learning rate, the fingerprint of all settings that a point's result depends on.

    Nothing of the recipe counts for a point that is not trained, so that the same one is not made twice.
    """
    if not run.config.retrain.epochs:
        same = run.fingerprint_of(run.config.untrained(), "retrain")
        return dict.fromkeys(run.config.retrain.rates, same)
    return {lr: run.fingerprint("retrain", **{"retrain.lr": lr}) for lr in run.config.retrain.rates}


def points_to_come(run: Run, points: list[Point]) -> int:
    """How many points cannot be planned yet: they wait for the best learning rate, or for the point that they start from."""
    if len(run.config.retrain.rates) == 1 and (run.config.retrain.start == "search" or not run.config.retrain.epochs):
        return 0
    known = Counter(point.rate_group for point in points)
    expected = Counter(point.rate_group for point in expected_points(run.config, run.shape, run.scores, run.pace, run))
    return sum((expected - known).values())


def stopped_points(run: Run) -> set[str]:
    """The points that were stopped because another learning rate was ahead; none where retrain.stopping is off now."""
    return set(run.rows.point[run.rows.status == "stopped"]) if run.config.retrain.stopping is not None else set()


def go_on_with_stopped(run: Run, points: list[Point]) -> set[str]:
    """Forget that points were stopped where all rates that were ahead of them failed: else their budget would have no model.

    Returns their names; they are trained again.

    Args:
        points: all that are planned.
    """
    status: dict[str, str] = dict(run.rows[["point", "status"]].itertuples(index=False))
    of_groups: dict[Any, set[str]] = {}
    for point in points:
        of_groups.setdefault(point.rate_group, set()).add(point.name)
    left = [names for names in of_groups.values() if {status.get(name) for name in names} == {"stopped", "failed"}]
    again = {name for names in left for name in names if status[name] == "stopped"} & stopped_points(run)
    for name in again:
        run.delete_row(name)
    if again:
        run.refresh()
    return again


def points_to_do(run: Run, points: list[Point]) -> list[Point]:
    """The points that are to be trained: those without an ok row that were not stopped."""
    done = set(run.rows[run.rows.status == "ok"].point) | stopped_points(run)
    return [p for p in points if p.name not in done]


def untimed_points(run: Run, points: list[Point]) -> list[str]:
    """The names of points that are done without a latency, where models are timed now: an earlier start did not."""
    if not run.config.times_models:
        return []
    names = {point.name for point in points}
    done = run.rows[(run.rows.status == "ok") & run.rows.latency_ms.isna() & run.rows.structure.notna()]
    # What another version of slimsweep wrote may be cut otherwise today.
    found = zip(done.point, done.structure, strict=True)
    return [name for name, structure in found if name in names and structure_ids(structure)[0]]


def one_of_each(points: list[Point]) -> list[Point]:
    """The first of the points that are trained alike: the others can take its result (`take_equal_results`)."""
    return list({point.training: point for point in reversed(points)}.values())[::-1]


def cuts_apart(points: list[Point]) -> list[Point]:
    """The points in an order in which those of one method's cut are apart: the first repairs it, and the others find it done.

    The first point of each cut comes first, then the second of each, and so on, each time in the order given.
    """
    seen: Counter[tuple[str, str]] = Counter()
    places = []
    for point in points:
        places.append(seen[point.method, point.structure])
        seen[point.method, point.structure] += 1
    return [point for _, point in sorted(zip(places, points, strict=True), key=lambda pair: pair[0])]


def take_equal_results(run: Run, points: list[Point]) -> int:
    """Write the rows of points that are trained just as one that is done: where the search cost less than an epoch, on equal
    compute as on equal retraining. Returns how many were written; each has the model and the curve of the done one.

    Args:
        points: all that are planned.
    """
    ok = set(run.rows[run.rows.status == "ok"].point)
    done = {point.training: point for point in points if point.name in ok}
    equal = [(point, done[point.training]) for point in points_to_do(run, points) if point.training in done]
    for point, twin in equal:
        run.write_curve(point.name, run.curve(twin.name))
        run.write_row({**run.row(twin.name), "point": point.name, "terms": point.terms, "point_hash": point.hash})
    if equal:
        run.refresh()
    return len(equal)


def failed_points(run: Run, points: list[Point], hours_over: bool) -> list[Point]:
    """The points that failed, once the sweep has ended.

    Args:
        hours_over: whether the run had an end (resources.max_hours): points without a row then ran out of time.
    """
    tried = set(run.rows.point)
    return [point for point in points_to_do(run, points) if point.name in tried or not hours_over]


def forget_failed(run: Run, points: list[Point]) -> None:
    """Delete the rows of failed points that are no longer in the plan: not asked for now, or renamed by a corrected recipe."""
    names = {p.name for p in points}
    gone = [name for name in run.rows.point[run.rows.status == "failed"] if name not in names]
    for name in gone:
        run.delete_row(name)
    if gone:
        run.refresh()


def _points(
    config: Config,
    requests: Iterator[Request],
    fingerprints: Mapping[float, str],
    best: Callable[[list[Point]], float | None],
    trained: Callable[[Point], bool],
    timed: str,
) -> list[Point]:
    """The points of all requests: every learning rate with the first seed or all seeds, then the best one with the other seeds.

    Args:
        fingerprints: per learning rate, the fingerprint of all settings that a point's result depends on.
        best: the best learning rate among the points that try them all; None while it is not known.
        trained: whether a point's model is done, so that others can start from it.
        timed: the setting in which budgets in ms are timed, as `point_hash` takes it.
    """
    rates = config.retrain.rates

    def point(request: Request, seed: int, lr: float, start: Point | None) -> Point:
        structure, epochs = request.of_seed[seed]
        return Point(
            method=request.method,
            budget=request.budget,
            unit=request.unit,
            seed=seed,
            structure=structure,
            hash=point_hash(
                fingerprints[lr],
                method=request.method,
                budget=request.budget,
                seed=seed,
                unit=request.unit,
                terms=request.terms,
                epochs=epochs,
                shares=request.shares,
                start=start.hash if start else "",
                ms=request.ms,
                timed_in=timed,
            ),
            budget_ms=request.ms,
            terms=request.terms,
            shares=request.shares,
            lr=lr,
            epochs=epochs,
            one_of_rates=len(rates) > 1,
            start=start.name if start else "",
        )

    points: list[Point] = []
    # Dense and each larger budget: its structure, and its point per seed.
    larger: list[tuple[Structure, dict[int, Point]]] = []
    for request in sorted(requests, key=_share_of_macs, reverse=True):
        seeds = list(request.of_seed)
        starts: dict[int, Point | None] = dict.fromkeys(seeds)
        # An untrained point is cut from the searched model itself: a larger one knows no more.
        chained = config.retrain.start == "larger" and METHODS[request.method].chained and config.retrain.epochs > 0
        if chained and request.of_seed[seeds[0]][0]:
            structure = Structure.from_json(request.of_seed[seeds[0]][0])
            of_seed = next((known for whole, known in reversed(larger) if whole.holds(structure)), None)
            if of_seed is not None:
                starts = {seed: start for seed, start in of_seed.items() if trained(start)}
            larger.append((structure, {}))
        else:
            chained = False  # nothing starts from a point that has no structure
        if seeds[0] not in starts:
            continue
        trains = request.of_seed[seeds[0]][1] > 0  # else all rates give the same
        trying = rates if trains else rates[:1]
        comparing = seeds if trains and config.retrain.compare_rates == "all seeds" else seeds[:1]
        tried = [point(request, seed, lr, starts[seed]) for seed in comparing if seed in starts for lr in trying]
        points += tried
        if len(tried) == len(comparing) * len(trying) and (lr := best(tried)) is not None:
            chosen = {seed: point(request, seed, lr, start) for seed, start in starts.items()}
            points += [chosen[seed] for seed in seeds if seed in chosen and seed not in comparing]
            if chained:
                larger[-1][1].update(chosen)
    return points


def point_hash(
    fingerprint: str,
    *,
    method: str,
    budget: float,
    seed: int,
    unit: str,
    terms: str,
    epochs: int,
    shares: str,
    start: str,
    ms: float | None = None,
    timed_in: str = "",
) -> str:
    """The hash of a point, which stands for all that its result depends on: 16 hex digits.

    Args:
        fingerprint: of the settings (`recipe_fingerprints`).
        start: the hash of the point whose trained model it starts from; empty where there is none.
        ms: the milliseconds that were asked for, where the budget is a number of them: it then counts, and not the fraction of
            the dense model's latency, which is never measured twice alike.
        timed_in: the setting of budgets in ms (`cuts.timed_in`); it counts for those alone.
    """
    # Default values are left out, so that points keep the names they had before these settings existed.
    identity: list[Any] = [fingerprint, method, f"{budget:.9f}" if ms is None else f"{ms:.9g}ms", seed]
    identity += [] if unit == "macs" else [unit]
    identity += [timed_in] if unit == "ms" else []
    identity += [] if terms == "retraining" else [terms, epochs]
    identity += [shares] if shares else []
    identity += [start] if start else []
    return hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:16]


def _share_of_macs(request: Request) -> float:
    """What a request leaves of the dense model's MACs: its budget, or for another unit what its structure has."""
    structure, _ = next(iter(request.of_seed.values()))
    if request.unit == "macs" or not structure:
        return request.budget
    cut = Structure.from_json(structure)
    return cut.macs() / cut.shape.full().macs()


def _requests(
    config: Config, cuts: Cuts, spent: float, keeps: Callable[[str, Target, int], str | None] | None = None
) -> Iterator[Request]:
    """All requests that are known now.

    Args:
        spent: cost of the search per training image, in MACs (`search_macs`).
        keeps: the structure that a method keeps at a target with a seed: JSON, empty where it cannot meet the budget, None
            while it is not known. Without this function all methods keep what the search keeps.
    """
    dense, epochs = cuts.shape.full(), config.retrain.epochs
    seeds = seeds_of(config, draws=False)
    # A backbone that is its own teacher has nothing to learn: the dense point is the dense model as it is.
    of_dense = 0 if config.backbone and config.teacher is None else epochs
    yield Request(method="dense", budget=1.0, of_seed=dict.fromkeys(seeds, (dense.to_json(), of_dense)))
    seen: set[tuple[str, str]] = set()
    for target, structure in targets(config, cuts):
        searched = "" if structure is None else structure.to_json()
        budget: Any = {"budget": target.budget, "unit": target.unit, "ms": target.ms}
        yield Request(method="searched", shares=target.shares, of_seed=dict.fromkeys(seeds, (searched, epochs)), **budget)
        again = target.key in seen  # shares that come to a budget seen before: methods that ignore the search have it already
        seen.add(target.key)
        for method in map(METHODS.__getitem__, config.baselines):
            if again and not method.needs_search:
                continue
            found: dict[int, str | None] = dict.fromkeys(seeds_of(config, method.draws), searched)
            if keeps is not None and method.chooses:
                found = {seed: keeps(method.name, target, seed) for seed in found}
            kept = {seed: text for seed, text in found.items() if text is not None}
            if len(kept) < len(found):
                continue
            if "retraining" in config.baseline_terms:
                alike = {seed: (text, epochs) for seed, text in kept.items()}
                shares = target.shares if method.needs_search else ""
                yield Request(method=method.name, shares=shares, of_seed=alike, **budget)
            if "compute" in config.baseline_terms and not method.needs_search:
                teaching = taught_macs(config, "retrain", dense.macs())  # longer retraining asks the teacher for longer too
                longer = {
                    seed: epochs + extra_epochs(spent, config.target_count, Structure.from_json(text).macs() + teaching)
                    if text
                    else epochs
                    for seed, text in kept.items()
                }
                of_seed = {seed: (text, longer[seed]) for seed, text in kept.items()}
                yield Request(method=method.name, terms="compute", of_seed=of_seed, **budget)


def seeds_of(config: Config, draws: bool) -> list[int]:
    """The seeds of a method's points. Untrained ones of a method that draws nothing are alike: the first seed is enough."""
    seeds = config.retrain.seeds
    return seeds if config.retrain.epochs or draws else seeds[:1]


# Targets: budgets and shares.


def targets(config: Config, cuts: Cuts) -> Iterator[tuple[Target, Structure | None]]:
    """Each target and the structure that the search gives for it: budgets first, then shares.

    Budgets in ms that are still to be timed are left out; the structure is None for one that cannot be reached.

    Raises:
        BudgetError: a budget or share that cannot be met, other than in ms.
    """
    seen: set[tuple[str, str]] = set()
    for given in config.sorted_budgets:
        budget = Budget.parse(given)
        if not cuts.knows(budget):
            continue
        target = target_of(budget, cuts)
        if target.key not in seen:  # 25% and the same amount in MACs are one target
            yield target, cuts.solve(budget)
        seen.add(target.key)
    for shares in config.shares:
        structure = cuts.path.shares(shares)
        share = exact_fraction(structure.macs(), cuts.shape.full().macs())
        yield target_of(Budget(share), cuts, shares_text(shares)), structure


def target_of(budget: Budget, cuts: Cuts, shares: str = "") -> Target:
    """The target of a budget for a model.

    Args:
        shares: the shares that come to this budget, as JSON (`shares_text`); empty where a budget was asked for.
    """
    return Target(budget=cuts.fraction(budget), unit=budget.unit, shares=shares, given=budget)


def to_time(run: Run) -> list[Budget]:
    """The budgets in ms of which it is not known yet what they leave of the removal path."""
    budgets = run.config.budgets_in_ms
    solved = run.latency.solved(run.pace_of("ms")) if budgets else {}
    return [budget for budget in budgets if str(budget) not in solved]


def shares_text(shares: Mapping[Any, float]) -> str:
    """Shares as JSON; equal shares give equal text. A family that keeps all its gates is left out."""
    return json.dumps({family: shares[family] for family in FAMILIES if shares.get(family, 1.0) < 1}, separators=(",", ":"))


def exact_fraction(macs: int, dense: int) -> float:
    """The fraction of the dense model's MACs whose limit, as a budget, is not below `macs`, despite rounding."""
    share = macs / dense
    return share if int(share * dense) >= macs else math.nextafter(share, 1.0)


def baseline_targets(run: Run) -> list[Target]:
    """The targets of baselines, each once: the configuration's budgets, and the budgets that its shares come to.

    Budgets in ms that are still to be timed are left out.
    """
    found: dict[tuple[str, str], Target] = {}
    cuts = cuts_of_run(run)
    if run.config.shares:
        for target, _ in targets(run.config, cuts):
            found.setdefault(target.key, target)
    else:
        for budget in map(Budget.parse, run.config.budgets):
            if cuts.knows(budget):
                target = target_of(budget, cuts)
                found.setdefault(target.key, target)
    return list(found.values())


def to_choose(run: Run, again: bool = False) -> list[tuple[str, int]]:
    """(method, seed) of the methods whose structures are still to be chosen; a method without randomness has one seed.

    Args:
        again: include methods that were tried before and could not meet a budget.
    """
    left: list[tuple[str, int]] = []
    choosing = [METHODS[name] for name in run.config.baselines if METHODS[name].chooses]
    wanted = baseline_targets(run) if choosing else []
    for method in choosing:
        for seed in run.config.retrain.seeds if method.draws else run.config.retrain.seeds[:1]:
            found = [run.choice(method.name, target.budget, target.unit, seed if method.draws else None) for target in wanted]
            if None in found or (again and "" in found):
                left.append((method.name, seed))
    return left


# What the search cost.


def search_macs(config: Config, path: RemovalPath, run: Run | None = None) -> float:
    """Cost of the search per training image, in MACs of forward passes: all epochs of the gated model, and the tries of paces.

    What the teachers of both cost is part of it (`taught_macs`).

    Args:
        run: the run, where there is one: paces count as it tried them.
    """
    dense = path.shape.full().macs()
    retraining = taught_macs(config, "retrain", dense)
    tries, budget = paces_tried(config, path.shape, run)
    trying = tries * config.search.recovery * (path.solve(budget).macs() + retraining) if tries else 0
    trying += config.search.recovery * sum(macs + retraining for macs in macs_of_tries_in_ms(run))
    return config.search.epochs * (dense + taught_macs(config, "search", dense)) + trying


def macs_of_tries_in_ms(run: Run | None) -> list[int]:
    """MACs of the models by which paces were compared at equal latency; none where that was not done."""
    choice = run.pace_choice("ms") if run is not None and run.config.budgets_in_ms else None
    return [int(one["macs"]) for one in choice["tried"] if one.get("macs")] if choice is not None else []


def taught_macs(config: Config, stage: Stage, dense_macs: int) -> float:
    """What a stage's teacher adds to the cost of training on one image, in MACs of the trained model's forward passes.

    A training step costs three forward passes of the trained model, of which one is counted; the teacher's forward pass comes
    to a third of its MACs then.

    Args:
        dense_macs: of the dense model.
    """
    macs = teacher_macs(config, stage, dense_macs)
    return macs / 3 if macs else 0


# Paces say how fast each family of gates is removed. Workers choose them once; the choice is stored beside the search.


def distinct_paces(config: Config, families: Collection[str]) -> list[dict[str, float]]:
    """The paces to try: those of search.paces, restricted to the families that have gates, each once.

    With a single family the pace changes nothing, so that only the first is returned.
    """
    found: list[dict[str, float]] = []
    for pace in config.search.paces:
        of_gated = {family: value for family, value in pace.model_dump().items() if family in families}
        if of_gated not in found:
            found.append(of_gated)
    return found if len(families) > 1 else found[:1]


def paces_tried(config: Config, shape: Shape, run: Run | None = None) -> tuple[int, Budget]:
    """How many paces are tried (0 where there is no choice), and at which budget; the tries of budgets in ms are others.

    Args:
        run: the run, where there is one: if it has chosen a pace, the numbers are those of its choice.
    """
    if not budgets_by_formula(config):
        return 0, Budget(1.0)
    choice = run.pace_choice() if run is not None else None
    if choice is not None:
        tried = choice["tried"]
        return len(tried), Budget(float(tried[0]["budget"]), tried[0].get("unit", "macs"))
    tries = len(distinct_paces(config, shape.gate_shapes))
    return tries if tries > 1 else 0, smallest_budget(config, shape)


def budgets_by_formula(config: Config) -> list[Budget]:
    """The budgets that are not in ms."""
    return [budget for budget in map(Budget.parse, config.budgets) if not budget.is_latency]


def smallest_budget(config: Config, shape: Shape) -> Budget:
    """The budget at which paces are compared: the smallest budget in MACs, or in parameters where none is in MACs."""
    budgets = budgets_by_formula(config)
    of_macs = [budget for budget in budgets if budget.unit == "macs"]
    return min(of_macs or budgets, key=lambda budget: budget.limit(COSTS[budget.unit].of_dense(shape)))


def pace_key(run: Run, unit: str = "macs") -> str:
    """Eight hex digits that identify all settings that the try of a pace depends on, except the pace itself.

    Args:
        unit: "ms" for the tries of budgets in ms.
    """
    identity = run.identity("retrain")
    cut = {key: value for key, value in identity["cut"].items() if key != "paces"}
    if unit == "ms":
        # Which of them is the smallest is known once the dense model was timed.
        smallest = f"{' '.join(map(str, run.config.budgets_in_ms))} {timed_in(run.config)}"
    else:
        budget = smallest_budget(run.config, run.shape)
        dense = COSTS[budget.unit].of_dense(run.shape)
        smallest = f"{budget.amount if budget.relative else budget.limit(dense) / dense:.9f}"
        smallest += "" if budget.unit == "macs" else f" {budget.unit}"
    short = run.config.pace_recipe()
    # Not accumulate, which pace_recipe raises by the workers per trial: the batch is the same for any number of workers.
    tried = {f"retrain.{key}": getattr(short, key) for key in ("epochs", "lr", "warmup_epochs", "ema_decay")}
    recipe = {key: value for key, value in run.identity("retrain", **tried)["retrain"].items() if key != "start"}
    known = [identity["search"], cut, recipe, smallest, *([identity["teacher"]] if "teacher" in identity else [])]
    return hashlib.sha256(json.dumps(known, sort_keys=True).encode()).hexdigest()[:8]


def pace_is_open(run: Run, unit: str = "macs") -> bool:
    """Whether a pace is still to be chosen. Points by shares do not depend on the pace.

    A pace that was chosen with another recipe, or at another smallest budget, is kept if a point was already made with it.

    Args:
        unit: "ms" for the pace of budgets in ms, which are compared at equal latency; any other for that of the other budgets.
    """
    if not (run.config.budgets_in_ms if unit == "ms" else budgets_by_formula(run.config)):
        return False
    paces = distinct_paces(run.config, run.shape.gate_shapes)
    if unit == "ms" and (table := table_of(run.config)) is not None:
        paces = [pace for pace in paces if is_timed(run, pace, table)]
    if len(paces) < 2:
        return False
    choice = run.pace_choice(unit)
    if choice is None:
        return True
    rows = run.rows
    from_search = [name for name, method in METHODS.items() if method.needs_search]
    of_unit = (rows.unit == "ms") == (unit == "ms")
    made = (rows.status == "ok") & rows.method.isin(from_search) & (rows.shares == "") & of_unit
    return not made.any() and choice.get("key") != pace_key(run, unit)


def is_timed(run: Run, pace: Mapping[str, float], table: TableOfTimes) -> bool:
    """Whether a table has times of the path in ms at a pace."""
    try:
        curve_of_times(run.path_at(pace, run.latency.depth), table.ms, table.where)
    except RefusedInput:
        return False
    return True
