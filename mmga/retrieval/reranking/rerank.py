"""k-reciprocal re-ranking, exact and sparse: given matrices, or features of any number."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar, overload

import numpy as np
import torch
from torch import Tensor

from mmga.common import memory as memory_sizes
from mmga.common.arrays import as_tensor
from mmga.common.distributed import Group
from mmga.common.errors import UserError, whole_number
from mmga.common.progress import Progress
from mmga.ops.neighbours import Neighbours, nearest_in_rows
from mmga.ops.precision import float32_products
from mmga.retrieval.features import JUNK, Features
from mmga.retrieval.features.sharded_matrix import ShardedMatrix
from mmga.retrieval.features.vectors import VectorSet
from mmga.retrieval.neighbours.knn import ArrayLike, check_metric, feature_rows
from mmga.retrieval.neighbours.shared_knn import (
    check_certified,
    held_vectors,
    in_place,
    merged,
    merged_blocks,
)
from mmga.retrieval.neighbours.tile_sizes import check_memory, search_bytes
from mmga.retrieval.reranking.distances import (
    Reranking,
    SharedReranking,
    check_not_empty,
    graph_of,
    graph_vectors,
)
from mmga.retrieval.reranking.encode import encode, jaccard, mix
from mmga.retrieval.reranking.settings import KReciprocal, check_rule

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

Matrix = TypeVar("Matrix", Tensor, np.ndarray)

_BLOCK = 256  # rows of a given matrix that are read together


@float32_products()
def rerank_distances(
    q_g: Matrix,
    q_q: Matrix,
    g_g: Matrix,
    rerank: KReciprocal | None = None,
    *,
    squared: bool,
) -> Matrix:
    """Return re-ranked distances of queries to gallery from given distance matrices.

    Beside the three matrices and the result this takes memory for some hundred entries an item;
    arithmetic is float64. Of `q_q` and `g_g` the upper triangle is read, the diagonal counts as 0,
    distances below 0 as 0.

    Args:
        q_g: [Q, G] distances of queries to gallery, tensor or array.
        q_q: [Q, Q] among queries.
        g_g: [G, G] among the gallery.
        rerank: settings, `KReciprocal()` if None.
        squared: True where the matrices hold squared Euclidean distances (or 2 - 2 cos, or any
            other that is not to be squared), False where they hold Euclidean ones, which the
            published rule squares. The variant `torchreid` squares once more.

    Returns:
        [Q, G] float64, a tensor for tensors and an array for arrays.

    Raises:
        UserError: shapes do not fit, a distance is NaN or infinite, or a matrix is not symmetric.
    """
    check_rule(rerank)
    rule = rerank or KReciprocal()
    matrices = _Matrices(q_g, q_q, g_g, squared)
    queries = matrices.queries
    neighbours = matrices.neighbours(rule)
    rows = encode(neighbours, rule, matrices.pairs)
    overlaps = jaccard(rows, torch.arange(queries, device=rows.offsets.device), queries)
    original = matrices.block(0, queries)[:, queries:]
    final = mix(original, neighbours.maxima[:queries], overlaps, queries, rule)
    return final if isinstance(q_g, Tensor) else final.numpy()


@overload
def rerank(
    query: np.ndarray,
    gallery: ArrayLike | None,
    rerank: KReciprocal | None = None,
    *,
    metric: str = "cosine",
    topk: None = None,
    exact: str | None = None,
    memory: str | int | None = None,
    progress: Progress | None = None,
    group: ProcessGroup | Group | bool | None = None,
) -> np.ndarray: ...


@overload
def rerank(
    query: np.ndarray,
    gallery: ArrayLike | None,
    rerank: KReciprocal | None = None,
    *,
    metric: str = "cosine",
    topk: int,
    exact: str | None = None,
    memory: str | int | None = None,
    progress: Progress | None = None,
    group: ProcessGroup | Group | bool | None = None,
) -> tuple[np.ndarray, np.ndarray]: ...


@overload
def rerank(
    query: Tensor | Features,
    gallery: ArrayLike | None,
    rerank: KReciprocal | None = None,
    *,
    metric: str = "cosine",
    topk: None = None,
    exact: str | None = None,
    memory: str | int | None = None,
    progress: Progress | None = None,
    group: ProcessGroup | Group | bool | None = None,
) -> Tensor: ...


@overload
def rerank(
    query: Tensor | Features,
    gallery: ArrayLike | None,
    rerank: KReciprocal | None = None,
    *,
    metric: str = "cosine",
    topk: int,
    exact: str | None = None,
    memory: str | int | None = None,
    progress: Progress | None = None,
    group: ProcessGroup | Group | bool | None = None,
) -> tuple[Tensor, Tensor]: ...


@float32_products()
def rerank(
    query: ArrayLike,
    gallery: ArrayLike | None,
    rerank: KReciprocal | None = None,
    *,
    metric: str = "cosine",
    topk: int | None = None,
    exact: str | None = None,
    memory: str | int | None = None,
    progress: Progress | None = None,
    group: ProcessGroup | Group | bool | None = None,
) -> Tensor | np.ndarray | tuple[Tensor, Tensor] | tuple[np.ndarray, np.ndarray]:
    """Return re-ranked distances of queries to gallery from features.

    Args:
        query: `Features`, or a tensor or array [Q, D]. Junk (pid -1) takes no part in the neighbour
            graph: its distances are infinite, its indices -1.
        gallery: likewise, [G, D]. Junk is at an infinite distance and never among the nearest. None
            in a process of a group that holds none.
        rerank: settings, `KReciprocal()` if None.
        metric: "cosine" or "euclidean".
        topk: give only the nearest so many of each query.
        exact: whose order neighbours that nearly tie have, see `mmga.nearest`.
        memory: bound on what is allocated beyond the features, such as ``"2G"``.
        progress: called as (phase, done, total).
        group: of torch.distributed, True for the default one: each process gives its own rows of
            the gallery, one after the other by rank, and the same queries. It gets the distances to
            its own rows, or with `topk` the nearest of all. On the CPU, and certified.

    Returns:
        [Q, G] float64 without `topk`. With it (distances float64 [Q, topk], indices int64
        [Q, topk]), in the order of (distance, index). Arrays if `query` is an array.

    Raises:
        UserError: the matrix does not fit the free memory or `memory`, `topk` is out of range,
            widths differ, or a value is NaN or infinite.
    """
    with (processes := Group.of(group)).together():
        asked = _Side.of(query, "query")
        among = _Side(None)
        if gallery is not None or processes.world == 1:
            among = _Side.of(gallery, "gallery")
        check_metric(metric)
        check_rule(rerank)
        topk = None if topk is None else whole_number("topk", topk)
        if topk is None:
            _check_room(asked.count, among.count)
        rule, bound = rerank or KReciprocal(), memory_sizes.parse(memory)
        settings = _Settings(rule, metric, topk, exact, bound)
    if processes.world == 1:
        graph = _graph_of_one(asked, among, settings, progress)
    else:
        graph = _graph_of_all(asked, among, settings, progress, processes)
    with processes.together():
        distances, index = _distances(graph, (asked, among), topk, progress)
    if topk is not None and processes.world > 1:
        distances, index = _merged(distances, index, (asked, among), topk, processes)
    as_array = isinstance(query, np.ndarray)
    if topk is None:
        return distances.numpy() if as_array else distances
    return (distances.numpy(), index.numpy()) if as_array else (distances, index)


@dataclass(frozen=True, slots=True)
class _Settings:
    """Arguments of `rerank`, see there."""

    rule: KReciprocal
    metric: str
    topk: int | None
    exact: str | None
    memory: int | None

    def check_memory(self, search: int, queries: int, items: int) -> int | None:
        """Return what the search and the result, of so many items, leave of the memory.

        Raises:
            UserError: it does not suffice.
        """
        needed = 8 * queries * items if self.topk is None else 16 * queries * self.topk
        needed += search
        what = f"re-ranking {queries} queries and {items} gallery items"
        return check_memory(self.memory, needed, what)


@dataclass(frozen=True, slots=True)
class _Side:
    """Rows of queries or gallery that are held here, and those that are not junk."""

    rows: ShardedMatrix | None
    chosen: Tensor | None = None

    @classmethod
    def of(cls, value: ArrayLike | None, name: str) -> _Side:
        rows, pids = feature_rows(value, name), getattr(value, "pids", None)
        if pids is None or not (pids == JUNK).any():
            return cls(rows)
        return cls(rows, torch.from_numpy(np.flatnonzero(pids != JUNK)))

    @property
    def count(self) -> int:
        return 0 if self.rows is None else len(self.rows)

    @property
    def places(self) -> Tensor:
        return torch.arange(self.count, device="cpu") if self.chosen is None else self.chosen


def _graph_of_one(
    asked: _Side, among: _Side, settings: _Settings, progress: Progress | None
) -> Reranking:
    assert asked.rows is not None and among.rows is not None
    counts, rule = (len(asked.places), len(among.places)), settings.rule
    _check_topk(settings.topk, counts[1], among.count)
    chosen = tuple(None if side.chosen is None else side.chosen.numpy() for side in (asked, among))
    vectors = graph_vectors(asked.rows, among.rows, settings.metric, rows=(chosen[0], chosen[1]))
    search = search_bytes(vectors, vectors, rule.neighbours_needed(len(vectors)))
    left = settings.check_memory(search, asked.count, among.count)
    exact = settings.exact
    return Reranking(vectors, counts[0], rule, exact=exact, memory=left, progress=progress)


def _graph_of_all(
    asked: _Side, among: _Side, settings: _Settings, progress: Progress | None, group: Group
) -> Reranking:
    """Return the graph of the gallery that all processes hold."""
    rule, metric = settings.rule, settings.metric
    with group.together():
        check_certified(settings.exact)
        assert asked.rows is not None
        check_not_empty(len(asked.places))
        sides, chosen = zip(*in_place(asked.rows, asked.chosen), strict=True)
        queries = VectorSet(sides, metric, chosen)
    group.agree("the settings", f"{rule} {metric} {settings.topk}")
    told = (queries.norms.cpu(), asked.places)
    group.agree("the queries", b"".join(part.numpy().tobytes() for part in told))
    own, counts = held_vectors("gallery", among.rows, metric, group, queries, among.chosen)
    total = int(group.table([among.count]).sum())
    with group.together():
        _check_topk(settings.topk, sum(counts), total)
    items = graph_of(queries, own, group)
    with group.together():
        search = items.search_bytes(rule.neighbours_needed(len(items)))
        spare = settings.check_memory(search, asked.count, among.count)
    return SharedReranking(queries, own, items, rule, spare=spare, progress=progress)


def _distances(
    graph: Reranking, sides: tuple[_Side, _Side], topk: int | None, progress: Progress | None
) -> tuple[Tensor, Tensor]:
    """Return distances to the items held here, or the nearest of them, and the rows they are."""
    rows, places = sides[0].places, sides[1].places
    queries, width = sides[0].count, sides[1].count
    if topk is not None:
        width = min(topk, len(places))
    distances = torch.full((queries, width), torch.inf, dtype=torch.float64, device="cpu")
    shape = queries, 0 if topk is None else width
    index = torch.full(shape, -1, dtype=torch.int64, device="cpu")
    if not len(places):
        return distances, index
    for part, block in graph.blocks(torch.arange(graph.queries, device="cpu")):
        if topk is None:
            distances[rows[part, None], places] = block.cpu()
        else:
            near, which = (one.cpu() for one in nearest_in_rows(block, width))
            distances[rows[part]], index[rows[part]] = near, places[which.long()]
        if progress is not None:
            progress("re-ranking", part.stop, graph.queries)
    return distances, index


def _merged(
    distances: Tensor, index: Tensor, sides: tuple[_Side, _Side], topk: int, group: Group
) -> tuple[Tensor, Tensor]:
    """Return the nearest among the items of all processes, given those of this one."""
    (asked, among), rows = sides, sides[0].places
    told = group.table([distances.shape[1], among.count]).long()
    shapes = told[:, 0].tolist(), (told[:, 1].cumsum(0) - told[:, 1]).tolist()
    near = torch.full((asked.count, topk), torch.inf, dtype=torch.float64, device="cpu")
    number = torch.full(near.shape, -1, dtype=torch.int64, device="cpu")
    for part in merged_blocks(len(rows), topk, group):
        some = rows[part]
        number[some], near[some] = merged(index[some].int(), distances[some], shapes, topk, group)
    return near, number


def _check_topk(topk: int | None, items: int, rows: int) -> None:
    """Raise a `UserError` where lists are longer than the gallery's items that are no junk."""
    if topk is not None and not 1 <= topk <= items:
        left_out = f" ({rows - items} junk items are left out)" if rows > items else ""
        raise UserError(f"topk must be from 1 to the {items} gallery items{left_out}, got {topk}")


