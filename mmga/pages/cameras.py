"""Rank-1 and mAP of every pair of cameras: queries of one, items of another."""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace

import numpy as np
import torch

from mmga.common import ids
from mmga.common.errors import UserError
from mmga.common.monitor import Monitor
from mmga.common.progress import Progress
from mmga.retrieval.evaluate import plain_ranks, ranking_problem
from mmga.retrieval.features import JUNK, UNKNOWN, Features
from mmga.retrieval.features.shares import SharedGallery
from mmga.retrieval.options import EvaluationOptions

MOST = 24
"""Cameras of a side that a page shows."""


@dataclass(frozen=True, slots=True)
class CameraPairs:
    """Figures of the queries of each camera that search the items of one camera alone.

    Attributes:
        query: names of the queries' cameras [A].
        gallery: names of the items' cameras [B].
        rank1: float64 [A, B], NaN where no query has a match.
        mAP: likewise.
        count: queries with a match, int64 [A, B].
        left_out: cameras beyond `MOST` that are not shown.
    """

    query: list[str]
    gallery: list[str]
    rank1: np.ndarray
    mAP: np.ndarray
    count: np.ndarray
    left_out: int


def camera_pairs(
    query: Features,
    gallery: Features,
    options: EvaluationOptions,
    device: torch.device,
    progress: Progress | None = None,
) -> CameraPairs | None:
    """Rank the items of each camera alone for every query, exactly.

    None where cameras are not known.

    Raises:
        UserError: as in `mmga.evaluate`.
    """
    if query.camids is None or gallery.camids is None:
        return None
    options = replace(options, verification=False, cross_camera=False)
    codes, of_query, left = _cameras(query)
    items, of_gallery, more = _cameras(gallery)
    rank1 = np.full((len(codes), len(items)), np.nan)
    precision, count = rank1.copy(), np.zeros(rank1.shape, np.int64)
    for column, camera in enumerate(items):
        part = copy.copy(gallery)
        part.pids = np.where(gallery.camids == camera, gallery.pids, JUNK)
        try:
            shared = SharedGallery(part, 0, len(part))
            problem = ranking_problem(query, shared, options, device, Monitor())
        except UserError:  # of what was evaluated before: no query has a match there
            continue
        scores = plain_ranks(problem, options)[0]
        for row, own in enumerate(codes):
            valid = (query.camids == own) & (scores.first_rank > 0)
            count[row, column] = valid.sum()
            if valid.any():
                rank1[row, column] = (scores.first_rank[valid] == 1).mean()
                precision[row, column] = scores.average_precision[valid].mean()
        if progress is not None:
            progress("pairs of cameras", column + 1, len(items))
    return CameraPairs(of_query, of_gallery, rank1, precision, count, left + more)


def _cameras(side: Features) -> tuple[list[int], list[str], int]:
    """Return codes and names of the cameras with the most images, and how many others there are."""
    assert side.camids is not None
    codes, counts = np.unique(side.camids[side.camids != UNKNOWN], return_counts=True)
    kept = np.sort(np.argsort(-counts, kind="stable")[:MOST])
    names = [str(name) for name in ids.written(codes[kept], side.camid_names).tolist()]
    return codes[kept].tolist(), names, len(codes) - len(kept)
