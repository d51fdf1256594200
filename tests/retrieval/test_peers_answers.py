"""Small cases with the answers that other projects assert (shared test_peers_answers.json)."""

import json
from fractions import Fraction

import numpy as np
import pytest
import torch
from paths import SHARED_DATA

from mmga.retrieval.evaluate import evaluate, evaluate_distances
from mmga.retrieval.features import Features


@pytest.fixture(scope="module")
def vectors():
    path = SHARED_DATA / "test_peers_answers.json"
    if not path.exists():
        pytest.skip(f"{path} is absent; set MMGA_TEST_DATA")
    return json.loads(path.read_text())


def side(pids, camids=None):
    return Features(torch.zeros(len(pids), 1), pids, camids)


def test_open_reid(vectors):
    for case in vectors["openreid_cmc"]["cases"]:
        report = evaluate_distances(
            np.array(case["distmat"], float),
            side(case["q_ids"], case["q_cams"]),
            side(case["g_ids"], case["g_cams"]),
            max_rank=len(case["cmc"]),
        )
        assert report.cmc.tolist() == pytest.approx(case["cmc"])


def oml_distances(vectors):
    """A query's items in the order of its relevance list; the matches have its pid."""
    relevance = np.array(vectors["oml_exact_relevance"]["relevance"])
    return relevance, np.arange(relevance.shape[1], dtype=float)


def test_open_metric_learning(vectors):
    relevance, order = oml_distances(vectors)
    expected = vectors["oml_exact_relevance"]
    for row, relevant in enumerate(relevance):
        # One query at a time: whose pid an item has depends on the query here.
        report = evaluate_distances(order[None], side([1]), side(relevant), "no-camera", max_rank=5)
        assert report.mAP == pytest.approx(float(Fraction(expected["ap"][row])))
        assert report.cmc.tolist() == [expected["cmc"][str(k)][row] for k in range(1, 6)]


def test_trapezoid(vectors):
    relevance, order = oml_distances(vectors)
    for row, relevant in enumerate(relevance):
        report = evaluate_distances(
            order[None], side([1], [0]), side(relevant, np.ones(len(relevant))), "market1501-matlab"
        )
        assert report.mAP == pytest.approx(vectors["derived_trapezoid_ap"]["ap"][row], abs=1e-8)


def test_masked_cmc_counts_queries_without_a_match(vectors):
    for case in vectors["masked_cmc"]["cases"]:
        query, gallery = np.array(case["q"], float), np.array(case["g"], float)
        distances = ((query[:, None] - gallery[None]) ** 2).sum(2)
        firsts = []
        for row, distance in enumerate(distances):
            relevant, available = np.array(case["gt"][row]), np.array(case["available"][row])
            # What is not available is out of the list: junk for this query. A second query with a
            # sure match keeps the set valid; it is taken out of the average again.
            pids = np.where(available == 1, relevant, -1)
            report = evaluate_distances(
                np.stack([np.append(distance, 9), np.append(9 + 0 * distance, 0)]),
                side([1, 2], [0, 0]),
                side(np.append(pids, 2), np.ones(len(pids) + 1)),
                "market1501-matlab",
            )
            assert report.per_query.first_rank[1] == 1
            firsts.append(2 * report.rank1 - 1)
        assert np.mean(firsts) == pytest.approx(case["cmc1"])


def test_mmdetection_with_its_exact_tie(vectors):
    case = vectors["mmdet_reid_metric"]
    features = np.array(case["features"])
    # In hundredths every product is exact, so the tie at 1.46 is one.
    distances = ((100 * features[:, None] - 100 * features[None]).round() ** 2).sum(2)
    labels = side(case["labels"])
    report = evaluate_distances(distances, labels, labels, "all-vs-all")
    assert report.mAP == pytest.approx(0.705, abs=5e-4)
    assert (report.rank1, report.rank5) == (case["R1"], case["R5"])
    assert report.ties == 1
    distances[3, 4] -= 1e-6  # the positive first
    report = evaluate_distances(distances, labels, labels, "all-vs-all")
    assert report.mAP == pytest.approx(case["mAP"], abs=5e-4)


def test_catalyst_counts_a_query_that_we_leave_out(vectors):
    """Catalyst counts the query whose only match is in its own camera; the Market rule skips it."""
    case = vectors["catalyst_reid_cmc"]
    features = torch.tensor(case["embeddings"], dtype=torch.float32)
    is_query = np.array(case["is_query"], bool)
    pids, camids = np.array(case["pids"]), np.array(case["cids"])

    def of(chosen):
        return Features(features[torch.from_numpy(chosen)], pids[chosen], camids[chosen])

    report = evaluate(of(is_query), of(~is_query), metric="euclidean", max_rank=3)
    assert case["cmc1"] == 0.75
    assert report.rank1 == 1.0
    assert report.excluded["queries_without_match"] == 1
    assert report.num_valid_query == 3


def test_torchmetrics_example(vectors):
    case = vectors["torchmetrics_ap_example"]
    report = evaluate_distances(
        -np.array([case["scores"]]), side([1]), side(case["target"]), "no-camera"
    )
    assert report.mAP == pytest.approx(case["ap"], abs=1e-4)
