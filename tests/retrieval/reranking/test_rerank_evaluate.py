"""`evaluate(rerank=...)` against the figures of the re-ranked matrix."""

import types

import literal
import numpy as np
import pytest
import torch
from paths import SHARED_DATA
from reranking_cases import grid, squared

import mmga
from mmga.retrieval.reranking import distances
from mmga.retrieval.reranking.rerank import rerank

DATA = SHARED_DATA / "pku-sketch"


def sides(seed=0, junk=True):
    """Clusters on an integer grid: distances are exact, ties frequent."""
    generator = torch.Generator().manual_seed(seed)
    centres = grid(30, 6, 12, seed)
    pids = torch.randint(0, 30, (400,), generator=generator)
    x = centres[pids] + torch.randint(-2, 3, (400, 6), generator=generator)
    camids = torch.randint(0, 4, (400,), generator=generator).numpy()
    pids = pids.numpy().copy()
    if junk:
        pids[[5, 90, 130, 131, 322]] = -1
    parts = slice(0, 80), slice(80, 400)
    return [mmga.Features(x[part], pids[part], camids[part]) for part in parts]


@pytest.mark.program_settings
@pytest.mark.parametrize("protocol", ["market1501", "no-camera", "other-cameras"])
@pytest.mark.parametrize("variant", ["zhong", "torchreid", "fastreid"])
def test_figures_of_the_matrix(protocol, variant):
    query, gallery = sides()
    rule = mmga.KReciprocal(7, 3, variant=variant)
    report = mmga.evaluate(query, gallery, metric="euclidean", protocol=protocol, rerank=rule)
    matrix = rerank(query, gallery, rule, metric="euclidean")
    matrix[torch.isinf(matrix)] = 99.0
    expected = mmga.evaluate_distances(matrix, query, gallery, protocol)
    assert report.reranked.mAP == expected.mAP != report.mAP
    assert report.reranked.mINP == expected.mINP
    np.testing.assert_array_equal(report.reranked.cmc, expected.cmc)
    plain = mmga.evaluate(query, gallery, metric="euclidean", protocol=protocol)
    assert report.mAP == plain.mAP


def test_junk_stays_in_the_graph_of_the_matlab_protocol():
    query, gallery = sides()
    rule = mmga.KReciprocal(7, 3, half="matlab")
    report = mmga.evaluate(
        query, gallery, metric="euclidean", protocol="market1501-matlab", rerank=rule
    )
    known = query.pids != -1
    x = torch.cat([query.features[torch.from_numpy(known)], gallery.features])
    final = literal.rerank(squared(x).numpy(), known.sum(), 7, 3, 0.3, 4)
    matrix = np.full((80, 320), 99.0)
    matrix[known] = final
    expected = mmga.evaluate_distances(matrix, query, gallery, "market1501-matlab")
    assert report.reranked.mAP == pytest.approx(expected.mAP, abs=1e-12)
    without = mmga.evaluate(query, gallery, metric="euclidean", rerank=rule)
    assert report.reranked.mAP != without.reranked.mAP


def test_one_set_against_itself():
    _, gallery = sides(junk=False)
    rule = mmga.KReciprocal(7, 3)
    report = mmga.evaluate(gallery, metric="euclidean", protocol="all-vs-all", rerank=rule)
    v, dn = literal.zhong_encoding(squared(gallery.features).numpy(), 7, 3)
    matrix = 0.7 * literal.jaccard(v, range(320)) + 0.3 * dn
    expected = mmga.evaluate_distances(matrix, gallery, gallery, "all-vs-all")
    assert report.reranked.mAP == pytest.approx(expected.mAP, abs=1e-12)


@pytest.mark.parametrize("memory", ["64M", "8M"])
def test_any_memory_gives_the_same_figures(memory, monkeypatch):
    query, gallery = sides()
    expected = mmga.evaluate(query, gallery, metric="euclidean", rerank=mmga.KReciprocal())
    monkeypatch.setattr(distances, "KEPT_BYTES", 0 if memory == "8M" else 1 << 20)
    monkeypatch.setattr(distances, "_BLOCK_BYTES", 8 * 320 * 7)
    found = mmga.evaluate(
        query, gallery, metric="euclidean", rerank=mmga.KReciprocal(), memory=memory
    )
    assert found.reranked.mAP == expected.reranked.mAP
    np.testing.assert_array_equal(found.reranked.cmc, expected.reranked.cmc)


def test_report_names_settings_and_seconds():
    query, gallery = sides()
    report = mmga.evaluate(query, gallery, rerank=mmga.KReciprocal.preset("transreid"))
    shown = report.as_dict()
    settings = {"k1": 50, "k2": 15, "lambda_value": 0.3, "variant": "zhong"}
    assert shown["rerank"] == settings
    assert shown["reranked"]["mAP"] == report.reranked.mAP
    assert 0 < shown["seconds"]["neighbours"] < shown["seconds"]["total"]


def test_lambda_one_is_the_plain_ranking():
    query, gallery = sides()
    rule = mmga.KReciprocal(lambda_value=1.0)
    report = mmga.evaluate(query, gallery, metric="euclidean", rerank=rule)
    assert report.reranked.mAP == report.mAP


@pytest.mark.skipif(not DATA.is_dir(), reason=f"no {DATA}: set MMGA_TEST_DATA")
def test_pku_sketch():
    """Known figures of real features: 50 queries, 100 items."""
    path = DATA / "pytorch_result.mat"
    query, gallery = (mmga.load_features(path, side) for side in ("query", "gallery"))
    report = mmga.evaluate(query, gallery, rerank=mmga.KReciprocal())
    assert report.reranked.mAP == pytest.approx(0.175532, abs=1e-6)
    assert report.reranked.cmc[0] == pytest.approx(0.14)


def test_part_features_are_refused():
    generator = torch.Generator().manual_seed(0)
    parts = torch.rand(20, 3, 4, generator=generator)
    query = mmga.Features(parts=parts, pids=np.arange(20) % 5, camids=np.arange(20) % 3)
    with pytest.raises(mmga.UserError, match="part features"):
        distances.reranked_source(
            mmga.KReciprocal(), types.SimpleNamespace(query=query, gallery=query, selection=None)
        )
