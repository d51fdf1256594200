"""Fixtures of the evaluator's tests."""

import pytest
from workers import Workers


@pytest.fixture(scope="session")
def workers():
    """Processes that take seconds to start, for all tests of several processes."""
    pool = Workers()
    yield pool
    pool.close()
