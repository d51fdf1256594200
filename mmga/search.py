"""`python -m mmga.search`: the nearest gallery items of every query, from feature files.

python -m mmga.search --query q.npz --gallery g.npz --topk 20 --out results.csv
python -m mmga.search --query q.npz --gallery g.npz --rerank
python -m mmga.search --gallery g.npz --save-index gallery.mmga-index
python -m mmga.search --query q.npz --index gallery.mmga-index
"""

import csv
import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from mmga.common import cli
from mmga.common.errors import UserError
from mmga.retrieval.reranking.settings import KReciprocal, Variant

if TYPE_CHECKING:
    import numpy as np

    from mmga.common.progress import Progress
    from mmga.retrieval.features import Features
    from mmga.retrieval.reranking.index import GalleryIndex

_RULE = ("k1", "k2", "lambda_value", "variant")  # of re-ranking
_SHOWN = 20  # queries in the table; files hold all


@dataclass(frozen=True, slots=True)
class Options:
    """Find the nearest gallery items of every query, exactly."""

    query: str | None = None
    """Features of the queries (.npz, .safetensors, .mat, .h5, .pt, a folder of .npy), or shards."""
    gallery: str | None = None
    """Features of the gallery, likewise."""
    features: str | None = None
    """One file with both sides."""
    query_columns: Path | None = None
    """CSV table with further columns of the queries (and pid, camid, path where the file has none);
    lines belong to rows by path if both have paths, else by order."""
    gallery_columns: Path | None = None
    """The same of the gallery."""
    index: Path | None = None
    """A saved neighbour structure instead of a gallery: each query is re-ranked by itself."""
    save_index: Path | None = None
    """Write the gallery's neighbour structure to this .mmga-index folder, for --index."""
    topk: int = 10
    """Items for each query."""
    metric: Literal["cosine", "euclidean"] = "cosine"
    """cosine: 1 - cos. euclidean: the Euclidean distance."""
    rerank: bool = False
    """k-reciprocal re-ranking of all queries together."""
    k1: int = 20
    """Neighbours that make the k-reciprocal sets."""
    k2: int = 6
    """Neighbours whose encodings are averaged."""
    lambda_value: float = 0.3
    """Weight of the original distance in the re-ranked one."""
    variant: Variant = "zhong"
    """Rule of the re-ranking."""
    expand: int = 0
    """Average each query with so many nearest gallery items (alpha query expansion; cosine)."""
    augment: int = 0
    """Average each gallery item with so many nearest others (database-side augmentation)."""
    alpha: float = 3.0
    """Weights of --expand and --augment are cosine to this power."""
    out: Path | None = None
    """Results as .csv or .json; without it a table is printed."""


def body(options: Options) -> int | None:
    """Search and write."""
    from mmga.common import progress as bars

    _check(options)
    rule = KReciprocal(options.k1, options.k2, options.lambda_value, options.variant)
    with bars.bar() as progress:
        if options.save_index is not None:
            _save_index(options, rule, progress)
            if options.query is None and options.features is None:
                return None
        query, gallery, distances, indices = _search(options, rule, progress)
    rows = _rows(query, gallery, distances, indices)
    if options.out is None:
        _print(rows, options.topk, len(query))
    else:
        _write(options, rows)
    return None


def _check(options: Options) -> None:
    if options.out is not None and options.out.suffix not in (".csv", ".json"):
        raise UserError(f"--out must end in .csv or .json, got {options.out}")
    if options.metric == "euclidean" and (options.expand or options.augment):
        raise UserError("--expand and --augment average normalised features: use --metric cosine")
    if options.features is not None and (options.query or options.gallery):
        raise UserError("--features holds both sides: leave out --query and --gallery")
    if options.index is None and options.save_index is None and not options.rerank:
        for name in cli.changed(options, *_RULE):
            raise UserError(f"{cli.flag(name)} belongs to --rerank or --save-index: give one")
    if options.index is not None:
        given = ("gallery", "features", "gallery_columns", "save_index", "expand", "augment")
        for name in cli.changed(options, *given, "rerank", "metric", *_RULE):
            raise UserError(
                f"--index stands for the gallery and its settings: leave out {cli.flag(name)}"
            )
        if options.query is None:
            raise UserError("--query is missing: the features to look for in --index")
    elif options.features is None:
        for name in ("query", "gallery"):
            if getattr(options, name) is None and not (name == "query" and options.save_index):
                raise UserError(f"--{name} is missing: give a file of features, or --features")


def _sides(options: Options) -> "tuple[Features, Features]":
    from mmga.retrieval.features import load_features

    columns = options.query_columns, options.gallery_columns
    if options.features is not None:
        return (
            load_features(options.features, "query", columns[0]),
            load_features(options.features, "gallery", columns[1]),
        )
    return (
        load_features(options.query or "", columns=columns[0]),
        load_features(options.gallery or "", columns=columns[1]),
    )


