"""Our entries of the table "The same ranking, other packages' figures" in docs/evaluation.md."""

import numpy as np
import pytest
import torch

import mmga
from mmga import Features, evaluate_distances


def side(pids, camids=None):
    return Features(torch.zeros(len(pids), 1), pids, camids)


def test_a_query_without_a_match_is_left_out_or_zero():
    distmat = np.array([[1.0, 2, 3], [1, 2, 3]])
    query, gallery = side([1, 9], [0, 0]), side([2, 1, 3], [1, 1, 1])
    report = evaluate_distances(distmat, query, gallery)
    assert (report.mAP, report.cmc[1], report.num_valid_query) == (0.5, 1, 1)
    assert report.excluded["queries_without_match"] == 1
    report = evaluate_distances(distmat, query, gallery, "market1501-matlab")
    assert (report.mAP, report.cmc[1]) == (0.125, 0.5)  # trapezoid AP of rank 2: (0 + 1/2) / 2


def test_junk_is_no_distractor_and_no_query():
    distmat = np.array([[1.0, 2, 3], [3, 2, 1]])
    report = evaluate_distances(distmat, side([1, -1], [0, 0]), side([-1, 1, -1], [1, 1, 1]))
    assert (report.rank1, report.mAP, report.distractors) == (1, 1, 0)
    assert (report.excluded["junk"], report.excluded["junk_queries"]) == (2, 1)


def test_the_average_is_over_all_matches_that_are_kept():
    """Neither over those within CMC's two ranks nor over those of the query's camera."""
    distmat = np.array([[0.0, 1, 2, 3, 4]])
    gallery = side([1, 1, 2, 2, 1], [0, 1, 1, 1, 1])
    report = evaluate_distances(distmat, side([1], [0]), gallery, max_rank=2)
    assert report.mAP == pytest.approx((1 / 1 + 2 / 4) / 2)
    assert report.cmc.tolist() == [1, 1]


@pytest.mark.parametrize("items", [8, 300, 5000])
def test_equal_distances_go_by_gallery_index_and_are_counted(items):
    for place in (0, items // 2, items - 1):
        pids = np.zeros(items, int)
        pids[place] = 1
        report = evaluate_distances(np.ones((1, items)), side([1]), side(pids), "no-camera")
        assert report.per_query.first_rank[0] == place + 1
        assert report.ties == 1


def test_a_list_of_all_items_has_no_padding():
    rows = torch.randn(7, 5, generator=torch.Generator().manual_seed(0))
    distances, indices = mmga.nearest(rows, rows, 7)
    assert torch.equal(indices.sort(1).values, torch.arange(7).expand(7, 7))
    assert bool(torch.isfinite(distances).all())


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
def test_duplicates_stand_by_their_index_in_large_products_too(metric):
    rows = torch.randn(2000, 96, generator=torch.Generator().manual_seed(0))
    gallery = torch.cat([rows, rows])
    indices = mmga.nearest(rows, gallery, 2, metric)[1]
    both = torch.stack([torch.arange(2000), torch.arange(2000) + 2000], 1)
    assert torch.equal(indices, both)


def test_a_gallery_smaller_than_max_rank():
    distmat = np.array([[2.0, 1], [1, 2]])
    report = evaluate_distances(distmat, side([1, 2]), side([1, 2]), "no-camera", max_rank=50)
    assert report.cmc.tolist() == [0] + [1] * 49


def test_negative_distances_are_distances():
    distmat = np.array([[-3.0, -2, -1]])
    report = evaluate_distances(distmat, side([1]), side([1, 2, 1]), "no-camera")
    assert (report.rank1, report.mAP) == (1, pytest.approx((1 + 2 / 3) / 2))


@pytest.mark.parametrize(
    "ids",
    [
        np.array([2**24, 2**24 + 1]),
        np.array([2**62, 2**62 + 1]),
        np.array([3, 250], np.uint8),
        np.array([-5, 5]),
        np.array(["a", "b"]),
    ],
    ids=["beyond float32", "beyond float64", "unsigned", "negative", "names"],
)
def test_ids_are_compared_as_they_are(ids):
    report = evaluate_distances(np.array([[1.0, 2], [1, 2]]), side(ids), side(ids), "no-camera")
    assert report.per_query.first_rank.tolist() == [1, 2]


def test_jaccard_distances_of_fewer_rows_than_neighbours():
    rows = torch.nn.functional.normalize(torch.rand(5, 4), dim=1)
    dense = mmga.compat.compute_jaccard_distance(rows, k1=30, k2=6)
    assert np.isfinite(dense).all()
    assert (np.diag(dense) == 0).all()
    assert np.array_equal(dense, dense.T)


def test_a_file_of_column_ordered_rows_is_read_in_its_order(tmp_path):
    rows = np.asfortranarray(np.random.default_rng(0).standard_normal((6, 3)).astype(np.float32))
    for name in ("f.npz", "f.safetensors", "f.pt"):
        Features(rows, np.arange(6)).save(tmp_path / name)
        assert np.array_equal(mmga.load_features(tmp_path / name).features.numpy(), rows), name


@pytest.mark.parametrize("exact", ["certified", "float32"])
@pytest.mark.parametrize("kind", ["f2", "f4", "f8"])
def test_column_order_and_a_zero_vector_in_a_search(kind, exact):
    rows = np.random.default_rng(0).standard_normal((30, 8)).astype(kind)
    rows[7] = 0
    distances, indices = mmga.nearest(rows, rows, 30, "cosine", exact=exact)
    assert (distances[indices == 7] == 1).all()
    parts = np.concatenate([rows, rows[::-1]], axis=1)
    for same in (np.asfortranarray(rows), parts[:, :8]):
        found = mmga.nearest(same, same, 30, "cosine", exact=exact)
        assert np.array_equal(found[0], distances)
        assert np.array_equal(found[1], indices)
