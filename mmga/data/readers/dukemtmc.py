"""DukeMTMC-reID (Zheng et al., ICCV 2017) and Occluded-Duke (Miao et al., ICCV 2019).

DukeMTMC was withdrawn by its authors in 2019: these readers serve existing copies.
"""

import re

from mmga.config import DataConfig
from mmga.data.dataset import DataSet
from mmga.data.masks import MaskFolder
from mmga.data.readers.folders import find_folder, read_folders

FOLDERS = ("DukeMTMC-reID", "dukemtmc-reid/DukeMTMC-reID", "dukemtmc-reid", "dukemtmc")
OCCLUDED_FOLDERS = ("Occluded_Duke", "Occluded-Duke", "occluded_duke", "occluded-duke")
COUNTS = {
    "training images": 16_522,
    "training identities": 702,
    "queries": 2_228,
    "query identities": 702,
    "gallery images": 17_661,
}
OCCLUDED_COUNTS = {
    "training images": 15_618,
    "training identities": 702,
    "queries": 2_210,
    "query identities": 519,
    "gallery images": 17_661,
}

# 0005_c2_f0046985.jpg: identity, camera and frame.
_NAME = re.compile(r"(\d{4})_c([1-8])_f\d{7}\.jpg")


def read_dukemtmc(data: DataConfig, masks: MaskFolder | None) -> DataSet:
    """Read DukeMTMC-reID from the folder DukeMTMC-reID.

    Mask files are such as bounding_box_train/0001_c2_f0046182.png.

    Raises:
        UserError: a folder is missing or holds no image of the set.
    """
    folder = find_folder(data.root, FOLDERS, "bounding_box_train")
    return read_folders("dukemtmc", folder, _NAME, masks, COUNTS)


def read_occluded_duke(data: DataConfig, masks: MaskFolder | None) -> DataSet:
    """Read Occluded-Duke, a new split of DukeMTMC-reID whose queries are all occluded.

    Mask files are those of DukeMTMC-reID.

    Raises:
        UserError: a folder is missing or holds no image of the set.
    """
    folder = find_folder(data.root, OCCLUDED_FOLDERS, "bounding_box_train")
    return read_folders("occluded-duke", folder, _NAME, masks, OCCLUDED_COUNTS)
