"""Figures by camera pair, and their plot."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import torch

from mmga.common import ids
from mmga.common.device import resolve_device
from mmga.common.errors import UserError
from mmga.common.monitor import Monitor
from mmga.common.progress import Progress
from mmga.ops.precision import float32_products
from mmga.plots.style import PAGE, fitted, new_figure, percent, styled
from mmga.retrieval.evaluate import plain_ranks, ranking_problem
from mmga.retrieval.features import JUNK, Features
from mmga.retrieval.features.shares import SharedGallery
from mmga.retrieval.metrics.rank import PerQuery
from mmga.retrieval.options import EvaluationOptions
from mmga.retrieval.protocols.protocol import Protocol, protocol_named
from mmga.retrieval.protocols.selection import NoMatch

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MOST = 24
"""Cameras of a side that are compared; of more, those with the most rows."""
_CELL = 13.0
"""Height of a cell and, about, its width, in mm at most."""


@dataclass(frozen=True, slots=True)
class CameraPairs:
    """Figures of the queries of one camera in the gallery of one camera.

    Attributes:
        query: names of the query cameras, [A].
        gallery: names of the gallery cameras, [B].
        rank1: float64 [A, B], NaN where no query has a match.
        mAP: likewise.
        valid_queries: queries with a match, whose mean the figures are, int64 [A, B].
        left_out: cameras beyond `MOST`, of both sides.
    """

    query: list[str]
    gallery: list[str]
    rank1: np.ndarray
    mAP: np.ndarray
    valid_queries: np.ndarray
    left_out: int = 0


def camera_pairs(
    query: Features,
    gallery: Features,
    *,
    metric: str = "cosine",
    protocol: str | Protocol = "market1501",
    progress: Progress | None = None,
) -> CameraPairs:
    """Evaluate the queries of each camera in the gallery of each camera.

    The gallery of a pair holds the items of its camera alone, so that a figure says how well
    identities are found from one camera to another; the items of other cameras do not disturb.

    Args:
        query: features of the queries, with cameras.
        gallery: features of the gallery, with cameras.
        metric: "cosine" or "euclidean".
        protocol: of two sides, without draws.
        progress: called as (phase, done, total).

    Raises:
        UserError: cameras are missing, the protocol has no single gallery, or as in
            `mmga.evaluate`.
    """
    rules = protocol_named(protocol)
    if rules.splits or rules.pools or rules.single_shot or rules.one_set:
        raise UserError(f"protocol {rules.name} has no figures by camera pair; choose market1501")
    options = EvaluationOptions(metric=metric, protocol=rules)
    device = resolve_device(gallery.rows.device)
    found = by_camera(query, gallery, options, device, progress)
    if not found.valid_queries.any():
        raise UserError(
            f"figures by camera pair: under protocol {rules.name} no query has a match in the "
            "gallery of one camera"
        )
    return found


@float32_products()
def by_camera(
    query: Features,
    gallery: Features,
    options: EvaluationOptions,
    device: torch.device,
    progress: Progress | None = None,
) -> CameraPairs:
    """Rank the items of each camera alone for all queries.

    Args:
        query: features of the queries, with cameras.
        gallery: features of the gallery, with cameras.
        options: of the evaluation; nothing is verified or re-ranked.
        device: where to compute.
        progress: called as (phase, done, total).

    Raises:
        UserError: cameras are missing, or as in `mmga.evaluate`.
    """
    codes, of_query, left = _cameras("query", query)
    items, of_gallery, more = _cameras("gallery", gallery)
    options = replace(
        options, rerank=None, verification=False, cross_camera=False, fpr=None, strangers=None
    )
    options.check(query, gallery, device)
    rank1 = np.full((len(codes), len(items)), np.nan)
    precision, valid = rank1.copy(), np.zeros(rank1.shape, np.int64)
    for column, camera in enumerate(items):
        scores = _scores(query, gallery, camera, options, device)
        for row, own in enumerate(codes) if scores is not None else ():
            assert scores is not None
            found = (query.camids == own) & (scores.first_rank > 0)
            valid[row, column] = found.sum()
            if found.any():
                rank1[row, column] = (scores.first_rank[found] == 1).mean()
                precision[row, column] = scores.average_precision[found].mean()
        if progress is not None:
            progress("camera pairs", column + 1, len(items))
    return CameraPairs(of_query, of_gallery, rank1, precision, valid, left + more)


def _scores(
    query: Features,
    gallery: Features,
    camera: int,
    options: EvaluationOptions,
    device: torch.device,
) -> PerQuery | None:
    """Rank the items of one camera for all queries; None where none has a match among them."""
    part = copy.copy(gallery)  # items keep their places, by which a query is left out itself
    part.pids = np.where(gallery.camids == camera, gallery.pids, JUNK)
    asked, shared = SharedGallery.alone(query), SharedGallery.alone(part)
    try:
        problem = ranking_problem(asked, shared, options, device, Monitor())
    except NoMatch:
        return None
    return plain_ranks(problem, options)[0]


def _cameras(side: str, features: Features) -> tuple[list[int], list[str], int]:
    """Return codes and names of the cameras with the most rows, and how many others there are."""
    if features.camids is None:
        raise UserError(f"figures by camera pair need camids, which the {side} lacks")
    codes, others = ids.most_frequent(features.camids, MOST)
    return codes.tolist(), ids.words(codes, features.camid_names), others


@styled
def cameras(pairs: CameraPairs, *, width: float = PAGE) -> Figure:
    """Draw rank-1 and mAP by query camera and gallery camera, as two tables in colours.

    Args:
        pairs: of `camera_pairs`.
        width: of the figure at most, in mm.

    Raises:
        UserError: matplotlib is not installed.
    """
    rows, columns = pairs.rank1.shape
    width = min(width, 2 * _CELL * max(columns, 3) + 44)
    cell = (width / 2 - 22) / max(columns, 3)
    figure = new_figure(width, min(max(rows * min(cell, _CELL), 25), 2 * width) + 22)
    both = figure.subplots(1, 2, sharey=True)
    blank = bool(np.isnan(pairs.rank1).any())
    size = min(7.0, 1.15 * cell)
    for axes, name, values in zip(both, ("rank-1", "mAP"), (pairs.rank1, pairs.mAP), strict=True):
        axes.grid(False)
        image = axes.imshow(values, vmin=0, vmax=1, aspect="auto")
        for (row, column), value in np.ndenumerate(values):
            text = "-" if np.isnan(value) else f"{100 * value:.0f}"
            dark = not np.isnan(value) and _luminance(image.to_rgba(value)) < 0.18
            colour = "white" if dark else "black"
            axes.text(column, row, text, ha="center", va="center", size=size, color=colour)
        axes.set_title(f"{name} (%; -: no query has a match)" if blank else f"{name} (%)")
        axes.set_xticks(range(columns), [fitted(one, cell) for one in pairs.gallery])
        axes.set_xlabel("gallery camera")
    both[0].set_yticks(range(rows), [fitted(one, 16) for one in pairs.query])
    both[0].set_ylabel("query camera")
    bar = figure.colorbar(image, ax=both, fraction=0.03, pad=0.01, format=percent)
    bar.outline.set_visible(False)
    return figure


def _luminance(colour: Sequence[float]) -> float:
    """Return the relative luminance of an sRGB colour, by WCAG: black is better seen above 0.18."""
    linear = [v / 12.92 if v <= 0.04045 else ((v + 0.055) / 1.055) ** 2.4 for v in colour[:3]]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
