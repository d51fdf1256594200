"""Figures by camera pair, and their plot."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from mmga.common import ids
from mmga.common.errors import UserError
from mmga.common.progress import Progress
from mmga.plots.style import PAGE, fitted, new_figure, percent, styled
from mmga.retrieval.evaluate import evaluate
from mmga.retrieval.features import UNKNOWN, Features
from mmga.retrieval.features.features import common_labels
from mmga.retrieval.protocols.protocol import Protocol, protocol_named
from mmga.retrieval.protocols.selection import Labels, select

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
        valid_queries: queries with a match, int64 [A, B].
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
    if query.camids is None or gallery.camids is None:
        side = "query" if query.camids is None else "gallery"
        raise UserError(f"figures by camera pair need camids, which the {side} lacks")
    own, others, names = common_labels(
        "camids", query.camids, query.camid_names, gallery.camids, gallery.camid_names
    )
    (rows, left), (columns, more) = _most(own), _most(others)
    shape = len(rows), len(columns)
    rank1, precision = np.full(shape, np.nan), np.full(shape, np.nan)
    valid = np.zeros(shape, np.int64)
    sides = [[side.select(codes == one) for one in of] for side, codes, of in
             ((query, own, rows), (gallery, others, columns))]  # fmt: skip
    for place in np.ndindex(*shape):
        one, other = sides[0][place[0]], sides[1][place[1]]
        if _has_match(one, other, rules):
            report = evaluate(one, other, metric=metric, protocol=rules, max_rank=1)
            rank1[place], precision[place] = report.cmc[0], report.mAP
            valid[place] = report.num_valid_query
        if progress is not None:
            progress("camera pairs", int(np.ravel_multi_index(place, shape)) + 1, valid.size)
    if not valid.any():
        raise UserError(
            f"figures by camera pair: under protocol {rules.name} no query has a match in the "
            "gallery of one camera"
        )
    query_names, gallery_names = (
        [str(ids.plain(word)) for word in ids.written(of, names)] for of in (rows, columns)
    )
    return CameraPairs(query_names, gallery_names, rank1, precision, valid, left + more)


def _has_match(query: Features, gallery: Features, rules: Protocol) -> bool:
    try:
        select(rules, Labels.of(query, gallery))
    except UserError:
        return False
    return True


def _most(codes: np.ndarray) -> tuple[np.ndarray, int]:
    """Return the known cameras with the most rows, ascending, and the number of others."""
    found, counts = np.unique(codes[codes != UNKNOWN], return_counts=True)
    chosen = np.sort(np.argsort(-counts, kind="stable")[:MOST])
    return found[chosen], len(found) - len(chosen)


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
