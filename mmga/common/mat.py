"""MATLAB files of version 5 (and 4): numbers, text, and cells of them, without other packages.

Every length is checked before it is believed, so that a damaged file ends in a sentence.
"""

from __future__ import annotations

import math
import os
import struct
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

import numpy as np

from mmga.common.errors import UserError
from mmga.common.memory import check_declared

LIMIT = (1 << 32) - 1
"""Bytes of the largest variable: the format counts them in 32 bits."""

Value = np.ndarray | list[Any]
"""An array of numbers or of text (unicode), or a cell as a list of values, columns first."""

# Element types and array classes of the format, as it numbers them.
_STORED = {1: "i1", 2: "u1", 3: "i2", 4: "u2", 5: "i4", 6: "u4", 7: "f4", 9: "f8"}
_STORED |= {12: "i8", 13: "u8", 16: "u1", 17: "u2", 18: "u4"}  # the last three are UTF-8, -16, -32
_INT8, _INT32, _UINT32, _MATRIX, _COMPRESSED, _UTF8 = 1, 5, 6, 14, 15, 16
_CELL, _CHAR = 1, 4
_CLASSES = {6: "f8", 7: "f4", 8: "i1", 9: "u1", 10: "i2", 11: "u2", 12: "i4", 13: "u4"}
_CLASSES |= {14: "i8", 15: "u8"}
_OTHERS = {2: "a struct", 3: "an object", 5: "a sparse matrix", 16: "a function", 17: "an object"}
_COMPLEX, _LOGICAL = 8, 2
_DEEPEST = 16  # cells within cells
_BLOCK = 1 << 24  # bytes that are turned from rows to columns at once


class _Refused(Exception):
    """A sound variable of a kind that is not read."""


