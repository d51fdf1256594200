"""Image sets and data sets: what every reader returns and every consumer takes."""

import dataclasses
import functools
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
import torch

from mmga.data.masks import MaskFolder, PartMask
from mmga.errors import UserError

Ints = Sequence[int] | np.ndarray


@runtime_checkable
class ImageSet(Protocol):
    """Images with identities and cameras, in a fixed order.

    Attributes:
        pids: int64 [N], identities as the data set numbers them; -1 is junk.
        camids: int64 [N].
        paths: relative paths, which also name the masks.
    """

    pids: np.ndarray
    camids: np.ndarray
    paths: list[str]

    def __len__(self) -> int: ...

    def image(self, index: int) -> torch.Tensor:
        """Return image `index` as uint8 [3, H, W], RGB."""
        ...

    def mask(self, index: int) -> PartMask | None:
        """Return the mask of image `index`, None where there is none."""
        ...


@dataclasses.dataclass(frozen=True, slots=True)
class DataSet:
    """A data set in its three splits; training and test numberings of identities are unrelated."""

    name: str
    train: ImageSet
    query: ImageSet
    gallery: ImageSet


class _Labelled:
    """Shared checks of the image sets below."""

    def __init__(self, paths: Sequence[str], pids: Ints, camids: Ints) -> None:
        self.paths = list(paths)
        self.pids = np.asarray(pids, dtype=np.int64).reshape(-1)
        self.camids = np.asarray(camids, dtype=np.int64).reshape(-1)
        if not len(self.paths) == len(self.pids) == len(self.camids):
            raise ValueError(
                "paths, pids and camids must have one length, got "
                f"{len(self.paths)}, {len(self.pids)}, {len(self.camids)}"
            )

    def __len__(self) -> int:
        return len(self.paths)


class ImageFiles(_Labelled):
    """Image files below a folder, decoded when asked for.

    Args:
        root: the folder that `paths` are relative to.
        paths: relative paths with forward slashes.
        pids: identity of each image.
        camids: camera of each image.
        masks: a folder of mask files, or any function from a relative path to its mask or None.
    """

    def __init__(
        self,
        root: str | os.PathLike[str],
        paths: Sequence[str],
        pids: Ints,
        camids: Ints,
        masks: MaskFolder | Callable[[str], PartMask | None] | None = None,
    ) -> None:
        super().__init__(paths, pids, camids)
        self.root = Path(root)
        self.masks = masks

    def image(self, index: int) -> torch.Tensor:
        """Decode image `index` to uint8 [3, H, W].

        Raises:
            UserError: the file is missing or cannot be decoded.
        """
        return read_image(self.root / self.paths[index])

    def mask(self, index: int) -> PartMask | None:
        """Return the mask of image `index`, None where there is none."""
        if self.masks is None:
            return None
        find = self.masks.mask if isinstance(self.masks, MaskFolder) else self.masks
        return find(self.paths[index])


class ImageTensors(_Labelled):
    """Images held in memory.

    Args:
        images: uint8 [3, H, W] each.
        pids: identity of each image.
        camids: camera of each image.
        paths: relative paths; numbered names where not given.
        masks: one mask or None each; None for no masks at all.
    """

    def __init__(
        self,
        images: Sequence[torch.Tensor],
        pids: Ints,
        camids: Ints,
        paths: Sequence[str] | None = None,
        masks: Sequence[PartMask | None] | None = None,
    ) -> None:
        count = len(images)
        super().__init__(
            [f"{i:06d}.png" for i in range(count)] if paths is None else paths, pids, camids
        )
        if count != len(self.pids) or (masks is not None and len(masks) != count):
            raise ValueError("images, pids and masks must have one length")
        self.images = images
        self.masks = masks

    def image(self, index: int) -> torch.Tensor:
        """Return image `index`, uint8 [3, H, W]."""
        return self.images[index]

    def mask(self, index: int) -> PartMask | None:
        """Return the mask of image `index`, None where there is none."""
        return None if self.masks is None else self.masks[index]


class Subset(_Labelled):
    """Some images of another set, in the given order."""

    def __init__(self, images: ImageSet, indices: Ints) -> None:
        self.indices = np.asarray(indices, dtype=np.int64).reshape(-1)
        self.images = images
        super().__init__(
            [images.paths[i] for i in self.indices],
            images.pids[self.indices],
            images.camids[self.indices],
        )

    def image(self, index: int) -> torch.Tensor:
        """Return image `index` of the subset, uint8 [3, H, W]."""
        return self.images.image(int(self.indices[index]))

    def mask(self, index: int) -> PartMask | None:
        """Return the mask of image `index` of the subset."""
        return self.images.mask(int(self.indices[index]))


def read_image(path: str | os.PathLike[str]) -> torch.Tensor:
    """Decode an image file to uint8 [3, H, W], RGB.

    JPEG, PNG and WebP are decoded by torchvision, everything else (VIPeR's BMP) by Pillow.

    Raises:
        UserError: the file is missing or cannot be decoded.
    """
    try:
        data = np.fromfile(path, dtype=np.uint8)
        decode = _torchvision_decoder()
        if decode is not None and _is_torchvision_format(data):
            image = decode(torch.from_numpy(data))
            # PNGs may have 16 bits.
            return image if image.dtype == torch.uint8 else (image.int() >> 8).to(torch.uint8)
        from PIL import Image

        with Image.open(path) as picture:
            pixels = np.array(picture.convert("RGB"))  # [H, W, 3]
        return torch.from_numpy(pixels).permute(2, 0, 1).contiguous()
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError, PermissionError) as error:
        raise UserError(f"image {path} cannot be opened ({error.strerror})") from error
    except (OSError, RuntimeError, SyntaxError, ValueError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(
            f"image {path} cannot be decoded ({reason}); replace or remove it"
        ) from error


@functools.cache
def _torchvision_decoder() -> Callable[[torch.Tensor], torch.Tensor] | None:
    # torchvision 0.29 announces that its decoders will move to another package.
    try:
        from torchvision.io import ImageReadMode, decode_image
    except ImportError:
        return None
    return functools.partial(decode_image, mode=ImageReadMode.RGB)


def _is_torchvision_format(data: np.ndarray) -> bool:
    head = data[:12].tobytes()
    return head.startswith((b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n")) or (
        head[:4] == b"RIFF" and head[8:12] == b"WEBP"
    )
