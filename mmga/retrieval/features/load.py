"""Read features from files, shards, and files that hold both sides."""

from __future__ import annotations

import difflib
import glob
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mmga.common import ids
from mmga.common.distributed import Group
from mmga.common.errors import UserError
from mmga.common.files import read_json_object
from mmga.common.paths import from_names
from mmga.ops.precision import float32_products
from mmga.retrieval.features import containers, csv_columns
from mmga.retrieval.features.features import (
    TWO_SIDED,
    UNKNOWN,
    Features,
    joined,
    of_arrays,
    under_own_names,
)
from mmga.retrieval.features.shares import share_of

SIDES = ("query", "gallery", "mquery")
COLUMNS = "columns.csv"
SHARD_LIST = ".json"
"""Suffix of a file that lists shards, in place of their names."""
# Names of arrays that a message lists.
_SHOWN_NAMES = 12
# What others call the arrays.
_OTHER_NAMES = {
    "features": ("feature", "feat", "feats", "embedding", "embeddings", "vectors", "x", "arr_0"),
    "pids": ("label", "labels", "id", "ids", "person_id", "person_ids", "identity", "targets"),
}


@float32_products()
def load_features(
    path: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    side: str | None = None,
    columns: str | os.PathLike[str] | None = None,
    pattern: str | None = None,
    *,
    labelled: bool = True,
) -> Features:
    """Read features from a file, a folder of .npy files, or several shards.

    Args:
        path: .npz, .safetensors, .mat, .h5, .pt, .parquet, or a folder of .npy files
            (memory-mapped), or one .npy or .pt file of features or parts alone, whose pids come
            from `columns`. A pattern such as ``shard-*.npz`` is expanded in natural order (2 before
            10); a list keeps its order, and so does a .json file that lists shards, as
            `mmga extract` writes it. Row i of the whole is row i of the shards one after the
            other.
        side: ``"query"`` or ``"gallery"`` of a file that holds both (layumi's names, such as
            ``query_f``, ``query_label``, ``query_cam``); None for a file that holds one set.
        columns: a CSV table of further columns, and of pid, camid and path where the file has none;
            its lines belong to the rows by path if both have paths (see
            `mmga.common.paths.matched`), by their order if not, which `notes` say. A folder of .npy
            files may hold one itself, as columns.csv.

        pattern: a regular expression with the groups pid and camid, or one of them, which reads
            identities and cameras that are not known otherwise from the paths of the images.
        labelled: refuse a file without pids; else all of them are unknown, as a search takes them.

    Raises:
        UserError: the file is absent, damaged, or does not hold what is expected.
    """
    paths = _paths(path, side, columns)
    return _joined([_load_one(one, side, columns, pattern, labelled) for one in paths], path)


@float32_products()
def load_share(
    path: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    group: Group,
    side: str | None = None,
    columns: str | os.PathLike[str] | None = None,
    pattern: str | None = None,
    *,
    labelled: bool = True,
) -> Features | None:
    """Read some of the rows that `load_features` reads, so that each process of a group has a part.

    Files are dealt out, so that each is read by one process. Where there are fewer files than
    processes, each reads the labels of all, and of the features its rows: folders of .npy files,
    .npy and .npz files that are not compressed are mapped, others are read as a whole first.

    Args:
        path: as the other arguments, see `load_features`.
        group: the processes.
        side: see there.
        columns: see there.
        pattern: see there.
        labelled: see there.

    Returns:
        The rows of this process, after those of the processes of lower rank; None where there are
        fewer rows than processes and none is left for this one.

    Raises:
        UserError: as `load_features`.
    """
    paths = _paths(path, side, columns)
    if len(paths) >= group.world:
        first, last = share_of(len(paths), group)
        own = [_load_one(one, side, columns, pattern, labelled) for one in paths[first:last]]
        return _joined(own, path)
    loaded = [_load_one(one, side, columns, pattern, labelled, mapped=True) for one in paths]
    _check_listed(loaded, path)
    first, last = share_of(sum(map(len, loaded)), group)
    parts, start = [], 0
    for one in loaded:
        part = one.cut(max(first - start, 0), min(last - start, len(one)), alone=True)
        parts += [] if part is None else [part]
        start += len(one)
    return _joined(parts, ()) if parts else None


