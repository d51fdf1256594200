"""The attention ops against eager code, torch.compile and the bytes that must move."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from benchmarks.gpu_check.report import Figure
from benchmarks.gpu_check.timing import median_seconds
from mmga.ops import attention_multiply, attention_pool, reference

MAPS = {"512x48x16": (512, 48, 16), "2048x24x8": (2048, 24, 8)}
BATCH = 64
SETS = 3  # inputs that take turns: together they are larger than a cache
PARTS = 3
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
LAYOUTS = {"nchw": torch.contiguous_format, "channels_last": torch.channels_last}

# Feature maps moved forward and backward.
MOVED = {"multiply": (2, 3), "pool-max": (1, 1), "pool-avg": (1, 2)}


def eager(workload: str, x: Tensor, spatial: Tensor, channel: Tensor) -> Tensor:
    """Compute as a network without the ops does."""
    if workload == "multiply":
        return x * (torch.sigmoid(spatial) * torch.sigmoid(channel)[:, :, None, None])
    pool = torch.nn.functional.adaptive_max_pool2d
    if workload == "pool-avg":
        pool = torch.nn.functional.adaptive_avg_pool2d
    parts = []
    for p in range(spatial.shape[1]):
        gate = torch.sigmoid(channel[:, p])[:, :, None, None]
        parts.append(pool(x * (torch.sigmoid(spatial[:, p : p + 1]) * gate), 1)[:, :, 0, 0])
    return torch.stack(parts, 1)[:, :, None]


def ours(workload: str, x: Tensor, spatial: Tensor, channel: Tensor) -> Tensor:
    """The same by the ops."""
    if workload == "multiply":
        return attention_multiply(x, spatial, channel)
    return attention_pool(x, spatial, channel, workload.removeprefix("pool-"))


def inputs(
    workload: str, shape: tuple[int, ...], batch: int, dtype: torch.dtype, layout: Any, device: Any
) -> tuple[list[Tensor], Tensor]:
    """Return fresh leaves and a gradient of the result."""
    c, h, w = shape
    parts = 1 if workload == "multiply" else PARTS

    def normal(*size: int) -> Tensor:
        return torch.randn(size, device=device, dtype=dtype)

    x = normal(batch, c, h, w).contiguous(memory_format=layout)
    spatial = normal(batch, parts, h, w)
    if workload == "multiply":
        channel, grad = normal(batch, c), normal(batch, c, h, w).contiguous(memory_format=layout)
    else:
        channel, grad = normal(batch, parts, c), normal(batch, parts, 1, c)
    return [leaf.requires_grad_() for leaf in (x, spatial, channel)], grad


def hold_against_reference(workload: str, leaves: list[Tensor]) -> None:
    """Equality before speed.

    Raises:
        AssertionError: the op's result is off by more than rounding.
    """
    x, spatial, channel = (leaf.detach() for leaf in leaves)
    if workload == "multiply":
        expected = reference.attention_multiply(x, spatial, channel)
    else:
        mode = workload.removeprefix("pool-")
        expected = reference.attention_pool(x, spatial, channel, mode)
    found = ours(workload, x, spatial, channel)
    error = (found.double() - expected.double()).norm() / expected.double().norm()
    if not error < (1e-5 if x.dtype == torch.float32 else 4e-3):
        raise AssertionError(f"{workload}: the op differs from the reference by {error:.1e}")


def figures(
    device: torch.device,
    deadline: float,
    batch: int = BATCH,
    maps: dict[str, tuple[int, ...]] = MAPS,
    compiled: bool = True,
) -> Iterator[Figure]:
    """Yield forward and backward times of each op on each map.

    Args:
        device: where to measure.
        deadline: of `time.monotonic()`, after which no case is begun.
        batch: images.
        maps: channels, height and width by name.
        compiled: also measure torch.compile, in NCHW.
    """
    for workload in MOVED:
        for name, shape in maps.items():
            for dtype_name, dtype in DTYPES.items():
                for layout_name, layout in LAYOUTS.items():
                    case = f"{workload} {name} {dtype_name} {layout_name}"
                    providers: dict[str, Callable[..., Tensor]] = {"mmga": ours, "eager": eager}
                    if compiled and layout_name == "nchw":
                        providers["compile"] = torch.compile(eager, dynamic=False)
                    sets = [
                        inputs(workload, shape, batch, dtype, layout, device) for _ in range(SETS)
                    ]
                    hold_against_reference(workload, sets[0][0])
                    for provider, run in providers.items():
                        if time.monotonic() > deadline:
                            return
                        yield from _directions(workload, case, provider, run, sets, device)


def _directions(
    workload: str,
    case: str,
    provider: str,
    run: Callable[..., Tensor],
    sets: list[tuple[list[Tensor], Tensor]],
    device: torch.device,
) -> Iterator[Figure]:
    size = sets[0][0][0].nbytes
    forward = [
        functools.partial(run, workload, *(leaf.detach() for leaf in leaves)) for leaves, _ in sets
    ]
    seconds = median_seconds(forward, device)
    yield Figure(f"{case} forward {provider}", seconds, MOVED[workload][0] * size)
    backward = [
        functools.partial(
            torch.autograd.grad, run(workload, *leaves), leaves, grad, retain_graph=True
        )
        for leaves, grad in sets
    ]
    seconds = median_seconds(backward, device)
    yield Figure(f"{case} backward {provider}", seconds, MOVED[workload][1] * size)
