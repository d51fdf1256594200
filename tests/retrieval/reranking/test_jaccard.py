"""The sparse Jaccard matrix against a dense NumPy writing, and what DBSCAN makes of both."""

import itertools

import literal
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from reranking_cases import grid, squared

import mmga
from mmga.retrieval.neighbours.sparse import to_dense, to_scipy
from mmga.retrieval.reranking import jaccard
from mmga.retrieval.reranking.jaccard import jaccard_distance

CASES = settings(max_examples=40, deadline=None, derandomize=True)


def dense(x, k1, k2, variant):
    d = squared(x).numpy()
    if variant == "cluster":
        v = literal.cluster_encoding(d, k1, k2)
    else:
        v, _ = literal.zhong_encoding(d if variant == "zhong" else d**2, k1, k2)
    return literal.jaccard(v, range(len(d)))


def filled(matrix):
    """The dense matrix that a sparse one stands for: 1 where nothing is stored."""
    parts = to_scipy(matrix)
    result = np.ones(parts.shape)
    row = np.repeat(np.arange(len(result)), np.diff(parts.indptr))
    result[row, parts.indices] = parts.data
    return result


@pytest.mark.program_settings
@CASES
@given(
    st.integers(1, 60),
    st.sampled_from([1, 2, 6, 30]),
    st.sampled_from([1, 2, 3, 7, 30]),
    st.sampled_from([1, 6]),
    st.sampled_from(["cluster", "zhong", "torchreid"]),
    st.integers(0, 2**31),
)
def test_equals_dense_writing(count, top, k1, k2, variant, seed):
    x = grid(count, 3, top, seed)
    matrix = jaccard_distance(x, k1, k2, variant)
    expected = dense(x, k1, k2, variant)
    np.fill_diagonal(expected, 0)  # 1 in the literal writing where a row's set is empty
    np.testing.assert_allclose(filled(matrix), expected, rtol=0, atol=1e-6)
    assert (to_scipy(matrix).diagonal() == 0).all()
    values = matrix.values()
    assert matrix.layout == torch.sparse_csr and matrix.dtype == torch.float64
    assert ((values >= 0) & (values < 1)).all()
    assert abs(to_scipy(matrix) - to_scipy(matrix).T).max() < 1e-12


@pytest.mark.parametrize("limit", [None, 0.0, 0.62])
@pytest.mark.parametrize(
    "x",
    [torch.full((28, 16), 2.0), (torch.arange(61)[:, None] % 2 == 0).float()],
    ids=["28 equal rows", "duplicates without a set"],
)
def test_rows_hold_themselves_and_duplicates(x, limit):
    for k1, k2 in ((30, 10), (10, 1)):
        found = to_scipy(jaccard_distance(x, k1, k2, max_distance=limit))
        rows = [found.indices[a:b].tolist() for a, b in itertools.pairwise(found.indptr)]
        assert all(i in row and row == sorted(row) for i, row in enumerate(rows))
        assert (found.diagonal() == 0).all() and (abs(found - found.T)).max() == 0
    if len(x) == 28:  # equal rows whose sets hold all are at distance 0
        found = to_scipy(jaccard_distance(x, 30, 10, max_distance=limit))
        assert found.nnz == 28 * 28 and (found.data == 0).all()


@pytest.fixture
def people():
    generator = torch.Generator().manual_seed(0)
    centres = torch.nn.functional.normalize(torch.randn(40, 32, generator=generator), dim=1)
    x = centres.repeat_interleave(12, 0) * 0.8 + 0.12 * torch.randn(480, 32, generator=generator)
    x = torch.nn.functional.normalize(x, dim=1)[torch.randperm(480, generator=generator)]
    x[7] = x[400]  # a duplicate
    return x


def test_zeros_stay_stored(people):
    parts = to_scipy(jaccard_distance(people))
    diagonal = parts[np.arange(480), np.arange(480)]
    assert np.abs(diagonal).max() < 1e-12
    row = slice(parts.indptr[7], parts.indptr[8])
    assert 400 in parts.indices[row].tolist()
    assert {7, 400} <= set(parts.indices[row][parts.data[row] < 0.2].tolist())


