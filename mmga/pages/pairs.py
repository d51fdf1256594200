"""Pairs by distance for a page: exact counts at some thresholds, and samples near each of them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from mmga.ops.ranking import Matches, Tile
from mmga.pages.lists import Lists
from mmga.retrieval.metrics.verification import BINS, Counts, PairCounter
from mmga.retrieval.protocols.marks import RIGHT, WRONG
from mmga.retrieval.protocols.selection import Pairs, Selection

SAMPLES = 400
"""Pairs of each kind that the page holds."""
_DRAWN = 8192  # impostor pairs that are drawn, and genuine ones of a run of queries
_EVEN, _RATES, _COLUMNS = 241, 12, 60


@dataclass(frozen=True, slots=True)
class Samples:
    """Pairs of a kind, by ascending distance.

    Attributes:
        query: rows of the query set, int64 [S].
        item: rows of the gallery, int64 [S].
        distance: float32 [S].
    """

    query: np.ndarray
    item: np.ndarray
    distance: np.ndarray

    @classmethod
    def spread(cls, query: np.ndarray, item: np.ndarray, distance: np.ndarray) -> Samples:
        """Return at most `SAMPLES` of the pairs, spread evenly over the distances."""
        finite = np.isfinite(distance)
        query, item, distance = query[finite], item[finite], distance[finite]
        order = np.lexsort((item, query, distance))
        query, item, distance = query[order], item[order], distance[order]
        if len(distance) > SAMPLES:
            wanted = np.linspace(distance[0], distance[-1], SAMPLES - SAMPLES // 4)
            by_distance = np.searchsorted(distance, wanted).clip(max=len(distance) - 1)
            by_order = np.linspace(0, len(distance) - 1, SAMPLES // 4).astype(np.int64)
            at = np.unique(np.concatenate([by_distance, by_order]))
            query, item, distance = query[at], item[at], distance[at]
        return cls(query, item, distance.astype(np.float32))


class PairSampler:
    """Counts all kept pairs by distance while they are ranked, and draws some of them."""

    def __init__(
        self, selection: Selection, counter: PairCounter, columns: int, squared: bool, seed: int
    ) -> None:
        """Start empty.

        Args:
            selection: what is kept.
            counter: counts the pairs.
            columns: gallery items that take part.
            squared: keys are squared distances.
            seed: of what is drawn.
        """
        self._selection, self._counter, self._squared = selection, counter, squared
        self._share = _DRAWN / (max(1, len(selection.queries)) * columns)
        self._random = np.random.default_rng(seed)
        self._first_item = np.full(len(selection.queries), -1)
        self._first_distance = np.full(len(selection.queries), np.nan)
        self._genuine: list[tuple[np.ndarray, ...]] = []
        self._impostor: list[tuple[np.ndarray, ...]] = []

    def tile(self, pairs: Pairs, rows: slice, tile: Tile, removed: Tensor | None) -> None:
        """Count a tile, and draw impostor pairs from it; see `PairCounter.tile`."""
        self._counter.tile(pairs, rows, tile, removed)
        height, width = tile.values.shape
        count = self._random.poisson(self._share * height * width)
        if not count:
            return
        row = self._random.integers(0, height, count)
        column = self._random.integers(0, width, count)
        place, item = pairs.start + rows.start + row, tile.offset + column
        selection, labels = self._selection, self._selection.labels
        query, gallery = selection.queries[place], selection.gallery[item]
        kept = labels.query_pids[query] != labels.gallery_pids[gallery]
        if selection.query_camera is not None and selection.gallery_camera is not None:
            kept &= selection.query_camera[place] != selection.gallery_camera[item]
        if removed is not None:
            kept &= ~removed.cpu().numpy()[row, column]
        device = tile.values.device
        keys = tile.at(torch.from_numpy(row).to(device), torch.from_numpy(item).to(device))
        distance = self._distance(keys.cpu().double().numpy())
        self._impostor.append((query[kept], gallery[kept], distance[kept]))

    def matches(self, pairs: Pairs, matches: Matches) -> None:
        """Count the matches of a run of queries, and draw from them."""
        self._counter.matches(pairs, matches)
        keys = matches.match_key.cpu().double().numpy()
        matched = np.diff(pairs.match_start) > 0
        first, queries = pairs.match_start[:-1][matched], pairs.start + np.flatnonzero(matched)
        items = self._selection.gallery[matches.match_item.cpu().numpy()]
        self._first_item[queries] = items[first]
        self._first_distance[queries] = self._distance(keys[first])
        order = np.argsort(keys)
        at = order[np.unique(np.linspace(0, len(order) - 1, _DRAWN).astype(np.int64))]
        if len(order):
            query = self._selection.queries[pairs.start + pairs.match_row[at]]
            self._genuine.append((query, items[at], self._distance(keys[at])))

    def first_matches(self) -> tuple[np.ndarray, np.ndarray]:
        """Return row and distance of the nearest match of each selected query, -1 and NaN if none.

        Returns:
            int64 [Q'] and float64 [Q'].
        """
        return self._first_item, self._first_distance

    def _distance(self, keys: np.ndarray) -> np.ndarray:
        return np.sqrt(keys) if self._squared else keys

    def counts(self) -> Counts:
        """Return what was counted."""
        return self._counter.counts()

    def samples(self, lists: Lists, rows: np.ndarray) -> tuple[Samples, Samples]:
        """Return genuine and impostor pairs; those of the lists, which are nearest, among them.

        Args:
            lists: of all selected queries.
            rows: the queries that pairs may be of, int64.
        """
        of_list = np.repeat(self._selection.queries, np.diff(lists.start))
        found = []
        for drawn, mark in ((self._genuine, RIGHT), (self._impostor, WRONG)):
            listed = lists.mark == mark
            parts = [*drawn, (of_list[listed], lists.item[listed], lists.distance[listed])]
            joined = [np.concatenate(column) for column in zip(*parts, strict=True)]
            pairs, first = np.unique(np.stack(joined[:2]), axis=1, return_index=True)
            known = np.isin(pairs[0], rows)
            query, item = pairs[:, known]
            found.append(Samples.spread(query, item, joined[2][first][known]))
        return found[0], found[1]


@dataclass(frozen=True, slots=True)
class Thresholds:
    """Exact counts of accepted pairs at some thresholds, and histograms.

    Attributes:
        threshold: ascending distances; a pair is accepted at most so far apart, float64 [T].
        false_accepts: impostor pairs that are accepted, int64 [T].
        true_accepts: genuine pairs that are accepted, int64 [T].
        impostors: number of impostor pairs.
        genuines: number of genuine pairs.
        edges: of the histograms' columns, float64 [B + 1].
        genuine: pairs of each column, int64 [B].
        impostor: likewise.
    """

    threshold: np.ndarray
    false_accepts: np.ndarray
    true_accepts: np.ndarray
    impostors: int
    genuines: int
    edges: np.ndarray
    genuine: np.ndarray
    impostor: np.ndarray

    @property
    def balanced(self) -> int:
        """Place of the threshold at which the rates of both errors are most alike."""
        miss = 1 - self.true_accepts / max(1, self.genuines)
        return int(np.argmin(np.abs(miss - self.false_accepts / max(1, self.impostors))))


def thresholds(counts: Counts) -> Thresholds | None:
    """Choose thresholds: even over the distances, and by the rates of false and true accepts.

    None where there are no genuine or no impostor pairs at a finite distance.
    """
    false, true = counts.false_accepts, counts.true_accepts
    impostors, genuines = counts.impostors, counts.genuines
    if not false[-1] or not true[-1]:
        return None
    occupied = np.flatnonzero(counts.impostor[:-1] + counts.genuine[:-1])
    low, high = int(occupied[0]), int(occupied[-1])
    lowest = np.log10(1 / impostors)
    rates = np.logspace(lowest, 0, int(-lowest * _RATES) + 2)
    at = np.concatenate(
        [
            np.linspace(low, high, _EVEN),
            np.searchsorted(false / impostors, rates, "right") - 1,
            np.searchsorted(true / genuines, np.linspace(0.01, 0.99, 99)),
        ]
    )
    at = np.unique(at.astype(np.int64).clip(low, high))
    first, last = max(low - 1, 0), high + 1
    edges = np.unique(np.linspace(first, last, _COLUMNS + 1).astype(np.int64))
    unit = counts.width
    return Thresholds(
        unit * (at + 1),
        false[at],
        true[at],
        impostors,
        genuines,
        unit * edges,
        np.add.reduceat(counts.genuine[:-1], edges.clip(max=BINS - 1)[:-1]),
        np.add.reduceat(counts.impostor[:-1], edges.clip(max=BINS - 1)[:-1]),
    )
