"""Market-1501 (Zheng et al., ICCV 2015) as its authors' folders have it."""

import os
import re

from mmga.data.dataset import DataSet, ImageFiles
from mmga.data.layout import check_counts, find_folder, list_images
from mmga.data.masks import MaskFolder

FOLDER = "Market-1501-v15.09.15"
SPLITS = {"train": "bounding_box_train", "query": "query", "gallery": "bounding_box_test"}
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


def read_market1501(root: str | os.PathLike[str], masks: MaskFolder | None = None) -> DataSet:
    """Read Market-1501.

    Junk stays in the gallery under identity -1: the evaluator removes and counts it.

    Args:
        root: the folder Market-1501-v15.09.15 or its parent.
        masks: mask files, such as bounding_box_train/0002_c1s1_000451_03.png.

    Raises:
        UserError: a folder is missing or holds no image of the set.
    """
    folder = find_folder(root, FOLDER, SPLITS["train"])
    sets = {}
    for split, name in SPLITS.items():
        files = list_images(folder, name, _NAME)
        labels = [parse_name(file) for _, file in files]
        sets[split] = ImageFiles(
            folder,
            [path for path, _ in files],
            [pid for pid, _ in labels],
            [camid for _, camid in labels],
            masks,
        )
    train, query, gallery = sets["train"], sets["query"], sets["gallery"]
    found = {
        "training images": len(train),
        "training identities": len(set(train.pids.tolist())),
        "queries": len(query),
        "gallery images": len(gallery),
        "junk images": int((gallery.pids == -1).sum()),
    }
    check_counts(str(folder), found, COUNTS)
    return DataSet("market1501", train, query, gallery)
