"""Rows of a Jaccard matrix, of a set of which each process of a group holds some items.

Each process holds the encodings of its own items. Blocks of the encodings of all go to every
process, which finds its own items near those of the block: entries of its own rows of the matrix,
which is symmetric to the last bit.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from mmga.common.distributed import Group
from mmga.common.progress import Progress
from mmga.ops import k_reciprocal as ops
from mmga.ops.k_reciprocal import CsrRows
from mmga.ops.kernel_threads import kernels_alone

BLOCK = 16 << 20
"""Bytes of the encodings of all processes that are looked at together, of at least one row each."""
_ENTRY_BYTES = 12
_ROWS = 8192  # of a block that are looked at between two calls of `progress`


@kernels_alone()
def rows_of_own(
    encoded: list[CsrRows],
    group: Group,
    limit: float | None,
    *,
    join: bool,
    stored: Callable[[int, int], None],
    progress: Progress | None = None,
) -> CsrRows:
    """Return the Jaccard distances of this process' items to all, [n, N].

    Args:
        encoded: V of this process' items, [n, N], which are numbered by process; it is taken out
            of the list, so that its memory is free once it is copied.
        group: the processes.
        limit: distances up to this one are kept; None: those below 1.
        join: they are found by a prefix filter, which needs its kernel and a limit.
        stored: told of entries that are kept, and of items done.
        progress: called as (phase, done, total).
    """
    own = encoded.pop()
    told = group.table([len(own.offsets) - 1, len(own.columns)]).long()
    counts, total = told[:, 0].tolist(), int(told[:, 0].sum())
    row_bytes = _ENTRY_BYTES * max(1, int(told[:, 1].sum()) // total)
    step = min(max(1, BLOCK // (row_bytes * group.world)), max(counts))
    starts = torch.arange(0, max(counts) + step, step, device="cpu").clamp_max(counts[group.rank])
    room = int(group.sum(own.offsets[starts].diff()).max())
    numbers = torch.arange(counts[group.rank], device="cpu") + sum(counts[: group.rank])
    with group.together():
        stack = _Stack(own, step * group.world, total, room)
        del own
        look = _Look(stack.upon(stack.own.cut(0, 0)), stack.lead, limit, join)
    pieces, done = [], 0
    for first, last in zip(starts[:-1].tolist(), starts[1:].tolist(), strict=True):
        sizes, columns, values = stack.own.cut(first, last)
        sizes, columns, values, number = (
            group.rows(part) for part in (sizes.diff(), columns, values, numbers[first:last])
        )
        offsets = torch.cat([sizes.new_zeros(1), sizes.cumsum(0)])
        with group.together():
            look.at(stack.upon(CsrRows(offsets, columns, values)))
            for chosen in torch.arange(len(number), device="cpu").split(_ROWS):
                row, place, distance = look.near(chosen)
                pieces.append((place, number[row].int(), distance))
                done += len(chosen)
                stored(len(place), done)
                if progress is not None:
                    progress("Jaccard distances", done, total)
    with group.together():
        return _ordered(pieces, counts[group.rank], total)


class _Stack:
    """Rows of a block and of this process' items after them, in one buffer.

    Attributes:
        own: the items' rows.
        lead: rows before them: those of a block, and empty ones.
    """

    def __init__(self, own: CsrRows, lead: int, total: int, room: int) -> None:
        """Copy this process' rows to where no block needs them moved.

        Args:
            own: [n, N].
            lead: the most rows of a block.
            total: N.
            room: the most entries of a block.
        """
        self.lead, self._room = lead, room
        # Kernels take as many rows as columns; the last ones are empty.
        self._rest = max(0, total - lead - len(own.offsets) + 1)
        self._columns = own.columns.new_empty(room + len(own.columns))
        self._values = own.values.new_empty(len(self._columns))
        self._columns[room:], self._values[room:] = own.columns, own.values
        self.own = CsrRows(own.offsets, self._columns[room:], self._values[room:])

    def upon(self, block: CsrRows) -> CsrRows:
        """Return the rows of a block, which replace those of the one before, and the items'."""
        used, begin = len(block.columns), self._room - len(block.columns)
        self._columns[begin : self._room] = block.columns
        self._values[begin : self._room] = block.values
        offsets = [
            block.offsets[:-1],
            block.offsets.new_full((self.lead - len(block.offsets) + 1,), used),
            self.own.offsets + used,
            block.offsets.new_full((self._rest,), used + len(self.own.columns)),
        ]
        return CsrRows(torch.cat(offsets), self._columns[begin:], self._values[begin:])


class _Look:
    """The search for this process' items near those of a block."""

    def __init__(self, own: CsrRows, lead: int, limit: float | None, join: bool) -> None:
        """Index this process' items.

        Args:
            own: their rows, from row `lead` on.
            lead: see `_Stack`.
            limit: see `rows_of_own`, like `join`.
            join: see there.
        """
        self._lead, self._limit, self._prefix = lead, limit, limit if join else None
        heavy = own if self._prefix is None else ops.heavy_rows(own, self._prefix)
        self._index = ops.transpose_rows(heavy)

    def at(self, rows: CsrRows) -> None:
        """Take the rows of a block, with those of the items after them."""
        self._rows = rows
        if self._prefix is not None:
            entries = int(rows.offsets[self._lead])
            offsets = rows.offsets.clamp_max(entries)
            block = CsrRows(offsets, rows.columns[:entries], rows.values[:entries])
            self._heavy = ops.heavy_rows(block, self._prefix)

    def near(self, chosen: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return pairs of rows of the block, int64 [M], and items: both places, and distances."""
        if self._prefix is None:
            near = ops.jaccard_rows(self._rows, self._index, chosen, self._limit)
        else:
            near = ops.join_rows(self._rows, self._heavy, self._index, chosen, self._prefix)
        row = chosen.repeat_interleave(near.offsets.diff())
        of_own = near.columns >= self._lead
        return row[of_own], near.columns[of_own] - self._lead, near.values[of_own]


def _ordered(pieces: list[tuple[Tensor, Tensor, Tensor]], count: int, total: int) -> CsrRows:
    """Return entries of `count` rows and `total` columns as sparse rows; none are left in the list.

    Args:
        pieces: rows int32, columns int32 and values of entries.
        count: rows.
        total: columns.
    """
    row, column, value = (torch.cat(parts) for parts in zip(*pieces, strict=True))
    pieces.clear()
    order = (row.long() * total + column).argsort()
    sizes = row.bincount(minlength=count)
    offsets = torch.cat([sizes.new_zeros(1), sizes.cumsum(0)])
    return CsrRows(offsets, column[order], value[order])
