"""Ranks and impostor pairs without sorting: gallery items that precede each match, tile by tile.

Specified by the functions of the same names in `mmga.ops.reference`.

Arguments that recur, here and in `certified`:
    tile: [R, W].
    rows: rows of `matches` or `impostors` that the tile holds, a slice with start and stop.
    matches: updated in place.
    masks: items that are not counted.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from mmga.ops import reference
from mmga.ops._library import define

Masks = tuple[Tensor | None, Tensor | None, Tensor | None]
"""`row_camera`, `column_camera` and `removed` of a tile: items that are not counted."""
COUNT_ALL: Masks = (None, None, None)


@dataclass(slots=True)
class Tile:
    """A tile of a distance matrix: inner products that become keys on the fly, or keys.

    Attributes:
        values: [R, W] float32 or float64 with contiguous rows: inner products, or keys.
        offset: item number of the first column.
        metric: index into `reference.METRICS`.
        row_term: [R], see `reference.ranking_keys`; empty where the values are keys.
        column_term: [W].
    """

    values: Tensor
    offset: int
    metric: int
    row_term: Tensor
    column_term: Tensor

    @classmethod
    def of_keys(cls, keys: Tensor, offset: int = 0) -> Tile:
        """Return a tile whose values [R, W] are the keys."""
        empty = keys.new_empty(0)
        return cls(keys, offset, 0, empty, empty)

    @property
    def width(self) -> int:
        """Columns."""
        return self.values.shape[1]

    def cut(self, columns: slice) -> Tile:
        """Return some columns, given their places."""
        return Tile(
            self.values[:, columns],
            self.offset + columns.start,
            self.metric,
            self.row_term,
            self.column_term[columns] if self.metric else self.column_term,
        )

    def arguments(self) -> tuple[Tensor, Tensor, Tensor, int]:
        """Return the arguments with which every operator on tiles begins."""
        return self.values, self.row_term, self.column_term, self.metric

    def keys(self) -> Tensor:
        """Return the ranking keys [R, W], rounded as the kernels round them."""
        if self.metric == 0:
            return self.values
        return reference.ranking_keys(
            self.values, self.row_term[:, None], self.column_term, self.metric
        )

    def at(self, row: Tensor, item: Tensor) -> Tensor:
        """Return the keys of pairs: `row` [K] of the tile, `item` [K] inside its columns."""
        column = item - self.offset
        values = self.values[row, column]
        if self.metric == 0:
            return values
        return reference.ranking_keys(
            values, self.row_term[row], self.column_term[column], self.metric
        )


@dataclass(slots=True)
class Matches:
    """The matches and ignored items of the rows of tiles, and the counts of their ranks.

    Attributes:
        match_start: int64 [R + 1].
        match_item: int64 [M].
        match_key: [M], ascending by (key, item) in each row.
        ignored_start: int64 [R + 1].
        ignored_item: int64, ascending in each row.
        preceding: int64 [M], counted items before each match.
        tied: int64 [R], pairs of a match and a counted item with equal keys.
        nearest: [R], smallest counted key; NaN where a key is.
        mismatched: int64 [R], matches whose key in a tile was not `match_key`.
    """

    match_start: Tensor
    match_item: Tensor
    match_key: Tensor
    ignored_start: Tensor
    ignored_item: Tensor
    preceding: Tensor = field(init=False)
    tied: Tensor = field(init=False)
    nearest: Tensor = field(init=False)
    mismatched: Tensor = field(init=False)

    def __post_init__(self) -> None:
        """Start all counts at zero."""
        self.preceding = torch.zeros_like(self.match_item)
        self.tied = self.match_start.new_zeros(len(self.match_start) - 1)
        self.nearest = torch.full_like(self.tied, torch.inf, dtype=self.match_key.dtype)
        self.mismatched = torch.zeros_like(self.tied)

    @classmethod
    def of(
        cls,
        match_start: Tensor,
        match_item: Tensor,
        match_key: Tensor,
        ignored_start: Tensor,
        ignored_item: Tensor,
    ) -> Matches:
        """Return matches sorted by (key, item) in every row; the lists are copied."""
        match_item, match_key = match_item.clone(), match_key.clone()
        _SORT_MATCHES(match_start, match_item, match_key)
        return cls(match_start, match_item, match_key, ignored_start, ignored_item)

    @classmethod
    def unread(
        cls,
        match_start: Tensor,
        match_item: Tensor,
        ignored_start: Tensor,
        ignored_item: Tensor,
        dtype: torch.dtype,
    ) -> Matches:
        """Return matches with unset keys (filled in by `read_matches`); `match_item` is copied."""
        keys = torch.full_like(match_item, torch.nan, dtype=dtype)
        return cls(match_start, match_item.clone(), keys, ignored_start, ignored_item)

    def ranks(self) -> Tensor:
        """Return the rank of each match among the kept items, from 1: int64 [M]."""
        position = torch.arange(len(self.match_item), device=self.match_item.device)
        first = torch.repeat_interleave(self.match_start[:-1], self.match_start.diff())
        return self.preceding + (position - first) + 1


@dataclass(slots=True)
class Impostors:
    """The ignored items of the rows of tiles, and the counts of the others, which are no match.

    Attributes:
        ignored_start: int64 [R + 1].
        ignored_item: int64, items that are not kept, ascending in each row.
        edges: float64 [B], ascending upper edges of bins in the unit of keys.
        counts: int64 [B + 1], pairs whose key is at most the edge and above the one before; the
            last are those beyond all edges.
        nearest: float64 [R], smallest key of a kept item.
        nearest_item: int64 [R], the first item of that key.
    """

    ignored_start: Tensor
    ignored_item: Tensor
    edges: Tensor
    counts: Tensor
    nearest: Tensor
    nearest_item: Tensor

    @classmethod
    def of(cls, edges: Tensor, ignored_start: Tensor, ignored_item: Tensor) -> Impostors:
        """Start all counts at zero."""
        rows = len(ignored_start) - 1
        return cls(
            ignored_start,
            ignored_item,
            edges,
            torch.zeros(len(edges) + 1, dtype=torch.int64, device=edges.device),
            torch.full((rows,), torch.inf, dtype=torch.float64, device=edges.device),
            torch.full(
                (rows,), torch.iinfo(torch.int64).max, dtype=torch.int64, device=edges.device
            ),
        )


def read_matches(tile: Tile, rows: slice, matches: Matches) -> None:
    """Read the keys of the matches of some rows from a tile, and sort the matches by them.

    Raises:
        ValueError: the tile does not begin with item 0.
    """
    if tile.offset != 0:
        raise ValueError(f"a tile of whole rows begins with item 0, got {tile.offset}")
    _READ_MATCHES(
        *tile.arguments(),
        matches.match_start[rows.start : rows.stop + 1],
        matches.match_item,
        matches.match_key,
    )


def count_preceding(tile: Tile, rows: slice, matches: Matches, masks: Masks = COUNT_ALL) -> None:
    """Add a tile's items to the counts of the matches of its rows."""
    ends = slice(rows.start, rows.stop + 1)
    _COUNT_PRECEDING(
        *tile.arguments(),
        tile.offset,
        matches.match_start[ends],
        matches.match_item,
        matches.match_key,
        matches.ignored_start[ends],
        matches.ignored_item,
        *masks,
        matches.preceding,
        matches.tied[rows],
        matches.nearest[rows],
        matches.mismatched[rows],
    )


