"""`python -m mmga.masks`: body-part masks of a data set, made by a parser or imported.

    mmga masks --data market1501 --root DIR --out masks/
    mmga masks --data market1501 --root DIR --out masks/ --by detectors --device cuda
    mmga masks --data market1501 --root DIR --out masks/ --from lip --source parsing/
    mmga masks --data market1501 --root DIR --out masks/ --from pose14 --source poses/
    torchrun --nproc-per-node 8 -m mmga.masks -- --data msmt17 --root DIR --out masks/

Writes one PNG an image, manifest.json and preview.png. An interrupted run goes on when it is
started again.
"""

import dataclasses
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from mmga.bodyparts import Kind
from mmga.common import cli
from mmga.common.errors import UserError
from mmga.common.options import Device, Flag
from mmga.config import DataConfig, DataName

if TYPE_CHECKING:
    import torch

    from mmga.bodyparts.detector import Detector
    from mmga.bodyparts.importers import Importer
    from mmga.bodyparts.mask_folder import Make, MaskMaker
    from mmga.common.distributed import Group
    from mmga.data.dataset import ImageSet

_OF_DATA = ("data", "root", "split", "boxes")  # options that choose the data set

BATCHES = {"parser": 16, "detectors": 8}
"""Images at a time."""


@dataclass(frozen=True, slots=True)
class Options:
    """Make masks of whole, upper and bottom body, one PNG for each image."""

    GROUPS: ClassVar = {
        "out": "output",
        "data": "data",
        "by": "making of masks",
        "kind": "import of other masks",
        "splits": "data",
        "weights": "detectors",
        "skip_broken": "data",
        "preview": "output",
        "split": "data",
    }

    out: Path
    """Folder for the masks, manifest.json and preview.png."""
    data: DataName = "market1501"
    """Data set."""
    root: Path | None = None
    """Folder of the data set, or of its parent; by default $MMGA_DATA; for csv the table itself."""
    by: Literal["parser", "detectors"] | None = None
    """Who makes the masks: the parser that comes with mmga, or torchvision's Mask and Keypoint
    R-CNN; by default the parser, and the detectors where their weights are given."""
    kind: Annotated[Kind | None, Flag(name="from")] = None
    """Kind of masks to import from --source, instead of making them."""
    source: Path | None = None
    """With --from: folder (or .mat file) to import."""
    skeletons: Path | None = None
    """With --from lip or atr: folder of 14-point skeletons, which split dresses at the hips."""
    splits: tuple[Literal["train", "query", "gallery"], ...] = ("train",)
    """Which images; training needs masks of train alone."""
    weights: Annotated[
        tuple[Path, ...], Flag(name="detector-weights", value="FILE", former=("weights",))
    ] = ()
    """Files of weights of Mask R-CNN and Keypoint R-CNN; by default they are downloaded."""
    min_size: int = 320
    """Shorter side in pixels to which crops are enlarged for the detectors."""
    score: float = 0.5
    """Least score of a person, 0 to 1."""
    batch: Annotated[int | None, Flag(name="batch-size", former=("batch",))] = None
    """Images at a time in the network; by default 16 for the parser and 8 for the detectors."""
    device: Device = "auto"
    """auto, cpu, cuda or cuda:N."""
    skip_broken: bool = False
    """Leave out and count images that cannot be decoded, instead of stopping."""
    preview: int = 32
    """Images on the preview sheet; 0 for none."""
    split: int = 0
    """Number of the split, where a data set has several."""
    boxes: Literal["detected", "labeled"] = "detected"
    """Bounding boxes (cuhk03, cuhk03-classic)."""


def body(options: Options, detector: "Detector | None" = None) -> int:
    """Make or import the masks, print their coverage, and draw the preview.

    Args:
        options: of the command.
        detector: finds persons, in place of the parser and of torchvision's networks.
    """
    if detector is not None and options.kind is None:
        options = dataclasses.replace(options, by="detectors")
    _check(options)
    from mmga.common.distributed import join, own_device

    device = own_device("cpu" if options.kind is not None else options.device)
    with join(device, watched="masks") as group:
        if group.world > 1:
            options = dataclasses.replace(options, device=str(device))
        _make(options, detector, group)
    return 0


