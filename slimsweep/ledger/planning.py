"""The plan of a sweep, made from the configuration and from what the run's folder holds: only the driver and `plan` ask."""

import hashlib
import json
import math
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from slimsweep.config import Config
from slimsweep.ledger.points import Plan, Point, Stage
from slimsweep.ledger.run import Run
from slimsweep.methods import METHODS, extra_epochs
from slimsweep.slimming.budget import Budget, BudgetLike
from slimsweep.slimming.cost import COSTS
from slimsweep.slimming.removal_path import RemovalPath, Scores
from slimsweep.slimming.structure import FAMILIES, Shape, Structure


@dataclass(frozen=True, kw_only=True)
class Asked:
    """A budget or shares, as one place of the frontier."""

    budget: float  # fraction of the dense model's cost
    unit: str  # the cost: macs or params
    shares: str  # JSON, or empty
    given: Budget  # what a method is held to

    @property
    def key(self) -> tuple[str, str]:
        """Equal for places that allow the same."""
        return self.unit, f"{self.budget:.9f}"


@dataclass(frozen=True, kw_only=True)
class Request:
    """What a method is to make at one budget and on one kind of terms, before learning rates are told apart."""

    method: str
    budget: float
    unit: str = "macs"
    terms: str = "retraining"
    shares: str = ""
    of_seed: dict[int, tuple[str, int]]  # structure (JSON) and epochs


def make_plan(run: Run, attempt: str, *, points: list[Point] | None = None, over: bool = False) -> Plan:
    """The plan as the driver writes it.

    Args:
        points: solved anew where not given.
        over: whether the driver has ended.
    """
    config = run.config
    stages = (Stage(name="dense", epochs=config.dense.epochs), Stage(name="search", epochs=config.search.epochs))
    if not run.search_done:
        return Plan(attempt=attempt, stages=stages, over=over)
    points = plan_points(run) if points is None else points
    choosing = (["the pace of the families"] if pace_is_open(run) else []) + [
        f"what {method} keeps" for method in dict.fromkeys(method for method, _ in to_choose(run))
    ]
    waits = "the best learning rate" if len(config.retrain.rates) > 1 else "the points that they start from"
    return Plan(
        attempt=attempt,
        stages=stages,
        points=tuple(points),
        later=points_to_come(run, points),
        waits_for=waits,
        choosing=tuple(choosing),
        over=over,
    )


def plan_points(run: Run) -> list[Point]:
    """Every point that the configuration asks for, as far as it is known, largest budget first; the search must be done.

    It follows from the configuration and from what the run's folder holds. Where there are several learning rates, each
    method, terms and budget tries all of them with the first seed; the other seeds are planned once all those were tried, at
    the rate that is best on validation: one that failed, as rates that are too high do, is not taken. Where retrain.start is
    "larger", a searched point is planned once the point that it starts from (of the largest budget, the dense point) has an
    ok row. Methods whose structures are still to be chosen are left out (`to_choose`).

    Raises:
        BudgetError: a budget below the least that the model can be cut to.
    """
    rows = run.rows
    val_top1: dict[str, float] = dict(rows.loc[rows.status == "ok", ["point", "val_top1"]].itertuples(index=False))
    failed = set(rows.point[rows.status == "failed"])

    def best(tried: list[Point]) -> float | None:
        if len(tried) == 1:
            return tried[0].lr
        ended = [p for p in tried if p.name in val_top1]
        if not ended or any(p.name not in val_top1 and p.name not in failed for p in tried):
            return None
        return max(ended, key=lambda p: val_top1[p.name]).lr  # of equals, the one given first

    def keeps(method: str, asked: Asked, seed: int) -> str | None:
        return run.choice(method, asked.budget, asked.unit, seed if METHODS[method].draws else None)

    path = run.path
    spent = search_macs(run.config, path, run)
    fingerprints = {lr: run.fingerprint("retrain", **{"retrain.lr": lr}) for lr in run.config.retrain.rates}
    requests = _requests(run.config, path, spent, keeps)
    return _points(run.config, requests, fingerprints, best, lambda point: point.name in val_top1)


