"""Any other data set: a CSV table of path, pid, camid, split and, optionally, mask."""

import csv
import dataclasses
import os
from pathlib import Path

import numpy as np

from mmga.common.errors import UserError
from mmga.data.dataset import DataSet, ImageFiles
from mmga.data.masks import MaskFolder, PartMask, read_mask

COLUMNS = ("path", "pid", "camid", "split")
SPLITS = ("train", "query", "gallery")


@dataclasses.dataclass(frozen=True)
class MaskFiles:
    """Mask files named one by one; callable as `ImageFiles` wants it.

    Attributes:
        files: mask file by image path.
        label_set: how to read them (`mmga.data.masks.to_part_mask`).
        split: height at which silhouettes are halved, or None.
    """

    files: dict[str, Path]
    label_set: str = "parts"
    split: float | None = None

    def __call__(self, path: str) -> PartMask | None:
        """Return the mask of an image, None where the table names none."""
        file = self.files.get(path)
        return None if file is None else read_mask(file, self.label_set, split=self.split)


def read_table(
    path: str | os.PathLike[str],
    masks: MaskFolder | None = None,
    *,
    label_set: str = "parts",
    halved_at: float | None = None,
) -> DataSet:
    """Read a data set from a CSV table with a header line.

    Identities and cameras are integers, or any names, which are then numbered in sorted order over
    the whole table; identity -1 is junk.

    Args:
        path: the table; image and mask paths in it are relative to its folder.
        masks: a folder of mask files, used for images whose `mask` is empty or not a column.
        label_set: label set of the files in the column `mask`.
        halved_at: height at which silhouettes in the column `mask` are halved.

    Raises:
        UserError: the table cannot be read, lacks a column, has a wrong value or an empty split.
    """
    path = Path(path)
    rows = _rows(path)
    numbers = {name: _numbers([row[name] for row in rows]) for name in ("pid", "camid")}
    named = {row["path"]: path.parent / row["mask"] for row in rows if row.get("mask")}
    for image, file in named.items():
        if not file.is_file():
            raise UserError(f"table {path}: the mask {file} of {image} does not exist")
    source = _Either(MaskFiles(named, label_set, halved_at), masks) if named else masks
    sets = []
    for split in SPLITS:
        places = [i for i, row in enumerate(rows) if row["split"] == split]
        if not places:
            raise UserError(f"table {path} has no row of split {split}")
        sets.append(
            ImageFiles(
                path.parent,
                [rows[i]["path"] for i in places],
                numbers["pid"][places],
                numbers["camid"][places],
                source,
            )
        )
    return DataSet(path.stem, *sets)


@dataclasses.dataclass(frozen=True)
class _Either:
    first: MaskFiles
    second: MaskFolder | None

    def __call__(self, path: str) -> PartMask | None:
        mask = self.first(path)
        return self.second.mask(path) if mask is None and self.second is not None else mask


def _rows(path: Path) -> list[dict[str, str]]:
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            header = reader.fieldnames or []
            missing = [name for name in COLUMNS if name not in header]
            if missing:
                found = ", ".join(header) or "nothing"
                raise UserError(
                    f"table {path} lacks the column {missing[0]}; its first line must name "
                    f"{', '.join(COLUMNS)} and may name mask, found {found}"
                )
            rows = list(reader)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"table {path} cannot be read ({error}); give a CSV file") from error
    for number, row in enumerate(rows, 2):
        for name in COLUMNS:
            if not row[name]:
                raise UserError(f"table {path}, line {number}: {name} is empty")
        if row["split"] not in SPLITS:
            raise UserError(
                f"table {path}, line {number}: split must be train, query or gallery, "
                f"found {row['split']!r}"
            )
    return rows


def _numbers(values: list[str]) -> np.ndarray:
    try:
        return np.array([int(value) for value in values], dtype=np.int64)
    except ValueError:
        return np.unique(values, return_inverse=True)[1].astype(np.int64)
