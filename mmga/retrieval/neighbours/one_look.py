"""Exact k-NN in one look at all pairs: 8-bit products, refined by 16 bits where they are computed.

Each row meets all items, tile by tile, and keeps a list of those that bounds do not exclude from
its k nearest (`ops.certified.CandidateLists`): a few more than k, whose distances are then computed
exactly. One thread at a time writes a list; the k nearest do not depend on how many there are.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from mmga.common.progress import Progress
from mmga.ops.certified import (
    CandidateLists,
    CandidatePlace,
    Int8Tile,
    PairVectors,
    PlacedVectors,
    nearest_of,
    rounded_rows,
)
from mmga.ops.distance import exact_term, metric_number
from mmga.ops.neighbours import Neighbours
from mmga.retrieval.bounds.approximation import (
    Approximation,
    Int8,
    bound_between,
    int16,
    int16_bounded,
)
from mmga.retrieval.bounds.stages import approximate_terms
from mmga.retrieval.features.vectors import VectorSet, exact_pair_keys, squared_distances
from mmga.retrieval.tiles import placement

MEMORY = 256 << 20
"""Bytes of the integers and lists of rows that are looked at together."""
SET_MEMORY = 768 << 20
"""Likewise of a set that meets each pair once; as much as its features in memory, if that is more.
"""
# Bytes of a tile's 8-bit columns, which stay in the last cache while all rows pass by, and columns
# of a tile.
_TILE_BYTES, _LEAST_TILE, _LARGEST_TILE = 2 << 20, 512, 8192
# Tiles along a side of a set on a device, where those meet themselves row by row; columns that are
# multiplied together.
_PARTS, _PANEL = 8, 64
# Parts of `MEMORY` for one of which it is worth while to read the set once more.
_READINGS = 4
# Slots of a list beyond k: when they are taken, the list is pruned. The factor by which they grow
# for rows that have more candidates, and the bytes of one.
_SPARE, _GROWTH, _SLOT_BYTES = 34, 8, 12
# Candidates of copied vectors that are settled together; bytes of the pairs that rows pass on to
# the lists of columns at once, and of one, with what vectors have to spare.
_SETTLED = 1 << 21
_PASSED_ON, _PAIR_BYTES, _LEAST_STEP = 16 << 20, 32, 1024


def _memory(device: torch.device) -> tuple[int, int]:
    """Return the bytes of rows that are looked at together, and of a set that meets pairs once."""
    if device.type == "cpu":
        return MEMORY, SET_MEMORY
    return placement.total_bytes(device) // 8, placement.total_bytes(device) // 4


def _tile(rows: VectorSet) -> int:
    """Return the columns of a tile."""
    if rows.device.type != "cpu":
        return _LARGEST_TILE
    tile = _TILE_BYTES // max(1, rows.dimension) // _LEAST_TILE * _LEAST_TILE
    return min(max(tile, _LEAST_TILE), _LARGEST_TILE)


def _tile_of_set(rows: VectorSet) -> int:
    """Return the rows and columns of a tile where each pair of a set is met once."""
    if rows.device.type == "cpu":
        return _tile(rows)
    part = -(-len(rows) // _PARTS // _PANEL) * _PANEL
    return min(_tile(rows), max(_LEAST_TILE, part))


def _largest_step(k: int) -> int:
    """Return the most rows that meet a tile together where its columns have lists, too."""
    return max(_LEAST_STEP, _PASSED_ON // (_PAIR_BYTES * (k + 1)))


def _strips(first: int, last: int, least: int, most: int) -> Iterator[tuple[int, int]]:
    """Yield the begin and the end of strips of rows, each of up to twice as many as that before.

    The first ones lower the limits of the columns, so that later ones pass on few pairs, whatever
    the order of the rows.
    """
    step = least
    while first < last:
        yield first, min(first + step, last)
        first, step = first + step, min(2 * step, most)


def _row_bytes(rows: VectorSet) -> int:
    """Return the bytes of a row's integers, of 8 and of 16 bits, and of a copy if they need it."""
    return (3 if rows.placeable else 7) * rows.dimension


