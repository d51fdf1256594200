import literal
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from reranking_cases import assert_equal, split

import mmga
from mmga.retrieval.reranking.rerank import rerank_distances
from mmga.retrieval.reranking.settings import KReciprocal


@st.composite
def squared_distances(draw):
    """Squared distances on an integer grid: exact, full of ties and duplicates."""
    items = draw(st.integers(2, 30))
    dimensions = draw(st.integers(1, 3))
    top = draw(st.sampled_from([1, 2, 5, 40]))
    seed = draw(st.integers(0, 2**31))
    points = np.random.default_rng(seed).integers(0, top + 1, (items, dimensions))
    d = ((points[:, None] - points[None]) ** 2).sum(-1).astype(np.float64)
    return d, draw(st.integers(1, items - 1))


CASES = settings(max_examples=80, deadline=None, derandomize=True)


@pytest.mark.program_settings
@CASES
@given(
    squared_distances(),
    st.sampled_from([1, 2, 3, 5, 7, 11, 20, 23]),
    st.sampled_from([1, 2, 6]),
    st.sampled_from([0.0, 0.3, 1.0]),
    st.sampled_from(["python", "matlab"]),
)
def test_equals_literal_writing(case, k1, k2, lambda_value, half):
    d, queries = case
    rule = KReciprocal(k1, k2, lambda_value, half=half)
    half_length = int(np.floor((k1 + 1) / 2 + 0.5)) if half == "matlab" else None
    expected = literal.rerank(d, queries, k1, k2, lambda_value, half_length)
    assert_equal(rerank_distances(*split(d, queries), rule, squared=True), expected)


@pytest.mark.program_settings
@CASES
@given(squared_distances(), st.sampled_from([1, 3, 7, 20]), st.sampled_from([1, 6]))
def test_variants_equal_literal_writing(case, k1, k2):
    d, queries = case
    torchreid = KReciprocal(k1, k2, variant="torchreid")
    expected = literal.rerank(d**2, queries, k1, k2, 0.3)
    assert_equal(rerank_distances(*split(d, queries), torchreid, squared=True), expected)
    fastreid = KReciprocal(k1, k2, variant="fastreid")
    expected = literal.rerank_fastreid(d, queries, k1, k2, 0.3)
    assert_equal(rerank_distances(*split(d, queries), fastreid, squared=True), expected)


@pytest.fixture
def clustered():
    rng = np.random.default_rng(7)
    centres = rng.normal(size=(12, 24))
    points = np.repeat(centres, 15, axis=0) + 0.7 * rng.normal(size=(180, 24))
    points = points[rng.permutation(180)]
    return ((points[:, None] - points[None]) ** 2).sum(-1)


@pytest.mark.program_settings
def test_equals_literal_writing_on_clusters(clustered):
    expected = literal.rerank(clustered, 40, 20, 6, 0.3)
    actual = rerank_distances(*split(clustered, 40), squared=True)
    assert_equal(actual, expected)
    # Not a trivial case: most pairs have no overlap, but many do.
    assert 0.02 < (expected < 0.7).mean() < 0.5


@pytest.mark.parametrize("variant", ["zhong", "torchreid", "fastreid"])
def test_more_neighbours_than_items_are_all_items(variant):
    rows = np.random.default_rng(3).integers(-3, 4, (30, 6)).astype(np.float32)
    d = ((rows[:, None] - rows[None]) ** 2).sum(-1, dtype=np.float64)
    query, gallery = (mmga.Features(one, np.arange(len(one)) % 3) for one in (rows[:7], rows[7:]))
    results = []
    for k1, k2 in ((60, 30), (60, 31), (2**80, 2**80)):
        rule = KReciprocal(k1, k2, variant=variant)
        index = mmga.GalleryIndex.build(rows[7:], rule, "euclidean")
        found = [
            rerank_distances(*split(d, 7), rule, squared=True),
            mmga.rerank(query, gallery, rule, metric="euclidean"),
            index.rerank(rows[0]),
        ]
        if variant != "fastreid":
            found.append(mmga.jaccard_distance(rows, k1, k2, variant).to_dense())
        results.append([np.asarray(one) for one in found])
    for one in results[1:]:
        for found, expected in zip(one, results[0], strict=True):
            np.testing.assert_array_equal(found, expected)
    writing = literal.rerank_fastreid if variant == "fastreid" else literal.rerank
    power = 2 if variant == "torchreid" else 1
    assert_equal(results[0][0], writing(d**power, 7, 1000, 1000, 0.3))


