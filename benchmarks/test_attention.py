"""Times of the attention ops by size and provider.

`pytest benchmarks/test_attention.py --benchmark-only`. Workloads are the two feature maps of the
network (batch 16, or MMGA_BENCHMARK_BATCH). Providers: `reference`, `eager` (plain
PyTorch without these ops, in the map's own dtype), `cpu` and `triton`; an absent one skips with its
reason.
Every provider's results are held against the reference before it is timed.
"""

import os
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from mmga.ops import backends, reference

BATCH = int(os.environ.get("MMGA_BENCHMARK_BATCH", "16"))
ROUNDS = 10
MAPS = {"512x48x16": (512, 48, 16), "2048x24x8": (2048, 24, 8)}
WORKLOADS = ("multiply", "pool-max-P1", "pool-max-P3", "pool-avg-P1", "pool-avg-P3")
PROVIDERS = ("reference", "eager", "cpu", "triton")
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def eager_multiply(x: Tensor, spatial: Tensor, channel: Tensor) -> Tensor:
    return x * (torch.sigmoid(spatial) * torch.sigmoid(channel)[:, :, None, None])


def eager_pool(x: Tensor, spatial: Tensor, channel: Tensor, mode: str) -> Tensor:
    """Form one product per part, then pool by torch, as a network without the op does."""
    parts = []
    for p in range(spatial.shape[1]):
        attended = eager_multiply(x, spatial[:, p : p + 1], channel[:, p])
        if mode == "max":
            pooled = torch.nn.functional.adaptive_max_pool2d(attended, 1)
        else:
            pooled = torch.nn.functional.adaptive_avg_pool2d(attended, 1)
        parts.append(pooled[:, :, 0, 0])
    return torch.stack(parts, 1)[:, :, None]


def function(workload: str, provider: str) -> Callable[..., Tensor]:
    mode = workload.split("-")[1] if workload != "multiply" else ""
    ops: Any = torch.ops.mmga
    if provider in ("cpu", "triton"):
        if workload == "multiply":
            return lambda *a: ops.attention_multiply(*a, False)
        return lambda *a: ops.attention_pool(*a, mode == "avg", False, 1)[0]
    if provider == "eager":
        return eager_multiply if workload == "multiply" else lambda *a: eager_pool(*a, mode)
    if workload == "multiply":
        return reference.attention_multiply
    return lambda *a: reference.attention_pool(*a, mode)


def require(provider: str) -> str:
    """Return the provider's device, or skip with the reason why it is absent."""
    if provider in ("reference", "eager"):
        return "cuda" if torch.cuda.is_available() else "cpu"
    state = backends()[provider]
    if not state.startswith("active"):
        pytest.skip(f"{provider}: {state}")
    return "cpu" if provider == "cpu" else "cuda"


def inputs(workload: str, shape: tuple[int, int, int], dtype: torch.dtype, layout, device: str):
    generator = torch.Generator().manual_seed(0)
    c, h, w = shape
    parts = 1 if workload == "multiply" else int(workload[-1])

    def normal(*size: int) -> Tensor:
        return torch.randn(size, generator=generator).to(device, dtype)

    x = normal(BATCH, c, h, w).contiguous(memory_format=layout)
    spatial = normal(BATCH, parts, h, w)
    if workload == "multiply":
        channel, grad = normal(BATCH, c), normal(BATCH, c, h, w).contiguous(memory_format=layout)
    else:
        channel, grad = normal(BATCH, parts, c), normal(BATCH, parts, 1, c)
    return [t.requires_grad_() for t in (x, spatial, channel)], grad


def hold_against_reference(workload: str, run: Callable[..., Tensor], leaves, grad) -> None:
    """Equality before speed; loose enough for eager arithmetic in bfloat16, no looser."""
    expected = function(workload, "reference")(*leaves)
    actual = run(*leaves)
    # Eager rounds each of its up to three operations; 4 units of the last place cover them.
    unit = 4 * torch.finfo(actual.dtype).eps
    size = expected.abs().max()
    assert (actual - expected).abs().max() <= unit * size + 1e-6 * size
    got = torch.autograd.grad(actual, leaves, grad)
    want = torch.autograd.grad(expected, leaves, grad)
    for one, other in zip(got, want, strict=True):
        # Among products that eager rounds to equal values, its maximum may stand elsewhere.
        error = (one.float() - other.float()).norm() / other.float().norm()
        assert error < (1e-4 if one.dtype == torch.float32 else 0.2)


@pytest.mark.parametrize("direction", ["forward", "backward"])
@pytest.mark.parametrize("layout", ["nchw", "channels_last"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", MAPS)
@pytest.mark.parametrize("workload", WORKLOADS)
@pytest.mark.parametrize("provider", PROVIDERS)
def test_attention(benchmark, provider, workload, shape, dtype, layout, direction):
    device = require(provider)
    memory_format = torch.channels_last if layout == "channels_last" else torch.contiguous_format
    leaves, grad = inputs(workload, MAPS[shape], DTYPES[dtype], memory_format, device)
    run = function(workload, provider)
    hold_against_reference(workload, run, leaves, grad)

    benchmark.group = f"{workload} {shape} {dtype} {layout} {direction}"
    benchmark.extra_info.update(device=device, batch=BATCH, bytes_of_map=leaves[0].nbytes)
    if direction == "forward":
        plain = [leaf.detach() for leaf in leaves]

        def timed() -> None:
            run(*plain)
    else:
        out = run(*leaves)

        def timed() -> None:
            torch.autograd.grad(out, leaves, grad, retain_graph=True)

    def synchronised() -> None:
        timed()
        if device == "cuda":
            torch.cuda.synchronize()

    benchmark.pedantic(synchronised, rounds=ROUNDS, warmup_rounds=2)
