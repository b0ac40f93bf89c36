"""One grammar of budgets: what is accepted means the same however it is written, and the rest is refused in one sentence."""

import math
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from slimsweep.slimming.budget import Budget, BudgetError

units = st.sampled_from(["macs", "params"])
fractions = st.floats(min_value=0, max_value=1, exclude_min=True)
amounts = st.floats(min_value=1, max_value=1e18)
written = st.builds(Budget, fractions, units) | st.builds(Budget, amounts, units, st.just(False))


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (0.5, Budget(0.5)),
        ("0.5", Budget(0.5)),
        (1, Budget(1.0)),
        ("50%", Budget(0.5)),
        ("50 %", Budget(0.5)),
        ("12.3%", Budget(0.123)),
        ("2.3G", Budget(2.3e9, relative=False)),
        ("350M", Budget(350e6, relative=False)),
        (" 350m ", Budget(350e6, relative=False)),
        ("1e3M", Budget(1e9, relative=False)),
        ("2.3G macs", Budget(2.3e9, relative=False)),
        ("2.3 GMACs", Budget(2.3e9, relative=False)),
        ("60% params", Budget(0.6, "params")),
        ("0.6 params", Budget(0.6, "params")),
        ("0.6 macs", Budget(0.6)),
        ("11.5M params", Budget(11.5e6, "params", relative=False)),
        (np.float32(0.5), Budget(0.5)),
        (Budget(0.3, "params"), Budget(0.3, "params")),
    ],
)
def test_every_form_has_its_meaning(value, expected):
    assert Budget.parse(value) == expected


@pytest.mark.parametrize(
    "value",
    [
        *(0, -0.5, 1.5, 2_300_000, math.nan, math.inf, True, None, [0.5], b"0.5"),
        *("", "abc", "1.5", "-1G", "2.3GB", "1e9", "150%", "0%", "0.0G", "0.1e-3K", "1e999G", "1e9999", "2.3 macs"),
        *("60% tokens", "params", "0.5 G params macs", "0.5%%", "\u0665", "\u0660.5", "5\u212a", "nan", "inf", "1_000K"),
    ],
)
def test_everything_else_is_refused_with_the_value_and_a_way_out(value):
    with pytest.raises(BudgetError, match="fraction") as problem:
        Budget.parse(value)
    assert repr(value) in str(problem.value)
    assert any(way in str(problem.value) for way in ("'2.3G'", "100%"))
    assert "\n" not in str(problem.value)


@given(st.text() | st.text(alphabet="0123456789.eE+-% KMGTkmgtacsprn", max_size=12))
@example("5 m")
@example(".5e-1T\tparams")
def test_text_is_a_budget_within_its_bounds_or_refused(text):
    try:
        budget = Budget.parse(text)
    except BudgetError:
        return
    assert 0 < budget.amount <= 1 if budget.relative else 1 <= budget.amount < math.inf
    assert isinstance(budget.limit(10**9), int)
    # However it is written, it is the same.
    assert Budget.parse(str(budget)) == Budget.parse(text.upper()) == Budget.parse(f"  {text.lower()} ") == budget


@given(written)
@example(Budget(1.0, relative=False))
@example(Budget(999.5, relative=False))
def test_a_budgets_text_is_read_as_the_same_budget(budget):
    assert Budget.parse(str(budget)) == budget


@given(st.decimals(min_value="0.01", max_value=100, places=2), units)
def test_a_percentage_is_the_fraction_to_the_last_bit(percent, unit):
    assert Budget.parse(f"{percent}% {unit}") == Budget.parse(f"{percent / 100} {unit}") == Budget(float(percent / 100), unit)


@given(fractions, st.integers(1, 10**15))
def test_a_fractions_limit_is_at_most_the_dense_models_cost(fraction, dense):
    assert Budget.parse(fraction).limit(dense) <= dense


@given(amounts, units)
def test_an_amounts_limit_does_not_depend_on_the_dense_model(amount, unit):
    budget = Budget(amount, unit, relative=False)
    assert budget.limit(1) == budget.limit(10**12) == round(amount)


@pytest.mark.parametrize(
    ("text", "label"),
    [
        ("0.5", "50 % of MACs"),
        ("60% params", "60 % of params"),
        ("2.3G", "2.3 GMACs"),
        ("11.5M params", "11.5 M params"),
        ("0.02K", "20 MACs"),
    ],
)
def test_tables_show_a_budget_in_words(text, label):
    assert Budget.parse(text).label == label


@pytest.mark.parametrize(
    "wrong",
    [(0.0,), (1.5,), (0.5, "s"), (0.0, "ms", False), (1.5, "ms"), (0.5, "macs", False), (math.nan,), (math.inf, "macs", False)],
)
def test_a_budget_made_by_hand_keeps_to_the_same_bounds(wrong):
    with pytest.raises(BudgetError):
        Budget(*wrong)


def test_a_budget_is_read_without_torch():
    code = (
        "import sys\n"
        "from slimsweep.slimming.budget import Budget\n"
        "assert Budget.parse('50%').amount == 0.5\n"
        "assert 'torch' not in sys.modules\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
