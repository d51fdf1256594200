"""Exact CMC, mAP and mINP in the memory of the features: the public functions."""

from __future__ import annotations

import contextlib
import importlib.metadata
import importlib.util
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mmga.common import memory as memory_sizes
from mmga.common.errors import UserError
from mmga.common.memory import Peak
from mmga.ops import _extension, distance
from mmga.ops._library import has_kernel
from mmga.ops.precision import PRECISIONS, float32_products
from mmga.retrieval.bounds.approximation import EXACT, beyond_bounds
from mmga.retrieval.bounds.stages import Cascade
from mmga.retrieval.features import JUNK, Features
from mmga.retrieval.features.duplicates import duplicated_items
from mmga.retrieval.features.pooling import pooled
from mmga.retrieval.metrics.autotune import plan
from mmga.retrieval.metrics.rank import PairObserver, PerQuery, rank
from mmga.retrieval.metrics.rank_certified import CertifiedPass
from mmga.retrieval.metrics.report import Figures, Report
from mmga.retrieval.metrics.single_shot import single_shot
from mmga.retrieval.metrics.verification import TARGETS, PairCounter, figures
from mmga.retrieval.protocols.protocol import Labels, Selection, protocol_named, select
from mmga.retrieval.protocols.protocol import Protocol as Rules
from mmga.retrieval.reranking.distances import reranked_source
from mmga.retrieval.reranking.settings import KReciprocal
from mmga.retrieval.tiles import placement
from mmga.retrieval.tiles.parts import pairs_without_common_part
from mmga.retrieval.tiles.problem import (
    Context,
    Reranker,
    checked_norms,
    labels_of,
    refuse_precision,
    zero_vectors,
)
from mmga.retrieval.tiles.sources import (
    MatrixSource,
    Progress,
    Source,
    tile_within,
)
from mmga.retrieval.viper import SPLITS, half_of, summary

POOLS = ("mean", "max")


