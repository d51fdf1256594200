"""Re-rank one new query exactly, by recomputing the rows of a stored graph that it changes.

The query is item `QUERY`, before all others in the order of ties. It changes the lists that it
enters, the reciprocal sets that contain or lose an item for that, the expanded sets built from
these, encodings whose set or whose maximum changed, and the means of those: some dozens to some
hundreds of rows of a gallery of any size.

Processes may share the gallery. All know the neighbour lists; each computes encodings, means and
distances of its own items, and gets the encodings of others that its means are made of.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
import torch

from mmga.common.distributed import Group, exchange
from mmga.ops.neighbours import nearest_in_rows
from mmga.retrieval.neighbours.shared_knn import merged
from mmga.retrieval.reranking.settings import KReciprocal

QUERY = -1
Row = tuple[np.ndarray, np.ndarray]
"""Columns, ascending, and their values."""


@dataclass(frozen=True, slots=True)
class Graph:
    """The stored graph of a gallery of G items, of which each process of a group holds some.

    Attributes:
        arrays: of a `GalleryIndex`: of the n items that this process holds.
        lists: neighbour lists of all items, int32 [G, K].
        rule: settings of the re-ranking.
        metric: "cosine" or "euclidean".
        counts: items of each process, which are numbered one after the other.
        group: the processes.
        exact_distances: gives the squared distances of pairs of an item that is held here and any
            item, float64 [P]; all processes call it together.
    """

    arrays: dict[str, np.ndarray]
    lists: np.ndarray
    rule: KReciprocal
    metric: str
    counts: list[int]
    group: Group
    exact_distances: Callable[[np.ndarray, np.ndarray], np.ndarray]

    @property
    def bounds(self) -> list[int]:
        """First item of each process, and the number of all."""
        return list(itertools.accumulate(self.counts, initial=0))

    def nearest(self, distances: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the k nearest of all items, and their distances, in every process.

        Args:
            distances: of the items held here, float64 [n].
            k: 1 to G.

        Returns:
            Numbers int64 and float64 [k], in the order of (distance, number).
        """
        widths = [min(k, count) for count in self.counts]
        near = torch.from_numpy(distances)[None]
        which = torch.empty(1, 0, dtype=torch.int32, device="cpu")
        if len(distances):
            near, which = nearest_in_rows(near, widths[self.group.rank])
        numbers, nearest = merged(which, near, (widths, self.bounds[:-1]), k, self.group)
        return numbers[0].numpy(), nearest[0].numpy()


