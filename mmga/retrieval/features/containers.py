"""Containers of arrays: one reader and one writer each, none of which unpickles.

A container is read to a mapping from name to array (NumPy or torch); strings are unicode arrays.
"""

from __future__ import annotations

import json
import os
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import torch
from torch import Tensor

from mmga.common.errors import UserError
from mmga.common.files import atomic_path

Arrays = dict[str, Any]

# From this size on an array in a folder is memory-mapped; labels are simply read.
_MAP_BYTES = 1 << 20


def read(path: str | os.PathLike[str]) -> Arrays:
    """Return the arrays of a file or folder, by name.

    Raises:
        UserError: it is absent, of an unknown kind, damaged, or needs an extra to be installed.
    """
    source = Path(path)
    if not source.exists():
        raise UserError(f"{source}: no such file or folder")
    if source.is_dir():
        return _read_folder(source)
    reader = _READERS.get(source.suffix.lower())
    if reader is None:
        raise UserError(
            f"{source}: expected {', '.join(_READERS)} or a folder of .npy files, "
            f"found {source.suffix or 'a file without suffix'}"
        )
    try:
        return reader(source)
    except (UserError, MemoryError):
        raise
    except Exception as error:  # damaged bytes end in whatever a parser trips over
        _damaged(source, f"a {source.suffix.lower()} file", error)


def write(path: str | os.PathLike[str], arrays: Mapping[str, Any]) -> None:
    """Write arrays to `path` under a temporary name and rename it when it is whole.

    Raises:
        UserError: the suffix is unknown, or the file cannot be written.
    """
    target = Path(path)
    suffix = target.suffix.lower()
    writer = _write_folder if not suffix or target.is_dir() else _WRITERS.get(suffix)
    if writer is None:
        raise UserError(
            f"{target}: expected {', '.join(_WRITERS)} or no suffix for a folder of .npy files, "
            f"found {suffix}"
        )
    with atomic_path(target) as temporary:
        writer(temporary, arrays)


def check_array(name: str, array: np.ndarray) -> None:
    """Refuse arrays that would be misread.

    Raises:
        UserError: an array of objects, or of the other byte order.
    """
    if array.dtype.hasobject:
        raise UserError(
            f"{name}: expected numbers or strings, found an array of objects, which only pickle "
            "could read; save it as a plain array"
        )
    if not array.dtype.isnative:
        raise UserError(
            f"{name}: expected this machine's byte order, found {array.dtype.str}; "
            "save array.astype(array.dtype.newbyteorder('='))"
        )


def _damaged(path: Path, what: str, error: Exception) -> NoReturn:
    reason = " ".join(str(error).split()) or type(error).__name__
    raise UserError(f"{path} could not be read as {what}: {reason}") from error


def _extra(path: Path, module: str, extra: str) -> NoReturn:
    raise UserError(
        f"{path} needs {module}, which is not installed; run pip install 'mmga[{extra}]'"
    ) from None


def _numpy(value: Any) -> np.ndarray:
    if isinstance(value, Tensor):
        return value.detach().cpu().numpy()
    return np.asarray(value)


# .npz and folders of .npy


def _read_npz(path: Path) -> Arrays:
    arrays: Arrays = {}
    try:
        with np.load(path, allow_pickle=False) as archive:
            for name in archive.files:
                try:
                    arrays[name] = archive[name]
                except ValueError as error:
                    if "Object arrays" in str(error):
                        _refuse_objects(path, name)
                    raise
    except (ValueError, OSError, zipfile.BadZipFile, EOFError, KeyError) as error:
        if isinstance(error, UserError):
            raise
        if "pickled" in str(error):
            raise UserError(f"{path}: expected an .npz archive, found something else") from error
        _damaged(path, "an .npz archive", error)
    return arrays


def _refuse_objects(path: Path, name: str) -> NoReturn:
    raise UserError(
        f"{path}: {name}: expected numbers or strings, found an array of objects, which only "
        "pickle could read; save it as a plain array"
    ) from None


def _write_npz(path: Path, arrays: Mapping[str, Any]) -> None:
    plain: dict[str, Any] = {name: _numpy(value) for name, value in arrays.items()}
    np.savez(path, **plain)


def _read_npy(path: Path) -> Arrays:
    return {"array": _array(path)}


