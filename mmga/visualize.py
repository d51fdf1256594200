"""`python -m mmga.visualize`: pictures of runs, photographs, feature files and trainings.

    mmga visualize --run runs/x
    mmga visualize --run runs/x --images photographs --format pdf
    mmga visualize --query q.npz --gallery g.npz --images market/ --rows 8
    mmga visualize --query q.npz --gallery g.npz --plots cmc roc --sheet-width column
    mmga visualize --metrics runs/x runs/y --out pictures

--run alone draws attention.png (query images, their attention maps, alone and over the image, and
the true masks) and ranked.png (each query's nearest gallery images by the protocol of the run).
With --images it draws attention over photographs, the paper's Figure 1, as photographs.png.

--query and --gallery draw ranked lists of evenly spread queries, of the hardest and of the easiest
ones, figures by camera pair, CMC, ROC, DET, distances and a map of the features. --metrics draws
training curves.
"""

import dataclasses
import math
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, get_args

from mmga.common import cli
from mmga.common.errors import UserError
from mmga.common.options import Device, FeatureFile, FeatureFiles, Flag
from mmga.config import Config, DataName, check_ranges, protocol_of
from mmga.retrieval.protocols.protocol import ProtocolName, of_test_split

if TYPE_CHECKING:
    import numpy as np
    import torch
    from matplotlib.figure import Figure

    from mmga.common.progress import Progress
    from mmga.data.dataset import ImageSet
    from mmga.extraction.attention_maps import MapMaker
    from mmga.extraction.embedder import Embedder
    from mmga.models import MMGA
    from mmga.plots import FolderPictures
    from mmga.retrieval.features import Features

UNGUIDED = "these maps were never guided: the run was trained without masks"
PlotName = Literal[
    "ranked", "hardest", "easiest", "cameras", "cmc", "roc", "det", "distances", "map"
]
_OF_LISTS: tuple[PlotName, ...] = ("ranked", "hardest", "easiest")
Format = Literal["png", "svg", "pdf"]
_WIDTHS = {"column": 88.0, "page": 180.0}


@dataclass(frozen=True, slots=True)
class Options:
    """Draw attention maps, ranked lists, curves and figures by camera."""

    GROUPS: ClassVar = {
        "run": "a run, on its test split",
        "images": "photographs",
        "model": "another network in place of --run",
        "query": "feature files",
        "metrics": "training",
        "rows": "pictures",
        "device": "machine",
    }

    run: Path | None = None
    """Folder of a run, or one of its checkpoints."""
    data: DataName | None = None
    """Data set; by default that of the run."""
    root: Path | None = None
    """Folder of the data set, or of its parent; by default $MMGA_DATA."""
    images: tuple[Path, ...] = ()
    """Folder of images, several, single files or CSV tables with the column path: photographs for
    --run or --model; with --query the folders that hold the images of the feature files."""
    masks: Path | None = None
    """Folder of true masks of the photographs, as mmga masks writes them."""
    model: Annotated[str | None, Flag(value="PACKAGE:CALLABLE")] = None
    """Any torch.nn.Module that returns, or has a method attention that returns, maps [B, 1, h, w]
    by name, in place of --run."""
    model_arguments: Annotated[str, Flag(value="JSON")] = "{}"
    """Keyword arguments for --model."""
    model_weights: Annotated[Path | None, Flag(value="FILE")] = None
    """File of weights for --model: a plain state dict (.pth, .pt, .safetensors)."""
    height: int = 256
    """Image height in pixels; with --model."""
    width: int = 128
    """Image width in pixels; with --model."""
    query: FeatureFiles = ()
    """Features of the queries, in any format of mmga eval."""
    gallery: FeatureFiles = ()
    """Features of the gallery; with --run those of its own, as mmga extract wrote them, found by
    path; by default they are extracted."""
    features: FeatureFile = None
    """One file that holds both sides, or the one set of protocol all-vs-all."""
    pattern: str | None = None
    """Regular expression whose groups pid and camid are read from paths where they are not known
    otherwise."""
    metric: Literal["cosine", "euclidean"] = "cosine"
    """Distance: cosine is 1 - cos, euclidean the Euclidean distance."""
    protocol: ProtocolName | None = None
    """Which items count for a query of the feature files; by default market1501."""
    plots: tuple[PlotName, ...] = ()
    """Which pictures of the feature files; by default all that they allow."""
    metrics: Annotated[tuple[Path, ...], Flag(value="RUN")] = ()
    """Folders of runs, or their metrics.jsonl, whose training curves are drawn together."""
    rows: int = 10
    """Queries or photographs on a sheet, spread evenly over the set."""
    top: Annotated[int, Flag(name="topk", former=("top",))] = 10
    """Gallery items for each query."""
    excluded: bool = False
    """Show gallery items that the protocol leaves out, too, in their places in the lists."""
    format: Format = "png"
    """Kind of the files."""
    sheet_width: Annotated[str | None, Flag(value="MM")] = None
    """Width of the pictures in mm, or column (88) or page (180); by default that of each plot."""
    out: Path | None = None
    """Folder for the files; by default the run's own, and pictures where there is no run."""
    device: Device = "auto"
    """auto, cpu, cuda or cuda:N."""