class SingleQuery:
    """Compute the re-ranked distances of one query; all processes of a group do so together."""

    def __init__(self, graph: Graph, squared: np.ndarray) -> None:
        """Find the neighbour lists that the query enters.

        Args:
            graph: of the gallery.
            squared: squared distances of the query to the items held here, float64 [n], whose order
                counts; what is computed from them has them rounded to float32, as lists do.
        """
        self._graph, self._rule, self._group = graph, graph.rule, graph.group
        bounds = graph.bounds
        self._items, self._first = bounds[-1], bounds[self._group.rank]
        needed = self._rule.neighbours_needed(self._items + 1)
        self._length = min(self._rule.list_length, self._items + 1)
        self._half = min(self._rule.half_length, self._items + 1)
        self._k2 = min(self._rule.k2, self._items + 1)
        self._d = squared.astype(np.float32)
        self._largest = self._group.most(float(self._d.max()) if len(squared) else 0.0)
        self._maxima = np.maximum(graph.arrays["maxima"], self._d)
        self._places: dict[int, int] = {}  # item -> place of the query in its list
        self._lists: dict[int, list[int]] = {}
        for item, place in self._entered(squared, needed):
            self._places[item] = place
            changed = graph.lists[item].tolist()
            changed.insert(place, QUERY)
            self._lists[item] = changed[:needed]
        own = min(needed - 1, self._items)
        self._lists[QUERY] = [QUERY, *(graph.nearest(squared, own)[0].tolist() if own else ())]
        # A method-level cache would keep this object alive; these are freed with it.
        self._reciprocal = functools.cache(self._reciprocal_of)
        self._expanded = functools.cache(self._expanded_of)
        self._weights: dict[int, Row] = {}  # encodings before the mean

    def distances(self) -> np.ndarray:
        """Return the final distances of the query to the items held here: [n] float64."""
        arrays, group = self._graph.arrays, self._group
        with group.together():
            columns = np.array(self._expanded(QUERY), dtype=np.int64)
        self._weights[QUERY] = columns, self._weighted(self._of_query(columns), self._largest)
        self._weigh(self._averaged_in(QUERY))
        with group.together():
            mine = dict(zip(*(part.tolist() for part in self._mean(QUERY)), strict=True))
            overlap = np.zeros(len(self._d))
            offsets = arrays["inverted_offsets"]
            for column, weight in mine.items():
                if column != QUERY:
                    part = slice(int(offsets[column]), int(offsets[column + 1]))
                    values = np.minimum(weight, arrays["inverted_values"][part])
                    overlap[arrays["inverted_rows"][part]] += values  # rows differ
        changed = self._changed_means(overlap > 0)
        self._weigh(part for item in changed for part in self._averaged_in(item))
        with group.together():
            for item in changed:
                shared = 0.0
                for column, weight in zip(*self._mean(item), strict=True):
                    shared += min(mine.get(int(column), 0.0), float(weight))
                overlap[item - self._first] = shared
            return self._final(np.clip(1 - overlap / (2 - overlap), 0, 1))

    def _final(self, jaccard: np.ndarray) -> np.ndarray:
        d = self._d.astype(np.float64)
        if self._rule.variant == "fastreid":
            original = d * (0.5 if self._graph.metric == "cosine" else 1.0)
        else:
            largest = self._largest
            if self._rule.variant == "torchreid":
                d, largest = d * d, largest * largest
            original = d / largest if largest > 0 else np.zeros_like(d)
        rest = 1 - self._rule.lambda_value
        return np.asarray(rest * jaccard + self._rule.lambda_value * original)

    def _entered(self, squared: np.ndarray, needed: int) -> list[list[int]]:
        """Return the items of all processes whose lists the query enters, each with its place."""
        near, distances = (self._graph.arrays[name] for name in ("neighbours", "distances"))
        with self._group.together():
            # A list that still has room takes the query at any distance.
            worst = distances[:, -1] if near.shape[1] == needed else np.float32(np.inf)
            items = np.flatnonzero(self._d <= worst)
            rounded, listed = self._d[items, None], distances[items]
            place, after = (listed < rounded).sum(1), (listed <= rounded).sum(1)
            # Stored distances are rounded to float32: of equal ones, the order is that of exact
            # ones, and the query stands before all at its distance.
            row = np.repeat(np.arange(len(items)), after - place)
            starts = np.cumsum(after - place) - (after - place)
            column = np.arange(len(row)) - starts[row] + place[row]
            among = near[items][row, column].astype(np.int64)
        exact = self._graph.exact_distances(items[row] + self._first, among)
        place += np.bincount(row[exact < squared[items[row]]], minlength=len(items))
        entered = np.stack([items + self._first, place], 1)[place < needed]
        found: list[list[int]] = self._group.rows(torch.from_numpy(entered)).tolist()
        return found

    def _list(self, item: int) -> list[int]:
        if item not in self._lists:
            self._lists[item] = self._graph.lists[item].tolist()
        return self._lists[item]

    def _reciprocal_of(self, item: int, length: int) -> list[int]:
        return [j for j in self._list(item)[:length] if item in self._list(j)[:length]]

    def _moved(self, length: int) -> set[int]:
        """Return the items whose reciprocal set at this length may have changed."""
        moved = {QUERY}
        for item, place in self._places.items():
            if place < length:
                moved.add(item)
                before = self._graph.lists[item]
                if len(before) >= length:  # this one lost its place to the query
                    moved.add(int(before[length - 1]))
        return moved

    @functools.cached_property
    def _changed(self) -> set[int]:
        """The items whose expanded sets may have changed."""
        changed = self._moved(self._length)
        for item in self._moved(self._half):
            # Being in one another's set is mutual: these are the sets that hold the item.
            changed.update(self._reciprocal(item, self._length))
        return changed

    def _expanded_of(self, item: int) -> list[int]:
        near = set(self._reciprocal(item, self._length))
        joined = set(near)
        for j in near:
            half = self._reciprocal(j, self._half)
            if 3 * len(near.intersection(half)) > 2 * len(half):
                joined.update(half)
        return sorted(joined)

    def _weigh(self, items: Iterable[int]) -> None:
        """Make the encodings before the mean of some items known here."""
        group, bounds = self._group, self._graph.bounds
        with group.together():
            asked = np.array(sorted({*items} - self._weights.keys()), dtype=np.int64)
            sizes = np.diff(np.searchsorted(asked, bounds)).tolist()
        wanted, of = exchange(torch.from_numpy(asked), sizes, group)
        rows = self._own_weights(wanted.tolist())
        lengths = [len(columns) for columns, _ in rows]
        pieces = itertools.accumulate(of, initial=0)
        totals = [sum(lengths[a:b]) for a, b in itertools.pairwise(pieces)]
        answers = [torch.from_numpy(np.concatenate(part)) for part in _parts(rows)]
        sizes = exchange(torch.tensor(lengths, dtype=torch.int64, device="cpu"), of, group)[0]
        columns, values = (exchange(part, totals, group)[0].numpy() for part in answers)
        ends = [0, *sizes.cumsum(0).tolist()]
        for item, (a, b) in zip(asked.tolist(), itertools.pairwise(ends), strict=True):
            self._weights[item] = columns[a:b], values[a:b]

    def _own_weights(self, items: list[int]) -> list[Row]:
        """Return the encodings before the mean of items that are held here."""
        with self._group.together():
            sets = [self._set(item) for item in items]
            row = np.repeat(np.array(items, np.int64), [len(columns) for columns, _ in sets])
            columns, distances = map(np.concatenate, _parts(sets))
            missing = np.flatnonzero(distances < 0)
        exact = self._graph.exact_distances(row[missing], columns[missing])
        distances[missing] = exact.astype(np.float32)
        ends = np.cumsum([0, *(len(columns) for columns, _ in sets)]).tolist()
        return [
            (columns, self._weighted(distances[a:b], float(self._maxima[item - self._first])))
            for item, (columns, _), (a, b) in zip(
                items, sets, itertools.pairwise(ends), strict=True
            )
        ]

    def _set(self, item: int) -> Row:
        """Return the expanded set of an item held here, and distances: -1 of those not known."""
        first, last = self._graph.arrays["set_offsets"][item - self._first :][:2]
        columns = np.asarray(self._graph.arrays["set_columns"][first:last], dtype=np.int64)
        distances = self._graph.arrays["set_distances"][first:last]
        if item not in self._changed:
            return columns, distances
        known = dict(zip(columns.tolist(), distances.tolist(), strict=True))
        known[QUERY] = float(self._d[item - self._first])
        columns = np.array(self._expanded(item), dtype=np.int64)
        return columns, np.array([known.get(column, -1.0) for column in columns.tolist()])

    def _of_query(self, columns: np.ndarray) -> np.ndarray:
        """Return the query's distances to itself and items, float64, in every process."""
        here = np.flatnonzero((columns >= self._first) & (columns < self._first + len(self._d)))
        distances = np.zeros(len(columns))
        distances[here] = self._d[columns[here] - self._first]
        return self._group.union(torch.from_numpy(distances)).numpy()

    def _weighted(self, distances: np.ndarray, largest: float) -> np.ndarray:
        """Return the weights of a set, given its distances and its item's largest one."""
        if not len(distances):
            return distances
        if self._rule.variant == "fastreid":
            scaled = distances - distances.min()
        else:
            if self._rule.variant == "torchreid":
                distances, largest = distances * distances, largest * largest
            scaled = distances / largest if largest > 0 else np.zeros_like(distances)
        weights = np.exp(-scaled)
        return np.asarray(weights / weights.sum())

    def _averaged_in(self, item: int) -> list[int]:
        """Return the items whose encodings are averaged for one."""
        return [item] if self._k2 == 1 else self._list(item)[: self._k2]

    def _mean(self, item: int) -> Row:
        """Return the encoding of an item after the mean."""
        parts = [self._weights[j] for j in self._averaged_in(item)]
        if self._k2 == 1:
            return parts[0]
        columns, place = np.unique(np.concatenate([c for c, _ in parts]), return_inverse=True)
        total = np.zeros(len(columns))
        np.add.at(total, place, np.concatenate([w for _, w in parts]))
        return columns, total / self._k2

    def _changed_means(self, overlapping: np.ndarray) -> list[int]:
        """Return the items held here whose encoding after the mean has to be computed again.

        A raised maximum changes weights but no set: of those, only items that overlap with the
        query's encoding matter.
        """
        with self._group.together():
            higher = np.flatnonzero(self._d > self._graph.arrays["maxima"]) + self._first
            sets = np.array([item for item in self._changed if item != QUERY], dtype=np.int64)
        raised, reset = np.zeros(self._items, dtype=bool), np.zeros(self._items, dtype=bool)
        if self._rule.divides:
            raised[self._group.rows(torch.from_numpy(higher)).numpy()] = True
        reset[sets] = True
        own = slice(self._first, self._first + len(self._d))
        if self._k2 == 1:
            reset, raised = reset[own], raised[own]
        else:
            heads = self._graph.arrays["neighbours"][:, : self._k2]
            entered = [item for item, place in self._places.items() if place < self._k2]
            # Others come after them: their own processes mark these.
            here = [item - own.start for item in entered if own.start <= item < own.stop]
            reset, raised = reset[heads].any(1), raised[heads].any(1)
            reset[here] = True
        return (np.flatnonzero(reset | (raised & overlapping)) + own.start).tolist()


def _parts(rows: list[Row]) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Return the columns and the values of rows, each after an empty piece of its type."""
    columns = [np.zeros(0, np.int64), *(columns for columns, _ in rows)]
    return columns, [np.zeros(0), *(values for _, values in rows)]
