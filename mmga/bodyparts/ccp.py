"""Read Clothing Co-Parsing: photographs of one person each with pixel labels of garments.

Yang, Luo and Lin, "Clothing Co-Parsing by Joint Image Segmentation and Labeling", CVPR 2014. The
folder holds `photos/*.jpg`, `annotations/pixel-level/*.mat` (variable `groundtruth`, [H, W]) and
`label_list.mat`.

Legend: `H W` photograph.
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch.nn.functional import interpolate

from mmga.common import mat
from mmga.common.errors import UserError
from mmga.common.files import package_of
from mmga.common.progress import Progress
from mmga.data.masks import BACKGROUND, BOTTOM, OTHER, UPPER
from mmga.data.pictures import read_image

FOOTWEAR = (
    *("boots", "clogs", "flats", "heels", "loafers", "pumps", "sandals", "shoes", "sneakers"),
    *("socks", "stockings", "tights", "wedges"),
)

GARMENTS = {
    UPPER: (
        *("belt", "blazer", "blouse", "bra", "bracelet", "cardigan", "earrings", "glasses"),
        *("gloves", "hair", "hat", "hoodie", "jacket", "jumper", "necklace", "ring", "scarf"),
        *("shirt", "sunglasses", "sweater", "sweatshirt", "t-shirt", "tie", "top", "vest", "watch"),
    ),
    BOTTOM: (
        *FOOTWEAR,
        *("jeans", "leggings", "panties", "pants", "shorts", "skirt"),
    ),
    OTHER: ("accessories", "bag", "purse", "wallet"),
}
"""Labels of each part, as `mmga.data.masks.LABEL_SETS` sorts LIP's and ATR's: what is carried
counts for the whole body alone."""

LONG = ("bodysuit", "cape", "coat", "dress", "intimate", "romper", "suit", "swimwear")
"""Garments that hang from the shoulders past the hips; they are cut at the hip line."""

SKIN = "skin"

HIPS = 0.47
"""Height of the hip joints below the top of the head, as a share of the body's height: 0.53 of the
stature above the ground (Drillis and Contini, 1966)."""

_ARM, _HAND = 0.05, 0.14  # shares of the body's height: skin from above the hips; a hand's length


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Photo:
    """A photograph of one person.

    Attributes:
        name: of the file, without suffix.
        image: uint8 [3, H, W].
        labels: uint8 [H, W] of BACKGROUND, UPPER, BOTTOM, OTHER; OTHER is body of unknown half.
    """

    name: str
    image: torch.Tensor
    labels: torch.Tensor


def read_photos(
    folder: Path, height: int, progress: Progress | None = None, limit: int | None = None
) -> list[Photo]:
    """Read the photographs that have pixel labels, reduced to a height.

    Those without any body are left out.

    Raises:
        UserError: a file is missing or is not what it should be.
    """
    names = _label_names(folder / "label_list.mat")
    files = sorted((folder / "annotations" / "pixel-level").glob("*.mat"))[:limit]
    if not files:
        raise UserError(
            f"{folder} holds no annotations/pixel-level/*.mat; give the folder of Clothing "
            "Co-Parsing that holds photos and annotations"
        )
    photos = []
    for done, file in enumerate(files, 1):
        garments = mat.read(file, ("groundtruth",)).get("groundtruth")
        image = read_image(folder / "photos" / f"{file.stem}.jpg")
        if not isinstance(garments, np.ndarray) or garments.shape != image.shape[1:]:
            raise UserError(f"{file} holds no groundtruth of the size of its photograph")
        labels = torch.from_numpy(part_labels(garments.astype(np.int64), names, str(file)))
        if labels.any():
            size = (height, round(height * labels.shape[1] / labels.shape[0]))
            small = interpolate(
                image[None].float(), size, mode="bilinear", antialias=True, align_corners=False
            )
            nearest = interpolate(labels[None, None], size, mode="nearest-exact")
            photos.append(Photo(file.stem, small[0].round().clamp(0, 255).byte(), nearest[0, 0]))
        if progress is not None:
            progress("photographs", done, len(files))
    return photos


def part_labels(garments: np.ndarray, names: Sequence[str], file: str = "labels") -> np.ndarray:
    """Map a photograph's garments to upper and bottom body.

    Args:
        garments: labels [H, W].
        names: of the labels, label 0 first.
        file: for messages.

    Returns:
        uint8 [H, W] of BACKGROUND, UPPER, BOTTOM, OTHER. OTHER is what is carried, and long
        garments where the feet are not in the picture, which leaves the hips unknown.

    Raises:
        UserError: a label has no name.
    """
    if garments.max(initial=0) >= len(names) or garments.min(initial=0) < 0:
        raise UserError(f"{file} holds a label without a name in label_list.mat")
    table = np.full(len(names), OTHER, np.uint8)
    table[0] = BACKGROUND
    for part, own in GARMENTS.items():
        table[[place for place, name in enumerate(names) if name in own]] = part
    parts: np.ndarray = table[garments]
    long = np.isin(garments, [place for place, name in enumerate(names) if name in LONG])
    rows = np.flatnonzero((garments > 0).any(1))
    if not len(rows):
        return parts
    top, height = int(rows[0]), int(rows[-1] + 1 - rows[0])
    hips = top + round(HIPS * height)
    shoes = [place for place, name in enumerate(names) if name in FOOTWEAR]
    if np.isin(garments[top + height - height // 10 :], shoes).any():  # the feet are in the picture
        parts[:hips][long[:hips]] = UPPER
        parts[hips:][long[hips:]] = BOTTOM
    skin = garments == (list(names).index(SKIN) if SKIN in names else -1)
    sleeves = long | (parts == UPPER)
    for place in _components(skin):
        parts[place] = _part_of_skin(place, sleeves, hips, height)
    return parts


def _part_of_skin(
    place: tuple[np.ndarray, np.ndarray], sleeves: np.ndarray, hips: int, height: int
) -> np.ndarray | int:
    """Return the part of a connected piece of skin, pixels (rows, columns).

    A piece from above the hips is head, arm or trunk; if it goes on far below them it is a body
    without clothes, cut at the hips. One from below is a hand where it is short and touches what
    may have sleeves, and else a leg or a foot.
    """
    rows, columns = place
    first, last = int(rows.min()), int(rows.max())
    if first < hips - _ARM * height:
        if last < hips + 2 * _HAND * height:
            return UPPER
        return np.where(rows < hips, UPPER, BOTTOM)
    if last - first < _HAND * height and first < hips + _HAND * height:
        left, right = max(int(columns.min()) - 3, 0), int(columns.max()) + 4
        if sleeves[max(first - 3, 0) : last + 4, left:right].any():
            return UPPER
    return BOTTOM


def _components(mask: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
    """Return the connected pieces of a mask [H, W], each as rows and columns of its pixels."""
    ndimage = package_of("mat", "scipy.ndimage", "Clothing Co-Parsing")
    numbered, count = ndimage.label(mask, np.ones((3, 3), int))
    pieces = []
    for one in range(1, count + 1):
        rows, columns = np.nonzero(numbered == one)
        pieces.append((rows, columns))
    return pieces


def _label_names(path: Path) -> list[str]:
    names = mat.read(path, ("label_list",)).get("label_list")
    if not isinstance(names, list) or not names:
        raise UserError(f"{path} holds no label_list; give Clothing Co-Parsing's own")
    return [str(np.asarray(name).reshape(-1)[0]) for name in names]