def _search(
    options: Options, rule: KReciprocal, progress: "Progress"
) -> "tuple[Features, dict[str, Any], np.ndarray, np.ndarray]":
    """Return the queries, the gallery's labels, distances and indices [Q, topk]."""
    from mmga.retrieval.features import Features, load_features
    from mmga.retrieval.neighbours.knn import nearest
    from mmga.retrieval.neighbours.query_expansion import augment_gallery, expand_queries
    from mmga.retrieval.reranking.index import row_labels
    from mmga.retrieval.reranking.rerank import rerank

    if options.index is not None:
        query = load_features(options.query or "", columns=options.query_columns)
        return _search_index(options, query, progress)
    query, gallery = _sides(options)
    labels = row_labels(gallery)
    found: Any = query
    among: Any = gallery
    if options.augment:
        among = augment_gallery(gallery, options.augment, options.alpha, progress=progress)
    if options.expand:
        found = expand_queries(query, among, options.expand, options.alpha, progress=progress)
    if options.rerank:
        # Labels say what is junk, which the neighbour graph leaves out.
        found, among = (
            side if isinstance(side, Features) else Features(side, original.pids)
            for side, original in ((found, query), (among, gallery))
        )
        near = rerank(
            found, among, rule, metric=options.metric, topk=options.topk, progress=progress
        )
    else:
        near = nearest(found, among, options.topk, options.metric, progress=progress)
    return query, labels, near[0].numpy(), near[1].numpy()


def _search_index(
    options: Options, query: "Features", progress: "Progress"
) -> "tuple[Features, dict[str, Any], np.ndarray, np.ndarray]":
    import numpy as np
    import torch

    from mmga.ops.neighbours import nearest_in_rows
    from mmga.retrieval.reranking.index import GalleryIndex

    index = GalleryIndex.load(options.index or "")
    if not 1 <= options.topk <= len(index):
        raise UserError(f"--topk must be from 1 to the {len(index)} items, got {options.topk}")
    distances, indices = [], []
    for number in range(len(query)):
        final = torch.from_numpy(index.rerank(query.rows.block(number, number + 1)[0]))
        near, which = nearest_in_rows(final[None], options.topk)
        distances.append(near[0].numpy())
        indices.append(which[0].numpy())
        progress("re-ranking", number + 1, len(query))
    return query, index.labels, np.stack(distances), np.stack(indices)


def _save_index(options: Options, rule: KReciprocal, progress: "Progress") -> "GalleryIndex":
    from mmga.retrieval.features import JUNK, load_features
    from mmga.retrieval.reranking.index import GalleryIndex

    if options.features is not None:
        gallery = load_features(options.features, "gallery", options.gallery_columns)
    else:
        gallery = load_features(options.gallery or "", columns=options.gallery_columns)
    junk = int((gallery.pids == JUNK).sum())
    if junk:
        gallery = gallery.select(gallery.pids != JUNK)
        print(
            f"mmga search: {junk} junk items (pid {JUNK}) are left out of the index, whose numbers "
            "are of those left",
            file=sys.stderr,
        )
    index = GalleryIndex.build(gallery, rule, options.metric, progress=progress)
    index.save(options.save_index or "")
    return index


def _rows(
    query: "Features", gallery: dict[str, Any], distances: "np.ndarray", indices: "np.ndarray"
) -> Iterator[dict[str, Any]]:
    """Yield one record for each query and rank."""
    from mmga.retrieval.reranking.index import row_labels

    own = row_labels(query)
    for number, (near, which) in enumerate(zip(distances, indices, strict=True)):
        for rank, (distance, item) in enumerate(zip(near, which, strict=True), 1):
            record: dict[str, Any] = {"query": number}
            record |= {f"query_{name}": _plain(values[number]) for name, values in own.items()}
            record |= {"rank": rank, "gallery": int(item), "distance": float(distance)}
            record |= {f"gallery_{name}": _plain(values[item]) for name, values in gallery.items()}
            yield record


def _plain(value: Any) -> Any:
    return value.item() if hasattr(value, "item") else value


def _write(options: Options, rows: Iterator[dict[str, Any]]) -> None:
    from mmga.common.files import atomic_path

    out = options.out or Path()
    with atomic_path(out) as path, path.open("w", newline="") as file:
        if out.suffix == ".json":
            settings = {"topk": options.topk, "metric": options.metric}
            json.dump({"schema": 1, **settings, "results": list(rows)}, file, indent=1)
            file.write("\n")
            return
        writer = None
        for row in rows:
            if writer is None:
                writer = csv.DictWriter(file, list(row))
                writer.writeheader()
            writer.writerow(row)


def _print(rows: Iterator[dict[str, Any]], topk: int, queries: int) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None)
    for number, row in enumerate(rows):
        if number == _SHOWN * topk:
            break
        if not number:
            for name in row:
                table.add_column(name.replace("_", " "), justify="right", overflow="fold")
        cells = [f"{cell:.6f}" if isinstance(cell, float) else str(cell) for cell in row.values()]
        table.add_row(*cells, end_section=row["rank"] == topk)
    console = Console()
    console.print(table)
    if queries > _SHOWN:
        console.print(f"{_SHOWN} of {queries} queries shown; --out results.csv writes all")


def main(argv: list[str] | None = None) -> None:
    """Run the command."""
    cli.run("search", Options, body, argv)


if __name__ == "__main__":
    main()
