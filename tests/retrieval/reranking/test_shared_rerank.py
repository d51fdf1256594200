"""Several processes that share a gallery get re-ranked distances of one process, bit for bit."""

import functools
import re

import numpy as np
import pytest
import shared_rerank_cases
import torch
from shared_neighbours import ENDS, NUM_ITEMS, sides
from shared_rerank_cases import CASES
from workers import SIZES

from mmga import rerank
from mmga.common.errors import UserError


@functools.cache
def alone(name):
    return shared_rerank_cases.reranked(None, 0, name, [NUM_ITEMS])


@pytest.mark.parametrize("name", CASES)
def test_any_number_of_processes_gets_the_same_distances(workers, name):
    number = list(CASES).index(name)
    for size in SIZES:
        ends = ENDS[size][number % len(ENDS[size])]  # cases take them in turn
        parts = workers.values(size, shared_rerank_cases.reranked, name, ends)
        if "topk" not in CASES[name]:
            parts = [(np.concatenate([one for (one,) in parts], 1),)]
        for found in parts:
            for one, expected in zip(found, alone(name), strict=True):
                assert np.array_equal(one, expected), (size, ends)


def test_the_cases_have_ties_that_numbers_decide():
    distances, index = alone("by the overlap alone")
    tied = np.diff(distances) == 0
    assert tied.mean() > 0.5 and (np.diff(index)[tied] > 0).all()
    junk = alone("junk")[0]
    assert np.isinf(junk).all(1).any() and np.isinf(junk).all(0).any() and np.isfinite(junk).any()
    assert (alone("junk, nearest")[1] == -1).all(1).any()


@pytest.mark.parametrize(
    ("what", "kinds", "said"),
    [
        ("rule", ["UserError", "PeerError"], "the settings of process 1 differ from those of"),
        ("kind of rule", ["UserError", "PeerError"], "rerank: expected mmga.KReciprocal"),
        ("topk past all", ["UserError", "PeerError"], "from 1 to the 301 gallery items, got 302"),
        ("queries", ["UserError", "PeerError"], "the queries of process 1 differ from those of"),
        ("junk of queries", ["UserError", "PeerError"], "the queries of process 1 differ from"),
        ("values", ["PeerError", "UserError"], "gallery: expected finite features, row 207 "),
        ("kind", ["PeerError", "UserError"], "gallery must be Features, or .* got str"),
        ("width", ["PeerError", "UserError"], "must have one dimension, got 40 and 9"),
        ("nothing", ["UserError", "PeerError"], "no process of the group has any of it"),
        ("memory", ["PeerError", "UserError"], "memory: .* suffice for re-ranking 23 queries"),
        ("float32", ["UserError", "PeerError"], "several processes find certified neighbours, fo"),
        ("all junk", ["UserError", "PeerError"], "no process of the group has any of it"),
        ("a bug in the mean", ["PeerError", "ZeroDivisionError"], "of all numbers"),
        ("a bug in the mix", ["PeerError", "ZeroDivisionError"], "of all numbers"),
        ("a bug in the index", ["PeerError", "ZeroDivisionError"], "of all numbers"),
    ],
)
def test_what_does_not_fit_ends_all(workers, what, kinds, said):
    answers = workers.call(2, shared_rerank_cases.unlike, what)
    assert [how for how, _ in answers] == ["raised", "raised"]
    for _, error in answers:
        assert re.search(said, error[1]), error[1]
    assert [error[0] for _, error in answers] == kinds
    # They go on together after it.
    expected = [part.tolist() for part in rerank(*sides(""), topk=5)]
    assert workers.values(2, shared_rerank_cases.unlike, "") == [expected] * 2


def test_a_process_without_items_gets_no_distances(workers):
    first, last = workers.values(2, shared_rerank_cases.with_none)
    assert torch.equal(torch.from_numpy(first), rerank(*map(torch.from_numpy, sides(""))))
    assert last.shape == (len(first), 0)


def test_one_process_needs_a_gallery():
    with pytest.raises(UserError, match=r"gallery must be Features.*, got NoneType"):
        rerank(sides("")[0], None)
