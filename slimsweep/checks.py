"""Checks before any cluster time is spent: that the settings work together."""

import os
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import nn

from slimsweep.cluster.cluster import check_placement, local_cluster
from slimsweep.cluster.latency_job import check_room
from slimsweep.cluster.worker import as_of_probe, data_for, probe_for
from slimsweep.config import Config, ConfigError, Family, Refusals, refused_places
from slimsweep.data import Data, check_classes, check_data, check_more_labels, title
from slimsweep.latency.calls import check_device
from slimsweep.ledger.cuts import table_of
from slimsweep.ledger.planning import exact_fraction
from slimsweep.methods import check_method
from slimsweep.methods.choice import Settings
from slimsweep.slimming.budget import Budget, BudgetError, BudgetLike
from slimsweep.slimming.cost import COSTS
from slimsweep.slimming.gates import add_gates
from slimsweep.slimming.removal_path import RemovalPath, equal_gates, size_multiple
from slimsweep.slimming.shape import Shape
from slimsweep.trackers import check_trackers
from slimsweep.training.backbone import check_embedding, families_to_cut
from slimsweep.training.dense_model import check_model, check_values, start_of
from slimsweep.training.evaluate import computes_bf16
from slimsweep.training.teachers import check_teachers


def check(config: Config, begun: bool = False) -> list[str]:
    """Refuse a model, a data set, budgets, teachers or workers that cannot work together, all that is wrong at once.

    Args:
        config: the configuration.
        begun: whether an earlier start of its run trained on these images; else their labels must have no gaps.

    Returns:
        What whoever starts the run should read: files of the data set that are not used, classes that a split lacks,
        what is done to the weights of a checkpoint or of a teacher.

    Raises:
        ConfigError: says in one sentence which setting is wrong, or in a numbered line each which ones are.
        RefusedInput: the model cannot be cut, or not to these budgets.
    """
    refusals = Refusals()
    lost = set()  # fields whose files are not there: what needs them is not looked at
    for field, problem in refused_places(config):
        lost.add(field)
        with refusals.kept():
            raise problem
    with refusals.kept():
        check_output(config)
    with refusals.kept():
        check_trackers(config)
    if (cluster := local_cluster()) is not None:
        with refusals.kept():
            check_placement(config, cluster)
    model: nn.Module | None = None
    data: Data | None = None
    notes: list[str] = []
    if "model.checkpoint" not in lost:
        with refusals.kept():
            model = check_model(config)
            check_values(config)
    if "data.root" not in lost:
        with refusals.kept():
            data = _data(config, model, begun)
    with refusals.kept():
        check_latency(config)
    if model is not None:
        with refusals.kept():
            check_cuts(config, model)
        if data is not None:
            with refusals.kept():
                notes += [*data.notes, *_start(config, data)]
        if config.backbone:
            with refusals.kept():
                check_embedding(config, model)
            if "probe.root" not in lost:
                with refusals.kept():
                    notes += _probe(config, model)
    if "teacher.checkpoint" not in lost:
        with refusals.kept():
            notes += check_teachers(config, model, data)
    refusals.raise_all()
    return [*notes, *filter(None, [config.without_effect(), config.nothing_to_stop(), _no_bf16(config)])]


def check_output(config: Config) -> None:
    """Refuse a local output folder that cannot be made or written, before anything is done; whether a store can be written is
    seen when the run is begun.

    Raises:
        ConfigError: says which folder it is.
    """
    if "://" in config.output:
        return
    asked = Path(config.output) / config.name
    there = next(folder for folder in (asked, *asked.parents) if os.path.exists(folder))  # the root always does
    if not there.is_dir():
        raise ConfigError(f"output: nothing can be written to {asked}, as {there} is a file; give another folder")
    if not os.access(there, os.W_OK | os.X_OK):
        raise ConfigError(f"output: nothing can be written to {asked}, as {there} may not be written; give another folder")


def _data(config: Config, model: nn.Module | None, begun: bool) -> Data | None:
    """The data set, with its labels checked; where the model was refused, it is only looked whether it is there."""
    check_data(config)
    if model is None:
        return None
    data = data_for(config, model)
    if not begun:
        check_classes(data)
    check_more_labels(data)
    return data


