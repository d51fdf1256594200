"""`python -m mmga.eval`: CMC, mAP and mINP of feature files, plain and re-ranked.

    mmga eval --query q.npz --gallery g.npz --rerank
    mmga eval --features pytorch_result.mat --protocol market1501-matlab
    mmga eval --query q.npz --gallery 'shard-*.npz' --memory 2G --json out.json
    mmga eval --features all.npz --protocol all-vs-all
    mmga eval --query q.npz --gallery g.npz --explain market1501 no-camera
    mmga eval --run runs/x --data market1501 --root DIR
    torchrun --nproc-per-node 8 -m mmga.eval -- --query q.npz --gallery 'shard-*.npz'
    mmga eval --query q.npz --gallery g.npz --rerank --report out.html --images DIR

Features are files with features [N, D], pids [N] and camids [N]; docs/evaluation.md describes each
format, each protocol and each figure.
"""

import dataclasses
import functools
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, TypeVar

from mmga.common import cli
from mmga.common.errors import PeerError, UserError
from mmga.common.files import read_json_object
from mmga.common.options import Device, FeatureFile, FeatureFiles, Flag, OutputFile, Size
from mmga.config import DataName, protocol_of
from mmga.retrieval.protocols.protocol import (
    Precision,
    Protocol,
    ProtocolName,
    of_test_split,
    protocol_named,
)
from mmga.retrieval.reranking.settings import KReciprocal, Variant

if TYPE_CHECKING:
    from mmga.common.distributed import Group
    from mmga.common.grid import Grid
    from mmga.pages.content import Evaluated
    from mmga.retrieval.features import Features
    from mmga.retrieval.metrics.report import Report


@dataclass(frozen=True, slots=True)
class Inputs:
    """What is evaluated, and by which rules."""

    GROUPS: ClassVar = {
        "query": "features",
        "run": "a trained run in place of features",
        "metric": "evaluation",
        "device": "machine",
    }

    query: FeatureFiles = ()
    """Features of the queries: .npz, .safetensors, .mat, .h5, .pt, .parquet, .npy or a folder of
    .npy files; several shards, or a pattern in quotes, which is read in natural order."""
    gallery: FeatureFiles = ()
    """Features of the gallery, in the same formats."""
    features: FeatureFile = None
    """One file that holds both sides, or the one set of protocol all-vs-all."""
    query_columns: Path | None = None
    """CSV table with further columns of the queries (and pid, camid, path where the file has none);
    lines belong to rows by path if both have paths, else by order."""
    gallery_columns: Path | None = None
    """CSV table with further columns of the gallery."""
    pattern: str | None = None
    """Regular expression whose groups pid and camid are read from paths where they are not known
    otherwise, such as "(?P<pid>[^/]+)/cam(?P<camid>[0-9]+)_"."""
    run: Path | None = None
    """Folder of a run, or one of its checkpoints, whose test split is extracted and evaluated."""
    data: DataName | None = None
    """Data set; by default that of the run."""
    root: Path | None = None
    """Folder of the data set, or of its parent; by default $MMGA_DATA."""
    metric: Literal["cosine", "euclidean"] = "cosine"
    """Distance: cosine is 1 - cos, euclidean the Euclidean distance."""
    protocol: ProtocolName | None = None
    """Which items count for a query, and how ranks become figures; by default market1501, with
    --run the protocol of its training, and that of the data set where training named none."""
    device: Device | None = None
    """auto, cpu, cuda or cuda:N; by default cpu for features, auto for --run."""