def _array(file: Path) -> np.ndarray:
    try:
        # Mode "c" maps the file copy-on-write: torch may take it without a copy or a warning.
        mapped = file.stat().st_size > _MAP_BYTES
        array: np.ndarray = np.load(file, mmap_mode="c" if mapped else None, allow_pickle=False)
        return array
    except (ValueError, OSError, EOFError) as error:
        if "Object arrays" in str(error) or "Array can't be memory-mapped" in str(error):
            _refuse_objects(file.parent, file.name)
        _damaged(file, "a .npy array", error)


def _read_folder(path: Path) -> Arrays:
    arrays: Arrays = {}
    for file in sorted(path.glob("*.npy")):
        arrays[file.stem] = _array(file)
    if not arrays:
        raise UserError(f"{path}: expected a folder with features.npy and pids.npy, found neither")
    return arrays


def _write_folder(path: Path, arrays: Mapping[str, Any]) -> None:
    path.mkdir()
    for name, value in arrays.items():
        np.save(path / f"{name}.npy", _numpy(value), allow_pickle=False)


# .safetensors: strings stand as JSON in the metadata


def _read_safetensors(path: Path) -> Arrays:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            arrays: Arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            metadata = file.metadata() or {}
    except (SafetensorError, OSError) as error:
        _damaged(path, "a .safetensors file", error)
    for name, text in metadata.items():
        try:
            values = json.loads(text)
        except ValueError:
            continue  # metadata of somebody else
        if isinstance(values, list) and all(isinstance(value, str) for value in values):
            arrays[name] = np.asarray(values, dtype=np.str_)
    return arrays


def _write_safetensors(path: Path, arrays: Mapping[str, Any]) -> None:
    from safetensors.torch import save_file

    tensors: dict[str, Tensor] = {}
    metadata: dict[str, str] = {}
    for name, value in arrays.items():
        if isinstance(value, Tensor):
            tensors[name] = value.detach().cpu().contiguous()
        elif np.asarray(value).dtype.kind in "US":
            metadata[name] = json.dumps(np.asarray(value).astype(np.str_).tolist())
        else:
            tensors[name] = torch.from_numpy(np.ascontiguousarray(value))
    # The format knows no shared memory: pids that serve as a column too are written twice.
    seen: set[int] = set()
    for name, tensor in tensors.items():
        storage = tensor.untyped_storage().data_ptr()
        if storage in seen:
            tensors[name] = tensor.clone()
        seen.add(storage)
    save_file(tensors, path, metadata)


# MATLAB: version 5 through SciPy, version 7.3 is HDF5


def _read_mat(path: Path) -> Arrays:
    with path.open("rb") as file:
        header = file.read(128)
    if header[:8] == b"\x89HDF\r\n\x1a\n" or b"MATLAB 7.3" in header:
        return _read_h5(path)
    try:
        from scipy.io import loadmat
        from scipy.io.matlab import MatReadError
    except ImportError:
        _extra(path, "SciPy", "mat")
    try:
        found = loadmat(path, chars_as_strings=True, struct_as_record=False)
    except (MatReadError, ValueError, TypeError, NotImplementedError, OSError) as error:
        _damaged(path, "a MATLAB file", error)
    arrays: Arrays = {}
    for name, value in found.items():
        if name.startswith("__"):
            continue
        if isinstance(value, np.ndarray) and value.dtype.hasobject:
            # A cell array of strings: each cell is an array of one string.
            cells = [np.asarray(cell).reshape(-1) for cell in value.reshape(-1)]
            if not all(cell.dtype.kind == "U" and len(cell) <= 1 for cell in cells):
                _refuse_objects(path, name)
            value = np.asarray([str(cell[0]) if len(cell) else "" for cell in cells], np.str_)
        elif isinstance(value, np.ndarray) and value.dtype.kind == "U":
            value = np.char.rstrip(value)  # rows of a char matrix are padded with blanks
        arrays[name] = value
    return arrays


def _write_mat(path: Path, arrays: Mapping[str, Any]) -> None:
    try:
        from scipy.io import savemat
    except ImportError:
        _extra(path, "SciPy", "mat")
    out: dict[str, Any] = {}
    for name, value in arrays.items():
        array = _numpy(value)
        if array.dtype == np.float16:
            array = array.astype(np.float32)  # MATLAB has no half precision; this loses nothing
        if array.dtype.kind in "US":
            array = array.astype(object)  # a cell array of strings
        out[name] = array.reshape(1, -1) if array.ndim == 1 else array
    savemat(path, out)


