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

from mmga.common.arrays import as_tensor
from mmga.common.errors import UserError
from mmga.common.files import atomic_path
from mmga.common.progress import Progress
from mmga.ops import k_reciprocal as ops
from mmga.ops.neighbours import squared_distances_
from mmga.ops.precision import float32_products
from mmga.retrieval.features.sharded_matrix import ShardedMatrix
from mmga.retrieval.features.vectors import VectorSet
from mmga.retrieval.neighbours.knn import ArrayLike, check_metric, feature_rows, search
from mmga.retrieval.reranking.encode import (
    averaged,
    encoded_distances,
    expanded_sets,
    set_distances,
)
from mmga.retrieval.reranking.settings import KReciprocal
from mmga.retrieval.reranking.single_query import SingleQuery

FORMAT = "mmga-index"
VERSION = 1
SUFFIX = ".mmga-index"
_META = "index.json"
_LABEL = "label_"
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


class GalleryIndex:
    """A gallery's neighbour lists, k-reciprocal sets and encodings.

    Attributes:
        rule: settings of the re-ranking.
        metric: "cosine" or "euclidean".
        arrays: everything that is stored, by name; never changed.
        labels: pid, camid and path of the items, each [G], as far as they are known.
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
        progress: Progress | None = None,
    ) -> GalleryIndex:
        """Find and encode the neighbours of a gallery.

        Args:
            gallery: `Features` without junk, or a tensor or array [G, D].
            rule: settings, `KReciprocal()` if None.
            metric: "cosine" or "euclidean".
            progress: called as (phase, done, total).

        Raises:
            UserError: the metric is unknown, a value is not finite, or the gallery holds junk.
        """
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
        near = search(vectors, k, exact="float32", progress=progress).neighbours
        sets = expanded_sets(near, rule)
        distances = set_distances(sets, near, vectors.pair_distances)
        encoded = ops.encode(sets, *encoded_distances(distances, near.maxima, rule))
        final = averaged(encoded, near, rule)
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
                sums[name] = _checksum(folder / f"{name}.npy")
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
        labels = [name for name in sums if name.startswith(_LABEL)]
        for name in (*_ARRAYS, *labels):
            file = folder / f"{name}.npy"
            try:
                # Copy on write: torch wants writable memory, the file is never written to.
                arrays[name] = np.load(file, mmap_mode="c", allow_pickle=False)
                damaged = verify and _checksum(file) != sums.get(name)
            except (OSError, ValueError) as error:
                raise UserError(
                    f"{file} cannot be read ({error}); build the index again"
                ) from error
            if damaged:
                raise UserError(f"{file} differs from its checksum; build the index again")
        if items != len(arrays["features"]):
            raise UserError(
                f"{folder}: {_META} says {items!r} items, the arrays hold "
                f"{len(arrays['features'])}; build the index again"
            )
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
        squared = self.squared_distances(self._vector(query))
        single = SingleQuery(self.arrays, self.rule, self.metric, squared, self.pair_distances)
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

    def pair_distances(self, left: np.ndarray, right: np.ndarray) -> np.ndarray:
        """Return the squared distances of pairs of items: [P] float64."""
        return self._vectors.pair_distances(torch.from_numpy(left), torch.from_numpy(right)).numpy()

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
        meta = json.loads((folder / _META).read_text())
        if not isinstance(meta, dict) or meta.get("format") != FORMAT:
            raise ValueError("another format")
        if meta.get("version") != VERSION:
            raise UserError(
                f"{folder}: expected an index of version {VERSION}, found "
                f"{meta.get('version')!r}; build it again"
            )
        metric, sums, settings, items = (
            meta[name] for name in ("metric", "sha256", "rule", "items")
        )
        if not isinstance(sums, dict) or not all(isinstance(one, str) for one in sums.values()):
            raise ValueError("sha256: expected a checksum for each array")
        check_metric(metric)
        return metric, KReciprocal(**settings), items, sums
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{folder} is no {SUFFIX} folder ({_META}: {error}); write one with "
            "`python -m mmga.search --gallery ... --save-index NAME" + SUFFIX + "`"
        ) from error


def row_labels(features: object) -> dict[str, np.ndarray]:
    """Return what names the rows of `Features`: pid, camid and path as far as they are known."""
    labels = {}
    for name, field in (("pid", "pids"), ("camid", "camids"), ("path", "paths")):
        values = getattr(features, field, None)
        words = getattr(features, f"{name}_names", None)
        if values is not None:
            labels[name] = values if words is None else words[values]
    return labels


def _checksum(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
