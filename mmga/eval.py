"""`python -m mmga.eval`: CMC, mAP and mINP of feature files, plain and re-ranked.

python -m mmga.eval --query q.npz --gallery g.npz
python -m mmga.eval --features pytorch_result.mat --protocol market1501-matlab
python -m mmga.eval --query q.npz --gallery 'shard-*.npz' --memory 2G --json out.json
python -m mmga.eval --run runs/x --data market1501 --root DIR
"""

import dataclasses
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from mmga.common import cli
from mmga.common.errors import UserError
from mmga.config import DataName
from mmga.retrieval.protocols.protocol import ProtocolName

if TYPE_CHECKING:
    from mmga.retrieval.features import Features
    from mmga.retrieval.reranking.settings import KReciprocal


@dataclass(frozen=True, slots=True)
class Options:
    """Evaluate features: CMC, mAP and mINP, exactly, at any gallery size."""

    query: tuple[str, ...] = ()
    """Features of the queries: .npz, .safetensors, .mat, .h5, .pt, .npy or a folder of .npy files;
    several shards, or a pattern in quotes, which is read in natural order."""
    gallery: tuple[str, ...] = ()
    """Features of the gallery, likewise."""
    features: str | None = None
    """One file that holds both sides, or the one set of protocol all-vs-all."""
    query_columns: Path | None = None
    """CSV table with further columns of the queries (and pid, camid, path where the file has none);
    lines belong to rows by path if both have paths, else by order."""
    gallery_columns: Path | None = None
    """The same of the gallery."""
    run: Path | None = None
    """A trained run (or one of its checkpoints) whose test split is extracted and evaluated."""
    data: DataName | None = None
    """With --run: another data set than the run was trained on."""
    root: Path | None = None
    """With --run: folder of that data set."""
    metric: Literal["cosine", "euclidean"] = "cosine"
    """Distance."""
    protocol: ProtocolName | None = None
    """Which items count for a query, and how ranks become figures: market1501 where none is named,
    with --run that of its training."""
    rerank: bool = False
    """Report k-reciprocal re-ranking beside the plain figures."""
    k1: int = 20
    """Re-ranking: neighbours."""
    k2: int = 6
    """Re-ranking: neighbours of the local query expansion."""
    lambda_value: float = 0.3
    """Re-ranking: weight of the original distance."""
    exact: Literal["certified", "float32"] | None = None
    """Whose order counts where distances nearly tie: float64 arithmetic's, on any machine, or that
    of float32 tiles. None: certified where it can be; the report says which."""
    max_rank: int = 50
    """Length of the CMC curve."""
    trials: int = 0
    """Seeded draws of protocol cuhk03-single-shot; 0 gives the exact expectation."""
    seed: int = 0
    """Seed of whatever is drawn."""
    pool: Literal["mean", "max"] = "mean"
    """How protocol multi-query pools the images of a query."""
    device: str | None = None
    """Where to compute, such as cpu or cuda:0."""
    memory: str | None = None
    """Bound on what is allocated beyond the features, such as 2G."""
    verification: bool = False
    """Add TPR at FPR, EER, thresholds, and open-set rates."""
    cross_camera: bool = False
    """Verification leaves out impostor pairs of one camera."""
    fpr: float | None = None
    """Verification: one more false positive rate whose threshold is wanted."""
    strangers: float | None = None
    """Open set: share of the identities to take from the gallery; by default half where every query
    has a match, else none."""
    exclude: str | None = None
    """Leave out the pairs for which a condition on columns of the gallery item and query.<column>
    holds, such as "camid == query.camid and abs(time - query.time) < 30"."""
    bootstrap: int = 0
    """Draws of a bootstrap by identity for intervals of mAP and rank-1; 0 for none."""
    compare: tuple[str, ...] = ()
    """Features of the same images by another network, one file with both sides or query and
    gallery: test whether it differs, paired by identity."""
    explain: tuple[ProtocolName, ProtocolName] | None = None
    """Two protocols: say what each rule that differs contributes to the difference."""
    json: str | None = None
    """Write the report to this file."""
    per_query: str | None = None
    """Write one line for each query to this .csv file."""


def with_protocol(options: Options) -> Options:
    """Return the options with the protocol that is meant where none is named."""
    if options.protocol is not None:
        return options
    protocol = None
    if options.run is not None:
        from mmga.models.loading import configuration_of

        protocol = configuration_of(options.run).run.protocol
    return dataclasses.replace(options, protocol=protocol or "market1501")  # type: ignore[arg-type]


