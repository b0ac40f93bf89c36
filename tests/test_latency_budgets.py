"""Budgets in milliseconds: written, timed and met, with clocks that the tests set."""

import importlib.util
import itertools
import json
import math
import shutil
from collections.abc import Callable, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import timm
import torch
from conftest import changed
from test_quiet_timing import REFERENCE, Faked
from zoo import close_gates, difference, images, last_of, random_gates, small_vit

from slimsweep import add_gates, load, save, slim, solve
from slimsweep.checks import check_cuts
from slimsweep.cluster import latency_job
from slimsweep.cluster.choose_job import structure_of_try
from slimsweep.cluster.cluster import Cluster
from slimsweep.cluster.retrain_job import known_before, why_no_structure
from slimsweep.cluster.worker import job_arguments
from slimsweep.config import Config, ConfigError
from slimsweep.errors import RefusedInput
from slimsweep.latency import calls as calls_module
from slimsweep.latency.calls import DeviceTimer, about, check_device
from slimsweep.latency.curve import (
    DENSE,
    LatencyCurve,
    branch_cost,
    curve_of_times,
    measure_curve,
    prefix_lengths,
    progress,
    solve_ms,
    solved_by_curve,
)
from slimsweep.latency.from_table import table_of_times
from slimsweep.latency.onnx_files import session, write_reference
from slimsweep.latency.quiet_timing import Measured, Timed, time_rounds
from slimsweep.latency.setting import LatencySetting
from slimsweep.latency.table import Time, write_times
from slimsweep.ledger.planning import make_plan, pace_is_open, pace_key, plan_points, to_time
from slimsweep.ledger.points import is_in_ms
from slimsweep.ledger.run import Run
from slimsweep.methods.by_scores import structures_by_scores
from slimsweep.methods.choice import Choice
from slimsweep.slimming.budget import Budget, BudgetError
from slimsweep.slimming.removal_path import RemovalPath
from slimsweep.slimming.structure import Structure

FLOORS = {"attention": 0.1, "mlp": 0.1, "token": 0.1}


def path_of(depth: bool = True, seed: int = 0, **arguments: object) -> RemovalPath:
    gated = add_gates(small_vit(**arguments))
    return RemovalPath(gated.shape, random_gates(gated, seed), FLOORS, depth=depth)


