"""Containers of arrays: one reader and one writer each, none of which unpickles.

A container is read to a mapping from name to array (NumPy or torch); strings are unicode arrays. A
file of a single array without a name, .npy or .pt, holds it under the name array.
"""

from __future__ import annotations

import functools
import json
import math
import os
import struct
import zipfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, NoReturn

import numpy as np
import torch
from torch import Tensor

from mmga.common import mat, weights
from mmga.common.errors import UserError
from mmga.common.files import atomic_path, steady_file
from mmga.common.memory import check_declared

Arrays = dict[str, Any]

# From this size on an array in a folder is memory-mapped; labels are simply read.
_MAP_BYTES = 1 << 20
_PLAIN = "save it as a plain array, such as numpy.array(values.tolist())"
_LONGEST_REASON = 200  # characters of a parser's message


def read(path: str | os.PathLike[str], suffix: str | None = None, mapped: bool = False) -> Arrays:
    """Return the arrays of a file or folder, by name.

    Args:
        path: the file or folder.
        suffix: of the container; by default the path's own.
        mapped: map large arrays of .npz files, too, as those of .npy files always are.

    Raises:
        UserError: it is absent, of an unknown kind, damaged, or needs an extra to be installed.
    """
    source = Path(path)
    if not source.exists():
        raise UserError(f"{source}: no such file or folder")
    if source.is_dir():
        return _read_folder(source)
    suffix = source.suffix.lower() if suffix is None else suffix
    reader = _READERS.get(suffix)
    if reader is None:
        raise UserError(
            f"{source}: expected {', '.join(_READERS)} or a folder of .npy files, "
            f"found {suffix or 'a file without suffix'}"
        )
    if mapped and reader is _read_npz:
        reader = functools.partial(_read_npz, mapped=True)
    try:
        return reader(source)
    except UserError:
        raise
    except MemoryError as error:
        raise UserError(f"{source}: {error or 'it does not fit into memory'}") from error
    except Exception as error:  # damaged bytes end in whatever a parser trips over
        _damaged(source, f"a {suffix} file", error)


def write(
    path: str | os.PathLike[str], arrays: Mapping[str, Any], suffix: str | None = None
) -> None:
    """Write arrays to `path` under a temporary name and rename it when it is whole.

    Args:
        path: the file.
        arrays: by name.
        suffix: of the container; by default the path's own, without one a folder of .npy files.

    Raises:
        UserError: the suffix is unknown, or the file cannot be written.
    """
    target = Path(path)
    folder = suffix is None and target.is_dir()
    suffix = target.suffix.lower() if suffix is None else suffix
    writer = _write_folder if not suffix or folder else _WRITERS.get(suffix)
    if writer is None:
        raise UserError(
            f"{target}: expected {', '.join(_WRITERS)} or no suffix for a folder of .npy files, "
            f"found {suffix}"
        )
    for name, value in arrays.items():
        if (
            suffix not in ("", ".npz", ".parquet")
            and isinstance(value, np.ndarray)
            and value.dtype.kind in "mM"
        ):
            raise UserError(
                f"{target}: {name}: a {suffix} file holds no times; store them as numbers, for "
                "example seconds, or as strings"
            )
    with atomic_path(target) as temporary:
        writer(temporary, arrays)


def check_room(path: str | os.PathLike[str], name: str, size: int, paths: Sequence[str]) -> None:
    """Refuse to begin what `write` could not end, because a container has a limit.

    Args:
        path: the file that will be written.
        name: of the largest array.
        size: its bytes.
        paths: strings that will be written with it.

    Raises:
        UserError: .mat with 4 GiB or more, or .safetensors with more strings than its header holds.
    """
    suffix = Path(path).suffix.lower()
    if suffix == ".mat":
        mat.check_size(path, name, size)
    elif suffix == ".safetensors":
        _check_safetensors_strings(path, len(json.dumps(list(paths))))


def check_array(name: str, array: np.ndarray) -> None:
    """Refuse arrays that would be misread.

    Raises:
        UserError: an array of objects, or of the other byte order.
    """
    if array.dtype.hasobject:
        raise UserError(
            f"{name}: expected numbers or strings, found an array of objects, which only pickle "
            f"could read; {_PLAIN}"
        )
    if not array.dtype.isnative:
        raise UserError(
            f"{name}: expected this machine's byte order, found {array.dtype.str}; "
            "save array.astype(array.dtype.newbyteorder('='))"
        )


def _damaged(path: Path, what: str, error: Exception) -> NoReturn:
    reason = " ".join(str(error).split()) or type(error).__name__
    if len(reason) > _LONGEST_REASON:  # parsers quote what they found, which may be anything
        reason = reason[:_LONGEST_REASON] + "..."
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


