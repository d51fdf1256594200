"""Control E: masks with errors as of a human parser."""

import numpy as np
import torch

from mmga.data.dataset import ImageSet, Labelled
from mmga.data.masks import PartMask

IOU = 0.75
"""Overlap with the true body at which eroding or dilating ends."""

MISSING = 0.1
"""Share of the images that lose their mask."""


class DegradedMasks(Labelled):
    """An image set whose masks are eroded or dilated, each by a coin of its own, or missing.

    Args:
        images: the set.
        seed: of the coins.
        iou: overlap of old and new body to reach.
        missing: share of images without a mask.
    """

    def __init__(
        self, images: ImageSet, seed: int = 0, iou: float = IOU, missing: float = MISSING
    ) -> None:
        super().__init__(images.paths, images.pids, images.camids)
        self._images = images
        random = np.random.default_rng((seed, 5))
        lost = random.random(len(images)) < missing
        grown = random.random(len(images)) < 0.5
        self._masks = [
            None if lost[i] else degrade(mask, bool(grown[i]), iou)
            for i in range(len(images))
            for mask in [images.mask(i)]
        ]

    def image(self, index: int) -> torch.Tensor:
        """Return image `index`, uint8 [3, H, W]."""
        return self._images.image(index)

    def mask(self, index: int) -> PartMask | None:
        """Return the degraded mask of image `index`, None where it is missing."""
        return self._masks[index]


def degrade(mask: PartMask | None, grown: bool, iou: float = IOU) -> PartMask | None:
    """Erode or dilate a mask, a pixel a step, as often as brings its body's IoU nearest to `iou`.

    It stops before a body would vanish, and where one fills the frame.
    """
    if mask is None or not mask.labels.any():
        return mask
    labels, body, overlap = mask.labels, mask.labels > 0, 1.0
    while True:
        step = _dilated(labels) if grown else _eroded(labels)
        new = step > 0
        if not new.any() or torch.equal(step, labels):
            break
        after = float((new & body).sum()) / float((new | body).sum())
        if abs(after - iou) >= abs(overlap - iou):
            break
        labels, overlap = step, after
    return PartMask(labels, mask.parts)


def _dilated(labels: torch.Tensor) -> torch.Tensor:
    """Give pixels beside the body the highest label around them."""
    around = torch.nn.functional.max_pool2d(labels[None, None].float(), 3, 1, 1)[0, 0]
    return torch.where(labels > 0, labels, around.to(torch.uint8))


def _eroded(labels: torch.Tensor) -> torch.Tensor:
    """Remove the body's pixels that touch the scene; the frame's edge does not count as scene."""
    scene = (labels == 0)[None, None].float()
    touched = torch.nn.functional.max_pool2d(scene, 3, 1, 1)[0, 0] > 0
    return torch.where(touched, torch.zeros_like(labels), labels)
