"""Inputs of one ranking problem: features, labels, norms, device."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from mmga.common.distributed import Group
from mmga.common.errors import UserError
from mmga.common.grid import Grid
from mmga.common.monitor import Monitor
from mmga.ops import distance
from mmga.retrieval.features import Features
from mmga.retrieval.features.vectors import VectorSet, check_scale, lifted
from mmga.retrieval.protocols.selection import Selection
from mmga.retrieval.tiles.parts import PartSource, visible
from mmga.retrieval.tiles.placement import Placement
from mmga.retrieval.tiles.share import QueryShare, Share
from mmga.retrieval.tiles.sources import Source, feature_source


@dataclass(slots=True)
class RankingProblem:
    """A selection of queries and gallery items, checked, on the device that ranks them.

    Attributes:
        query: the query features; of several processes labels of all, and rows of those that this
            one holds.
        gallery: the gallery features likewise, the same object where one set is ranked against
            itself by processes that have all queries.
        norms: squared norms of all rows of both, float64 [Q] and [G], of parts [Q, P] and [G, P].
        selection: which queries and items are ranked; junk is pid -1 in its labels.
        own: the same of the queries that this process ranks.
        asked: the selected queries that this process ranks.
        share: the selected gallery items, or those of them that this process holds.
        asked_rows: rows of the query set that this process holds.
        held: rows of the gallery that this process holds.
        placed: device of the features, and the memory for the rest.
        exact: order that is asked for: certified, float32, or None.
        monitor: reports progress, records seconds and memory.
    """

    query: Features
    gallery: Features
    norms: tuple[Tensor, Tensor]
    selection: Selection
    own: Selection
    asked: QueryShare
    share: Share
    asked_rows: slice
    held: slice
    placed: Placement
    exact: str | None
    monitor: Monitor

    @property
    def grid(self) -> Grid:
        """The processes."""
        return self.asked.grid

    @property
    def queries(self) -> VectorSet:
        """The selected queries that this process ranks."""
        return self.asked.vectors

    @property
    def items(self) -> VectorSet:
        """The selected gallery items that this process holds."""
        return self.share.vectors

    @property
    def metric(self) -> str:
        """Cosine or euclidean."""
        return self.items.metric

    @property
    def device(self) -> torch.device:
        """Device that computes."""
        return self.items.device

    def source(self) -> Source:
        """Return the tiles of the plain distances."""
        if self.query.visibility is None or self.gallery.visibility is None:
            return feature_source(self.asked, self.share, self.placed.memory, self.placed.room)
        first = self.share.first
        visibility = (
            self.query.visibility[self.own.queries],
            self.gallery.visibility[self.selection.gallery[first : first + len(self.items)]],
        )
        return PartSource(self.asked, self.share, visibility, self.placed.memory)


def zero_vectors(features: Features, norms: Tensor) -> int:
    """Count the rows, or the visible parts of rows, that are zero."""
    zero = norms == 0
    if features.visibility is not None:
        zero &= visible(features.visibility) > 0
    return int(zero.sum())


def checked(
    side: str, features: Features, metric: str, first: int = 0, group: Group | None = None
) -> tuple[Features, Tensor]:
    """Return features and the squared norms of their rows, float64 [N] on the CPU; of parts [N, P].

    Rows that are too short for products of float32 are scaled where the metric is the cosine.

    Args:
        side: query or gallery, for messages.
        features: whose rows may be those of a share.
        metric: cosine or euclidean.
        first: number of the first row of the share.
        group: the processes that hold the rows, all of whose norms are returned.

    Raises:
        UserError: a value is NaN or infinite.
    """
    group = group or Group()
    with group.together():
        norms = torch.cat(
            [
                distance.squared_norms(shard.flatten(0, -2)).cpu().reshape(shard.shape[:-1])
                for shard in features.rows.values()
            ]
        )
    norms = group.rows(norms)
    bad = torch.nonzero(~torch.isfinite(norms.view(len(norms), -1)).all(1)).squeeze(1)
    if len(bad):
        raise UserError(
            f"{side}: {len(bad)} of {len(norms)} rows of features hold NaN, infinity or numbers "
            f"past float32's 3.4e38, the first is row {int(bad[0])}; extract them again"
        )
    check_scale(side, norms)
    if metric == "cosine":
        rows, norms = lifted(features.rows, norms, first)
        features = features.with_rows(rows)
    return features, norms
