"""What a report page shows beyond the figures: lists, pairs, cameras and a map of the features."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from mmga.common import memory
from mmga.common.device import resolve_device
from mmga.common.monitor import Monitor
from mmga.common.progress import Progress
from mmga.ops.precision import float32_products
from mmga.pages.feature_map import FeatureMap, feature_map
from mmga.pages.lists import Lists, ranked_lists
from mmga.pages.pairs import PairSampler, Samples, Thresholds, thresholds
from mmga.plots.by_camera import CameraPairs, by_camera
from mmga.retrieval.evaluate import pair_counter, ranking_problem
from mmga.retrieval.features import Features
from mmga.retrieval.features.pooling import pooled
from mmga.retrieval.features.shares import SharedGallery
from mmga.retrieval.metrics.rank import PerQuery, rank
from mmga.retrieval.metrics.report import Report
from mmga.retrieval.metrics.verification import figures
from mmga.retrieval.options import EvaluationOptions
from mmga.retrieval.protocols.protocol import Protocol, protocol_named
from mmga.retrieval.reranking.settings import KReciprocal
from mmga.retrieval.tiles.parts import visible

LISTED = 12_000
"""Queries that a page lists."""
_VALUES = 24  # most distinct values of a column that becomes a filter
_GRADED = ("visib", "occlu")  # columns of more values that become one in quarters


@dataclass(frozen=True, slots=True)
class Evaluated:
    """An evaluation, with what it was made from.

    Attributes:
        report: what `mmga.evaluate` returned.
        query: the features that it was given.
        gallery: likewise; None where one set was ranked against itself.
        settings: its further arguments by name.
        rule: its re-ranking, or None.
    """

    report: Report
    query: Features
    gallery: Features | None
    settings: Mapping[str, Any]
    rule: KReciprocal | None = None

    @property
    def protocol(self) -> Protocol:
        """The rules."""
        return protocol_named(self.settings["protocol"], self.settings.get("ap"))

    def options(self) -> EvaluationOptions:
        """Return the settings as the evaluation checked them."""
        names = {field.name for field in dataclasses.fields(EvaluationOptions)}
        values = {name: value for name, value in self.settings.items() if name in names}
        values |= {
            "protocol": self.protocol,
            "rerank": self.rule,
            "memory": memory.parse(self.settings.get("memory")),
        }
        return EvaluationOptions(**values)


@dataclass(frozen=True, slots=True)
class Content:
    """What was looked up in the features for a page.

    Attributes:
        query: the ranked queries; of a protocol that pools, the pooled ones.
        gallery: the gallery.
        ranked: number of queries that were ranked.
        rows: the listed queries, rows of `query`, by ascending average precision, int64 [L].
        plain: their lists in that order.
        reranked: likewise, or None.
        first_item: nearest match of each listed query, a row of the gallery or -1, int64 [L].
        first_distance: its distance, NaN if there is none, float64 [L].
        thresholds: exact counts, or None.
        verification: figures of the pairs, see `mmga.retrieval.metrics.verification.figures`.
        genuine: sample pairs.
        impostor: likewise.
        cameras: figures by camera pair, or None.
        map: the features in two dimensions.
        columns: values of further columns of the listed queries, as text, by name.
    """

    query: Features
    gallery: Features
    ranked: int
    rows: np.ndarray
    plain: Lists
    reranked: Lists | None
    first_item: np.ndarray
    first_distance: np.ndarray
    thresholds: Thresholds | None
    verification: dict[str, object]
    genuine: Samples
    impostor: Samples
    cameras: CameraPairs | None
    map: FeatureMap
    columns: dict[str, list[str]]


@float32_products()
def collect(evaluated: Evaluated, progress: Progress | None = None) -> Content | None:
    """Look up what a page shows; None for protocols that are means of several evaluations.

    Raises:
        UserError: as in `mmga.evaluate`.
    """
    rules, scores = evaluated.protocol, evaluated.report.per_query
    if rules.splits is not None or scores is None:
        return None
    options, query = evaluated.options(), evaluated.query
    if rules.pools:
        query = pooled(query, options.pool)
    gallery = query if evaluated.gallery is None else evaluated.gallery
    device = resolve_device(evaluated.settings.get("device") or gallery.rows.device, "device")
    options = dataclasses.replace(options, verification=True, strangers=0.0)
    asked, shared = SharedGallery.alone(query), SharedGallery.alone(gallery)
    problem = ranking_problem(asked, shared, options, device, Monitor(progress))
    selection = problem.selection
    source = problem.source()
    sampler = PairSampler(
        selection,
        pair_counter(problem, options),
        source.columns,
        options.metric == "euclidean" and query.visibility is None,
        options.seed,
    )
    rank(source, selection, problem.monitor, observer=sampler, phase="pairs")
    plain, again = ranked_lists(problem, evaluated.rule)
    first_item, first_distance = sampler.first_matches()
    counts = sampler.counts()
    order = _hardest_first(scores, selection.queries)
    rows = selection.queries[order]
    genuine, impostor = sampler.samples(plain, rows)
    with_cameras = query.camids is not None and gallery.camids is not None
    return Content(
        query,
        gallery,
        len(selection.queries),
        rows,
        plain.reordered(order),
        None if again is None else again.reordered(order),
        first_item[order],
        first_distance[order],
        thresholds(counts),
        figures(counts),
        genuine,
        impostor,
        by_camera(query, gallery, options, device, progress) if with_cameras else None,
        feature_map(problem, rows),
        _columns(query, rows),
    )


def _hardest_first(scores: PerQuery, queries: np.ndarray) -> np.ndarray:
    """Return the order of queries by average precision; those without a match stand last.

    Of more than `LISTED` these are the hardest half of it and an even sample of the others.
    """
    order = np.lexsort((queries, np.nan_to_num(scores.average_precision[queries], nan=2.0)))
    if len(order) > LISTED:
        half = LISTED // 2
        others = np.linspace(half, len(order) - 1, LISTED - half).astype(np.int64)
        order = np.concatenate([order[:half], order[others]])
    return order


def _columns(query: Features, rows: np.ndarray) -> dict[str, list[str]]:
    """Return the columns of queries that have few values, and the number of visible parts."""
    found = {}
    if query.visibility is not None:
        seen = (visible(query.visibility) > 0).sum(1).numpy()[rows]
        found["visible parts"] = [f"{count} of {query.visibility.shape[1]}" for count in seen]
    for name, column in query.columns.items():
        values = column[rows]
        distinct = np.unique(values)
        if 2 <= len(distinct) <= _VALUES:
            found[name] = [str(value) for value in values.tolist()]
        elif len(distinct) > _VALUES and _is_graded(name, values):
            found[name] = _quarters(values)
    return found


def _is_graded(name: str, values: np.ndarray) -> bool:
    named = any(word in name.lower() for word in _GRADED)
    return named and values.dtype.kind in "iuf" and bool(np.isfinite(values).all())


def _quarters(values: np.ndarray) -> list[str]:
    edges = np.quantile(values, [0, 0.25, 0.5, 0.75, 1])
    at = np.searchsorted(edges[1:-1], values, "right")
    return [f"{edges[one]:.3g} to {edges[one + 1]:.3g}" for one in at.tolist()]
