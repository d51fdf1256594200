"""Image transforms that treat the mask alike: one coin, one offset, one rectangle for both.

Every function draws from the generator it is given, so that an image of an epoch is the same in any
process. Images stay uint8 until the batch is normalised.
"""

import dataclasses
import functools
import math
from collections.abc import Iterable, Sequence

import numpy as np
import torch

from mmga.data.masks import BACKGROUND, BOTTOM, UPPER

MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)
"""Colours are normalised by ImageNet's statistics, RGB."""

INTERPOLATIONS = ("bilinear", "bicubic")
FILLS = ("zero", "mean", "random")


@dataclasses.dataclass(frozen=True, slots=True)
class Rectangle:
    """Rows `top` to `bottom` and columns `left` to `right`, ends not included."""

    top: int
    left: int
    bottom: int
    right: int

    def fill(self, image: torch.Tensor, value: float | torch.Tensor) -> None:
        """Write `value` into the rectangle of an image [..., H, W], in place."""
        image[..., self.top : self.bottom, self.left : self.right] = value


@dataclasses.dataclass(frozen=True, slots=True)
class Sample:
    """One image on its way into a batch.

    Attributes:
        image: uint8 [3, h, w].
        labels: uint8 [h, w], or None.
        erased: rectangle that is filled once the batch is normalised, or None.
        seed: of a random fill.
    """

    image: torch.Tensor
    labels: torch.Tensor | None
    erased: Rectangle | None = None
    seed: int = 0


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class EvalTransform:
    """Resize alone.

    Attributes:
        size: (height, width) in pixels.
        interpolation: of the image, `bilinear` or `bicubic`; labels take the nearest pixel.
    """

    size: tuple[int, int]
    interpolation: str = "bilinear"

    def __post_init__(self) -> None:
        _check_choice("interpolation", self.interpolation, INTERPOLATIONS)

    def __call__(
        self, image: torch.Tensor, labels: torch.Tensor | None, random: np.random.Generator
    ) -> Sample:
        """Transform an image uint8 [3, H, W] and its labels uint8 [H, W]."""
        return Sample(*resize(image, labels, self.size, self.interpolation))


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class TrainTransform:
    """Resize, flip, pad and crop, random erasing (Zhong et al., AAAI 2020).

    Attributes:
        size: (height, width) in pixels.
        interpolation: of the image, `bilinear` or `bicubic`; labels take the nearest pixel.
        flip: probability of a mirror image.
        pad: black pixels added on each side before a crop of `size` at a random offset.
        erasing: probability of erasing a rectangle.
        erasing_area: its least and largest share of the image.
        erasing_aspect: its least and largest height divided by width.
        erasing_fill: after normalisation: `zero` (the mean colour), `mean` (the value of MEAN, as
            Bag of Tricks has it) or `random` (unit normal noise).
        erase_mask: whether the label is erased, too (a covered pixel is no body).
        part_drop: probability of covering upper or bottom body, one of those that the label shows,
            with the mean colour; the label is treated as by erasing.
        new_background: probability with which scenes of other images replace the image's own,
            before all else; the loader, which has those images, does it (`replace_background`).
    """

    size: tuple[int, int]
    interpolation: str = "bilinear"
    flip: float = 0.5
    pad: int = 0
    erasing: float = 0.5
    erasing_area: tuple[float, float] = (0.02, 0.4)
    erasing_aspect: tuple[float, float] = (0.3, 3.3)
    erasing_fill: str = "zero"
    erase_mask: bool = True
    part_drop: float = 0.0
    new_background: float = 0.0

    def __post_init__(self) -> None:
        _check_choice("interpolation", self.interpolation, INTERPOLATIONS)
        _check_choice("erasing_fill", self.erasing_fill, FILLS)

    def __call__(
        self, image: torch.Tensor, labels: torch.Tensor | None, random: np.random.Generator
    ) -> Sample:
        """Transform an image uint8 [3, H, W] and its labels uint8 [H, W]."""
        image, labels = resize(image, labels, self.size, self.interpolation)
        if random.random() < self.flip:
            image = image.flip(-1)
            labels = None if labels is None else labels.flip(-1)
        if self.pad:
            top, left = random.integers(0, 2 * self.pad + 1, size=2).tolist()
            image = pad_and_crop(image, self.pad, top, left)
            labels = None if labels is None else pad_and_crop(labels, self.pad, top, left)
        if labels is not None and self.part_drop and random.random() < self.part_drop:
            image, labels = self._without_a_part(image, labels, random)
        erased = None
        if random.random() < self.erasing:
            erased = draw_rectangle(self.size, self.erasing_area, self.erasing_aspect, random)
        if erased is not None and labels is not None and self.erase_mask:
            labels = labels.clone()  # the image set's own tensor where nothing else changed it
            erased.fill(labels, 0)
        return Sample(image, labels, erased, int(random.integers(2**62)))

    def _without_a_part(
        self, image: torch.Tensor, labels: torch.Tensor, random: np.random.Generator
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return an image and its labels with one part, where it shows any, covered."""
        parts = [part for part in (UPPER, BOTTOM) if (labels == part).any()]
        if not parts:
            return image, labels
        covered = labels == parts[random.integers(len(parts))]
        colour = torch.tensor(MEAN, dtype=torch.float32, device=image.device).mul(255).round()
        image = torch.where(covered, colour.to(torch.uint8)[:, None, None], image)
        return image, labels.masked_fill(covered, BACKGROUND) if self.erase_mask else labels


def resize(
    image: torch.Tensor, labels: torch.Tensor | None, size: tuple[int, int], interpolation: str
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Resize an image [3, H, W] with antialiasing, and its labels [H, W] by the nearest pixel."""
    if tuple(image.shape[-2:]) == size:
        return image, labels
    from torchvision.transforms.v2 import InterpolationMode, functional

    image = functional.resize(image, list(size), InterpolationMode(interpolation), antialias=True)
    if labels is not None:
        rows = _nearest(labels.shape[0], size[0])
        columns = _nearest(labels.shape[1], size[1])
        # NumPy, because torch would wake its threads for every small image.
        labels = torch.from_numpy(labels.numpy()[rows[:, None], columns])
    return image, labels


def replace_background(
    image: torch.Tensor,
    labels: torch.Tensor,
    others: Iterable[tuple[torch.Tensor, torch.Tensor]],
) -> torch.Tensor:
    """Return an image with the background of others.

    A pixel off the body takes the colour of the first other image that has no body there, and
    keeps its own where there is none.

    Args:
        image: uint8 [3, H, W].
        labels: uint8 [H, W], 0 off the body.
        others: images and labels of the same size.
    """
    open_ = labels == 0  # [H, W]
    result = image.clone()
    for other, other_labels in others:
        taken = open_ & (other_labels == 0)
        result[:, taken] = other[:, taken]
        open_ = open_ & ~taken
    return result


def pad_and_crop(image: torch.Tensor, pad: int, top: int, left: int) -> torch.Tensor:
    """Pad [..., H, W] with zeros on each side and cut H x W from row `top` and column `left`."""
    height, width = image.shape[-2:]
    padded = torch.nn.functional.pad(image, (pad, pad, pad, pad))
    return padded[..., top : top + height, left : left + width]


def draw_rectangle(
    size: tuple[int, int],
    area: tuple[float, float],
    aspect: tuple[float, float],
    random: np.random.Generator,
) -> Rectangle | None:
    """Draw a rectangle of random area and aspect inside an image.

    Returns:
        The rectangle; None where a hundred draws did not fit.
    """
    height, width = size
    for _ in range(100):
        pixels = random.uniform(*area) * height * width
        ratio = random.uniform(*aspect)
        rows, columns = round(math.sqrt(pixels * ratio)), round(math.sqrt(pixels / ratio))
        if rows < height and columns < width:
            top = int(random.integers(0, height - rows + 1))
            left = int(random.integers(0, width - columns + 1))
            return Rectangle(top, left, top + rows, left + columns)
    return None


def normalise(images: torch.Tensor) -> torch.Tensor:
    """Normalise uint8 images [B, 3, H, W] to float32 by MEAN and STD."""
    scale, shift = _affine(images.device)
    return images.float().mul_(scale).add_(shift)


def denormalise(images: torch.Tensor) -> torch.Tensor:
    """Return the uint8 images whose normalisation is given."""
    scale, shift = _affine(images.device)
    return ((images.float() - shift) / scale).round_().clamp_(0, 255).to(torch.uint8)


def erase(
    images: torch.Tensor, erased: Sequence[Rectangle | None], seeds: Sequence[int], fill: str
) -> None:
    """Fill a rectangle of each normalised image [B, 3, H, W], in place."""
    mean = torch.tensor(MEAN, dtype=torch.float32, device=images.device)[:, None, None]
    for image, rectangle, seed in zip(images, erased, seeds, strict=True):
        if rectangle is None:
            continue
        if fill == "random":
            # Drawn on the CPU: the same noise on every device.
            shape = (3, rectangle.bottom - rectangle.top, rectangle.right - rectangle.left)
            noise = torch.randn(
                shape,
                generator=torch.Generator().manual_seed(seed),
                dtype=torch.float32,
                device="cpu",
            )
            rectangle.fill(image, noise.to(image.device))
        else:
            rectangle.fill(image, mean if fill == "mean" else 0.0)


@functools.lru_cache(maxsize=256)
def _nearest(length: int, new: int) -> np.ndarray:
    """Return the old pixel whose centre is nearest to each new one's, int64 [new].

    torchvision's resizing of masks takes the first pixel instead: half a pixel off the image.
    """
    return ((np.arange(new) + 0.5) * (length / new)).astype(np.int64).clip(max=length - 1)


@functools.lru_cache(maxsize=8)
def _affine(device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    mean, std = (
        torch.tensor(v, dtype=torch.float32, device=device)[:, None, None] for v in (MEAN, STD)
    )
    return 1 / (255 * std), -mean / std


def _check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(choices)}, got {value!r}")
