"""Jaccard distances of one set as a sparse matrix, for clustering it (DBSCAN)."""

from __future__ import annotations

import itertools
import logging
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from mmga.common.distributed import Group
from mmga.common.errors import UserError, real_number
from mmga.common.memory import parse
from mmga.common.progress import Progress
from mmga.ops import k_reciprocal as ops
from mmga.ops._library import has_kernel
from mmga.ops.kernel_threads import kernels_alone
from mmga.ops.precision import float32_products
from mmga.retrieval.features.sharded_matrix import ShardedMatrix
from mmga.retrieval.features.vectors import VectorSet
from mmga.retrieval.neighbours.knn import ArrayLike, check_metric, feature_rows, search
from mmga.retrieval.neighbours.shared_knn import check_certified, held_vectors
from mmga.retrieval.neighbours.shared_set import SharedSet
from mmga.retrieval.neighbours.sparse import to_torch
from mmga.retrieval.neighbours.tile_sizes import check_memory, search_bytes
from mmga.retrieval.reranking.encode import encode
from mmga.retrieval.reranking.settings import KReciprocal
from mmga.retrieval.reranking.shared_encoding import encode_shared
from mmga.retrieval.reranking.shared_jaccard import rows_of_own

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

_LOG = logging.getLogger(__name__)
# The re-ranking rule of each clustering rule: 'cluster' has lists of k1 and weights softmax(-d).
_RULES: dict[str, Literal["fastreid", "zhong", "torchreid"]] = {
    "cluster": "fastreid",
    "zhong": "zhong",
    "torchreid": "torchreid",
}
# Distances up to which overlaps are so large that few pairs are candidates.
_NEAR = 0.9
# Distances below are what rounding leaves of a distance of zero.
_ROUNDING = 2.0**-44
# Of an entry of the encodings, by rows and by columns.
_ENCODED_BYTES = 36
# Of a stored distance while the matrix is put together: twice in rows, then in its mirror image.
_STORED_BYTES = 48
_ROWS = 8192  # between two calls of `progress`, and chances to interrupt


@float32_products()
@kernels_alone()
def jaccard_distance(
    features: ArrayLike | None,
    k1: int = 30,
    k2: int = 6,
    variant: Literal["cluster", "zhong", "torchreid"] = "cluster",
    max_distance: float | None = None,
    *,
    metric: str = "euclidean",
    progress: Progress | None = None,
    exact: str | None = None,
    memory: str | int | None = None,
    group: ProcessGroup | Group | bool | None = None,
) -> Tensor:
    """Return the k-reciprocal Jaccard distances of a set to itself as a sparse matrix.

    What is not stored is a distance above `max_distance` (without it: of exactly 1). Stored zeros
    are distances of zero: duplicates. The matrix is symmetric, each row holds itself, none is
    negative. `to_scipy` makes it the SciPy matrix that `DBSCAN(metric="precomputed")` takes, with
    the labels of the dense matrix for any eps < 1 (any eps <= max_distance); `to_dense` makes it
    the array that other clusterers take.

    Args:
        features: `Features`, or a tensor or array [N, D], L2-normalised as a rule. None in a
            process of a group that holds none.
        k1: neighbours that make the k-reciprocal sets; all items where there are fewer.
        k2: neighbours whose encodings are averaged; all items where there are fewer.
        variant: "cluster", the rule of SpCL, cluster-contrast and OpenUnReID (lists of k1 with
            self, weights softmax(-d)), or the re-ranking rules "zhong" (lists of k1 + 1, distances
            over their row's maximum) and "torchreid" (the same of squared d).
        max_distance: store distances up to this one, in [0, 1); None stores all below 1.
        metric: "euclidean": d is the squared distance of the features as given; "cosine": of the
            normalised ones.
        progress: called as (phase, done, total).
        exact: ``"certified"``: neighbours that nearly tie have the order of float64 arithmetic;
            ``"float32"``: that of float32 tiles; None: certified where that can be (on the CPU).
        memory: bound on what is allocated beyond the features, such as ``"2G"``.
        group: of torch.distributed, True for the default one: each process gives its own features,
            and gets its own rows of the matrix of all, which are numbered one after the other by
            rank (docs/scale.md; `mmga.save_distances` writes them). On the CPU, and certified.

    Returns:
        [N, N] torch sparse CSR, float64, int32 indices where these suffice; in a group [n, N].

    Raises:
        UserError: an argument is out of its range, `memory` does not suffice, or a value is NaN
            or infinite.
    """
    with (processes := Group.of(group)).together():
        rule = _rule(k1, k2, variant)
        if max_distance is not None and not 0 <= real_number("max_distance", max_distance) < 1:
            raise UserError(
                f"max_distance must be from 0 to below 1, got {max_distance!r}; leave it out to "
                "store every distance below 1"
            )
        check_metric(metric)
        bound = parse(memory)
        own = None
        if features is not None or processes.world == 1:
            own = feature_rows(features, "features")
    if processes.world > 1:
        settings = _Settings(rule, max_distance, metric, exact, bound)
        return _of_all(own, settings, progress, processes)
    assert own is not None
    start = time.perf_counter()
    vectors = VectorSet([own], metric)
    n = len(vectors)
    k, farthest = rule.neighbours_needed(n), rule.divides
    needed = search_bytes(vectors, vectors, k)
    spare = check_memory(bound, needed, f"the neighbours of {n} items")
    found = search(vectors, k, exact=exact, farthest=farthest, spare=spare, progress=progress)
    searched = time.perf_counter()
    rows = encode(found.neighbours, rule, vectors.pair_distances)
    encoded = time.perf_counter()
    matrix = _all_rows(rows, n, max_distance, _Stored(bound, n, len(rows.values)), progress)
    _log(n, (start, searched, encoded), matrix)
    return to_torch(matrix)


