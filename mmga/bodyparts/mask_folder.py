"""Make a folder of masks resumably, and summarise it.

Several processes share the images out among themselves.
"""

import contextlib
import dataclasses
import itertools
import json
import logging
import os
import time
from collections.abc import Callable, Container, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import torch

from mmga.bodyparts.importers import is_silhouette
from mmga.common.distributed import Group
from mmga.common.errors import UserError
from mmga.common.files import atomic_path, read_json_object
from mmga.common.progress import Progress
from mmga.data.dataset import ImageSet, label_columns
from mmga.data.masks import (
    BOTTOM,
    MANIFEST,
    UPPER,
    MaskFolder,
    PartMask,
    read_mask,
    warn_of_missing,
    write_mask,
)

logger = logging.getLogger(__name__)

LONG = 1800
"""Seconds on a CPU from which a GPU is advised."""

EMPTY = "without_person.txt"
"""Paths of images in which nobody was found; processes but the first add to files of their own,
`without_person.1.txt` and so on, until the first one joins them."""

Make = Callable[[Sequence[int]], Iterable[PartMask | None]]
"""From places in the image set to their masks, in that order; None where there is nobody."""

Masks = Callable[[Sequence[torch.Tensor]], Iterable[PartMask | None]]
"""From images, uint8 [3, H, W], to their masks; None where nobody is seen."""

Projected = Callable[[int, float], None]
"""Called after the first batch with the number of images left and the seconds they may take."""


def _listed(file: Path) -> str:
    """Return a file of paths, one on a line, with the bytes that they have on disk."""
    return file.read_text(encoding="utf-8", errors="surrogateescape")


