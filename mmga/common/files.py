"""Atomic file writes, and reading of tensor files."""

import contextlib
import errno
import functools
import importlib
import itertools
import os
import platform
import re
import shutil
import socket
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mmga.common.errors import UserError, first_line


def _reason(error: Exception) -> str | None:
    """Return the system's message for the error number in an error or in its text, if any."""
    if isinstance(error, OSError) and error.errno:
        return os.strerror(error.errno)
    number = re.search(r"\b(?:errno = |os error )(\d+)", str(error))
    return None if number is None else os.strerror(int(number.group(1)))


def _failure(target: Path, error: Exception) -> UserError:
    reason = _reason(error) or " ".join(str(error).split())
    if re.fullmatch(r"\d+ requested and \d+ written", reason):  # NumPy's
        reason = "a part of it found no room"
    return UserError(
        f"{target} could not be written: {reason}; choose a folder that can be written and has room"
    )


@contextlib.contextmanager
def atomic_path(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary path beside `path` that becomes `path` when the block ends well.

    The temporary name keeps the suffix, because writers such as `numpy.savez` append one of their
    own. It may be written as a file or as a folder; an existing file or folder at `path` is
    replaced. On an error the temporary file is removed and `path` is left as it was. Of several
    writers at once the last one wins; what a killed writer left behind is removed.

    Raises:
        UserError: the folder cannot be created or written, or the disk is full.
    """
    target = Path(path)
    temporary = _temporary(target)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        _remove_left_behind(target.parent.resolve())
        yield temporary
        _replace(temporary, target)
    except OSError as error:
        # A missing file that the block itself tried to read is not this file's failure.
        if isinstance(error, FileNotFoundError) and error.filename not in (
            None,
            str(temporary),
            str(target),
            str(target.parent),
        ):
            raise
        raise _failure(target, error) from error
    except Exception as error:
        # Writers in other languages (safetensors, HDF5) spell the error of the system out.
        if _reason(error) is None:
            raise
        raise _failure(target, error) from error
    finally:
        _remove(temporary)


_numbers = itertools.count()
# Folders may be shared by machines, whose processes are not known here.
_MACHINE = f"{zlib.crc32(platform.node().encode()):08x}"


def _temporary(target: Path) -> Path:
    """Return a name beside `target` that no other thread or process uses."""
    writer = f"{_MACHINE}-{os.getpid()}-{next(_numbers)}"
    return target.with_name(f".{target.stem}.{writer}.tmp{target.suffix}")


def _replace(temporary: Path, target: Path) -> None:
    """Rename `temporary` to `target`; a folder there, which others may replace too, goes first."""
    aside = []
    try:
        while True:
            try:
                os.replace(temporary, target)
                return
            except OSError as error:
                # A folder cannot be renamed over one that is not empty.
                if error.errno not in (errno.ENOTEMPTY, errno.EEXIST) or not temporary.is_dir():
                    raise
            aside.append(_temporary(target))
            with contextlib.suppress(FileNotFoundError):
                os.replace(target, aside[-1])
    except BaseException:
        if aside:  # what was there comes back
            with contextlib.suppress(OSError):
                os.replace(aside[-1], target)
        raise
    finally:
        for folder in aside:
            _remove(folder)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            path.unlink()


@functools.cache
def _remove_left_behind(folder: Path) -> None:
    """Remove what killed processes of this machine left in a folder, once for each process."""
    pattern = re.compile(rf"\..+\.{_MACHINE}-(\d+)-\d+\.tmp.*")
    for path in folder.iterdir():
        found = pattern.fullmatch(path.name)
        if found is not None and not _alive(int(found[1])):
            _remove(path)


def _alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True


@contextlib.contextmanager
def patient(seconds: float = 30.0) -> Iterator[None]:
    """Let downloads of a block fail after so long without an answer, instead of waiting forever."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(seconds if before is None else before)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)


def read_tensors(path: str | os.PathLike[str]) -> Any:
    """Return the contents of a .safetensors file, or of one that torch.save wrote, on the CPU.

    Never unpickles. A broken file raises an error of torch or safetensors, of many kinds.
    """
    if str(path).endswith(".safetensors"):
        from safetensors.torch import load_file

        return load_file(path)
    import numpy as np
    import torch

    # Scores beside the weights are often NumPy's: numbers, which need no code of a file to be made.
    kinds = [type(np.dtype(kind)) for kind in ("f8", "f4", "i8", "i4", "u1", "?")]
    scalar: Any = np.float64(0).__reduce__()[0]  # whose name differs between NumPy 1 and 2
    names: list[Any] = [(scalar, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")]
    with torch.serialization.safe_globals([*names, np.dtype, *kinds]):
        return torch.load(path, map_location="cpu", weights_only=True)


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
        raise UserError(f"{name} {path} cannot be read ({first_line(error)}); {hint}") from error


def package_of(extra: str, module: str, path: str | os.PathLike[str]) -> Any:
    """Import the module of an extra that reads a file.

    Raises:
        UserError: the extra is not installed.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        package = module.split(".")[0]
        raise UserError(
            f"{path}: reading it needs {package}; pip install 'mmga[{extra}]'"
        ) from error
