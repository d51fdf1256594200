"""What a reader of the figures would take for granted and must not: a sentence for each case."""

from __future__ import annotations

import numpy as np
from torch import Tensor

from mmga.common import ids
from mmga.retrieval.features import JUNK, UNKNOWN
from mmga.retrieval.metrics.rank import PerQuery
from mmga.retrieval.protocols import chance
from mmga.retrieval.protocols.selection import Selection

_UNIT = 1.01
"""Lengths up to this factor from 1 are those of normalised features."""
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
    query, gallery = (
        np.setdiff1d(camids, UNKNOWN) for camids in (labels.query_camids, labels.gallery_camids)
    )
    shared = np.intersect1d(query, gallery)
    if str(JUNK) in ids.written(shared, labels.camid_names).astype(np.str_):
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


def of_pooling(norms: Tensor) -> str | None:
    """Return what pooled queries, which have length 1, mean among items of other lengths.

    Args:
        norms: squared norms of the gallery's items, float64 [G] or [G, P].
    """
    lengths = norms[norms > 0].sqrt()
    low, high = (float(lengths.min()), float(lengths.max())) if len(lengths) else (1.0, 1.0)
    if max(high, 1 / low) < _UNIT:
        return None
    return (
        f"multi-query pools queries to length 1, and gallery items have lengths from {low:.3g} to "
        f"{high:.3g}: Euclidean distances compare lengths more than directions; use metric cosine"
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
