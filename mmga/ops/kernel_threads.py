"""Who has the threads of a loop: its kernels, or torch's own functions."""

import contextlib
import importlib
import math
from collections.abc import Iterator
from types import ModuleType

from mmga.ops import _extension

_FEW = 1 << 21  # pairs


def _kernels() -> ModuleType | None:
    return importlib.import_module("mmga._C") if _extension.load()["cpu"].loaded else None


@contextlib.contextmanager
def kernels_alone(pairs: float = math.inf) -> Iterator[None]:
    """Let torch's functions take one thread while this context runs; the kernels take all.

    For loops of kernels with torch's functions of small tensors between them. A parallel function
    of torch ends when each thread of its pool has been there, and leaves it spinning on the core
    that the next kernel wants: beside other processes, both cost more than the function. The number
    of threads is the calling thread's own.

    Args:
        pairs: of vectors that are compared. Few take milliseconds, as long as threads of torch's
            last function spin: then nothing changes.
    """
    module = _kernels()
    held = module is not None and pairs > _FEW and module.hold_threads()
    try:
        yield
    finally:
        if module is not None and held:
            module.release_threads()


@contextlib.contextmanager
def torch_alone() -> Iterator[None]:
    """Give torch's functions the threads again while this context, within `kernels_alone`, runs.

    For loops of large products of torch's: its threads spin between them, and would take the cores
    from threads of the kernels' own.
    """
    module = _kernels()
    held = module is not None and module.release_threads()
    try:
        yield
    finally:
        if module is not None and held:
            module.hold_threads()
