"""Which cascade is worth its cost: measured on a few pairs before the pass.

Whatever is chosen, the ranks are the same; only time depends on it.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from mmga.ops.certified import count_certain, settle_pairs, thresholds
from mmga.ops.distance import metric_number
from mmga.ops.ranking import Matches, Tile
from mmga.retrieval.cascade import Block, Cascade
from mmga.retrieval.certified import pair_keys
from mmga.retrieval.protocol import Selection
from mmga.retrieval.rows import Rows
from mmga.retrieval.subspace import Subspace, blocked_product, bound_between

CANDIDATES = (32, 64, 128, 256)
"""Numbers of directions that a level may have."""
# Rows from which directions are found, and queries and items of the pilot.
_SAMPLE = 1024
_PILOT = (96, 1024)
# The share of the plain product that finding directions may cost.
_FIT_SHARE = 0.02
# Products of features, in operations, below which there is nothing to save.
_SMALL = 2e9
# The share of the energy that the fewest directions may leave.
_FLAT = 0.35
# A coordinate costs so many times an operation of a product to make: residuals and norms.
_COORDINATE = 8


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
        subspace: Subspace,
    ) -> None:
        """Take the first queries and evenly spaced items.

        Args:
            query: the query features.
            query_norms: squared norms, float64 [Q].
            gallery: the gallery features.
            gallery_norms: float64 [G].
            selection: what is ranked.
            metric: cosine or euclidean.
            subspace: the directions in question.
        """
        self._metric, self._number = metric, metric_number(metric)
        self._subspace = subspace
        pairs = next(selection.pairs(1 << 16, _PILOT[0]))
        rows = torch.from_numpy(selection.queries[pairs.start : pairs.stop])
        chosen = _spread(len(selection.gallery), _PILOT[1], 0.5)
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

    def blocks(self, dimensions: tuple[int, ...]) -> tuple[Cascade, Block, Block]:
        """Return both sides at the levels of a cascade."""
        subspace = self._subspace if dimensions else None
        cascade = Cascade(subspace, dimensions)
        sides = []
        for features, norms in zip(self._features, self._norms, strict=True):
            coordinates = torch.empty(len(features), self._subspace.directions.shape[1])
            sides.append(cascade.block(features, norms, self._metric, coordinates))
        return cascade, sides[0], sides[1]

    def product_seconds(self) -> float:
        """Return the time of one operation of a product of the features."""
        queries, items = self._features[0], self._features[1][:512]
        values = torch.empty(len(queries), len(items))
        seconds, _ = _shortest(lambda: blocked_product(queries, items, values))
        return seconds / (2 * queries.shape[1] * values.numel())

    def count(self, dimensions: int) -> tuple[float, Tensor]:
        """Return the time to count a pair of a tile, and the undecided pairs."""
        _, queries, items = self.blocks((dimensions,) if dimensions else ())
        blocked_product(queries.levels[0].rows, items.levels[0].rows, self._values)
        tile = Tile(self._values, 0, self._number, queries.tile_term, items.tile_term)
        bound = bound_between(queries.levels[0], items.levels[0], self._metric)
        slack = queries.levels[0].slack
        lower, upper = thresholds(self._matches.match_start, self._matches.match_key, slack)
        seconds, undecided = _shortest(
            lambda: count_certain(tile, self._rows, self._matches, lower, upper, bound)
        )
        return seconds / self.pairs, undecided

    def settle_seconds(self, undecided: Tensor) -> float:
        """Return the time to settle a pair by the features in float64."""
        _, queries, items = self.blocks(())
        some = undecided[:2048]
        seconds, _ = _shortest(
            lambda: settle_pairs(
                some,
                queries.features,
                items.features,
                queries.exact_term,
                items.exact_term,
                self._number,
                0,
                self._rows,
                self._matches,
            )
        )
        return seconds / max(1, len(some))


def plan(
    query: Rows,
    query_norms: Tensor,
    gallery: Rows,
    gallery_norms: Tensor,
    selection: Selection,
    metric: str,
    seed: int = 0,
) -> Cascade:
    """Choose the levels that a pilot says are cheapest; plain tiles where directions do not pay.

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
    sample = min(_SAMPLE, items)
    most = largest_level(width, sample, _FIT_SHARE * operations)
    if most is None or operations < _SMALL:
        return Cascade()
    candidates = [k for k in CANDIDATES if k <= most]
    rows = torch.from_numpy(selection.gallery)[_spread(items, sample, 0.0)]
    features = gallery.take(rows)
    if metric == "cosine":
        features = torch.nn.functional.normalize(features)
    if is_flat(features, seed):
        return Cascade()
    subspace = Subspace.of_sample(features, candidates[-1], seed)
    pilot = Pilot(query, query_norms, gallery, gallery_norms, selection, metric, subspace)
    dimensions = _cheapest(pilot, candidates, len(selection.queries), items, width)
    if not dimensions:
        return Cascade()
    return Cascade(Subspace(subspace.directions[:, : dimensions[-1]].contiguous()), dimensions)


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
    pilot: Pilot, candidates: list[int], queries: int, items: int, width: int
) -> tuple[int, ...]:
    """Return the levels with the lowest seconds for a pair; none for plain tiles."""
    operation = pilot.product_seconds()
    counted = {k: pilot.count(k) for k in (0, *candidates)}
    share = {k: len(undecided) / pilot.pairs for k, (_, undecided) in counted.items()}
    settle = pilot.settle_seconds(counted[candidates[0]][1])
    costs: dict[tuple[int, ...], float] = {
        (): 2 * width * operation + counted[0][0] + share[0] * settle
    }
    for k in candidates:
        made = (2 * width + _COORDINATE) * operation * (queries + items) / (queries * items)
        tile = 2 * k * operation + counted[k][0]
        costs[(k,)] = tile + k * made + share[k] * settle
        for finer in candidates:
            if finer > k:
                between = share[k] * settle * finer / width
                costs[(k, finer)] = tile + finer * made + between + share[finer] * settle
    return min(costs, key=costs.__getitem__)


def _spread(count: int, wanted: int, phase: float) -> Tensor:
    """Return at most `wanted` evenly spaced numbers below `count`, ascending."""
    wanted = min(count, wanted)
    return ((torch.arange(wanted, dtype=torch.float64) + phase) * (count / wanted)).long()


def _shortest(call: Callable[[], Any]) -> tuple[float, Any]:
    """Return the shorter time of two calls, and the first one's result."""
    begun = time.perf_counter()
    result = call()
    between = time.perf_counter()
    call()
    return min(between - begun, time.perf_counter() - between), result
