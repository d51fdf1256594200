"""The items of a neighbour search: rows of one or two feature sets under one numbering."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from mmga.common.errors import UserError
from mmga.ops.distance import exact_keys, key_terms, squared_norms
from mmga.ops.neighbours import pair_products
from mmga.retrieval.features.sharded_matrix import Rows
from mmga.retrieval.tiles import placement
from mmga.retrieval.tiles.transfer import BlockTransfer

TILE = 512
"""Rows and columns of every tile, padded with zero vectors at the end of a set: products of one
shape give the same bits whatever the number of items, tiles or threads. 1 MiB of float32, which
stays in the cache between the product and the passes over it."""

DEVICE_TILE = 4096
"""The most of both on devices other than the CPU, which smaller products leave idle."""

_LEAST_DEVICE_TILE, _BLOCKS = 1024, 8


def tile_on(device: torch.device, count: int, dimension: int) -> int:
    """Return the rows and columns of tiles over `count` items on a device.

    On the CPU `TILE`. Elsewhere an eighth of the items, since tiles on the diagonal hold every pair
    twice, in steps of 128, as products are cut there, and at most `DEVICE_TILE`; less on a device
    where a tile and three blocks of features would take more than a sixteenth.
    """
    if device.type == "cpu":
        return TILE
    room = placement.total_bytes(device) // 16
    most = DEVICE_TILE
    while most > _LEAST_DEVICE_TILE and 4 * most * (most + 3 * dimension) > room:
        most //= 2
    blocks = max(_BLOCKS, -(-count // most))
    return min(most, max(_LEAST_DEVICE_TILE, -(-count // blocks // 128) * 128))


def tile_for(count: int) -> int:
    """Return the tile of at most about twice `TILE` rows that fits this number of items best.

    For a set on its own: fewer and larger products than with `TILE`, and less padding.
    """
    tiles = -(-count // (2 * TILE))
    return max(64, -(-count // tiles // 16) * 16)


class Items:
    """Rows of feature sets, one set after the other, with their norms.

    Attributes:
        metric: "cosine" or "euclidean".
        norms: [N] squared norms, float64.
        terms: [N] what an item adds to a squared distance, see `ops.neighbours`.
        dimension: width of the rows.
        device: where rows are handed out; they may lie elsewhere.
    """

    def __init__(
        self,
        sides: Sequence[Rows],
        metric: str,
        kept: Sequence[Tensor | None] | None = None,
        device: torch.device | None = None,
    ) -> None:
        """Number the rows of `sides` and read them once for their norms.

        Args:
            sides: feature rows of equal width, float16 or float32.
            metric: "cosine" or "euclidean".
            kept: for each side the rows that count, int64 ascending, or None for all.
            device: where they are handed out; where the first side lies if None.

        Raises:
            UserError: widths differ, a side has no rows, or a value is NaN or infinite.
        """
        self._sides = list(sides)
        self._kept = list(kept) if kept is not None else [None] * len(self._sides)
        self.metric = metric
        self.dimension = self._sides[0].shape[1]
        self.device = device or self._sides[0].device
        self._kept = [None if one is None else one.to(self.device) for one in self._kept]
        self._starts = [0]
        for side, chosen in zip(self._sides, self._kept, strict=True):
            if side.shape[1] != self.dimension:
                raise UserError(
                    f"features must have one dimension, got {self.dimension} and {side.shape[1]}"
                )
            self._starts.append(self._starts[-1] + (len(side) if chosen is None else len(chosen)))
        if not len(self):
            raise UserError("features: expected at least one row, found none")
        self.norms = torch.empty(len(self), dtype=torch.float64, device=self.device)
        for begin in range(0, len(self), TILE):
            end = min(begin + TILE, len(self))
            self.norms[begin:end] = squared_norms(self.block(begin, end))
        if not self.norms.isfinite().all():
            bad = int((~self.norms.isfinite()).nonzero()[0])
            raise UserError(f"features must be finite, got NaN or infinity in row {bad}")
        self.terms = key_terms(self.norms, metric)

    def __len__(self) -> int:
        return self._starts[-1]

    @property
    def near(self) -> bool:
        """Whether all rows lie where they are handed out."""
        return all(side.device == self.device for side in self._sides)

    @property
    def dtype(self) -> torch.dtype:
        """That of the rows as stored, float32 where sides differ."""
        kinds = {side.dtype for side in self._sides}
        return kinds.pop() if len(kinds) == 1 else torch.float32

    def block(self, begin: int, end: int, out: Tensor | None = None) -> Tensor:
        """Return items [begin, end) as float32 [R, D].

        Args:
            begin: first item.
            end: item after the last.
            out: where they are put if they cannot be viewed, [S, D] with S >= R; a block that is
                shorter than S is always put there and followed by zero rows.
        """
        if out is None or (end - begin == len(out) and self.near):
            parts = self._parts(begin, end)
            if len(parts) == 1 and parts[0][0].device == self.device:
                side, chosen, first, last = parts[0]
                if chosen is None:
                    return side.block(first, last)
                return side.take(chosen[first:last], out)
        if out is None:
            out = torch.empty((end - begin, self.dimension), device=self.device)
        return self.read(begin, end, out)

    def blocks(self, runs: Sequence[tuple[int, int]], height: int) -> Iterator[Tensor]:
        """Yield runs of items as float32 [height, D] with zero rows at the end.

        Where they lie elsewhere the next run is copied while the one before is used. A block is
        valid for work queued before the next one is asked for.

        Args:
            runs: first item and the one after the last, at most `height` of them.
            height: rows of a block.
        """
        if self.near:
            buffer = torch.empty((height, self.dimension), device=self.device)
            for begin, end in runs:
                yield self.block(begin, end, buffer)
            return
        shape = height, self.dimension
        transfer = BlockTransfer(shape, self.dtype, self.device, wanted=torch.float32)

        def read(number: int, out: Tensor) -> int:
            return len(self.read(*runs[number], out))

        yield from transfer.blocks(read, len(runs))

    def read(self, begin: int, end: int, out: Tensor) -> Tensor:
        """Write items [begin, end) to `out` [S, D], of any dtype on any device, and zero rows."""
        done = 0
        for side, chosen, first, last in self._parts(begin, end):
            target = out[done : done + last - first]
            if chosen is None:
                side.block(first, last, target)
            else:
                side.take(chosen[first:last], target)
            done += last - first
        out[done:].zero_()
        return out

    def _parts(self, begin: int, end: int) -> list[tuple[Rows, Tensor | None, int, int]]:
        """Return which rows of which sides items [begin, end) are."""
        parts = []
        for side, chosen, low, high in zip(
            self._sides, self._kept, self._starts, self._starts[1:], strict=False
        ):
            first, last = max(begin, low) - low, min(end, high) - low
            if first < last:
                parts.append((side, chosen, first, last))
        return parts

    def take(self, items: Tensor) -> Tensor:
        """Return the rows of items [K] int64 as float32 [K, D]."""
        items = items.to(self.device)
        result = torch.empty((len(items), self.dimension), device=self.device)
        for side, chosen, low, high in zip(
            self._sides, self._kept, self._starts, self._starts[1:], strict=False
        ):
            at = ((items >= low) & (items < high)).nonzero()[:, 0]
            if len(at):
                rows = items[at] - low
                taken = side.take(rows if chosen is None else chosen[rows])
                result[at] = taken.to(self.device)
        return result

    def pair_distances(self, left: Tensor, right: Tensor) -> Tensor:
        """Return the squared distances of pairs of items (int64 [P] each), float64 [P].

        Each is the float64 distance, rounded to float32 as those of the tiles are.
        """
        return self.exact_distances(left, right).float().double()

    def exact_distances(self, left: Tensor, right: Tensor) -> Tensor:
        """Return the squared distances of pairs of items (int64 [P] each), float64 [P].

        The same on every machine; exactly 0 between an item and itself.
        """
        result = torch.empty(len(left), dtype=torch.float64, device=self.device)
        step = max(1, (1 << 22) // self.dimension)  # pairs whose rows are copied together
        for begin in range(0, len(left), step):
            i, j = left[begin : begin + step], right[begin : begin + step]
            products = self._products(i, j)
            result[begin : begin + step] = squared_from(
                products, self.norms[i], self.norms[j], self.metric
            )
        return result.masked_fill_(left == right, 0)

    def _products(self, left: Tensor, right: Tensor) -> Tensor:
        """Return the inner products of pairs, float64 [P]; rows are copied only if they must be."""
        sides = [side.shards[0] for side in self._sides]
        if not self.near or not all(
            len(side.shards) == 1 and first.dtype == torch.float32 and first.is_contiguous()
            for side, first in zip(self._sides, sides, strict=True)
        ):
            places = torch.arange(len(left), device=self.device)
            return pair_products(self.take(left), self.take(right), places, places)
        result = torch.empty(len(left), dtype=torch.float64, device=self.device)
        ends = torch.tensor(self._starts[1:], device=self.device)
        owner = torch.searchsorted(ends, torch.stack([left, right]), right=True)  # [2, P]
        for a, b in itertools.product(range(len(sides)), repeat=2):
            at = ((owner[0] == a) & (owner[1] == b)).nonzero()[:, 0]
            if len(at):
                rows, columns = self._rows_of(a, left[at]), self._rows_of(b, right[at])
                result[at] = pair_products(sides[a], sides[b], rows, columns)
        return result

    def _rows_of(self, side: int, items: Tensor) -> Tensor:
        rows = items - self._starts[side]
        chosen = self._kept[side]
        return rows if chosen is None else chosen[rows]


def squared_from(products: Tensor, own: Tensor, other: Tensor, metric: str) -> Tensor:
    """Return squared distances >= 0 from inner products and squared norms, all float64 [P].

    With cosine they are those of the normalised features, 2 - 2 cos; 2 from a zero vector.
    """
    keys = exact_keys(products, own, other, metric)
    return keys if metric == "euclidean" else (2 * keys).clamp_min(0)
