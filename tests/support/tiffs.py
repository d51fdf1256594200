"""TIFF files of depths that Pillow reads and does not write."""

import struct

import numpy as np


def write_tiff(path, values, bits, white_is_zero=False):
    """Write grey integers [H, W] of 2, 4, 8 or 16 bits, uncompressed."""
    height, width = values.shape
    stored = (1 << bits) - 1 - values if white_is_zero else values
    if bits == 16:
        data = stored.astype("<u2").tobytes()
    else:
        planes = np.unpackbits(stored.astype(np.uint8)[..., None], axis=-1)[..., 8 - bits :]
        data = np.packbits(planes.reshape(height, -1), axis=-1).tobytes()
    sizes = {256: width, 257: height, 258: bits, 259: 1, 262: int(not white_is_zero)}
    tags = {**sizes, 273: 8, 277: 1, 278: height, 279: len(data)}
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items())
    path.write_bytes(
        b"II*\0"
        + struct.pack("<I", 8 + len(data))
        + data
        + struct.pack("<H", len(tags))
        + entries
        + bytes(4)
    )