_EVERYWHERE = ("format", "sheet_width", "out")
_LISTS = ("rows", "top", "excluded")
_ALLOWED = {
    "--metrics": ("metrics",),
    "feature files": (
        *("query", "gallery", "features", "pattern", "metric", "protocol", "plots", "images"),
        *_LISTS,
    ),
    "photographs": (
        *("images", "masks", "run", "model", "model_arguments", "model_weights"),
        *("height", "width", "rows", "device"),
    ),
    "a run's test split": ("run", "data", "root", "gallery", "device", *_LISTS),
}
"""Options by what is drawn."""
_OF_MODEL = ("model_arguments", "model_weights", "height", "width")


def body(options: Options) -> int:
    """Draw what the options ask for, and print the files."""
    check_ranges(options)
    kind = _kind(options)
    _check(options, kind)
    sheets = _Sheets(options)
    with cli.imports():
        from mmga.plots.sheets import check_room
        from mmga.plots.style import need_matplotlib

    need_matplotlib()
    if "top" in _ALLOWED[kind] and (not options.plots or set(_OF_LISTS) & set(options.plots)):
        try:
            check_room(1 + options.top, **sheets.width)
        except UserError as error:
            raise UserError(f"--topk {options.top}: {error}") from error
    draw = {
        "--metrics": _of_metrics,
        "feature files": _of_features,
        "photographs": _of_photographs,
        "a run's test split": _of_run,
    }[kind]
    draw(options, sheets)
    return 0


def _kind(options: Options) -> str:
    """Return what is drawn, a key of `_ALLOWED`."""
    if options.metrics:
        return "--metrics"
    if options.query or options.features is not None:
        return "feature files"
    if options.images or options.model is not None:
        return "photographs"
    if options.run is None:
        raise UserError(
            "--run is missing: name the folder of a trained run, or give --query and --gallery, or "
            "--metrics"
        )
    return "a run's test split"


def _check(options: Options, kind: str) -> None:
    """Refuse options that do not belong to what is drawn, and values out of range."""
    flags = {"top": "--topk"}
    names = [field.name for field in dataclasses.fields(options)]
    for name in cli.changed(options, *names):
        if name not in (*_ALLOWED[kind], *_EVERYWHERE):
            raise UserError(
                f"{flags.get(name, cli.flag(name))} does not belong to {kind}; leave it out"
            )
    if options.rows < 1 or options.top < 1:
        raise UserError("--rows and --topk must be at least 1")
    if kind == "photographs":
        if (options.run is None) == (options.model is None):
            raise UserError("--images needs the network: either --run or --model")
        if not options.images:
            raise UserError("--model needs photographs: name them with --images")
        if options.model is None:
            for name in cli.changed(options, *_OF_MODEL):
                raise UserError(f"{cli.flag(name)} belongs to --model; leave it out")


