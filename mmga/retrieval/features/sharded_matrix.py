"""A feature matrix in one or several shards, on disk or in memory, read as float32 blocks."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

_BLOCK = 4096  # rows of int8 that are widened together


class ShardedMatrix:
    """The rows of a feature matrix of one or several shards.

    Shards stay where they are (memory-mapped files are read block by block); only what `block` and
    `take` return is float32 in memory.

    Rows of int8 are numbers that stand for the float32 products with their row's scale.

    Attributes:
        shards: tensors [n, D] (or [n, P, D] for parts) of one dtype and width.
        starts: index of the first row of each shard, and the number of all rows at the end.
        scale: float32 [N] on the shards' device, of int8 rows; else None, and of int8 rows whose
            lengths are not known.
        mapped: whether some shards are files that are mapped, which take no memory of the process
            and are best read as they lie.
    """

    def __init__(
        self, shards: Sequence[Tensor], scale: Tensor | None = None, *, mapped: bool = False
    ) -> None:
        self.shards = list(shards)
        self.mapped = mapped
        self.scale = scale
        self.starts = [0]
        for shard in self.shards:
            self.starts.append(self.starts[-1] + len(shard))

    def __len__(self) -> int:
        return self.starts[-1]

    @property
    def shape(self) -> tuple[int, ...]:
        """[N, D], or [N, P, D] for parts."""
        return (len(self), *self.shards[0].shape[1:])

    @property
    def stored(self) -> torch.dtype:
        """float16, float32 or int8."""
        return self.shards[0].dtype

    @property
    def dtype(self) -> torch.dtype:
        """That of the values: float16 or float32."""
        return torch.float32 if self.stored == torch.int8 else self.stored

    @property
    def device(self) -> torch.device:
        """Device of the shards."""
        return self.shards[0].device

    @property
    def nbytes(self) -> int:
        """Bytes of all rows where `to` puts them."""
        return self.dtype.itemsize * math.prod(self.shape)

    def to(self, device: torch.device) -> ShardedMatrix:
        """Return the rows on a device, as stored and in one piece, or these if they are there."""
        if device == self.device:
            return self
        near = torch.empty(self.shape, dtype=self.dtype, device=device)
        return ShardedMatrix([self.block(0, len(self), near)])

    def whole(self) -> Tensor:
        """All rows as one tensor; a copy where there is more than one shard, or of int8 rows."""
        if self.stored == torch.int8:
            return self.block(0, len(self))
        return self.numbers()

    def numbers(self) -> Tensor:
        """All rows as they are stored; a copy where there is more than one shard."""
        return self.shards[0] if len(self.shards) == 1 else torch.cat(self.shards)

    def values(self) -> Iterator[Tensor]:
        """Yield all rows as float16 or float32, shard by shard, of int8 some at a time."""
        if self.stored != torch.int8:
            yield from self.shards
            return
        for start in range(0, max(1, len(self)), _BLOCK):
            yield self.block(start, min(start + _BLOCK, len(self)))

    def cut(self, start: int, stop: int) -> ShardedMatrix:
        """Return rows start to stop, without a copy; none have the shape of the others."""
        pieces = self._pieces(start, stop) or [self.shards[0][:0]]
        scale = None if self.scale is None else self.scale[start:stop]
        return ShardedMatrix(pieces, scale, mapped=self.mapped)

    def select(self, indices: Tensor) -> ShardedMatrix:
        """Return some rows, int64 [K], as they are stored, in one piece."""
        rows = self.numbers().index_select(0, indices)
        return ShardedMatrix([rows], None if self.scale is None else self.scale[indices])

    def block(self, start: int, stop: int, out: Tensor | None = None) -> Tensor:
        """Return rows start to stop as float32.

        Args:
            start: first row.
            stop: row after the last.
            out: where to put them, at least [stop - start, ...] of any dtype on any device; the
                rest of it is set to zero and all of it is returned. Without it a view is returned
                where one shard holds the rows as float32, else a copy.
        """
        pieces = self._pieces(start, stop)
        if out is None:
            if len(pieces) == 1 and self.stored == torch.float32:
                return pieces[0]
            out = torch.empty(
                (stop - start, *self.shape[1:]), dtype=torch.float32, device=self.device
            )
        done = 0
        for piece in pieces:
            here = slice(start + done, start + done + len(piece))
            out[done : done + len(piece)].copy_(self._scaled(piece, here))
            done += len(piece)
        if done < len(out):
            out[done:].zero_()
        return out

    def take(self, indices: Tensor, out: Tensor | None = None) -> Tensor:
        """Return the rows `indices` [K] int64 as float32 (or as `out`) [K, ...], in their order.

        Args:
            indices: row numbers, anywhere.
            out: as in `block`.
        """
        if out is None:
            out = torch.empty(
                (len(indices), *self.shape[1:]), dtype=torch.float32, device=self.device
            )
        if len(self.shards) == 1:
            chosen = indices.to(self.device)
            if self.stored == out.dtype and out.device == self.device:
                torch.index_select(self.shards[0], 0, chosen, out=out[: len(indices)])
            else:
                rows = self.shards[0].index_select(0, chosen)
                out[: len(indices)].copy_(self._scaled(rows, chosen))
        else:
            starts, indices = (
                torch.tensor(self.starts[1:], dtype=torch.int64, device="cpu"),
                indices.cpu(),
            )
            shard_of = torch.searchsorted(starts, indices, right=True)
            for shard in torch.unique(shard_of).tolist():
                at = torch.nonzero(shard_of == shard).squeeze(1)
                rows = self.shards[shard].index_select(
                    0, (indices[at] - self.starts[shard]).to(self.device)
                )
                out[at.to(out.device)] = self._scaled(rows, indices[at].to(self.device)).to(out)
        if len(indices) < len(out):
            out[len(indices) :].zero_()
        return out

    def _scaled(self, rows: Tensor, which: slice | Tensor) -> Tensor:
        """Return the values of rows as stored, given their places."""
        if self.stored != torch.int8:
            return rows
        values = rows.to(torch.float32)
        if self.scale is not None:
            values *= self.scale[which].view(-1, *[1] * (rows.dim() - 1))
        return values

    def _pieces(self, start: int, stop: int) -> list[Tensor]:
        pieces = []
        for first, last, shard in zip(self.starts[:-1], self.starts[1:], self.shards, strict=True):
            low, high = max(start, first), min(stop, last)
            if low < high:
                pieces.append(shard[low - first : high - first])
        return pieces