def seconds_of(structure: Structure) -> float:
    """A device on which each branch costs time of its own, and rows are computed four at a time."""
    seconds = 2e-4
    for sizes in structure.layer_sizes():
        rows = -(-(sizes.tokens + 1) // 4)
        seconds += (sizes.dims > 0) * (4e-4 + 4e-6 * rows * sizes.dims) + (sizes.units > 0) * (3e-4 + 4e-6 * rows * sizes.units)
    return seconds


class FakeDevice:
    """Times structures by a clock that moves as `seconds` says; `sessions` are the names that were timed together."""

    def __init__(self, seconds: Callable[[Structure], float] = seconds_of, **busy: object) -> None:
        self.seconds, self.machine = seconds, Faked(**busy)
        self.sessions: list[list[str]] = []

    def __call__(self, structures: Mapping[str, Structure]) -> Measured:
        self.sessions.append(list(structures))
        costs = {name: self.seconds(structure) for name, structure in structures.items()}
        calls = {name: lambda cost=cost: self.machine.work(cost) for name, cost in costs.items()}
        return time_rounds(calls, lambda: self.machine.work(REFERENCE), machine=self.machine, min_seconds=0.02, rounds=5)


# How they are written.


@pytest.mark.parametrize(
    ("written", "amount", "relative", "text", "label"),
    [
        ("12ms", 12.0, False, "12ms", "12 ms"),
        ("12 ms", 12.0, False, "12ms", "12 ms"),
        (".4MS", 0.4, False, "0.4ms", "0.4 ms"),
        ("0.4 ms", 0.4, False, "0.4ms", "0.4 ms"),
        ("1.5e1ms", 15.0, False, "15ms", "15 ms"),
        ("40% ms", 0.4, True, "40% ms", "40 % of ms"),
        ("12.3%ms", 0.123, True, "12.3% ms", "12.3 % of ms"),
    ],
)
def test_a_number_of_ms_is_absolute_and_a_percentage_relative(written, amount, relative, text, label):
    budget = Budget.parse(written)
    assert (budget.amount, budget.relative, budget.unit) == (amount, relative, "ms")
    assert (str(budget), budget.label) == (text, label)
    assert Budget.parse(text) == budget
    assert Budget.parse(12, "ms") == Budget(12.0, "ms", relative=False)  # as a limit of latency is given
    assert budget.limit(10_000_000) == round(amount * 1e7 if relative else amount * 1e6)  # nanoseconds


@pytest.mark.parametrize(
    ("written", "said"),
    [
        ("0ms", "no amount that a model can have"),
        ("2Kms", "take no suffix: write it as '12ms' or '40% ms'"),
        ("120% ms", "not a fraction between 0 and 1"),
        ("12 s", "is neither"),
    ],
)
def test_what_is_no_budget_in_ms_is_refused(written, said):
    with pytest.raises(BudgetError, match=said):
        Budget.parse(written)


def test_a_path_that_was_not_timed_has_no_ms():
    gated = add_gates(small_vit())
    with pytest.raises(BudgetError, match="milliseconds are measured, and this path has none: time it first"):
        solve(gated, "50% ms")


# The curve.


@pytest.mark.parametrize("depth", [False, True])
def test_the_prefixes_that_are_timed_are_both_ends_and_evenly_between_them(depth):
    path = path_of(depth)
    lengths = prefix_lengths(path, 17)
    assert lengths == prefix_lengths(path_of(depth), 17)  # another machine finds the same
    assert (lengths[0], lengths[-1]) == (0, path.length)
    assert len({path.prefix(length).id for length in lengths}) == len(lengths) <= 17
    left = progress(path)[lengths]
    largest_step = -np.diff(progress(path)).min()
    assert (-np.diff(left)).max() <= (left[0] - left[-1]) / 16 + largest_step
    if depth:  # the branches that leave at the end of the path are seen
        branches = [sum((s.dims > 0) + (s.units > 0) for s in path.prefix(n).layer_sizes()) for n in lengths]
        assert sorted(set(branches), reverse=True) == branches[-len(set(branches)) :]


def test_few_steps_are_timed_once_each():
    gated = add_gates(small_vit(depth=1, num_heads=2), "head", ["attention"])
    path = RemovalPath(gated.shape, gated.gates)
    assert prefix_lengths(path) == list(range(path.length + 1)) == [0, 1, 2]


def test_the_curve_is_monotone_whatever_the_noise_and_a_path_takes_it():
    path = path_of()
    lengths = prefix_lengths(path)
    noise = np.random.default_rng(0).normal(1, 0.05, len(lengths))
    curve = LatencyCurve(lengths, [1e3 * seconds_of(path.prefix(n)) * e for n, e in zip(lengths, noise, strict=True)])
    found = curve.ns_of_path(path)
    assert found.dtype == np.int64
    assert (np.diff(found) <= 0).all()
    true = np.array([1e9 * seconds_of(path.prefix(n)) for n in lengths])
    assert np.abs(found[lengths] / true - 1).max() < 0.1
    path.take_latency(curve)
    kept = path.solve("50% ms")
    assert seconds_of(kept) <= 0.55 * seconds_of(path.prefix(0))
    assert path.solve("60% ms").holds(kept)
    with pytest.raises(BudgetError, match=r"budget '0.01ms' cannot be reached: .* of its ms \(\d.*ms\)"):
        path.solve("0.01ms")
    assert LatencyCurve.from_dict(json.loads(json.dumps(curve.to_dict()))).to_dict() == curve.to_dict()


# Budgets are met.


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("depth", [False, True])
def test_a_budget_is_met_within_five_percent_and_never_exceeded(seed, depth):
    path, device = path_of(depth, seed), FakeDevice(slow=lambda now: 1 + 0.01 * math.sin(50 * now))
    curve = measure_curve(path, device)
    dense = curve.ms[0]
    least = 1e3 * seconds_of(path.prefix(path.length))
    budgets = [
        Budget.parse(text) for text in ("90% ms", "70% ms", f"{0.6 * dense:.4f}ms", f"{least + 0.2 * (dense - least):.4f}ms")
    ]
    found = solve_ms(path, curve, budgets, device)
    structures = []
    for budget, one in zip(budgets, found, strict=True):
        assert one.length is not None, one.error
        limit = budget.amount * one.timed.ms_dense if budget.relative else budget.amount
        assert one.timed.ms <= limit
        structures.append(path.prefix(one.length))
        # Within 5 %, where a step of the path is no longer than that.
        before = 1e3 * seconds_of(path.prefix(one.length - 1))
        assert one.timed.ms >= 0.95 * limit or before > 0.98 * limit
        assert one.timed.ms == pytest.approx(1e3 * seconds_of(structures[-1]), rel=0.02)
        assert one.timed.busy == ""
    assert all(larger.holds(smaller) for larger, smaller in itertools.pairwise(structures))
    assert all(DENSE in names for names in device.sessions)  # whose drift is seen beside each try
    assert len(device.sessions) <= 10


def test_the_curve_is_corrected_where_the_machine_is_slower_than_it_was():
    path = path_of()
    curve = measure_curve(path, FakeDevice())
    slower = FakeDevice(lambda structure: 1.6 * seconds_of(structure))
    dense = 1.6 * curve.ms[0]
    for budget in (Budget.parse("50% ms"), Budget.parse(f"{dense / 2:.5f}ms")):
        (one,) = solve_ms(path, curve, [budget], slower)
        assert 0.95 * dense / 2 <= one.timed.ms <= dense / 2


def test_budgets_that_cannot_be_reached_name_the_least_and_the_others_are_met():
    path, device = path_of(), FakeDevice()
    curve = measure_curve(path, device)
    unreachable, reached, whole = solve_ms(path, curve, [Budget.parse(text) for text in ("0.1ms", "50% ms", "90ms")], device)
    least = 1e3 * seconds_of(path.prefix(path.length))
    assert unreachable.length is None
    assert unreachable.error.startswith(
        f"budget '0.1ms' cannot be reached: the least that this model was timed at is {least:.4g} ms"
    )
    assert reached.length is not None
    assert whole.error.startswith("budget '90ms' is not below the dense model's")


def test_a_busy_machine_is_named():
    path, device = path_of(), FakeDevice(core=0.5)
    (one,) = solve_ms(path, measure_curve(path, device), [Budget.parse("50% ms")], device)
    assert "waited for a core for 50 % of its time" in one.timed.busy


def test_noise_does_not_turn_the_order_of_budgets():
    """A large error in each session: structures of smaller budgets are still parts of those of larger ones."""
    path = path_of()
    errors = np.random.default_rng(1)

    def noisy(structures):
        calls = {}
        for name, structure in structures.items():
            seconds = seconds_of(structure) * errors.normal(1, 0.04)
            calls[name] = Timed([seconds], [seconds], [seconds])
        return Measured(calls, 0.002)

    curve = measure_curve(path, noisy)
    budgets = [Budget.parse(f"{share}% ms") for share in (70, 69, 68, 67, 66, 65, 50)]
    found = solve_ms(path, curve, budgets, noisy)
    lengths = [one.length for one in found]
    assert lengths == sorted(lengths)
    for budget, one in zip(budgets, found, strict=True):
        assert one.timed.ms <= budget.amount * one.timed.ms_dense


# Layers leave.


def test_layers_leave_under_a_budget_in_ms_and_the_cut_is_exact_saved_and_loaded(tmp_path):
    """Where branches cost time whatever their size, a small budget is met by fewer of them; without depth it cannot be."""
    gated = add_gates(small_vit())
    gates = random_gates(gated)
    gated.set_gates(gates)
    paths = [RemovalPath(gated.shape, gated.gates, FLOORS, depth=depth) for depth in (False, True)]
    budget = Budget.parse("25% ms")
    without, with_depth = (solve_ms(path, measure_curve(path, FakeDevice()), [budget], FakeDevice())[0] for path in paths)
    assert "cannot be reached" in without.error
    assert with_depth.length is not None
    structure = paths[1].prefix(with_depth.length)
    assert any(row["heads"] == 0 or row["mlp_units"] == 0 for row in structure.summary())
    small = slim(gated, structure)
    close_gates(gated, gates, structure)
    assert difference(gated, small) < 1e-5
    save(small, tmp_path / "small")
    with torch.no_grad():
        assert torch.equal(load(tmp_path / "small")(images(small)), small(images(small)))


# Times from elsewhere.


def test_a_table_of_times_solves_budgets_and_one_of_other_structures_is_refused():
    path, other = path_of(), path_of(embed_dim=64)
    ms = {path.prefix(n).id: 1e3 * seconds_of(path.prefix(n)) for n in prefix_lengths(path)}
    curve = curve_of_times(path, ms, "latency.table is 'jetson.csv'")
    (one,) = solved_by_curve(path, curve, [Budget.parse("50% ms")])
    assert 0.9 < seconds_of(path.prefix(one.length)) / (0.5 * seconds_of(path.prefix(0))) < 1.05
    assert one.timed.ms <= 0.5 * one.timed.ms_dense
    with pytest.raises(RefusedInput, match=r"latency.table is 'jetson.csv', which has times of none of this run's structures"):
        curve_of_times(other, ms, "latency.table is 'jetson.csv'")


# The configuration.


def test_the_setting_of_a_configuration_follows_its_workers():
    assert Config(budgets=["8ms"]).latency_setting == LatencySetting(threads=1)
    on_gpu = Config(budgets=["8ms"], resources={"gpus_per_worker": 1, "cpus_per_worker": 4})
    assert on_gpu.latency_setting == LatencySetting(device="cuda")
    # Points at budgets in ms have the setting in their names, and a GPU computes alike beside any number of CPUs.
    assert on_gpu.changed(**{"resources.cpus_per_worker": 8}).latency_setting == on_gpu.latency_setting
    asked = Config(latency={"batch_size": 8, "threads": 2, "runtime": "onnxruntime"})
    assert asked.times_models
    assert not Config().times_models
    assert asked.latency_setting.label == "cpu, 2 threads, batch size 8, float32, onnxruntime"
    mixed = Config(budgets=["12ms", 0.5, "40% ms", "60% params", "8ms"])
    assert mixed.sorted_budgets == [0.5, "60% params", "40% ms", "12ms", "8ms"]
    assert list(map(str, mixed.budgets_in_ms)) == ["40% ms", "12ms", "8ms"]


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"latency": {"runtime": "tensorrt"}}, "latency.runtime is 'tensorrt': it must be one of torch, onnxruntime"),
        (
            {"latency": {"runtime": "onnxruntime", "compile": True}},
            "latency.compile is true, but latency.runtime is onnxruntime",
        ),
        ({"latency": {"runtime": "onnxruntime", "dtype": "bfloat16"}}, "onnxruntime computes in float32"),
        (
            {"latency": {"device": "cuda"}},
            "latency.device is cuda, but resources.gpus_per_worker is 0: set it",
        ),
        ({"latency": {"threads": 0}}, "latency.threads is 0"),
        (
            {"latency": {"table": "jetson.csv"}, "budgets": ["8ms"], "baselines": ["taylor"]},
            "latency.table is 'jetson.csv', which has times of what the search keeps alone, but baselines names taylor",
        ),
        ({"budgets": ["100% ms"]}, "is the whole dense model"),
        ({"budgets": ["8ms", "8 ms"]}, "must not hold '8 ms' twice"),
    ],
)
def test_settings_that_cannot_be_timed_are_refused_in_one_sentence(fields, said):
    with pytest.raises(ConfigError) as problem:
        Config(**fields)
    assert said in str(problem.value)
    assert "\n" not in str(problem.value)


