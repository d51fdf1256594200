"""Memory format of outputs, identical across back ends."""

from __future__ import annotations

import torch
from torch import Tensor


def memory_format(x: Tensor) -> torch.memory_format:
    """Return channels_last where `x` [B, C, h, w] is, else NCHW; the result is always dense.

    A slice has the format of the map it is cut from; one channel or one pixel counts as NCHW.
    """
    if x.shape[1] > 1 and x.shape[2] * x.shape[3] > 1 and x.stride(1) == 1:
        return torch.channels_last
    return torch.contiguous_format


def empty_gradients(x: Tensor, spatial: Tensor, channel: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Allocate the gradients of a feature map and of its attention's logits."""
    return (
        torch.empty_like(x, memory_format=memory_format(x)),
        torch.empty_like(spatial, memory_format=torch.contiguous_format),
        torch.empty_like(channel, memory_format=torch.contiguous_format),
    )
