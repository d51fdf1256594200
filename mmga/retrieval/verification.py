"""Verification and open-set figures: which threshold, and what it costs.

Genuine pairs are the kept pairs of equal pid, impostor pairs the kept pairs of different pid. Their
distances are counted in bins of equal width; a pair is accepted where its distance is at most the
threshold, which is always the upper edge of a bin.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from mmga.retrieval.protocol import Selection
from mmga.retrieval.stream import Progress, Source

BINS = 1 << 16
TARGETS = (1e-4, 1e-3, 1e-2)


@dataclass(slots=True)
class Counts:
    """Pairs by distance.

    Attributes:
        genuine: int64 [bins].
        impostor: int64 [bins].
        width: width of a bin in the metric's own unit.
        best: smallest distance of each ranked query to a kept item, float64 [Q'].
        best_is_match: whether that item is a match (by index where distances tie), bool [Q'].
    """

    genuine: np.ndarray
    impostor: np.ndarray
    width: float
    best: np.ndarray
    best_is_match: np.ndarray


def count_pairs(
    source: Source,
    selection: Selection,
    largest: float,
    squared: bool,
    cross_camera: bool = False,
    progress: Progress | None = None,
) -> Counts:
    """Count all kept pairs by distance in one pass.

    Args:
        source: tiles of `selection`, which must hold queries without a match too.
        selection: what is kept.
        largest: an upper bound of the distances, in the metric's own unit.
        squared: keys are squared distances.
        cross_camera: leave out impostor pairs of one camera.
        progress: called as (phase, done, total).
    """
    width = largest / BINS
    genuine, impostor = np.zeros(BINS, np.int64), np.zeros(BINS, np.int64)
    count = len(selection.queries)
    best, best_is_match = np.full(count, np.inf), np.zeros(count, bool)
    labels = selection.labels
    for pairs in selection.pairs(1 << 20, source.max_rows):
        rows = pairs.stop - pairs.start
        match_keys = source.match_keys(pairs).cpu()
        owner = np.repeat(np.arange(rows), np.diff(pairs.match_start))
        distance = match_keys.double().sqrt() if squared else match_keys.double()
        genuine += _histogram(distance, width)
        nearest_match = np.full(rows, np.inf)
        nearest_item = np.full(rows, np.iinfo(np.int64).max)
        for at in np.lexsort((pairs.match_item, match_keys.numpy()))[::-1]:
            nearest_match[owner[at]] = float(match_keys[at])
            nearest_item[owner[at]] = pairs.match_item[at]
        other, other_item = np.full(rows, np.inf), np.full(rows, np.iinfo(np.int64).max)
        ignored_row = np.repeat(np.arange(rows), np.diff(pairs.ignored_start))
        for span, tile in source.tiles(pairs.start, pairs.stop):
            keys = tile.keys().cpu()
            left, right = tile.offset, tile.offset + keys.shape[1]
            kept = torch.ones(keys.shape, dtype=torch.bool)
            here = (pairs.ignored_item >= left) & (pairs.ignored_item < right)
            here &= (ignored_row >= span.start) & (ignored_row < span.stop)
            kept[ignored_row[here] - span.start, pairs.ignored_item[here] - left] = False
            query = selection.queries[pairs.start + span.start : pairs.start + span.stop]
            if selection.query_camera is not None and selection.gallery_camera is not None:
                own = selection.query_camera[pairs.start + span.start : pairs.start + span.stop]
                kept &= torch.from_numpy(own[:, None] != selection.gallery_camera[left:right])
            masked = torch.where(kept, keys, torch.inf).numpy()
            column = masked.argmin(1)  # the first of equals
            value = masked[np.arange(len(masked)), column].astype(np.float64)
            smaller = value < other[span]
            other[span] = np.where(smaller, value, other[span])
            other_item[span] = np.where(smaller, left + column, other_item[span])
            if cross_camera and labels.query_camids is not None:
                assert labels.gallery_camids is not None
                items = labels.gallery_camids[selection.gallery[left:right]]
                kept &= torch.from_numpy(labels.query_camids[query][:, None] != items)
            apart = keys[kept].double()
            impostor += _histogram(apart.sqrt() if squared else apart, width)
        is_match = (nearest_match < other) | (
            (nearest_match == other) & (nearest_item < other_item)
        )
        span = slice(pairs.start, pairs.stop)
        smallest = np.minimum(nearest_match, other)
        best[span] = np.sqrt(smallest) if squared else smallest
        best_is_match[span] = is_match
        if progress is not None:
            progress("verification", pairs.stop, count)
    return Counts(genuine, impostor, width, best, best_is_match)


def figures(counts: Counts, matched: np.ndarray) -> dict[str, object]:
    """Return ROC, EER, thresholds and open-set rates as plain values.

    Args:
        counts: of `count_pairs`.
        matched: whether each ranked query has a match, bool [Q'].
    """
    impostors, genuines = int(counts.impostor.sum()), int(counts.genuine.sum())
    false_accepts = np.cumsum(counts.impostor)
    true_accepts = np.cumsum(counts.genuine)
    edges = counts.width * np.arange(1, BINS + 1)
    result: dict[str, object] = {
        "genuine_pairs": genuines,
        "impostor_pairs": impostors,
        "bin_width": counts.width,
        "tpr_at_fpr": [],
        "eer": None,
        "dir_at_far": [],
    }
    rows = []
    for target in TARGETS:
        row: dict[str, object] = {"fpr": target, "tpr": None, "threshold": None}
        if impostors and target >= 1 / impostors and genuines:
            # The largest edge whose false accepts keep within the target.
            at = int(np.searchsorted(false_accepts, target * impostors, "right")) - 1
            row["tpr"] = float(true_accepts[at] / genuines) if at >= 0 else 0.0
            row["threshold"] = float(edges[at]) if at >= 0 else 0.0
            row["note"] = None
        else:
            row["note"] = f"not resolvable with {impostors} impostor pairs"
        rows.append(row)
    result["tpr_at_fpr"] = rows
    if impostors and genuines:
        miss = 1 - true_accepts / genuines
        accept = false_accepts / impostors
        at = int(np.argmin(np.abs(miss - accept)))
        result["eer"] = float((miss[at] + accept[at]) / 2)
    strangers = np.sort(counts.best[~matched])
    open_set = []
    for target in (0.01, 0.1):
        entry: dict[str, object] = {"far": target, "dir": None, "threshold": None, "note": None}
        if len(strangers) and target >= 1 / len(strangers) and matched.any():
            # Accept d <= t for the largest t that accepts at most this share of strangers.
            allowed = int(target * len(strangers) + 1e-9)
            limit = strangers[allowed] if allowed < len(strangers) else np.inf
            accepted = counts.best < limit
            entry["dir"] = float((accepted & counts.best_is_match)[matched].mean())
            below = counts.best[accepted]
            entry["threshold"] = float(below.max()) if len(below) else 0.0
        else:
            entry["note"] = f"not resolvable with {len(strangers)} queries without a mate"
        open_set.append(entry)
    result["dir_at_far"] = open_set
    return result


def _histogram(distance: torch.Tensor, width: float) -> np.ndarray:
    """Count distances in bins (edge, next edge]; those of 0 belong to the first."""
    place = torch.ceil(distance / width).long().sub_(1).clamp_(0, BINS - 1)
    counted: np.ndarray = torch.bincount(place.reshape(-1), minlength=BINS).numpy()
    return counted
