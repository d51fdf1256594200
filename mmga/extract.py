"""`python -m mmga.extract`: features of a run's test split, or of any images, as files.

mmga extract --run runs/x
mmga extract --run runs/x --data market1501 --root DIR --out features/
mmga extract --run runs/x --images DIR --out gallery.npz
mmga extract --model timm.models:resnet50 --model-weights r50.pth --images t.csv --out gallery.npz
torchrun --nproc-per-node 8 -m mmga.extract -- --run runs/x --images DIR --out gallery.json
"""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar

from mmga.common import cli
from mmga.common.errors import UserError
from mmga.common.options import Device, Flag
from mmga.config import DataName, check_ranges, protocol_of

if TYPE_CHECKING:
    from mmga.common.distributed import Group
    from mmga.extraction.embedder import Embedder


@dataclass(frozen=True, slots=True)
class Options:
    """Write the features of a run's queries and gallery, or of the images of --images."""

    GROUPS: ClassVar = {
        "run": "what is extracted",
        "out": "output",
        "parts": "features",
        "model": "another network in place of --run",
        "batch_size": "machine",
        "skip_broken": "what is extracted",
        "data": "another data set than the run's",
        "workers": "machine",
    }

    run: Path | None = None
    """Folder of a run, or one of its checkpoints."""
    images: Path | None = None
    """Folder of images, or a CSV table with the columns path and, optionally, pid and camid. An
    extraction that was stopped goes on when it is called again."""
    pattern: str | None = None
    """Regular expression whose groups pid and camid, or one of them, are read from the paths of
    --images below their folder, such as "(?P<pid>[^/]+)/cam(?P<camid>[0-9]+)_"; other named groups
    become columns. By default names are read as Market-1501's, 0002_c1s1_000451_03.jpg."""
    out: Path | None = None
    """Folder for query.npz and gallery.npz, by default the run's own; with --images the file, .npz,
    .safetensors, .mat, .h5, .pt, .parquet or a folder of .npy files, or a .json file that lists
    shards, which stay in a folder beside it and are read as one."""
    parts: bool = False
    """With --images: the features of each part and their visibility, in place of the whole."""
    flip: Annotated[bool, Flag(name="flip-test", former=("flip",))] = True
    """Sum the features of an image and of its mirror image; of a run's test split only where the
    run was evaluated so."""
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
    batch_size: int = 64
    """Images at a time in the network; with --images."""
    skip_broken: bool = False
    """Leave out and count images that cannot be decoded, instead of stopping; with --images."""
    multi_query: bool = False
    """Write all images of each query's identity and camera as queries, for protocol multi-query,
    where the data set has them (market1501's gt_bbox)."""
    data: DataName | None = None
    """Data set; by default that of the run, and needed with --model unless --images names some."""
    root: Path | None = None
    """Folder of the data set, or of its parent; by default $MMGA_DATA."""
    split: int | None = None
    """Number of the split, where a data set has several; by default that of the run."""
    splits_file: Path | None = None
    """File of fixed splits (viper)."""
    workers: int = 0
    """Processes that load images; 0 loads in the process itself."""
    device: Device = "auto"
    """auto, cpu, cuda or cuda:N."""


def _extract_images(options: Options, images: Path, device: str, group: "Group") -> None:
    """Extract the features of a folder or a table of images."""
    from mmga.common.progress import bar_of
    from mmga.data.readers.image_list import read_images
    from mmga.extraction.of_run import embedder_of_run
    from mmga.extraction.resumable import Reading, extract_to

    with group.together():
        if options.out is None:
            raise UserError("--out is missing: name the file of features, such as gallery.npz")
        source = read_images(images, options.pattern)
        for note in source.notes if group.leads else ():
            print(f"mmga extract: note: {note}", file=sys.stderr)
        if (options.run is None) == (options.model is None):
            raise UserError("--images needs the network: either --run or --model")
        if options.run is not None:
            embedder = embedder_of_run(
                options.run, device=device, flip=options.flip, parts=options.parts
            )
        else:
            embedder = _embedder_of_model(options, device)
    reading = Reading(options.batch_size, options.workers, options.skip_broken)
    with bar_of(group.leads) as progress:
        written = extract_to(options.out, embedder, source, reading, progress=progress, group=group)
    if group.leads:
        print(f"{written} in {options.out}")