def load(options: Options) -> tuple["Features", "Features | None"]:
    """Read both sides; the gallery is None where one set is ranked against itself."""
    from mmga.retrieval.features import load_features

    if options.run is not None:
        if options.features or options.query or options.gallery:
            raise UserError("--run extracts its own features; leave out feature files")
        from mmga.common import memory
        from mmga.common.progress import bar
        from mmga.extraction.of_run import DataChoice, features_of_run

        memory.keep_freed()
        with bar() as progress:
            return features_of_run(
                options.run,
                DataChoice(options.data, options.root),
                device=options.device or "auto",
                multi_query=options.protocol == "multi-query",
                progress=progress,
            )
    if options.data is not None or options.root is not None:
        raise UserError("--data and --root say what a run is evaluated on; name it with --run")
    itself = options.protocol == "all-vs-all"
    columns = {"query": options.query_columns, "gallery": options.gallery_columns}
    if options.features is not None:
        if options.query or options.gallery:
            raise UserError("--features holds both sides; leave out --query and --gallery")
        if itself:
            if options.gallery_columns is not None:
                raise UserError("all-vs-all ranks one set: give its columns as --query-columns")
            return load_features(options.features, columns=options.query_columns), None
        query, gallery = (load_features(options.features, side, columns[side]) for side in columns)
        return query, gallery
    if itself:
        raise UserError("protocol all-vs-all ranks one set against itself: give it as --features")
    if not options.query or not options.gallery:
        missing = "--gallery" if options.query else "--query"
        raise UserError(
            f"{missing} is missing: give --query and --gallery, or --features for a file with both"
        )
    return (
        load_features(options.query, columns=options.query_columns),
        load_features(options.gallery, columns=options.gallery_columns),
    )


def load_other(options: Options) -> "tuple[Features, Features | None]":
    """Read the features that --compare names."""
    from mmga.retrieval.features import load_features

    columns = {"query": options.query_columns, "gallery": options.gallery_columns}
    if options.protocol == "all-vs-all":
        return load_features(options.compare, columns=options.query_columns), None
    if len(options.compare) > 2:
        raise UserError(
            f"--compare: expected one file with both sides, or query and gallery, found "
            f"{len(options.compare)} files"
        )
    if len(options.compare) == 2:
        query, gallery = (
            load_features(path, columns=columns[side])
            for path, side in zip(options.compare, columns, strict=True)
        )
    else:
        query, gallery = (load_features(options.compare, side, columns[side]) for side in columns)
    return query, gallery


def reranker(options: Options) -> "KReciprocal | None":
    """Return the re-ranking that the options ask for."""
    if not options.rerank:
        for name in cli.changed(options, "k1", "k2", "lambda_value"):
            raise UserError(f"{cli.flag(name)} belongs to re-ranking: give --rerank, too")
        return None
    from mmga.retrieval.reranking.settings import KReciprocal

    return KReciprocal(options.k1, options.k2, options.lambda_value)


def passed_on(options: Options) -> dict[str, Any]:
    """Return the options that `mmga.evaluate` takes under the same names."""
    import inspect

    from mmga.retrieval.evaluate import evaluate

    parameters = inspect.signature(evaluate).parameters.values()
    names = [one.name for one in parameters if one.kind is one.KEYWORD_ONLY]
    return {name: getattr(options, name) for name in names if name not in ("rerank", "progress")}


def body(options: Options) -> None:
    """Evaluate, print the table, write the files."""
    import time

    from mmga.common import memory
    from mmga.common.progress import bar
    from mmga.retrieval.evaluate import evaluate
    from mmga.retrieval.metrics.bootstrap import bootstrap, compare

    if options.bootstrap and options.bootstrap < 2:
        raise UserError(f"--bootstrap: expected at least 2 draws, found {options.bootstrap}")
    if options.per_query is not None and not options.per_query.lower().endswith(".csv"):
        raise UserError(f"--per-query: expected a .csv file, found {options.per_query}")
    options = with_protocol(options)
    rule = reranker(options)
    memory.baseline()
    begun = time.perf_counter()
    query, gallery = load(options)
    loaded = time.perf_counter() - begun
    other = load_other(options) if options.compare else None
    settings = passed_on(options)
    if options.explain is not None:
        from mmga.retrieval.explain import explain, table
        from mmga.retrieval.metrics.report import write_json

        if gallery is None:
            raise UserError("--explain needs a query and a gallery")
        for name in ("rerank", "verification", "bootstrap", "compare", "per_query"):
            if getattr(options, name):
                raise UserError(f"--explain compares plain figures; leave out {cli.flag(name)}")
        passed = {name: settings[name] for name in ("metric", "device", "memory", "exclude")}
        with bar() as progress:
            steps = explain(query, gallery, *options.explain, progress=progress, **passed)
        if options.json is not None:
            write_json(options.json, {"schema": 1, "explain": steps})
        print(table(steps))
        return
    with bar() as progress:
        report = evaluate(query, gallery, rerank=rule, progress=progress, **settings)
        if other is not None:
            off = {"verification": False, "cross_camera": False, "fpr": None, "strangers": None}
            settings |= off
            try:
                compared = evaluate(*other, progress=progress, **settings)
            except UserError as error:
                raise UserError(f"--compare: {error}") from error
            draws = options.bootstrap or 1000
            report.extra["compare"] = {
                "with": " and ".join(options.compare),
                "mAP": compared.mAP,
                "rank1": compared.rank1,
                "difference": compare(report, compared, draws, options.seed),
            }
        if options.bootstrap:
            intervals = bootstrap(report, options.bootstrap, options.seed)
            report.extra["bootstrap"] = {
                name: interval.as_dict() for name, interval in intervals.items()
            }
    report.seconds["load"] = report.seconds.get("load", 0.0) + loaded
    report.seconds["total"] += loaded
    if options.json is not None:
        report.to_json(options.json)
    if options.per_query is not None:
        report.to_csv(options.per_query)
    print(report.table())


def main(argv: list[str] | None = None) -> None:
    """Run the command."""
    cli.run("eval", Options, body, argv)


if __name__ == "__main__":
    main(sys.argv[1:])
