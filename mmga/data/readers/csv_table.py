"""Any other data set: a CSV table of path, pid, camid, split and, optionally, mask."""

import dataclasses
import functools
import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from mmga.common import ids, tables
from mmga.common.errors import UserError
from mmga.config import DataConfig
from mmga.data.dataset import SPLIT_NAMES, DataSet, ImageFiles
from mmga.data.masks import MaskFolder, PartMask, effective_label_set, read_mask

logger = logging.getLogger(__name__)

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

    def count(self, paths: Sequence[str]) -> int:
        """Count the images that have a mask file."""
        own = [path for path in paths if path in self.files]
        if own:
            _ = self._label_set  # here, once, and not in each process that loads images
        rest = [path for path in paths if path not in self.files]
        return len(own) + (0 if self.folder is None else self.folder.count(rest))

    def __call__(self, path: str) -> PartMask | None:
        """Return the mask of an image, None where there is none."""
        if path in self.files:
            return read_mask(self.files[path], self._label_set, split=self.split)
        return None if self.folder is None else self.folder(path)


def read_table(data: DataConfig, masks: MaskFolder | None) -> DataSet:
    """Read a data set from a CSV table with a header line.

    Identities and cameras are integers, or any names, which are then numbered in sorted order over
    the whole table; identity -1 (or -1.0) is junk, also among names. Image and mask paths are
    relative to the table's folder. The table may hold train alone, or query and gallery alone; the
    other splits are empty.

    Args:
        data: `root` is the table; `label_set` and `halved_at` apply to its column `mask`, too.
        masks: a folder of mask files, used for images whose `mask` is empty or not a column.

    Raises:
        UserError: the table cannot be read, lacks a column, has a wrong value, or only one of query
            and gallery.
    """
    path = data.root
    if path is None:
        raise UserError("data set csv needs --root TABLE.csv, the table itself")
    table = tables.read_table(path, f"table {path}", pad=True)
    table.need(COLUMNS, ("mask",))
    table = table.with_plain_paths()
    columns = {name: table.column(name) or [] for name in (*COLUMNS, "mask")}
    _check(table, columns)
    columns["mask"] = [cell.strip() for cell in columns["mask"]]
    table.check_repeated(("pid", "camid"))
    named = {
        image: path.parent / mask
        for image, mask in zip(columns["path"], columns["mask"], strict=False)
        if mask
    }
    for image, file in named.items():
        if not file.is_file():
            raise UserError(f"table {path}: the mask {file} of {image} does not exist")
    source = MaskFiles(named, data.label_set, data.halved_at, masks) if named else masks
    pids, pid_names = ids.coded(columns["pid"], junk=True)
    camids, camid_names = ids.coded(columns["camid"], junk=False)
    sets = []
    for split in SPLIT_NAMES:
        places = [i for i, name in enumerate(columns["split"]) if name == split]
        files = [columns["path"][i] for i in places]
        images = ImageFiles(path.parent, files, pids[places], camids[places], source)
        images.pid_names, images.camid_names = pid_names, camid_names
        sets.append(images)
    for one, other in (("query", "gallery"), ("gallery", "query")):
        if one not in columns["split"] and other in columns["split"]:
            raise UserError(f"table {path} has no row of split {one}, but {other} needs it")
    data_set = DataSet(path.stem, *sets)
    _warn_of_shared(table.title, data_set)
    return data_set


def _warn_of_shared(title: str, data: DataSet) -> None:
    """Warn of queries whose identity is trained on: a table numbers them over all splits."""
    queries = np.unique(data.query.pids[data.query.pids != ids.JUNK])
    shared = np.intersect1d(queries, data.train.pids)
    if len(shared):
        first = ids.plain(ids.written(shared[:1], getattr(data.query, "pid_names", None))[0])
        logger.warning(
            "warning: %s: %d of the %d query identities are of split train, too, such as %s: "
            "figures of persons that were trained on say nothing of others",
            title,
            len(shared),
            len(queries),
            first,
        )


def _check(table: tables.Table, columns: dict[str, list[str]]) -> None:
    if not table.rows:
        raise UserError(f"{table.title} has no row")
    for name in COLUMNS:
        cells = columns[name]
        for line, cell in zip(table.lines, cells, strict=True):
            if not cell.strip() or (name in ("pid", "camid") and len(ids.unknown([cell]))):
                raise UserError(
                    f"{table.title}, line {line}: {name} is empty; fill it in or leave the row out"
                    + ("; -1 is junk" if name == "pid" else "")
                )
    for place, line in enumerate(table.lines):
        columns["split"][place] = split = columns["split"][place].strip()
        if split not in SPLIT_NAMES:
            raise UserError(
                f"{table.title}, line {line}: split must be train, query or gallery, "
                f"found {split!r}"
            )
