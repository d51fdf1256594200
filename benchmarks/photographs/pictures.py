"""The photographs: read once, parsed once, kept as uint8 arrays of one size; splits of identities.

Cameras: VIPeR, PRID450S and PKU-Reid have two; Partial-REID's whole bodies count as another camera
than its occluded and partial ones.
"""

import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from benchmarks.photographs.degrade import cluttered, misaligned, occluded
from benchmarks.photographs.plan import SETS, Plan
from mmga.bodyparts.parser import Parser, version
from mmga.common.errors import UserError
from mmga.common.files import atomic_path
from mmga.common.progress import Progress
from mmga.config import DataConfig
from mmga.data.dataset import Concatenation, DataSet, ImageSet, ImageTensors, Subset, concatenated
from mmga.data.masks import PartMask
from mmga.data.pictures import read_image
from mmga.data.readers.viper import read_silhouettes, read_viper
from mmga.data.transforms import resize

Pair = tuple[ImageSet, ImageSet]
"""Queries and gallery."""

PARTIAL_FOLDER = "partial_reid/Partial-REID_Dataset"

_KINDS = {"occluded": 0, "partial": 1, "whole": 2}
"""Camera number of each folder of Partial-REID."""

_PATTERNS = {
    "viper": re.compile(r"cam_(?P<camera>[ab])/(?P<person>\d{3})_\d+\.bmp"),
    "prid450s": re.compile(r"(?P<person>\d{4})(?P<camera>\d{3})\.png"),
    "pku_reid": re.compile(r"(?:train|val/all_imgs)/(?P<person>\d+)/(?P<camera>\d+)_\d+\.png"),
    PARTIAL_FOLDER: re.compile(r"(?P<camera>\w+)_body_images/(?P<person>\d+)_\d+\.jpg"),
}

Row = tuple[str, int, int]
"""Relative path, identity, camera."""


def listed(photos: Path, name: str) -> list[Row]:
    """Return the photographs of a set, sorted by their paths.

    Raises:
        UserError: its folder holds none.
    """
    folder, rows = photos / name, []
    for file in sorted(folder.rglob("*")):
        path = file.relative_to(folder).as_posix()
        found = _PATTERNS[name].fullmatch(path)
        if found is not None:
            camera = found["camera"]
            number = {"a": 0, "b": 1, **_KINDS}.get(camera)
            rows.append((path, int(found["person"]), int(camera) if number is None else number))
    if not rows:
        raise UserError(f"{folder} holds no photograph named as {name}'s are; see --photos")
    return rows


