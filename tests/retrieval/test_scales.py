"""Powers of two change no cosine, scale every Euclidean distance, and change no rank."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import mmga

CASES = settings(max_examples=8, deadline=None, derandomize=True)
RULE = mmga.KReciprocal(5, 2)
POWERS = st.integers(-48, 44)  # of sets whose norms stay inside 2^-50 to 2^50


def sides(seed, power=0, subnormal=False):
    rng = np.random.default_rng(seed)
    features = rng.standard_normal((60, 16)).astype(np.float32)
    features[7], features[30] = features[40], 0  # a duplicate and a zero vector
    if subnormal:
        features[:, 1] = 2.0**-140
    pids, camids = np.arange(60) % 6, np.arange(60) % 7
    moved = np.ldexp(features, power)
    return [mmga.Features(moved[at], pids[at], camids[at]) for at in (slice(20), slice(20, 60))]


def figures(report):
    scores = report.per_query
    ranks = [scores.average_precision.tolist(), scores.inverse_negative_penalty.tolist()]
    return [report.mAP, report.ties, report.cmc.tolist(), *ranks]


@CASES
@given(st.integers(0, 99), POWERS, st.sampled_from(["cosine", "euclidean"]), st.booleans())
def test_ranks_and_figures_stay(seed, power, metric, subnormal):
    plain, moved = sides(seed, 0, subnormal), sides(seed, power, subnormal)
    for exact in (None, "float32"):
        found = [
            mmga.evaluate(*two, metric=metric, exact=exact, rerank=RULE) for two in (plain, moved)
        ]
        assert figures(found[0]) == figures(found[1])
        assert found[0].reranked.mAP == found[1].reranked.mAP


@CASES
@given(st.integers(0, 99), POWERS, st.sampled_from(["cosine", "euclidean"]))
def test_neighbours_and_their_distances(seed, power, metric):
    factor = 1.0 if metric == "cosine" else 2.0**power
    for exact in ("float32", None):
        near, moved = (mmga.nearest(*sides(seed, p), 8, metric, exact=exact) for p in (0, power))
        assert torch.equal(near[1], moved[1])
        if exact is not None or abs(power) < 16:  # else distances are those of float32 tiles
            assert torch.equal(near[0] * factor, moved[0])
    q, g = (one.features for one in sides(seed))
    direct = mmga.pairwise_distance(q, g, metric)
    far = [torch.from_numpy(np.ldexp(one.numpy(), power)) for one in (q, g)]
    assert torch.equal(mmga.pairwise_distance(*far, metric), direct * factor)


@CASES
@given(st.integers(0, 99), POWERS, st.sampled_from(["cosine", "euclidean"]))
def test_re_ranked_and_jaccard_distances(seed, power, metric):
    two = [sides(seed, p) for p in (0, power)]
    rules = (RULE, mmga.KReciprocal(5, 2, variant="torchreid"))
    for rule in rules:
        plain, moved = (mmga.rerank(*one, rule, metric=metric) for one in two)
        torch.testing.assert_close(moved, plain, rtol=0, atol=1e-6)
    for variant in ("zhong", "torchreid"):  # 'cluster' weighs by exp(-d): by design not free of d
        found = [mmga.jaccard_distance(one[1], 5, 2, variant, metric=metric) for one in two]
        torch.testing.assert_close(found[1].to_dense(), found[0].to_dense(), rtol=0, atol=1e-6)


@CASES
@given(st.integers(0, 99), st.integers(-40, 40))
def test_thresholds_scale_with_the_features(seed, power):
    found = [
        mmga.evaluate(*sides(seed, p), metric="euclidean", verification=True).extra["verification"]
        for p in (0, power)
    ]
    assert found[1]["eer"] == found[0]["eer"]
    wanted, moved = (one["tpr_at_fpr"][-1] for one in found)
    assert moved["tpr"] == wanted["tpr"] is not None
    assert moved["threshold"] == pytest.approx(wanted["threshold"] * 2.0**power)


@pytest.mark.parametrize("power", [-100, -80, -60, 0])
@pytest.mark.parametrize("exact", [None, "float32"])
def test_a_cosine_forgets_the_length_of_a_row(power, exact):
    """Rows of both sides so short that float32 products of two are lost."""
    plain, moved = sides(1), sides(1)
    for side in moved:
        side.features[::3] = torch.from_numpy(np.ldexp(side.features[::3].numpy(), power))
    reports = [mmga.evaluate(*two, exact=exact, rerank=RULE) for two in (plain, moved)]
    assert figures(reports[0]) == figures(reports[1])
    assert reports[0].reranked.mAP == reports[1].reranked.mAP
    assert reports[1].zero_vectors == reports[0].zero_vectors
    near = [mmga.nearest(*two, 6) for two in (plain, moved)]
    assert torch.equal(near[0][1], near[1][1])
    q, g = (one.features for one in moved)
    wanted = mmga.pairwise_distance(*(one.features for one in plain))
    torch.testing.assert_close(mmga.pairwise_distance(q, g), wanted, rtol=0, atol=1e-6)
    torch.testing.assert_close(
        mmga.jaccard_distance(moved[1], 5, 2, metric="cosine").to_dense(),
        mmga.jaccard_distance(plain[1], 5, 2, metric="cosine").to_dense(),
    )
    graph = [mmga.GalleryIndex.build(two[1].select(range(10, 40)), RULE) for two in (plain, moved)]
    np.testing.assert_allclose(
        graph[0].rerank(plain[0].features[1]), graph[1].rerank(plain[0].features[1]), atol=1e-6
    )


@pytest.mark.parametrize("power", [-120, -90, 70, 100, 126])
@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
def test_distances_of_pairs_beyond_what_products_hold(power, metric):
    q, g = (np.float64(one.features.numpy()) / 16 for one in sides(2))
    q, g = (np.float32(np.ldexp(one, power)) for one in (q, g))
    found = mmga.pairwise_distance(torch.from_numpy(q), torch.from_numpy(g), metric).numpy()
    q, g = q.astype(float), g.astype(float)
    wanted = np.sqrt(((q[:, None] - g) ** 2).sum(-1))
    if metric == "cosine":
        lengths = np.linalg.norm(q, axis=1)[:, None] * np.linalg.norm(g, axis=1)
        wanted = 1 - np.divide(q @ g.T, lengths, where=lengths > 0, out=np.zeros_like(lengths))
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-3 * wanted.max())


@pytest.mark.parametrize("power", [-48, -40, 44])
@pytest.mark.parametrize("pool", ["mean", "max"])
def test_pooled_and_expanded_queries(power, pool):
    pooled = [mmga.evaluate(*sides(3, p), protocol="multi-query", pool=pool) for p in (0, power)]
    assert figures(pooled[0]) == figures(pooled[1])
    for neighbours in (0, 3):
        plain, moved = (mmga.expand_queries(*sides(3, p), neighbours) for p in (0, power))
        assert torch.equal(plain, moved)


@pytest.mark.parametrize("power", [-100, -60, -45, 40])
@pytest.mark.parametrize("pool", ["mean", "max"])
def test_pooled_queries_and_rows_that_nothing_is_averaged_with(power, pool):
    """A third of the rows is so short that their squares, or 1e-12, would hide them."""
    plain, moved = sides(3), sides(3)
    for side in moved:
        side.features[::3] = torch.from_numpy(np.ldexp(side.features[::3].numpy(), power))
    found = [mmga.evaluate(*two, protocol="multi-query", pool=pool) for two in (plain, moved)]
    assert figures(found[0]) == figures(found[1])
    for q, g in (plain, moved):
        lengths = mmga.expand_queries(q, g, neighbours=0).norm(dim=1)
        assert torch.allclose(lengths, torch.ones(20))
        assert int((mmga.augment_gallery(g, neighbours=0).norm(dim=1) > 0.99).sum()) == 39
