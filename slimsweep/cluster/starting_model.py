"""The model that a point's retraining starts from, cut from the dense, the searched or a larger point's model."""

import time
from typing import NamedTuple

import torch
from torch import nn

from slimsweep import methods
from slimsweep.data import Data, calibration_images
from slimsweep.ledger.points import Point
from slimsweep.ledger.run import Run
from slimsweep.ledger.searched_model import load_searched
from slimsweep.saved_models import load
from slimsweep.slimming.axes import principal_axes, strongest_kept
from slimsweep.slimming.gates import GatedModel, fold_gates
from slimsweep.slimming.reconstruction import repair
from slimsweep.slimming.structure import Structure

SECONDS = "repair seconds"  # beside the tensors of a model that is kept


class StartingModel(NamedTuple):
    """A model to be retrained."""

    model: nn.Module
    repair_seconds: float  # that principal axes and repair took; 0 where there were none


def starting_model(run: Run, point: Point, dense: nn.Module, data: Data, device: torch.device) -> StartingModel:
    """The model of a point before its retraining.

    What was cut from the dense or the searched model and repaired is kept in the run's folder: the points of other learning
    rates and seeds, and a point that goes on from a checkpoint, start from the same.

    Args:
        dense: the run's dense model, left as it is. The dense point starts from it: it shows what retraining alone gives.
        device: where axes and repair are computed.
    """
    method = methods.METHODS[point.method]
    source = dense
    if point.start:
        source = load(run.models / point.start)
    elif method.from_searched:
        source = load_searched(run, dense)
    structure = Structure.from_json(point.structure)
    if not method.repaired:
        return StartingModel(methods.starting_model(method.name, source, structure, point.seed), 0.0)
    if point.start or not point.epochs:  # no other point starts from the same
        return cut_and_repaired(run, source.to(device), structure, data)
    path = run.start_path(point.structure, method.from_searched)
    if (known := run.start(path)) is not None:
        seconds = float(known.pop(SECONDS))
        small = methods.starting_model("searched", source, structure, run.config.seed)
        small.load_state_dict(known)
        return StartingModel(small, seconds)
    start = cut_and_repaired(run, source.to(device), structure, data)
    run.write_start(path, {**start.model.state_dict(), SECONDS: torch.tensor(start.repair_seconds)})
    return start


def cut_and_repaired(run: Run, source: nn.Module, structure: Structure, data: Data) -> StartingModel:
    """Cut a model to a structure on the principal axes of its own weights (search.axes), and repair it (retrain.repair).

    Heads are turned right before the cut, for training moves their axes: the strongest lie at the dims that stay. The axes
    that the search began with are taken where it trained nothing since.

    Args:
        source: the dense, the gated, or a larger point's model, on the device to compute on; left as it is.
    """
    config, began = run.config, time.perf_counter()
    if not (config.search.axes or config.retrain.repair):
        return StartingModel(methods.starting_model("searched", source, structure, config.seed), 0.0)
    turned = fold_gates(source) if isinstance(source, GatedModel) else source
    on_axes = isinstance(source, GatedModel) and not config.search.epochs
    if config.retrain.repair or not on_axes:
        images = calibration_images(data, config.seed, source)
    if config.search.axes:
        turned = strongest_kept(turned, structure) if on_axes else principal_axes(turned, images, structure)
    small = methods.starting_model("searched", turned, structure, config.seed)
    if config.retrain.repair:
        small = repair(small, source, images, target=config.retrain.repair_target)
    return StartingModel(small, time.perf_counter() - began)
