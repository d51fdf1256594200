"""One reader of CSV tables: delimiter, encoding, names of columns, numbers of lines."""

from __future__ import annotations

import csv
import io
import re
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

import numpy as np

from mmga.common import ids
from mmga.common.errors import UserError

PATHS = (
    *("path", "paths", "img_path", "img_paths", "image_path", "image_paths"),
    *("file_path", "file_paths", "filepath", "filepaths", "impath", "filename", "filenames"),
    *("file_name", "file_names", "img_name", "img_names", "image_name", "image_names"),
    *("file", "files", "image", "images", "img", "imgs", "name", "names"),
)
"""Names of a column or an array of paths; of several the first holds them."""
_ROLES = {"path": PATHS, "pid": ("pid", "pids"), "camid": ("camid", "camids")}
_KNOWN = {name for names in _ROLES.values() for name in names} | {"split", "mask"}
_PATH = re.compile(r"[/\\]|\.[A-Za-z]\w{1,3}$")
_SHORTENED = re.compile(r"[+-]?\d(?:[.,](\d*))?e\+?(\d+)", re.ASCII | re.IGNORECASE)
_SPREADSHEET_DIGITS = 11  # spreadsheets write larger numbers by a power of ten
_DELIMITERS = ",;\t|"
_IMAGES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".ppm")


@dataclass(frozen=True, slots=True)
class Table:
    """The cells of a table.

    Attributes:
        title: names the table in messages.
        header: names of the columns as they are written.
        rows: cells of each row, as many as names.
        lines: number of each row's line in the file.
    """

    title: str
    header: list[str]
    rows: list[list[str]]
    lines: list[int]

    def place(self, name: str) -> int | None:
        """Return the place of a column, by any of the names that path, pid and camid go by."""
        lower = [one.lower() for one in self.header]
        names = _ROLES.get(name, (name,))
        return next((lower.index(one) for one in names if one in lower), None)

    def column(self, name: str) -> list[str] | None:
        """Return the cells of a column, None where there is none."""
        place = self.place(name)
        return None if place is None else [row[place] for row in self.rows]

    def with_plain_paths(self) -> Table:
        """Return the table with one writing of a file's path: without `./` and spaces around.

        Protocols that leave out the query's own image compare paths.
        """
        place = self.place("path")
        if place is None:
            return self
        paths = [row[place].strip() for row in self.rows]
        rows = [
            [*row[:place], str(PurePosixPath(path)) if path else "", *row[place + 1 :]]
            for row, path in zip(self.rows, paths, strict=True)
        ]
        return replace(self, rows=rows)

    def need(self, columns: tuple[str, ...], optional: tuple[str, ...]) -> None:
        """Refuse a table without a column.

        Raises:
            UserError: a column is missing.
        """
        for name in columns:
            if self.place(name) is None:
                raise UserError(
                    f"{self.title} lacks the column {name}; its first line must name "
                    f"{', '.join(columns)} and may name {' and '.join(optional)}, found "
                    f"{', '.join(self.header) or 'nothing'}"
                )

    def check_repeated(self, names: tuple[str, ...]) -> None:
        """Refuse rows that share a path and differ in one of some columns.

        Raises:
            UserError: two rows do.
        """
        first: dict[str, int] = {}
        columns = {name: cells for name in names if (cells := self.column(name)) is not None}
        for number, path in enumerate(self.column("path") or []):
            before = first.setdefault(path, number)
            for name, cells in columns.items():
                if ids.key(cells[before]) != ids.key(cells[number]):
                    raise UserError(
                        f"{self.title}: lines {self.lines[before]} and {self.lines[number]} say "
                        f"{name} {cells[before]!r} and {cells[number]!r} of one path, {path}; "
                        "leave out the wrong one"
                    )