class _Sheets:
    """Writes figures to a folder, in the format and width of the options."""

    def __init__(self, options: Options) -> None:
        run = options.run
        own = None if run is None else run if run.is_dir() else run.parent
        self.folder = options.out or own or Path("pictures")
        self._format = options.format
        self.width: dict[str, Any] = {}
        if options.sheet_width is not None:
            self.width = {"width": _mm(options.sheet_width)}

    def write(self, name: str, figure: "Figure", what: str) -> None:
        """Write a figure, and print what it shows and where it is."""
        from mmga.plots import save

        path = self.folder / f"{name}.{self._format}"
        save(figure, path)
        print(f"{what}: {path}")


def _mm(word: str) -> float:
    """Return the mm that a word names or spells."""
    try:
        found = _WIDTHS[word] if word in _WIDTHS else float(word)
    except ValueError:
        found = math.nan
    if not 20 <= found <= 1000:
        raise UserError(f"--sheet-width: expected 20 to 1000 mm, column or page, found {word}")
    return found


def _of_metrics(options: Options, sheets: _Sheets) -> None:
    """Draw the training curves of runs."""
    from mmga import plots

    names = [_run_name(path) for path in options.metrics]
    if len(set(names)) < len(names):
        names = [str(path) for path in options.metrics]
    runs = {
        name: plots.read_metrics(path) for name, path in zip(names, options.metrics, strict=True)
    }
    sheets.write("training", plots.training_curves(runs, **sheets.width), "training curves")


def _run_name(path: Path) -> str:
    """Return the name of a run's folder."""
    resolved = path.resolve()
    return resolved.name if resolved.is_dir() else resolved.parent.name


def _of_features(options: Options, sheets: _Sheets) -> None:
    """Draw the lists and figures of feature files."""
    from mmga.common import memory
    from mmga.common.progress import bar
    from mmga.eval import Inputs, load, rules_of, with_protocol
    from mmga.plots import FolderPictures

    for folder in options.images:
        if not folder.is_dir():
            raise UserError(f"--images {folder}: expected a folder of the feature files' images")
    given = {
        name: getattr(options, name)
        for name in ("query", "gallery", "features", "pattern", "metric", "protocol")
    }
    inputs = with_protocol(Inputs(**given))
    rules = rules_of(inputs)
    if rules.splits or rules.pools:
        raise UserError(
            f"--protocol {rules.name} is the mean of several rankings, or pools queries; choose "
            "market1501 or no-camera"
        )
    memory.baseline()
    query, other = load(inputs)
    gallery = query if other is None else other
    pictures = FolderPictures(options.images, query, gallery)
    with bar() as progress:
        drawn = _Drawn(options, sheets, query, gallery, pictures, progress)
        figures = drawn.figures()
    if set(_OF_LISTS) & set(figures):
        _say_missing(options, pictures)
    for name, (figure, what) in figures.items():
        sheets.write(name, figure, what)


