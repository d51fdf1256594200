"""`python -m mmga.extract`: features of a run's test split, or of any images, as files.

python -m mmga.extract --run runs/x
python -m mmga.extract --run runs/x --data market1501 --root DIR --out features/
python -m mmga.extract --run runs/x --images DIR --out gallery.npz
python -m mmga.extract --model timm.models:resnet50 --images table.csv --out gallery.npz
"""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from mmga.common import cli
from mmga.common.errors import UserError
from mmga.config import DataName

if TYPE_CHECKING:
    from mmga.extraction.embedder import Embedder


@dataclass(frozen=True, slots=True)
class Options:
    """Write the features of a run's queries and gallery, or of the images of --images."""

    run: Path | None = None
    """Folder of a run, or one of its checkpoints."""
    images: Path | None = None
    """Folder of images, or a CSV table with the columns path and, optionally, pid and camid. An
    extraction that was stopped goes on when it is called again."""
    out: Path | None = None
    """Folder for query.npz and gallery.npz (the run's own by default); with --images the file,
    .npz, .safetensors, .mat, .h5, .pt or a folder of .npy files."""
    parts: bool = False
    """With --images: the features of each part and their visibility, in place of the whole."""
    flip: bool = True
    """Sum the features of an image and of its mirror image; of a run's test split only where the
    run was evaluated so."""
    model: str | None = None
    """In place of --run: any torch.nn.Module that returns [B, D], as package:callable, such as
    timm.models:resnet50."""
    model_arguments: str = "{}"
    """Keyword arguments for --model, as JSON."""
    model_weights: Path | None = None
    """File of weights for --model: a plain state dict (.pth, .pt, .safetensors)."""
    height: int = 256
    """With --model: image height in pixels."""
    width: int = 128
    """With --model: image width in pixels."""
    batch_size: int = 64
    """With --images: images extracted at once."""
    skip_broken: bool = False
    """With --images: leave out and count images that cannot be decoded, instead of stopping."""
    multi_query: bool = False
    """Write all images of each query's identity and camera as queries, for protocol multi-query,
    where the data set has them (market1501's gt_bbox)."""
    data: DataName | None = None
    """Another data set than the run was trained on; with --model the data set."""
    root: Path | None = None
    """Folder of that data set."""
    split: int | None = None
    """Number of its split."""
    splits_file: Path | None = None
    """File of fixed splits."""
    workers: int = 0
    """Processes that load images."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""


def _extract_images(options: Options, images: Path) -> int:
    """Extract the features of a folder or a table of images."""
    from mmga.common.progress import bar
    from mmga.data.readers.image_list import read_images
    from mmga.extraction.of_run import embedder_of_run
    from mmga.extraction.resumable import extract_to

    if options.out is None:
        raise UserError("--out is missing: name the file of features, such as gallery.npz")
    _check_sizes(options)
    source = read_images(images)
    if (options.run is None) == (options.model is None):
        raise UserError("--images needs the network: either --run or --model")
    flip, device = options.flip, options.device
    if options.run is not None:
        embedder = embedder_of_run(options.run, device=device, flip=flip, parts=options.parts)
    else:
        embedder = _embedder_of_model(options)
    with bar() as progress:
        features = extract_to(
            options.out,
            embedder,
            source,
            batch_size=options.batch_size,
            workers=options.workers,
            skip_broken=options.skip_broken,
            progress=progress,
        )
    print(f"{features} in {options.out}")
    return 0


def _embedder_of_model(options: Options) -> "Embedder":
    from mmga.extraction.embedder import embedder_of_model

    if options.parts:
        raise UserError("--parts needs attention maps, which --run has and --model does not")
    return embedder_of_model(
        options.model or "",
        options.model_arguments,
        options.model_weights,
        (options.height, options.width),
        options.device,
        options.flip,
    )


def _check_sizes(options: Options) -> None:
    for name in ("batch_size", "height", "width"):
        if getattr(options, name) < 1:
            raise UserError(f"{cli.flag(name)} must be at least 1, got {getattr(options, name)}")


def _extract_split(options: Options) -> int:
    """Extract the queries and the gallery of a data set with a network of others."""
    from mmga.common.progress import bar
    from mmga.config import merged, recipe_config
    from mmga.data.build import load_data
    from mmga.extraction.resumable import extract_to

    if options.run is not None:
        raise UserError("--run and --model are two networks; give one of them")
    if options.data is None:
        raise UserError("--model needs images: give --images, or --data and --root")
    if options.out is None:
        raise UserError("--out is missing: name the folder for query.npz and gallery.npz")
    _check_sizes(options)
    chosen = {
        name: getattr(options, name)
        for name in ("data", "root", "split", "splits_file", "height", "width")
        if getattr(options, name) is not None
    }
    recipe = "synthetic" if options.data == "synthetic" else "mgn"
    config = merged(recipe_config(recipe), {"data": chosen}, where="extract")
    with bar() as progress:
        data = load_data(config, progress, training=False)
        embedder = _embedder_of_model(options)
        pooled = data.multi_query if options.multi_query else None
        for name, images in (("query", pooled or data.query), ("gallery", data.gallery)):
            extract_to(
                options.out / f"{name}.npz",
                embedder,
                images,
                batch_size=options.batch_size,
                workers=options.workers,
                skip_broken=options.skip_broken,
                progress=progress,
            )
    _say_next(options, len(data.query), len(data.gallery), options.out)
    return 0


def _say_next(options: Options, queries: int, gallery: int, folder: Path) -> None:
    protocol = " --protocol multi-query" if options.multi_query else ""
    print(
        f"{queries} queries and {gallery} gallery items in {folder}; next: "
        f"python -m mmga.eval --query {folder}/query.npz --gallery {folder}/gallery.npz{protocol}"
    )


def body(options: Options) -> int:
    """Extract and write."""
    from mmga.common import memory

    memory.keep_freed()
    if options.images is not None:
        return _extract_images(options, options.images)
    if options.model is not None:
        return _extract_split(options)
    for name in ("parts", "model_weights", "skip_broken"):
        if getattr(options, name):
            raise UserError(f"{cli.flag(name)} needs --images")
    if options.run is None:
        raise UserError(
            "--run is missing: name the folder of a trained run, or --images and --model"
        )
    from mmga.common.progress import bar
    from mmga.extraction.of_run import DataChoice, features_of_run

    with bar() as progress:
        query, gallery = features_of_run(
            options.run,
            DataChoice(options.data, options.root, options.split, options.splits_file),
            device=options.device,
            workers=options.workers,
            flip=options.flip,
            multi_query=options.multi_query,
            progress=progress,
        )
    folder = options.out or (options.run if options.run.is_dir() else options.run.parent)
    for name, features in (("query", query), ("gallery", gallery)):
        features.save(folder / f"{name}.npz")
    _say_next(options, len(query), len(gallery), folder)
    return 0


def main(argv: list[str] | None = None) -> None:
    """Run the command."""
    cli.run("extract", Options, body, argv)


if __name__ == "__main__":
    main()