@float32_products()
def evaluate(
    query: Features,
    gallery: Features | None = None,
    *,
    metric: str = "cosine",
    protocol: str | Rules = "market1501",
    rerank: KReciprocal | Reranker | None = None,
    exact: str | None = None,
    max_rank: int = 50,
    trials: int = 0,
    seed: int = 0,
    pool: str = "mean",
    precision: str | None = None,
    device: str | torch.device | None = None,
    memory: str | int | None = None,
    verification: bool = False,
    cross_camera: bool = False,
    fpr: float | None = None,
    strangers: float | None = None,
    exclude: str | None = None,
    progress: Progress | None = None,
) -> Report:
    """Rank a gallery for every query and report CMC, mAP and mINP.

    No matrix of all distances is ever held: tiles of inner products are computed once, and how many
    items precede each match is counted in them. The order is (distance, gallery index).

    Args:
        query: features of the queries.
        gallery: features of the gallery; None for protocols that rank one set against itself.
        metric: ``"cosine"`` or ``"euclidean"``.
        protocol: a name of `mmga.retrieval.protocols.protocol.PROTOCOLS`, or rules of one's own.
        rerank: a re-ranking such as `mmga.KReciprocal`; its figures stand beside the plain ones.
        exact: ``"certified"``: the order of float64 arithmetic, the same on every machine;
            ``"float32"``: that of float32 tiles, the same for any tiles and threads on one machine.
            None: certified, but float32 for part features, verification, single-shot galleries,
            devices other than the CPU and norms outside 2^-20 to 2^20. The report says which. CUDA
            devices certify where asked to, unless the features exceed them.
        max_rank: length of the CMC curve.
        trials: seeded draws under ``cuhk03-single-shot``; 0 gives the exact expectation.
        seed: seed of whatever is drawn.
        pool: ``"mean"`` or ``"max"``, how ``multi-query`` pools.
        precision: of the products that give the plain ranks: ``"ieee"`` float32 (None is the same),
            or on CUDA devices, by Triton, ``"tf32x3"``, ``"tf32"`` or ``"bf16"``, which round the
            features first. Re-ranking's products are float32.
        device: where to compute; where the gallery lies if None.
        memory: bound on what is allocated beyond the features, such as ``"2G"``.
        verification: add ROC, EER, thresholds and open-set rates, counted in the same pass.
        cross_camera: verification leaves out impostor pairs of one camera.
        fpr: one more false positive rate whose threshold is wanted.
        strangers: share of the identities that open-set rates take from the gallery, by `seed`;
            None: half where every query has a match, else none.
        exclude: leave out the pairs for which a condition on columns of the gallery item and of the
            query holds, such as ``"camid == query.camid and abs(time - query.time) < 30"``.
        progress: called as (phase, done, total).

    Returns:
        The report.

    Raises:
        UserError: the features or options do not fit, or no query has a match.
    """
    _check_kinds(query, gallery, rerank)
    _check_choice("metric", metric, distance.METRICS)
    if exact is not None:
        _check_choice("exact", exact, EXACT)
    _check_choice("pool", pool, POOLS)
    precision = precision or "ieee"
    _check_choice("precision", precision, PRECISIONS)
    _check_max_rank(max_rank)
    rules = protocol_named(protocol)
    gallery = _gallery_of(rules, query, gallery)
    of_parts = query.visibility is not None
    if of_parts != (gallery.visibility is not None):
        raise UserError(
            f"query has {'parts' if of_parts else 'features'}, gallery the other; both must come "
            "from one network"
        )
    if of_parts and rerank is not None:
        raise UserError("rerank: part features have no neighbour graph; evaluate them plainly")
    where = placement.named(device, gallery.rows.device)
    if of_parts and where.type != "cpu":
        raise UserError("device: part features are ranked on the CPU; move them there")
    if precision != "ieee":
        _check_precision(precision, exact, where, rules, verification)
    if rerank is not None and exact == "certified" and where.type != "cpu":
        raise UserError("exact: certified neighbours are found on the CPU; use exact='float32'")
    if rerank is not None and (rules.splits or rules.single_shot):
        raise UserError(f"rerank: protocol {rules.name} reports plain figures only")
    if trials < 0 or (trials and not rules.single_shot):
        raise UserError("trials: expected a number of draws under protocol cuhk03-single-shot")
    if verification and rules.splits:
        raise UserError(f"verification: protocol {rules.name} has no single gallery")
    if not verification and (cross_camera or fpr is not None or strangers is not None):
        raise UserError("cross_camera, fpr and strangers belong to verification, which is off")
    if fpr is not None and not 0 < fpr < 1:
        raise UserError(f"fpr: expected a rate between 0 and 1, found {fpr}")
    if rules.splits:
        shared = {"metric": metric, "device": device, "memory": memory, "exclude": exclude}
        shared |= {"exact": exact, "precision": precision}
        return _evaluate_splits(query, gallery, max_rank, progress, shared)
    if rules.pools:
        query = pooled(query, pool)
    peak = Peak()
    seconds: dict[str, float] = {}
    begun = time.perf_counter()
    if query.rows.shape[1:] != gallery.rows.shape[1:]:
        raise UserError(
            f"query has rows of {query.rows.shape[1:]} values, gallery of "
            f"{gallery.rows.shape[1:]}; both must come from one network"
        )
    with _timed(seconds, "load"):
        placed = placement.place(query.rows, gallery.rows, where, memory_sizes.parse(memory))
    itself = gallery is query
    query = query.with_rows(placed.query)
    gallery = query if itself else gallery.with_rows(placed.gallery)
    labels = Labels.of(query, gallery, exclude)
    with _timed(seconds, "load"):
        selection = select(rules, labels, every_query=verification, progress=progress)
    with _timed(seconds, "load"):
        query_norms = checked_norms("query", query.rows)
        gallery_norms = query_norms if gallery is query else checked_norms("gallery", gallery.rows)
    context = Context(
        query,
        gallery,
        selection,
        labels,
        query_norms,
        gallery_norms,
        metric,
        where,
        placed.memory,
        placed.room,
        progress,
        seconds,
        peak,
        exact,
    )
    counter = _pair_counter(context, cross_camera, strangers, seed) if verification else None
    obstacle = _obstacle(context, rules, verification)
    if exact == "certified" and obstacle is not None:
        raise UserError(f"exact: certified ranks are not made {obstacle}; use exact='float32'")
    with _timed(seconds, "rank"):
        cascade = None
        if precision != "ieee":
            from mmga.retrieval.metrics.rank_fused import rank_fused  # needs Triton

            scores = rank_fused(context, precision)
        elif exact == "float32" or obstacle is not None:
            scores = rank_under(context.plain(), selection, progress, peak, observer=counter)
        else:
            scores, cascade = _certify(context, seed)
    backend = _backend(where, precision)
    report = _report(
        rules, query, gallery, selection, scores, max_rank, metric, seconds, peak, backend
    )
    report.precision = precision
    if placed.note is not None:
        report.notes.append(placed.note)
    report.exact = "float32" if precision == "ieee" else precision
    if cascade is not None:
        report.exact = "certified"
        report.extra["certified"] = cascade.as_dict()
    sides = [(query, query_norms)] + ([] if gallery is query else [(gallery, gallery_norms)])
    report.zero_vectors = sum(zero_vectors(*side) for side in sides)
    if gallery is not query:
        with _timed(seconds, "load"):
            of_rows = [norms if norms.dim() == 1 else norms.sum(1) for _, norms in sides]
            same = duplicated_items(query.rows, of_rows[0], gallery.rows, of_rows[1])
        report.duplicates = len(same)
    if query.visibility is not None and gallery.visibility is not None:
        rows = np.flatnonzero(labels.query_pids != JUNK)
        report.extra["parts"] = {
            "parts": query.visibility.shape[1],
            "pairs_without_common_part": pairs_without_common_part(
                query.visibility[rows], gallery.visibility[selection.gallery]
            ),
        }
    if counter is not None:
        wanted = TARGETS if fpr is None else tuple(sorted({*TARGETS, fpr}))
        report.extra["verification"] = figures(counter.counts(), wanted)
    if rules.single_shot:
        with _timed(seconds, "rank"):
            _draw(report, context.plain(), selection, max_rank, trials, seed, progress)
    if rerank is not None:
        if isinstance(rerank, KReciprocal):  # either adds its own seconds
            source: Source = reranked_source(rerank, context)
        else:
            source = rerank.source(context)
        with _timed(seconds, "rank"):
            again = rank_under(source, selection, progress, peak, "re-ranked ranks")
        report.reranked = Figures.of(again, _counted(rules, labels, selection), max_rank)
        report.rerank = rerank.as_dict()
    return _finish(report, begun, peak)


