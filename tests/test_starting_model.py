"""What a point's retraining starts from: cut on principal axes and repaired, where its method and the settings ask for it."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from zoo import difference

from slimsweep import principal_axes, slim
from slimsweep.cluster.starting_model import starting_model
from slimsweep.cluster.worker import data_for
from slimsweep.data import Data, training_images
from slimsweep.ledger.planning import plan_points
from slimsweep.ledger.points import Point
from slimsweep.ledger.run import Run
from slimsweep.ledger.searched_model import load_searched
from slimsweep.saved_models import load
from slimsweep.slimming.structure import Structure

CPU = torch.device("cpu")


@pytest.fixture
def data(finished: Run) -> Data:
    return data_for(finished.config, load(finished.dense))


def distance(one: nn.Module, other: nn.Module, images: Tensor) -> float:
    """Mean squared difference of the outputs, relative to their variance."""
    with torch.no_grad():
        a, b = one.eval()(images), other.eval()(images)
    return float((a - b).square().sum() / (b - b.mean(0)).square().sum())


def points(run: Run, method: str) -> list[Point]:
    return [point for point in plan_points(run) if point.method == method]


def with_settings(run: Run, **settings: bool | int) -> Run:
    return Run(run.folder, run.config.changed(**{name.replace("__", "."): value for name, value in settings.items()}))


def test_a_searched_point_starts_nearer_to_the_searched_model_than_its_plain_cut(finished: Run, data: Data) -> None:
    dense = load(finished.dense)
    gated = load_searched(finished, dense)
    images, _ = training_images(data, seed=99)
    for point in points(finished, "searched"):
        plain = slim(gated, Structure.from_json(point.structure))
        start = starting_model(finished, point, dense, data, CPU)
        assert start.repair_seconds > 0
        assert start.model.structure == Structure.from_json(point.structure)
        assert distance(start.model, gated, images) < 0.8 * distance(plain, gated, images)


def test_without_axes_and_repair_it_starts_from_the_plain_cut(finished: Run, data: Data) -> None:
    dense = load(finished.dense)
    gated, point = load_searched(finished, dense), points(finished, "searched")[0]
    off = with_settings(finished, search__axes=False, retrain__repair=False)
    start = starting_model(off, point, dense, data, CPU)
    assert start.repair_seconds == 0
    assert difference(start.model, slim(gated, Structure.from_json(point.structure))) == 0


@pytest.mark.parametrize(("epochs", "times"), [(2, 1), (0, 0)])
def test_axes_are_taken_again_only_where_the_search_has_trained_since(
    finished: Run, data: Data, monkeypatch: pytest.MonkeyPatch, epochs: int, times: int
) -> None:
    dense, taken = load(finished.dense), []

    def counted(*args: Any) -> nn.Module:
        taken.append(args)
        return principal_axes(*args)

    monkeypatch.setattr("slimsweep.cluster.starting_model.principal_axes", counted)
    starting_model(with_settings(finished, search__epochs=epochs), points(finished, "searched")[0], dense, data, CPU)
    assert len(taken) == times


def test_a_cut_of_a_larger_point_is_repaired_towards_that_point(finished: Run, data: Data) -> None:
    dense = load(finished.dense)
    larger, smaller = points(finished, "searched")
    whole = load(finished.models / larger.name)
    images, _ = training_images(data, seed=99)
    start = starting_model(finished, replace(smaller, start=larger.name), dense, data, CPU)
    plain = slim(whole, Structure.from_json(smaller.structure))
    assert distance(start.model, whole, images) < distance(plain, whole, images)


def test_points_of_other_rates_and_seeds_start_from_the_same_model_without_another_repair(
    finished: Run, data: Data, monkeypatch: pytest.MonkeyPatch
) -> None:
    dense, point = load(finished.dense), points(finished, "searched")[0]
    first = starting_model(finished, point, dense, data, CPU)

    def again(*arguments: object) -> None:
        raise AssertionError("it was cut and repaired again")

    monkeypatch.setattr("slimsweep.cluster.starting_model.cut_and_repaired", again)
    second = starting_model(Run(finished.folder), replace(point, seed=5, lr=1e-5), dense, data, CPU)
    assert second.repair_seconds == pytest.approx(first.repair_seconds)
    assert second.model.structure == first.model.structure
    for name, tensor in first.model.state_dict().items():
        assert torch.equal(tensor, second.model.state_dict()[name])


def test_other_cuts_other_settings_and_damaged_files_are_made_anew(finished: Run, data: Data) -> None:
    dense, (point, smaller) = load(finished.dense), points(finished, "searched")
    first = starting_model(finished, point, dense, data, CPU)
    path = finished.start_path(point.structure, True)
    others = {
        path,
        finished.start_path(smaller.structure, True),
        finished.start_path(point.structure, False),
        with_settings(finished, retrain__repair=False).start_path(point.structure, True),
        with_settings(finished, search__axes=False).start_path(point.structure, True),
    }
    assert len(others) == 5
    assert list(finished.folder.files("starts")) == [path.split("/")[1]]
    finished.folder.write_bytes(path, finished.folder.read_bytes(path)[:100])
    again = starting_model(finished, point, dense, data, CPU)
    assert "is damaged" in finished.damaged[path]
    assert difference(again.model, first.model) == 0
    assert finished.start(path) is not None


def test_baselines_are_cut_as_published_but_for_the_one_that_shares_axes_and_repair(finished: Run, data: Data) -> None:
    dense = load(finished.dense)
    images, _ = training_images(data, seed=99)
    point = points(finished, "searched")[-1]
    published, repaired = (
        starting_model(finished, replace(point, method=method), dense, data, CPU) for method in ("taylor", "taylor-repaired")
    )
    assert difference(published.model, slim(dense, Structure.from_json(point.structure))) == 0
    assert published.repair_seconds == 0
    assert distance(repaired.model, dense, images) < distance(published.model, dense, images)


def test_rows_say_how_long_repair_took(finished: Run) -> None:
    rows = finished.rows.set_index("method")
    assert (rows.loc[["searched"]].repair_seconds > 0).all()
    assert (rows.loc[["dense"]].repair_seconds == 0).all()
    assert finished.json("search/search.json", "axes_seconds")["axes_seconds"] > 0
