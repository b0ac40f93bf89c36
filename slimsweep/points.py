"""The points of a sweep: what is to be made, what each is called, and what is left to do."""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass

from slimsweep.baselines import FROM_SEARCH, RANKED, extra_epochs
from slimsweep.budget import Budget, RemovalPath, absolute
from slimsweep.config import Config
from slimsweep.results import read_gates_tensors, read_rows
from slimsweep.storage import Folder
from slimsweep.structure import Shape, Structure


@dataclass(frozen=True, kw_only=True)
class Point:
    """One model to make: what it is, and all that its result depends on, in its hash."""

    method: str
    budget: float  # fraction of the dense model's MACs asked for
    seed: int
    structure: str  # JSON; empty where the method cannot meet the budget
    hash: str
    terms: str = "retraining"
    lr: float
    epochs: int
    one_of_rates: bool = False  # whether other learning rates are tried: then the name tells this one

    @property
    def name(self) -> str:
        terms = "" if self.terms == "retraining" else f"-{self.terms}"
        lr = f"-lr{self.lr:g}" if self.one_of_rates else ""
        return f"{self.method}{terms}-{self.budget:.4f}{lr}-s{self.seed}-{self.hash[:4]}"


def plan_points(config: Config, run: Folder) -> list[Point]:
    """Every point that the configuration asks for, as far as it is known, largest budget first; the search must be done.

    It follows from the configuration and from what the run's folder holds. Where there are several learning rates, each
    method, terms and budget tries all of them with the first seed; the other seeds are planned once all those have ok rows,
    at the rate that is best on validation. Baselines whose structures are still to be chosen are left out (`to_choose`).

    Raises:
        BudgetError: a budget below the least that the model can be cut to.
    """
    seeds, rates = config.retrain.seeds, config.retrain.rates
    wanted = sorted(_wanted(config, run), key=lambda item: -item[1])
    fingerprints = {lr: config.changed(**{"retrain.lr": lr}).fingerprint("retrain") for lr in rates}
    val_top1: dict[str, float] = {}
    if len(rates) > 1:
        rows = read_rows(run)
        val_top1 = dict(rows.loc[rows.status == "ok", ["point", "val_top1"]].itertuples(index=False))

    def point(method: str, budget: float, terms: str, seed: int, lr: float, structure: str, epochs: int) -> Point:
        identity = [fingerprints[lr], method, f"{budget:.9f}", seed]
        identity += [] if terms == "retraining" else [terms, epochs]
        return Point(
            method=method,
            budget=budget,
            seed=seed,
            structure=structure,
            hash=hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:16],
            terms=terms,
            lr=lr,
            epochs=epochs,
            one_of_rates=len(rates) > 1,
        )

    points: list[Point] = []
    for method, budget, terms, of_seed in wanted:
        tried = [point(method, budget, terms, seeds[0], lr, *of_seed[seeds[0]]) for lr in rates]
        points += tried
        if all(p.name in val_top1 for p in tried) or len(rates) == 1:
            best = max(tried, key=lambda p: val_top1.get(p.name, 0.0)).lr  # of equals, the one given first
            points += [point(method, budget, terms, seed, best, *of_seed[seed]) for seed in seeds[1:]]
    return points


def _wanted(config: Config, run: Folder) -> Iterator[tuple[str, float, str, dict[int, tuple[str, int]]]]:
    """(method, budget, terms, for each seed structure and epochs) of all that is known."""
    shape = load_shape(run)
    path = RemovalPath(shape, read_gates_tensors(run, shape), config.search.floors.model_dump(), config.search.round_to)
    dense, epochs, seeds = shape.full(), config.retrain.epochs, config.retrain.seeds
    yield "dense", 1.0, "retraining", dict.fromkeys(seeds, (dense.to_json(), epochs))
    for budget in config.sorted_budgets:
        share = fraction(budget, dense.macs())
        searched = path.solve(budget).to_json()
        yield "searched", share, "retraining", dict.fromkeys(seeds, (searched, epochs))
        for method in config.baselines:
            found = {seed: searched if method in FROM_SEARCH else chosen(config, run, method, share, seed) for seed in seeds}
            kept = {seed: text for seed, text in found.items() if text is not None}
            if len(kept) < len(seeds):
                continue
            if "retraining" in config.baseline_terms:
                yield method, share, "retraining", {seed: (text, epochs) for seed, text in kept.items()}
            if "compute" in config.baseline_terms and method not in FROM_SEARCH:
                longer = {
                    seed: epochs
                    + extra_epochs(config.search.epochs, dense.macs(), len(config.budgets), Structure.from_json(text).macs())
                    if text
                    else epochs
                    for seed, text in kept.items()
                }
                yield method, share, "compute", {seed: (text, longer[seed]) for seed, text in kept.items()}


def fraction(budget: Budget, dense: int) -> float:
    """A budget as a fraction of the dense model's MACs."""
    return absolute(budget, dense) / dense if isinstance(budget, str) else budget


def points_to_do(points: list[Point], run: Folder) -> list[Point]:
    """Those without an ok row."""
    rows = read_rows(run)
    done = set(rows[rows.status == "ok"].point)
    return [p for p in points if p.name not in done]


# What baselines keep is chosen once, by a worker that has weights and images, and kept in baselines/ of the run's folder.


def chosen_path(config: Config, method: str, budget: float, seed: int) -> str:
    """Where a baseline's structure is kept; all that it depends on is in the name."""
    identity = config.identity("retrain")
    key = hashlib.sha256(json.dumps([identity["search"], identity["cut"]], sort_keys=True).encode()).hexdigest()[:8]
    drawn = f"-s{seed}" if method == "random" else ""
    return f"baselines/{method}-{budget:.9f}{drawn}-{key}.json"


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
    dense = load_shape(run).full().macs()
    left: list[tuple[str, int]] = []
    for method in (m for m in config.baselines if m in RANKED):
        for seed in config.retrain.seeds if method == "random" else config.retrain.seeds[:1]:
            found = [chosen(config, run, method, fraction(budget, dense), seed) for budget in config.budgets]
            if None in found or (again and "" in found):
                left.append((method, seed))
    return left


def load_shape(run: Folder) -> Shape:
    """The dense model's sizes and costs, as the search left them, without building the model."""
    return Shape.from_dict(run.read_json("search/search.json")["shape"])
