"""Tests that are harder in one respect: shifted crops, occluders, other scenes.

Every change is a function of the seed and of the image's place, so that all rows see the same
pictures. Legend: `N` images, `H W` their size.
"""

import numpy as np
import torch

from mmga.data.transforms import replace_background

SHIFT = 0.2
"""Largest shift of a crop, as a share of the image's height and width."""

ZOOM = 0.2
"""Largest change of a crop's size, as a share."""

COVERED = (0.3, 0.5)
"""Least and largest share of an image behind an occluder."""


def misaligned(images: torch.Tensor, seed: int) -> torch.Tensor:
    """Return images cut by shifted boxes of another size; pixels of the edge continue beyond it.

    Args:
        images: uint8 [N, 3, H, W].
        seed: of the boxes.
    """
    height, width = images.shape[-2:]
    changed = torch.empty_like(images)
    for place, image in enumerate(images):
        random = np.random.default_rng((seed, 1, place))
        zoom = 1 + random.uniform(-ZOOM, ZOOM)
        down, right = random.uniform(-SHIFT, SHIFT, 2)
        rows = _places(height, zoom, down)
        columns = _places(width, zoom, right)
        changed[place] = image[:, rows][:, :, columns]
    return changed


def _places(length: int, zoom: float, shift: float) -> torch.Tensor:
    """Return the old row of each new one, int64 [length]."""
    centre = (np.arange(length) + 0.5) / length - 0.5
    old = (centre * zoom + 0.5 + shift) * length
    return torch.from_numpy(np.floor(old).astype(np.int64).clip(0, length - 1))


def occluded(images: torch.Tensor, pids: np.ndarray, seed: int) -> torch.Tensor:
    """Return images of which a side is covered by a piece of another identity's image.

    The piece covers the lower, upper, left or right side; it is the other image's middle, which
    shows a person, enlarged to the covered side.

    Args:
        images: uint8 [N, 3, H, W].
        pids: int64 [N].
        seed: of sides, sizes and pieces.
    """
    height, width = images.shape[-2:]
    changed = images.clone()
    for place in range(len(images)):
        random = np.random.default_rng((seed, 2, place))
        other = int(random.choice(np.flatnonzero(pids != pids[place])))
        share, side = random.uniform(*COVERED), int(random.integers(4))
        rows = round(height * share) if side < 2 else height
        columns = width if side < 2 else round(width * share)
        top = height - rows if side == 0 else 0
        left = width - columns if side == 2 else 0
        piece = images[other][:, height // 4 : 3 * height // 4, width // 4 : 3 * width // 4]
        enlarged = torch.nn.functional.interpolate(
            piece[None].float(), (rows, columns), mode="bilinear", align_corners=False
        )
        changed[place, :, top : top + rows, left : left + columns] = enlarged[0].byte()
    return changed


def cluttered(
    images: torch.Tensor, labels: torch.Tensor, pids: np.ndarray, seed: int
) -> torch.Tensor:
    """Return images with the scenes of other identities' images behind the person.

    A pixel off the body takes the colour of the first of eight other images that has no body
    there.

    Args:
        images: uint8 [N, 3, H, W].
        labels: uint8 [N, H, W], 0 off the body.
        pids: int64 [N].
        seed: of the scenes.
    """
    changed = torch.empty_like(images)
    for place, image in enumerate(images):
        random = np.random.default_rng((seed, 3, place))
        others = random.choice(np.flatnonzero(pids != pids[place]), 8)
        scenes = [(images[other], labels[other]) for other in others.tolist()]
        changed[place] = replace_background(image, labels[place], scenes)
    return changed
