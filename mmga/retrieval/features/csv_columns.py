"""Labels and further columns of features from a CSV table: one line for each row."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from mmga.common import ids
from mmga.common.errors import UserError
from mmga.common.paths import matched
from mmga.common.tables import Table, are_paths, read_table

_LABELS = ("pids", "camids")


def read_columns(path: str | os.PathLike[str]) -> dict[str, np.ndarray]:
    """Read a CSV table with a header line.

    Args:
        path: the table. Columns pid, camid and path (also by the names in
            `mmga.common.tables.PATHS`, where they hold paths) get the names that feature files use;
            a column of numbers is read as int64 or float64, an empty cell of it as NaN, every other
            column as strings.

    Returns:
        Columns by name, each [N]; pids and camids as int64, UNKNOWN among them, or as strings.

    Raises:
        UserError: the table cannot be read, or a line has another number of cells than the header.
    """
    return _columns(_table(path))


def _table(path: str | os.PathLike[str]) -> Table:
    table = read_table(Path(path), str(path))
    if not table.rows:
        raise UserError(f"{path}: expected a line of column names and one line for each row")
    return table


def _columns(table: Table) -> dict[str, np.ndarray]:
    columns = {}
    own = {table.place(name): f"{name}s" for name in ("pid", "camid", "path")}
    for place, name in enumerate(table.header):
        cells = [row[place] for row in table.rows]
        if own.get(place) in _LABELS:
            columns[own[place]] = ids.of_text(cells)
        elif own.get(place) == "paths" and are_paths(name, np.asarray(cells, np.str_)):
            columns["paths"] = np.asarray(cells, np.str_)
        else:
            columns[name] = _typed(cells)
    return columns


def _typed(cells: list[str]) -> np.ndarray:
    if any("_" in cell for cell in cells):  # Python takes 1_0 for a number
        return np.array(cells, np.str_)
    for kind in (np.int64, np.float64):
        try:
            return np.array([cell if cell or kind == np.int64 else "nan" for cell in cells], kind)
        except (ValueError, OverflowError):
            continue
    return np.array(cells, np.str_)


def merged(
    arrays: Mapping[str, Any], columns: str | os.PathLike[str], file: str
) -> tuple[dict[str, Any], list[str]]:
    """Return the arrays of a feature file and the columns of a table.

    Lines belong to rows by their path where both sides have paths, by their order else. pids and
    camids of the file are kept but for unknown ones.

    Args:
        arrays: what the file holds; its rows under features or parts.
        columns: the table.
        file: name of the feature file.

    Returns:
        The arrays, and notes on how lines were matched with rows.

    Raises:
        UserError: the table cannot be read, its lines do not fit the rows, two lines of one path
            differ, or both hold a column of one name.
    """
    listed, source = _table(columns), str(columns)
    table = _columns(listed)
    count = len(arrays["features"] if "features" in arrays else arrays["parts"])
    lines = len(listed.rows)
    if "paths" in arrays and "paths" in table:
        listed.check_repeated(tuple(listed.header))
        paths = [str(path) for path in np.asarray(arrays["paths"]).reshape(-1)]
        order, note = matched(paths, table["paths"].tolist(), (file, source))
    elif lines != count:
        raise UserError(
            f"{source} has {lines} lines, {file} {count} rows; without paths on both sides line i "
            "is that of row i"
        )
    else:
        order = np.arange(lines)
        lacking = [name for name, held in ((file, arrays), (source, table)) if "paths" not in held]
        note = (
            f"{source}: line i was taken for row i of {file}, as there are no paths to match in "
            f"{' and '.join(lacking)}"
        )
    result, notes = dict(arrays), [note] if note else []
    by_order = "paths" not in arrays or "paths" not in table
    for name, column in table.items():
        if name in _LABELS and name in arrays:
            notes += _differing(name, arrays[name], column[order], (file, source), by_order)
            result[name] = filled(arrays[name], column[order])
        elif name == "paths" and name in arrays:
            continue
        elif name in arrays:
            raise UserError(f"{source} and {file} both hold a column {name}; rename one")
        else:
            result[name] = column[order]
    return result, notes


def _differing(
    name: str, own: Any, others: np.ndarray, names: tuple[str, str], by_order: bool
) -> list[str]:
    """Return a note where a file and a table say different things of rows; the file's are kept.

    Args:
        name: pids or camids.
        own: of the file.
        others: of the table, in the order of the file's rows.
        names: of the file and the table.
        by_order: lines are rows by their order alone.

    Raises:
        UserError: so are they, and the labels are not one numbering in place of another.
    """
    sides = [_spelled(own), _spelled(others)]
    if len(sides[0]) != len(sides[1]):
        return []
    pairs = [(row, *two) for row, two in enumerate(zip(*sides, strict=True)) if all(two)]
    odd = [(row, held, listed) for row, held, listed in pairs if held != listed]
    if not odd:
        return []
    row, held, listed = odd[0]
    what = (
        f"{names[1]}: {name[:-1]} is another than in {names[0]} for {len(odd)} of {len(pairs)} "
        f"rows, first for row {row}, {listed} where the file says {held}"
    )
    distinct = {(held, listed) for _, held, listed in pairs}
    renumbered = all(len({two[at] for two in distinct}) == len(distinct) for at in (0, 1))
    if by_order and not renumbered:
        raise UserError(
            f"{what}: lines and rows are in different order; give paths on both sides, or leave "
            f"the column {name[:-1]} out of the table"
        )
    return [f"{what}; those of the file are used"]


def _spelled(labels: Any) -> list[str]:
    """Return labels as text, empty where unknown."""
    values = np.asarray(labels).reshape(-1)
    missing = _missing(values)
    plain = ids.of_text(np.where(missing, "", values.astype(np.str_)).tolist())
    missing |= _missing(plain)
    return [
        "" if unknown else ids.key(str(one).strip())
        for one, unknown in zip(plain.tolist(), missing.tolist(), strict=True)
    ]


def filled(own: Any, others: np.ndarray) -> Any:
    """Return labels of a file with those of another source where the file's are unknown."""
    values = np.asarray(own).reshape(-1)
    missing = _missing(values)
    if not missing.any() or len(values) != len(others):
        return own
    whole = values.astype(object)
    whole[missing] = [None if one == ids.UNKNOWN else one for one in others[missing].tolist()]
    return whole


def _missing(values: np.ndarray) -> np.ndarray:
    """Return which labels are unknown, bool [N]."""
    if values.dtype.kind == "i":
        return np.asarray(values == ids.UNKNOWN)
    missing = np.zeros(len(values), bool)
    missing[ids.unknown(values)] = True
    return missing