def _rows_at_once(rows: VectorSet, slots: int, tile: int, spare: int | None) -> int:
    """Return how many rows of a set are held together where each pair is met once.

    Args:
        rows: the set.
        slots: of a row's lists.
        tile: rows and columns of a tile.
        spare: see `Look`.

    Returns:
        Some tiles of rows, perhaps more than there are; 0: the lists of all rows leave too little.
    """
    held, room = _memory(rows.device)
    if rows.device.type == "cpu" and not rows.mapped:
        room = max(room, rows.nbytes)
    if spare is not None:
        room = held + spare
    height = (room - _SLOT_BYTES * slots * len(rows)) // _row_bytes(rows)
    if height >= len(rows):
        return -(-len(rows) // tile) * tile
    return height // tile * tile if height >= held // _READINGS // _row_bytes(rows) else 0


def look_bytes(rows: VectorSet, columns: VectorSet, k: int) -> int:
    """Return the bytes beyond the features with which a `Look` can do, its lists included.

    Without a bound, that of a set in itself takes up to `SET_MEMORY`, or as much as its features
    in memory, for sides and lists.
    """
    width = rows.dimension
    slots = k + max(_SPARE, k // 2) + _SPARE
    sides = min(_memory(rows.device)[0], len(rows) * (_row_bytes(rows) + _SLOT_BYTES * slots))
    tile = min(_tile(rows), len(columns))
    # Of a tile: features, both kinds of integers and the packed ones; and pairs that are passed on.
    tiles = 8 * tile * width + _PAIR_BYTES * (k + 1) * min(_largest_step(k), len(rows))
    return sides + tiles + 48 * (len(rows) + len(columns)) + 32 * k * len(rows)


class Look:
    """One search of the k nearest columns of every row.

    Attributes:
        found: int32 [Q, k], squared distances rounded to float32 [Q, k], and each row's largest
            distance [Q]: NaN where it is not wanted.
    """

    def __init__(
        self,
        rows: VectorSet,
        columns: VectorSet,
        k: int,
        *,
        farthest: bool = False,
        own_at_zero: bool = False,
        spare: int | None = None,
        progress: Progress | None = None,
    ) -> None:
        """Take both sides.

        Args:
            rows: Q vectors.
            columns: the vectors that are searched; those on disk are read once for each part of
                the rows that memory allows, and the nearest again.
            k: 1 to the number of columns.
            farthest: each row's largest distance is wanted, too.
            own_at_zero: rows are the columns, and each is at distance 0 from itself, not at what
                arithmetic gives.
            spare: bytes that may be taken beyond `look_bytes`; None: there is no bound.
            progress: called as (phase, done, total).
        """
        self._rows, self._columns, self._k = rows, columns, k
        self._spare = spare
        self._farthest, self._own_at_zero = farthest, own_at_zero
        self._progress = progress
        self._metric = metric_number(rows.metric)
        # A device's candidates are read by the pair, which takes no kernel of its own.
        placed = rows.placed()
        self._placed = placed, placed if rows is columns else columns.placed()
        self._int8 = Int8(max(float(side.norms.max()) for side in (rows, columns)) ** 0.5)
        self._tile = _tile(rows)
        self.found = Neighbours(
            torch.empty(len(rows), k, dtype=torch.int32, device=rows.device),
            torch.empty(len(rows), k, dtype=torch.float32, device=rows.device),
            torch.full((len(rows),), torch.nan, dtype=torch.float32, device=rows.device),
        )

    def run(self) -> Neighbours:
        """Find the nearest of all rows."""
        rows, k, most = self._rows, self._k, len(self._columns) + 1
        if self._own_at_zero and len(rows) == 1:  # without others
            self.found.index.zero_()
            self.found.distances.zero_()
            if self._farthest:
                self.found.maxima.zero_()
            return self.found
        chosen = torch.arange(len(rows), dtype=torch.int64, device=rows.device)
        slots, far = k + max(_SPARE, k // 2), _SPARE * self._farthest
        order = _Order.of(self._columns)
        numbered = _Order.numbered(len(self._columns), rows.device)
        if rows is self._columns:
            slots, far = min(slots, most), min(far, most)
            tile = _tile_of_set(rows)
            height = _rows_at_once(rows, slots + far, tile, self._spare)
            if height:
                chosen = self._find_symmetric((slots, far), (height, tile), order)
                slots, far, order = _GROWTH * slots, _GROWTH * far, numbered
        while len(chosen):
            slots, far = min(slots, max(most, k + 1)), min(far, most)
            row_bytes = _row_bytes(rows) + _SLOT_BYTES * (slots + far)
            parts = chosen.split(max(1, _memory(rows.device)[0] // row_bytes))
            chosen = torch.cat([part[self._find(part, slots, far, order)] for part in parts])
            if len(chosen) and not order.total and slots >= most and far in (0, most):
                raise RuntimeError("a list of all items lacks a neighbour: a bound is too small")
            slots, far, order = _GROWTH * slots, _GROWTH * far, numbered
        return self.found

    def _find_symmetric(
        self, slots: tuple[int, int], sizes: tuple[int, int], order: _Order
    ) -> Tensor:
        """Find the nearest of all rows, which are the columns; each pair but a few is met once.

        Rows that are held together meet each other and all that come after them. Each tile of the
        set meets itself first, so that its lists have limits.

        Args:
            slots: of a row's list, and of that of the farthest.
            sizes: rows that are held together, and rows and columns of a tile.
            order: of all rows.

        Returns:
            The rows that must be found again, int64 [L].
        """
        rows, count = self._rows, len(self._rows)
        every = torch.arange(count, dtype=torch.int64, device=rows.device)
        height, tile = sizes
        k = max(1, self._k - self._own_at_zero)
        # Devices write a bit for each pair of rows that are met together. In random order, limits
        # are low from the first tile on.
        on_cpu = rows.device.type == "cpu"
        most = _largest_step(k) if on_cpu else tile
        least = _LEAST_STEP if on_cpu and not order.total else most
        lists = CandidateLists(count, k, *slots, rows.device)
        met = 0
        for first in range(0, count, height):
            last = min(first + height, count)
            mine = self._side(order.items[first:last], columns=False)
            for begin in range(first, count, tile):
                end = min(begin + tile, count)
                if end <= last:
                    theirs = mine.cut(slice(begin - first, end - first))
                else:
                    theirs = self._side(order.items[begin:end], columns=True)
                if first == 0:
                    own = every[begin:end] if self._own_at_zero else None
                    place = CandidatePlace(begin, 0, True, order.total)
                    theirs.collect(lists, theirs, rows.metric, begin, place, own)
                    met += (end - begin) ** 2
                for low, high in _strips(first, min(begin, last), least, most):
                    some = mine.cut(slice(low - first, high - first))
                    place = CandidatePlace(low, begin, True, order.total)
                    some.collect(lists, theirs, rows.metric, begin, place, None)
                    met += 2 * (high - low) * (end - begin)
                if self._progress is not None:
                    self._progress("neighbours", met, count**2)
            del mine, theirs  # before the next rows are read
        lost = lists.lost
        self._settle(order.items, lists, lost, order)
        return order.items[lost].sort().values

    def _find(self, chosen: Tensor, slots: int, far_slots: int, order: _Order) -> Tensor:
        """Find the nearest of some rows among the columns in some order.

        Args:
            chosen: the rows, ascending int64 [R].
            slots: of a row's list.
            far_slots: likewise, of the farthest.
            order: of the columns.

        Returns:
            Places of the rows that must be found again, int64 [L].
        """
        rows, columns = self._rows, self._columns
        first, last = int(chosen[0]), int(chosen[-1]) + 1
        mine = self._side(chosen, columns=False)
        # Of a row that is at 0 from itself, only others are searched.
        k = max(1, self._k - self._own_at_zero)
        lists = CandidateLists(len(chosen), k, slots, far_slots, rows.device)
        own = None
        if self._own_at_zero:
            own = order.places(chosen)
        whole = rows is columns and len(chosen) == len(columns)
        for begin, end, theirs in self._tiles(order.items, mine if whole else None):
            place = CandidatePlace(0, begin, False, order.total)
            mine.collect(lists, theirs, rows.metric, begin, place, own)
            if self._progress is not None:
                seen = first * len(columns) + (last - first) * end
                self._progress("neighbours", seen, len(rows) * len(columns))
        lost = lists.lost
        self._settle(chosen, lists, lost, order)
        return lost

    def _tiles(self, order: Tensor, all_: _Side | None) -> Iterator[tuple[int, int, _Side]]:
        """Yield the begin, the end and the columns of all tiles, of `all_` where they are known."""
        end = 0
        for part in order.split(self._tile):
            begin, end = end, end + len(part)
            yield begin, end, self._side(part, columns=True) if all_ is None else all_.cut(part)

    def _side(self, chosen: Tensor, *, columns: bool) -> _Side:
        """Return some rows or columns, int64 [R], as integers."""
        vectors, placed = (self._rows, self._columns)[columns], self._placed[columns]
        norms, metric, int8 = vectors.norms[chosen], vectors.metric, self._int8
        if placed is not None:
            return _Side.placed(placed, chosen, norms, metric, int8)
        if (chosen.diff() == 1).all():
            features = vectors.block(int(chosen[0]), int(chosen[-1]) + 1).contiguous()
        else:
            features = vectors.take(chosen)
        return _Side.of(features, norms, metric, int8)

    def _settle(self, chosen: Tensor, lists: CandidateLists, lost: Tensor, order: _Order) -> None:
        """Compute the distances of all candidates and write what is nearest, but of lost rows.

        Args:
            chosen: int64 [R], the rows.
            lists: theirs.
            lost: int64 [L], places of rows that must be found again.
            order: of the items that candidates are numbers of.
        """
        sure = torch.ones(len(chosen), dtype=torch.bool, device=chosen.device)
        sure[lost] = False
        numbers, chosen = sure.nonzero()[:, 0], chosen[sure]
        if not len(chosen):
            return
        x, y = self._placed
        if x is None or y is None:
            self._settle_copies(chosen, lists, numbers, order)
            return
        own = self._own_at_zero
        near, distances = lists.nearest(numbers, chosen, order.items, (x, y), self._metric, own=own)
        self.found.index.index_copy_(0, chosen, near[:, : self._k])
        self.found.distances.index_copy_(0, chosen, distances[:, : self._k].float())
        if self._farthest:
            far = lists.farthest(numbers, chosen, order.items, (x, y), self._metric)
            self.found.maxima[chosen] = far.float()

    def _settle_copies(
        self, chosen: Tensor, lists: CandidateLists, numbers: Tensor, order: _Order
    ) -> None:
        """Settle rows, given the numbers of their lists, by vectors that are copied by the pair."""
        step = max(1, _SETTLED // lists.longest)
        for mine, own in zip(chosen.split(step), numbers.split(step), strict=True):
            near, distances = self._copied(mine, *lists.listed(own), order)
            if self._own_at_zero:
                near = torch.cat([mine[:, None].to(torch.int32), near], 1)
                distances = torch.cat([torch.zeros_like(distances[:, :1]), distances], 1)
            near, distances = nearest_of(near, distances, self._k)
            self.found.index[mine] = near
            self.found.distances[mine] = distances.float()
            if self._farthest:
                far = self._copied(mine, *lists.listed(own, farthest=True), order)[1]
                self.found.maxima[mine] = far.masked_fill_(far.isinf(), 0).amax(1).float()

    def _copied(
        self, chosen: Tensor, index: Tensor, used: Tensor, order: _Order
    ) -> tuple[Tensor, Tensor]:
        """Return candidates and their distances, infinite where there is none, of copied vectors.

        Args:
            chosen: int64 [R], the rows.
            index: int32 [R, M], their candidates, with `used` where there is one; overwritten.
            used: see `index`.
            order: of the items that candidates are numbers of.
        """
        row, slot = used.nonzero().unbind(1)
        item = order.items[index[row, slot].long()]
        index[row, slot] = item.to(torch.int32)
        distances = torch.full(index.shape, torch.inf, dtype=torch.float64, device=index.device)
        distances[row, slot] = self._distances(chosen[row], item)
        return index, distances

    def _distances(self, row: Tensor, column: Tensor) -> Tensor:
        keys = exact_pair_keys(self._rows, row, self._columns, column)
        return squared_distances(keys, self._rows.metric)


@dataclass(frozen=True, slots=True)
class _Order:
    """The order in which items are met.

    Attributes:
        items: int64 [N].
        total: N where it is random; 0: items come as they are numbered.
    """

    items: Tensor
    total: int

    @classmethod
    def of(cls, items: VectorSet) -> _Order:
        """Return an order, the same at every call: random where items need not be read in turn."""
        count = len(items)
        if items.mapped or not (items.in_place or items.placeable):
            return cls.numbered(count, items.device)
        generator = torch.Generator("cpu").manual_seed(0)
        order = torch.randperm(count, generator=generator, dtype=torch.int64, device="cpu")
        return cls(order.to(items.device), count)

    @classmethod
    def numbered(cls, count: int, device: torch.device) -> _Order:
        """Return that in which items are numbered."""
        return cls(torch.arange(count, dtype=torch.int64, device=device), 0)

    def places(self, chosen: Tensor) -> Tensor:
        """Return the places of some items, int64 [R]."""
        return self.items.argsort()[chosen] if self.total else chosen


@dataclass(frozen=True, slots=True)
class _Side:
    """Rows or columns of a tile, as numbers of 8 and of 16 bits.

    Attributes:
        coarse: of 8 bits.
        fine: of 16 bits.
        term: float32 [N], of keys of the coarse numbers.
        exact_term: float64 [N], of keys of the fine ones.
    """

    coarse: Approximation
    fine: Approximation
    term: Tensor
    exact_term: Tensor

    @classmethod
    def of(cls, features: Tensor, norms: Tensor, metric: str, int8: Int8) -> _Side:
        """Quantise features, float32 [N, D], given their squared norms."""
        return cls(
            int8.of(features, norms, metric),
            int16(features, norms, metric),
            approximate_terms(norms, metric),
            exact_term(norms, metric),
        )

    @classmethod
    def placed(
        cls, vectors: PlacedVectors, chosen: Tensor, norms: Tensor, metric: str, int8: Int8
    ) -> _Side:
        """Quantise chosen vectors, given their squared norms, where they are in memory."""
        numbers, unit, error, shorts, rest = rounded_rows(vectors, chosen, norms)
        return cls(
            int8.bounded(numbers, unit, error, norms, metric),
            int16_bounded(shorts, rest, norms, metric),
            approximate_terms(norms, metric),
            exact_term(norms, metric),
        )

    def cut(self, rows: slice | Tensor) -> _Side:
        """Return some of the vectors."""
        return _Side(
            self.coarse.cut(rows), self.fine.cut(rows), self.term[rows], self.exact_term[rows]
        )

    def collect(
        self,
        lists: CandidateLists,
        columns: _Side,
        metric: str,
        first: int,
        place: CandidatePlace,
        own: Tensor | None,
    ) -> None:
        """Add the columns of a tile, numbered from `first` on, to the lists of these rows."""
        number, one, other = metric_number(metric), self.coarse, columns.coarse
        assert one.unit is not None and other.unit is not None
        lists.collect(
            Int8Tile(
                one.rows, other.rows, one.unit, other.unit, self.term, columns.term, number, first
            ),
            bound_between(one, other, metric),
            PairVectors(
                self.fine.rows, columns.fine.rows, self.exact_term, columns.exact_term, number
            ),
            bound_between(self.fine, columns.fine, metric),
            place,
            own,
        )
