"""Person re-identification: mask guided attention, and exact evaluation at any gallery size.

Everything is imported when it is first used, so that commands start fast and the evaluator never
loads torchvision or Triton.
"""

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

# Public name -> the module that defines it.
_PUBLIC = {
    "UserError": "mmga.common.errors",
    "Features": "mmga.retrieval.features",
    "load_features": "mmga.retrieval.features",
    "evaluate": "mmga.retrieval.evaluate",
    "evaluate_distances": "mmga.retrieval.evaluate",
    "Report": "mmga.retrieval.metrics.report",
    "Evaluator": "mmga.retrieval.evaluator",
    "pairwise_distance": "mmga.ops.distance",
    "KReciprocal": "mmga.retrieval.reranking.settings",
    "GalleryIndex": "mmga.retrieval.reranking.index",
    "augment_gallery": "mmga.retrieval.neighbours.query_expansion",
    "expand_queries": "mmga.retrieval.neighbours.query_expansion",
    "to_scipy": "mmga.retrieval.reranking.jaccard",
    "jaccard_distance": "mmga.retrieval.reranking.jaccard",
    "nearest": "mmga.retrieval.neighbours.knn",
    "rerank": "mmga.retrieval.reranking.rerank",
    "rerank_distances": "mmga.retrieval.reranking.rerank",
}

__all__ = ["__version__", *_PUBLIC]

if TYPE_CHECKING:
    from mmga.common.errors import UserError as UserError


def __getattr__(name: str) -> Any:
    if name in _PUBLIC:
        return getattr(importlib.import_module(_PUBLIC[name]), name)
    if name in ("ops", "models", "retrieval", "data", "compat"):
        return importlib.import_module(f"mmga.{name}")
    raise AttributeError(f"module 'mmga' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_PUBLIC})
