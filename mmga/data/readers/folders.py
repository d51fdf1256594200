"""Reading of folders of images: find a data set, list its images, check its counts."""

import logging
import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

from mmga.common.errors import UserError
from mmga.config import default_root
from mmga.data.dataset import DataSet, ImageFiles
from mmga.data.masks import MaskFolder

logger = logging.getLogger(__name__)

IMAGE_SUFFIXES = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".bmp", ".webp", ".tif", ".tiff", ".gif"),
    *(".ppm", ".pgm", ".pbm", ".pnm", ".jp2", ".avif"),
)


def find_folder(root: Path | None, names: tuple[str, ...], inside: str) -> Path:
    """Return the folder of a data set, given itself or its parent.

    Args:
        root: the user's choice; None for the folder that MMGA_DATA names.
        names: usual names of the folder.
        inside: a file or folder that it must hold.

    Raises:
        UserError: neither `root` nor `root/name` holds `inside`.
    """
    root = default_root() if root is None else root
    if root is None:
        raise UserError(
            f"no data folder is given: name {names[0]} or its parent, or set MMGA_DATA to the "
            "folder that holds your data sets"
        )
    if not root.is_dir():
        raise UserError(f"data folder {root} does not exist; give {names[0]} or its parent")
    for folder in (root, *(root / name for name in names)):
        if (folder / inside).exists():
            return folder
    raise UserError(
        f"data folder {root} holds neither {inside} nor {names[0]}/{inside}; "
        f"give {names[0]} or its parent"
    )


def image_names(folder: Path) -> list[str]:
    """Return the names of a folder's image files, sorted, without hidden ones."""
    names = (entry.name for entry in os.scandir(folder))
    return sorted(
        name for name in names if name.lower().endswith(IMAGE_SUFFIXES) and not name.startswith(".")
    )


def check_encoding(folder: Path, names: Iterable[str]) -> None:
    """Refuse names that are no text, which no file of features can hold.

    Raises:
        UserError: a name is not UTF-8.
    """
    for name in names:
        try:
            name.encode()
        except UnicodeEncodeError as error:
            raise UserError(
                f"folder {folder}: the name {name!r} is not UTF-8, so that no file of features can "
                "hold it; rename the file"
            ) from error


def list_images(root: Path, folder: str, pattern: re.Pattern[str]) -> list[tuple[str, int, int]]:
    """Return the path relative to `root`, the pid and the camid of a folder's images, by name.

    Images whose name does not match are left out with a warning.

    Args:
        root: the data set's folder.
        folder: below it.
        pattern: of the file names; its first two groups are identity and camera.

    Raises:
        UserError: the folder does not exist or holds no image of such a name.
    """
    directory = root / folder
    if not directory.is_dir():
        raise UserError(f"folder {directory} does not exist; the data set is incomplete")
    names = image_names(directory)
    found, odd = [], []
    for name in names:
        match = pattern.fullmatch(name)
        if match is None:
            odd.append(name)
        else:
            found.append((f"{folder}/{name}", int(match[1]), int(match[2])))
    if not found:
        example = f", the first is {names[0]}" if names else ""
        raise UserError(
            f"folder {directory} holds no image named as expected "
            f"({len(names)} images of other names{example}); the data set is incomplete"
        )
    if odd:
        logger.warning(
            "%s: %d images of other names are left out, %s the first", directory, len(odd), odd[0]
        )
    return found


def check_counts(name: str, found: Mapping[str, int], known: Mapping[str, int]) -> None:
    """Log a warning with the differences to the published counts."""
    differences = [
        f"{found[what]:,} {what} (published: {count:,})"
        for what, count in known.items()
        if found[what] != count
    ]
    if differences:
        logger.warning("%s is not the published set: %s", name, "; ".join(differences))


def read_folders(
    name: str,
    folder: Path,
    pattern: re.Pattern[str],
    masks: MaskFolder | None,
    counts: Mapping[str, int],
    *,
    prefix: str = "",
    title: str = "",
) -> DataSet:
    """Read a set laid out as Market-1501: bounding_box_train, query and bounding_box_test.

    Args:
        name: of the data set.
        folder: the set's folder, which image paths are relative to.
        pattern: of the file names; its first two groups are identity and camera.
        masks: mask files, or None.
        counts: the published counts, by the keys of `counted`.
        prefix: folder below `folder` that holds the three, with a slash at its end.
        title: name of the set in warnings; its folder where empty.

    Raises:
        UserError: a folder is missing or holds no image of the set.
    """
    sets = []
    for split in ("bounding_box_train", "query", "bounding_box_test"):
        rows = list_images(folder, prefix + split, pattern)
        sets.append(ImageFiles.of_rows(folder, rows, masks))
    data = DataSet(name, *sets)
    check_counts(title or str(folder), counted(data), counts)
    return data


def counted(data: DataSet) -> dict[str, int]:
    """Return the counts of a data set that publications give."""
    return {
        "training images": len(data.train),
        "training identities": len(set(data.train.pids.tolist()) - {-1}),
        "queries": len(data.query),
        "query identities": len(set(data.query.pids.tolist()) - {-1}),
        "gallery images": len(data.gallery),
        "junk images": int((data.gallery.pids == -1).sum()),
    }
