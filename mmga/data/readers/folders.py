"""What the readers of data sets share: finding folders, listing images, checking counts."""

import logging
import os
import re
from collections.abc import Mapping
from pathlib import Path

from mmga.common.errors import UserError
from mmga.config import default_root
from mmga.data.dataset import DataSet, ImageFiles
from mmga.data.masks import MaskFolder

logger = logging.getLogger(__name__)

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp")


def find_folder(
    root: str | os.PathLike[str] | None, names: str | tuple[str, ...], inside: str
) -> Path:
    """Return the folder of a data set, given itself or its parent.

    Args:
        root: what the user gave; None for the folder that MMGA_DATA names.
        names: the folder's usual name, or its usual names.
        inside: a file or folder that it must hold.

    Raises:
        UserError: neither `root` nor `root/name` holds `inside`.
    """
    names = (names,) if isinstance(names, str) else names
    if root is None:
        root = default_root()
    if root is None:
        raise UserError(
            f"no data folder is given: name {names[0]} or its parent, or set MMGA_DATA to the "
            "folder that holds your data sets"
        )
    root = Path(root)
    if not root.is_dir():
        raise UserError(f"data folder {root} does not exist; give {names[0]} or its parent")
    for folder in (root, *(root / name for name in names)):
        if (folder / inside).exists():
            return folder
    raise UserError(
        f"data folder {root} holds neither {inside} nor {names[0]}/{inside}; "
        f"give {names[0]} or its parent"
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
        title: what warnings call the set; its folder where empty.

    Raises:
        UserError: a folder is missing or holds no image of the set.
    """
    sets = []
    for split in ("bounding_box_train", "query", "bounding_box_test"):
        files = list_images(folder, prefix + split, pattern)
        labels = [
            (int(match[1]), int(match[2]))
            for match in (pattern.fullmatch(file) for _, file in files)
            if match
        ]
        sets.append(
            ImageFiles(
                folder,
                [path for path, _ in files],
                [pid for pid, _ in labels],
                [camid for _, camid in labels],
                masks,
            )
        )
    train, query, gallery = sets
    data = DataSet(name, train, query, gallery)
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
