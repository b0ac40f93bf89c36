"""Budgets in milliseconds: written, timed and met, with clocks that the tests set."""

import itertools
import json
import math
from collections.abc import Callable, Mapping

import numpy as np
import pytest
import torch
from test_quiet_timing import REFERENCE, Faked
from zoo import close_gates, difference, images, random_gates, small_vit

from slimsweep import add_gates, load, save, slim, solve
from slimsweep.config import Config, ConfigError
from slimsweep.errors import RefusedInput
from slimsweep.latency.curve import (
    DENSE,
    LatencyCurve,
    curve_of_times,
    measure_curve,
    prefix_lengths,
    progress,
    solve_ms,
    solved_by_curve,
)
from slimsweep.latency.quiet_timing import Measured, Timed, time_rounds
from slimsweep.latency.setting import LatencySetting
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
    assert (on_gpu.latency_setting.device, on_gpu.latency_setting.threads) == ("cuda", 4)
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
