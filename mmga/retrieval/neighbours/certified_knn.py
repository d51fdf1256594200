"""Exact k-NN in the order of float64 distances: filter by cheap tiles, then refine.

Approximate distances give each vector k others; the k-th smallest of their exact distances is a
limit that its k nearest are within. A second pass lists all candidates: pairs that may be within
the limit of one of their vectors, or be the farthest of one. It computes those exactly. Tiles of
the features themselves are so good that only few lists must be repaired instead.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mmga.common.errors import UserError
from mmga.common.progress import Progress
from mmga.ops.certified import (
    ExactLists,
    PairVectors,
    filter_candidates,
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
    beyond_bounds,
    bound_between,
    identity,
    int16,
    tile_products,
)
from mmga.retrieval.bounds.planner import spread
from mmga.retrieval.bounds.stages import approximate_terms
from mmga.retrieval.features.vectors import VectorSet, squared_distances
from mmga.retrieval.neighbours.search_plan import filter_part
from mmga.retrieval.neighbours.tile_sizes import TILE, upper_triangle

# Neighbours beyond k that a filter by tiles of the features asks for: where more than these nearly
# tie with the k-th, the list is repaired.
_SPARE = 8
# Vectors among which each vector's farthest is searched first.
_SAMPLE = 1024
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
        Each vector's largest distance is exact unless tiles are of the features, else the tiles'.
    """
    search = _Search(vectors, k, tiles, tile or TILE, progress)
    return search.through_features(kept, farthest) if tiles is None else search.through(farthest)


def exact_order(vectors: VectorSet, exact: str | None) -> str:
    """Return the order of neighbours of these vectors: certified or float32.

    Args:
        vectors: the set that is searched.
        exact: one of the two, or None for certified where there are bounds: on the CPU, and for
            features of usual lengths.

    Raises:
        UserError: it shall be certified and cannot.
    """
    if exact not in (None, *EXACT):
        raise UserError(f"exact: expected {' or '.join(EXACT)}, found {exact!r}")
    obstacle = beyond_bounds("the set", vectors.norms)
    if vectors.device.type != "cpu":
        obstacle = f"on {vectors.device.type} devices"
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


