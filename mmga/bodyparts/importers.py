"""Import masks and skeletons of other projects."""

import dataclasses
import functools
import typing
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path, PurePosixPath

import numpy as np
import torch

from mmga.bodyparts import Kind
from mmga.bodyparts.skeleton import Skeleton, from_points
from mmga.bodyparts.split import drawn
from mmga.common.errors import UserError, first_line
from mmga.common.files import package_of
from mmga.data.dataset import SPLIT_NAMES, DataSet, ImageSet
from mmga.data.masks import (
    LABEL_SETS,
    LOSSLESS,
    OTHER,
    PartMask,
    mask_names,
    read_body,
    read_labels,
    survey,
    to_part_mask,
)

KINDS = typing.get_args(Kind)

Size = Callable[[], tuple[int, int] | None]
"""Returns (H, W) of the image, or None where there is no image."""

Importer = Callable[[str, Size], PartMask | None]
"""From an image's relative path and size to its mask; None where there is none."""

POSE_SIZE = (128, 64)
"""Size of the images that 14-point files of Market-1501 were made on."""

CONFIDENT = 0.5
"""Least confidence of a PifPaf field that counts as body."""

# The 36 planes of BPBReID's files: COCO's 17 keypoints, then 19 connections.
_PIFPAF_PLANES = 36
_PIFPAF_BOTTOM = (11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21)


def open_importer(kind: str, path: Path, data: DataSet, skeletons: Path | None = None) -> Importer:
    """Return the importer of a kind.

    Args:
        kind: one of KINDS.
        path: the folder or file that holds the masks.
        data: the data set of their images.
        skeletons: folder of 14-point skeletons, which split dresses at the hips.

    Raises:
        UserError: the kind is not known, or the files are missing or do not fit.
    """
    if kind not in KINDS:
        raise UserError(f"--from must be one of {', '.join(KINDS)}, got {kind!r}")
    poses = None if skeletons is None else read_poses(skeletons, data)
    if not path.exists():
        raise UserError(f"--source {path} does not exist; give the folder or file of {kind}")
    if kind == "pose14":
        return read_poses(path, data)
    if kind == "silhouette" and path.suffix == ".mat":
        return read_sdalf(path, data)
    if not path.is_dir():
        raise UserError(f"--source {path} must be the folder of {kind}'s files")
    _check_named(kind, path, data)
    if kind == "bpbreid":
        return functools.partial(read_confidence_fields, path)
    if kind in ("mgcam", "silhouette"):
        return functools.partial(read_silhouette, path)
    _check_labels(kind, path, data)
    return functools.partial(read_label_map, path, kind, poses)


def read_label_map(
    folder: Path, label_set: str, poses: "Poses | None", path: str, size: Size
) -> PartMask | None:
    """Return the mask of an image from a human parser's label map, a file named as the image.

    Skeletons split dresses and jumpsuits at the hips; without them they are upper body.
    """
    file = _named(folder, path, *_ENDINGS["label maps"])
    if file is None:
        return None
    values = read_labels(file, label_set)
    hip = None
    if poses is not None and LABEL_SETS[label_set].dress:
        skeleton = poses.skeleton(path)
        row = None if skeleton is None else skeleton.hip_row
        if row is not None:
            hip = round(row * values.shape[0] / POSE_SIZE[0])
    return _of_shape(to_part_mask(values, label_set, hip=hip, name=str(file)), size(), file, path)


def read_silhouette(folder: Path, path: str, size: Size) -> PartMask | None:
    """Return the mask of an image from a silhouette, such as MGCAM's (Song et al., CVPR 2018).

    It is read by `mmga.data.masks.read_body`: bright pixels, or the alpha of a cut-out.
    The files are at the images' relative paths, or in folders with `_seg` at their end, as MGCAM's
    are (bounding_box_train_seg).
    """
    file = _named(folder, path, *_ENDINGS["silhouette"])
    if file is None:
        return None
    body = read_body(file)
    if not body.any():
        return None
    return _of_shape(PartMask.from_silhouette(torch.from_numpy(body)), size(), file, path)


def read_confidence_fields(folder: Path, path: str, size: Size) -> PartMask | None:
    """Return the mask of an image from BPBReID's file (Somers et al., WACV 2023).

    It holds OpenPifPaf's fields, 36 planes in [0, 1], first or last. Three spellings are in use:
    `x.npy`, `x.jpg.npy` and `x.jpg.confidence_fields.npy`. Head, arms and trunk are upper, hips and
    legs bottom, as in its groups of two.
    """
    file = _named(folder, path, *_ENDINGS["bpbreid"])
    if file is None:
        return None
    fields = _planes(file)  # [36, h, w]
    wanted = size()
    if wanted is None:
        raise UserError(
            f"{file} is smaller than its image {path}, whose size is not known; "
            "the images themselves are needed"
        )
    grown = torch.nn.functional.interpolate(
        torch.from_numpy(fields)[None], wanted, mode="bilinear", align_corners=False
    )[0].numpy()  # [36, H, W]
    is_bottom = np.zeros(_PIFPAF_PLANES, bool)
    is_bottom[list(_PIFPAF_BOTTOM)] = True
    upper, bottom = grown[~is_bottom].max(0), grown[is_bottom].max(0)
    body = np.maximum(upper, bottom) >= CONFIDENT
    if not body.any():
        return None
    labels = np.where(body, np.where(bottom > upper, 2, 1), 0).astype(np.uint8)
    return PartMask(torch.from_numpy(labels))


