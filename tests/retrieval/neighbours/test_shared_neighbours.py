"""Several processes that share the items find the neighbours of one process, bit for bit."""

import functools
import re

import numpy as np
import pytest
import shared_neighbours
from shared_neighbours import CASES, ENDS, NUM_ITEMS
from workers import SIZES

from mmga import nearest
from mmga.common.errors import UserError


@functools.cache
def alone(name):
    return shared_neighbours.found(None, 0, name, [NUM_ITEMS])


@pytest.mark.parametrize("name", CASES)
def test_any_number_of_processes_finds_the_same(workers, name):
    for size in SIZES:
        for ends in ENDS[size]:
            for found in workers.values(size, shared_neighbours.found, name, ends):
                assert found == alone(name), (size, ends)


GRIDS = [
    ([11, 23], [150, 301]),
    ([23, 23], [0, 301]),
    ([1, 2, 23], [300, 301]),
    ([20, 23], [100, 200, 301]),
    ([5, 5, 6, 23], [301]),
]


@pytest.mark.parametrize("name", CASES)
def test_a_process_of_a_grid_finds_the_neighbours_of_its_queries(grids, name):
    query_ends, ends = GRIDS[list(CASES).index(name) % len(GRIDS)]
    size, columns = len(query_ends) * len(ends), len(ends)
    found = grids(size).values(size, shared_neighbours.found, name, ends, query_ends)
    starts = [0, *query_ends]
    for rank, parts in enumerate(found):
        first, last = starts[rank // columns : rank // columns + 2]
        for part, all_ in zip(parts, alone(name), strict=True):
            width = len(all_) // shared_neighbours.NUM_QUERY
            assert part == all_[first * width : last * width], (query_ends, ends)


def test_the_cases_have_ties_that_numbers_decide():
    distances, index = alone("more than a share")
    distances = np.frombuffer(distances, np.float32).reshape(-1, 290)
    index = np.frombuffer(index, np.int64).reshape(-1, 290)
    tied = np.diff(distances) == 0
    assert tied.mean() > 0.9 and (np.diff(index)[tied] > 0).all()
    # float32 distances do not tell these apart, but their order is no longer that of numbers.
    distances, index = alone("near ties, euclidean")
    tied = np.diff(np.frombuffer(distances, np.float32).reshape(-1, 9)) == 0
    assert (np.diff(np.frombuffer(index, np.int64).reshape(-1, 9))[tied] < 0).any()


@pytest.mark.parametrize(
    ("what", "kinds", "said"),
    [
        ("k", ["UserError", "PeerError"], "the settings of process 1 differ from those of"),
        ("query shares", ["UserError", "PeerError"], "the settings of process 1 differ from"),
        ("k past all", ["UserError"] * 2, "k must be from 1 to the 301 gallery items, got 302"),
        ("queries", ["UserError", "PeerError"], "the queries of process 1 differ from those of"),
        ("values", ["PeerError", "UserError"], "gallery: expected finite features, row 207 "),
        ("kind", ["PeerError", "UserError"], "gallery must be Features, or .* got str"),
        ("width", ["PeerError", "UserError"], "must have one dimension, got 40 and 9"),
        ("nothing", ["UserError", "PeerError"], "no process of the group has any of it"),
        ("memory", ["UserError", "PeerError"], "memory: .* does not suffice for the 5 nearest"),
        ("float32", ["UserError", "PeerError"], "several processes find certified neighbours, fo"),
    ],
)
def test_what_does_not_fit_ends_all(workers, what, kinds, said):
    answers = workers.call(2, shared_neighbours.unlike, what)
    assert [how for how, _ in answers] == ["raised", "raised"]
    for _, error in answers:
        assert re.search(said, error[1]), error[1]
    assert [error[0] for _, error in answers] == kinds
    # They go on together after it.
    distances, index = nearest(*shared_neighbours.sides(""), 5)
    expected = distances.tolist(), index.tolist()
    assert workers.values(2, shared_neighbours.unlike, "a tensor") == [expected] * 2
    query, items = shared_neighbours.sides("")
    distances, index = nearest(query, items[:200], 5)
    expected = distances.tolist(), index.tolist()
    assert workers.values(2, shared_neighbours.unlike, "none in the last") == [expected] * 2


def test_a_group_needs_torch_distributed():
    with pytest.raises(UserError, match=r"group: torch\.distributed has no process group here"):
        nearest(*shared_neighbours.sides(""), 5, group=True)


def test_one_process_needs_a_gallery():
    with pytest.raises(UserError, match=r"gallery must be Features.*, got NoneType"):
        nearest(shared_neighbours.sides("")[0], None, 5)
