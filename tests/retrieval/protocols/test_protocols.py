"""Pooled queries, drawn galleries and repeated halves, held against their rules written out."""

import itertools

import naive_evaluation as naive
import numpy as np
import pytest
import torch

from mmga.common.errors import UserError
from mmga.retrieval.evaluate import evaluate, evaluate_distances
from mmga.retrieval.explain import explain, table
from mmga.retrieval.features import Features
from mmga.retrieval.reranking.settings import KReciprocal
from mmga.retrieval.viper import half_of


def some(count, people, cameras, seed, width=6):
    generator = np.random.default_rng(seed)
    return Features(
        generator.standard_normal((count, width)).astype(np.float32),
        generator.integers(-1, people, count),
        generator.integers(0, cameras, count),
    )


@pytest.mark.program_settings
@pytest.mark.parametrize("pool", ["mean", "max"])
def test_multi_query_pools_by_identity_and_camera(pool):
    query, gallery = some(30, 5, 2, 0), some(40, 5, 2, 1)
    vectors, pids, camids = [], [], []
    for pid, camid in itertools.product(range(5), range(2)):
        mine = query.features[torch.from_numpy((query.pids == pid) & (query.camids == camid))]
        if not len(mine):
            continue
        unit = mine / mine.norm(dim=1, keepdim=True)
        one = unit.mean(0) if pool == "mean" else unit.amax(0)
        vectors.append((one / one.norm()).double().numpy())
        pids.append(pid)
        camids.append(camid)
    unit = gallery.features.double().numpy()
    unit = unit / np.linalg.norm(unit, axis=1, keepdims=True)
    expected = naive.evaluate(
        1 - np.array(vectors) @ unit.T, pids, gallery.pids, camids, gallery.camids, "multi-query"
    )
    report = evaluate(query, gallery, protocol="multi-query", pool=pool)
    assert report.mAP == pytest.approx(expected["mAP"], abs=1e-12)
    assert report.cmc.tolist() == pytest.approx(expected["cmc"])
    assert report.excluded["junk_queries"] == (query.pids == -1).sum()


def every_drawn_gallery(distances, q_pids, g_pids, q_camids, g_camids, max_rank):
    """CMC and mAP over all ways to draw one image of each identity, written out."""
    cmc, mean_precision, valid = np.zeros(max_rank), 0.0, 0
    for query in range(len(q_pids)):
        kept = naive.kept_items(
            query, q_pids[query], q_camids[query], g_pids, g_camids, "cuhk03-single-shot"
        )
        groups = {}
        for item in kept:
            groups.setdefault(g_pids[item], []).append(item)
        if q_pids[query] == -1 or q_pids[query] not in groups:
            continue
        valid += 1
        ranks = []
        for drawn in itertools.product(*groups.values()):
            order = sorted(drawn, key=lambda item: (distances[query, item], item))
            ranks.append([g_pids[item] for item in order].index(q_pids[query]) + 1)
        ranks = np.array(ranks)
        cmc += (ranks[:, None] <= np.arange(1, max_rank + 1)).mean(0)
        mean_precision += (1 / ranks).mean()
    return cmc / valid, mean_precision / valid


def test_single_shot_is_the_exact_expectation():
    generator = np.random.default_rng(2)
    q_pids, g_pids = np.array([0, 1, 2, 3, -1]), generator.integers(-1, 5, 16)
    q_camids, g_camids = np.zeros(5, int), generator.integers(0, 2, 16)
    distances = generator.integers(0, 6, (5, 16)) / 4
    query = Features(torch.zeros(5, 1), q_pids, q_camids)
    gallery = Features(torch.zeros(16, 1), g_pids, g_camids)
    arguments = (distances, query, gallery, "cuhk03-single-shot")
    report = evaluate_distances(*arguments, max_rank=7)
    cmc, precision = every_drawn_gallery(distances, q_pids, g_pids, q_camids, g_camids, 7)
    assert report.cmc.tolist() == pytest.approx(cmc.tolist(), abs=1e-12)
    assert report.extra["single_shot"]["drawn_mAP"] == pytest.approx(precision, abs=1e-12)
    full = naive.evaluate(distances, q_pids, g_pids, q_camids, g_camids, "market1501")
    assert report.mAP == pytest.approx(full["mAP"])

    drawn = evaluate_distances(*arguments, max_rank=7, trials=4000, seed=5)
    # 4,000 draws of a mean of four queries: a standard error below 0.004.
    assert drawn.cmc.tolist() == pytest.approx(cmc.tolist(), abs=0.016)
    again = evaluate_distances(*arguments, max_rank=7, trials=4000, seed=5)
    assert again.cmc.tolist() == drawn.cmc.tolist()
    with pytest.raises(UserError, match="trials"):
        evaluate(query, gallery, trials=3)


