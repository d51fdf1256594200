"""Extract many images resumably: an extraction that was stopped continues when called again.

Features are written in shards of some thousand images beside the file that is asked for, in
`<name>.partial/`; complete shards are joined and the folder is removed.
"""

import hashlib
import json
import logging
import os
import shutil
from pathlib import Path

import numpy as np
import torch

from mmga.common.errors import UserError
from mmga.common.files import atomic_path, read_json_object
from mmga.common.progress import Progress
from mmga.data.dataset import ImageSet, Subset, label_columns
from mmga.data.pictures import Notes
from mmga.data.preflight import image_files
from mmga.extraction.embedder import Embedder, embed_images
from mmga.retrieval.features import Features, containers

CONTAINERS = (".npz", ".safetensors", ".mat", ".h5", ".pt", ".parquet")
"""Suffixes of files of features; without one, a folder of .npy files is written."""

logger = logging.getLogger(__name__)

SHARD = 4096
"""Images of a shard, the most that a stop can lose."""


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
    """Extract the features of all images into a file, continuing an earlier attempt.

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
        UserError: no container has the suffix of `out`, an image cannot be decoded, the disk is
            full, the partial results belong to another extraction, or the container cannot hold
            so many features (which is known before the first image).
    """
    if out.suffix and out.suffix.lower() not in CONTAINERS:
        raise UserError(
            f"--out must end in {', '.join(CONTAINERS)} or nothing (a folder of .npy files), "
            f"got {out}"
        )
    if out.suffix.lower() in (".mat", ".safetensors"):  # which have limits
        shape = (1, 3, *embedder.transform.size)
        one, _ = embedder(torch.zeros(shape, dtype=torch.float32, device=embedder.device))
        name = "features" if one.dim() == 2 else "parts"
        containers.check_room(out, name, len(images) * one.nbytes, images.paths)
    folder = out.with_name(f"{out.name}.partial")
    _check_manifest(folder, embedder, images)
    starts = range(0, len(images), SHARD)
    broken: dict[str, str] | None = {} if skip_broken else None
    notes = Notes()
    for start in starts:
        file = folder / f"{start:09d}.npz"
        end = min(start + SHARD, len(images))

        def done(count: int, start: int = start) -> None:
            if progress is not None:
                progress("extract", start + count, len(images))

        if file.is_file():
            done(end - start)
            continue
        share = Subset(images, np.arange(start, end))
        (rows, visibility), places = embed_images(
            embedder,
            share,
            batch_size=batch_size,
            workers=workers,
            broken=broken,
            progress=done,
            notes=notes,
        )
        if not len(rows):
            raise UserError(
                f"--images: none of {len(share)} images in a row could be decoded, from "
                f"{share.paths[0]} on"
            )
        arrays = {"rows": rows.numpy(), "places": (places + start).numpy()}
        if visibility is not None:
            arrays["visibility"] = visibility.numpy()
        with atomic_path(file) as temporary:
            np.savez(temporary, **arrays)  # type: ignore[arg-type]
    notes.say()
    features = _joined([folder / f"{start:09d}.npz" for start in starts], images)
    features.save(out)
    shutil.rmtree(folder)
    return features


def _joined(files: list[Path], images: ImageSet) -> Features:
    """Return the features of all shards, with the labels of the images.

    Raises:
        UserError: a shard is damaged.
    """
    shards = []
    for file in files:
        shards.append(containers.read(file))
        places, count = shards[-1].get("places"), len(shards[-1].get("rows", ()))
        if places is None or not count or len(places) != count or places.max() >= len(images):
            raise UserError(f"{file} holds no features of these images; remove it, and run again")
    arrays = {name: np.concatenate([shard[name] for shard in shards]) for name in shards[0]}
    rows, places = arrays["rows"], arrays["places"]
    if len(places) < len(images):
        logger.warning("%d images were left out as broken", len(images) - len(places))
    labels = label_columns(images, places)
    if "visibility" in arrays:
        return Features(None, parts=rows, visibility=arrays["visibility"], **labels)
    return Features(rows, **labels)


def _digest(images: ImageSet) -> str:
    """Return a digest of where the images are: equal names in another folder are other images."""
    files = [os.path.abspath(file) for file in image_files(images)] or images.paths
    return hashlib.sha256("\n".join(files).encode()).hexdigest()


def _check_manifest(folder: Path, embedder: Embedder, images: ImageSet) -> None:
    """Write the settings of an extraction, or compare them with those of an earlier attempt.

    Raises:
        UserError: they differ.
    """
    manifest = {
        "network": embedder.name,
        "size": list(embedder.transform.size),
        "interpolation": embedder.transform.interpolation,
        "flip": embedder.flip,
        "shard": SHARD,
        "images": _digest(images),
    }
    file = folder / "manifest.json"
    if not file.is_file():
        with atomic_path(file) as temporary:
            temporary.write_text(json.dumps(manifest, indent=1))
        return
    try:
        before = read_json_object(file)
    except ValueError:
        before = {}
    differs = [name for name in manifest if before.get(name) != manifest[name]]
    if differs:
        raise UserError(
            f"{folder} holds the beginning of another extraction (it differs in {differs[0]}); "
            "remove it, or name another --out"
        )
