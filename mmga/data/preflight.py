"""Look at every file of a data set before hours are spent on it."""

import os
from collections.abc import Mapping
from pathlib import Path

from mmga.common.errors import UserError, first_line
from mmga.common.progress import Progress
from mmga.data.dataset import Concatenation, ImageFiles, ImageSet, Subset

_HEADER = 16
_KNOWN = (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"BM", b"RIFF", b"II*\x00", b"MM\x00*", b"GIF8")


def check_files(
    sides: Mapping[str, ImageSet],
    *,
    skip_broken: bool = False,
    masks: ImageSet | None = None,
    progress: Progress | None = None,
) -> None:
    """Check that the image files of a run are there and begin as images do.

    Args:
        sides: the image sets by name, for messages.
        skip_broken: files that cannot be read are left out later; only a set without any readable
            file is refused.
        masks: a set whose masks are decoded as well: those that are read after the last step.
        progress: called with ("check", files looked at, files in all).

    Raises:
        UserError: files are missing or no images, or a mask cannot be read.
    """
    files = {name: image_files(images) for name, images in sides.items()}
    total, done = sum(map(len, files.values())), 0
    for name, paths in files.items():
        faults: list[tuple[Path, str]] = []
        for path in paths:
            fault = _fault(path)
            if fault is not None:
                faults.append((path, fault))
            done += 1
            if progress is not None:
                progress("check", done, total)
        if faults and (not skip_broken or len(faults) == len(paths)):
            path, fault = faults[0]
            ways = "restore the files" + ("" if skip_broken else ", or add --skip-broken")
            raise UserError(
                f"{len(faults)} of {len(paths)} {name} images cannot be read, the first is {path} "
                f"({fault}); {ways}"
            )
    if masks is not None and image_files(masks):
        for index in range(len(masks)):
            masks.mask(index)


def image_files(images: ImageSet) -> list[Path]:
    """Return the files of an image set, none for images that are held in memory or drawn."""
    if isinstance(images, ImageFiles):
        return [images.root / path for path in images.paths]
    if isinstance(images, Concatenation):
        return [file for part in images.sets for file in image_files(part)]
    if isinstance(images, Subset):
        files = image_files(images.images)
        return [files[index] for index in images.indices] if files else []
    return []


def _fault(path: Path) -> str | None:
    """Return what is wrong with an image file as far as its header tells, None if nothing is."""
    try:
        file = os.open(path, os.O_RDONLY)
        try:
            head = os.read(file, _HEADER)
        finally:
            os.close(file)
        if head.startswith(_KNOWN):
            return None
        if not head:
            return "the file is empty"
        from PIL import Image

        with Image.open(path):
            return None
    except OSError as error:
        return error.strerror or first_line(error)
    except (SyntaxError, ValueError) as error:
        return first_line(error)
