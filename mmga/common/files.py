"""Atomic file writes, and reading of JSON files."""

import contextlib
import errno
import functools
import hashlib
import importlib
import io
import itertools
import json
import os
import platform
import re
import shutil
import socket
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from mmga.common.errors import UserError


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
def writing(target: Path) -> Iterator[None]:
    """Say of a block that it writes `target`, whatever the files are called meanwhile.

    Raises:
        UserError: something could not be written.
    """
    try:
        yield
    except OSError as error:
        raise _failure(target, error) from error


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
    except OSError as error:
        raise _failure(target, error) from error
    try:
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
    except UserError as error:
        if str(temporary) not in str(error):
            raise
        # The file that the user knows is the one to name.
        raise UserError(str(error).replace(str(temporary), str(target))) from error
    except Exception as error:
        # Writers in other languages (safetensors, HDF5) spell the error of the system out.
        if _reason(error) is None:
            raise
        raise _failure(target, error) from error
    finally:
        _remove(temporary)


@contextlib.contextmanager
def atomic_table(path: str | os.PathLike[str]) -> Iterator[io.TextIOWrapper]:
    """Yield a text file for records, in UTF-8 on every machine; otherwise as `atomic_path`.

    Names of files that are no text are written with escapes.
    """
    with (
        atomic_path(path) as temporary,
        temporary.open("w", encoding="utf-8", errors="backslashreplace", newline="") as file,
    ):
        yield file


class _Steady(io.FileIO):
    """A file that keeps its first error."""

    error: OSError | None = None

    def write(self, data: Any) -> int:
        """Write all of `data`, or nothing after an error."""
        view = memoryview(data).cast("B")
        done = 0
        try:
            while self.error is None and done < len(view):
                done += super().write(view[done:]) or 0
        except OSError as error:
            self.error = error
        return len(view)

    def truncate(self, size: int | None = None) -> int:
        """Change the size, unless there was an error."""
        try:
            return super().truncate(size)
        except OSError as error:
            self.error = self.error or error
            return size or 0


@contextlib.contextmanager
def steady_file(path: str | os.PathLike[str]) -> Iterator[io.FileIO]:
    """Yield a new file for a library that ends the process where it cannot write (HDF5, torch).

    Raises:
        OSError: when the block ends, where something could not be written in it.
    """
    with _Steady(path, "w+") as file:
        yield file
        if file.error is not None:
            raise file.error


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


def read_json_object(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Return the object that a JSON file holds.

    Raises:
        ValueError: it cannot be read, is no JSON, or holds something else.
    """
    try:
        found = json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(error.strerror or str(error)) from error
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
    if not isinstance(found, dict):
        raise ValueError(f"expected names with values, found {type(found).__name__}")
    return found


def sha256_of(path: str | os.PathLike[str], read: Callable[[int], None] | None = None) -> str:
    """Return the SHA-256 of a file's content, in hexadecimal digits.

    Args:
        path: the file; of a large one only a piece is in memory.
        read: called with the number of bytes of each piece.
    """
    digest = hashlib.sha256()  # hashlib.file_digest begins with Python 3.11
    with open(path, "rb") as file:
        while piece := file.read(1 << 24):
            digest.update(piece)
            if read is not None:
                read(len(piece))
    return digest.hexdigest()


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
