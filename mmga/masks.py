"""`python -m mmga.masks`: body-part masks of a data set, made by detectors or imported.

    python -m mmga.masks --data market1501 --root DIR --out masks/
    python -m mmga.masks --data market1501 --root DIR --out masks/ --from lip --source parsing/
    python -m mmga.masks --data market1501 --root DIR --out masks/ --from pose14 --source poses/

Writes one PNG an image, manifest.json and preview.png. An interrupted run goes on when it is
started again.
"""

import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from mmga.common import cli
from mmga.common.errors import UserError
from mmga.config import DataConfig, DataName

if TYPE_CHECKING:
    from mmga.bodyparts.detector import Detector
    from mmga.bodyparts.mask_folder import Make
    from mmga.data.dataset import DataSet, ImageSet
    from mmga.data.masks import PartMask

# Spelled out, because the options must not import torch to know them; a test compares them.
KindName = Literal["lip", "atr", "pascal", "densepose", "mgcam", "bpbreid", "pose14", "silhouette"]

LONG = 1800
"""Seconds on a CPU from which a GPU is advised."""


@dataclass(frozen=True, slots=True)
class Options:
    """Make masks of whole, upper and bottom body, one PNG for each image."""

    out: Path
    """Folder for the masks, manifest.json and preview.png."""
    data: DataName = "market1501"
    """Data set."""
    root: Path | None = None
    """Folder of the data set, or of its parent, $MMGA_DATA if unset; for csv the table itself."""
    kind: Annotated[KindName | None, tyro.conf.arg(name="from")] = None
    """Import what others have made, instead of detecting persons."""
    source: Path | None = None
    """With --from: folder (or .mat file) of what is imported."""
    skeletons: Path | None = None
    """With --from lip or atr: folder of 14-point skeletons, which split dresses at the hips."""
    splits: tuple[Literal["train", "query", "gallery"], ...] = ("train",)
    """Which images; training needs masks of train alone."""
    weights: tuple[Path, ...] = ()
    """Files of weights of Mask R-CNN and Keypoint R-CNN; what is not given is downloaded."""
    min_size: int = 320
    """Shorter side in pixels to which crops are enlarged for the detectors."""
    score: float = 0.5
    """Least score of a person."""
    batch: int = 8
    """Images at a time in the detectors."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""
    skip_broken: bool = False
    """Leave out and count images that cannot be decoded, instead of stopping."""
    preview: int = 32
    """Images on the preview sheet; 0 for none."""
    split: int = 0
    """Number of the split, where a data set has several."""
    boxes: Literal["detected", "labeled"] = "detected"
    """Which bounding boxes (cuhk03, cuhk03-classic)."""


def body(options: Options, detector: "Detector | None" = None) -> int:
    """Make or import the masks, say what they cover, and draw the preview.

    Args:
        options: of the command.
        detector: finds persons, in place of torchvision's.
    """
    _check(options)
    from mmga.bodyparts.mask_folder import MaskMaker
    from mmga.common.progress import bar
    from mmga.data.dataset import joined
    from mmga.data.readers.by_name import load

    data = load(
        DataConfig(data=options.data, root=options.root, split=options.split, boxes=options.boxes)
    )
    chosen = dict.fromkeys(options.splits)
    images = joined(*(getattr(data, split) for split in chosen))
    broken: dict[str, str] = {}
    make, origin = _maker(options, data, images, detector, broken)
    maker = MaskMaker(options.out, {"data": data.name, **origin})
    maker.check_paths(images.paths)
    maker.begin()
    places = maker.missing(images.paths)
    if len(places) < len(images):
        print(f"{len(images) - len(places)} of {len(images)} images are done already")
    if places:
        try:
            with bar() as progress:
                maker.make(
                    images.paths,
                    places,
                    make(),
                    batch_size=options.batch,
                    broken=broken,
                    progress=progress,
                    projected=_announce(options) if options.kind is None else None,
                )
        except KeyboardInterrupt:
            print("mmga masks: interrupted; the same command goes on", file=sys.stderr)
            raise
    manifest = maker.finish(images, len(broken))
    print(table(manifest))
    if broken:
        print(f"{len(broken)} images cannot be decoded and were left out")
    if options.preview:
        sheet = options.out / "preview.png"
        draw_preview(sheet, images, options.out, options.preview)
        print(f"images beside their masks: {sheet}")
    return 0


def _check(options: Options) -> None:
    if options.data == "synthetic":
        raise UserError("--data synthetic has exact masks of its own; name another data set")
    if options.kind is None and (options.source is not None or options.skeletons is not None):
        raise UserError("--source and --skeletons belong to --from; say what is imported")
    if options.kind is not None and options.source is None:
        raise UserError(f"--source is missing: name the folder of {options.kind}'s files")
    if options.kind is not None and options.weights:
        raise UserError("--weights are the detectors'; leave them out with --from")
    for name, value, least in (
        ("min-size", options.min_size, 32),
        ("batch", options.batch, 1),
        ("preview", options.preview, 0),
    ):
        if value < least:
            raise UserError(f"--{name} must be at least {least}, got {value}")
    if not options.splits:
        raise UserError("--splits must name train, query or gallery")


def _maker(
    options: Options,
    data: "DataSet",
    images: "ImageSet",
    detector: "Detector | None",
    broken: dict[str, str],
) -> "tuple[Callable[[], Make], dict[str, Any]]":
    """Return what makes masks, opened when called, and what the manifest says of it."""
    if options.kind is not None:
        from mmga.bodyparts.importers import open_source, read_poses

        assert options.source is not None  # checked
        poses = None if options.skeletons is None else read_poses(options.skeletons, data)
        source = open_source(options.kind, options.source, data, poses)

        def imported(places: Sequence[int]) -> "Iterator[PartMask | None]":
            for place in places:
                yield source(images.paths[place], _SizeOf(images, place))

        origin = {
            "from": options.kind,
            "source": options.source.name,
            "skeletons": options.skeletons is not None,
        }
        return lambda: imported, origin

    def opened() -> "Make":
        from mmga.bodyparts.split import divide

        find = _detector(options) if detector is None else detector

        def detected(places: Sequence[int]) -> "Iterator[PartMask | None]":
            decoded: list[Any] = []
            for place in places:
                try:
                    decoded.append(images.image(place))
                except UserError as error:
                    if not options.skip_broken:
                        raise
                    broken[images.paths[place]] = str(error)
                    decoded.append(None)
            persons = iter(find([image for image in decoded if image is not None]))
            for image in decoded:
                person = None if image is None else next(persons)
                if person is None or not person.body.any():
                    yield None
                else:
                    yield divide(person.body, person.skeleton)

        return detected

    return opened, {
        "from": "torchvision",
        "weights": [path.name for path in options.weights],
        "min_size": options.min_size,
        "score": options.score,
    }


def _detector(options: Options) -> "Detector":
    from mmga.bodyparts.detector import Thresholds, TorchvisionDetector
    from mmga.common.device import resolve_device

    return TorchvisionDetector(
        options.weights,
        min_size=options.min_size,
        device=resolve_device(options.device),
        thresholds=Thresholds(score=options.score),
    )


@dataclass(frozen=True, slots=True)
class _SizeOf:
    """The size of an image, when asked for."""

    images: "ImageSet"
    place: int

    def __call__(self) -> tuple[int, int] | None:
        """Return (H, W); None where the image cannot be read."""
        try:
            height, width = self.images.image(self.place).shape[-2:]
        except UserError:
            return None
        return height, width


def _announce(options: Options) -> Callable[[int, float], None]:
    def say(left: int, seconds: float) -> None:
        if not left:
            return
        line = f"{left} images to go, about {duration(seconds)} here"
        if seconds > LONG and not options.device.startswith("cuda"):
            import torch

            if not (options.device == "auto" and torch.cuda.is_available()):
                line += "; GPU advised (--device cuda), or a smaller --min-size"
        print(line, flush=True)

    return say


def duration(seconds: float) -> str:
    """Return a time as a person would say it."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"


