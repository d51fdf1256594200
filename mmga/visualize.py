"""`python -m mmga.visualize`: attention maps and ranked lists of a run, as pictures.

    mmga visualize --run runs/x
    mmga visualize --run runs/x --gallery runs/x/gallery.npz --rows 5 --out sheets

Writes attention.png (query images with their attention maps, alone and over the image, beside the
true masks) and ranked.png (each query's nearest gallery images by the protocol of the run, right
ones framed green, wrong ones red, and the rank of its first match).
"""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar

from mmga.common import cli, ids
from mmga.common.errors import UserError
from mmga.common.options import Device, Flag
from mmga.config import Config, DataName, protocol_of

if TYPE_CHECKING:
    import numpy as np
    import torch

    from mmga.data.dataset import ImageSet
    from mmga.extraction.embedder import Embedder
    from mmga.retrieval.protocols.protocol import Protocol

UNGUIDED = "these maps were never guided: the run was trained without masks"


@dataclass(frozen=True, slots=True)
class Options:
    """Draw attention maps and ranked lists."""

    GROUPS: ClassVar = {"run": "run", "data": "data", "rows": "sheets", "device": "machine"}

    run: Path
    """Folder of a run, or one of its checkpoints."""
    out: Path | None = None
    """Folder for the pictures; by default the run's own."""
    data: DataName | None = None
    """Data set; by default that of the run."""
    root: Path | None = None
    """Folder of the data set, or of its parent; by default $MMGA_DATA."""
    gallery: Annotated[Path | None, Flag(value="FILE")] = None
    """Features of the gallery, as `mmga extract` wrote them, found by path; by default they are
    extracted."""
    rows: int = 10
    """Queries on a sheet, spread evenly over the set."""
    top: Annotated[int, Flag(name="topk", former=("top",))] = 10
    """Gallery items for each query."""
    device: Device = "auto"
    """auto, cpu, cuda or cuda:N."""


def body(options: Options) -> int:
    """Draw both sheets and print their files."""
    if options.rows < 1 or options.top < 1:
        raise UserError("--rows and --topk must be at least 1")
    import numpy as np
    import torch

    from mmga.common import plots
    from mmga.common.device import resolve_device
    from mmga.common.progress import bar
    from mmga.data.build import load_data
    from mmga.data.dataset import Subset, label_columns
    from mmga.data.loader import Loading, eval_batches
    from mmga.data.transforms import denormalise
    from mmga.extraction.extract import embedder_of, extract
    from mmga.extraction.of_run import DataChoice, with_data
    from mmga.models.loading import load_run
    from mmga.retrieval.protocols.protocol import of_test_split

    run = load_run(options.run, resolve_device(options.device))
    config = with_data(run.config, DataChoice(options.data, options.root))
    folder = options.out or run.folder
    if config.data.masks is None and options.data is None and run.config.data.masks is not None:
        print(f"note: there are no masks in {run.config.data.masks} any more", file=sys.stderr)
    with bar() as progress:
        data = load_data(config, progress, training=False)
        chosen = np.unique(np.linspace(0, len(data.query) - 1, options.rows).round().astype(int))
        embedder = embedder_of(run.network, config)
        loading = Loading(device=embedder.device, skip_broken=config.data.skip_broken)
        queries, gallery = Subset(data.query, chosen), data.gallery
        batches = eval_batches(queries, embedder.transform, loading, batch_size=len(chosen))
        batch = next(batches, None)
        if batch is None:
            raise UserError(f"none of the {len(chosen)} queries of the sheets can be decoded")
        queries = Subset(queries, batch.indices.cpu().numpy())  # without broken ones
        with torch.inference_mode():
            maps = {name: m.cpu() for name, m in run.network.attention(batch.images).items()}
        if options.gallery is None:
            extracted = extract(
                run.network, data.gallery, config, phase="gallery", progress=progress
            )
            rows = extracted.rows.whole()
            if len(rows) < len(gallery) and extracted.paths is not None:
                decoded = np.isin(np.array(gallery.paths), extracted.paths)
                gallery = Subset(gallery, np.flatnonzero(decoded))
        else:
            rows = _saved(options.gallery, data.gallery, embedder)
    images = denormalise(batch.images).cpu()
    rules = of_test_split(protocol_of(config))
    names = label_columns(queries, np.arange(len(queries)))
    lines = [
        plots.titled(f"id {ids.plain(pid)}", f"camera {ids.plain(camera)}")
        for pid, camera in zip(names["pids"], names["camids"], strict=True)
    ]
    labels = [
        rows if there else None for rows, there in zip(batch.labels, batch.has_mask, strict=True)
    ]
    if maps:
        note = "" if _guided(run.config, data.train, options.data) else UNGUIDED
        plots.attention_sheet(folder / "attention.png", images, maps, labels, lines, note)
        print(f"attention maps beside true masks: {folder / 'attention.png'}")
        if note:
            print(f"note: {note}", file=sys.stderr)
    features = embedder(batch.images)[0].cpu()  # [N, D]
    distances = (1 - features @ rows.T).numpy()  # [N, G]
    hits = []
    for index, row in enumerate(distances):
        found, first = _ranked(row, queries, index, gallery, rules, options.top)
        hits.append(found)
        lines[index] += "\nno match there" if first is None else f"\nfirst match: {first}"
    plots.ranked_sheet(folder / "ranked.png", list(images), hits, lines)
    print(f"ranked lists, right in green and wrong in red: {folder / 'ranked.png'}")
    return 0


