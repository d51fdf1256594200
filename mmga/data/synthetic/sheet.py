"""A contact sheet: pictures of some identities, and below each the same with its mask."""

import os

import numpy as np
import torch

from mmga.common.errors import UserError
from mmga.common.files import atomic_path
from mmga.data.dataset import ImageSet
from mmga.data.masks import PartMask

_COLOURS = torch.tensor(
    [(0, 0, 0), (235, 70, 60), (60, 100, 245), (250, 220, 40)], dtype=torch.int64, device="cpu"
)


def overlay(image: torch.Tensor, mask: PartMask | None) -> torch.Tensor:
    """Return an image [3, H, W] with the labels of its mask in colours over it, uint8."""
    if mask is None:
        return image
    colours = _COLOURS[mask.labels.long()].permute(2, 0, 1)
    mixed = 0.45 * image + 0.55 * colours
    return torch.where(mask.labels > 0, mixed, image.float()).to(torch.uint8)


def write_sheet(
    path: str | os.PathLike[str], images: ImageSet, identities: int = 8, each: int = 14
) -> None:
    """Write a PNG with two rows for each identity: pictures, and masks over them.

    Args:
        path: the file.
        images: the set.
        identities: how many identities.
        each: pictures of each, spread over its cameras.

    Raises:
        UserError: the set is empty or the file cannot be written.
    """
    from PIL import Image

    if not len(images):
        raise UserError("a sheet needs at least one training identity, got none")
    rows = []
    for pid in np.unique(images.pids)[:identities]:
        own = np.flatnonzero(images.pids == pid)
        chosen = own[np.linspace(0, len(own) - 1, each).round().astype(int)].tolist()
        overlays = [overlay(images.image(i), images.mask(i)) for i in chosen]
        rows += [torch.cat([images.image(i) for i in chosen], 2), torch.cat(overlays, 2)]
    with atomic_path(path) as temporary:
        Image.fromarray(torch.cat(rows, dim=1).permute(1, 2, 0).numpy()).save(temporary, "PNG")
