"""Data sets by name and keywords, for scripts; commands have a `DataConfig` (`readers.by_name`)."""

import dataclasses
import os
from typing import Literal, TypedDict, Unpack, cast

from mmga.config import DataName, merged, recipe_config
from mmga.data.dataset import DataSet
from mmga.data.readers import by_name

Place = str | os.PathLike[str] | None


class Settings(TypedDict, total=False):
    """Keywords of `load`, each described at the field of `DataConfig` of its name."""

    masks: Place
    label_set: str
    halved_at: float | None
    split: int
    splits_file: Place
    direction: Literal["ab", "ba"]
    boxes: Literal["detected", "labeled"]
    with_val: bool
    distractors: Place


def load(name: str, root: Place = None, **settings: Unpack[Settings]) -> DataSet:
    """Read a data set.

    Args:
        name: one of `readers.by_name.NAMES`.
        root: its folder or that folder's parent, for `csv` the table; None for $MMGA_DATA.
        settings: see `Settings`.

    Raises:
        UserError: the name is not known, or files are missing or wrong.
    """
    given = {key: value for key, value in {"root": root, **settings}.items() if value is not None}
    values = {
        key: os.fspath(value) if isinstance(value, os.PathLike) else value
        for key, value in given.items()
    }
    read = merged(recipe_config("mgn"), {"data": values}, where=f"data set {name}").data
    return by_name.load(dataclasses.replace(read, data=cast(DataName, name)))