@pytest.mark.parametrize("variant", ["cluster", "zhong"])
@pytest.mark.parametrize("limit", [0.0, 0.3, 0.62])
def test_max_distance_leaves_the_rest_out(people, variant, limit):
    every = to_scipy(jaccard_distance(people, variant=variant))
    some = to_scipy(jaccard_distance(people, variant=variant, max_distance=limit))
    row = np.repeat(np.arange(480), np.diff(every.indptr))
    kept = every.data <= limit
    assert 0 < kept.sum() < len(kept)
    np.testing.assert_array_equal(some.indices, every.indices[kept])
    np.testing.assert_array_equal(some.data, every.data[kept])
    np.testing.assert_array_equal(np.diff(some.indptr), np.bincount(row[kept], minlength=480))


def test_max_distance_includes_itself(people):
    """Limits that are distances of the matrix, and the numbers next to them."""
    every = to_scipy(jaccard_distance(people))
    values = np.unique(every.data)
    for limit in values[np.linspace(5, len(values) - 2, 5).astype(int)]:
        for bound in (np.nextafter(limit, 0), limit, np.nextafter(limit, 1)):
            some = to_scipy(jaccard_distance(people, max_distance=float(bound)))
            np.testing.assert_array_equal(some.data, every.data[every.data <= bound])
            np.testing.assert_array_equal(some.indices, every.indices[every.data <= bound])


@pytest.mark.parametrize("eps", [0.3, 0.5, 0.6, 0.7])
@pytest.mark.filterwarnings("ignore:Precomputed sparse input was not sorted")
def test_clusters_of_the_dense_matrix(people, eps):
    cluster = pytest.importorskip("sklearn.cluster")
    metrics = pytest.importorskip("sklearn.metrics")
    model = cluster.DBSCAN(eps=eps, min_samples=4, metric="precomputed")
    expected = model.fit_predict(dense(people, 30, 6, "cluster"))
    assert len(set(expected.tolist())) > 5
    for limit in (None, 0.71):
        labels = model.fit_predict(to_scipy(jaccard_distance(people, max_distance=limit)))
        assert metrics.adjusted_rand_score(expected, labels) == 1.0
        np.testing.assert_array_equal(labels, expected)


def test_progress_and_arrays(people):
    phases = []
    matrix = jaccard_distance(people.numpy(), progress=lambda phase, *_: phases.append(phase))
    assert set(phases) == {"neighbours", "Jaccard distances"}
    assert torch.equal(matrix.values(), jaccard_distance(people).values())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"variant": "dense"}, "variant must be one of cluster, zhong"),
        ({"max_distance": 1.0}, "max_distance must be from 0 to below 1"),
        ({"max_distance": -0.1}, "max_distance must be"),
        ({"k1": 0}, "k1 must be"),
        ({"metric": "l1"}, "metric must be"),
    ],
)
def test_bad_options_are_one_sentence(people, options, message):
    with pytest.raises(mmga.UserError, match=message):
        jaccard_distance(people, **options)


def test_to_scipy_wants_a_sparse_matrix():
    with pytest.raises(mmga.UserError, match="sparse CSR"):
        to_scipy(torch.eye(3))
    with pytest.raises(mmga.UserError, match="sparse CSR"):
        to_dense(torch.eye(3))


def crowd(persons=9, each=8):
    """Persons of whom each has one exact duplicate, in two groups that share no neighbour."""
    random = np.random.default_rng(4)
    centres = random.normal(size=(persons, 16))
    x = np.repeat(centres, each, axis=0) + 0.2 * random.normal(size=(persons * each, 16))
    x[1::each] = x[::each]
    return (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32)


