"""Side by side, one process has all tests that need Ray, and one those that need a browser (conftest.GROUPS)."""

import os

import pytest

pytestmark = pytest.mark.skipif("PYTEST_XDIST_WORKER" not in os.environ, reason="the tests run in one process (no -n)")


@pytest.mark.usefixtures("ray_cluster")
def test_what_needs_ray_is_in_one_group(request: pytest.FixtureRequest) -> None:
    assert request.node.nodeid.endswith("@ray")


def test_what_needs_nothing_slow_is_in_none(request: pytest.FixtureRequest) -> None:
    assert "@" not in request.node.nodeid