def expected_points(
    config: Config, shape: Shape, gates: Scores, pace: Mapping[str, float], run: Run | None = None
) -> list[Point]:
    """Every point that a configuration will have made at its end, largest budget first, without a run: an estimate.

    Methods that choose for themselves are taken to keep what the search keeps at their budget, whatever they are;
    of several learning rates the first is taken for the best.

    Args:
        shape: of the gated model.
        gates: what the search is taken to find, in the gates' shapes.
        pace: what is taken to be chosen.
        run: the run that it is about, where there is one.

    Raises:
        BudgetError: a budget below the least that the model can be cut to.
    """
    of_gated = {family: pace[family] for family in gates}
    path = RemovalPath(shape, gates, config.search.floors.model_dump(), config.search.round_to, of_gated)
    spent = search_macs(config, path, run)
    fingerprints = {lr: config.changed(**{"retrain.lr": lr}).fingerprint("retrain") for lr in config.retrain.rates}
    return _points(config, _requests(config, path, spent), fingerprints, lambda tried: tried[0].lr, lambda point: True)


def points_to_come(run: Run, points: list[Point]) -> int:
    """How many points are not planned yet, for they wait for others: for the best learning rate, or for where they start."""
    if len(run.config.retrain.rates) == 1 and run.config.retrain.start == "search":
        return 0
    known = Counter(point.place for point in points)
    expected = Counter(point.place for point in expected_points(run.config, run.shape, run.gates, run.pace, run))
    return sum((expected - known).values())


def points_to_do(run: Run, points: list[Point]) -> list[Point]:
    """Those without an ok row."""
    done = set(run.rows[run.rows.status == "ok"].point)
    return [p for p in points if p.name not in done]


def forget_failed(run: Run, points: list[Point]) -> None:
    """Delete the rows of failed points that are asked for no more, or under another name since their recipe was corrected."""
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
) -> list[Point]:
    """The points of all requests: every learning rate with the first seed, the best one, once known, with the others.

    Args:
        fingerprints: per learning rate, what stands for all of the configuration that a point's result depends on.
        best: of the points of a first seed the best learning rate, None where that is not known yet.
        trained: whether a point's model is there for others to start from.
    """
    seeds, rates = config.retrain.seeds, config.retrain.rates

    def point(request: Request, seed: int, lr: float, start: Point | None) -> Point:
        structure, epochs = request.of_seed[seed]
        # What is usual is left out, so that points made before there was anything else keep their names.
        identity = [fingerprints[lr], request.method, f"{request.budget:.9f}", seed]
        identity += [] if request.unit == "macs" else [request.unit]
        identity += [] if request.terms == "retraining" else [request.terms, epochs]
        identity += [request.shares] if request.shares else []
        identity += [start.hash] if start else []
        return Point(
            method=request.method,
            budget=request.budget,
            unit=request.unit,
            seed=seed,
            structure=structure,
            hash=hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:16],
            terms=request.terms,
            shares=request.shares,
            lr=lr,
            epochs=epochs,
            one_of_rates=len(rates) > 1,
            start=start.name if start else "",
        )

    points: list[Point] = []
    # Of dense and each larger budget its structure, and each seed's point.
    larger: list[tuple[Structure, dict[int, Point]]] = []
    for request in sorted(requests, key=lambda request: -request.budget):
        starts: dict[int, Point | None] = dict.fromkeys(seeds)
        chained = config.retrain.start == "larger" and METHODS[request.method].chained
        if chained:
            structure = Structure.from_json(request.of_seed[seeds[0]][0])
            of_seed = next((known for whole, known in reversed(larger) if whole.holds(structure)), None)
            if of_seed is not None:
                starts = {seed: start for seed, start in of_seed.items() if trained(start)}
            larger.append((structure, {}))
        if seeds[0] not in starts:
            continue
        tried = [point(request, seeds[0], lr, starts[seeds[0]]) for lr in rates]
        points += tried
        if (lr := best(tried)) is not None:
            chosen = {seed: point(request, seed, lr, start) for seed, start in starts.items()}
            points += [chosen[seed] for seed in seeds[1:] if seed in chosen]
            if chained:
                larger[-1][1].update(chosen)
    return points


