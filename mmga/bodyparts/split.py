"""Split a body into upper and bottom by its skeleton; draw a body from a skeleton alone.

Legend: `H W` image, `P` pixels, `S` segments.
"""

import numpy as np
import torch

from mmga.bodyparts.skeleton import (
    ARMS,
    HEAD,
    HIPS,
    NECK,
    SHANKS,
    SHOULDERS,
    THIGHS,
    Skeleton,
)
from mmga.data.masks import BACKGROUND, BOTTOM, UPPER, PartMask

RADII = {
    "head": 0.20,
    "shoulder": 0.13,
    "trunk": 0.19,
    "upper arm": 0.11,
    "forearm": 0.09,
    "thigh": 0.18,
    "shank": 0.12,
    "foot": 0.12,
}
"""Radius of the capsule round each limb, as a share of `Skeleton.scale` (this project's choice)."""

SHORTEST, LONGEST = 0.08, 0.75
"""Length of a standing person's trunk, as shares of the image's height."""

_Segment = tuple[np.ndarray, np.ndarray]


def divide(body: np.ndarray, skeleton: Skeleton | None) -> PartMask:
    """Split a body into upper and bottom along the hip line, limbs by the skeleton.

    A pixel belongs to its nearest limb. Head and arms are upper, wherever they are (a hand may hang
    below the hips); the lower half of a thigh and everything below it are bottom (a knee may be
    raised above the hips); trunk and upper half of the thighs are cut by the hip line: through the
    middle of the hips, at right angles to the trunk.

    Args:
        body: bool [H, W].
        skeleton: None, or one whose hips or shoulders may be missing: then the halves are unknown.
    """
    if skeleton is None or not skeleton.trunk:
        return PartMask.from_silhouette(torch.from_numpy(body))
    shoulders, hips = skeleton.shoulders, skeleton.hips
    assert shoulders is not None
    assert hips is not None  # they make the trunk
    rows, columns = np.nonzero(body)
    x, y = columns.astype(np.float64), rows.astype(np.float64)  # [P] each
    down = hips - shoulders
    below = (x - hips[0]) * down[0] + (y - hips[1]) * down[1] > 0  # [P]
    cut: list[_Segment] = [(shoulders, hips)]
    upper: list[_Segment] = _segments(skeleton, ARMS)
    bottom: list[_Segment] = _segments(skeleton, SHANKS)
    head = skeleton.middle(HEAD)
    if head is not None:
        upper.append((head, shoulders))
    for hip, knee in _segments(skeleton, THIGHS):
        middle = (hip + knee) / 2
        cut.append((hip, middle))
        bottom.append((middle, knee))
    nearest = np.stack([_nearest(x, y, group) for group in (cut, upper, bottom)])  # [3, P]
    # Where two limbs overlap, all of their pixels go to one of them, not to rounding.
    group = nearest.round(6).argmin(0)
    is_bottom = (group == 2) | ((group == 0) & below)
    labels = np.full(body.shape, BACKGROUND, np.uint8)
    labels[rows, columns] = np.where(is_bottom, BOTTOM, UPPER)
    return PartMask(torch.from_numpy(labels))


def drawn(skeleton: Skeleton, size: tuple[int, int]) -> PartMask | None:
    """Draw a skeleton's limbs as capsules.

    Args:
        skeleton: of the person.
        size: (H, W) of the image.

    Returns:
        The mask; None where the skeleton is no standing person's: shoulders or hips missing, hips
        above the shoulders, or a trunk outside SHORTEST and LONGEST.
    """
    trunk, scale = skeleton.trunk, skeleton.scale
    shoulders, hips = skeleton.shoulders, skeleton.hips
    if trunk is None or scale is None or shoulders is None or hips is None:
        return None
    if hips[1] <= shoulders[1] or not SHORTEST <= trunk / size[0] <= LONGEST:
        return None
    capsules: list[tuple[_Segment, str]] = [((shoulders, hips), "trunk")]
    for shoulder, hip in zip(SHOULDERS, HIPS, strict=True):
        if skeleton.known[shoulder] and skeleton.known[hip]:
            side = skeleton.points[[shoulder, hip]]
            # Half way from the joints to the middle: their skin is not a radius outside of them.
            inner = (side + np.stack((shoulders, hips))) / 2
            capsules.append(((inner[0], inner[1]), "trunk"))
    capsules += [(s, "shoulder") for s in _segments(skeleton, (SHOULDERS,))]
    for pairs, name in ((ARMS[::2], "upper arm"), (ARMS[1::2], "forearm"), (THIGHS, "thigh")):
        capsules += [(segment, name) for segment in _segments(skeleton, pairs)]
    for knee, ankle in _segments(skeleton, SHANKS):
        capsules.append(((knee, ankle), "shank"))
        down = np.array((0.0, 0.10 * scale))  # the ankle is above the sole
        capsules.append(((ankle, ankle + down), "foot"))
    head = skeleton.middle(HEAD)
    if head is not None:
        neck = skeleton.middle(NECK)
        neck = shoulders if neck is None else neck
        # Joint HEAD is the top of the skull: the capsule's round end must not rise above it.
        length = float(np.linalg.norm(neck - head))
        if length > 0:
            inside = head + (neck - head) * min(1.0, RADII["head"] * scale / length)
            capsules.append(((inside, neck), "head"))
    body = np.zeros(size, bool)
    for segment, name in capsules:
        _fill(body, segment, RADII[name] * scale)
    return divide(body, skeleton) if body.any() else None


def _segments(skeleton: Skeleton, pairs: tuple[tuple[int, int], ...]) -> list[_Segment]:
    return [
        (skeleton.points[a], skeleton.points[b])
        for a, b in pairs
        if skeleton.known[a] and skeleton.known[b]
    ]


def _nearest(x: np.ndarray, y: np.ndarray, segments: list[_Segment]) -> np.ndarray:
    """Return the squared distance [P] of pixels to the nearest of some segments, or infinity."""
    nearest = np.full(len(x), np.inf)
    for start, end in segments:
        np.minimum(nearest, _squared_distance(x, y, start, end), out=nearest)
    return nearest


def _squared_distance(
    x: np.ndarray, y: np.ndarray, start: np.ndarray, end: np.ndarray
) -> np.ndarray:
    """Return the squared distance of pixels, x and y of one shape, to a segment."""
    along_x, along_y = (end - start).tolist()
    gap_x, gap_y = x - start[0], y - start[1]
    length = along_x * along_x + along_y * along_y
    if length > 0:
        share = np.clip((gap_x * along_x + gap_y * along_y) / length, 0, 1)
        gap_x, gap_y = gap_x - share * along_x, gap_y - share * along_y
    squared: np.ndarray = gap_x * gap_x + gap_y * gap_y
    return squared


def _fill(body: np.ndarray, segment: _Segment, radius: float) -> None:
    """Set the pixels of a body, bool [H, W], within `radius` of a segment."""
    corners = np.stack(segment)  # x, y
    left, top = np.floor(corners.min(0) - radius).astype(int).clip(0).tolist()
    right, bottom = (np.ceil(corners.max(0) + radius).astype(int) + 1).clip(0).tolist()
    part = body[top:bottom, left:right]
    if part.size == 0:
        return
    x = np.arange(left, left + part.shape[1], dtype=np.float64)[None, :]
    y = np.arange(top, top + part.shape[0], dtype=np.float64)[:, None]
    part |= _squared_distance(x, y, *segment) <= radius * radius
