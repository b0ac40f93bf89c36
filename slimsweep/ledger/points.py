"""The points of a sweep: what is to be made, what each is called, and what is left to do."""

import hashlib
import json
import math
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from safetensors.torch import save
from torch import nn

from slimsweep.config import Config, ConfigError
from slimsweep.ledger.tables import read_gates_tensors, read_rows
from slimsweep.methods import METHODS, check_method, extra_epochs
from slimsweep.methods.choice import Settings
from slimsweep.slimming.budget import BudgetError
from slimsweep.slimming.gates import add_gates
from slimsweep.slimming.removal_path import RemovalPath, Scores, absolute, equal_gates, size_multiple
from slimsweep.slimming.structure import FAMILIES, Shape, Structure
from slimsweep.storage import Folder

Budget = float | str


@dataclass(frozen=True, kw_only=True)
class Point:
    """One model to make: what it is, and all that its result depends on, in its hash."""

    method: str
    budget: float  # fraction of the dense model's MACs asked for; where shares were asked for, the fraction that is left
    seed: int
    structure: str  # JSON; empty where the method cannot meet the budget
    hash: str
    terms: str = "retraining"
    shares: str = ""  # the share that each family keeps, as JSON, where that was asked for
    lr: float
    epochs: int
    one_of_rates: bool = False  # whether other learning rates are tried: then the name tells this one
    start: str = ""  # the point whose trained model it starts from; empty where it starts from the search or the dense model

    @property
    def name(self) -> str:
        terms = "" if self.terms == "retraining" else f"-{self.terms}"
        shares = "".join(f"-{family}{share:g}" for family, share in json.loads(self.shares or "{}").items())
        lr = f"-lr{self.lr:g}" if self.one_of_rates else ""
        return f"{self.method}{terms}-{self.budget:.4f}{shares}{lr}-s{self.seed}-{self.hash[:4]}"


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """What a method is to make at one budget and on one kind of terms, before learning rates are told apart."""

    method: str
    budget: float
    terms: str = "retraining"
    shares: str = ""
    of_seed: dict[int, tuple[str, int]]  # structure (JSON) and epochs


def plan_points(config: Config, run: Folder) -> list[Point]:
    """Every point that the configuration asks for, as far as it is known, largest budget first; the search must be done.

    It follows from the configuration and from what the run's folder holds. Where there are several learning rates, each
    method, terms and budget tries all of them with the first seed; the other seeds are planned once all those were tried, at
    the rate that is best on validation: one that failed, as rates that are too high do, is not taken. Where retrain.start is
    "larger", a searched point is planned once the point that it starts from (of the largest budget, the dense point) has an
    ok row. Baselines whose structures are still to be chosen are left out (`to_choose`).

    Raises:
        BudgetError: a budget below the least that the model can be cut to.
    """
    val_top1: dict[str, float] = {}
    failed: set[str] = set()
    if len(config.retrain.rates) > 1 or config.retrain.start == "larger":
        rows = read_rows(run)
        val_top1 = dict(rows.loc[rows.status == "ok", ["point", "val_top1"]].itertuples(index=False))
        failed = set(rows.point[rows.status == "failed"])

    def best(tried: list[Point]) -> float | None:
        if len(tried) == 1:
            return tried[0].lr
        ended = [p for p in tried if p.name in val_top1]
        if not ended or any(p.name not in val_top1 and p.name not in failed for p in tried):
            return None
        return max(ended, key=lambda p: val_top1[p.name]).lr  # of equals, the one given first

    path = load_path(config, run)
    spent = search_macs(config, path, run)
    wanted = _wanted(config, path, spent, lambda method, budget, seed: chosen(config, run, method, budget, seed))
    return _points(config, wanted, best, lambda point: point.name in val_top1)


