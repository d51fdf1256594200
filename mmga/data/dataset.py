"""Image sets and data sets, the interface between readers and consumers."""

import dataclasses
import os
import types
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch

from mmga.common import ids
from mmga.common.errors import UserError
from mmga.data.masks import CountsMasks, FindMask, PartMask
from mmga.data.pictures import read_image as read_image

Ints = Sequence[int] | np.ndarray

SPLIT_NAMES = ("train", "query", "gallery")
"""Fields of a DataSet."""


@runtime_checkable
class ImageSet(Protocol):
    """Images with identities and cameras, in a fixed order.

    Attributes:
        pids: int64 [N], identities as the data set numbers them; -1 is junk.
        camids: int64 [N].
        paths: relative paths, which also name the masks.
    """

    pids: np.ndarray
    camids: np.ndarray
    paths: list[str]

    def __len__(self) -> int: ...

    def image(self, index: int) -> torch.Tensor:
        """Return image `index` as uint8 [3, H, W], RGB."""
        ...

    def mask(self, index: int) -> PartMask | None:
        """Return the mask of image `index`, None where there is none."""
        ...


@dataclasses.dataclass(frozen=True, slots=True)
class DataSet:
    """A data set in its three splits; training and test numberings of identities are unrelated.

    Attributes:
        name: of the set.
        train: images to train on.
        query: images to search for.
        gallery: images to search.
        protocol: the evaluator's protocol of the set's published metrics.
        multi_query: for protocol `multi-query`, all images of each query's identity and camera;
            None where the set has none.
        notes: remarks for reports on how the set was read.
    """

    name: str
    train: ImageSet
    query: ImageSet
    gallery: ImageSet
    # By keyword alone: data sets with fields of their own extend this one.
    protocol: str = dataclasses.field(default="market1501", kw_only=True)
    multi_query: ImageSet | None = dataclasses.field(default=None, kw_only=True)
    notes: tuple[str, ...] = dataclasses.field(default=(), kw_only=True)

    def need(self, *splits: str) -> None:
        """Refuse a data set of which a split that is to be used is empty.

        Raises:
            UserError: one is.
        """
        for split in splits:
            if not len(getattr(self, split)):
                raise UserError(
                    f"data set {self.name} holds no image of split {split}, which is needed here; "
                    "add such rows or name another data set"
                )

    @property
    def has_test(self) -> bool:
        """Whether there is a split to test on; a table may hold training images alone."""
        return bool(len(self.query) or len(self.gallery))


class Labelled:
    """Shared checks of the image sets below.

    Attributes:
        pid_names: where identities are names, the name of pid i at place i; else None.
        camid_names: likewise for cameras.
        columns: what else is known of each image, by name, each [N].
        notes: remarks on how the images were read, one sentence each.
    """

    pid_names: np.ndarray | None = None
    camid_names: np.ndarray | None = None
    columns: Mapping[str, np.ndarray] = types.MappingProxyType({})
    notes: tuple[str, ...] = ()

    def __init__(self, paths: Sequence[str], pids: Ints, camids: Ints) -> None:
        self.paths = list(paths)
        self.pids = np.asarray(pids, dtype=np.int64).reshape(-1)
        self.camids = np.asarray(camids, dtype=np.int64).reshape(-1)
        if not len(self.paths) == len(self.pids) == len(self.camids):
            raise ValueError(
                "paths, pids and camids must have one length, got "
                f"{len(self.paths)}, {len(self.pids)}, {len(self.camids)}"
            )

    def __len__(self) -> int:
        return len(self.paths)


class ImageFiles(Labelled):
    """Image files below a folder, decoded when asked for.

    Args:
        root: the folder that `paths` are relative to.
        paths: relative paths with forward slashes.
        pids: identity of each image.
        camids: camera of each image.
        masks: a folder of mask files, or any function from a relative path to its mask or None.
    """

    def __init__(
        self,
        root: str | os.PathLike[str],
        paths: Sequence[str],
        pids: Ints,
        camids: Ints,
        masks: FindMask | None = None,
    ) -> None:
        super().__init__(paths, pids, camids)
        self.root = Path(root)
        self.masks = masks

    @classmethod
    def of_rows(
        cls, root: Path, rows: Sequence[tuple[str, int, int]], masks: FindMask | None = None
    ) -> "ImageFiles":
        """Return the images of one or more rows of path, pid and camid."""
        paths, pids, camids = zip(*rows, strict=True)
        return cls(root, paths, pids, camids, masks)

    def image(self, index: int) -> torch.Tensor:
        """Decode image `index` to uint8 [3, H, W].

        Raises:
            UserError: the file is missing or cannot be decoded.
        """
        return read_image(self.root / self.paths[index])

    def mask(self, index: int) -> PartMask | None:
        """Return the mask of image `index`, None where there is none."""
        return None if self.masks is None else self.masks(self.paths[index])