def _check_kinds(query: Any, gallery: Any, rerank: Any) -> None:
    """Raise a `UserError` where an argument of `mmga.evaluate` is of another kind than it takes."""
    for name, side in (("query", query), ("gallery", gallery)):
        if side is not None and not isinstance(side, Features):
            raise UserError(
                f"{name}: expected mmga.Features, found {type(side).__name__}; wrap it as "
                "mmga.Features(features, pids, camids)"
            )
    if rerank is not None and not (isinstance(rerank, KReciprocal) or hasattr(rerank, "source")):
        raise UserError(
            f"rerank: expected mmga.KReciprocal(...) or None, found {rerank!r}; "
            "mmga.KReciprocal() has the published settings"
        )


def _obstacle(context: Context, rules: Rules, verification: bool) -> str | None:
    """Return what keeps ranks from being certified, or None."""
    if context.query.visibility is not None:
        return "of part features"
    if verification:
        return "together with verification, which counts float32 distances"
    if rules.single_shot:
        return "of galleries that are drawn"
    if context.device.type != "cpu" and context.exact is None:
        return f"on {context.device.type} devices unless asked for"
    if context.gallery.rows.device != context.device:
        return "of features that exceed the device"
    sides = {"query": context.query_norms, "gallery": context.gallery_norms}
    return next((why for side in sides if (why := beyond_bounds(side, sides[side]))), None)