def _requests(
    config: Config, path: RemovalPath, spent: float, keeps: Callable[[str, Asked, int], str | None] | None = None
) -> Iterator[Request]:
    """All that is known to be asked for.

    Args:
        spent: what the search cost per image, in MACs (`search_macs`).
        keeps: what a method keeps at a budget with a seed: JSON, empty where it cannot meet the budget, None where that
            is not known yet. Without it all methods keep what the search keeps.
    """
    dense, epochs, seeds = path.shape.full(), config.retrain.epochs, config.retrain.seeds
    yield Request(method="dense", budget=1.0, of_seed=dict.fromkeys(seeds, (dense.to_json(), epochs)))
    seen: set[tuple[str, str]] = set()
    for asked, structure in frontier(config, path):
        searched = structure.to_json()
        place: Any = {"budget": asked.budget, "unit": asked.unit}
        yield Request(method="searched", shares=asked.shares, of_seed=dict.fromkeys(seeds, (searched, epochs)), **place)
        again = asked.key in seen  # shares that come to a budget that was there: what chooses for itself has it already
        seen.add(asked.key)
        for method in map(METHODS.__getitem__, config.baselines):
            if again and not method.needs_search:
                continue
            found: dict[int, str | None] = dict.fromkeys(seeds, searched)
            if keeps is not None and method.chooses:
                found = {seed: keeps(method.name, asked, seed) for seed in seeds}
            kept = {seed: text for seed, text in found.items() if text is not None}
            if len(kept) < len(seeds):
                continue
            if "retraining" in config.baseline_terms:
                alike = {seed: (text, epochs) for seed, text in kept.items()}
                shares = asked.shares if method.needs_search else ""
                yield Request(method=method.name, shares=shares, of_seed=alike, **place)
            if "compute" in config.baseline_terms and not method.needs_search:
                longer = {
                    seed: epochs + extra_epochs(spent, config.frontier, Structure.from_json(text).macs()) if text else epochs
                    for seed, text in kept.items()
                }
                of_seed = {seed: (text, longer[seed]) for seed, text in kept.items()}
                yield Request(method=method.name, terms="compute", of_seed=of_seed, **place)


# The frontier: budgets and shares.


def frontier(config: Config, path: RemovalPath) -> Iterator[tuple[Asked, Structure]]:
    """Each searched point's place and structure: budgets, then shares.

    Raises:
        BudgetError: a budget or share that cannot be met.
    """
    for budget in config.sorted_budgets:
        yield asked_of(budget, path.shape), path.solve(budget)
    dense = path.shape.full().macs()
    for shares in config.shares:
        structure = path.shares(shares)
        yield asked_of(exact_fraction(structure.macs(), dense), path.shape, shares_text(shares)), structure


def asked_of(budget: BudgetLike, shape: Shape, shares: str = "") -> Asked:
    """A budget's place on the frontier of a model."""
    given = Budget.parse(budget)
    dense = COSTS[given.unit].of_dense(shape)
    fraction = given.amount if given.relative else given.limit(dense) / dense
    return Asked(budget=fraction, unit=given.unit, shares=shares, given=given)


def shares_text(shares: Mapping[Any, float]) -> str:
    """Shares as JSON, the same text for the same shares; a family that keeps all is as one that is not named."""
    return json.dumps({family: shares[family] for family in FAMILIES if shares.get(family, 1.0) < 1}, separators=(",", ":"))


def exact_fraction(macs: int, dense: int) -> float:
    """The fraction of the dense model's MACs that, as a budget, allows `macs` to the last unit."""
    share = macs / dense
    return share if int(share * dense) >= macs else math.nextafter(share, 1.0)


def baseline_places(run: Run) -> list[Asked]:
    """What baselines are held to: the configuration's budgets, and what its shares leave of the dense model."""
    places: dict[tuple[str, str], Asked] = {}
    if run.config.shares:
        for asked, _ in frontier(run.config, run.path):
            places.setdefault(asked.key, asked)
    else:
        for budget in run.config.budgets:
            asked = asked_of(budget, run.shape)
            places.setdefault(asked.key, asked)
    return list(places.values())


