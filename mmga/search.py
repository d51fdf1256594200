"""`python -m mmga.search`: the nearest gallery items of every query, from feature files.

mmga search --query q.npz --gallery g.npz --topk 20 --out results.csv
mmga search --query q.npz --gallery g.npz --rerank
mmga search --gallery g.npz --save-index gallery.mmga-index
mmga search --query q.npz --index gallery.mmga-index
"""

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from mmga.common import cli
from mmga.common.errors import UserError
from mmga.common.options import FeatureFile, FeatureFiles, Size
from mmga.retrieval.reranking.settings import KReciprocal, Variant

if TYPE_CHECKING:
    from mmga.common.progress import Progress
    from mmga.retrieval.features import Features

_RULE = ("k1", "k2", "lambda_value", "variant")  # of re-ranking
_SHOWN = 20  # queries in the table; files hold all


@dataclass(frozen=True, slots=True)
class Options:
    """Find the nearest gallery items of every query, exactly."""

    GROUPS: ClassVar = {
        "query": "features",
        "index": "a saved index in place of a gallery",
        "topk": "search",
        "rerank": "re-ranking",
        "expand": "query expansion",
        "out": "output",
    }

    query: FeatureFiles = ()
    """Features of the queries: .npz, .safetensors, .mat, .h5, .pt, .npy or a folder of .npy files;
    several shards, or a pattern in quotes, which is read in natural order."""
    gallery: FeatureFiles = ()
    """Features of the gallery, in the same formats."""
    features: FeatureFile = None
    """One file that holds both sides."""
    query_columns: Path | None = None
    """CSV table with further columns of the queries (and pid, camid, path where the file has none);
    lines belong to rows by path if both have paths, else by order."""
    gallery_columns: Path | None = None
    """CSV table with further columns of the gallery."""
    pattern: str | None = None
    """Regular expression whose groups pid and camid are read from paths where they are not known
    otherwise, such as "(?P<pid>[^/]+)/cam(?P<camid>[0-9]+)_"."""
    index: Path | None = None
    """Folder that --save-index wrote: each query is re-ranked by itself."""
    save_index: Path | None = None
    """Write the gallery's neighbour structure to this .mmga-index folder, for --index."""
    topk: int = 10
    """Gallery items for each query."""
    metric: Literal["cosine", "euclidean"] = "cosine"
    """Distance: cosine is 1 - cos, euclidean the Euclidean distance."""
    exact: Literal["certified", "float32"] | None = None
    """Whose order counts where distances nearly tie: float64 arithmetic's, on any machine, or that
    of float32 tiles; by default certified where it can be."""
    memory: Size = None
    """Bytes that may be allocated beyond the features, such as 512M or 2G; by default there is
    no bound."""
    rerank: bool = False
    """Re-rank by k-reciprocal encoding, all queries together."""
    k1: int = 20
    """Neighbours that make the k-reciprocal sets."""
    k2: int = 6
    """Neighbours whose encodings are averaged."""
    lambda_value: float = 0.3
    """Weight of the original distance in the re-ranked one, 0 to 1."""
    variant: Variant = "zhong"
    """Rule of the re-ranking: the authors' (zhong), torchreid's or fast-reid's."""
    expand: int = 0
    """Nearest gallery items that each query is averaged with (alpha query expansion); 0 for
    none."""
    augment: int = 0
    """Nearest others that each gallery item is averaged with (database-side augmentation); 0 for
    none."""
    alpha: float = 3.0
    """Weights of --expand and --augment are cosine to this power."""
    out: Path | None = None
    """File for the results, .csv or .json; by default a table is printed."""


def body(options: Options) -> int | None:
    """Search and write."""
    with cli.imports():
        from mmga.common import memory
        from mmga.common.progress import bar
        from mmga.retrieval.features import load_features
        from mmga.retrieval.reranking.index import GalleryIndex
        from mmga.retrieval.reranking.ranked_lists import Search, search_features, search_index

    _check(options)
    rule = KReciprocal(options.k1, options.k2, options.lambda_value, options.variant)
    room = memory.parse(options.memory)
    with bar() as progress:
        if options.save_index is not None:
            _save_index(options, rule, progress)
            if not options.query and options.features is None:
                return None
        query = load_features(*_side(options, "query"), options.query_columns, options.pattern)
        notes: list[str] = []
        index, chosen = None, rule if options.rerank else None
        if options.index is not None:
            index = GalleryIndex.load(options.index)
            found = search_index(query, index, options.topk, progress)
        else:
            gallery = _gallery(options)
            notes += gallery.notes
            averages = options.expand, options.augment, options.alpha
            search = Search(options.topk, options.metric, chosen, *averages, options.exact, room)
            found = search_features(query, gallery, search, progress)
    if len(found.left_out):
        notes.append(
            f"{len(found.left_out)} of {len(query)} queries are junk (pid -1), take no part in "
            "re-ranking and have no list"
        )
    for note in (*query.notes, *notes):
        print(f"mmga search: note: {note}", file=sys.stderr)
    if options.out is None:
        _print(found.records(), options.topk, len(query))
    else:
        metric, used = (options.metric, chosen) if index is None else (index.metric, index.rule)
        rerank = None if used is None else used.as_dict()
        settings = {"topk": options.topk, "metric": metric, "rerank": rerank}
        with bar() as progress:
            found.write(options.out, settings, progress)
    return None


