"""Several processes that share a gallery report what one process reports, bit for bit."""

import functools
import re

import numpy as np
import pytest
import shared_cases
import torch
from shared_cases import CASES, NUM_GALLERY
from workers import SIZES

from mmga import evaluate
from mmga.common.errors import UserError


@functools.cache
def alone(name):
    return shared_cases.evaluated(None, 0, name, [NUM_GALLERY])


# Where the rows of the processes end: evenly, within a tile, with processes that hold none. Cases
# take them in turn.
ENDS = {
    1: [[701]],
    2: [[350, 701], [0, 701]],
    3: [[1, 437, 701]],
    5: [[140, 280, 420, 560, 701], [128, 128, 130, 701, 701]],
}


@pytest.mark.parametrize("name", CASES)
def test_any_number_of_processes_reports_the_same(workers, name):
    expected, number = alone(name), list(CASES).index(name)
    for size in SIZES:
        ends = ENDS[size][number % len(ENDS[size])]
        for found in workers.values(size, shared_cases.evaluated, name, ends):
            for key in {**expected, **found}:
                assert found[key] == expected[key], (size, ends, key)


# Where the rows of the queries and of the gallery end: evenly, within tiles and identities, with
# processes that hold no queries, no items, or neither. Cases take them in turn.
GRIDS = [
    ([30, 53], [350, 701]),
    ([53, 53], [128, 701]),
    ([0, 1, 53], [701, 701]),
    ([26, 53], [1, 437, 701]),
    ([10, 20, 53], [140, 701]),
    ([20, 53], [701]),
    ([9, 9, 30, 53], [701]),
    ([1, 20, 53], [701]),
    ([5, 10, 15, 20, 25, 53], [701]),
    ([2, 53], [100, 650, 701]),
]


@pytest.mark.parametrize("name", [name for name in CASES if "rerank" not in CASES[name]])
def test_any_grid_of_processes_reports_the_same(grids, name):
    expected, number = alone(name), list(CASES).index(name)
    for query_ends, ends in (GRIDS * 2)[number % len(GRIDS) :][:3]:
        size = len(query_ends) * len(ends)
        found = grids(size).values(size, shared_cases.evaluated, name, ends, query_ends)
        for one in found:
            for key in {**expected, **one}:
                assert one[key] == expected[key], (query_ends, ends, key)


def test_the_cases_differ_and_are_what_they_say():
    for name, first in (("projected", (32, "float32")), ("8-bit tiles", (None, "int8"))):
        level, fine, _ = alone(name)["certified"]["levels"]
        assert (level["dimensions"], level["precision"]) == first
        assert 0 < fine["pairs"] < level["pairs"]
    assert alone("certified")["duplicates"] == 1 and alone("certified")["zero_vectors"] == 2
    assert alone("float32")["exact"] == "float32" and alone("certified")["exact"] == "certified"
    figures = {
        np.round(one["mAP"], 9)
        for name in CASES
        for one in (alone(name)["reranked"] or alone(name),)
    }
    assert len(figures) > len(CASES) / 2


@pytest.mark.parametrize(
    ("what", "kinds", "said"),
    [
        ("options", ["UserError", "PeerError"], "the options of process 1 differ from those of"),
        ("queries", ["UserError", "PeerError"], "the queries of process 1 differ from those of"),
        ("values", ["UserError"] * 2, "gallery: 1 of 701 rows .* the first is row 407"),
        ("kind", ["PeerError", "UserError"], "gallery: expected mmga.Features, found Tensor"),
        (
            "columns",
            ["UserError", "PeerError"],
            "process 1 holds paths, pids, time, but process 0 camids, ",
        ),
        ("width", ["UserError", "PeerError"], "narrow has rows of 9 values"),
        ("nothing", ["UserError", "PeerError"], "no process of the group has any of it"),
        ("memory", ["UserError"] * 2, "memory: 1000 cannot hold one tile"),
        ("rerank float32", ["UserError"] * 2, "rerank: .* not with exact='float32'; start one"),
        ("rerank jaccard and fail", ["PeerError", "ZeroDivisionError"], "of all numbers"),
        ("rerank and fail", ["PeerError", "ZeroDivisionError"], "of all numbers"),
    ],
)
def test_what_does_not_fit_ends_all(workers, what, kinds, said):
    answers = workers.call(2, shared_cases.unlike, what)
    assert [how for how, _ in answers] == ["raised", "raised"]
    assert [error[0] for _, error in answers] == kinds
    for _, error in answers:
        assert re.search(said, error[1]), error[1]
    # They go on together after it.
    assert workers.values(2, shared_cases.unlike, "") == [alone("certified")["mAP"]] * 2