def read_table(path: Path, title: str, *, pad: bool = False) -> Table:
    """Read a table whose first line names the columns.

    The delimiter is a comma, semicolon, tab or bar, whichever makes known names of the first line.
    Empty lines are no rows, but within a table of one column, where they are empty cells. Columns
    without a name, such as the index that pandas writes, are left out.

    Args:
        path: the table, UTF-8 or UTF-16.
        title: names the table in messages.
        pad: rows may end early; the cells that are missing are empty.

    Raises:
        UserError: it cannot be read, has no line of names, or a row has another number of cells.
    """
    text = _text(path, title)
    first = next((line for line in text.splitlines() if line.strip()), "")
    if first.lower().startswith("sep=") and len(first) == 5:  # Excel's line for itself
        text = text.split(first, 1)[1]
        first = next((line for line in text.splitlines() if line.strip()), "")
    delimiter = _delimiter(first)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, skipinitialspace=True)
    found: list[tuple[int, list[str]]] = []
    try:
        for cells in reader:
            found.append((reader.line_num, cells))
    except csv.Error as error:
        raise UserError(f"{title} cannot be read as a CSV table ({error})") from error
    while found and not found[-1][1]:
        found.pop()
    while found and not found[0][1]:
        found.pop(0)
    header = [name.strip() for name in found[0][1]] if found else []
    _check_header(title, header, first)
    rows, lines = [], []
    for number, cells in found[1:]:
        if not cells and len(header) > 1:
            continue
        cells = cells or [""]
        if len(cells) < len(header) and pad:
            cells = cells + [""] * (len(header) - len(cells))
        if len(cells) != len(header):
            raise UserError(
                f"{title}: row {number} has {len(cells)} cells, the header {len(header)}; quote "
                f"cells that hold the delimiter {delimiter!r}"
            )
        rows.append([cell for name, cell in zip(header, cells, strict=True) if name])
        lines.append(number)
    header = [name for name in header if name]
    table = Table(title, header, rows, lines)
    _check_shortened(table)
    return table


def _check_shortened(table: Table) -> None:
    """Refuse identities and cameras of which a spreadsheet wrote the first digits alone.

    Raises:
        UserError: there are such; different ones may have become one.
    """
    for name in ("pid", "camid"):
        for line, cell in zip(table.lines, table.column(name) or [], strict=False):
            number = _SHORTENED.fullmatch(cell.strip())
            if number is None:
                continue
            digits, power = len(number[1] or ""), int(number[2][:4])
            if power >= _SPREADSHEET_DIGITS and digits < power:
                raise UserError(
                    f"{table.title}: line {line}: {name} {cell} is a long number of which the last "
                    "digits are lost, as spreadsheets write them; save the column as text"
                )


def are_paths(name: str, values: np.ndarray) -> bool:
    """Return whether a column holds paths: it is called so, and holds text.

    A column `name` may hold the names of persons: it must name rows, or look like paths.
    """
    lower = name.lower()
    if lower in ("path", "paths"):
        return True
    if lower not in PATHS or values.dtype.kind not in "US" or values.ndim != 1:
        return False
    if lower not in ("name", "names"):
        return True
    text = values.astype(np.str_).tolist()
    return len(set(text)) == len(text) or all(_PATH.search(one) for one in text)


def _text(path: Path, title: str) -> str:
    try:
        data = path.read_bytes()
        encoding = "utf-16" if data[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig"
        text = data.decode(encoding)
    except UnicodeDecodeError as error:
        raise UserError(
            f"{title} cannot be read as a CSV table ({error}); save it as CSV in UTF-8"
        ) from error
    except OSError as error:
        raise UserError(
            f"{title} cannot be read as a CSV table ({error}); give a CSV file"
        ) from error
    return text if "\n" in text else text.replace("\r", "\n")


def _delimiter(first: str) -> str:
    """Return the delimiter that makes the most known names, then the most cells, of a line."""

    def score(delimiter: str) -> tuple[int, int]:
        cells = next(csv.reader([first], delimiter=delimiter), [])
        return sum(cell.strip().lower() in _KNOWN for cell in cells), len(cells)

    try:
        return max(_DELIMITERS, key=score)
    except csv.Error:
        return ","


def _check_header(title: str, header: list[str], first: str) -> None:
    """Refuse a first line that holds values.

    Raises:
        UserError: it does, or names are empty or the same.
    """
    values = [name for name in header if ids.is_number(name) or name.lower().endswith(_IMAGES)]
    if values:
        raise UserError(
            f"{title}: expected names of columns in the first line, such as path,pid,camid, found "
            f"{first[:80]!r}; add such a line"
        )
    lower = [name.lower() for name in header]
    for names in (("path", "paths"), *_ROLES.values()):
        places = [place for place, name in enumerate(lower) if name in names]
        if len(places) > 1 and len(names) == 2:  # other names of paths may be names of persons
            raise UserError(
                f"{title}: the columns {' and '.join(header[place] for place in places)} are the "
                f"same to a reader; keep the one that is meant as {names[0]}"
            )
    named = [name for name in header if name]
    if len(set(named)) < len(named) or (header and not named):
        raise UserError(
            f"{title}: expected distinct column names, found {', '.join(header)} ({first[:80]!r})"
        )
