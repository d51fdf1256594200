"""Market-1501 (Zheng et al., ICCV 2015) as its authors' folders have it."""

import dataclasses
import os
import re
from pathlib import Path

import numpy as np

from mmga.common.errors import UserError
from mmga.data.dataset import DataSet, ImageFiles, ImageSet, joined
from mmga.data.masks import MaskFolder
from mmga.data.readers.folders import (
    IMAGE_SUFFIXES,
    check_counts,
    find_folder,
    list_images,
    read_folders,
)

FOLDERS = ("Market-1501-v15.09.15", "Market-1501", "market1501")
DISTRACTORS = 500_000
DISTRACTOR_PID = 0
COUNTS = {
    "training images": 12_936,
    "training identities": 751,
    "queries": 3_368,
    "gallery images": 19_732,
    "junk images": 3_819,
}

# 0002_c1s1_000451_03.jpg, -1_c1s1_000401_03.jpg; the set as published has some .jpg.jpg.
_NAME = re.compile(r"(-1|\d{4})_c([1-6])s\d_\d{6}_\d{2}\.jpg(\.jpg)?")


def parse_name(name: str) -> tuple[int, int]:
    """Return identity (-1 junk, 0 distractor) and camera (1 to 6) of a file name.

    Raises:
        ValueError: the name is not one of Market-1501.
    """
    match = _NAME.fullmatch(name)
    if match is None:
        raise ValueError(f"{name!r} is no file name of Market-1501")
    return int(match[1]), int(match[2])


def read_market1501(
    root: str | os.PathLike[str] | None,
    masks: MaskFolder | None = None,
    *,
    distractors: str | os.PathLike[str] | None = None,
) -> DataSet:
    """Read Market-1501.

    Junk stays in the gallery under identity -1: the evaluator removes and counts it. Where the
    folder holds gt_bbox, `multi_query` has all its images of each query's identity and camera.

    Args:
        root: the folder Market-1501-v15.09.15 or its parent; None for MMGA_DATA.
        masks: mask files, such as bounding_box_train/0002_c1s1_000451_03.png.
        distractors: folder of the 500,000 distractors, added to the gallery under identity 0,
            which no query has.

    Raises:
        UserError: a folder is missing or holds no image of the set.
    """
    folder = find_folder(root, FOLDERS, "bounding_box_train")
    data = read_folders("market1501", folder, _NAME, masks, COUNTS)
    if (folder / "gt_bbox").is_dir():
        data = dataclasses.replace(data, multi_query=_multi_query(folder, data.query))
    if distractors is not None:
        more = read_distractors(Path(distractors))
        check_counts(str(distractors), {"distractors": len(more)}, {"distractors": DISTRACTORS})
        data = dataclasses.replace(data, gallery=joined(data.gallery, more))
    return data


def read_distractors(folder: Path) -> ImageFiles:
    """Read a folder of distractors, whatever their names, in sorted order.

    They are of identity 0 and camera 0, which no query has, so that no rule removes them.

    Raises:
        UserError: the folder does not exist or holds no image.
    """
    if not folder.is_dir():
        raise UserError(f"distractors folder {folder} does not exist; give the folder of images")
    names = sorted(e.name for e in os.scandir(folder) if e.name.lower().endswith(IMAGE_SUFFIXES))
    if not names:
        raise UserError(f"distractors folder {folder} holds no image; give the folder of images")
    return ImageFiles(
        folder, names, np.full(len(names), DISTRACTOR_PID), np.zeros(len(names), np.int64)
    )


def _multi_query(folder: Path, query: ImageSet) -> ImageFiles:
    wanted = set(zip(query.pids.tolist(), query.camids.tolist(), strict=True))
    files = [
        (path, *parse_name(name))
        for path, name in list_images(folder, "gt_bbox", _NAME)
        if parse_name(name) in wanted
    ]
    if not files:
        raise UserError(
            f"folder {folder / 'gt_bbox'} holds no image of any query's identity and camera; "
            "the data set is mixed up"
        )
    paths, pids, camids = zip(*files, strict=True)
    return ImageFiles(folder, paths, pids, camids)
