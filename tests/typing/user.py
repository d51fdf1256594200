"""A program of a user, for the type checker alone: every public name has the type that it returns.

`make lint` runs mypy over it; `assert_type` fails where a public name or a result is `Any`.
"""

import numpy as np
import torch
from torch import Tensor
from typing_extensions import assert_type

import mmga
from mmga.models import MMGA


def evaluation(x: Tensor, pids: np.ndarray) -> None:
    features = mmga.Features(x, pids)
    assert_type(mmga.load_features("gallery.npz"), mmga.Features)
    report = mmga.evaluate(features, features, rerank=mmga.KReciprocal())
    assert_type(report, mmga.Report)
    assert_type(report.mAP, float)
    assert_type(report.rank1, float | None)
    assert_type(mmga.evaluate_distances(x, features, features), mmga.Report)
    evaluator = mmga.Evaluator(protocol="no-camera")
    evaluator.update("query", x, pids)
    assert_type(evaluator.compute(), mmga.Report)


def neighbours(x: Tensor, y: np.ndarray) -> None:
    assert_type(mmga.nearest(x, y, 3), tuple[Tensor, Tensor])
    assert_type(mmga.nearest(y, x, 3), tuple[np.ndarray, np.ndarray])
    assert_type(mmga.pairwise_distance(x, x), Tensor)
    assert_type(mmga.expand_queries(x, y), Tensor)
    assert_type(mmga.augment_gallery(y), Tensor)
    assert_type(mmga.kneighbors_graph(y, 3), Tensor)


def reranking(x: Tensor, y: np.ndarray) -> None:
    assert_type(mmga.rerank(x, y), Tensor)
    assert_type(mmga.rerank(y, x), np.ndarray)
    assert_type(mmga.rerank(x, y, topk=3), tuple[Tensor, Tensor])
    assert_type(mmga.rerank(y, x, topk=3), tuple[np.ndarray, np.ndarray])
    assert_type(mmga.rerank_distances(x, x, x, squared=True), Tensor)
    assert_type(mmga.rerank_distances(y, y, y, squared=True), np.ndarray)
    assert_type(mmga.jaccard_distance(x), Tensor)
    index = mmga.GalleryIndex.build(x)
    assert_type(index, mmga.GalleryIndex)
    assert_type(index.rerank(y), np.ndarray)


def operators(x: Tensor) -> None:
    assert_type(mmga.ops.attention_multiply(x, x, x), Tensor)
    assert_type(mmga.ops.backends(), dict[str, str])
    assert_type(MMGA(751).training, bool)
    assert_type(torch.sum(x), Tensor)
