"""Small pictures in a page, as many and as large as its size allows.

A JPEG of a few hundred bytes has a header of 623: all pictures of a page have one size and quality,
so that they share a header, which the page holds once. That is two thirds of WebP's size here, made
in a sixth of its time.
"""

from __future__ import annotations

import base64
import io
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from mmga.common.errors import UserError
from mmga.common.paths import find_below
from mmga.common.progress import Progress
from mmga.data.pictures import read_image, take_notes

BYTES = 14_000_000
"""Of all pictures of a page as text: Market-1501's page stays below 20 MB."""
_SIZES = ((56, 112), (48, 96), (40, 80), (32, 64))
_QUALITY, _PILOT = 60, 64
_BACKGROUND = (128, 128, 128)


@dataclass(slots=True)
class Thumbnails:
    """Pictures of a page.

    Attributes:
        width: pixels of each.
        height: likewise.
        header: the bytes with which each begins, in base64.
        bodies: the other bytes of each, in base64; empty where there is none.
        missing: pictures that are not below the folder.
        damaged: pictures that cannot be decoded.
        dropped: pictures that found no room.
        notes: one sentence each.
    """

    width: int
    height: int
    header: str = ""
    bodies: list[str] = field(default_factory=list)
    missing: int = 0
    damaged: int = 0
    dropped: int = 0
    notes: list[str] = field(default_factory=list)


def thumbnails(
    folder: Path, paths: Sequence[str], progress: Progress | None = None, limit: int = BYTES
) -> Thumbnails:
    """Make a small picture of each path below a folder.

    A path that is not below the folder as it stands is looked for by its last parts; nothing
    outside of the folder is read. Of pictures that exceed `limit` the last ones stay away.

    Args:
        folder: what the paths begin at.
        paths: of the pictures, the most important first.
        progress: called as (phase, done, total).
        limit: bytes of all pictures as text.

    Raises:
        UserError: the folder is none, or Pillow is not installed.
    """
    if not folder.is_dir():
        raise UserError(f"--images: {folder} is no folder; name the one that the paths begin at")
    made = _sized(folder, paths, limit)
    first: dict[str, str] = {}
    spent, contents = 0, []
    for number, path in enumerate(paths):
        content = b""
        if spent > limit:
            made.dropped += 1
        elif (file := find_below([folder], path)) is None:
            made.missing += 1
            first.setdefault("missing", path)
        else:
            try:
                content = _jpeg(file, made.width, made.height)
            except UserError as error:
                made.damaged += 1
                first.setdefault("damaged", str(error))
        contents.append(content)
        spent += max(0, len(content) - _HEADER) * 4 // 3
        if progress is not None:
            progress("pictures", number + 1, len(paths))
    take_notes()
    _share_header(made, contents)
    made.notes = _notes(made, first, folder, len(paths))
    return made


_HEADER = 600  # at least so many bytes are common to all pictures


def _sized(folder: Path, paths: Sequence[str], limit: int) -> Thumbnails:
    """Return the largest size in which all pictures find room, by a sample; else the smallest."""
    step = max(1, len(paths) // _PILOT)
    files = [file for path in paths[::step] if (file := find_below([folder], path)) is not None]
    for width, height in _SIZES:
        sizes = []
        for file in files:
            try:
                sizes.append(len(_jpeg(file, width, height)) - _HEADER)
            except UserError:
                continue
        if not sizes or sum(sizes) / len(sizes) * len(paths) * 4 / 3 < 0.95 * limit:
            break
    return Thumbnails(width, height)


def _jpeg(file: Path, width: int, height: int) -> bytes:
    """Return a picture in a frame of one size as JPEG, whole and in its own proportions."""
    from PIL import Image

    picture = Image.fromarray(read_image(file).permute(1, 2, 0).numpy())
    scale = min(width / picture.width, height / picture.height)
    # A person's picture is about half as wide as high: what differs little is stretched.
    size = [max(1, round(side * scale)) for side in picture.size]
    if size[0] > 0.8 * width and size[1] > 0.8 * height:
        size = [width, height]
    picture = picture.resize((size[0], size[1]), Image.Resampling.BILINEAR, reducing_gap=2)
    if size != [width, height]:
        frame = Image.new("RGB", (width, height), _BACKGROUND)
        frame.paste(picture, ((width - size[0]) // 2, (height - size[1]) // 2))
        picture = frame
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=_QUALITY, subsampling=2)
    return buffer.getvalue()


def _share_header(made: Thumbnails, contents: Sequence[bytes]) -> None:
    present = [content for content in contents if content]
    common = len(os.path.commonprefix([min(present), max(present)])) if present else 0
    # Pictures may be equal, and none may be empty without its header.
    common = min([common, *(len(content) - 3 for content in present)])
    common -= common % 3  # of whole groups of base64, which can be joined as text
    made.header = base64.b64encode(present[0][:common]).decode("ascii") if present else ""
    made.bodies = [base64.b64encode(content[common:]).decode("ascii") for content in contents]


def _notes(made: Thumbnails, first: dict[str, str], folder: Path, total: int) -> list[str]:
    notes = []
    if made.missing:
        notes.append(
            f"--images: {made.missing} of {total} pictures are not below {folder}, the first is "
            f"{first['missing']}; grey fields stand in their place"
        )
    if made.damaged:
        notes.append(
            f"--images: {made.damaged} of {total} pictures cannot be shown, the first because "
            f"{first['damaged']}"
        )
    if made.dropped:
        notes.append(
            f"{made.dropped} of {total} pictures, those at the ends of the easiest queries' lists, "
            "were left out to keep the page small"
        )
    return notes