def _check_room(queries: int, gallery: int) -> None:
    """Raise where a matrix of distances is larger than the memory that is free."""
    needed, free = 8 * queries * gallery, memory_sizes.available()
    if free is not None and needed > free:  # elsewhere than on Linux the allocation itself tells
        raise UserError(
            f"a matrix of {queries} x {gallery} distances takes {needed / 2**30:.1f} GiB and "
            f"{free / 2**30:.1f} GiB are free; pass topk= for the nearest of each query"
        )


class _Matrices:
    """The [N, N] matrix of squared distances that three given ones make up, by blocks of rows."""

    def __init__(self, q_g: Matrix, q_q: Matrix, g_g: Matrix, squared: bool) -> None:
        self.q_g, self.q_q, self.g_g = (
            _matrix(name, value) for name, value in (("q_g", q_g), ("q_q", q_q), ("g_g", g_g))
        )
        self.squared = squared
        self.queries, self.gallery = self.q_g.shape
        for name, side, count in (("q_q", "Q", self.queries), ("g_g", "G", self.gallery)):
            shape = tuple(getattr(self, name).shape)
            if shape != (count, count):
                raise UserError(
                    f"{name} must be [{side}, {side}] = {[count, count]} to go with q_g "
                    f"{list(self.q_g.shape)}, got {list(shape)}"
                )
            _check_symmetric(name, getattr(self, name))
        self.items = self.queries + self.gallery

    def block(self, begin: int, end: int) -> Tensor:
        """Return rows [begin, end), all queries or all gallery items: [R, N] float64."""
        if begin < self.queries:
            parts = [_symmetric_rows(self.q_q, begin, end), self.q_g[begin:end].double()]
        else:
            low, high = begin - self.queries, end - self.queries
            parts = [self.q_g[:, low:high].t().double(), _symmetric_rows(self.g_g, low, high)]
        block = torch.cat(parts, 1).clamp_(min=0)
        return block if self.squared else block.square_()

    def neighbours(self, rule: KReciprocal) -> Neighbours:
        k = rule.neighbours_needed(self.items)
        distances, index, maxima = [], [], []
        for low, high in ((0, self.queries), (self.queries, self.items)):
            for begin in range(low, high, _BLOCK):
                block = self.block(begin, min(begin + _BLOCK, high))
                near, which = nearest_in_rows(block, k)
                distances.append(near)
                index.append(which)
                maxima.append(block.amax(1))
        return Neighbours(torch.cat(index), torch.cat(distances), torch.cat(maxima))

    def pairs(self, rows: Tensor, columns: Tensor) -> Tensor:
        """Return the squared distances of pairs of items, float64 [P]."""
        low, high = torch.minimum(rows, columns), torch.maximum(rows, columns)
        q = self.queries
        result = torch.zeros(len(rows), dtype=torch.float64, device=rows.device)
        for matrix, chosen, shift_low, shift_high in (
            (self.q_q, high < q, 0, 0),
            (self.q_g, (low < q) & (high >= q), 0, q),
            (self.g_g, low >= q, q, q),
        ):
            result[chosen] = matrix[low[chosen] - shift_low, high[chosen] - shift_high].double()
        result = result.masked_fill_(rows == columns, 0).clamp_(min=0)
        return result if self.squared else result.square_()