@dataclasses.dataclass(frozen=True)
class MaskMaker:
    """Makes the masks of a set into a folder; after an interruption it makes the missing ones.

    Attributes:
        out: the folder; masks are at the images' relative paths, with the suffix .png.
        origin: of the masks, as the manifest records it. A folder of another origin is refused.
        group: the processes that share the images, which have the folder in common.
    """

    out: Path
    origin: dict[str, Any]
    group: Group = dataclasses.field(default_factory=Group)

    def begin(self) -> None:
        """Create the folder, or check that it was begun with the same origin.

        Raises:
            UserError: it was made from something else, or cannot be written.
        """
        manifest = self.out / MANIFEST
        if manifest.is_file():
            begun = read_manifest(manifest)
            old, new = begun.get("origin", {}), json.loads(json.dumps(self.origin))
            if old != new:
                what = next(key for key in (*new, *old) if old.get(key) != new.get(key))
                raise UserError(
                    f"{self.out} holds masks made with {what} {old.get(what)!r}, now it is "
                    f"{new.get(what)!r}; name another --out, or remove that folder"
                )
        elif self.out.is_dir() and any(self.out.rglob("*.png")):
            raise UserError(
                f"{self.out} holds PNG files and no {MANIFEST}; name another --out, so that "
                "nothing of yours is taken for a mask of this data set"
            )
        else:
            self._write({"schema": 1, "finished": False, "origin": self.origin})

    def check_paths(self, paths: Sequence[str]) -> None:
        """Refuse images whose masks would be outside of the folder, or overwrite one another.

        Raises:
            UserError: a path is absolute, leads out of the folder, or differs from another by its
                suffix alone.
        """
        first: dict[PurePosixPath, str] = {}
        for path in paths:
            place = PurePosixPath(path).with_suffix("")
            if place.is_absolute() or ".." in place.parts:
                raise UserError(
                    f"image {path} lies outside of the data set's folder, so that its mask would "
                    f"lie outside of {self.out}; name images below the folder"
                )
            if first.setdefault(place, path) != path:
                raise UserError(
                    f"images {first[place]} and {path} would have one mask file; rename one"
                )

    def missing(self, paths: Sequence[str]) -> list[int]:
        """Return the places of `paths` that have no mask yet and were not found empty.

        The processes of a group take what the first one sees.
        """
        places = []
        if self.group.leads:
            empty = self.empty()
            places = [
                place
                for place, path in enumerate(paths)
                if path not in empty and not self._file(path).is_file()
            ]
        return self.group.rows(torch.tensor(places, dtype=torch.int64, device="cpu")).tolist()

    def empty(self) -> set[str]:
        """Return the paths of images in which nobody was found."""
        return {path for file in self._empty_files() for path in _listed(file).splitlines()}

    def _empty_files(self) -> list[Path]:
        return [self.out / EMPTY] * (self.out / EMPTY).is_file() + sorted(
            self.out.glob(f"{Path(EMPTY).stem}.*{Path(EMPTY).suffix}")
        )

    def forget_empty(self) -> None:
        """Forget the images in which nobody was found: an import may have their files by now.

        Raises:
            UserError: the list cannot be removed.
        """
        try:
            for file in self._empty_files():
                file.unlink()
        except OSError as error:
            raise UserError(f"{self.out / EMPTY} could not be removed: {error.strerror}") from error

    def make(
        self,
        paths: Sequence[str],
        places: Sequence[int],
        make: Make,
        *,
        batch_size: int = 1,
        broken: Container[str] = (),
        progress: Progress | None = None,
        projected: Projected | None = None,
    ) -> None:
        """Make masks batch by batch, and write each batch while the next is made.

        Each file is written atomically. The processes of a group take whole batches in turn, so
        that batches, and with them every mask, are those of one process.

        Args:
            paths: of all images of the set.
            places: which of them.
            make: makes the masks of a batch.
            batch_size: images in a batch.
            broken: paths that `make` has found unreadable: neither written nor noted as empty.
            progress: called with ("masks", done, in all), of this process' share.
            projected: called with the images left and the projected time after the first batch, of
                this process' share.

        Raises:
            UserError: a mask cannot be made, or not be written (a full disk): finished masks
                stay, and the same call makes the others.
        """
        starts = range(0, len(places), batch_size)[self.group.rank :: self.group.world]
        batches = [places[start : start + batch_size] for start in starts]
        total = sum(map(len, batches))
        done, begun = 0, time.perf_counter()
        with ThreadPoolExecutor(1) as writer:
            written: Future[None] | None = None
            for batch in batches:
                made = list(zip((paths[place] for place in batch), make(batch), strict=True))
                if written is not None:
                    written.result()
                written = writer.submit(
                    self._write_batch, [(path, mask) for path, mask in made if path not in broken]
                )
                if not done and projected is not None:
                    left = total - len(batch)
                    projected(left, (time.perf_counter() - begun) / len(batch) * left)
                done += len(batch)
                if progress is not None:
                    progress("masks", done, total)
            if written is not None:
                written.result()

    def finish(self, images: ImageSet, broken: int = 0) -> dict[str, Any]:
        """Write and return the manifest: origin, label set, counts, areas by camera, version.

        Raises:
            UserError: a mask cannot be read, or the manifest not be written.
        """
        from mmga.common.version import __version__

        masks, silhouettes, by_camera = part_areas(images, MaskFolder(self.out))
        empty = self._join_empty(images.paths)
        without = sum(path in empty for path in images.paths)  # an image may be of two splits
        manifest = {
            "schema": 1,
            "finished": masks + without + broken == len(images),
            "origin": self.origin,
            "label_set": "parts",
            "labels": {"background": 0, "upper": 1, "bottom": 2, "other body": 3},
            "silhouette": {"background": 0, "body": 255},
            "counts": {
                "images": len(images),
                "masks": masks,
                "silhouettes": silhouettes,
                "without_person": without,
                "broken": broken,
            },
            "area_by_camera": by_camera,
            "version": __version__,
        }
        self._write(manifest)
        return manifest

    def _join_empty(self, paths: Sequence[str]) -> set[str]:
        """Return what the processes found empty, and leave it in one file, in images' order."""
        empty, files = self.empty(), self._empty_files()
        if not empty:
            return empty
        places = {path: place for place, path in enumerate(paths)}
        ordered = sorted(empty, key=lambda path: (places.get(path, -1), path))
        text = "".join(f"{path}\n" for path in ordered)
        if [(file.name, _listed(file)) for file in files] != [(EMPTY, text)]:
            with atomic_path(self.out / EMPTY) as temporary:
                temporary.write_text(text, encoding="utf-8", errors="surrogateescape")
            for file in set(files) - {self.out / EMPTY}:
                file.unlink()
        return empty

    def _file(self, path: str) -> Path:
        return self.out / Path(path).with_suffix(".png")

    def _write_batch(self, made: Sequence[tuple[str, PartMask | None]]) -> None:
        for path, mask in made:
            if mask is None:
                self._note_empty(path)
            else:
                self._write_mask(path, mask)

    def _write_mask(self, path: str, mask: PartMask) -> None:
        try:
            write_mask(self._file(path), mask)
        except UserError as error:
            raise UserError(
                f"{error}; the masks before it are kept: the same command goes on"
            ) from (error)

    def _note_empty(self, path: str) -> None:
        # Appended line by line: a resumed run does not search these images again.
        own = self.out / EMPTY
        if not self.group.leads:
            own = own.with_stem(f"{own.stem}.{self.group.rank}")
        size = own.stat().st_size if own.is_file() else 0
        try:
            with own.open("a", encoding="utf-8", errors="surrogateescape") as file:
                file.write(f"{path}\n")
        except OSError as error:
            with contextlib.suppress(OSError):
                os.truncate(own, size)  # to whole lines
            raise UserError(
                f"{own} could not be written: {error.strerror}; make room: the same command goes on"
            ) from error

    def _write(self, manifest: dict[str, Any]) -> None:
        with atomic_path(self.out / MANIFEST) as temporary:
            temporary.write_text(json.dumps(manifest, indent=2) + "\n")


