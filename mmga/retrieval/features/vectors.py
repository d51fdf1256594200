"""Vectors of one or more feature matrices under one numbering, with their norms."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from mmga.common.errors import UserError
from mmga.ops.certified import PlacedVectors
from mmga.ops.distance import (
    LARGEST,
    LARGEST_NORM,
    LEAST_NORM,
    SMALLEST,
    exact_keys,
    exact_term,
    key_terms,
    pair_sums,
    scaled_rows,
    squared_norms,
    unit_exponents,
)
from mmga.retrieval.features.sharded_matrix import ShardedMatrix
from mmga.retrieval.features.transfer import BlockTransfer

# Rows that are read together for their norms, on the CPU and on a device, where each launch counts.
_BLOCK, _DEVICE_BLOCK = 512, 8192
_PAIR_NUMBERS = 1 << 20  # numbers of the rows of pairs that are copied together
_DEVICE_PAIRS = 1 << 22  # pairs that a device sums together from rows in place


class VectorSet:
    """Chosen rows of feature matrices, one matrix after the other.

    Attributes:
        metric: "cosine" or "euclidean".
        shape: of one vector: (D,), or (P, D) for parts.
        norms: squared norms, float64 [N], of parts [N, P].
        terms: float32, the same shape, see `ops.distance.key_terms`.
        device: of the blocks that are returned; the matrices may be elsewhere.
    """

    def __init__(
        self,
        sides: Sequence[ShardedMatrix],
        metric: str,
        chosen: Sequence[Tensor | None] | None = None,
        *,
        norms: Tensor | None = None,
        device: torch.device | None = None,
    ) -> None:
        """Number the rows of `sides`.

        Args:
            sides: feature rows of one shape.
            metric: "cosine" or "euclidean".
            chosen: for each side the rows that count, int64 in the order that counts, or None for
                all.
            norms: squared norms of the vectors; None: the vectors are read once for them.
            device: of the blocks that are returned; that of the first side if None.

        Raises:
            UserError: shapes differ, there are no rows and no norms, a value is NaN or infinite, or
                the metric needs lengths that are not known.
        """
        self._sides = list(sides)
        if metric == "euclidean" and any(
            side.stored == torch.int8 and side.scale is None for side in sides
        ):
            raise UserError(
                "features: int8 numbers without a scale have no lengths, which the metric "
                "euclidean compares; store scale (one for each row, or one for all) beside them, "
                "or use cosine"
            )
        self.metric, self.shape = metric, self._sides[0].shape[1:]
        self.device = device or self._sides[0].device
        self._chosen: list[Tensor | None] = []
        self._ascending: list[bool] = []
        self._starts = [0]
        for side, rows in zip(self._sides, chosen or [None] * len(self._sides), strict=True):
            if side.shape[1:] != self.shape:
                raise UserError(
                    f"features must have one dimension, got {self.dimension} and {side.shape[-1]}"
                )
            self._chosen.append(None if rows is None else rows.to(side.device))
            self._ascending.append(rows is None or bool((rows.diff() > 0).all()))
            self._starts.append(self._starts[-1] + (len(side) if rows is None else len(rows)))
        if not len(self) and norms is None:
            raise UserError("features: expected at least one row, found none")
        self._transfers: dict[int, BlockTransfer] = {}
        if norms is None:
            norms = self._read_norms()
            if metric == "cosine":
                norms = self._lift(norms)
        self.norms = norms.to(self.device)
        self.terms = key_terms(norms, metric).to(self.device)

    @classmethod
    def joined(cls, sets: Sequence[VectorSet]) -> VectorSet:
        """Return the vectors of sets of one metric and device, which are not read for it."""
        sides = [side for one in sets for side in one._sides]
        chosen = [rows for one in sets for rows in one._chosen]
        norms = torch.cat([one.norms for one in sets])
        return cls(sides, sets[0].metric, chosen, norms=norms, device=sets[0].device)

    def cut(self, begin: int, end: int) -> VectorSet:
        """Return vectors [begin, end) as a set of their own, which are not read for it."""
        parts = self._parts(begin, end) or [(self._sides[0], slice(0, 0))]
        sides = [side for side, _ in parts]
        chosen = [
            torch.arange(rows.start, rows.stop, dtype=torch.int64, device=side.device)
            if isinstance(rows, slice)
            else rows
            for side, rows in parts
        ]
        norms = self.norms[begin:end]
        return VectorSet(sides, self.metric, chosen, norms=norms, device=self.device)

    def _read_norms(self) -> Tensor:
        norms = torch.empty(len(self), dtype=torch.float64, device=self.device)
        step = _BLOCK if self.device.type == "cpu" else _DEVICE_BLOCK
        for begin in range(0, len(self), step):
            end = min(begin + step, len(self))
            norms[begin:end] = squared_norms(self.block(begin, end))
        if not norms.isfinite().all():
            bad = int((~norms.isfinite()).nonzero()[0])
            raise UserError(f"features must be finite, got NaN or infinity in row {bad}")
        check_scale("features", norms)
        return norms

    def _lift(self, norms: Tensor) -> Tensor:
        """Scale rows whose products would be lost (see `lifted`), and return the new norms."""
        parts = []
        for number, rows in enumerate(self._chosen):
            own = norms[self._starts[number] : self._starts[number + 1]]
            side = own.new_zeros(len(self._sides[number]), *own.shape[1:])
            at = slice(None) if rows is None else rows.to(own.device)
            side[at] = own
            self._sides[number], side = lifted(self._sides[number], side)
            parts.append(side[at])
        return torch.cat(parts)

    def __len__(self) -> int:
        return self._starts[-1]

    @property
    def dimension(self) -> int:
        """Width of a vector."""
        return self.shape[-1]

    @property
    def nbytes(self) -> int:
        """Bytes of the vectors as they are stored."""
        width = math.prod(self.shape)
        sizes = (high - low for low, high in itertools.pairwise(self._starts))
        return sum(
            size * width * side.stored.itemsize
            for size, side in zip(sizes, self._sides, strict=True)
        )

    @property
    def near(self) -> bool:
        """Whether all matrices are on the device of the blocks."""
        return all(side.device == self.device for side in self._sides)

    @property
    def dtype(self) -> torch.dtype:
        """That of the matrices, float32 where they differ."""
        kinds = {side.dtype for side in self._sides}
        return kinds.pop() if len(kinds) == 1 else torch.float32

    def block(self, begin: int, end: int, out: Tensor | None = None) -> Tensor:
        """Return vectors [begin, end) as float32 [S, ...], a view where that is possible.

        Args:
            begin: first vector.
            end: vector after the last.
            out: float32 with S >= end - begin rows: where the vectors go if they cannot be viewed,
                followed by zero rows; None for a block without padding.
        """
        parts = self._parts(begin, end)
        if len(parts) == 1 and (out is None or len(out) == end - begin):
            side, rows = parts[0]
            if (
                isinstance(rows, slice)
                and side.dtype == torch.float32
                and side.device == self.device
            ):
                return side.block(rows.start, rows.stop)
        if out is None:
            out = torch.empty((end - begin, *self.shape), dtype=torch.float32, device=self.device)
        return self.read(begin, end, out)

    def read(self, begin: int, end: int, out: Tensor) -> Tensor:
        """Write vectors [begin, end) to `out` [S, ...], of any dtype on any device, and zeros."""
        done = 0
        for side, rows in self._parts(begin, end):
            count = rows.stop - rows.start if isinstance(rows, slice) else len(rows)
            target = out[done : done + count]
            if isinstance(rows, slice):
                side.block(rows.start, rows.stop, target)
            else:
                side.take(rows, target)
            done += count
        out[done:].zero_()
        return out

    def blocks(self, runs: Sequence[tuple[int, int]], height: int) -> Iterator[Tensor]:
        """Yield runs of vectors as float32 [height, ...] with zero rows at the end.

        Where the matrices are elsewhere the next run is copied while the one before is used. A
        block is valid for work queued before the next one is asked for.

        Args:
            runs: first vector and the one after the last, at most `height` of them.
            height: rows of a block.
        """
        if self.near:
            buffer = torch.empty((height, *self.shape), dtype=torch.float32, device=self.device)
            for begin, end in runs:
                yield self.block(begin, end, buffer)
            return
        if height not in self._transfers:
            shape = (height, *self.shape)
            transfer = BlockTransfer(shape, self.dtype, self.device, wanted=torch.float32)
            self._transfers[height] = transfer

        def read(number: int, out: Tensor) -> int:
            return len(self.read(*runs[number], out))

        yield from self._transfers[height].blocks(read, len(runs))

    def sweep(self, height: int, first: int = 0) -> Iterator[tuple[int, int, Tensor]]:
        """Yield the begin, the end and the rows (see `blocks`) of all blocks from `first` on."""
        count = len(self)
        runs = [(begin, min(begin + height, count)) for begin in range(first, count, height)]
        for (begin, end), block in zip(runs, self.blocks(runs, height), strict=True):
            yield begin, end, block

    def take(self, vectors: Tensor, out: Tensor | None = None) -> Tensor:
        """Return the vectors of these numbers, int64 [K], as float32.

        Args:
            vectors: numbers in any order.
            out: float32 with at least K rows on the set's device, which is filled and followed by
                zero rows; [K, ...] if None.
        """
        count, vectors = len(vectors), vectors.to(self.device)
        if out is None:
            out = torch.empty((count, *self.shape), dtype=torch.float32, device=self.device)
        for number, side in enumerate(self._sides):
            low, high = self._starts[number : number + 2]
            if len(self._sides) == 1:
                rows = self._rows_of(number, vectors)
                if side.device == self.device:
                    return side.take(rows, out)
                out[:count] = side.take(rows).to(out)
            else:
                at = ((vectors >= low) & (vectors < high)).nonzero()[:, 0]
                if len(at):
                    out[at] = side.take(self._rows_of(number, vectors[at] - low)).to(out)
        out[count:].zero_()
        return out

    def exact_distances(self, left: Tensor, right: Tensor) -> Tensor:
        """Return the squared distances of pairs of vectors (int64 [P] each), float64 [P].

        The same on every machine; exactly 0 between a vector and itself.
        """
        distances = squared_distances(exact_pair_keys(self, left, self, right), self.metric)
        return distances.masked_fill_(left == right, 0)

    def pair_distances(self, left: Tensor, right: Tensor) -> Tensor:
        """Return `exact_distances` rounded to float32, as those of tiles are: float64 [P]."""
        return self.exact_distances(left, right).float().double()

    def _parts(self, begin: int, end: int) -> list[tuple[ShardedMatrix, slice | Tensor]]:
        """Return which rows of which sides vectors [begin, end) are, a slice where consecutive."""
        parts: list[tuple[ShardedMatrix, slice | Tensor]] = []
        for number, side in enumerate(self._sides):
            low, high = self._starts[number : number + 2]
            first, last = max(begin, low) - low, min(end, high) - low
            if first >= last:
                continue
            chosen = self._chosen[number]
            rows: slice | Tensor = slice(first, last)
            if chosen is not None:
                rows = chosen[first:last]
                start, stop = int(rows[0]), int(rows[-1]) + 1
                if self._ascending[number] and stop - start == last - first:
                    rows = slice(start, stop)
            parts.append((side, rows))
        return parts

    def _rows_of(self, number: int, vectors: Tensor) -> Tensor:
        """Return the rows of a side, given places among its chosen ones."""
        chosen = self._chosen[number]
        return vectors if chosen is None else chosen[vectors.to(chosen.device)]

    @property
    def in_place(self) -> bool:
        """Whether rows can be read in place: one contiguous float32 tensor for each side."""
        return self.near and all(
            len(side.shards) == 1
            and side.stored == torch.float32
            and side.shards[0].is_contiguous()
            for side in self._sides
        )

    @property
    def mapped(self) -> bool:
        """Whether some rows are in files that are mapped."""
        return any(side.mapped for side in self._sides)

    @property
    def placeable(self) -> bool:
        """Whether `placed` knows: the CPU has one or two matrices of one dtype."""
        shards = [shard for side in self._sides for shard in side.shards]
        kinds = {(side.stored, side.scale is None) for side in self._sides}
        return (
            self.device.type == "cpu"
            and self.near
            and len(shards) <= 2
            and len(kinds) == 1
            and all(shard.is_contiguous() for shard in shards)
        )

    def placed(self) -> PlacedVectors | None:
        """Return where the vectors are in memory; None unless they are `placeable`."""
        if not self.placeable:
            return None
        first, *more = (shard for side in self._sides for shard in side.shards)
        place = None
        if any(rows is not None for rows in self._chosen):
            numbers = [
                torch.arange(len(side), dtype=torch.int64, device=self.device)
                if rows is None
                else rows
                for side, rows in zip(self._sides, self._chosen, strict=True)
            ]
            numbers[1:] = [rows + len(self._sides[0]) for rows in numbers[1:]]
            place = torch.cat(numbers)
        scales = [side.scale for side in self._sides if side.scale is not None]
        scale = torch.cat(scales) if scales else None
        term = exact_term(self.norms, self.metric)
        return PlacedVectors(first, more[0] if more else None, place, scale, term)


def check_scale(name: str, norms: Tensor) -> None:
    """Raise a `UserError` where float32 products of the features would over- or underflow.

    Args:
        name: of the features.
        norms: squared norms, float64.
    """
    largest = float(norms.max()) ** 0.5
    if largest and not SMALLEST <= largest <= LARGEST:
        raise UserError(
            f"{name}: the largest norm is {largest:.1e}, where float32 products need "
            f"{SMALLEST:.0e} to {LARGEST:.0e}; multiply the features by a power of two, "
            "which changes no cosine"
        )


def lifted(matrix: ShardedMatrix, norms: Tensor, first: int = 0) -> tuple[ShardedMatrix, Tensor]:
    """Return rows and squared norms of which none is too small or large for certified ranks.

    Cosines of a row and of a power of two times it are the same. Shards with such rows are copied.

    Args:
        matrix: the rows.
        norms: float64 [N], of parts [N, P]; `matrix` may hold only some of the rows.
        first: number of its first row among them.
    """
    odd = (norms > 0) & ((norms < LEAST_NORM**2) | (norms > LARGEST_NORM**2))
    if not bool(odd.any()):
        return matrix, norms
    if matrix.stored == torch.int8:
        matrix = ShardedMatrix([matrix.whole()])
    exponents = torch.where(odd, unit_exponents(norms), 0)
    ends = itertools.pairwise(first + start for start in matrix.starts)
    shards = [
        scaled_rows(shard, exponents[low:high]) if bool(odd[low:high].any()) else shard
        for shard, (low, high) in zip(matrix.shards, ends, strict=True)
    ]
    matrix = ShardedMatrix(shards, mapped=matrix.mapped)
    return matrix, scaled_rows(norms[..., None], 2 * exponents)[..., 0]


def squared_distances(keys: Tensor, metric: str) -> Tensor:
    """Return squared distances from exact keys: with cosine those of normalised vectors."""
    return keys if metric == "euclidean" else (2 * keys).clamp_min(0)


def exact_pair_keys(x: VectorSet, rows: Tensor, y: VectorSet, columns: Tensor) -> Tensor:
    """Return the keys of pairs of vectors of two sets, the same on every machine.

    Args:
        x: a set.
        rows: its vectors, int64 [P].
        y: a set of the same metric and device, perhaps `x` itself.
        columns: its vectors, int64 [P].

    Returns:
        float64 [P]: 1 - <x, y> / (|x| |y|), 1 for a zero vector; or the squared distance >= 0.
    """
    keys = torch.empty(len(rows), dtype=torch.float64, device=x.device)
    step = max(1, _PAIR_NUMBERS // x.dimension)
    if x.device.type != "cpu" and x.in_place and y.in_place:
        step = _DEVICE_PAIRS
    for begin in range(0, len(rows), step):
        i, j = rows[begin : begin + step], columns[begin : begin + step]
        sums = _pair_sums(x, i, y, j)
        keys[begin : begin + step] = exact_keys(sums, x.norms[i], y.norms[j], x.metric)
    return keys


def _pair_sums(x: VectorSet, rows: Tensor, y: VectorSet, columns: Tensor) -> Tensor:
    """Return `pair_sums` of pairs, float64 [P]; vectors are copied only if they must be."""
    if not (x.in_place and y.in_place):
        own, place = rows.unique_consecutive(return_inverse=True)  # lists of pairs are by the row
        places = torch.arange(len(columns), device=x.device)
        return pair_sums(x.take(own), y.take(columns), place, places, x.metric)
    sums = torch.empty(len(rows), dtype=torch.float64, device=x.device)
    row_side = torch.bucketize(
        rows, torch.tensor(x._starts[1:], dtype=torch.int64, device=x.device), right=True
    )
    column_side = torch.bucketize(
        columns, torch.tensor(y._starts[1:], dtype=torch.int64, device=x.device), right=True
    )
    for a, b in itertools.product(range(len(x._sides)), range(len(y._sides))):
        at = ((row_side == a) & (column_side == b)).nonzero()[:, 0]
        if len(at):
            sums[at] = pair_sums(
                x._sides[a].shards[0],
                y._sides[b].shards[0],
                x._rows_of(a, rows[at] - x._starts[a]),
                y._rows_of(b, columns[at] - y._starts[b]),
                x.metric,
            )
    return sums
