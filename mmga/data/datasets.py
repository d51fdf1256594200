"""Data sets by name and keywords, for scripts; commands have a `DataConfig` (`readers.by_name`)."""

import os
from pathlib import Path
from typing import Literal, cast

from mmga.config import DataConfig, DataName
from mmga.data.dataset import DataSet
from mmga.data.readers import by_name


def load(
    name: str,
    root: str | os.PathLike[str] | None = None,
    *,
    masks: str | os.PathLike[str] | None = None,
    label_set: str = "parts",
    halved_at: float | None = None,
    split: int = 0,
    splits_file: str | os.PathLike[str] | None = None,
    direction: Literal["ab", "ba"] = "ab",
    boxes: Literal["detected", "labeled"] = "detected",
    with_val: bool = True,
    distractors: str | os.PathLike[str] | None = None,
) -> DataSet:
    """Read a data set; each argument is described at the field of `DataConfig` of its name.

    Raises:
        UserError: the name is not known, or files are missing or wrong.
    """
    root, masks, splits_file, distractors = (
        None if path is None else Path(path) for path in (root, masks, splits_file, distractors)
    )
    return by_name.load(
        DataConfig(
            data=cast(DataName, name),
            root=root,
            masks=masks,
            label_set=label_set,
            halved_at=halved_at,
            split=split,
            splits_file=splits_file,
            direction=direction,
            boxes=boxes,
            with_val=with_val,
            distractors=distractors,
        )
    )
