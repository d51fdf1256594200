"""Ranks from approximate tiles: what a bound on their error settles, and float64 for the rest.

Specified by the functions of the same names in `mmga.ops.reference`; docs/certified.md derives the
bounds.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from mmga.ops import reference
from mmga.ops._library import define
from mmga.ops.ranking import Matches, Tile

UNIT = 2.0**-24
"""Half the distance from 1 to the next float32: the relative error of one rounding."""


def gamma(roundings: int) -> float:
    """Return the relative error that so many float32 roundings in a row may add up to.

    An inner product of n terms is wrong by at most gamma(n) <|x|, |y|>, whatever the order of the
    sum and with or without fused multiply-add (Higham, Accuracy and Stability, section 3.1).
    """
    return roundings * UNIT / (1 - roundings * UNIT)


@dataclass(frozen=True, slots=True)
class Bound:
    """How far the keys of a tile may be from the exact ones.

    For row i and column j: row_radius[i] * column_radius[j] + row_slack[i] + column_slack[j].

    Attributes:
        row_radius: float64 [R].
        column_radius: float64 [W].
        row_slack: float64 [R].
        column_slack: float64 [W].
    """

    row_radius: Tensor
    column_radius: Tensor
    row_slack: Tensor
    column_slack: Tensor

    def tile(self, rows: slice, columns: slice) -> Bound:
        """Return the bound of some rows and columns."""
        return Bound(
            self.row_radius[rows],
            self.column_radius[columns],
            self.row_slack[rows],
            self.column_slack[columns],
        )


def thresholds(match_start: Tensor, match_key: Tensor, row_slack: Tensor) -> tuple[Tensor, Tensor]:
    """Return what a key of float32 must be below, or above, to be certainly so of the match's.

    Args:
        match_start: int64 [R + 1].
        match_key: float64 [M].
        row_slack: float64 [R], by which keys of a row may be wrong whatever the column.

    Returns:
        float32 [M] and [M], rounded away from the keys.
    """
    slack = torch.repeat_interleave(row_slack, match_start.diff())
    infinity = torch.tensor(torch.inf, device=match_key.device)
    lower = (match_key - slack).to(torch.float32).nextafter(-infinity)
    upper = (match_key + slack).to(torch.float32).nextafter(infinity)
    return lower, upper


def count_certain(
    tile: Tile,
    rows: slice,
    matches: Matches,
    lower: Tensor,
    upper: Tensor,
    bound: Bound,
    row_camera: Tensor | None = None,
    column_camera: Tensor | None = None,
    removed: Tensor | None = None,
) -> Tensor:
    """Count what certainly precedes the matches of a tile's rows (`reference.count_certain`).

    Args:
        tile: float32 [R, W].
        rows: the rows of `matches` that the tile's are, a slice with start and stop.
        matches: with float64 keys; `preceding` is changed in place.
        lower: [M], see `thresholds`.
        upper: [M].
        bound: of this tile; its row slack is in `lower` and `upper` already.
        row_camera: int32 [R], with `column_camera` int32 [W]: items of equal code are left out.
        column_camera: see there.
        removed: bool [R, W], items that are left out.

    Returns:
        The undecided pairs, int32 [P, 4].
    """
    ends = slice(rows.start, rows.stop + 1)
    undecided: Tensor = _COUNT_CERTAIN(
        tile.values,
        tile.row_term,
        tile.column_term,
        tile.metric,
        tile.offset,
        bound.row_radius.to(torch.float32),
        bound.column_radius.to(torch.float32),
        bound.column_slack.to(torch.float32),
        matches.match_start[ends],
        matches.match_item,
        lower,
        upper,
        matches.ignored_start[ends],
        matches.ignored_item,
        row_camera,
        column_camera,
        removed,
        matches.preceding,
    )
    return undecided


def settle_pairs(
    undecided: Tensor,
    x: Tensor,
    y: Tensor,
    row_term: Tensor,
    column_term: Tensor,
    metric: int,
    offset: int,
    rows: slice,
    matches: Matches,
    bound: Bound | None = None,
) -> Tensor:
    """Settle undecided pairs by products in float64 (`reference.settle_pairs`).

    Args:
        undecided: int32 [P, 4] of a tile.
        x: float32 [R, K] of the tile's rows.
        y: float32 [W, K] of its columns.
        row_term: float64 [R], norms (cosine) or squared norms (euclidean).
        column_term: float64 [W].
        metric: number of the metric.
        offset: item number of the tile's first column.
        rows: the rows of `matches` that the tile's are.
        matches: with float64 keys; `preceding` and `tied` are changed in place.
        bound: how far these products' keys may be from the exact ones; None: they are exact.

    Returns:
        The pairs that are still undecided; none if the products are exact.
    """
    ends = slice(rows.start, rows.stop + 1)
    still: Tensor = _SETTLE_PAIRS(
        undecided,
        x,
        y,
        row_term,
        column_term,
        metric,
        None if bound is None else bound.row_radius,
        None if bound is None else bound.column_radius,
        None if bound is None else bound.row_slack,
        None if bound is None else bound.column_slack,
        offset,
        matches.match_start[ends],
        matches.match_item,
        matches.match_key,
        matches.preceding,
        matches.tied[rows],
    )
    return still


def _fake_undecided(first: Tensor, *inputs: object) -> Tensor:
    pairs = torch.library.get_ctx().new_dynamic_size()
    return first.new_empty((pairs, 4), dtype=torch.int32)


_COUNT_CERTAIN = define(
    "count_certain(Tensor values, Tensor row_term, Tensor column_term, int metric, int offset, "
    "Tensor row_radius, Tensor column_radius, Tensor column_slack, "
    "Tensor match_start, Tensor match_item, Tensor lower, Tensor upper, "
    "Tensor ignored_start, Tensor ignored_item, "
    "Tensor? row_camera, Tensor? column_camera, Tensor? removed, "
    "Tensor(a!) preceding) -> Tensor",
    reference.count_certain,
    _fake_undecided,
)
_SETTLE_PAIRS = define(
    "settle_pairs(Tensor undecided, Tensor x, Tensor y, Tensor row_term, Tensor column_term, "
    "int metric, Tensor? row_radius, Tensor? column_radius, Tensor? row_slack, "
    "Tensor? column_slack, int offset, Tensor match_start, Tensor match_item, Tensor match_key, "
    "Tensor(a!) preceding, Tensor(b!) tied) -> Tensor",
    reference.settle_pairs,
    _fake_undecided,
)
