"""Several processes that share a gallery average features as one process does, bit for bit."""

import functools
import re

import numpy as np
import pytest
import shared_expansion_cases
from shared_expansion_cases import CASES
from shared_neighbours import ENDS, NUM_ITEMS, sides
from workers import SIZES

from mmga import augment_gallery, expand_queries


@functools.cache
def alone(name):
    return shared_expansion_cases.averaged(None, 0, name, [NUM_ITEMS])


@pytest.mark.parametrize("name", CASES)
def test_any_number_of_processes_gets_the_same_features(workers, name):
    number = list(CASES).index(name)
    for size in SIZES:
        ends = ENDS[size][number % len(ENDS[size])]  # cases take them in turn
        parts = workers.values(size, shared_expansion_cases.averaged, name, ends)
        asked, wider = alone(name)
        assert all(np.array_equal(one, asked) for one, _ in parts), (size, ends)
        assert np.array_equal(np.concatenate([own for _, own in parts]), wider), (size, ends)


@pytest.mark.parametrize("side", ["query", "gallery"])
@pytest.mark.parametrize(
    ("what", "kinds", "said"),
    [
        ("alpha", ["UserError", "PeerError"], "the settings of process 1 differ from those of"),
        ("too many", ["UserError", "PeerError"], "must be from 0 to the 30[01] there are, got 302"),
        ("values", ["PeerError", "UserError"], "gallery: expected finite features, row 207 "),
        ("nothing", ["UserError", "PeerError"], "no process of the group has any of it"),
        ("memory", ["PeerError", "UserError"], "memory: .* suffice for averages of"),
        ("float32", ["UserError", "PeerError"], "several processes find certified neighbours, fo"),
    ],
)
def test_what_does_not_fit_ends_all(workers, side, what, kinds, said):
    answers = workers.call(2, shared_expansion_cases.unlike, what, side)
    assert [how for how, _ in answers] == ["raised", "raised"]
    for _, error in answers:
        assert re.search(said, error[1]), error[1]
    assert [error[0] for _, error in answers] == kinds
    # They go on together after it.
    query, items = sides("")
    found = workers.values(2, shared_expansion_cases.unlike, "", side)
    if side == "query":
        assert found == [expand_queries(query, items).tolist()] * 2
    else:
        assert found[0] + found[1] == augment_gallery(items).tolist()
