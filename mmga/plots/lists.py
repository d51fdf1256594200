"""Ranked lists of single queries by a protocol, drawn with the pictures of their paths."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from mmga.common import ids
from mmga.common.errors import UserError
from mmga.common.paths import find_below
from mmga.data.pictures import read_image
from mmga.ops.distance import pairwise_distance
from mmga.plots.sheets import Hit, Verdict, ranked_sheet
from mmga.plots.style import PAGE, styled
from mmga.retrieval.features import JUNK, UNKNOWN, Features
from mmga.retrieval.metrics.report import Report
from mmga.retrieval.protocols.marks import RIGHT, marks
from mmga.retrieval.protocols.protocol import Protocol, protocol_named
from mmga.retrieval.protocols.selection import Labels

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Pictures = Callable[[str, int], Tensor | None]
"""From a side ("query", "gallery") and a row to its picture, None where there is none."""
_BLOCK = 1 << 15
"""Gallery items whose distances are computed at once."""


@dataclass(frozen=True, slots=True)
class RankedList:
    """The nearest gallery items of a query.

    Attributes:
        query: its row.
        items: gallery rows, nearest first, int64 [K].
        distances: of these, float32 [K].
        verdicts: what each is to the query.
        first_match: rank of the first match from 1, None where the gallery holds none.
    """

    query: int
    items: np.ndarray
    distances: np.ndarray
    verdicts: list[Verdict]
    first_match: int | None


def rank_queries(
    query: Features,
    gallery: Features,
    rows: Sequence[int] | np.ndarray,
    *,
    protocol: str | Protocol = "market1501",
    metric: str = "cosine",
    topk: int = 10,
    excluded: bool = False,
) -> list[RankedList]:
    """Return the lists of some queries, in the order of (float32 distance, gallery index).

    Args:
        query: features of the queries.
        gallery: features of the gallery, of the same kind.
        rows: rows of the queries that are wanted.
        protocol: what is left out for a query; of a single-shot protocol the whole gallery counts.
        metric: "cosine" or "euclidean".
        topk: items of a list.
        excluded: show items that the protocol leaves out, too, in their places; they have no rank.

    Raises:
        UserError: the features are of parts, the sides do not fit each other, or there is no such
            row.
    """
    if query.visibility is not None or gallery.visibility is not None:
        raise UserError("ranked lists are drawn of whole features, and these are part features")
    rules = protocol_named(protocol)
    labels = Labels.of(query, gallery, None, rules.needs_cameras)
    rows = np.asarray(rows, np.int64)
    absent = rows[(rows < 0) | (rows >= len(query))]
    if len(absent):
        raise UserError(f"rows: expected 0 to {len(query) - 1}, found {absent[0]}")
    found = query.rows.take(torch.from_numpy(rows))
    distances = torch.cat(
        [
            pairwise_distance(found, gallery.rows.block(start, start + _BLOCK), metric).cpu()
            for start in range(0, len(gallery), _BLOCK)
        ],
        dim=1,
    ).numpy()  # [rows, G]
    items = np.arange(len(gallery))
    lists = []
    for row, values in zip(rows.tolist(), distances, strict=True):
        mark = marks(rules, labels, np.full(len(gallery), row), items)
        order = np.argsort(values, kind="stable")
        counted = order[mark[order] <= RIGHT]
        hits = np.flatnonzero(mark[counted] == RIGHT)
        shown = (order if excluded else counted)[:topk]
        known = labels.query_pids[row] not in (UNKNOWN, JUNK)
        verdicts = [_verdict(one, known) for one in mark[shown].tolist()]
        first = int(hits[0]) + 1 if len(hits) else None
        lists.append(RankedList(row, shown, values[shown], verdicts, first))
    return lists


def _verdict(mark: int, known: bool) -> Verdict:
    if mark > RIGHT:
        return "excluded"
    return "unknown" if not known else "right" if mark == RIGHT else "wrong"


@styled
def ranked_lists(
    query: Features,
    gallery: Features,
    rows: Sequence[int] | np.ndarray,
    images: Sequence[str | os.PathLike[str]] | Pictures = (),
    *,
    protocol: str | Protocol = "market1501",
    metric: str = "cosine",
    topk: int = 10,
    excluded: bool = False,
    width: float = PAGE,
) -> Figure:
    """Draw queries beside their nearest gallery items, framed right, wrong or left out.

    Args:
        query: features of the queries.
        gallery: features of the gallery.
        rows: rows of the queries that are drawn, such as `hardest(report, 8)`.
        images: folders that hold the images of the features' paths (`FolderPictures`), or a
            function of a side ("query", "gallery") and a row that returns uint8 [3, H, W], or None
            where there is none.
        protocol: what is left out for a query.
        metric: "cosine" or "euclidean".
        topk: items of a list.
        excluded: show items that the protocol leaves out, too, in their places.
        width: of the figure, in mm.

    Raises:
        UserError: the features do not fit each other, no row is given, a picture would be too
            small, or matplotlib is not installed.
    """
    pictures = images if callable(images) else FolderPictures(images, query, gallery)
    options: Any = {"metric": metric, "topk": topk, "excluded": excluded}
    lists = rank_queries(query, gallery, rows, protocol=protocol, **options)
    hits = [
        [
            Hit(
                pictures("gallery", item),
                verdict,
                f"{distance:.2f}\n{camera_name(gallery, item)}".rstrip(),
            )
            for item, distance, verdict in zip(
                one.items.tolist(), one.distances, one.verdicts, strict=True
            )
        ]
        for one in lists
    ]
    shown = [pictures("query", one.query) for one in lists]
    note = f"above queries: rank of the first match; above items: {metric} distance, camera"
    return ranked_sheet(shown, hits, [_title(query, one) for one in lists], note=note, width=width)


def hardest(report: Report, count: int) -> np.ndarray:
    """Return the rows of the queries with the lowest average precision, lowest first, int64.

    Raises:
        UserError: the report has no figures of single queries.
    """
    return _by_precision(report)[:count]


def easiest(report: Report, count: int) -> np.ndarray:
    """Return the rows of the queries with the highest average precision, highest first, int64.

    Of equal ones, those with the most matches come first.

    Raises:
        UserError: the report has no figures of single queries.
    """
    return _by_precision(report)[::-1][:count].copy()


def _by_precision(report: Report) -> np.ndarray:
    """Return rows by ascending average precision, then by ascending number of matches."""
    scores = report.per_query
    if scores is None:
        raise UserError(f"protocol {report.protocol} has no figures of single queries")
    rows = np.flatnonzero(~np.isnan(scores.average_precision))
    keys = scores.num_matches[rows], scores.average_precision[rows]
    return rows[np.lexsort(keys)]


def _title(query: Features, found: RankedList) -> str:
    """Return identity, camera and rank of the first match of a query, in a line each."""
    first = "no match" if found.first_match is None else f"rank {found.first_match}"
    lines = identity_name(query, found.query), camera_name(query, found.query), first
    return "\n".join(line for line in lines if line)


def identity_name(features: Features, row: int) -> str:
    """Return the identity of a row for a title."""
    return f"id {ids.words(features.pids[row : row + 1], features.pid_names)[0]}"


def camera_name(features: Features, row: int) -> str:
    """Return the camera of a row as c1 or by its name; nothing where it is not known."""
    if features.camids is None:
        return ""
    code = features.camids[row : row + 1]
    camera = ids.plain(ids.written(code, features.camid_names)[0])
    return f"c{camera}" if isinstance(camera, int) else str(camera or "")


class FolderPictures:
    """Pictures of feature rows, found by their paths in folders.

    Args:
        folders: where images are, see `mmga.common.paths.find_below`.
        query: features of the queries, with paths.
        gallery: features of the gallery, with paths.

    Attributes:
        found: paths of pictures that were shown.
        missing: paths that no folder holds.
        broken: messages by path of files that cannot be decoded.
    """

    def __init__(
        self, folders: Sequence[str | os.PathLike[str]], query: Features, gallery: Features
    ) -> None:
        self._folders = [Path(folder) for folder in folders]
        self._sides = {"query": query, "gallery": gallery}
        self.found: set[str] = set()
        self.missing: dict[str, None] = {}
        self.broken: dict[str, str] = {}

    def __call__(self, side: str, row: int) -> Tensor | None:
        """Return the picture of a row, uint8 [3, H, W], None where it has none."""
        paths = self._sides[side].paths
        if paths is None or not self._folders:
            return None
        path = str(paths[row])
        file = find_below(self._folders, path)
        if file is None:
            self.missing[path] = None
            return None
        try:
            picture = read_image(file)
        except UserError as error:
            self.broken[path] = str(error)
            return None
        self.found.add(path)
        return picture

    @property
    def first_error(self) -> str:
        """The message of the first file that cannot be decoded."""
        return next(iter(self.broken.values()), "")
