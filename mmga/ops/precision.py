"""Guard float32 arithmetic against the settings of the program that calls.

`torch.set_float32_matmul_precision("high")`, `torch.backends.cuda.matmul.allow_tf32 = True`, their
successors `torch.backends...fp32_precision` and autocast all let torch round the factors of a
product to 10 or 7 bits; `torch.set_flush_denormal(True)` takes the smallest numbers for zero.
Training wants that; ranks would silently change. (Default dtype and device need no guard: every
tensor names its own.)
"""

from __future__ import annotations

import contextlib
import importlib
import os
import sys
import threading
from collections.abc import Iterator

import torch

from mmga.ops import _extension

# Where torch keeps the new settings, above those that inherit from them. By torch's own functions:
# `torch.backends.mkldnn.fp32_precision` reads one place and writes another (2.11 to 2.15).
_PLACES = (
    ("generic", "all"),
    ("cuda", "all"),
    ("mkldnn", "all"),
    ("cuda", "matmul"),
    ("mkldnn", "matmul"),
)
_DEVICES = ("cpu", "cuda")


@contextlib.contextmanager
def float32_products() -> Iterator[None]:
    """Compute in IEEE float32 while this context, or a function decorated with it, runs.

    The precision of products is the process' own: products of other threads are float32, too, until
    the last of the threads that are inside has left. What was set before comes back then, on
    exceptions as well, unless somebody has set something else meanwhile. Autocast, inference mode
    and subnormal numbers are of the calling thread, the last with its pool.
    """
    key = object()
    cast = {device: torch.is_autocast_enabled(device) for device in _DEVICES}
    words: list[int] | None = None
    flushed = _flushes()
    try:
        _PRECISION.hold(key)
        for device in _DEVICES:
            torch.set_autocast_enabled(device, False)
        if flushed:
            words = _exchange_float_modes([])
            torch.set_flush_denormal(False)
        with _ordinary_tensors():
            yield
    finally:
        if flushed:
            torch.set_flush_denormal(True)
            if words is not None:
                _exchange_float_modes(words)
        for device, enabled in cast.items():
            torch.set_autocast_enabled(device, enabled)
        _PRECISION.release(key)


@contextlib.contextmanager
def _ordinary_tensors() -> Iterator[None]:
    """Leave the caller's inference mode, whose tensors nobody may change outside of it."""
    if not torch.is_inference_mode_enabled():
        yield
        return
    with torch.inference_mode(False), torch.no_grad():
        yield


class _ProductPrecision:
    """Float32 products of the whole process, as long as a thread holds them.

    Every step of `hold` and `release` can be interrupted: what was read is restored, no more.
    """

    def __init__(self) -> None:
        self._lock = threading.RLock()  # a signal's handler may evaluate, too
        self._holders: dict[object, int] = {}  # key -> thread
        self._own: dict[tuple[str, str], str] = {}
        self._old: str | None = None
        self._set: list[str] | None = None

    def hold(self, key: object) -> None:
        """Set IEEE float32 for the first holder."""
        with self._lock:
            first = not self._holders
            self._holders[key] = threading.get_ident()
            if not first:
                return
            for place in _PLACES:  # from above: what is cleared is not inherited any more
                self._own[place] = torch._C._get_fp32_precision_getter(*place)
                torch._C._set_fp32_precision_setter(*place, "none")
            # Torch refuses to tell the old setting where the new ones contradict it; now none does.
            self._old = torch.get_float32_matmul_precision()
            torch.set_float32_matmul_precision("highest")  # and both new settings of products
            self._set = self._state()

    def release(self, key: object) -> None:
        """Restore what was set once the last holder leaves."""
        with self._lock:
            if self._holders.pop(key, None) is not None and not self._holders:
                self._restore()

    def leave_threads_behind(self) -> None:
        """Forget, in a forked child, the holders among threads that are not there."""
        self._lock = threading.RLock()
        thread, held = threading.get_ident(), bool(self._holders)
        self._holders = {key: own for key, own in self._holders.items() if own == thread}
        if held and not self._holders:
            self._restore()

    def _restore(self) -> None:
        if self._set is None or self._set == self._state():
            if self._old is not None:
                torch.set_float32_matmul_precision(self._old)
            for place, precision in self._own.items():
                torch._C._set_fp32_precision_setter(*place, precision)
        self._own, self._old, self._set = {}, None, None

    @staticmethod
    def _state() -> list[str]:
        try:
            old: str = torch.get_float32_matmul_precision()
        except RuntimeError:  # contradicts a new setting
            old = "contradiction"
        return [old, *(torch._C._get_fp32_precision_getter(*place) for place in _PLACES)]


_PRECISION = _ProductPrecision()


def _flushes() -> bool:
    """Return whether the calling thread takes subnormal numbers for zero."""
    return sys.float_info.min / 2 == 0


def _exchange_float_modes(words: list[int]) -> list[int] | None:
    """Let all threads of the caller's pool keep subnormal numbers, or restore their words."""
    if not _extension.load()["cpu"].loaded:
        return None
    former: list[int] = importlib.import_module("mmga._C").exchange_float_modes(words)
    return former


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_PRECISION.leave_threads_behind)