def _check_precision(
    precision: str, exact: str | None, where: torch.device, rules: Rules, verification: bool
) -> None:
    """Raise unless ranks can be asked for in a precision other than float32."""
    if where.type != "cuda":
        refuse_precision(precision, f"works on CUDA devices, not on {where.type}")
    if importlib.util.find_spec("triton") is None:
        refuse_precision(precision, "needs Triton, which is not installed")
    if exact is not None:
        refuse_precision(precision, f"gives an order of its own, not exact={exact!r}")
    if verification or rules.single_shot:
        refuse_precision(precision, "counts ranks alone, not verification or drawn galleries")


def _certify(context: Context, seed: int) -> tuple[PerQuery, Cascade]:
    """Rank by exact keys, through the levels that a pilot finds cheapest."""
    query, gallery, selection = context.query.rows, context.gallery.rows, context.selection
    norms, tile = (context.query_norms, context.gallery_norms), None
    if context.room is None:
        cascade = plan(query, norms[0], gallery, norms[1], selection, context.metric, seed)
    else:  # a device's products are worth no detour
        cascade, tile = Cascade(), tile_within(context.room, gallery.shape[1])
    ranking = CertifiedPass(
        query,
        norms[0],
        gallery,
        norms[1],
        selection,
        context.metric,
        cascade,
        context.memory,
        tile,
        context.device,
    )
    return ranking.rank(context.progress, context.peak), cascade


def _pair_counter(
    context: Context, cross_camera: bool, strangers: float | None, seed: int
) -> PairCounter:
    """Return what counts pairs by distance while they are ranked."""
    # Cosine distances end at 2, Euclidean ones at the sum of the longest vectors.
    largest = 2.0
    if context.metric == "euclidean":
        longest = context.query_norms.max().sqrt() + context.gallery_norms.max().sqrt()
        largest = float(longest) or 1.0
    squared = context.metric == "euclidean" and context.query.visibility is None
    return PairCounter(context.selection, largest, squared, cross_camera, strangers, seed)


def _draw(
    report: Report,
    source: Source,
    selection: Selection,
    max_rank: int,
    trials: int,
    seed: int,
    progress: Progress | None,
) -> None:
    """Replace a report's CMC by that of one drawn gallery image for each identity."""
    drawn = single_shot(source, selection, max_rank, trials, seed, progress)
    report.figures.cmc = drawn.cmc
    deviation = drawn.cmc_deviation
    report.extra["single_shot"] = {
        "drawn_mAP": drawn.mAP,
        "trials": drawn.trials,
        "cmc_deviation": None if deviation is None else deviation.tolist(),
    }
    how = f"{trials} seeded draws" if trials else "exact expectation"
    report.notes.append(
        f"CMC is of one drawn gallery image for each identity ({how}), where mAP is "
        f"{drawn.mAP:.2%}; mAP and mINP above are of the full gallery"
    )