def _make(options: Options, detector: "Detector | None", group: "Group") -> None:
    """Make the masks by one process or several, of which the first one counts and draws them."""
    from mmga.bodyparts.importers import open_importer
    from mmga.bodyparts.mask_folder import MaskMaker
    from mmga.common import memory
    from mmga.data.dataset import joined
    from mmga.data.readers.by_name import load

    with group.together():
        data = load(DataConfig(**{name: getattr(options, name) for name in _OF_DATA}))
        data.need(*options.splits)
        images = joined(*(getattr(data, split) for split in dict.fromkeys(options.splits)))
        importer = None
        if options.kind is not None:
            assert options.source is not None  # checked
            importer = open_importer(options.kind, options.source, data, options.skeletons)
        maker = MaskMaker(options.out, {"data": data.name, **_origin(options)}, group)
        maker.check_paths(images.paths)
        if group.leads:
            maker.begin()
            if importer is not None:
                maker.forget_empty()
    places = maker.missing(images.paths)
    if group.leads and len(places) < len(images):
        print(
            f"{len(images) - len(places)} of {len(images)} images are done already; remove "
            f"{options.out} to make their masks anew"
        )
    broken: dict[str, str] = {}
    if places:
        memory.keep_freed()
        # The first process of each machine goes ahead: weights are downloaded once.
        for turn in (True, False):
            with group.together():
                if (group.local_rank == 0) == turn:
                    make = _making(options, images, importer, detector, broken)
        _make_missing(options, maker, images, places, make, broken)
    for text in group.texts(json.dumps(broken)):
        broken |= json.loads(text)
    with group.together():
        if group.leads:
            _finish(options, maker, images, sum(path in broken for path in images.paths))


def _make_missing(
    options: Options,
    maker: "MaskMaker",
    images: "ImageSet",
    places: "list[int]",
    make: "Make",
    broken: dict[str, str],
) -> None:
    """Make the masks of the images at `places`, and say what was done to images."""
    from mmga.bodyparts.mask_folder import projection
    from mmga.common.progress import bar_of
    from mmga.data.pictures import Notes, take_notes

    group = maker.group
    detected = options.kind is None and _by(options) == "detectors"

    def announce(left: int, seconds: float) -> None:
        if left and group.leads:
            print(projection(left * group.world, seconds, options.device), flush=True)

    try:
        with bar_of(group.leads) as progress, group.together():
            maker.make(
                images.paths,
                places,
                make,
                batch_size=_batch(options) * _threads(options),
                broken=broken,
                progress=progress,
                projected=announce if detected else None,
            )
    except KeyboardInterrupt:
        if group.leads:
            print("mmga masks: interrupted; the same command goes on", file=sys.stderr)
        raise
    notes = Notes()
    notes.add(take_notes())
    notes.gather(group.texts)
    if group.leads:
        notes.say()


def _making(
    options: Options,
    images: "ImageSet",
    importer: "Importer | None",
    detector: "Detector | None",
    broken: dict[str, str],
) -> "Make":
    """Return the function that makes the masks of images, given their places in the set.

    It fills `broken` with the message by path of each image that cannot be decoded, if such images
    are to be skipped.
    """
    if importer is not None:
        from mmga.bodyparts.importers import imported

        return imported(images, importer)
    from mmga.bodyparts.mask_folder import made_of_images
    from mmga.common.device import resolve_device

    device = resolve_device(options.device)
    skipped = broken if options.skip_broken else None
    if _by(options) == "parser":
        from mmga.bodyparts.mask_folder import in_threads
        from mmga.bodyparts.parser import Parser

        parser = in_threads(Parser(device=device), _threads(options), _batch(options))
        return made_of_images(images, parser, skipped)
    from mmga.bodyparts.detector import Thresholds, TorchvisionDetector, masks_of

    find = detector or TorchvisionDetector(
        options.weights,
        min_size=options.min_size,
        device=device,
        thresholds=Thresholds(score=options.score),
    )
    return made_of_images(images, masks_of(find), skipped)


def _by(options: Options) -> Literal["parser", "detectors"]:
    """Return who makes the masks that are not imported."""
    return options.by or ("detectors" if options.weights else "parser")


def _batch(options: Options) -> int:
    """Return the number of images at a time in the network."""
    return options.batch or BATCHES[_by(options)]


