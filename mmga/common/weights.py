"""Read files of tensors that others wrote, without running code of theirs."""

import argparse
import datetime
import os
import pathlib
import types
from typing import Any

from mmga.common.errors import UserError, first_line

# Names below which trainers write the weights, the first that is there, and prefixes of wrappers
# around the network.
WRAPPERS = (
    *("state_dict", "model", "net", "network", "model_state_dict", "weights", "teacher"),
    *("state_dict_ema", "model_ema", "ema", "module"),
)
_PREFIXES = ("module.", "_orig_mod.", "model.", "backbone.", "network.", "net.")


def data_globals() -> list[Any]:
    """Return what torch's restricted reader needs for NumPy's arrays and for settings.

    None of it runs code of a file: arrays and scalars of numbers or strings, namespaces of
    argparse, paths and times.
    """
    import numpy as np

    multiarray = getattr(np, "_core", None) or np.core
    kinds = [
        getattr(np.dtypes, name)
        for name in dir(np.dtypes)
        if name.endswith("DType") and name not in ("ObjectDType", "VoidDType")
    ]
    functions = [
        (getattr(multiarray.multiarray, name), f"numpy.{package}.multiarray.{name}")
        for name in ("_reconstruct", "scalar")
        for package in ("core", "_core")
    ]
    settings = [argparse.Namespace, types.SimpleNamespace, pathlib.PosixPath, pathlib.PurePosixPath]
    times = [datetime.datetime, datetime.date, datetime.timedelta]
    return [np.ndarray, np.dtype, *kinds, *functions, *settings, *times]


def load_plain(path: str | os.PathLike[str]) -> Any:
    """Return what torch.save wrote, on the CPU; never unpickles code.

    Raises:
        pickle.UnpicklingError: the file is none of torch.save, or holds other objects.
        Exception: it is damaged; torch raises many kinds.
    """
    import torch

    with torch.serialization.safe_globals(data_globals()):
        return torch.load(path, map_location="cpu", weights_only=True)


def refused_objects(path: str | os.PathLike[str]) -> str:
    """Return the classes and functions in a file that `load_plain` does not make, as one text."""
    import torch

    try:
        with torch.serialization.safe_globals(data_globals()):
            return ", ".join(sorted(torch.serialization.get_unsafe_globals_in_checkpoint(path)))
    except Exception:  # what is damaged is told elsewhere
        return ""


def read_tensors(path: str | os.PathLike[str]) -> Any:
    """Return the contents of a .safetensors file, or of one that torch.save wrote, on the CPU.

    Never unpickles. A broken file raises an error of torch or safetensors, of many kinds.
    """
    if str(path).endswith(".safetensors"):
        from safetensors.torch import load_file

        return load_file(path)
    return load_plain(path)


def read_weights(path: str | os.PathLike[str], name: str, hint: str) -> Any:
    """Read a file of weights as `read_tensors` does.

    Args:
        path: the file.
        name: of the argument or file, for messages.
        hint: end of a message.

    Raises:
        UserError: the file does not exist or cannot be read.
    """
    try:
        return read_tensors(path)
    except FileNotFoundError as error:
        raise UserError(f"{name} {path} does not exist; {hint}") from error
    except Exception as error:  # torch and safetensors raise many kinds for a broken file
        objects = "" if str(path).endswith(".safetensors") else refused_objects(path)
        if objects:
            raise UserError(
                f"{name} {path} holds objects beside tensors that only code of the file's author "
                f"could make ({objects}); where that code is trusted, read it by torch.load(..., "
                "weights_only=False) and save model.state_dict() alone"
            ) from error
        raise UserError(f"{name} {path} cannot be read ({first_line(error)}); {hint}") from error


def unwrapped(state: Any, own: tuple[str, ...] = ()) -> Any:
    """Return the weights inside what a trainer saved, without wrappers' prefixes.

    Args:
        state: what a file holds.
        own: names of the network's tensors; a prefix that one of them has is kept.
    """
    while isinstance(state, dict):
        inner = next((state[one] for one in WRAPPERS if isinstance(state.get(one), dict)), None)
        if inner is None:
            break
        state = inner
    while isinstance(state, dict) and state:
        prefix = next(
            (one for one in _PREFIXES if all(str(name).startswith(one) for name in state)), None
        )
        if prefix is None or any(name.startswith(prefix) for name in own):
            break
        state = {str(name)[len(prefix) :]: value for name, value in state.items()}
    return state
