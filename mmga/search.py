"""`python -m mmga.search`: the nearest gallery items of every query, from features or images.

mmga search --run runs/x --query photo.jpg --gallery DIR --out sheet.html
mmga search --model timm.models:resnet50 --query photo.jpg --gallery DIR --out sheet.png
mmga search --query q.npz --gallery g.npz --topk 20 --out results.csv
mmga search --query q.npz --gallery g.npz --rerank
mmga search --gallery g.npz --save-index gallery.mmga-index
mmga search --query q.npz --index gallery.mmga-index
"""

import itertools
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from mmga.common import cli
from mmga.common.errors import UserError
from mmga.common.options import Device, FeatureFile, FeatureFiles, Flag, Size
from mmga.config import check_ranges
from mmga.retrieval.reranking.settings import KReciprocal, Variant

if TYPE_CHECKING:
    import numpy as np

    from mmga.common.distributed import Group
    from mmga.common.paths import Files
    from mmga.common.progress import Progress
    from mmga.extraction.embedder import Embedder
    from mmga.retrieval.features import Features
    from mmga.retrieval.reranking.ranked_lists import RankedLists, SearchSide

_RULE = ("k1", "k2", "lambda_value", "variant")  # of re-ranking
_SHOWN = 20  # queries in the table; files hold all
_SHEETS = (".html", ".png")
_READ = ("query", "gallery", "features", "query_columns", "gallery_columns", "index")
_NETWORK = ("model_arguments", "model_weights", "height", "width")  # of --model
_IMAGES = ("flip", "batch_size", "skip_broken", "workers", "device", "cache_folder")


@dataclass(frozen=True, slots=True)
class Options:
    """Find the nearest gallery items of every query, exactly."""

    GROUPS: ClassVar = {
        "query": "features or images",
        "run": "a network, for images in place of features",
        "index": "a saved index in place of a gallery",
        "topk": "search",
        "rerank": "re-ranking",
        "expand": "query expansion",
        "out": "output",
    }

    query: FeatureFiles = ()
    """Features of the queries: .npz, .safetensors, .mat, .h5, .pt, .parquet, .npy or a folder of
    .npy files; several shards, or a pattern in quotes, which is read in natural order; with --run
    or --model also images and folders of images."""
    gallery: FeatureFiles = ()
    """Features of the gallery, in the same formats; with --run or --model also a folder of images,
    or a CSV table with the columns path and, optionally, pid and camid."""
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
    run: Path | None = None
    """Folder of a run, or one of its checkpoints, that extracts the features of images."""
    model: Annotated[str | None, Flag(value="PACKAGE:CALLABLE")] = None
    """Any torch.nn.Module that returns features [B, D], such as timm.models:resnet50."""
    model_arguments: Annotated[str, Flag(value="JSON")] = "{}"
    """Keyword arguments for --model."""
    model_weights: Annotated[Path | None, Flag(value="FILE")] = None
    """File of weights for --model: a plain state dict (.pth, .pt, .safetensors)."""
    height: int = 256
    """Image height in pixels; with --model."""
    width: int = 128
    """Image width in pixels; with --model."""
    flip: Annotated[bool, Flag(name="flip-test")] = True
    """Sum the features of an image and of its mirror image."""
    cache_folder: Path | None = None
    """Parent of the folder in which the features of the gallery's images are kept; by default they
    are kept beside the images, in <gallery>.mmga-features."""
    skip_broken: bool = False
    """Leave out and count images that cannot be decoded, instead of stopping."""
    batch_size: int = 64
    """Images at a time in the network."""
    workers: int = 0
    """Processes that load images; 0 loads in the process itself."""
    device: Device = "auto"
    """auto, cpu, cuda or cuda:N; of the network."""
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
    """Neighbours that make the k-reciprocal sets; all items where there are fewer."""
    k2: int = 6
    """Neighbours whose encodings are averaged; all items where there are fewer."""
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
    """File for the results, .csv or .json, or a sheet of the images, .html or .png; by default a
    table is printed."""
    images: Path | None = None
    """Folder of the images that the paths in files of features are relative to, for a sheet; none
    outside of it is shown."""


