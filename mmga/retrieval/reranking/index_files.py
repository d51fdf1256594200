"""The folder of a saved index: .npy files, a description, and checksums.

An index that several processes hold is saved as shards, each of the items of one process. Any
number of processes loads it, whatever number saved it.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import os
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mmga.common.distributed import Group
from mmga.common.errors import UserError, first_line
from mmga.common.files import atomic_path, read_json_object, sha256_of, writing
from mmga.ops import k_reciprocal as ops
from mmga.ops.k_reciprocal import CsrRows
from mmga.retrieval.features.shares import share_of
from mmga.retrieval.neighbours.knn import check_metric
from mmga.retrieval.reranking.settings import KReciprocal

FORMAT = "mmga-index"
VERSION, SHARDED = 1, 2  # of one process, of several
SUFFIX = ".mmga-index"
ROW = "row"
"""Label of the rows that items had before others were left out."""
LABELS = {"pid": "pids", "camid": "camids", "path": "paths"}  # of files, of `Features`
ARRAYS = (
    "features",
    "neighbours",
    "distances",
    "maxima",
    "set_offsets",
    "set_columns",
    "set_distances",
    "row_offsets",
    "row_columns",
    "row_values",
    "inverted_offsets",
    "inverted_rows",
    "inverted_values",
)
_META = "index.json"
_LABEL = "label_"
# Lists of different lengths: their offsets, then what stands from one offset to the next.
_LISTS = (
    ("set_offsets", "set_columns", "set_distances"),
    ("row_offsets", "row_columns", "row_values"),
    ("inverted_offsets", "inverted_rows", "inverted_values"),
)
_PLACES = ("neighbours", "set_columns", "row_columns", "inverted_rows")


@dataclass(frozen=True, slots=True)
class Stored:
    """What is stored of an index: arrays of the items of this process, and labels of all.

    Attributes:
        rule: settings of the re-ranking.
        metric: "cosine" or "euclidean".
        arrays: by name, see `ARRAYS`; never changed. Items are named by their number among those of
            all processes, but in `inverted_rows`, which are rows of these arrays.
        labels: by name, each [G].
    """

    rule: KReciprocal
    metric: str
    arrays: dict[str, np.ndarray]
    labels: dict[str, np.ndarray] = field(default_factory=dict)


def inverted(rows: CsrRows, first: int, items: int) -> CsrRows:
    """Return the inverted index of the encodings of items `first` and so on, of so many in all."""
    offsets = torch.empty(items + 1, dtype=torch.int64, device="cpu")
    last = first + len(rows.offsets) - 1
    offsets[:first], offsets[last:] = 0, rows.offsets[-1]
    offsets[first : last + 1] = rows.offsets
    columns = ops.transpose_rows(CsrRows(offsets, rows.columns, rows.values))
    return CsrRows(columns.offsets, columns.columns - first, columns.values)


def save(stored: Stored, path: str | os.PathLike[str], group: Group) -> None:
    """Write an index, in a group each process its own arrays, to a folder that all have.

    Raises:
        UserError: the name does not end in .mmga-index, or the folder cannot be written.
    """
    target = Path(path)
    with contextlib.ExitStack() as stack:
        with group.together():
            if target.suffix != SUFFIX:
                raise UserError(f"index: expected a folder name ending in {SUFFIX}, found {target}")
            folder = target
            if group.leads:
                folder = stack.enter_context(atomic_path(target))
                folder.mkdir()
        folder = Path(group.texts(str(folder))[0])
        counts = group.table([len(stored.arrays["features"])])[:, 0].long().tolist()
        ends = list(itertools.accumulate(counts, initial=0))
        shard = tuple(ends[group.rank :][:2]) if group.world > 1 else None
        arrays = {_file(name, shard): array for name, array in stored.arrays.items()}
        with group.together(), writing(target):
            sums = _written(folder, arrays) if counts[group.rank] else {}
            if group.leads:
                labels = {f"{_LABEL}{name}": values for name, values in stored.labels.items()}
                sums |= _written(folder, labels)
        told = [json.loads(text) for text in group.texts(json.dumps(sums))]
        with group.together(), writing(target):
            if group.leads:
                shards = [[a, b] for a, b in itertools.pairwise(ends) if a < b]
                _describe(folder, stored, shards if group.world > 1 else None, told)
            stack.close()


def _file(name: str, shard: tuple[int, ...] | None) -> str:
    """Return the name of an array's file, of a shard that begins with an item."""
    return name if shard is None else f"{shard[0]:09d}.{name}"


def _written(folder: Path, arrays: dict[str, np.ndarray]) -> dict[str, str]:
    """Write arrays, and return the checksums of their files."""
    sums = {}
    for name, array in arrays.items():
        np.save(folder / f"{name}.npy", array, allow_pickle=False)
        sums[name] = sha256_of(folder / f"{name}.npy")
    return sums


