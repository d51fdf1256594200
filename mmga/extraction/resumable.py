"""Extraction of many images that can be stopped at any time and goes on where it was.

Rows are written in shards of some thousand images beside the file that is asked for, in
`<name>.partial/`; when all are there they are joined and the folder goes.
"""

import hashlib
import json
import logging
import shutil
from pathlib import Path

import numpy as np
import torch

from mmga.common.errors import UserError
from mmga.common.files import atomic_path
from mmga.common.progress import Progress
from mmga.data.dataset import ImageSet, Subset
from mmga.data.loader import eval_batches
from mmga.extraction.embedder import Embedder
from mmga.retrieval.features import Features

logger = logging.getLogger(__name__)

SHARD = 4096
"""Images of a shard; what a stop can lose."""


def extract_to(
    out: Path,
    embedder: Embedder,
    images: ImageSet,
    *,
    batch_size: int = 64,
    workers: int = 0,
    skip_broken: bool = False,
    progress: Progress | None = None,
) -> Features:
    """Extract the features of all images into a file, going on with an earlier attempt.

    Args:
        out: the file, in any container of `Features.save`.
        embedder: the network.
        images: the images; labels are taken over.
        batch_size: images extracted at once.
        workers: processes that load images.
        skip_broken: leave out and count images that cannot be decoded.
        progress: called with ("extract", images done, images in all).

    Returns:
        The features, as they are in the file.

    Raises:
        UserError: an image cannot be decoded, the disk is full, or the partial results there are of
            another extraction.
    """
    folder = out.with_name(f"{out.name}.partial")
    _check_manifest(folder, embedder, images)
    starts = range(0, len(images), SHARD)
    broken: dict[str, str] = {}
    for start in starts:
        file = folder / f"{start:09d}.npz"
        end = min(start + SHARD, len(images))
        if not file.is_file():
            share = Subset(images, np.arange(start, end))
            arrays = _rows(
                embedder, share, start, len(images), batch_size, workers, skip_broken, broken,
                progress,
            )  # fmt: skip
            with atomic_path(file) as temporary:
                np.savez(temporary, **arrays)  # type: ignore[arg-type]
        elif progress is not None:
            progress("extract", end, len(images))
    loaded = [dict(np.load(folder / f"{start:09d}.npz")) for start in starts]
    arrays = {name: np.concatenate([one[name] for one in loaded]) for name in loaded[0]}
    places = arrays["places"]
    if not len(places):
        raise UserError("--images: not one image could be decoded")
    if len(places) < len(images):
        logger.warning("%d images were left out as broken", len(images) - len(places))
    parts = "visibility" in arrays
    features = Features(
        None if parts else arrays["rows"],
        images.pids[places],
        images.camids[places],
        np.array(images.paths)[places],
        parts=arrays["rows"] if parts else None,
        visibility=arrays["visibility"] if parts else None,
    )
    features.save(out)
    shutil.rmtree(folder)
    return features


def _rows(
    embedder: Embedder,
    share: Subset,
    start: int,
    total: int,
    batch_size: int,
    workers: int,
    skip_broken: bool,
    broken: dict[str, str],
    progress: Progress | None,
) -> dict[str, np.ndarray]:
    """Return the arrays of one shard."""
    batches = eval_batches(
        share,
        embedder.transform,
        batch_size=batch_size,
        workers=workers,
        device=embedder.device,
        skip_broken=skip_broken,
        broken=broken,
        masks=False,
    )
    rows, visible, places = [], [], []
    done = start
    for batch in batches:
        features, seen = embedder(batch.images)
        rows.append(features.cpu())
        if seen is not None:
            visible.append(seen.cpu())
        places.append(batch.indices.cpu() + start)
        done += len(batch)
        if progress is not None:
            progress("extract", done, total)
    if not rows:
        raise UserError(
            f"--images: none of {len(share)} images in a row could be decoded, from "
            f"{share.paths[0]} on"
        )
    arrays = {"rows": torch.cat(rows).numpy(), "places": torch.cat(places).numpy()}
    if visible:
        arrays["visibility"] = torch.cat(visible).numpy()
    return arrays


def _check_manifest(folder: Path, embedder: Embedder, images: ImageSet) -> None:
    """Write down what is extracted, or hold it against what an earlier attempt wrote."""
    manifest = {
        "network": embedder.name,
        "size": list(embedder.transform.size),
        "interpolation": embedder.transform.interpolation,
        "flip": embedder.flip,
        "shard": SHARD,
        "images": hashlib.sha256("\n".join(images.paths).encode()).hexdigest(),
    }
    file = folder / "manifest.json"
    if not file.is_file():
        with atomic_path(file) as temporary:
            temporary.write_text(json.dumps(manifest, indent=1))
        return
    try:
        before = json.loads(file.read_text())
    except ValueError:
        before = {}
    differs = [name for name in manifest if before.get(name) != manifest[name]]
    if differs:
        raise UserError(
            f"{folder} holds the beginning of another extraction (it differs in {differs[0]}); "
            "remove it, or name another --out"
        )
