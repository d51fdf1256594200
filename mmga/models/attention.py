"""Attention: a spatial map and channel weights, both computed where features enter a stage.

The modules return logits; `mmga.ops` takes the sigmoids while it multiplies.
"""

import torch
from torch import nn

REDUCTION = 8
"""Channels shrink by this factor in the first convolution and by its square in the second."""


class SpatialAttention(nn.Module):
    """Three convolutions from a feature map to the logits of one map.

    Args:
        channels: channels read.
        kernel: size of the convolutions, 1 or 3.
    """

    def __init__(self, channels: int, kernel: int = 1) -> None:
        super().__init__()
        # The floors keep a small backbone from collapsing to a single unit.
        first, second = max(channels // REDUCTION, 8), max(channels // REDUCTION**2, 4)
        pad = kernel // 2
        self.conv1 = nn.Conv2d(channels, first, kernel, padding=pad, bias=False)
        self.bn1 = nn.BatchNorm2d(first)
        self.conv2 = nn.Conv2d(first, second, kernel, padding=pad, bias=False)
        self.bn2 = nn.BatchNorm2d(second)
        self.conv3 = nn.Conv2d(second, 1, kernel, padding=pad)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: torch.Tensor, size: tuple[int, int] | None = None) -> torch.Tensor:
        """Return logits [B, 1, h, w].

        Args:
            x: feature map [B, C, H, W].
            size: (h, w) that the map must fit; where it is not (H, W), features are averaged down
                to it after the first convolution.
        """
        x = self.relu(self.bn1(self.conv1(x)))
        if size is not None and size != x.shape[-2:]:
            x = nn.functional.adaptive_avg_pool2d(x, size)
        x = self.relu(self.bn2(self.conv2(x)))
        logits: torch.Tensor = self.conv3(x)
        return logits


class ChannelAttention(nn.Module):
    """Squeeze and excitation from a feature map to the logits of another map's channels.

    Args:
        channels: channels read.
        out_channels: channels of the feature map that will be multiplied.
    """

    def __init__(self, channels: int, out_channels: int) -> None:
        super().__init__()
        hidden = max(channels // REDUCTION, 8)
        self.fc1 = nn.Linear(channels, hidden)
        self.fc2 = nn.Linear(hidden, out_channels)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return logits [B, out_channels] for a feature map [B, C, H, W]."""
        logits: torch.Tensor = self.fc2(self.relu(self.fc1(x.mean((2, 3)))))
        return logits


class Attention(nn.Module):
    """Spatial and channel attention over one feature map.

    Args:
        channels: channels read.
        out_channels: channels of the feature map that will be multiplied; None where nothing will
            be (the spatial map is then trained by masks alone).
        kernel: size of the spatial convolutions.
        opening: None, or the logit at which both parts start everywhere, so that features enter the
            next stage at nearly their pre-trained scale.
    """

    def __init__(
        self,
        channels: int,
        out_channels: int | None,
        kernel: int = 1,
        opening: float | None = None,
    ) -> None:
        super().__init__()
        self.spatial = SpatialAttention(channels, kernel)
        self.channel = None if out_channels is None else ChannelAttention(channels, out_channels)
        if opening is not None:
            _open(self.spatial.conv3, opening)
            if self.channel is not None:
                _open(self.channel.fc2, opening)

    def forward(
        self, x: torch.Tensor, size: tuple[int, int] | None = None
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Return the spatial logits [B, 1, h, w] and the channel logits [B, out_channels]."""
        return self.spatial(x, size), None if self.channel is None else self.channel(x)


def _open(last: nn.Conv2d | nn.Linear, logit: float) -> None:
    nn.init.zeros_(last.weight)
    assert last.bias is not None  # both are built with one
    nn.init.constant_(last.bias, logit)