def to_choose(run: Run, again: bool = False) -> list[tuple[str, int]]:
    """(method, seed) of the methods whose structures are still to be chosen; one that draws nothing has one seed.

    Args:
        again: also those that could not meet a budget.
    """
    left: list[tuple[str, int]] = []
    choosing = [METHODS[name] for name in run.config.baselines if METHODS[name].chooses]
    places = baseline_places(run) if choosing else []
    for method in choosing:
        for seed in run.config.retrain.seeds if method.draws else run.config.retrain.seeds[:1]:
            found = [run.choice(method.name, asked.budget, asked.unit, seed if method.draws else None) for asked in places]
            if None in found or (again and "" in found):
                left.append((method.name, seed))
    return left


# What the search cost.


def search_macs(config: Config, path: RemovalPath, run: Run | None = None) -> float:
    """MACs of the search for each training image: of the gated model in all its epochs, and of trying paces.

    Args:
        run: where paces may have been tried, and then count as they were.
    """
    tries, budget = paces_tried(config, path.shape, run)
    trying = tries * config.search.recovery * path.solve(budget).macs() if tries else 0
    return config.search.epochs * path.shape.full().macs() + trying


# At which pace the families leave is chosen once, by workers, and kept beside the search.


def distinct_paces(config: Config, families: Collection[str]) -> list[dict[str, float]]:
    """The paces to try, of the families that have gates: as proposed, but those that come to the same once.

    A family that is alone keeps what its budget leaves it at any pace.
    """
    found: list[dict[str, float]] = []
    for pace in config.search.paces:
        of_gated = {family: value for family, value in pace.model_dump().items() if family in families}
        if of_gated not in found:
            found.append(of_gated)
    return found if len(families) > 1 else found[:1]


def paces_tried(config: Config, shape: Shape, run: Run | None = None) -> tuple[int, Budget]:
    """How many paces are tried (0 without a choice) and at which budget: as a run that is given did, once it has chosen."""
    if not config.budgets:
        return 0, Budget(1.0)
    choice = run.pace_choice() if run is not None else None
    if choice is not None:
        tried = choice["tried"]
        return len(tried), Budget(float(tried[0]["budget"]), tried[0].get("unit", "macs"))
    tries = len(distinct_paces(config, shape.gate_shapes))
    return tries if tries > 1 else 0, smallest_budget(config, shape)


def smallest_budget(config: Config, shape: Shape) -> Budget:
    """The budget at which paces are compared: the smallest fraction of the dense model's cost, of MACs where there is one."""
    budgets = [Budget.parse(budget) for budget in config.budgets]
    of_macs = [budget for budget in budgets if budget.unit == "macs"]
    return min(of_macs or budgets, key=lambda budget: budget.limit(COSTS[budget.unit].of_dense(shape)))


def pace_key(run: Run) -> str:
    """Eight hex digits that stand for all that the try of a pace depends on, but the pace."""
    identity = run.identity("retrain")
    cut = {key: value for key, value in identity["cut"].items() if key != "paces"}
    budget = smallest_budget(run.config, run.shape)
    dense = COSTS[budget.unit].of_dense(run.shape)
    smallest = f"{budget.amount if budget.relative else budget.limit(dense) / dense:.9f}"
    smallest += "" if budget.unit == "macs" else f" {budget.unit}"
    short = run.config.pace_recipe()
    # However many workers train a point together, a batch is the same: accumulate is the retraining's.
    tried = {f"retrain.{key}": getattr(short, key) for key in ("epochs", "lr", "warmup_epochs", "ema_decay")}
    recipe = {key: value for key, value in run.identity("retrain", **tried)["retrain"].items() if key != "start"}
    known = [identity["search"], cut, recipe, smallest]
    return hashlib.sha256(json.dumps(known, sort_keys=True).encode()).hexdigest()[:8]


def pace_is_open(run: Run) -> bool:
    """Whether a pace is still to be chosen; points by shares do not depend on it.

    What was chosen by another recipe, or at another smallest budget, holds once a point was made with it.
    """
    if not run.config.budgets:
        return False
    if len(distinct_paces(run.config, run.shape.gate_shapes)) < 2:
        return False
    choice = run.pace_choice()
    if choice is None:
        return True
    rows = run.rows
    from_search = [name for name, method in METHODS.items() if method.needs_search]
    made = (rows.status == "ok") & rows.method.isin(from_search) & (rows.shares == "")
    return not made.any() and choice.get("key") != pace_key(run)