def test_the_section_changes_no_name_but_those_of_budgets_in_ms():
    assert Config().fingerprint("retrain") == Config(latency={"threads": 2}).fingerprint("retrain")


# A run: what an earlier version finished, with budgets in ms beside it. Tasks are called as the functions that they are.

OF_MACS = {"searched-0.6000-s0-9567", "searched-0.4000-s0-1eef", "uniform-0.6000-s0-4718", "uniform-0.4000-s0-af58"}


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    shutil.copytree(Path(__file__).parent / "data" / "finished-run", tmp_path / "finished")
    monkeypatch.setattr(latency_job, "DeviceTimer", lambda dense, setting, **how: FakeTimer(setting))
    return changed(Run(tmp_path / "finished"), budgets=[0.6, 0.4, "60% ms", "4ms"])


class FakeTimer(FakeDevice):
    made: ClassVar[list["FakeTimer"]] = []
    hardware: ClassVar[str] = "a clock that a test sets"

    def __init__(self, setting: LatencySetting) -> None:
        super().__init__(lambda structure: setting.batch_size * seconds_of(structure))
        self.about = {**setting.to_dict(), "hardware": self.hardware}
        self.made.append(self)


def test_a_finished_run_gets_points_in_ms_and_keeps_the_others(run: Run) -> None:
    before = {point.name for point in plan_points(run)}
    assert before >= OF_MACS
    assert not any("ms" in name for name in before)  # they wait until they were timed
    plan = make_plan(run, "1")
    assert {"what 60% ms leaves", "what 4ms leaves"} <= set(plan.choosing)

    latency_job.cuts_of_budgets(job_arguments(run))
    run.refresh()
    assert to_time(run) == []
    points = {point.name: point for point in plan_points(run)}
    assert before < points.keys()
    searched = [point for point in points.values() if point.unit == "ms" and point.method == "searched"]
    assert [point.name.rpartition("-")[0] for point in searched] == ["searched-4ms-s0", "searched-0.6000-ms-s0"]
    dense = 1e3 * seconds_of(run.shape.full())
    assert searched[0].budget == pytest.approx(4 / dense, rel=0.01)
    for point, limit in zip(searched, (4.0, 0.6 * dense), strict=True):
        kept = Structure.from_json(point.structure)
        assert 0.93 * limit <= 1e3 * seconds_of(kept) <= 1.001 * limit
        row = known_before(run, point)
        assert row["latency_ms"] == pytest.approx(1e3 * seconds_of(kept), rel=0.01)
        assert row["latency_ms_dense"] == pytest.approx(dense, rel=0.01)
        assert json.loads(row["latency_setting"])["hardware"] == "a clock that a test sets"
    assert [point.budget_ms for point in searched] == [4.0, None]
    assert {name for name in points if is_in_ms(name)} == points.keys() - before

    # A later start times nothing again, another setting times all, and gives other points.
    made = len(FakeTimer.made)
    assert {point.name for point in plan_points(Run(run.folder, run.config))} == points.keys()
    other = changed(run, **{"latency.batch_size": 2})
    assert {str(budget) for budget in to_time(other)} == {"60% ms", "4ms"}
    assert len(FakeTimer.made) == made
    latency_job.cuts_of_budgets(job_arguments(other))
    again = {point.name for point in plan_points(other)}
    assert again & points.keys() == before


