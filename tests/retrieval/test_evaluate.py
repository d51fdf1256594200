"""The evaluator against naive float64 loops, and the integers whatever the tiles and threads."""

import dataclasses
import json
import os

import naive_evaluation as naive
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from paths import SHARED_DATA

import mmga
from mmga.common.errors import UserError
from mmga.ops._library import has_kernel
from mmga.retrieval.evaluate import evaluate, evaluate_distances
from mmga.retrieval.features import Features
from mmga.retrieval.tiles import sources

RULES = ("market1501", "market1501-matlab", "no-camera", "other-cameras")
CASES = settings(
    max_examples=120,
    derandomize=True,
    deadline=None,
    suppress_health_check=[HealthCheck.filter_too_much, HealthCheck.too_slow],
)


@pytest.fixture(autouse=True)
def _kernel_is_active():
    if os.environ.get("MMGA_DISABLE_EXTENSION") != "1" and mmga.ops.backends()["cpu"].startswith(
        "active"
    ):
        assert has_kernel("count_preceding", "CPU")


@st.composite
def labelled(draw, max_side=12):
    """Labels with junk, shared cameras and identities that one side lacks."""
    queries = draw(st.integers(1, 7))
    items = draw(st.integers(1, max_side))
    pids = st.integers(-1, draw(st.integers(0, 3)))
    camids = st.integers(0, draw(st.integers(0, 2)))

    def several(values, count):
        return np.array(draw(st.lists(values, min_size=count, max_size=count)), np.int64)

    return (
        several(pids, queries),
        several(pids, items),
        several(camids, queries),
        several(camids, items),
    )


def assert_equal_to_naive(report, expected):
    assert report.mAP == pytest.approx(expected["mAP"], abs=1e-12)
    assert report.mINP == pytest.approx(expected["mINP"], abs=1e-12)
    assert report.cmc.tolist() == pytest.approx(expected["cmc"], abs=1e-12)
    for row, one in enumerate(expected["per_query"]):
        if one is None or one == "junk":
            assert report.per_query.first_rank[row] == 0
            continue
        assert report.per_query.average_precision[row] == pytest.approx(one[0], abs=1e-12)
        assert report.per_query.inverse_negative_penalty[row] == pytest.approx(one[1], abs=1e-12)
        assert report.per_query.first_rank[row] == one[2]


@pytest.mark.program_settings
@pytest.mark.parametrize("rule", RULES)
@CASES
@given(data=st.data(), labels=labelled())
def test_given_distances_equal_naive_loops(rule, data, labels):
    q_pids, g_pids, q_camids, g_camids = labels
    assume((q_pids != -1).any() and (g_pids != -1).any())
    dtype = data.draw(st.sampled_from([np.float32, np.float64]))
    values = st.integers(0, data.draw(st.sampled_from([1, 3, 50])))
    count = len(q_pids) * len(g_pids)
    matrix = np.array(data.draw(st.lists(values, min_size=count, max_size=count)), dtype)
    matrix = matrix.reshape(len(q_pids), len(g_pids)) / 7
    arguments = (matrix, q_pids, g_pids, q_camids, g_camids, rule)
    if not naive.has_valid_query(*arguments):
        with pytest.raises(UserError, match=r"no query has a match|junk"):
            evaluate_distances(matrix, side(q_pids, q_camids), side(g_pids, g_camids), rule)
        return
    report = evaluate_distances(matrix, side(q_pids, q_camids), side(g_pids, g_camids), rule)
    assert_equal_to_naive(report, naive.evaluate(*arguments))


def side(pids, camids, width=1):
    return Features(torch.zeros(len(pids), width), pids, camids)


@pytest.mark.program_settings
@pytest.mark.parametrize("rule", RULES)
@CASES
@given(data=st.data(), labels=labelled())
def test_features_on_a_grid_equal_naive_loops(rule, data, labels):
    q_pids, g_pids, q_camids, g_camids = labels
    assume((q_pids != -1).any() and (g_pids != -1).any())
    width = data.draw(st.integers(1, 3))
    dtype = data.draw(st.sampled_from([torch.float32, torch.float16]))
    grid = st.integers(-2, 2)

    def rows(count):
        size = count * width
        values = data.draw(st.lists(grid, min_size=size, max_size=size))
        return torch.tensor(values, dtype=dtype).reshape(count, width)

    query, gallery = rows(len(q_pids)), rows(len(g_pids))
    difference = query[:, None].double() - gallery[None].double()
    arguments = ((difference**2).sum(2), q_pids, g_pids, q_camids, g_camids, rule)
    assume(naive.has_valid_query(*arguments))
    report = evaluate(
        Features(query, q_pids, q_camids),
        Features(gallery, g_pids, g_camids),
        metric="euclidean",
        protocol=rule,
    )
    assert_equal_to_naive(report, naive.evaluate(*arguments))