def expected_points(config: Config, shape: Shape, gates: Scores, pace: Mapping[str, float] | None = None) -> list[Point]:
    """Every point that a configuration will have made at its end, largest budget first, without a run: an estimate.

    Baselines that choose for themselves are taken to keep what the search keeps at their budget, whatever they are;
    of several learning rates the first is taken for the best.

    Args:
        shape: of the gated model.
        gates: what the search is taken to find, in the gates' shapes.
        pace: what is taken to be chosen; of several that are proposed the first where not given.

    Raises:
        BudgetError: a budget below the least that the model can be cut to.
    """
    path = path_at(config, shape, gates, pace or config.search.paces[0].model_dump())
    spent = search_macs(config, path)
    return _points(config, _wanted(config, path, spent), lambda tried: tried[0].lr, lambda point: True)


def points_to_come(config: Config, run: Folder, points: list[Point]) -> int:
    """How many points are not planned yet, for they wait for others: for the best learning rate, or for where they start."""
    if len(config.retrain.rates) == 1 and config.retrain.start == "search":
        return 0
    shape = load_shape(run)
    known = Counter(map(_asked, points))
    wanted = Counter(map(_asked, expected_points(config, shape, read_gates_tensors(run, shape), chosen_pace(config, run))))
    return sum((wanted - known).values())


def _asked(point: Point) -> tuple[str, str, str, str, int]:
    return point.method, point.terms, f"{point.budget:.9f}", point.shares, point.seed


def _points(
    config: Config,
    wanted: Iterator[Wanted],
    best: Callable[[list[Point]], float | None],
    trained: Callable[[Point], bool],
) -> list[Point]:
    """The points of all that is wanted: every learning rate with the first seed, the best one, once known, with the others.

    Args:
        best: of the points of a first seed the best learning rate, None where that is not known yet.
        trained: whether a point's model is there for others to start from.
    """
    seeds, rates = config.retrain.seeds, config.retrain.rates
    fingerprints = {lr: config.changed(**{"retrain.lr": lr}).fingerprint("retrain") for lr in rates}

    def point(one: Wanted, seed: int, lr: float, start: Point | None) -> Point:
        structure, epochs = one.of_seed[seed]
        identity = [fingerprints[lr], one.method, f"{one.budget:.9f}", seed]
        identity += [] if one.terms == "retraining" else [one.terms, epochs]
        identity += [one.shares] if one.shares else []
        identity += [start.hash] if start else []
        return Point(
            method=one.method,
            budget=one.budget,
            seed=seed,
            structure=structure,
            hash=hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:16],
            terms=one.terms,
            shares=one.shares,
            lr=lr,
            epochs=epochs,
            one_of_rates=len(rates) > 1,
            start=start.name if start else "",
        )

    points: list[Point] = []
    # Of dense and each larger budget its structure, and each seed's point.
    larger: list[tuple[Structure, dict[int, Point]]] = []
    for one in sorted(wanted, key=lambda one: -one.budget):
        starts: dict[int, Point | None] = dict.fromkeys(seeds)
        chained = config.retrain.start == "larger" and METHODS[one.method].chained
        if chained:
            structure = Structure.from_json(one.of_seed[seeds[0]][0])
            of_seed = next((known for whole, known in reversed(larger) if whole.holds(structure)), None)
            if of_seed is not None:
                starts = {seed: start for seed, start in of_seed.items() if trained(start)}
            larger.append((structure, {}))
        if seeds[0] not in starts:
            continue
        tried = [point(one, seeds[0], lr, starts[seeds[0]]) for lr in rates]
        points += tried
        if (lr := best(tried)) is not None:
            chosen = {seed: point(one, seed, lr, start) for seed, start in starts.items()}
            points += [chosen[seed] for seed in seeds[1:] if seed in chosen]
            if chained:
                larger[-1][1].update(chosen)
    return points


