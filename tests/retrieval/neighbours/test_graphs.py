"""Sparse graphs of neighbours against brute force in float64."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import mmga
from mmga.common.errors import UserError
from mmga.retrieval.neighbours import certified_knn, search_plan


def persons(seed, count=90, width=33):
    rng = np.random.default_rng(seed)
    rows = rng.standard_normal((9, width))[rng.integers(0, 9, count)]
    rows = rows + 0.2 * rng.standard_normal((count, width))
    rows[5], rows[6] = rows[7], 0  # a duplicate, and a vector without a direction
    return rows.astype(np.float32)


def brute_force(rows, metric):
    wide = rows.astype(np.float64)
    if metric == "euclidean":
        return np.sqrt(((wide[:, None] - wide) ** 2).sum(2))
    norms = np.linalg.norm(wide, axis=1, keepdims=True)
    units = np.divide(wide, norms, out=np.zeros_like(wide), where=norms > 0)
    found = 1 - units @ units.T
    found[np.abs(found) < 2.0**-48] = 0
    np.fill_diagonal(found, 0)
    return found


@settings(max_examples=30, derandomize=True, deadline=None)
@given(
    st.integers(0, 99),
    st.sampled_from(["cosine", "euclidean"]),
    st.sampled_from([0.0, 0.02, 0.3, 0.9]),
    st.sampled_from([16, 512]),
    st.booleans(),
)
def test_stored_are_the_pairs_within_the_radius(seed, metric, share, tile, small):
    rows = persons(seed)
    expected = brute_force(rows, metric)
    # Between two distances, where float64's rounding decides nothing.
    ascending = np.unique(expected.round(12))
    place = int(share * (len(ascending) - 2))
    radius = float(ascending[place : place + 2].mean()) if share else 0.0
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(certified_knn, "TILE", tile)
        patch.setattr(search_plan, "_SMALL", 1e10 if small else 0)
        found = mmga.neighbours_within(rows, radius, metric)
    assert found.dtype.is_floating_point and found.values().dtype.itemsize == 8
    dense = mmga.to_dense(found, absent=np.inf)
    assert np.array_equal(np.isfinite(dense), expected <= radius)
    stored = np.isfinite(dense)
    np.testing.assert_allclose(dense[stored], expected[stored], rtol=0, atol=1e-13)
    assert np.array_equal(dense, dense.T) and not np.diagonal(dense).any()
    assert dense[5, 7] == 0


def test_dbscan_takes_the_graph(recwarn):
    cluster = pytest.importorskip("sklearn.cluster")
    pytest.importorskip("scipy")
    rows = persons(3, 200)
    graph = mmga.to_scipy(mmga.neighbours_within(rows, 0.4))
    expected = brute_force(rows, "cosine").clip(0)
    for eps in (0.1, 0.4):
        model = cluster.DBSCAN(eps=eps, min_samples=3, metric="precomputed")
        assert (model.fit_predict(graph) == model.fit_predict(expected)).all()


@pytest.mark.parametrize(
    ("radius", "metric", "sentence"),
    [
        (-1.0, "cosine", "radius must be a finite distance"),
        (float("nan"), "cosine", "radius must be a finite distance"),
        (float("inf"), "euclidean", "radius must be a finite distance"),
        (True, "cosine", "radius must be a finite distance"),
        ("1", "cosine", "radius must be a finite distance"),
        (1.0, "manhattan", "metric must be one of"),
    ],
)
def test_what_is_no_radius(radius, metric, sentence):
    with pytest.raises(UserError, match=sentence):
        mmga.neighbours_within(persons(0), radius, metric)


def test_features_that_have_no_bounds_are_refused():
    with pytest.raises(UserError, match="certified neighbours are not found"):
        mmga.neighbours_within(persons(0) * 2.0**45, 1.0, "euclidean")