@dataclass(frozen=True, slots=True)
class Options(Inputs):
    """Evaluate features: CMC, mAP and mINP, exactly, at any gallery size."""

    GROUPS: ClassVar = Inputs.GROUPS | {
        "ap": "evaluation",
        "rerank": "re-ranking",
        "exact": "evaluation",
        "memory": "machine",
        "verification": "verification and open sets",
        "exclude": "evaluation",
        "bootstrap": "statistics",
        "explain": "evaluation",
        "json": "output",
    }

    ap: Precision | None = None
    """Average precision: the mean of the precisions at the matches (hits), or of those before and
    at each match (trapezoid, as in Market-1501's MATLAB code); by default the protocol's own."""
    rerank: bool = False
    """Re-rank by k-reciprocal encoding, too: its figures stand beside the plain ones."""
    k1: int = 20
    """Neighbours that make the k-reciprocal sets; all items where there are fewer."""
    k2: int = 6
    """Neighbours whose encodings are averaged; all items where there are fewer."""
    lambda_value: float = 0.3
    """Weight of the original distance in the re-ranked one, 0 to 1."""
    variant: Variant = "zhong"
    """Rule of the re-ranking: the authors' (zhong), torchreid's or fast-reid's."""
    exact: Literal["certified", "float32"] | None = None
    """Whose order counts where distances nearly tie: float64 arithmetic's, on any machine, or that
    of float32 tiles; by default certified where it can be, and the report says which."""
    max_rank: int = 50
    """Length of the CMC curve, in ranks."""
    trials: int = 0
    """Seeded draws of protocols cuhk03-single-shot and single-shot, where 0 gives the exact
    expectation, and of vehicleid, where 0 means 10."""
    seed: int = 0
    """Seed of whatever is drawn at random."""
    pool: Annotated[Literal["mean", "max"], Flag(name="query-pool", former=("pool",))] = "mean"
    """How protocol multi-query pools the images of a query."""
    memory: Size = None
    """Bytes that may be allocated beyond the features, such as 512M or 2G; by default there is
    no bound."""
    query_shares: int = 1
    """Shares that the processes of torchrun deal the queries out in, where these are many; they
    divide the processes, and those of one share deal out the gallery."""
    verification: bool = False
    """Add TPR at FPR, EER, thresholds, and open-set rates."""
    cross_camera: bool = False
    """Leave out impostor pairs of one camera from verification."""
    fpr: float | None = None
    """One more false positive rate, 0 to 1, whose threshold is wanted."""
    strangers: float | None = None
    """Share of the identities, 0 to 1, that open-set rates take from the gallery; by default half
    where every query has a match, else none."""
    exclude: Annotated[str | None, Flag(value="CONDITION")] = None
    """Leave out the pairs for which a condition on columns of the gallery item and query.<column>
    holds, such as "camid == query.camid and abs(time - query.time) < 30"."""
    bootstrap: int = 0
    """Draws of a bootstrap by identity for intervals of mAP and rank-1; 0 for none."""
    compare: FeatureFiles = ()
    """Features of the same images by another network, one file with both sides or query and
    gallery: test whether it differs, paired by identity. With --report also .json files that --json
    wrote, whose curves stand beside these."""
    explain: tuple[ProtocolName, ProtocolName] | None = None
    """Two protocols: say what each rule that differs contributes to the difference."""
    json: OutputFile = None
    """Write the report to this .json file."""
    per_query: OutputFile = None
    """Write one line for each query to this .csv file."""
    report: OutputFile = None
    """Write a page for the browser to this .html file: curves, thresholds, cameras, ranked lists,
    one file that loads nothing."""
    images: Path | None = None
    """Folder of the images, at which the paths of the features begin: --report shows them small."""
    verbose: bool = False
    """Print what computed the ranks, too, and how many pairs each level of precision decided."""


_NOT_EXPLAINED = (
    *("rerank", "ap", "max_rank", "trials", "seed", "verification", "cross_camera", "fpr"),
    *("strangers", "bootstrap", "compare", "per_query", "report"),
)
_READ = ("query", "gallery", "features", "query_columns", "gallery_columns", "compare")
Given = TypeVar("Given", bound=Inputs)
Sides = tuple["Features | None", "Features | None"]
Reader = Callable[..., "Features | None"]