def _paths(
    path: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    side: str | None,
    columns: str | os.PathLike[str] | None,
) -> list[Path]:
    """Return the files that a path means, once the arguments of `load_features` are checked."""
    if side is not None and side not in SIDES:
        raise UserError(f"side: expected query or gallery, found {side!r}")
    paths = expanded(path)
    if columns is not None and len(paths) > 1:
        raise UserError(f"{columns}: columns can be added to one file of features, not to shards")
    _check_twice(paths)
    return paths


def _joined(loaded: list[Features], path: object) -> Features:
    _check_listed(loaded, path)
    return loaded[0] if len(loaded) == 1 else joined(loaded)


def _check_listed(loaded: list[Features], path: object) -> None:
    """Refuse shards that have other numbers of rows than the list of them, if there is one, says.

    Raises:
        UserError: one has.
    """
    if not isinstance(path, str | os.PathLike) or Path(path).suffix.lower() != SHARD_LIST:
        return
    shards = read_json_object(path)["shards"]
    rows = {str(Path(path).parent / shard["file"]): shard.get("rows") for shard in shards}
    for one in loaded:
        if rows[one.source] not in (None, len(one)):
            raise UserError(
                f"{one.source}: found {len(one)} rows, but {path} says {rows[one.source]}; extract "
                "them again"
            )


def holds_side(path: str | os.PathLike[str], side: str) -> bool:
    """Return whether a file holds features of a side under layumi's names, such as mquery_f.

    Raises:
        UserError: it cannot be read.
    """
    arrays = containers.read(path)
    return f"{side}_f" in arrays or f"{side}_parts" in arrays


def save_both(path: str | os.PathLike[str], query: Features, gallery: Features) -> None:
    """Write two sets to one file under layumi's names; read it with ``side=``.

    Raises:
        UserError: the suffix is unknown, or the file cannot be written.
    """
    containers.write(path, {**query.arrays("query"), **gallery.arrays("gallery")})


def expanded(path: str | os.PathLike[str] | Sequence[str | os.PathLike[str]]) -> list[Path]:
    """Return the files that a path, a pattern or several of them name, in the order of rows.

    Raises:
        UserError: no file matches a pattern, or the list is empty.
    """
    if not isinstance(path, str | os.PathLike):
        if not len(path):
            raise UserError("features: the list of shards is empty")
        return [found for one in path for found in expanded(one)]
    text = os.fspath(path)
    if text.lower().endswith(SHARD_LIST) and os.path.isfile(text):
        return _expand_list(Path(text))
    if os.path.exists(text) or not glob.has_magic(text):
        return [Path(text)]
    found = sorted(glob.glob(text), key=_natural)
    if not found:
        raise UserError(f"{text}: no file matches this pattern")
    return [Path(one) for one in found]


def _expand_list(path: Path) -> list[Path]:
    """Return the files that a list of shards names, which are beside it or below.

    Raises:
        UserError: it is no such list.
    """
    try:
        shards = read_json_object(path)["shards"]
        files = [path.parent / shard["file"] for shard in shards]
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{path}: expected a list of shards of features, "
            '{"schema": 1, "shards": [{"file": ...}]}, as mmga extract writes it; found something '
            "else"
        ) from error
    if not files:
        raise UserError(f"{path}: the list of shards is empty")
    return files


def _check_twice(paths: Sequence[Path]) -> None:
    """Refuse a file that is given twice, whose rows would count twice.

    Raises:
        UserError: there is one, perhaps because two patterns match it.
    """
    first: dict[str, Path] = {}
    for path in paths:
        before = first.setdefault(os.path.realpath(path), path)
        if before is not path:
            raise UserError(
                f"{path} is given twice, so that its rows would count twice; name each file once"
                + ("" if str(before) == str(path) else f" ({before} is the same file)")
            )


def _natural(text: str) -> list[tuple[int, int | str]]:
    return [
        (0, int(piece)) if piece.isdigit() else (1, piece) for piece in re.split(r"(\d+)", text)
    ]


