"""The report of an evaluation: metrics, exclusions, seconds, memory; JSON, CSV and text."""

from __future__ import annotations

import csv
import json
import os
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from mmga.common import ids, notebooks
from mmga.common.errors import UserError
from mmga.common.files import atomic_path, atomic_table
from mmga.common.version import __version__
from mmga.retrieval.metrics.rank import PerQuery

if TYPE_CHECKING:
    from pandas import DataFrame

    from mmga.retrieval.metrics.verification import Counts

EXCLUDED = {
    "junk": "gallery items with pid -1 (junk)",
    "junk_queries": "queries with pid -1 (junk)",
    "unknown": "gallery items of unknown pid or camid",
    "unknown_queries": "queries of unknown pid or camid",
    "same_camera": "pairs removed for their camera",
    "own_image": "pairs of an image with itself",
    "expression": "further pairs removed by --exclude",
    "queries_without_match": "queries without a match",
}


@dataclass(slots=True)
class Figures:
    """The figures of one ranking, as fractions.

    Attributes:
        mAP: mean average precision over the valid queries.
        mINP: mean inverse negative penalty: matches / rank of the last match.
        cmc: share of queries whose first match is at rank r or better, at place r - 1.
        per_query: what every query scored.
    """

    mAP: float
    mINP: float
    cmc: np.ndarray
    per_query: PerQuery | None

    @classmethod
    def of(cls, scores: PerQuery, counted: np.ndarray, max_rank: int) -> Figures:
        """Average what the queries scored.

        Args:
            scores: figures of all queries.
            counted: queries that enter the averages, int64 indices; those without a match count
                zero.
            max_rank: length of the CMC curve.
        """
        precision = np.nan_to_num(scores.average_precision[counted])
        penalty = np.nan_to_num(scores.inverse_negative_penalty[counted])
        first = scores.first_rank[counted]
        found = np.bincount(first[(first > 0) & (first <= max_rank)], minlength=max_rank + 1)
        cmc = np.cumsum(found[1:]) / len(counted)
        return cls(float(precision.mean()), float(penalty.mean()), cmc, scores)

    def rank(self, r: int) -> float | None:
        """Return CMC at rank r, None past the end of the curve."""
        return float(self.cmc[r - 1]) if r <= len(self.cmc) else None

    def as_dict(self) -> dict[str, Any]:
        """Return the figures as plain values."""
        return {
            "mAP": self.mAP,
            "mINP": self.mINP,
            "rank1": self.rank(1),
            "rank5": self.rank(5),
            "rank10": self.rank(10),
            "cmc": self.cmc.tolist(),
        }