def with_protocol(inputs: Given) -> Given:
    """Return the inputs with the protocol that is meant where none is named."""
    if inputs.protocol is not None:
        return inputs
    protocol = "market1501"
    if inputs.run is not None:
        from mmga.models.loading import configuration_of

        protocol = protocol_of(configuration_of(inputs.run), inputs.data)
    return dataclasses.replace(inputs, protocol=protocol)  # type: ignore[arg-type]


def rules_of(inputs: Inputs) -> Protocol:
    """Return the protocol of inputs that name one."""
    named = protocol_named if inputs.run is None else of_test_split
    return named(inputs.protocol or "market1501")


def load(inputs: Inputs) -> tuple["Features", "Features | None"]:
    """Read both sides; the gallery is None where one set is ranked against itself.

    Raises:
        UserError: the inputs contradict each other, or cannot be read.
    """
    from mmga.common.grid import Grid

    query, gallery = load_shares(inputs, Grid())
    assert query is not None  # of one process
    return query, gallery


def load_shares(inputs: Inputs, grid: "Grid") -> "Sides":
    """Read of both sides what a process of a grid has, which may be nothing; else as `load`."""
    from mmga.retrieval.features.load import holds_side

    one_set = rules_of(inputs).one_set
    read, read_share = _readers(inputs, grid)
    if inputs.run is not None:
        if inputs.features or inputs.query or inputs.gallery:
            raise UserError("--run extracts its own features; leave out feature files")
        for name in cli.changed(inputs, "query_columns", "gallery_columns", "pattern"):
            raise UserError(f"{cli.flag(name)} belongs to feature files; --run extracts its own")
        if one_set:
            raise UserError(
                f"protocol {inputs.protocol} ranks one set, a run's test split has two sides; "
                "write features with mmga extract and give one file as --features"
            )
        return _of_run(inputs, inputs.run, grid)
    if inputs.data is not None or inputs.root is not None:
        raise UserError("--data and --root say what a run is evaluated on; name it with --run")
    columns = {"query": inputs.query_columns, "gallery": inputs.gallery_columns}
    if inputs.features is not None:
        if inputs.query or inputs.gallery:
            raise UserError("--features holds both sides; leave out --query and --gallery")
        if one_set:
            if inputs.gallery_columns is not None:
                raise UserError(
                    f"{inputs.protocol} ranks one set: give its columns as --query-columns"
                )
            return _one_set(inputs, inputs.features, grid)
        gallery = read_share(inputs.features, side="gallery", columns=columns["gallery"])
        pooled = rules_of(inputs).pools and holds_side(inputs.features, "mquery")
        query = read(
            inputs.features, side="mquery" if pooled else "query", columns=columns["query"]
        )
        if pooled and query is not None:
            query.notes.append(
                f"{inputs.features}: the images of the queries are those of mquery_f"
            )
        return query, gallery
    if one_set:
        raise UserError(f"protocol {inputs.protocol} ranks one set: give it as --features")
    if not inputs.query or not inputs.gallery:
        missing = "--gallery" if inputs.query else "--query"
        raise UserError(
            f"{missing} is missing: give --query and --gallery, or --features for a file with both"
        )
    return (
        read(inputs.query, columns=inputs.query_columns),
        read_share(inputs.gallery, columns=inputs.gallery_columns),
    )


def _readers(inputs: Inputs, grid: "Grid") -> "tuple[Reader, Reader]":
    """Return what reads this process' queries, and its items of the gallery."""
    from mmga.retrieval.features.load import load_share

    query, gallery = (
        functools.partial(load_share, group=group, pattern=inputs.pattern)
        for group in (grid.column, grid.row)
    )
    return query, gallery


def _one_set(inputs: Inputs, path: Any, grid: "Grid") -> "Sides":
    """Read this process' queries of one set, and its items of the set where queries are shared."""
    query, gallery = (
        read(path, columns=inputs.query_columns) if shared else None
        for read, shared in zip(_readers(inputs, grid), (True, grid.deals), strict=True)
    )
    return query, gallery


