"""Ranks by re-ranked distances that are mostly bounded, against those of all final distances."""

from unittest import mock

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import mmga
from mmga.ops import reference
from mmga.ops.certified import Bound, thresholds
from mmga.retrieval import evaluate
from mmga.retrieval.bounds import stages
from mmga.retrieval.metrics.rank import rank
from mmga.retrieval.reranking import certified_ranks
from mmga.retrieval.tiles.sources import MatrixSource

CASES = settings(max_examples=100, deadline=None, derandomize=True)
QUERIES, ITEMS, PERSONS = 60, 340, 24
KINDS = ["easy", "hard", "grid", "copies", "lengths", "offset", "zeros", "far", "subnormal"]
VARIANTS = {"zhong": 1, "torchreid": 2, "fastreid": 1}


def sides(kind, seed, items=ITEMS):
    """Return features of persons that are told apart easily, hardly, or not at all."""
    generator = torch.Generator().manual_seed(seed)
    pids = torch.randint(0, PERSONS, (QUERIES + ITEMS,), generator=generator)
    centres = torch.randn(PERSONS, 16, generator=generator)
    x = torch.randn(len(pids), 16, generator=generator)
    if kind == "grid":  # many equal distances
        x = (2 * centres[pids] + x).round().clamp(-2, 2)
    elif kind == "copies":  # all distances of most rows are 0
        x = torch.ones_like(x)
        x[::50] *= 1 + torch.rand(len(x[::50]), 1, generator=generator)
    else:
        x += {"easy": 4.0, "hard": 0.7}.get(kind, 1.0) * centres[pids]
    if kind == "lengths":
        x *= 10.0 ** torch.randint(-30, 14, (len(x), 1), generator=generator)
    elif kind == "offset":  # whose squares are all that norms hold
        x += 1e6
    elif kind == "zeros":
        x[torch.rand(len(x), generator=generator) < 0.5] = 0
    elif kind == "far":  # one vector that all distances are divided by
        x[-1] *= 1e12
    elif kind == "subnormal":  # largest squared distances below the least normal float32
        x = torch.cat([torch.ones(len(x), 1), 2.0**-66 * x.round()], 1)
    camids = torch.randint(0, 3, (len(pids),), generator=generator).numpy()
    paths = np.array([f"{row % 97}.jpg" for row in range(len(pids))])
    if kind not in ("easy", "hard"):
        x[:9] = x[-9:]
        pids[5::29] = -1
    parts = slice(0, QUERIES), slice(QUERIES, QUERIES + items)
    return [
        mmga.Features(x[part].contiguous(), pids[part].numpy(), camids[part], paths[part])
        for part in parts
    ]


def by_all_distances(source, selection, monitor, phase):
    """Rank by the matrix of the final distances, each from its exact distance."""
    graph, rule = source.reranking, source.reranking.rule
    row = source.queries.repeat_interleave(graph.gallery)
    item = torch.arange(graph.gallery).repeat(len(source.queries))
    squared = graph.vectors.pair_distances(row, graph.vectors_of(item))
    final = reference.mix_distances(
        squared.view(len(source.queries), -1),
        graph.maxima[source.queries] if rule.divides else None,
        *graph.overlaps(source.queries),
        graph.first,
        rule.lambda_value,
        VARIANTS[rule.variant],
        0.5 if graph.vectors.metric == "cosine" else 1.0,
    )
    ranked_items = source.vectors_of(torch.arange(source.columns)) - graph.first
    matrix = MatrixSource(final, np.arange(len(final)), ranked_items.numpy())
    return rank(matrix, selection, monitor, phase=phase)


def ranked(
    features: list[mmga.Features], rule: mmga.KReciprocal, **options: object
) -> list[object]:
    """Return the scores of every query, and the share of queries that were given tiles."""
    tiled = {}

    def counted(queries, rows, *rest):
        tiled[queries] = len(rows)
        return count(queries, rows, *rest)

    count = certified_ranks._count
    with mock.patch.object(certified_ranks, "_count", counted):
        scores = mmga.evaluate(*features, rerank=rule, **options).reranked.per_query
    return [scores.average_precision, scores.first_rank, scores.tied, sum(tiled.values()) / QUERIES]