def _describe(
    folder: Path, stored: Stored, shards: list[list[int]] | None, told: list[dict[str, str]]
) -> None:
    """Write the description, given the checksums of all files."""
    items = len(stored.arrays["features"]) if shards is None else shards[-1][1]
    sums = {name: value for one in told for name, value in one.items()}
    sums[_META] = _description_checksum(stored.metric, stored.rule, items, shards)
    meta = {
        "format": FORMAT,
        "version": VERSION if shards is None else SHARDED,
        "metric": stored.metric,
        "rule": asdict(stored.rule),
        "items": items,
        **({} if shards is None else {"shards": shards}),
        "sha256": sums,
    }
    (folder / _META).write_text(json.dumps(meta, indent=1) + "\n")


def load(path: str | os.PathLike[str], group: Group, *, verify: bool) -> Stored:
    """Open a saved index, in a group the items of this process; files are mapped, never written to.

    Each process has the items of a shard where there are as many shards as processes, else as many
    items as the others. What is not a whole shard is copied.

    Args:
        path: the folder.
        group: the processes.
        verify: compare files with their checksums, which reads them once; processes share that.

    Raises:
        UserError: it is no index, of another version, or a file is missing or damaged.
    """
    folder = Path(path)
    with group.together():
        described = _read_description(folder)
        if verify:
            for name in sorted(described.sums)[group.rank :: group.world]:
                _verify(folder, name, described.sums[name])
        shards = described.shards or [(0, described.items)]
        first, last = share_of(described.items, group)
        if len(shards) == group.world:
            first, last = shards[group.rank]
        own = (first, last) if first < last else (0, 0)
        overlapping = [one for one in shards if max(first, one[0]) < min(last, one[1])]
        pieces = [
            _Piece.of(folder, described, shard, verify=verify).cut(*own)
            for shard in overlapping or shards[:1]
        ]
        labels = {
            name: _mapped(folder, f"{_LABEL}{name}")
            for name in (*LABELS, ROW)
            if f"{_LABEL}{name}" in described.sums
        }
        for name, values in labels.items():
            _check(folder, name, values, (described.items,), "iufU")
        arrays = pieces[0].arrays if len(pieces) == 1 else _joined(pieces)
        if "inverted_rows" not in arrays:
            rows = CsrRows(*(torch.from_numpy(arrays[name]) for name in _LISTS[1]))
            _check_places(folder, "row_columns", arrays["row_columns"], described.items)
            columns = inverted(rows, first, described.items)
            arrays |= {n: one.numpy() for n, one in zip(_LISTS[2], columns, strict=True)}
    return Stored(described.rule, described.metric, arrays, labels)


@dataclass(frozen=True, slots=True)
class _Description:
    """What an index' description says: shards by first item and the one after the last."""

    metric: str
    rule: KReciprocal
    items: int
    shards: list[tuple[int, int]] | None
    sums: dict[str, str]


@dataclass(frozen=True, slots=True)
class _Piece:
    """Arrays of consecutive items, from the first one to the one before the last."""

    first: int
    last: int
    arrays: dict[str, np.ndarray]

    @classmethod
    def of(
        cls, folder: Path, described: _Description, shard: tuple[int, int], *, verify: bool
    ) -> _Piece:
        """Map the files of a shard; with `verify` places in other arrays are checked."""
        whole = None if described.shards is None else shard
        arrays = {name: _mapped(folder, _file(name, whole)) for name in ARRAYS}
        _check_arrays(folder, described, shard, arrays, values=verify)
        return cls(*shard, arrays)

    def cut(self, first: int, last: int) -> _Piece:
        """Return those of some items; of less than all without the inverted index."""
        low, high = max(first, self.first), max(first, min(last, self.last))
        if (low, high) == (self.first, self.last):
            return self
        own = slice(low - self.first, high - self.first)
        arrays = {
            name: self.arrays[name][own]
            for name in ("features", "neighbours", "distances", "maxima")
        }
        for offsets, *listed in _LISTS[:2]:
            ends = self.arrays[offsets][own.start : own.stop + 1]
            arrays[offsets] = ends - ends[0]
            arrays |= {name: self.arrays[name][ends[0] : ends[-1]] for name in listed}
        return _Piece(low, high, arrays)


def _joined(pieces: list[_Piece]) -> dict[str, np.ndarray]:
    """Return the arrays of pieces one after the other, without the inverted index."""
    arrays = {
        name: np.concatenate([piece.arrays[name] for piece in pieces])
        for name in ARRAYS
        if name not in _LISTS[2]
    }
    for offsets, *_ in _LISTS[:2]:
        sizes = [np.diff(piece.arrays[offsets]) for piece in pieces]
        arrays[offsets] = np.concatenate([np.zeros(1, np.int64), np.cumsum(np.concatenate(sizes))])
    return arrays


def _mapped(folder: Path, name: str) -> np.ndarray:
    file = folder / f"{name}.npy"
    try:
        # Copy on write: torch wants writable memory, the file is never written to.
        array: np.ndarray = np.load(file, mmap_mode="c", allow_pickle=False)
    except Exception as error:  # a damaged header ends in whatever NumPy trips over
        raise _unreadable(file, error) from error
    return array


