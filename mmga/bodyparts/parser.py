"""The body-part parser that comes with mmga: masks of crops without detectors or downloads.

docs/parser.md says what it was trained on, how good it is and where it fails.

Legend: `B` images, `H W` an image's own size.
"""

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path

import torch
from torch.nn.functional import interpolate

from mmga.bodyparts.network import ParserNetwork, fuse
from mmga.common.errors import UserError
from mmga.common.weights import read_weights
from mmga.data.masks import PartMask

WEIGHTS = Path(__file__).parent / "parser.safetensors"
"""Weights of the parser, float16."""

INPUT = (160, 64)
"""Height and width to which crops are resized."""

LEAST = 0.02
"""Share of an image below which what looks like a body is taken for nobody."""


class Parser:
    """Labels the pixels of crops as background, upper and bottom body.

    Args:
        weights: a file that `mmga.bodyparts.train` wrote.
        device: where the network runs.

    Raises:
        UserError: the weights cannot be read or are of another network.
    """

    def __init__(
        self,
        weights: str | os.PathLike[str] = WEIGHTS,
        *,
        device: torch.device | str = "cpu",
    ) -> None:
        self.device = torch.device(device)
        hint = "expected a file that python -m mmga.bodyparts.train wrote"
        state = read_weights(weights, "parser weights", hint)
        network = ParserNetwork()
        try:
            network.load_state_dict({name: value.float() for name, value in state.items()})
        except (RuntimeError, AttributeError) as error:
            raise UserError(f"parser weights {weights} do not fit; {hint}") from error
        fuse(network.eval())
        self.network = network.to(self.device).to(memory_format=torch.channels_last)

    @torch.inference_mode()
    def __call__(self, images: Sequence[torch.Tensor]) -> list[PartMask | None]:
        """Return the mask of each image, uint8 [3, H, W]; None where nobody is seen."""
        if not images:
            return []
        masks: list[PartMask | None] = [None] * len(images)
        sizes = list(dict.fromkeys(image.shape[-2:] for image in images))
        places = [[at for at, one in enumerate(images) if one.shape[-2:] == size] for size in sizes]
        small = [self._resized(torch.stack([images[at] for at in some])) for some in places]
        # Images of all sizes at once: torch is slow with few images and one thread.
        scores = self._scores(torch.cat(small)).split([len(some) for some in places])
        for size, some, own in zip(sizes, places, scores, strict=True):
            labels = _decided(own, size)
            there = (labels > 0).flatten(1).float().mean(1) >= LEAST
            for at, mine, seen in zip(some, labels, there.tolist(), strict=True):
                masks[at] = PartMask(mine) if seen else None
        return masks

    @torch.inference_mode()
    def labels(self, images: torch.Tensor) -> torch.Tensor:
        """Return the labels of images, uint8 [B, H, W] on the CPU.

        Args:
            images: [B, 3, H, W], RGB, values 0 to 255.
        """
        return _decided(self._scores(self._resized(images)), images.shape[-2:])

    def _resized(self, images: torch.Tensor) -> torch.Tensor:
        return resized(images.to(self.device).float(), INPUT)

    def _scores(self, x: torch.Tensor) -> torch.Tensor:
        x = x.contiguous(memory_format=torch.channels_last)
        return self.network(x) + self.network(x.flip(-1)).flip(-1)  # and of the mirror images


def _decided(scores: torch.Tensor, size: Sequence[int]) -> torch.Tensor:
    """Return the labels of images of a size, uint8 [B, H, W] on the CPU."""
    return enlarged(scores, size).argmax(1).byte().cpu()


def version() -> str:
    """Return the name by which manifests tell the masks of one parser from another's."""
    return hashlib.sha256(WEIGHTS.read_bytes()).hexdigest()[:12]


def resized(images: torch.Tensor, size: Sequence[int]) -> torch.Tensor:
    """Return float images [B, C, H, W] resized without aliasing, in training as in parsing."""
    if tuple(images.shape[-2:]) == tuple(size):
        return images
    return interpolate(images, tuple(size), mode="bilinear", antialias=True, align_corners=False)


def enlarged(scores: torch.Tensor, size: Sequence[int]) -> torch.Tensor:
    """Return scores [B, 3, h, w] enlarged to the size of an image."""
    return interpolate(scores, tuple(size), mode="bilinear", align_corners=False)