def _threads(options: Options) -> int:
    """Return the number of batches at a time: the parser's on a CPU go side by side."""
    import torch

    from mmga.common.device import resolve_device

    parsed = options.kind is None and _by(options) == "parser"
    on_cpu = parsed and resolve_device(options.device).type == "cpu"
    return torch.get_num_threads() if on_cpu else 1


def _finish(options: Options, maker: "MaskMaker", images: "ImageSet", broken: int) -> None:
    """Write the manifest, print the coverage and what is missing, and draw the preview."""
    from mmga.bodyparts.mask_folder import summary, warn_of_areas

    manifest = maker.finish(images, broken)
    print(summary(manifest))
    warn_of_areas(manifest)
    _say_missing(options, images.paths)
    if broken:
        print(f"{broken} images cannot be decoded and were left out")
    if options.preview:
        sheet = options.out / "preview.png"
        _draw_preview(sheet, images, options.out, options.preview)
        print(f"images beside their masks: {sheet}")


def _draw_preview(path: Path, images: "ImageSet", masks: Path, count: int) -> None:
    """Draw `count` images beside their masks, spread evenly over the set."""
    import numpy as np

    from mmga import plots
    from mmga.common import ids
    from mmga.data.dataset import label_columns
    from mmga.data.masks import MaskFolder

    folder = MaskFolder(masks)
    chosen = np.unique(np.linspace(0, len(images) - 1, count).round().astype(int)).tolist()
    drawn: list[torch.Tensor | None] = []
    labels, titles = [], []
    for place in chosen:
        mask = folder(images.paths[place])
        labels.append(None if mask is None else mask.labels)
        try:
            drawn.append(images.image(place))
        except UserError:  # names alone are enough for some imports
            drawn.append(None)
        names = label_columns(images, np.array([place]))
        person, camera = (ids.plain(names[name][0]) for name in ("pids", "camids"))
        titles.append(f"id {person}, c{camera}")
    plots.save(plots.mask_sheet(drawn, labels, titles), path)


def _say_missing(options: Options, paths: Sequence[str]) -> None:
    """Say how many images have no file in the imported folder: nothing is known of those."""
    from mmga.bodyparts.importers import without_file

    if options.kind is None or options.source is None:
        return
    missing = without_file(options.kind, options.source, paths)
    if missing:
        print(
            f"note: {len(missing)} of {len(paths)} images have no file in {options.source}, such "
            f"as {missing[0]}; they are counted as without a person",
            file=sys.stderr,
        )


def _check(options: Options) -> None:
    if options.data == "synthetic":
        raise UserError("--data synthetic has exact masks of its own; name another data set")
    if options.kind is None and (options.source is not None or options.skeletons is not None):
        raise UserError("--source and --skeletons belong to --from; say what is imported")
    if options.kind is not None and options.source is None:
        raise UserError(f"--source is missing: name the folder of {options.kind}'s files")
    if options.kind is not None and options.weights:
        raise UserError("--detector-weights are the detectors'; leave them out with --from")
    if options.kind is not None and options.by is not None:
        raise UserError("--by and --from exclude each other: masks are made or imported")
    if options.by == "parser" and options.weights:
        raise UserError("--detector-weights are the detectors'; leave them out with --by parser")
    for name, value, least in (
        ("min-size", options.min_size, 32),
        ("batch-size", options.batch, 1),
        ("preview", options.preview, 0),
    ):
        if value is not None and value < least:
            raise UserError(f"--{name} must be at least {least}, got {value}")
    if not options.splits:
        raise UserError("--splits must name train, query or gallery")


def _origin(options: Options) -> dict[str, object]:
    """Return the origin of the masks, as the manifest records it."""
    if options.kind is not None and options.source is not None:
        skeletons = options.skeletons is not None
        return {"from": options.kind, "source": options.source.name, "skeletons": skeletons}
    if _by(options) == "parser":
        from mmga.bodyparts.parser import version

        return {"from": "parser", "parser": version()}
    return {
        "from": "torchvision",
        "weights": [path.name for path in options.weights],
        "min_size": options.min_size,
        "score": options.score,
    }


def main(argv: list[str] | None = None) -> None:
    """Run the command."""
    cli.run("masks", Options, body, argv, shared=True)


if __name__ == "__main__":
    main()