def test_lambda_one_keeps_the_original_order(clustered):
    actual = rerank_distances(*split(clustered, 40), KReciprocal(lambda_value=1.0), squared=True)
    np.testing.assert_array_equal(
        np.argsort(actual, 1, kind="stable"), np.argsort(clustered[:40, 40:], 1, kind="stable")
    )


def test_distances_that_are_not_squared_are_squared(clustered):
    root = np.sqrt(clustered)
    np.testing.assert_allclose(
        rerank_distances(*split(root, 40), squared=False),
        rerank_distances(*split(clustered, 40), squared=True),
        atol=1e-9,
    )


def test_tensors_give_tensors(clustered):
    actual = rerank_distances(*map(torch.from_numpy, split(clustered, 40)), squared=True)
    assert isinstance(actual, torch.Tensor) and actual.dtype == torch.float64
    np.testing.assert_array_equal(
        actual.numpy(), rerank_distances(*split(clustered, 40), squared=True)
    )


def test_inputs_stay_as_they_are(clustered):
    parts = [part.copy() for part in split(clustered, 40)]
    rerank_distances(*parts, squared=False)
    for part, before in zip(parts, split(clustered, 40), strict=True):
        np.testing.assert_array_equal(part, before)


def test_rounding_below_the_diagonal_is_not_read(clustered):
    noisy = clustered + np.tril(np.full_like(clustered, 1e-7))
    expected = rerank_distances(*split(clustered, 40), squared=True)
    q_g, q_q, g_g = split(noisy, 40)
    np.testing.assert_array_equal(rerank_distances(q_g, q_q, g_g, squared=True), expected)


def test_all_distances_zero():
    d = np.zeros((9, 9))
    actual = rerank_distances(*split(d, 3), KReciprocal(4, 2), squared=True)
    assert_equal(actual, literal.rerank(d, 3, 4, 2, 0.3))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda q_g, q_q, g_g: (q_g, g_g, q_q), "q_q must be"),
        (lambda q_g, q_q, g_g: (q_g * np.nan, q_q, g_g), "finite"),
        (lambda q_g, q_q, g_g: (q_g, q_q, np.triu(g_g)), "symmetric"),
        (lambda q_g, q_q, g_g: (q_g[0], q_q, g_g), "two-dimensional"),
        (lambda q_g, q_q, g_g: (q_g[:0], q_q[:0, :0], g_g), "empty"),
    ],
    ids=["swapped", "nan", "asymmetric", "vector", "empty"],
)
def test_bad_matrices_are_one_sentence(clustered, change, message):
    with pytest.raises(mmga.UserError, match=message):
        rerank_distances(*change(*split(clustered, 40)), squared=True)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"k1": 0}, "k1 must be"),
        ({"k2": 2.5}, "k2 must be"),
        ({"lambda_value": 1.5}, "lambda_value must be"),
        ({"variant": "zong"}, "variant must be one of zhong"),
        ({"half": "up"}, "half must be one of"),
    ],
)
def test_bad_settings_are_one_sentence(settings, message):
    with pytest.raises(mmga.UserError, match=message):
        KReciprocal(**settings)


@pytest.mark.parametrize(
    ("k1", "python", "matlab"), [(20, 11, 11), (21, 11, 11), (23, 13, 12), (22, 12, 12), (1, 1, 1)]
)
def test_half_lists(k1, python, matlab):
    assert KReciprocal(k1).half_length == python
    assert KReciprocal(k1, half="matlab").half_length == matlab
    assert KReciprocal(k1).half_length == int(np.around(k1 / 2)) + 1


def test_preset_transreid():
    assert KReciprocal.preset("transreid") == KReciprocal(50, 15, 0.3)
    with pytest.raises(mmga.UserError, match="transreid"):
        KReciprocal.preset("reid")
