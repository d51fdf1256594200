"""Evaluation inside a training loop: batches in, a report out."""

from __future__ import annotations

import copy
import inspect
from typing import Any, Literal

from mmga.common.errors import UserError
from mmga.retrieval.evaluate import evaluate
from mmga.retrieval.features import Features, joined
from mmga.retrieval.features.features import Column, Matrix
from mmga.retrieval.features.sharded_matrix import ShardedMatrix
from mmga.retrieval.metrics.report import Report
from mmga.retrieval.protocols.protocol import protocol_named


class Evaluator:
    """Collects batches of features and evaluates them.

    Example:
        >>> evaluator = Evaluator(protocol="market1501")
        >>> for images, pids, camids in query_loader:
        ...     evaluator.update("query", model(images), pids, camids)
        >>> report = evaluator.compute()
    """

    def __init__(self, **options: object) -> None:
        """Keep the keyword arguments of `evaluate`.

        Raises:
            TypeError: `evaluate` takes no such argument.
            UserError: there is no such protocol.
        """
        self.options: dict[str, Any] = dict(options)
        inspect.signature(evaluate).bind(None, None, **options)
        protocol_named(self.options.get("protocol", "market1501"), self.options.get("ap"))
        self.reset()

    def reset(self) -> None:
        """Forget all batches."""
        self._batches: dict[str, list[Features]] = {"query": [], "gallery": []}

    def update(
        self,
        side: Literal["query", "gallery"],
        features: Matrix | None,
        pids: Column,
        camids: Column | None = None,
        **more: object,
    ) -> None:
        """Add a batch; it is copied, its features detached and kept on the CPU.

        Args:
            side: the set that the batch belongs to; with protocol all-vs-all ``"query"`` alone.
            features: [B, D] tensor or array; None where `parts` are given.
            pids: [B] integers or strings.
            camids: [B], or None in every batch.
            **more: further arguments of `Features`: paths, columns, parts, visibility.

        Raises:
            UserError: the batch does not fit.
        """
        if side not in self._batches:
            raise UserError(f"side: expected query or gallery, found {side!r}")
        kept = self._batches[side]
        further: dict[str, Any] = dict(more)
        source = f"{side} batch {len(kept) + 1}"
        batch = Features(features, pids, camids, source=source, **further)
        if kept and (kept[0].camids is None) != (camids is None):
            raise UserError("camids: give them in every batch or in none")
        # Callers may write the next batch to the same memory.
        batch.rows = ShardedMatrix([batch.rows.numbers().cpu().clone()], batch.rows.scale)
        labels = copy.deepcopy((batch.pids, batch.camids, batch.visibility, batch.columns))
        batch.pids, batch.camids, batch.visibility, batch.columns = labels
        kept.append(batch)

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
        whole = joined(self._batches[side])
        # One piece is read faster than many.
        whole.rows = ShardedMatrix([whole.rows.numbers()], whole.rows.scale)
        return whole
