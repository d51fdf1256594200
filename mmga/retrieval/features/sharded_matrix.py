"""A feature matrix in one or several shards, on disk or in memory, read as float32 blocks."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


class ShardedMatrix:
    """The rows of a feature matrix of one or several shards.

    Shards stay where they are (memory-mapped files are read block by block); only what `block` and
    `take` return is float32 in memory.

    Attributes:
        shards: tensors [n, D] (or [n, P, D] for parts) of one dtype and width.
        starts: index of the first row of each shard, and the number of all rows at the end.
    """

    def __init__(self, shards: Sequence[Tensor]) -> None:
        self.shards = list(shards)
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
    def dtype(self) -> torch.dtype:
        """float16 or float32, as stored."""
        return self.shards[0].dtype

    @property
    def device(self) -> torch.device:
        """Device of the shards."""
        return self.shards[0].device

    @property
    def nbytes(self) -> int:
        """Bytes of all rows as stored."""
        return sum(shard.nbytes for shard in self.shards)

    def to(self, device: torch.device) -> ShardedMatrix:
        """Return the rows on a device, as stored and in one piece, or these if they are there."""
        if device == self.device:
            return self
        near = torch.empty(self.shape, dtype=self.dtype, device=device)
        return ShardedMatrix([self.block(0, len(self), near)])

    def whole(self) -> Tensor:
        """All rows as one tensor; copies where there is more than one shard."""
        return self.shards[0] if len(self.shards) == 1 else torch.cat(self.shards)

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
            if len(pieces) == 1 and pieces[0].dtype == torch.float32:
                return pieces[0]
            out = torch.empty(
                (stop - start, *self.shape[1:]), dtype=torch.float32, device=self.device
            )
        done = 0
        for piece in pieces:
            out[done : done + len(piece)].copy_(piece)
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
            if self.dtype == out.dtype and out.device == self.device:
                torch.index_select(self.shards[0], 0, chosen, out=out[: len(indices)])
            else:
                out[: len(indices)].copy_(self.shards[0].index_select(0, chosen))
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
                out[at.to(out.device)] = rows.to(out)
        if len(indices) < len(out):
            out[len(indices) :].zero_()
        return out

    def _pieces(self, start: int, stop: int) -> list[Tensor]:
        pieces = []
        for first, last, shard in zip(self.starts[:-1], self.starts[1:], self.shards, strict=True):
            low, high = max(start, first), min(stop, last)
            if low < high:
                pieces.append(shard[low - first : high - first])
        return pieces
