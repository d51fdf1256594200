"""Exact k-NN in the order of float64 distances: filter by cheap tiles, then refine.

Approximate distances to a sample limit the k-th smallest distance of each row. One pass over all
tiles then lists candidates, pairs that may be within the limit of one of their vectors or the
farthest of one, and computes their distances exactly, which lowers the limits. Tiles of the
features themselves are so good that only few lists must be repaired instead.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from mmga.common.errors import UserError
from mmga.common.progress import Progress
from mmga.ops.certified import (
    ExactLists,
    Int8Tile,
    PairVectors,
    filter_candidates,
    filter_int8_candidates,
    nearest_of,
    refine_candidates,
)
from mmga.ops.distance import exact_keys, exact_term, metric_number, pair_sums
from mmga.ops.neighbours import NearestLists, Neighbours
from mmga.ops.ranking import Tile
from mmga.retrieval.bounds.approximation import (
    EXACT,
    Approximation,
    Approximator,
    bound_between,
    identity,
    int16,
    tile_products,
)
from mmga.retrieval.bounds.planner import spread, takes_int8
from mmga.retrieval.bounds.stages import approximate_terms
from mmga.retrieval.features.vectors import VectorSet, exact_pair_keys, squared_distances
from mmga.retrieval.neighbours.tile_sizes import TILE, upper_triangle

# Neighbours beyond k that a filter by tiles of the features asks for: where more than these nearly
# tie with the k-th, the list is repaired.
_SPARE = 8
# Vectors among which the limits of lists, and each vector's farthest, are searched first.
_SAMPLE = 1024
# Pairs whose distances are computed at once.
_PAIRS = 1 << 20
# Rows of a tile of the refinement, in tiles: the features of its vectors come through the caches
# for exact products, and the fewer such blocks, the less often.
_ROW_TILES = 4


def certified_neighbours(
    vectors: VectorSet,
    k: int,
    tiles: Approximator | None = None,
    *,
    kept: Tensor | None = None,
    tile: int | None = None,
    farthest: bool = True,
    progress: Progress | None = None,
) -> Neighbours:
    """Return the k nearest of every vector among all, itself included at distance 0.

    Args:
        vectors: N vectors.
        k: 1 to N.
        tiles: approximates the vectors of tiles; None: tiles are of the features.
        kept: [Q, N - Q] float32, filled with the squared distances of the first Q vectors to the
            others as tiles of the features have them; None with other tiles.
        tile: rows and columns of a tile; `TILE` if None.
        farthest: each vector's largest distance is wanted, too; else it is NaN.
        progress: called as (phase, done, total).

    Returns:
        Lists in the order of (float64 distance, index) with squared distances rounded to float32.
        Each vector's largest distance is likewise exact, but the tiles' where they are kept.
    """
    search = _Search(vectors, vectors, k, tiles, tile or TILE, progress)
    if tiles is None and (kept is not None or not farthest):
        return search.through_features(kept, farthest)
    return search.through(farthest)


def certified_nearest(
    queries: VectorSet,
    items: VectorSet,
    k: int,
    tiles: Approximator | None = None,
    *,
    farthest: bool = False,
    progress: Progress | None = None,
) -> Neighbours:
    """Return the k nearest items of every query, as `certified_neighbours` those of one set.

    Queries that are the items meet each pair once; a query is then as far from itself as from a
    copy: of a cosine, rounding may leave something.
    """
    search = _Search(queries, items, k, tiles, TILE, progress)
    search.own_at_zero = False
    if tiles is None and not farthest:
        return search.through_features(None, False)
    return search.through(farthest)


def certified_within(
    vectors: VectorSet,
    radius: float,
    tiles: Approximator | None = None,
    *,
    progress: Progress | None = None,
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Yield all pairs of a set whose squared distance is at most `radius` (`_Search.within`)."""
    return _Search(vectors, vectors, 1, tiles, TILE, progress).within(radius)


