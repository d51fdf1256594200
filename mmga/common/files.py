"""Files that are either whole or not there."""

import contextlib
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mmga.common.errors import UserError


def _reason(error: Exception) -> str | None:
    """Return what the system says where the error or its text holds an error number."""
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
    """Return what a .safetensors file holds, or any other one as torch.save wrote it, on the CPU.

    Never unpickles. What a broken file raises is torch's or safetensors' own, of many kinds.
    """
    if str(path).endswith(".safetensors"):
        from safetensors.torch import load_file

        return load_file(path)
    import torch

    return torch.load(path, map_location="cpu", weights_only=True)
