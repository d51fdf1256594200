"""Atomic file writes, and reading of tensor files."""

import contextlib
import importlib
import os
import re
import shutil
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
    replaced. On an error the temporary file is removed and `path` is left as it was.

    Raises:
        UserError: the folder cannot be created or written, or the disk is full.
    """
    target = Path(path)
    temporary = target.with_name(f".{target.stem}.{os.getpid()}.tmp{target.suffix}")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        if temporary.is_dir() and target.is_dir():
            # A folder cannot be renamed over a non-empty one: the old one steps aside first.
            aside = target.with_name(f".{target.stem}.{os.getpid()}.old{target.suffix}")
            os.replace(target, aside)
            os.replace(temporary, target)
            shutil.rmtree(aside)
        else:
            os.replace(temporary, target)
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
        if temporary.is_dir():
            shutil.rmtree(temporary, ignore_errors=True)
        else:
            with contextlib.suppress(FileNotFoundError, NotADirectoryError):
                temporary.unlink()


def read_tensors(path: str | os.PathLike[str]) -> Any:
    """Return the contents of a .safetensors file, or of one that torch.save wrote, on the CPU.

    Never unpickles. A broken file raises an error of torch or safetensors, of many kinds.
    """
    if str(path).endswith(".safetensors"):
        from safetensors.torch import load_file

        return load_file(path)
    import torch

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