def exact_order(vectors: VectorSet, exact: str | None, others: VectorSet | None = None) -> str:
    """Return the order of neighbours of these vectors: certified or float32.

    Args:
        vectors: the set that is searched.
        exact: one of the two, or None for certified where that can be: on the CPU and on CUDA
            devices with kernels of 8-bit products.
        others: the queries, where they are another set.

    Raises:
        UserError: it shall be certified and cannot.
    """
    if exact not in (None, *EXACT):
        raise UserError(f"exact: expected {' or '.join(EXACT)}, found {exact!r}")
    obstacle = None
    if vectors.device.type != "cpu" and not takes_int8(vectors.dimension, vectors.device):
        obstacle = f"on {vectors.device.type} devices without kernels of 8-bit products"
    elif not all(side.near for side in (vectors, others or vectors)):
        obstacle = "of features that exceed the device"
    if exact == "certified" and obstacle is not None:
        raise UserError(f"exact: certified neighbours are not found {obstacle}; use 'float32'")
    return "float32" if exact == "float32" or obstacle is not None else "certified"


class _ExactSide:
    """The rows or the columns of a tile as its refinement takes them.

    Attributes:
        int16: quantised to 16 bits.
        term: float64 [N], norms (cosine) or squared norms (euclidean).
    """

    def __init__(self, features: Tensor, norms: Tensor, metric: str) -> None:
        """Quantise vectors, float32 [N, D], given their squared norms."""
        self._features, self._norms, self._metric = features, norms, metric
        self.int16 = int16(features, norms, metric)
        self.term = exact_term(norms, metric)

    def distances(self, columns: _ExactSide, pairs: Tensor) -> Tensor:
        """Return the exact squared distances of pairs of a tile, int32 [P, 2], as float64 [P]."""
        row, column = pairs.long().unbind(1)
        sums = pair_sums(self._features, columns._features, row, column, self._metric)
        keys = exact_keys(sums, self._norms[row], columns._norms[column], self._metric)
        return squared_distances(keys, self._metric)


class _Side:
    """A set of vectors as tiles take them.

    Attributes:
        vectors: the set.
        terms: float32 [N], of the keys of tiles.
    """

    def __init__(self, vectors: VectorSet, tiles: Approximator | None) -> None:
        """Approximate all vectors once."""
        self.vectors, self.terms = vectors, vectors.terms
        self._approximate: Approximation | None = None
        if tiles is not None:
            self.terms = approximate_terms(vectors.norms, vectors.metric)
            self._approximate = Approximation.joined(
                [
                    tiles.of(self._block(rows), vectors.norms[rows], vectors.metric)
                    for rows in self.slices(TILE)
                ]
            )
        self._refined: tuple[slice, _ExactSide] | None = None

    def slices(self, size: int) -> list[slice]:
        """Return the set in parts of this size."""
        count = len(self.vectors)
        return [slice(begin, min(begin + size, count)) for begin in range(0, count, size)]

    def cut(self, chosen: slice | Tensor) -> Approximation:
        """Return some vectors as tiles take them."""
        if self._approximate is not None:
            return self._approximate.cut(chosen)
        vectors = self.vectors
        if isinstance(chosen, slice):
            rows = vectors.block(chosen.start, chosen.stop)
        else:
            rows = vectors.take(chosen)
        return identity(rows, vectors.norms[chosen], vectors.metric)

    def exact_once(self, rows: slice) -> _ExactSide:
        """Return some vectors as the refinement of tiles takes them."""
        return _ExactSide(self._block(rows), self.vectors.norms[rows], self.vectors.metric)

    def exact(self, rows: slice) -> _ExactSide:
        """Return the same, which is kept until others are asked for."""
        if self._refined is None or self._refined[0] != rows:
            self._refined = rows, self.exact_once(rows)
        return self._refined[1]

    def _block(self, rows: slice) -> Tensor:
        return self.vectors.block(rows.start, rows.stop).contiguous()