def _evaluate_splits(
    query: Features,
    gallery: Features,
    max_rank: int,
    progress: Progress | None,
    shared: dict[str, Any],
) -> Report:
    """Average the halves of VIPeR's persons in both directions."""
    labels = Labels.of(query, gallery)
    persons = np.intersect1d(labels.query_pids, labels.gallery_pids)
    persons = persons[persons != JUNK]
    if len(persons) < 2:
        raise UserError(
            f"protocol viper needs persons on both sides, found {len(persons)}; give camera a as "
            "query and camera b as gallery"
        )
    reports = []
    for split in range(SPLITS):
        tested = half_of(persons, split)
        sides = [
            one.select(np.flatnonzero(np.isin(pids, tested)))
            for one, pids in ((query, labels.query_pids), (gallery, labels.gallery_pids))
        ]
        for one, other in (sides, sides[::-1]):
            reports.append(evaluate(one, other, max_rank=max_rank, **shared))
        if progress is not None:
            progress("splits", split + 1, SPLITS)
    figures = {
        "mAP": [one.mAP for one in reports],
        **{
            f"rank{r}": [float(one.cmc[r - 1]) for one in reports]
            for r in (1, 5, 10, 20)
            if r <= max_rank
        },
    }
    whole = reports[0]
    whole.figures = Figures(
        float(np.mean([one.mAP for one in reports])),
        float(np.mean([one.mINP for one in reports])),
        np.mean([one.cmc for one in reports], axis=0),
        None,
    )
    whole.protocol = "viper"
    whole.num_query, whole.num_gallery = len(query), len(gallery)
    whole.num_valid_query = sum(one.num_valid_query for one in reports)
    whole.ties = sum(one.ties for one in reports)
    whole.distractors = sum(one.distractors for one in reports)
    for name in whole.excluded:
        whole.excluded[name] = sum(one.excluded[name] for one in reports)
    for name in whole.seconds:
        whole.seconds[name] = sum(one.seconds[name] for one in reports)
    # The two directions of a split share its persons: its mean is one observation.
    halves = {
        name: [float(np.mean(values[i : i + 2])) for i in range(0, len(values), 2)]
        for name, values in figures.items()
    }
    whole.extra["splits"] = {
        "splits": SPLITS,
        "persons": len(persons) // 2,
        "directions": 2,
        **{name: summary(values) for name, values in halves.items()},
    }
    error = whole.extra["splits"]["mAP"]["standard_error"]
    whole.notes.append(
        f"mean of {SPLITS} splits of {len(persons) // 2} persons in both directions; counts are "
        f"sums over them; standard error of mAP {error:.2%}"
    )
    return whole


def evaluate_distances(
    distmat: Any,
    query: Features | Any,
    gallery: Features | Any,
    protocol: str = "market1501",
    *,
    max_rank: int = 50,
    trials: int = 0,
    seed: int = 0,
    exclude: str | None = None,
    progress: Progress | None = None,
) -> Report:
    """Report CMC, mAP and mINP from a given matrix, read once.

    Args:
        distmat: [Q, G] float32 or float64 tensor or array; smaller is nearer, ranked as given.
        query: features, or anything with ``pids`` and ``camids`` (and ``paths``, ``columns``), of
            the rows.
        gallery: the same of the columns.
        protocol: as in `evaluate`.
        max_rank: length of the CMC curve.
        trials: as in `evaluate`.
        seed: as in `evaluate`.
        exclude: as in `evaluate`.
        progress: called as (phase, done, total).

    Raises:
        UserError: the matrix or labels do not fit, a distance is NaN, or no query has a match.
    """
    _check_max_rank(max_rank)
    rules = protocol_named(protocol)
    peak = Peak()
    begun = time.perf_counter()
    seconds: dict[str, float] = {"load": 0.0}
    if rules.splits or rules.pools:
        raise UserError(f"protocol {rules.name} needs features, not distances; use mmga.evaluate")
    matrix = _matrix(distmat, len(query.pids), len(gallery.pids))
    labels = labels_of(query, gallery, exclude)
    # In the matrix' own order its rows are read in place.
    selection = select(rules, labels, by_identity=False, progress=progress)
    with _timed(seconds, "rank"):
        source = MatrixSource(matrix, selection.queries, selection.gallery)
        scores = rank_under(source, selection, progress, peak)
    backend = _backend(matrix.device)
    report = _report(
        rules, query, gallery, selection, scores, max_rank, None, seconds, peak, backend
    )
    if rules.single_shot:
        source = MatrixSource(matrix, selection.queries, selection.gallery)
        _draw(report, source, selection, max_rank, trials, seed, progress)
    return _finish(report, begun, peak)


def rank_under(
    source: Source,
    selection: Selection,
    progress: Progress | None,
    peak: Peak,
    phase: str = "ranks",
    observer: PairObserver | None = None,
) -> PerQuery:
    """Rank what a selection holds from a source of tiles."""
    return rank(source, selection, observer=observer, phase=phase, progress=progress, peak=peak)


