"""Triton kernels of the attention ops for CUDA devices; imported only when one is first called.

All are bound by memory. With N the bytes of the feature map, each moves at least

    multiply            2 N   (reads x, writes the product)
    multiply, backward  3 N   (reads x and the gradient, writes the gradient of x)
    pool                  N   (reads x)
    pool max, backward    N   (writes the gradient of x; x is read only where the maxima stood)
    pool avg, backward  2 N   (reads x, writes its gradient)

and beside that logits, pooled values and partial sums of the spatial gradient, a few percent of N.
Arithmetic is float32. Nothing is added atomically: a sum over channels is left as one partial
result per block of channels, which a last small kernel adds up in order. Which block shape runs is
measured once per size; the shape decides the order of additions, so under
`torch.use_deterministic_algorithms(True)` the first of the list is taken instead.

Legend: B images, C channels, HW pixels, P parts, PB the power of two from P on, S stripes.
Addresses are int64 up to the corner of a tile and int32 inside it.
"""

# Kernels are typed by Triton.
# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from mmga.ops.memory_format import empty_gradients, memory_format

NOWHERE = tl.constexpr(2**31 - 1)

# (block of channels, block of pixels, warps); see `_run`.
MAP_TILES = ((64, 64, 4), (32, 128, 4), (128, 32, 4), (64, 128, 8), (32, 64, 4))
# (block of pixels, warps) where the block of channels is given.
LINE_TILES = ((64, 8), (32, 4), (64, 4), (128, 8))


@triton.jit
def _sigmoid(x):
    return 1.0 / (1.0 + tl.exp(-x))


@triton.jit
def _factor(s, RESIDUAL: tl.constexpr):
    if RESIDUAL:
        return 1.0 + s
    else:
        return s


@triton.jit
def multiply_fwd_kernel(
    x_ptr,
    spatial_ptr,
    channel_ptr,
    out_ptr,
    C,
    HW,
    x_b,
    x_c,
    x_i,
    out_b,
    out_c,
    out_i,
    RESIDUAL: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_I: tl.constexpr,
):
    """One program per image, block of channels and block of pixels.

    It writes its own tile.
    """
    blocks_i = tl.cdiv(HW, BLOCK_I)
    blocks_c = tl.cdiv(C, BLOCK_C)
    pid = tl.program_id(0).to(tl.int64)
    i0 = pid % blocks_i * BLOCK_I
    c0 = pid // blocks_i % blocks_c * BLOCK_C
    b = pid // (blocks_i * blocks_c)
    c = tl.arange(0, BLOCK_C)
    i = tl.arange(0, BLOCK_I)
    in_c = c < C - c0
    in_i = i < HW - i0
    inside = in_c[:, None] & in_i[None, :]

    x = tl.load(
        x_ptr + b * x_b + c0 * x_c + i0 * x_i + c[:, None] * x_c + i[None, :] * x_i, mask=inside
    ).to(tl.float32)  # [BLOCK_C, BLOCK_I]
    s = tl.load(spatial_ptr + b * HW + i0 + i, mask=in_i, other=0.0).to(tl.float32)
    gate = _sigmoid(tl.load(channel_ptr + b * C + c0 + c, mask=in_c, other=0.0).to(tl.float32))
    result = x * _factor(_sigmoid(s), RESIDUAL)[None, :] * gate[:, None]
    tl.store(
        out_ptr + b * out_b + c0 * out_c + i0 * out_i + c[:, None] * out_c + i[None, :] * out_i,
        result,
        mask=inside,
    )