def body(options: Options) -> None:
    """Search and write."""
    with cli.imports():
        from mmga.common.distributed import join, own_device

    check_ranges(options)
    _check(options)
    if options.out is not None and options.out.suffix in _SHEETS:
        from mmga.pages.sheet import check_packages

        check_packages(options.out)
    with join(own_device("cpu"), watched="search") as group:
        if group.world > 1:
            _check_shared(options)
        _search(options, group)


def _search(options: Options, group: "Group") -> None:
    """Search by one process or several, of which the first one prints and writes."""
    from mmga.common import memory
    from mmga.common.progress import bar_of
    from mmga.retrieval.reranking.index import GalleryIndex
    from mmga.retrieval.reranking.ranked_lists import Search, search_features, search_index

    rule = KReciprocal(options.k1, options.k2, options.lambda_value, options.variant)
    room = memory.parse(options.memory)
    with bar_of(group.leads) as progress:
        network = _network(options)
        if options.save_index is not None:
            _save_index(options, rule, network, progress, group)
            if not options.query and options.features is None:
                return
        with group.together():
            query = _side(options, "query", network, progress)
        index, gallery, chosen = None, None, rule if options.rerank else None
        if options.index is not None:
            index = GalleryIndex.load(options.index, group=group)
            files = _files(options, index.labels.get("path"), str(options.index))
            found = search_index(query.features, index, _topk(options, len(index)), progress)
        else:
            if group.world == 1:
                gallery = _side(options, "gallery", network, progress)
            else:
                gallery = _shared_gallery(options, group)
            files = gallery.files
            averages = options.expand, options.augment, options.alpha
            topk = _topk(options, len(gallery.features.pids))
            search = Search(topk, options.metric, chosen, *averages, options.exact, room)
            found = search_features(query.features, gallery.features, search, progress, group)
    notes = [*query.notes, *([] if gallery is None else gallery.notes)]
    if len(found.left_out):
        notes.append(
            f"{len(found.left_out)} of {len(query.features)} queries are junk (pid -1), take no "
            "part in re-ranking and have no list"
        )
    metric, used = (options.metric, chosen) if index is None else (index.metric, index.rule)
    rerank = None if used is None else used.as_dict()
    settings = {"topk": found.indices.shape[1], "metric": metric, "rerank": rerank}
    with group.together():
        if group.leads:
            _say(notes)
            _write(options, found, (query.files, files), settings)


def _write(
    options: Options,
    found: "RankedLists",
    files: "tuple[Files | None, Files | None]",
    settings: dict[str, Any],
) -> None:
    """Write what was found to a file, or print it."""
    from mmga.common.progress import bar

    if options.out is None:
        _print(found.records(), found.indices.shape[1], len(found.query))
        rule = ", ".join(f"{name} {value}" for name, value in (settings["rerank"] or {}).items())
        print(f"distances: {settings['metric']}{rule and ', re-ranked by ' + rule}")
        return
    with bar() as progress:
        if options.out.suffix in _SHEETS:
            assert files[0] is not None and files[1] is not None  # as _files has made sure
            _write_sheet(options, found, (files[0], files[1]), settings, progress)
        else:
            found.write(options.out, settings, progress)
    print(f"ranked lists: {options.out}")


def _check_shared(options: Options) -> None:
    """Refuse what several processes would each do as a whole."""
    for name in cli.changed(options, "run", "model"):
        raise UserError(
            f"{cli.flag(name)}: several processes search files of features; extract them first by "
            "mmga extract, or start one process"
        )


def _check(options: Options) -> None:
    if options.out is not None and options.out.suffix not in (".csv", ".json", *_SHEETS):
        raise UserError(f"--out must end in .csv, .json, .html or .png, got {options.out}")
    if options.images is not None and not options.images.is_dir():
        raise UserError(
            f"--images: {options.images} is no folder; name the one that paths begin at"
        )
    cli.check_overwriting(options, _READ, ("save_index", "out"))
    if options.run is not None and options.model is not None:
        raise UserError("--run and --model are two networks; give one of them")
    if options.model is None:
        for name in cli.changed(options, *_NETWORK):
            raise UserError(f"{cli.flag(name)} belongs to --model: give one")
        for name in cli.changed(options, *_IMAGES) if options.run is None else ():
            flag = "--no-flip-test" if name == "flip" else cli.flag(name)
            raise UserError(f"{flag} belongs to images: name their network by --run or --model")
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