ALIKE, LOOKED_AT = 0.9, 4
"""Cosine below which saved features are not those of a network, and images that are compared; an
image and its mirror image make less difference."""


def _saved(path: Path, images: "ImageSet", embedder: "Embedder") -> "torch.Tensor":
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

    gallery = load_features(path)
    expected = f"--gallery {path}: expected features of the {len(images)} images of the gallery"
    note: str | None = f"--gallery {path}: row i was taken for image i, as the file has no paths"
    if gallery.paths is not None:
        names = "the gallery", str(path)
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


def _ranked(
    distances: "np.ndarray",
    queries: "ImageSet",
    index: int,
    gallery: "ImageSet",
    rules: "Protocol",
    top: int,
) -> "tuple[list[tuple[torch.Tensor, bool, str]], int | None]":
    """Return the nearest images of a query by a protocol, and the rank of the first match.

    Args:
        distances: of the query to the gallery, [G].
        queries: the images searched for.
        index: place of the query among them.
        gallery: the images.
        rules: what is left out for a query; of a single-shot protocol the whole gallery is shown.
        top: how many to return.

    Returns:
        Image, whether it is a match, and a short line, of each; and a rank from 1, None where the
        gallery holds no match.
    """
    import numpy as np

    from mmga.common import plots
    from mmga.data.dataset import label_columns

    pids, pid = gallery.pids, queries.pids[index]
    left_out = np.isin(pids, (ids.JUNK, ids.UNKNOWN))
    if rules.camera != "none":
        own = gallery.camids == queries.camids[index]
        left_out |= own if rules.camera == "all" else own & (pids == pid)
    if rules.own_image == "path":
        left_out |= np.array(gallery.paths) == queries.paths[index]
    order = np.argsort(np.where(left_out, np.inf, distances), kind="stable")
    order = order[: int((~left_out).sum())]
    matches = np.flatnonzero(pids[order] == pid)
    cameras = label_columns(gallery, order[:top])["camids"]
    found = [
        (
            gallery.image(int(i)),
            bool(pids[i] == pid),
            plots.titled(f"{distances[i]:.2f}", f"c{ids.plain(camera)}"),
        )
        for i, camera in zip(order[:top], cameras, strict=True)
    ]
    return found, int(matches[0]) + 1 if len(matches) else None


def main(argv: list[str] | None = None) -> None:
    """Run the command."""
    cli.run("visualize", Options, body, argv)


if __name__ == "__main__":
    main()