def test_a_budget_that_cannot_be_reached_fails_alone_and_says_the_least(run: Run) -> None:
    run = changed(run, budgets=["60% ms", "0.1ms"])
    latency_job.cuts_of_budgets(job_arguments(run))
    points = [point for point in plan_points(run) if point.method == "searched"]
    assert [bool(point.structure) for point in points] == [True, False]
    assert why_no_structure(run, points[1]).startswith(
        "budget '0.1ms' cannot be reached: the least that this model was timed at"
    )


def test_a_budget_that_is_added_is_timed_alone_on_the_same_curve(run: Run) -> None:
    latency_job.cuts_of_budgets(job_arguments(run))
    before = {point.name for point in plan_points(run)}
    more = changed(run, budgets=[*run.config.budgets, "50% ms"])
    FakeTimer.made.clear()
    latency_job.cuts_of_budgets(job_arguments(more))
    (timer,) = FakeTimer.made
    assert all(len(names) == 2 for names in timer.sessions)  # the candidate and the dense model: no prefix again
    assert before < {point.name for point in plan_points(more)}


def test_the_curve_of_another_machine_is_not_taken(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    latency_job.cuts_of_budgets(job_arguments(run))
    more = changed(run, budgets=[*run.config.budgets, "50% ms"])
    FakeTimer.made.clear()
    monkeypatch.setattr(FakeTimer, "hardware", "another clock")
    latency_job.cuts_of_budgets(job_arguments(more))
    (timer,) = FakeTimer.made
    assert max(len(names) for names in timer.sessions) > 10  # the prefixes of the path, not a candidate beside the dense model
    assert more.latency.about(more.pace_of("ms"))["hardware"] == "another clock"
    assert to_time(more) == []


def test_paces_are_compared_at_equal_latency(run: Run) -> None:
    paces = [{"mlp": 0.5}, {"token": 0.5}]
    run = changed(run, **{"search.paces": paces, "latency.depth": False})
    assert pace_is_open(run, "ms")
    latency_job.cuts_of_paces(job_arguments(run))
    cuts = [structure_of_try(run, pace, "ms") for pace in latency_job.paces_in_ms(run)]
    dense = 1e3 * seconds_of(run.shape.full())
    smallest = min(0.6 * dense, 4.0)
    for structure, fraction, unit, refused in cuts:
        assert (unit, refused) == ("ms", "")
        assert fraction == pytest.approx(smallest / dense, rel=0.01)
        assert 0.95 * smallest <= 1e3 * seconds_of(structure) <= 1.001 * smallest
    assert len({structure.macs() for structure, *_ in cuts}) == 2  # at equal latency their MACs differ
    compared = latency_job.paces_in_ms(run)
    chosen = compared[1]
    tried = [{"pace": pace, "macs": cut[0].macs(), "error": ""} for pace, cut in zip(compared, cuts, strict=True)]
    run.write_pace_choice({"pace": chosen, "tried": tried, "key": pace_key(run, "ms")}, "ms")
    assert not pace_is_open(run, "ms")
    assert run.pace_of("ms") == chosen
    assert run.pace != chosen  # budgets in MACs have their own


def test_paces_are_compared_at_a_budget_that_can_be_reached(run: Run) -> None:
    run = changed(run, budgets=["0.1ms", "60% ms", "90% ms"])
    latency_job.cuts_of_paces(job_arguments(run))
    tries = [latency_job.cut_of_try(run, pace) for pace in latency_job.paces_in_ms(run)]
    assert len(tries) == 2
    assert all(str(budget) == "60% ms" and solved.length is not None for budget, solved in tries)


def test_a_method_that_ranks_gates_itself_is_timed_on_its_own_path(run: Run) -> None:
    gated = add_gates(load(run.dense))
    budgets: list[float | str] = [0.5, "60% ms", "0.01ms"]
    timed = latency_job.BudgetsOfMethods(FakeTimer(LatencySetting()))
    settings = {"floors": FLOORS, "round_to": 1, "depth_in_ms": True, "solve_ms": timed, "budgets": budgets, "seed": 0}
    images_, labels = torch.zeros(1), torch.zeros(1)
    choice = Choice(dense=load(run.dense), shape=gated.shape, images=images_, labels=labels, **settings)
    of_macs, of_ms, refused = structures_by_scores(choice, random_gates(gated))
    assert of_macs.macs() <= 0.5 * gated.shape.full().macs()
    assert 0.93 * 0.6 <= seconds_of(of_ms) / seconds_of(gated.shape.full()) <= 0.6
    assert "cannot be reached" in str(refused)
    assert set(timed.times) == {of_ms.id}


def test_the_points_of_a_run_are_timed_in_one_session(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    run = changed(run, budgets=[0.6, 0.4], **{"latency.threads": 1})
    calls: list[Any] = []

    def alone(run: Run, function: Callable[[Any], None], **more: Any) -> None:
        calls.append(function(job_arguments(run, **more)))

    monkeypatch.setattr(latency_job, "run_alone", alone)
    points = plan_points(run)
    FakeTimer.made.clear()
    latency_job.time_points(run, points)
    latency_job.time_points(run, points)  # they are known now
    assert len(calls) == len(FakeTimer.made) == 1
    assert len(FakeTimer.made[0].sessions) == 1
    rows = [known_before(run, point) for point in points]
    assert all(row["latency_ms"] <= row["latency_ms_dense"] for row in rows)
    assert [row["latency_ms"] for row in rows if row["method"] == "dense"] == [rows[0]["latency_ms_dense"]]
    without = changed(run, latency=None)
    assert known_before(without, points[0]).get("latency_ms") is None


def test_a_table_from_another_device_gives_the_structures_and_its_setting_the_names(run: Run, tmp_path: Path) -> None:
    table = tmp_path / "jetson.csv"
    run = changed(run, baselines=["scratch"], **{"latency.table": str(table)})
    path = run.path_of("ms")
    times = [
        Time(path.prefix(n).id, 2e3 * seconds_of(path.prefix(n)), 0.01, "Jetson Orin", "TensorRT 10.3", 1, "fp16")
        for n in prefix_lengths(path)
    ]
    write_times(table, times)
    FakeTimer.made.clear()
    assert latency_job.solve_budgets(run) == []
    assert FakeTimer.made == []
    point = next(point for point in plan_points(run) if point.budget_ms == 4.0)
    assert 1.7 <= 1e3 * seconds_of(Structure.from_json(point.structure)) <= 2.2  # the device takes twice as long
    row = known_before(run, point)
    assert json.loads(row["latency_setting"])["hardware"] == "Jetson Orin"
    assert row["latency_ms"] <= 4.0
    write_times(table, [Time("0" * 12, 1.0, None, "Jetson Orin", "TensorRT 10.3", 1, "fp16")])
    run.folder.delete("latency")
    with pytest.raises(RefusedInput, match="has times of none of this run's structures: export the structures"):
        latency_job.solve_budgets(Run(run.folder, run.config))


def test_a_table_of_several_settings_or_none_at_a_batch_size_is_refused(tmp_path: Path) -> None:
    table = tmp_path / "phones.csv"
    write_times(table, [Time("0" * 12, 1.0, None, "phone", "NNAPI", batch, "int8") for batch in (1, 4)])
    assert table_of_times(str(table), 4).setting.batch_size == 4
    with pytest.raises(RefusedInput, match=r"has times of 2 settings .* or say which in latency.batch_size"):
        table_of_times(str(table))
    with pytest.raises(RefusedInput, match=r"latency.batch_size is 8, but latency.table .* has only times of phone"):
        table_of_times(str(table), 8)


@pytest.mark.parametrize("method", ["small", "torch-pruning"])
def test_methods_that_count_macs_alone_are_refused_before_a_run(method: str) -> None:
    pytest.importorskip("torch_pruning")
    config = Config(budgets=[0.5, "8ms"], baselines=[method], model={"name": "vit_tiny_patch16_224"})
    model = timm.create_model("vit_tiny_patch16_224", depth=2, num_classes=10)
    with pytest.raises(RefusedInput, match=f"baselines: '{method}' cannot be made to budget '8ms'"):
        check_cuts(config, model)


def test_a_device_or_runtime_that_is_not_there_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(RefusedInput, match=r"latency.device is cuda, but this machine has no GPU"):
        check_device(LatencySetting(device="cuda"))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(RefusedInput, match=r"latency.runtime onnxruntime needs packages that are not installed"):
        check_device(LatencySetting(runtime="onnxruntime"))
    with pytest.raises(ConfigError, match=r"latency.threads is 64, but no node has more than 2 CPUs"):
        latency_job.check_room(Config(latency={"threads": 64}), Cluster([{"CPU": 2.0}]))


def test_a_worker_of_a_joined_cluster_is_asked_before_anything_is_trained(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []
    monkeypatch.setattr(latency_job, "run_alone", lambda run, task: asked.append(task))
    run, silent = (Run(Path("nowhere"), Config(budgets=budgets)) for budgets in ([0.5, "8ms"], [0.5]))
    latency_job.check_worker(run, Cluster([{"CPU": 2.0}], is_own=True))  # this machine, which the driver has looked at
    latency_job.check_worker(silent, Cluster([{"CPU": 2.0}]))
    assert asked == []
    latency_job.check_worker(run, Cluster([{"CPU": 2.0}]))
    assert asked == [latency_job.look_at_device]


def test_a_provider_that_falls_back_to_the_cpu_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    write_reference(tmp_path / "reference.onnx", "cpu")
    at_work, looked_for = onnxruntime.InferenceSession, []

    def falls_back(path: str, options: Any, providers: list[str]) -> Any:  # as where CUDA's libraries do not load
        assert looked_for
        return at_work(path, options, providers=["CPUExecutionProvider"])

    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CUDAExecutionProvider", "CPUExecutionProvider"])
    monkeypatch.setattr(onnxruntime, "InferenceSession", falls_back)
    monkeypatch.setattr(onnxruntime, "preload_dlls", lambda: looked_for.append("CUDA"))
    with pytest.raises(RefusedInput, match="onnxruntime could not start CUDAExecutionProvider for device 'cuda'"):
        session(tmp_path / "reference.onnx", device="cuda")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    with pytest.raises(RefusedInput, match="onnxruntime could not start CUDAExecutionProvider"):
        check_device(LatencySetting(device="cuda", runtime="onnxruntime"))


def test_the_version_is_that_of_whichever_package_brings_onnxruntime(monkeypatch: pytest.MonkeyPatch) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")

    def only_for_gpus(package: str) -> str:  # where onnxruntime-gpu is installed in place of onnxruntime
        raise metadata.PackageNotFoundError(package)

    monkeypatch.setattr(metadata, "version", only_for_gpus)
    assert about(LatencySetting(runtime="onnxruntime"))["onnxruntime_version"] == onnxruntime.__version__


# The real timer.


def test_real_models_are_timed_and_groups_are_joined_by_the_dense_model(monkeypatch: pytest.MonkeyPatch) -> None:
    dense = small_vit()
    path = path_of()
    structures = {DENSE: path.prefix(0), "half": path.prefix(path.length // 2), "end": path.prefix(path.length)}
    timer = DeviceTimer(dense, LatencySetting(threads=1, batch_size=2), rounds=2, min_seconds=0.0)
    found = timer(structures)
    assert found.calls.keys() == structures.keys()
    assert all(timed.median > 0 and len(timed.rounds) == 2 for timed in found.calls.values())
    assert timer.about["hardware"]
    monkeypatch.setattr(calls_module, "GROUP_BYTES", 0)
    assert timer._groups(structures) == [[DENSE, "half"], [DENSE, "end"]]
    first = Measured({DENSE: Timed([2.0], [2.0], [2.0]), "half": Timed([1.0], [1.0], [1.0])}, 0.1)
    later = Measured({DENSE: Timed([4.0], [4.0], [4.0]), "end": Timed([1.0], [1.0], [1.0])}, 0.1)
    joined = calls_module._joined(first, later)
    assert {name: timed.median for name, timed in joined.calls.items()} == {DENSE: 2.0, "half": 1.0, "end": 0.5}


# What a branch costs by itself decides how early whole ones leave.


def test_what_a_branch_costs_by_itself_is_measured() -> None:
    gated = add_gates(small_vit(depth=5))

    def device(own: float, per_dim: float) -> FakeDevice:
        def seconds(structure: Structure) -> float:
            gates = sum(sizes.dims / 32 + sizes.units / 64 for sizes in structure.layer_sizes())
            branches = sum((sizes.dims > 0) + (sizes.units > 0) for sizes in structure.layer_sizes())
            return 1e-3 + own * branches + per_dim * gates

        return FakeDevice(seconds)

    for own, gates in ((0.0, 1e-3), (3e-4, 1e-3), (1e-3, 1e-3)):
        assert branch_cost(gated.shape, device(own, gates)) == pytest.approx(own / gates, abs=0.12)
    assert branch_cost(gated.shape, device(1e-3, 0.0)) == 4.0  # only the number of branches counts
    assert branch_cost(add_gates(small_vit(), families=["token"]).shape, device(1e-3, 1e-3)) == 0.0


@pytest.mark.parametrize("granularity", ["dim", "head"])
def test_the_more_a_branch_costs_the_earlier_it_leaves_and_the_path_stays_one(granularity: str) -> None:
    gated = add_gates(small_vit(), granularity)
    gates = random_gates(gated)
    whole = gated.shape.full().macs()
    first: list[float] = []  # share of the MACs that are left when the first branch has gone
    for depth in (True, 0.0, 0.2, 1.0):
        path = RemovalPath(gated.shape, gates, FLOORS, depth=depth)
        assert (np.diff(path.macs) <= 0).all()
        assert all(sizes.dims == sizes.units == 0 for sizes in last_of(path).layer_sizes())
        shallow = next(n for n in range(path.length + 1) if any(not (s.dims and s.units) for s in path.prefix(n).layer_sizes()))
        first.append(path.macs[shallow] / whole)
    assert first[0] == first[1] < first[2] < first[3]


def test_branches_that_cost_much_by_themselves_leave_more_macs_at_the_same_latency() -> None:
    """That is what depth is for: at equal milliseconds more is left of the model."""

    def seconds(structure: Structure) -> float:
        return seconds_of(structure) + 1e-3 * sum((s.dims > 0) + (s.units > 0) for s in structure.layer_sizes())

    gated, device = add_gates(small_vit()), FakeDevice(seconds)
    measured = branch_cost(gated.shape, device)
    left = []
    for depth in (True, measured):
        path = RemovalPath(gated.shape, random_gates(gated), FLOORS, depth=depth)
        (one,) = solve_ms(path, measure_curve(path, device), [Budget.parse("40% ms")], device)
        left.append(path.prefix(one.length).macs())
    assert left[1] > 1.5 * left[0]