@dataclasses.dataclass(frozen=True)
class Poses:
    """Skeletons of 14 points by relative path, whose limbs are drawn as capsules.

    Attributes:
        points: float [14, 2] by path, in pixels of POSE_SIZE, from 0.
    """

    points: dict[str, np.ndarray]

    def skeleton(self, path: str) -> Skeleton | None:
        """Return the skeleton of an image, None where there is none."""
        points = self.points.get(path)
        return None if points is None else from_points(points)

    def __call__(self, path: str, size: Size) -> PartMask | None:
        """Return the mask of an image; None where there is no skeleton of a person."""
        skeleton = self.skeleton(path)
        if skeleton is None:
            return None
        mask = drawn(skeleton, POSE_SIZE)
        return None if mask is None else fitted(mask, size())


def read_poses(path: Path, data: DataSet) -> Poses:
    """Read 14 body points of every Market-1501 image: an HDF5 .mat `pp` of [N, 28] a split.

    Rows go by sorted file name, x of all points before y, from 1. A folder of images without junk
    fits the last rows of the gallery, because junk's names come first.

    Args:
        path: the folder of market1501_14point_{train,query,gallery}.mat.
        data: Market-1501.

    Raises:
        UserError: no such file, or the number of rows does not fit.
    """
    h5py = package_of("h5", "h5py", path)
    points: dict[str, np.ndarray] = {}
    for split in SPLIT_NAMES:
        file = path / f"market1501_14point_{split}.mat"
        if not file.is_file():
            continue
        try:
            with h5py.File(file) as content:
                rows = np.asarray(content["pp"][()], np.float64)
        except (OSError, KeyError) as error:
            raise UserError(f"{file} holds no readable array 'pp' ({error}); get it again") from (
                error
            )
        if rows.ndim != 2 or rows.shape[1] != 28:
            raise UserError(f"{file}: 'pp' must be [N, 28], found {list(rows.shape)}")
        images = getattr(data, split)
        names = sorted(images.paths)
        junk = len(rows) - len(names)
        if junk and not (split == "gallery" and junk > 0 and not (images.pids == -1).any()):
            raise UserError(
                f"{file} holds {len(rows)} skeletons for {len(names)} {split} images; "
                "they go by place, so the folder must be complete"
            )
        # MATLAB's pixels start from 1.
        places = rows[junk:].reshape(-1, 2, 14).transpose(0, 2, 1) - 1
        points.update(zip(names, places, strict=True))
    if not points:
        raise UserError(
            f"{path} holds no market1501_14point_train.mat, _query.mat or _gallery.mat; "
            "give their folder"
        )
    return Poses(points)


def read_sdalf(path: Path, data: DataSet) -> Importer:
    """Read SDALF's silhouettes of VIPeR, which go by person, cam_a before cam_b.

    Raises:
        UserError: this is not VIPeR, or the file does not fit.
    """
    from mmga.data.readers.viper import read_silhouettes

    if data.name != "viper":
        raise UserError(f"--source {path} is for viper, not for {data.name}; give a folder of PNGs")
    paths = {path for images in (data.train, data.query, data.gallery) for path in images.paths}
    order = sorted(paths, key=lambda name: (PurePosixPath(name).name[:3], name))
    silhouettes = read_silhouettes(path, order)

    def mask(path: str, size: Size) -> PartMask | None:
        found = silhouettes(path)
        return None if found is None or not found.labels.any() else fitted(found, size())

    return mask


def imported(
    images: ImageSet, importer: Importer
) -> Callable[[Sequence[int]], Iterator[PartMask | None]]:
    """Return a function that imports the masks of images, given their places in the set."""

    def make(places: Sequence[int]) -> Iterator[PartMask | None]:
        for place in places:
            yield importer(images.paths[place], functools.partial(_size_of, images, place))

    return make


def _size_of(images: ImageSet, place: int) -> tuple[int, int] | None:
    """Return (H, W) of an image; None where it cannot be read."""
    try:
        height, width = images.image(place).shape[-2:]
    except UserError:
        return None
    return height, width


def fitted(mask: PartMask, size: tuple[int, int] | None) -> PartMask:
    """Return a mask at another size (H, W), by the nearest pixel; itself where none is given."""
    labels = mask.labels
    if size is None or tuple(labels.shape) == size:
        return mask
    places = [
        torch.from_numpy(((np.arange(new) + 0.5) * (old / new)).astype(np.int64))
        for old, new in zip(labels.shape, size, strict=True)
    ]
    return PartMask(labels[places[0][:, None], places[1]], mask.parts)


