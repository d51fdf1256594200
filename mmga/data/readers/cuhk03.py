"""CUHK03 (Li et al., CVPR 2014): folders of the new protocol, and the .mat of the classic one.

CUHK03-NP (Zhong et al., CVPR 2017) is laid out as Market-1501; the twenty classic single-shot
splits are read straight from the file as it was published.
"""

import dataclasses
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mmga.common.errors import UserError
from mmga.common.files import package_of
from mmga.config import OWN_PROTOCOLS, DataConfig, default_root
from mmga.data.dataset import DataSet, Ints, Labelled
from mmga.data.masks import MaskFolder, PartMask
from mmga.data.readers.folders import check_counts, counted, find_folder, read_folders

COUNTS = {
    "detected": {
        "training images": 7_365,
        "training identities": 767,
        "queries": 1_400,
        "query identities": 700,
        "gallery images": 5_332,
    },
    "labeled": {
        "training images": 7_368,
        "training identities": 767,
        "queries": 1_400,
        "query identities": 700,
        "gallery images": 5_328,
    },
}
CLASSIC_COUNTS = {"training identities": 1_260, "test identities": 100}
CLASSIC_PAIRS = 3
"""The classic protocol's 1,360 persons are those of the first three of five pairs of cameras."""

_NAME = re.compile(r"(\d{4})_c([12])_\d+\.(?:png|jpg)")
_MAT_PLACES = ("cuhk-03.mat", "cuhk03_release/cuhk-03.mat", "cuhk03/cuhk03_release/cuhk-03.mat")


def read_cuhk03(data: DataConfig, masks: MaskFolder | None) -> DataSet:
    """Read CUHK03-NP, the new protocol of 767 training and 700 test identities, from cuhk03-np.

    Mask files are such as detected/bounding_box_train/0001_c1_1.png.

    Raises:
        UserError: a folder is missing or holds no image of the set.
    """
    boxes = _check_boxes(data.boxes)
    folder = find_folder(data.root, ("cuhk03-np", "CUHK03-NP", "cuhk03_np"), boxes)
    title = str(folder / boxes)
    prefix = f"{boxes}/"
    return read_folders("cuhk03", folder, _NAME, masks, COUNTS[boxes], prefix=prefix, title=title)


@dataclasses.dataclass(frozen=True, slots=True)
class Cell:
    """One image of the .mat file.

    Attributes:
        pair: pair of cameras, from 0.
        person: place in that pair's persons, from 0.
        place: 0 to 4 are of the pair's first camera, 5 to 9 of its second.
    """

    pair: int
    person: int
    place: int

    @property
    def path(self) -> str:
        """The name under which the image is known: pair, person, view, image, from 1."""
        view = 1 if self.place < 5 else 2
        return f"{self.pair + 1}_{self.person + 1:03d}_{view}_{self.place + 1:02d}.png"

    @property
    def pid(self) -> int:
        """Identity over all pairs."""
        return self.pair * 1000 + self.person + 1

    @property
    def camid(self) -> int:
        """Camera over all pairs, from 1."""
        return self.pair * 2 + (1 if self.place < 5 else 2)


class MatImages(Labelled):
    """Images that are read from cuhk-03.mat one by one.

    Args:
        file: the .mat file (MATLAB 7.3, which is HDF5).
        boxes: `detected` or `labeled`.
        cells: which images.
        masks: mask files named `detected/1_001_1_01.png`, or None.
    """

    def __init__(
        self, file: Path, boxes: str, cells: Sequence[Cell], masks: MaskFolder | None = None
    ) -> None:
        pids: Ints = [cell.pid for cell in cells]
        paths = [f"{boxes}/{cell.path}" for cell in cells]
        super().__init__(paths, pids, [cell.camid for cell in cells])
        self.file, self.boxes, self.cells, self.masks = file, boxes, list(cells), masks
        self._open: tuple[int, Any] | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_open": None}

    def image(self, index: int) -> torch.Tensor:
        """Read image `index`, uint8 [3, H, W].

        Raises:
            UserError: it cannot be read.
        """
        # HDF5 handles must not cross a fork: each process opens its own.
        if self._open is None or self._open[0] != os.getpid():
            self._open = os.getpid(), _opened(self.file)
        cell = self.cells[index]
        try:
            pixels = _cell(self._open[1], self.boxes, cell)
        except (OSError, KeyError, RuntimeError, ValueError) as error:
            raise UserError(
                f"image {self.paths[index]} of {self.file} cannot be decoded ({error}); "
                "the file is damaged: get it again"
            ) from error
        return torch.from_numpy(pixels)

    def mask(self, index: int) -> PartMask | None:
        """Return the mask of image `index`, None where there is none."""
        return None if self.masks is None else self.masks(self.paths[index])