@dataclass(frozen=True, slots=True)
class _Drawn:
    """The figures of feature files."""

    options: Options
    sheets: _Sheets
    query: "Features"
    gallery: "Features"
    pictures: "FolderPictures"
    progress: "Progress"

    def figures(self) -> "dict[str, tuple[Figure, str]]":
        """Return figures and what they show, by name.

        What the features do not allow is said in a note, unless it was asked for.

        Raises:
            UserError: one that was asked for cannot be drawn.
        """
        import numpy as np

        from mmga import plots
        from mmga.retrieval.evaluate import evaluate

        protocol, metric = self.options.protocol or "market1501", self.options.metric
        width, names = self.sheets.width, self.options.plots or get_args(PlotName)
        given: Any = {"protocol": protocol, "metric": metric, "progress": self.progress}
        gallery = None if self.gallery is self.query else self.gallery
        report = counted = evaluate(self.query, gallery, **given)
        if {"roc", "det", "distances"} & set(names):
            counted = evaluate(self.query, gallery, verification=True, **given)
        rows = self.options.rows
        spread = np.linspace(0, report.num_query - 1, min(rows, report.num_query)).round()
        both = self.query, self.gallery
        of: dict[str, tuple[Callable[[], Figure], str]] = {
            "ranked": (lambda: self._lists(spread.astype(int)), "ranked lists"),
            "hardest": (
                lambda: self._lists(plots.hardest(report, rows)),
                "queries of the lowest average precision",
            ),
            "easiest": (
                lambda: self._lists(plots.easiest(report, rows)),
                "queries of the highest average precision",
            ),
            "cameras": (
                lambda: plots.cameras(plots.camera_pairs(*both, **given), **width),
                "figures by camera pair",
            ),
            "cmc": (lambda: plots.cmc(report, **width), "CMC"),
            "roc": (lambda: plots.roc(counted, **width), "ROC"),
            "det": (lambda: plots.det(counted, **width), "DET"),
            "distances": (lambda: plots.distances(counted, **width), "distances of pairs"),
            "map": (self._map, "map of the features"),
        }
        figures = {}
        for name in dict.fromkeys(names):
            draw, what = of[name]
            try:
                figures[name] = draw(), what
            except UserError as error:
                if self.options.plots:
                    raise
                print(f"mmga visualize: note: no picture {name}: {error}", file=sys.stderr)
        return figures

    def _map(self) -> "Figure":
        from mmga import plots

        others = None if self.gallery is self.query else self.gallery
        return plots.embedding_map(self.query, others, **self.sheets.width)

    def _lists(self, rows: "np.ndarray") -> "Figure":
        from mmga import plots

        return plots.ranked_lists(
            self.query,
            self.gallery,
            rows,
            self.pictures,
            protocol=self.options.protocol or "market1501",
            metric=self.options.metric,
            topk=self.options.top,
            excluded=self.options.excluded,
            **self.sheets.width,
        )


def _say_missing(options: Options, pictures: "FolderPictures") -> None:
    """Say which pictures of ranked lists are missing.

    Raises:
        UserError: all are.
    """
    folders, missing = " ".join(map(str, options.images)), list(pictures.missing)
    if missing and not pictures.found:
        raise UserError(
            f"--images {folders}: none of the {len(missing)} images is there, such as "
            f"{missing[0]}; name the folder that the paths begin in"
        )
    notes = []
    if missing:
        notes.append(f"{len(missing)} images are not in {folders}, such as {missing[0]}")
    if pictures.broken:
        notes.append(
            f"images that cannot be shown: {len(pictures.broken)}, the first because "
            f"{pictures.first_error}"
        )
    if not options.images:
        notes.append("without --images the lists show no pictures")
    for note in notes:
        print(f"mmga visualize: note: {note}", file=sys.stderr)


def _of_photographs(options: Options, sheets: _Sheets) -> None:
    """Draw the attention maps of photographs over them."""
    import numpy as np

    from mmga import plots
    from mmga.data.dataset import Subset
    from mmga.data.loader import Loading, eval_batches
    from mmga.data.masks import MaskFolder
    from mmga.data.readers.image_list import read_photographs
    from mmga.data.transforms import denormalise

    masks = None if options.masks is None else MaskFolder(options.masks)
    images = read_photographs(options.images, masks)
    maker = _map_maker(options)
    count = len(images)
    chosen = np.unique(np.linspace(0, count - 1, min(options.rows, count)).round().astype(int))
    if len(chosen) < count:
        print(
            f"mmga visualize: note: {len(chosen)} of {count} photographs are drawn; --rows draws "
            "more",
            file=sys.stderr,
        )
    some = Subset(images, chosen)
    loading = Loading(device=maker.device)
    batch = next(eval_batches(some, maker.transform, loading, batch_size=len(some)))
    labels = [
        rows.cpu() if there else None
        for rows, there in zip(batch.labels, batch.has_mask, strict=True)
    ]
    if masks is not None and not any(label is not None for label in labels):
        raise UserError(
            f"--masks {options.masks}: no photograph has a mask there, the first would be "
            f"{masks.file(some.paths[0])}"
        )
    maps, scaled = maker(batch.images)
    note = f"from the least value to the greatest: {', '.join(scaled)}" if scaled else ""
    figure = plots.attention_sheet(
        list(denormalise(batch.images).cpu()),
        maps,
        labels,
        [Path(path).stem for path in some.paths],
        note=note,
        **sheets.width,
    )
    sheets.write("photographs", figure, "attention maps over photographs")