def _load_one(
    path: Path,
    side: str | None,
    columns: str | os.PathLike[str] | None,
    pattern: str | None,
    labelled: bool,
    mapped: bool = False,
) -> Features:
    arrays = containers.read(path, mapped=mapped)
    if list(arrays) == ["array"]:
        rows = arrays["array"]
        arrays = {"parts" if rows.ndim == 3 else "features": rows}
    notes: list[str] = []
    if path.is_dir() and (path / COLUMNS).exists():
        if columns is not None:
            notes.append(f"{path / COLUMNS} was not read, as {columns} was given in its place")
        columns = columns or path / COLUMNS
    sides = [name for name in SIDES if f"{name}_f" in arrays or f"{name}_parts" in arrays]
    if sides:
        if side is None:
            raise UserError(
                f"{path} holds {' and '.join(sides)}: say which with side=; on the command line "
                "give it as --features, with a protocol of two sets"
            )
        if side not in sides:
            raise UserError(f"{path}: expected {side}_f, found {_listed(arrays)}")
        prefix = f"{side}_"
        arrays = {
            TWO_SIDED.get(name.removeprefix(prefix), name.removeprefix(prefix)): value
            for name, value in arrays.items()
            if name.startswith(prefix)
        }
    elif side is not None and ("features" in arrays or "parts" in arrays):
        raise UserError(
            f"{path} holds one set of features, not both sides; give query and gallery as two "
            "files, or choose protocol all-vs-all, which ranks one set"
        )
    if "features" not in arrays and "parts" not in arrays:
        raise UserError(
            f"{path}: expected features and pids, or query_f, query_label, gallery_f, "
            f"gallery_label; found {_listed(arrays)}{_renaming('features', arrays)}"
        )
    arrays = under_own_names(arrays)
    if columns is not None:
        arrays, found = csv_columns.merged(arrays, columns, str(path))
        notes += found
    if pattern is not None:
        notes.append(_read_names(arrays, pattern, str(path)))
    if "pids" not in arrays and not labelled:
        rows = arrays["features" if "features" in arrays else "parts"]
        arrays["pids"] = np.full(np.shape(rows)[:1], UNKNOWN)
    if "pids" not in arrays:
        raise UserError(
            f"{path}: pids are missing; found {_listed(arrays)}"
            f"{(not sides and _renaming('pids', arrays)) or '; add them'}, "
            "or give a CSV table of them (columns=, --query-columns, --gallery-columns), "
            "or --pattern to read them from paths"
        )
    features = of_arrays(arrays, str(path))
    features.notes += notes
    return features


def _read_names(arrays: dict[str, Any], pattern: str, source: str) -> str:
    """Add what a pattern reads from paths, in place, and return a note on it."""
    if "paths" not in arrays:
        raise UserError(f"{source}: --pattern reads paths of images, which the file does not hold")
    paths = [str(path) for path in np.asarray(arrays["paths"]).reshape(-1)]
    groups, note = from_names(paths, pattern, source)
    for name, cells in groups.items():
        column = f"{name}s" if name in ("pid", "camid") else name
        if column == name:
            arrays.setdefault(name, np.asarray(cells, np.str_))
        elif column in arrays:
            arrays[column] = csv_columns.filled(arrays[column], ids.of_text(cells))
        else:
            arrays[column] = ids.of_text(cells)
    return note


def _renaming(name: str, arrays: Mapping[str, Any]) -> str:
    """Return the advice to rename the array that looks like the missing one, if there is one."""
    near = [one for one in _OTHER_NAMES[name] if one in arrays]
    near += difflib.get_close_matches(name, arrays, 1, 0.7)  # camids are no misspelt pids
    return f"; is {near[0]} meant? rename it to {name}" if near else ""


def _listed(names: Mapping[str, Any]) -> str:
    """Return some names, sorted, and how many more there are."""
    shown = sorted(names)[:_SHOWN_NAMES]
    more = len(names) - len(shown)
    return (", ".join(shown) or "nothing") + (f" and {more} more" if more else "")