def _wanted(
    config: Config, path: RemovalPath, spent: float, keeps: Callable[[str, float, int], str | None] | None = None
) -> Iterator[Wanted]:
    """All that is known to be wanted.

    Args:
        spent: what the search cost, an image, in MACs (`search_macs`).
        keeps: what a baseline keeps at a budget with a seed: JSON, empty where it cannot meet the budget, None where that
            is not known yet. Without it baselines keep what the search keeps.
    """
    dense, epochs, seeds = path.shape.full(), config.retrain.epochs, config.retrain.seeds
    yield Wanted(method="dense", budget=1.0, of_seed=dict.fromkeys(seeds, (dense.to_json(), epochs)))
    asked: set[str] = set()
    for budget, shares, structure in frontier(config, path):
        searched = structure.to_json()
        yield Wanted(method="searched", budget=budget, shares=shares, of_seed=dict.fromkeys(seeds, (searched, epochs)))
        again = f"{budget:.9f}" in asked  # shares that come to a budget that was there: what chooses for itself has it already
        asked.add(f"{budget:.9f}")
        for method in config.baselines:
            if again and not METHODS[method].needs_search:
                continue
            found: dict[int, str | None] = dict.fromkeys(seeds, searched)
            if keeps is not None and METHODS[method].chooses:
                found = {seed: keeps(method, budget, seed) for seed in seeds}
            kept = {seed: text for seed, text in found.items() if text is not None}
            if len(kept) < len(seeds):
                continue
            if "retraining" in config.baseline_terms:
                alike = {seed: (text, epochs) for seed, text in kept.items()}
                yield Wanted(method=method, budget=budget, shares=shares if METHODS[method].needs_search else "", of_seed=alike)
            if "compute" in config.baseline_terms and not METHODS[method].needs_search:
                longer = {
                    seed: epochs + extra_epochs(spent, config.frontier, Structure.from_json(text).macs()) if text else epochs
                    for seed, text in kept.items()
                }
                of_seed = {seed: (text, longer[seed]) for seed, text in kept.items()}
                yield Wanted(method=method, budget=budget, terms="compute", of_seed=of_seed)


def search_macs(config: Config, path: RemovalPath, run: Folder | None = None) -> float:
    """MACs of the search for each training image: of the gated model in all its epochs, and of trying paces.

    Args:
        run: where that may have been done, and then counts as it was.
    """
    tries, budget = paces_tried(config, path.shape, run)
    trying = tries * config.search.recovery * path.solve(budget).macs() if tries else 0
    return config.search.epochs * path.shape.full().macs() + trying


def smallest_budget(config: Config, dense: int) -> Budget:
    return min(config.budgets, key=lambda budget: absolute(budget, dense))


def frontier(config: Config, path: RemovalPath) -> Iterator[tuple[float, str, Structure]]:
    """(budget as a fraction of dense, shares as JSON or "", structure) of each searched point: budgets, then shares.

    Raises:
        BudgetError: a budget or share that cannot be met.
    """
    dense = path.shape.full().macs()
    for budget in config.sorted_budgets:
        yield fraction(budget, dense), "", path.solve(budget)
    for shares in config.shares:
        structure = path.shares(shares)
        yield exact_fraction(structure.macs(), dense), shares_text(shares), structure


def shares_text(shares: Mapping[Any, float]) -> str:
    """Shares as JSON, the same text for the same shares; a family that keeps all is as one that is not named."""
    return json.dumps({family: shares[family] for family in FAMILIES if shares.get(family, 1.0) < 1}, separators=(",", ":"))


def fraction(budget: Budget, dense: int) -> float:
    """A budget as a fraction of the dense model's MACs."""
    return absolute(budget, dense) / dense if isinstance(budget, str) else budget


def exact_fraction(macs: int, dense: int) -> float:
    """The fraction of the dense model's MACs that, as a budget, allows `macs` to the last unit."""
    share = macs / dense
    return share if absolute(share, dense) >= macs else math.nextafter(share, 1.0)


def baseline_budgets(config: Config, run: Folder) -> list[Budget]:
    """The budgets that baselines are held to: the configuration's, and what its shares leave of the dense model."""
    if not config.shares:
        return list(config.budgets)
    path = load_path(config, run)
    dense = path.shape.full().macs()
    found: dict[str, Budget] = {f"{fraction(budget, dense):.9f}": budget for budget in config.budgets}
    for budget, shares, _ in frontier(config, path):
        if shares:
            found.setdefault(f"{budget:.9f}", budget)
    return list(found.values())


