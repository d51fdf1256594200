"""Timing on a device, and the two rates that every figure is held against."""

from __future__ import annotations

import functools
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch

Call = Callable[[], object]

# What torch calls the precision of float32 products.
_MATMUL = {"ieee": "highest", "tf32": "high"}


def median_seconds(
    calls: Sequence[Call], device: torch.device, repeats: int = 30, warmup: int = 5
) -> float:
    """Return the median time of a call.

    Args:
        calls: the same work on inputs of their own, which take turns, so that none is found in a
            cache.
        device: where the work is done; on a GPU its events time it.
        repeats: timed calls.
        warmup: calls before.
    """
    if device.type != "cuda":  # to try the code out: nobody wants such a figure
        times = []
        for turn in range(3):
            begun = time.perf_counter()
            calls[turn % len(calls)]()
            times.append(time.perf_counter() - begun)
        return statistics.median(times)
    for turn in range(max(warmup, len(calls))):
        calls[turn % len(calls)]()
    torch.cuda.synchronize(device)
    events = [
        (torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True))
        for _ in range(repeats)
    ]
    for turn, (before, after) in enumerate(events):
        before.record()
        calls[turn % len(calls)]()
        after.record()
    torch.cuda.synchronize(device)
    return statistics.median(a.elapsed_time(b) for a, b in events) / 1e3


def wall_seconds(call: Call, device: torch.device, repeats: int = 3) -> float:
    """Return the median time of a call as its caller sees it, results on the device done."""
    times = []
    for turn in range(repeats + 1):
        synchronize(device)
        begun = time.perf_counter()
        call()
        synchronize(device)
        if turn:  # the first builds, tunes and allocates
            times.append(time.perf_counter() - begun)
    return statistics.median(times)


def synchronize(device: torch.device) -> None:
    """Wait for a device."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


@contextmanager
def products_in(precision: str) -> Iterator[None]:
    """Let torch form products of float32 matrices in `ieee` or `tf32`."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(_MATMUL[precision])
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def measured_rates(device: torch.device, size: int = 8192) -> dict[str, float]:
    """Return the rates of a large copy (bytes read and written) and of large products.

    Args:
        device: the device.
        size: rows and columns of the products; the copy takes 32 times their bytes.
    """
    source = torch.randn(8 * size * size, device=device)
    target = torch.empty_like(source)
    seconds = median_seconds([functools.partial(target.copy_, source)], device, repeats=10)
    rates = {"copy_bytes_per_second": 2 * source.nbytes / seconds}
    del source, target
    for name in ("ieee", "tf32", "bf16"):
        x, y = (torch.randn(size, size, device=device) for _ in range(2))
        if name == "bf16":
            x, y = x.bfloat16(), y.bfloat16()
        out = torch.empty_like(x)

        product = functools.partial(torch.mm, x, y, out=out)
        with products_in("ieee" if name == "bf16" else name):
            seconds = median_seconds([product], device, repeats=10, warmup=3)
        rates[f"{name}_operations_per_second"] = 2 * size**3 / seconds
    numbers = [
        torch.randint(-127, 128, (size, size), dtype=torch.int8, device=device) for _ in range(2)
    ]
    product = functools.partial(torch._int_mm, numbers[0], numbers[1].t())
    seconds = median_seconds([product], device, repeats=10, warmup=3)
    rates["int8_operations_per_second"] = 2 * size**3 / seconds
    return rates
