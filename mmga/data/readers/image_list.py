"""Images that belong to no data set: a folder, or a CSV table of paths."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from mmga.common import ids, tables
from mmga.common.errors import UserError
from mmga.common.paths import from_names
from mmga.data.dataset import ImageFiles, ImageSet, joined
from mmga.data.masks import FindMask
from mmga.data.readers.folders import IMAGE_SUFFIXES, check_encoding

TABLES = (".csv", ".tsv", ".txt")
"""Suffixes of tables of images."""


def are_images(words: Sequence[str]) -> bool:
    """Return whether words name images: image files, tables of them or folders without .npy."""
    for word in words:
        path = Path(word)
        if path.suffix.lower() in (*IMAGE_SUFFIXES, *TABLES):
            return True
        if path.is_dir() and next(path.glob("*.npy"), None) is None:
            return True
    return False


def read_images(path: Path, pattern: str | None = None, flag: str = "--images") -> ImageFiles:
    """Read a folder of images, with everything below it, or a CSV table.

    Of a folder, identities and cameras are taken from the paths of the files by a pattern; those
    of a file of another name are unknown. A table needs the column `path` (relative to the table)
    and may have `pid` and `camid`, integers or names; what is empty is unknown.

    Args:
        path: the folder or table.
        pattern: a regular expression with the groups pid and camid, or one of them, looked for in
            a file's path relative to the folder; further named groups become columns. None: names
            as Market-1501 has them (`0002_c1...`). Of a table, it reads what no column says.
        flag: names the argument in messages.

    Returns:
        The images; their `notes` say what was read from their names.

    Raises:
        UserError: there is nothing of the kind, no image in it, or the pattern fits none.
    """
    if path.is_dir():
        return _labelled(path, _image_files(path, flag), pattern, {}, f"{flag} {path}")
    if path.is_file() and path.suffix.lower() in TABLES:
        return _table(path, pattern, f"{flag} {path}")
    raise UserError(f"{flag} {path}: expected a folder or a .csv table, found neither")


def read_image_files(
    words: Sequence[str | Path], pattern: str | None = None, flag: str = "--images"
) -> ImageFiles:
    """Read single image files, and folders with everything below them, in the given order.

    Paths are as they are given; else as `read_images`.

    Raises:
        UserError: one is neither, a folder holds no image, or the pattern fits none.
    """
    files: list[str] = []
    for word in words:
        path = Path(word)
        if path.is_dir():
            files += [(path / name).as_posix() for name in _image_files(path, flag)]
        elif not path.exists():
            raise UserError(f"{flag} {path}: no such file or folder")
        elif path.suffix.lower() in IMAGE_SUFFIXES:
            files.append(path.as_posix())
        else:
            raise UserError(
                f"{flag} {path}: expected an image ({', '.join(IMAGE_SUFFIXES)}) or a folder of "
                f"images, found {path.suffix or 'a file without suffix'}"
            )
    check_encoding(Path(), files)
    title = f"{flag} {words[0]}" + (" and more" if len(words) > 1 else "")
    return _labelled(Path(), files, pattern, {}, title)


def _image_files(folder: Path, flag: str) -> list[str]:
    """Return the image files of a folder and below, relative to it, sorted."""
    found = (
        file.relative_to(folder)
        for file in folder.rglob("*")
        if file.suffix.lower() in IMAGE_SUFFIXES and not file.is_dir()
    )
    # Hidden files and folders hold thumbnails and copies of systems.
    files = sorted(
        file.as_posix() for file in found if not any(part.startswith(".") for part in file.parts)
    )
    if not files:
        raise UserError(
            f"{flag} {folder}: no image file there or below ({', '.join(IMAGE_SUFFIXES)})"
        )
    check_encoding(folder, files)
    return files


def _table(path: Path, pattern: str | None, title: str) -> ImageFiles:
    table = tables.read_table(path, title, pad=True)
    table.need(("path",), ("pid", "camid"))
    table = table.with_plain_paths()
    files = table.column("path") or []
    if not files:
        raise UserError(f"{title} names no image")
    for line, file in zip(table.lines, files, strict=True):
        if not file:
            raise UserError(f"{title}, line {line}: path is empty")
    table.check_repeated(("pid", "camid"))
    known = {name: cells for name in ("pid", "camid") if (cells := table.column(name)) is not None}
    return _labelled(path.parent, files, pattern, known, title)


def _labelled(
    root: Path,
    files: list[str],
    pattern: str | None,
    known: dict[str, list[str]],
    title: str,
) -> ImageFiles:
    """Return images with the labels that are known and those that their names tell."""
    read, notes = dict(known), []
    if not known or pattern is not None:
        found, note = from_names(files, pattern, title)
        read, notes = {**found, **known}, [note]
    nothing = [""] * len(files)
    pids, pid_names = ids.coded(read.pop("pid", nothing), junk=True)
    camids, camid_names = ids.coded(read.pop("camid", nothing), junk=False)
    images = ImageFiles(root, files, pids, camids)
    images.pid_names, images.camid_names = pid_names, camid_names
    images.columns = {name: np.asarray(cells, np.str_) for name, cells in read.items()}
    images.notes = tuple(notes)
    return images


def read_photographs(paths: Sequence[Path], masks: FindMask | None = None) -> ImageSet:
    """Return the images of files, folders and tables as one set, of unknown identities.

    Args:
        paths: files, folders with everything below them, and CSV tables of paths.
        masks: from a path below its folder (of a file, from its name) to its mask.

    Raises:
        UserError: there is nothing of the kind, or no image in it.
    """
    sets = []
    for path in paths:
        if path.suffix.lower() in IMAGE_SUFFIXES and path.is_file():
            images = ImageFiles(path.parent, [path.name], [ids.UNKNOWN], [ids.UNKNOWN])
        else:
            images = read_images(path)
        images.masks = masks
        sets.append(images)
    return sets[0] if len(sets) == 1 else joined(*sets)
