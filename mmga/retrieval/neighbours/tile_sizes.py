"""Rows and columns of the square tiles of a neighbour search."""

from __future__ import annotations

import torch

from mmga.retrieval.tiles import placement

TILE = 512
"""Rows and columns of every tile on the CPU, padded with zero vectors at the end of a set: products
of one shape give the same bits whatever the number of vectors, tiles or threads. 1 MiB of float32,
which stays in the cache between the product and the passes over it."""

DEVICE_TILE = 4096
"""The most of both on devices other than the CPU, which smaller products leave idle."""

_LEAST_DEVICE_TILE, _BLOCKS = 1024, 8


def tile_on(device: torch.device, count: int, dimension: int) -> int:
    """Return the rows and columns of tiles over `count` vectors on a device.

    On the CPU `TILE`. Elsewhere an eighth of the vectors, since tiles on the diagonal hold every
    pair twice, in steps of 128, as products are cut there, and at most `DEVICE_TILE`; less on a
    device where a tile and three blocks of features would take more than a sixteenth.
    """
    if device.type == "cpu":
        return TILE
    room = placement.total_bytes(device) // 16
    most = DEVICE_TILE
    while most > _LEAST_DEVICE_TILE and 4 * most * (most + 3 * dimension) > room:
        most //= 2
    blocks = max(_BLOCKS, -(-count // most))
    return min(most, max(_LEAST_DEVICE_TILE, -(-count // blocks // 128) * 128))


def tile_for(count: int) -> int:
    """Return the tile of at most about twice `TILE` rows that fits this number of vectors best.

    For a set on its own: fewer and larger products than with `TILE`, and less padding.
    """
    tiles = -(-count // (2 * TILE))
    return max(64, -(-count // tiles // 16) * 16)


def upper_triangle(count: int, size: int) -> list[tuple[int, int]]:
    """Return where the tiles on and above the diagonal begin, those on it first.

    Tiles on the diagonal bound what the others need to insert.
    """
    starts = range(0, count, size)
    places = [(own, own) for own in starts]
    return places + [(own, other) for own in starts for other in range(own + size, count, size)]