def _embedder_of_model(options: Options, device: str) -> "Embedder":
    from mmga.extraction.embedder import embedder_of_model

    if options.parts:
        raise UserError("--parts needs attention maps, which --run has and --model does not")
    return embedder_of_model(
        options.model or "",
        options.model_arguments,
        options.model_weights,
        (options.height, options.width),
        device,
        options.flip,
    )


def _extract_split(options: Options, device: str, group: "Group") -> None:
    """Extract the queries and the gallery of a data set with a network of others."""
    from mmga.common.progress import bar_of
    from mmga.config import merged, recipe_config
    from mmga.data.build import load_data
    from mmga.extraction.of_run import queries_of
    from mmga.extraction.resumable import Reading, extract_to

    if options.run is not None:
        raise UserError("--run and --model are two networks; give one of them")
    if options.data is None:
        raise UserError("--model needs images: give --images, or --data and --root")
    if options.out is None:
        raise UserError("--out is missing: name the folder for query.npz and gallery.npz")
    chosen = {
        name: getattr(options, name)
        for name in ("data", "root", "split", "splits_file", "height", "width")
        if getattr(options, name) is not None
    }
    recipe = "synthetic" if options.data == "synthetic" else "mgn"
    config = merged(recipe_config(recipe), {"data": chosen}, where="extract")
    reading = Reading(options.batch_size, options.workers, options.skip_broken)
    with bar_of(group.leads) as progress:
        with group.together():
            embedder = _embedder_of_model(options, device)
            data = load_data(config, progress, training=False)
            queries = queries_of(data, options.multi_query)
        for name, images in (("query", queries), ("gallery", data.gallery)):
            file = options.out / f"{name}.npz"
            extract_to(file, embedder, images, reading, progress=progress, group=group)
    if group.leads:
        _say_next(options, len(queries), len(data.gallery), options.out, protocol_of(config))


def _say_next(options: Options, queries: int, gallery: int, folder: Path, protocol: str) -> None:
    if options.multi_query:
        protocol = "multi-query"
    rules = "" if protocol == "market1501" else f" --protocol {protocol}"
    print(
        f"{queries} queries and {gallery} gallery items in {folder}; next: "
        f"python -m mmga.eval --query {folder}/query.npz --gallery {folder}/gallery.npz{rules}"
    )


def body(options: Options) -> None:
    """Extract and write."""
    check_ranges(options)
    from mmga.common import memory
    from mmga.common.distributed import join, own_device

    memory.keep_freed()
    device = own_device(options.device)
    with join(device, watched="extract") as group:
        if options.images is not None:
            _extract_images(options, options.images, str(device), group)
        elif options.model is not None:
            _extract_split(options, str(device), group)
        else:
            _extract_run(options, str(device), group)


def _extract_run(options: Options, device: str, group: "Group") -> None:
    """Extract the queries and the gallery of a run's test split."""
    for name in ("parts", "model_weights", "skip_broken", "pattern"):
        if getattr(options, name):
            raise UserError(f"{cli.flag(name)} needs --images")
    if options.run is None:
        raise UserError(
            "--run is missing: name the folder of a trained run, or --images and --model"
        )
    from mmga.common.progress import bar_of
    from mmga.extraction.of_run import DataChoice, features_of_run
    from mmga.models.loading import configuration_of

    with bar_of(group.leads) as progress:
        query, gallery = features_of_run(
            options.run,
            DataChoice(
                options.data, options.root, options.split, options.splits_file, options.workers
            ),
            device=device,
            flip=options.flip,
            multi_query=options.multi_query,
            progress=progress,
            group=group,
        )
    folder = options.out or (options.run if options.run.is_dir() else options.run.parent)
    with group.together():
        if not group.leads:
            return
        for name, features in (("query", query), ("gallery", gallery)):
            features.save(folder / f"{name}.npz")
        protocol = protocol_of(configuration_of(options.run), options.data)
        _say_next(options, len(query), len(gallery), folder, protocol)


def main(argv: list[str] | None = None) -> None:
    """Run the command."""
    cli.run("extract", Options, body, argv, shared=True)


if __name__ == "__main__":
    main()
