"""Save the neighbour graph of a gallery, and re-rank single queries against it.

The result for a query equals the full computation over the gallery plus that one query. (Queries of
a batch see each other in the full computation, but not here.) Processes of a group may share the
gallery: each holds what is stored of its own items.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from mmga.common import ids
from mmga.common.arrays import as_tensor
from mmga.common.distributed import Group
from mmga.common.errors import UserError, whole_number
from mmga.common.memory import parse
from mmga.common.progress import Progress
from mmga.ops import k_reciprocal as ops
from mmga.ops.k_reciprocal import CsrRows
from mmga.ops.neighbours import squared_distances_
from mmga.ops.precision import float32_products
from mmga.retrieval.bounds.approximation import identity
from mmga.retrieval.features import JUNK
from mmga.retrieval.features.sharded_matrix import ShardedMatrix
from mmga.retrieval.features.vectors import VectorSet, exact_pair_keys, squared_distances
from mmga.retrieval.neighbours.certified_knn import exact_order
from mmga.retrieval.neighbours.knn import ArrayLike, check_metric, feature_rows, search
from mmga.retrieval.neighbours.shared_knn import check_certified, held_vectors
from mmga.retrieval.neighbours.shared_set import SharedSet
from mmga.retrieval.neighbours.tile_sizes import check_memory, search_bytes
from mmga.retrieval.reranking import index_files
from mmga.retrieval.reranking.encode import (
    averaged,
    encoded_distances,
    expanded_sets,
    set_distances,
)
from mmga.retrieval.reranking.index_files import ARRAYS, LABELS, Stored, inverted
from mmga.retrieval.reranking.settings import KReciprocal, check_rule
from mmga.retrieval.reranking.shared_encoding import encode_sets, sets_of_own
from mmga.retrieval.reranking.single_query import Graph, SingleQuery

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

_ROWS = 4096  # of a product with a query


class GalleryIndex:
    """A gallery's neighbour lists, k-reciprocal sets and encodings.

    Attributes:
        rule: settings of the re-ranking.
        metric: "cosine" or "euclidean".
        arrays: everything that is stored, by name, of the items that this process holds; never
            changed.
        labels: pid, camid and path of the items of all processes, each [G], as far as they are
            known, and their row in the file where junk was left out.
        held: numbers of the items that this process holds.
    """

    def __init__(
        self,
        rule: KReciprocal,
        metric: str,
        arrays: dict[str, np.ndarray],
        labels: dict[str, np.ndarray] | None = None,
        group: Group | None = None,
    ) -> None:
        """Take finished arrays, in a group those of every process; see `build` and `load`."""
        self.labels = labels or {}
        self.rule = rule
        self.metric = metric
        self.arrays = arrays
        group = group or Group()
        rows, lists = ShardedMatrix([torch.from_numpy(arrays["features"])]), arrays["neighbours"]
        if group.world == 1:
            self._vectors, counts = VectorSet([rows], metric), [len(rows)]
            pairs = self._vectors.exact_distances
        else:
            own, counts = held_vectors("index", rows, metric, group)
            pairs = SharedSet.of(own, [len(rows)], metric, group).exact_distances
            norms = torch.empty(0, dtype=torch.float64, device="cpu")
            none = VectorSet([rows.cut(0, 0)], metric, norms=norms)
            self._vectors = none if own is None else own
            lists = group.rows(torch.from_numpy(lists)).numpy()

        def exact_distances(left: np.ndarray, right: np.ndarray) -> np.ndarray:
            return pairs(torch.from_numpy(left), torch.from_numpy(right)).numpy()

        first = sum(counts[: group.rank])
        self.held = slice(first, first + len(rows))
        self._graph = Graph(arrays, lists, rule, metric, counts, group, exact_distances)

    def __len__(self) -> int:
        return len(self._graph.lists)

    @classmethod
    @float32_products()
    def build(
        cls,
        gallery: ArrayLike | None,
        rule: KReciprocal | None = None,
        metric: str = "cosine",
        *,
        exact: str | None = None,
        memory: str | int | None = None,
        progress: Progress | None = None,
        group: ProcessGroup | Group | bool | None = None,
    ) -> GalleryIndex:
        """Find and encode the neighbours of a gallery.

        Args:
            gallery: `Features` without junk, or a tensor or array [G, D]. None in a process of a
                group that holds none.
            rule: settings, `KReciprocal()` if None.
            metric: "cosine" or "euclidean".
            exact: whose order neighbours that nearly tie have, see `mmga.nearest`; queries join
                them in the order of float64 arithmetic wherever that can be.
            memory: bound on what the search for neighbours allocates, such as ``"2G"``.
            progress: called as (phase, done, total).
            group: of torch.distributed, True for the default one: each process gives its own rows
                of the gallery, one after the other by rank, and holds what is stored of them;
                `rerank` and `save` are then called by all together. On the CPU, and certified.

        Raises:
            UserError: the metric is unknown, a value is not finite, the gallery holds junk, or
                `memory` does not suffice.
        """
        with (processes := Group.of(group)).together():
            check_rule(rule)
            rule = rule or KReciprocal()
            check_metric(metric)
            pids = getattr(gallery, "pids", None)
            if pids is not None and (pids == JUNK).any():
                raise UserError(
                    f"gallery holds {int((pids == JUNK).sum())} junk items (pid -1), which take no "
                    "part in re-ranking; leave them out, for example by "
                    "gallery.select(gallery.pids != -1)"
                )
            bound, rows = parse(memory), None
            if gallery is not None or processes.world == 1:
                rows = feature_rows(gallery, "gallery")
        if processes.world == 1:
            assert rows is not None
            parts = _of_one(rows, rule, metric, (exact, bound, progress))
        else:
            parts = _of_all(rows, rule, metric, (exact, bound, progress), processes)
        arrays = {name: part.numpy() for name, part in zip(ARRAYS, parts, strict=True)}
        return cls(rule, metric, arrays, _labels_of_all(gallery, processes), processes)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the index as a folder of .npy files with a description and checksums.

        Processes of a group each write a shard of their items; all need the folder.

        Raises:
            UserError: the name does not end in .mmga-index, or the folder cannot be written.
        """
        stored = Stored(self.rule, self.metric, self.arrays, self.labels)
        index_files.save(stored, path, self._graph.group)

    @classmethod
    def load(
        cls,
        path: str | os.PathLike[str],
        *,
        verify: bool = True,
        group: ProcessGroup | Group | bool | None = None,
    ) -> GalleryIndex:
        """Open a saved index; its arrays are memory-mapped and never written to.

        Args:
            path: the folder.
            verify: compare every file with its checksum, which reads all of them once.
            group: of torch.distributed, True for the default one: each process holds some items,
                whatever number of processes saved them. As many as there are shards map them,
                other numbers copy what they hold.

        Raises:
            UserError: it is no index, of another version, or a file is missing or damaged.
        """
        processes = Group.of(group)
        stored = index_files.load(path, processes, verify=verify)
        return cls(stored.rule, stored.metric, stored.arrays, stored.labels, processes)

    @float32_products()
    def rerank(self, query: Tensor | np.ndarray) -> np.ndarray:
        """Return the re-ranked distances of one query to the whole gallery.

        Args:
            query: tensor or array [D]; processes of a group all give the same.

        Returns:
            [G] float64, equal to the full computation over the gallery plus this query; in a group
            those of the items of `held`.

        Raises:
            UserError: the width differs, or a value is not finite.
        """
        group = self._graph.group
        with group.together():
            vector = self._vector(query)
        group.agree("the query", vector.numpy().tobytes())
        with group.together():
            squared = self.squared_distances(vector)
        return SingleQuery(self._graph, self._ordered(vector, squared)).distances()

    def nearest(self, query: Tensor | np.ndarray, topk: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the nearest items of all to one query by re-ranked distance, in every process.

        Args:
            query: as in `rerank`.
            topk: 1 to the number of items.

        Returns:
            Distances float64 and numbers int64 [topk], in the order of (distance, number).

        Raises:
            UserError: as `rerank`, or `topk` is out of range.
        """
        topk = whole_number("topk", topk)
        if not 1 <= topk <= len(self):
            raise UserError(f"topk must be from 1 to the {len(self)} items, got {topk}")
        numbers, distances = self._graph.nearest(self.rerank(query), topk)
        return distances, numbers

    @float32_products()
    def squared_distances(self, vector: Tensor) -> np.ndarray:
        """Return the squared distances of a vector [D] to every item of `held`: [n] float32."""
        probe = VectorSet([ShardedMatrix([vector[None]])], self.metric)
        items, (first, last) = self._vectors, (self.held.start, self.held.stop)
        result = torch.empty(1, len(items), dtype=torch.float32, device="cpu")
        # One grid over the items of all processes, so that products have the shapes of one.
        for begin in range(first // _ROWS * _ROWS, last, _ROWS):
            end = min(begin + _ROWS, len(self))
            left, right = max(begin, first), min(end, last)
            own = slice(left - first, right - first)
            if (left, right) == (begin, end):
                block = items.block(own.start, own.stop)
            else:
                shape = end - begin, items.dimension
                block = torch.zeros(shape, dtype=torch.float32, device="cpu")
                items.read(own.start, own.stop, block[left - begin : right - begin])
            products = block @ probe.block(0, 1)[0]
            result[0, own] = products[left - begin : right - begin]
        squared_distances_(result, probe.terms, items.terms, cosine=self.metric == "cosine")
        return result[0].numpy()

    def _ordered(self, vector: Tensor, squared: np.ndarray) -> np.ndarray:
        """Return distances of a vector in the order that `search` gives neighbours: [n] float64.

        Those that may be in a neighbour list are exact where there are bounds on the error of
        `squared`: an item that nearly ties with others stands at the same place in the full
        computation.
        """
        items, group = self._vectors, self._graph.group
        probe = VectorSet([ShardedMatrix([vector[None]])], self.metric)
        distances = squared.astype(np.float64)
        # Those of a group are certified.
        if any("float32" in exact_order(one, None) for one in (items, probe)):
            return distances
        scale = 2.0 if self.metric == "cosine" else 1.0  # of squared distances to keys
        error = sum(
            identity(one.block(0, 0), one.norms, self.metric).slack for one in (items, probe)
        )
        away = scale * np.asarray(error)
        farthest = group.most(float(away.max()) if len(away) else 0.0)
        needed = self.rule.neighbours_needed(len(self) + 1)
        lists = self.arrays["distances"]
        limits = np.full(len(items), np.inf)
        if lists.shape[1] == needed:  # a list that still has room takes the query at any distance
            nearest = np.partition(distances, min(needed, len(items)) - 1)[:needed]
            nearest = group.rows(torch.from_numpy(nearest)).numpy()
            own = np.partition(nearest, needed - 1)[needed - 1] + farthest
            limits = np.maximum(lists[:, -1], own)
        with group.together():
            near = np.flatnonzero(distances - away <= limits)
            which = torch.from_numpy(near)
            keys = exact_pair_keys(probe, torch.zeros_like(which), items, which)
            distances[near] = squared_distances(keys, self.metric).numpy()
        return distances

    def exact_distances(self, left: np.ndarray, right: np.ndarray) -> np.ndarray:
        """Return the squared distances of pairs of items, float64 [P].

        Processes of a group call it together, each with items of its own on the left.
        """
        return self._graph.exact_distances(left, right)

    def _vector(self, query: Tensor | np.ndarray) -> Tensor:
        vector = as_tensor("query", query)
        if vector.shape != (self._vectors.dimension,):
            raise UserError(
                f"query must be one vector of {self._vectors.dimension} numbers, got "
                f"{list(vector.shape)}"
            )
        return vector.to(torch.float32)


_Search = tuple[str | None, int | None, Progress | None]
"""Whose order neighbours have, a bound on memory, and what is told of progress."""


def _of_one(
    rows: ShardedMatrix, rule: KReciprocal, metric: str, settings: _Search
) -> tuple[Tensor, ...]:
    """Return the arrays of an index, in the order of `ARRAYS`."""
    exact, memory, progress = settings
    vectors = VectorSet([rows], metric)
    # One more item will be there: the query.
    k = min(rule.neighbours_needed(len(rows) + 1), len(rows))
    needed = search_bytes(vectors, vectors, k)
    spare = check_memory(memory, needed, f"the neighbours of {len(rows)} items")
    near = search(vectors, k, exact=exact, spare=spare, progress=progress).neighbours
    sets = expanded_sets(near, rule)
    distances = set_distances(sets, near, vectors.pair_distances)
    encoded = ops.encode(sets, *encoded_distances(distances, near.maxima, rule))
    final = averaged(encoded, near.index, rule)
    listed = near.index, near.distances, near.maxima
    return rows.whole(), *listed, *sets, distances, *final, *ops.transpose_rows(final)


def _of_all(
    rows: ShardedMatrix | None,
    rule: KReciprocal,
    metric: str,
    settings: _Search,
    group: Group,
) -> tuple[Tensor, ...]:
    """Return the arrays of this process' items, of the index of the items of all."""
    exact, memory, progress = settings
    with group.together():
        check_certified(exact)
    group.agree("the settings", f"{rule} {metric}")
    vectors, counts = held_vectors("gallery", rows, metric, group)
    items = SharedSet.of(vectors, [counts[group.rank]], metric, group)
    k = min(rule.neighbours_needed(len(items) + 1), len(items))
    with group.together():
        needed = items.search_bytes(k)
        spare = check_memory(memory, needed, f"the neighbours of {len(items)} items")
    near = items.nearest(k, farthest=True, spare=spare, progress=progress)
    first, last = items.ranges[0]
    graph = sets_of_own(items, near, rule)
    sets = CsrRows(*graph.sets, graph.distances).cut(first, last)
    final = encode_sets(items, graph, rule, items.numbers)[0].cut(first, last)
    with group.together():
        whole = torch.empty(0, items.width, dtype=items.dtype, device="cpu")
        if rows is not None:
            whole = rows.whole()
        listed = near.index, near.distances, near.maxima
        return whole, *listed, *sets, *final, *inverted(final, first, len(items))


def row_labels(features: object) -> dict[str, np.ndarray]:
    """Return what names the rows of `Features`: pid, camid and path as far as they are known."""
    labels = {}
    for name, field in LABELS.items():
        values = getattr(features, field, None)
        if values is not None:
            words = getattr(features, f"{name}_names", None)
            labels[name] = values if name == "path" else ids.written(values, words)
    return labels


def _labels_of_all(gallery: ArrayLike | None, group: Group) -> dict[str, np.ndarray]:
    """Return what names the rows of all processes, as far as each of them knows it."""
    found = group.columns({} if gallery is None else row_labels(gallery))
    counts = group.table([0 if gallery is None else len(gallery)])[:, 0].tolist()
    held = [labels for labels, count in zip(found, counts, strict=True) if count]
    known = [name for name in LABELS if all(name in labels for labels in held)]
    return {name: np.concatenate([labels[name] for labels in held]) for name in known}
