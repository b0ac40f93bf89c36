"""Cuts of a dense model before any training, for the studies that measure what they keep: four ways of three rankings."""

import copy
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import pandas as pd
import torch
from torch import Tensor, nn

from slimsweep import activation_scores, add_gates, macs, principal_axes, repair, slim
from slimsweep.methods.taylor import taylor_scores
from slimsweep.methods.weight_squares import attention_squares, mlp_squares
from slimsweep.slimming.removal_path import RemovalPath, Scores

RANKINGS = {
    "magnitude": "squared weights",
    "taylor": "squared gate x gradient",
    "activation": "activation energy, no labels",
}
WAYS = {(False, False): "alone", (False, True): "repair", (True, False): "axes", (True, True): "axes + repair"}


class Basis(NamedTuple):
    """The model that is cut: the dense one, or the same on principal axes."""

    model: Any
    path: dict[str, RemovalPath]  # for each ranking
    seconds: float  # that the axes took


def cuts(
    dense: nn.Module,
    budgets: Sequence[float],
    images: Tensor,
    some: Tensor,
    labels: Tensor,
    *,
    floors: Mapping[str, float],
    pace: Mapping[str, float],
    families: Sequence[str] | None = None,
    seed: int = 0,
    with_classes: Callable[[nn.Module], nn.Module] = lambda model: model,
    done: Callable[[Mapping[str, Any]], bool] = lambda row: False,
) -> Iterator[tuple[dict[str, Any], nn.Module]]:
    """Each cut (ranking, axes, repair, budget, macs; seconds that axes and repair took) with its model.

    Args:
        dense: left alone.
        budgets: fractions of the dense model's MACs, in the order in which they are made.
        images: (N, C, H, W), what axes and repair look at; no labels.
        some, labels: (n, C, H, W) and (n,), what gates are ranked by: activation takes the images alone.
        floors, pace: of each family, as RemovalPath takes them.
        families: of gates; None for all that the model has.
        seed: of the vectors that activation draws for tokens.
        with_classes: the model with a head for the labels, for taylor's loss, where the model has none itself.
        done: whether a cut with this ranking, axes, repair and budget is not needed.
    """
    bases: dict[bool, Basis] = {}

    def basis(axes: bool) -> Basis:
        if axes not in bases:
            began = time.perf_counter()
            model = principal_axes(dense, images) if axes else dense
            seconds = time.perf_counter() - began if axes else 0.0
            scores = scores_of(model, some, labels, families, seed, with_classes)
            shape = add_gates(model, families=families).shape
            paths = {ranking: RemovalPath(shape, scores[ranking], floors, 1, pace) for ranking in RANKINGS}
            bases[axes] = Basis(model, paths, seconds)
        return bases[axes]

    for budget in budgets:
        for axes in (True, False):
            for ranking in reversed(RANKINGS):
                row = {"ranking": ranking, "axes": axes, "budget": float(budget)}
                wanted = [repaired for repaired in (False, True) if not done({**row, "repair": repaired})]
                if not wanted:
                    continue
                model, path, seconds = basis(axes)
                cut = slim(model, path[ranking].solve(budget))
                row["macs"] = macs(cut)
                if False in wanted:
                    yield {**row, "repair": False, "seconds": seconds}, cut
                if True in wanted:
                    began = time.perf_counter()
                    repaired = repair(cut, model, images)
                    yield {**row, "repair": True, "seconds": seconds + time.perf_counter() - began}, repaired


def scores_of(
    model: Any,
    some: Tensor,
    labels: Tensor,
    families: Sequence[str] | None,
    seed: int,
    with_classes: Callable[[nn.Module], nn.Module],
) -> dict[str, Scores]:
    """Scores of the gates of each family by each ranking."""
    gated = add_gates(model, families=families)
    heads = gated.shape.layers[0].heads, gated.shape.layers[0].head_dim
    taylor = taylor_scores(with_classes(copy.deepcopy(model)), some, labels, families=families)
    squares = {
        "attention": [attention_squares(block, *heads) for block in model.blocks],
        "mlp": [mlp_squares(block) for block in model.blocks],
    }
    if "token" in taylor:  # a token has no weights, so magnitude takes the tokens that taylor takes
        squares["token"] = list(taylor["token"])
    magnitude = {family: squares[family] for family in taylor}
    return {"magnitude": magnitude, "taylor": taylor, "activation": activation_scores(gated, some, seed)}


def table_of_cuts(
    cuts_made: pd.DataFrame, cell: Callable[[pd.Series], str], rankings: Mapping[str, str] = RANKINGS
) -> list[str]:
    """Lines of Markdown: those rankings and ways that were measured x budgets, the largest first.

    Args:
        cuts_made: one row per cut.
        cell: what stands in the table for a row; "not run" stands where there is none.
        rankings: what is said of each.
    """
    budgets = sorted(cuts_made["budget"].unique(), reverse=True)
    lines = [
        "| ranked by | cut | " + " | ".join(f"{100 * budget:g} %" for budget in budgets) + " |",
        "| --- | --- |" + " ---: |" * len(budgets),
    ]
    for ranking, says in rankings.items():
        for (axes, repaired), way in WAYS.items():
            mine = cuts_made[
                (cuts_made["ranking"] == ranking) & (cuts_made["axes"] == axes) & (cuts_made["repair"] == repaired)
            ]
            of = {row["budget"]: cell(row) for _, row in mine.iterrows()}
            if not of:
                continue  # of a measurement that was stopped
            lines.append(
                f"| {ranking} ({says}) | {way} | " + " | ".join(of.get(budget, "not run") for budget in budgets) + " |"
            )
    return lines


def single_thread() -> None:
    """Seconds are those of one CPU core, whatever else the machine has."""
    torch.set_num_threads(1)