def _network(options: Options) -> "Embedder | None":
    """Return the network that extracts the features of images, if one is named.

    Raises:
        UserError: it cannot be loaded, or no side names images; or one does, without a network.
    """
    from mmga.data.readers.image_list import are_images

    sides = {name: getattr(options, name) for name in ("query", "gallery")}
    images = [name for name, words in sides.items() if are_images(words)]
    if options.run is None and options.model is None:
        for name in images:
            raise UserError(
                f"--{name} {sides[name][0]} is no file of features: where it names images, give "
                "their network by --run or --model"
            )
        return None
    if not images:
        raise UserError(
            "--run and --model extract the features of images, and neither --query nor --gallery "
            "names any; leave them out"
        )
    from mmga.common import memory
    from mmga.extraction.embedder import embedder_of_model
    from mmga.extraction.of_run import embedder_of_run

    memory.keep_freed()
    if options.run is not None:
        return embedder_of_run(options.run, device=options.device, flip=options.flip, parts=False)
    return embedder_of_model(
        options.model or "",
        options.model_arguments,
        options.model_weights,
        (options.height, options.width),
        options.device,
        options.flip,
    )


def _side(
    options: Options, side: str, network: "Embedder | None", progress: "Progress | None"
) -> "SearchSide":
    """Return queries or gallery, from images where they name some."""
    from mmga.data.readers.image_list import are_images
    from mmga.retrieval.features import load_features
    from mmga.retrieval.reranking.ranked_lists import SearchSide

    words = getattr(options, side)
    if network is not None and are_images(words):
        from mmga.extraction import searched_images as images

        if getattr(options, f"{side}_columns") is not None:
            raise UserError(f"--{side}-columns belongs to files of features, not to images")
        loading = images.Loading(
            options.pattern,
            options.cache_folder,
            options.batch_size,
            options.workers,
            options.skip_broken,
        )
        read = images.query_images if side == "query" else images.gallery_images
        return read(words, network, loading, progress)
    columns = getattr(options, f"{side}_columns")
    if options.features is not None:
        features = load_features(options.features, side, columns, options.pattern, labelled=False)
    else:
        features = load_features(words, None, columns, options.pattern, labelled=False)
    files = _files(options, features.paths, f"--{side} {features.source}")
    return SearchSide(features, files, features.notes)


def _shared_gallery(options: Options, group: "Group") -> "SearchSide":
    """Return a gallery with the labels of all its items, and the rows of this process."""
    from mmga.retrieval.features.shares import SharedGallery
    from mmga.retrieval.reranking.ranked_lists import SearchSide

    own = _share(options, group)
    features = SharedGallery.gathered(own, group, columns=True).features
    files = _files(options, features.paths, f"--gallery {features.source}")
    return SearchSide(features, files, features.notes)


def _share(options: Options, group: "Group") -> "Features | None":
    """Return this process' items of the gallery, None for none."""
    from mmga.retrieval.features.load import load_share

    columns, pattern = options.gallery_columns, options.pattern
    with group.together():
        if options.features is not None:
            return load_share(options.features, group, "gallery", columns, pattern, labelled=False)
        return load_share(options.gallery, group, None, columns, pattern, labelled=False)


def _files(options: Options, paths: "np.ndarray | None", title: str) -> "Files | None":
    """Return the images of items whose features came from a file, None where no sheet is drawn.

    Raises:
        UserError: a sheet is to be drawn, and they are not known.
    """
    if options.out is None or options.out.suffix not in _SHEETS:
        return None
    from mmga.common.paths import FilesBelow

    if paths is None:
        raise UserError(f"--out {options.out}: {title} holds no paths of images to draw")
    if options.images is None:
        raise UserError(
            f"--out {options.out}: name the folder that the paths of {title} are relative to by "
            "--images"
        )
    return FilesBelow(options.images, paths)


