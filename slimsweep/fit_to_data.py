"""Defaults that fit the data, at a run's first start: what nobody set follows the images and the weights.

The rules are in `slimsweep.config.fitting`; here the data set and the weights are looked at. A run that has begun keeps what
its first start recorded, so that the same command goes on with the same values.
"""

from collections.abc import Collection, Mapping
from contextlib import suppress
from typing import Any

from rich.console import Console
from torch import nn

from slimsweep.cluster.worker import data_for
from slimsweep.config import Config, Fitted, fitting_defaults
from slimsweep.data import Data
from slimsweep.errors import RefusedInput
from slimsweep.ledger.run import Run
from slimsweep.slimming.structure import image_size
from slimsweep.terminal import say
from slimsweep.training.dense_model import check_model, start_of


def fit_to_data(
    config: Config, unset: Collection[str], *, run: Run | None = None, train: int | None = None, quick: bool = False
) -> tuple[Config, dict[str, Fitted]]:
    """A configuration whose unset fields follow the data, and those that do.

    Args:
        config: the configuration, with its defaults in the fields that nobody set.
        unset: the fields that nobody set, of `slimsweep.config.FITTING`.
        run: the run that is started or planned. Once it has begun, the values are those that it recorded, and no others: an
            earlier version may have begun it with the usual defaults.
        train: training images, where the data set is not on this machine.
        quick: whether --quick was given, whose epochs count. The values of a later start without it are among those returned.
    """
    if not unset:
        return config, {}
    recorded = run.read_fitted() if run is not None and run.is_begun else None
    if recorded is not None:
        fitted = {name: one for name, one in recorded.items() if name in unset}
        return _with(config, fitted, quick), fitted
    try:
        model = check_model(config)
        data = _listed(config, model) if train is None else train
        fitted = _found(config, unset, model, data)
    except RefusedInput:  # the checks that come next say what is wrong, with all else that is
        return config, {}
    config = _with(config, fitted, quick)
    if isinstance(data, Data):
        with suppress(RefusedInput):  # as above; here the images that were listed get the batch size that was found
            data_for(config, model, listed=data)
    return config, fitted


def _with(config: Config, fitted: Mapping[str, Fitted], quick: bool) -> Config:
    if not fitted:
        return config
    config = config.changed(**{name: one.value for name, one in fitted.items()})
    return config.quick() if quick else config


def say_fitted(config: Config, fitted: Mapping[str, Fitted], console: Console) -> None:
    """Print a line per value that follows the data, with its reason; none where --quick has another value."""
    said = {name: one for name, one in fitted.items() if _plain(config.value(name)) == _plain(one.value)}
    if said:
        say(console, "These fields were not set and follow the data; a value that you set wins:")
    for name, one in said.items():
        value = ",".join(map(str, one.value)) if isinstance(one.value, (list, tuple)) else one.value
        say(console, f"  {name} {value} ({one.reason})")


def _found(config: Config, unset: Collection[str], model: nn.Module, data: Data | int) -> dict[str, Fitted]:
    """The rules of `fitting_defaults`, for a data set, or for the number of training images of one that is not here."""
    size = image_size(model)
    if isinstance(data, int):
        train, classes, names = data, config.data.num_classes, None
    else:
        train, classes, names = len(data.train), data.num_classes, data.class_names
    new_head = classes is not None and _has_new_head(config, classes, names)
    return fitting_defaults(config, unset, train=train, side=min(size[1:]), new_head=new_head)


def _listed(config: Config, model: nn.Module) -> Data:
    """The data set, whatever batch size it turns out to fill."""
    return data_for(config.model_copy(update={"data": config.data.model_copy(update={"batch_size": 1})}), model)


def _has_new_head(config: Config, classes: int, names: list[str] | None) -> bool:
    weights = config.model.pretrained or config.model.checkpoint
    return bool(weights and classes and start_of(config, classes, names).new_head)


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value