@pytest.mark.program_settings
@CASES
@given(data=st.data())
def test_all_vs_all_equals_naive_loops(data):
    count = data.draw(st.integers(2, 14))
    pids = np.array(data.draw(st.lists(st.integers(-1, 3), min_size=count, max_size=count)))
    grid = data.draw(st.lists(st.integers(-2, 2), min_size=2 * count, max_size=2 * count))
    features = torch.tensor(grid, dtype=torch.float32).reshape(count, 2)
    distances = ((features[:, None] - features[None]) ** 2).sum(2)
    assume(naive.has_valid_query(distances, pids, pids, rule="all-vs-all"))
    report = evaluate(Features(features, pids), metric="euclidean", protocol="all-vs-all")
    expected = naive.evaluate(distances, pids, pids, rule="all-vs-all")
    assert_equal_to_naive(report, expected)


def test_own_path_is_left_out():
    generator = np.random.default_rng(0)
    q_pids, g_pids = np.array([0, 1, 1]), np.array([0, 0, 1, 2, 1])
    q_paths, g_paths = ["a", "b", "d"], ["a", "x", "b", "b", "d"]
    matrix = generator.integers(0, 3, (3, 5)) / 2
    report = evaluate_distances(
        matrix,
        Features(torch.zeros(3, 1), q_pids, paths=q_paths),
        Features(torch.zeros(5, 1), g_pids, paths=g_paths),
        "no-camera",
    )
    expected = naive.evaluate(
        matrix, q_pids, g_pids, rule="no-camera", q_paths=q_paths, g_paths=g_paths
    )
    assert_equal_to_naive(report, expected)
    assert report.excluded["own_image"] == 4


def market_like(queries=150, items=900, width=96, seed=0, people=25, whole=False):
    """Random features with duplicates and ties, some cameras, distractors and junk."""
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(people, width, generator=generator)
    q_pids = torch.randint(0, people, (queries,), generator=generator)
    g_pids = torch.randint(-1, people + 5, (items,), generator=generator)
    noise = 2.5
    query = centres[q_pids] + noise * torch.randn(queries, width, generator=generator)
    gallery = centres[g_pids.clamp(0, people - 1)] + noise * torch.randn(
        items, width, generator=generator
    )
    gallery[::7] = gallery[3]  # duplicates under many identities
    q_camids = torch.randint(0, 4, (queries,), generator=generator)
    g_camids = torch.randint(0, 4, (items,), generator=generator)
    return (
        Features(query, q_pids, q_camids),
        Features(gallery, g_pids.clamp_min(0) if whole else g_pids, g_camids),
    )


def integers(report):
    scores = report.per_query
    return (
        scores.first_rank.tolist(),
        scores.average_precision.tolist(),
        scores.inverse_negative_penalty.tolist(),
        scores.tied.tolist(),
    )


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
@pytest.mark.parametrize("rule", ["market1501", "other-cameras"])
def test_same_integers_for_any_tiles_and_threads(monkeypatch, metric, rule):
    # Without junk the gallery lies in one piece, so that its products may be kept.
    query, gallery = market_like(whole=True)
    expected = integers(evaluate(query, gallery, metric=metric, protocol=rule, exact="float32"))
    assert sum(expected[3]) > 0, "the case must hold ties"
    threads = torch.get_num_threads()
    for tile, limit, count in (
        ((64, 64), 1 << 21, 1),
        ((128, 192), 40, 2),
        ((64, 960), 999, 2),
    ):
        monkeypatch.setattr("mmga.retrieval.tiles.sources.TILE", tile)
        monkeypatch.setattr("mmga.retrieval.metrics.rank.PAIR_LIMIT", limit)
        torch.set_num_threads(count)
        try:
            report = evaluate(query, gallery, metric=metric, protocol=rule, exact="float32")
        finally:
            torch.set_num_threads(threads)
        assert integers(report) == expected


@pytest.mark.parametrize("rule", ["market1501", "other-cameras"])
def test_same_integers_for_any_order_of_tiles(monkeypatch, rule):
    query, gallery = market_like(seed=4)
    monkeypatch.setattr("mmga.retrieval.tiles.sources.TILE", (64, 64))
    expected = integers(evaluate(query, gallery, protocol=rule, exact="float32"))
    original = sources.FeatureSource.tiles
    shuffled = []

    def tiles(self, start, stop):
        kept = [
            (rows, dataclasses.replace(tile, values=tile.values.clone()))
            for rows, tile in original(self, start, stop)
        ]
        order = np.random.default_rng(0).permutation(len(kept))
        shuffled.append(order)
        yield from (kept[at] for at in order)

    monkeypatch.setattr(sources.FeatureSource, "tiles", tiles)
    assert integers(evaluate(query, gallery, protocol=rule, exact="float32")) == expected
    assert len(shuffled[0]) > 4


