"""Protocols that evaluate parts of the sets and average: VIPeR's halves, VehicleID's draws."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from mmga.common.errors import UserError
from mmga.common.progress import Progress
from mmga.retrieval.features import JUNK, UNKNOWN, Features
from mmga.retrieval.metrics.report import Figures, Report
from mmga.retrieval.protocols.protocol import Protocol
from mmga.retrieval.protocols.selection import Labels

SPLITS = 10
"""Halves of VIPeR's persons, and draws of VehicleID's galleries where no other number is asked."""
TEST_HALF = 316
"""Of VIPeR's 632 persons; a set of so many is the test half of a split."""
Sides = tuple[Features, Features]


@dataclass(frozen=True, slots=True)
class Repeats:
    """What is evaluated instead of two whole sides.

    Attributes:
        groups: of (query, gallery); the figures of a group are one observation.
        count: number of groups.
        persons: identities of each evaluation.
        rules: of each evaluation.
        what: the groups in words.
    """

    groups: Iterator[list[Sides]]
    count: int
    persons: int
    rules: Protocol
    what: str


def half_of(persons: np.ndarray, split: int) -> np.ndarray:
    """Return the persons that a split tests, half of them (the rest is for training).

    Args:
        persons: the distinct pids, ascending.
        split: number of the split; it alone decides.
    """
    order = np.random.default_rng(split).permutation(persons)
    return np.sort(order[: len(persons) // 2])


def both_directions(query: Features, gallery: Features, rules: Protocol) -> Repeats:
    """Return VIPeR's repeats: halves of the persons, or all of them, in both directions.

    Args:
        query: features of camera a.
        gallery: features of camera b.
        rules: ``splits`` says whether the persons are halved, which `TEST_HALF` persons never are.

    Raises:
        UserError: the sides share fewer than two persons.
    """
    labels = Labels.of(query, gallery)
    persons = np.intersect1d(labels.query_pids, labels.gallery_pids)
    persons = np.setdiff1d(persons, (JUNK, UNKNOWN))
    if len(persons) < 2:
        raise UserError(
            f"protocol viper needs persons on both sides, found {len(persons)}; give camera a as "
            "query and camera b as gallery"
        )
    alone = len(np.setdiff1d(np.union1d(labels.query_pids, labels.gallery_pids), (JUNK, UNKNOWN)))
    alone -= len(persons)
    halved = rules.splits == "halves" and len(persons) != TEST_HALF
    tested = [half_of(persons, split) for split in range(SPLITS)] if halved else [persons]

    def groups() -> Iterator[list[Sides]]:
        sides = (query, labels.query_pids), (gallery, labels.gallery_pids)
        for chosen in tested:
            one, other = (side.select(np.isin(pids, chosen)) for side, pids in sides)
            yield [(one, other), (other, one)]

    # The sides are the cameras, whether camids say so or are absent.
    cameras = query.camids is not None and gallery.camids is not None
    size = len(tested[0])
    what = f"{SPLITS} splits of {size} persons" if halved else f"one test half of {size} persons"
    return Repeats(
        groups(),
        len(tested),
        size,
        Protocol("viper", "same-identity" if cameras else "none", precision=rules.precision),
        f"{what} in both directions"
        + (f", without the {alone} that one side alone shows" if alone else ""),
    )


def drawn_galleries(features: Features, rules: Protocol, trials: int, seed: int) -> Repeats:
    """Return VehicleID's repeats: one drawn image of each identity is the gallery.

    All other images are the queries.

    Args:
        features: the one set.
        rules: of the protocol.
        trials: number of draws, `SPLITS` if 0.
        seed: of the draws.

    Raises:
        UserError: no identity has two images.
    """
    rows = np.flatnonzero(~np.isin(features.pids, (JUNK, UNKNOWN)))
    rows = rows[np.argsort(features.pids[rows], kind="stable")]
    identities, first, sizes = np.unique(features.pids[rows], return_index=True, return_counts=True)
    if not len(sizes) or sizes.max() < 2:
        raise UserError(
            f"protocol {rules.name} draws one image of each identity as the gallery and searches "
            f"the others there, but none of the {len(identities)} identities has two images"
        )
    count = trials or SPLITS

    def groups() -> Iterator[list[Sides]]:
        for trial in range(count):
            drawn = first + np.random.default_rng([seed, trial]).integers(0, sizes)
            asked = np.delete(rows, drawn)
            yield [(features.select(asked), features.select(rows[drawn]))]

    return Repeats(
        groups(),
        count,
        len(identities),
        Protocol(rules.name, "none", precision=rules.precision),
        f"{count} seeded draws of a gallery of {len(identities)} identities",
    )


def left_out(query: Features, gallery: Features | None) -> dict[str, int]:
    """Return counts of the rows that take part in no evaluation, as reports name them.

    Args:
        query: the queries, or the one set.
        gallery: None for one set, whose rows are counted once.
    """
    counts = {}
    sides = (("_queries", query), ("", gallery))
    for name, code in (("junk", JUNK), ("unknown", UNKNOWN)):
        for side, features in sides:
            rows = 0 if features is None else int((features.pids == code).sum())
            if rows:
                counts[name + side] = rows
    return counts


def evaluate_repeats(
    evaluate: Callable[..., Report],
    repeats: Repeats,
    options: dict[str, Any],
    progress: Progress | None,
) -> Report:
    """Average evaluations of parts of the sets.

    Args:
        evaluate: `mmga.evaluate`.
        repeats: what is evaluated.
        options: of each evaluation, max_rank among them.
        progress: called as (phase, done, total).
    """
    groups: list[list[Report]] = []
    for parts in repeats.groups:
        groups.append([evaluate(*sides, protocol=repeats.rules, **options) for sides in parts])
        if progress is not None:
            progress("splits", len(groups), repeats.count)
    figures: dict[str, Callable[[Report], float]] = {"mAP": lambda one: one.mAP} | {
        f"rank{r}": lambda one, r=r: float(one.cmc[r - 1])
        for r in (1, 5, 10, 20)
        if r <= options["max_rank"]
    }
    # The evaluations of a group share their persons: their mean is one observation.
    spread = {
        name: _summary([float(np.mean([of(one) for one in group])) for group in groups])
        for name, of in figures.items()
    }
    reports = [report for group in groups for report in group]
    notes = _common_notes(reports)
    whole = _mean(reports)
    whole.num_identities = repeats.persons
    counts = {"splits": repeats.count, "persons": repeats.persons, "directions": len(groups[0])}
    whole.extra["splits"] = counts | spread
    error = spread["mAP"]["standard_error"]
    whole.notes = notes
    whole.notes.append(
        f"mean of {repeats.what}; counts are sums over them"
        + ("" if error is None else f"; standard error of mAP {error:.2%}")
    )
    return whole


def _common_notes(reports: list[Report]) -> list[str]:
    """Return the notes that more than half of the reports have, whatever the numbers in them."""
    kinds = [
        {re.sub(r"[\d.%]+", "", note): note for note in reversed(report.notes)}
        for report in reports
    ]
    counts = Counter(kind for found in kinds for kind in found)
    first = {kind: note for found in reversed(kinds) for kind, note in reversed(found.items())}
    return [first[kind] for kind in first if 2 * counts[kind] > len(reports)]


def _summary(values: list[float]) -> dict[str, float | None]:
    """Return mean and standard error of a figure over splits."""
    spread = float(np.std(values, ddof=1) / np.sqrt(len(values))) if len(values) > 1 else None
    return {"mean": float(np.mean(values)), "standard_error": spread}


def _mean(reports: list[Report]) -> Report:
    """Return the mean of the figures and the sums of the counts, in the first report."""
    whole = reports[0]
    whole.figures = Figures(
        float(np.mean([one.mAP for one in reports])),
        float(np.mean([one.mINP for one in reports])),
        np.mean([one.cmc for one in reports], axis=0),
        None,
    )
    whole.pids = whole.camids = whole.paths = whole.counted = None  # of one part
    whole.num_valid_query = sum(one.num_valid_query for one in reports)
    whole.ties = sum(one.ties for one in reports)
    whole.distractors = sum(one.distractors for one in reports)
    names = dict.fromkeys(name for one in reports for name in one.excluded)
    whole.excluded = {name: sum(one.excluded.get(name, 0) for one in reports) for name in names}
    for name in whole.seconds:
        whole.seconds[name] = sum(one.seconds[name] for one in reports)
    return whole
