"""Data sets by name for programs, as `--data` and `--root` name them for commands."""

import dataclasses
import os
from pathlib import Path
from typing import Any

from mmga.common.errors import UserError
from mmga.config import DataConfig, DataName
from mmga.data.dataset import DataSet
from mmga.data.readers import by_name


def load(name: DataName, root: str | os.PathLike[str] | None = None, **switches: Any) -> DataSet:
    """Read a data set.

    Args:
        name: as `--data` takes it, such as "market1501", or "csv" for a table of your own.
        root: its folder or the folder's parent, the table for "csv"; by default $MMGA_DATA.
        switches: further fields of `DataConfig`, such as masks or boxes.

    Raises:
        UserError: the name or a switch is not known, or files are missing or wrong.
    """
    known = {field.name for field in dataclasses.fields(DataConfig)} - {"data", "root"}
    unknown = sorted(set(switches) - known)
    if unknown:
        raise UserError(
            f"{unknown[0]} is no switch of data sets; there are {', '.join(sorted(known))}"
        )
    folder = None if root is None else Path(root)
    return by_name.load(DataConfig(data=name, root=folder, **switches))