@triton.jit
def multiply_bwd_kernel(
    grad_ptr,
    x_ptr,
    spatial_ptr,
    channel_ptr,
    grad_x_ptr,
    grad_channel_ptr,
    partial_ptr,
    C,
    HW,
    grad_b,
    grad_c,
    grad_i,
    x_b,
    x_c,
    x_i,
    out_b,
    out_c,
    out_i,
    RESIDUAL: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_I: tl.constexpr,
):
    """One program per image and block of channels.

    It walks over the pixels and writes its rows of grad_x, its grad_channel and one row of
    partial sums over its channels.
    """
    blocks_c = tl.cdiv(C, BLOCK_C)
    pid = tl.program_id(0).to(tl.int64)
    c0 = pid % blocks_c * BLOCK_C
    b = pid // blocks_c
    c = tl.arange(0, BLOCK_C)
    i = tl.arange(0, BLOCK_I)
    in_c = c < C - c0
    gate = _sigmoid(tl.load(channel_ptr + b * C + c0 + c, mask=in_c, other=0.0).to(tl.float32))
    grad_ptr += b * grad_b + c0 * grad_c
    x_ptr += b * x_b + c0 * x_c
    grad_x_ptr += b * out_b + c0 * out_c

    grad_gate = tl.zeros([BLOCK_C, BLOCK_I], tl.float32)
    for start in range(0, HW, BLOCK_I):
        i0 = tl.cast(start, tl.int64)
        in_i = i < HW - i0
        inside = in_c[:, None] & in_i[None, :]
        g = tl.load(
            grad_ptr + i0 * grad_i + c[:, None] * grad_c + i[None, :] * grad_i,
            mask=inside,
            other=0.0,
        ).to(tl.float32)
        x = tl.load(
            x_ptr + i0 * x_i + c[:, None] * x_c + i[None, :] * x_i, mask=inside, other=0.0
        ).to(tl.float32)
        s = tl.load(spatial_ptr + b * HW + i0 + i, mask=in_i, other=0.0).to(tl.float32)
        factor = _factor(_sigmoid(s), RESIDUAL)
        tl.store(
            grad_x_ptr + i0 * out_i + c[:, None] * out_c + i[None, :] * out_i,
            g * factor[None, :] * gate[:, None],
            mask=inside,
        )
        product = g * x
        grad_gate += product * factor[None, :]
        tl.store(partial_ptr + pid * HW + i0 + i, tl.sum(product * gate[:, None], 0), mask=in_i)
    grad_channel = tl.sum(grad_gate, 1) * gate * (1.0 - gate)
    tl.store(grad_channel_ptr + b * C + c0 + c, grad_channel, mask=in_c)


@triton.jit
def spatial_bwd_kernel(
    partial_ptr,
    spatial_ptr,
    grad_spatial_ptr,
    K,
    P,
    HW,
    BLOCK_I: tl.constexpr,
):
    """One program per image, part and block of pixels.

    Adds the partial sums [B, K, P, HW] over K.
    """
    blocks_i = tl.cdiv(HW, BLOCK_I)
    pid = tl.program_id(0).to(tl.int64)
    i = pid % blocks_i * BLOCK_I + tl.arange(0, BLOCK_I)
    p = pid // blocks_i % P
    b = pid // (blocks_i * P)
    in_i = i < HW
    total = tl.zeros([BLOCK_I], tl.float32)
    for k in range(K):
        total += tl.load(partial_ptr + ((b * K + k) * P + p) * HW + i, mask=in_i, other=0.0)
    s = _sigmoid(tl.load(spatial_ptr + (b * P + p) * HW + i, mask=in_i, other=0.0).to(tl.float32))
    tl.store(grad_spatial_ptr + (b * P + p) * HW + i, total * s * (1.0 - s), mask=in_i)


@triton.jit
def _first_maximum(value, place):
    """Maximum along the last axis and its lowest place; a NaN is larger than any number."""
    nan = value != value
    number = tl.where(nan, -float("inf"), value)
    largest = tl.max(number, 2)
    found = tl.min(tl.where(number == largest[:, :, None], place, NOWHERE), 2)
    found_nan = tl.min(tl.where(nan, place, NOWHERE), 2)
    largest = tl.where(found_nan < NOWHERE, float("nan"), largest)
    return largest, tl.where(found_nan < NOWHERE, found_nan, found)


