"""Nearest neighbours of a set in itself, of which each process of a group holds some vectors.

Blocks of vectors go to all processes, which search them among their own; the lists go back to the
process that holds the vector.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mmga.common.distributed import Group, exchange, gather
from mmga.common.progress import Progress
from mmga.ops.certified import nearest_of
from mmga.ops.k_reciprocal import CsrRows
from mmga.ops.neighbours import Neighbours
from mmga.retrieval.features.sharded_matrix import ShardedMatrix
from mmga.retrieval.features.vectors import VectorSet, exact_pair_keys, squared_distances
from mmga.retrieval.neighbours.knn import nearest_items, search
from mmga.retrieval.neighbours.tile_sizes import search_bytes

BLOCK = 64 << 20
"""Bytes of the vectors of all processes that are searched or fetched together, at least of one."""


@dataclass(frozen=True, slots=True)
class SharedSet:
    """Vectors of several processes under one numbering.

    They are of one part or more, such as queries and gallery: numbers of the first part come
    first, and within a part those of process 0.

    Attributes:
        vectors: those that this process holds, part by part; None for none.
        bounds: number of the first vector of each piece, pieces in the order of their numbers, and
            the number of all at the end, int64 [parts x W + 1].
        metric: "cosine" or "euclidean".
        width: of a vector.
        dtype: as which vectors are sent: float16 where all are stored so, else float32.
        group: the processes.
    """

    vectors: VectorSet | None
    bounds: Tensor
    metric: str
    width: int
    dtype: torch.dtype
    group: Group

    @classmethod
    def of(
        cls, vectors: VectorSet | None, counts: Sequence[int], metric: str, group: Group
    ) -> SharedSet:
        """Number the vectors of all processes.

        Args:
            vectors: those of this process, on the CPU.
            counts: how many of them each part has.
            metric: "cosine" or "euclidean".
            group: the processes.
        """
        sizes = group.table(counts).long().t().flatten()
        bounds = torch.cat([sizes.new_zeros(1), sizes.cumsum(0)])
        width = int(group.most(0 if vectors is None else vectors.dimension))
        single = group.any(vectors is not None and vectors.dtype != torch.float16)
        dtype = torch.float32 if single else torch.float16
        return cls(vectors, bounds, metric, width, dtype, group)

    def __len__(self) -> int:
        return int(self.bounds[-1])

    @property
    def held(self) -> int:
        """How many vectors this process holds."""
        return 0 if self.vectors is None else len(self.vectors)

    @property
    def ranges(self) -> list[tuple[int, int]]:
        """First number of the vectors held here, and the one after the last, of each part."""
        bounds = self.bounds.tolist()
        starts = range(self.group.rank, len(bounds) - 1, self.group.world)
        return [(bounds[start], bounds[start + 1]) for start in starts]

    @property
    def numbers(self) -> Tensor:
        """The numbers of the vectors that this process holds, int64 [n]."""
        parts = [torch.arange(*ends, dtype=torch.int64, device="cpu") for ends in self.ranges]
        return torch.cat(parts)

    def search_bytes(self, k: int) -> int:
        """Return the bytes beyond the features with which `nearest` can do here, with its lists."""
        if self.vectors is None:
            return 3 * BLOCK
        return 3 * BLOCK + search_bytes(self.vectors, self.vectors, min(k, len(self.vectors)))

    def rows_of_all(self, rows: Tensor) -> Tensor:
        """Return the rows [N, ...] of all vectors, given those of the vectors held here."""
        sizes = [last - first for first, last in self.ranges]
        return _joined([self.group.rows(part) for part in rows.split(sizes)])

    def csr_of_all(self, rows: CsrRows) -> CsrRows:
        """Return the sparse rows of all vectors, given [N, ...] of which others' are empty."""
        parts = [rows.cut(*ends) for ends in self.ranges]
        sizes = _joined([self.group.rows(part.offsets.diff()) for part in parts])
        columns = _joined([self.group.rows(part.columns) for part in parts])
        values = _joined([self.group.rows(part.values) for part in parts])
        return CsrRows(torch.cat([sizes.new_zeros(1), sizes.cumsum(0)]), columns, values)

    def nearest(
        self,
        k: int,
        *,
        farthest: bool,
        spare: int | None = None,
        progress: Progress | None = None,
    ) -> Neighbours:
        """Return the k nearest of the vectors held here among all, themselves at distance 0.

        Exact distances have the same bits in any process: all that is returned is what `search`
        finds in a set of all vectors.

        Args:
            k: 1 to N.
            farthest: each vector's largest distance is wanted, too; else it is NaN.
            spare: bytes that may be taken here beyond `search_bytes`; None: there is no bound.
            progress: called as (phase, done, total).

        Returns:
            int32 numbers and float32 squared distances [n, k].
        """
        group, own = self.group, self.vectors
        near = torch.empty(0, 0, dtype=torch.int32, device="cpu")
        maxima = torch.empty(0, dtype=torch.float32, device="cpu")
        with group.together():
            if own is not None:
                found = search(
                    own,
                    min(k, len(own)),
                    exact="certified",
                    farthest=farthest,
                    spare=spare,
                    progress=progress,
                ).neighbours
                near, maxima = found.index, found.maxima
        index = torch.empty(self.held, k, dtype=torch.int32, device="cpu")
        distances = torch.empty(self.held, k, dtype=torch.float32, device="cpu")
        for rows in self.blocks(self.held):
            others, sizes = self._block_of_others(rows)
            with group.together():
                theirs = self._nearest_here(others, k, farthest)
                mine = self._own_lists(near[rows], rows.start)
            far = maxima[rows, None][:, :farthest]
            number, distance, far = (
                self._answered(known, found, sizes)
                for known, found in zip((*mine, far), theirs, strict=True)
            )
            with group.together():
                if rows.stop > rows.start:
                    index[rows], exact = nearest_of(number, distance, k)
                    distances[rows] = exact.float()
                    if farthest:
                        maxima[rows] = far.amax(1)
            if progress is not None:
                progress("neighbours in all processes", rows.stop, self.held)
        return Neighbours(index, distances, maxima)

    def pair_distances(self, left: Tensor, right: Tensor) -> Tensor:
        """Return the squared distances of pairs, rounded to float32: float64 [P].

        All processes call it together, each with pairs of its own. Vectors that others hold are
        sent, each once for a block of pairs.

        Args:
            left: numbers of vectors that are held here, int64 [P].
            right: numbers of any vectors, int64 [P].
        """
        distances = torch.empty(len(left), dtype=torch.float64, device="cpu")
        for some in self.blocks(len(left)):
            distances[some] = self.exact_distances(left[some], right[some])
        return distances.float().double()

    def exact_distances(self, left: Tensor, right: Tensor) -> Tensor:
        """Return the squared distances of pairs, float64 [P]; see `pair_distances`, but at once."""
        fetched, which = self.fetch(right)
        distances = torch.empty(len(left), dtype=torch.float64, device="cpu")
        with self.group.together():
            if self.vectors is not None:
                keys = exact_pair_keys(self.vectors, self._where(left)[1], fetched, which)
                distances = squared_distances(keys, self.metric)
        return distances.masked_fill_(left == right, 0)

    def fetch(self, numbers: Tensor) -> tuple[VectorSet, Tensor]:
        """Return vectors of any process, each sent once, and where those of `numbers` are in them.

        All processes call it together, each with numbers int64 [K] of its own.
        """
        asked, which = numbers.unique(return_inverse=True)
        process, place = self._where(asked)
        order = process.argsort(stable=True)
        sizes = process.bincount(minlength=self.group.world).tolist()
        wanted, of = exchange(place[order], sizes, self.group)
        with self.group.together():
            sent = self._sent(wanted)
        rows, norms = (exchange(part, of, self.group)[0] for part in sent)
        fetched = VectorSet([ShardedMatrix([rows.float()])], self.metric, norms=norms)
        return fetched, order.argsort()[which]

    def _where(self, numbers: Tensor) -> tuple[Tensor, Tensor]:
        """Return the process that holds each vector, and its place there, int64 [K] each."""
        piece = torch.searchsorted(self.bounds, numbers, right=True) - 1
        sizes = self.bounds.diff().view(-1, self.group.world)
        earlier = (sizes.cumsum(0) - sizes).flatten()  # vectors of earlier parts there
        return piece % self.group.world, numbers - self.bounds[piece] + earlier[piece]

    def blocks(self, count: int, of: int = 1) -> Iterator[slice]:
        """Yield parts of `count` groups of vectors, as many parts in all processes."""
        step = max(1, BLOCK // (4 * self.width * of * self.group.world))
        for begin in range(0, int(self.group.most(count)), step):
            yield slice(min(begin, count), min(begin + step, count))

    def _sent(self, places: slice | Tensor) -> tuple[Tensor, Tensor]:
        """Return vectors of this process as they are sent, and their squared norms."""
        own = self.vectors
        if own is None:
            none = torch.empty(0, self.width, dtype=self.dtype, device="cpu")
            return none, torch.empty(0, dtype=torch.float64, device="cpu")
        if isinstance(places, slice):
            return own.block(places.start, places.stop).to(self.dtype), own.norms[places]
        return own.take(places).to(self.dtype), own.norms[places]

    def _block_of_others(self, rows: slice) -> tuple[VectorSet, list[int]]:
        """Return the vectors of a block that others hold, and how many are of each process."""
        group = self.group
        sizes = group.table([rows.stop - rows.start])[:, 0].long().tolist()
        with group.together():
            own = self._sent(rows)
        block, norms = (gather(part.to(group.device), sizes, group).cpu() for part in own)
        of_others = torch.ones(len(block), dtype=torch.bool, device="cpu")
        of_others.split(sizes)[group.rank].fill_(False)
        chosen = of_others.nonzero()[:, 0]
        sizes[group.rank] = 0
        matrix = ShardedMatrix([block.float()])
        return VectorSet([matrix], self.metric, [chosen], norms=norms[chosen]), sizes

    def _nearest_here(self, others: VectorSet, k: int, farthest: bool) -> tuple[Tensor, ...]:
        """Return what is nearest to others' vectors in this process, at most k of each.

        Returns:
            Numbers int32 and exact squared distances float64 [F, K], and each one's largest
            distance, float32 [F, 1] if `farthest`, else [F, 0].
        """
        own, count = self.vectors, len(others)
        if own is None or not count:
            kinds = torch.int32, torch.float64, torch.float32
            return tuple(torch.empty(count, 0, dtype=kind, device="cpu") for kind in kinds)
        found = nearest_items(others, own, min(k, len(own)), exact="certified", farthest=farthest)
        row = torch.arange(count, device="cpu").repeat_interleave(found.index.shape[1])
        keys = exact_pair_keys(others, row, own, found.index.flatten().long())
        exact = squared_distances(keys, self.metric).view(found.index.shape)
        return self._numbered(found.index), exact, found.maxima[:, None][:, :farthest]

    def _own_lists(self, near: Tensor, first: int) -> tuple[Tensor, Tensor]:
        """Return numbers and exact distances of lists int32 [n, K] of vectors from `first` on."""
        if self.vectors is None:
            return near, near.double()
        row = torch.arange(first, first + len(near), device="cpu").repeat_interleave(near.shape[1])
        exact = self.vectors.exact_distances(row, near.flatten().long())
        return self._numbered(near), exact.view(near.shape)

    def _numbered(self, places: Tensor) -> Tensor:
        """Return the numbers, int32, of places of vectors in this process."""
        return self.numbers.int()[places.long()]

    def _answered(self, known: Tensor, found: Tensor, sizes: list[int]) -> Tensor:
        """Send what was found to those that it was found for; join what is known and comes back.

        Args:
            known: of vectors of this process, [n, K].
            found: of vectors of others, [F, C].
            sizes: how many of these are of each process.
        """
        columns = found.shape[1]
        answers, coming = exchange(found.flatten(), [size * columns for size in sizes], self.group)
        parts = [one.view(len(known), -1) for one in answers.split(coming) if len(one)]
        return torch.cat([known, *parts], 1)


def _joined(parts: list[Tensor]) -> Tensor:
    """Return tensors one after the other, without a copy of a single one."""
    return parts[0] if len(parts) == 1 else torch.cat(parts)
