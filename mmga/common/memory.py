"""Memory sizes, and the memory that a computation takes."""

from __future__ import annotations

import ctypes
import functools
import os
import re
import resource
import sys
import time
from pathlib import Path

import torch

from mmga.common.errors import UserError

_UNITS = {"": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40}


def parse(text: str | int | None, name: str = "memory") -> int | None:
    """Return a number of bytes from ``2G``, ``500M`` or a plain number; `name` is the argument's.

    Raises:
        UserError: it is none of these, or not positive.
    """
    if text is None:
        return None
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([kmgt]?)(?:i?b)?", str(text).strip().lower())
    if found is None or float(found.group(1)) <= 0:
        raise UserError(f"{name}: expected a size such as 2G or 500M, found {text!r}")
    return int(float(found.group(1)) * _UNITS[found.group(2)])


def spell(size: int) -> str:
    """Return a number of bytes with its unit, such as 2.1G, rounded up."""
    for unit in ("G", "M", "K"):
        scale = _UNITS[unit.lower()]
        if size >= scale:
            tenths = -(-size * 10 // scale)
            return f"{tenths // 10}.{tenths % 10}{unit}"
    return str(size)


def available() -> int | None:
    """Return the bytes that this process can still take without swapping, None where unknown."""
    try:
        text = Path("/proc/meminfo").read_text()
    except OSError:
        return None
    found = re.search(r"MemAvailable:\s+(\d+) kB", text)
    return int(found.group(1)) * 1024 if found else None


# Deflate, which .npz, .mat and .h5 use, makes of one byte at most so many.
_DEFLATED = 1032


def check_declared(size: int, held: int, *, compressed: bool = False) -> None:
    """Refuse a size that a file declares and cannot have, before memory is taken for it.

    Args:
        size: bytes that are declared.
        held: bytes of the file that hold them.
        compressed: whether they are deflated; else there must be as many.

    Raises:
        ValueError: they are more than the file can hold.
        MemoryError: they are more than the memory that is free.
    """
    if size > (held * _DEFLATED + 64 if compressed else held):
        raise ValueError(f"it declares {spell(size)} bytes, but holds {spell(held)}")
    free = available()
    if free is not None and size > free:
        raise MemoryError(
            f"an array of {spell(size)} bytes does not fit into the memory that is free "
            f"({spell(free)}); save it as a folder of .npy files, which are read block by block"
        )


def keep_freed() -> None:
    """Make glibc keep freed memory for this process' next tensors.

    By default blocks of megabytes are returned to the system, which clears each of their pages
    again: half of the time of a network on a CPU. The process then takes an eighth more than it
    needs at once, at worst twice as much. For commands that run a network; whoever sets one of
    glibc's variables (MALLOC_TRIM_THRESHOLD_) decides for himself. Nothing happens without glibc.
    """
    if any(name.startswith("MALLOC_") or name == "GLIBC_TUNABLES" for name in os.environ):
        return
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return
    mallopt(_M_MMAP_MAX, 0)
    mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)
    mallopt(_M_TOP_PAD, 64 << 20)


_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX = -1, -2, -4  # malloc.h


def _resident() -> int:
    """Return the resident memory in bytes, where possible without clean pages of mapped files."""
    try:
        status = Path("/proc/self/status").read_text()
    except OSError:
        return process_peak()
    sizes = dict(re.findall(r"^(Rss\w+):\s+(\d+) kB", status, re.MULTILINE))
    return sum(int(sizes.get(name, 0)) for name in ("RssAnon", "RssShmem")) * 1024


def process_peak() -> int:
    """Return the process' peak resident size in bytes, everything counted."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


@functools.cache
def baseline() -> int:
    """Return the resident size after `import torch` and one product, taken at the first call.

    Called before features are read, so that a peak counts them and nothing of torch's own.
    """
    square = torch.ones(64, 64, dtype=torch.float32, device="cpu")
    torch.mm(square, square)
    return _resident()


class Peak:
    """The highest sampled resident size beyond the baseline."""

    def __init__(self) -> None:
        self._base = baseline()
        self.bytes = 0
        self._sampled = -1.0
        self.sample()

    def sample(self) -> None:
        """Sample the present size, at most every 100 ms."""
        now = time.monotonic()
        if now - self._sampled >= 0.1:
            self._sampled = now
            self.bytes = max(self.bytes, _resident() - self._base)
