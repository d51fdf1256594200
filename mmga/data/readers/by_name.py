"""Data sets by name."""

import difflib
import os
import typing
from pathlib import Path

from mmga.common.errors import UserError
from mmga.config import DataName
from mmga.data.dataset import DataSet
from mmga.data.masks import MaskFolder

NAMES = tuple(name for name in typing.get_args(DataName) if name != "synthetic")
"""Data sets that are read from files; the synthetic one is made by `mmga.data.synthetic`."""


def load(
    name: str,
    root: str | os.PathLike[str] | None = None,
    *,
    masks: str | os.PathLike[str] | None = None,
    label_set: str = "parts",
    halved_at: float | None = None,
    split: int = 0,
    splits_file: str | os.PathLike[str] | None = None,
    direction: str = "ab",
    boxes: str = "detected",
    with_val: bool = True,
    distractors: str | os.PathLike[str] | None = None,
) -> DataSet:
    """Read a data set.

    Args:
        name: one of NAMES.
        root: its folder or that folder's parent, for `csv` the table itself; None for the folder
            that the environment variable MMGA_DATA names.
        masks: folder of mask PNGs named as the images, or for `viper` SDALF's .mat of silhouettes.
        label_set: label set of the mask files (`mmga.data.masks.LABEL_SETS`, or `silhouette`).
        halved_at: height, as a share of the image, at which silhouettes are halved into upper and
            bottom; None leaves the halves unknown.
        split: number of the split, from 0 (`viper`, `cuhk03-classic`).
        splits_file: file of fixed splits (`viper`).
        direction: which camera is the query, `ab` or `ba` (`viper`).
        boxes: `detected` or `labeled` (`cuhk03`, `cuhk03-classic`).
        with_val: train on train and val, or on train alone (`msmt17`).
        distractors: folder of images added to the gallery (`market1501`).

    Raises:
        UserError: the name is not known, or files are missing or wrong.
    """
    if name not in NAMES:
        near = difflib.get_close_matches(name, NAMES, n=1)
        hint = f"did you mean {near[0]}?" if near else f"choose one of {', '.join(NAMES)}"
        raise UserError(f"data set {name!r} is not known; {hint}")
    if distractors is not None and name != "market1501":
        raise UserError(f"distractors belong to market1501, not to {name}; leave them out")
    in_memory = name == "viper" and masks is not None and Path(masks).suffix == ".mat"
    folder = None if masks is None or in_memory else MaskFolder(Path(masks), label_set, halved_at)
    if name == "market1501":
        from mmga.data.readers.market1501 import read_market1501

        return read_market1501(root, folder, distractors=distractors)
    if name == "dukemtmc":
        from mmga.data.readers.dukemtmc import read_dukemtmc

        return read_dukemtmc(root, folder)
    if name == "occluded-duke":
        from mmga.data.readers.dukemtmc import read_occluded_duke

        return read_occluded_duke(root, folder)
    if name == "msmt17":
        from mmga.data.readers.msmt17 import read_msmt17

        return read_msmt17(root, folder, with_val=with_val)
    if name == "cuhk03":
        from mmga.data.readers.cuhk03 import read_cuhk03

        return read_cuhk03(root, folder, boxes=boxes)
    if name == "cuhk03-classic":
        from mmga.data.readers.cuhk03 import read_cuhk03_classic

        return read_cuhk03_classic(root, folder, boxes=boxes, split=split)
    if name == "viper":
        from mmga.data.readers.viper import read_viper

        return read_viper(
            root,
            folder if folder is not None else masks,
            split=split,
            splits_file=splits_file,
            direction=direction,
            halved_at=halved_at,
        )
    if root is None:
        raise UserError("data set csv needs --root TABLE.csv, the table itself")
    from mmga.data.readers.csv_table import read_table

    return read_table(root, folder, label_set=label_set, halved_at=halved_at)
