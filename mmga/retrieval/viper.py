"""VIPeR's protocol: ten fixed halves of the persons, each in both directions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from mmga.common.errors import UserError
from mmga.common.progress import Progress
from mmga.retrieval.features import JUNK, UNKNOWN, Features
from mmga.retrieval.metrics.report import Figures, Report
from mmga.retrieval.protocols.selection import Labels

SPLITS = 10


def half_of(persons: np.ndarray, split: int) -> np.ndarray:
    """Return the persons that a split tests, half of them (the rest is for training).

    Args:
        persons: the distinct pids, ascending.
        split: number of the split; it alone decides.
    """
    order = np.random.default_rng(split).permutation(persons)
    return np.sort(order[: len(persons) // 2])


def summary(values: list[float]) -> dict[str, float]:
    """Return mean and standard error of a figure over splits."""
    spread = float(np.std(values, ddof=1) / np.sqrt(len(values)))
    return {"mean": float(np.mean(values)), "standard_error": spread}


def evaluate_halves(
    evaluate: Callable[..., Report],
    sides: tuple[Features, Features],
    options: dict[str, Any],
    progress: Progress | None,
) -> Report:
    """Average the halves of VIPeR's persons in both directions.

    Args:
        evaluate: `mmga.evaluate`.
        sides: features of camera a and of camera b.
        options: of the evaluation of one half, max_rank among them.
        progress: called as (phase, done, total).

    Raises:
        UserError: the sides share fewer than two persons.
    """
    query, gallery = sides
    labels = Labels.of(query, gallery)
    persons = np.intersect1d(labels.query_pids, labels.gallery_pids)
    persons = persons[(persons != JUNK) & (persons != UNKNOWN)]
    if len(persons) < 2:
        raise UserError(
            f"protocol viper needs persons on both sides, found {len(persons)}; give camera a as "
            "query and camera b as gallery"
        )
    reports = []
    for split in range(SPLITS):
        tested = half_of(persons, split)
        one, other = (
            side.select(np.flatnonzero(np.isin(pids, tested)))
            for side, pids in ((query, labels.query_pids), (gallery, labels.gallery_pids))
        )
        for asked, among in ((one, other), (other, one)):
            reports.append(evaluate(asked, among, **options))
        if progress is not None:
            progress("splits", split + 1, SPLITS)
    figures = {
        "mAP": [one.mAP for one in reports],
        **{
            f"rank{r}": [float(one.cmc[r - 1]) for one in reports]
            for r in (1, 5, 10, 20)
            if r <= options["max_rank"]
        },
    }
    whole = _mean(reports)
    whole.num_query, whole.num_gallery = len(query), len(gallery)
    # The two directions of a split share its persons: its mean is one observation.
    halves = {
        name: [float(np.mean(values[i : i + 2])) for i in range(0, len(values), 2)]
        for name, values in figures.items()
    }
    whole.extra["splits"] = {
        "splits": SPLITS,
        "persons": len(persons) // 2,
        "directions": 2,
        **{name: summary(values) for name, values in halves.items()},
    }
    error = whole.extra["splits"]["mAP"]["standard_error"]
    whole.notes.append(
        f"mean of {SPLITS} splits of {len(persons) // 2} persons in both directions; counts are "
        f"sums over them; standard error of mAP {error:.2%}"
    )
    return whole


def _mean(reports: list[Report]) -> Report:
    """Return the mean of the figures and the sums of the counts, in the first report."""
    whole = reports[0]
    whole.protocol = "viper"
    whole.figures = Figures(
        float(np.mean([one.mAP for one in reports])),
        float(np.mean([one.mINP for one in reports])),
        np.mean([one.cmc for one in reports], axis=0),
        None,
    )
    whole.num_valid_query = sum(one.num_valid_query for one in reports)
    whole.ties = sum(one.ties for one in reports)
    whole.distractors = sum(one.distractors for one in reports)
    for name in whole.excluded:
        whole.excluded[name] = sum(one.excluded[name] for one in reports)
    for name in whole.seconds:
        whole.seconds[name] = sum(one.seconds[name] for one in reports)
    return whole