@pytest.mark.parametrize("exact", ["certified", "float32"])
def test_same_integers_for_shards_and_half_precision(exact):
    query, gallery = market_like(seed=3)
    half = Features(gallery.features.half(), gallery.pids, gallery.camids)
    widened = Features(half.features.float(), gallery.pids, gallery.camids)
    cut = [half.features[:100], half.features[100:101], half.features[101:]]
    shards = Features(cut, gallery.pids, gallery.camids)
    expected = integers(evaluate(query, widened, exact=exact))
    assert integers(evaluate(query, half, exact=exact)) == expected
    assert integers(evaluate(query, shards, exact=exact)) == expected


@pytest.mark.parametrize("attempts", [1, 2])
@pytest.mark.parametrize("verification", [False, True])
def test_a_blas_that_rounds_by_shape_is_noticed(monkeypatch, attempts, verification):
    """Keys of matches that differ from their tiles' are computed in the tiles' shape, or read."""
    query, gallery = market_like(seed=1)
    monkeypatch.setattr("mmga.retrieval.tiles.sources.TILE", (64, 64))
    plain = evaluate(query, gallery, exact="float32", verification=verification)
    original = sources.FeatureSource.match_keys
    calls = []

    def perturbed(self, pairs, whole_tiles=False):
        calls.append(whole_tiles)
        keys = original(self, pairs, whole_tiles)
        assert torch.equal(keys, original(self, pairs, not whole_tiles)), "features on a grid"
        if len(calls) <= attempts:
            keys[-1] *= 1 + 2**-20  # found in a late tile, when others were counted
        return keys

    monkeypatch.setattr(sources.FeatureSource, "match_keys", perturbed)
    report = evaluate(query, gallery, exact="float32", verification=verification)
    assert integers(report) == integers(plain)
    assert report.extra.get("verification") == plain.extra.get("verification")
    assert calls == [False, True]


@pytest.mark.parametrize("place", [(2, 4), (2, 1)], ids=["a match", "another item"])
def test_a_distance_that_is_nan_is_named(place):
    pids = np.arange(5), np.arange(15) % 5
    matrix = np.random.default_rng(0).random((5, 15))
    matrix[place] = np.nan
    sides = side(pids[0], np.zeros(5)), side(np.roll(pids[1], 2), np.ones(15))
    assert (sides[1].pids[place[1]] == 2) == (place == (2, 4))
    with pytest.raises(UserError, match="query 2: a distance is NaN"):
        evaluate_distances(matrix, *sides)


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
@pytest.mark.parametrize("scale", [2.0**-80, 2.0**-60, 2.0**60, 2.0**100])
def test_features_of_an_extreme_scale_are_refused(metric, scale):
    x = torch.randn(40, 8, generator=torch.Generator().manual_seed(0)) * scale
    query, gallery = Features(x[:10], torch.arange(10) % 3), Features(x[10:], torch.arange(30) % 3)
    with pytest.raises(UserError, match=r"query: the largest norm is .* by a power of two"):
        evaluate(query, gallery, protocol="no-camera", metric=metric)
    with pytest.raises(UserError, match="the largest norm is"):
        mmga.nearest(query, gallery, 3, metric)


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
@pytest.mark.parametrize("scale", [2.0**-45, 2.0**45])
def test_powers_of_two_change_no_rank(metric, scale):
    x = torch.randn(40, 8, generator=torch.Generator().manual_seed(0))
    pids = torch.arange(10) % 3, torch.arange(30) % 3
    first = []
    for one in (1.0, scale):
        query, gallery = Features(x[:10] * one, pids[0]), Features(x[10:] * one, pids[1])
        report = evaluate(query, gallery, protocol="no-camera", metric=metric)
        near = mmga.nearest(query, gallery, 5, metric)[1]
        first.append((report.per_query.first_rank.tolist(), report.mAP, near.tolist()))
    assert first[0] == first[1]


def test_products_that_differ_from_run_to_run_are_an_error(monkeypatch):
    query, gallery = market_like(seed=1)
    original = sources.FeatureSource.match_keys
    monkeypatch.setattr(
        sources.FeatureSource,
        "match_keys",
        lambda self, pairs, whole_tiles=False: original(self, pairs) + 1,
    )
    monkeypatch.setattr(
        "mmga.retrieval.metrics.rank._keys_in_tiles", lambda source, pairs, like: like
    )
    with pytest.raises(RuntimeError, match="differ on this machine"):
        evaluate(query, gallery, exact="float32")


def test_kernel_and_reference_count_alike(monkeypatch):
    query, gallery = market_like(60, 300)
    expected = integers(evaluate(query, gallery))
    from mmga.ops import ranking, reference

    monkeypatch.setattr(ranking, "_COUNT_PRECEDING", reference.count_preceding)
    assert integers(evaluate(query, gallery)) == expected