def _of_run(inputs: Inputs, run: Path, grid: "Grid") -> "Sides":
    from mmga.common import memory
    from mmga.common.distributed import own_device
    from mmga.common.progress import bar_of
    from mmga.extraction.of_run import DataChoice, features_of_run
    from mmga.retrieval.features.shares import share_of

    memory.keep_freed()
    with bar_of(grid.whole.leads) as progress:
        query, gallery = features_of_run(
            run,
            DataChoice(inputs.data, inputs.root),
            device=str(own_device(inputs.device or "auto")),
            multi_query=inputs.protocol == "multi-query",
            progress=progress,
            group=grid.whole,
        )
    own = query.cut(*share_of(len(query), grid.column), alone=True) if grid.deals else query
    return own, gallery.cut(*share_of(len(gallery), grid.row), alone=True)


def load_other(options: Options, grid: "Grid") -> "Sides":
    """Read the features that --compare names."""
    read, share = _readers(options, grid)
    columns = {"query": options.query_columns, "gallery": options.gallery_columns}
    if rules_of(options).one_set:
        return _one_set(options, options.compare, grid)
    if len(options.compare) > 2:
        raise UserError(
            f"--compare: expected one file with both sides, or query and gallery, found "
            f"{len(options.compare)} files"
        )
    one, *more = options.compare
    if more:
        query = read(one, columns=options.query_columns)
        return query, share(more[0], columns=options.gallery_columns)
    gallery = share(one, side="gallery", columns=columns["gallery"])
    return read(one, side="query", columns=columns["query"]), gallery


def reranker(options: Options) -> KReciprocal | None:
    """Return the re-ranking that the options ask for."""
    if not options.rerank:
        for name in cli.changed(options, "k1", "k2", "lambda_value", "variant"):
            raise UserError(f"{cli.flag(name)} belongs to re-ranking: give --rerank, too")
        return None
    return KReciprocal(options.k1, options.k2, options.lambda_value, options.variant)


def passed_on(options: Options) -> dict[str, Any]:
    """Return the options that `mmga.evaluate` takes under the same names."""
    import inspect

    from mmga.retrieval.evaluate import evaluate

    parameters = inspect.signature(evaluate).parameters.values()
    names = [one.name for one in parameters if one.kind is one.KEYWORD_ONLY]
    others = ("rerank", "progress", "protocol", "group")
    passed = {name: getattr(options, name) for name in names if name not in others}
    return passed | {"protocol": rules_of(options)}


def _check_outputs(options: Options) -> None:
    """Refuse outputs that the evaluation could not give, before it begins."""
    if options.bootstrap and not 2 <= options.bootstrap <= 10**6:
        bound = "at most 1000000" if options.bootstrap > 2 else "at least 2"
        raise UserError(f"--bootstrap: expected {bound} draws, found {options.bootstrap}")
    if not options.verification:
        for name in cli.changed(options, "cross_camera", "fpr", "strangers"):
            raise UserError(f"{cli.flag(name)} belongs to verification: give --verification, too")
    for name, suffix in (("json", ".json"), ("per_query", ".csv")):
        path = getattr(options, name)
        if path is not None and not path.lower().endswith(suffix):
            raise UserError(f"{cli.flag(name)}: expected a {suffix} file, found {path}")
    cli.check_overwriting(options, _READ, ("json", "per_query", "report"))
    if options.report is None and options.images is not None:
        raise UserError("--images: pictures stand in the page of --report; give it, too")
    if options.report is not None:
        from mmga.pages.report import check_target

        check_target(options.report)
        if options.images is not None and not options.images.is_dir():
            raise UserError(
                f"--images: {options.images} is no folder; name the one that paths begin at"
            )
    if rules_of(options).splits is not None:
        for name in cli.changed(options, "per_query", "bootstrap", "compare"):
            raise UserError(
                f"{cli.flag(name)}: protocol {options.protocol} has no figures of single queries; "
                "leave it out"
            )