@pytest.mark.parametrize(
    ("what", "kinds", "said"),
    [
        ("shares", "UUUU", "query_shares: expected a divisor of the number of processes, 4, fou"),
        ("unlike shares", "UPPP", "the options of process 2 differ from those of process 0"),
        ("rerank", "UUUU", "rerank: one graph of all queries .*; leave out query_shares"),
        ("queries", "UPPP", "the queries of process 1 differ from those of process 0"),
        ("gallery", "UPPP", "the gallery of process 2 differ from those of process 0"),
        ("no queries", "UPPP", "query: no process of the group has any of it; give each"),
        ("values", "PPUP", "gallery: 1 of 701 rows .* the first is row 407"),
        ("one set", "PPUP", "one set is ranked against itself, but pids differ from those"),
        ("a part of one set", "UPPP", "expected the 53 items of the set .*, found 50"),
        ("fails", "PPZP", "of all numbers"),
    ],
)
def test_what_does_not_fit_ends_all_of_a_grid(grids, what, kinds, said):
    answers = grids(4).call(4, shared_cases.unlike_in_grid, what)
    assert [how for how, _ in answers] == ["raised"] * 4
    assert "".join(error[0][0] for _, error in answers) == kinds
    for _, error in answers:
        assert re.search(said, error[1]), error[1]
        assert error[1].count("of the run met an error") == (error[0] == "PeerError")
    # They go on together after it.
    assert grids(4).values(4, shared_cases.unlike_in_grid, "") == [alone("certified")["mAP"]] * 4


def test_a_part_of_the_processes_forms_no_grid(grids):
    for how, error in grids(6).call(4, shared_cases.unlike_in_grid, ""):
        assert how == "raised" and "made of all 6 processes of the run, found a group" in error[1]


def test_a_group_needs_torch_distributed():
    query, gallery = shared_cases.sides("")
    with pytest.raises(UserError, match=r"group: torch\.distributed has no process group here"):
        evaluate(query, gallery, group=True)


def test_what_is_sent_does_not_grow_with_the_features(workers):
    narrow, wide = (workers.values(2, shared_cases.sent, kind)[0] for kind in ("", "wide"))
    for counts in (narrow, wide):
        # Keys and counts of the matches, three counts of each query, two of each of two stages.
        expected = 16 * counts["matches"] + 24 * counts["queries"] + 32
        assert counts["all_reduce"] == expected
        # Identities, cameras and norms, and some hundred bytes that say who has what.
        assert 24 * 350 < counts["all_gather"] < 24 * 350 + 2000


def test_exchanges_keep_every_bit(workers):
    odd = torch.tensor([0.0, -0.0, torch.nan, 1.5, torch.inf], dtype=torch.float64)
    (mine, *first), (theirs, *second) = workers.values(2, shared_cases.exchanged)
    assert first == second
    assert [mine, theirs] == [(0, [0, 1, 10], [2, 1]), (1, [2, 11, 12], [1, 2])]
    bits, columns, rows, most = first
    assert bits == odd.view(torch.int64).tolist()
    assert columns == [
        {"name": ("<U1", ["a"])},
        {"name": ("<U3", ["a", "bcd"]), "more": ("<i2", [[0] * 3] * 2)},
    ]
    assert rows == [[[1.0, 1.0]] * 2, [0, 1, 2, *range(10, 17)]] and most == -2