@pytest.mark.program_settings
def test_single_shot_from_features():
    query, gallery = some(20, 6, 2, 3), some(60, 6, 2, 4)
    report = evaluate(query, gallery, metric="euclidean", protocol="cuhk03-single-shot")
    keys = (query.features[:, None] - gallery.features[None]).square().sum(2).numpy()
    given = evaluate_distances(keys, query, gallery, "cuhk03-single-shot")
    assert report.cmc.tolist() == pytest.approx(given.cmc.tolist(), abs=1e-9)


@pytest.mark.program_settings
def test_viper_averages_halves_in_both_directions():
    generator = np.random.default_rng(0)
    centres = generator.standard_normal((40, 5))
    sides = [
        Features(
            (centres + generator.standard_normal((40, 5))).astype(np.float32),
            np.arange(40),
            np.full(40, camera),
        )
        for camera in (0, 1)
    ]
    report = evaluate(*sides, metric="euclidean", protocol="viper", max_rank=20)
    found = []
    for split in range(10):
        persons = half_of(np.arange(40), split)
        assert len(persons) == 20
        for one, other in (sides, sides[::-1]):
            x, y = one.features[persons].double(), other.features[persons].double()
            distances = ((x[:, None] - y[None]) ** 2).sum(2).numpy()
            found.append(naive.evaluate(distances, persons, persons, rule="no-camera"))
    assert report.mAP == pytest.approx(np.mean([one["mAP"] for one in found]))
    assert report.rank1 == pytest.approx(np.mean([one["cmc"][0] for one in found]))
    halves = np.mean(np.reshape([one["cmc"][0] for one in found], (10, 2)), axis=1)
    error = report.extra["splits"]["rank1"]["standard_error"]
    assert error == pytest.approx(halves.std(ddof=1) / np.sqrt(10))


def test_options_that_a_protocol_cannot_honour():
    query, gallery = some(9, 3, 2, 0), some(9, 3, 2, 1)
    with pytest.raises(UserError, match="leave out gallery"):
        evaluate(query, gallery, protocol="all-vs-all")
    with pytest.raises(UserError, match="gallery: missing"):
        evaluate(query)
    with pytest.raises(UserError, match="plain figures only"):
        evaluate(query, gallery, protocol="viper", rerank=KReciprocal())
    with pytest.raises(UserError, match="needs features, not distances"):
        evaluate_distances(np.zeros((9, 9)), query, gallery, "multi-query")
    with pytest.raises(UserError, match="protocol: expected market1501"):
        evaluate(query, gallery, protocol="market")


def test_explain_adds_up():
    query, gallery = some(30, 8, 3, 0), some(60, 6, 3, 1)
    steps = explain(query, gallery, "market1501-matlab", "other-cameras")
    assert [step["rule"] for step in steps] == [None, "camera", "unmatched", "precision"]
    assert steps[0]["mAP"] == evaluate(query, gallery, protocol="market1501-matlab").mAP
    assert steps[-1]["mAP"] == evaluate(query, gallery, protocol="other-cameras").mAP
    changes = sum(step["change"]["mAP"] for step in steps[1:])
    assert changes == pytest.approx(steps[-1]["mAP"] - steps[0]["mAP"])
    assert "unmatched: zero -> skip" in table(steps)
    with pytest.raises(UserError, match="cannot be compared rule by rule"):
        explain(query, gallery, "market1501", "viper")
