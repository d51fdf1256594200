"""Attention applied to a feature map: multiplied (module 1) or multiplied and pooled (module 2).

Both ops take logits, so that a kernel reads the feature map once and writes it once. Bytes moved
for a feature map of N bytes (logits and pooled features are small beside it): multiply 2N forward
and 3N backward; pool N forward, N (max) or 2N (avg) backward. Pooling never holds the products of
the P parts [B, P, C, h, w].

Kernels exist for ``"max"`` and ``"avg"``; the generalised mean is always computed by the reference.
On CUDA devices the kernels are Triton's, for every dtype but float64, which the reference serves.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from mmga.ops import _library, reference
from mmga.ops._library import LIBRARY, define, has_kernel
from mmga.ops.memory_format import empty_gradients, memory_format

COMBINE = ("product", "residual")
MODES = ("max", "avg", "gem")
DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)


def attention_multiply(
    x: Tensor, spatial: Tensor, channel: Tensor, combine: str = "product"
) -> Tensor:
    """Multiply a feature map by the sigmoids of a spatial and a channel attention.

    Args:
        x: feature map [B, C, h, w]; NCHW, channels_last, and slices of rows, channels or images
            of both are read in place.
        spatial: logits [B, 1, h, w].
        channel: logits [B, C].
        combine: ``"product"`` gives x * S * C, ``"residual"`` gives x * C * (1 + S).

    Returns:
        [B, C, h, w] in the dtype of ``x`` (the logits may have others), channels_last where ``x``
        is. Computed in float32 (float64 for float64) and rounded once.

    Raises:
        TypeError: an argument is no tensor or has a dtype other than the four floating ones.
        ValueError: a shape or device does not fit, or ``combine`` is unknown.
    """
    _check_tensors(x, spatial, channel)
    _check_choice("combine", combine, COMBINE)
    b, c, h, w = x.shape
    _check_shape("spatial", spatial, (b, 1, h, w), "[B, 1, h, w]", x)
    _check_shape("channel", channel, (b, c), "[B, C]", x)
    out: Tensor = _MULTIPLY(x, spatial, channel, combine == "residual")
    return out


def attention_pool(
    x: Tensor,
    spatial: Tensor,
    channel: Tensor,
    mode: str = "max",
    combine: str = "product",
    stripes: int = 1,
    exponent: float | Tensor = 3.0,
) -> Tensor:
    """Multiply a feature map by P attentions and pool each product over horizontal stripes.

    Args:
        x: feature map [B, C, h, w]; NCHW, channels_last, and slices of rows, channels or images
            of both are read in place.
        spatial: logits of the spatial parts [B, P, h, w].
        channel: logits of the channel parts [B, P, C].
        mode: ``"max"``, ``"avg"`` or ``"gem"`` (generalised mean of values clamped from below at
            1e-6; always computed by the reference).
        combine: ``"product"`` pools x * S, ``"residual"`` pools x * (1 + S); C then multiplies
            the pooled values.
        stripes: stripe i of n covers the rows from i * h // n up to (i + 1) * h // n.
        exponent: exponent of the generalised mean, a number or a tensor that may learn.

    Returns:
        [B, P, stripes, C] in the dtype of ``x``. Computed in float32 (float64 for float64) and
        rounded once. Among equal maxima the lowest (row, column) takes the whole gradient.

    Raises:
        TypeError: an argument is no tensor or has a dtype other than the four floating ones.
        ValueError: a shape or device does not fit, an option is unknown, or ``stripes`` is not
            between 1 and h.
    """
    _check_tensors(x, spatial, channel)
    _check_choice("mode", mode, MODES)
    _check_choice("combine", combine, COMBINE)
    b, c, h, w = x.shape
    if spatial.dim() != 4 or spatial.shape[1] < 1:
        raise ValueError(
            f"spatial must be [B, P, h, w] with at least one part, got {list(spatial.shape)}"
        )
    parts = spatial.shape[1]
    _check_shape("spatial", spatial, (b, parts, h, w), "[B, P, h, w]", x)
    _check_shape("channel", channel, (b, parts, c), "[B, P, C]", x)
    if h < 1 or w < 1:
        raise ValueError(f"x must have at least one row and column to pool, got {list(x.shape)}")
    if not 1 <= stripes <= h:
        raise ValueError(f"stripes must be between 1 and the {h} rows of x, got {stripes}")
    if mode == "gem":
        return reference.attention_pool(x, spatial, channel, mode, combine, stripes, exponent)
    pooled: Tensor
    pooled, _ = _POOL(x, spatial, channel, mode == "avg", combine == "residual", stripes)
    return pooled


def _check_tensors(x: Tensor, spatial: Tensor, channel: Tensor) -> None:
    for name, value in (("x", x), ("spatial", spatial), ("channel", channel)):
        if not isinstance(value, Tensor):
            raise TypeError(f"{name} must be a tensor, got {type(value).__name__}")
        if value.dtype not in DTYPES:
            raise TypeError(
                f"{name} must be float32, float64, float16 or bfloat16, got {value.dtype}"
            )
        if value.device != x.device:
            raise ValueError(f"{name} must be on the device of x, {x.device}, got {value.device}")
    if x.dim() != 4:
        raise ValueError(f"x must be a feature map [B, C, h, w], got {list(x.shape)}")


def _check_shape(
    name: str, value: Tensor, expected: tuple[int, ...], legend: str, x: Tensor
) -> None:
    if tuple(value.shape) != expected:
        raise ValueError(
            f"{name} must be {legend} = {list(expected)} for x {list(x.shape)}, "
            f"got {list(value.shape)}"
        )


def _check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(choices)}, got {value!r}")


def _combine(residual: bool) -> str:
    return COMBINE[int(residual)]


def _mode(average: bool) -> str:
    return MODES[int(average)]


def _multiply(x: Tensor, spatial: Tensor, channel: Tensor, residual: bool) -> Tensor:
    out = reference.attention_multiply(x, spatial, channel, _combine(residual))
    return out.contiguous(memory_format=memory_format(x))


def _multiply_fake(x: Tensor, spatial: Tensor, channel: Tensor, residual: bool) -> Tensor:
    return torch.empty_like(x, memory_format=memory_format(x))


def _multiply_backward(
    grad: Tensor, x: Tensor, spatial: Tensor, channel: Tensor, residual: bool
) -> tuple[Tensor, Tensor, Tensor]:
    grads = reference.attention_multiply_backward(grad, x, spatial, channel, _combine(residual))
    return _dense(grads, x)


def _multiply_backward_fake(
    grad: Tensor, x: Tensor, spatial: Tensor, channel: Tensor, residual: bool
) -> tuple[Tensor, Tensor, Tensor]:
    return empty_gradients(x, spatial, channel)


def _pool(
    x: Tensor, spatial: Tensor, channel: Tensor, average: bool, residual: bool, stripes: int
) -> tuple[Tensor, Tensor]:
    return reference.attention_pool_with_argmax(
        x, spatial, channel, _mode(average), _combine(residual), stripes
    )


def _pool_fake(
    x: Tensor, spatial: Tensor, channel: Tensor, average: bool, residual: bool, stripes: int
) -> tuple[Tensor, Tensor]:
    pooled = x.new_empty((x.shape[0], spatial.shape[1], stripes, x.shape[1]))
    shape = (0,) if average else pooled.shape
    return pooled, x.new_empty(shape, dtype=torch.int32)


def _pool_backward(
    grad: Tensor,
    x: Tensor,
    spatial: Tensor,
    channel: Tensor,
    argmax: Tensor,
    average: bool,
    residual: bool,
    stripes: int,
) -> tuple[Tensor, Tensor, Tensor]:
    grads = reference.attention_pool_backward(
        grad, x, spatial, channel, argmax, _mode(average), _combine(residual), stripes
    )
    return _dense(grads, x)


def _pool_backward_fake(
    grad: Tensor,
    x: Tensor,
    spatial: Tensor,
    channel: Tensor,
    argmax: Tensor,
    average: bool,
    residual: bool,
    stripes: int,
) -> tuple[Tensor, Tensor, Tensor]:
    return empty_gradients(x, spatial, channel)


def _dense(grads: tuple[Tensor, Tensor, Tensor], x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    grad_x, grad_spatial, grad_channel = grads
    grad_x = grad_x.contiguous(memory_format=memory_format(x))
    return grad_x, grad_spatial.contiguous(), grad_channel.contiguous()


_MULTIPLY = define(
    "attention_multiply(Tensor x, Tensor spatial, Tensor channel, bool residual) -> Tensor",
    _multiply,
    _multiply_fake,
)
_MULTIPLY_BACKWARD = define(
    "attention_multiply_backward(Tensor grad, Tensor x, Tensor spatial, Tensor channel, "
    "bool residual) -> (Tensor, Tensor, Tensor)",
    _multiply_backward,
    _multiply_backward_fake,
)
_POOL = define(
    "attention_pool(Tensor x, Tensor spatial, Tensor channel, bool average, bool residual, "
    "int stripes) -> (Tensor, Tensor)",
    _pool,
    _pool_fake,
)
_POOL_BACKWARD = define(
    "attention_pool_backward(Tensor grad, Tensor x, Tensor spatial, Tensor channel, Tensor argmax, "
    "bool average, bool residual, int stripes) -> (Tensor, Tensor, Tensor)",
    _pool_backward,
    _pool_backward_fake,
)


def decompositions() -> dict[Any, Callable[..., Any]]:
    """Return the attention ops and the equivalent reference functions.

    Exported graphs hold the latter, in PyTorch's own operators.
    """
    return {_MULTIPLY: _multiply, _POOL: _pool}


def _multiply_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, spatial, channel, ctx.residual = inputs
    ctx.save_for_backward(x, spatial, channel)


def _multiply_autograd(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    grads = _MULTIPLY_BACKWARD(grad, *ctx.saved_tensors, ctx.residual)
    return *grads, None


def _pool_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    x, spatial, channel, *ctx.options = inputs
    _, argmax = output
    ctx.mark_non_differentiable(argmax)
    ctx.save_for_backward(x, spatial, channel, argmax)


def _pool_autograd(
    ctx: Any, grad: Tensor, grad_of_argmax: Tensor | None
) -> tuple[Tensor | None, ...]:
    grads = _POOL_BACKWARD(grad, *ctx.saved_tensors, *ctx.options)
    return *grads, None, None, None


def _no_double_backward(name: str) -> Any:
    def backward(ctx: Any, *grads: Tensor | None) -> None:
        raise RuntimeError(
            f"{name} has no second derivative: use mmga.ops.reference.{name}, "
            "which plain autograd differentiates any number of times"
        )

    return backward


torch.library.register_autograd(
    "mmga::attention_multiply", _multiply_autograd, setup_context=_multiply_context
)
torch.library.register_autograd("mmga::attention_pool", _pool_autograd, setup_context=_pool_context)
torch.library.register_autograd(
    "mmga::attention_multiply_backward", _no_double_backward("attention_multiply")
)
torch.library.register_autograd(
    "mmga::attention_pool_backward", _no_double_backward("attention_pool")
)


def _triton(name: str, reference_of_float64: Callable[..., Any]) -> Callable[..., Any]:
    """Return Triton's launcher of an op, which leaves float64 to the reference."""
    by_triton = _library.by_triton("attention", name)

    def launch(*args: Any) -> Any:
        if any(isinstance(value, Tensor) and value.dtype == torch.float64 for value in args):
            return reference_of_float64(*args)
        return by_triton(*args)

    return launch


if _library.triton_serves():
    for _name, _reference in (
        ("attention_multiply", _multiply),
        ("attention_multiply_backward", _multiply_backward),
        ("attention_pool", _pool),
        ("attention_pool_backward", _pool_backward),
    ):
        if not has_kernel(_name, "CUDA"):
            LIBRARY.impl(_name, _triton(_name, _reference), "CUDA")
