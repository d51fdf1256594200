"""Market-1501 (Zheng et al., ICCV 2015), laid out as its authors published it."""

import dataclasses
import re
from pathlib import Path

import numpy as np

from mmga.common.errors import UserError
from mmga.config import DataConfig
from mmga.data.dataset import DataSet, ImageFiles, ImageSet, joined
from mmga.data.masks import MaskFolder
from mmga.data.readers.folders import (
    check_counts,
    check_encoding,
    find_folder,
    image_names,
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


def read_market1501(data: DataConfig, masks: MaskFolder | None) -> DataSet:
    """Read Market-1501 from the folder Market-1501-v15.09.15.

    Junk stays in the gallery under identity -1: the evaluator removes and counts it. Where the
    folder holds gt_bbox, `multi_query` has all its images of each query's identity and camera.
    Mask files are such as bounding_box_train/0002_c1s1_000451_03.png.

    Raises:
        UserError: a folder is missing or holds no image of the set.
    """
    folder = find_folder(data.root, FOLDERS, "bounding_box_train")
    found = read_folders("market1501", folder, _NAME, masks, COUNTS)
    if (folder / "gt_bbox").is_dir():
        found = dataclasses.replace(found, multi_query=_multi_query(folder, found.query))
    if data.distractors is not None:
        more = read_distractors(data.distractors)
        counts = {"distractors": len(more)}
        check_counts(str(data.distractors), counts, {"distractors": DISTRACTORS})
        found = dataclasses.replace(found, gallery=joined(found.gallery, more))
    return found


def read_distractors(folder: Path) -> ImageFiles:
    """Read a folder of distractors, of any names, in sorted order.

    They are of identity 0 and camera 0, which no query has, so that no rule removes them.

    Raises:
        UserError: the folder does not exist or holds no image.
    """
    if not folder.is_dir():
        raise UserError(f"distractors folder {folder} does not exist; give the folder of images")
    names = image_names(folder)
    if not names:
        raise UserError(f"distractors folder {folder} holds no image; give the folder of images")
    check_encoding(folder, names)
    return ImageFiles(
        folder, names, np.full(len(names), DISTRACTOR_PID), np.zeros(len(names), np.int64)
    )


def _multi_query(folder: Path, query: ImageSet) -> ImageFiles:
    wanted = set(zip(query.pids.tolist(), query.camids.tolist(), strict=True))
    files = [row for row in list_images(folder, "gt_bbox", _NAME) if row[1:] in wanted]
    if not files:
        raise UserError(
            f"folder {folder / 'gt_bbox'} holds no image of any query's identity and camera; "
            "the data set is mixed up"
        )
    return ImageFiles.of_rows(folder, files)
