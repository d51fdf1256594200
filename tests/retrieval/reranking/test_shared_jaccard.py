"""Several processes that share a set get the rows of its Jaccard matrix, bit for bit."""

import functools
import itertools
import re

import numpy as np
import pytest
import shared_jaccard_cases
from shared_jaccard_cases import CASES
from shared_neighbours import ENDS, NUM_ITEMS, sides
from workers import SIZES

from mmga import jaccard_distance
from mmga.common.errors import UserError


@functools.cache
def alone(name):
    return shared_jaccard_cases.rows(None, 0, name, [NUM_ITEMS])


@pytest.mark.parametrize("name", CASES)
def test_any_number_of_processes_gets_the_same_matrix(workers, name):
    number = list(CASES).index(name)
    for size in SIZES:
        ends = ENDS[size][number % len(ENDS[size])]  # cases take them in turn
        parts = workers.values(size, shared_jaccard_cases.rows, name, ends)
        assert tuple(map(b"".join, zip(*parts, strict=True))) == alone(name), (size, ends)


def test_the_cases_differ_and_are_what_they_say():
    assert len({alone(name) for name in CASES}) >= len(CASES) - 4
    assert alone("without a prefix filter") == alone("up to a limit")
    values = np.frombuffer(alone("duplicates at 0")[2])
    assert (values == 0).all() and len(values) > 3 * NUM_ITEMS


@pytest.mark.parametrize(
    ("what", "kinds", "said"),
    [
        ("settings", ["UserError", "PeerError"], "the settings of process 1 differ from those of"),
        ("limit", ["UserError", "PeerError"], "max_distance must be from 0 to below 1, got 1"),
        ("values", ["PeerError", "UserError"], "features: expected finite features, row 207 "),
        ("kind", ["PeerError", "UserError"], "features must be Features, or .* got str"),
        ("width", ["PeerError", "UserError"], "features: expected rows of 40 values .* found 9"),
        ("nothing", ["UserError", "PeerError"], "features: no process of the group has any of it"),
        ("memory", ["PeerError", "UserError"], "memory: .* suffice for the neighbours of 301"),
        ("memory of distances", ["PeerError", "UserError"], "Jaccard distances of 301 items; give"),
        ("float32", ["UserError", "PeerError"], "several processes find certified neighbours"),
        ("a bug in the search", ["PeerError", "ZeroDivisionError"], "of all numbers"),
        ("a bug in the sets", ["PeerError", "ZeroDivisionError"], "of all numbers"),
        ("a bug in pairs", ["PeerError", "ZeroDivisionError"], "of all numbers"),
        ("a bug in the mean", ["PeerError", "ZeroDivisionError"], "of all numbers"),
        ("a bug in the rows", ["PeerError", "ZeroDivisionError"], "of all numbers"),
    ],
)
def test_what_does_not_fit_ends_all(workers, what, kinds, said):
    answers = workers.call(2, shared_jaccard_cases.unlike, what)
    assert [how for how, _ in answers] == ["raised", "raised"]
    for _, error in answers:
        assert re.search(said, error[1]), error[1]
    assert [error[0] for _, error in answers] == kinds
    # They go on together after it.
    own = jaccard_distance(sides("")[1])
    parts = workers.values(2, shared_jaccard_cases.unlike, "")
    assert [*itertools.chain(*parts)] == own.col_indices().tolist()


def test_one_process_needs_features():
    with pytest.raises(UserError, match=r"features must be Features.*, got NoneType"):
        jaccard_distance(None)
