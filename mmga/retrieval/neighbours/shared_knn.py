"""Nearest neighbours among items of which each process of a group holds some."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from mmga.common.distributed import Group, gather
from mmga.common.errors import UserError
from mmga.ops.certified import nearest_of
from mmga.ops.distance import squared_norms
from mmga.ops.neighbours import Neighbours
from mmga.retrieval.features.sharded_matrix import ShardedMatrix
from mmga.retrieval.features.vectors import (
    VectorSet,
    check_scale,
    exact_pair_keys,
    lifted,
    squared_distances,
)

MERGED = 64 << 20
"""Bytes of the lists of all processes that are merged together, of at least one query."""
_MERGED_BYTES = 64
"""Of a candidate while it is merged: its distance and number, as sent, received and ordered."""


@dataclass(frozen=True, slots=True)
class SharedItems:
    """Items of several processes under one numbering, those of process 0 first.

    Attributes:
        vectors: the items that this process holds; None for none.
        counts: items of each process.
        group: the processes, more than one.
    """

    vectors: VectorSet | None
    counts: list[int]
    group: Group

    @classmethod
    def of(cls, own: ShardedMatrix | None, queries: VectorSet, group: Group) -> SharedItems:
        """Number the items of all processes.

        Args:
            own: rows of this process, perhaps none.
            queries: of which every process holds all.
            group: the processes, more than one.

        Raises:
            UserError: no process has any, the sides do not fit each other, or a value is NaN or
                infinite; in the process that has them, a PeerError in the others.
        """
        vectors, counts = held_vectors("gallery", own, queries.metric, group, queries)
        return cls(vectors, counts, group)

    def __len__(self) -> int:
        return sum(self.counts)

    def nearest(
        self,
        queries: VectorSet,
        k: int,
        search: Callable[[VectorSet, int], Neighbours],
    ) -> Neighbours:
        """Return the k nearest of every query among the items of all, in every process.

        The nearest of all are among the nearest of each process. Exact distances have the same bits
        in any process, so that merged lists are those of one process that holds all items.

        Args:
            queries: Q vectors.
            k: 1 to the number of all items.
            search: returns the certified nearest among the items that this process holds.

        Returns:
            int64 numbers of items, and squared distances rounded to float32.
        """
        group, near = self.group, None
        with group.together():
            if self.vectors is not None:
                near = search(self.vectors, min(k, len(self.vectors))).index
        shape = len(queries), k
        index = torch.empty(shape, dtype=torch.int64, device="cpu")
        distances = torch.empty(shape, dtype=torch.float32, device="cpu")
        for rows in merged_blocks(len(queries), k, group):
            index[rows], distances[rows] = self._merged(queries, near, rows, k)
        maxima = torch.full((len(queries),), torch.nan, dtype=torch.float32, device="cpu")
        return Neighbours(index, distances, maxima)

    def _merged(
        self, queries: VectorSet, near: Tensor | None, rows: slice, k: int
    ) -> tuple[Tensor, Tensor]:
        """Return the nearest of some queries, given their nearest in this process, int32 [Q, K]."""
        count, group = rows.stop - rows.start, self.group
        own = torch.zeros(count, 0, dtype=torch.int32, device="cpu")
        exact = own.double()
        with group.together():
            if near is not None and self.vectors is not None:
                own = near[rows]
                row = torch.arange(rows.start, rows.stop, device="cpu")
                row = row.repeat_interleave(near.shape[1])
                keys = exact_pair_keys(queries, row, self.vectors, own.flatten().long())
                exact = squared_distances(keys, queries.metric).view(own.shape)
        starts = list(itertools.accumulate(self.counts, initial=0))[:-1]
        widths = [min(k, items) for items in self.counts]
        number, distance = merged(own, exact, (widths, starts), k, group)
        return number, distance.float()


def merged(
    own: Tensor, distance: Tensor, shapes: tuple[list[int], list[int]], k: int, group: Group
) -> tuple[Tensor, Tensor]:
    """Return the first k of the lists of all processes by (distance, number), in every process.

    Args:
        own: items of this process, int32 [Q, K'], by (distance, number).
        distance: float64, the same shape.
        shapes: length K' of each process' lists, and the number of its first item.
        k: at most the sum of the lengths.
        group: the processes.

    Returns:
        int64 numbers and float64 distances [Q, k].
    """
    count, (widths, starts) = len(own), shapes
    sizes = [count * width for width in widths]
    found, parts = (
        gather(part.flatten().to(group.device), sizes, group).cpu().split(sizes)
        for part in (own, distance)
    )
    numbers = [
        part.long().view(count, width) + start
        for part, width, start in zip(found, widths, starts, strict=True)
    ]
    all_ = torch.cat([p.view(count, w) for p, w in zip(parts, widths, strict=True)], 1)
    # Places in the joined lists order what ties as the items' numbers do, which may not fit in 32
    # bits.
    places = torch.arange(all_.shape[1], dtype=torch.int32, device="cpu").expand_as(all_)
    place, nearest = nearest_of(places.contiguous(), all_, k)
    return torch.cat(numbers, 1).gather(1, place.long()), nearest


def merged_blocks(queries: int, k: int, group: Group) -> Iterator[slice]:
    """Yield the queries, so many at a time as `merged` takes."""
    step = max(1, MERGED // (_MERGED_BYTES * k * group.world))
    for begin in range(0, queries, step):
        yield slice(begin, min(begin + step, queries))


def merged_bytes(queries: int, k: int, group: Group) -> int:
    """Return the most bytes that merging takes beside the lists of this process."""
    step = _MERGED_BYTES * k * group.world
    return min(max(MERGED, step), queries * step)


def check_certified(exact: str | None) -> None:
    """Raise a `UserError` where another order is asked for than several processes find."""
    if exact not in (None, "certified"):
        raise UserError(
            f"exact: several processes find certified neighbours, found {exact!r}; leave it out, "
            "or search by one process"
        )


def check_on_cpu(device: torch.device) -> None:
    """Raise a `UserError` where features are on another device."""
    if device.type != "cpu":
        raise UserError(
            "group: several processes search features on the CPU; move all of them there, or "
            "search by one process"
        )


def held_vectors(
    name: str,
    own: ShardedMatrix | None,
    metric: str,
    group: Group,
    queries: VectorSet | None = None,
    chosen: Tensor | None = None,
) -> tuple[VectorSet | None, list[int]]:
    """Return the vectors that this process holds, and how many each one holds.

    Args:
        name: of the side, for messages.
        own: rows of this process, perhaps none.
        metric: "cosine" or "euclidean".
        group: the processes.
        queries: what the vectors are compared with; None: each other.
        chosen: rows of `own` that count, ascending int64; None: all.

    Raises:
        UserError: no process has any, sides do not fit each other, or a value is NaN or infinite;
            in the process that has them, a PeerError in the others.
    """
    count = 0 if own is None else len(own)
    counted = count if chosen is None else len(chosen)
    told = group.table([counted, count, 0 if own is None else own.shape[1]]).long()
    counts, widths = told[:, 0].tolist(), told[:, 2][told[:, 2] > 0].tolist()
    norms = torch.zeros(0, dtype=torch.float64, device="cpu")
    with group.together():
        if not sum(counts):
            raise UserError(
                f"{name}: no process of the group has any of it; give each process its rows, "
                "and None where there are none"
            )
        if own is not None:
            _check_fit(name, own, queries, widths[0])
            norms = torch.cat([squared_norms(rows) for rows in own.values()])
        of_counted = norms if chosen is None else norms[chosen]
        bad = (~of_counted.isfinite()).nonzero()[:, 0]
        if len(bad):
            row = int(bad[0]) if chosen is None else int(chosen[bad[0]])
            row += int(told[: group.rank, 1].sum())
            raise UserError(f"{name}: expected finite features, row {row} holds others")
    longest = group.most(float(of_counted.max()) if len(of_counted) else 0.0)
    check_scale(name, torch.tensor([longest], dtype=torch.float64, device="cpu"))
    vectors = None
    with group.together():
        if own is not None and len(own):
            if metric == "cosine":
                own, norms = lifted(own, norms)
            norms = norms if chosen is None else norms[chosen]
            sides, places = zip(*in_place(own, chosen), strict=True)
            vectors = VectorSet(sides, metric, places, norms=norms)
    return vectors, counts


def in_place(
    rows: ShardedMatrix, chosen: Tensor | None = None
) -> list[tuple[ShardedMatrix, Tensor | None]]:
    """Return rows in parts that are read in place where they can be: shards of float32.

    Args:
        rows: feature rows.
        chosen: of which these are wanted, ascending int64; None: all.

    Returns:
        Sides of a `VectorSet`, each with the rows that are chosen of it.
    """
    if rows.stored != torch.float32:
        return [(rows, chosen)]
    parts: list[tuple[ShardedMatrix, Tensor | None]] = []
    for start, shard in zip(rows.starts, rows.shards, strict=False):
        places = None
        if chosen is not None:
            places = chosen[(chosen >= start) & (chosen < start + len(shard))] - start
        if len(shard if places is None else places):
            parts.append((ShardedMatrix([shard], mapped=rows.mapped), places))
    return parts or [(rows, chosen)]


def _check_fit(name: str, own: ShardedMatrix, queries: VectorSet | None, width: int) -> None:
    check_on_cpu(own.device)
    if queries is not None:
        check_on_cpu(queries.device)
    if queries is not None and own.shape[1] != queries.dimension:
        raise UserError(
            f"query and gallery must have one dimension, got {queries.dimension} and {own.shape[1]}"
        )
    if own.shape[1] != width:
        raise UserError(
            f"{name}: expected rows of {width} values as in the other processes, found "
            f"{own.shape[1]}"
        )