def body(options: Options) -> None:
    """Evaluate, print the table, write the files."""
    with cli.imports():
        from mmga.common import memory
        from mmga.common.distributed import join, own_device

    memory.baseline()
    usual = "cpu" if options.run is None else "auto"
    with join(own_device(options.device or usual), watched="eval") as group:
        given = options = with_protocol(options)
        options, others = _without_reports(options)
        _check_outputs(options)
        if options.report is not None and group.world > 1:
            raise UserError("--report: a page is written by one process; leave it out with several")
        rule = reranker(options)
        done = _evaluate(options, rule, group)
    if done is not None and options.report is not None:
        from mmga.pages.content import Evaluated

        report, (query, gallery), settings, compared = done
        assert query is not None  # of one process
        evaluated = Evaluated(report, query, gallery, settings, rule)
        _write_page(given, evaluated, {**compared, **others})


def _evaluate(
    options: Options, rule: KReciprocal | None, group: "Group"
) -> "tuple[Report, Sides, dict[str, Any], dict[str, Report]] | None":
    """Evaluate by one process or several, of which the first one prints and writes.

    Returns:
        The report, the features, the settings, and the report that it is compared with by name;
        None where protocols were explained.
    """
    import time

    from mmga.common.grid import grid_of
    from mmga.common.progress import bar_of
    from mmga.retrieval.evaluate import evaluate
    from mmga.retrieval.metrics.bootstrap import bootstrap

    begun = time.perf_counter()
    settings = passed_on(options) | {"group": group}
    if group.world > 1:
        settings["device"] = group.device
    with group.together():
        grid = grid_of(group, options.query_shares)
        query, gallery = load_shares(options, grid)
        loaded = time.perf_counter() - begun
        other = load_other(options, grid) if options.compare else None
    if options.explain is not None:
        _explain(options, (query, gallery), settings)
        return None
    compared = {}
    with bar_of(group.leads) as progress:
        report = evaluate(query, gallery, rerank=rule, progress=progress, **settings)
        if other is not None:
            also = settings | {"progress": progress}
            name = " and ".join(options.compare)
            compared[name] = _compared(report, name, options, other, also)
    if options.bootstrap:
        intervals = bootstrap(report, options.bootstrap, options.seed)
        report.extra["bootstrap"] = {
            name: interval.as_dict() for name, interval in intervals.items()
        }
    report.seconds["load"] = report.seconds.get("load", 0.0) + loaded
    report.seconds["total"] += loaded
    with group.together():
        if group.leads:
            _show(options, report)
    return report, (query, gallery), passed_on(options), compared


def _show(options: Options, report: "Report") -> None:
    """Write the files of a report, print its table and name the files."""
    if options.json is not None:
        report.to_json(options.json)
    if options.per_query is not None:
        report.to_csv(options.per_query)
    print("\n".join(cli.wrapped(line, 2) for line in report.table(options.verbose).split("\n")))
    for what, path in (("report", options.json), ("queries", options.per_query)):
        if path is not None:
            print(f"{what}: {path}")


def _compared(
    report: "Report", name: str, options: Options, other: "Sides", settings: dict[str, Any]
) -> "Report":
    """Return the report of another network's features, and add the difference to the first one."""
    from mmga.retrieval.evaluate import evaluate
    from mmga.retrieval.metrics.bootstrap import compare

    off = {"verification": False, "cross_camera": False, "fpr": None, "strangers": None}
    try:
        compared = evaluate(*other, **settings | off)
    except PeerError:
        raise
    except UserError as error:
        raise UserError(f"--compare: {error}") from error
    draws = options.bootstrap or 1000
    report.extra["compare"] = {
        "with": name,
        "mAP": compared.mAP,
        "rank1": compared.rank1,
        "difference": compare(report, compared, draws, options.seed),
    }
    return compared


