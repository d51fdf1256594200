"""Body-part masks: label maps of whole, upper and bottom, their files, and attention targets.

Legend: `B` images, `H W` image, `h w` attention map; parts are ordered whole, upper, bottom.
"""

import dataclasses
import functools
import logging
import os
from collections.abc import Callable, Sequence
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Protocol, runtime_checkable

import numpy as np
import torch

from mmga.common.errors import UserError
from mmga.common.files import atomic_path, read_json_object
from mmga.data.pictures import note, read_picture

if TYPE_CHECKING:
    from PIL import Image

logger = logging.getLogger(__name__)

BACKGROUND, UPPER, BOTTOM, OTHER = 0, 1, 2, 3
"""Values of a label map; OTHER is body that is neither upper nor bottom (a carried bag)."""

_SILHOUETTE = 255
"""Value of the body in a file without halves."""

MANIFEST = "manifest.json"
"""File that `mmga.masks` writes beside its masks."""

LOSSLESS = (".png", ".bmp", ".tif", ".tiff")
"""Endings of mask files, the usual one first; JPEG would mix the labels of neighbouring pixels."""


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


@runtime_checkable
class CountsMasks(Protocol):
    """A `FindMask` that counts the masks of many images by their files' names."""

    def count(self, paths: Sequence[str]) -> int:
        """Count the images, named by their relative paths, that have a mask file."""
        ...


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

# Colours of LIP's 20 labels as JPPNet, CIHP-PGN and Graphonomy draw them.
_LIP_COLOURS = (
    (0, 0, 0), (128, 0, 0), (255, 0, 0), (0, 85, 0), (170, 0, 51), (255, 85, 0), (0, 0, 85),
    (0, 119, 221), (85, 85, 0), (0, 85, 85), (85, 51, 0), (52, 86, 128), (0, 128, 0), (0, 0, 255),
    (51, 170, 221), (0, 255, 255), (85, 255, 170), (170, 255, 85), (255, 255, 0), (255, 170, 0),
)  # fmt: skip


