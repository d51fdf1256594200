"""Exact nearest neighbours by tiles of the distance matrix, which is never held."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, overload

import numpy as np
import torch
from torch import Tensor

from mmga.common.arrays import as_tensor, is_mapped
from mmga.common.distributed import Group
from mmga.common.errors import UserError, whole_number
from mmga.common.grid import Grid, in_grid
from mmga.common.memory import parse
from mmga.common.progress import Progress
from mmga.ops.distance import METRICS, exact_sqrt
from mmga.ops.kernel_threads import kernels_alone, torch_alone
from mmga.ops.neighbours import NearestLists, Neighbours
from mmga.ops.precision import float32_products
from mmga.retrieval.bounds.approximation import Int8
from mmga.retrieval.features import Features
from mmga.retrieval.features.sharded_matrix import ShardedMatrix
from mmga.retrieval.features.vectors import VectorSet
from mmga.retrieval.neighbours.certified_knn import (
    certified_nearest,
    certified_neighbours,
    exact_order,
)
from mmga.retrieval.neighbours.one_look import Look
from mmga.retrieval.neighbours.search_plan import cheapest_tiles
from mmga.retrieval.neighbours.shared_knn import (
    SharedItems,
    check_certified,
    held_vectors,
    merged_bytes,
)
from mmga.retrieval.neighbours.tile_sizes import (
    check_memory,
    search_bytes,
    tile_for,
    tile_on,
    upper_triangle,
)
from mmga.retrieval.tiles.sources import tile_height

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

ROUNDING = 2.0**-50
"""Cosine distances below are what rounding in float64 leaves of equal directions."""
RESULT_BYTES = 12
"""Of a distance, float32, and an index, int64."""
ArrayLike = Tensor | np.ndarray | Features
"""A set of feature vectors as callers hold it: [N, D]."""


@overload
def nearest(
    query: np.ndarray,
    gallery: ArrayLike | None,
    k: int,
    metric: str = "cosine",
    *,
    exact: str | None = None,
    memory: str | int | None = None,
    progress: Progress | None = None,
    group: ProcessGroup | Group | bool | None = None,
    query_shares: int = 1,
) -> tuple[np.ndarray, np.ndarray]: ...


@overload
def nearest(
    query: Tensor | Features | None,
    gallery: ArrayLike | None,
    k: int,
    metric: str = "cosine",
    *,
    exact: str | None = None,
    memory: str | int | None = None,
    progress: Progress | None = None,
    group: ProcessGroup | Group | bool | None = None,
    query_shares: int = 1,
) -> tuple[Tensor, Tensor]: ...


@float32_products()
def nearest(
    query: ArrayLike | None,
    gallery: ArrayLike | None,
    k: int,
    metric: str = "cosine",
    *,
    exact: str | None = None,
    memory: str | int | None = None,
    progress: Progress | None = None,
    group: ProcessGroup | Group | bool | None = None,
    query_shares: int = 1,
) -> tuple[Tensor, Tensor] | tuple[np.ndarray, np.ndarray]:
    """Return the k nearest gallery items of every query, in the order of (distance, index).

    Exact: every pair is looked at, by tiles, and none is kept but the k best.

    Args:
        query: `Features`, or a tensor or array [Q, D].
        gallery: likewise, [G, D]; files that are memory-mapped are read once for each part of the
            queries that memory allows, and the rows of the nearest items again. None in a process
            of a group that holds none.
        k: at least 1; at most G.
        metric: "cosine" (1 - cos, 1 for a zero vector) or "euclidean" (not squared).
        exact: ``"certified"``: distances that nearly tie have the order of float64 arithmetic;
            ``"float32"``: that of float32 tiles; None: certified where that can be.
        memory: bound on what is allocated beyond the features, such as ``"2G"``; of a gallery that
            is also the query, more of it may halve the work.
        progress: called as (phase, done, total).
        group: of torch.distributed, True for the default one: each process gives its own rows of
            the gallery, one after the other by rank, and the same queries; all get the neighbours
            that one process finds among all rows. On the CPU, and certified.
        query_shares: number of shares that the queries are dealt out in, too, see `mmga.evaluate`:
            each process gives its own, None for none, and gets their neighbours.

    Returns:
        distances float32 [Q, k], from float64 arithmetic where certified, and indices int64
        [Q, k]; arrays if `query` is an array.

    Raises:
        UserError: k is out of range, `memory` does not suffice, widths differ, or a value is NaN
            or infinite.
    """
    processes, settings = Group.of(group), _Settings(k, metric, exact, memory)
    processes.agree("the settings", f"{k} {metric} {query_shares}")
    with (
        kernels_alone(_count(query) * _count(gallery)),
        in_grid(processes, query_shares) as grid,
    ):
        if processes.world == 1:
            found = _nearest_of_one(query, gallery, settings, progress)
        else:
            found = _nearest_of_all(query, gallery, settings, progress, grid)
    distances = from_squared(found.distances, metric)
    index = found.index.long()
    if isinstance(query, np.ndarray):
        return distances.cpu().numpy(), index.cpu().numpy()
    return distances, index


def _count(side: ArrayLike | None) -> int:
    """Return the rows of a side; 0 of what is none."""
    shape: Sequence[int] = getattr(getattr(side, "rows", side), "shape", ())
    return shape[0] if len(shape) else 0


@dataclass(frozen=True, slots=True)
class _Settings:
    """Arguments of `nearest`, see there."""

    k: int
    metric: str
    exact: str | None
    memory: str | int | None


def _nearest_of_one(
    query: ArrayLike | None,
    gallery: ArrayLike | None,
    settings: _Settings,
    progress: Progress | None,
) -> Neighbours:
    bound = parse(settings.memory)
    queries, items = vector_sets(query, gallery, settings.metric)
    k = _checked_k(settings.k, len(items))
    needed = search_bytes(queries, items, k) + RESULT_BYTES * len(queries) * k
    spare = check_memory(bound, needed, f"the {k} nearest of {len(queries)} queries")
    return nearest_items(queries, items, k, exact=settings.exact, spare=spare, progress=progress)


def _nearest_of_all(
    query: ArrayLike | None,
    gallery: ArrayLike | None,
    settings: _Settings,
    progress: Progress | None,
    grid: Grid,
) -> Neighbours:
    """Return what `_nearest_of_one` returns of the rows that the processes of a row hold."""
    group, queries = grid.row, None
    with grid.whole.together():
        bound = parse(settings.memory)
        check_certified(settings.exact)
        check_metric(settings.metric)
        whole_number("k", settings.k)
        asked = None if query is None and grid.deals else feature_rows(query, "query")
        own = None if gallery is None else feature_rows(gallery, "gallery")
        if asked is not None and not grid.deals:
            queries = VectorSet([asked], settings.metric)
    if grid.deals:
        with grid.together():
            queries, _ = held_vectors("query", asked, settings.metric, grid.column)
        with grid.together():
            count = 0 if own is None else len(own)
            grid.column.agree("the numbers of gallery items", str(count))
    with grid.together():
        norms = b"" if queries is None else queries.norms.cpu().numpy().tobytes()
        group.agree("the queries", norms)
    with grid.together():
        if queries is None:
            return _nothing(settings.k)
        items = SharedItems.of(own, queries, group)
        return _nearest_in_row(queries, items, settings, bound, progress)


def _nearest_in_row(
    queries: VectorSet,
    items: SharedItems,
    settings: _Settings,
    bound: int | None,
    progress: Progress | None,
) -> Neighbours:
    """Return the nearest of queries that all processes of a group have."""
    group, k = items.group, _checked_k(settings.k, len(items))

    def search_own(vectors: VectorSet, fewer: int) -> Neighbours:
        needed = search_bytes(queries, vectors, fewer) + RESULT_BYTES * len(queries) * k
        needed += merged_bytes(len(queries), k, group)
        check_memory(bound, needed, f"the {k} nearest of {len(queries)} queries")
        return nearest_items(queries, vectors, fewer, exact="certified", progress=progress)

    return items.nearest(queries, k, search_own)


def _nothing(k: int) -> Neighbours:
    """Return the lists of no queries."""
    index = torch.empty(0, k, dtype=torch.int64, device="cpu")
    distances = torch.empty(0, k, dtype=torch.float32, device="cpu")
    return Neighbours(index, distances, distances.new_empty(0))


def _checked_k(given: int, items: int) -> int:
    k = whole_number("k", given)
    if not 1 <= k <= items:
        raise UserError(f"k must be from 1 to the {items} gallery items, got {k}")
    return k


def from_squared(squared: Tensor, metric: str) -> Tensor:
    """Return the distances that users see: 1 - cos, of equal directions 0, or the Euclidean."""
    if metric == "euclidean":
        return exact_sqrt(squared) if squared.dtype == torch.float64 else squared.sqrt()
    distances = squared / 2
    distances[distances < ROUNDING] = 0
    return distances


@dataclass(frozen=True, slots=True)
class Found:
    """Neighbour lists of a set, and how they were found.

    Attributes:
        neighbours: in the order of (distance, index), self at distance 0.
        exact: whose order they have where distances nearly tie: certified or float32.
        distances: [Q, N - Q] squared distances of the first Q vectors to the others, or None.
    """

    neighbours: Neighbours
    exact: str
    distances: Tensor | None


def search(
    vectors: VectorSet,
    k: int,
    *,
    exact: str | None = None,
    distances_of: int = 0,
    farthest: bool = True,
    spare: int | None = None,
    progress: Progress | None = None,
) -> Found:
    """Return the k nearest of every vector of a set among all, itself included.

    Every pair is computed once, by the cheapest tiles that give the order asked for.

    Args:
        vectors: N vectors.
        k: 1 to N.
        exact: ``"certified"``: neighbours that nearly tie have the order of float64 arithmetic;
            ``"float32"``: that of float32 tiles; None: certified where that can be.
        distances_of: Q: the distances of the first Q vectors to the others are wanted, too, where
            tiles give them at no cost; 0 for none.
        farthest: each vector's largest distance is wanted, too; else it may be NaN.
        spare: bytes that may be taken beyond `search_bytes`, for less work; None: there is no
            bound.
        progress: called as (phase, done, total).

    Raises:
        UserError: the order cannot be certified and shall be.
    """
    count = len(vectors)
    kept = distances_of * (count - distances_of)
    tiles = None
    certified = exact_order(vectors, exact) == "certified"
    if certified:
        tiles = cheapest_tiles(vectors, vectors, k, kept, farthest=farthest)
    distances = None
    if kept and tiles is None:
        distances = torch.empty(
            distances_of, count - distances_of, dtype=torch.float32, device=vectors.device
        )
    with kernels_alone(count * count) if certified else torch_alone():
        if isinstance(tiles, Int8):
            neighbours = Look(
                vectors,
                vectors,
                k,
                farthest=farthest,
                own_at_zero=True,
                spare=spare,
                progress=progress,
            ).run()
        elif certified:
            # The lists do not depend on tiles: these fit the set, but for distances that are kept.
            tile = tile_for(count) if tiles is None and not kept else None
            neighbours = certified_neighbours(
                vectors, k, tiles, kept=distances, tile=tile, farthest=farthest, progress=progress
            )
        else:
            neighbours = float32_neighbours(vectors, k, kept=distances, progress=progress)
    return Found(neighbours, "certified" if certified else "float32", distances)


def nearest_items(
    queries: VectorSet,
    items: VectorSet,
    k: int,
    *,
    exact: str | None = None,
    farthest: bool = False,
    spare: int | None = None,
    progress: Progress | None = None,
) -> Neighbours:
    """Return the k nearest items of every query and their squared distances.

    Args:
        queries: Q vectors.
        items: the vectors that are searched.
        k: 1 to the number of items.
        exact: see `search`.
        farthest: each query's largest distance is wanted, too, of certified neighbours; else it
            may be NaN.
        spare: see `search`.
        progress: called as (phase, done, total).

    Raises:
        UserError: the order cannot be certified and shall be.
    """
    if exact_order(items, exact, queries) == "certified":
        tiles = cheapest_tiles(queries, items, k, farthest=farthest)
        with kernels_alone(len(queries) * len(items)):
            if isinstance(tiles, Int8):
                look = Look(queries, items, k, farthest=farthest, spare=spare, progress=progress)
                return look.run()
            return certified_nearest(queries, items, k, tiles, farthest=farthest, progress=progress)
    with torch_alone():
        return _float32_nearest(queries, items, k, progress)


def _float32_nearest(
    queries: VectorSet, items: VectorSet, k: int, progress: Progress | None
) -> Neighbours:
    """Return the k nearest items of every query in the order of float32 tiles."""
    lists = NearestLists(len(queries), k, queries.device)
    height = width = tile_on(queries.device, max(len(queries), len(items)), items.dimension)
    if queries.device.type != "cpu":  # where products need not be of one shape in sets of any size
        height = min(height, tile_height(len(queries), height))
    # The items, of which there are usually more and which may be on disk, are read once.
    places = [
        (own, first)
        for first in range(0, len(items), width)
        for own in range(0, len(queries), height)
    ]
    products_of = _Tiles(queries, items, height, width)
    for done, (own, first, products) in enumerate(products_of.along(places), 1):
        lists.add(products, own, first, cosine=products_of.cosine)
        if progress is not None:
            progress("neighbours", done, len(places))
    return lists.result()


def without_self(found: Neighbours, numbers: Tensor | None = None) -> Neighbours:
    """Return the k - 1 nearest others of every vector of a set, given the k nearest with itself.

    Itself is dropped where it stands: duplicates of a lower index may stand before it, and among
    many of them it may be missing. Then the last goes instead.
    """
    if numbers is None:
        numbers = torch.arange(len(found.index), device=found.index.device)
    own = found.index == numbers[:, None]
    own[:, -1] |= ~own.any(1)
    shape = (len(own), own.shape[1] - 1)
    return Neighbours(
        found.index[~own].view(shape), found.distances[~own].view(shape), found.maxima
    )


def float32_neighbours(
    vectors: VectorSet,
    k: int,
    *,
    kept: Tensor | None = None,
    progress: Progress | None = None,
) -> Neighbours:
    """Return the k nearest of every vector among all, in the order of float32 tiles.

    Every pair is computed once, in a tile on or above the diagonal, and inserted in both lists. A
    BLAS that rounds by shape gives one pair the same distance in sets of any size.

    Args:
        vectors: N vectors.
        k: 1 to N.
        kept: [Q, N - Q] float32, filled with the squared distances of the first Q vectors to the
            others; None where they are not wanted.
        progress: called as (phase, done, total).

    Returns:
        Lists in the order of (distance, index), and each vector's largest distance.
    """
    count = len(vectors)
    size = tile_on(vectors.device, count, vectors.dimension)
    lists = NearestLists(count, k, vectors.device)
    lists.add_self()
    places = upper_triangle(count, size)
    tiles = _Tiles(vectors, vectors, size, size)
    for done, (own, other, products) in enumerate(tiles.along(places), 1):
        lists.add(products, own, other, cosine=tiles.cosine, symmetric=True, kept=kept)
        if progress is not None:
            progress("neighbours", done, len(places))
    return lists.result()


def vector_sets(
    query: ArrayLike | None, gallery: ArrayLike | None, metric: str
) -> tuple[VectorSet, VectorSet]:
    """Return two sides that users give as vectors of one width.

    Raises:
        UserError: a side is no matrix of features, widths differ, or a value is not finite.
    """
    check_metric(metric)
    queries = VectorSet([feature_rows(query, "query")], metric)
    if query is gallery:
        return queries, queries
    items = VectorSet([feature_rows(gallery, "gallery")], metric)
    if items.dimension != queries.dimension:
        raise UserError(
            f"query and gallery must have one dimension, got {queries.dimension} and "
            f"{items.dimension}"
        )
    return queries, items


def feature_rows(value: ArrayLike | None, name: str) -> ShardedMatrix:
    """Return the rows of `Features`, a tensor or an array.

    Raises:
        UserError: it is something else, or not two-dimensional.
    """
    rows = getattr(value, "rows", None)
    if not isinstance(rows, ShardedMatrix):
        wanted = "Features, or a tensor or array [N, D] of floating-point numbers"
        if not isinstance(value, Tensor | np.ndarray):
            raise UserError(f"{name} must be {wanted}, got {type(value).__name__}")
        tensor = as_tensor(name, value, lend=True)
        if not tensor.is_floating_point():
            kind = str(tensor.dtype).removeprefix("torch.")
            raise UserError(f"{name} must be {wanted}, got {type(value).__name__} of {kind}")
        if tensor.dtype not in (torch.float16, torch.float32):
            tensor = tensor.float()
        rows = ShardedMatrix([tensor], mapped=is_mapped(value, tensor))
    if len(rows.shape) != 2:
        raise UserError(f"{name} must be [N, D], got {list(rows.shape)}")
    return rows


def check_metric(metric: str) -> None:
    """Raise a `UserError` unless the metric is one of ours."""
    if not isinstance(metric, str) or metric not in METRICS:
        raise UserError(f"metric must be one of {', '.join(METRICS)}, got {metric!r}")


Products = tuple[Tensor, Tensor, Tensor]
"""A tile of inner products [R, C], and what its rows [R] and columns [C] add to distances."""


class _Tiles:
    """Tiles of inner products in one buffer, every product of one shape and call form."""

    def __init__(self, rows: VectorSet, columns: VectorSet, height: int, width: int) -> None:
        self._rows, self._columns, self._height, self._width = rows, columns, height, width
        self.cosine = rows.metric == "cosine"
        device, dimension = rows.device, rows.dimension
        self._row_block = torch.empty((height, dimension), dtype=torch.float32, device=device)
        self._tile = torch.empty((height, width), dtype=torch.float32, device=device)
        self._held: tuple[int, Tensor] | None = None

    def along(self, places: Sequence[tuple[int, int]]) -> Iterator[tuple[int, int, Products]]:
        """Yield the tiles that begin at the given rows and columns; each until the next one."""
        runs = [(first, min(first + self._width, len(self._columns))) for _, first in places]
        blocks = self._columns.blocks(runs, self._width)
        for (row, column), others in zip(places, blocks, strict=True):
            yield row, column, self._products(row, column, others)

    def _products(self, row: int, column: int, others: Tensor) -> Products:
        row_end = min(row + self._height, len(self._rows))
        column_end = min(column + self._width, len(self._columns))
        if self._held is None or self._held[0] != row:
            self._held = row, self._rows.block(row, row_end, self._row_block)
        torch.mm(self._held[1], others.t(), out=self._tile)
        return (
            self._tile[: row_end - row, : column_end - column],
            self._rows.terms[row:row_end],
            self._columns.terms[column:column_end],
        )