def _of_shape(mask: PartMask, size: tuple[int, int] | None, file: Path, path: str) -> PartMask:
    """Return a mask fitted to its image's size, of which it must have the shape to a pixel.

    Raises:
        UserError: the mask has another ratio of height to width, so that it would be stretched.
    """
    if size is not None:
        (height, width), (rows, columns) = mask.labels.shape, size
        off = min(abs(height - width * rows / columns), abs(width - height * columns / rows))
        if off > 1:
            raise UserError(
                f"{file} is {height} x {width} pixels (height x width) and its image {path} "
                f"{rows} x {columns}, which is another shape: cut the padding off the masks, or "
                "resize them to their images if they were stretched"
            )
    return fitted(mask, size)


def is_silhouette(mask: PartMask) -> bool:
    """Return whether only the whole body of a mask is known."""
    return not mask.parts and bool((mask.labels == OTHER).any())


_PICTURES = (*LOSSLESS, ".jpg", ".jpeg", ".webp", ".gif")

# Endings of the files of a kind, after the image's stem or whole name; and of their folders.
_ENDINGS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "label maps": (LOSSLESS, ("",)),
    "silhouette": (_PICTURES, ("", "_seg")),
    "mgcam": (_PICTURES, ("", "_seg")),
    "bpbreid": ((".npy", ".confidence_fields.npy"), ("",)),
}


def _candidates(
    folder: Path, path: str, endings: Sequence[str], after_folder: Sequence[str]
) -> Iterator[Path]:
    """Yield where the file of an image may be: `folder/<its folder><after>/<mask_names>`."""
    for after in after_folder:
        for name in mask_names(path, endings):
            parent = folder / name.parent
            yield (parent.with_name(parent.name + after) if after else parent) / name.name


def _named(
    folder: Path, path: str, endings: Sequence[str], after_folder: Sequence[str]
) -> Path | None:
    """Return the file that belongs to an image."""
    places = _candidates(folder, path, endings, after_folder)
    return next((file for file in places if file.is_file()), None)


def without_file(kind: str, source: Path, paths: Sequence[str]) -> list[str]:
    """Return the images that have no file in the folder of a kind; none for other sources."""
    if not source.is_dir() or kind == "pose14":
        return []
    rule = _ENDINGS.get(kind, _ENDINGS["label maps"])
    return [path for path in paths if _named(source, path, *rule) is None]


def _check_named(kind: str, folder: Path, data: DataSet) -> None:
    """Raise a `UserError` where no image has a file of its own."""
    endings, after = rule = _ENDINGS.get(kind, _ENDINGS["label maps"])
    paths = _paths(data)
    if paths and not any(_named(folder, path, *rule) for path in paths):
        wanted = [str(file) for file in _candidates(folder, paths[0], endings[:1], after)]
        lower = ", ".join(wanted[: len(wanted) // 2] if len(after) == 1 else wanted)
        others = f", the same with {' or '.join(endings[1:])}" if endings[1:] else ""
        there = next((file for file in sorted(folder.rglob("*")) if file.is_file()), None)
        raise UserError(
            f"--source {folder} holds no file of {kind} for any of the {len(paths)} images; of the "
            f"first one these were looked for: {lower}{others} or in upper case; found was "
            f"{'nothing' if there is None else f'for instance {there}'}"
        )


def _paths(data: DataSet) -> list[str]:
    return [path for images in (data.train, data.query, data.gallery) for path in images.paths]


def _check_labels(kind: str, folder: Path, data: DataSet) -> None:
    """Raise a `UserError` where several label maps hold one label alone, all the same."""
    named = (_named(folder, path, *_ENDINGS["label maps"]) for path in _paths(data))
    found = survey([file for file in named if file is not None], kind)
    if found.label is not None and found.files > 1:
        raise UserError(
            f"--from {kind}: the {found.files} files of {folder} that were looked at hold 0 and "
            f"{found.label} alone, and are silhouettes; import them with --from silhouette"
        )


def _planes(file: Path) -> np.ndarray:
    """Return the 36 planes of a file, float32 [36, h, w]."""
    try:
        # Mapped: a header that declares more than the file holds takes no memory.
        values = np.load(file, mmap_mode="r", allow_pickle=False)
        if not isinstance(values, np.ndarray):
            raise ValueError("it is an archive")
    except Exception as error:  # NumPy raises many kinds for a damaged header
        raise UserError(
            f"{file} cannot be read as an array ({first_line(error)}); replace it"
        ) from error
    if values.ndim == 3 and values.shape[0] != _PIFPAF_PLANES == values.shape[2]:
        values = values.transpose(2, 0, 1)
    if values.ndim != 3 or values.shape[0] != _PIFPAF_PLANES or values.dtype.kind != "f":
        raise UserError(
            f"{file} must hold {_PIFPAF_PLANES} planes of confidence (PifPaf's 17 keypoints and 19 "
            f"connections), found {values.dtype} {list(values.shape)}"
        )
    return np.ascontiguousarray(np.nan_to_num(values, nan=0.0), np.float32)