@dataclass(frozen=True, slots=True)
class _Settings:
    """Arguments of `jaccard_distance`, see there, and the rule that they make."""

    rule: KReciprocal
    max_distance: float | None
    metric: str
    exact: str | None
    memory: int | None


def _of_all(
    own: ShardedMatrix | None, settings: _Settings, progress: Progress | None, group: Group
) -> Tensor:
    """Return the rows of this process, of the matrix of the items of all."""
    rule, metric, limit = settings.rule, settings.metric, settings.max_distance
    with group.together():
        check_certified(settings.exact)
    group.agree("the settings", f"{rule} {limit} {metric}")
    began = time.perf_counter()
    vectors, counts = held_vectors("features", own, metric, group)
    items = SharedSet.of(vectors, [counts[group.rank]], metric, group)
    n, k = len(items), rule.neighbours_needed(len(items))
    with group.together():
        needed = items.search_bytes(k)
        spare = check_memory(settings.memory, needed, f"the neighbours of {n} items")
    found = items.nearest(k, farthest=rule.divides, spare=spare, progress=progress)
    searched = time.perf_counter()
    first, last = items.ranges[0]
    rows = [encode_shared(items, found, rule, items.numbers)[0].cut(first, last)]
    del found
    encoded = time.perf_counter()
    matrix = rows_of_own(
        rows,
        group,
        limit if limit is None else max(limit, _ROUNDING),
        join=_joins(limit, "cpu"),
        stored=_Stored(settings.memory, n, len(rows[0].values)),
        progress=progress,
    )
    matrix = _holding_themselves(matrix, first)
    _log(n, (began, searched, encoded), matrix)
    return to_torch(matrix, n)


def _log(items: int, began: tuple[float, float, float], matrix: ops.CsrRows) -> None:
    """Say what the stages took, given when each began."""
    seconds = [
        second - first for first, second in itertools.pairwise((*began, time.perf_counter()))
    ]
    _LOG.info(
        "Jaccard distances of %d items: neighbours %.2f s, encoding %.2f s, distances %.2f s, "
        "%d stored",
        *(items, *seconds, len(matrix.values)),
    )


def _rule(k1: int, k2: int, variant: str) -> KReciprocal:
    if variant not in _RULES:
        raise UserError(f"variant must be one of {', '.join(_RULES)}, got {variant!r}")
    return KReciprocal(k1, k2, variant=_RULES[variant])