def check_cuts(config: Config, model: nn.Module) -> None:
    """Refuse a model that cannot be cut, and budgets, shares and baselines that it cannot have.

    Args:
        model: the dense one; on the meta device, for its weights are not looked at.

    Raises:
        ConfigError: in one sentence, what is wrong with the input.
        ValueError: the model cannot be cut, or not to these budgets.
    """
    settings = config.search
    shape = add_gates(model, settings.granularity, settings.families, settings.token_gate).shape
    # Which gates go first is not known yet, but what is left when all have gone is.
    path = RemovalPath(shape, equal_gates(shape), settings.floors.model_dump(), settings.round_to)
    dense = shape.full().macs()
    for budget in config.budgets:
        if absolute(budget, dense) >= dense:
            raise ConfigError(f"budget {budget!r} is not below the dense model's {dense / 1e6:,.1f} MMACs: take a smaller one")
        path.solve(budget)
    left: list[Budget] = list(config.budgets)
    for shares in config.shares:
        try:
            kept = path.shares(shares).macs()
        except BudgetError as problem:
            raise ConfigError(f"shares holds {shares}, but {problem}; keep more, or lower search.floors") from problem
        except ValueError as problem:
            raise ConfigError(f"shares holds {shares}, but {problem}; leave that family out") from problem
        if kept == dense:
            raise ConfigError(f"shares holds {shares}, which is nearest to all that this model has: take smaller shares")
        left.append(exact_fraction(kept, dense))
    for method in config.baselines:
        rounded = size_multiple(shape, settings.round_to)
        floors = settings.floors.model_dump()
        of_all = Settings(granularity=settings.granularity, families=settings.families, floors=floors, round_to=rounded)
        try:
            check_method(method, model, of_all, left)
        except ValueError as problem:
            raise ConfigError(str(problem)) from problem


def points_to_do(points: list[Point], run: Folder) -> list[Point]:
    """Those without an ok row."""
    rows = read_rows(run)
    done = set(rows[rows.status == "ok"].point)
    return [p for p in points if p.name not in done]


def forget_failed(points: list[Point], run: Folder) -> None:
    """Delete the rows of failed points that are asked for no more, or under another name since their recipe was mended."""
    rows, names = read_rows(run), {p.name for p in points}
    for name in rows.point[rows.status == "failed"]:
        if name not in names:
            run.delete(f"results/{name}.parquet")


# What baselines keep is chosen once, by a worker that has weights and images, and kept in baselines/ of the run's folder.


def chosen_path(config: Config, method: str, budget: float, seed: int) -> str:
    """Where a baseline's structure is kept; all that it depends on is in the name."""
    drawn = f"-s{seed}" if METHODS[method].draws else ""
    return f"baselines/{method}-{budget:.9f}{drawn}-{_cut_key(config)}.json"


def _cut_key(config: Config) -> str:
    """Eight hex digits that stand for the search and how budgets become structures."""
    identity = config.identity("retrain")
    return hashlib.sha256(json.dumps([identity["search"], identity["cut"]], sort_keys=True).encode()).hexdigest()[:8]


def chosen(config: Config, run: Folder, method: str, budget: float, seed: int) -> str | None:
    """A baseline's structure as JSON text; empty where it cannot meet the budget, None where nobody has tried yet."""
    path = chosen_path(config, method, budget, seed)
    if not run.exists(path):
        return None
    return str(run.read_json(path)["structure"])


def to_choose(config: Config, run: Folder, again: bool = False) -> list[tuple[str, int]]:
    """(method, seed) of the baselines whose structures are still to be chosen; a method that draws nothing has one seed.

    Args:
        again: also those that could not meet a budget.
    """
    ranked = [method for method in config.baselines if METHODS[method].chooses]
    if not ranked:
        return []
    dense = load_shape(run).full().macs()
    budgets = [fraction(budget, dense) for budget in baseline_budgets(config, run)]
    left: list[tuple[str, int]] = []
    for method in ranked:
        for seed in config.retrain.seeds if METHODS[method].draws else config.retrain.seeds[:1]:
            found = [chosen(config, run, method, budget, seed) for budget in budgets]
            if None in found or (again and "" in found):
                left.append((method, seed))
    return left