def _topk(options: Options, items: int) -> int:
    """Return the length of the lists; by default a small gallery is listed whole."""
    topk = options.topk if cli.changed(options, "topk") else min(options.topk, items)
    if not 1 <= topk <= items:
        raise UserError(f"--topk must be from 1 to the {items} gallery items, got {topk}")
    return topk


def _write_sheet(
    options: Options,
    found: "RankedLists",
    files: "tuple[Files, Files]",
    settings: dict[str, Any],
    progress: "Progress | None",
) -> None:
    """Write the lists as a sheet of images, and say what it does not show."""
    from mmga.pages.sheet import MOST, Sheet

    out = options.out or Path()
    shown = {"network": str(options.run or options.model or "")}
    shown["gallery"] = " ".join(options.gallery) or str(options.features or options.index)
    shown["gallery images"] = str(len(files[1]))
    shown["distance"] = settings["metric"]
    rule = settings["rerank"] or {}
    shown["re-ranked by"] = ", ".join(f"{name} {value}" for name, value in rule.items())
    about = {name: value for name, value in shown.items() if value}
    sheet = Sheet.of(found, files, about, MOST[out.suffix])
    sheet.write(out, progress)
    if len(sheet.rows) < sheet.total - len(found.left_out):
        _say(
            [
                f"{out} shows the first {len(sheet.rows)} of {sheet.total} queries; a .csv or "
                ".json file holds all"
            ]
        )
    if sheet.missing:
        many = len(sheet.missing)
        _say(
            [
                f"{many} images of {out} are not below {options.images}, the first is "
                f"{sheet.missing[0]}"
            ]
        )
    if sheet.unreadable:
        many = len(sheet.unreadable)
        _say([f"{many} images of {out} cannot be read, the first is {sheet.unreadable[0]}"])


def _say(notes: list[str]) -> None:
    for note in notes:
        print(f"mmga search: note: {note}", file=sys.stderr)


def _save_index(
    options: Options,
    rule: KReciprocal,
    network: "Embedder | None",
    progress: "Progress | None",
    group: "Group",
) -> None:
    import numpy as np
    import torch

    from mmga.retrieval.features import JUNK
    from mmga.retrieval.reranking.index import GalleryIndex
    from mmga.retrieval.reranking.index_files import ROW

    gallery: Features | None
    if group.world > 1:
        gallery = _share(options, group)
    else:
        side = _side(options, "gallery", network, progress)
        gallery = side.features
        _say(side.notes if network is not None else [])
    count = 0 if gallery is None else len(gallery)
    rows = np.arange(0) if gallery is None else np.flatnonzero(gallery.pids != JUNK)
    counts = group.table([count, count - len(rows)]).long()
    junk = int(counts[:, 1].sum())
    if junk and group.leads:
        print(
            f"mmga search: {junk} junk items (pid {JUNK}) are left out of the index, whose numbers "
            "are of those left; results add gallery_row, their rows in the file",
            file=sys.stderr,
        )
    if gallery is not None and len(rows) < count:
        gallery = gallery.select(rows)
    index = GalleryIndex.build(
        gallery,
        rule,
        options.metric,
        exact=options.exact,
        memory=options.memory,
        progress=progress,
        group=group,
    )
    if junk:
        rows += int(counts[: group.rank, 0].sum())
        index.labels[ROW] = group.rows(torch.from_numpy(rows)).numpy()
    index.save(options.save_index or "")
    if group.leads:
        print(f"index: {options.save_index}")


def _print(rows: Iterator[dict[str, Any]], topk: int, queries: int) -> None:
    """Print a block for each of the first queries: its labels, and its items by rank.

    Paths stand last and are not cut, so that the numbers stay in their columns on any terminal.
    """
    shown = list(itertools.islice(rows, _SHOWN * topk))
    known = {name for row in shown for name, value in row.items() if value is not None}
    for number, whole in enumerate(shown):
        row = {name: value for name, value in whole.items() if name in known}
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
    cli.run("search", Options, body, argv, shared=True)


if __name__ == "__main__":
    main()