@dataclass(slots=True)
class Report:
    """The result of an evaluation; figures are fractions.

    Attributes:
        figures: of the plain ranking.
        reranked: of the re-ranked one, or None.
        protocol: name of the protocol.
        ap: average precision by hits or trapezoid, see `mmga.evaluate`.
        metric: cosine or euclidean; None where distances were given.
        rerank: parameters of the re-ranking, or None.
        num_query: rows of the query set.
        num_valid_query: queries that have a match.
        num_gallery: rows of the gallery set, before anything is left out.
        num_identities: identities of the queries that enter the averages.
        num_cameras: cameras of both sides, or None.
        excluded: counts of what was left out, and why.
        distractors: gallery items whose identity no query has.
        ties: queries with a match at exactly the distance of another item.
        duplicates: gallery items whose features equal a query's, None where not known.
        zero_vectors: rows of both sides that are zero.
        seconds: by phase.
        peak_memory_bytes: peak beyond torch itself, clean pages of mapped files not counted.
        process_peak_bytes: the process' peak, everything counted.
        backend: what computed the ranks.
        exact: whose order they are: certified, float32, or given, see `mmga.evaluate`.
        precision: of the products that gave the distances, ieee float32; None where these were
            given.
        pids: pid of each query, as it was given.
        camids: likewise, or None.
        paths: likewise, of its image, or None; pooled queries have none.
        counted: rows of the queries that enter the averages, or None.
        pair_counts: pairs by distance, from which ROC curves are drawn; None without verification.
        extra: figures of single protocols and options, by name.
        notes: what else should be known, one sentence each.
    """

    figures: Figures
    protocol: str
    num_query: int
    num_valid_query: int
    num_gallery: int
    excluded: dict[str, int]
    distractors: int
    ties: int
    backend: str
    ap: str = "hits"
    metric: str | None = None
    num_identities: int | None = None
    num_cameras: int | None = None
    seconds: dict[str, float] = field(default_factory=dict)
    peak_memory_bytes: int = 0
    process_peak_bytes: int = 0
    exact: str = "given"
    precision: str | None = None
    reranked: Figures | None = None
    rerank: dict[str, Any] | None = None
    duplicates: int | None = None
    zero_vectors: int = 0
    pids: np.ndarray | None = None
    camids: np.ndarray | None = None
    paths: np.ndarray | None = None
    counted: np.ndarray | None = None
    pair_counts: Counts | None = None
    extra: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    @property
    def mAP(self) -> float:
        """Mean average precision."""
        return self.figures.mAP

    @property
    def mINP(self) -> float:
        """Mean inverse negative penalty."""
        return self.figures.mINP

    @property
    def cmc(self) -> np.ndarray:
        """CMC at ranks 1, 2, ..."""
        return self.figures.cmc

    @property
    def rank1(self) -> float | None:
        """CMC at rank 1."""
        return self.figures.rank(1)

    @property
    def rank5(self) -> float | None:
        """CMC at rank 5."""
        return self.figures.rank(5)

    @property
    def rank10(self) -> float | None:
        """CMC at rank 10."""
        return self.figures.rank(10)

    @property
    def per_query(self) -> PerQuery | None:
        """Scores of every query."""
        return self.figures.per_query

    def as_dict(self) -> dict[str, Any]:
        """Return everything but the per-query figures as plain values."""
        return {
            "schema": 1,
            "version": __version__,
            "protocol": self.protocol,
            "metric": self.metric,
            "exact": self.exact,
            "precision": self.precision,
            **self.figures.as_dict(),
            "rerank": self.rerank,
            "reranked": None if self.reranked is None else self.reranked.as_dict(),
            "num_query": self.num_query,
            "num_valid_query": self.num_valid_query,
            "num_gallery": self.num_gallery,
            "excluded": self.excluded,
            "distractors": self.distractors,
            "ties": self.ties,
            "duplicates": self.duplicates,
            "zero_vectors": self.zero_vectors,
            **self.extra,
            "backend": self.backend,
            "seconds": {name: round(value, 6) for name, value in self.seconds.items()},
            "peak_memory_bytes": self.peak_memory_bytes,
            "process_peak_bytes": self.process_peak_bytes,
            "notes": self.notes,
        }

    def to_json(self, path: str | os.PathLike[str] | None = None) -> str:
        """Return the report as JSON, and write it to `path` if given.

        Raises:
            UserError: the file cannot be written.
        """
        values = self.as_dict()
        if path is not None:
            write_json(path, values)
        return _json_text(values)

    def to_csv(self, path: str | os.PathLike[str]) -> None:
        """Write one line for each query; what was not computed stays empty.

        Raises:
            UserError: the file cannot be written, or this protocol has no per-query figures.
        """
        columns = self._queries()
        with atomic_table(path) as file:
            writer = csv.writer(file)
            writer.writerow(columns)
            writer.writerows(zip(*columns.values(), strict=True))

    def to_pandas(self, table: Literal["queries", "figures", "cmc"] = "queries") -> DataFrame:
        """Return a table of the report; what was not computed is missing.

        Args:
            table: ``"queries"``, a row for each query with the columns of `to_csv`;
                ``"figures"``, a row for each ranking (plain, re-ranked) with mAP, mINP and rank1,
                rank5, rank10; or ``"cmc"``, in long form: ranking, rank, cmc.

        Raises:
            UserError: pandas is not installed, there is no such table, or this protocol has no
                per-query figures.
        """
        if table not in ("queries", "figures", "cmc"):
            raise UserError(f"table: expected queries, figures or cmc, found {table!r}")
        try:
            import pandas
        except ImportError:
            raise UserError(
                "to_pandas needs pandas, which is not installed; pip install 'mmga[pandas]'"
            ) from None
        if table == "queries":
            frame = pandas.DataFrame(
                # pandas' strings take no names of files that are no text.
                {
                    name: pandas.Series(
                        cells, dtype=object if any(isinstance(c, str) for c in cells) else None
                    )
                    for name, cells in self._queries().items()
                }
            )
            whole = [name for name in frame if name.endswith("first_rank")]
            for name in ("pid", "camid"):  # whole numbers and None are no floats
                if all(value is None or isinstance(value, int) for value in frame[name]):
                    whole.append(name)
            floats = [name for name in frame if name.endswith(("AP", "INP"))]
            return frame.astype(dict.fromkeys(whole, "Int64") | dict.fromkeys(floats, "float64"))
        rankings = {"plain": self.figures, "re-ranked": self.reranked}
        found = {name: figures for name, figures in rankings.items() if figures is not None}
        if table == "figures":
            lines = {name: figures.as_dict() for name, figures in found.items()}
            frame = pandas.DataFrame.from_dict(lines, orient="index").drop(columns="cmc")
            return frame.astype("float64").rename_axis("ranking")
        parts = [
            pandas.DataFrame(
                {"ranking": name, "rank": range(1, len(figures.cmc) + 1), "cmc": figures.cmc}
            )
            for name, figures in found.items()
        ]
        return pandas.concat(parts, ignore_index=True)

    def _queries(self) -> dict[str, list[object]]:
        """Return the columns of the per-query table.

        Raises:
            UserError: this protocol has no per-query figures.
        """
        if self.per_query is None:
            raise UserError(f"per_query: protocol {self.protocol} has no figures of single queries")
        count = len(self.per_query.num_matches)
        columns: dict[str, list[object]] = {"query": list(range(count))}
        for name, labels in (("pid", self.pids), ("camid", self.camids)):
            columns[name] = [None] * count if labels is None else [ids.plain(one) for one in labels]
        columns["matches"] = self.per_query.num_matches.tolist()
        columns |= _columns(self.per_query)
        columns["ties"] = self.per_query.tied.tolist()
        redone = None if self.reranked is None else self.reranked.per_query
        if redone is not None:
            columns |= {f"reranked_{name}": cells for name, cells in _columns(redone).items()}
        if self.paths is not None:
            columns["path"] = self.paths.tolist()
        return columns

    def table(self, verbose: bool = False) -> str:
        """Return the figures and what they are of as text for a terminal.

        Args:
            verbose: add what computed the ranks, and how many pairs each level decided.
        """
        head, *body = self._figures_table()
        lines = [f"{head[0]:<12}" + "".join(f"{cell:>8}" for cell in head[1:])]
        lines += [f"{row[0]:<12}" + "".join(f"{cell:>8}" for cell in row[1:]) for row in body]
        lines += ["", *self._remarks()]
        spent = ", ".join(f"{name} {value:.2f} s" for name, value in self.seconds.items())
        lines.append(f"{spent}; peak memory {self.peak_memory_bytes / 2**20:.0f} MiB")
        if verbose:
            if "certified" in self.extra:
                lines.append(f"certified: {_stages_text(self.extra['certified'])}")
            by = self.backend + (f", {self.precision} products" if self.precision else "")
            lines.append(f"order {self.exact}; {by}")
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        """Return the figures and what they are of as HTML for a notebook."""
        head, *body = self._figures_table()
        return notebooks.block("mmga.Report", notebooks.rows(head, body), self._remarks())

    def _figures_table(self) -> list[list[str]]:
        """Return the figures as cells, a row for each ranking below the names."""
        rows = [["", "mAP", "mINP", "rank-1", "rank-5", "rank-10"]]
        for name, figures in (("plain", self.figures), ("re-ranked", self.reranked)):
            if figures is None:
                continue
            values = [figures.mAP, figures.mINP, *(figures.rank(r) for r in (1, 5, 10))]
            rows.append([name, *("-" if v is None else f"{v:.2%}" for v in values)])
        return rows

    def _remarks(self) -> list[str]:
        """Return what the figures are of, one line each."""
        lines = [self._rules(), *self._sets()]
        for name, count in self.excluded.items():
            if count:
                lines.append(f"left out: {count} {EXCLUDED.get(name, name)}")
        if self.ties:
            lines.append(f"ties: {self.ties} queries have a match as far away as another item")
        if self.duplicates:
            lines.append(f"duplicates: {self.duplicates} gallery items equal a query")
        if self.zero_vectors:
            what = "zero vectors" if "parts" not in self.extra else "zero vectors of visible parts"
            lines.append(f"{what}: {self.zero_vectors}, at cosine distance 1 from all")
        lines += _extra_lines(self.extra)
        lines += [f"note: {note}" for note in self.notes]
        return lines

    def _rules(self) -> str:
        """Return how the figures were made, in words."""
        how = ["given distances" if self.metric is None else f"{self.metric} distance"]
        if self.ap != "hits":
            how.append(f"{self.ap} AP")
        if self.rerank is not None:
            how.append("re-ranked by " + ", ".join(f"{k} {v}" for k, v in self.rerank.items()))
        return f"protocol {self.protocol}: {', '.join(how)}"

    def _sets(self) -> list[str]:
        """Return what was searched where, in words."""
        ranked = f"{self.num_valid_query} of {self.num_query} queries"
        if "splits" in self.extra:
            ranked = f"{self.num_valid_query} rankings of {self.num_query} images by parts"
        if self.num_identities is not None:
            ranked += f", {self.num_identities} identities"
        cameras = "" if self.num_cameras is None else f"; {self.num_cameras} cameras in all"
        return [
            f"queries: {ranked}",
            f"gallery: {self.num_gallery} items, {self.distractors} of them distractors{cameras}",
        ]


