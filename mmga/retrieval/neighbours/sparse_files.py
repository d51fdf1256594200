"""Files of sparse distances: shards of rows, and a list of them."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from mmga.common.distributed import Group
from mmga.common.errors import UserError
from mmga.common.files import atomic_path, read_json_object
from mmga.ops.k_reciprocal import CsrRows
from mmga.retrieval.neighbours.sparse import check_sparse, to_torch

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

_PARTS = ("indptr", "indices", "data")


def save_distances(
    matrix: Tensor,
    path: str | os.PathLike[str],
    *,
    group: ProcessGroup | Group | bool | None = None,
) -> None:
    """Write sparse distances as .npy files `indptr`, `indices` and `data`, and a list of them.

    Args:
        matrix: torch sparse CSR, as `jaccard_distance` gives it; in a group this process' rows.
        path: the list, NAME.json, written at the end; the arrays go to NAME.shards/, which is
            emptied first.
        group: of torch.distributed, True for the default one: each process writes a shard of its
            rows to a folder that all have, and the first one the list.

    Raises:
        UserError: it is no such matrix, widths differ, or something cannot be written.
    """
    processes, target = Group.of(group), Path(path)
    folder = target.with_suffix(".shards")
    with processes.together():
        check_sparse(matrix)
        if target.suffix.lower() != ".json":
            raise UserError(f"{target}: sparse distances are listed in a .json file; name one")
        if processes.leads:
            target.unlink(missing_ok=True)
            shutil.rmtree(folder, ignore_errors=True)
    shapes = processes.table(matrix.shape).long()
    ends = shapes[:, 0].cumsum(0).tolist()
    begins = [0, *ends[:-1]]
    with processes.together():
        if matrix.shape[1] != shapes[0, 1]:
            raise UserError(
                f"matrix must have {int(shapes[0, 1])} columns as in process 0, got "
                f"{matrix.shape[1]}"
            )
        if matrix.shape[0]:
            parts = (matrix.crow_indices(), matrix.col_indices(), matrix.values())
            for name, part in zip(_PARTS, parts, strict=True):
                with atomic_path(folder / _file(begins[processes.rank], name)) as file:
                    np.save(file, part.cpu().numpy())
    with processes.together():
        if processes.leads:
            shards = [
                {"rows": [begin, end]}
                | {name: f"{folder.name}/{_file(begin, name)}" for name in _PARTS}
                for begin, end in zip(begins, ends, strict=True)
                if begin < end
            ]
            listed = {"schema": 1, "shape": [ends[-1], matrix.shape[1]], "shards": shards}
            with atomic_path(target) as file:
                file.write_text(json.dumps(listed, indent=1) + "\n", encoding="utf-8")


def load_distances(path: str | os.PathLike[str], first: int = 0, last: int | None = None) -> Tensor:
    """Return rows of sparse distances that `save_distances` wrote; no others are read.

    Args:
        path: the list, NAME.json.
        first: the first row.
        last: the row after the last; None: to the end.

    Returns:
        [last - first, N] torch sparse CSR, float64, as `jaccard_distance` gives it.

    Raises:
        UserError: there are no such rows, or a file is missing or damaged.
    """
    rows, width, shards = _listed(Path(path))
    last = rows if last is None else last
    if not 0 <= first <= last <= rows:
        raise UserError(f"{path}: expected rows within 0 to {rows}, found {first} to {last}")
    sizes: list[np.ndarray] = [np.zeros(1, np.int64)]
    columns: list[np.ndarray] = [np.zeros(0, np.int32)]
    values: list[np.ndarray] = [np.zeros(0)]
    for begin, end, files in shards:
        low, high = max(first, begin) - begin, min(last, end) - begin
        if low < high:
            starts, indices, data = _mapped(files, end - begin)
            sizes.append(np.diff(starts[low : high + 1]))
            columns.append(indices[starts[low] : starts[high]])
            values.append(data[starts[low] : starts[high]])
    counts, column, value = np.concatenate(sizes), np.concatenate(columns), np.concatenate(values)
    outside = len(column) and not 0 <= column.min() <= column.max() < width
    if outside or (counts < 0).any() or counts.sum() != len(column):
        raise UserError(
            f"{path}: its shards hold no sparse rows of {width} columns; write the distances again"
        )
    parts = (torch.from_numpy(part) for part in (counts.cumsum(), column, value))
    return to_torch(CsrRows(*parts), width)


def _file(first: int, name: str) -> str:
    return f"{first:09d}.{name}.npy"


def _listed(path: Path) -> tuple[int, int, list[tuple[int, int, list[Path]]]]:
    """Return the rows and columns that a list names, and first, last and files of each shard."""
    try:
        listed = read_json_object(path)
        rows, width = listed["shape"]
        shards = []
        for shard in listed["shards"]:
            begin, end = map(int, shard["rows"])
            shards.append((begin, end, [path.parent / shard[name] for name in _PARTS]))
        known = [0, *(end for _, end, _ in shards)]
        if known[-1] != rows or any(
            begin != before or end <= begin
            for before, (begin, end, _) in zip(known, shards, strict=False)
        ):
            raise ValueError("shards do not hold consecutive rows")
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{path}: expected a list of shards as mmga.save_distances writes it, found something "
            f"else ({error})"
        ) from error
    return rows, width, shards


def _mapped(files: list[Path], rows: int) -> list[np.ndarray]:
    """Return `indptr`, `indices` and `data` of a shard of so many rows, mapped."""
    parts: list[np.ndarray] = []
    for file in files:
        try:
            parts.append(np.load(file, mmap_mode="r", allow_pickle=False))
        except (OSError, ValueError) as error:
            raise UserError(
                f"{file} could not be read ({error}); write the distances again"
            ) from error
    starts, indices, data = parts
    stored = int(starts[-1]) if starts.shape == (rows + 1,) else -1
    if not (indices.shape == data.shape == (stored,) and data.dtype == np.float64):
        raise UserError(
            f"{files[0]} and the files beside it do not hold {rows} sparse rows; write the "
            "distances again"
        )
    return parts
