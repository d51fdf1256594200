"""`python -m mmga.visualize`: attention maps and ranked lists of a run, as pictures.

    python -m mmga.visualize --run runs/x

writes attention.png (query images with their attention maps, alone and over the image, beside the
true masks) and ranked.png (each query's nearest gallery images, right ones framed green, wrong ones
red, and the rank of its first match).
"""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from mmga.common import cli
from mmga.common.errors import UserError
from mmga.config import Config, DataName

if TYPE_CHECKING:
    import numpy as np
    import torch

    from mmga.data.dataset import ImageSet

UNGUIDED = "these maps were never guided: the run was trained without masks"


@dataclass(frozen=True, slots=True)
class Options:
    """Draw attention maps and ranked lists."""

    run: Path
    """Folder of a run, or one of its checkpoints."""
    out: Path | None = None
    """Folder for the pictures; the run's own folder by default."""
    data: DataName | None = None
    """Another data set than the run was trained on."""
    root: Path | None = None
    """Folder of that data set."""
    gallery: Path | None = None
    """The gallery's features, as `mmga.extract` wrote them; extracted again if not given."""
    rows: int = 10
    """Queries on a sheet, spread evenly over the set."""
    top: int = 10
    """Gallery images a query."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""


def body(options: Options) -> int:
    """Draw both sheets and print their files."""
    if options.rows < 1 or options.top < 1:
        raise UserError("--rows and --top must be at least 1")
    import numpy as np
    import torch

    from mmga.common import plots
    from mmga.common.device import resolve_device
    from mmga.common.progress import bar
    from mmga.data.build import load_data
    from mmga.data.dataset import Subset
    from mmga.data.loader import Loading, eval_batches
    from mmga.data.transforms import denormalise
    from mmga.extraction.extract import embedder_of, extract
    from mmga.extraction.of_run import DataChoice, with_data
    from mmga.models.loading import load_run
    from mmga.retrieval.features import load_features

    run = load_run(options.run, resolve_device(options.device))
    config = with_data(run.config, DataChoice(options.data, options.root))
    folder = options.out or run.folder
    with bar() as progress:
        data = load_data(config, progress, training=False)
        chosen = np.unique(np.linspace(0, len(data.query) - 1, options.rows).round().astype(int))
        embedder = embedder_of(run.network, config)
        loading = Loading(device=embedder.device)
        queries = Subset(data.query, chosen)
        batch = next(eval_batches(queries, embedder.transform, loading, batch_size=len(chosen)))
        with torch.inference_mode():
            maps = {name: m.cpu() for name, m in run.network.attention(batch.images).items()}
        if options.gallery is None:
            gallery = extract(run.network, data.gallery, config, phase="gallery", progress=progress)
        else:
            gallery = load_features(options.gallery)
            if not np.array_equal(gallery.pids, data.gallery.pids):
                raise UserError(
                    f"--gallery {options.gallery}: expected features of the {len(data.gallery)} "
                    f"images of the gallery, found {len(gallery)} of other pids; "
                    "leave it out to extract them"
                )
    images = denormalise(batch.images).cpu()
    lines = [f"id {pid}, camera {cam}" for pid, cam in zip(batch.pids, batch.camids, strict=True)]
    labels = [
        rows if there else None for rows, there in zip(batch.labels, batch.has_mask, strict=True)
    ]
    if maps:
        note = "" if _guided(run.config) else UNGUIDED
        plots.attention_sheet(folder / "attention.png", images, maps, labels, lines, note)
        print(f"attention maps beside true masks: {folder / 'attention.png'}")
        if note:
            print(f"note: {note}", file=sys.stderr)
    features = embedder(batch.images)[0].cpu()  # [N, D]
    distances = (1 - features @ gallery.rows.whole().T).numpy()  # [N, G]
    hits = []
    for index, row in enumerate(distances):
        pid, camid = int(batch.pids[index]), int(batch.camids[index])
        found, first = _ranked(row, pid, camid, data.gallery, options.top)
        hits.append(found)
        lines[index] += "\nno match there" if first is None else f"\nfirst match: {first}"
    plots.ranked_sheet(folder / "ranked.png", list(images), hits, lines)
    print(f"ranked lists, right in green and wrong in red: {folder / 'ranked.png'}")
    return 0


def _guided(config: Config) -> bool:
    """Return whether masks took part in the training of a run."""
    data = config.data
    masked = data.masks is not None or "synthetic" in (data.data, *data.also)
    return bool(config.loss.mask_weight) and masked


def _ranked(
    distances: "np.ndarray", pid: int, camid: int, gallery: "ImageSet", top: int
) -> "tuple[list[tuple[torch.Tensor, bool, str]], int | None]":
    """Return the nearest images of a query by Market-1501's rule, and the rank of the first match.

    Args:
        distances: of the query to the gallery, [G].
        pid: identity of the query.
        camid: its camera.
        gallery: the images.
        top: how many to return.

    Returns:
        Image, whether it is a match, and a short line, of each; and a rank from 1, None where the
        gallery holds no match.
    """
    import numpy as np

    pids, camids = gallery.pids, gallery.camids
    left_out = (pids == -1) | ((pids == pid) & (camids == camid))
    order = np.argsort(np.where(left_out, np.inf, distances), kind="stable")
    order = order[: int((~left_out).sum())]
    matches = np.flatnonzero(pids[order] == pid)
    found = [
        (gallery.image(int(i)), bool(pids[i] == pid), f"{distances[i]:.2f}, c{camids[i]}")
        for i in order[:top]
    ]
    return found, int(matches[0]) + 1 if len(matches) else None


def main(argv: list[str] | None = None) -> None:
    """Run the command."""
    cli.run("visualize", Options, body, argv)


if __name__ == "__main__":
    main()
