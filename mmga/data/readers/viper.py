"""VIPeR (Gray et al., PETS 2007): 632 persons, one image in each of two cameras."""

import re
from pathlib import Path

import numpy as np
import torch

from mmga.common import mat
from mmga.common.errors import UserError
from mmga.config import DataConfig
from mmga.data.dataset import DataSet, ImageFiles
from mmga.data.masks import FindMask, MaskFolder, PartMask
from mmga.data.readers.folders import check_counts, find_folder, list_images

CAMERAS = ("cam_a", "cam_b")
COUNTS = {"persons": 632}

# 001_45.bmp: person and viewing angle.
_NAME = re.compile(r"(\d{3})_(\d+)\.(?:bmp|png|jpg)")
_PAIR = re.compile(r"\s*\d+\s*-\s*cam_a/(\d{3})_\d+\.\w+\s+cam_b/(\d{3})_\d+\.\w+\s*")


def read_viper(data: DataConfig, masks: MaskFolder | None) -> DataSet:
    """Read one split of VIPeR: half of the persons to train, half to test.

    A `splits_file` is SDALF's VIPeR_sets.txt, whose ten lists name the test persons; without it a
    split is drawn at random from its number. Direction `ab` searches cam_a's test images in
    cam_b's, `ba` the other way round. Mask files are such as cam_a/001_45.png; where `data.masks`
    is SDALF's aleMasks_VIPeR.mat, its silhouettes are halved at `halved_at`.

    Raises:
        UserError: a folder or file is missing or does not fit.
    """
    if data.direction not in ("ab", "ba"):
        raise UserError(f"direction must be ab or ba, got {data.direction!r}")
    folder = find_folder(data.root, ("VIPeR", "viper"), CAMERAS[0])
    files = {  # per camera: path by person
        camera: {person: path for path, person, _ in list_images(folder, camera, _NAME)}
        for camera in CAMERAS
    }
    persons = sorted(files["cam_a"])
    if persons != sorted(files["cam_b"]):
        odd = min(set(files["cam_a"]) ^ set(files["cam_b"]))
        raise UserError(f"{folder}: person {odd:03d} is in one of cam_a and cam_b only")
    check_counts(str(folder), {"persons": len(persons)}, COUNTS)

    source: FindMask | None = masks
    if masks is None and data.masks is not None:
        order = [files[camera][person] for person in persons for camera in CAMERAS]
        source = read_silhouettes(data.masks, order, data.halved_at)
    test = set(_test_persons(persons, data.split, data.splits_file))

    def images(people: list[int], *cameras: str) -> ImageFiles:
        rows = [
            (files[camera][person], person, CAMERAS.index(camera))
            for person in people
            for camera in cameras
        ]
        return ImageFiles.of_rows(folder, rows, source)

    searched = sorted(test)
    query, gallery = CAMERAS if data.direction == "ab" else CAMERAS[::-1]
    return DataSet(
        "viper",
        images([person for person in persons if person not in test], *CAMERAS),
        images(searched, query),
        images(searched, gallery),
    )


def read_silhouettes(path: Path, order: list[str], split: float | None = None) -> FindMask:
    """Read SDALF's silhouettes, a MATLAB cell array `msk`, into memory.

    Args:
        path: the .mat file.
        order: image paths in the order of the silhouettes: persons sorted, cam_a before cam_b.
        split: height at which they are halved, or None.

    Raises:
        UserError: the file cannot be read or holds another number of silhouettes.
    """
    if not path.is_file():
        raise UserError(f"masks file {path} does not exist")
    try:
        cells = mat.read(path, ("msk",)).get("msk")
        if not isinstance(cells, list) or not all(map(_is_picture, cells)):
            raise UserError("there is none, or not of pictures")
    except UserError as error:
        raise UserError(
            f"masks file {path} holds no readable cell array 'msk' ({error}); "
            "give SDALF's aleMasks_VIPeR.mat"
        ) from error
    if len(cells) != len(order):
        raise UserError(
            f"masks file {path} holds {len(cells)} silhouettes for {len(order)} images; "
            "they go by place, so both must be complete"
        )
    return {
        name: PartMask.from_silhouette(torch.from_numpy(cell), split)
        for name, cell in zip(order, cells, strict=True)
    }.get


def _is_picture(cell: mat.Value) -> bool:
    return (
        isinstance(cell, np.ndarray)
        and cell.ndim == 2
        and bool(cell.size)
        and cell.dtype.kind in "iuf"
    )


def _test_persons(persons: list[int], split: int, splits_file: Path | None) -> list[int]:
    if splits_file is None:
        if split < 0:
            raise UserError(f"split must be 0 or more, got {split}")
        order = np.random.default_rng(split).permutation(persons)
        return [int(person) for person in order[: len(persons) // 2]]
    splits = read_splits(splits_file)
    if not 0 <= split < len(splits):
        raise UserError(
            f"split must be 0 to {len(splits) - 1}, the splits of {splits_file}, got {split}"
        )
    missing = sorted(set(splits[split]) - set(persons))
    if missing:
        raise UserError(
            f"split {split} of {splits_file} names person {missing[0]:03d} "
            f"and {len(missing) - 1} more that are not in the data set"
        )
    return splits[split]


def read_splits(path: Path) -> list[list[int]]:
    """Return the test persons of each split of SDALF's VIPeR_sets.txt.

    Raises:
        UserError: the file cannot be read or holds no such lists.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"splits file {path} cannot be read ({error})") from error
    splits: list[list[int]] = []
    for number, line in enumerate(lines, 1):
        if line.startswith("%"):
            splits.append([])
        elif line.strip():
            match = _PAIR.fullmatch(line)
            if match is None or match[1] != match[2] or not splits:
                raise UserError(
                    f"splits file {path}, line {number}: expected "
                    f"'1 - cam_a/001_45.bmp cam_b/001_90.bmp' below a line '%', found {line!r}"
                )
            splits[-1].append(int(match[1]))
    if not splits:
        raise UserError(f"splits file {path} holds no splits; give SDALF's VIPeR_sets.txt")
    return splits
