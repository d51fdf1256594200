"""Sparse graphs of neighbours against brute force in float64."""

import re
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import mmga
from mmga.common.errors import UserError
from mmga.retrieval.neighbours import certified_knn, graphs, search_plan


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


def nearest_rows(rows, metric, k, include_self):
    """Columns, ascending, and distances of the k nearest by (float64 distance, index)."""
    expected = brute_force(rows, metric)
    ranked = expected.copy()
    np.fill_diagonal(ranked, -1 if include_self else np.inf)
    columns = np.sort(np.argsort(ranked, axis=1, kind="stable")[:, :k])
    return columns, np.take_along_axis(expected, columns, 1)


@settings(max_examples=30, derandomize=True, deadline=None)
@given(
    st.integers(0, 99),
    st.sampled_from(["cosine", "euclidean"]),
    st.sampled_from([1, 2, 21, 89]),
    st.booleans(),
)
def test_each_row_holds_its_k_nearest(seed, metric, k, include_self):
    rows = persons(seed)
    graph = mmga.kneighbors_graph(rows, k, metric, include_self=include_self)
    columns, distances = nearest_rows(rows, metric, k, include_self)
    assert graph.shape == (90, 90) and graph.dtype == torch.float64
    assert (graph.crow_indices().diff() == k).all()
    assert np.array_equal(graph.col_indices().view(90, k), columns)
    found = graph.values().view(90, k).numpy()
    np.testing.assert_allclose(found, distances, rtol=0, atol=1e-13)
    assert np.array_equal(found == 0, distances == 0)  # duplicates, and with itself the diagonal
    ones = mmga.kneighbors_graph(rows, k, metric, "connectivity", include_self)
    assert torch.equal(ones.col_indices(), graph.col_indices()) and (ones.values() == 1).all()
    torch.sparse_csr_tensor(
        graph.crow_indices(), graph.col_indices(), graph.values(), check_invariants=True
    )


@pytest.mark.parametrize("exact", ["certified", "float32"])
def test_more_duplicates_than_neighbours(exact):
    graph = mmga.kneighbors_graph(np.ones((9, 4), np.float32), 3, include_self=True, exact=exact)
    itself = mmga.to_dense(graph, absent=np.inf).diagonal()
    assert not itself.any() and not graph.values().any()
    others = mmga.kneighbors_graph(np.ones((9, 4), np.float32), 3, exact=exact)
    assert np.isinf(mmga.to_dense(others, absent=np.inf).diagonal()).all()
    assert (others.crow_indices().diff() == 3).all()


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ((0,), "k must be from 1 to the 89 others that a vector has, got 0"),
        ((90,), "k must be from 1 to the 89 others that a vector has, got 90"),
        ((91, "cosine", "distance", True), "k must be from 1 to the 90 vectors, got 91"),
        ((2.5,), "k must be an integer, got 2.5"),
        ((5, "manhattan"), "metric must be one of"),
        ((5, "cosine", "weights"), "mode must be one of distance, connectivity, got 'weights'"),
    ],
)
def test_what_is_no_graph(words, sentence):
    with pytest.raises(UserError, match=sentence):
        mmga.kneighbors_graph(persons(0), *words)


@pytest.mark.parametrize(
    ("find", "what"),
    [
        (mmga.nearest, "the 5 nearest of 90 queries"),
        (mmga.kneighbors_graph, "a graph of 90 x 5 neighbours"),
        (mmga.neighbours_within, "a search among 90 vectors"),
        (mmga.neighbours_within, "the pairs within 5"),
        (mmga.jaccard_distance, "the neighbours of 90 items"),
    ],
)
def test_too_little_memory_says_how_much_is_enough(find, what, monkeypatch):
    rows = persons(1)
    sides = (rows, rows) if find is mmga.nearest else (rows,)
    words = () if find is mmga.jaccard_distance else (5,)
    if "pairs" in what:
        monkeypatch.setattr(graphs, "search_bytes", lambda rows, columns, k: 0)
    with pytest.raises(UserError, match=f"does not suffice for {what}; give at least") as error:
        find(*sides, *words, memory="4K" if "pairs" not in what else "20K")
    if "search" in what:
        return  # how many pairs there are is not known before
    least = re.search(r"at least (\S+)$", str(error.value)).group(1)
    plain, found = find(*sides, *words), find(*sides, *words, memory=least)
    if find is mmga.nearest:
        assert all(map(np.array_equal, plain, found))
    else:
        assert np.array_equal(mmga.to_dense(plain), mmga.to_dense(found))
    with pytest.raises(UserError, match="memory: expected a size such as 2G or 500M, found '-1'"):
        find(*sides, *words, memory="-1")


@pytest.fixture
def sklearn():
    pytest.importorskip("scipy")
    return pytest.importorskip("sklearn")


@pytest.fixture
def points():
    """Points in one component, without ties, which float32 holds exactly."""
    rng = np.random.default_rng(7)
    rows = np.concatenate([rng.standard_normal((30, 6)) + 1.6 * place for place in range(3)])
    return rows.astype(np.float32).astype(np.float64)