class _Search:
    """One search: the vectors, their approximations, and the passes over all pairs."""

    def __init__(
        self,
        vectors: VectorSet,
        k: int,
        tiles: Approximator | None,
        tile: int,
        progress: Progress | None,
    ) -> None:
        """Approximate all vectors once; see `certified_neighbours` for the arguments."""
        self._vectors, self._k, self._tiles, self._tile = vectors, k, tiles, tile
        self._progress = progress or (lambda phase, done, total: None)
        self._cosine = vectors.metric == "cosine"
        self._metric = metric_number(vectors.metric)
        self._scale = 2.0 if self._cosine else 1.0  # of squared distances to keys
        self._terms = vectors.terms
        self._approximate: Approximation | None = None
        if tiles is not None:
            self._terms = approximate_terms(vectors.norms, vectors.metric)
            self._approximate = Approximation.joined(
                [
                    tiles.of(self._block(rows), vectors.norms[rows], vectors.metric)
                    for rows in self._slices(TILE)
                ]
            )

    def through_features(self, kept: Tensor | None, farthest: bool) -> Neighbours:
        """Return the neighbours through tiles of the features."""
        count = len(self._vectors)
        found, index, distance = self._filter(min(count, self._k + _SPARE), kept)
        if found.index.shape[1] < count:
            self._repair(index, distance, found.distances[:, -1].double())
        maxima = found.maxima if farthest else torch.full_like(found.maxima, torch.nan)
        return Neighbours(index, distance.float(), maxima)

    def through(self, farthest: bool) -> Neighbours:
        """Return the neighbours through tiles of approximations."""
        _, _, distance = self._filter(self._k)
        lists = ExactLists(distance[:, -1].contiguous(), self._k)
        lists.add_self(torch.arange(len(self._vectors), device="cpu"))
        lists.maxima.copy_(
            self._far() if farthest else torch.tensor(torch.inf, dtype=torch.float32, device="cpu")
        )
        self._refine(lists, distance[:, -1].contiguous())
        index, distance = lists.result()
        maxima = lists.maxima.float()
        if not farthest:
            maxima.fill_(torch.nan)
        return Neighbours(index, distance.float(), maxima)

    def _filter(self, wanted: int, kept: Tensor | None = None) -> tuple[Neighbours, Tensor, Tensor]:
        """Find the nearest by the tiles' distances.

        Returns:
            Those, and the k nearest of them by exact distances: int32 [N, k], float64 [N, k].
        """
        count = len(self._vectors)
        lists = NearestLists(count, wanted)
        lists.add_self()
        # Products of few coordinates are small: larger tiles, of which no result depends.
        size = self._tile if self._tiles is None else 2 * self._tile
        values = torch.empty(size * size, dtype=torch.float32, device="cpu")
        places = upper_triangle(count, size)
        for done, (own, other) in enumerate(places, 1):
            sides = [slice(begin, min(begin + size, count)) for begin in (own, other)]
            rows, columns = (filter_part(self._tiles, self._cut(side)) for side in sides)
            tile = tile_products(rows, columns, _shaped(values, rows, columns))
            row_term, column_term = (self._terms[side] for side in sides)
            lists.add(
                (tile, row_term, column_term),
                own,
                other,
                cosine=self._cosine,
                symmetric=True,
                kept=kept,
            )
            self._progress("neighbours", done, len(places))
        found = lists.result()
        owner = torch.arange(count, device="cpu").repeat_interleave(wanted)
        exact = self._vectors.exact_distances(owner, found.index.reshape(-1).long())
        return found, *nearest_of(found.index, exact.view(count, wanted), self._k)

    def _far(self) -> Tensor:
        """Return the exact distance of each vector to one that seems far, float64 [N].

        The one is the farthest of a sample by the tiles: the larger, the fewer pairs are candidates
        for the farthest.
        """
        vectors = self._vectors
        sample = spread(len(vectors), _SAMPLE)
        far_away = self._cut(sample)
        own = 0.0 if self._cosine else vectors.norms[sample].float() / 2
        far = torch.empty(len(vectors), dtype=torch.int64, device="cpu")
        values = torch.empty(TILE, len(sample), dtype=torch.float32, device="cpu")
        for rows in self._slices(TILE):
            near = tile_products(self._cut(rows), far_away, values[: rows.stop - rows.start])
            far[rows] = sample[(near - own).argmin(1)]
        return vectors.exact_distances(torch.arange(len(vectors), device="cpu"), far)

    def _refine(self, lists: ExactLists, limits: Tensor) -> None:
        """Insert all pairs that may be within a limit of their vectors, or the farthest."""
        count, size = len(self._vectors), self._tile
        near, far = limits / self._scale, lists.maxima / self._scale  # as keys of the tiles
        height = _ROW_TILES * size
        values = torch.empty(height * size, dtype=torch.float32, device="cpu")
        places = [
            (own, other) for own in range(0, count, height) for other in range(own, count, size)
        ]
        for done, (own, other) in enumerate(places, 1):
            mine = slice(own, min(own + height, count))
            theirs = slice(other, min(other + size, count))
            if own == other:
                rows = self._exact_side(mine)
            columns = self._exact_side(theirs)
            wanted = (near[mine], near[theirs]), (far[mine], far[theirs])
            pairs = self._candidates(mine, theirs, values, *wanted)
            pairs = refine_candidates(
                pairs,
                PairVectors(
                    rows.int16.rows, columns.int16.rows, rows.term, columns.term, self._metric
                ),
                bound_between(rows.int16, columns.int16, self._vectors.metric),
                *wanted,
            )
            lists.insert(pairs, rows.distances(columns, pairs), own, other, both=True)
            for part in (mine, theirs):
                torch.div(lists.maxima[part], self._scale, out=far[part])
            self._progress("certain neighbours", done, len(places))

    def _candidates(
        self, mine: slice, theirs: slice, values: Tensor, near: Sides, far: Sides
    ) -> Tensor:
        """Return the candidates of a tile above the diagonal, int32 [P, 2]."""
        rows, columns = self._cut(mine), self._cut(theirs)
        products = tile_products(rows, columns, _shaped(values, rows, columns))
        return filter_candidates(
            Tile(products, theirs.start, self._metric, self._terms[mine], self._terms[theirs]),
            bound_between(rows, columns, self._vectors.metric),
            near,
            far,
            first_item=mine.start,
            symmetric=True,
        )

    def _repair(self, index: Tensor, distance: Tensor, seen: Tensor) -> None:
        """Recompute, in place, neighbour lists that the bound cannot certify.

        Args:
            index: int32 [N, k].
            distance: float64 [N, k].
            seen: float64 [N], distances by the tiles up to which every vector was seen.
        """
        vectors, limits = self._vectors, distance[:, -1].contiguous()
        # The error of rows of this width depends on their norms alone.
        error = identity(vectors.block(0, 1), vectors.norms, vectors.metric).slack
        doubtful = torch.nonzero(seen - self._scale * (error + error.max()) <= limits).squeeze(1)
        for begin in range(0, len(doubtful), TILE):
            chosen = doubtful[begin : begin + TILE]
            lists = ExactLists(limits[chosen], self._k)
            own = self._cut(chosen)
            nowhere = torch.full((len(chosen),), torch.inf, dtype=torch.float64, device="cpu")
            for theirs in self._slices(TILE):
                columns = self._cut(theirs)
                endless = torch.full(
                    (len(columns.rows),), torch.inf, dtype=torch.float64, device="cpu"
                )
                values = tile_products(
                    own,
                    columns,
                    torch.empty(len(chosen), len(endless), dtype=torch.float32, device="cpu"),
                )
                terms = self._terms[chosen], self._terms[theirs]
                pairs = filter_candidates(
                    Tile(values, theirs.start, self._metric, *terms),
                    bound_between(own, columns, vectors.metric),
                    (limits[chosen] / self._scale, -endless),
                    (nowhere, endless),
                    first_item=0,
                    symmetric=False,
                )
                row, column = pairs.long().unbind(1)
                exact = vectors.exact_distances(chosen[row], column + theirs.start)
                lists.insert(pairs, exact, 0, theirs.start, both=False)
            index[chosen], distance[chosen] = lists.result()
            done = min(begin + TILE, len(doubtful))
            self._progress("certain neighbours", done, len(doubtful))

    def _exact_side(self, rows: slice) -> _ExactSide:
        return _ExactSide(self._block(rows), self._vectors.norms[rows], self._vectors.metric)

    def _slices(self, size: int) -> list[slice]:
        count = len(self._vectors)
        return [slice(begin, min(begin + size, count)) for begin in range(0, count, size)]

    def _block(self, rows: slice) -> Tensor:
        return self._vectors.block(rows.start, rows.stop).contiguous()

    def _cut(self, chosen: slice | Tensor) -> Approximation:
        """Return some vectors as tiles take them."""
        if self._approximate is not None:
            return self._approximate.cut(chosen)
        vectors = self._vectors
        if isinstance(chosen, slice):
            rows = vectors.block(chosen.start, chosen.stop)
        else:
            rows = vectors.take(chosen)
        return identity(rows, vectors.norms[chosen], vectors.metric)


Sides = tuple[Tensor, Tensor]
"""Values of the rows and of the columns of a tile."""


def _shaped(values: Tensor, rows: Approximation, columns: Approximation) -> Tensor:
    """Return memory for the products of a tile."""
    height, width = len(rows.rows), len(columns.rows)
    return values[: height * width].view(height, width)
