"""Data sets by name."""

import difflib
import typing
from collections.abc import Callable

from mmga.common.errors import UserError
from mmga.config import DataConfig, DataName
from mmga.data.dataset import DataSet
from mmga.data.masks import MaskFolder
from mmga.data.readers.csv_table import read_table
from mmga.data.readers.cuhk03 import read_cuhk03, read_cuhk03_classic
from mmga.data.readers.dukemtmc import read_dukemtmc, read_occluded_duke
from mmga.data.readers.market1501 import read_market1501
from mmga.data.readers.msmt17 import read_msmt17
from mmga.data.readers.viper import read_viper

NAMES = tuple(name for name in typing.get_args(DataName) if name != "synthetic")
"""Data sets that are read from files; `mmga.data.synthetic` renders the synthetic one."""

_READERS: dict[str, Callable[[DataConfig, MaskFolder | None], DataSet]] = {
    "market1501": read_market1501,
    "dukemtmc": read_dukemtmc,
    "msmt17": read_msmt17,
    "cuhk03": read_cuhk03,
    "cuhk03-classic": read_cuhk03_classic,
    "occluded-duke": read_occluded_duke,
    "viper": read_viper,
    "csv": read_table,
}


def load(data: DataConfig) -> DataSet:
    """Read the data set that a configuration names.

    Args:
        data: name, folder and masks, and the switches of single sets, which other sets ignore.

    Raises:
        UserError: the name is not known, or files are missing or wrong.
    """
    name, masks = data.data, data.masks
    if name not in NAMES:
        near = difflib.get_close_matches(name, NAMES, n=1)
        hint = f"did you mean {near[0]}?" if near else f"choose one of {', '.join(NAMES)}"
        raise UserError(f"data set {name!r} is not known; {hint}")
    if data.distractors is not None and name != "market1501":
        raise UserError(f"distractors belong to market1501, not to {name}; leave them out")
    in_memory = name == "viper" and masks is not None and masks.suffix == ".mat"
    folder = None
    if masks is not None and not in_memory:
        folder = MaskFolder(masks, data.label_set, data.halved_at)
    return _READERS[name](data, folder)
