"""MATLAB files of version 5 and 4: read as SciPy reads them, written so that it does."""

import struct
import sys

import numpy as np
import pytest

from mmga.common import mat
from mmga.common.errors import UserError
from mmga.retrieval.features import Features, containers, load_features


def arrays():
    draw = np.random.default_rng(0)
    found = {
        name: (draw.standard_normal((5, 3)) * 50).astype(name)
        for name in ("f8", "f4", "i1", "u1", "i2", "u2", "i4", "u4", "i8", "u8")
    }
    found |= {
        "three": draw.random((2, 3, 4)),
        "one": np.array([[7.0]]),
        "row": np.arange(9.0)[None],
    }
    found |= {"whole": np.arange(6.0).reshape(3, 2), "none": np.zeros((0, 4)), "yes": np.eye(2) > 0}
    return found


def words():
    cells = np.empty((1, 4), object)
    cells[0] = ["a/1.png", "", "é😀.png", "b"]
    return cells


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("version", ["4", "5"])
def test_read_as_by_scipy(tmp_path, compressed, version):
    scipy_io = pytest.importorskip("scipy.io")
    given = arrays()
    if version == "4":
        given = {name: given[name] for name in ("f8", "f4", "i2", "u1", "one", "row")}
        given["text"] = np.array(["abc", "de "])
    else:
        given |= {
            "words": words(),
            "text": np.array(["abc", "de"]),
            "cells": np.empty((2, 2), object),
        }
        given["cells"][:] = [[np.eye(2), np.zeros((1, 3))], [np.ones((3, 1)), np.zeros((0, 0))]]
    scipy_io.savemat(tmp_path / "f.mat", given, format=version, do_compression=compressed)
    found = mat.read(tmp_path / "f.mat")
    wanted = scipy_io.loadmat(tmp_path / "f.mat", mat_dtype=True)
    assert set(found) == set(given)
    for name in given:
        value, other = found[name], wanted[name]
        if name == "words":
            assert [str(cell[0]) if len(cell) else "" for cell in value] == words()[0].tolist()
        elif name == "cells":
            for one, two in zip(value, other.ravel(order="F"), strict=True):
                np.testing.assert_array_equal(one, two)
        elif name == "text":
            assert value.tolist() == ["abc", "de"]
        else:
            np.testing.assert_array_equal(value, other)
            assert value.dtype.isnative and value.flags.c_contiguous
            # MATLAB's logical is read as the bytes that it is.
            assert value.dtype == (np.uint8 if name == "yes" else other.dtype)


def test_written_as_scipy_reads(tmp_path):
    scipy_io = pytest.importorskip("scipy.io")
    given = {**arrays(), "words": np.array(["a/1.png", "", "é😀.png", "b"])}
    given["large"] = np.random.default_rng(0).standard_normal((3000, 900))  # in several blocks
    mat.write(tmp_path / "f.mat", given)
    for found in (mat.read(tmp_path / "f.mat"), scipy_io.loadmat(tmp_path / "f.mat")):
        for name in arrays():
            np.testing.assert_array_equal(found[name], given[name])
        np.testing.assert_array_equal(found["large"], given["large"])
        names = (
            [str(cell[0]) if len(cell) else "" for cell in np.ravel(found["words"])]
            if not (isinstance(found["words"], list))
            else [str(cell[0]) if len(cell) else "" for cell in found["words"]]
        )
        assert names == given["words"].tolist()


def element(kind, content, order="<"):
    return struct.pack(f"{order}II", kind, len(content)) + content + bytes(-len(content) % 8)


def small(kind, content, order="<"):
    return struct.pack(f"{order}I", kind | len(content) << 16) + content.ljust(4, b"\0")


def matrix(shape, data, name=b"x", order="<", flags=6):
    return element(
        14,
        element(6, struct.pack(f"{order}II", flags, 0), order)
        + element(5, struct.pack(f"{order}{len(shape)}i", *shape), order)
        + small(1, name, order)
        + data,
        order,
    )