def to_part_mask(
    values: np.ndarray, label_set: str = "parts", *, hip: int | None = None, name: str = "mask"
) -> PartMask:
    """Map the labels of a human parser to a part mask.

    A map of the set `parts` that holds only 0 and 255 (or 65,535), or booleans, is read as a
    silhouette.

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
    if values.dtype == bool:
        values = values * np.uint8(_SILHOUETTE)
    highest = int(values.max(initial=0))
    own = label_set == "parts"
    if label_set == "silhouette" or (own and highest in (255, 65535) and _is_binary(values)):
        return PartMask.from_silhouette(torch.from_numpy(values != 0))
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


def read_labels(path: str | os.PathLike[str], label_set: str = "parts") -> np.ndarray:
    """Read the labels of a single-channel or palette image file, upright.

    - Grey values of 2, 4, 8 and 16 bits are the labels. One bit holds no parts: 0 and 255.
    - A palette's indices are the labels and its colours decoration, unless the colours are those
      of a known palette in another order, as optimisers of files renumber them.
    - Transparent pixels of a grey picture with alpha are background.

    Args:
        path: the file.
        label_set: whose palettes are known.

    Returns:
        Unsigned integers or int32, [H, W].

    Raises:
        UserError: the file cannot be read as such.
    """
    picture, stored = read_picture(path)
    mode = picture.mode
    if mode == "P":
        return _by_colour(picture, label_set, path)
    if mode == "1":
        return np.array(picture).astype(np.uint8) * np.uint8(_SILHOUETTE)
    if mode == "L":
        # Pillow spreads two and four bits over 0 to 255.
        step = {"L;2": 85, "L;4": 17}.get(stored[:3], 1)
        return np.array(picture) // np.uint8(step)
    if mode == "LA":
        grey, alpha = np.moveaxis(np.array(picture), -1, 0)
        return np.where(alpha >= 128, grey, 0) if alpha.any() else grey
    if mode == "I" or mode.startswith("I;"):
        values = np.array(picture)
        return values.astype(values.dtype.newbyteorder("="))
    raise UserError(
        f"{path} must be an 8-bit single-channel label map, found mode {mode}; convert it"
    )


def read_body(path: str | os.PathLike[str]) -> np.ndarray:
    """Read the body from a silhouette of any image format, upright.

    Alpha is the body where it varies (a cut-out). Else the body is what is brighter than half of
    the brightest pixel; where that is below 128 (0 and 1), and where labels are told apart by
    colours, it is everything but 0 or black.

    Returns:
        bool [H, W].

    Raises:
        UserError: the file cannot be read, or is a photograph: a coloured picture without alpha, or
            a grey one of many levels between dark and bright.
    """
    picture, _ = read_picture(path)
    if picture.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in picture.info:
        alpha = np.array(picture.convert("RGBA").getchannel("A"))
        if alpha.min(initial=255) < alpha.max(initial=0):
            return np.asarray(alpha >= 128)
    if picture.mode == "P":
        indices, colours = _palette(picture)
        used = np.unique(indices)
        grey = colours[used].max(1)
        # Brightness tells body from background alone where no two colours are equally bright.
        if len(used) < 2 or len(np.unique(grey)) < len(used):
            return np.asarray(indices != 0)
        if len(used) > 2 and np.ptp(colours[used], axis=1).any():
            return np.asarray(colours.any(axis=1))[indices]
        return _bright(colours.max(1)[indices])
    if picture.mode in ("1", "L") or picture.mode[0] in "IF":
        return _of_two_levels(np.array(picture), path)
    pixels = np.array(picture.convert("RGB"))  # [H, W, 3]
    if np.ptp(pixels, axis=-1).max(initial=0) < 64:
        return _of_two_levels(pixels.max(-1), path)
    if len(np.unique(pixels.reshape(-1, 3), axis=0)) > 256:
        raise UserError(
            f"{path} is a coloured picture and no mask; give silhouettes, or cut-outs with alpha"
        )
    return np.asarray(pixels.any(-1))


def read_mask(
    path: str | os.PathLike[str], label_set: str = "parts", *, split: float | None = None
) -> PartMask:
    """Read a label map or a silhouette from an image file.

    Args:
        path: the file.
        label_set: a key of LABEL_SETS (`read_labels`), or `silhouette` (`read_body`).
        split: height at which a silhouette is halved (`PartMask.from_silhouette`).

    Raises:
        UserError: the file cannot be read as such, or holds unknown labels.
    """
    values = read_body(path) if label_set == "silhouette" else read_labels(path, label_set)
    mask = to_part_mask(values, label_set, name=str(path))
    if split is not None and not mask.parts:
        return PartMask.from_silhouette(mask.labels, split)
    return mask


@dataclasses.dataclass(frozen=True, slots=True)
class Survey:
    """What the files of a set of masks hold, as far as their reading depends on it.

    Attributes:
        files: that were looked at.
        label: the only label beside background in all of them, where nobody would parse persons so:
            any of the set `parts`, 1 (a hat, a head) of others. None otherwise.
        missing: names of the parts, out of upper and bottom, that no file holds.
    """

    files: int
    label: int | None
    missing: tuple[str, ...]


SURVEYED = 1000
"""Files that `survey` looks at, at most."""


def survey(files: Sequence[Path], label_set: str) -> Survey:
    """Look for upper and bottom body in files spread evenly over a set, until both are found.

    Silhouettes (0 and 255) and files that cannot be read count for nothing.
    """
    own = label_set == "parts"
    values: set[int] = set()
    parts: set[int] = set()
    looked = 0
    for file in files[:: -(-len(files) // SURVEYED) or 1]:
        try:
            read = read_labels(file, label_set)
            mask = to_part_mask(read, label_set, name=str(file))
        except UserError:
            continue
        if not mask.parts:
            continue
        looked += 1
        values.update(np.unique(read).tolist())
        parts.update(np.unique(mask.labels.numpy()).tolist())
        if {UPPER, BOTTOM} <= parts:
            return Survey(looked, None, ())
    labels = sorted(values - {BACKGROUND})
    silhouettes = len(labels) == 1 and BACKGROUND in values and (labels == [1] or own)
    only = labels[0] if silhouettes else None
    missing = [name for name, part in (("upper", UPPER), ("bottom", BOTTOM)) if part not in parts]
    return Survey(looked, only, tuple(missing) if looked else ())


def effective_label_set(files: Sequence[Path], label_set: str, name: str) -> str:
    """Return the label set to read a set of files with, and say what is odd about the files.

    Files that hold background and one label alone, all the same, are silhouettes (`Survey.label`):
    the whole body is known and its halves are not.

    Args:
        files: of the set.
        label_set: the one that was asked for.
        name: of the set, for messages.
    """
    if label_set == "silhouette":
        return label_set
    found = survey(files, label_set)
    if found.label is not None:
        logger.warning(
            "note: the masks of %s hold 0 and %d alone and are read as silhouettes: whole body, "
            "upper and bottom unknown (--halved-at divides them at a height)",
            name,
            found.label,
        )
        return "silhouette"
    if found.missing:
        warn_of_missing(found.missing, f"the {found.files} masks of {name} that were looked at")
    return label_set


def warn_of_missing(parts: Sequence[str], where: str) -> None:
    """Warn that parts occur in no mask of a set."""
    logger.warning(
        "warning: %s body occurs in none of %s; check the label set and a few of the files",
        " and ".join(parts),
        where,
    )


def mask_names(path: str, endings: Sequence[str] = LOSSLESS) -> list[PurePosixPath]:
    """Return the relative paths where the mask of an image may be, the usual one first.

    That is the image's path with each ending in place of its suffix or behind it, in lower or
    upper case.
    """
    image = PurePosixPath(path)
    names = [name + ending for ending in endings for name in (image.stem, image.name)]
    upper = [name + e.upper() for e in endings for name in (image.stem, image.name)]
    return [image.with_name(name) for name in (*names, *upper)]


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
        # Pillow's optimize=True takes seven times as long, for files a seventh smaller.
        Image.fromarray(labels.numpy()).save(temporary, format="PNG")


@dataclasses.dataclass(frozen=True)
class MaskFolder:
    """A folder of mask files: the image's relative path with the suffix `.png` (`mask_names`).

    Attributes:
        root: the folder.
        label_set: how to read the files (`to_part_mask`); files that are silhouettes all the same
            are read so (`effective_label_set`). A folder that `mmga.masks` made holds `parts`,
            whatever they were imported from.
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

    @functools.cached_property
    def _label_set(self) -> str:
        if _made_here(self.root / MANIFEST):
            if self.label_set in ("parts", "silhouette"):
                return self.label_set
            logger.warning(
                "note: the masks of %s were made by mmga masks and hold 1 upper, 2 bottom, 3 other "
                "body; they are read so and not by --label-set %s",
                self.root,
                self.label_set,
            )
            return "parts"
        files = [file for file in self.root.rglob("*") if file.suffix.lower() in LOSSLESS]
        return effective_label_set(sorted(files), self.label_set, str(self.root))

    def file(self, path: str) -> Path:
        """Return the mask file of an image; where there is none, the usual place of one."""
        places = [self.root / name for name in mask_names(path)]
        return next((place for place in places if place.is_file()), places[0])

    def count(self, paths: Sequence[str]) -> int:
        """Count the images that have a mask file."""
        found = sum(self.file(path).is_file() for path in paths)
        if found:
            _ = self._label_set  # here, once, and not in each process that loads images
        return found

    def __call__(self, path: str) -> PartMask | None:
        """Read the mask of an image by its relative path; None where there is no file."""
        file = self.file(path)
        return read_mask(file, self._label_set, split=self.split) if file.is_file() else None


