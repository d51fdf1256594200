"""Impostor pairs by distance, counted tile by tile, and the nearest item of each query."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from mmga.ops import reference
from mmga.ops._library import define
from mmga.ops.ranking import Tile


@dataclass(slots=True)
class Impostors:
    """What is counted of items that are no match.

    Attributes:
        edges: float64 [B], ascending upper edges of bins in the unit of keys.
        counts: int64 [B + 1], pairs whose key is at most the edge and above the one before; the
            last are those beyond all edges.
        nearest: float64 [R], smallest key of a kept item.
        nearest_item: int64 [R], the first item of that key.
    """

    edges: Tensor
    counts: Tensor
    nearest: Tensor
    nearest_item: Tensor

    @classmethod
    def of(cls, edges: Tensor, rows: int) -> Impostors:
        """Start all counts at zero."""
        return cls(
            edges,
            torch.zeros(len(edges) + 1, dtype=torch.int64, device=edges.device),
            torch.full((rows,), torch.inf, dtype=torch.float64, device=edges.device),
            torch.full((rows,), torch.iinfo(torch.int64).max, device=edges.device),
        )


def count_impostors(
    tile: Tile,
    rows: slice,
    ignored_start: Tensor,
    ignored_item: Tensor,
    impostors: Impostors,
    row_camera: Tensor | None = None,
    column_camera: Tensor | None = None,
    cross_camera: bool = False,
    removed: Tensor | None = None,
    known: Tensor | None = None,
) -> None:
    """Add a tile's items to the counts (`reference.count_impostors`).

    Args:
        tile: [R, W].
        rows: the rows of `impostors` that the tile's are.
        ignored_start: int64 [R + 1], of the tile's rows.
        ignored_item: int64, items that are not kept, ascending in each row.
        impostors: what is counted, changed in place.
        row_camera: int32 [R], with `column_camera` int32 [W]: items of equal code are left out.
        column_camera: see there.
        cross_camera: leave these out of the counts alone, not of the nearest.
        removed: bool [R, W], items that are left out.
        known: bool [W], items that may be the nearest; None: all.
    """
    _COUNT_IMPOSTORS(
        tile.values,
        tile.row_term,
        tile.column_term,
        tile.metric,
        tile.offset,
        ignored_start,
        ignored_item,
        row_camera,
        column_camera,
        cross_camera,
        removed,
        known,
        impostors.edges,
        impostors.counts,
        impostors.nearest[rows],
        impostors.nearest_item[rows],
    )


def _count_fake(*inputs: object) -> None:
    return None


_COUNT_IMPOSTORS = define(
    "count_impostors(Tensor values, Tensor row_term, Tensor column_term, int metric, int offset, "
    "Tensor ignored_start, Tensor ignored_item, Tensor? row_camera, Tensor? column_camera, "
    "bool cross_camera, Tensor? removed, Tensor? known, Tensor edges, "
    "Tensor(a!) counts, Tensor(b!) nearest, Tensor(c!) nearest_item) -> ()",
    reference.count_impostors,
    _count_fake,
)