def test_many_matches_take_the_other_path():
    generator = np.random.default_rng(0)
    q_pids, g_pids = np.array([0, 1, 0, 2]), generator.integers(0, 3, 3000)
    matrix = generator.integers(0, 200, (4, 3000)).astype(np.float32)
    report = evaluate_distances(
        matrix, side(q_pids, np.zeros(4)), side(g_pids, np.ones(3000)), "no-camera"
    )
    assert_equal_to_naive(report, naive.evaluate(matrix, q_pids, g_pids, rule="no-camera"))


def test_ties_are_counted_by_query():
    report = evaluate_distances(
        np.array([[1.0, 1, 2], [1, 2, 3]]),
        side(np.array([0, 1]), None),
        side(np.array([0, 1, 0]), None),
        "no-camera",
    )
    assert report.ties == 1
    assert report.per_query.tied.tolist() == [1, 0]


def test_counts_of_what_is_left_out():
    query = side(np.array([0, 0, 1, -1, 7]), np.array([0, 1, 0, 0, 0]))
    gallery = side(np.array([0, 0, 1, -1, -1, 5]), np.array([0, 1, 1, 0, 0, 0]))
    report = evaluate_distances(np.random.default_rng(0).random((5, 6)), query, gallery)
    assert report.excluded == {
        "junk": 2,
        "junk_queries": 1,
        "same_camera": 2,
        "own_image": 0,
        "queries_without_match": 1,
    }
    assert (report.num_query, report.num_valid_query, report.num_gallery) == (5, 3, 6)
    assert report.distractors == 1


def test_report_as_json(tmp_path):
    query, gallery = market_like(40, 200)
    report = evaluate(query, gallery)
    found = json.loads(report.to_json(tmp_path / "report.json"))
    assert json.loads((tmp_path / "report.json").read_text()) == found
    assert found["schema"] == 1
    assert found["mAP"] == report.mAP
    assert found["rank1"] == found["cmc"][0]
    assert found["rerank"] is None
    assert found["reranked"] is None
    assert found["num_gallery"] == 200
    assert set(found["seconds"]) >= {"load", "rank", "total"}
    assert "plain" in report.table()
    report.to_csv(tmp_path / "queries.csv")
    lines = (tmp_path / "queries.csv").read_text().splitlines()
    assert len(lines) == 41
    assert lines[0].startswith("query,pid,camid,matches,AP")


def test_zero_vectors_are_at_cosine_distance_one():
    query = Features(torch.tensor([[1.0, 0], [0, 0]]), [0, 0], [0, 0])
    gallery = Features(torch.tensor([[1.0, 1], [0, 0], [-1, 0]]), [1, 0, 1], [1, 1, 1])
    report = evaluate(query, gallery)
    assert report.zero_vectors == 2
    # 1 - 0.7 < 1 < 2; and for the zero query every distance is 1: the index decides.
    assert report.per_query.first_rank.tolist() == [2, 2]


def test_memory_bound_is_kept_or_refused():
    query, gallery = market_like()
    with pytest.raises(UserError, match=r"memory: 1\.0K cannot hold one tile .* at least"):
        evaluate(query, gallery, memory="1K")
    report = evaluate(query, gallery, memory="2M")
    assert integers(report) == integers(evaluate(query, gallery))
    with pytest.raises(UserError, match="memory: expected a size"):
        evaluate(query, gallery, memory="much")


def pku():
    path = SHARED_DATA / "pku-sketch" / "pytorch_result.mat"
    if not path.exists():
        pytest.skip(f"{path} is absent; set MMGA_TEST_DATA")
    pytest.importorskip("scipy")
    return path


def test_pku_sketch_gives_its_authors_numbers():
    path = pku()
    query, gallery = (mmga.load_features(path, side=name) for name in ("query", "gallery"))
    report = evaluate(query, gallery, protocol="market1501-matlab")
    assert report.mAP == pytest.approx(0.17799972, abs=1e-6)
    assert (report.rank1, report.rank5, report.rank10) == pytest.approx((0.14, 0.36, 0.48))
    assert evaluate(query, gallery).mAP == pytest.approx(0.217137, abs=1e-6)


def test_integer_distances_are_ranked_as_they_are_or_refused():
    labels = Features(np.eye(3, dtype=np.float32), [1, 0, 2], [1, 1, 1])
    query = Features(np.eye(1, dtype=np.float32), [0], [0])
    distances = np.array([[2**53 - 2, 2**53 - 1, 2**53]])
    assert evaluate_distances(distances, query, labels).rank1 == 0
    with pytest.raises(UserError, match=r"integers past 2\^53"):
        evaluate_distances(distances + 1, query, labels)
