"""What a reader of the figures would take for granted and must not: a sentence for each case."""

from __future__ import annotations

import numpy as np

from mmga.retrieval.features import JUNK
from mmga.retrieval.metrics.rank import PerQuery
from mmga.retrieval.protocols import chance
from mmga.retrieval.protocols.selection import Selection

_MANY = 0.5
"""Share of the queries from which on a peculiarity of single ones is one of the figures."""


def of_ranking(selection: Selection, scores: PerQuery, *, given: bool) -> list[str]:
    """Return what should be known of the figures of a ranking.

    Args:
        selection: what was ranked.
        scores: what every query scored.
        given: the distances were given, not computed from features.
    """
    valid = np.flatnonzero(selection.num_matches > 0)
    pids = selection.labels.query_pids
    found = []
    scrambled = chance.of_ranks(
        scores.first_rank[valid],
        selection.num_matches[valid] / scores.inverse_negative_penalty[valid],
        selection.num_matches[valid],
        selection.num_kept[valid],
        pids[valid],
    )
    if scrambled is not None:
        if given:
            scrambled += "; of given distances also similarities, whose sign must be changed"
        found.append(scrambled)
    queries, matched = int((pids != JUNK).sum()), len(valid)
    if matched < _MANY * queries:
        found.append(
            f"the figures are of {matched} of {queries} queries, the others have no match; check "
            "the ids and cameras of both sides, and that query and gallery were not exchanged"
        )
    tied = int((scores.tied[valid] > 0).sum())
    if tied > _MANY * matched:
        found.append(
            f"{tied} of {matched} queries have a match exactly as far away as another item, so "
            "that the order of the gallery decides their figures; check that the features are not "
            "all alike, or of too few values"
        )
    return found


def of_duplicates(selection: Selection, duplicates: int) -> str | None:
    """Return what equal features on both sides mean under a protocol that keeps such pairs.

    Args:
        selection: what was ranked.
        duplicates: gallery items whose features equal a query's.
    """
    if not duplicates or selection.protocol.camera != "none" or selection.excluded["own_image"]:
        return None
    return (
        f"{duplicates} gallery items have exactly the features of a query and are counted as "
        f"matches under protocol {selection.protocol.name}: if they are the query images "
        "themselves, give paths on both sides, evaluate one set as all-vs-all, or leave them out"
    )


def of_reranking(selection: Selection) -> str | None:
    """Return what re-ranking does to a gallery that holds a single match of most queries."""
    matches = selection.num_matches[selection.num_matches > 0]
    single = int((matches == 1).sum())
    if single <= _MANY * len(matches):
        return None
    return (
        f"re-ranking rests on several images of a person being neighbours of each other: {single} "
        f"of {len(matches)} queries have a single match, where it lowers the figures as a rule; "
        "report the plain ones"
    )
