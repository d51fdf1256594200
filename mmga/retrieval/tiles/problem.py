"""What an evaluation works on: features, labels and norms, checked once, and where to compute."""

from __future__ import annotations

from typing import Any, NoReturn, Protocol

import torch
from torch import Tensor

from mmga.common.errors import UserError
from mmga.common.memory import Peak
from mmga.ops import distance
from mmga.retrieval.features import Features
from mmga.retrieval.features.sharded_matrix import Rows
from mmga.retrieval.protocols.protocol import Labels, Selection
from mmga.retrieval.tiles.parts import PartSide, PartSource, visible
from mmga.retrieval.tiles.sources import (
    TILE,
    Progress,
    Source,
    feature_source,
)


class Context:
    """What an evaluation has at hand when it re-ranks.

    Attributes:
        query: the query features.
        gallery: the gallery features.
        selection: which queries and items are ranked, in which order.
        labels: labels of all rows in one numbering; junk is pid -1.
        query_norms: squared norms of all query rows, float64 [Q], of parts [Q, P].
        gallery_norms: float64 [G] or [G, P].
        metric: cosine or euclidean.
        device: where to compute.
        memory: bytes that may be allocated, or None.
        room: bytes by which tiles on a device are sized, see `devices.Placement`.
        progress: called as (phase, done, total), or None.
        seconds: filled with seconds by phase.
        peak: looks at the memory.
        exact: whose order is asked for: certified, float32, or None.
        plain: makes a new source of the plain distances of `selection`.
    """

    def __init__(
        self,
        query: Features,
        gallery: Features,
        selection: Selection,
        labels: Labels,
        query_norms: Tensor,
        gallery_norms: Tensor,
        metric: str,
        device: torch.device,
        memory: int | None,
        room: int | None,
        progress: Progress | None,
        seconds: dict[str, float],
        peak: Peak,
        exact: str | None = None,
    ) -> None:
        self.query, self.gallery = query, gallery
        self.selection, self.labels = selection, labels
        self.query_norms, self.gallery_norms = query_norms, gallery_norms
        self.metric, self.device, self.memory, self.room = metric, device, memory, room
        self.progress, self.seconds, self.peak = progress, seconds, peak
        self.exact = exact

    def plain(self, selection: Selection | None = None) -> Source:
        """Return the tiles of the plain distances of `selection`, the evaluation's if None."""
        chosen = selection or self.selection
        if self.query.visibility is not None and self.gallery.visibility is not None:
            return self._of_parts(chosen, self.query.visibility, self.gallery.visibility)
        return feature_source(
            self.query.rows,
            chosen.queries,
            self.query_norms,
            self.gallery.rows,
            chosen.gallery,
            self.gallery_norms,
            self.metric,
            self.device,
            self.memory,
            self.room,
            TILE,
        )

    def _of_parts(
        self, chosen: Selection, query_visibility: Tensor, gallery_visibility: Tensor
    ) -> Source:
        query = PartSide(
            self.query.rows, query_visibility, self.query_norms, chosen.queries, self.metric
        )
        gallery = PartSide(
            self.gallery.rows, gallery_visibility, self.gallery_norms, chosen.gallery, self.metric
        )
        return PartSource(query, gallery, self.metric, self.memory)


class Reranker(Protocol):
    """What may be passed as ``rerank=``."""

    def source(self, context: Context) -> Source:
        """Return tiles of the re-ranked distances of `context.selection`."""
        ...

    def as_dict(self) -> dict[str, Any]:
        """Return the parameters as the report shows them."""
        ...


def refuse_precision(precision: str, why: str) -> NoReturn:
    """Raise a `UserError` that says why products cannot be of this precision."""
    raise UserError(f"precision: {precision} {why}; use ieee")


def labels_of(query: Any, gallery: Any, exclude: str | None = None) -> Labels:
    """Return the labels of two objects with ``pids``; ``camids``, ``paths``, ``columns`` if any."""
    if isinstance(query, Features) and isinstance(gallery, Features):
        return Labels.of(query, gallery, exclude)
    sides = []
    for side in (query, gallery):
        count = len(side.pids)
        sides.append(
            side
            if isinstance(side, Features)
            else Features(
                torch.zeros(count, 1),
                side.pids,
                getattr(side, "camids", None),
                getattr(side, "paths", None),
                columns=getattr(side, "columns", None),
            )
        )
    return Labels.of(sides[0], sides[1], exclude)


def zero_vectors(features: Features, norms: Tensor) -> int:
    """Count the rows, or the visible parts of rows, that are zero."""
    zero = norms == 0
    if features.visibility is not None:
        zero &= visible(features.visibility) > 0
    return int(zero.sum())


def checked_norms(side: str, rows: Rows) -> Tensor:
    """Return the squared norms of all rows, float64 [N] on the CPU; of parts [N, P].

    Raises:
        UserError: a value is NaN or infinite.
    """
    if len(rows.shape) == 3:
        norms = torch.cat(
            [
                distance.squared_norms(shard.flatten(0, 1)).cpu().reshape(shard.shape[:2])
                for shard in rows.shards
            ]
        )
    else:
        norms = torch.cat([distance.squared_norms(shard).cpu() for shard in rows.shards])
    finite = torch.isfinite(norms)
    bad = torch.nonzero(~(finite if norms.dim() == 1 else finite.all(1))).squeeze(1)
    if len(bad):
        raise UserError(
            f"{side}: {len(bad)} of {len(norms)} rows of features hold NaN, infinity or numbers "
            f"past float32's 3.4e38, the first is row {int(bad[0])}; extract them again"
        )
    return norms
