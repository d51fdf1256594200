"""Body-part masks: label maps of whole, upper and bottom, their files, and attention targets.

Legend: `B` images, `H W` image, `h w` attention map; parts are ordered whole, upper, bottom.
"""

import dataclasses
import os
from collections.abc import Callable, Sequence
from pathlib import Path, PurePosixPath

import numpy as np
import torch

from mmga.common.errors import UserError
from mmga.common.files import atomic_path

BACKGROUND, UPPER, BOTTOM, OTHER = 0, 1, 2, 3
"""Values of a label map; OTHER is body that is neither upper nor bottom (a carried bag)."""

_SILHOUETTE = 255
"""Value of the body in a file without halves."""


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class PartMask:
    """Mask of the body and its halves in one image.

    Attributes:
        labels: uint8 tensor [H, W] of BACKGROUND, UPPER, BOTTOM, OTHER; the whole body is every
            value but BACKGROUND.
        parts: False for a silhouette, whose upper and bottom halves are unknown (not empty).
    """

    labels: torch.Tensor
    parts: bool = True

    def __post_init__(self) -> None:
        if self.labels.dtype != torch.uint8 or self.labels.ndim != 2:
            raise ValueError(
                "labels must be a uint8 tensor [H, W], "
                f"got {self.labels.dtype} {list(self.labels.shape)}"
            )

    @classmethod
    def from_silhouette(cls, body: torch.Tensor, split: float | None = None) -> "PartMask":
        """Make a mask from a silhouette, halved at a given height on request.

        Args:
            body: any tensor [H, W] that is non-zero on the body.
            split: None, or the height of the hips as a share of H from the top; rows above it then
                count as upper and the others as bottom.
        """
        inside = body != 0  # [H, W]
        if split is None:
            return cls(inside.to(torch.uint8) * OTHER, parts=False)
        rows = torch.arange(inside.shape[0], device="cpu") >= round(split * inside.shape[0])  # [H]
        halves = torch.where(rows, BOTTOM, UPPER).to(torch.uint8)
        return cls(inside.to(torch.uint8) * halves[:, None])


FindMask = Callable[[str], PartMask | None]
"""From an image's relative path to its mask, None where there is none."""


@dataclasses.dataclass(frozen=True, slots=True)
class LabelSet:
    """Mapping of a human parser's labels to upper and bottom.

    Attributes:
        labels: number of labels; greater values are errors.
        upper: labels of the upper body.
        bottom: labels of the bottom body; any other non-zero label counts for the whole only.
        dress: labels out of `upper` that reach below the hips.
    """

    labels: int
    upper: tuple[int, ...]
    bottom: tuple[int, ...]
    dress: tuple[int, ...] = ()

    def table(self, below_hips: bool = False) -> np.ndarray:
        """Return the map from a label to our values, uint8 [labels]."""
        table = np.full(self.labels, OTHER, np.uint8)
        table[0] = BACKGROUND
        table[list(self.upper)] = UPPER
        table[list(self.bottom)] = BOTTOM
        if below_hips:
            table[list(self.dress)] = BOTTOM
        return table


LABEL_SETS = {
    "parts": LabelSet(4, (1,), (2,)),
    "lip": LabelSet(
        20, (1, 2, 3, 4, 5, 6, 7, 10, 11, 13, 14, 15), (8, 9, 12, 16, 17, 18, 19), (6, 10)
    ),
    # The bag (16) is carried, not worn: whole only.
    "atr": LabelSet(18, (1, 2, 3, 4, 7, 8, 11, 14, 15, 17), (5, 6, 9, 10, 12, 13), (7,)),
    "pascal": LabelSet(7, (1, 2, 3, 4), (5, 6)),
    "densepose": LabelSet(8, (1, 2, 3, 4), (5, 6, 7)),
}
"""Label sets by name; `parts` is this project's own. `silhouette` is any non-zero value."""


def to_part_mask(
    values: np.ndarray, label_set: str = "parts", *, hip: int | None = None, name: str = "mask"
) -> PartMask:
    """Map the labels of a human parser to a part mask.

    A map of the set `parts` that holds only 0 and 255 is read as a silhouette.

    Args:
        values: integer array [H, W].
        label_set: a key of LABEL_SETS, or `silhouette`.
        hip: row of the hips, where a skeleton is known: dresses and jumpsuits are split there.
        name: the file, for messages.

    Raises:
        UserError: the label set is not known, the array has another shape, or it holds a label
            that the set does not have.
    """
    _check_label_set(label_set)
    if values.ndim != 2 or values.dtype.kind not in "bui":
        raise UserError(
            f"{name} must be a single-channel 8-bit label map, found {values.dtype} "
            f"{list(values.shape)}; convert it"
        )
    highest = int(values.max(initial=0))
    own = label_set == "parts"
    if label_set == "silhouette" or (own and highest == _SILHOUETTE and _is_binary(values)):
        return PartMask.from_silhouette(torch.from_numpy(values.astype(np.uint8)))
    labels = LABEL_SETS[label_set]
    if highest >= labels.labels or (values.dtype.kind == "i" and int(values.min(initial=0)) < 0):
        raise UserError(
            f"{name} holds label {highest}, the label set {label_set!r} has 0 to "
            f"{labels.labels - 1}; name the right one of {', '.join((*LABEL_SETS, 'silhouette'))}"
        )
    mapped = labels.table()[values]
    if hip is not None and labels.dress:
        mapped[hip:] = labels.table(below_hips=True)[values[hip:]]
    return PartMask(torch.from_numpy(mapped))