def _map_maker(options: Options) -> "MapMaker":
    from mmga.extraction.attention_maps import maps_of_model, maps_of_run

    if options.run is not None:
        return maps_of_run(options.run, options.device)
    return maps_of_model(
        options.model or "",
        options.model_arguments,
        options.model_weights,
        (options.height, options.width),
        options.device,
    )


def _of_run(options: Options, sheets: _Sheets) -> None:
    """Draw attention maps and ranked lists of a run's queries."""
    import numpy as np
    import torch

    from mmga import plots
    from mmga.common.device import resolve_device
    from mmga.common.progress import bar
    from mmga.data.build import load_data
    from mmga.data.dataset import Subset, label_columns
    from mmga.data.loader import Loading, eval_batches
    from mmga.data.transforms import denormalise
    from mmga.extraction.extract import embedder_of
    from mmga.extraction.of_run import DataChoice, with_data
    from mmga.models.loading import load_run
    from mmga.retrieval.features import Features

    run = load_run(options.run or "", resolve_device(options.device))
    config = with_data(run.config, DataChoice(options.data, options.root))
    if config.data.masks is None and options.data is None and run.config.data.masks is not None:
        print(f"note: there are no masks in {run.config.data.masks} any more", file=sys.stderr)
    with bar() as progress:
        data = load_data(config, progress, training=False)
        chosen = np.unique(np.linspace(0, len(data.query) - 1, options.rows).round().astype(int))
        embedder = embedder_of(run.network, config)
        loading = Loading(device=embedder.device, skip_broken=config.data.skip_broken)
        queries = Subset(data.query, chosen)
        batches = eval_batches(queries, embedder.transform, loading, batch_size=len(chosen))
        batch = next(batches, None)
        if batch is None:
            raise UserError(f"none of the {len(chosen)} queries of the sheets can be decoded")
        queries = Subset(queries, batch.indices.cpu().numpy())  # without broken ones
        with torch.inference_mode():
            maps = {name: m.cpu() for name, m in run.network.attention(batch.images).items()}
        gallery, features = _gallery(options, run.network, data.gallery, config, progress)
    images = list(denormalise(batch.images).cpu())
    labels = [
        rows if there else None for rows, there in zip(batch.labels, batch.has_mask, strict=True)
    ]
    query = Features(
        embedder(batch.images)[0].cpu(), **label_columns(queries, np.arange(len(queries)))
    )
    if maps:
        note = "" if _guided(run.config, data.train, options.data) else UNGUIDED
        sheet = plots.attention_sheet(
            images, maps, labels, _names(query), note=note, alone=True, **sheets.width
        )
        sheets.write("attention", sheet, "attention maps beside true masks")
        if note:
            print(f"note: {note}", file=sys.stderr)

    def picture(side: str, row: int) -> "torch.Tensor":
        return images[row] if side == "query" else gallery.image(row)

    ranked = plots.ranked_lists(
        query,
        features,
        range(len(query)),
        picture,
        protocol=of_test_split(protocol_of(config)),
        topk=options.top,
        excluded=options.excluded,
        **sheets.width,
    )
    sheets.write("ranked", ranked, "ranked lists, right ones framed and ticked")


def _names(features: "Features") -> list[str]:
    """Return identity and camera of each row in a line."""
    from mmga.plots.lists import camera_name, identity_name

    return [
        ", ".join(filter(None, (identity_name(features, row), camera_name(features, row))))
        for row in range(len(features))
    ]


