"""Marks of single pairs beside the selection, which applies the same rules to whole sides."""

import numpy as np
import pytest

import mmga
from mmga.retrieval.protocols.marks import MARKS, RIGHT, marks
from mmga.retrieval.protocols.protocol import protocol_named
from mmga.retrieval.protocols.selection import Labels, select


def side(count, seed):
    generator = np.random.default_rng(seed)
    pids = generator.choice(["ann", "bob", "eve", "-1", ""], count, p=[0.3, 0.3, 0.2, 0.1, 0.1])
    camids = generator.choice(["hall", "yard", "gate", ""], count, p=[0.3, 0.3, 0.3, 0.1])
    paths = [f"{place}.png" for place in generator.permutation(2 * count)[:count]]
    columns = {"time": generator.integers(0, 9, count)}
    rows = generator.standard_normal((count, 4)).astype(np.float32)
    return mmga.Features(rows, pids, camids, paths, columns=columns)


@pytest.mark.parametrize("exclude", [None, "time == query.time"])
@pytest.mark.parametrize("name", ["market1501", "other-cameras", "no-camera", "all-vs-all"])
def test_marks_leave_out_what_the_selection_leaves_out(name, exclude):
    rules, gallery = protocol_named(name), side(60, 1)
    query = gallery if name == "all-vs-all" else side(30, 2)
    labels = Labels.of(query, gallery, exclude, rules.needs_cameras)
    selection = select(rules, labels)
    items = np.arange(len(gallery))
    seen = set()
    for row in selection.queries:
        found = marks(rules, labels, np.full(len(gallery), row), items)
        assert (found <= RIGHT).sum() == selection.num_kept[row]
        assert (found == RIGHT).sum() == selection.num_matches[row]
        seen |= set(found.tolist())
    words = " ".join(MARKS[one] for one in seen)
    assert ("--exclude" in words) == (exclude is not None)
    assert ("camera of the query" in words) == rules.needs_cameras
    assert "junk" in words and "unknown" in words