def same_matrix(found, expected):
    assert np.array_equal(found.indptr, expected.indptr)
    assert np.array_equal(found.indices, expected.indices)
    np.testing.assert_allclose(found.data, expected.data, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
def test_graphs_are_those_of_sklearn(sklearn, points, metric):
    from sklearn import neighbors

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for include_self in (False, True):
            for mode in ("distance", "connectivity"):
                found = mmga.kneighbors_graph(points, 7, metric, mode, include_self)
                theirs = neighbors.kneighbors_graph(
                    points, 7, mode=mode, metric=metric, include_self=include_self
                )
                if mode == "connectivity":
                    theirs.sort_indices()
                same_matrix(mmga.to_scipy(found, by_distance=True), theirs)
        found = mmga.kneighbors_graph(points, 8, metric, include_self=True)
        transformer = neighbors.KNeighborsTransformer(n_neighbors=7, metric=metric)
        same_matrix(mmga.to_scipy(found, by_distance=True), transformer.fit_transform(points))
        radius = 0.3 if metric == "cosine" else 2.0
        near = mmga.neighbours_within(points, radius, metric)
        theirs = neighbors.radius_neighbors_graph(
            points, radius, mode="distance", metric=metric, include_self=True
        )
        theirs = neighbors.sort_graph_by_row_values(theirs, copy=True, warn_when_not_sorted=False)
        same_matrix(mmga.to_scipy(near, by_distance=True), theirs)


def answers(estimator, graph):
    """What an estimator makes of a neighbour graph, of which it warns as of no other."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return estimator.fit(graph)


def test_estimators_give_the_same_on_our_graphs(sklearn, points):
    from sklearn import cluster, manifold, neighbors

    ours = mmga.kneighbors_graph(points, 26, "euclidean", include_self=True)
    theirs = neighbors.KNeighborsTransformer(n_neighbors=25).fit_transform(points)
    both = (mmga.to_scipy(ours, by_distance=True), theirs)
    spectral = cluster.SpectralClustering(
        3, n_neighbors=12, affinity="precomputed_nearest_neighbors", random_state=0
    )
    labels = [answers(spectral, graph.copy()).labels_ for graph in both]
    assert np.array_equal(*labels) and len(set(labels[0])) == 3
    isomap = manifold.Isomap(n_neighbors=12, metric="precomputed")
    placed = [answers(isomap, graph.copy()).embedding_ for graph in both]
    np.testing.assert_allclose(*placed, atol=1e-6)
    tsne = manifold.TSNE(
        perplexity=8, metric="precomputed", init="random", random_state=0, max_iter=250
    )
    placed = [answers(tsne, graph.copy()).embedding_ for graph in both]
    np.testing.assert_allclose(*placed, rtol=1e-3, atol=1e-3)
    dbscan = cluster.DBSCAN(eps=1.7, min_samples=4, metric="precomputed")
    labels = [answers(dbscan, graph.copy()).labels_ for graph in both]
    assert np.array_equal(*labels) and len(set(labels[0])) > 2


def test_estimators_that_want_symmetric_graphs(sklearn, points):
    from sklearn import cluster, neighbors

    radius = 9.0  # which leaves one component, that HDBSCAN needs
    near = mmga.to_scipy(mmga.neighbours_within(points, radius, "euclidean"), by_distance=True)
    theirs = neighbors.radius_neighbors_graph(points, radius, mode="distance", include_self=True)
    assert points.shape[0] < near.nnz < points.shape[0] ** 2
    dbscan = cluster.DBSCAN(eps=1.7, min_samples=4)
    labels = dbscan.fit_predict(points)
    assert len(set(labels)) > 2
    dbscan.set_params(metric="precomputed")
    assert np.array_equal(answers(dbscan, near.copy()).labels_, labels)
    hdbscan = cluster.HDBSCAN(min_cluster_size=5, metric="precomputed", copy=True)
    labels = [answers(hdbscan, graph).labels_ for graph in (near, theirs)]
    assert np.array_equal(*labels) and len(set(labels[0])) > 2


@pytest.mark.parametrize("at", [7, 40])  # with zeros a KeyError, or 40 labels
def test_hdbscan_of_equal_vectors(at):
    """The remedy of docs/reranking.md for zeros that scikit-learn's spanning tree loses."""
    cluster = pytest.importorskip("sklearn.cluster")
    random = np.random.default_rng(0)
    rows = np.concatenate([random.normal(0, 1, (20, 3)), random.normal(8, 1, (20, 3))])
    rows = np.insert(rows, at, rows[0], axis=0).astype(np.float32)
    near = mmga.to_scipy(mmga.neighbours_within(rows, 50.0, "euclidean"))
    assert near.nnz == 41 * 41 and (near.data == 0).sum() == 41 + 2
    model = cluster.HDBSCAN(min_cluster_size=5, min_samples=2, metric="precomputed", copy=True)
    expected = model.fit_predict(near.toarray())
    near.data[near.data == 0] = 1e-12
    labels = model.fit_predict(near)
    assert len(labels) == 41 and labels[at] == labels[0] >= 0
    assert len(set(zip(labels, expected, strict=True))) == len(set(expected)) == 2


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


@pytest.mark.parametrize("scale", [2.0**-48, 2.0**45])
def test_a_power_of_two_changes_no_pair(scale):
    x = persons(0)
    one, other = (mmga.neighbours_within(x * by, 6 * by, "euclidean") for by in (1.0, scale))
    assert len(one.values()) > 2 * len(x)
    assert torch.equal(one.col_indices(), other.col_indices())
    assert torch.equal(one.values() * scale, other.values())
