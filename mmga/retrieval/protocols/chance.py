"""Tell rankings that follow identities from rankings that a random order would give as well."""

from __future__ import annotations

import numpy as np

CAUSES = (
    "the usual causes are rows sorted apart from their labels, a transposed file, a column-ordered "
    "array that safetensors' NumPy writer stored as it lay (save numpy.ascontiguousarray(x)), "
    "weights that were never loaded, and features of the camera rather than of the person; "
    "docs/evaluation.md says how to tell them apart"
)
FEWEST_QUERIES, FEWEST_IDENTITIES = 30, 5
"""Below these numbers weak features cannot be told from none, and nothing is said."""
# Standard errors: of a sum over identities, and of a count of hits (few hits are skewed).
_ABOVE, _HITS_ABOVE = 2.0, 4.0


def no_better(advantages: np.ndarray, pids: np.ndarray) -> bool | None:
    """Return whether advantages over a random order are no more than chance gives.

    Queries of one identity are correlated, so that identities are what is counted.

    Args:
        advantages: of each query, float64 [K], 0 on average in a random order.
        pids: identity of each query, int64 [K].

    Returns:
        None where there are too few queries or identities to tell.
    """
    identities, places = np.unique(pids, return_inverse=True)
    if len(pids) < FEWEST_QUERIES or len(identities) < FEWEST_IDENTITIES:
        return None
    sums = np.bincount(places, advantages)
    error = float(sums.std(ddof=1)) / len(sums) ** 0.5
    return bool(sums.mean() <= _ABOVE * error)


def of_ranks(
    first_rank: np.ndarray,
    last_rank: np.ndarray,
    matches: np.ndarray,
    kept: np.ndarray,
    pids: np.ndarray,
) -> str | None:
    """Return the sentence on rank-1 where it is no better than chance, else None.

    Args:
        first_rank: rank of the first match of each query, int64 [K], at least 1.
        last_rank: rank of its last match, [K].
        matches: number of matches of each query, int64 [K].
        kept: number of items that each query ranks, int64 [K], its matches among them.
        pids: identity of each query, int64 [K].
    """
    open_ = kept > matches  # else any order is perfect
    first, last, m, n, pids = (
        values[open_] for values in (first_rank, last_rank, matches, kept, pids)
    )
    if not len(first):
        return None
    # The first and the last of m matches drawn among n places: their means, and one variance.
    mean = (n + 1) / (m + 1)
    variance = m * (n - m) * (n + 1) / ((m + 1) ** 2 * (m + 2.0))
    if not no_better(((mean - first) + (m * mean - last)) / np.sqrt(variance), pids):
        return None
    chance, hit = m / n, first == 1
    excess = hit.sum() - chance.sum()
    several = len(np.unique(pids[hit])) >= FEWEST_IDENTITIES
    if several and excess > _HITS_ABOVE * np.sqrt((chance * (1 - chance)).sum()):
        return None
    return (
        f"rank-1 is no better than chance: {hit.mean():.2%} of {len(first)} queries, where a "
        f"random order gives {chance.mean():.2%}, and the first match stands at place "
        f"{first.mean():.0f} on average, where a random order gives {mean.mean():.0f}; {CAUSES}"
    )
