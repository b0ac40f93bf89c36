"""Checks before any cluster time is spent: that the settings work together."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

from slimsweep.cluster.cluster import check_placement, local_cluster
from slimsweep.cluster.latency_job import check_room
from slimsweep.cluster.worker import as_of_probe, data_for, probe_for
from slimsweep.config import Config, ConfigError, all_at_once
from slimsweep.data import Data, check_data, check_more_labels, title
from slimsweep.errors import RefusedInput
from slimsweep.latency.calls import check_device
from slimsweep.ledger.cuts import table_of
from slimsweep.ledger.planning import exact_fraction
from slimsweep.methods import check_method
from slimsweep.methods.choice import Settings
from slimsweep.slimming.budget import Budget, BudgetError
from slimsweep.slimming.cost import COSTS
from slimsweep.slimming.gates import add_gates
from slimsweep.slimming.removal_path import RemovalPath, equal_gates, size_multiple
from slimsweep.training.backbone import check_embedding, families_to_cut
from slimsweep.training.dense_model import check_model, start_of
from slimsweep.training.teachers import check_teachers


def check(config: Config) -> list[str]:
    """Refuse a model, a data set, budgets or workers that cannot work together.

    Returns:
        What whoever starts the run should read: files of the data set that are not used, classes that a split lacks,
        what is done to the weights of a checkpoint or of a teacher.

    Raises:
        ConfigError: says in one sentence which setting is wrong, or in a numbered line each which ones are.
        ValueError: the model cannot be cut, or not to these budgets.
    """
    model = check_model(config)
    refused: list[RefusedInput] = []
    data: Data | None = None
    with _kept(refused):
        check_data(config)
        data = data_for(config, model)
        check_more_labels(data)
    with _kept(refused):
        check_cuts(config, model)
    with _kept(refused):
        check_latency(config)
    if len(refused) > 1:
        raise ConfigError(all_at_once([str(problem) for problem in refused]))
    if data is None or refused:
        raise refused[0]
    start = start_of(config, data.num_classes, data.class_names)
    if config.dense.epochs == 0 and start.new_head:
        raise ConfigError(
            f"dense.epochs is 0, but the weights of model.{'checkpoint' if config.model.checkpoint else 'pretrained'} "
            f"{start.new_head} of {title(config)}: set dense.epochs, such as 30, to train the dense model on them"
        )
    of_probe: list[str] = []
    if config.backbone:
        check_embedding(config, model)
        if (probe := probe_for(config, model)) is not None:
            check_more_labels(probe)
            of_probe = [f"probe: {as_of_probe(note)}" for note in probe.notes]
    of_teachers = check_teachers(config, model, data)
    if (cluster := local_cluster()) is not None:
        check_placement(config, cluster)
    return [*data.notes, *of_probe, *start.notes, *of_teachers]


@contextmanager
def _kept(refused: list[RefusedInput]) -> Iterator[None]:
    """What is refused inside goes into the list, so that what else is wrong is looked for too."""
    try:
        yield
    except RefusedInput as problem:
        refused.append(problem)


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
        ConfigError: says in one sentence which setting is wrong.
        ValueError: the model cannot be cut, or not to these budgets.
    """
    settings = config.search
    families = families_to_cut(config, model)
    shape = add_gates(model, settings.granularity, families, settings.token_gate).shape
    # The order in which gates are removed is not known yet, but the smallest model is the same for every order.
    path = RemovalPath(shape, equal_gates(shape), settings.floors.model_dump(), settings.round_to, depth=settings.depth)
    dense = shape.full().macs()
    budgets: list[Budget] = []
    for given in config.budgets:
        budget = Budget.parse(given)
        if budget.is_latency:  # whether it can be met is known once the cut models were timed
            budgets.append(budget)
            continue
        cost = COSTS[budget.unit]
        whole = cost.of_dense(shape)
        if budget.limit(whole) >= whole:
            raise ConfigError(f"budget {given!r} is not below the dense model's {cost.text(whole)}: take a smaller one")
        path.solve(budget)
        budgets.append(budget)
    for shares in config.shares:
        try:
            kept = path.shares(shares).macs()
        except BudgetError as problem:
            raise ConfigError(f"shares holds {shares}, but {problem}; keep more, or lower search.floors") from problem
        except ValueError as problem:
            raise ConfigError(f"shares holds {shares}, but {problem}; leave that family out") from problem
        if kept == dense:
            raise ConfigError(f"shares holds {shares}, which keeps the whole model: take smaller shares")
        budgets.append(Budget(exact_fraction(kept, dense)))
    common = Settings(
        granularity=settings.granularity,
        families=families,
        floors=settings.floors.model_dump(),
        depth=settings.depth,
        round_to=size_multiple(shape, settings.round_to),
    )
    for method in config.baselines:
        check_method(method, model, common, budgets)