def read_labels(path: str | os.PathLike[str], *, grey: bool = False) -> np.ndarray:
    """Read an 8-bit single-channel or palette image file, uint8 [H, W].

    Args:
        path: the file; a palette's indices are the labels, its colours are decoration.
        grey: convert colours to grey instead of refusing them.

    Raises:
        UserError: the file cannot be read as such.
    """
    from PIL import Image

    try:
        with Image.open(path) as image:
            if grey and image.mode not in ("L", "1"):
                return np.array(image.convert("L"))
            if image.mode in ("L", "P", "1"):
                return np.array(image).astype(np.uint8, copy=False)
            mode = image.mode
    except (OSError, SyntaxError, ValueError) as error:
        raise UserError(f"{path} cannot be read as an image ({error}); replace it") from error
    raise UserError(
        f"{path} must be an 8-bit single-channel label map, found mode {mode}; convert it"
    )


def read_mask(
    path: str | os.PathLike[str], label_set: str = "parts", *, split: float | None = None
) -> PartMask:
    """Read a label map from an 8-bit single-channel or palette PNG.

    Args:
        path: the file.
        label_set: a key of LABEL_SETS, or `silhouette`.
        split: height at which a silhouette is halved (`PartMask.from_silhouette`).

    Raises:
        UserError: the file cannot be read as such, or holds unknown labels.
    """
    mask = to_part_mask(read_labels(path), label_set, name=str(path))
    if split is not None and not mask.parts:
        return PartMask.from_silhouette(mask.labels, split)
    return mask


def write_mask(path: str | os.PathLike[str], mask: PartMask) -> None:
    """Write a mask as an 8-bit PNG: values 0 to 3, or 0 and 255 for a silhouette.

    Raises:
        ValueError: the mask is an empty silhouette, which a file cannot tell from a parsed image
            without a person; write no file instead.
        UserError: the file cannot be written.
    """
    from PIL import Image

    labels = mask.labels
    if not mask.parts:
        if not labels.any():
            raise ValueError("an empty silhouette says nothing: write no file for it")
        labels = (labels != 0).to(torch.uint8) * _SILHOUETTE
    with atomic_path(path) as temporary:
        Image.fromarray(labels.numpy()).save(temporary, format="PNG", optimize=True)


@dataclasses.dataclass(frozen=True)
class MaskFolder:
    """A folder of mask files: the image's relative path with the suffix `.png`.

    Attributes:
        root: the folder.
        label_set: how to read the files (`to_part_mask`).
        split: height at which silhouettes are halved, or None.

    Raises:
        UserError: the folder does not exist or the label set is not known.
    """

    root: Path
    label_set: str = "parts"
    split: float | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "root", Path(self.root))
        _check_label_set(self.label_set)
        if not self.root.is_dir():
            raise UserError(
                f"masks folder {self.root} does not exist; give the folder of PNG files"
            )

    def file(self, path: str) -> Path:
        """Return where the mask of an image is expected."""
        return self.root / PurePosixPath(path).with_suffix(".png")

    def count(self, paths: Sequence[str]) -> int:
        """Count the images that have a mask file."""
        return sum(self.file(path).is_file() for path in paths)

    def __call__(self, path: str) -> PartMask | None:
        """Read the mask of an image by its relative path; None where there is no file."""
        file = self.file(path)
        return read_mask(file, self.label_set, split=self.split) if file.is_file() else None


def check_size(mask: PartMask, image: torch.Tensor, path: str) -> None:
    """Raise a UserError naming the image unless the mask [H, W] has the image's [3, H, W] size."""
    if mask.labels.shape != image.shape[-2:]:
        (height, width), (image_height, image_width) = mask.labels.shape, image.shape[-2:]
        raise UserError(
            f"the mask of {path} is {height} x {width} pixels and the image "
            f"{image_height} x {image_width}; make the mask from that very image"
        )


def part_targets(
    labels: torch.Tensor, parts: torch.Tensor, has_mask: torch.Tensor, size: Sequence[int]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Turn label maps into attention targets, down-sampled by area average.

    Args:
        labels: uint8 [B, H, W] of BACKGROUND, UPPER, BOTTOM, OTHER; anything where `has_mask` is
            False.
        parts: bool [B], False for silhouettes.
        has_mask: bool [B].
        size: (h, w) of the attention map.

    Returns:
        targets: float32 [B, 3, h, w] in [0, 1].
        known: bool [B, 3]; unknown targets must be excluded, not taken as zero.
    """
    masks = torch.stack((labels != BACKGROUND, labels == UPPER, labels == BOTTOM), dim=1)
    targets = torch.nn.functional.adaptive_avg_pool2d(masks.float(), (size[0], size[1]))
    halves = has_mask & parts
    return targets, torch.stack((has_mask, halves, halves), dim=1)


def _check_label_set(label_set: str) -> None:
    if label_set not in LABEL_SETS and label_set != "silhouette":
        raise UserError(
            f"label set {label_set!r} is not known; "
            f"choose one of {', '.join((*LABEL_SETS, 'silhouette'))}"
        )


def _is_binary(values: np.ndarray) -> bool:
    return bool(((values == 0) | (values == _SILHOUETTE)).all())