def count_impostors(
    tile: Tile,
    rows: slice,
    impostors: Impostors,
    masks: Masks = COUNT_ALL,
    cross_camera: bool = False,
    known: Tensor | None = None,
) -> None:
    """Add a tile's items to the counts of impostor pairs, in place."""
    row_camera, column_camera, removed = masks
    _COUNT_IMPOSTORS(
        *tile.arguments(),
        tile.offset,
        impostors.ignored_start[rows.start : rows.stop + 1],
        impostors.ignored_item,
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


_SORT_MATCHES = define(
    "sort_matches(Tensor match_start, Tensor(a!) match_item, Tensor(b!) match_key) -> ()",
    reference.sort_matches,
)
_READ_MATCHES = define(
    "read_matches(Tensor values, Tensor row_term, Tensor column_term, int metric, "
    "Tensor match_start, Tensor(a!) match_item, Tensor(b!) match_key) -> ()",
    reference.read_matches,
)

_COUNT_PRECEDING = define(
    "count_preceding(Tensor values, Tensor row_term, Tensor column_term, int metric, int offset, "
    "Tensor match_start, Tensor match_item, Tensor match_key, "
    "Tensor ignored_start, Tensor ignored_item, "
    "Tensor? row_camera, Tensor? column_camera, Tensor? removed, "
    "Tensor(a!) preceding, Tensor(b!) tied, Tensor(c!) nearest, Tensor(d!) mismatched) -> ()",
    reference.count_preceding,
)
_COUNT_IMPOSTORS = define(
    "count_impostors(Tensor values, Tensor row_term, Tensor column_term, int metric, int offset, "
    "Tensor ignored_start, Tensor ignored_item, Tensor? row_camera, Tensor? column_camera, "
    "bool cross_camera, Tensor? removed, Tensor? known, Tensor edges, "
    "Tensor(a!) counts, Tensor(b!) nearest, Tensor(c!) nearest_item) -> ()",
    reference.count_impostors,
)