def _read_npz(path: Path, mapped: bool = False) -> Arrays:
    with path.open("rb") as file:
        if file.read(2) != b"PK":
            raise UserError(f"{path}: expected an .npz archive, found something else")
    arrays: Arrays = {}
    with zipfile.ZipFile(path) as archive:
        for member in archive.infolist():
            name, suffix = os.path.splitext(member.filename)
            if suffix != ".npy":
                continue
            _check_member(member)
            with archive.open(member) as stream:
                _check_header(stream, member.file_size, path, name)
            plain = member.compress_type == zipfile.ZIP_STORED
            if mapped and plain and member.file_size > _MAP_BYTES:
                arrays[name] = _mapped_member(path, member)
                continue
            with archive.open(member) as stream:
                arrays[name] = np.lib.format.read_array(stream, allow_pickle=False)
    return arrays


def _mapped_member(path: Path, member: zipfile.ZipInfo) -> np.ndarray:
    """Return an array that is stored in an archive as it is, mapped copy-on-write."""
    with path.open("rb") as file:
        file.seek(member.header_offset + 26)
        name, extra = struct.unpack("<HH", file.read(4))  # lengths in the member's own header
        file.seek(name + extra, os.SEEK_CUR)
        version = np.lib.format.read_magic(file)
        read_header = (
            np.lib.format.read_array_header_1_0
            if version == (1, 0)
            else np.lib.format.read_array_header_2_0
        )
        shape, fortran, dtype = read_header(file)
        return np.memmap(path, dtype, "c", file.tell(), shape, "F" if fortran else "C")


def _check_member(member: zipfile.ZipInfo) -> None:
    """Refuse a member of an archive whose declared size its bytes cannot have."""
    other = member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
    held = member.file_size if other else member.compress_size
    check_declared(member.file_size, held, compressed=member.compress_type == zipfile.ZIP_DEFLATED)


def _check_header(stream: IO[bytes], size: int, path: Path, name: str) -> None:
    """Refuse a .npy array of objects, or one that declares more bytes than the `size` it has."""
    version = np.lib.format.read_magic(stream)
    read_header = (
        np.lib.format.read_array_header_1_0
        if version == (1, 0)
        else np.lib.format.read_array_header_2_0
    )
    shape, _, dtype = read_header(stream)
    if dtype.hasobject:
        _refuse_objects(path, name)
    if min(shape, default=0) < 0:
        raise ValueError(f"{name}: impossible shape {shape[:8]}")
    check_declared(math.prod(shape) * max(dtype.itemsize, 1), size - stream.tell())


def _refuse_objects(path: Path, name: str) -> NoReturn:
    raise UserError(
        f"{path}: {name}: expected numbers or strings, found an array of objects, which only "
        f"pickle could read; {_PLAIN}"
    ) from None


def _write_npz(path: Path, arrays: Mapping[str, Any]) -> None:
    plain: dict[str, Any] = {name: _numpy(value) for name, value in arrays.items()}
    np.savez(path, **plain)


def _read_npy(path: Path) -> Arrays:
    return {"array": _array(path)}


def _array(file: Path) -> np.ndarray:
    try:
        size = file.stat().st_size
        mapped = size > _MAP_BYTES
        with file.open("rb") as stream:
            _check_header(stream, size, file.parent, file.name)
        # Mode "c" maps the file copy-on-write: torch may take it without a copy or a warning.
        array: np.ndarray = np.load(file, mmap_mode="c" if mapped else None, allow_pickle=False)
        return array
    except UserError:
        raise
    except Exception as error:
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


# Of a header, in bytes; readers refuse longer ones. A part of it is left to the tensors' names.
_SAFETENSORS_HEADER = 100_000_000 - 100_000


def _check_safetensors_strings(path: str | os.PathLike[str], size: int) -> None:
    if size > _SAFETENSORS_HEADER:
        raise UserError(
            f"{path}: the strings (paths, names of identities) take {size / 1e6:.0f} MB, and a "
            ".safetensors file holds less than 100 MB of them; write .npz, .h5 or a folder of .npy "
            "files"
        )


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
    _check_safetensors_strings(path, len(json.dumps(metadata)))  # in which they are escaped again
    save_file(tensors, path, metadata)


# MATLAB: version 7.3 is HDF5


def _read_mat(path: Path) -> Arrays:
    with path.open("rb") as file:
        header = file.read(128)
    if header[:8] == b"\x89HDF\r\n\x1a\n" or b"MATLAB 7.3" in header:
        return _read_h5(path)
    arrays: Arrays = {}
    for name, value in mat.read(path).items():
        if isinstance(value, list):
            # A cell array of strings: each cell is an array of one string, or empty.
            if not all(
                isinstance(cell, np.ndarray) and (cell.dtype.kind == "U" or not cell.size)
                for cell in value
            ) or any(len(cell) > 1 for cell in value):
                _refuse_objects(path, name)
            value = np.asarray([str(cell[0]) if len(cell) else "" for cell in value], np.str_)
        arrays[name] = value
    return arrays


