"""Write the report of an evaluation as one HTML file that loads nothing."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from mmga.common import ids
from mmga.common.errors import UserError
from mmga.common.files import read_json_object
from mmga.common.progress import Progress
from mmga.pages import charts, html
from mmga.pages.content import Content, Evaluated, collect
from mmga.pages.lists import LOOKED_AT, Lists
from mmga.pages.manifest import manifest
from mmga.pages.pairs import Samples, Thresholds
from mmga.pages.thumbnails import Thumbnails, thumbnails
from mmga.retrieval.features import Features
from mmga.retrieval.metrics.bootstrap import bootstrap
from mmga.retrieval.metrics.report import EXCLUDED, Figures, Report
from mmga.retrieval.protocols.marks import MARKS
from mmga.retrieval.protocols.protocol import Protocol

PACKAGES = ("jinja2", "bokeh", "PIL")
DRAWS = 1000
"""Draws of the intervals that a page shows where the evaluation made none."""


@dataclass(frozen=True, slots=True)
class Compared:
    """Another run's figures, which stand beside those of the report.

    Attributes:
        name: how the page calls it.
        figures: mAP, mINP (or None), rank1, rank5, rank10 and cmc, as fractions.
    """

    name: str
    figures: Mapping[str, Any]

    @classmethod
    def of_report(cls, name: str, report: Report) -> Compared:
        """Take the plain figures of a report."""
        return cls(name, report.figures.as_dict() | {"mINP": report.mINP})

    @classmethod
    def of_file(cls, path: str) -> list[Compared]:
        """Read a report that `mmga eval --json` wrote: its plain and its re-ranked figures.

        Raises:
            UserError: the file holds none.
        """
        try:
            found = read_json_object(path)
        except ValueError as error:
            raise UserError(
                f"--compare: {path} cannot be read as a report ({error}); name a file that "
                "mmga eval --json wrote"
            ) from error
        name = Path(path).stem
        own = [cls._of_values(name, path, found)]
        if found.get("reranked") is not None:
            own.append(cls._of_values(f"{name}, re-ranked", path, found["reranked"]))
        return own

    @classmethod
    def _of_values(cls, name: str, path: str, found: object) -> Compared:
        figures = found if isinstance(found, dict) else {}
        curve = figures.get("cmc")
        curve = curve if isinstance(curve, list) else []
        values = [figures.get("mAP"), *(curve or [None])]
        if not all(type(value) in (int, float) and 0 <= value <= 1 for value in values):
            raise UserError(
                f"--compare: {path} holds no mAP and cmc from 0 to 1; name a file that "
                "mmga eval --json wrote"
            )
        ranks = {f"rank{rank}": curve[rank - 1] for rank in (1, 5, 10) if rank <= len(curve)}
        return cls(name, {"mAP": figures["mAP"], "cmc": curve, **ranks})


@dataclass(frozen=True, slots=True)
class Page:
    """What a page shows beside the evaluation.

    Attributes:
        others: figures of other runs.
        images: folder that the paths of the features begin at; None: no pictures.
        inputs: what each path was given as, and the path.
        command: the command line.
    """

    others: Sequence[Compared] = ()
    images: Path | None = None
    inputs: Sequence[tuple[str, Path]] = ()
    command: str = ""


def check_target(path: str | os.PathLike[str]) -> None:
    """Refuse a page that could not be written, before anything is computed.

    Raises:
        UserError: it is no .html file, a folder, or in a place that cannot be written, or a
            package is missing.
    """
    target = Path(path)
    if target.suffix.lower() not in (".html", ".htm"):
        raise UserError(f"--report: expected a .html file, found {path}")
    if target.is_dir():
        raise UserError(f"--report: {path} is a folder; name a file in it")
    above = next((one for one in target.absolute().parents if one.exists()), None)
    if above is not None and not (above.is_dir() and os.access(above, os.W_OK)):
        raise UserError(
            f"--report: {path} cannot be written, {above} is no folder one may write to"
        )
    html.check_packages("--report", *PACKAGES)


def write_report(
    path: str | os.PathLike[str],
    evaluated: Evaluated,
    page: Page | None = None,
    progress: Progress | None = None,
) -> list[str]:
    """Write an evaluation as a page.

    Args:
        path: the .html file.
        evaluated: the evaluation.
        page: what else is shown.
        progress: called as (phase, done, total).

    Returns:
        What should be known of the page, one sentence each.

    Raises:
        UserError: the features, the pictures or other runs cannot be read, or the file cannot be
            written.
    """
    check_target(path)
    page = page or Page()
    if page.images is not None and not page.images.is_dir():
        raise UserError(f"--images: {page.images} is no folder; name the one that paths begin at")
    report = evaluated.report
    content = collect(evaluated, progress)
    data: dict[str, Any] = {"colours": list(charts.COLOURS.items())}
    curves = _curves(report, page.others)
    drawn = {"cmc": charts.cmc(curves)}
    notes: list[str] = []
    if content is not None:
        items = _items(content)
        pictures = None
        if page.images is not None:
            pictures = _pictures(page.images, content, items, progress)
            notes += pictures.notes
        data |= _lists_data(content, items, evaluated.report, pictures)
        # Figures of what filters leave are averaged as those of the whole are.
        data["unmatchedCount"] = evaluated.protocol.unmatched == "zero"
        data["ofFullGallery"] = evaluated.protocol.single_shot
        drawn |= _charts_of(content)
    elif page.images is not None:
        notes.append("--images: this protocol has no ranked lists of single queries to show")
    made = manifest(report, page.inputs, page.command, progress)
    values = {
        "report": report,
        "figures": _figure_rows(report, page.others),
        "difference": report.extra.get("compare", {}).get("difference"),
        "curves": [_curve_row(curve) for curve in curves],
        "content": content,
        "cameras": None if content is None else content.cameras,
        "pairs": None if content is None else _pair_rows(content),
        "excluded": _excluded(report),
        "rules": _rules(evaluated.protocol, report),
        "notes": [*report.notes, *notes],
        "manifest": made,
        "pictures": page.images is not None,
        "looked_at": LOOKED_AT,
        "data": data,
        "charts": drawn,
    }
    html.write_page(
        path, "report.html.j2", values, scripts=(html.asset("report.js"), charts.script())
    )
    return notes


def _curves(report: Report, others: Sequence[Compared]) -> list[charts.Curve]:
    found = [charts.Curve("plain" if report.reranked else "this run", report.cmc.tolist())]
    if report.reranked is not None:
        found.append(charts.Curve("re-ranked", report.reranked.cmc.tolist()))
    return found + [charts.Curve(other.name, other.figures["cmc"]) for other in others]


def _curve_row(curve: charts.Curve) -> dict[str, Any]:
    ranks = (1, 2, 3, 5, 10, 20, 50)
    shown = [curve.cmc[rank - 1] if rank <= len(curve.cmc) else None for rank in ranks]
    return {"name": curve.name, "ranks": ranks, "values": shown}


def _figure_rows(report: Report, others: Sequence[Compared]) -> list[dict[str, Any]]:
    """Return the rows of the figures table, with intervals where these can be drawn."""
    rows = []
    for name, figures in (("Plain", report.figures), ("Re-ranked", report.reranked)):
        if figures is None:
            continue
        intervals = _intervals(report, figures)
        values = figures.as_dict() | {"mINP": figures.mINP}
        rows.append({"name": name, "own": True, **values, "intervals": intervals})
    for other in others:
        values = {
            key: other.figures.get(key) for key in ("mAP", "mINP", "rank1", "rank5", "rank10")
        }
        rows.append({"name": other.name, "own": False, **values, "intervals": {}})
    return rows


def _intervals(report: Report, figures: Figures) -> dict[str, tuple[float, float]]:
    """Return 95% intervals by identity, none where there are no single queries or identities."""
    if figures is report.figures and "bootstrap" in report.extra:
        drawn = report.extra["bootstrap"].items()
        return {name: (one["low"], one["high"]) for name, one in drawn}
    if figures.per_query is None:
        return {}
    try:
        found = bootstrap(replace(report, figures=figures), DRAWS)
    except UserError:  # a single identity
        return {}
    return {name: (one.low, one.high) for name, one in found.items()}


def _items(content: Content) -> np.ndarray:
    """Return the gallery rows that the page names, the most important first: int64 [I]."""
    lists = [one for one in (content.plain, content.reranked) if one is not None]
    rank = [
        np.arange(len(one.item)) - np.repeat(one.start[:-1], np.diff(one.start)) for one in lists
    ]
    first = content.first_item[content.first_item >= 0]
    sampled = [content.genuine.item, content.impostor.item, first]
    rows = np.concatenate([*sampled, *(one.item for one in lists)])
    order = np.concatenate([*(np.zeros(len(one)) for one in sampled), *rank])
    rows = rows[np.argsort(order, kind="stable")]
    first = np.unique(rows, return_index=True)[1]
    return np.asarray(rows[np.sort(first)])


def _pictures(
    folder: Path, content: Content, items: np.ndarray, progress: Progress | None
) -> Thumbnails:
    """Return the pictures of the queries, and after them those of the items."""
    sides = (content.query, content.rows), (content.gallery, items)
    if all(side.paths is None for side, _ in sides):
        raise UserError(
            "--images: the features hold no paths; add them, for example by a CSV table with a "
            "column path (--query-columns)"
        )
    paths: list[str] = []
    for side, rows in sides:
        paths += [""] * len(rows) if side.paths is None else side.paths[rows].tolist()
    return thumbnails(folder, paths, progress)


def _lists_data(
    content: Content, items: np.ndarray, report: Report, pictures: Thumbnails | None
) -> dict[str, Any]:
    """Return what the script needs of queries, items, lists and pairs."""
    places = np.full(len(content.gallery), -1)
    places[items] = np.arange(len(items))
    own = np.full(len(content.query), -1)
    own[content.rows] = np.arange(len(content.rows))
    queries = _labels(content.query, content.rows)
    for name, figures in (("", report.figures), ("2", report.reranked)):
        scores = None if figures is None else figures.per_query
        if scores is None:
            continue
        precision = scores.average_precision[content.rows]
        queries[f"ap{name}"] = [
            None if np.isnan(one) else round(one, 4) for one in precision.tolist()
        ]
        queries[f"first{name}"] = scores.first_rank[content.rows].tolist()
        queries["matches"] = scores.num_matches[content.rows].tolist()
    queries["firstItem"] = [
        int(places[row]) if row >= 0 else -1 for row in content.first_item.tolist()
    ]
    queries["firstDistance"] = [
        float(f"{one:.6g}") if np.isfinite(one) else None for one in content.first_distance.tolist()
    ]
    queries["columns"] = [
        {"name": name, "values": values} for name, values in content.columns.items()
    ]
    data: dict[str, Any] = {
        "queries": queries,
        "items": _labels(content.gallery, items),
        "plain": _list_data(content.plain, places),
        "reranked": None if content.reranked is None else _list_data(content.reranked, places),
        "marks": MARKS,
        "pairs": {
            "genuine": _sample_data(content.genuine, own, places),
            "impostor": _sample_data(content.impostor, own, places),
        },
        "thresholds": None if content.thresholds is None else _threshold_data(content.thresholds),
        "pictures": None,
    }
    if pictures is not None:
        count = len(content.rows)
        data["pictures"] = {
            "width": pictures.width,
            "height": pictures.height,
            "header": pictures.header,
            "queries": pictures.bodies[:count],
            "items": pictures.bodies[count:],
        }
    return data


def _labels(side: Features, rows: np.ndarray) -> dict[str, Any]:
    return {
        "row": rows.tolist(),
        "pid": ids.words(side.pids[rows], side.pid_names),
        "camera": [] if side.camids is None else ids.words(side.camids[rows], side.camid_names),
        "path": [] if side.paths is None else side.paths[rows].tolist(),
    }


def _list_data(lists: Lists, places: np.ndarray) -> dict[str, str]:
    return {
        "start": html.packed(lists.start.astype(np.int32)),
        "item": html.packed(places[lists.item].astype(np.int32)),
        "distance": html.packed(lists.distance),
        "mark": html.packed(lists.mark),
        "elsewhere": html.packed(lists.elsewhere),
    }


def _sample_data(samples: Samples, own: np.ndarray, places: np.ndarray) -> dict[str, list[Any]]:
    return {
        "query": own[samples.query].tolist(),
        "item": places[samples.item].tolist(),
        "distance": [float(f"{one:.6g}") for one in samples.distance.tolist()],
    }


def _threshold_data(found: Thresholds) -> dict[str, Any]:
    return {
        "threshold": [float(f"{one:.6g}") for one in found.threshold.tolist()],
        "falseAccepts": found.false_accepts.tolist(),
        "trueAccepts": found.true_accepts.tolist(),
        "impostors": found.impostors,
        "genuines": found.genuines,
        "balanced": found.balanced,
    }


def _charts_of(content: Content) -> dict[str, Any]:
    drawn: dict[str, Any] = {}
    if content.thresholds is not None:
        drawn["roc"] = charts.roc(content.thresholds, "ROC")
        drawn["det"] = charts.roc(content.thresholds, "DET")
        drawn["histogram"] = charts.histogram(content.thresholds)
    found = content.map
    names = [f"id {one}" for one in found.identities]
    drawn["map-identity"] = charts.scatter(found, found.identity, names)
    if found.cameras:
        names = [f"camera {one}" for one in found.cameras]
        drawn["map-camera"] = charts.scatter(found, found.camera, names)
    return drawn


def _pair_rows(content: Content) -> dict[str, Any] | None:
    if content.thresholds is None:
        return None
    return {"count": len(content.thresholds.threshold), **content.verification}


def _excluded(report: Report) -> list[tuple[int, str]]:
    """Return what was left out or is odd, each with its count."""
    found = [(count, EXCLUDED.get(name, name)) for name, count in report.excluded.items()]
    found += [
        (
            report.distractors,
            "gallery items whose identity no query has (distractors, which count)",
        ),
        (report.ties, "queries with a match at exactly the distance of another item (they count)"),
        (report.duplicates or 0, "gallery items whose features equal a query's (they count)"),
        (report.zero_vectors, "rows that are zero, at cosine distance 1 from all (they count)"),
    ]
    return [(count, what) for count, what in found if count]


def _rules(protocol: Protocol, report: Report) -> list[str]:
    """Return the rules of a protocol in words, and why they are so."""
    camera = {
        "same-identity": "Images of the query's identity from the query's own camera are left out: "
        "they are often the next frames of one track, and finding them is no re-identification.",
        "all": "All images of the query's own camera are left out.",
        "none": "Images of all cameras count, the query's own among them.",
    }
    rules = [camera[protocol.camera]]
    if protocol.own_image != "none":
        rules.append("The query's own image is left out.")
    skipped = "are left out of the averages" if protocol.unmatched == "skip" else "count zero"
    rules.append(f"Queries without a match {skipped}.")
    rules.append("Items with pid -1 (junk) and of unknown identity are never ranked.")
    if "exclude" in report.extra:
        rules.append(f"Pairs are left out where {report.extra['exclude']}.")
    return rules
