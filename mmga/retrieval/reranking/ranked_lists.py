"""Ranked lists of gallery items, plain or re-ranked, from features or from a saved index."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mmga.common import ids
from mmga.common.distributed import Group
from mmga.common.errors import UserError
from mmga.common.files import atomic_table
from mmga.common.paths import Files
from mmga.common.progress import Progress
from mmga.retrieval.features import Features
from mmga.retrieval.neighbours.knn import nearest
from mmga.retrieval.neighbours.query_expansion import augment_gallery, expand_queries
from mmga.retrieval.reranking.index import GalleryIndex, row_labels
from mmga.retrieval.reranking.rerank import rerank
from mmga.retrieval.reranking.settings import KReciprocal


@dataclass(frozen=True, slots=True)
class Search:
    """What is searched for, and how.

    Attributes:
        topk: items for each query.
        metric: "cosine" or "euclidean".
        rule: re-ranks all queries together; None ranks by the plain distance.
        expand: nearest gallery items that each query is averaged with first.
        augment: nearest other items that each gallery item is averaged with first.
        alpha: weights of both are cosine to this power.
        exact: whose order items that nearly tie have, see `mmga.nearest`.
        memory: bytes that may be allocated beyond the features, or None.
    """

    topk: int
    metric: str
    rule: KReciprocal | None = None
    expand: int = 0
    augment: int = 0
    alpha: float = 3.0
    exact: str | None = None
    memory: int | None = None


@dataclass(frozen=True, slots=True)
class SearchSide:
    """Queries or gallery of a search.

    Attributes:
        features: of the items.
        files: the image of each; None where it is not known.
        notes: what should be known of them, one sentence each.
    """

    features: Features
    files: Files | None = None
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class RankedLists:
    """The nearest gallery items of every query.

    Attributes:
        query: features of the queries.
        labels: pid, camid and path of the gallery's items, each [G], as far as they are known.
        distances: [Q, K], ascending.
        indices: [Q, K], of gallery items; -1 for queries without a list.
    """

    query: Features
    labels: dict[str, np.ndarray]
    distances: np.ndarray
    indices: np.ndarray

    @property
    def left_out(self) -> np.ndarray:
        """Queries without a list: junk, which re-ranking leaves out."""
        return np.flatnonzero(self.indices[:, 0] < 0)

    def records(self, progress: Progress | None = None) -> Iterator[dict[str, Any]]:
        """Yield one record for each rank of each query but `left_out`."""
        own, left_out = row_labels(self.query), set(self.left_out.tolist())
        for number, pairs in enumerate(zip(self.distances, self.indices, strict=True)):
            if number in left_out:
                continue
            for rank, (distance, item) in enumerate(zip(*pairs, strict=True), 1):
                record: dict[str, Any] = {"query": number}
                record |= {
                    f"query_{name}": ids.plain(values[number]) for name, values in own.items()
                }
                record |= {"rank": rank, "gallery": int(item), "distance": float(distance)}
                for name, values in self.labels.items():
                    record[f"gallery_{name}"] = ids.plain(values[item])
                yield record
            if progress is not None:
                progress("results", number + 1, len(self.query))

    def write(self, out: Path, settings: dict[str, Any], progress: Progress | None = None) -> None:
        """Write all records as .csv or, with the settings of the search, as .json.

        Raises:
            UserError: the file cannot be written.
        """
        with atomic_table(out) as file:
            if out.suffix == ".json":
                content = {"schema": 1, **settings, "results": list(self.records(progress))}
                json.dump(content, file, indent=1)
                file.write("\n")
                return
            writer = None
            for record in self.records(progress):
                if writer is None:
                    writer = csv.DictWriter(file, list(record))
                    writer.writeheader()
                writer.writerow(record)


def search_features(
    query: Features,
    gallery: Features,
    search: Search,
    progress: Progress | None = None,
    group: Group | None = None,
) -> RankedLists:
    """Search a gallery for the nearest items of every query.

    Args:
        query: features of the queries.
        gallery: features of the gallery.
        search: what is searched for.
        progress: called as (phase, done, total).
        group: processes that share the gallery, whose features have the labels of all its items
            and the rows of this process.

    Raises:
        UserError: the sides do not fit each other, `topk` exceeds the gallery, or the memory does
            not suffice.
    """
    found: Any = query
    among: Any = gallery
    left = search.memory
    same: dict[str, Any] = {"exact": search.exact, "progress": progress, "group": group}
    if search.augment:
        among = augment_gallery(gallery, search.augment, search.alpha, memory=left, **same)
        left = _left(left, among)
    if search.expand:
        found = expand_queries(query, among, search.expand, search.alpha, memory=left, **same)
        left = _left(left, found)
    if search.rule is None:
        near = nearest(found, among, search.topk, search.metric, memory=left, **same)
    else:
        # Labels mark junk, which the neighbour graph leaves out.
        found = found if isinstance(found, Features) else Features(found, query.pids)
        among = _own(gallery, among, group or Group())
        same |= {"metric": search.metric, "topk": search.topk}
        near = rerank(found, among, search.rule, memory=left, **same)
    return RankedLists(query, row_labels(gallery), near[0].numpy(), near[1].numpy())


def _own(gallery: Features, among: Features | torch.Tensor, group: Group) -> Features | None:
    """Return the rows that are searched here, as they are or averaged, and their identities.

    None stands for no rows.
    """
    rows = gallery.rows
    if group.world == 1 and among is gallery:
        return gallery
    first = int(group.table([len(rows)])[: group.rank].sum())
    if not len(rows):
        return None
    pids = gallery.pids[first : first + len(rows)]
    if isinstance(among, torch.Tensor):
        return Features(among, pids)
    return Features(rows.shards, pids, scale=rows.scale)


def _left(memory: int | None, taken: torch.Tensor) -> int | None:
    """Return what a tensor, which was allocated within it, leaves of the memory."""
    return None if memory is None else max(1, memory - taken.nbytes)


def search_index(
    query: Features, index: GalleryIndex, topk: int, progress: Progress | None = None
) -> RankedLists:
    """Search an index for the `topk` nearest items of every query, each re-ranked by itself.

    Processes that share the index call it together, and all get the lists.

    Raises:
        UserError: the features do not fit the index, or `topk` exceeds it.
    """
    if not 1 <= topk <= len(index):
        raise UserError(f"--topk must be from 1 to the {len(index)} items, got {topk}")
    distances, indices = [], []
    for number in range(len(query)):
        near, which = index.nearest(query.rows.block(number, number + 1)[0], topk)
        distances.append(near)
        indices.append(which)
        if progress is not None:
            progress("re-ranking", number + 1, len(query))
    return RankedLists(query, index.labels, np.stack(distances), np.stack(indices))