def test_dense_distances_cluster_where_sparse_ones_are_refused():
    cluster = pytest.importorskip("sklearn.cluster")
    matrix = jaccard_distance(crowd(), k1=8, k2=2)
    dense = to_dense(matrix)
    assert (dense[to_scipy(matrix).toarray() > 0] < 1).all()
    assert (dense == 1).sum() == dense.size - len(matrix.values())
    model = cluster.HDBSCAN(min_cluster_size=5, metric="precomputed", copy=True)
    with pytest.raises((ValueError, KeyError)):
        model.fit_predict(to_scipy(matrix))
    labels = model.fit_predict(dense).reshape(9, 8)
    found = [set(one[one >= 0].tolist()) for one in labels]
    assert (labels >= 0).mean() > 0.8
    assert all(len(one) == 1 for one in found) and len(set.union(*found)) == 9


def test_overlaps_keep_the_duplicates_that_distances_lose():
    """The minimum of two sparse matrices: SciPy's own drops zeros."""
    cluster = pytest.importorskip("sklearn.cluster")
    first = to_scipy(jaccard_distance(crowd(), k1=8, k2=2, max_distance=0.6))
    second = to_scipy(jaccard_distance(crowd()[:, ::-1].copy(), k1=6, k2=1, max_distance=0.6))
    least = np.minimum(*(to_dense(torch_of(one)) for one in (first, second)))
    overlaps = []
    for one in (first, second):
        one.data = 1 - one.data
        overlaps.append(one)
    nearer = overlaps[0].maximum(overlaps[1])
    nearer.data = 1 - nearer.data
    np.testing.assert_allclose(to_dense(torch_of(nearer)), least, rtol=0, atol=1e-15)
    assert (nearer.diagonal() == 0).all()
    assert nearer[0, 1] == 0 and 1 in nearer[0].indices
    model = cluster.DBSCAN(eps=0.3, min_samples=4, metric="precomputed")
    assert model.fit_predict(nearer).tolist() == model.fit_predict(least).tolist()


def torch_of(matrix):
    parts = (torch.from_numpy(part) for part in (matrix.indptr, matrix.indices, matrix.data))
    return torch.sparse_csr_tensor(*parts, size=matrix.shape, check_invariants=False)


@pytest.mark.filterwarnings("error")
def test_neighbours_and_clusters_of_precomputed_distances():
    cluster, neighbours = (
        pytest.importorskip("sklearn.cluster"),
        pytest.importorskip("sklearn.neighbors"),
    )
    matrix = to_scipy(jaccard_distance(crowd(), k1=8, k2=2))
    assert matrix.has_canonical_format
    dense = to_dense(torch_of(matrix))
    model = cluster.DBSCAN(eps=0.5, metric="precomputed")
    assert model.fit_predict(matrix).tolist() == model.fit_predict(dense).tolist()
    ordered = neighbours.sort_graph_by_row_values(matrix, copy=True, warn_when_not_sorted=False)
    search = neighbours.NearestNeighbors(n_neighbors=3, metric="precomputed").fit(ordered)
    found = search.kneighbors(ordered)[0]
    np.testing.assert_array_equal(found, np.sort(dense, axis=1)[:, :3])


def test_too_little_memory_says_how_much_is_enough(monkeypatch):
    monkeypatch.setattr(jaccard, "search_bytes", lambda rows, columns, k: 0)
    x = crowd()
    plain = jaccard_distance(x)
    for memory in ("1K", "40K"):
        with pytest.raises(mmga.UserError, match=f"of {len(x)} items; give at least") as error:
            jaccard_distance(x, memory=memory)
    least = str(error.value).rsplit(" ", 1)[1]
    assert torch.equal(jaccard_distance(x, memory=least).to_dense(), plain.to_dense())


def test_near_ties_have_the_order_asked_for():
    farther = np.float32(0.01)  # by less than float32 tells
    nearer = np.nextafter(farther, np.float32(0))
    x = np.array([[1, 0, 0], [1, farther, 0], [1, 0, nearer]], np.float32)
    for exact, absent in ((None, 1), ("certified", 1), ("float32", 2)):
        found = to_dense(jaccard_distance(x, 2, 1, exact=exact, metric="cosine"))
        assert found[0, absent] == 1 and found[0, 3 - absent] < 1
