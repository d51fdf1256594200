"""Save the neighbour graph of a gallery, and re-rank single queries against it.

The result for a query equals the full computation over the gallery plus that one query. (Queries of
a batch see each other in the full computation, but not here.)
"""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from mmga.common import ids
from mmga.common.arrays import as_tensor
from mmga.common.errors import UserError, first_line
from mmga.common.files import atomic_path, read_json_object, sha256_of
from mmga.common.memory import parse
from mmga.common.progress import Progress
from mmga.ops import k_reciprocal as ops
from mmga.ops.neighbours import squared_distances_
from mmga.ops.precision import float32_products
from mmga.retrieval.bounds.approximation import identity
from mmga.retrieval.features.sharded_matrix import ShardedMatrix
from mmga.retrieval.features.vectors import VectorSet, exact_pair_keys, squared_distances
from mmga.retrieval.neighbours.certified_knn import exact_order
from mmga.retrieval.neighbours.knn import ArrayLike, check_metric, feature_rows, search
from mmga.retrieval.neighbours.tile_sizes import check_memory, search_bytes
from mmga.retrieval.reranking.encode import (
    averaged,
    encoded_distances,
    expanded_sets,
    set_distances,
)
from mmga.retrieval.reranking.settings import KReciprocal, check_rule
from mmga.retrieval.reranking.single_query import SingleQuery