def made_of_images(
    images: ImageSet,
    masks: Masks,
    broken: dict[str, str] | None,
) -> Make:
    """Return a function that makes the masks of images, given their places in the set.

    Args:
        images: the set.
        masks: makes the masks of a batch.
        broken: filled with the message by path of each image that cannot be decoded; None raises.
    """

    def make(places: Sequence[int]) -> Iterator[PartMask | None]:
        decoded: list[torch.Tensor | None] = []
        for place in places:
            try:
                decoded.append(images.image(place))
            except UserError as error:
                if broken is None:
                    raise
                broken[images.paths[place]] = str(error)
                decoded.append(None)
        made = iter(masks([image for image in decoded if image is not None]))
        for image in decoded:
            yield None if image is None else next(made)

    return make


def in_threads(masks: Masks, threads: int, piece: int) -> Masks:
    """Return a function that makes the masks of a batch piece by piece in several threads.

    Each thread computes with one of torch's: pieces side by side keep two cores busy, the many
    small steps of one network, each divided among the cores, do not.

    Args:
        masks: makes the masks of a piece.
        threads: pieces at a time.
        piece: images in a piece.
    """
    pool = ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,))

    def made(images: Sequence[torch.Tensor]) -> Iterator[PartMask | None]:
        pieces = [images[start : start + piece] for start in range(0, len(images), piece)]
        return itertools.chain.from_iterable(pool.map(masks, pieces))

    return made


def read_manifest(path: Path) -> dict[str, Any]:
    """Read a manifest.

    Raises:
        UserError: it cannot be read.
    """
    try:
        content = read_json_object(path)
        if not isinstance(content.get("origin", {}), dict):
            raise ValueError("origin: expected names with values")
    except ValueError as error:
        raise UserError(f"{path} is no manifest of masks ({error}); remove it") from error
    return content