def _gallery(
    options: Options, network: "MMGA", images: "ImageSet", config: Config, progress: "Progress"
) -> "tuple[ImageSet, Features]":
    """Return the gallery's images, without broken ones, and their features, extracted or saved."""
    import numpy as np

    from mmga.data.dataset import Subset, label_columns
    from mmga.extraction.extract import embedder_of, extract
    from mmga.retrieval.features import Features

    if options.gallery:
        rows = _saved(options.gallery, images, embedder_of(network, config))
        return images, Features(rows, **label_columns(images, np.arange(len(images))))
    found = extract(network, images, config, phase="gallery", progress=progress)
    if len(found) < len(images) and found.paths is not None:
        images = Subset(images, np.flatnonzero(np.isin(np.array(images.paths), found.paths)))
    return images, found


ALIKE, LOOKED_AT = 0.9, 4
"""Cosine below which saved features are not those of a network, and images that are compared; an
image and its mirror image make less difference."""


def _saved(files: tuple[str, ...], images: "ImageSet", embedder: "Embedder") -> "torch.Tensor":
    """Read the features of a gallery, in the order of its images: by path, where there are paths.

    What another network, or this one before more training, has made of the first images is warned
    of.

    Returns:
        L2-normalised, float32 [G, D].

    Raises:
        UserError: they are not those of the images, or of another width than the network's.
    """
    import numpy as np
    from torch.nn.functional import normalize

    from mmga.common.paths import matched
    from mmga.data.dataset import Subset
    from mmga.data.loader import Loading, eval_batches
    from mmga.retrieval.features import UNKNOWN, load_features

    gallery, path = load_features(files), " ".join(map(str, files))
    expected = f"--gallery {path}: expected features of the {len(images)} images of the gallery"
    note: str | None = f"--gallery {path}: row i was taken for image i, as the file has no paths"
    if gallery.paths is not None:
        names = "the gallery", path
        try:
            places, note = matched(images.paths, gallery.paths.tolist(), names)
        except UserError as error:
            raise UserError(f"{expected}; {error}; leave it out to extract them") from error
        gallery = gallery.select(places)
    plain = gallery.pid_names is None and getattr(images, "pid_names", None) is None
    if len(gallery) != len(images) or (
        plain and (gallery.pids != images.pids)[gallery.pids != UNKNOWN].any()
    ):
        raise UserError(
            f"{expected}, found {len(gallery)} of other pids; leave it out to extract them"
        )
    if note is not None:
        print(f"mmga visualize: note: {note}", file=sys.stderr)
    first = Subset(images, np.arange(min(LOOKED_AT, len(images))))
    batch = next(eval_batches(first, embedder.transform, Loading(device=embedder.device)))
    own = embedder(batch.images)[0].cpu()
    if tuple(gallery.rows.shape[1:]) != tuple(own.shape[1:]):
        raise UserError(
            f"{expected} with {own.shape[1]} values each, as the run makes them, found "
            f"{list(gallery.rows.shape)}; leave it out to extract them"
        )
    rows = normalize(gallery.rows.whole().float(), dim=-1)
    if bool(((own * rows[batch.indices.cpu()]).sum(1) < ALIKE).any()):
        print(
            f"mmga visualize: warning: --gallery {path} was not made by this run as it is now: of "
            f"{first.paths[0]} it makes other features; leave it out to extract them",
            file=sys.stderr,
        )
    return rows


def _guided(config: Config, train: "ImageSet", other: DataName | None) -> bool:
    """Return whether masks took part in the training of a run, or may have.

    Args:
        config: of the run.
        train: training images of the data that are drawn.
        other: another data set than the run's, if one is drawn.
    """
    from mmga.data.dataset import count_masks

    data = config.data
    masked = data.masks is not None or "synthetic" in (data.data, *data.also)
    if not masked and data.data == "csv":  # a table may name masks itself
        masked = other is not None or count_masks(train) > 0
    return bool(config.loss.mask_weight) and masked


def main(argv: list[str] | None = None) -> None:
    """Run the command."""
    cli.run("visualize", Options, body, argv)


if __name__ == "__main__":
    main()