class ImageTensors(Labelled):
    """Images held in memory.

    Args:
        images: uint8 [3, H, W] each.
        pids: identity of each image.
        camids: camera of each image.
        paths: relative paths; numbered names where not given.
        masks: one mask or None each; None for no masks at all.
    """

    def __init__(
        self,
        images: Sequence[torch.Tensor],
        pids: Ints,
        camids: Ints,
        paths: Sequence[str] | None = None,
        masks: Sequence[PartMask | None] | None = None,
    ) -> None:
        count = len(images)
        super().__init__(
            [f"{i:06d}.png" for i in range(count)] if paths is None else paths, pids, camids
        )
        if count != len(self.pids) or (masks is not None and len(masks) != count):
            raise ValueError("images, pids and masks must have one length")
        self.images = images
        self.masks = masks

    def image(self, index: int) -> torch.Tensor:
        """Return image `index`, uint8 [3, H, W]."""
        return self.images[index]

    def mask(self, index: int) -> PartMask | None:
        """Return the mask of image `index`, None where there is none."""
        return None if self.masks is None else self.masks[index]


class Subset(Labelled):
    """Some images of another set, in the given order."""

    def __init__(self, images: ImageSet, indices: Ints) -> None:
        self.indices = np.asarray(indices, dtype=np.int64).reshape(-1)
        self.images = images
        super().__init__(
            [images.paths[i] for i in self.indices],
            images.pids[self.indices],
            images.camids[self.indices],
        )
        self.pid_names, self.camid_names = _names(images)
        columns = getattr(images, "columns", {})
        self.columns = {name: values[self.indices] for name, values in columns.items()}

    def image(self, index: int) -> torch.Tensor:
        """Return image `index` of the subset, uint8 [3, H, W]."""
        return self.images.image(int(self.indices[index]))

    def mask(self, index: int) -> PartMask | None:
        """Return the mask of image `index` of the subset."""
        return self.images.mask(int(self.indices[index]))


class Concatenation(Labelled):
    """Several image sets one after the other.

    Args:
        sets: the image sets.
        paths: relative paths of the whole.
        pids: identities of the whole.
        camids: cameras of the whole.

    Attributes:
        sources: int64 [N], place in `sets` of each image's own set.
    """

    def __init__(
        self, sets: Sequence[ImageSet], paths: Sequence[str], pids: Ints, camids: Ints
    ) -> None:
        super().__init__(paths, pids, camids)
        self.sets = list(sets)
        lengths = [len(images) for images in sets]
        if sum(lengths) != len(self):
            raise ValueError(f"the sets hold {sum(lengths)} images, labelled are {len(self)}")
        self.sources = np.repeat(np.arange(len(sets)), lengths)
        self._starts = np.cumsum([0, *lengths])

    def _place(self, index: int) -> tuple[ImageSet, int]:
        source = int(self.sources[index])
        return self.sets[source], index % len(self) - int(self._starts[source])

    def image(self, index: int) -> torch.Tensor:
        """Return image `index` from its own set, uint8 [3, H, W]."""
        images, place = self._place(index)
        return images.image(place)

    def mask(self, index: int) -> PartMask | None:
        """Return the mask of image `index` from its own set."""
        images, place = self._place(index)
        return images.mask(place)


def _names(images: ImageSet) -> tuple[np.ndarray | None, np.ndarray | None]:
    """Return the names of a set's identities and of its cameras, None where they are numbers."""
    return getattr(images, "pid_names", None), getattr(images, "camid_names", None)


def label_columns(images: ImageSet, places: np.ndarray) -> dict[str, Any]:
    """Return labels, paths and further columns of some images, as `Features` takes them."""
    labels = {}
    for name, names in zip(("pids", "camids"), _names(images), strict=True):
        labels[name] = ids.written(getattr(images, name)[places], names)
    columns = getattr(images, "columns", {})
    return {
        **labels,
        "paths": np.array(images.paths)[places],
        "columns": {name: values[places] for name, values in columns.items()},
    }


def joined(*sets: ImageSet) -> Concatenation:
    """Return sets of one numbering of identities and cameras as one set."""
    whole = Concatenation(
        sets,
        [path for images in sets for path in images.paths],
        np.concatenate([images.pids for images in sets]),
        np.concatenate([images.camids for images in sets]),
    )
    whole.pid_names, whole.camid_names = _names(sets[0])
    return whole


def concatenated(sets: Mapping[str, ImageSet]) -> Concatenation:
    """Return image sets of unrelated numberings as one, to be trained on together.

    Identities and cameras of each set are shifted past those of the sets before it, so that equal
    numbers of different sets differ; junk (-1) stays junk. Each image keeps its own set's mask.

    Args:
        sets: the image sets by name; the names go before their paths.
    """
    pids, camids, paths = [], [], []
    next_pid = next_camid = 0
    for name, images in sets.items():
        pids.append(np.where(images.pids < 0, images.pids, images.pids + next_pid))
        camids.append(images.camids + next_camid)
        paths += [f"{name}/{path}" for path in images.paths]
        next_pid = max(next_pid, int(pids[-1].max(initial=-1)) + 1)
        next_camid = max(next_camid, int(camids[-1].max(initial=-1)) + 1)
    return Concatenation(list(sets.values()), paths, np.concatenate(pids), np.concatenate(camids))


def count_masks(images: ImageSet) -> int:
    """Count the images that have a mask, without decoding files where their names tell."""
    if isinstance(images, Concatenation):
        return sum(count_masks(part) for part in images.sets)
    if isinstance(images, ImageFiles):
        if images.masks is None:
            return 0
        if isinstance(images.masks, CountsMasks):
            return images.masks.count(images.paths)
    if isinstance(images, Subset) and isinstance(images.images, ImageFiles):
        own = images.images
        return count_masks(
            ImageFiles(own.root, images.paths, images.pids, images.camids, own.masks)
        )
    return sum(images.mask(index) is not None for index in range(len(images)))