def _matrix(name: str, value: Tensor | np.ndarray) -> Tensor:
    matrix = as_tensor(name, value, lend=True)
    if matrix.ndim != 2 or not matrix.is_floating_point() or getattr(value, "requires_grad", False):
        raise UserError(
            f"{name} must be a two-dimensional matrix of floating-point distances without a "
            f"gradient, got {matrix.dtype} {list(matrix.shape)}"
        )
    for begin in range(0, len(matrix), _BLOCK):
        if not matrix[begin : begin + _BLOCK].isfinite().all():
            raise UserError(f"{name} must be finite, got NaN or infinity in its rows {begin} ff.")
    if not matrix.numel():
        raise UserError(f"{name} must not be empty, got {list(matrix.shape)}")
    return matrix


def _check_symmetric(name: str, matrix: Tensor) -> None:
    """Rounding may tell the two triangles apart, more may not."""
    for begin in range(0, len(matrix), _BLOCK):
        rows, columns = matrix[begin : begin + _BLOCK], matrix[:, begin : begin + _BLOCK].t()
        if ((rows - columns).abs() > 1e-3 * rows.abs().amax()).any():
            raise UserError(
                f"{name} must be symmetric, got distances that differ from their transposed ones "
                f"in rows {begin} to {begin + len(rows) - 1}; pass distances, not scores, of one "
                "set against itself"
            )


def _symmetric_rows(matrix: Tensor, begin: int, end: int) -> Tensor:
    """Return rows of a square matrix, all from its upper triangle and with a diagonal of 0."""
    rows = matrix[begin:end].double()
    if rows.data_ptr() == matrix[begin:end].data_ptr():
        rows = rows.clone()
    rows[:, :begin] = matrix[:begin, begin:end].t()
    square = rows[:, begin:end].triu(1)
    rows[:, begin:end] = square + square.t()
    return rows
