"""How well predicted masks agree with true ones.

Legend: `H W` image.
"""

from collections.abc import Sequence

import numpy as np
import torch

from mmga.bodyparts.ccp import Photo
from mmga.bodyparts.parser import Parser, resized
from mmga.data.masks import BACKGROUND, BOTTOM, OTHER, UPPER

PARTS = ("whole", "upper", "bottom")

MARGIN = 0.05
"""Of a test photograph's box round the body, as a share of the body's height."""

HEIGHT = 128
"""Height in pixels to which test photographs are reduced."""


def ious(found: torch.Tensor, truth: torch.Tensor) -> dict[str, float]:
    """Return the IoU of whole, upper and bottom body; NaN for a part that neither has.

    Pixels whose true half is unknown (OTHER) count for the whole alone.

    Args:
        found: uint8 [H, W].
        truth: uint8 [H, W].
    """
    known = truth != OTHER
    pairs = {
        "whole": (found != BACKGROUND, truth != BACKGROUND),
        "upper": ((found == UPPER) & known, truth == UPPER),
        "bottom": ((found == BOTTOM) & known, truth == BOTTOM),
    }
    return {part: iou(mine, theirs) for part, (mine, theirs) in pairs.items()}


def iou(found: torch.Tensor, truth: torch.Tensor) -> float:
    """Return the intersection over union of two masks, bool [H, W]; NaN where both are empty."""
    union = int((found | truth).sum())
    return int((found & truth).sum()) / union if union else float("nan")


def photo_quality(
    parser: Parser, photos: Sequence[Photo], height: int = HEIGHT
) -> dict[str, float]:
    """Return the mean IoU by part over photographs cut to their persons and reduced to a height."""
    found: dict[str, list[float]] = {part: [] for part in PARTS}
    for photo in photos:
        image, labels = _cut(photo, height)
        for part, value in ious(parser.labels(image[None])[0], labels).items():
            found[part].append(value)
    return {part: float(np.nanmean(values)) for part, values in found.items()}


def _cut(photo: Photo, pixels: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return a photograph cut to its person, twice as high as wide, and its labels.

    Args:
        photo: the photograph.
        pixels: height of the result.
    """
    rows = photo.labels.any(1).nonzero()[:, 0]
    columns = photo.labels.any(0).nonzero()[:, 0]
    height = int(rows[-1] + 1 - rows[0])
    margin = round(MARGIN * height)
    top, bottom = max(int(rows[0]) - margin, 0), int(rows[-1]) + 1 + margin
    middle = int(columns[0] + columns[-1]) // 2
    side = (height + 2 * margin) // 4
    left, right = max(middle - side, 0), middle + side
    image = photo.image[:, top:bottom, left:right]
    labels = photo.labels[top:bottom, left:right]
    size = (pixels, pixels // 2)
    image = resized(image[None].float(), size)[0]
    nearest = torch.nn.functional.interpolate(labels[None, None], size, mode="nearest-exact")
    return image, nearest[0, 0]
