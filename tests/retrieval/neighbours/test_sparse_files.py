"""Sparse distances in files: shards by processes, read by rows; what does not fit is refused."""

import json
import re

import numpy as np
import pytest
import shared_jaccard_cases
import torch
from shared_neighbours import sides

from mmga import jaccard_distance, load_distances, save_distances
from mmga.common.errors import UserError


@pytest.fixture(scope="module")
def matrix():
    return jaccard_distance(sides("")[1], max_distance=0.62)


def same(one, other):
    parts = ("crow_indices", "col_indices", "values")
    return one.shape == other.shape and all(
        torch.equal(getattr(one, part)(), getattr(other, part)()) for part in parts
    )


def test_one_process_writes_what_it_reads(matrix, tmp_path):
    save_distances(matrix, tmp_path / "found.json")
    assert same(load_distances(tmp_path / "found.json"), matrix)
    listed = json.loads((tmp_path / "found.json").read_text())
    assert listed["shape"] == [301, 301] and len(listed["shards"]) == 1


def test_processes_write_shards_of_one_matrix(workers, matrix, tmp_path):
    # What is there is replaced.
    workers.values(5, shared_jaccard_cases.written, str(tmp_path), [60, 120, 180, 240, 301])
    workers.values(3, shared_jaccard_cases.written, str(tmp_path), [101, 101, 301])
    found = tmp_path / "found.json"
    assert same(load_distances(found), matrix)
    listed = json.loads(found.read_text())
    assert [shard["rows"] for shard in listed["shards"]] == [[0, 101], [101, 301]]
    assert len(list((tmp_path / "found.shards").iterdir())) == 6
    offsets = np.load(tmp_path / listed["shards"][1]["indptr"])
    assert offsets[0] == 0 and len(offsets) == 201
    dense = matrix.to_dense()
    for first, last in ((0, 301), (50, 150), (101, 102), (200, 301), (7, 7)):
        assert torch.equal(load_distances(found, first, last).to_dense(), dense[first:last])


def test_a_shard_that_cannot_be_written_leaves_no_list(workers, tmp_path):
    answers = workers.call(2, shared_jaccard_cases.unwritten, str(tmp_path))
    assert [error[0] for _, error in answers] == ["PeerError", "UserError"]
    for _, error in answers:
        assert re.search(r"indptr.npy could not be written: No space left", error[1])
    assert not (tmp_path / "found.json").exists() and not list(tmp_path.glob("*/.*"))


def damaged(folder, how):
    found = folder / "found.json"
    listed = json.loads(found.read_text())
    if how == "no list":
        found.write_text('{"rows": 3}')
    elif how == "rows":
        listed["shards"][0]["rows"] = [1, 301]
        found.write_text(json.dumps(listed))
    elif how == "gone":
        (folder / listed["shards"][0]["data"]).unlink()
    elif how == "short":
        file = folder / listed["shards"][0]["indices"]
        np.save(file, np.load(file)[:-1])
    elif how in ("indices", "indptr"):
        file = folder / listed["shards"][0][how]
        changed = np.load(file)
        changed[7] = 400 if how == "indices" else -1
        np.save(file, changed)
    elif how == "pickled":
        np.save(folder / listed["shards"][0]["data"], np.array([{}]), allow_pickle=True)
    return found


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ("no list", "expected a list of shards as mmga.save_distances writes it"),
        ("rows", "do not hold consecutive rows"),
        ("gone", "data.npy could not be read"),
        ("short", "do not hold 301 sparse rows; write the distances again"),
        ("indices", "hold no sparse rows of 301 columns; write the distances again"),
        ("indptr", "hold no sparse rows of 301 columns; write the distances again"),
        ("pickled", "data.npy could not be read"),
    ],
)
def test_damaged_files_are_refused(matrix, tmp_path, how, said):
    save_distances(matrix, tmp_path / "found.json")
    with pytest.raises(UserError, match=said):
        load_distances(damaged(tmp_path, how))


def test_what_cannot_be_meant_is_refused(matrix, tmp_path):
    with pytest.raises(UserError, match=r"are listed in a \.json file; name one"):
        save_distances(matrix, tmp_path / "found.npz")
    with pytest.raises(UserError, match="must be a torch sparse CSR tensor"):
        save_distances(matrix.to_dense(), tmp_path / "found.json")
    save_distances(matrix, tmp_path / "found.json")
    with pytest.raises(UserError, match="expected rows within 0 to 301, found 5 to 302"):
        load_distances(tmp_path / "found.json", 5, 302)