def _made_here(manifest: Path) -> bool:
    """Return whether a file is the manifest of `mmga.masks`, and not another program's."""
    try:
        return isinstance(read_json_object(manifest).get("origin"), dict)
    except ValueError:
        return False


def check_size(mask: PartMask, image: torch.Tensor, path: str) -> None:
    """Raise a UserError naming the image unless the mask [H, W] has the image's [3, H, W] size."""
    if mask.labels.shape != image.shape[-2:]:
        (height, width), (image_height, image_width) = mask.labels.shape, image.shape[-2:]
        raise UserError(
            f"the mask of {path} is {height} x {width} pixels and the image "
            f"{image_height} x {image_width}; make the mask from that very image"
        )


def part_targets(
    labels: torch.Tensor,
    parts: torch.Tensor,
    has_mask: torch.Tensor,
    size: Sequence[int],
    blur: float = 0.0,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Turn label maps into attention targets, down-sampled by area average.

    Args:
        labels: uint8 [B, H, W] of BACKGROUND, UPPER, BOTTOM, OTHER; anything where `has_mask` is
            False.
        parts: bool [B], False for silhouettes.
        has_mask: bool [B].
        size: (h, w) of the attention map.
        blur: reach in pixels, as a share of H, of a blur of the masks before; 0 for none.

    Returns:
        targets: float32 [B, 3, h, w] in [0, 1].
        known: bool [B, 3]; unknown targets must be excluded, not taken as zero.
    """
    masks = torch.stack((labels != BACKGROUND, labels == UPPER, labels == BOTTOM), dim=1)
    targets = masks.float()
    radius = round(blur * labels.shape[1] / 2)
    for _ in range(2 if radius else 0):  # boxes twice: weights fall evenly to zero at the reach
        targets = torch.nn.functional.avg_pool2d(
            targets, 2 * radius + 1, 1, radius, count_include_pad=False
        )
    targets = torch.nn.functional.adaptive_avg_pool2d(targets, (size[0], size[1]))
    halves = has_mask & parts
    return targets, torch.stack((has_mask, halves, halves), dim=1)


def _check_label_set(label_set: str) -> None:
    if label_set not in LABEL_SETS and label_set != "silhouette":
        raise UserError(
            f"label set {label_set!r} is not known; "
            f"choose one of {', '.join((*LABEL_SETS, 'silhouette'))}"
        )


def _is_binary(values: np.ndarray) -> bool:
    return bool(((values == 0) | (values == values.max(initial=0))).all())


def _bright(values: np.ndarray) -> np.ndarray:
    """Return where values [H, W] are body: above half of the highest, or above 0 if that is low."""
    highest = values.max(initial=0)
    # A JPEG's edges are not zero, a 0/1 file's ones are not 255.
    return np.asarray(values > (highest / 2 if highest >= 128 else 0))


_LEVELS, _BETWEEN = 64, 0.3
"""Grey levels, and share of the pixels between a quarter and three quarters of the brightest, from
which a picture is a photograph; a JPEG's or a resized mask's edges are fewer."""


def _of_two_levels(values: np.ndarray, path: str | os.PathLike[str]) -> np.ndarray:
    """Return the body of a grey picture (`_bright`), which must not be a photograph."""
    highest = float(values.max(initial=0))
    between = (values > highest / 4) & (values < highest * 3 / 4)
    if highest >= 128 and between.mean() > _BETWEEN and len(np.unique(values)) > _LEVELS:
        raise UserError(
            f"{path} is a grey picture and no mask: {between.mean():.0%} of its pixels are neither "
            "dark nor bright; give silhouettes, or cut-outs with alpha"
        )
    return _bright(values)


def _palette(picture: "Image.Image") -> tuple[np.ndarray, np.ndarray]:
    """Return the indices uint8 [H, W] of a palette picture and its colours uint8 [256, 3]."""
    colours = np.zeros((256, 3), np.uint8)
    given = np.array(picture.getpalette("RGB") or [], np.uint8).reshape(-1, 3)
    colours[: len(given)] = given
    return np.array(picture), colours


def _by_colour(picture: "Image.Image", label_set: str, path: str | os.PathLike[str]) -> np.ndarray:
    """Return the labels of a palette picture, uint8 [H, W] (`read_labels`)."""
    indices, colours = _palette(picture)
    used = np.unique(indices).tolist()
    own = [tuple(colours[index].tolist()) for index in used]
    readings = []
    for known in _known_palettes(label_set):
        if len(set(own)) == len(own) and all(colour in known for colour in own):
            readings.append([known[colour] for colour in own])
    if not readings or used in readings:
        return indices
    if any(reading != readings[0] for reading in readings):
        raise UserError(
            f"{path} has a palette whose few colours fit several label sets; save it without a "
            "palette"
        )
    table = np.zeros(256, np.uint8)
    table[used] = readings[0]
    note("palette", path)
    return table[indices]


Colours = dict[tuple[int, int, int], int]
"""Labels by colour."""


@functools.cache
def _known_palettes(label_set: str) -> tuple[Colours, ...]:
    """Return the palettes that label maps of a set are saved with."""
    count = LABEL_SETS[label_set].labels if label_set in LABEL_SETS else 2
    grey: Colours = {(label,) * 3: label for label in range(count)}
    if label_set in ("parts", "silhouette"):
        grey[_SILHOUETTE, _SILHOUETTE, _SILHOUETTE] = _SILHOUETTE
    voc: Colours = {}
    for label in range(count):
        # Pascal VOC's: bits 0, 3, 6 of a label are the highest bits of red; 1, 4, 7 of green; ...
        red, green, blue = (
            sum((label >> (channel + 3 * bit) & 1) << (7 - bit) for bit in range(3))
            for channel in range(3)
        )
        voc[red, green, blue] = label
    if label_set != "lip":
        return grey, voc
    return grey, voc, {colour: label for label, colour in enumerate(_LIP_COLOURS)}
