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


def read_images(path: Path, pattern: str | None = None) -> ImageFiles:
    """Read a folder of images, with everything below it, or a CSV table.

    Of a folder, identities and cameras are taken from the paths of the files by a pattern; those
    of a file of another name are unknown. A table needs the column `path` (relative to the table)
    and may have `pid` and `camid`, integers or names; what is empty is unknown.

    Args:
        path: the folder or table.
        pattern: a regular expression with the groups pid and camid, or one of them, looked for in
            a file's path relative to the folder; further named groups become columns. None: names
            as Market-1501 has them (`0002_c1...`). Of a table, it reads what no column says.

    Returns:
        The images; their `notes` say what was read from their names.

    Raises:
        UserError: there is nothing of the kind, no image in it, or the pattern fits none.
    """
    if path.is_dir():
        return _folder(path, pattern)
    if path.is_file() and path.suffix.lower() in (".csv", ".tsv", ".txt"):
        return _table(path, pattern)
    raise UserError(f"--images {path}: expected a folder or a .csv table, found neither")


def _folder(folder: Path, pattern: str | None) -> ImageFiles:
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
            f"--images {folder}: no image file there or below ({', '.join(IMAGE_SUFFIXES)})"
        )
    check_encoding(folder, files)
    return _labelled(folder, files, pattern, {}, str(folder))


def _table(path: Path, pattern: str | None) -> ImageFiles:
    table = tables.read_table(path, f"--images {path}", pad=True)
    table.need(("path",), ("pid", "camid"))
    table = table.with_plain_paths()
    files = table.column("path") or []
    if not files:
        raise UserError(f"--images {path} names no image")
    for line, file in zip(table.lines, files, strict=True):
        if not file:
            raise UserError(f"--images {path}, line {line}: path is empty")
    table.check_repeated(("pid", "camid"))
    known = {name: cells for name in ("pid", "camid") if (cells := table.column(name)) is not None}
    return _labelled(path.parent, files, pattern, known, str(path))


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
        found, note = from_names(files, pattern, f"--images {title}")
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
