"""Ranks of matches and counts of impostors, tile by tile.

Arguments that recur, here and in `certified`; those of a tile are `distance`'s, the terms in the
dtype of the tile:
    offset: item number of the tile's first column.
    match_start: int64 [R + 1], where the matches of each row begin in the lists of M matches.
    match_item: int64 [M], item numbers.
    match_key: [M] in the dtype of the tile, ascending by (key, item) in each row.
    ignored_start: int64 [R + 1], where the ignored items of each row begin.
    ignored_item: int64, numbers of items that are not counted, ascending in each row.
    row_camera: int32 [R], with `column_camera` int32 [W]: items of equal code are not counted.
        None: no such rule.
    removed: bool [R, W], items that are not counted, or None.
    preceding: int64 [M], increased by the number of counted items that rank before each match.
    tied: int64 [R], increased by the number of pairs (match, counted item) of equal keys.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mmga.ops.reference.distance import METRICS, ranking_keys


def read_matches(
    values: Tensor,
    row_term: Tensor,
    column_term: Tensor,
    metric: int,
    match_start: Tensor,
    match_item: Tensor,
    match_key: Tensor,
) -> None:
    """Read the keys of the matches from a tile of whole rows and sort them by (key, item).

    Args:
        values: column j is item j.
        match_item: sorted in place within each row.
        match_key: set to the keys in that order.
    """
    for row in range(values.shape[0]):
        mine = slice(int(match_start[row]), int(match_start[row + 1]))
        item = match_item[mine]
        keys = values[row, item]
        if metric != METRICS.index("given"):
            keys = ranking_keys(keys, row_term[row], column_term[item], metric)
        match_key[mine] = keys
    sort_matches(match_start, match_item, match_key)


def sort_matches(match_start: Tensor, match_item: Tensor, match_key: Tensor) -> None:
    """Sort the matches of every row by (key, item), in place; NaN goes last.

    Args:
        match_key: float32 or float64 [M], in any order.
    """
    for row in range(len(match_start) - 1):
        mine = slice(int(match_start[row]), int(match_start[row + 1]))
        item, by_item = match_item[mine].sort()
        key, by_key = torch.sort(match_key[mine][by_item], stable=True)
        match_item[mine], match_key[mine] = item[by_key], key


def row_keys(
    row: int, values: Tensor, row_term: Tensor, column_term: Tensor, metric: int
) -> Tensor:
    """Return the keys [W] of one row of a tile; the metric ``given`` has no terms."""
    if metric == METRICS.index("given"):
        return values[row]
    return ranking_keys(values[row], row_term[row], column_term, metric)


def counted_items(
    row: int,
    offset: int,
    width: int,
    ignored_start: Tensor,
    ignored_item: Tensor,
    cameras: tuple[Tensor | None, Tensor | None],
    removed: Tensor | None,
) -> Tensor:
    """Return a bool [W] mask of the items that count for one row of a tile."""
    counted = torch.ones(width, dtype=torch.bool, device=ignored_item.device)
    ignored = ignored_item[int(ignored_start[row]) : int(ignored_start[row + 1])]
    counted[ignored[(ignored >= offset) & (ignored < offset + width)] - offset] = False
    row_camera, column_camera = cameras
    if row_camera is not None and column_camera is not None:
        counted &= column_camera != row_camera[row]
    if removed is not None:
        counted &= ~removed[row]
    return counted


def count_preceding(
    values: Tensor,
    row_term: Tensor,
    column_term: Tensor,
    metric: int,
    offset: int,
    match_start: Tensor,
    match_item: Tensor,
    match_key: Tensor,
    ignored_start: Tensor,
    ignored_item: Tensor,
    row_camera: Tensor | None,
    column_camera: Tensor | None,
    removed: Tensor | None,
    preceding: Tensor,
    tied: Tensor,
    nearest: Tensor,
    mismatched: Tensor,
) -> None:
    """Count, for every match of every row of a tile, the items of the tile that rank before it.

    Item j ranks before match m if (key of j, j) < (key of m, m). Matches are not counted: they are
    in the ignored lists and ranked among themselves. Called once for each tile of a gallery, the
    counts add up to the number of kept items that are no match and rank before it.

    Args:
        nearest: [R], lowered to the smallest key that is counted; NaN if any key of the row is.
        mismatched: int64 [R], increased by the matches whose key in this tile is not `match_key`.
    """
    cameras = row_camera, column_camera
    columns = torch.arange(offset, offset + values.shape[1], device=values.device)
    for row in range(values.shape[0]):
        keys = row_keys(row, values, row_term, column_term, metric)  # [W]
        counted = counted_items(
            row, offset, len(keys), ignored_start, ignored_item, cameras, removed
        )

        mine = slice(int(match_start[row]), int(match_start[row + 1]))
        item, key = match_item[mine], match_key[mine]  # [m]
        equal = counted & (keys == key[:, None])  # [m, W]
        before = (counted & (keys < key[:, None])) | (equal & (columns < item[:, None]))
        preceding[mine] += before.sum(1)
        tied[row] += equal.sum()
        inside = (item >= offset) & (item < offset + len(keys))
        mismatched[row] += (keys[item[inside] - offset] != key[inside]).sum()
        smallest = torch.where(counted, keys, torch.inf).amin()
        nearest[row] = torch.where(
            keys.isnan().any(), torch.nan, torch.minimum(nearest[row], smallest)
        )


def count_impostors(
    values: Tensor,
    row_term: Tensor,
    column_term: Tensor,
    metric: int,
    offset: int,
    ignored_start: Tensor,
    ignored_item: Tensor,
    row_camera: Tensor | None,
    column_camera: Tensor | None,
    cross_camera: bool,
    removed: Tensor | None,
    known: Tensor | None,
    edges: Tensor,
    counts: Tensor,
    nearest: Tensor,
    nearest_item: Tensor,
) -> None:
    """Count the kept items of a tile that are no match by their keys, and find the nearest.

    Args:
        ignored_item: matches and removed items.
        cross_camera: items of the row's camera are left out of the counts alone.
        known: bool [W], items that may be the nearest; None: all.
        edges: float64 [B], ascending upper edges of bins in the unit of keys.
        counts: int64 [B + 1], increased: a key k belongs to the first bin with k <= edge, one
            beyond the last edge to bin B.
        nearest: float64 [R], lowered to the smallest kept key of a known item.
        nearest_item: int64 [R], the first item that has it.
    """
    items = torch.arange(offset, offset + values.shape[1], device=values.device)
    for row in range(values.shape[0]):
        keys = row_keys(row, values, row_term, column_term, metric)  # [W]
        kept = counted_items(
            row, offset, len(keys), ignored_start, ignored_item, (None, None), removed
        )
        other_camera = torch.ones_like(kept)
        if row_camera is not None and column_camera is not None:
            other_camera = column_camera != row_camera[row]
        eligible = kept if cross_camera else kept & other_camera
        if known is not None:
            eligible = eligible & known
        if eligible.any():
            smallest = keys[eligible].double().min()
            item = items[eligible & (keys.double() == smallest)][0]
            if (smallest, item) < (nearest[row], nearest_item[row]):
                nearest[row], nearest_item[row] = smallest, item
        place = torch.searchsorted(edges, keys[kept & other_camera].double())
        counts += torch.bincount(place, minlength=len(counts))


def average_precision(ranks: Tensor, trapezoid: bool = False) -> Tensor:
    """Return the average precision of one query, float64.

    Args:
        ranks: ranks of its matches among the kept items, ascending from 1, int64 [m], m >= 1.
        trapezoid: the mean of the precisions before and at each hit, as Market-1501's MATLAB code
            has it: hit h at rank r adds ((h - 1) / (r - 1) + h / r) / 2, whose first term is 1
            where r = 1.
    """
    rank = ranks.to(torch.float64)
    hit = torch.arange(1, len(ranks) + 1, dtype=torch.float64, device=ranks.device)
    at = hit / rank
    if not trapezoid:
        return at.mean()
    before = torch.where(ranks == 1, 1.0, (hit - 1) / (rank - 1).clamp_min(1))
    return ((before + at) / 2).mean()
