"""Who has the threads of a loop: its kernels, or torch's own functions."""

import contextlib
import importlib
from collections.abc import Iterator

from mmga.ops import _extension


@contextlib.contextmanager
def kernels_alone() -> Iterator[None]:
    """Let torch's functions take one thread while this context runs; the kernels take all.

    For loops of kernels with torch's functions of small tensors between them. A parallel function
    of torch ends when each thread of its pool has been there, and leaves it spinning on the core
    that the next kernel wants: beside other processes, both cost more than the function. The number
    of threads is the calling thread's own.
    """
    module = importlib.import_module("mmga._C") if _extension.load()["cpu"].loaded else None
    held = module is not None and module.hold_threads()
    try:
        yield
    finally:
        if module is not None and held:
            module.release_threads()
