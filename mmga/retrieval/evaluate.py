"""Exact CMC, mAP and mINP in the memory of the features: the public functions."""

from __future__ import annotations

import time

import numpy as np
import torch
from torch import Tensor
from torch.distributed import ProcessGroup

from mmga.common import ids
from mmga.common import memory as memory_sizes
from mmga.common.arrays import as_tensor
from mmga.common.device import resolve_device
from mmga.common.distributed import Group
from mmga.common.errors import UserError, whole_number
from mmga.common.grid import Grid, in_grid
from mmga.common.monitor import Monitor
from mmga.common.progress import Progress
from mmga.ops import _extension
from mmga.ops._library import has_kernel
from mmga.ops.precision import float32_products
from mmga.retrieval.bounds.stages import Stages
from mmga.retrieval.features import Features
from mmga.retrieval.features.duplicates import duplicated_items
from mmga.retrieval.features.pooling import pooled
from mmga.retrieval.features.shares import SharedGallery
from mmga.retrieval.features.vectors import VectorSet
from mmga.retrieval.metrics import caveats
from mmga.retrieval.metrics.rank import PerQuery, rank
from mmga.retrieval.metrics.rank_certified import CertifiedPass, plan
from mmga.retrieval.metrics.report import Figures, Report
from mmga.retrieval.metrics.single_shot import single_shot
from mmga.retrieval.metrics.verification import TARGETS, PairCounter, figures
from mmga.retrieval.options import (
    EvaluationOptions,
    Labelled,
    Reranker,
    check_draws,
    check_kinds,
    check_max_rank,
)
from mmga.retrieval.protocols.protocol import PROTOCOLS, protocol_named
from mmga.retrieval.protocols.protocol import Protocol as Rules
from mmga.retrieval.protocols.selection import Labels, Selection, select
from mmga.retrieval.repeated import both_directions, drawn_galleries, evaluate_repeats, left_out
from mmga.retrieval.reranking.certified_ranks import rank_reranked
from mmga.retrieval.reranking.distances import RerankedSource, reranked_source
from mmga.retrieval.reranking.settings import KReciprocal
from mmga.retrieval.tiles import placement
from mmga.retrieval.tiles.parts import pairs_without_common_part
from mmga.retrieval.tiles.problem import RankingProblem, checked, zero_vectors
from mmga.retrieval.tiles.share import QueryShare, Share
from mmga.retrieval.tiles.sources import MatrixSource, Source, tile_within


@float32_products()
def evaluate(
    query: Features | None,
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
    device: str | torch.device | None = None,
    memory: str | int | None = None,
    verification: bool = False,
    cross_camera: bool = False,
    fpr: float | None = None,
    strangers: float | None = None,
    exclude: str | None = None,
    ap: str | None = None,
    progress: Progress | None = None,
    group: ProcessGroup | Group | bool | None = None,
    query_shares: int = 1,
) -> Report:
    """Rank a gallery for every query and report CMC, mAP and mINP.

    No matrix of all distances is ever held: tiles of inner products are computed once, and how many
    items precede each match is counted in them. The order is (distance, gallery index).

    Args:
        query: features of the queries, the same in every process of a group.
        gallery: features of the gallery; None where one set is ranked, and in a group for none.
        metric: ``"cosine"`` or ``"euclidean"``.
        protocol: a name of `mmga.retrieval.protocols.protocol.PROTOCOLS`, or rules of one's own.
        rerank: a re-ranking such as `mmga.KReciprocal`; its figures stand beside the plain ones.
        exact: ``"certified"``: the order of float64 arithmetic, the same on every machine;
            ``"float32"``: that of float32 tiles, the same for any tiles and threads on one machine;
            None: certified, but not of parts, verification, drawn galleries or beyond a device.
        max_rank: length of the CMC curve.
        trials: seeded draws of single-shot protocols (0: the expectation) and vehicleid (0: 10).
        seed: seed of whatever is drawn.
        pool: ``"mean"`` or ``"max"``, how ``multi-query`` pools.
        device: where to compute; that of the gallery if None.
        memory: bound on what is allocated beyond the features, such as ``"2G"``.
        verification: add ROC, EER, thresholds and open-set rates, counted in the same pass.
        cross_camera: verification leaves out impostor pairs of one camera.
        fpr: one more false positive rate whose threshold is wanted.
        strangers: share of the identities that open-set rates take from the gallery, by `seed`;
            None: half where every query has a match, else none.
        exclude: leave out pairs for which a condition on columns of the gallery item and the query
            holds, such as ``"camid == query.camid and abs(time - query.time) < 30"``.
        ap: ``"hits"`` or ``"trapezoid"`` (docs/evaluation.md); None: the protocol's own.
        progress: called as (phase, done, total).
        group: of torch.distributed, True for all: each gives its rows of the gallery.
        query_shares: R: of W processes number r gives share r // (W / R) of the queries, and share
            r % (W / R) of the gallery, also of one set; None for an empty one (docs/scale.md).

    Raises:
        UserError: the features or options do not fit, or no query has a match.
    """
    with (processes := Group.of(group)).together():
        check_kinds(query, gallery, rerank)
        options = EvaluationOptions(
            metric=metric,
            protocol=protocol_named(protocol, ap),
            rerank=rerank,
            exact=exact,
            max_rank=max_rank,
            trials=trials,
            seed=seed,
            pool=pool,
            memory=memory_sizes.parse(memory),
            verification=verification,
            cross_camera=cross_camera,
            fpr=fpr,
            strangers=strangers,
            exclude=exclude,
            query_shares=query_shares,
        )
    return _evaluate(query, gallery, options, device, Monitor(progress), processes)