def part_areas(
    images: ImageSet, masks: MaskFolder
) -> tuple[int, int, dict[str, dict[str, float | int | None]]]:
    """Count and measure the masks of a set.

    Returns:
        The number of masks, of them the number of silhouettes, and by camera: the images, the share
        without a mask, and the mean share of the image that is body, upper and bottom; None where
        no mask knows it.

    Raises:
        UserError: a mask cannot be read.
    """
    shares = np.full((len(images), 3), np.nan)  # body, upper, bottom
    silhouettes = 0
    for place, path in enumerate(images.paths):
        file = masks.file(path)
        if not file.is_file():
            continue
        mask = read_mask(file)
        labels = mask.labels.numpy()
        shares[place, 0] = (labels != 0).mean()
        if is_silhouette(mask):
            silhouettes += 1
        else:
            shares[place, 1:] = (labels == UPPER).mean(), (labels == BOTTOM).mean()
    there = ~np.isnan(shares[:, 0])
    by_camera: dict[str, dict[str, float | int | None]] = {}
    cameras = label_columns(images, np.arange(len(images)))["camids"]
    for camid in np.unique(cameras).tolist():
        own = cameras == camid
        row: dict[str, float | int | None] = {
            "images": int(own.sum()),
            "without_mask": round(float(1 - there[own].mean()), 6),
        }
        for column, part in enumerate(("body", "upper", "bottom")):
            values = shares[own, column]
            values = values[~np.isnan(values)]
            row[part] = round(float(values.mean()), 6) if len(values) else None
        by_camera[str(camid)] = row
    return int(there.sum()), silhouettes, by_camera


def projection(left: int, seconds: float, device: str) -> str:
    """Return the projected seconds of the images left as a sentence, with advice on a slow CPU."""
    if seconds < 90:
        time_left = f"{seconds:.0f} s"
    else:
        time_left = f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
    sentence = f"{left} images to go, about {time_left} here"
    on_cpu = device == "cpu" or (device == "auto" and not torch.cuda.is_available())
    if seconds > LONG and on_cpu:
        sentence += "; GPU advised (--device cuda), or a smaller --min-size"
    return sentence


def summary(manifest: dict[str, Any]) -> str:
    """Return counts, and the area of each part by camera, as lines to print."""
    counts = manifest["counts"]
    share = counts["without_person"] / max(counts["images"], 1)
    wide = max([6, *map(len, manifest["area_by_camera"])])
    lines = [
        f"{counts['masks']} masks of {counts['images']} images; without a person "
        f"{counts['without_person']} ({share:.1%}); whole body alone {counts['silhouettes']}",
        f"{'camera':>{wide}} {'images':>7} {'no mask':>8} {'body':>6} {'upper':>6} {'bottom':>6}",
    ]
    for camera, row in manifest["area_by_camera"].items():
        areas = " ".join(
            f"{'-':>6}" if row[part] is None else f"{row[part]:>6.1%}"
            for part in ("body", "upper", "bottom")
        )
        lines.append(f"{camera:>{wide}} {row['images']:>7} {row['without_mask']:>8.1%} {areas}")
    return "\n".join(lines)


MOST = 0.9
"""Mean share of the image from which a body is taken for an inverted or opaque mask."""


def warn_of_areas(manifest: dict[str, Any]) -> None:
    """Warn of a part that no mask holds, and of bodies that fill their images."""
    rows = list(manifest["area_by_camera"].values())
    parsed = manifest["counts"]["masks"] - manifest["counts"]["silhouettes"]
    missing = [part for part in ("upper", "bottom") if not any(row[part] for row in rows)]
    if parsed and missing:
        warn_of_missing(missing, f"the {parsed} masks with parts")
    bodies = [row["body"] for row in rows if row["body"] is not None]
    if bodies and min(bodies) > MOST:
        logger.warning(
            "warning: the body covers more than %.0f%% of the images of every camera; are the "
            "masks inverted, or pictures without a background?",
            100 * MOST,
        )