def write_json(path: str | os.PathLike[str], values: dict[str, Any]) -> None:
    """Write plain values as JSON.

    Raises:
        UserError: the file cannot be written.
    """
    with atomic_path(path) as temporary:
        temporary.write_text(_json_text(values) + "\n")


def _json_text(values: dict[str, Any]) -> str:
    return json.dumps(values, indent=1, allow_nan=False)


def _extra_lines(extra: dict[str, Any]) -> list[str]:
    """Return the figures of single options as lines of the table."""
    lines = []
    if "exclude" in extra:
        lines.append(f"--exclude: {extra['exclude']}")
    if "parts" in extra:
        apart = extra["parts"]["pairs_without_common_part"]
        lines.append(
            f"parts: {extra['parts']['parts']}; {apart} pairs see none in common and stand last"
        )
    for name, one in extra.get("bootstrap", {}).items():
        lines.append(
            f"{name}: {one['value']:.2%}, 95% interval by identity {one['low']:.2%} to "
            f"{one['high']:.2%}"
        )
    if "compare" in extra:
        found = extra["compare"]["difference"]
        for name in (name for name in ("mAP", "rank1") if name in found):
            one = found[name]
            lines.append(
                f"{name} of {extra['compare']['with']}: {100 * one['value']:+.2f} points against "
                f"this, 95% interval {100 * one['low']:+.2f} to {100 * one['high']:+.2f}, "
                f"p {one['p']:.3g}"
            )
    if "verification" in extra:
        found = extra["verification"]
        for row in found["tpr_at_fpr"]:
            lines.append(f"TPR at FPR {row['fpr']:g}: {_reached(row, 'tpr')}")
        if found["eer"] is not None:
            lines.append(f"EER: {found['eer']:.2%} (bins of {found['bin_width']:.2g})")
        if found["removed_identities"]:
            lines.append(
                f"open set: {found['removed_identities']} identities were taken from the gallery, "
                f"{found['stranger_queries']} queries have no mate"
            )
        for row in found["dir_at_far"]:
            lines.append(f"DIR at FAR {row['far']:g}: {_reached(row, 'dir')}")
    return lines


def _stages_text(stages: dict[str, Any]) -> str:
    """Return how many pairs each stage decided, in words."""
    *approximate, exact = stages["levels"]
    total = max(1, approximate[0]["pairs"])
    texts = []
    for level in approximate:
        width = level["dimensions"]
        what = "features" if width is None else f"{width} coordinates"
        decided = (level["pairs"] - level["undecided"]) / total
        texts.append(f"{decided:.2%} of {total} pairs by {what} in {level['precision']}")
    return ", ".join(texts) + f", the other {exact['pairs']} by exact products"


def _reached(row: dict[str, Any], rate: str) -> str:
    return row["note"] or f"{row[rate]:.2%}, accept distances up to {row['threshold']:.5g}"


def _columns(scores: PerQuery) -> dict[str, list[object]]:
    """Return the scores of queries by name, None where a query was not ranked."""
    columns = {
        "AP": scores.average_precision,
        "INP": scores.inverse_negative_penalty,
        "first_rank": scores.first_rank,
    }
    ranked = (scores.first_rank > 0).tolist()
    return {
        name: [cell if known else None for cell, known in zip(cells.tolist(), ranked, strict=True)]
        for name, cells in columns.items()
    }
