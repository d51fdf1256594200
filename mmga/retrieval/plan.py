"""Which cascade is worth its cost: measured on a few pairs before the pass.

Whatever is chosen, the ranks are the same; only time depends on it.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from mmga.ops.certified import count_certain, multiplies_bytes, settle_pairs, thresholds
from mmga.ops.distance import metric_number
from mmga.ops.ranking import Matches, Tile
from mmga.retrieval.cascade import Block, Cascade
from mmga.retrieval.certified import pair_keys
from mmga.retrieval.protocol import Selection
from mmga.retrieval.rows import Rows
from mmga.retrieval.subspace import (
    WIDEST_BYTES,
    Bytes,
    Subspace,
    Tiles,
    bound_between,
    tile_products,
)

CANDIDATES = (32, 64, 128, 256)
"""Numbers of directions that a level may have."""
# Dimensions below which products of 8 bits save nothing.
_FEWEST_BYTES = 32
# Rows from which directions are found, and queries and items of the pilot.
_SAMPLE = 1024
_PILOT = (96, 1024)
# Undecided pairs that are settled to see what one costs.
_SETTLED = 8192
# The share of the plain product that finding directions may cost.
_FIT_SHARE = 0.02
# Products of features, in operations, below which there is nothing to save.
_SMALL = 2e9
# The share of the energy that the fewest directions may leave.
_FLAT = 0.35
# A coordinate costs so many times an operation of a product to make: residuals and norms.
_COORDINATE = 8
# A dimension, so many to be rounded to an integer.
_INTEGER = 16


class Pilot:
    """A few queries with their matches, a few items, and what each step costs for a pair."""

    def __init__(
        self,
        query: Rows,
        query_norms: Tensor,
        gallery: Rows,
        gallery_norms: Tensor,
        selection: Selection,
        metric: str,
    ) -> None:
        """Take the first queries and evenly spaced items.

        Args:
            query: the query features.
            query_norms: squared norms, float64 [Q].
            gallery: the gallery features.
            gallery_norms: float64 [G].
            selection: what is ranked.
            metric: cosine or euclidean.
        """
        self._metric, self._number = metric, metric_number(metric)
        pairs = next(selection.pairs(1 << 16, _PILOT[0]))
        rows = torch.from_numpy(selection.queries[pairs.start : pairs.stop])
        chosen = spread(len(selection.gallery), _PILOT[1], 0.5)
        items = torch.from_numpy(selection.gallery)[chosen]
        row = torch.repeat_interleave(
            torch.arange(len(rows)), torch.from_numpy(pairs.match_start).diff()
        )
        match = torch.from_numpy(selection.gallery)[torch.from_numpy(pairs.match_item)]
        keys = pair_keys(
            query,
            rows[row],
            query_norms[rows[row]],
            gallery,
            match,
            gallery_norms[match],
            metric,
        )
        nothing = torch.zeros(len(rows) + 1, dtype=torch.int64)
        start = torch.from_numpy(pairs.match_start)
        self._matches = Matches.of(start, match, keys, nothing, nothing[:0])
        self._rows = slice(0, len(rows))
        self._features = query.take(rows), gallery.take(items)
        self._norms = query_norms[rows], gallery_norms[items]
        self._values = torch.empty(len(rows), len(items))

    @property
    def pairs(self) -> int:
        """Pairs of the pilot."""
        return self._values.numel()

    def blocks(self, cascade: Cascade) -> tuple[Block, Block]:
        """Return both sides at the levels of a cascade."""
        sides = []
        for features, norms in zip(self._features, self._norms, strict=True):
            coordinates = torch.empty(len(features), cascade.dimensions)
            sides.append(cascade.block(features, norms, self._metric, coordinates))
        return sides[0], sides[1]

    def product_seconds(self, cascade: Cascade) -> float:
        """Return the time of a pair of a tile's product."""
        queries, items = (side.levels[0] for side in self.blocks(cascade))
        seconds, _ = _shortest(lambda: tile_products(queries, items, self._values))
        return seconds / self.pairs

    def count(self, cascade: Cascade) -> tuple[float, Tensor]:
        """Return the time to count a pair of a tile, and the undecided pairs."""
        queries, items = self.blocks(cascade)
        tile_products(queries.levels[0], items.levels[0], self._values)
        tile = Tile(self._values, 0, self._number, queries.tile_term, items.tile_term)
        bound = bound_between(queries.levels[0], items.levels[0], self._metric)
        slack = queries.levels[0].slack
        lower, upper = thresholds(self._matches.match_start, self._matches.match_key, slack)
        seconds, undecided = _shortest(
            lambda: count_certain(tile, self._rows, self._matches, lower, upper, bound)
        )
        return seconds / self.pairs, undecided

    def settle_seconds(self, undecided: Tensor, cascade: Cascade) -> float:
        """Return the time to settle a pair by the levels after the tile."""
        queries, items = self.blocks(cascade)
        levels = list(zip(queries.levels[1:], items.levels[1:], strict=True))

        def settle() -> None:
            pairs = undecided[:_SETTLED]
            for one, other in levels:
                bound = bound_between(one, other, self._metric)
                pairs = settle_pairs(
                    pairs,
                    one.rows,
                    other.rows,
                    queries.exact_term,
                    items.exact_term,
                    self._number,
                    0,
                    self._rows,
                    self._matches,
                    None if one is queries.levels[-1] else bound,
                )

        seconds, _ = _shortest(settle)
        return seconds / max(1, min(_SETTLED, len(undecided)))