class Pictures:
    """All sets of a plan.

    Args:
        photos: folder of the sets.
        out: folder for the arrays.
        plan: of the experiment.
        silhouettes: SDALF's aleMasks_VIPeR.mat.
        progress: told how many photographs are parsed.
    """

    def __init__(
        self,
        photos: Path,
        out: Path,
        plan: Plan,
        silhouettes: Path,
        progress: Progress | None = None,
    ) -> None:
        self.photos, self.plan, self.silhouettes = photos, plan, silhouettes
        self.folder = out / f"pictures-{version()}-{plan.size[0]}x{plan.size[1]}"
        self._progress = progress
        self._parser: Parser | None = None
        self.sets = {name: self._read(name) for name in SETS}
        self.partial = self._read(PARTIAL_FOLDER)
        self.pooled = concatenated(self.sets)
        self._silhouettes: torch.Tensor | None = None

    def split(self, number: int) -> tuple[Subset, Subset]:
        """Return training and test images of a split of the pooled sets."""
        test = np.isin(self.pooled.pids, test_identities(self.pooled, number, self.plan))
        return Subset(self.pooled, np.flatnonzero(~test)), Subset(self.pooled, np.flatnonzero(test))

    def data_set(self, number: int) -> DataSet:
        """Return the data set of a split: training images and the clean test."""
        train, test = self.split(number)
        return DataSet("photographs", train, *sides(test))

    def viper(self, number: int) -> DataSet:
        """Return one half of VIPeR to train on and the other to test on, as its reader does."""
        halves = read_viper(DataConfig(data="viper", root=self.photos, split=number), None)
        place = {path: index for index, path in enumerate(self.sets["viper"].paths)}

        def taken(images: ImageSet) -> Subset:
            return Subset(self.sets["viper"], [place[path] for path in images.paths])

        return DataSet("viper", *map(taken, (halves.train, halves.query, halves.gallery)))

    def test(self, number: int, name: str) -> Pair:
        """Return queries and gallery of a test of TESTS for a split's test identities."""
        _, whole = self.split(number)
        if name == "clean":
            return sides(whole)
        seed = self.plan.seed
        if name == "clutter-silhouettes":
            whole = Subset(whole, _of_set(whole, "viper"))
            images, labels = _stacked(whole), self._viper_silhouettes()[whole_places(whole)]
            return sides(_changed(whole, cluttered(images, labels, whole.pids, seed)))
        images = _stacked(whole)
        if name == "misaligned":
            return sides(_changed(whole, misaligned(images, seed)))
        if name == "occluded":
            return sides(_changed(whole, occluded(images, whole.pids, seed)))
        if name == "clutter":
            labels = torch.stack([_labels(whole, index) for index in range(len(whole))])
            return sides(_changed(whole, cluttered(images, labels, whole.pids, seed)))
        raise ValueError(f"no test {name}")

    def partial_test(self, name: str) -> Pair:
        """Return queries and gallery of a test of PARTIAL."""
        return of_kinds(self.partial, name)

    def _viper_silhouettes(self) -> torch.Tensor:
        """Return SDALF's silhouettes in the order of VIPeR's images, uint8 [N, H, W]."""
        if self._silhouettes is None:
            viper = self.sets["viper"]
            order = np.lexsort((viper.camids, viper.pids))
            find = read_silhouettes(self.silhouettes, [viper.paths[index] for index in order])
            found = []
            for path in viper.paths:
                mask = find(path)
                assert mask is not None
                grey = torch.zeros(3, *mask.labels.shape, dtype=torch.uint8, device="cpu")
                labels = resize(grey, mask.labels, self.plan.size, "bilinear")[1]
                assert labels is not None
                found.append(labels)
            self._silhouettes = torch.stack(found)
        return self._silhouettes

    def _read(self, name: str) -> ImageTensors:
        file = self.folder / f"{Path(name).name}.npz"
        if not file.is_file():
            self._prepare(file, name)
        with np.load(file, allow_pickle=False) as stored:
            arrays = {key: stored[key] for key in stored.files}
        masks = [
            PartMask(labels) if seen else None
            for labels, seen in zip(
                torch.from_numpy(arrays["labels"]), arrays["seen"].tolist(), strict=True
            )
        ]
        images = torch.from_numpy(arrays["images"])
        paths = arrays["paths"].tolist()
        return ImageTensors(images, arrays["pids"], arrays["camids"], paths, masks)  # type: ignore[arg-type]

    def _prepare(self, file: Path, name: str) -> None:
        """Decode, parse and resize the photographs of a set, and keep them."""
        rows = listed(self.photos, name)
        images, labels, seen = [], [], []
        for chunk in _chunks(rows, 64):
            read = [read_image(self.photos / name / path) for path, _, _ in chunk]
            if self._parser is None:
                self._parser = Parser()
            for image, mask in zip(read, self._parser(read), strict=True):
                empty = torch.zeros(image.shape[-2:], dtype=torch.uint8, device="cpu")
                old = empty if mask is None else mask.labels
                small, own = resize(image, old, self.plan.size, "bilinear")
                images.append(small)
                labels.append(own)
                seen.append(mask is not None)
            if self._progress is not None:
                self._progress(f"parse {Path(name).name}", len(images), len(rows))
        paths, pids, camids = zip(*rows, strict=True)
        with atomic_path(file) as temporary, temporary.open("wb") as out:
            np.savez(
                out,
                images=torch.stack(images).numpy(),
                labels=torch.stack(labels).numpy(),  # type: ignore[arg-type]
                seen=np.array(seen),
                paths=np.array(paths),
                pids=np.array(pids, np.int64),
                camids=np.array(camids, np.int64),
            )


def test_identities(pooled: Concatenation, number: int, plan: Plan) -> np.ndarray:
    """Return the test identities of a split: one part of each set's, int64, sorted."""
    found = []
    for source in range(len(pooled.sets)):
        names = np.unique(pooled.pids[pooled.sources == source])
        order = np.random.default_rng((plan.seed, source)).permutation(names)
        found.append(order[number :: plan.splits])
    return np.sort(np.concatenate(found))


def sides(images: ImageSet) -> Pair:
    """Return queries, the first image of each identity in each camera, and all as the gallery.

    A query cannot find itself: the protocol leaves out images of its identity and camera.
    """
    pairs = np.stack((images.pids, images.camids))
    _, first = np.unique(pairs, axis=1, return_index=True)
    return Subset(images, np.sort(first)), images


def of_kinds(partial: ImageSet, name: str) -> Pair:
    """Return queries and gallery of a test of PARTIAL among all images of Partial-REID."""
    query, gallery = (
        Subset(partial, np.flatnonzero(partial.camids == _KINDS[kind])) for kind in name.split("-")
    )
    return query, gallery


def whole_places(images: Subset) -> np.ndarray:
    """Return the places of a subset's images in the first pooled set, int64."""
    places = images.indices
    inner = images.images
    while isinstance(inner, Subset):
        places, inner = inner.indices[places], inner.images
    return np.asarray(places)


def _of_set(images: Subset, name: str) -> np.ndarray:
    return np.flatnonzero([path.startswith(f"{name}/") for path in images.paths])


def _stacked(images: ImageSet) -> torch.Tensor:
    return torch.stack([images.image(index) for index in range(len(images))])


def _labels(images: ImageSet, index: int) -> torch.Tensor:
    mask = images.mask(index)
    if mask is None:
        return torch.ones(images.image(index).shape[-2:], dtype=torch.uint8, device="cpu")
    return mask.labels


def _changed(images: ImageSet, pixels: torch.Tensor) -> ImageTensors:
    return ImageTensors(pixels, images.pids, images.camids, images.paths)  # type: ignore[arg-type]


def _chunks(rows: list[Row], size: int) -> Iterator[list[Row]]:
    for start in range(0, len(rows), size):
        yield rows[start : start + size]