class _Search:
    """One search: both sides, approximated, and the passes over all pairs.

    Attributes:
        own_at_zero: a vector is at distance 0 from itself, not at what arithmetic gives.
    """

    own_at_zero = True

    def __init__(
        self,
        rows: VectorSet,
        columns: VectorSet,
        k: int,
        tiles: Approximator | None,
        tile: int,
        progress: Progress | None,
    ) -> None:
        """Approximate all vectors once; `columns` may be `rows`, and each pair is then met once."""
        self._own = rows is columns
        self._rows = _Side(rows, tiles)
        self._columns = self._rows if self._own else _Side(columns, tiles)
        self._k, self._tiles, self._tile = k, tiles, tile
        self._progress = progress or (lambda phase, done, total: None)
        self._cosine = rows.metric == "cosine"
        self._metric = metric_number(rows.metric)
        self._scale = 2.0 if self._cosine else 1.0  # of squared distances to keys

    def through_features(self, kept: Tensor | None, farthest: bool) -> Neighbours:
        """Return the neighbours through tiles of the features."""
        count = len(self._columns.vectors)
        found = self._filter(min(count, self._k + _SPARE), kept)
        wanted = found.index.shape[1]
        owner = torch.arange(len(found.index), device="cpu").repeat_interleave(wanted)
        exact = self._distances(owner, found.index.reshape(-1).long()).view(-1, wanted)
        index, distance = nearest_of(found.index, exact, self._k)
        if wanted < count:
            self._repair(index, distance, found.distances[:, -1].double())
        maxima = found.maxima if farthest else torch.full_like(found.maxima, torch.nan)
        return Neighbours(index, distance.float(), maxima)

    def through(self, farthest: bool) -> Neighbours:
        """Return the neighbours through tiles of approximations."""
        lists = ExactLists(self._limits(), self._k)
        if self._own:
            own = torch.arange(len(self._rows.vectors), device="cpu")
            lists.add_self(own, self._distances(own, own))
        lists.maxima.copy_(
            self._far() if farthest else torch.tensor(torch.inf, dtype=torch.float64, device="cpu")
        )
        self._refine(lists)
        index, distance = lists.result()
        maxima = lists.maxima.float()
        if not farthest:
            maxima.fill_(torch.nan)
        return Neighbours(index, distance.float(), maxima)

    def _filter(self, wanted: int, kept: Tensor | None) -> Neighbours:
        """Return the nearest by the distances of tiles of the features."""
        rows, columns, size = self._rows.vectors, self._columns.vectors, self._tile
        lists = NearestLists(len(rows), wanted)
        if self._own:
            lists.add_self()
            places = upper_triangle(len(rows), size)
        else:
            starts = range(0, len(rows), size)
            places = [(own, other) for other in range(0, len(columns), size) for own in starts]
        values = torch.empty(size * size, dtype=torch.float32, device="cpu")
        for done, (own, other) in enumerate(places, 1):
            mine = slice(own, min(own + size, len(rows)))
            theirs = slice(other, min(other + size, len(columns)))
            above, beside = self._rows.cut(mine), self._columns.cut(theirs)
            tile = tile_products(above, beside, _shaped(values, above, beside))
            lists.add(
                (tile, self._rows.terms[mine], self._columns.terms[theirs]),
                own,
                other,
                cosine=self._cosine,
                symmetric=self._own,
                kept=kept,
            )
            self._progress("neighbours", done, len(places))
        return lists.result()

    def _limits(self) -> Tensor:
        """Return upper bounds of the k-th smallest distances, from a sample, float64 [N]."""
        rows, columns = self._rows, self._columns
        sample = spread(len(columns.vectors), max(_SAMPLE, 2 * self._k))
        if len(sample) < self._k:
            return torch.full((len(rows.vectors),), torch.inf, dtype=torch.float64, device="cpu")
        others, terms = columns.cut(sample), columns.terms[sample]
        lists = NearestLists(len(rows.vectors), self._k)
        values = torch.empty(TILE, len(sample), dtype=torch.float32, device="cpu")
        for part in rows.slices(TILE):
            tile = tile_products(rows.cut(part), others, values[: part.stop - part.start])
            lists.add((tile, rows.terms[part], terms), part.start, 0, cosine=self._cosine)
        found = lists.result().index.reshape(-1).long()
        limits = torch.empty(len(rows.vectors), dtype=torch.float64, device="cpu")
        step = max(1, _PAIRS // self._k)
        for begin in range(0, len(limits), step):
            some = slice(begin, min(begin + step, len(limits)))
            row = torch.arange(some.start, some.stop, device="cpu").repeat_interleave(self._k)
            near = found[some.start * self._k : some.stop * self._k]
            limits[some] = self._distances(row, sample[near]).view(-1, self._k).amax(1)
        return limits

    def _far(self) -> Tensor:
        """Return the exact distance of each vector to one that seems far, float64 [N].

        The one is the farthest of a sample by the tiles: the larger, the fewer pairs are candidates
        for the farthest.
        """
        side, others = self._rows, self._columns
        sample = spread(len(others.vectors), _SAMPLE)
        far_away = others.cut(sample)
        own = 0.0 if self._cosine else others.vectors.norms[sample].float() / 2
        far = torch.empty(len(side.vectors), dtype=torch.int64, device="cpu")
        values = torch.empty(TILE, len(sample), dtype=torch.float32, device="cpu")
        for rows in side.slices(TILE):
            near = tile_products(side.cut(rows), far_away, values[: rows.stop - rows.start])
            far[rows] = sample[(near - own).argmin(1)]
        return self._distances(torch.arange(len(far), device="cpu"), far)

    def within(self, radius: float) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Yield the pairs of one set, each once, that are at most so far apart.

        Args:
            radius: a squared distance.

        Yields:
            Rows and columns, int64 [P], the columns above the rows, and squared distances [P].
        """
        limit = torch.full(
            (len(self._rows.vectors),), radius / self._scale, dtype=torch.float64, device="cpu"
        )
        never = torch.full_like(limit, torch.inf)
        for mine, theirs, pairs, distances in self._refined(
            lambda rows: (limit[rows], never[rows])
        ):
            near = distances <= radius
            row, column = pairs[near].long().unbind(1)
            yield row + mine.start, column + theirs.start, distances[near]

    def _refine(self, lists: ExactLists) -> None:
        """Insert all pairs that may be within a limit of their vectors, or the farthest."""

        def limits(rows: slice) -> tuple[Tensor, Tensor]:
            return lists.limits[rows] / self._scale, lists.maxima[rows] / self._scale

        for mine, theirs, pairs, distances in self._refined(limits):
            lists.insert(pairs, distances, mine.start, theirs.start, both=self._own)

    def _refined(
        self, limits: Callable[[slice], tuple[Tensor, Tensor]]
    ) -> Iterator[tuple[slice, slice, Tensor, Tensor]]:
        """Yield tile after tile the pairs that may be near or far enough, with exact distances.

        Args:
            limits: keys up to which, and from which, pairs are wanted of some vectors; asked for
                again at every tile.
        """
        rows, columns, size = self._rows, self._columns, self._tile
        height = _ROW_TILES * size
        values = torch.empty(height * size, dtype=torch.float32, device="cpu")
        others = columns.slices(size)
        places = [(mine, theirs) for mine in rows.slices(height) for theirs in others]
        if self._own:
            places = [(mine, theirs) for mine, theirs in places if theirs.start >= mine.start]
        else:  # the items, of which there are usually more and which may be on disk, are read once
            places.sort(key=lambda place: place[1].start)
        endless = torch.full((size,), torch.inf, dtype=torch.float64, device="cpu")
        for done, (mine, theirs) in enumerate(places, 1):
            nowhere = endless[: theirs.stop - theirs.start]
            others_limits = limits(theirs) if self._own else (-nowhere, nowhere)
            near, far = zip(limits(mine), others_limits, strict=True)
            pairs = self._candidates(mine, theirs, values, near, far)
            above, beside = rows.exact(mine), columns.exact_once(theirs)
            pairs = refine_candidates(
                pairs,
                PairVectors(
                    above.int16.rows, beside.int16.rows, above.term, beside.term, self._metric
                ),
                bound_between(above.int16, beside.int16, rows.vectors.metric),
                near,
                far,
            )
            yield mine, theirs, pairs, above.distances(beside, pairs)
            self._progress("certain neighbours", done, len(places))

    def _candidates(
        self, mine: slice, theirs: slice, values: Tensor, near: Sides, far: Sides
    ) -> Tensor:
        """Return the candidates of a tile, of one set those above the diagonal, int32 [P, 2]."""
        above, beside = self._rows.cut(mine), self._columns.cut(theirs)
        bound = bound_between(above, beside, self._rows.vectors.metric)
        terms = self._rows.terms[mine], self._columns.terms[theirs]
        if above.unit is not None and beside.unit is not None:
            units = above.unit, beside.unit
            return filter_int8_candidates(
                Int8Tile(above.rows, beside.rows, *units, *terms, self._metric, theirs.start),
                bound,
                near,
                far,
                first_item=mine.start,
                symmetric=self._own,
            )
        products = tile_products(above, beside, _shaped(values, above, beside))
        tile = Tile(products, theirs.start, self._metric, *terms)
        return filter_candidates(tile, bound, near, far, first_item=mine.start, symmetric=self._own)

    def _repair(self, index: Tensor, distance: Tensor, seen: Tensor) -> None:
        """Recompute, in place, neighbour lists that the bound cannot certify.

        Args:
            index: int32 [N, k].
            distance: float64 [N, k].
            seen: float64 [N], distances by the tiles up to which every vector was seen.
        """
        rows, columns = self._rows, self._columns
        limits, metric = distance[:, -1].contiguous(), rows.vectors.metric
        # The error of rows of this width depends on their norms alone.
        errors = [
            identity(side.vectors.block(0, 1), side.vectors.norms, metric).slack
            for side in (rows, columns)
        ]
        sure = seen - self._scale * (errors[0] + errors[1].max())
        doubtful = torch.nonzero(sure <= limits).squeeze(1)
        for begin in range(0, len(doubtful), TILE):
            chosen = doubtful[begin : begin + TILE]
            lists = ExactLists(limits[chosen], self._k)
            own = rows.cut(chosen)
            nowhere = torch.full((len(chosen),), torch.inf, dtype=torch.float64, device="cpu")
            for theirs in columns.slices(TILE):
                beside = columns.cut(theirs)
                endless = torch.full(
                    (len(beside.rows),), torch.inf, dtype=torch.float64, device="cpu"
                )
                values = tile_products(
                    own,
                    beside,
                    torch.empty(len(chosen), len(endless), dtype=torch.float32, device="cpu"),
                )
                terms = rows.terms[chosen], columns.terms[theirs]
                pairs = filter_candidates(
                    Tile(values, theirs.start, self._metric, *terms),
                    bound_between(own, beside, metric),
                    (lists.limits / self._scale, -endless),
                    (nowhere, endless),
                    first_item=0,
                    symmetric=False,
                )
                row, column = pairs.long().unbind(1)
                exact = self._distances(chosen[row], column + theirs.start)
                lists.insert(pairs, exact, 0, theirs.start, both=False)
            index[chosen], distance[chosen] = lists.result()
            done = min(begin + TILE, len(doubtful))
            self._progress("certain neighbours", done, len(doubtful))

    def _distances(self, row: Tensor, column: Tensor) -> Tensor:
        """Return the exact squared distances of pairs, int64 [P] each, as float64 [P]."""
        if self._own and self.own_at_zero:
            return self._rows.vectors.exact_distances(row, column)
        keys = exact_pair_keys(self._rows.vectors, row, self._columns.vectors, column)
        return squared_distances(keys, self._rows.vectors.metric)


Sides = tuple[Tensor, Tensor]
"""Values of the rows and of the columns of a tile."""


def _shaped(values: Tensor, rows: Approximation, columns: Approximation) -> Tensor:
    """Return memory for the products of a tile."""
    height, width = len(rows.rows), len(columns.rows)
    return values[: height * width].view(height, width)
