"""The ranked lists of all queries for a page: what is right, wrong, or left out and why.

Legend: ``L`` listed queries, ``K`` items that are looked at for each, ``E`` items that are shown.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from mmga.ops.neighbours import nearest_in_rows
from mmga.retrieval.neighbours.knn import nearest
from mmga.retrieval.protocols.marks import RIGHT, marks
from mmga.retrieval.reranking.distances import reranked_source
from mmga.retrieval.reranking.settings import KReciprocal
from mmga.retrieval.tiles.problem import RankingProblem
from mmga.retrieval.tiles.sources import Source

SHOWN = 10
"""Ranked items that are shown for each query, with what is left out between them."""
LOOKED_AT = 50
"""Items that are looked at, of which many may be left out."""


@dataclass(frozen=True, slots=True)
class Lists:
    """Ranked lists one after the other, nearest first.

    Attributes:
        start: int64 [L + 1].
        item: rows of the gallery, int64 [E].
        distance: float32 [E].
        mark: places in `MARKS`, uint8 [E].
        elsewhere: rank of the item in the other ranking, uint8 [E]; 0 where it is none of the
            `LOOKED_AT` first there, or is left out.
    """

    start: np.ndarray
    item: np.ndarray
    distance: np.ndarray
    mark: np.ndarray
    elsewhere: np.ndarray

    def reordered(self, order: np.ndarray) -> Lists:
        """Return the lists of the queries in another order."""
        sizes = np.diff(self.start)[order]
        start = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
        at = np.repeat(self.start[:-1][order] - start[:-1], sizes) + np.arange(start[-1])
        return Lists(start, self.item[at], self.distance[at], self.mark[at], self.elsewhere[at])


@dataclass(slots=True)
class _Ranking:
    """The items that are looked at.

    Attributes:
        item: int64 [L, K].
        distance: float32 [L, K].
        mark: uint8 [L, K].
        rank: among what is kept, from 1; 0 where left out, int64 [L, K].
    """

    item: np.ndarray
    distance: np.ndarray
    mark: np.ndarray
    rank: np.ndarray


def ranked_lists(problem: RankingProblem, rule: KReciprocal | None) -> tuple[Lists, Lists | None]:
    """Return the lists of all queries of a problem in the order of its selection.

    Plain lists are of the whole gallery, so that they show what the protocol leaves out; part
    features and re-ranked distances are of the items that take part alone.

    Args:
        problem: holds every query that is neither junk nor unknown.
        rule: re-ranks, too; None: there is no second list.
    """
    plain = _marked(problem, *_plain(problem))
    if rule is None:
        return _shown(plain, None), None
    again = _marked(problem, *_reranked(problem, reranked_source(rule, problem)))
    return _shown(plain, again), _shown(again, plain)


def _plain(problem: RankingProblem) -> tuple[np.ndarray, np.ndarray]:
    """Return gallery rows and distances of the nearest items."""
    if problem.query.visibility is not None:
        return _nearest_in_tiles(problem)
    count = min(LOOKED_AT, len(problem.gallery))
    distance, item = nearest(
        problem.query,
        problem.gallery,
        count,
        problem.metric,
        exact=problem.exact,
        memory=problem.placed.memory,
        progress=problem.monitor.step,
    )
    queries = problem.selection.queries
    return item.cpu().numpy()[queries], distance.cpu().numpy()[queries]


def _reranked(problem: RankingProblem, source: Source) -> tuple[np.ndarray, np.ndarray]:
    queries, gallery = problem.selection.queries, problem.selection.gallery
    count = min(LOOKED_AT, source.columns)
    item = np.empty((len(queries), count), np.int64)
    distance = np.empty((len(queries), count), np.float32)
    for start in range(0, len(queries), source.max_rows):
        stop = min(start + source.max_rows, len(queries))
        for rows, tile in source.tiles(start, stop):
            near, which = nearest_in_rows(tile.values, count)
            at = slice(start + rows.start, start + rows.stop)
            item[at], distance[at] = gallery[which.cpu().numpy()], near.cpu().numpy()
        problem.monitor.step("re-ranked lists", stop, len(queries))
    return item, distance


def _nearest_in_tiles(problem: RankingProblem) -> tuple[np.ndarray, np.ndarray]:
    """Return the nearest of the items that take part, by tiles of any kind of distances."""
    source, gallery = problem.source(), problem.selection.gallery
    queries = len(problem.selection.queries)
    count = min(LOOKED_AT, source.columns)
    item = np.empty((queries, count), np.int64)
    distance = np.empty((queries, count), np.float32)
    for start in range(0, queries, source.max_rows):
        stop = min(start + source.max_rows, queries)
        best: dict[int, tuple[Tensor, Tensor]] = {}
        for rows, tile in source.tiles(start, stop):
            keys = tile.keys().double().cpu()
            numbers = tile.offset + torch.arange(keys.shape[1], dtype=torch.int64, device="cpu")
            items = numbers.expand(len(keys), -1)
            if rows.start in best:
                before = best[rows.start]
                keys, items = torch.cat([before[0], keys], 1), torch.cat([before[1], items], 1)
            order = torch.argsort(items, dim=1)  # equal distances stand by item
            keys, items = keys.gather(1, order), items.gather(1, order)
            order = torch.argsort(keys, dim=1, stable=True)[:, :count]
            best[rows.start] = keys.gather(1, order), items.gather(1, order)
        for top, (near, which) in best.items():
            at = slice(start + top, start + top + len(near))
            item[at], distance[at] = gallery[which.numpy()], near.numpy()
        problem.monitor.step("lists", stop, queries)
    return item, distance


def _marked(problem: RankingProblem, item: np.ndarray, distance: np.ndarray) -> _Ranking:
    """Say of each item what it is under the protocol."""
    selection = problem.selection
    query = np.repeat(selection.queries, item.shape[1])
    mark = marks(selection.protocol, selection.labels, query, item.reshape(-1)).reshape(item.shape)
    kept = mark <= RIGHT
    return _Ranking(item, distance, mark, np.where(kept, np.cumsum(kept, 1), 0))


def _shown(ranking: _Ranking, other: _Ranking | None) -> Lists:
    """Return the first kept items of each query, with what is left out between them."""
    kept = ranking.rank > 0
    shown = np.less(np.cumsum(kept, 1) - kept, SHOWN)
    elsewhere = np.zeros(ranking.item.shape, np.uint8)
    for row in range(len(elsewhere)) if other is not None else ():
        assert other is not None
        order = np.argsort(other.item[row])
        listed = other.item[row][order]
        at = np.minimum(np.searchsorted(listed, ranking.item[row]), len(listed) - 1)
        found = listed[at] == ranking.item[row]
        elsewhere[row][found] = other.rank[row][order][at[found]]
    elsewhere[~kept] = 0
    return Lists(
        np.concatenate([[0], np.cumsum(shown.sum(1))]).astype(np.int64),
        ranking.item[shown],
        ranking.distance[shown],
        ranking.mark[shown],
        elsewhere[shown],
    )
