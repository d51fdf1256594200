"""Statistics of finished runs: means, spread over seeds, paired intervals, flatness."""

import dataclasses
import functools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.ablation.plan import CHALLENGES, QUARTERS, SEVERITIES, TESTS
from benchmarks.ablation.rows import ROWS
from benchmarks.ablation.trial import SCALE, result_files
from mmga.common.errors import UserError

HARD = tuple(name for name in TESTS if name != "clean")
"""The tests on which rows are compared: the challenges at all severities."""

FLAT = 0.005
"""mAP gained in the last quarter of the steps below which a row has flattened."""

DRAWS = 10_000
"""Resamplings of the test identities."""


@dataclasses.dataclass(frozen=True, slots=True)
class Outcome:
    """A finished run.

    Attributes:
        row: its name.
        seed: of the run.
        report: content of its JSON file.
        precisions: average precision of each query, by test, float64 [Q].
        pids: identity of each query, by test, int64 [Q].
    """

    row: str
    seed: int
    report: dict[str, Any]
    precisions: dict[str, np.ndarray]
    pids: dict[str, np.ndarray]

    def mean(self, tests: Sequence[str], share: int = QUARTERS[-1], figure: str = "mAP") -> float:
        """Return a figure's mean over tests after a share of the steps."""
        found = self.report["figures"][str(share)]["tests"]
        return float(np.mean([found[test][figure] for test in tests]))


@dataclasses.dataclass(frozen=True, slots=True)
class Difference:
    """Row 6 against another row on the same seeds and queries, averaged over the challenges.

    Attributes:
        row: the other one.
        seeds: that both have.
        value: mAP of row 6 less that of the other.
        low: lower end of the 95% interval.
        high: upper end.
        by_seed: the difference of each seed.
        flat: whether both have flattened.
    """

    row: str
    seeds: tuple[int, ...]
    value: float
    low: float
    high: float
    by_seed: tuple[float, ...]
    flat: bool

    def verdict(self, aim: float = 0.03) -> str:
        """Describe the difference in words."""
        gain = "ends higher" if self.flat else "converges sooner"
        if self.low > 0:
            size = (
                "by the aim of 3 points or more" if self.value >= aim else "by less than 3 points"
            )
            return f"row 6 {gain}, {size}"
        if self.high < 0:
            return "row 6 is worse"
        return "no difference shown"


def read(results: Path) -> list[Outcome]:
    """Read all finished runs of a folder, in the order of rows and seeds.

    Raises:
        UserError: runs are of different pictures or sizes, so that they do not compare.
    """
    outcomes = []
    for file in sorted(results.glob("*-seed*.json")):
        report = json.loads(file.read_text())
        _, precisions = result_files(results, report["row"], report["seed"])
        if not precisions.is_file():
            raise UserError(f"{precisions} is missing beside {file.name}; restore it or run again")
        with np.load(precisions, allow_pickle=False) as stored:
            outcomes.append(
                Outcome(
                    report["row"],
                    report["seed"],
                    report,
                    {name: stored[name] / SCALE for name in TESTS},
                    {name: stored[f"{name}/pids"].astype(np.int64) for name in TESTS},
                )
            )
    for outcome in outcomes:
        for key in ("pictures", "plan"):
            if outcome.report[key] != outcomes[0].report[key]:
                raise UserError(
                    f"{results}: {outcome.row}-seed{outcome.seed} and {outcomes[0].row}-seed"
                    f"{outcomes[0].seed} have different {key}; keep them in folders of their own"
                )
    order = list(ROWS)
    return sorted(outcomes, key=lambda one: (order.index(one.row), one.seed))


def by_row(outcomes: Sequence[Outcome]) -> dict[str, list[Outcome]]:
    """Return the runs of each row."""
    rows: dict[str, list[Outcome]] = {}
    for outcome in outcomes:
        rows.setdefault(outcome.row, []).append(outcome)
    return rows


def gain(runs: Sequence[Outcome]) -> float:
    """Return the mAP over the challenges that a row gained in the last quarter of the steps."""
    return float(np.mean([run.mean(HARD) - run.mean(HARD, QUARTERS[-2]) for run in runs]))


def difference(full: Sequence[Outcome], other: Sequence[Outcome]) -> Difference | None:
    """Compare row 6 with another row on the seeds that both have; None without one.

    The interval is of a paired bootstrap: test identities are drawn with replacement, all queries
    of an identity together, and both rows are scored on the same draw. Precisions are averaged over
    challenges and seeds before, so that the interval is that of these trained networks on other
    persons; how much training itself varies is what `by_seed` shows.
    """
    seeds = tuple(sorted({run.seed for run in full} & {run.seed for run in other}))
    if not seeds:
        return None
    ours = {run.seed: run for run in full}
    theirs = {run.seed: run for run in other}
    gaps, pids = [], []
    for test in HARD:
        pid = ours[seeds[0]].pids[test]
        gap = np.mean([ours[s].precisions[test] - theirs[s].precisions[test] for s in seeds], 0)
        gaps.append(gap / len(gap) / len(HARD))  # sums to the mean over tests of the mean AP
        pids.append(pid)
    gap, pid = np.concatenate(gaps), np.concatenate(pids)
    value = float(gap.sum())
    low, high = interval(gap, pid)
    return Difference(
        row=other[0].row,
        seeds=seeds,
        value=value,
        low=low,
        high=high,
        by_seed=tuple(ours[s].mean(HARD) - theirs[s].mean(HARD) for s in seeds),
        flat=max(abs(gain(full)), abs(gain(other))) < FLAT,
    )


def interval(shares: np.ndarray, pids: np.ndarray, draws: int = DRAWS) -> tuple[float, float]:
    """Return the 95% bootstrap interval of a sum of shares, resampled by identity.

    Args:
        shares: contribution of each query to the figure, float64 [Q].
        pids: identity of each query, int64 [Q].
        draws: number of resamplings.
    """
    names, place = np.unique(pids, return_inverse=True)
    total = np.bincount(place, shares)  # by identity
    size = np.bincount(place).astype(np.float64)
    counts = _drawn(len(names), draws)
    # A draw may hold more queries than there are: it is scaled to their number.
    sums = counts @ total * (size.sum() / (counts @ size))
    low, high = np.quantile(sums, (0.025, 0.975))
    return float(low), float(high)


@functools.lru_cache(maxsize=3)
def _drawn(names: int, draws: int) -> np.ndarray:
    """Return how often each identity is in each draw, float64 [draws, names]."""
    random = np.random.default_rng(0)
    counts = random.multinomial(names, np.full(names, 1 / names), size=draws)
    return counts.astype(np.float64)


def spread(values: Sequence[float]) -> float | None:
    """Return the standard deviation over seeds, None for a single one."""
    return float(np.std(values, ddof=1)) if len(values) > 1 else None


def challenge_tests(challenge: str) -> tuple[str, ...]:
    """Return the tests of a challenge, one for each severity."""
    assert challenge in CHALLENGES
    return tuple(f"{challenge}-{severity}" for severity in SEVERITIES)
