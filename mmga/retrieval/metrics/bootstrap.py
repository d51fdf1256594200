"""Bootstrap by identity: how far figures could be off, and whether two systems differ.

Queries of one identity stand or fall together, so whole identities are drawn; drawing single
queries gives intervals that are too narrow.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from mmga.common import ids
from mmga.common.errors import UserError
from mmga.retrieval.metrics.report import Report

LEVEL = 0.95


@dataclass(frozen=True, slots=True)
class Interval:
    """A figure with its bootstrap interval.

    Attributes:
        value: the figure.
        low: lower end of the 95% percentile interval.
        high: upper end.
        standard_error: standard deviation over the draws.
    """

    value: float
    low: float
    high: float
    standard_error: float

    def as_dict(self) -> dict[str, float]:
        """Return plain values."""
        return {
            "value": self.value,
            "low": self.low,
            "high": self.high,
            "standard_error": self.standard_error,
        }


def bootstrap(report: Report, draws: int = 1000, seed: int = 0) -> dict[str, Interval]:
    """Return intervals of mAP and rank-1 (of mAP alone where galleries are drawn).

    Args:
        report: with per-query figures.
        draws: bootstrap samples.
        seed: seed of the draws.

    Raises:
        UserError: the report has no per-query figures, or a single identity.
    """
    scores, identity = _scores(report)
    shares = _drawn_means(scores, identity, draws, seed)
    return {
        name: _interval(float(scores[:, at].mean()), shares[:, at])
        for at, name in enumerate(_names(report))
    }


def compare(one: Report, other: Report, draws: int = 1000, seed: int = 0) -> dict[str, object]:
    """Compare two systems on the same queries, paired by identity.

    Args:
        one: report of the first.
        other: report of the second; its differences to the first are what is returned.
        draws: bootstrap samples.
        seed: seed of the draws.

    Returns:
        For mAP and, unless galleries are drawn, rank1 the difference (other - one) as
        `Interval.as_dict`, and ``p``: the two-sided share of draws on the other side of zero.

    Raises:
        UserError: the queries or the galleries differ.
    """
    first, identity = _scores(one)
    second, again = _scores(other)
    if not np.array_equal(identity, again):
        raise UserError(
            "compare: both systems must rank the same queries in the same order, but their pids or "
            "valid queries differ"
        )
    if one.num_gallery != other.num_gallery:
        raise UserError(
            f"compare: both systems must search the same gallery, found {one.num_gallery} and "
            f"{other.num_gallery} items"
        )
    if not np.array_equal(_matches(one, identity), _matches(other, identity)):
        raise UserError(
            "compare: both systems must search the same gallery, but identities have other numbers "
            "of matches in that of the other"
        )
    difference = second - first
    drawn = _drawn_means(difference, identity, draws, seed)
    result: dict[str, object] = {"queries": len(identity), "draws": draws}
    for at, name in enumerate(_names(one)):
        values = drawn[:, at]
        tail = min((values <= 0).mean(), (values >= 0).mean())
        interval = _interval(float(difference[:, at].mean()), values)
        result[name] = {**interval.as_dict(), "p": float(min(1.0, 2 * max(tail, 1 / draws)))}
    return result


def _names(report: Report) -> tuple[str, ...]:
    """Return the figures that are means over single queries.

    A CMC of drawn galleries is none: the ranks of queries are of the full one.
    """
    return ("mAP",) if "single_shot" in report.extra else ("mAP", "rank1")


def _scores(report: Report) -> tuple[np.ndarray, np.ndarray]:
    """Return AP and rank-1 of the valid queries [V, 2], and their identities [V]."""
    scores = report.per_query
    if scores is None or report.pids is None:
        raise UserError(
            f"bootstrap: protocol {report.protocol} has no figures of single queries to draw from"
        )
    valid = _counted(report)
    table = np.stack(
        [np.nan_to_num(scores.average_precision[valid]), scores.first_rank[valid] == 1], axis=1
    )
    # As names, so that 7 and "7" are one identity.
    names = [ids.key(str(ids.plain(pid))) for pid in np.asarray(report.pids)[valid]]
    return table, np.asarray(names, np.str_)


def _counted(report: Report) -> np.ndarray:
    """Return the queries that enter the averages; some without a match may."""
    assert report.per_query is not None
    if report.counted is not None:
        return report.counted
    return np.flatnonzero(report.per_query.num_matches > 0)


def _matches(report: Report, identity: np.ndarray) -> np.ndarray:
    """Return the matches of all queries of each identity, in the order of their names."""
    assert report.per_query is not None
    codes = np.unique(identity, return_inverse=True)[1]
    return np.bincount(codes, report.per_query.num_matches[_counted(report)])


def _drawn_means(scores: np.ndarray, identity: np.ndarray, draws: int, seed: int) -> np.ndarray:
    """Return the means of `scores` over drawn identities, [draws, columns]."""
    if draws < 2:
        raise UserError(f"draws: expected at least 2, found {draws}")
    codes = np.unique(identity, return_inverse=True)[1]
    people = int(codes.max()) + 1
    if people < 2:
        raise UserError("bootstrap: expected several identities to draw from, found one")
    sums = np.stack(
        [np.bincount(codes, column, minlength=people) for column in scores.T.astype(np.float64)], 1
    )
    sizes = np.bincount(codes, minlength=people)
    generator = np.random.default_rng(seed)
    means = np.empty((draws, scores.shape[1]))
    for draw in range(draws):
        times = np.bincount(generator.integers(0, people, people), minlength=people)
        means[draw] = times @ sums / (times @ sizes)
    return means


def _interval(value: float, drawn: np.ndarray) -> Interval:
    tail = (1 - LEVEL) / 2
    low, high = np.quantile(drawn, [tail, 1 - tail])
    return Interval(value, float(low), float(high), float(drawn.std(ddof=1)))
