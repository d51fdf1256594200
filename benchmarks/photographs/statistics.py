"""Statistics of finished runs on photographs: means, spread over splits, paired intervals."""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.ablation.statistics import interval
from benchmarks.ablation.trial import SCALE
from benchmarks.photographs.rows import ROWS
from mmga.common.errors import UserError


@dataclasses.dataclass(frozen=True, slots=True)
class Outcome:
    """A finished run.

    Attributes:
        row: its name.
        split: of the run.
        report: content of its JSON file.
        values: `TEST/precisions`, `TEST/first` and `TEST/pids`, each [Q].
    """

    row: str
    split: int
    report: dict[str, Any]
    values: dict[str, np.ndarray]

    def queries(self, test: str, figure: str) -> tuple[np.ndarray, np.ndarray]:
        """Return a figure (mAP or rank1) of each query, float64 [Q], and its identity."""
        if figure == "mAP":
            shares = self.values[f"{test}/precisions"] / SCALE
        else:
            shares = self.values[f"{test}/first"].astype(np.float64)
        return shares, self.values[f"{test}/pids"].astype(np.int64)

    def has(self, test: str) -> bool:
        """Return whether the run was scored on a test."""
        return f"{test}/pids" in self.values


@dataclasses.dataclass(frozen=True, slots=True)
class Difference:
    """One row less another, on the splits that both have, averaged over tests.

    Attributes:
        value: a fraction.
        low: lower end of the 95% interval over identities.
        high: upper end.
        by_split: the difference of each split.
    """

    value: float
    low: float
    high: float
    by_split: tuple[float, ...]

    def points(self) -> tuple[str, str, str]:
        """Return the value, the interval and the differences by split in points."""
        return (
            f"{100 * self.value:+.1f}",
            f"{100 * self.low:+.1f} to {100 * self.high:+.1f}",
            ", ".join(f"{100 * value:+.1f}" for value in self.by_split),
        )

    def verdict(self) -> str:
        """Describe the difference in one word."""
        if self.low > 0:
            return "higher"
        return "lower" if self.high < 0 else "not shown"


def read(results: Path, sets: str = "pooled") -> dict[str, list[Outcome]]:
    """Read the finished runs of a folder by row, in the order of rows and splits.

    Args:
        results: the folder.
        sets: `pooled`, or `viper` for the runs of VIPeR alone.

    Raises:
        UserError: runs are of different plans, or a file of queries is missing.
    """
    outcomes = []
    for file in sorted(results.glob("*-split*.json")):
        report = json.loads(file.read_text())
        if report["sets"] != sets:
            continue
        queries = file.with_suffix(".npz")
        if not queries.is_file():
            raise UserError(f"{queries} is missing beside {file.name}; restore it or run again")
        with np.load(queries, allow_pickle=False) as stored:
            values = {key: stored[key] for key in stored.files}
        outcomes.append(Outcome(report["row"], report["split"], report, values))
    for outcome in outcomes:
        if outcome.report["plan"] != outcomes[0].report["plan"]:
            raise UserError(
                f"{results}: rows {outcome.row} and {outcomes[0].row} have different plans; "
                "keep them in folders of their own"
            )
    order = list(ROWS)
    rows: dict[str, list[Outcome]] = {}
    for outcome in sorted(outcomes, key=lambda one: (order.index(one.row), one.split)):
        rows.setdefault(outcome.row, []).append(outcome)
    return rows


def difference(
    ours: Sequence[Outcome], theirs: Sequence[Outcome], tests: Sequence[str], figure: str = "mAP"
) -> Difference | None:
    """Compare two rows, query by query; None where they share no split that has the tests.

    The interval is of a paired bootstrap over identities: all queries of an identity, in all
    tests and splits, are drawn together. It is that of these trained networks on other persons;
    how much training and its identities vary is what `by_split` shows.

    Args:
        ours: runs of one row.
        theirs: runs of the other, by other weights or by another way of comparison.
        tests: averaged over; a pair of names `OURS|THEIRS` compares two ways of one row.
        figure: mAP or rank1.
    """
    own = {run.split: run for run in ours}
    other = {run.split: run for run in theirs}
    names = [(test.split("|")[0], test.split("|")[-1]) for test in tests]
    splits = [
        split
        for split in sorted(own.keys() & other.keys())
        if all(own[split].has(a) and other[split].has(b) for a, b in names)
    ]
    if not splits:
        return None
    gaps, pids, by_split = [], [], []
    for split in splits:
        found = 0.0
        for a, b in names:
            values, pid = own[split].queries(a, figure)
            gap = (values - other[split].queries(b, figure)[0]) / len(pid) / len(names)
            found += float(gap.sum())
            gaps.append(gap / len(splits))
            pids.append(pid)
        by_split.append(found)
    low, high = interval(np.concatenate(gaps), np.concatenate(pids))
    return Difference(float(np.mean(by_split)), low, high, tuple(by_split))


def last_gain(curve: dict[str, float]) -> float:
    """Return the validation mAP gained in the last quarter of the epochs of a learning curve."""
    epochs = sorted(map(int, curve))
    start = max((e for e in epochs if e <= 0.75 * epochs[-1]), default=epochs[0])
    return curve[str(epochs[-1])] - curve[str(start)]
