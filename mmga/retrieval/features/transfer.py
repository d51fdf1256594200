"""Blocks of features from host memory or disk, copied to a device while the one before is used.

Two buffers of pinned host memory and two of device memory take turns: while work on one block is
queued, the next is read from its place and copied on a stream of its own. Memory: two blocks on
each side, whatever the number of blocks; one more on the device where blocks are widened.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

_BUFFERS = 2


class Streams(Protocol):
    """A queue of copies beside the queue of work; a mark is behind what was queued before it.

    Attributes:
        pinned: copies are queued from pinned memory only.
    """

    pinned: bool

    def copy(self, target: Tensor, source: Tensor) -> Any:
        """Queue a copy and return a mark behind it."""
        ...

    def mark_work(self) -> Any:
        """Return a mark behind the work queued so far."""
        ...

    def work_waits(self, mark: Any) -> None:
        """Let work that is queued from here on wait for a mark of a copy."""
        ...

    def copy_waits(self, mark: Any) -> None:
        """Let copies that are queued from here on wait for a mark of work."""
        ...

    def host_waits(self, mark: Any) -> None:
        """Wait for a mark."""
        ...


class CudaStreams:
    """A copy stream beside the current stream of a CUDA device."""

    pinned = True

    def __init__(self, device: torch.device) -> None:
        """Make the copy stream."""
        self._device = device
        self._copies = torch.cuda.Stream(device)

    def copy(self, target: Tensor, source: Tensor) -> torch.cuda.Event:
        """Queue a copy from pinned memory."""
        with torch.cuda.stream(self._copies):
            target.copy_(source, non_blocking=True)
        return self._copies.record_event()

    def mark_work(self) -> torch.cuda.Event:
        """Return an event of the current stream."""
        return torch.cuda.current_stream(self._device).record_event()

    def work_waits(self, mark: torch.cuda.Event) -> None:
        """Let the current stream wait."""
        torch.cuda.current_stream(self._device).wait_event(mark)

    def copy_waits(self, mark: torch.cuda.Event) -> None:
        """Let the copy stream wait."""
        self._copies.wait_event(mark)

    def host_waits(self, mark: torch.cuda.Event) -> None:
        """Wait for an event."""
        mark.synchronize()


class NoStreams:
    """Devices without streams: everything is done when it is asked for."""

    pinned = False

    def copy(self, target: Tensor, source: Tensor) -> None:
        """Copy."""
        target.copy_(source)

    def mark_work(self) -> None:
        """Return nothing: there is nothing to wait for."""

    def work_waits(self, mark: None) -> None:
        """Go on."""

    def copy_waits(self, mark: None) -> None:
        """Go on."""

    def host_waits(self, mark: None) -> None:
        """Go on."""


def streams_on(device: torch.device) -> Streams:
    """Return the queues of a device."""
    return CudaStreams(device) if device.type == "cuda" else NoStreams()


class BlockTransfer:
    """Two buffers on either side and the order in which they may be used."""

    def __init__(
        self,
        shape: Sequence[int],
        dtype: torch.dtype,
        device: torch.device | str,
        streams: Streams | None = None,
        wanted: torch.dtype | None = None,
    ) -> None:
        """Allocate the buffers.

        Args:
            shape: of the largest block, [rows, ...].
            dtype: of blocks, as they are stored: widening is cheaper on the device.
            device: where blocks are wanted.
            streams: how copies are queued; by the device if None.
            wanted: dtype that blocks are widened to, on the device; as stored if None.
        """
        device = torch.device(device)
        self._streams = streams or streams_on(device)
        pinned = self._streams.pinned
        self._host = [
            torch.empty(*shape, dtype=dtype, pin_memory=pinned, device="cpu")
            for _ in range(_BUFFERS)
        ]
        self._near = [torch.empty(*shape, dtype=dtype, device=device) for _ in range(_BUFFERS)]
        self._copied: list[Any] = [None] * _BUFFERS
        # What was queued before may still use memory that was freed and is now the buffers'.
        self._used: list[Any] = [self._streams.mark_work()] * _BUFFERS
        self._wide: Tensor | None = None
        if wanted not in (None, dtype):
            self._wide = torch.empty(*shape, dtype=wanted, device=device)

    def blocks(self, read: Callable[[int, Tensor], int], count: int) -> Iterator[Tensor]:
        """Yield blocks 0 to count - 1 on the device.

        A block is valid for work queued before the next one is asked for.

        Args:
            read: `read(number, out)` writes a block to the beginning of `out` and returns its rows.
            count: number of blocks.
        """
        rows = [0] * _BUFFERS
        try:
            if count:
                rows[0] = self._begin(0, read)
            for number in range(count):
                if number + 1 < count:
                    rows[(number + 1) % _BUFFERS] = self._begin(number + 1, read)
                slot = number % _BUFFERS
                self._streams.work_waits(self._copied[slot])
                try:
                    block = self._near[slot][: rows[slot]]
                    yield block if self._wide is None else self._wide[: rows[slot]].copy_(block)
                finally:
                    self._used[slot] = self._streams.mark_work()
        finally:
            # A pass that is left has a copy under way, and the buffers' memory may go to others.
            for mark in self._copied:
                if mark is not None:
                    self._streams.work_waits(mark)

    def _begin(self, number: int, read: Callable[[int, Tensor], int]) -> int:
        """Read a block and queue its copy, once what the buffers held is no longer needed."""
        slot = number % _BUFFERS
        if self._copied[slot] is not None:
            self._streams.host_waits(self._copied[slot])
        rows = read(number, self._host[slot])
        if self._used[slot] is not None:
            self._streams.copy_waits(self._used[slot])
        self._copied[slot] = self._streams.copy(self._near[slot][:rows], self._host[slot][:rows])
        return rows