def _explain(options: Options, sides: "Sides", settings: dict[str, Any]) -> None:
    """Print what each rule that differs between two protocols contributes."""
    from mmga.common.progress import bar_of
    from mmga.retrieval.explain import explain, table
    from mmga.retrieval.metrics.report import write_json

    if rules_of(options).one_set:
        raise UserError("--explain needs a query and a gallery")
    for name in cli.changed(options, *_NOT_EXPLAINED):
        raise UserError(f"--explain compares plain figures; leave out {cli.flag(name)}")
    group = settings["group"]
    names = ("metric", "exact", "device", "memory", "exclude", "group", "query_shares")
    passed = {name: settings[name] for name in names}
    with bar_of(group.leads) as progress:
        steps = explain(*sides, *(options.explain or ()), progress=progress, **passed)
    notes: list[str] = []
    for side in sides:
        for text in group.texts(json.dumps([] if side is None else side.notes)):
            notes += json.loads(text)
    with group.together():
        if not group.leads:
            return
        if options.json is not None:
            write_json(options.json, {"schema": 1, "explain": steps})
        print(table(steps))
        if options.json is not None:
            print(f"report: {options.json}")
        for note in dict.fromkeys(notes):
            print(cli.wrapped(f"note: {note}", 2))


def _without_reports(options: Options) -> "tuple[Options, dict[str, Report | str]]":
    """Return the options without the reports that --compare names, and these reports."""
    for path in options.compare:
        if path.lower().endswith((".html", ".htm")):
            raise UserError(
                f"--compare: {path} is a page; name features, or the report of that run, which "
                "mmga eval --json writes"
            )
    reports = [path for path in options.compare if _is_report(path)]
    if reports and options.report is None:
        raise UserError(
            f"--compare: {reports[0]} is a report, whose curves a page shows: give --report, too, "
            "or name features"
        )
    features = tuple(path for path in options.compare if path not in reports)
    return dataclasses.replace(options, compare=features), {path: path for path in reports}


def _is_report(path: str) -> bool:
    """Return whether a file that --compare names is a report of --json, not a list of shards."""
    if not path.lower().endswith(".json"):
        return False
    try:
        return "shards" not in read_json_object(path)
    except ValueError:  # whoever reads it says why
        return True


def _write_page(
    options: Options, evaluated: "Evaluated", others: "dict[str, Report | str]"
) -> None:
    """Write the page of an evaluation, and print what should be known of it."""
    from mmga.common.progress import bar
    from mmga.pages.report import Compared, Page, write_report

    assert options.report is not None
    compared: list[Compared] = []
    for name, one in others.items():
        if isinstance(one, str):
            compared += Compared.of_file(one)
        else:
            compared.append(Compared.of_report(name, one))
    page = Page(compared, options.images, _inputs(options), _command(options))
    with bar() as progress:
        notes = write_report(options.report, evaluated, page, progress)
    print(f"page: {options.report}")
    for note in notes:
        print(f"mmga eval: note: {note}", file=sys.stderr)


def _inputs(options: Options) -> list[tuple[str, Path]]:
    """Return the files that were read, each with what it was given as."""
    from mmga.retrieval.features.load import expanded

    found: list[tuple[str, Path]] = []
    for name in _READ:
        value = getattr(options, name)
        if name == "compare":
            found += [(name, Path(path)) for path in value if _is_report(path)]
            value = tuple(path for path in value if not _is_report(path))
        found += [(name, path) for path in (expanded(value) if value else ())]
    if options.run is not None:
        checkpoint = options.run / "last.safetensors" if options.run.is_dir() else options.run
        found.append(("run", checkpoint))
    return found


def _command(options: Options) -> str:
    """Return the command line that spells options."""
    import shlex

    from mmga.common.option_fields import options_of

    words = ["mmga", "eval"]
    for option, before in zip(options_of(options), options_of(Options()), strict=True):
        value = option.default
        if value == before.default:
            continue
        words.append(option.flag)
        if not isinstance(value, bool):
            words += map(str, value if isinstance(value, tuple) else [value])
    return shlex.join(words)


def main(argv: list[str] | None = None) -> None:
    """Run the command."""
    cli.run("eval", Options, body, argv, shared=True)


if __name__ == "__main__":
    main(sys.argv[1:])
