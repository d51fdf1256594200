"""Evaluation inside a training loop: batches in, a report out."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from mmga.errors import UserError
from mmga.retrieval.evaluate import evaluate
from mmga.retrieval.features import Features
from mmga.retrieval.report import Report


class Evaluator:
    """Collects batches of features and evaluates them.

    Example:
        >>> evaluator = Evaluator(protocol="market1501")
        >>> for images, pids, camids in query_loader:
        ...     evaluator.update("query", model(images), pids, camids)
        >>> report = evaluator.compute()
    """

    def __init__(self, **options: Any) -> None:
        """Keep the keyword arguments of `evaluate`."""
        self.options = options
        self.reset()

    def reset(self) -> None:
        """Forget all batches."""
        self._batches: dict[str, list[tuple[Tensor, np.ndarray, np.ndarray | None]]] = {
            "query": [],
            "gallery": [],
        }

    def update(
        self, side: Literal["query", "gallery"], features: Any, pids: Any, camids: Any = None
    ) -> None:
        """Add a batch; features are detached and kept on the CPU.

        Args:
            side: the set that the batch belongs to; with protocol all-vs-all ``"query"`` alone.
            features: [B, D] tensor or array.
            pids: [B] integers or strings.
            camids: [B], or None in every batch.

        Raises:
            UserError: the batch does not fit.
        """
        if side not in self._batches:
            raise UserError(f"side: expected query or gallery, found {side!r}")
        batch = Features(features, pids, camids)
        # Strings are kept as strings until all batches are there.
        names = batch.arrays_without_rows()
        kept = self._batches[side]
        if kept and (kept[0][2] is None) != (camids is None):
            raise UserError("camids: give them in every batch or in none")
        kept.append((batch.features.cpu().clone(), names["pids"], names.get("camids")))

    def compute(self) -> Report:
        """Evaluate what was added.

        Raises:
            UserError: a side is empty, or as in `evaluate`.
        """
        if not self._batches["query"]:
            raise UserError("query: no batch was added; call update('query', ...) first")
        query = self._side("query")
        gallery = self._side("gallery") if self._batches["gallery"] else None
        return evaluate(query, gallery, **self.options)

    def _side(self, side: str) -> Features:
        batches = self._batches[side]
        camids = [batch[2] for batch in batches if batch[2] is not None]
        return Features(
            torch.cat([batch[0] for batch in batches]),
            np.concatenate([batch[1] for batch in batches]),
            np.concatenate(camids) if camids else None,
        )
