"""Extract many images resumably: an extraction that was stopped continues when called again.

Features are written in shards of some thousand images beside the file that is asked for, in
`<name>.partial/`; complete shards are joined and the folder is removed. Several processes share the
shards out among themselves.
"""

import hashlib
import json
import logging
import os
import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from mmga.common.distributed import Group
from mmga.common.errors import UserError
from mmga.common.files import atomic_path, read_json_object
from mmga.common.progress import Progress
from mmga.data.dataset import ImageSet, Subset, label_columns
from mmga.data.pictures import Notes
from mmga.data.preflight import image_files
from mmga.extraction.embedder import Embedder, embed_images
from mmga.retrieval.features import Features, containers
from mmga.retrieval.features.load import SHARD_LIST

CONTAINERS = (".npz", ".safetensors", ".mat", ".h5", ".pt", ".parquet")
"""Suffixes of files of features; without one, a folder of .npy files is written."""

logger = logging.getLogger(__name__)

SHARD = 4096
"""Images of a shard, the most that a stop can lose."""


@dataclass(frozen=True, slots=True)
class Reading:
    """How images are read.

    Attributes:
        batch_size: images extracted at once.
        workers: processes that load images.
        skip_broken: leave out and count images that cannot be decoded.
    """

    batch_size: int = 64
    workers: int = 0
    skip_broken: bool = False


def extract_to(
    out: Path,
    embedder: Embedder,
    images: ImageSet,
    reading: Reading,
    *,
    progress: Progress | None = None,
    group: Group | None = None,
) -> str:
    """Extract the features of all images into a file, continuing an earlier attempt.

    The processes of a group take shards in turn, and the first one joins them. Rows, their order
    and their bits are the same for any number of processes.

    Args:
        out: the file, in any container of `Features.save`; or a .json file, which lists shards that
            stay in a folder beside it.
        embedder: the network.
        images: the images; labels are taken over.
        reading: how they are read.
        progress: called with ("extract", images done, images in all), of this process' share.
        group: the processes, which have the folder of `out` in common.

    Returns:
        What was written, in words; in a group to the first process, empty to the others.

    Raises:
        UserError: no container has the suffix of `out`, an image cannot be decoded, the disk is
            full, the partial results belong to another extraction, or the container cannot hold
            so many features (which is known before the first image).
    """
    group = group or Group()
    with group.together():
        _check_container(out, embedder, images)
        listed = out.suffix.lower() == SHARD_LIST
        folder = out.with_suffix(".shards") if listed else out.with_name(f"{out.name}.partial")
        starts = list(range(0, len(images), SHARD))
        files = {start: folder / f"{start:09d}.npz" for start in starts}
        if group.leads:
            if listed and out.exists():  # a finished one, which is made anew
                out.unlink()
                shutil.rmtree(folder, ignore_errors=True)
            _check_manifest(folder, embedder, images)
    left = [start for start in starts if group.leads and not files[start].is_file()]
    left = json.loads(group.texts(json.dumps(left))[0])
    with group.together():
        notes = _write_shards(
            {start: files[start] for start in left[group.rank :: group.world]},
            len(starts) - len(left),
            embedder,
            images,
            reading,
            listed=listed,
            progress=progress,
        )
    notes.gather(group.texts)
    with group.together():
        if not group.leads:
            return ""
        notes.say()
        if listed:
            return _listed(out, list(files.values()), len(images))
        features = _joined(list(files.values()), images)
        features.save(out)
        shutil.rmtree(folder)
        return str(features)


def _check_container(out: Path, embedder: Embedder, images: ImageSet) -> None:
    """Refuse a file that could not be written in the end."""
    if out.suffix and out.suffix.lower() not in (*CONTAINERS, SHARD_LIST):
        raise UserError(
            f"--out must end in {', '.join(CONTAINERS)}, {SHARD_LIST} (a list of shards) or "
            f"nothing (a folder of .npy files), got {out}"
        )
    if out.suffix.lower() in (".mat", ".safetensors"):  # which have limits
        shape = (1, 3, *embedder.transform.size)
        one, _ = embedder(torch.zeros(shape, dtype=torch.float32, device=embedder.device))
        name = "features" if one.dim() == 2 else "parts"
        containers.check_room(out, name, len(images) * one.nbytes, images.paths)


def _write_shards(
    files: dict[int, Path],
    finished: int,
    embedder: Embedder,
    images: ImageSet,
    reading: Reading,
    *,
    listed: bool,
    progress: Progress | None,
) -> Notes:
    """Extract shards, each from its first image on, and return what was done to images.

    Args:
        files: file of each shard by its first image.
        finished: shards that were there.
        embedder: the network.
        images: all images.
        reading: how they are read.
        listed: files stay, and hold features as `Features.save` writes them.
        progress: see `extract_to`.
    """
    broken: dict[str, str] | None = {} if reading.skip_broken else None
    notes = Notes()
    ends = {start: min(start + SHARD, len(images)) for start in files}
    done = min(finished * SHARD, len(images))
    total = done + sum(end - start for start, end in ends.items())
    if progress is not None and done:
        progress("extract", done, total)
    for start, file in files.items():

        def tell(count: int, done: int = done) -> None:
            if progress is not None:
                progress("extract", done + count, total)

        share = Subset(images, np.arange(start, ends[start]))
        (rows, visibility), places = embed_images(
            embedder,
            share,
            batch_size=reading.batch_size,
            workers=reading.workers,
            broken=broken,
            progress=tell,
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
        if listed:
            _features(arrays, images).save(file)
        else:
            with atomic_path(file) as temporary:
                np.savez(temporary, **arrays)  # type: ignore[arg-type]
        done += ends[start] - start
    return notes


def _features(arrays: dict[str, np.ndarray], images: ImageSet) -> Features:
    """Return rows, and the labels of the images at their places."""
    labels = label_columns(images, arrays["places"])
    if "visibility" in arrays:
        return Features(None, parts=arrays["rows"], visibility=arrays["visibility"], **labels)
    return Features(arrays["rows"], **labels)


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
    _count_broken(len(images) - len(arrays["places"]))
    return _features(arrays, images)


def _listed(out: Path, files: list[Path], count: int) -> str:
    """Write the list of the shards, and return in words what they hold.

    Raises:
        UserError: a shard is absent or damaged, or the file cannot be written.
    """
    counts = [len(containers.read(file, mapped=True)["pids"]) for file in files]
    _count_broken(count - sum(counts))
    shards = [
        {"file": f"{file.parent.name}/{file.name}", "rows": rows}
        for file, rows in zip(files, counts, strict=True)
    ]
    with atomic_path(out) as temporary:
        temporary.write_text(json.dumps({"schema": 1, "shards": shards}, indent=1))
    return f"{sum(counts)} rows of features in {len(shards)} shards"


def _count_broken(count: int) -> None:
    if count:
        logger.warning("%d images were left out as broken", count)


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