def _write_mat(path: Path, arrays: Mapping[str, Any]) -> None:
    out = {name: _numpy(value) for name, value in arrays.items()}
    # MATLAB has no half precision; this loses nothing.
    mat.write(
        path,
        {
            name: array.astype(np.float32) if array.dtype == np.float16 else array
            for name, array in out.items()
        },
    )


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
                _check_dataset(item)
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


def _check_dataset(dataset: Any) -> None:
    """Refuse a dataset that declares more than its file holds."""
    if dataset.shape is None:
        raise ValueError(f"{dataset.name} is empty")
    held = dataset.id.get_storage_size()
    if dataset.is_virtual or dataset.external or dataset.compression not in (None, "gzip"):
        held = held and dataset.nbytes  # elsewhere, or packed by a filter without a known limit
    check_declared(int(dataset.nbytes), held, compressed=dataset.compression == "gzip")


def _write_h5(path: Path, arrays: Mapping[str, Any]) -> None:
    try:
        import h5py
    except ImportError:
        _extra(path, "h5py", "h5")
    with steady_file(path) as disk, h5py.File(disk, "w") as file:
        for name, value in arrays.items():
            array = _numpy(value)
            if array.dtype.kind in "US":
                file.create_dataset(
                    name, data=array.astype(object), dtype=h5py.string_dtype("utf-8")
                )
            else:
                file.create_dataset(name, data=array)


# .pt: tensors, arrays of numbers or strings, lists and plain scalars, never objects


def _read_pt(path: Path) -> Arrays:
    import pickle
    import warnings

    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            for member in archive.infolist():
                _check_member(member)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of how a file was pickled
            found = weights.load_plain(path)
    except pickle.UnpicklingError as error:
        with path.open("rb") as file:
            pickled = file.read(1) == b"\x80"
        if not pickled and not zipfile.is_zipfile(path):
            raise UserError(
                f"{path}: expected a file of torch.save, found something else"
            ) from error
        objects = weights.refused_objects(path)
        raise UserError(
            f"{path}: expected a dictionary of tensors, arrays and lists, found objects that only "
            f"unpickling could read{objects and f' ({objects})'}; save plain tensors with "
            "torch.save"
        ) from error
    except (RuntimeError, OSError, EOFError, ValueError) as error:
        _damaged(path, "a .pt file", error)
    if isinstance(found, Tensor | np.ndarray):
        return {"array": found}
    if not isinstance(found, dict):
        raise UserError(
            f"{path}: expected a tensor of features, or a dictionary of features, pids and camids, "
            f"found a {type(found).__name__}; save one by torch.save"
        )
    arrays: Arrays = {}
    for name, value in found.items():
        if isinstance(value, Tensor | np.ndarray):
            arrays[str(name)] = value
        elif isinstance(value, list | tuple) and value:
            if all(isinstance(item, Tensor) for item in value):
                arrays[str(name)] = torch.stack(list(value))
            else:
                arrays[str(name)] = np.asarray(value)
        elif isinstance(value, float) and str(name).endswith("scale"):  # of all rows
            arrays[str(name)] = np.asarray(value)
        # Another plain scalar (an epoch, a loss) describes the file, not its rows.
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
    with steady_file(path) as file:
        torch.save(out, file)


# Parquet


def _read_parquet(path: Path) -> Arrays:
    from mmga.retrieval.features import parquet

    return parquet.read(path, _pyarrow(path))


def _write_parquet(path: Path, arrays: Mapping[str, Any]) -> None:
    from mmga.retrieval.features import parquet

    parquet.write(path, arrays, _pyarrow(path))


def _pyarrow(path: Path) -> Any:
    try:
        import pyarrow
    except ImportError:
        _extra(path, "pyarrow", "parquet")
    return pyarrow


_READERS: dict[str, Callable[[Path], Arrays]] = {
    ".npz": _read_npz,
    ".safetensors": _read_safetensors,
    ".mat": _read_mat,
    ".h5": _read_h5,
    ".hdf5": _read_h5,
    ".pt": _read_pt,
    ".pth": _read_pt,
    ".npy": _read_npy,
    ".parquet": _read_parquet,
}
_WRITERS: dict[str, Callable[[Path, Mapping[str, Any]], None]] = {
    ".npz": _write_npz,
    ".safetensors": _write_safetensors,
    ".mat": _write_mat,
    ".h5": _write_h5,
    ".hdf5": _write_h5,
    ".pt": _write_pt,
    ".pth": _write_pt,
    ".parquet": _write_parquet,
}
