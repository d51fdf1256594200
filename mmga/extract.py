"""`python -m mmga.extract`: features of a run's test split, or of any images, as files.

python -m mmga.extract --run runs/x
python -m mmga.extract --run runs/x --data market1501 --root DIR --out features/
python -m mmga.extract --run runs/x --images DIR --out gallery.npz
python -m mmga.extract --model timm.models:resnet50 --images table.csv --out gallery.npz
"""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from mmga.common import cli
from mmga.common.errors import UserError
from mmga.config import Config, DataName, check, merged

if TYPE_CHECKING:
    from mmga.common.progress import Progress
    from mmga.extraction.embedder import Embedder
    from mmga.retrieval.features import Features


CONTAINERS = ("", ".npz", ".safetensors", ".mat", ".h5", ".pt")
"""Suffixes of files of features."""


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
    """Another data set than the run was trained on."""
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


def with_data(
    config: Config,
    data: DataName | None,
    root: Path | None,
    split: int | None = None,
    splits_file: Path | None = None,
    workers: int = 0,
) -> Config:
    """Return a run's configuration with another data set in its place, where one is named."""
    changes: dict[str, object] = {"workers": workers, "also": (), "test": ()}
    own = config.data.test[0] if config.data.test else config.data.data
    if data is None and own != config.data.data:  # trained on other sets than tested on
        changes |= {"data": own, "root": config.data.root_of(own), "masks": None}
    given = {"data": data, "root": root, "split": split, "splits_file": splits_file}
    changes |= {name: value for name, value in given.items() if value is not None}
    if data is not None and data != config.data.data:
        # Masks and root belong to the set that the run was trained on.
        changes = {"masks": None, "root": None, "splits_file": None, **changes}
    changed = dataclasses.replace(config, data=dataclasses.replace(config.data, **changes))  # type: ignore[arg-type]
    check(changed)
    return changed


def features_of_run(
    options: Options, progress: "Progress | None" = None
) -> tuple["Features", "Features"]:
    """Return the features of queries and gallery of a run."""
    from mmga.extraction.of_run import extract, load_data, open_run

    if options.run is None:
        raise UserError(
            "--run is missing: name the folder of a trained run, or --images and --model"
        )
    run = open_run(options.run, options.device)
    config = with_data(
        run.config,
        options.data,
        options.root,
        options.split,
        options.splits_file,
        options.workers,
    )
    if not options.flip:
        config = merged(config, {"run": {"flip_test": False}}, where="--no-flip")
    data = load_data(config, progress, training=False)
    queries = data.query
    if options.multi_query and data.multi_query is not None:
        queries = data.multi_query
    query = extract(run.network, queries, config, phase="query", progress=progress)
    return query, extract(run.network, data.gallery, config, phase="gallery", progress=progress)


def embedder_of(options: Options) -> "Embedder":
    """Return the network that --images are given to.

    Raises:
        UserError: it cannot be built, or the options do not fit together.
    """
    from mmga.common.device import resolve_device
    from mmga.data.transforms import EvalTransform
    from mmga.extraction.embedder import Embedder, foreign_network, part_rows, whole_rows
    from mmga.extraction.of_run import eval_transform, open_run

    if (options.run is None) == (options.model is None):
        raise UserError("--images needs the network: either --run or --model")
    if options.run is not None:
        run = open_run(options.run, options.device)
        file = options.run / "last.safetensors" if options.run.is_dir() else options.run
        name = f"{file} at step {run.step}, written {file.stat().st_mtime_ns}"
        name += ", parts" if options.parts else ""
        embed = part_rows(run.network) if options.parts else whole_rows(run.network, name)
        device = next(run.network.parameters()).device
        return Embedder(name, eval_transform(run.config), embed, device, options.flip)
    if options.parts:
        raise UserError("--parts needs attention maps, which --run has and --model does not")
    model = options.model or ""
    device = resolve_device(options.device)
    network = foreign_network(model, options.model_arguments, options.model_weights).to(device)
    name = f"{model} {options.model_arguments} {options.model_weights}"
    transform = EvalTransform(size=(options.height, options.width))
    return Embedder(name, transform, whole_rows(network, model), device, options.flip)


def _extract_images(options: Options, images: Path) -> int:
    """Extract the features of a folder or a table of images."""
    from mmga.common.progress import bar
    from mmga.data.readers.image_list import read_images
    from mmga.extraction.resumable import extract_to

    if options.out is None:
        raise UserError("--out is missing: name the file of features, such as gallery.npz")
    for name in ("batch_size", "height", "width"):
        if getattr(options, name) < 1:
            raise UserError(f"{cli.flag(name)} must be at least 1, got {getattr(options, name)}")
    if options.out.suffix.lower() not in CONTAINERS:
        raise UserError(
            f"--out must end in {', '.join(CONTAINERS[1:])} or nothing (a folder of .npy files), "
            f"got {options.out}"
        )
    source = read_images(images)
    embedder = embedder_of(options)
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


def body(options: Options) -> int:
    """Extract and write."""
    from mmga.common.progress import bar

    if options.images is not None:
        return _extract_images(options, options.images)
    for name in ("parts", "model", "model_weights", "skip_broken"):
        if getattr(options, name):
            raise UserError(f"--{name.replace('_', '-')} needs --images")
    with bar() as progress:
        query, gallery = features_of_run(options, progress)
    folder = options.out
    if folder is None:
        assert options.run is not None  # features_of_run has refused its absence
        folder = options.run if options.run.is_dir() else options.run.parent
    for name, features in (("query", query), ("gallery", gallery)):
        features.save(folder / f"{name}.npz")
    protocol = " --protocol multi-query" if options.multi_query else ""
    print(
        f"{len(query)} queries and {len(gallery)} gallery items in {folder}; next: "
        f"python -m mmga.eval --query {folder}/query.npz --gallery {folder}/gallery.npz{protocol}"
    )
    return 0


def main(argv: list[str] | None = None) -> None:
    """Run the command."""
    cli.run("extract", Options, body, argv)


if __name__ == "__main__":
    main()
