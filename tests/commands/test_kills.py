"""Processes killed at random moments: the others end, nothing is half-written, a second start ends.

`tests/support/kills.py` does the same as often as one likes, and counts.
"""

import kills
import pytest


@pytest.fixture(scope="module")
def killing(tmp_path_factory):
    return kills.Killing(tmp_path_factory.mktemp("kills"), seed=3)


@pytest.mark.parametrize("verb", kills.WORDS)
def test_a_killed_process_ends_all_and_a_second_start_finishes(killing, verb):
    done = killing.kill(verb)
    assert len(done.errors) <= 1
    assert done.errors or set(done.codes) == {0, -9}  # killed when the others were done
