"""The gallery items and queries that one of several processes holds, in the numbering of all.

Tiles form one grid over the items of all processes. A process computes the tiles of which it holds
items, in their shape and with its items at their places, so that every value is bit for bit that of
one process.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

from mmga.common.distributed import Group
from mmga.common.grid import Grid
from mmga.retrieval.features.sharded_matrix import ShardedMatrix
from mmga.retrieval.features.vectors import VectorSet, exact_pair_keys


@dataclass(frozen=True, slots=True)
class QueryShare:
    """The queries that this process ranks, all of them unless these are dealt out to processes.

    Attributes:
        vectors: its queries, perhaps none.
        places: of them among the queries of all, ascending int64.
        norms: squared norms of the queries of all, float64.
        grid: the processes.
    """

    vectors: VectorSet
    places: Tensor
    norms: Tensor
    grid: Grid = field(default_factory=Grid)

    @classmethod
    def of(cls, queries: VectorSet | QueryShare) -> QueryShare:
        """Return a share of queries, that of all where they are given."""
        if isinstance(queries, QueryShare):
            return queries
        return cls(queries, torch.arange(len(queries), device="cpu"), queries.norms)

    def __len__(self) -> int:
        """Return the number of the queries of all."""
        return len(self.norms)

    @property
    def longest(self) -> float:
        """The largest norm of the queries of all."""
        return float(self.norms.max()) ** 0.5

    def first(self, count: int) -> VectorSet:
        """Return the first queries of all, at most `count`, in every process."""
        vectors, column = self.vectors, self.grid.column
        if column.world == 1:
            return vectors
        count = min(count, len(self))
        rows = torch.zeros(count, *vectors.shape, dtype=torch.float32, device=vectors.device)
        with self.grid.whole.together():
            at = self.places[self.places < count]
            rows[at] = vectors.block(0, len(at))
        rows = column.union(rows)
        norms = self.norms[:count]
        return VectorSet([ShardedMatrix([rows])], vectors.metric, norms=norms)


@dataclass(frozen=True, slots=True)
class Block:
    """A column of the grid of tiles.

    Attributes:
        begin: number of its first item.
        held: its items that this process holds, as places in it.
        own: the same as places in `Share.vectors`.
        rows: float32 [S, ...], zeros where items are elsewhere or there are none.
    """

    begin: int
    held: slice
    own: slice
    rows: Tensor


@dataclass(frozen=True, slots=True)
class Share:
    """Consecutive gallery items, all of them unless there are several processes.

    Attributes:
        vectors: the items that this process holds, perhaps none.
        first: number of the first of them.
        total: number of the items of all processes.
        group: the processes.
    """

    vectors: VectorSet
    first: int = 0
    total: int = 0
    group: Group = field(default_factory=Group)

    @classmethod
    def of(cls, items: VectorSet | Share) -> Share:
        """Return a share, that of all items where they are given."""
        return items if isinstance(items, Share) else cls(items, 0, len(items))

    def __len__(self) -> int:
        return self.total

    @property
    def longest(self) -> float:
        """The largest norm of the items of all processes."""
        norms = self.vectors.norms
        return self.group.most(float(norms.max()) ** 0.5 if len(norms) else 0.0)

    def where_held(self, item: Tensor) -> Tensor:
        """Return the places in `item`, numbers int64 [K], of those that this process holds."""
        if len(self.vectors) == self.total:
            return torch.arange(len(item), dtype=torch.int64, device=item.device)
        inside = (item >= self.first) & (item < self.first + len(self.vectors))
        return inside.nonzero()[:, 0]

    def take(self, items: Tensor) -> tuple[Tensor, Tensor]:
        """Return the rows float32 [K, ...] and norms float64 [K] of items, in every process.

        Args:
            items: their numbers, int64 [K].
        """
        vectors = self.vectors
        if self.group.world == 1:
            return vectors.take(items), vectors.norms[items]
        rows = torch.zeros(len(items), *vectors.shape, dtype=torch.float32, device=vectors.device)
        norms = torch.zeros(len(items), dtype=torch.float64, device=vectors.device)
        at = self.where_held(items)
        with self.group.together():
            rows[at] = vectors.take(items[at] - self.first)
            norms[at] = vectors.norms[items[at] - self.first]
        return self.group.union(rows), self.group.union(norms)

    def pair_keys(self, queries: VectorSet, row: Tensor, item: Tensor) -> Tensor:
        """Return the exact keys of pairs, float64 [K], in every process.

        Args:
            queries: the same in every process.
            row: queries, int64 [K].
            item: numbers of items, int64 [K].
        """
        at = self.where_held(item)
        if len(at) == len(item) and self.group.world == 1:
            return exact_pair_keys(queries, row, self.vectors, item)
        keys = torch.zeros(len(item), dtype=torch.float64, device=queries.device)
        with self.group.together():
            keys[at] = exact_pair_keys(queries, row[at], self.vectors, item[at] - self.first)
        return self.group.union(keys)

    def blocks(self, width: int) -> Iterator[Block]:
        """Yield the columns of a grid of `width` items of which this process holds some.

        As those of `VectorSet.blocks`, a block is valid until the next one is asked for.
        """
        lead, count = self.first % width, len(self.vectors)
        ends = [*range(min(width - lead, count), count, width), count] if count else []
        runs = list(zip([0, *ends], ends, strict=False))
        shifted = None
        for (left, right), rows in zip(runs, self.vectors.blocks(runs, width), strict=True):
            begin = self.first + left
            held = slice(begin % width, begin % width + right - left)
            if held.start:
                shifted = torch.zeros_like(rows) if shifted is None else shifted
                shifted[held] = rows[: right - left]
                rows = shifted
            yield Block(begin - held.start, held, slice(left, right), rows)