# HDF5


def _read_h5(path: Path) -> Arrays:
    try:
        import h5py
    except ImportError:
        _extra(path, "h5py", "h5")
    arrays: Arrays = {}
    try:
        with h5py.File(path, "r") as file:
            matlab = any("MATLAB_class" in item.attrs for item in file.values())
            for name, item in file.items():
                if not isinstance(item, h5py.Dataset):
                    continue
                if h5py.check_string_dtype(item.dtype) is not None:
                    arrays[name] = np.asarray(item.asstr()[()], dtype=np.str_)
                elif item.dtype.hasobject:
                    _refuse_objects(path, name)
                else:
                    value = item[()]
                    # MATLAB stores columns first: its N x D arrives as D x N.
                    arrays[name] = value.T.copy() if matlab and value.ndim > 1 else value
    except OSError as error:
        _damaged(path, "an HDF5 file", error)
    return arrays


def _write_h5(path: Path, arrays: Mapping[str, Any]) -> None:
    try:
        import h5py
    except ImportError:
        _extra(path, "h5py", "h5")
    with h5py.File(path, "w") as file:
        for name, value in arrays.items():
            array = _numpy(value)
            if array.dtype.kind in "US":
                file.create_dataset(
                    name, data=array.astype(object), dtype=h5py.string_dtype("utf-8")
                )
            else:
                file.create_dataset(name, data=array)


# .pt: tensors, arrays of numbers or strings, lists and plain scalars, never objects


def _numpy_globals() -> list[Any]:
    """Return what torch's restricted reader needs for NumPy arrays, none of which runs code."""
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
    return [np.ndarray, np.dtype, *kinds, *functions]


def _read_pt(path: Path) -> Arrays:
    import pickle
    import warnings

    try:
        with torch.serialization.safe_globals(_numpy_globals()), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of how a file was pickled
            found = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        with path.open("rb") as file:
            pickled = file.read(1) == b"\x80"
        if not pickled and not zipfile.is_zipfile(path):
            raise UserError(
                f"{path}: expected a file of torch.save, found something else"
            ) from error
        raise UserError(
            f"{path}: expected a dictionary of tensors, arrays and lists, found objects that only "
            "unpickling could read; save plain tensors with torch.save"
        ) from error
    except (RuntimeError, OSError, EOFError, ValueError) as error:
        _damaged(path, "a .pt file", error)
    if not isinstance(found, dict):
        raise UserError(f"{path}: expected a dictionary, found {type(found).__name__}")
    arrays: Arrays = {}
    for name, value in found.items():
        if isinstance(value, Tensor | np.ndarray):
            arrays[str(name)] = value
        elif isinstance(value, list | tuple) and value:
            if all(isinstance(item, Tensor) for item in value):
                arrays[str(name)] = torch.stack(list(value))
            else:
                arrays[str(name)] = np.asarray(value)
        # A plain scalar (an epoch, a loss) describes the file, not its rows.
    return arrays


def _write_pt(path: Path, arrays: Mapping[str, Any]) -> None:
    out: dict[str, Any] = {}
    for name, value in arrays.items():
        if isinstance(value, Tensor):
            out[name] = value.detach().cpu().clone()
        elif np.asarray(value).dtype.kind in "US":
            out[name] = np.asarray(value).tolist()
        else:
            out[name] = torch.from_numpy(np.ascontiguousarray(value))
    try:
        with path.open("wb") as file:  # whose errors are Python's
            torch.save(out, file)
    except RuntimeError as error:
        # torch closes its archive after a failed write, and complains of what is missing in it.
        failed = error.__context__
        raise failed if isinstance(failed, OSError) else OSError(str(error)) from None


_READERS: dict[str, Callable[[Path], Arrays]] = {
    ".npz": _read_npz,
    ".safetensors": _read_safetensors,
    ".mat": _read_mat,
    ".h5": _read_h5,
    ".hdf5": _read_h5,
    ".pt": _read_pt,
    ".pth": _read_pt,
    ".npy": _read_npy,
}
_WRITERS: dict[str, Callable[[Path, Mapping[str, Any]], None]] = {
    ".npz": _write_npz,
    ".safetensors": _write_safetensors,
    ".mat": _write_mat,
    ".h5": _write_h5,
    ".hdf5": _write_h5,
    ".pt": _write_pt,
    ".pth": _write_pt,
}
