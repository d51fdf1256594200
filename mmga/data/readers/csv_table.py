"""Any other data set: a CSV table of path, pid, camid, split and, optionally, mask."""

import csv
import dataclasses
import functools
from pathlib import Path

from mmga.common import ids
from mmga.common.errors import UserError
from mmga.config import DataConfig
from mmga.data.dataset import SPLIT_NAMES, DataSet, ImageFiles
from mmga.data.masks import MaskFolder, PartMask, effective_label_set, read_mask

COLUMNS = ("path", "pid", "camid", "split")


@dataclasses.dataclass(frozen=True)
class MaskFiles:
    """Mask files named one by one.

    Attributes:
        files: mask file by image path.
        label_set: how to read them (`mmga.data.masks.to_part_mask`).
        split: height at which silhouettes are halved, or None.
        folder: holds the masks of images that have no file of their own, or None.
    """

    files: dict[str, Path]
    label_set: str
    split: float | None
    folder: MaskFolder | None

    @functools.cached_property
    def _label_set(self) -> str:
        files = list(self.files.values())
        return effective_label_set(files, self.label_set, f"column mask ({files[0]}, ...)")

    def __call__(self, path: str) -> PartMask | None:
        """Return the mask of an image, None where there is none."""
        if path in self.files:
            return read_mask(self.files[path], self._label_set, split=self.split)
        return None if self.folder is None else self.folder(path)


def read_table(data: DataConfig, masks: MaskFolder | None) -> DataSet:
    """Read a data set from a CSV table with a header line.

    Identities and cameras are integers, or any names, which are then numbered in sorted order over
    the whole table; identity -1 (or -1.0) is junk, also among names. Image and mask paths are
    relative to the table's folder.

    Args:
        data: `root` is the table; `label_set` and `halved_at` apply to its column `mask`, too.
        masks: a folder of mask files, used for images whose `mask` is empty or not a column.

    Raises:
        UserError: the table cannot be read, lacks a column, has a wrong value or an empty split.
    """
    path = data.root
    if path is None:
        raise UserError("data set csv needs --root TABLE.csv, the table itself")
    rows = _rows(path)
    numbers = {name: ids.numbered([row[name] for row in rows]) for name in ("pid", "camid")}
    named = {row["path"]: path.parent / row["mask"] for row in rows if row.get("mask")}
    for image, file in named.items():
        if not file.is_file():
            raise UserError(f"table {path}: the mask {file} of {image} does not exist")
    source = MaskFiles(named, data.label_set, data.halved_at, masks) if named else masks
    sets = []
    for split in SPLIT_NAMES:
        places = [i for i, row in enumerate(rows) if row["split"] == split]
        if not places:
            raise UserError(f"table {path} has no row of split {split}")
        paths = [rows[i]["path"] for i in places]
        pids, camids = numbers["pid"][places], numbers["camid"][places]
        sets.append(ImageFiles(path.parent, paths, pids, camids, source))
    return DataSet(path.stem, *sets)


def read_rows(
    path: Path, title: str, columns: tuple[str, ...], optional: tuple[str, ...]
) -> list[dict[str, str]]:
    """Return the rows of a CSV table with a header line.

    Args:
        path: the table.
        title: names the table in messages.
        columns: that it must have.
        optional: columns that it may have, for messages.

    Raises:
        UserError: the table cannot be read or lacks a column.
    """
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            header = reader.fieldnames or []
            missing = [name for name in columns if name not in header]
            if missing:
                found = ", ".join(header) or "nothing"
                raise UserError(
                    f"{title} lacks the column {missing[0]}; its first line must name "
                    f"{', '.join(columns)} and may name {' and '.join(optional)}, found {found}"
                )
            return list(reader)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{title} cannot be read ({error}); give a CSV file") from error


def _rows(path: Path) -> list[dict[str, str]]:
    rows = read_rows(path, f"table {path}", COLUMNS, ("mask",))
    for number, row in enumerate(rows, 2):
        for name in COLUMNS:
            if not row[name] or (name in ("pid", "camid") and len(ids.unknown([row[name]]))):
                raise UserError(f"table {path}, line {number}: {name} is empty")
        if row["split"] not in SPLIT_NAMES:
            raise UserError(
                f"table {path}, line {number}: split must be train, query or gallery, "
                f"found {row['split']!r}"
            )
    return rows
