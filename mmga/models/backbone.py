"""Backbones: ResNets, OSNet, `tiny` for machines without a GPU, all of timm and torchvision."""

import dataclasses
import difflib
import importlib
import os
import sys
from collections.abc import Sequence
from typing import Any, TypeVar

import torch
from torch import nn

from mmga.common.errors import UserError, first_line
from mmga.common.files import patient
from mmga.data.transforms import MEAN, STD
from mmga.models import osnet, stages
from mmga.models.pretrained import load_pretrained, read_state
from mmga.models.stages import Stages

_RESNET = ("conv1", "bn1", "layer1", "layer2", "layer3", "layer4")
"""Names of a ResNet's stages in a state dict; everything else (the classifier) is left out."""
_LIBRARIES = ("torchvision", "timm")
Network = TypeVar("Network", bound=nn.Module)
_IBN = tuple(f"resnet{depth}_ibn_a" for depth in (18, 34, 50, 101, 152))


class TinyResNet(nn.Module):
    """ResNet-18's wiring at 16-32-64-128 channels, with torchvision's attribute names.

    Args:
        widths: channels of the four stages.
    """

    def __init__(self, widths: tuple[int, int, int, int] = (16, 32, 64, 128)) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, widths[0], 7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(widths[0])
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
        self.layer1 = _basic_stage(widths[0], widths[0], stride=1)
        self.layer2 = _basic_stage(widths[0], widths[1], stride=2)
        self.layer3 = _basic_stage(widths[1], widths[2], stride=2)
        self.layer4 = _basic_stage(widths[2], widths[3], stride=2)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")


class IBN(nn.Module):
    """Instance normalisation of the first half of the channels, batch normalisation of the others.

    IBN-a of Pan et al., "Two at Once", ECCV 2018; names of layers as in its files of weights.

    Args:
        channels: of the input.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.split = (channels // 2, channels - channels // 2)
        self.IN = nn.InstanceNorm2d(self.split[0], affine=True)
        self.BN = nn.BatchNorm2d(self.split[1])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return features [B, C, h, w] of the same shape."""
        first, second = x.split(self.split, dim=1)
        return torch.cat((self.IN(first), self.BN(second)), dim=1)


