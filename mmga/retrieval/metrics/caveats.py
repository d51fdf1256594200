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
    found = _of_labels(selection)
    valid = np.flatnonzero(selection.num_matches > 0)
    matches, kept = selection.num_matches[valid], selection.num_kept[valid]
    last = matches / scores.inverse_negative_penalty[valid]
    pids = selection.labels.query_pids[valid]
    scrambled = chance.of_ranks(scores.first_rank[valid], last, matches, kept, pids)
    if scrambled is not None:
        if given:
            scrambled += "; of given distances also similarities, whose sign must be changed"
        found.append(scrambled)
    easy = float((matches / kept).mean())
    if easy > _MANY:
        found.append(
            f"a random order gives rank-1 {easy:.2%} already: most gallery items that a query "
            "ranks are its matches; add items of other identities"
        )
    tied = int((scores.tied[valid] > 0).sum())
    if tied > _MANY * len(valid):
        found.append(
            f"{tied} of {len(valid)} queries have a match exactly as far away as another item, so "
            "that the order of the gallery decides their figures; check that the features are not "
            "all alike, or of too few values"
        )
    return found


def _of_labels(selection: Selection) -> list[str]:
    """Return what identities, cameras and a condition make of the figures."""
    labels, counts = selection.labels, selection.excluded
    found = []
    queries, matched = len(selection.eligible_queries), int((selection.num_matches > 0).sum())
    if matched < _MANY * queries:
        found.append(
            f"the figures are of {matched} of {queries} queries, the others have no match; check "
            "the ids and cameras of both sides, and that query and gallery were not exchanged"
        )
    elif counts["junk_queries"] and not counts["junk"] and queries > len(labels.gallery_pids):
        found.append(
            "there are more queries than gallery items, and the junk is among the queries; check "
            "that query and gallery were not exchanged"
        )
    if selection.protocol.camera != "none":
        found += _of_cameras(selection)
    if counts.get("expression") == 0:
        found.append(
            "the condition of exclude leaves out no pair that the protocol keeps; check its "
            "columns and values"
        )
    return found


def _of_cameras(selection: Selection) -> list[str]:
    """Return where a camera rule compares cameras that are unknown or written differently."""
    labels = selection.labels
    assert labels.query_camids is not None
    assert labels.gallery_camids is not None
    query, gallery = np.unique(labels.query_camids), np.unique(labels.gallery_camids)
    shared = np.intersect1d(query, gallery)
    if JUNK in shared:
        return [
            "camid -1 stands on both sides and is one camera like any other here, so that pairs of "
            "unknown cameras are left out as pairs of one; give their cameras, or use protocol "
            f"{selection.protocol.without_cameras}"
        ]
    if not len(shared) and min(len(query), len(gallery)) > 1:
        return [
            f"query and gallery have no camera in common ({len(query)} and {len(gallery)} "
            "cameras), so that the camera rule leaves nothing out; check, unless that is meant, "
            "that both write cameras alike"
        ]
    return []


def of_duplicates(selection: Selection, duplicates: int) -> str | None:
    """Return what equal features on both sides mean under a protocol that keeps such pairs.

    Args:
        selection: what was ranked.
        duplicates: gallery items whose features equal a query's.
    """
    if not duplicates or selection.protocol.camera != "none" or selection.excluded["own_image"]:
        return None
    return (
        f"{duplicates} gallery items have exactly the features of a query; those of its identity "
        f"are counted as matches under protocol {selection.protocol.name}: if they are the query "
        "images themselves, give paths on both sides, evaluate one set as all-vs-all, or leave "
        "them out"
    )


def of_pooling(selection: Selection, metric: str, norms: np.ndarray) -> str | None:
    """Return what Euclidean distances of pooled queries, which are normalised, compare.

    Args:
        selection: what was ranked.
        metric: cosine or euclidean.
        norms: of the gallery's features, those of all parts.
    """
    lengths = norms[norms > 0]
    if not selection.protocol.pools or metric != "euclidean" or not len(lengths):
        return None
    if np.mean(np.abs(lengths - 1) > 0.01) <= _MANY:
        return None
    return (
        "pooled queries have length 1, the features of the gallery lengths of "
        f"{lengths.min():.3g} to {lengths.max():.3g}, so that Euclidean distances rank it by "
        "length; use metric cosine, or normalise the features"
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