def read(path: str | os.PathLike[str], names: tuple[str, ...] | None = None) -> dict[str, Value]:
    """Return the variables of a file by name, or those of `names` alone.

    Numbers have the type that MATLAB shows (logical ones uint8) and this machine's byte order. Text
    [R, L] is R strings without the blanks at their ends.

    Raises:
        UserError: the file is damaged, or a variable is complex, sparse, a struct or an object.
    """
    try:
        size = os.path.getsize(path)
        if size < 20:
            raise ValueError(f"it has {size} bytes")
        data = np.memmap(path, np.uint8, "r").data
        return _read_4(data, names) if 0 in bytes(data[:4]) else _read_5(data, names)
    except (_Refused, MemoryError) as error:
        raise UserError(f"{path}: {error}") from None
    except (ValueError, zlib.error, struct.error, OSError, OverflowError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{path} could not be read as a MATLAB file: {reason}") from error


def _refuse(name: str, found: str) -> NoReturn:
    raise _Refused(
        f"{name or 'a variable'}: expected numbers or strings, found {found}; save it as a plain "
        "array"
    )


class _Elements:
    """Data elements one after the other: a type and its bytes."""

    def __init__(self, data: memoryview, order: str) -> None:
        self.data, self.order, self.place = data, order, 0

    def __bool__(self) -> bool:
        return self.place < len(self.data)

    def next(self, *expected: int) -> tuple[int, memoryview]:
        """Return type and bytes of the next element.

        Raises:
            ValueError: it is of none of the `expected` types, or ends beyond the data.
        """
        kind, size = struct.unpack(f"{self.order}II", self._bytes(8))
        if kind >> 16:  # a small element: both in one word, the data in the next
            kind, size = kind & 0xFFFF, kind >> 16
            if size > 4:
                raise ValueError(f"a small element of {size} bytes")
            begin = self.place - 4
            content = self.data[begin : begin + size]
        else:
            content = self._bytes(size)
            if kind != _COMPRESSED:
                self.place = min(self.place + -size % 8, len(self.data))
        if expected and kind not in expected:
            raise ValueError(f"an element of type {kind} in the wrong place")
        return kind, content

    def integers(self, *expected: int) -> list[int]:
        """Return the integers of the next element."""
        kind, content = self.next(*expected)
        return [int(value) for value in _numbers(kind, content, self.order)]

    def _bytes(self, size: int) -> memoryview:
        if size > len(self.data) - self.place:
            raise ValueError(
                f"it ends within an element: expected {size} bytes more, found "
                f"{len(self.data) - self.place}"
            )
        self.place += size
        return self.data[self.place - size : self.place]


def _numbers(kind: int, content: memoryview, order: str) -> np.ndarray:
    if kind not in _STORED:
        raise ValueError(f"an element of unknown type {kind}")
    stored = np.dtype(f"{order}{_STORED[kind]}")
    if len(content) % stored.itemsize:
        raise ValueError(f"{len(content)} bytes are no numbers of {stored.itemsize} bytes")
    return np.frombuffer(content, stored)


def _read_5(data: memoryview, names: tuple[str, ...] | None) -> dict[str, Value]:
    order = {b"IM": "<", b"MI": ">"}.get(bytes(data[126:128]))
    if order is None:
        raise ValueError("its header names no byte order")
    found: dict[str, Value] = {}
    elements = _Elements(data[128:], order)
    while elements:
        kind, content = elements.next(_MATRIX, _COMPRESSED)
        if kind == _COMPRESSED:
            content = _decompressed(content, order)
        name, value = _matrix(content, order, names)
        if name and not name.startswith("__") and value is not None:  # others are MATLAB's own
            found[name] = value
    return found


def _decompressed(packed: memoryview, order: str) -> memoryview:
    """Return the bytes of a compressed matrix, of which there are as many as it says."""
    stream = zlib.decompressobj()
    kind, size = struct.unpack(f"{order}II", stream.decompress(packed, 8))
    if kind != _MATRIX:
        raise ValueError(f"a compressed element of type {kind}")
    check_declared(size, len(packed), compressed=True)
    content = stream.decompress(stream.unconsumed_tail, size) if size else b""
    stream.decompress(stream.unconsumed_tail, 8)  # to the checksum behind the data
    if len(content) != size or not stream.eof:
        raise ValueError("a compressed variable ends early")
    return memoryview(content)


def _matrix(
    content: memoryview, order: str, names: tuple[str, ...] | None = None, depth: int = 0
) -> tuple[str, Value | None]:
    """Return name and value of a matrix; None where the name is not among `names`."""
    if not len(content):
        return "", np.zeros((0, 0))  # an empty cell
    parts = _Elements(content, order)
    flags = parts.integers(_UINT32)
    shape = parts.integers(_INT32, _UINT32)
    name = bytes(parts.next(_INT8, 2, _UTF8)[1]).decode("utf-8", "replace")
    if names is not None and not depth and name not in names:
        return name, None
    if not flags or not 1 <= len(shape) <= 32 or min(shape) < 0:
        raise ValueError(f"{name}: impossible shape {shape[:8]}")
    kind, marks = flags[0] & 0xFF, flags[0] >> 8
    if marks & _COMPLEX:
        _refuse(name, "complex numbers")
    if kind == _CELL:
        return name, _cell(parts, math.prod(shape), depth)
    if kind == _CHAR:
        return name, _text(parts, name, shape)
    if kind not in _CLASSES:
        if name.startswith("__") or not (name or depth):
            return "", None
        _refuse(name, _OTHERS.get(kind, f"an array of the unknown class {kind}"))
    stored = _numbers(*parts.next(), order)
    wanted = np.dtype(_CLASSES[kind])
    if stored.dtype.kind == "f" and wanted.kind != "f":
        raise ValueError(f"{name}: fractions in an array of integers")
    return name, _shaped(stored, name, shape, wanted)


def _shaped(
    stored: np.ndarray, name: str, shape: list[int], kind: np.dtype[Any] | None = None
) -> np.ndarray:
    if math.prod(shape) != len(stored):
        raise ValueError(f"{name}: {len(stored)} numbers for an array of shape {shape[:8]}")
    # A copy in rows: features are read so, and the file is let go.
    native = kind or stored.dtype.newbyteorder("=")
    return stored.reshape(shape, order="F").astype(native, order="C")


def _cell(parts: _Elements, count: int, depth: int) -> list[Any]:
    if depth >= _DEEPEST:
        raise ValueError(f"cells within cells, more than {_DEEPEST} deep")
    if count > (len(parts.data) - parts.place) // 8:
        raise ValueError(f"a cell of {count} values in too few bytes")
    return [_matrix(parts.next(_MATRIX)[1], parts.order, None, depth + 1)[1] for _ in range(count)]


def _text(parts: _Elements, name: str, shape: list[int]) -> np.ndarray:
    """Return the rows of a char array as strings."""
    rows = 0 if 0 in shape else shape[0]
    if not rows:
        return np.zeros(0, np.str_)
    kind, content = parts.next()
    units = _numbers(kind, content, parts.order)
    if kind in (_INT8, 2, _UTF8):
        text = bytes(content).decode("utf-8" if kind == _UTF8 else "latin-1", "replace")
        if len(text) != math.prod(shape) and len(content) == math.prod(
            shape
        ):  # Octave counts bytes
            matrix = units.view(np.uint8).reshape(shape[0], -1, order="F")
            return _stripped(bytes(row).decode("utf-8", "replace") for row in matrix)
        if rows == 1:
            return np.asarray([text], np.str_)
        units = np.array([ord(one) for one in text], np.uint32)
    if units.dtype.kind not in "iu" or len(units) != math.prod(shape):
        raise ValueError(f"{name}: {len(units)} characters for text of shape {shape[:8]}")
    matrix = units.reshape(shape[0], -1, order="F").astype(np.uint32)
    if matrix.max(initial=0) > 0x10FFFF:
        raise ValueError(f"{name}: no text")
    text_rows = [
        # Halves of characters beyond 65,535 are put together.
        "".join(map(chr, row)).encode("utf-16", "surrogatepass").decode("utf-16", "replace")
        for row in matrix.tolist()
    ]
    # Rows of one length are padded, a single one is not.
    return _stripped(text_rows) if rows > 1 else np.asarray(text_rows, np.str_)


def _stripped(rows: Any) -> np.ndarray:
    return np.asarray([row.rstrip(" \0") for row in rows], np.str_)


def _read_4(data: memoryview, names: tuple[str, ...] | None) -> dict[str, Value]:
    found: dict[str, Value] = {}
    place = 0
    while place < len(data):
        if len(data) - place < 20:
            raise ValueError("it ends within a header")
        header = bytes(data[place : place + 20])
        order = "<" if 0 <= struct.unpack("<i", header[:4])[0] < 5000 else ">"
        kind, rows, columns, imaginary, length = struct.unpack(f"{order}5i", header)
        precision, sort = kind // 10 % 10, kind % 10
        if not 0 <= kind < 5000 or kind // 100 % 10 or precision > 5 or min(rows, columns) < 0:
            raise ValueError("it has no header of a MATLAB file")
        if not 0 < length <= 256:
            raise ValueError(f"a name of {length} characters")
        stored = np.dtype(f"{order}{('f8', 'f4', 'i4', 'i2', 'u2', 'u1')[precision]}")
        size = rows * columns * stored.itemsize
        begin = place + 20 + length
        place = begin + size * (2 if imaginary else 1)
        if place > len(data):
            raise ValueError("it ends within a variable")
        name = bytes(data[begin - length : begin]).split(b"\0")[0].decode("latin-1")
        if names is not None and name not in names:
            continue
        if imaginary or sort > 1:
            _refuse(name, "complex numbers" if imaginary else "a sparse matrix")
        values = _shaped(np.frombuffer(data[begin : begin + size], stored), name, [rows, columns])
        if sort == 1:
            codes = np.clip(np.nan_to_num(values), 0, 255).astype(int)
            values = _stripped("".join(map(chr, row)) for row in codes.tolist())
        found[name] = values
    return found


def write(path: str | os.PathLike[str], arrays: Mapping[str, np.ndarray]) -> None:
    """Write numbers as matrices and strings [N] as cells of text; a vector is one row.

    Raises:
        UserError: an array is of another kind, or passes the format's 4 GiB (see `check_size`).
        OSError: the file cannot be written.
    """
    with Path(path).open("wb") as file:
        file.write(b"MATLAB 5.0 MAT-file, written by mmga".ljust(116) + bytes(8) + b"\0\1IM")
        for name, array in arrays.items():
            shape = (1, *array.shape) if array.ndim < 2 else array.shape
            shape = (1, 1) if not array.ndim else shape
            if array.dtype.kind in "US":
                texts = [_char(str(one)) for one in array.reshape(shape).ravel(order="F")]
                check_size(path, name, sum(map(len, texts)))
                _write_matrix(file, _CELL, 0, shape, name, sum(map(len, texts)), iter(texts))
                continue
            logical = array.dtype == np.bool_
            plain = array.astype(np.uint8) if logical else array
            kind = plain.dtype.newbyteorder("<")
            classes = [code for code, stored in _CLASSES.items() if stored == kind.str[1:]]
            if not classes:
                raise UserError(f"{path}: {name}: MATLAB has no numbers of type {array.dtype}")
            check_size(path, name, plain.nbytes)
            stored = next(code for code, one in _STORED.items() if one == kind.str[1:])
            tag = struct.pack("<II", stored, plain.nbytes)
            blocks = _columns(plain.reshape(shape).astype(kind, copy=False), tag)
            size = 8 + plain.nbytes + -plain.nbytes % 8
            flags = _LOGICAL if logical else 0
            _write_matrix(file, classes[0], flags, shape, name, size, blocks)


def check_size(path: str | os.PathLike[str], name: str, size: int) -> None:
    """Refuse an array of `size` bytes that a file cannot hold.

    Raises:
        UserError: it is larger than 4 GiB, less a header.
    """
    if size > LIMIT - 4096:
        raise UserError(
            f"{path}: {name} takes {size / 2**30:.1f} GiB, and a .mat file of version 5 holds less "
            "than 4 GiB in one array; write .npz, .h5 or a folder of .npy files"
        )


def _columns(array: np.ndarray, tag: bytes) -> Iterator[Any]:
    """Yield the element of an array: its tag, its numbers column by column, padding."""
    yield tag
    turned = array.T
    step = max(1, _BLOCK * len(turned) // max(array.nbytes, 1))
    for begin in range(0, len(turned), step):
        yield np.ascontiguousarray(turned[begin : begin + step]).data
    yield bytes(-array.nbytes % 8)


def _write_matrix(
    file: BinaryIO,
    kind: int,
    flags: int,
    shape: tuple[int, ...],
    name: str,
    size: int,
    content: Iterator[Any],
) -> None:
    head = _head(kind, flags, shape, name)
    file.write(struct.pack("<II", _MATRIX, len(head) + size) + head)
    for block in content:
        file.write(block)


def _head(kind: int, flags: int, shape: tuple[int, ...], name: str) -> bytes:
    dimensions = struct.pack(f"<{len(shape)}i", *shape)
    head = struct.pack("<IIII", _UINT32, 8, kind | flags << 8, 0)
    return head + _element(_INT32, dimensions) + _element(_INT8, name.encode())


def _element(kind: int, content: bytes) -> bytes:
    return struct.pack("<II", kind, len(content)) + content + bytes(-len(content) % 8)


def _char(text: str) -> bytes:
    """Return a string as a matrix element, one row of UTF-8."""
    shape = (1, len(text)) if text else (0, 0)
    body = _head(_CHAR, 0, shape, "") + _element(_UTF8, text.encode("utf-8", "replace"))
    return struct.pack("<II", _MATRIX, len(body)) + body