@triton.jit
def pool_fwd_kernel(
    x_ptr,
    spatial_ptr,
    channel_ptr,
    pooled_ptr,
    argmax_ptr,
    C,
    H,
    W,
    P,
    S,
    x_b,
    x_c,
    x_i,
    AVERAGE: tl.constexpr,
    RESIDUAL: tl.constexpr,
    PB: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_I: tl.constexpr,
):
    """One program per image, stripe and block of channels.

    It walks over the stripe's pixels with the products of all parts in registers, and writes P x
    BLOCK_C pooled values.
    """
    blocks_c = tl.cdiv(C, BLOCK_C)
    pid = tl.program_id(0).to(tl.int64)
    c0 = pid % blocks_c * BLOCK_C
    stripe = pid // blocks_c % S
    b = pid // (blocks_c * S)
    first = (stripe * H // S * W).to(tl.int32)
    last = ((stripe + 1) * H // S * W).to(tl.int32)
    c = tl.arange(0, BLOCK_C)
    i = tl.arange(0, BLOCK_I)
    p = tl.arange(0, PB)
    in_c = c < C - c0
    in_p = p < P
    x_ptr += b * x_b + c0 * x_c
    spatial_ptr += b * P * H * W

    if AVERAGE:
        value = tl.zeros([PB, BLOCK_C, BLOCK_I], tl.float32)
    else:
        value = tl.full([PB, BLOCK_C, BLOCK_I], -float("inf"), tl.float32)
    # The place of each lane's maximum is its first until an element is larger than minus infinity.
    start_place = tl.where(first + i < last, first + i, NOWHERE)
    place = tl.zeros([PB, BLOCK_C, BLOCK_I], tl.int32) + start_place[None, None, :]
    for start in range(first, last, BLOCK_I):
        i0 = tl.cast(start, tl.int64)
        in_i = i < last - start
        x = tl.load(
            x_ptr + i0 * x_i + c[:, None] * x_c + i[None, :] * x_i,
            mask=in_c[:, None] & in_i[None, :],
            other=0.0,
        ).to(tl.float32)  # [BLOCK_C, BLOCK_I]
        s = tl.load(
            spatial_ptr + i0 + p[:, None] * (H * W) + i[None, :],
            mask=in_p[:, None] & in_i[None, :],
            other=0.0,
        ).to(tl.float32)  # [PB, BLOCK_I]
        attended = x[None, :, :] * _factor(_sigmoid(s), RESIDUAL)[:, None, :]
        if AVERAGE:
            value += attended
        else:
            # A NaN, once taken, stays; among equals the first stays.
            take = (attended > value) | ((attended != attended) & (value == value))
            take = take & in_i[None, None, :]
            value = tl.where(take, attended, value)
            place = tl.where(take, (start + i)[None, None, :], place)

    inside = in_p[:, None] & in_c[None, :]
    logits = b * P * C + c0 + p[:, None] * C + c[None, :]
    gate = _sigmoid(tl.load(channel_ptr + logits, mask=inside, other=0.0).to(tl.float32))
    to = (b * P * S + stripe) * C + c0 + p[:, None] * (S * C) + c[None, :]
    if AVERAGE:
        pooled = tl.sum(value, 2) / (last - first).to(tl.float32)
    else:
        pooled, found = _first_maximum(value, place)
        tl.store(argmax_ptr + to, found, mask=inside)
    tl.store(pooled_ptr + to, pooled * gate, mask=inside)


@triton.jit
def pool_max_bwd_gather_kernel(
    grad_ptr,
    x_ptr,
    spatial_ptr,
    channel_ptr,
    argmax_ptr,
    to_x_ptr,
    to_s_ptr,
    grad_channel_ptr,
    C,
    HW,
    P,
    S,
    x_b,
    x_c,
    x_i,
    RESIDUAL: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """One program per image, part and block of channels.

    It reads x and S at the maxima, and writes their gradients there [B, P, S, C] and the gradient
    of the channel logits.
    """
    blocks_c = tl.cdiv(C, BLOCK_C)
    pid = tl.program_id(0).to(tl.int64)
    c = pid % blocks_c * BLOCK_C + tl.arange(0, BLOCK_C)
    part = pid // blocks_c
    b = part // P
    in_c = c < C
    gate = _sigmoid(tl.load(channel_ptr + part * C + c, mask=in_c, other=0.0).to(tl.float32))
    grad_gate = tl.zeros([BLOCK_C], tl.float32)
    for stripe in range(S):
        at = (part * S + stripe) * C + c
        g = tl.load(grad_ptr + at, mask=in_c, other=0.0).to(tl.float32)
        place = tl.load(argmax_ptr + at, mask=in_c, other=0).to(tl.int64)
        x = tl.load(x_ptr + b * x_b + c * x_c + place * x_i, mask=in_c, other=0.0).to(tl.float32)
        s = tl.load(spatial_ptr + part * HW + place, mask=in_c, other=0.0).to(tl.float32)
        factor = _factor(_sigmoid(s), RESIDUAL)
        tl.store(to_x_ptr + at, g * gate * factor, mask=in_c)
        tl.store(to_s_ptr + at, g * gate * x, mask=in_c)
        grad_gate += g * (x * factor)
    tl.store(grad_channel_ptr + part * C + c, grad_gate * gate * (1.0 - gate), mask=in_c)


@triton.jit
def pool_max_bwd_kernel(
    to_x_ptr,
    to_s_ptr,
    argmax_ptr,
    grad_x_ptr,
    partial_ptr,
    C,
    H,
    W,
    P,
    S,
    out_b,
    out_c,
    out_i,
    PB: tl.constexpr,
    CHUNK: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_I: tl.constexpr,
):
    """One program per image, stripe and CHUNK channels.

    It writes its part of grad_x, zero but at the maxima, and one row of partial sums over its
    channels for every part.
    """
    chunks = tl.cdiv(C, CHUNK)
    pid = tl.program_id(0).to(tl.int64)
    chunk = pid % chunks
    stripe = pid // chunks % S
    b = pid // (chunks * S)
    first = (stripe * H // S * W).to(tl.int32)
    last = ((stripe + 1) * H // S * W).to(tl.int32)
    c = tl.arange(0, BLOCK_C)
    i = tl.arange(0, BLOCK_I)
    p = tl.arange(0, PB)
    in_p = p < P
    for start in range(first, last, BLOCK_I):
        i0 = tl.cast(start, tl.int64)
        in_i = i < last - start
        flow = tl.zeros([PB, BLOCK_I], tl.float32)
        for offset in range(0, CHUNK, BLOCK_C):
            c0 = chunk * CHUNK + offset
            in_c = c < C - c0
            inside = in_p[:, None] & in_c[None, :]
            at = (b * P * S + stripe) * C + c0 + p[:, None] * (S * C) + c[None, :]
            place = tl.load(argmax_ptr + at, mask=inside, other=-1)  # [PB, BLOCK_C]
            to_x = tl.load(to_x_ptr + at, mask=inside, other=0.0)
            to_s = tl.load(to_s_ptr + at, mask=inside, other=0.0)
            hit = place[:, :, None] == (start + i)[None, None, :]
            grad_x = tl.sum(tl.where(hit, to_x[:, :, None], 0.0), 0)
            flow += tl.sum(tl.where(hit, to_s[:, :, None], 0.0), 1)
            tl.store(
                grad_x_ptr
                + (b * out_b + c0 * out_c + i0 * out_i)
                + c[:, None] * out_c
                + i[None, :] * out_i,
                grad_x,
                mask=in_c[:, None] & in_i[None, :],
            )
        tl.store(
            partial_ptr + (b * chunks + chunk) * P * H * W + i0 + p[:, None] * (H * W) + i[None, :],
            flow,
            mask=in_p[:, None] & in_i[None, :],
        )


@triton.jit
def pool_avg_bwd_kernel(
    grad_ptr,
    x_ptr,
    spatial_ptr,
    channel_ptr,
    grad_x_ptr,
    grad_channel_ptr,
    partial_ptr,
    C,
    H,
    W,
    P,
    S,
    x_b,
    x_c,
    x_i,
    out_b,
    out_c,
    out_i,
    RESIDUAL: tl.constexpr,
    PB: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_I: tl.constexpr,
):
    """One program per image and block of channels.

    It walks over all pixels and writes its rows of grad_x, its grad_channel and one row of
    partial sums over its channels for every part.
    """
    blocks_c = tl.cdiv(C, BLOCK_C)
    pid = tl.program_id(0).to(tl.int64)
    c0 = pid % blocks_c * BLOCK_C
    b = pid // blocks_c
    c = tl.arange(0, BLOCK_C)
    i = tl.arange(0, BLOCK_I)
    p = tl.arange(0, PB)
    in_c = c < C - c0
    in_p = p < P
    in_pc = in_p[:, None] & in_c[None, :]
    x_ptr += b * x_b + c0 * x_c
    grad_x_ptr += b * out_b + c0 * out_c
    spatial_ptr += b * P * H * W
    partial_ptr += pid * P * H * W
    logits = b * P * C + c0 + p[:, None] * C + c[None, :]
    gate = _sigmoid(tl.load(channel_ptr + logits, mask=in_pc, other=0.0).to(tl.float32))
    grad_gate = tl.zeros([PB, BLOCK_C, BLOCK_I], tl.float32)
    for stripe in range(S):
        first = stripe * H // S * W
        last = (stripe + 1) * H // S * W
        at = (b * P * S + stripe) * C + c0 + p[:, None] * (S * C) + c[None, :]
        g = tl.load(grad_ptr + at, mask=in_pc, other=0.0).to(tl.float32)
        share = g / (last - first).to(tl.float32)  # [PB, BLOCK_C]
        upstream = share * gate
        for start in range(first, last, BLOCK_I):
            i0 = tl.cast(start, tl.int64)
            in_i = i < last - start
            in_pi = in_p[:, None] & in_i[None, :]
            inside = in_c[:, None] & in_i[None, :]
            x = tl.load(
                x_ptr + i0 * x_i + c[:, None] * x_c + i[None, :] * x_i, mask=inside, other=0.0
            ).to(tl.float32)  # [BLOCK_C, BLOCK_I]
            s = tl.load(
                spatial_ptr + i0 + p[:, None] * (H * W) + i[None, :], mask=in_pi, other=0.0
            ).to(tl.float32)
            factor = _factor(_sigmoid(s), RESIDUAL)  # [PB, BLOCK_I]
            tl.store(
                grad_x_ptr + i0 * out_i + c[:, None] * out_c + i[None, :] * out_i,
                tl.sum(upstream[:, :, None] * factor[:, None, :], 0),
                mask=inside,
            )
            grad_gate += share[:, :, None] * (x[None, :, :] * factor[:, None, :])
            flow = tl.sum(upstream[:, :, None] * x[None, :, :], 1)  # [PB, BLOCK_I]
            tl.store(partial_ptr + i0 + p[:, None] * (H * W) + i[None, :], flow, mask=in_pi)
    grad_channel = tl.sum(grad_gate, 2) * gate * (1.0 - gate)
    tl.store(grad_channel_ptr + logits, grad_channel, mask=in_pc)


@functools.cache
def _tuned(kernel: Any, configs: tuple[tuple[tuple[tuple[str, int], ...], int], ...]) -> Any:
    listed = [triton.Config(dict(meta), num_warps=warps) for meta, warps in configs]
    sizes = [name for name in ("C", "HW", "H", "W", "S") if name in kernel.arg_names]
    return triton.autotune(configs=listed, key=sizes)(kernel)


def _run(
    kernel: Any,
    grid: Callable[[dict[str, Any]], tuple[int]],
    arguments: Sequence[Any],
    fixed: dict[str, Any],
    configs: Sequence[tuple[dict[str, int], int]],
    device: torch.device,
) -> None:
    """Launch with the fastest of `configs` (block sizes, warps), or reproducibly with the first."""
    guard = torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext()
    with guard:
        if device.type != "cuda" or torch.are_deterministic_algorithms_enabled():
            meta, warps = configs[0]
            kernel[grid](*arguments, **fixed, **meta, num_warps=warps)
        else:
            hashable = tuple((tuple(meta.items()), warps) for meta, warps in configs)
            _tuned(kernel, hashable)[grid](*arguments, **fixed)


def map_configs() -> list[tuple[dict[str, int], int]]:
    """Block shapes of the kernel that walks over nothing."""
    return [({"BLOCK_C": c, "BLOCK_I": i}, warps) for c, i, warps in MAP_TILES]


def line_configs(parts: int) -> list[tuple[dict[str, int], int]]:
    """Pixel blocks of the walking kernels; many parts, which share the registers, get less."""
    share = 2 if parts > 4 else 1
    return [({"BLOCK_I": i // share}, warps) for i, warps in LINE_TILES]


def average_configs(parts: int) -> list[tuple[dict[str, int], int]]:
    """Pixel blocks of the average's backward kernel, the one with the most values in flight.

    With more elements per thread ptxas spills, here and there, for one of float32 and bfloat16,
    sm_80 and sm_90, NCHW and channels_last; so do more than 4 parts (the network has 3 at most).
    """
    return [({"BLOCK_I": 16}, 8)] if parts > 4 else [({"BLOCK_I": 64}, 8), ({"BLOCK_I": 32}, 8)]


def block_of_channels(parts: int) -> int:
    """Channels of one program, so that PB x BLOCK_C x 64 pixels stay in registers."""
    return max(8, 64 // parts_block(parts))


def parts_block(parts: int) -> int:
    """Return the power of two from `parts` on."""
    return 1 << (parts - 1).bit_length()


def _flat(x: Tensor, like: torch.memory_format) -> Tensor:
    """Return `x` with pixels at one stride and lines without gaps, copied only if it is neither."""
    h, w = x.shape[2:]
    flat = h <= 1 or w <= 1 or x.stride(2) == w * x.stride(3)
    dense = x.stride(1) == 1 if like == torch.channels_last else _pixel_stride(x) == 1
    return x if flat and dense else x.contiguous(memory_format=like)


def _pixel_stride(x: Tensor) -> int:
    if x.shape[3] > 1:
        return x.stride(3)
    return x.stride(2) if x.shape[2] > 1 else 1


def _strides(x: Tensor) -> tuple[int, int, int]:
    return x.stride(0), x.stride(1), _pixel_stride(x)


def attention_multiply(x: Tensor, spatial: Tensor, channel: Tensor, residual: bool) -> Tensor:
    """Launch the forward kernel; shapes as in `mmga.ops.attention_multiply`, checked there."""
    like = memory_format(x)
    out = torch.empty_like(x, memory_format=like)
    if out.numel() == 0:
        return out
    x = _flat(x, like)
    b, c, h, w = x.shape
    pixels = h * w

    def grid(meta: dict[str, Any]) -> tuple[int]:
        return (b * triton.cdiv(c, meta["BLOCK_C"]) * triton.cdiv(pixels, meta["BLOCK_I"]),)

    arguments = (x, spatial.contiguous(), channel.contiguous(), out, c, pixels)
    strides = (*_strides(x), *_strides(out))
    _run(
        multiply_fwd_kernel,
        grid,
        (*arguments, *strides),
        {"RESIDUAL": residual},
        map_configs(),
        x.device,
    )
    return out


def attention_multiply_backward(
    grad: Tensor, x: Tensor, spatial: Tensor, channel: Tensor, residual: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Launch the backward kernels and return the gradients of x, spatial and channel."""
    grad_x, grad_spatial, grad_channel = empty_gradients(x, spatial, channel)
    if x.numel() == 0:
        return grad_x, grad_spatial.zero_(), grad_channel.zero_()
    like = memory_format(x)
    x, grad = _flat(x, like), _flat(grad, like)
    b, c, h, w = x.shape
    block_c = block_of_channels(1)
    blocks = triton.cdiv(c, block_c)
    spatial, channel = spatial.contiguous(), channel.contiguous()
    partial = torch.empty(b, blocks, 1, h * w, dtype=torch.float32, device=x.device)
    arguments = (grad, x, spatial, channel, grad_x, grad_channel, partial, c, h * w)
    _run(
        multiply_bwd_kernel,
        lambda meta: (b * blocks,),
        (*arguments, *_strides(grad), *_strides(x), *_strides(grad_x)),
        {"RESIDUAL": residual, "BLOCK_C": block_c},
        line_configs(1),
        x.device,
    )
    _add_partial(partial, spatial, grad_spatial)
    return grad_x, grad_spatial, grad_channel


def attention_pool(
    x: Tensor, spatial: Tensor, channel: Tensor, average: bool, residual: bool, stripes: int
) -> tuple[Tensor, Tensor]:
    """Launch the forward kernel and return the pooled values and the places of the maxima."""
    b, c, h, w = x.shape
    parts = spatial.shape[1]
    pooled = x.new_empty(b, parts, stripes, c)
    argmax = x.new_empty((0,) if average else pooled.shape, dtype=torch.int32)
    if pooled.numel() == 0:
        return pooled, argmax
    x = _flat(x, memory_format(x))
    block_c = block_of_channels(parts)
    arguments = (x, spatial.contiguous(), channel.contiguous(), pooled, argmax)
    _run(
        pool_fwd_kernel,
        lambda meta: (b * stripes * triton.cdiv(c, block_c),),
        (*arguments, c, h, w, parts, stripes, *_strides(x)),
        {
            "AVERAGE": average,
            "RESIDUAL": residual,
            "PB": parts_block(parts),
            "BLOCK_C": block_c,
        },
        line_configs(parts),
        x.device,
    )
    return pooled, argmax


def attention_pool_backward(
    grad: Tensor,
    x: Tensor,
    spatial: Tensor,
    channel: Tensor,
    argmax: Tensor,
    average: bool,
    residual: bool,
    stripes: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """Launch the backward kernels and return the gradients of x, spatial and channel."""
    grad_x, grad_spatial, grad_channel = empty_gradients(x, spatial, channel)
    if x.numel() == 0:
        return grad_x, grad_spatial.zero_(), grad_channel.zero_()
    x = _flat(x, memory_format(x))
    grad, argmax = grad.contiguous(), argmax.contiguous()
    spatial, channel = spatial.contiguous(), channel.contiguous()
    b, c, h, w = x.shape
    parts = spatial.shape[1]
    block_c = block_of_channels(parts)
    chunk = block_c if average else max(128, block_c)
    chunks = triton.cdiv(c, chunk)
    partial = torch.empty(b, chunks, parts, h * w, dtype=torch.float32, device=x.device)
    sizes = (c, h, w, parts, stripes)
    fixed = {"PB": parts_block(parts), "BLOCK_C": block_c}
    if average:
        averaged = (grad, x, spatial, channel, grad_x, grad_channel, partial)
        _run(
            pool_avg_bwd_kernel,
            lambda meta: (b * chunks,),
            (*averaged, *sizes, *_strides(x), *_strides(grad_x)),
            {"RESIDUAL": residual, **fixed},
            average_configs(parts),
            x.device,
        )
    else:
        to_x = torch.empty(grad.shape, dtype=torch.float32, device=x.device)
        to_s = torch.empty_like(to_x)
        arguments = (grad, x, spatial, channel, argmax, to_x, to_s, grad_channel)
        _run(
            pool_max_bwd_gather_kernel,
            lambda meta: (b * parts * triton.cdiv(c, meta["BLOCK_C"]),),
            (*arguments, c, h * w, parts, stripes, *_strides(x)),
            {"RESIDUAL": residual},
            [({"BLOCK_C": 128}, 4)],
            x.device,
        )
        _run(
            pool_max_bwd_kernel,
            lambda meta: (b * stripes * chunks,),
            (to_x, to_s, argmax, grad_x, partial, *sizes, *_strides(grad_x)),
            {"CHUNK": chunk, **fixed},
            line_configs(parts),
            x.device,
        )
    _add_partial(partial, spatial, grad_spatial)
    return grad_x, grad_spatial, grad_channel


def _add_partial(partial: Tensor, spatial: Tensor, grad_spatial: Tensor) -> None:
    b, chunks, parts, pixels = partial.shape

    def grid(meta: dict[str, Any]) -> tuple[int]:
        return (b * parts * triton.cdiv(pixels, meta["BLOCK_I"]),)

    arguments = (partial, spatial, grad_spatial, chunks, parts, pixels)
    _run(spatial_bwd_kernel, grid, arguments, {}, [({"BLOCK_I": 128}, 4)], partial.device)