@CASES
@given(
    st.sampled_from(KINDS),
    st.sampled_from(["cosine", "euclidean"]),
    st.sampled_from(list(VARIANTS)),
    st.sampled_from([1e-305, 1e-30, 1e-6, 0.01, 0.3, 0.999999, 1.0]),
    st.sampled_from([0.0, certified_ranks._FEW, 1.0]),
    st.booleans(),
    st.sampled_from([1, 7, 20]),
    st.sampled_from(["market1501", "market1501-matlab", "no-camera", "other-cameras"]),
    st.integers(0, 99),
)
def test_equals_all_final_distances(kind, metric, variant, share, few, bytes_, k1, protocol, seed):
    features = sides(kind, seed, ITEMS if seed % 9 else 30)
    rule = mmga.KReciprocal(k1, 3, share, variant=variant)
    options = {"metric": metric, "protocol": protocol}
    with mock.patch.object(evaluate, "rank_reranked", by_all_distances):
        expected = ranked(features, rule, **options)
    with (
        mock.patch.object(certified_ranks, "_TILE", (32, 50)),
        mock.patch.object(certified_ranks, "_FEW", few),
        mock.patch.object(certified_ranks, "multiplies_int8", lambda: bytes_),
        mock.patch.object(certified_ranks, "bearable_share", lambda tiles, width: seed % 2),
        mock.patch.object(certified_ranks, "_OVERLAPS", 700 if seed % 3 else 1 << 22),
        mock.patch.object(certified_ranks, "_LEAST_ROWS", 8),
        mock.patch.object(certified_ranks, "tile_height", lambda rows, most: most),
        mock.patch.object(certified_ranks, "_AT_ONCE", 1 << 22 if seed % 3 else 3000),
    ):
        found = ranked(features, rule, **options)
    for ours, theirs in zip(found[:3], expected[:3], strict=True):
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("share", [5e-324, 1e-305])
def test_overlaps_that_no_number_tells_apart_are_told_apart_by_final_distances(variant, share):
    features, rule = sides("hard", 0), mmga.KReciprocal(7, 3, share, variant=variant)
    with mock.patch.object(evaluate, "rank_reranked", by_all_distances):
        expected = ranked(features, rule)
    found = ranked(features, rule)
    assert found[3] > 0  # of the queries need tiles
    np.testing.assert_array_equal(found[1], expected[1])
    np.testing.assert_array_equal(found[2], expected[2])


def test_one_gallery_item():
    query, gallery = sides("easy", 0)
    match = np.flatnonzero((gallery.pids == query.pids[0]) & (gallery.camids != query.camids[0]))
    report = mmga.evaluate(query, gallery.select(match[:1]), rerank=mmga.KReciprocal(1000))
    assert report.reranked.mAP == 1


def test_few_queries_at_once_where_they_have_many_overlaps(monkeypatch):
    features, rule, seen = sides("hard", 0), mmga.KReciprocal(20), []
    make = certified_ranks._Queries.__init__

    def counted(queries, *given):
        make(queries, *given)
        seen.append((len(queries.rows), len(queries.listed)))

    monkeypatch.setattr(certified_ranks._Queries, "__init__", counted)
    expected = ranked(features, rule)
    monkeypatch.setattr(certified_ranks, "_OVERLAPS", seen[0][1] // 4)
    monkeypatch.setattr(certified_ranks, "_LEAST_ROWS", 1)
    monkeypatch.setattr(certified_ranks, "tile_height", lambda rows, most: most)
    np.testing.assert_array_equal(ranked(features, rule)[0], expected[0])
    assert seen[0][0] == QUERIES
    assert 2 <= len(seen) - 1 <= 8
    assert max(listed for _, listed in seen[1:]) < 0.6 * seen[0][1]


def test_good_features_need_no_tiles():
    assert ranked(sides("easy", 0), mmga.KReciprocal(20))[3] == 0
    assert ranked(sides("hard", 0), mmga.KReciprocal(20))[3] == 1


def no_bound(one, other, metric):
    """Return a bound that says that no key is off."""
    sizes = [len(side.rows) for side in (one, other, one, other)]
    return Bound(*(torch.zeros(size, dtype=torch.float64) for size in sizes))


def no_slack(start, keys, slack):
    """Return limits that say that no row's keys are off."""
    return thresholds(start, keys, torch.zeros_like(slack))


@pytest.mark.parametrize("planted", ["no bound", "overlaps stay"])
def test_wrong_arithmetic_is_seen(planted, monkeypatch):
    features, rule = sides("hard", 0), mmga.KReciprocal(7, 3)
    with mock.patch.object(evaluate, "rank_reranked", by_all_distances):
        expected = ranked(features, rule)
    monkeypatch.setattr(certified_ranks, "multiplies_int8", lambda: True)
    monkeypatch.setattr(certified_ranks, "bearable_share", lambda tiles, width: 1.0)
    np.testing.assert_array_equal(ranked(features, rule)[0], expected[0])
    if planted == "no bound":
        monkeypatch.setattr(stages, "bound_between", no_bound)
        monkeypatch.setattr(certified_ranks, "thresholds", no_slack)
    else:
        take_off = certified_ranks._Tiles._take_off_overlaps
        monkeypatch.setattr(
            certified_ranks._Tiles,
            "_take_off_overlaps",
            lambda tiles, values, left: take_off(tiles, values.clone(), left),
        )
    assert not np.array_equal(ranked(features, rule)[0], expected[0])
