"""Every public function gives the same bits under every program-wide setting of torch."""

import functools
import tempfile
from pathlib import Path

import numpy as np
import program_settings
import pytest
import torch

import mmga
from mmga import compat

ROWS, WIDTH = 50, 48


def numbers(kind):
    """Features of ordinary numbers, or with many that only subnormal arithmetic tells from zero."""
    rng = np.random.default_rng(3)
    features = rng.standard_normal((ROWS + 20, WIDTH)).astype(np.float32)
    if kind == "subnormal":
        features[:, 1:] *= np.float32(2.0**-140)
        features[:, 0] = 2.0**-40
        features[::7, 0] = 0  # rows that are zero but for subnormal numbers
    return features


def inputs(kind):
    features = numbers(kind)
    pids, camids = np.arange(len(features)) % 9, np.arange(len(features)) % 2
    sides = (pids[:20], camids[:20]), (pids[20:], camids[20:])
    return features[:20], features[20:], *sides, features[:20].astype(float)


def summary(report):
    scores = report.per_query
    arrays = [report.cmc, scores.average_precision, scores.inverse_negative_penalty]
    reranked = None if report.reranked is None else report.reranked.mAP
    return [report.mAP, report.mINP, reranked, report.ties, *(one.tolist() for one in arrays)]


def results(data, folder):
    """Yield the name and the result of every public function."""
    q, g, own, others, wide = data
    query, gallery = mmga.Features(q, *own), mmga.Features(g, *others)
    rule = mmga.KReciprocal(7, 3)
    for metric in ("cosine", "euclidean"):
        for protocol in ("market1501", "no-camera", "multi-query", "cuhk03-single-shot"):
            report = mmga.evaluate(query, gallery, metric=metric, protocol=protocol)
            yield f"evaluate, {metric}, {protocol}", summary(report)
        report = mmga.evaluate(query, gallery, metric=metric, exact="float32", verification=True)
        yield f"verification, {metric}", [summary(report), report.extra["verification"]]
        report = mmga.evaluate(gallery, metric=metric, protocol="all-vs-all", rerank=rule)
        yield f"re-ranked, {metric}", summary(report)
        yield f"nearest, {metric}", mmga.nearest(q, g, 5, metric)
        yield f"rerank, {metric}", mmga.rerank(q, g, rule, metric=metric)
        sparse = mmga.jaccard_distance(g, 7, 3, metric=metric, max_distance=0.7)
        yield f"jaccard, {metric}", [sparse.crow_indices(), sparse.col_indices(), sparse.values()]
        index = mmga.GalleryIndex.build(g, rule, metric)
        yield f"index, {metric}", index.rerank(q[1])
        distances = mmga.pairwise_distance(torch.from_numpy(q), torch.from_numpy(g), metric)
        yield f"pairwise distance, {metric}", distances
        report = mmga.evaluate_distances(distances, query, gallery)
        yield f"evaluate distances, {metric}", summary(report)
    pairs = [mmga.pairwise_distance(side.features, side.features) for side in (query, gallery)]
    yield "rerank distances", mmga.rerank_distances(distances, *pairs, rule, squared=False)
    yield "re-ranking of torchreid", compat.re_ranking(distances, *pairs, 7, 3)
    yield (
        "ranks of torchreid",
        compat.evaluate_rank(distances, own[0], others[0], own[1], others[1]),
    )
    yield "Jaccard of cluster-contrast", compat.compute_jaccard_distance(g, 7, 3)
    yield "query expansion", mmga.expand_queries(q, g, 4)
    yield "augmentation", mmga.augment_gallery(g, 4)
    parts = [
        mmga.Features(None, *labels, parts=side.reshape(len(side), 4, -1))
        for side, labels in ((q, own), (g, others))
    ]
    yield "parts", summary(mmga.evaluate(*parts))
    yield "float64", mmga.Features(wide, *own).features
    evaluator = mmga.Evaluator()
    evaluator.update("query", q, *own)
    evaluator.update("gallery", torch.from_numpy(g), *others)
    yield "evaluator", summary(evaluator.compute())
    for suffix in (".npz", ".pt", ".safetensors", ".mat", ""):
        gallery.save(folder / f"g{suffix}")
        loaded = mmga.load_features(folder / f"g{suffix}")
        yield f"file {suffix}", [loaded.features, loaded.pids, loaded.camids]


def bits(value):
    """All numbers of a result, in an order of its own, as bytes."""
    if isinstance(value, torch.Tensor):
        assert value.device.type == "cpu" and not value.is_inference()
        value = value.detach().numpy()
    if isinstance(value, np.ndarray):
        return value.dtype.str, value.shape, value.tobytes()
    if isinstance(value, dict):
        return [(name, bits(one)) for name, one in value.items()]
    return [bits(one) for one in value] if isinstance(value, list | tuple) else repr(value)


@functools.cache
def wanted(kind):
    with tempfile.TemporaryDirectory() as folder:
        return {name: bits(one) for name, one in results(inputs(kind), Path(folder))}


@pytest.fixture
def _two_threads():
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(1)


@pytest.mark.usefixtures("_two_threads")
@pytest.mark.parametrize("setting", program_settings.SETTINGS)
def test_results_are_the_same_to_the_bit(setting, tmp_path):
    kind = "subnormal" if setting == "flush" else "ordinary"
    data, right = inputs(kind), wanted(kind)
    with program_settings.SETTINGS[setting]():
        found = {name: bits(one) for name, one in results(data, tmp_path)}
    assert [name for name in right if found[name] != right[name]] == []
