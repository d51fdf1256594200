"""Attention maps of any images, from a trained run or from any network that names its maps."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from mmga.common.device import resolve_device
from mmga.common.errors import UserError
from mmga.data.build import eval_transform
from mmga.data.transforms import EvalTransform
from mmga.extraction.embedder import check_foreign_size, foreign_network
from mmga.models.loading import load_run

Maps = dict[str, Tensor]
"""Float [B, 1, h, w] by name."""


@dataclass(frozen=True, slots=True)
class MapMaker:
    """A network that makes attention maps.

    Attributes:
        transform: the resizing of its images.
        make: from normalised images [B, 3, H, W] to maps of any range.
        device: where images are put.
    """

    transform: EvalTransform
    make: Callable[[Tensor], Maps]
    device: torch.device

    @torch.inference_mode()
    def __call__(self, images: Tensor) -> tuple[Maps, list[str]]:
        """Return the maps of normalised images, on the CPU, and the names of those that are scaled.

        Maps that leave [0, 1] are scaled, each name's from its least to its greatest value.
        """
        maps, scaled = {}, []
        for name, found in self.make(images).items():
            value = found.float().cpu()
            low, high = value.amin(), value.amax()
            if low < 0 or high > 1:
                scaled.append(name)
                value = (value - low) / (high - low).clamp(min=torch.finfo(torch.float32).tiny)
            maps[name] = value
        return maps, scaled


def maps_of_run(path: Path, device: str = "auto") -> MapMaker:
    """Return the maps whole, upper and bottom of a run, or whole0 where it has no others.

    Raises:
        UserError: there is no checkpoint, or the network has no attention.
    """
    run = load_run(path, resolve_device(device))
    network = run.network
    if network.attention1 is None and network.attention2 is None:
        raise UserError(
            f"--run {path} has no attention maps: it was trained with --attention none; choose a "
            "run with --attention both"
        )

    def make(images: Tensor) -> Maps:
        found = network.attention(images)
        return {name: found[name] for name in found if name in network.parts} or dict(found)

    return MapMaker(eval_transform(run.config), make, next(network.parameters()).device)


def maps_of_model(
    name: str, arguments: str, weights: Path | None, size: tuple[int, int], device: str
) -> MapMaker:
    """Return the maps of any network, built by `foreign_network`.

    They are what its method ``attention`` returns for images, or, where it has none, what the
    network itself returns: tensors [B, 1, h, w] or [B, h, w] by name; whatever else it returns is
    left out.

    Raises:
        UserError: the network cannot be built or takes no such images, or there is no such device;
            when maps are made, that it names none.
    """
    target = resolve_device(device)
    network = foreign_network(name, arguments, weights).to(target)
    method = getattr(network, "attention", None)
    forward = network if isinstance(method, nn.Module) or not callable(method) else method
    check_foreign_size(forward, name, size, target)

    def make(images: Tensor) -> Maps:
        found = forward(images)
        maps = {
            str(key): value.reshape(len(images), 1, *value.shape[-2:])
            for key, value in (found.items() if isinstance(found, Mapping) else ())
            if isinstance(value, Tensor)
            and value.ndim in (3, 4)
            and value.shape[0] * value.shape[-2] * value.shape[-1] == value.numel()
            and len(value) == len(images)
        }
        if not maps:
            kind = type(found).__name__
            names = ", ".join(map(str, found)) if isinstance(found, Mapping) else ""
            raise UserError(
                f"--model {name} must return, or have a method attention that returns, maps "
                f"[B, 1, h, w] by name; found {kind}{f' with {names}' if names else ''}"
            )
        return maps

    return MapMaker(EvalTransform(size=size), make, target)