def table(manifest: dict[str, Any]) -> str:
    """Return counts, and the area of each part by camera, as lines to print."""
    counts = manifest["counts"]
    share = counts["without_person"] / max(counts["images"], 1)
    lines = [
        f"{counts['masks']} masks of {counts['images']} images; without a person "
        f"{counts['without_person']} ({share:.1%}); whole body alone {counts['silhouettes']}",
        f"{'camera':>6} {'images':>7} {'no mask':>8} {'body':>6} {'upper':>6} {'bottom':>6}",
    ]
    for camera, row in manifest["area_by_camera"].items():
        areas = " ".join(
            f"{'-':>6}" if row[part] is None else f"{row[part]:>6.1%}"
            for part in ("body", "upper", "bottom")
        )
        lines.append(f"{camera:>6} {row['images']:>7} {row['without_mask']:>8.1%} {areas}")
    return "\n".join(lines)


def draw_preview(path: Path, images: "ImageSet", masks: Path, count: int) -> None:
    """Draw a sheet of images beside their masks, spread evenly over the set.

    Args:
        path: the PNG to write.
        images: the set.
        masks: folder of the masks.
        count: images on the sheet.

    Raises:
        UserError: matplotlib is not installed, or the file cannot be written.
    """
    import numpy as np

    from mmga.common import plots
    from mmga.data.masks import MaskFolder

    folder = MaskFolder(masks)
    chosen = np.unique(np.linspace(0, len(images) - 1, count).round().astype(int)).tolist()
    drawn: list[Any] = []
    labels, titles = [], []
    for place in chosen:
        mask = folder(images.paths[place])
        labels.append(None if mask is None else mask.labels)
        try:
            drawn.append(images.image(place))
        except UserError:  # names alone are enough for some imports
            drawn.append(None)
        titles.append(f"id {images.pids[place]}, c{images.camids[place]}")
    plots.mask_sheet(path, drawn, labels, titles)


def main(argv: list[str] | None = None) -> None:
    """Run the command."""
    cli.run("masks", Options, body, argv)


if __name__ == "__main__":
    main()
