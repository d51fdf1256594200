"""Attention applied to a feature map, and its gradients.

Legend: ``B`` batch, ``C`` channels, ``h w`` feature map, ``P`` parts.

Arguments that recur:
    x: feature map [B, C, h, w].
    spatial: logits of the spatial parts [B, P, h, w]; [B, 1, h, w] to multiply.
    channel: logits of the channel parts [B, P, C]; [B, C] to multiply.
    combine: ``"product"`` gives x * S * C, ``"residual"`` gives x * (1 + S) * C, where S and C are
        the sigmoids.
    mode: ``"max"`` or ``"avg"``. Pooling runs over x * S or x * (1 + S) and its result is
        multiplied by C.
    stripes: number of horizontal stripes, split by `stripe_rows`.
    grad: gradient of the (first) result, in its shape.

Every gradient has the shape and dtype of its input.
"""

from __future__ import annotations

import torch
from torch import Tensor


def _working_dtype(x: Tensor) -> torch.dtype:
    """Return the dtype of the arithmetic: float64 for a float64 map, else float32."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def _factor(s: Tensor, combine: str) -> Tensor:
    return 1 + s if combine == "residual" else s


def stripe_rows(height: int, stripes: int) -> list[tuple[int, int]]:
    """Split the rows of a feature map into consecutive stripes that share no row.

    Args:
        height: rows of the feature map, at least ``stripes``.
        stripes: number of stripes.

    Returns:
        One (first row, row after the last) per stripe. Equal heights where ``stripes`` divides
        ``height``, which is the only case that MGN knows.
    """
    return [(i * height // stripes, (i + 1) * height // stripes) for i in range(stripes)]


def attention_multiply(
    x: Tensor, spatial: Tensor, channel: Tensor, combine: str = "product"
) -> Tensor:
    """Multiply a feature map by one attention (PAPER: element-wise product of both parts).

    Returns:
        [B, C, h, w] in the dtype of ``x``, rounded once.
    """
    dtype = _working_dtype(x)
    factor = _factor(torch.sigmoid(spatial.to(dtype)), combine)  # [B, 1, h, w]
    gate = torch.sigmoid(channel.to(dtype))[:, :, None, None]  # [B, C, 1, 1]
    return (x.to(dtype) * factor * gate).to(x.dtype)


def attention_multiply_backward(
    grad: Tensor, x: Tensor, spatial: Tensor, channel: Tensor, combine: str = "product"
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of `attention_multiply` for its three tensors."""
    dtype = _working_dtype(x)
    s = torch.sigmoid(spatial.to(dtype))  # [B, 1, h, w]
    c = torch.sigmoid(channel.to(dtype))  # [B, C]
    factor = _factor(s, combine)
    g = grad.to(dtype)
    gx = g * x.to(dtype)  # [B, C, h, w]
    grad_x = g * factor * c[:, :, None, None]
    grad_spatial = (gx * c[:, :, None, None]).sum(1, keepdim=True) * (s * (1 - s))
    grad_channel = (gx * factor).sum((2, 3)) * (c * (1 - c))
    return grad_x.to(x.dtype), grad_spatial.to(spatial.dtype), grad_channel.to(channel.dtype)


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
        mode: also ``"gem"``, the generalised mean of values clamped from below at 1e-6.
        exponent: exponent of the generalised mean; unused by the other modes.

    Returns:
        [B, P, stripes, C] in the dtype of ``x``, rounded once.
    """
    if mode != "gem":
        return attention_pool_with_argmax(x, spatial, channel, mode, combine, stripes)[0]
    dtype = _working_dtype(x)
    factor = _factor(torch.sigmoid(spatial.to(dtype)), combine)  # [B, P, h, w]
    parts = []
    for p in range(spatial.shape[1]):
        attended = (x.to(dtype) * factor[:, p, None]).clamp(min=1e-6).pow(exponent)  # [B, C, h, w]
        rows = [attended[:, :, a:b].mean((2, 3)) for a, b in stripe_rows(x.shape[2], stripes)]
        parts.append(torch.stack(rows, 1).pow(1 / exponent))  # [B, stripes, C]
    pooled = torch.stack(parts, 1)  # [B, P, stripes, C]
    return (pooled * torch.sigmoid(channel.to(dtype))[:, :, None]).to(x.dtype)


def attention_pool_with_argmax(
    x: Tensor,
    spatial: Tensor,
    channel: Tensor,
    mode: str = "max",
    combine: str = "product",
    stripes: int = 1,
) -> tuple[Tensor, Tensor]:
    """Compute `attention_pool` and the position of each maximum.

    Returns:
        The pooled features [B, P, stripes, C] and, for ``"max"``, the index row * w + column of
        each maximum, int32 of the same shape: the lowest among equals, the first NaN where there
        is one. For ``"avg"`` the second is empty.
    """
    dtype = _working_dtype(x)
    width = x.shape[3]
    factor = _factor(torch.sigmoid(spatial.to(dtype)), combine)  # [B, P, h, w]
    values, indices = [], []
    for p in range(spatial.shape[1]):
        attended = x.to(dtype) * factor[:, p, None]  # [B, C, h, w]
        for first, last in stripe_rows(x.shape[2], stripes):
            flat = attended[:, :, first:last].flatten(2)  # [B, C, rows * w]
            if mode == "avg":
                values.append(flat.mean(2))
            else:
                value, index = flat.max(2)
                values.append(value)
                indices.append(index + first * width)
    shape = (x.shape[0], spatial.shape[1], stripes, x.shape[1])
    pooled = torch.stack(values, 1).view(shape)  # [B, P, stripes, C]
    pooled = (pooled * torch.sigmoid(channel.to(dtype))[:, :, None]).to(x.dtype)
    if mode == "avg":
        return pooled, torch.empty(0, dtype=torch.int32, device=x.device)
    return pooled, torch.stack(indices, 1).view(shape).to(torch.int32)


def attention_pool_backward(
    grad: Tensor,
    x: Tensor,
    spatial: Tensor,
    channel: Tensor,
    argmax: Tensor,
    mode: str = "max",
    combine: str = "product",
    stripes: int = 1,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of `attention_pool_with_argmax` for ``x``, ``spatial`` and ``channel``.

    Args:
        argmax: second result of the forward function; each position takes the whole gradient.
    """
    dtype = _working_dtype(x)
    width = x.shape[3]
    s = torch.sigmoid(spatial.to(dtype))  # [B, P, h, w]
    c = torch.sigmoid(channel.to(dtype))  # [B, P, C]
    factor = _factor(s, combine)
    features = x.to(dtype)
    grad_x = torch.zeros_like(features)
    grad_s = torch.zeros_like(s)
    grad_c = torch.zeros_like(c)
    for p in range(spatial.shape[1]):
        for i, (first, last) in enumerate(stripe_rows(x.shape[2], stripes)):
            rows = slice(first, last)
            pixels = (last - first) * width
            part = features[:, :, rows].flatten(2)  # [B, C, pixels]
            weight = factor[:, p, None, rows].flatten(2)  # [B, 1, pixels]
            g = grad[:, p, i].to(dtype)  # [B, C]
            upstream = (g * c[:, p])[:, :, None]  # [B, C, 1]
            if mode == "avg":
                to_x = upstream * weight / pixels  # [B, C, pixels]
                to_s = upstream * part / pixels  # [B, C, pixels]
                value = (part * weight).mean(2)  # [B, C]
            else:
                place = argmax[:, p, i].long()[:, :, None] - first * width  # [B, C, 1]
                x_there = part.gather(2, place)
                s_there = weight.expand_as(part).gather(2, place)
                # Scattered into zeros, so that an infinite gradient stays in its place.
                to_x = torch.zeros_like(part).scatter(2, place, upstream * s_there)
                to_s = torch.zeros_like(part).scatter(2, place, upstream * x_there)
                value = (x_there * s_there)[:, :, 0]
            grad_x[:, :, rows] += to_x.unflatten(2, (-1, width))
            grad_s[:, p, rows] = to_s.sum(1).unflatten(1, (-1, width))
            grad_c[:, p] += g * value
    grad_spatial = grad_s * (s * (1 - s))
    grad_channel = grad_c * (c * (1 - c))
    return grad_x.to(x.dtype), grad_spatial.to(spatial.dtype), grad_channel.to(channel.dtype)
