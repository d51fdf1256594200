"""Features as a Parquet table: one row for each item, `features` a list of numbers.

Tables of pandas, Polars, DuckDB and others are read, too: lists of any kind and numbers of any
width, `pid` or `pids`, categories, nulls where an identity, a camera or a further column is not
known.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from mmga.common.errors import UserError
from mmga.common.memory import check_declared

_ROWS = ("features", "parts")
_LONG = {"pid": "pids", "camid": "camids", "path": "paths"}  # of a row, of all rows
_SHORT = {many: one for one, many in _LONG.items()}
_INDEX = "__index_level_"  # pandas' names of an index without one
_GROUP = 64 << 20  # bytes of features that are read at once
_SHOWN = 12  # columns that a message lists


def read(path: Path, pyarrow: Any) -> dict[str, np.ndarray]:
    """Return the columns of a table by the names that arrays have in other files.

    Args:
        path: the file.
        pyarrow: the package.

    Raises:
        UserError: there are no features, lists differ in length, or values are missing or of a
            kind that no array holds.
    """
    from pyarrow import parquet

    with parquet.ParquetFile(path, page_checksum_verification=True) as file:
        _check_size(file.metadata)
        table = file.read()
    names = [name for name in table.column_names if not name.startswith(_INDEX)]
    long = [_LONG.get(name, name) for name in names]
    doubled = sorted({name for name in long if long.count(name) > 1})
    if doubled:
        raise UserError(f"{path}: several columns hold {doubled[0]}; leave one of them")
    if not set(names) & set(_ROWS):
        lists = [name for name in names if _is_list(pyarrow, table.schema.field(name).type)]
        hint = f"; if {lists[0]} holds them, rename it" if lists else ""
        raise UserError(
            f"{path}: expected a column features, lists of numbers, found {_listed(names)}{hint}"
        )
    arrays: dict[str, np.ndarray] = {}
    for name, many in zip(names, long, strict=True):
        column = table.column(name)
        if pyarrow.types.is_dictionary(column.type):  # categories
            column = column.cast(column.type.value_type)
        title = f"{path}: {name}"
        if _is_list(pyarrow, column.type):
            arrays[many] = _matrix(title, column, pyarrow)
        else:
            arrays[many] = _vector(title, column, pyarrow, many in ("pids", "camids"))
    return arrays


def _check_size(metadata: Any) -> None:
    """Refuse a table that does not fit into memory, before it is taken."""
    groups = (metadata.row_group(number) for number in range(metadata.num_row_groups))
    columns = (group.column(place) for group in groups for place in range(group.num_columns))
    # Repeated values take no room in the file: what counts is how many there are.
    size = sum(max(one.total_uncompressed_size, 2 * one.num_values) for one in columns)
    check_declared(size, size)


def _is_list(pyarrow: Any, kind: Any) -> bool:
    types = pyarrow.types
    return types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind)


def _matrix(title: str, column: Any, pyarrow: Any) -> np.ndarray:
    """Return lists, or lists of lists, of one length as an array [N, D] or [N, P, D]."""
    pieces: list[np.ndarray] = []
    start = 0
    for chunk in (one for one in column.chunks if len(one)):
        pieces.append(_piece(title, chunk, start, pyarrow))
        start += len(chunk)
        if pieces[-1].shape[1:] != pieces[0].shape[1:]:
            lengths = [" x ".join(map(str, one.shape[1:])) for one in (pieces[-1], pieces[0])]
            raise UserError(
                f"{title}: expected lists of one length, found {lengths[0]} values in row "
                f"{start - len(chunk)} and {lengths[1]} in row 0"
            )
    if not pieces:
        return np.empty((0, 0), np.float32)
    return np.concatenate(pieces) if len(pieces) > 1 else pieces[0]


def _piece(title: str, values: Any, start: int, pyarrow: Any) -> np.ndarray:
    """Return the lists of a chunk, whose first row is `start`, as an array."""
    shape = [len(values)]
    while _is_list(pyarrow, values.type):
        each = max(int(np.prod(shape[1:])), 1)
        if values.null_count:
            row = _first(values.is_null()) // each + start
            raise UserError(f"{title}: row {row} holds no list (null); leave such rows out")
        lengths = np.diff(_offsets(values, pyarrow))
        odd = np.flatnonzero(lengths != lengths[0])
        if len(odd):
            raise UserError(
                f"{title}: expected lists of one length, found {lengths[odd[0]]} values in row "
                f"{odd[0] // each + start} and {lengths[0]} in row {start}"
            )
        shape.append(int(lengths[0]))
        values = values.flatten()
    if not (pyarrow.types.is_floating(values.type) or pyarrow.types.is_integer(values.type)):
        raise UserError(f"{title}: expected lists of numbers, found lists of {values.type}")
    if values.null_count:
        row = _first(values.is_null()) // int(np.prod(shape[1:])) + start
        raise UserError(f"{title}: row {row} holds a null among its numbers; leave such rows out")
    return np.asarray(values.to_numpy(zero_copy_only=False)).reshape(shape)


def _offsets(values: Any, pyarrow: Any) -> np.ndarray:
    """Return where each list begins, and where the last ends."""
    if pyarrow.types.is_fixed_size_list(values.type):
        return np.arange(len(values) + 1) * values.type.list_size
    return np.asarray(values.offsets)


def _first(mask: Any) -> int:
    return int(np.flatnonzero(mask.to_numpy(zero_copy_only=False))[0])


def _vector(title: str, column: Any, pyarrow: Any, labels: bool) -> np.ndarray:
    """Return one value for each row; missing ones are NaN, in text empty, in times NaT.

    Labels that are whole numbers, of which some are missing, are objects: large ones would meet as
    floats.
    """
    types, kind = pyarrow.types, column.type
    if types.is_null(kind):
        return np.full(len(column), np.nan)
    if types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind):
        texts = column.fill_null("") if column.null_count else column
        return np.asarray(texts.to_pylist(), np.str_)
    if labels and types.is_integer(kind) and column.null_count:
        return np.asarray(column.to_pylist(), object)
    if types.is_boolean(kind) and column.null_count:
        many = f"{column.null_count} of {len(column)}"
        raise UserError(f"{title}: {many} values are missing (null); fill them")
    plain = (types.is_integer, types.is_floating, types.is_boolean)
    times = (types.is_timestamp, types.is_duration, types.is_date)
    if any(fits(kind) for fits in (*plain, *times)):
        return np.asarray(column.to_numpy())
    raise UserError(f"{title}: expected numbers, text or times, found {kind}; leave the column out")


def write(path: Path, arrays: Mapping[str, Any], pyarrow: Any) -> None:
    """Write arrays as a table.

    Args:
        path: the file.
        arrays: by their names in other files, each of one length.
        pyarrow: the package.

    Raises:
        UserError: they have several lengths: a table holds one set.
    """
    from pyarrow import parquet

    rows = next((arrays[name] for name in _ROWS if name in arrays), None)
    if rows is None:
        raise UserError(
            f"{path}: a .parquet file holds one set of features, not {_listed(list(arrays))}; "
            "write a file for each side"
        )
    columns = {}
    for name, value in arrays.items():
        array = value.detach().cpu().numpy() if isinstance(value, Tensor) else np.asarray(value)
        columns[_SHORT.get(name, name)] = _column(array, pyarrow, name)
    kinds = {name: column.type for name, column in columns.items()}
    each = max(1, int(np.prod(rows.shape[1:])) * rows.dtype.itemsize)
    parquet.write_table(
        pyarrow.table(columns),
        path,
        row_group_size=max(1, _GROUP // each),
        compression="zstd",
        write_page_checksum=True,
        # Numbers of features hardly repeat, and nobody asks for their range.
        use_dictionary=[name for name, kind in kinds.items() if pyarrow.types.is_string(kind)],
        write_statistics=[name for name, kind in kinds.items() if not _is_list(pyarrow, kind)],
    )


def _column(array: np.ndarray, pyarrow: Any, name: str) -> Any:
    if array.ndim == 1:
        missing = np.zeros(len(array), bool)
        if array.dtype.kind == "f" and name in _SHORT:  # integers, of which some are not known
            missing = np.isnan(array)
            array = np.where(missing, 0, array).astype(np.int64)
        elif array.dtype.kind == "U" and name in ("pids", "camids"):
            missing = array == ""
            array = array.astype(object)
        return pyarrow.array(array, mask=missing if missing.any() else None)
    column = pyarrow.array(np.ascontiguousarray(array).reshape(-1))
    for length in reversed(array.shape[1:]):
        column = pyarrow.FixedSizeListArray.from_arrays(column, length)
    return column


def _listed(names: list[str]) -> str:
    shown = ", ".join(names[:_SHOWN]) or "no column"
    return shown + (f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else "")