def plan(
    query: Rows,
    query_norms: Tensor,
    gallery: Rows,
    gallery_norms: Tensor,
    selection: Selection,
    metric: str,
    seed: int = 0,
) -> Cascade:
    """Choose the levels that a pilot says are cheapest: of coordinates, of 8 bits, or plain tiles.

    Args:
        query: the query features.
        query_norms: squared norms, float64 [Q].
        gallery: the gallery features.
        gallery_norms: float64 [G].
        selection: what is ranked.
        metric: cosine or euclidean.
        seed: of the directions.
    """
    if not len(selection.queries):
        return Cascade()
    width, items = gallery.shape[1], len(selection.gallery)
    operations = 2.0 * len(selection.queries) * items * width
    if operations < _SMALL:
        return Cascade()
    rows = torch.from_numpy(selection.gallery)
    subspace = directions_of(
        lambda chosen: gallery.take(rows[chosen]), items, width, metric, operations, seed
    )
    longest = max(float(norms.max()) for norms in (query_norms, gallery_norms)) ** 0.5
    kinds: list[Tiles] = [*narrowed(subspace), *bytes_for(width, longest)]
    choices = [Cascade(tiles) for tiles in kinds]
    if not choices:
        return Cascade()
    pilot = Pilot(query, query_norms, gallery, gallery_norms, selection, metric)
    return _cheapest(pilot, choices, len(selection.queries), items, width)


def directions_of(
    take: Callable[[Tensor], Tensor],
    count: int,
    width: int,
    metric: str,
    operations: float,
    seed: int = 0,
) -> Subspace | None:
    """Return directions that hold most of features, or None where they hold too little.

    Args:
        take: returns some of the features, float32 [n, D], given their numbers.
        count: of the features.
        width: D.
        metric: cosine or euclidean.
        operations: of the products that directions shall spare; finding them takes a small share.
        seed: of the directions.
    """
    sample = min(_SAMPLE, count)
    most = largest_level(width, sample, _FIT_SHARE * operations)
    if most is None:
        return None
    rows = take(spread(count, sample))
    if metric == "cosine":
        rows = torch.nn.functional.normalize(rows)
    if is_flat(rows, seed):
        return None
    return Subspace.of_sample(rows, max(k for k in CANDIDATES if k <= most), seed)


def narrowed(subspace: Subspace | None) -> list[Subspace]:
    """Return the subspaces of as many directions as are worth a look; none of None."""
    if subspace is None:
        return []
    most = subspace.directions.shape[1]
    return [subspace.first(k) for k in CANDIDATES if k <= most]


def bytes_for(width: int, longest: float) -> list[Bytes]:
    """Return features of 8 bits where their products are worth a look, else nothing.

    Args:
        width: D.
        longest: the largest norm of any feature.
    """
    worth = _FEWEST_BYTES <= width <= WIDEST_BYTES and multiplies_bytes()
    return [Bytes(longest)] if worth else []


def largest_level(width: int, sample: int, operations: float) -> int | None:
    """Return the most directions worth looking for, or None.

    Args:
        width: D.
        sample: rows that they are found from.
        operations: what finding them may cost.
    """
    most = min(CANDIDATES[-1], width // 8, sample // 4)
    while most >= CANDIDATES[1] and fit_operations(most, sample, width) > operations:
        most //= 2
    return most if most >= CANDIDATES[1] else None


def fit_operations(dimensions: int, sample: int, width: int) -> float:
    """Return about how many operations `Subspace.of_sample` takes."""
    return 8.0 * dimensions * sample * width


def is_flat(sample: Tensor, seed: int = 0) -> bool:
    """Return whether a few directions hold too little of features for any bound to settle pairs.

    Args:
        sample: float32 [n, D], shuffled or evenly spaced.
        seed: of the directions.
    """
    few, held_out = sample[0::4], sample[1::16]
    if len(few) < 2 * CANDIDATES[0]:
        return False
    basis = Subspace.of_sample(few[:256], CANDIDATES[0], seed).directions
    left = held_out.square().sum() - (held_out @ basis).square().sum()
    return bool(left > _FLAT * held_out.square().sum())


def _cheapest(
    pilot: Pilot, choices: list[Cascade], queries: int, items: int, width: int
) -> Cascade:
    """Return the cascade with the lowest seconds for a pair; plain tiles are one more choice.

    Args:
        pilot: what is measured.
        choices: cascades with integers of 16 bits between.
        queries: of the whole pass.
        items: of the whole pass.
        width: D.
    """
    plain = Cascade()
    whole = pilot.product_seconds(plain)
    operation = whole / width
    settle: dict[bool, float] = {}
    costs = []
    for cascade in (plain, *choices):
        seconds, undecided = pilot.count(cascade)
        if (cascade is plain) not in settle:  # the levels after the tile are all choices' the same
            settle[cascade is plain] = pilot.settle_seconds(undecided, cascade)
        k = cascade.dimensions
        made = 0.0  # what stands for all features
        if cascade is not plain:
            made = k * (width + _COORDINATE / 2) + (1 if k else 2) * _INTEGER / 2 * width
        if k:  # products of few dimensions take as long in proportion
            product = k * operation
        else:
            product = whole if cascade is plain else pilot.product_seconds(cascade)
        cost = product + seconds + len(undecided) / pilot.pairs * settle[cascade is plain]
        costs.append(cost + made * operation * (queries + items) / (queries * items))
    return (plain, *choices)[costs.index(min(costs))]


def spread(count: int, wanted: int, phase: float = 0.0) -> Tensor:
    """Return at most `wanted` evenly spaced numbers below `count`, ascending."""
    wanted = min(count, wanted)
    return ((torch.arange(wanted, dtype=torch.float64) + phase) * (count / wanted)).long()


def _shortest(call: Callable[[], Any]) -> tuple[float, Any]:
    """Return the shortest time of three calls, and the last one's result."""
    times = []
    for _ in range(3):
        begun = time.perf_counter()
        result = call()
        times.append(time.perf_counter() - begun)
    return min(times), result
