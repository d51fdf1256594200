"""Several processes that share a gallery hold one index, and give its distances, bit for bit."""

import functools
import json
import re
import shutil

import numpy as np
import pytest
import shared_index_cases
import torch
from shared_index_cases import CASES, NUM_ITEMS, features
from shared_neighbours import ENDS, sides
from workers import SIZES

import mmga
from mmga.common.errors import UserError


@functools.cache
def alone(name):
    return shared_index_cases.found(None, 0, name, [NUM_ITEMS])


def same(parts, expected):
    """Return whether what processes hold, one after the other, is what one process holds."""
    arrays, distances = zip(*parts, strict=True)
    joined = [b"".join(one) for one in zip(*arrays, strict=True)]
    final = [np.concatenate(one) for one in zip(*distances, strict=True)]
    return joined == expected[0] and all(map(np.array_equal, final, expected[1]))


@pytest.mark.parametrize("name", CASES)
def test_any_number_of_processes_gets_the_same_distances(workers, name):
    number = list(CASES).index(name)
    for size in SIZES:
        ends = ENDS[size][number % len(ENDS[size])]  # cases take them in turn
        parts = workers.values(size, shared_index_cases.found, name, ends)
        assert same(parts, alone(name)), (size, ends)


def test_the_queries_change_lists_sets_and_maxima():
    index = shared_index_cases.built(None, 0, "duplicates", [NUM_ITEMS])
    near, *_, far = shared_index_cases.reranked(index, "duplicates")
    assert (near == near.min()).sum() > 3  # duplicates tie
    query = shared_index_cases.queries("duplicates")[-1]
    query = torch.from_numpy(query)
    assert (index.squared_distances(query) > index.arrays["maxima"]).all()
    assert np.isfinite(far).all()


@pytest.mark.parametrize("writers", SIZES)
def test_any_number_of_processes_loads_what_any_number_saved(workers, writers, tmp_path):
    path = str(tmp_path / "gallery.mmga-index")
    ends = ENDS[writers][-1]
    workers.values(writers, shared_index_cases.saved, path, ends)
    assert [one.name for one in tmp_path.iterdir()] == ["gallery.mmga-index"]
    labels = {"pid": features().pid_names[features().pids].tolist()}
    labels["path"] = features().paths.tolist()
    expected = mmga.GalleryIndex.build(features())
    expected = shared_index_cases.stored(expected), shared_index_cases.reranked(expected, "cosine")
    for readers in SIZES:
        parts = workers.values(readers, shared_index_cases.loaded, path)
        assert same([part[:2] for part in parts], expected), readers
        assert all(part[2] == labels for part in parts)
    one = shared_index_cases.loaded(None, 0, path)
    assert same([one[:2]], expected) and one[2] == labels


def test_shards_that_are_damaged_are_noticed(workers, tmp_path):
    path = tmp_path / "gallery.mmga-index"
    workers.values(2, shared_index_cases.saved, str(path), ENDS[2][0])
    for name, said in (
        ("000000150.maxima", r"000000150\.maxima\.npy differs from its checksum"),
        ("000000000.features", r"000000000\.features\.npy cannot be read"),
    ):
        kept = tmp_path / "kept"
        shutil.copytree(path, kept)
        content = bytearray((path / f"{name}.npy").read_bytes())
        content[-1] ^= 1
        (path / f"{name}.npy").write_bytes(content)
        if "features" in name:
            (path / f"{name}.npy").unlink()
        answers = workers.call(2, shared_index_cases.loaded, str(path))
        assert {error[0] for _, error in answers} == {"UserError", "PeerError"}
        assert all(re.search(said, error[1]) for _, error in answers)
        with pytest.raises(UserError, match=said):
            mmga.GalleryIndex.load(path)
        shutil.rmtree(path)
        kept.rename(path)
    meta = json.loads((path / "index.json").read_text())
    for shards in ([[0, 301]], [[0, 150], [151, 301]], [[0, 150], [150, 150], [150, 301]], 3, None):
        (path / "index.json").write_text(json.dumps({**meta, "shards": shards}))
        with pytest.raises(UserError):
            mmga.GalleryIndex.load(path)


@pytest.mark.parametrize(
    ("what", "kinds", "said"),
    [
        ("rule", ["UserError", "PeerError"], "the settings of process 1 differ from those of"),
        ("junk", ["PeerError", "UserError"], "gallery holds 1 junk items"),
        ("values", ["PeerError", "UserError"], "gallery: expected finite features, row 207 "),
        ("nothing", ["UserError", "PeerError"], "gallery: no process of the group has any of it"),
        ("memory", ["PeerError", "UserError"], "memory: .* suffice for the neighbours of 301"),
        ("float32", ["UserError", "PeerError"], "several processes find certified neighbours, fo"),
        ("query", ["UserError", "PeerError"], "the query of process 1 differ from those of"),
        ("width of the query", ["PeerError", "UserError"], "query must be one vector of 40 numb"),
        ("a bug in the index", ["PeerError", "ZeroDivisionError"], "of all numbers"),
        ("a bug in the sets", ["PeerError", "ZeroDivisionError"], "of all numbers"),
        ("a bug in encodings", ["PeerError", "ZeroDivisionError"], "of all numbers"),
        ("a bug in distances", ["PeerError", "ZeroDivisionError"], "of all numbers"),
        ("a full disk", ["PeerError", "UserError"], r"x\.mmga-index could not be written: No sp"),
    ],
)
def test_what_does_not_fit_ends_all(workers, tmp_path, what, kinds, said):
    path = str(tmp_path / "x.mmga-index")
    answers = workers.call(2, shared_index_cases.unlike, what, path)
    assert [how for how, _ in answers] == ["raised", "raised"]
    for _, error in answers:
        assert re.search(said, error[1]), error[1]
    assert [error[0] for _, error in answers] == kinds
    assert not list(tmp_path.iterdir())
    # They go on together after it.
    query, items = sides("")
    parts = workers.values(2, shared_index_cases.unlike, "", path)
    assert parts[0] + parts[1] == mmga.GalleryIndex.build(items).rerank(query[2]).tolist()
