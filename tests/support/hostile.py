"""Files that nobody should have to read: damaged, lying about their size, or of wrong types."""

import struct
import zipfile
import zlib

import numpy as np


def damaged(content: bytes, count: int, seed: int):
    """Yield `count` damaged copies: cut off, with bits flipped, or with a header overwritten."""
    draw = np.random.default_rng(seed)
    whole = np.frombuffer(content, np.uint8)
    for number in range(count):
        bad = whole.copy()
        if number % 3 == 0:
            bad = bad[: draw.integers(0, len(bad))]
        else:
            span = len(bad) if number % 3 == 1 else min(len(bad), 400)
            at = draw.integers(0, span, draw.integers(1, 9))
            if number % 2:
                bad[at] ^= (1 << draw.integers(0, 8, len(at))).astype(np.uint8)
            else:
                bad[at] = draw.choice([0, 1, 127, 128, 255], len(at))
        yield bad.tobytes()


def wrong_arrays():
    """Yield a name and arrays of a feature file of six rows, one of which cannot be meant."""
    good = {
        "features": np.random.default_rng(0).standard_normal((6, 4)).astype(np.float32),
        "pids": np.arange(6) % 3,
        "camids": np.arange(6) % 2,
    }
    several = {
        "no dimension": np.array(3.0),
        "three dimensions": np.zeros((6, 4, 2), np.float32),
        "complex numbers": np.zeros((6, 4), complex),
        "truth values": np.ones((6, 4), bool),
        "strings": np.array([["a"] * 4] * 6),
        "bytes": np.array([b"\xff\xfe"] * 6),
        "the other byte order": np.zeros((6, 4), ">f8"),
        "integers": np.zeros((6, 4), np.int64),
        "nothing": np.zeros((6, 0), np.float32),
        "records": np.zeros(6, [("a", "i4")]),
        "objects": np.array([{}] * 6, object),
        "too few rows": np.zeros((3, 4), np.float32),
        "huge numbers": np.full((6, 4), 1e300),
    }
    for what, array in several.items():
        for name in ("features", "pids", "camids"):
            if (what, name) != ("huge numbers", "features"):  # which evaluation refuses
                yield f"{name}: {what}", {**good, name: array}
    for name in ("pids", "camids"):
        yield f"{name}: dates", {**good, name: np.zeros(6, "M8[s]")}
        yield f"{name}: infinity", {**good, name: np.full(6, np.inf)}


def npy_header(shape, descr="<f4"):
    """Return the header of a .npy array."""
    text = f"{{'descr': '{descr}', 'fortran_order': False, 'shape': {shape!r}, }}\n".encode()
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text


def mat_header():
    """Return the header of a MATLAB file of version 5."""
    return b"MATLAB 5.0".ljust(124) + b"\0\1IM"


def compressed_mat(content: bytes) -> bytes:
    """Return a MATLAB file of version 5 with every variable compressed."""
    packed, place = content[:128], 128
    while place < len(content):
        size = 8 + struct.unpack("<I", content[place + 4 : place + 8])[0]
        variable = zlib.compress(content[place : place + size])
        packed += struct.pack("<II", 15, len(variable)) + variable
        place += size
    return packed


def zipped(path, members, **settings):
    """Write a zip archive of named bytes."""
    with zipfile.ZipFile(path, "w", **settings) as archive:
        for name, content in members.items():
            archive.writestr(name, content)


def huge_files(folder):
    """Write small files that declare arrays of up to 4 TB; yield them."""
    shapes = [(10**12, 1), (10**6, 10**6), (2**62, 8), (-1, 4), (10**18, 0, 10**18)]
    for number, shape in enumerate(shapes):
        path = folder / f"{number}.npz"
        zipped(path, {"features.npy": npy_header(shape) + bytes(64)})
        yield path
        path = folder / str(number)
        path.mkdir()
        (path / "features.npy").write_bytes(npy_header(shape) + bytes(64))
        yield path
    path = folder / "packed.npz"
    zipped(
        path, {"pids.npy": npy_header((10**10,)) + bytes(10**5)}, compression=zipfile.ZIP_DEFLATED
    )
    yield path
    for number, (length, header) in enumerate(
        [
            (2**62, b"{}"),
            (10**9, b"{}"),
            (None, b'{"features":{"dtype":"F32","shape":[1000000000000],"data_offsets":[0,64]}}'),
            (None, b'{"features":{"dtype":"F32","shape":[16],"data_offsets":[0,4000000000000]}}'),
        ]
    ):
        path = folder / f"{number}.safetensors"
        path.write_bytes(struct.pack("<Q", length or len(header)) + header + bytes(64))
        yield path
    flags = struct.pack("<IIII", 6, 8, 6, 0)
    shape = struct.pack("<IIii", 5, 8, 1 << 30, 1 << 30)
    name = struct.pack("<II8s", 1, 8, b"features")
    for number, variable in enumerate(
        [
            struct.pack("<II", 14, 0xFFFFFFF8),
            struct.pack("<II", 14, 64) + flags + shape + name + struct.pack("<II", 9, 0xFFFFFFF0),
            struct.pack("<II", 15, 16) + zlib.compress(struct.pack("<II", 14, 0xFFFFFFF0)),
        ]
    ):
        path = folder / f"{number}.mat"
        path.write_bytes(mat_header() + variable + bytes(64))
        yield path


def huge_hdf5(folder, h5py):
    """Write HDF5 files that declare arrays that they do not hold; yield them."""
    for name, settings in {
        "whole": {},
        "chunks": {"chunks": (1000, 1000)},
        "packed": {"chunks": (1000, 1000), "compression": "gzip"},
    }.items():
        for suffix in (".h5", ".mat"):
            path = folder / f"{name}{suffix}"
            with h5py.File(path, "w") as file:
                file.create_dataset("features", (10**6, 10**6), np.float32, **settings)
                file["pids"] = np.arange(10)
            yield path