FORMAT = "mmga-index"
VERSION = 1
SUFFIX = ".mmga-index"
_META = "index.json"
_LABEL = "label_"
ROW = "row"
"""Label of the rows that items had before others were left out."""
_LABELS = {"pid": "pids", "camid": "camids", "path": "paths"}  # of files, of `Features`
_ARRAYS = (
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
# Lists of different lengths: their offsets, then what stands from one offset to the next.
_LISTS = (
    ("set_offsets", "set_columns", "set_distances"),
    ("row_offsets", "row_columns", "row_values"),
    ("inverted_offsets", "inverted_rows", "inverted_values"),
)
_PLACES = ("neighbours", "set_columns", "row_columns", "inverted_rows")


class GalleryIndex:
    """A gallery's neighbour lists, k-reciprocal sets and encodings.

    Attributes:
        rule: settings of the re-ranking.
        metric: "cosine" or "euclidean".
        arrays: everything that is stored, by name; never changed.
        labels: pid, camid and path of the items, each [G], as far as they are known, and their row
            in the file where junk was left out.
    """

    def __init__(
        self,
        rule: KReciprocal,
        metric: str,
        arrays: dict[str, np.ndarray],
        labels: dict[str, np.ndarray] | None = None,
    ) -> None:
        """Take finished arrays; see `build` and `load`."""
        self.labels = labels or {}
        self.rule = rule
        self.metric = metric
        self.arrays = arrays
        self._vectors = VectorSet([ShardedMatrix([torch.from_numpy(arrays["features"])])], metric)

    def __len__(self) -> int:
        return len(self.arrays["features"])

    @classmethod
    @float32_products()
    def build(
        cls,
        gallery: ArrayLike,
        rule: KReciprocal | None = None,
        metric: str = "cosine",
        *,
        exact: str | None = None,
        memory: str | int | None = None,
        progress: Progress | None = None,
    ) -> GalleryIndex:
        """Find and encode the neighbours of a gallery.

        Args:
            gallery: `Features` without junk, or a tensor or array [G, D].
            rule: settings, `KReciprocal()` if None.
            metric: "cosine" or "euclidean".
            exact: whose order neighbours that nearly tie have, see `mmga.nearest`; queries join
                them in the order of float64 arithmetic wherever that can be.
            memory: bound on what the search for neighbours allocates, such as ``"2G"``.
            progress: called as (phase, done, total).

        Raises:
            UserError: the metric is unknown, a value is not finite, the gallery holds junk, or
                `memory` does not suffice.
        """
        check_rule(rule)
        rule = rule or KReciprocal()
        check_metric(metric)
        pids = getattr(gallery, "pids", None)
        if pids is not None and (pids == -1).any():
            raise UserError(
                f"gallery holds {int((pids == -1).sum())} junk items (pid -1), which take no part "
                "in re-ranking; leave them out, for example by gallery.select(gallery.pids != -1)"
            )
        rows = feature_rows(gallery, "gallery")
        vectors = VectorSet([rows], metric)
        # One more item will be there: the query.
        k = min(rule.neighbours_needed(len(rows) + 1), len(rows))
        needed = search_bytes(vectors, vectors, k)
        check_memory(parse(memory), needed, f"the neighbours of {len(rows)} items")
        near = search(vectors, k, exact=exact, progress=progress).neighbours
        sets = expanded_sets(near, rule)
        distances = set_distances(sets, near, vectors.pair_distances)
        encoded = ops.encode(sets, *encoded_distances(distances, near.maxima, rule))
        final = averaged(encoded, near.index, rule)
        parts = (
            rows.whole(),
            near.index,
            near.distances,
            near.maxima,
            *sets,
            distances,
            *final,
            *ops.transpose_rows(final),
        )
        arrays = {name: part.numpy() for name, part in zip(_ARRAYS, parts, strict=True)}
        return cls(rule, metric, arrays, row_labels(gallery))

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the index as a folder of .npy files with a description and checksums.

        Raises:
            UserError: the name does not end in .mmga-index, or the folder cannot be written.
        """
        target = Path(path)
        if target.suffix != SUFFIX:
            raise UserError(f"index: expected a folder name ending in {SUFFIX}, found {target}")
        with atomic_path(target) as folder:
            folder.mkdir()
            sums = {}
            labels = {f"{_LABEL}{name}": values for name, values in self.labels.items()}
            for name, array in {**self.arrays, **labels}.items():
                np.save(folder / f"{name}.npy", array, allow_pickle=False)
                sums[name] = sha256_of(folder / f"{name}.npy")
            sums[_META] = _description_checksum(self.metric, self.rule, len(self))
            meta = {
                "format": FORMAT,
                "version": VERSION,
                "metric": self.metric,
                "rule": asdict(self.rule),
                "items": len(self),
                "sha256": sums,
            }
            (folder / _META).write_text(json.dumps(meta, indent=1) + "\n")

    @classmethod
    def load(cls, path: str | os.PathLike[str], *, verify: bool = True) -> GalleryIndex:
        """Open a saved index; its arrays are memory-mapped and never written to.

        Args:
            path: the folder.
            verify: compare every file with its checksum, which reads all of them once.

        Raises:
            UserError: it is no index, of another version, or a file is missing or damaged.
        """
        folder = Path(path)
        metric, rule, items, sums = _read_description(folder)
        arrays = {}
        labels = [f"{_LABEL}{name}" for name in (*_LABELS, ROW) if f"{_LABEL}{name}" in sums]
        for name in (*_ARRAYS, *labels):
            file = folder / f"{name}.npy"
            try:
                # Copy on write: torch wants writable memory, the file is never written to.
                arrays[name] = np.load(file, mmap_mode="c", allow_pickle=False)
                damaged = verify and sha256_of(file) != sums.get(name)
            except Exception as error:  # a damaged header ends in whatever NumPy trips over
                raise UserError(
                    f"{file} cannot be read ({first_line(error)}); build the index again"
                ) from error
            if damaged:
                raise UserError(f"{file} differs from its checksum; build the index again")
        _check_arrays(folder, rule, items, arrays, values=verify)
        named = {name.removeprefix(_LABEL): arrays.pop(name) for name in labels}
        return cls(rule, metric, arrays, named)

    @float32_products()
    def rerank(self, query: Tensor | np.ndarray) -> np.ndarray:
        """Return the re-ranked distances of one query to the whole gallery.

        Args:
            query: tensor or array [D].

        Returns:
            [G] float64, equal to the full computation over the gallery plus this query.

        Raises:
            UserError: the width differs, or a value is not finite.
        """
        vector = self._vector(query)
        squared = self._ordered(vector, self.squared_distances(vector))
        single = SingleQuery(self.arrays, self.rule, self.metric, squared, self.exact_distances)
        return single.distances()

    @float32_products()
    def squared_distances(self, vector: Tensor) -> np.ndarray:
        """Return the squared distances of a vector [D] to every item: [G] float32."""
        probe = VectorSet([ShardedMatrix([vector[None]])], self.metric)
        result = torch.empty(1, len(self), dtype=torch.float32, device="cpu")
        for begin in range(0, len(self), 4096):
            end = min(begin + 4096, len(self))
            result[0, begin:end] = self._vectors.block(begin, end) @ probe.block(0, 1)[0]
        squared_distances_(result, probe.terms, self._vectors.terms, cosine=self.metric == "cosine")
        return result[0].numpy()

    def _ordered(self, vector: Tensor, squared: np.ndarray) -> np.ndarray:
        """Return distances of a vector in the order that `search` gives neighbours: [G] float64.

        Those that may be in a neighbour list are exact where there are bounds on the error of
        `squared`: an item that nearly ties with others stands at the same place in the full
        computation.
        """
        items, probe = self._vectors, VectorSet([ShardedMatrix([vector[None]])], self.metric)
        distances = squared.astype(np.float64)
        if any("float32" in exact_order(one, None) for one in (items, probe)):
            return distances
        scale = 2.0 if self.metric == "cosine" else 1.0  # of squared distances to keys
        error = sum(
            identity(one.block(0, 1), one.norms, self.metric).slack for one in (items, probe)
        )
        away = scale * np.asarray(error)
        needed = self.rule.neighbours_needed(len(items) + 1)
        lists = self.arrays["distances"]
        limits = np.full(len(items), np.inf)
        if lists.shape[1] == needed:  # a list that still has room takes the query at any distance
            own = np.partition(distances, needed - 1)[needed - 1] + away.max()
            limits = np.maximum(lists[:, -1], own)
        near = np.flatnonzero(distances - away <= limits)
        which = torch.from_numpy(near)
        keys = exact_pair_keys(probe, torch.zeros_like(which), items, which)
        distances[near] = squared_distances(keys, self.metric).numpy()
        return distances

    def exact_distances(self, left: np.ndarray, right: np.ndarray) -> np.ndarray:
        """Return the squared distances of pairs of items: [P] float64."""
        return self._vectors.exact_distances(
            torch.from_numpy(left), torch.from_numpy(right)
        ).numpy()

    def _vector(self, query: Tensor | np.ndarray) -> Tensor:
        vector = as_tensor("query", query)
        if vector.shape != (self._vectors.dimension,):
            raise UserError(
                f"query must be one vector of {self._vectors.dimension} numbers, got "
                f"{list(vector.shape)}"
            )
        return vector.to(torch.float32)


def _read_description(folder: Path) -> tuple[str, KReciprocal, object, dict[str, str]]:
    """Return metric, settings, number of items and checksums by name from an index' description.

    Raises:
        UserError: it is no description of an index of this version.
    """
    try:
        meta = read_json_object(folder / _META)
        if meta.get("format") != FORMAT:
            raise ValueError("another format")
        if meta.get("version") != VERSION:
            raise UserError(
                f"{folder}: expected an index of version {VERSION}, found "
                f"{meta.get('version')!r}; build it again"
            )
        metric, sums, settings, items = (
            meta[name] for name in ("metric", "sha256", "rule", "items")
        )
        if not isinstance(sums, dict) or not all(isinstance(sums.get(one), str) for one in _ARRAYS):
            raise ValueError("sha256: expected a checksum for each array")
        check_metric(metric)
        rule = KReciprocal(**settings)
        # Indices of earlier versions have no checksum of it.
        if sums.get(_META, "") not in ("", _description_checksum(metric, rule, items)):
            raise UserError(f"{folder / _META} differs from its checksum; build the index again")
        return metric, rule, items, sums
    except (ValueError, KeyError, TypeError) as error:
        if isinstance(error, UserError) and str(folder) in str(error):
            raise
        reason = f"{error} is missing" if isinstance(error, KeyError) else error
        raise UserError(
            f"{folder} is no {SUFFIX} folder ({_META}: {reason}); write one with "
            "`python -m mmga.search --gallery ... --save-index NAME" + SUFFIX + "`"
        ) from error


def _description_checksum(metric: str, rule: KReciprocal, items: object) -> str:
    text = json.dumps([metric, asdict(rule), items], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def _check_arrays(
    folder: Path,
    rule: KReciprocal,
    items: object,
    arrays: dict[str, np.ndarray],
    *,
    values: bool,
) -> None:
    """Refuse arrays that do not belong together; with `values`, all of them are read for it.

    Raises:
        UserError: a type, a shape, a length or a place in another array is impossible.
    """
    rows = arrays["features"]
    count = len(rows) if rows.ndim == 2 else -1
    shapes = {"features": rows.shape, "maxima": (count,)}
    shapes |= dict.fromkeys(
        ("neighbours", "distances"), (count, min(rule.neighbours_needed(count + 1), count))
    )
    for offsets, *listed in _LISTS:
        held = arrays[offsets]
        valid = held.shape == (count + 1,) and held.dtype.kind == "i"
        if not valid or held[0] != 0 or (np.diff(held) < 0).any():
            raise UserError(f"{folder}: {offsets} are no offsets; build the index again")
        shapes |= dict.fromkeys(listed, (int(held[-1]),))
    shapes |= {name: (count,) for name in arrays if name.startswith(_LABEL)}
    if items != count:
        raise UserError(
            f"{folder}: {_META} says {items!r} items, the arrays hold {count}; build the "
            "index again"
        )
    for name, shape in shapes.items():
        array, places = arrays[name], name in _PLACES
        kind = "i" if places else "iufU" if name.startswith(_LABEL) else "f"
        wrong = array.shape != shape or array.dtype.kind not in kind or not array.dtype.isnative
        if wrong or (
            values and places and array.size and not 0 <= array.min() <= array.max() < count
        ):
            raise UserError(
                f"{folder}: {name} does not fit the other arrays (shape {list(array.shape)}, "
                f"{array.dtype}); build the index again"
            )


def row_labels(features: object) -> dict[str, np.ndarray]:
    """Return what names the rows of `Features`: pid, camid and path as far as they are known."""
    labels = {}
    for name, field in _LABELS.items():
        values = getattr(features, field, None)
        if values is not None:
            words = getattr(features, f"{name}_names", None)
            labels[name] = values if name == "path" else ids.written(values, words)
    return labels