def _start(config: Config, data: Data) -> tuple[str, ...]:
    """What is done to the weights that training starts from."""
    start = start_of(config, data.num_classes, data.class_names)
    if config.dense.epochs == 0 and start.new_head:
        raise ConfigError(
            f"dense.epochs is 0, but the weights of model.{'checkpoint' if config.model.checkpoint else 'pretrained'} "
            f"{start.new_head} of {title(config)}: set dense.epochs, such as 30, to train the dense model on them"
        )
    return start.notes


def _no_bf16(config: Config) -> str:
    """What is said where workers like this machine cannot compute in bf16; empty where they can, or need not."""
    if config.resources.gpus_per_worker or not config.wants_bf16() or computes_bf16(torch.device("cpu")):
        return ""
    return (
        "amp is bf16, for which this processor has no instructions (AVX-512): on such workers float32 is used, which is faster"
    )


def _probe(config: Config, model: nn.Module) -> list[str]:
    """What is said of the probe's images."""
    probe = probe_for(config, model)
    if probe is None:
        return []
    check_more_labels(probe)
    return [f"probe: {as_of_probe(note)}" for note in probe.notes]


def check_latency(config: Config) -> None:
    """Refuse a table of latencies that cannot be read, and a device, runtime or number of threads that is not there.

    Raises:
        RefusedInput: says in one sentence which setting is wrong.
    """
    if config.budgets_in_ms:
        table_of(config)
    if not config.times_models or (cluster := local_cluster()) is None:  # on another cluster a worker says it
        return
    check_device(config.latency_setting)
    check_room(config, cluster)


def check_cuts(config: Config, model: nn.Module) -> None:
    """Refuse a model that cannot be cut, and budgets, shares and baselines that do not fit it.

    Args:
        model: the dense model; it may be on the meta device, since only its sizes are used.

    Raises:
        ConfigError: says in one sentence which setting is wrong, or in a numbered line each which ones are.
        RefusedInput: the model cannot be cut, or not to one of these budgets.
    """
    settings = config.search
    families = families_to_cut(config, model)
    shape = add_gates(model, settings.granularity, families, settings.token_gate).shape
    # The order in which gates are removed is not known yet, but the smallest model is the same for every order.
    path = RemovalPath(shape, equal_gates(shape), settings.floors.model_dump(), settings.round_to, depth=settings.depth)
    dense = shape.full().macs()
    budgets: list[Budget] = []
    refusals = Refusals()
    for given in config.budgets:
        with refusals.kept():
            budgets.append(_budget(given, path, shape))
    for shares in config.shares:
        with refusals.kept():
            budgets.append(_budget_of_shares(shares, path, dense))
    common = Settings(
        granularity=settings.granularity,
        families=families,
        floors=settings.floors.model_dump(),
        depth=settings.depth,
        round_to=size_multiple(shape, settings.round_to),
    )
    for method in config.baselines:
        with refusals.kept():
            check_method(method, model, common, budgets)
    refusals.raise_all()


def _budget(given: BudgetLike, path: RemovalPath, shape: Shape) -> Budget:
    """A budget of the configuration, which must be below the dense model's cost and within reach."""
    budget = Budget.parse(given)
    if budget.is_latency:  # whether it can be met is known once the cut models were timed
        return budget
    cost = COSTS[budget.unit]
    whole = cost.of_dense(shape)
    if budget.limit(whole) >= whole:
        raise ConfigError(f"budget {given!r} is not below the dense model's {cost.text(whole)}: take a smaller one")
    path.solve(budget)
    return budget


def _budget_of_shares(shares: Mapping[Family, float], path: RemovalPath, dense: int) -> Budget:
    """The budget in MACs that shares of the families come to.

    Args:
        dense: MACs of the dense model.
    """
    try:
        kept = path.shares(shares).macs()
    except BudgetError as problem:
        raise ConfigError(f"shares holds {shares}, but {problem}; keep more, or lower search.floors") from problem
    except ValueError as problem:
        raise ConfigError(f"shares holds {shares}, but {problem}; leave that family out") from problem
    if kept == dense:
        raise ConfigError(f"shares holds {shares}, which keeps the whole model: take smaller shares")
    return Budget(exact_fraction(kept, dense))
