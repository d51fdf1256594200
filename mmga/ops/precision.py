"""Guard float32 products against reduced precision, whatever a training script has set.

`torch.set_float32_matmul_precision("high")`, `torch.backends.cuda.matmul.allow_tf32 = True`, their
successors `torch.backends...fp32_precision` and autocast all let torch round the factors of a
product to 10 or 7 bits. Training wants that; ranks would silently change.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch

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
    """Form products in IEEE float32 while this context, or a function decorated with it, runs.

    The settings are the process' own: products of other threads are float32, too, for that time.
    All are restored, on exceptions as well.
    """
    own = {place: _take(*place) for place in _PLACES}
    # Torch refuses to tell the old setting where the new ones contradict it; now none does.
    old = torch.get_float32_matmul_precision()
    cast = {device: torch.is_autocast_enabled(device) for device in _DEVICES}
    try:
        torch.set_float32_matmul_precision("highest")  # and both new settings of products
        for device in _DEVICES:
            torch.set_autocast_enabled(device, False)
        yield
    finally:
        for device, enabled in cast.items():
            torch.set_autocast_enabled(device, enabled)
        torch.set_float32_matmul_precision(old)
        for place, precision in own.items():
            torch._C._set_fp32_precision_setter(*place, precision)


def _take(backend: str, operation: str) -> str:
    """Return a setting and clear it, so that those below are read without inheriting from it."""
    precision: str = torch._C._get_fp32_precision_getter(backend, operation)
    torch._C._set_fp32_precision_setter(backend, operation, "none")
    return precision
