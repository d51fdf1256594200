"""Decoding of picture files, by one rule for every format and depth.

- The first picture of a file is taken, turned as its EXIF orientation says.
- Alpha is ignored: colours count as they are stored. (Masks read it: `mmga.data.masks`.)
- More than eight bits become eight by `eight_bits`.
- A file that declares more than MAX_PIXELS, or far more than its bytes can hold, is refused before
  memory is taken for it.

What was done to a picture beyond decoding it is noted, path by path, and said once by whoever reads
many (`Notes`).
"""

import contextlib
import functools
import json
import logging
import os
import stat
import threading
import warnings
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from mmga.common.errors import UserError, first_line

if TYPE_CHECKING:
    from PIL import Image

logger = logging.getLogger(__name__)

MAX_PIXELS = 1 << 26
"""Most pixels of a picture: about 67 million, 8192 x 8192."""

_EMPTY, _DENSEST = 1 << 20, 10_000
"""Pixels that any file may declare, and pixels a byte beyond them: a flat PNG of 1 bit has 8256."""

_RANGES = (1, 255, 65535)
"""Highest values that pictures are stored with; 1 is that of fractions."""

_ORIENTATION, _PHOTOMETRIC = 0x0112, 0x0106
_VECTORS = ("EPS", "WMF")  # drawn by other programs
_SEVERAL = ("GIF", "TIFF", "WEBP", "PNG")

_SENTENCES = {
    "turned": "turned as the EXIF orientation says",
    "stretched": "more than 8 bits, stretched from the lowest value to the highest",
    "upper bits": "16 bits a colour, of which the upper 8 are taken, and dark",
    "palette": "palette in another order than its labels, read by its colours",
    "several": "several pictures in one file, of which the first is taken",
}

Note = tuple[str, str]
"""Key of `_SENTENCES` and path."""


class _Noted(threading.local):
    def __init__(self) -> None:
        self.notes: list[Note] = []


_noted = _Noted()
_said: set[Note] = set()


def take_notes() -> list[Note]:
    """Return what was noted in this thread since the last call."""
    notes, _noted.notes = _noted.notes, []
    return notes


class Notes:
    """What was done to the pictures that one reader of many has seen.

    Attributes:
        found: notes that were not said yet in this process.
    """

    def __init__(self) -> None:
        self.found: set[Note] = set()

    def add(self, notes: list[Note]) -> None:
        """Add notes; those on a picture that was spoken of before are dropped."""
        self.found.update(note for note in notes if note not in _said)

    def gather(self, texts: Callable[[str], list[str]]) -> None:
        """Take the notes of all processes of a group, given how it exchanges texts."""
        for text in texts(json.dumps(sorted(self.found))):
            self.found.update((key, path) for key, path in json.loads(text))

    def say(self) -> None:
        """Log one line for each thing that was done, with the number of pictures and the first."""
        for key, sentence in _SENTENCES.items():
            paths = sorted(path for found, path in self.found if found == key)
            if paths:
                files = f"{len(paths)} file{'s' if len(paths) > 1 else ''}"
                logger.warning("note: %s: %s, such as %s", sentence, files, paths[0])
        _said.update(self.found)
        self.found.clear()


def read_image(path: str | os.PathLike[str]) -> torch.Tensor:
    """Decode an image file to uint8 [3, H, W], RGB, upright.

    JPEGs are decoded by torchvision where it is installed, everything else by Pillow.

    Raises:
        UserError: the file is missing, cannot be decoded or declares more than MAX_PIXELS.
    """
    with _named(f"image {path}", "decoded", "replace or remove it"), _first(path) as picture:
        plain = picture.format in ("JPEG", "MPO") and picture.mode in ("RGB", "L")
        if plain and _orientation(picture) == 1 and (decode := _torchvision_jpeg()) is not None:
            return decode(torch.from_numpy(np.fromfile(path, dtype=np.uint8)))
        upright, stored = _upright(picture, path)
        pixels = _rgb(upright, stored, path)  # [H, W, 3]
        return torch.from_numpy(pixels).permute(2, 0, 1).contiguous()


