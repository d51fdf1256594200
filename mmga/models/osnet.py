"""OSNet (Zhou et al., "Omni-Scale Feature Learning for Person Re-Identification", ICCV 2019).

Blocks of four streams whose receptive fields are 3, 5, 7 and 9 pixels, summed under one gate that
they share. The names of layers are torchreid's, so that its files of weights fit.
"""

from collections import OrderedDict

import torch
from torch import nn

WIDTHS = {
    "osnet_x1_0": (64, 256, 384, 512),
    "osnet_x0_75": (48, 192, 288, 384),
    "osnet_x0_5": (32, 128, 192, 256),
    "osnet_x0_25": (16, 64, 96, 128),
    "osnet_ibn_x1_0": (64, 256, 384, 512),
}
"""Channels of the four stages of each variant."""


def osnet(name: str) -> nn.Sequential:
    """Build the feature layers of a variant, from images [B, 3, H, W] to [B, C, H/16, W/16].

    Args:
        name: one of `WIDTHS`; with `ibn` the stem and the first stage normalise instances, too.
    """
    widths = WIDTHS[name]
    ibn = "_ibn_" in name
    layers = OrderedDict(
        conv1=_convolution(3, widths[0], 7, stride=2, instance=ibn),
        maxpool=nn.MaxPool2d(3, stride=2, padding=1),
        conv2=_stage(widths[0], widths[1], halves=True, instance=ibn),
        conv3=_stage(widths[1], widths[2], halves=True),
        conv4=_stage(widths[2], widths[3], halves=False),
        conv5=_convolution(widths[3], widths[3]),
    )
    network = nn.Sequential(layers)
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    return network


def _convolution(
    channels: int,
    width: int,
    kernel: int = 1,
    *,
    stride: int = 1,
    instance: bool = False,
    relu: bool = True,
) -> nn.Sequential:
    conv = nn.Conv2d(channels, width, kernel, stride, kernel // 2, bias=False)
    norm = nn.InstanceNorm2d(width, affine=True) if instance else nn.BatchNorm2d(width)
    layers: OrderedDict[str, nn.Module] = OrderedDict(conv=conv, bn=norm)
    if relu:
        layers["relu"] = nn.ReLU(inplace=True)
    return nn.Sequential(layers)


def _light_convolution(width: int) -> nn.Sequential:
    """Make a 1x1 convolution followed by a 3x3 one of each channel by itself."""
    layers = OrderedDict(
        conv1=nn.Conv2d(width, width, 1, bias=False),
        conv2=nn.Conv2d(width, width, 3, padding=1, groups=width, bias=False),
        bn=nn.BatchNorm2d(width),
        relu=nn.ReLU(inplace=True),
    )
    return nn.Sequential(layers)


def _stage(channels: int, width: int, *, halves: bool, instance: bool = False) -> nn.Sequential:
    """Make two blocks and, where the map is halved, a 1x1 convolution and average pooling."""
    layers: list[nn.Module] = [
        OmniScaleBlock(channels, width, instance),
        OmniScaleBlock(width, width, instance),
    ]
    if halves:
        layers.append(nn.Sequential(_convolution(width, width), nn.AvgPool2d(2, stride=2)))
    return nn.Sequential(*layers)


class Gate(nn.Module):
    """Multiply each channel by a weight that its global average decides.

    Args:
        channels: of the input.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.fc1 = nn.Conv2d(channels, channels // 16, 1)
        self.fc2 = nn.Conv2d(channels // 16, channels, 1)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return features [B, C, h, w] of the same shape."""
        return x * torch.sigmoid(self.fc2(self.relu(self.fc1(x.mean((2, 3), keepdim=True)))))


class OmniScaleBlock(nn.Module):
    """Residual block of four streams of one to four light convolutions.

    Args:
        channels: of the input.
        width: channels of the output.
        instance: normalise the sum by instance.
    """

    def __init__(self, channels: int, width: int, instance: bool = False) -> None:
        super().__init__()
        middle = width // 4
        self.conv1 = _convolution(channels, middle)
        self.conv2a = _light_convolution(middle)
        self.conv2b = nn.Sequential(*(_light_convolution(middle) for _ in range(2)))
        self.conv2c = nn.Sequential(*(_light_convolution(middle) for _ in range(3)))
        self.conv2d = nn.Sequential(*(_light_convolution(middle) for _ in range(4)))
        self.gate = Gate(middle)
        self.conv3 = _convolution(middle, width, relu=False)
        self.downsample = _convolution(channels, width, relu=False) if channels != width else None
        self.IN = nn.InstanceNorm2d(width, affine=True) if instance else None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return features [B, width, h, w] of features [B, channels, h, w]."""
        inner = self.conv1(x)
        total = self.gate(self.conv2a(inner)) + self.gate(self.conv2b(inner))
        total = total + self.gate(self.conv2c(inner)) + self.gate(self.conv2d(inner))
        out = self.conv3(total) + (x if self.downsample is None else self.downsample(x))
        return torch.relu(out if self.IN is None else self.IN(out))
