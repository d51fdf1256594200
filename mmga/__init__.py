"""Person re-identification: mask guided attention, and exact evaluation at any gallery size.

Everything is imported when it is first used, so that commands start fast and the evaluator never
loads torchvision or Triton.
"""

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

# Public name -> the module that defines it.
_PUBLIC = {
    "UserError": "mmga.errors",
    "Features": "mmga.retrieval.features",
    "load_features": "mmga.retrieval.features",
    "evaluate": "mmga.retrieval.evaluate",
    "evaluate_distances": "mmga.retrieval.evaluate",
    "Report": "mmga.retrieval.report",
    "Evaluator": "mmga.retrieval.evaluator",
    "pairwise_distance": "mmga.ops.distance",
    "KReciprocal": "mmga.retrieval.k_reciprocal",
    "GalleryIndex": "mmga.retrieval.index",
    "augment_gallery": "mmga.retrieval.expansion",
    "expand_queries": "mmga.retrieval.expansion",
    "to_scipy": "mmga.retrieval.jaccard",
    "jaccard_distance": "mmga.retrieval.jaccard",
    "nearest": "mmga.retrieval.nearest",
    "rerank": "mmga.retrieval.rerank",
    "rerank_distances": "mmga.retrieval.rerank",
}

__all__ = ["__version__", *_PUBLIC]

if TYPE_CHECKING:
    from mmga.errors import UserError as UserError


def __getattr__(name: str) -> Any:
    if name in _PUBLIC:
        return getattr(importlib.import_module(_PUBLIC[name]), name)
    if name in ("ops", "models", "retrieval", "data", "compat"):
        return importlib.import_module(f"mmga.{name}")
    raise AttributeError(f"module 'mmga' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_PUBLIC})
