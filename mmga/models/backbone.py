"""ResNet backbones: torchvision's, and `tiny` for machines without a GPU."""

import difflib
import os
from typing import Any

import torch
from torch import nn

from mmga.common.errors import UserError, first_line
from mmga.common.files import patient
from mmga.common.weights import read_weights, unwrapped

STAGES = ("conv1", "bn1", "layer1", "layer2", "layer3", "layer4")
"""Names of a ResNet's stages in a state dict; everything else (the classifier) is left out."""


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


def build_backbone(
    name: str, weights: str | None = None, weights_file: str | os.PathLike[str] | None = None
) -> Any:
    """Build a ResNet whose last stage has stride 1.

    The stride is set to 1 rather than dilated, as published re-ID baselines do.

    Args:
        name: `tiny`, or the name of any torchvision ResNet.
        weights: name of torchvision weights (`IMAGENET1K_V1`), or None or `none` for random
            ones.
        weights_file: a plain ResNet state dict (.pth, .pt, .safetensors) of any pre-training, in
            place of `weights`.

    Returns:
        A module with the attributes conv1, bn1, relu, maxpool, layer1 to layer4.

    Raises:
        UserError: the backbone or its weights are not known, cannot be downloaded or do not fit.
    """
    weights = None if weights == "none" else weights
    if weights is not None and weights_file is not None:
        raise UserError(
            f"weights {weights!r} and the weights file {weights_file} were both given; "
            "choose one (weights none)"
        )
    backbone = TinyResNet() if name == "tiny" else _torchvision_resnet(name)
    if weights is not None:
        _load_stages(backbone, _download(name, weights), f"{name} {weights}")
    if weights_file is not None:
        _load_stages(backbone, _read_state(weights_file), str(weights_file))
    _remove_last_stride(backbone)
    return backbone


def _basic_stage(channels: int, width: int, stride: int) -> nn.Sequential:
    from torchvision.models.resnet import BasicBlock

    shortcut = None
    if stride != 1 or channels != width:
        shortcut = nn.Sequential(
            nn.Conv2d(channels, width, 1, stride=stride, bias=False), nn.BatchNorm2d(width)
        )
    return nn.Sequential(BasicBlock(channels, width, stride, shortcut), BasicBlock(width, width))


def _torchvision_resnet(name: str) -> Any:
    from torchvision import models

    names = list(models.list_models(module=models, include=["resne*t*", "wide_resnet*"]))
    if name not in names:
        near = difflib.get_close_matches(name, names, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"choose tiny or one of {', '.join(names)}"
        raise UserError(f"backbone {name!r} is not known; {hint}")
    return models.get_model(name, weights=None)


def _download(name: str, weights: str) -> dict[str, torch.Tensor]:
    if name == "tiny":
        raise UserError(
            f"backbone tiny has no published weights, got weights {weights!r}; use --weights none"
        )
    from torchvision import models

    choices = models.get_model_weights(name)
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


def _read_state(path: str | os.PathLike[str]) -> dict[str, torch.Tensor]:
    hint = "save model.state_dict() alone, as .pth or .safetensors"
    state = unwrapped(read_weights(path, "backbone weights file", hint))
    if not isinstance(state, dict):
        raise UserError(
            f"backbone weights file {path} holds a {type(state).__name__}, a state dict is expected"
        )
    return {k: v for k, v in state.items() if isinstance(v, torch.Tensor)}


def _load_stages(backbone: nn.Module, state: dict[str, torch.Tensor], source: str) -> None:
    """Load every stage from a state dict whose names may share a prefix (`module.`, `base.`)."""
    marker = "layer1.0.conv1.weight"
    prefixes = sorted(key[: -len(marker)] for key in state if key.endswith(marker))
    # Momentum contrast files hold two networks: the query encoder is the trained one.
    prefixes = [p for p in prefixes if "encoder_q" in p] or prefixes
    if len(prefixes) != 1:
        raise UserError(
            f"{source} holds {len(prefixes)} ResNets (entries ending in {marker}), expected one"
        )
    stages = {
        key.removeprefix(prefixes[0]): value
        for key, value in state.items()
        if key.startswith(prefixes[0]) and key.removeprefix(prefixes[0]).split(".", 1)[0] in STAGES
    }
    own = {k: v for k, v in backbone.state_dict().items() if k.split(".", 1)[0] in STAGES}
    # Files written before PyTorch 0.4.1 have no step counters, which the average does not use.
    missing = [k for k in own if k not in stages and not k.endswith("num_batches_tracked")]
    foreign = [k for k in stages if k not in own]
    other = [k for k in own if k in stages and own[k].shape != stages[k].shape]
    for what, names in (("lacks", missing), ("has the unknown", foreign), ("has another", other)):
        if names:
            raise UserError(
                f"{source} {what} {prefixes[0]}{names[0]} ({len(names)} such entries); "
                "give the weights of the same ResNet as the backbone"
            )
    backbone.load_state_dict(stages, strict=False)


def _remove_last_stride(backbone: Any) -> None:
    first = backbone.layer4[0]
    for module in (first.conv1, first.conv2, first.downsample[0]):
        module.stride = (1, 1)
