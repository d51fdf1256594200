"""Person re-identification: mask guided attention, and exact evaluation at any gallery size.

Everything is imported when it is first used, so that commands start fast and the evaluator never
loads torchvision or Triton.
"""

import importlib
from typing import TYPE_CHECKING

from mmga.common.version import __version__

# Public name -> the module that defines it.
_PUBLIC = {
    "UserError": "mmga.common.errors",
    "Features": "mmga.retrieval.features.features",
    "load_features": "mmga.retrieval.features.load",
    "evaluate": "mmga.retrieval.evaluate",
    "evaluate_distances": "mmga.retrieval.evaluate",
    "Report": "mmga.retrieval.metrics.report",
    "Evaluator": "mmga.retrieval.evaluator",
    "pairwise_distance": "mmga.ops.distance",
    "KReciprocal": "mmga.retrieval.reranking.settings",
    "GalleryIndex": "mmga.retrieval.reranking.index",
    "augment_gallery": "mmga.retrieval.neighbours.query_expansion",
    "expand_queries": "mmga.retrieval.neighbours.query_expansion",
    "to_dense": "mmga.retrieval.neighbours.sparse",
    "to_scipy": "mmga.retrieval.neighbours.sparse",
    "jaccard_distance": "mmga.retrieval.reranking.jaccard",
    "kneighbors_graph": "mmga.retrieval.neighbours.graphs",
    "load_distances": "mmga.retrieval.neighbours.sparse_files",
    "save_distances": "mmga.retrieval.neighbours.sparse_files",
    "nearest": "mmga.retrieval.neighbours.knn",
    "neighbours_within": "mmga.retrieval.neighbours.graphs",
    "rerank": "mmga.retrieval.reranking.rerank",
    "rerank_distances": "mmga.retrieval.reranking.rerank",
}
_PACKAGES = ("ops", "models", "retrieval", "data", "compat", "plots")

__all__ = ["__version__", *_PUBLIC]

if TYPE_CHECKING:
    from mmga import compat as compat
    from mmga import data as data
    from mmga import models as models
    from mmga import ops as ops
    from mmga import plots as plots
    from mmga import retrieval as retrieval
    from mmga.common.errors import UserError as UserError
    from mmga.ops.distance import pairwise_distance as pairwise_distance
    from mmga.retrieval.evaluate import evaluate as evaluate
    from mmga.retrieval.evaluate import evaluate_distances as evaluate_distances
    from mmga.retrieval.evaluator import Evaluator as Evaluator
    from mmga.retrieval.features.features import Features as Features
    from mmga.retrieval.features.load import load_features as load_features
    from mmga.retrieval.metrics.report import Report as Report
    from mmga.retrieval.neighbours.graphs import kneighbors_graph as kneighbors_graph
    from mmga.retrieval.neighbours.graphs import neighbours_within as neighbours_within
    from mmga.retrieval.neighbours.knn import nearest as nearest
    from mmga.retrieval.neighbours.query_expansion import augment_gallery as augment_gallery
    from mmga.retrieval.neighbours.query_expansion import expand_queries as expand_queries
    from mmga.retrieval.neighbours.sparse import to_dense as to_dense
    from mmga.retrieval.neighbours.sparse import to_scipy as to_scipy
    from mmga.retrieval.neighbours.sparse_files import load_distances as load_distances
    from mmga.retrieval.neighbours.sparse_files import save_distances as save_distances
    from mmga.retrieval.reranking.index import GalleryIndex as GalleryIndex
    from mmga.retrieval.reranking.jaccard import jaccard_distance as jaccard_distance
    from mmga.retrieval.reranking.rerank import rerank as rerank
    from mmga.retrieval.reranking.rerank import rerank_distances as rerank_distances
    from mmga.retrieval.reranking.settings import KReciprocal as KReciprocal
else:

    def __getattr__(name: str) -> object:
        if name in _PUBLIC:
            return getattr(importlib.import_module(_PUBLIC[name]), name)
        if name in _PACKAGES:
            return importlib.import_module(f"mmga.{name}")
        raise AttributeError(f"module 'mmga' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_PUBLIC})
