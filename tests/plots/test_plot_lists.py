"""Ranked lists of feature rows: order, verdicts and pictures."""

import numpy as np
import pytest
import torch
from PIL import Image

import mmga

pytest.importorskip("matplotlib")
from figures import texts, verdicts

from mmga import plots


def line(places, pids, camids=None, paths=None):
    """Features at angles, so that the order is that of places."""
    angles = np.asarray(places, np.float32) / 100
    rows = np.stack([np.cos(angles), np.sin(angles)], 1)
    return mmga.Features(rows, pids, camids, paths)


QUERY = line([0, 0], ["ann", "bob"], ["hall", "hall"])
GALLERY = line(
    [5, 4, 3, 2, 1, 6],
    ["ann", "bob", "ann", "ann", "-1", ""],
    ["hall", "yard", "yard", "hall", "yard", "yard"],
)


def test_lists_follow_the_protocol():
    (ann, bob) = plots.rank_queries(QUERY, GALLERY, [0, 1])
    # Junk, unknown items and those of the query's identity and camera are left out.
    assert (ann.items.tolist(), ann.verdicts) == ([2, 1], ["right", "wrong"])
    assert (ann.first_match, bob.first_match) == (1, 3)
    assert bob.items.tolist() == [3, 2, 1, 0]
    assert bob.verdicts == ["wrong", "wrong", "right", "wrong"]
    np.testing.assert_allclose(bob.distances, 1 - np.cos([0.02, 0.03, 0.04, 0.05]), atol=1e-6)


def test_left_out_items_are_shown_in_their_places_on_request():
    (ann,) = plots.rank_queries(QUERY, GALLERY, [0], excluded=True)
    assert ann.items.tolist() == [4, 3, 2, 1, 0, 5]
    assert ann.verdicts == ["excluded", "excluded", "right", "wrong", "excluded", "excluded"]
    assert ann.first_match == 1
    (ann,) = plots.rank_queries(QUERY, GALLERY, [0], protocol="other-cameras", excluded=True)
    assert ann.verdicts == ["excluded", "excluded", "right", "wrong", "excluded", "excluded"]
    (bob,) = plots.rank_queries(QUERY, GALLERY, [1], protocol="other-cameras")
    assert bob.items.tolist() == [2, 1]


def test_a_query_does_not_find_itself():
    paths = [f"{place}.png" for place in range(4)]
    one = line([0, 2, 3, 5], [1, 1, 2, 2], paths=paths)
    (found,) = plots.rank_queries(one, one, [2], protocol="all-vs-all")
    assert found.items.tolist() == [1, 3, 0] and found.first_match == 2
    (found,) = plots.rank_queries(one.select([3]), one, [0], protocol="no-camera")
    assert found.items.tolist() == [2, 1, 0]


def test_first_matches_are_those_of_the_evaluation():
    generator = np.random.default_rng(0)
    sides = [
        mmga.Features(
            generator.standard_normal((count, 8)).astype(np.float32),
            generator.integers(0, 9, count),
            generator.integers(0, 3, count),
        )
        for count in (40, 200)
    ]
    for metric in ("cosine", "euclidean"):
        report = mmga.evaluate(*sides, metric=metric)
        found = plots.rank_queries(*sides, range(40), metric=metric, topk=3)
        first = [one.first_match or 0 for one in found]
        assert first == report.per_query.first_rank.tolist()


def test_hardest_and_easiest_queries_are_those_of_the_average_precision():
    report = mmga.evaluate(QUERY, GALLERY)
    assert plots.hardest(report, 5).tolist() == [1, 0]
    assert plots.easiest(report, 1).tolist() == [0]
    # Queries that were not ranked are neither; of equal ones more matches are easier.
    query = line([0, 50, 0, 0], [1, 2, 7, 3], [1] * 4)
    gallery = line([1, 2, 51, 3], [1, 1, 2, 3], [2] * 4)
    report = mmga.evaluate(query, gallery)
    assert plots.hardest(report, 9).tolist() == [3, 1, 0]
    assert plots.easiest(report, 2).tolist() == [0, 1]


def test_pictures_are_found_below_folders_by_their_paths(tmp_path):
    for name in ("here/query/a.png", "here/gallery/x.png", "there/y.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (6, 12), (len(name), 0, 0)).save(tmp_path / name)
    (tmp_path / "there/z.png").write_bytes(b"no picture")
    query = line([0], [1], [1], ["/data/set/query/a.png"])
    gallery = line([1, 2, 3, 4], [1, 2, 1, 2], [2] * 4, [f"gallery/{one}.png" for one in "xyzw"])
    folders = plots.FolderPictures([tmp_path / "here", tmp_path / "there"], query, gallery)
    figure = plots.ranked_lists(query, gallery, [0], folders)
    reds = [int(axes.images[0].get_array()[0, 0, 0]) for axes in figure.axes if axes.images]
    assert sorted(reds) == [11, 16, 18]
    assert verdicts(figure) == ["right", "wrong", "right", "wrong"]
    assert texts(figure)[1:4] == ["rank 1", "c1", "id 1"]
    assert list(folders.missing) == ["gallery/w.png"] and list(folders.broken) == ["gallery/z.png"]
    assert "cannot be decoded" in folders.first_error


def test_no_picture_outside_of_the_folders_is_read(tmp_path):
    (tmp_path / "images").mkdir()
    Image.new("RGB", (6, 12)).save(tmp_path / "other.png")
    paths = [str(tmp_path / "other.png"), "../other.png"]
    side = line([0, 1], [1, 1], [1, 2], paths)
    folders = plots.FolderPictures([tmp_path / "images"], side, side)
    assert [folders("query", row) for row in range(2)] == [None, None]
    assert list(folders.missing) == paths


def test_any_function_gives_pictures():
    asked = []

    def picture(side, row):
        asked.append((side, row))
        return torch.zeros(3, 4, 2, dtype=torch.uint8, device="cpu")

    plots.ranked_lists(QUERY, GALLERY, [1], picture, topk=2)
    assert sorted(asked) == [("gallery", 2), ("gallery", 3), ("query", 1)]


def test_part_features_are_refused_in_a_sentence():
    parts = mmga.Features(parts=np.ones((2, 3, 4), np.float32), pids=[1, 1], camids=[1, 2])
    with pytest.raises(mmga.UserError, match="these are part features"):
        plots.rank_queries(parts, parts, [0])


@pytest.mark.parametrize("row", [-1, len(QUERY)])
def test_a_row_that_is_not_there_is_named(row):
    with pytest.raises(mmga.UserError, match=f"expected 0 to {len(QUERY) - 1}, found {row}"):
        plots.ranked_lists(QUERY, GALLERY, [0, row])