def _counted(rules: Rules, labels: Labels, selection: Selection) -> np.ndarray:
    """Return the queries that enter the averages."""
    if rules.unmatched == "zero":
        return np.flatnonzero(labels.query_pids != JUNK)
    return np.flatnonzero(selection.num_matches > 0)


def _report(
    rules: Rules,
    query: Any,
    gallery: Any,
    selection: Selection,
    scores: Any,
    max_rank: int,
    metric: str | None,
    seconds: dict[str, float],
    peak: Peak,
    backend: str,
) -> Report:
    counted = _counted(rules, selection.labels, selection)
    exclusion = selection.labels.exclusion
    notes = [
        note
        for side in {id(query): query, id(gallery): gallery}.values()
        for note in getattr(side, "notes", [])
    ]
    return Report(
        figures=Figures.of(scores, counted, max_rank),
        protocol=rules.name,
        metric=metric,
        num_query=len(query.pids),
        num_valid_query=int((selection.num_matches > 0).sum()),
        num_gallery=len(gallery.pids),
        excluded=selection.excluded,
        distractors=selection.distractors,
        ties=int((scores.tied > 0).sum()),
        seconds=seconds,
        peak_memory_bytes=peak.bytes,
        process_peak_bytes=memory_sizes.process_peak(),
        backend=backend,
        pids=np.asarray(query.pids),
        camids=None if getattr(query, "camids", None) is None else np.asarray(query.camids),
        counted=counted,
        extra={} if exclusion is None else {"exclude": exclusion.text},
        notes=notes,
    )


def _finish(report: Report, begun: float, peak: Peak) -> Report:
    peak.look()
    report.seconds["total"] = time.perf_counter() - begun
    report.peak_memory_bytes = peak.bytes
    report.process_peak_bytes = memory_sizes.process_peak()
    return report


def _backend(device: torch.device, precision: str = "ieee") -> str:
    """Return what counts ranks on a device: in tiles, or in products of other precisions."""
    if precision != "ieee":
        return f"triton kernels ({importlib.metadata.version('triton')})"
    if has_kernel("count_preceding", device.type.upper()):
        return f"{device.type} kernels ({_extension.load()[device.type].detail})"
    return "reference"


@contextlib.contextmanager
def _timed(seconds: dict[str, float], phase: str) -> Iterator[None]:
    begun = time.perf_counter()
    yield
    seconds[phase] = seconds.get(phase, 0.0) + time.perf_counter() - begun


def _gallery_of(rules: Rules, query: Features, gallery: Features | None) -> Features:
    itself = rules.own_image == "index"
    if itself and gallery is not None and gallery is not query:
        raise UserError(f"protocol {rules.name} ranks one set against itself; leave out gallery")
    if not itself and gallery is None:
        raise UserError(f"gallery: missing; protocol {rules.name} needs one")
    return query if gallery is None else gallery


def _matrix(distmat: Any, rows: int, columns: int) -> Tensor:
    matrix = distmat.detach() if isinstance(distmat, Tensor) else None
    if matrix is None:
        array = np.asarray(distmat)
        if array.dtype.kind not in "fiub":
            raise UserError(f"distmat: expected numbers, found {array.dtype}")
        if not array.dtype.isnative or not array.flags.writeable:
            array = array.astype(array.dtype.newbyteorder("="))
        matrix = torch.from_numpy(array)
    if tuple(matrix.shape) != (rows, columns):
        raise UserError(
            f"distmat: expected [{rows}, {columns}], one row for each query and one column for "
            f"each gallery item, found {list(matrix.shape)}"
        )
    if matrix.dtype in (torch.float16, torch.bfloat16):
        return matrix.to(torch.float32)
    return matrix if matrix.dtype in (torch.float32, torch.float64) else matrix.to(torch.float64)


def _check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise UserError(f"{name}: expected {' or '.join(choices)}, found {value!r}")


def _check_max_rank(max_rank: int) -> None:
    if max_rank < 1:
        raise UserError(f"max_rank: expected at least 1, found {max_rank}")