def written(path, content, order="<"):
    path.write_bytes(
        b"MATLAB 5.0".ljust(124) + (b"\0\1IM" if order == "<" else b"\1\0MI") + content
    )
    return path


@pytest.mark.parametrize("order", ["<", ">"])
def test_the_other_byte_order_and_small_elements(tmp_path, order):
    """MATLAB stores doubles as the smallest integers that hold them, up to four bytes in a tag."""
    path = written(
        tmp_path / "f.mat", matrix((2, 2), small(2, b"\1\2\3\4", order), order=order), order
    )
    found = mat.read(path)["x"]
    assert found.dtype == np.float64 and found.tolist() == [[1, 3], [2, 4]]
    data = element(3, np.arange(6).astype(f"{order}i2").tobytes(), order)
    path = written(tmp_path / "f.mat", matrix((3, 2), data, order=order, flags=7), order)
    found = mat.read(path)["x"]
    assert found.dtype == np.float32 and found.tolist() == [[0, 3], [1, 4], [2, 5]]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (matrix((2, 2), small(2, b"\1\2\3\4"), flags=6 | 0x800), "x: .* found complex numbers"),
        (matrix((2, 2), small(2, b"\1\2\3\4"), flags=5), "x: .* found a sparse matrix"),
        (matrix((1, 1), b"", flags=2), "x: .* found a struct"),
        (matrix((1 << 30, 1 << 30), small(2, b"\1\2\3\4")), "4 numbers for an array of shape"),
        (matrix((-2, -2), small(2, b"\1\2\3\4")), "impossible shape"),
        (matrix((1 << 30, 4), b"", flags=1), "a cell of 4294967296 values in too few bytes"),
        (struct.pack("<II", 14, 1 << 31), "it ends within an element"),
        (struct.pack("<II", 77, 0), "an element of type 77 in the wrong place"),
        (element(15, b"no stream"), "could not be read as a MATLAB file: Error"),
        (struct.pack("<I", 14 | 9 << 16) + bytes(4), "a small element of 9 bytes"),
    ],
)
def test_what_is_not_read_is_a_sentence(tmp_path, content, said):
    with pytest.raises(UserError, match=said) as caught:
        mat.read(written(tmp_path / "f.mat", content))
    assert str(tmp_path / "f.mat") in str(caught.value)


def test_a_compressed_variable_cannot_declare_what_its_bytes_do_not_hold(tmp_path):
    import zlib

    packed = zlib.compress(struct.pack("<II", 14, 0xFFFFFFF0) + bytes(100))
    content = struct.pack("<II", 15, len(packed)) + packed
    with pytest.raises(UserError, match=r"it declares 4\.0G bytes, but holds"):
        mat.read(written(tmp_path / "f.mat", content))


def test_cells_within_cells_have_an_end(tmp_path):
    content = matrix((1, 1), small(2, b"\1"))
    for _ in range(50):
        content = matrix((1, 1), content, flags=1)
    with pytest.raises(UserError, match="cells within cells"):
        mat.read(written(tmp_path / "f.mat", content))


def test_more_than_four_gigabytes_are_refused(tmp_path):
    rows = np.broadcast_to(np.float32(1), (1 << 20, 1025))  # which takes no memory
    with pytest.raises(UserError, match=r"/f\.mat: features takes 4\.0 GiB, and a \.mat file"):
        containers.write(tmp_path / "f.mat", {"features": rows, "pids": np.arange(3)})
    assert not list(tmp_path.iterdir())


def test_no_other_package_is_needed(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "scipy", None)
    monkeypatch.setitem(sys.modules, "scipy.io", None)
    rows = np.arange(6, dtype=np.float32).reshape(3, 2)
    Features(rows, ["a", "b", "-1"], paths=["x", "y", "z"]).save(tmp_path / "f.mat")
    found = load_features(tmp_path / "f.mat")
    assert found.features.tolist() == rows.tolist()
    assert found.pids.tolist() == [0, 1, -1] and found.paths.tolist() == ["x", "y", "z"]