def load_path(config: Config, run: Folder) -> RemovalPath:
    """The removal path that the search's gates give under the configuration's floors, at the pace that was chosen."""
    shape = load_shape(run)
    return path_at(config, shape, read_gates_tensors(run, shape), chosen_pace(config, run))


def path_at(config: Config, shape: Shape, gates: Scores, pace: Mapping[str, float]) -> RemovalPath:
    """The removal path under the configuration's floors at some pace of the families that have gates."""
    pace = {family: pace[family] for family in gates}
    return RemovalPath(shape, gates, config.search.floors.model_dump(), config.search.round_to, pace)


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


def paces_tried(config: Config, shape: Shape, run: Folder | None = None) -> tuple[int, Budget]:
    """How many paces are tried (0 without a choice) and at which budget: as a run that is given did, once it has chosen."""
    if not config.budgets:
        return 0, 1.0
    if run is not None and run.exists(pace_path(config)):
        tried = run.read_json(pace_path(config))["tried"]
        return len(tried), float(tried[0]["budget"])
    tries = len(distinct_paces(config, shape.gate_shapes))
    return tries if tries > 1 else 0, smallest_budget(config, shape.full().macs())


def pace_key(config: Config, dense: int) -> str:
    """Eight hex digits that stand for all that the try of a pace depends on, but the pace.

    Args:
        dense: MACs of the dense model.
    """
    identity = config.identity("retrain")
    cut = {key: value for key, value in identity["cut"].items() if key != "paces"}
    smallest = f"{fraction(smallest_budget(config, dense), dense):.9f}"
    # However many workers train a point together, a batch is the same.
    short = config.pace_recipe().model_copy(update={"accumulate": config.retrain.accumulate})
    recipe = short.model_dump(mode="json", exclude={"seeds", "start", "workers_per_trial"})
    known = [identity["search"], cut, recipe, smallest]
    return hashlib.sha256(json.dumps(known, sort_keys=True).encode()).hexdigest()[:8]


def pace_path(config: Config) -> str:
    """Where the chosen pace is kept; the search and all that the cut depends on are in the name."""
    return f"search/pace-{_cut_key(config)}.json"


def pace_is_open(config: Config, run: Folder) -> bool:
    """Whether a pace is still to be chosen; points by shares do not depend on it.

    What was chosen by another recipe, or at another smallest budget, holds once a point was made with it.
    """
    if not config.budgets:
        return False
    shape = load_shape(run)
    if len(distinct_paces(config, shape.gate_shapes)) < 2:
        return False
    if not run.exists(pace_path(config)):
        return True
    rows = read_rows(run)
    made = (
        (rows.status == "ok")
        & rows.method.isin([method.name for method in METHODS.values() if method.needs_search])
        & (rows.shares == "")
    )
    return not made.any() and run.read_json(pace_path(config)).get("key") != pace_key(config, shape.full().macs())


def chosen_pace(config: Config, run: Folder) -> dict[str, float]:
    """The pace of each family that has gates: the one that was chosen, or the first that was proposed."""
    if run.exists(pace_path(config)):
        return dict(run.read_json(pace_path(config))["pace"])
    return config.search.paces[0].model_dump()


def keep_path(config: Config, run: Folder) -> None:
    """Write the removal path that points are cut by to the run's folder, where it holds another."""
    name, tensors = "search/path.safetensors", save(load_path(config, run).tensors())
    if not run.exists(name) or run.read_bytes(name) != tensors:
        run.write_bytes(name, tensors)


def load_shape(run: Folder) -> Shape:
    """The dense model's sizes and costs, as the search left them, without building the model."""
    return Shape.from_dict(run.read_json("search/search.json")["shape"])
