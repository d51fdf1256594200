"""Fixtures of the evaluator's tests."""

import pytest
from workers import Workers


@pytest.fixture(scope="session")
def workers():
    """Processes that take seconds to start, for all tests of several processes."""
    pool = Workers()
    yield pool
    pool.close()


@pytest.fixture(scope="module")
def grids():
    """Pools of processes by their number, all of which a grid takes."""
    pools = {}

    def of(size):
        if size not in pools:
            pools[size] = Workers(size)
        return pools[size]

    yield of
    for pool in pools.values():
        pool.close()
