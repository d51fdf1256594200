"""Images that belong to no data set: a folder, or a CSV table of paths."""

import re
from pathlib import Path

from mmga.common.errors import UserError
from mmga.data.dataset import ImageFiles
from mmga.data.readers.csv_table import read_rows
from mmga.data.readers.folders import IMAGE_SUFFIXES

UNKNOWN = -1
"""Identity and camera of an image of which neither is known."""

# Market-1501, DukeMTMC-reID and those that took over their names: 0002_c1s1_000451_03.jpg.
_NAMED = re.compile(r"(-1|\d+)_c(\d+)")


def read_images(path: Path) -> ImageFiles:
    """Read a folder of images, with everything below it, or a CSV table.

    Of a folder, identities and cameras are taken from the file names where all of them begin as
    Market-1501's do (`0002_c1...`); otherwise they are UNKNOWN. A table needs the column `path`
    (relative to the table) and may have `pid` and `camid`, integers.

    Raises:
        UserError: there is nothing of the kind, or no image in it.
    """
    if path.is_dir():
        return _folder(path)
    if path.is_file() and path.suffix.lower() == ".csv":
        return _table(path)
    raise UserError(f"--images {path}: expected a folder or a .csv table, found neither")


def _folder(folder: Path) -> ImageFiles:
    files = sorted(
        file.relative_to(folder).as_posix()
        for file in folder.rglob("*")
        if file.suffix.lower() in IMAGE_SUFFIXES and not file.name.startswith(".")
    )
    if not files:
        raise UserError(
            f"--images {folder}: no image file there or below ({', '.join(IMAGE_SUFFIXES)})"
        )
    found = [_NAMED.match(Path(file).name) for file in files]
    labels = [(int(match[1]), int(match[2])) for match in found if match is not None]
    if len(labels) < len(files):
        labels = [(UNKNOWN, UNKNOWN)] * len(files)
    rows = [(file, *label) for file, label in zip(files, labels, strict=True)]
    return ImageFiles.of_rows(folder, rows)


def _table(table: Path) -> ImageFiles:
    rows = read_rows(table, f"--images {table}", ("path",), ("pid", "camid"))
    if not rows:
        raise UserError(f"--images {table} names no image")
    return ImageFiles.of_rows(
        table.parent,
        [
            (row["path"], _integer(table, line, "pid", row), _integer(table, line, "camid", row))
            for line, row in enumerate(rows, 2)
        ],
    )


def _integer(table: Path, line: int, name: str, row: dict[str, str]) -> int:
    try:
        return int(row.get(name) or UNKNOWN)
    except ValueError:
        raise UserError(
            f"--images {table}, line {line}: {name} must be an integer, found {row[name]!r}"
        ) from None