def _all_rows(
    rows: ops.CsrRows,
    n: int,
    max_distance: float | None,
    stored: _Stored,
    progress: Progress | None,
) -> ops.CsrRows:
    # Half of all pairs where few are kept; mirroring many would cost what it saves.
    upper = max_distance is not None
    join = _joins(max_distance, rows.offsets.device.type)
    if max_distance is not None:
        max_distance = max(max_distance, _ROUNDING)
    if join and max_distance is not None:
        some = ops.JaccardJoin(rows, max_distance).upper
    else:
        inverted = ops.transpose_rows(rows)

        def some(chosen: Tensor) -> ops.CsrRows:
            return ops.jaccard_rows(rows, inverted, chosen, max_distance, upper=upper)

    pieces = []
    for begin in range(0, n, _ROWS):
        chosen = torch.arange(begin, min(begin + _ROWS, n), device=rows.offsets.device)
        pieces.append(_holding_themselves(some(chosen), begin))
        done = int(chosen[-1]) + 1
        stored(len(pieces[-1].values), done)
        if progress is not None:
            progress("Jaccard distances", done, n)
    whole = pieces.pop() if len(pieces) == 1 else _joined(pieces)
    return ops.symmetrise(whole) if upper else whole


def _joins(max_distance: float | None, device: str) -> bool:
    """Return whether a prefix filter finds the distances up to a limit soonest on a device."""
    if max_distance is None or max_distance > _NEAR:
        return False
    return has_kernel("jaccard_join", device.upper())


class _Stored:
    """The memory that distances take while the matrix is put together, under a bound."""

    def __init__(self, memory: int | None, items: int, encoded: int) -> None:
        """Begin with the entries of the encodings that are held here, of so many items in all."""
        self._memory, self._items = memory, items
        self._needed = _ENCODED_BYTES * encoded

    def __call__(self, entries: int, done: int) -> None:
        """Add entries that are kept, once so many of the items are done.

        Raises:
            UserError: the bound does not suffice.
        """
        self._needed += _STORED_BYTES * entries
        if self._memory is not None and self._needed > self._memory:
            needed = self._needed * self._items // done
            check_memory(self._memory, needed, f"Jaccard distances of {self._items} items")


def _holding_themselves(piece: ops.CsrRows, first: int) -> ops.CsrRows:
    """Return rows `first` and so on with themselves at distance 0, and zero where rounding is left.

    A row with an empty k-reciprocal set overlaps with none, not even with itself.
    """
    counts = piece.offsets.diff()
    own = torch.arange(first, first + len(counts), device=counts.device)
    row = torch.repeat_interleave(own, counts)
    itself = piece.columns == row
    piece.values[itself | (piece.values < _ROUNDING)] = 0
    present = torch.zeros(len(counts), dtype=torch.bool, device=counts.device)
    present[row[itself] - first] = True
    if present.all():
        return piece
    missing = own[~present]
    columns = torch.cat([piece.columns, missing.to(piece.columns.dtype)])
    values = torch.cat([piece.values, piece.values.new_zeros(len(missing))])
    order = ((torch.cat([row, missing]) << 32) + columns).argsort()
    offsets = torch.cat([counts.new_zeros(1), (counts + ~present).cumsum(0)])
    return ops.CsrRows(offsets, columns[order], values[order])


def _joined(pieces: list[ops.CsrRows]) -> ops.CsrRows:
    """Return rows one after the other, and leave none behind."""
    counts = torch.cat([piece.offsets.diff() for piece in pieces])
    offsets = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
    columns = torch.empty(int(offsets[-1]), dtype=torch.int32, device=counts.device)
    values = torch.empty(len(columns), dtype=torch.float64, device=counts.device)
    done = 0
    while pieces:  # each is freed when it is copied: the peak stays near one copy
        piece = pieces.pop(0)
        end = done + len(piece.values)
        columns[done:end], values[done:end] = piece.columns, piece.values
        done = end
    return ops.CsrRows(offsets, columns, values)
