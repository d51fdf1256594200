"""Re-rank one new query exactly, by recomputing the rows of a stored graph that it changes.

The query is item `QUERY`, before all others in the order of ties. It changes the lists that it
enters, the reciprocal sets that contain or lose an item for that, the expanded sets built from
these, encodings whose set or whose maximum changed, and the means of those: some dozens to some
hundreds of rows of a gallery of any size.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import numpy as np
import torch

from mmga.ops.neighbours import nearest_in_rows
from mmga.retrieval.reranking.settings import KReciprocal

QUERY = -1
Row = tuple[np.ndarray, np.ndarray]
"""Columns, ascending, and their values."""


class SingleQuery:
    """Compute the re-ranked distances of one query over the stored arrays of a gallery."""

    def __init__(
        self,
        arrays: dict[str, np.ndarray],
        rule: KReciprocal,
        metric: str,
        squared: np.ndarray,
        exact_distances: Callable[[np.ndarray, np.ndarray], np.ndarray],
    ) -> None:
        """Find the neighbour lists that the query enters.

        Args:
            arrays: of a `GalleryIndex` of G items.
            rule: settings of the re-ranking.
            metric: "cosine" or "euclidean".
            squared: squared distances of the query to every item, float64 [G], whose order counts;
                what is computed from them has them rounded to float32, as lists do.
            exact_distances: gives the squared distances of pairs of items, see `GalleryIndex`.
        """
        self._rule, self._arrays, self._metric = rule, arrays, metric
        self._exact_distances = exact_distances
        count = len(squared) + 1
        needed = self._rule.neighbours_needed(count)
        self._length = min(self._rule.list_length, count)
        self._half = min(self._rule.half_length, count)
        self._k2 = min(self._rule.k2, count)
        self._d = squared.astype(np.float32)
        near, distances = self._arrays["neighbours"], self._arrays["distances"]
        # A list that still has room takes the query at any distance.
        worst = distances[:, -1] if near.shape[1] == needed else np.float32(np.inf)
        self._places: dict[int, int] = {}  # item -> place of the query in its list
        self._lists: dict[int, list[int]] = {}
        for item in np.flatnonzero(self._d <= worst).tolist():
            place = self._place(item, float(squared[item]))
            if place == needed:
                continue
            self._places[item] = place
            changed = near[item].tolist()
            changed.insert(place, QUERY)
            self._lists[item] = changed[:needed]
        own = min(needed - 1, len(squared))
        self._lists[QUERY] = [QUERY]
        if own:
            order = nearest_in_rows(torch.from_numpy(squared)[None], own)[1][0]
            self._lists[QUERY] += order.tolist()
        self._maxima = np.maximum(self._arrays["maxima"], self._d)
        # A method-level cache would keep this object alive; these are freed with it.
        self._reciprocal = functools.cache(self._reciprocal_of)
        self._weights = functools.cache(self._weights_of)

    def distances(self) -> np.ndarray:
        """Return the final distances of the query to every item: [G] float64."""
        mine = dict(zip(*(part.tolist() for part in self._mean(QUERY)), strict=True))
        overlap = np.zeros(len(self._d))
        offsets = self._arrays["inverted_offsets"]
        for column, weight in mine.items():
            if column != QUERY:
                part = slice(int(offsets[column]), int(offsets[column + 1]))
                values = np.minimum(weight, self._arrays["inverted_values"][part])
                overlap[self._arrays["inverted_rows"][part]] += values  # rows differ
        for item in self._changed_means(overlap > 0):
            shared = 0.0
            for column, weight in zip(*self._mean(item), strict=True):
                shared += min(mine.get(int(column), 0.0), float(weight))
            overlap[item] = shared
        jaccard = np.clip(1 - overlap / (2 - overlap), 0, 1)
        d = self._d.astype(np.float64)
        if self._rule.variant == "fastreid":
            original = d * (0.5 if self._metric == "cosine" else 1.0)
        else:
            largest = float(self._d.max())
            if self._rule.variant == "torchreid":
                d, largest = d * d, largest * largest
            original = d / largest if largest > 0 else np.zeros_like(d)
        rest = 1 - self._rule.lambda_value
        return np.asarray(rest * jaccard + self._rule.lambda_value * original)

    def _place(self, item: int, distance: float) -> int:
        """Return where the query stands in an item's list, before all at the same distance."""
        near, distances = (self._arrays[name][item] for name in ("neighbours", "distances"))
        rounded = np.float32(distance)
        first, last = (int(np.searchsorted(distances, rounded, s)) for s in ("left", "right"))
        if first == last:
            return first
        # Stored distances are rounded to float32: of these, the order is that of exact ones.
        among = np.asarray(near[first:last], dtype=np.int64)
        exact = self._exact_distances(np.full(len(among), item, dtype=np.int64), among)
        return first + int((exact < distance).sum())

    def _list(self, item: int) -> list[int]:
        if item not in self._lists:
            self._lists[item] = self._arrays["neighbours"][item].tolist()
        return self._lists[item]

    def _reciprocal_of(self, item: int, length: int) -> list[int]:
        return [j for j in self._list(item)[:length] if item in self._list(j)[:length]]

    def _moved(self, length: int) -> set[int]:
        """Return the items whose reciprocal set at this length may have changed."""
        moved = {QUERY}
        for item, place in self._places.items():
            if place < length:
                moved.add(item)
                before = self._arrays["neighbours"][item]
                if len(before) >= length:  # this one lost its place to the query
                    moved.add(int(before[length - 1]))
        return moved

    @functools.cached_property
    def _sets(self) -> dict[int, list[int]]:
        """Return the expanded sets that may have changed."""
        changed = self._moved(self._length)
        for item in self._moved(self._half):
            # Being in one another's set is mutual: these are the sets that hold the item.
            changed.update(self._reciprocal(item, self._length))
        return {item: self._expanded(item) for item in changed}

    def _expanded(self, item: int) -> list[int]:
        near = set(self._reciprocal(item, self._length))
        joined = set(near)
        for j in near:
            half = self._reciprocal(j, self._half)
            if 3 * len(near.intersection(half)) > 2 * len(half):
                joined.update(half)
        return sorted(joined)

    def _weights_of(self, item: int) -> Row:
        """Return the encoding of an item before the mean."""
        first, last = (0, 0) if item == QUERY else self._arrays["set_offsets"][item : item + 2]
        columns = self._arrays["set_columns"][first:last]
        distances = self._arrays["set_distances"][first:last]
        if item in self._sets:
            known = dict(zip(columns.tolist(), distances.tolist(), strict=True))
            columns = np.array(self._sets[item], dtype=np.int64)
            distances = self._set_distances(item, columns, known)
        if not len(columns):
            return columns, distances
        if self._rule.variant == "fastreid":
            scaled = distances - distances.min()
        else:
            largest = float(self._d.max() if item == QUERY else self._maxima[item])
            if self._rule.variant == "torchreid":
                distances, largest = distances * distances, largest * largest
            scaled = distances / largest if largest > 0 else np.zeros_like(distances)
        weights = np.exp(-scaled)
        return columns, weights / weights.sum()

    def _set_distances(self, item: int, columns: np.ndarray, known: dict[int, float]) -> np.ndarray:
        if item == QUERY:
            return np.array([0.0 if c == QUERY else float(self._d[c]) for c in columns.tolist()])
        result = np.array(
            [float(self._d[item]) if c == QUERY else known.get(c, -1.0) for c in columns.tolist()]
        )
        missing = np.flatnonzero(result < 0)
        if len(missing):
            left = np.full(len(missing), item, dtype=np.int64)
            result[missing] = self._exact_distances(left, columns[missing]).astype(np.float32)
        return result

    def _mean(self, item: int) -> Row:
        """Return the encoding of an item after the mean."""
        if self._k2 == 1:
            return self._weights(item)
        parts = [self._weights(j) for j in self._list(item)[: self._k2]]
        columns, place = np.unique(np.concatenate([c for c, _ in parts]), return_inverse=True)
        total = np.zeros(len(columns))
        np.add.at(total, place, np.concatenate([w for _, w in parts]))
        return columns, total / self._k2

    def _changed_means(self, overlapping: np.ndarray) -> list[int]:
        """Return the items whose encoding after the mean has to be computed again.

        A raised maximum changes weights but no set: of those, only items that overlap with the
        query's encoding matter.
        """
        sets = np.array([item for item in self._sets if item != QUERY], dtype=np.int64)
        raised = self._d > self._arrays["maxima"]
        if self._rule.variant == "fastreid":
            raised[:] = False
        reset = np.zeros(len(self._d), dtype=bool)
        reset[sets] = True
        if self._k2 > 1:
            heads = self._arrays["neighbours"][:, : self._k2]
            reset = reset[heads].any(1)
            reset[[item for item, place in self._places.items() if place < self._k2]] = True
            raised = raised[heads].any(1)
        return np.flatnonzero(reset | (raised & overlapping)).tolist()
