"""Drop-ins with the signatures and results of the peers' functions."""

import naive_evaluation as naive
import numpy as np
import pytest
import torch
from unit_rows import unit

from mmga import KReciprocal, UserError, compat, rerank_distances


def given(seed=0, junk=False):
    generator = np.random.default_rng(seed)
    low = -1 if junk else 0
    return (
        generator.random((8, 30)),
        generator.integers(low, 4, 8),
        generator.integers(low, 4, 30),
        generator.integers(0, 2, 8),
        generator.integers(0, 2, 30),
    )


@pytest.mark.program_settings
@pytest.mark.parametrize("junk", [False, True])
def test_torchreid_and_fastreid(junk):
    distmat, q_pids, g_pids, q_camids, g_camids = given(junk=junk)
    # The peers know no junk: -1 is an identity.
    shift = 10
    expected = naive.evaluate(distmat, q_pids + shift, g_pids + shift, q_camids, g_camids)
    cmc, mean = compat.evaluate_rank(distmat, q_pids, g_pids, q_camids, g_camids)
    assert len(cmc) == 30, "no more ranks than the gallery has items"
    assert cmc.tolist() == pytest.approx(expected["cmc"][:30])
    assert mean == pytest.approx(expected["mAP"])
    cmc, precision, penalty = compat.fastreid_evaluate_rank(
        distmat, q_pids, g_pids, q_camids, g_camids, 10
    )
    assert len(cmc) == 10
    scored = [one for one in expected["per_query"] if one]
    assert precision.tolist() == pytest.approx([one[0] for one in scored])
    assert penalty.tolist() == pytest.approx([one[1] for one in scored])


@pytest.mark.program_settings
def test_re_ranking_squares_what_it_is_given():
    from mmga.retrieval.reranking.rerank import rerank_distances
    from mmga.retrieval.reranking.settings import KReciprocal

    rows = np.random.default_rng(0).random((12, 3))
    distances = np.linalg.norm(rows[:, None] - rows[None], axis=2)
    q_g, q_q, g_g = distances[:4, 4:], distances[:4, :4], distances[4:, 4:]
    expected = rerank_distances(q_g**2, q_q**2, g_g**2, KReciprocal(4, 2, 0.3), squared=True)
    np.testing.assert_allclose(compat.re_ranking(q_g, q_q, g_g, 4, 2), expected, rtol=1e-6)


@pytest.mark.program_settings
def test_jaccard_is_dense_and_symmetric():
    pytest.importorskip("mmga.retrieval.reranking.jaccard")
    dense = compat.compute_jaccard_distance(torch.from_numpy(unit(30)), k1=5, k2=2)
    assert dense.shape == (30, 30)
    assert np.array_equal(dense, dense.T)
    assert (np.diag(dense) < 1e-6).all()
    assert (dense == 1).any()


@pytest.mark.parametrize("function", [compat.evaluate_rank, compat.fastreid_evaluate_rank])
@pytest.mark.parametrize("ids", [np.array([1501, -1, 907]), np.array(["ann", "bob", "cy"])])
def test_messages_name_the_callers_ids(function, ids):
    distmat, camids = np.random.default_rng(0).random((3, 2)), np.zeros(3, int)
    others = np.array([77, 88]) if ids.dtype.kind == "i" else np.array(["dan", "eve"])
    with pytest.raises(UserError) as error:
        function(distmat, ids, others, camids, camids[:2])
    for name in [*ids, *others]:
        assert str(name) in str(error.value)
    with pytest.raises(UserError, match=r"query camids 4, gallery camids 4"):
        function(distmat, ids, ids[:2], camids + 4, camids[:2] + 4)


@pytest.mark.parametrize(
    ("name", "value", "found"),
    [
        ("q_pids", np.zeros(4, int), r"q_pids: expected one for each of the 3 rows .* \[4\]"),
        ("g_camids", np.zeros((2, 1), int), r"g_camids: .* the 2 columns .* \[2, 1\]"),
        ("distmat", np.zeros(6), r"distmat: expected \[Q, G\], found shape \[6\]"),
    ],
)
def test_messages_name_the_callers_arguments(name, value, found):
    arguments = {
        "distmat": np.zeros((3, 2)),
        "q_pids": np.zeros(3, int),
        "g_pids": np.zeros(2, int),
        "q_camids": np.zeros(3, int),
        "g_camids": np.ones(2, int),
    }
    compat.evaluate_rank(**arguments)
    with pytest.raises(UserError, match=found):
        compat.evaluate_rank(**{**arguments, name: value})


def test_cmc_of_a_gallery_smaller_than_max_rank():
    """As many ranks as there are items, though a query ranks fewer: the last value is held."""
    distmat = np.array([[0.0, 2, 1], [0, 1, 2]])
    cmc, _ = compat.evaluate_rank(distmat, [0, 1], [0, 0, 1], [0, 0], [0, 1, 1], max_rank=50)
    assert cmc.tolist() == [0, 0.5, 1]


def test_the_two_re_rankings_of_fastreid_are_different_rules():
    rows = np.random.default_rng(0).random((20, 3))
    d = np.linalg.norm(rows[:, None] - rows[None], axis=2)
    parts = d[:5, 5:], d[:5, :5], d[5:, 5:]
    torchreids = compat.re_ranking(*parts, 6, 3)
    evaluators = rerank_distances(*parts, KReciprocal(6, 3, variant="fastreid"), squared=False)
    assert np.abs(torchreids - evaluators).max() > 0.01


@pytest.mark.parametrize("missing", [np.nan, None])
def test_nan_equals_nothing(missing):
    distances = np.array([[0.1, 0.2, 0.3], [0.1, 0.2, 0.3]])
    q_pids, g_pids = np.array([7, missing]), np.array([missing, 7, 7])
    q_camids, g_camids = np.array([1, missing]), np.array([2, 1, missing])
    cmc, mean = compat.evaluate_rank(distances, q_pids, g_pids, q_camids, g_camids)
    assert (cmc.tolist(), mean) == ([0, 1, 1], 0.5)
    with pytest.raises(UserError, match="found other objects"):
        compat.evaluate_rank(distances, np.array([7, object()]), g_pids, q_camids, g_camids)
