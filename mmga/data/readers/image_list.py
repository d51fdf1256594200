"""Images that belong to no data set: a folder, or a CSV table of paths."""

import re
from pathlib import Path

import numpy as np

from mmga.common import ids, tables
from mmga.common.errors import UserError
from mmga.data.dataset import ImageFiles
from mmga.data.readers.folders import IMAGE_SUFFIXES

# Market-1501, DukeMTMC-reID and those that took over their names: 0002_c1s1_000451_03.jpg.
MARKET = r"(^|/)(?P<pid>-1|\d+)_c(?P<camid>\d+)[^/]*$"


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
    files = sorted(
        file.relative_to(folder).as_posix()
        for file in folder.rglob("*")
        if file.suffix.lower() in IMAGE_SUFFIXES and not file.name.startswith(".")
    )
    if not files:
        raise UserError(
            f"--images {folder}: no image file there or below ({', '.join(IMAGE_SUFFIXES)})"
        )
    return _labelled(folder, files, pattern, {}, str(folder))


def _table(path: Path, pattern: str | None) -> ImageFiles:
    table = tables.read_table(path, f"--images {path}", pad=True)
    table.need(("path",), ("pid", "camid"))
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


def from_names(
    files: list[str], pattern: str | None, title: str
) -> tuple[dict[str, list[str]], str]:
    """Read labels from paths.

    Args:
        files: the paths.
        pattern: as in `read_images`.
        title: names the files in messages.

    Returns:
        The text of each named group, empty where a path does not fit; and a sentence on how many
        were read.

    Raises:
        UserError: the pattern is none, or fits no path.
    """
    rule = _compiled(pattern or MARKET)
    matches = [rule.search(file) for file in files]
    fit = [place for place, match in enumerate(matches) if match is not None]
    by = f"the pattern {pattern}" if pattern else "Market-1501's pattern 0002_c1"
    if not fit:
        if pattern is not None:
            raise UserError(
                f"--pattern {pattern} fits none of the {len(files)} paths of {title}, the first is "
                f"{files[0]}"
            )
        return {}, (
            f"{title}: no name fits {by}, the first is {files[0]}: identities and cameras are "
            "unknown; --pattern reads other names"
        )
    groups = {
        name: ["" if match is None else match[name] or "" for match in matches]
        for name in rule.groupindex
    }
    shown = ", ".join(f"{name} {cells[fit[0]]}" for name, cells in groups.items())
    note = (
        f"{title}: {len(fit)} of {len(files)} names were read by {by}, {files[fit[0]]} as {shown}"
    )
    if len(fit) < len(files):
        odd = next(file for file, match in zip(files, matches, strict=True) if match is None)
        note += f"; {len(files) - len(fit)} do not fit and are unknown, the first is {odd}"
    return groups, note


def _compiled(pattern: str) -> re.Pattern[str]:
    try:
        rule = re.compile(pattern)
    except re.error as error:
        raise UserError(f"--pattern {pattern} is no regular expression: {error}") from error
    if not {"pid", "camid"} & set(rule.groupindex):
        raise UserError(
            f"--pattern {pattern} has no group pid and no group camid; write for example "
            "(?P<pid>\\d+)_c(?P<camid>\\d+)"
        )
    taken = {"path", "features", "parts", "visibility", "pids", "camids", "paths"}
    wrong = sorted(taken & set(rule.groupindex))
    if wrong:
        raise UserError(f"--pattern {pattern}: a group cannot be called {wrong[0]}; rename it")
    return rule