def read_picture(path: str | os.PathLike[str]) -> "tuple[Image.Image, str]":
    """Return the first picture of a file, upright and not converted, and how it is stored.

    The second is Pillow's raw mode, such as `L;4` for four bits a pixel; empty where unknown.

    Raises:
        UserError: the file is missing, cannot be decoded or declares more than MAX_PIXELS.
    """
    with _named(str(path), "read as an image", "replace it"), _first(path) as picture:
        return _upright(picture, path)


def eight_bits(values: np.ndarray) -> tuple[np.ndarray, bool]:
    """Bring the values of a grey picture of any depth to uint8.

    The range of a picture is the smallest of 0 to 1 (fractions alone), 255 and 65,535 that holds
    it. A picture that spans at least half of its range is scaled by it, so that 16 bits lose their
    lower 8. Any other (a thermal picture of values to 2,000) is stretched linearly from its lowest
    value to its highest. Pixels that are not finite take the lowest value.

    Args:
        values: integers or floats of any shape.

    Returns:
        The values, uint8, and whether they were stretched.

    Raises:
        ValueError: no value is finite.
    """
    fractions = values.dtype.kind == "f"
    finite = np.isfinite(values) if fractions else np.ones(1, bool)
    if not finite.any():
        raise ValueError("none of its pixels is a finite number")
    if not finite.all():
        values = np.where(finite, values, values[finite].min())
    low, high = float(values.min()), float(values.max())
    ranges = [top for top in _RANGES if low >= 0 and high <= top and (fractions or top > 1)]
    if ranges and (high - low >= ranges[0] / 2 or high == low):
        if ranges[0] == 65535:
            return (values.astype(np.uint16) >> 8).astype(np.uint8), False
        return np.rint(values * (255 // ranges[0])).astype(np.uint8), False
    if high == low:
        return np.zeros(values.shape, np.uint8), False
    share = (values.astype(np.float64) - low) / (high - low)
    return np.rint(share * 255).astype(np.uint8), True


@contextlib.contextmanager
def _named(name: str, done: str, advice: str) -> Iterator[None]:
    """Turn whatever the decoding of a file raises into one sentence."""
    try:
        yield
    except UserError:
        raise
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError, PermissionError) as error:
        raise UserError(f"{name} cannot be opened ({error.strerror})") from error
    except Exception as error:  # decoders raise many kinds for a damaged file
        raise UserError(f"{name} cannot be {done} ({_reason(error)}); {advice}") from error


def _reason(error: Exception) -> str:
    from PIL import Image, UnidentifiedImageError

    if isinstance(error, UnidentifiedImageError):
        return "it is no picture of a known format"
    if isinstance(error, Image.DecompressionBombError):
        return f"it declares more than {MAX_PIXELS:,} pixels"
    if isinstance(error, MemoryError):
        return "there is too little memory"
    return first_line(error)


@contextlib.contextmanager
def _first(path: str | os.PathLike[str]) -> "Iterator[Image.Image]":
    """Open the first picture of a file; only its header is read."""
    from PIL import Image

    kind = os.stat(path)
    if not stat.S_ISREG(kind.st_mode) and not stat.S_ISDIR(kind.st_mode):
        raise ValueError("it is no regular file")
    if not kind.st_size:
        raise ValueError("it is empty")
    with warnings.catch_warnings():
        # Pillow warns of what ends in an error or in a note here, on lines of its own.
        warnings.simplefilter("ignore")
        # By name, Pillow maps some files into memory: it turns no mapped TIFF, and a mapped file
        # that others cut short ends the process.
        with open(path, "rb") as file, Image.open(file) as picture:
            if picture.format in _VECTORS:
                raise ValueError(f"it is a drawing, {picture.format}, and not a picture")
            width, height = picture.size
            if width * height > MAX_PIXELS:
                raise ValueError(
                    f"it declares {width:,} x {height:,} pixels, more than the {MAX_PIXELS:,} that "
                    "are read"
                )
            if width * height > _EMPTY + _DENSEST * kind.st_size:
                raise ValueError(
                    f"it declares {width:,} x {height:,} pixels and has {kind.st_size:,} bytes"
                )
            yield picture


def _upright(picture: "Image.Image", path: str | os.PathLike[str]) -> "tuple[Image.Image, str]":
    """Decode an opened picture and turn it; return it and its raw mode."""
    from PIL import Image

    stored = _raw_mode(picture)
    orientation = _orientation(picture)
    picture.load()
    turns = (
        Image.Transpose.FLIP_LEFT_RIGHT,
        Image.Transpose.ROTATE_180,
        Image.Transpose.FLIP_TOP_BOTTOM,
        Image.Transpose.TRANSPOSE,
        Image.Transpose.ROTATE_270,
        Image.Transpose.TRANSVERSE,
        Image.Transpose.ROTATE_90,
    )
    turned = picture
    if orientation != 1:
        note("turned", path)
        if picture.format != "TIFF":  # Pillow turns these itself
            turned = picture.transpose(turns[orientation - 2])
    if picture.format in _SEVERAL and _frames(picture) > 1:
        note("several", path)
    if picture.format == "TIFF" and picture.mode.startswith("I;16") and _white_is_zero(picture):
        turned = Image.fromarray(65535 - np.asarray(turned).astype(np.uint16))
    return turned, stored


def _raw_mode(picture: "Image.Image") -> str:
    tiles = getattr(picture, "tile", None)
    arguments = tiles[0].args if tiles else None
    if isinstance(arguments, tuple):  # a TIFF's
        arguments = arguments[0] if arguments else None
    return str(arguments or "")


def _white_is_zero(picture: "Image.Image") -> bool:
    """Return whether a TIFF counts from white; Pillow inverts such pictures of up to 8 bits."""
    tags: Any = getattr(picture, "tag_v2", {})
    return bool(tags.get(_PHOTOMETRIC) == 0)


def _orientation(picture: "Image.Image") -> int:
    """Return the EXIF orientation, 1 to 8; 1 where there is none that can be read."""
    if picture.format not in ("TIFF", "PNG") and "exif" not in picture.info:
        return 1
    with contextlib.suppress(Exception):  # damaged EXIF is no damaged picture
        value = picture.getexif().get(_ORIENTATION, 1)
        if value in range(1, 9):
            return int(value)
    return 1


def _frames(picture: "Image.Image") -> int:
    with contextlib.suppress(Exception):  # later frames may be damaged
        return int(getattr(picture, "n_frames", 1))
    return 1


def _rgb(picture: "Image.Image", stored: str, path: str | os.PathLike[str]) -> np.ndarray:
    """Return the colours of a picture of any mode, uint8 [H, W, 3]."""
    if picture.mode in ("I", "F") or picture.mode.startswith("I;"):
        grey, stretched = eight_bits(np.asarray(picture))
        if stretched:
            note("stretched", path)
        return np.repeat(grey[..., None], 3, axis=-1)
    # Palettes with transparency are converted by way of RGBA; alpha is dropped in the end.
    if picture.mode == "P" and "transparency" in picture.info:
        picture = picture.convert("RGBA")
    pixels: np.ndarray = np.array(picture.convert("RGB"))
    if ";16" in stored and pixels.max(initial=0) < 128:
        note("upper bits", path)
    return pixels


def note(key: str, path: str | os.PathLike[str]) -> None:
    """Note what was done to a picture, a key of `_SENTENCES`."""
    _noted.notes.append((key, os.fspath(path)))


@functools.cache
def _torchvision_jpeg() -> Callable[[torch.Tensor], torch.Tensor] | None:
    # Of torchvision's decoders JPEG's alone: that of PNG can end the process on a damaged file.
    try:
        from torchvision.io import ImageReadMode, decode_jpeg
    except ImportError:
        return None
    decode: Any = decode_jpeg
    return functools.partial(decode, mode=ImageReadMode.RGB)
