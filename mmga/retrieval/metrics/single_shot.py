"""One gallery image for each identity: the classic CUHK03 protocol, as an exact expectation.

A query's list holds one image of each identity, drawn at random from those that the camera rule
leaves. The rank of a drawn match is one more than the number of other identities whose drawn image
comes before it: independent draws, whose sum has a Poisson-binomial distribution.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from mmga.common.progress import Progress
from mmga.retrieval.protocols.selection import Selection
from mmga.retrieval.tiles.sources import Source

_ROWS = 256


@dataclass(slots=True)
class SingleShot:
    """Figures of drawn galleries, averaged over the queries.

    Attributes:
        cmc: CMC at ranks 1 to max_rank.
        mAP: mean average precision of the drawn match, which is 1 / rank.
        trials: number of seeded draws; 0 for the exact expectation.
        cmc_deviation: standard deviation of CMC over the trials, or None.
    """

    cmc: np.ndarray
    mAP: float
    trials: int
    cmc_deviation: np.ndarray | None


def single_shot(
    source: Source,
    selection: Selection,
    max_rank: int,
    trials: int = 0,
    seed: int = 0,
    progress: Progress | None = None,
) -> SingleShot:
    """Rank with one gallery image for each identity.

    Args:
        source: tiles of `selection`.
        selection: under the plain camera rule.
        max_rank: length of the CMC curve.
        trials: number of seeded draws; 0 gives the exact expectation.
        seed: seed of the draws; a query's draws depend on it and the query's row alone.
        progress: called as (phase, done, total).
    """
    pids = selection.labels.gallery_pids[selection.gallery]
    codes = np.unique(pids, return_inverse=True)[1]
    outcomes = max(trials, 1)
    cmc = np.zeros((outcomes, max_rank))
    precision = np.zeros(outcomes)
    trapezoid = selection.protocol.precision == "trapezoid"
    total = len(selection.queries)
    for pairs in selection.pairs(1 << 21, min(_ROWS, source.max_rows)):
        keys = np.empty((pairs.stop - pairs.start, source.columns), np.float64)
        for rows, tile in source.tiles(pairs.start, pairs.stop):
            columns = slice(tile.offset, tile.offset + tile.values.shape[1])
            keys[rows, columns] = tile.keys().cpu().numpy()
        excluded = None
        if selection.labels.exclusion is not None:
            excluded = selection.excludes(slice(pairs.start, pairs.stop), slice(0, source.columns))
        for row in range(pairs.stop - pairs.start):
            match = pairs.match_item[pairs.match_start[row] : pairs.match_start[row + 1]]
            ignored = pairs.ignored_item[pairs.ignored_start[row] : pairs.ignored_start[row + 1]]
            if not len(match):
                continue
            kept = np.ones(source.columns, bool)
            kept[np.setdiff1d(ignored, match)] = False
            if excluded is not None:
                kept &= ~excluded[row]
            items = np.flatnonzero(kept)
            items = items[np.argsort(keys[row, items], kind="stable")]  # in ranked order
            ranked = codes[items]
            own = codes[match[0]]
            if trials:
                generator = np.random.default_rng([seed, int(selection.queries[pairs.start + row])])
                ranks = _drawn_ranks(ranked, own, trials, generator)
                precision += _precision(ranks, trapezoid)
                cmc += ranks[:, None] <= np.arange(1, max_rank + 1)
            else:
                chance = _rank_distribution(ranked, own)
                precision[0] += chance @ _precision(np.arange(1, len(chance) + 1), trapezoid)
                upto = np.cumsum(chance)[:max_rank]
                cmc[0] += np.pad(upto, (0, max_rank - len(upto)), mode="edge")
        if progress is not None:
            progress("single shot", pairs.stop, total)
    valid = int((selection.num_matches > 0).sum())
    cmc /= valid
    return SingleShot(
        cmc.mean(0),
        float(precision.mean() / valid),
        trials,
        cmc.std(0, ddof=1) if trials > 1 else None,
    )


def _precision(rank: np.ndarray, trapezoid: bool) -> np.ndarray:
    """Return the average precision of a single match by its rank."""
    return np.where(rank == 1, 1.0, 0.5 / rank) if trapezoid else 1 / rank


def _rank_distribution(ranked: np.ndarray, own: int) -> np.ndarray:
    """Return the probability of each rank, from 1, of the drawn match.

    Args:
        ranked: identity of each kept item in ranked order.
        own: the query's identity.
    """
    identities, places = np.unique(ranked, return_inverse=True)
    totals = np.bincount(places)
    at = np.flatnonzero(ranked == own)
    others = np.flatnonzero(identities != own)
    distribution = np.zeros(len(others) + 1)
    for match in at:  # each is drawn with equal probability
        share = (np.bincount(places[:match], minlength=len(totals)) / totals)[others]
        certain = int((share == 1).sum())
        chance = np.ones(1)
        for p in share[(share > 0) & (share < 1)]:
            chance = np.append(chance, 0.0) * (1 - p) + np.append(0.0, chance) * p
        distribution[certain : certain + len(chance)] += chance / len(at)
    return distribution


def _drawn_ranks(
    ranked: np.ndarray, own: int, trials: int, generator: np.random.Generator
) -> np.ndarray:
    """Return the rank of the drawn match in each trial, int64 [trials]."""
    identities, places = np.unique(ranked, return_inverse=True)
    totals = np.bincount(places)
    # Ranked places of each identity, one identity after the other.
    listed = np.argsort(places, kind="stable")
    first = np.cumsum(totals) - totals
    drawn = listed[first + generator.integers(0, totals, (trials, len(totals)))]
    mine = drawn[:, np.searchsorted(identities, own)]
    return 1 + (drawn < mine[:, None]).sum(1)
