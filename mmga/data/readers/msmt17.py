"""MSMT17 (Wei et al., CVPR 2018), versions 1 and 2 (faces blurred), by its lists of images."""

import re
from pathlib import Path

from mmga.common.errors import UserError
from mmga.config import DataConfig
from mmga.data.dataset import DataSet, ImageFiles
from mmga.data.masks import MaskFolder
from mmga.data.readers.folders import check_counts, counted, find_folder

FOLDERS = ("MSMT17_V1", "MSMT17_V2", "MSMT17", "msmt17/MSMT17_V1", "msmt17/MSMT17_V2", "msmt17")
IMAGE_FOLDERS = (("train", "test"), ("mask_train_v2", "mask_test_v2"))
"""Where training and test images are, by version."""

COUNTS = {
    "training images": 32_621,
    "training identities": 1_041,
    "queries": 11_659,
    "query identities": 3_060,
    "gallery images": 82_161,
}
TRAIN_ALONE = 30_248

# 0000/0000_000_01_0303morning_0015_0.jpg 0: the third field is the camera, the last the identity.
_LINE = re.compile(r"(\S*?\d+_\d+_(\d+)_\S+\.(?:jpg|jpeg|png))\s+(\d+)", re.IGNORECASE)


def read_msmt17(data: DataConfig, masks: MaskFolder | None) -> DataSet:
    """Read MSMT17 from the folder MSMT17_V1 or MSMT17_V2; of a parent that holds both, V1.

    Identity 0 is a person here, and counts as one. With `with_val` the training set is train and
    val, 32,621 images (TransReID, CLIP-ReID, SOLIDER), else train alone, 30,248 (torchreid,
    fast-reid). Mask files are such as train/0000/0000_000_01_0303morning_0015_0.png.

    Raises:
        UserError: a folder or list is missing or holds a line that is not an image's.
    """
    folder = find_folder(data.root, FOLDERS, "list_train.txt")
    there = [names for names in IMAGE_FOLDERS if (folder / names[0]).is_dir()]
    if not there:
        raise UserError(
            f"data folder {folder} holds neither train nor mask_train_v2; the data set is "
            "incomplete"
        )

    train_folder, test_folder = there[0]

    def images(images_folder: str, *lists: str) -> ImageFiles:
        if not (folder / images_folder).is_dir():
            raise UserError(
                f"folder {folder / images_folder} does not exist; the data set is incomplete"
            )
        rows = [row for name in lists for row in read_list(folder / f"list_{name}.txt")]
        paths, pids, camids = zip(*rows, strict=True)
        return ImageFiles(
            folder, [f"{images_folder}/{path}" for path in paths], pids, camids, masks
        )

    lists = ("train", "val") if data.with_val else ("train",)
    found = DataSet(
        "msmt17",
        images(train_folder, *lists),
        images(test_folder, "query"),
        images(test_folder, "gallery"),
        notes=(f"msmt17 is trained on {' + '.join(lists)}",),
    )
    known = COUNTS if data.with_val else {**COUNTS, "training images": TRAIN_ALONE}
    check_counts(str(folder), counted(found), known)
    return found


def read_list(path: Path) -> list[tuple[str, int, int]]:
    """Return path, identity and camera (1 to 15) of each line of a list.

    Raises:
        UserError: the list cannot be read, is empty, or a line is not an image's.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"list {path} cannot be read ({error}); the data set is incomplete") from (
            error
        )
    rows = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        match = _LINE.fullmatch(line.strip())
        if match is None:
            raise UserError(
                f"list {path}, line {number}: expected "
                f"'0000/0000_000_01_0303morning_0015_0.jpg 0', found {line!r}"
            )
        rows.append((match[1], int(match[3]), int(match[2])))
    if not rows:
        raise UserError(f"list {path} is empty; the data set is incomplete")
    return rows