@float32_products()
def evaluate_distances(
    distmat: Tensor | np.ndarray,
    query: Features | Labelled,
    gallery: Features | Labelled,
    protocol: str = "market1501",
    *,
    max_rank: int = 50,
    trials: int = 0,
    seed: int = 0,
    exclude: str | None = None,
    ap: str | None = None,
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
        ap: as in `evaluate`.
        progress: called as (phase, done, total).

    Raises:
        UserError: the matrix or labels do not fit, a distance is NaN, or no query has a match.
    """
    max_rank, trials = whole_number("max_rank", max_rank), whole_number("trials", trials)
    seed = whole_number("seed", seed)
    check_max_rank(max_rank)
    rules = protocol_named(protocol, ap)
    check_draws(rules, trials, seed)
    begun = time.perf_counter()
    monitor = Monitor(progress, {"load": 0.0})
    if rules.splits or rules.pools:
        raise UserError(f"protocol {rules.name} needs features, not distances; use mmga.evaluate")
    matrix = _matrix(distmat, len(query.pids), len(gallery.pids))
    labels = Labels.of(_labelled(query), _labelled(gallery), exclude, rules.needs_cameras)
    if rules.one_set:
        _check_one_set(rules, labels)
    # In the matrix' own order its rows are read in place.
    selection = select(rules, labels, by_identity=False, progress=progress)
    with monitor.timed("rank"):
        source = MatrixSource(matrix, selection.queries, selection.gallery)
        scores = rank(source, selection, monitor)
    report = _report(selection, scores, max_rank, (query, gallery), matrix.device, given=True)
    report.seconds = monitor.seconds
    if rules.single_shot:
        source = MatrixSource(matrix, selection.queries, selection.gallery)
        _draw(report, source, selection, trials, seed, monitor)
    return _finish(report, begun, monitor)


def _evaluate(
    query: Features | None,
    gallery: Features | None,
    options: EvaluationOptions,
    device: str | torch.device | None,
    monitor: Monitor,
    processes: Group,
) -> Report:
    """Evaluate by processes that agree on the options."""
    begun = time.perf_counter()
    if processes.world > 1:
        options.check_group()
        processes.agree("the options", repr(options))
    with in_grid(processes, options.query_shares) as grid:
        report = _evaluate_in(grid, query, gallery, options, device, monitor)
    return _finish(report, begun, monitor, processes)


def _evaluate_in(
    grid: Grid,
    query: Features | None,
    gallery: Features | None,
    options: EvaluationOptions,
    device: str | torch.device | None,
    monitor: Monitor,
) -> Report:
    """Check options and features, and evaluate as the protocol asks."""
    rules = options.protocol
    asked, shared = _shared(query, gallery, options, grid)
    where = resolve_device(device or shared.features.rows.device, "device")
    options.check(asked.features, shared.features, where)
    if rules.splits or rules.single_shot:  # small sets, which every process ranks as a whole
        asked, shared = _gathered(asked, shared, rules, grid)
        grid = Grid()
    if rules.splits:
        return _evaluate_parts(asked.features, shared.features, options, where, monitor)
    if rules.pools:
        with grid.together():
            every = asked.whole()
        asked = SharedGallery.of_one_set(pooled(every, options.pool), grid.column)
    return _ranked(asked, shared, options, where, monitor, grid)


def _gathered(
    asked: SharedGallery, shared: SharedGallery, rules: Rules, grid: Grid
) -> tuple[SharedGallery, SharedGallery]:
    """Return both sides with the rows of all processes, in every process."""
    with grid.together():
        query = asked.whole()
    with grid.together():
        gallery = query if rules.one_set else shared.whole()
    return SharedGallery.alone(query), SharedGallery.alone(gallery)


def _evaluate_parts(
    query: Features,
    gallery: Features,
    options: EvaluationOptions,
    device: torch.device,
    monitor: Monitor,
) -> Report:
    """Average evaluations of parts of the sets, as the protocol halves or draws them."""
    rules = options.protocol
    if rules.splits == "draws":
        repeats = drawn_galleries(query, rules, options.trials, options.seed)
    else:
        repeats = both_directions(query, gallery, rules)
    same = {**options.of_a_part(), "device": device}
    report = evaluate_repeats(evaluate, repeats, same, monitor.progress)
    report.num_query, report.num_gallery = len(query), len(gallery)
    for name, rows in left_out(query, None if rules.one_set else gallery).items():
        report.excluded[name] = report.excluded.get(name, 0) + rows
    return report


def _shared(
    query: Features | None, gallery: Features | None, options: EvaluationOptions, grid: Grid
) -> tuple[SharedGallery, SharedGallery]:
    """Return the queries and the gallery that are meant, and what this process holds of them."""
    rules, group = options.protocol, grid.whole
    with group.together():
        if query is None and not grid.deals:
            raise UserError("query: missing; give features of the queries")
        if rules.one_set and gallery is not None and gallery is not query and not grid.deals:
            raise UserError(
                f"protocol {rules.name} ranks one set against itself; leave out gallery"
            )
        if not rules.one_set and gallery is None and group.world == 1:
            raise UserError(f"gallery: missing; protocol {rules.name} needs one")
    named = rules.own_image == "path" or options.exclude is not None
    with grid.together():
        listed = not (rules.pools or rules.splits)  # query by query
        asked = SharedGallery.gathered(
            query, grid.column, columns=named, paths=listed, name="query"
        )
    with grid.together():
        if not rules.one_set:
            return asked, SharedGallery.gathered(gallery, grid.row, columns=named)
        if grid.deals:
            return asked, SharedGallery.of_queries(asked, gallery, grid.row)
        return asked, SharedGallery.of_one_set(asked.features, grid.row)


def _ranked(
    asked: SharedGallery,
    shared: SharedGallery,
    options: EvaluationOptions,
    device: torch.device,
    monitor: Monitor,
    grid: Grid,
) -> Report:
    """Rank plainly and re-ranked, and report, as checked options ask."""
    problem = ranking_problem(asked, shared, options, device, monitor, grid)
    selection, rules = problem.selection, options.protocol
    counter = pair_counter(problem, options) if options.verification else None
    scores, stages = plain_ranks(problem, options, counter)
    sides = asked.features, asked.features if rules.one_set else shared.features
    report = _report(selection, scores, options.max_rank, sides, device)
    report.seconds = monitor.seconds
    report.metric, report.precision, report.exact = options.metric, "ieee", "float32"
    if stages is not None:
        report.exact = "certified"
        report.extra["certified"] = stages.as_dict()
    _describe_features(report, problem)
    if counter is not None:
        wanted = TARGETS if options.fpr is None else tuple(sorted({*TARGETS, options.fpr}))
        report.pair_counts = counter.counts()
        report.extra["verification"] = figures(report.pair_counts, wanted)
    if rules.single_shot:
        with monitor.timed("rank"):
            _draw(report, problem.source(), selection, options.trials, options.seed, monitor)
    if options.rerank is not None:
        _rerank(report, problem, options.rerank)
    return report


def ranking_problem(
    asked: SharedGallery,
    shared: SharedGallery,
    options: EvaluationOptions,
    device: torch.device,
    monitor: Monitor,
    grid: Grid | None = None,
) -> RankingProblem:
    """Place the features, apply the protocol, and read all rows once for their norms."""
    grid = grid or Grid()
    query, gallery, whole = asked.features, shared.features, grid.whole
    itself = gallery is query
    with monitor.timed("load"), whole.together():
        placed = placement.place(query.rows, gallery.rows, device, options.memory)
    query = query.with_rows(placed.query)
    other = query if itself else gallery.with_rows(placed.gallery)
    cameras = options.protocol.needs_cameras or options.cross_camera
    labels = Labels.of(query, other, options.exclude, cameras)
    with monitor.timed("load"):
        selection = select(
            options.protocol,
            labels,
            every_query=options.verification,
            progress=monitor.progress,
            group=whole,
        )
    with monitor.timed("load"):
        with grid.together():
            query, query_norms = checked("query", query, options.metric, asked.first, grid.column)
        whole.agree("the queries", query_norms.numpy().tobytes() + labels.query_pids.tobytes())
        gallery, gallery_norms = query, query_norms
        if not itself:
            with grid.together():
                gallery, gallery_norms = checked(
                    "gallery", other, options.metric, shared.first, grid.row
                )
        if grid.deals:
            whole.agree("the gallery", gallery_norms.numpy().tobytes())

    def chosen(side: Features, norms: Tensor, rows: np.ndarray, first: int) -> VectorSet:
        at: Tensor | None = torch.from_numpy(rows - first)
        norms = norms[torch.from_numpy(rows)]
        if len(rows) == len(side.rows) and (np.diff(rows) > 0).all():
            at = None  # all of them, in their order
        return VectorSet([side.rows], options.metric, [at], norms=norms, device=device)

    low, high = np.searchsorted(selection.gallery, [shared.first, shared.last]).tolist()
    items = chosen(gallery, gallery_norms, selection.gallery[low:high], shared.first)
    here = (selection.queries >= asked.first) & (selection.queries < asked.last)
    places = np.flatnonzero(here)
    own = selection.of_queries(places) if grid.deals else selection
    return RankingProblem(
        query=query,
        gallery=gallery,
        norms=(query_norms, gallery_norms),
        selection=selection,
        own=own,
        asked=QueryShare(
            chosen(query, query_norms, own.queries, asked.first),
            torch.from_numpy(places),
            query_norms[torch.from_numpy(selection.queries)],
            grid,
        ),
        share=Share(items, low, len(selection.gallery), grid.row),
        asked_rows=slice(asked.first, asked.last),
        held=slice(shared.first, shared.last),
        placed=placed,
        exact=options.exact,
        monitor=monitor,
    )


def _obstacle(problem: RankingProblem, options: EvaluationOptions) -> str | None:
    """Return what keeps ranks from being certified, or None."""
    if problem.query.visibility is not None:
        return "of part features"
    if options.verification:
        return "together with verification, which counts float32 distances"
    if options.protocol.single_shot:
        return "of galleries that are drawn"
    if problem.grid.whole.any(not problem.items.near):
        return "of features that exceed the device"
    return None


def plain_ranks(
    problem: RankingProblem, options: EvaluationOptions, counter: PairCounter | None = None
) -> tuple[PerQuery, Stages | None]:
    """Rank the matches, certified where that is asked for or can be; then the stages stand beside.

    Raises:
        UserError: certified ranks are asked for and cannot be made, or a key is NaN.
    """
    obstacle = _obstacle(problem, options)
    if options.exact == "certified" and obstacle is not None:
        raise UserError(f"exact: certified ranks are not made {obstacle}; use exact='float32'")
    with problem.monitor.timed("rank"):
        if options.exact == "float32" or obstacle is not None:
            scores, stages = _rank_in_float32(problem, counter), None
        else:
            scores, stages = _certify(problem, options.seed)
        return scores.gathered(problem.own.queries, problem.grid.column), stages


def _rank_in_float32(problem: RankingProblem, counter: PairCounter | None) -> PerQuery:
    """Rank by the keys of float32 tiles."""
    with problem.grid.together():
        return rank(
            problem.source(),
            problem.own,
            problem.monitor,
            observer=counter,
            group=problem.share.group,
        )


def _certify(problem: RankingProblem, seed: int) -> tuple[PerQuery, Stages]:
    """Rank by exact keys, through the stages that counts of a pilot say are cheapest."""
    sides, tile = (problem.asked, problem.share), None
    stages = plan(*sides, problem.selection, seed)
    if problem.placed.room is not None:
        tile = tile_within(problem.placed.room, problem.queries.dimension)
    with problem.grid.together():
        ranking = CertifiedPass(*sides, problem.own, stages, problem.placed.memory, tile)
        scores = ranking.rank(problem.monitor)
    stages.add_up(problem.grid.column)
    return scores, stages


def pair_counter(problem: RankingProblem, options: EvaluationOptions) -> PairCounter:
    """Return an observer that counts pairs by distance while they are ranked."""
    # Cosine distances end at 2, Euclidean ones at the sum of the longest vectors.
    largest = 2.0
    if options.metric == "euclidean":
        longest = sum(float(norms.max().sqrt()) for norms in problem.norms)
        largest = longest or 1.0
    squared = options.metric == "euclidean" and problem.query.visibility is None
    return PairCounter(
        problem.selection,
        largest,
        squared,
        options.cross_camera,
        options.strangers,
        options.seed,
        asked=problem.asked,
    )


def _describe_features(report: Report, problem: RankingProblem) -> None:
    """Add what the features themselves tell: zero vectors, duplicates, parts, their placement."""
    query, gallery, grid = problem.query, problem.gallery, problem.grid
    one_set = problem.selection.protocol.one_set
    if problem.placed.note is not None:
        report.notes.append(problem.placed.note)
    sides = list(zip((query, gallery), problem.norms, strict=True))[: 1 + (not one_set)]
    report.zero_vectors = sum(zero_vectors(*side) for side in sides)
    if problem.selection.protocol.pools and problem.queries.metric == "euclidean":
        _note(report, caveats.of_pooling(problem.norms[1]))
    if problem.selection.protocol.own_image != "index":
        with problem.monitor.timed("load"):
            of_rows = [norms if norms.dim() == 1 else norms.sum(1) for _, norms in sides]
            own = of_rows[0][problem.asked_rows], of_rows[-1][problem.held]
            with grid.whole.together():
                same = duplicated_items(query.rows, own[0], gallery.rows, own[1])
            # An item may equal queries of several processes.
            same = grid.column.rows(torch.from_numpy(same)).unique()
            report.duplicates = int(grid.row.table([len(same)]).sum())
        _note(report, caveats.of_duplicates(problem.selection, report.duplicates))
    if query.visibility is not None and gallery.visibility is not None:
        rows = problem.selection.eligible_queries
        report.extra["parts"] = {
            "parts": query.visibility.shape[1],
            "pairs_without_common_part": pairs_without_common_part(
                query.visibility[rows], gallery.visibility[problem.selection.gallery]
            ),
        }


def _rerank(report: Report, problem: RankingProblem, rule: KReciprocal | Reranker) -> None:
    """Add the figures of the re-ranked distances."""
    monitor, selection, phase = problem.monitor, problem.selection, "re-ranked ranks"
    # Without a share of the distances, what overlaps with nothing ties.
    bounded = (
        isinstance(rule, KReciprocal)
        and rule.lambda_value > 0
        and problem.exact != "float32"
        and problem.device.type == "cpu"
        and problem.gallery is not problem.query
        and not selection.protocol.one_set
        and selection.labels.exclusion is None
    )
    if isinstance(rule, KReciprocal):  # either adds its own seconds
        source: Source = reranked_source(rule, problem, keep=not bounded)
    else:
        source = rule.source(problem)
    with monitor.timed("rank"):
        if bounded and isinstance(source, RerankedSource) and source.reranking.exact == "certified":
            scores = rank_reranked(source, selection, monitor, phase)
        else:
            scores = rank(source, selection, monitor, phase=phase, group=problem.share.group)
    report.reranked = Figures.of(scores, _counted(selection), len(report.cmc))
    report.rerank = rule.as_dict()
    _note(report, caveats.of_reranking(selection))


def _note(report: Report, sentence: str | None) -> None:
    if sentence is not None:
        report.notes.append(sentence)


def _draw(
    report: Report,
    source: Source,
    selection: Selection,
    trials: int,
    seed: int,
    monitor: Monitor,
) -> None:
    """Replace a report's CMC by that of one drawn gallery image for each identity."""
    drawn = single_shot(source, selection, len(report.cmc), trials, seed, monitor.progress)
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


def _labelled(side: Features | Labelled) -> Features:
    """Return the labels of an object with ``pids`` (and camids, paths, columns) as features."""
    if isinstance(side, Features):
        return side
    return Features(
        torch.zeros(len(side.pids), 1, dtype=torch.float32, device="cpu"),
        side.pids,
        getattr(side, "camids", None),
        getattr(side, "paths", None),
        columns=getattr(side, "columns", None),
    )


def _counted(selection: Selection) -> np.ndarray:
    """Return the queries that enter the averages."""
    if selection.protocol.unmatched == "zero":
        return selection.eligible_queries
    return np.flatnonzero(selection.num_matches > 0)


def _report(
    selection: Selection,
    scores: PerQuery,
    max_rank: int,
    sides: tuple[Features | Labelled, Features | Labelled],
    device: torch.device,
    given: bool = False,
) -> Report:
    """Return the report of a plain ranking of two sides, each with labels."""
    query, gallery = sides
    labels = _labelled(query)
    counted = _counted(selection)
    rules, exclusion = selection.protocol, selection.labels.exclusion
    extra = {} if exclusion is None else {"exclude": exclusion.text}
    if "trapezoid" in (rules.precision, PROTOCOLS.get(rules.name, rules).precision):
        extra["ap"] = rules.precision
    notes = [
        note
        for side in {id(query): query, id(gallery): gallery}.values()
        for note in getattr(side, "notes", [])
    ]
    return Report(
        figures=Figures.of(scores, counted, max_rank),
        protocol=rules.name,
        ap=rules.precision,
        num_query=len(query.pids),
        num_valid_query=int((selection.num_matches > 0).sum()),
        num_gallery=len(gallery.pids),
        excluded=selection.excluded,
        distractors=selection.distractors,
        ties=int((scores.tied > 0).sum()),
        backend=_backend(device),
        num_identities=len(np.unique(selection.labels.query_pids[counted])),
        num_cameras=selection.labels.num_cameras,
        pids=ids.written(labels.pids, labels.pid_names),
        camids=None if labels.camids is None else ids.written(labels.camids, labels.camid_names),
        paths=labels.paths,
        counted=counted,
        extra=extra,
        notes=notes + caveats.of_ranking(selection, scores, given=given),
    )


def _finish(report: Report, begun: float, monitor: Monitor, group: Group | None = None) -> Report:
    """Add seconds and peaks, those of the process of a group that took most."""
    monitor.peak.sample()
    report.seconds["total"] = time.perf_counter() - begun
    peaks = (group or Group()).table([monitor.peak.bytes, memory_sizes.process_peak()])
    report.peak_memory_bytes, report.process_peak_bytes = map(int, peaks.amax(0).tolist())
    return report


def _backend(device: torch.device) -> str:
    """Return what counts ranks on a device."""
    if has_kernel("count_preceding", device.type.upper()):
        return f"{device.type} kernels ({_extension.load()[device.type].detail})"
    return "reference"


def _check_one_set(rules: Rules, labels: Labels) -> None:
    """Refuse a matrix whose rows and columns are different items where they must be the same."""
    differ = None
    if not np.array_equal(labels.query_pids, labels.gallery_pids):
        differ = "pids"
    elif labels.query_paths is not None and labels.gallery_paths is not None:
        differ = None if np.array_equal(labels.query_paths, labels.gallery_paths) else "paths"
    if differ is not None:
        raise UserError(
            f"protocol {rules.name} ranks one set against itself, so that rows and columns of "
            f"distmat must be the same items in one order, but their {differ} differ; choose "
            "no-camera for two sets"
        )


def _matrix(distmat: Tensor | np.ndarray, rows: int, columns: int) -> Tensor:
    matrix = as_tensor("distmat", distmat, lend=True)
    if tuple(matrix.shape) != (rows, columns):
        raise UserError(
            f"distmat: expected [{rows}, {columns}], one row for each query and one column for "
            f"each gallery item, found {list(matrix.shape)}"
        )
    if matrix.dtype in (torch.float16, torch.bfloat16):
        return matrix.to(torch.float32)
    if matrix.dtype == torch.int64 and matrix.numel():
        low, high = (int(value) for value in matrix.aminmax())
        if max(-low, high) > 2**53:
            raise UserError(
                "distmat: found integers past 2^53, which float64 does not tell apart; give "
                "smaller ones, or floating-point distances"
            )
    return matrix if matrix.dtype in (torch.float32, torch.float64) else matrix.to(torch.float64)