def _check(options: Options) -> None:
    if options.out is not None and options.out.suffix not in (".csv", ".json"):
        raise UserError(f"--out must end in .csv or .json, got {options.out}")
    if options.metric == "euclidean" and (options.expand or options.augment):
        raise UserError("--expand and --augment average normalised features: use --metric cosine")
    if not (options.expand or options.augment) and cli.changed(options, "alpha"):
        raise UserError("--alpha belongs to --expand and --augment: give one")
    if options.features is not None and (options.query or options.gallery):
        raise UserError("--features holds both sides: leave out --query and --gallery")
    if options.index is None and options.save_index is None and not options.rerank:
        for name in cli.changed(options, *_RULE):
            raise UserError(f"{cli.flag(name)} belongs to --rerank or --save-index: give one")
    if options.index is not None:
        given = ("gallery", "features", "gallery_columns", "save_index", "expand", "augment")
        search = ("rerank", "metric", "exact", "memory", *_RULE)
        for name in cli.changed(options, *given, *search):
            raise UserError(
                f"--index stands for the gallery and its settings: leave out {cli.flag(name)}"
            )
        if not options.query:
            raise UserError("--query is missing: the features to look for in --index")
    elif options.features is None:
        for name in ("query", "gallery"):
            if not getattr(options, name) and not (name == "query" and options.save_index):
                raise UserError(f"--{name} is missing: give a file of features, or --features")


def _side(options: Options, side: str) -> tuple[str | tuple[str, ...], str | None]:
    """Return the files of a side, and the side's name where the file holds both."""
    if options.features is not None:
        return options.features, side
    return getattr(options, side), None


def _gallery(options: Options) -> "Features":
    from mmga.retrieval.features import load_features

    return load_features(*_side(options, "gallery"), options.gallery_columns, options.pattern)


def _save_index(options: Options, rule: KReciprocal, progress: "Progress") -> None:
    import numpy as np

    from mmga.retrieval.features import JUNK
    from mmga.retrieval.reranking.index import ROW, GalleryIndex

    gallery = _gallery(options)
    rows = np.flatnonzero(gallery.pids != JUNK)
    junk = len(gallery) - len(rows)
    if junk:
        gallery = gallery.select(rows)
        print(
            f"mmga search: {junk} junk items (pid {JUNK}) are left out of the index, whose numbers "
            "are of those left; results add gallery_row, their rows in the file",
            file=sys.stderr,
        )
    index = GalleryIndex.build(
        gallery,
        rule,
        options.metric,
        exact=options.exact,
        memory=options.memory,
        progress=progress,
    )
    if junk:
        index.labels[ROW] = rows
    index.save(options.save_index or "")


def _print(rows: Iterator[dict[str, Any]], topk: int, queries: int) -> None:
    """Print a block for each of the first queries: its labels, and its items by rank.

    Paths stand last and are not cut, so that the numbers stay in their columns on any terminal.
    """
    for number, row in enumerate(rows):
        if number == _SHOWN * topk:
            break
        if row["rank"] == 1:
            own = [
                f"{name[6:]} {value}" for name, value in row.items() if name.startswith("query_")
            ]
            print("\n" * bool(number) + f"query {row['query']}: {', '.join(own)}".rstrip(": "))
            print(
                "  rank  distance" + "".join(_cell(name, name[8:] or name) for name in _items(row))
            )
        cells = "".join(_cell(name, row[name]) for name in _items(row))
        print(f"{row['rank']:>6}  {row['distance']:8.6f}{cells}")
    if queries > _SHOWN:
        print(f"{_SHOWN} of {queries} queries shown; --out results.csv writes all")


def _items(row: dict[str, Any]) -> list[str]:
    """Return the columns about gallery items, the path last."""
    names = [name for name in row if name.startswith("gallery")]
    return sorted(names, key=lambda name: name == "gallery_path")


def _cell(column: str, value: Any) -> str:
    value = "-" if value is None else value  # not known
    if column == "gallery_path":
        return f"  {value}"
    return f"  {value:>{max(len(column[8:]), 7)}}"


def main(argv: list[str] | None = None) -> None:
    """Run the command."""
    cli.run("search", Options, body, argv)


if __name__ == "__main__":
    main()