def _verify(folder: Path, name: str, checksum: str) -> None:
    if name == _META:
        return
    file = folder / f"{name}.npy"
    try:
        damaged = sha256_of(file) != checksum
    except OSError as error:
        raise _unreadable(file, error) from error
    if damaged:
        raise UserError(f"{file} differs from its checksum; build the index again")


def _unreadable(file: Path, error: Exception) -> UserError:
    return UserError(f"{file} cannot be read ({first_line(error)}); build the index again")


def _read_description(folder: Path) -> _Description:
    """Return what an index' description says.

    Raises:
        UserError: it is no description of an index of these versions.
    """
    try:
        meta = read_json_object(folder / _META)
        if meta.get("format") != FORMAT:
            raise ValueError("another format")
        if meta.get("version") not in (VERSION, SHARDED):
            raise UserError(
                f"{folder}: expected an index of version {VERSION} or {SHARDED}, found "
                f"{meta.get('version')!r}; build it again"
            )
        metric, sums, settings, items = (
            meta[name] for name in ("metric", "sha256", "rule", "items")
        )
        if type(items) is not int or items < 1:
            raise ValueError(f"items: expected a number of at least 1, found {items!r}")
        shards = _shards(meta["shards"], items) if meta["version"] == SHARDED else None
        files = [_file(name, shard) for shard in shards or (None,) for name in ARRAYS]
        if not isinstance(sums, dict) or not all(isinstance(sums.get(one), str) for one in files):
            raise ValueError("sha256: expected a checksum for each array")
        check_metric(metric)
        rule = KReciprocal(**settings)
        # Indices of earlier versions have no checksum of it.
        checksum = _description_checksum(metric, rule, items, meta.get("shards"))
        if sums.get(_META, "") not in ("", checksum):
            raise UserError(f"{folder / _META} differs from its checksum; build the index again")
        return _Description(metric, rule, items, shards, sums)
    except (ValueError, KeyError, TypeError) as error:
        if isinstance(error, UserError) and str(folder) in str(error):
            raise
        reason = f"{error} is missing" if isinstance(error, KeyError) else error
        raise UserError(
            f"{folder} is no {SUFFIX} folder ({_META}: {reason}); write one with "
            "`python -m mmga.search --gallery ... --save-index NAME" + SUFFIX + "`"
        ) from error


def _shards(listed: Any, items: Any) -> list[tuple[int, int]]:
    """Return first and last items of the shards that a description lists."""
    shards = [(int(first), int(last)) for first, last in listed]
    ends = [0, *(last for _, last in shards)]
    if ends[-1] != items or any(
        first != before or last <= first
        for before, (first, last) in zip(ends, shards, strict=False)
    ):
        raise ValueError("shards: expected consecutive items")
    return shards


def _description_checksum(
    metric: str, rule: KReciprocal, items: object, shards: object = None
) -> str:
    told = [metric, asdict(rule), items] + ([] if shards is None else [shards])
    return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()


def _check_arrays(
    folder: Path,
    described: _Description,
    shard: tuple[int, int],
    arrays: dict[str, np.ndarray],
    *,
    values: bool,
) -> None:
    """Refuse arrays of a shard that do not belong together; with `values`, all are read for it.

    Raises:
        UserError: a type, a shape, a length or a place in another array is impossible.
    """
    rows, items = arrays["features"], described.items
    count = len(rows) if rows.ndim == 2 else -1
    expected = items if described.shards is None else shard[1] - shard[0]
    if expected != count:
        raise UserError(
            f"{folder}: {_META} says {expected!r} items, the arrays hold {count}; build the "
            "index again"
        )
    k = min(described.rule.neighbours_needed(items + 1), items)
    shapes = {"features": rows.shape, "maxima": (count,)}
    shapes |= dict.fromkeys(("neighbours", "distances"), (count, k))
    for (offsets, *listed), width in zip(_LISTS, (count, count, items), strict=True):
        held = arrays[offsets]
        valid = held.shape == (width + 1,) and held.dtype.kind == "i"
        if not valid or held[0] != 0 or (np.diff(held) < 0).any():
            raise UserError(f"{folder}: {offsets} are no offsets; build the index again")
        shapes |= dict.fromkeys(listed, (int(held[-1]),))
    for name, shape in shapes.items():
        array = arrays[name]
        _check(folder, name, array, shape, "i" if name in _PLACES else "f")
        if values and name in _PLACES:
            _check_places(folder, name, array, count if name == "inverted_rows" else items)


def _check_places(folder: Path, name: str, array: np.ndarray, items: int) -> None:
    if array.size and not 0 <= array.min() <= array.max() < items:
        raise _misfit(folder, name, array)


def _check(folder: Path, name: str, array: np.ndarray, shape: tuple[int, ...], kinds: str) -> None:
    if array.shape != shape or array.dtype.kind not in kinds or not array.dtype.isnative:
        raise _misfit(folder, name, array)


def _misfit(folder: Path, name: str, array: np.ndarray) -> UserError:
    return UserError(
        f"{folder}: {name} does not fit the other arrays (shape {list(array.shape)}, "
        f"{array.dtype}); build the index again"
    )
