"""Labels and further columns of features from a CSV table: one line for each row."""

from __future__ import annotations

import csv
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from mmga.common import ids
from mmga.common.errors import UserError

_NAMES = {"pid": "pids", "camid": "camids", "path": "paths"}


def read_columns(path: str | os.PathLike[str]) -> dict[str, np.ndarray]:
    """Read a CSV table with a header line.

    Args:
        path: the table. Columns pid, camid and path get the names that feature files use; a column
            of numbers is read as int64 or float64, an empty cell of it as NaN, every other column
            as strings.

    Returns:
        Columns by name, each [N].

    Raises:
        UserError: the table cannot be read, or a line has another number of cells than the header.
    """
    source = Path(path)
    try:
        with source.open(newline="", encoding="utf-8-sig") as file:
            lines = [line for line in csv.reader(file) if line]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{source} could not be read as a CSV table: {error}") from error
    if len(lines) < 2:
        raise UserError(f"{source}: expected a line of column names and one line for each row")
    header, rows = [name.strip() for name in lines[0]], lines[1:]
    if len(set(header)) < len(header) or not all(header):
        raise UserError(f"{source}: expected distinct column names, found {', '.join(header)}")
    for number, row in enumerate(rows, 2):
        if len(row) != len(header):
            raise UserError(
                f"{source}: row {number} has {len(row)} cells, the header {len(header)}"
            )
    for place, name in enumerate(header):
        if name not in ("pid", "camid"):
            continue
        missing = ids.unknown([row[place] for row in rows])
        if len(missing):
            raise UserError(
                f"{source}: the {name} of {len(missing)} rows is empty, the first is row "
                f"{missing[0] + 2}; fill it in or leave the rows out (of both files), -1 is junk"
            )
    return {
        _NAMES.get(name, name): _typed([row[place] for row in rows])
        for place, name in enumerate(header)
    }


def _typed(cells: list[str]) -> np.ndarray:
    for kind in (np.int64, np.float64):
        try:
            return np.array([cell if cell or kind == np.int64 else "nan" for cell in cells], kind)
        except (ValueError, OverflowError):
            continue
    return np.array(cells, np.str_)


def merged(
    arrays: Mapping[str, Any], table: Mapping[str, np.ndarray], file: str, source: str
) -> dict[str, Any]:
    """Return the arrays of a feature file and the columns of a table.

    Lines belong to rows by their path where both sides have paths, by their order else. pids and
    camids of the file are kept.

    Args:
        arrays: what the file holds; its rows under features or parts.
        table: columns of the table.
        file: name of the feature file.
        source: name of the table.

    Raises:
        UserError: the lines do not fit the rows, or both hold a column of one name.
    """
    count = len(arrays["features"] if "features" in arrays else arrays["parts"])
    lines = len(next(iter(table.values())))
    order = np.arange(lines)
    if "paths" in arrays and "paths" in table:
        paths = np.asarray([str(path) for path in np.asarray(arrays["paths"]).reshape(-1)])
        listed = table["paths"].astype(np.str_)
        sort = np.argsort(listed, kind="stable")
        place = np.searchsorted(listed[sort], paths)
        place = sort[np.minimum(place, lines - 1)]
        missing = np.flatnonzero(listed[place] != paths)
        if len(missing):
            raise UserError(
                f"{source}: {len(missing)} of {len(paths)} paths of {file} have no line, the "
                f"first is {paths[missing[0]]}"
            )
        order = place
    elif lines != count:
        raise UserError(
            f"{source} has {lines} lines, {file} {count} rows; without paths on both sides line i "
            "is that of row i"
        )
    result = dict(arrays)
    for name, column in table.items():
        if name in ("pids", "camids", "paths") and name in arrays:
            continue
        if name in arrays:
            raise UserError(f"{source} and {file} both hold a column {name}; rename one")
        result[name] = column[order]
    return result