class Rescale(nn.Module):
    """From images normalised by ImageNet's statistics to those that timm's weights were trained on.

    Args:
        mean: of red, green and blue that the weights expect.
        std: likewise.
    """

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        pairs = list(zip(MEAN, STD, mean, std, strict=True))
        scale = [ours / wanted for _, ours, _, wanted in pairs]
        shift = [(ours - wanted) / deviation for ours, _, wanted, deviation in pairs]
        # Kept in checkpoints: a later timm may have other weights by default.
        self.scale = nn.Buffer(torch.tensor(scale)[:, None, None])
        self.shift = nn.Buffer(torch.tensor(shift)[:, None, None])

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return images [B, 3, H, W]."""
        return images * self.scale + self.shift


def build_backbone(
    name: str,
    weights: str | None = None,
    weights_file: str | os.PathLike[str] | None = None,
    *,
    allow_partial: bool = False,
) -> Any:
    """Build a backbone, with its classifier where it has one.

    Args:
        name: `tiny`, any torchvision ResNet, `resnet50_ibn_a`, `osnet_x1_0` and their sizes,
            `torchvision:NAME` or `timm:NAME`.
        weights: name of torchvision's weights (`IMAGENET1K_V1`) or of timm's (`a1_in1k`), a file of
            weights, or None or `none` for random ones.
        weights_file: a file of weights (.pth, .pt, .safetensors) of any pre-training, in place of
            `weights`.
        allow_partial: take weights that fit less than `pretrained.LEAST` of the parameters.

    Returns:
        A network for `stages_of`.

    Raises:
        UserError: the backbone or its weights are not known, cannot be downloaded or do not fit.
    """
    weights = None if weights == "none" else weights
    if weights is not None and weights_file is not None:
        raise UserError(
            f"weights {weights!r} and the weights file {weights_file} were both given; "
            "choose one (weights none)"
        )
    if weights is not None and is_file(weights):
        weights, weights_file = None, weights
    network = _network(name, weights)
    if weights is not None:
        state, source = _download(name, weights), f"{name} {weights}"
    elif weights_file is not None:
        state, source = read_state(weights_file), str(weights_file)
    else:
        return network
    load_pretrained(network, _tensors(network, name), state, name, source, allow_partial)
    return network


def is_file(weights: str) -> bool:
    """Return whether weights are named by a file; names of published weights have no such signs."""
    return "." in weights or "/" in weights or os.sep in weights


def stages_of(network: Any, name: str) -> Stages:
    """Cut a backbone into stages, with stride 1 in the last one where that can be.

    The stride is set to 1 rather than dilated, as published re-ID baselines do.

    Raises:
        UserError: it cannot be cut.
    """
    if not _is_resnet(network):
        cut = stages.split(network, name)
        if not hasattr(network, "pretrained_cfg"):
            return cut
        rescale = Rescale(network.pretrained_cfg["mean"], network.pretrained_cfg["std"])
        return dataclasses.replace(cut, stem=nn.Sequential(rescale, cut.stem))
    widths = [_out_channels(getattr(network, f"layer{number}")) for number in (1, 2, 3, 4)]
    first = network.layer4[0]
    for module in (first.conv1, first.conv2, first.downsample[0]):
        module.stride = (1, 1)
    return Stages(
        stem=nn.Sequential(network.conv1, network.bn1, network.relu, network.maxpool),
        layer1=network.layer1,
        layer2=network.layer2,
        layer3=network.layer3[0],
        tail=nn.Sequential(network.layer3[1:], network.layer4),
        widths=(widths[0], widths[1], widths[2], widths[3]),
    )


def with_synced_norms(network: Network) -> Network:
    """Return a network whose batch normalisations are synchronised over processes.

    Those of timm hold an activation, too, which torch's conversion would lose.
    """
    if "timm" in sys.modules:
        layers: Any = importlib.import_module("timm.layers")
        converted: Network = layers.convert_sync_batchnorm(network)
        return converted
    same: Network = nn.SyncBatchNorm.convert_sync_batchnorm(network)
    return same


def _is_resnet(network: nn.Module) -> bool:
    from torchvision.models import ResNet

    return isinstance(network, TinyResNet | ResNet)


def _tensors(network: nn.Module, name: str) -> dict[str, torch.Tensor]:
    """Return the tensors of a backbone without its classifier."""
    if not _is_resnet(network):
        return stages.tensors_of(network, name)
    return {k: v for k, v in network.state_dict().items() if k.split(".", 1)[0] in _RESNET}


def _out_channels(stage: Any) -> int:
    """Return the channels of a ResNet stage, read from its last batch normalisation."""
    norms = [m for m in stage[-1].children() if isinstance(m, nn.BatchNorm2d)]
    return norms[-1].num_features


def _basic_stage(channels: int, width: int, stride: int) -> nn.Sequential:
    from torchvision.models.resnet import BasicBlock

    shortcut = None
    if stride != 1 or channels != width:
        shortcut = nn.Sequential(
            nn.Conv2d(channels, width, 1, stride=stride, bias=False), nn.BatchNorm2d(width)
        )
    return nn.Sequential(BasicBlock(channels, width, stride, shortcut), BasicBlock(width, width))


def _network(name: str, weights: str | None = None) -> Any:
    library, _, own = name.rpartition(":")
    if library == "timm":
        return _timm_network(own, weights)
    if library and library not in _LIBRARIES:
        raise UserError(
            f"backbone {name!r} is of no known library; write {' or '.join(_LIBRARIES)}, "
            "such as timm:resnet50"
        )
    if library == "" and name == "tiny":
        return TinyResNet()
    if library == "" and name in osnet.WIDTHS:
        return osnet.osnet(name)
    from torchvision import models

    if library == "" and name in _IBN:
        return _with_ibn(models.get_model(name.removesuffix("_ibn_a"), weights=None))
    resnets = list(models.list_models(module=models, include=["resne*t*", "wide_resnet*"]))
    names = list(models.list_models(module=models)) if library else resnets
    if own not in names:
        choices = names if library else ["tiny", *names, *_IBN, *osnet.WIDTHS]
        near = difflib.get_close_matches(own, choices, n=1)
        hint = f"choose {'' if library else 'tiny or '}one of {', '.join(names)}"
        if near:
            meant = f"{library}:{near[0]}" if library else near[0]
            hint = f"did you mean {meant!r}?"
        elif not library:
            hint += f", {', '.join((*_IBN, *osnet.WIDTHS))}, torchvision:NAME, timm:NAME"
        raise UserError(f"backbone {name!r} is not known; {hint}")
    return models.get_model(own, weights=None)


def _with_ibn(resnet: Any) -> Any:
    for stage in (resnet.layer1, resnet.layer2, resnet.layer3):
        for block in stage:
            block.bn1 = IBN(block.bn1.num_features)
    return resnet


def _timm_network(name: str, tag: str | None = None, *, pretrained: bool = False) -> Any:
    try:
        import timm
    except ImportError as error:
        raise UserError(
            f"backbone timm:{name} needs timm ({first_line(error)}): pip install 'mmga[timm]'"
        ) from error
    names = timm.list_models()
    if name not in names:
        near = difflib.get_close_matches(name.partition(".")[0], names, n=1)
        hint = f"did you mean timm:{near[0]}?" if near else "timm.list_models() has their names"
        raise UserError(f"backbone timm:{name} is not known to timm {timm.__version__}; {hint}")
    if tag is not None:
        known = timm.list_pretrained(f"{name}.*")
        tags = [one.partition(".")[2] for one in known if one.partition(".")[0] == name]
        if tag not in tags:
            raise UserError(
                f"weights {tag!r} of timm:{name} are not known; choose none, a file, or of timm's "
                f"{', '.join(tags) or 'there are none'}"
            )
    # Position embeddings for images of any size, not for those of one pre-training alone.
    any_size = timm.models.is_model_in_modules(name, ["vision_transformer", "deit"])
    options: dict[str, Any] = {"dynamic_img_size": True} if any_size else {}
    whole = name if tag is None else f"{name}.{tag}"
    return timm.create_model(whole, pretrained=pretrained, **options)


def _download(name: str, weights: str) -> dict[str, torch.Tensor]:
    library, _, own = name.rpartition(":")
    if library == "timm":
        return _download_of_timm(own, weights)
    if own == "tiny" or own in _IBN or own in osnet.WIDTHS:
        raise UserError(
            f"backbone {name} has no published weights that can be downloaded, got weights "
            f"{weights!r}; use --weights none or --weights FILE"
        )
    from torchvision import models

    choices = models.get_model_weights(own)
    if weights not in choices.__members__:
        raise UserError(
            f"weights {weights!r} of {name} are not known; "
            f"choose none, {', '.join(choices.__members__)}"
        )
    try:
        with patient():
            return dict(choices[weights].get_state_dict(progress=False, check_hash=True))
    except (OSError, RuntimeError) as error:  # urllib's errors are OSErrors
        raise UserError(
            f"weights {weights} of {name} could not be downloaded ({first_line(error)}); fetch "
            f"{choices[weights].url} on another machine and put it into "
            f"{torch.hub.get_dir()}/checkpoints, or give it with --weights none "
            "--backbone-weights FILE, or train from random weights with --weights none"
        ) from error


def _download_of_timm(name: str, weights: str) -> dict[str, torch.Tensor]:
    try:
        with patient():
            return dict(_timm_network(name, weights, pretrained=True).state_dict())
    except Exception as error:  # the hub's client raises many kinds
        raise UserError(
            f"weights {weights} of timm:{name} could not be downloaded ({first_line(error)}); "
            "give them as a file with --weights FILE, or train from random weights with "
            "--weights none"
        ) from error
