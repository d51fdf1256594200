"""What the readers of data sets share: finding folders, listing images, checking counts."""

import logging
import os
import re
from collections.abc import Mapping
from pathlib import Path

from mmga.errors import UserError

logger = logging.getLogger(__name__)

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp")


def find_folder(root: str | os.PathLike[str], name: str, inside: str) -> Path:
    """Return the folder of a data set, given itself or its parent.

    Args:
        root: what the user gave.
        name: the folder's usual name.
        inside: a folder that it must hold.

    Raises:
        UserError: neither `root` nor `root/name` holds `inside`.
    """
    root = Path(root)
    if not root.is_dir():
        raise UserError(f"data folder {root} does not exist; give {name} or its parent")
    for folder in (root, root / name):
        if (folder / inside).is_dir():
            return folder
    raise UserError(
        f"data folder {root} holds neither {inside} nor {name}/{inside}; give {name} or its parent"
    )


def list_images(root: Path, folder: str, pattern: re.Pattern[str]) -> list[tuple[str, str]]:
    """Return (path relative to `root`, file name) of a folder's images, sorted by name.

    Images whose name does not match are left out with a warning.

    Raises:
        UserError: the folder does not exist or holds no image of such a name.
    """
    directory = root / folder
    if not directory.is_dir():
        raise UserError(f"folder {directory} does not exist; the data set is incomplete")
    names = sorted(
        entry.name for entry in os.scandir(directory) if entry.name.lower().endswith(IMAGE_SUFFIXES)
    )
    fitting = [name for name in names if pattern.fullmatch(name)]
    if not fitting:
        example = f", the first is {names[0]}" if names else ""
        raise UserError(
            f"folder {directory} holds no image named as expected "
            f"({len(names)} images of other names{example}); the data set is incomplete"
        )
    if len(fitting) < len(names):
        odd = next(name for name in names if not pattern.fullmatch(name))
        logger.warning(
            "%s: %d images of other names are left out, %s the first",
            directory,
            len(names) - len(fitting),
            odd,
        )
    return [(f"{folder}/{name}", name) for name in fitting]


def check_counts(name: str, found: Mapping[str, int], known: Mapping[str, int]) -> None:
    """Log a warning that says what differs from the published counts."""
    differences = [
        f"{found[what]:,} {what} (published: {count:,})"
        for what, count in known.items()
        if found[what] != count
    ]
    if differences:
        logger.warning("%s is not the published set: %s", name, "; ".join(differences))