def read_cuhk03_classic(data: DataConfig, masks: MaskFolder | None) -> DataSet:
    """Read one of CUHK03's twenty classic splits: 1,260 identities to train, 100 to test.

    All test images are query and gallery; protocol `cuhk03-single-shot` draws one gallery image of
    each identity from the other camera. The root is cuhk-03.mat, the folder that holds it, or that
    folder's parent. Mask files are such as detected/1_001_1_01.png.

    Raises:
        UserError: the file is missing, is not CUHK03's, or has no such split.
    """
    boxes, split = _check_boxes(data.boxes), data.split
    path = _find_mat(data.root)
    try:
        with _opened(path) as file:
            if not 0 <= split < file["testsets"].size:
                raise UserError(
                    f"split must be 0 to {file['testsets'].size - 1}, the test sets of {path}, "
                    f"got {split}"
                )
            # MATLAB's columns come first in HDF5, hence every .T here.
            listed = file[file["testsets"][()].ravel()[split]][()].T  # [100, 2] pair, person
            test = {(int(pair) - 1, int(person) - 1) for pair, person in listed}
            cells = _cells(file, boxes)
    except (OSError, KeyError, RuntimeError, ValueError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(
            f"{path} is not CUHK03's cuhk-03.mat ({error}); give the file of cuhk03_release"
        ) from error
    tested = [cell for cell in cells if (cell.pair, cell.person) in test]
    trained = [
        cell for cell in cells if (cell.pair, cell.person) not in test and cell.pair < CLASSIC_PAIRS
    ]
    if not tested or not trained:
        raise UserError(f"{path} holds no images for split {split}; the file is incomplete")
    images = MatImages(path, boxes, tested, masks)
    result = DataSet(
        "cuhk03-classic",
        MatImages(path, boxes, trained, masks),
        images,
        images,
        protocol=OWN_PROTOCOLS["cuhk03-classic"],
    )
    found = counted(result)
    found["test identities"] = found["query identities"]
    check_counts(f"{path}, split {split}", found, CLASSIC_COUNTS)
    return result


def _find_mat(root: Path | None) -> Path:
    root = default_root() if root is None else root
    if root is None:
        raise UserError("no data folder is given: name the folder of cuhk-03.mat, or set MMGA_DATA")
    if root.is_file():
        return root
    for place in _MAT_PLACES:
        if (root / place).is_file():
            return root / place
    raise UserError(
        f"data folder {root} holds no cuhk-03.mat; give the file, its folder cuhk03_release, or "
        "that folder's parent"
    )


def _opened(path: Path) -> Any:
    h5py = package_of("h5", "h5py", path)
    try:
        return h5py.File(path, "r")
    except OSError as error:
        raise UserError(
            f"{path} cannot be read ({error}); give CUHK03's cuhk-03.mat as it was published"
        ) from error


def _persons(file: Any, boxes: str, pair: int) -> Any:
    """Return references to the images of a pair of cameras, [persons, 10]."""
    return file[file[boxes][()].ravel()[pair]][()].T


def _cells(file: Any, boxes: str) -> list[Cell]:
    found = []
    for pair in range(file[boxes].size):
        for person, references in enumerate(_persons(file, boxes, pair)):
            for place, reference in enumerate(references):
                # MATLAB writes an empty cell as the vector of its sizes.
                if file[reference].ndim == 3:
                    found.append(Cell(pair, person, place))
    return found


def _cell(file: Any, boxes: str, cell: Cell) -> np.ndarray:
    reference = _persons(file, boxes, cell.pair)[cell.person, cell.place]
    pixels = file[reference][()]  # [3, W, H]
    return np.ascontiguousarray(pixels.transpose(0, 2, 1)).astype(np.uint8, copy=False)


def _check_boxes(boxes: str) -> str:
    if boxes not in COUNTS:
        raise UserError(f"boxes must be detected or labeled, got {boxes!r}")
    return boxes
