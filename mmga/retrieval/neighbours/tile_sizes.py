"""Rows and columns of the square tiles of a neighbour search, and the memory that it takes."""

from __future__ import annotations

import torch

from mmga.common.errors import UserError
from mmga.common.memory import spell
from mmga.retrieval.bounds.planner import takes_int8
from mmga.retrieval.features.vectors import VectorSet
from mmga.retrieval.neighbours.one_look import look_bytes
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


# Rows of a tile of the refinement, in tiles, and bytes of a pair of it where all are refined.
_TILE_ROWS, _PAIR_BYTES = 4, 48
# Pairs of lists whose distances are computed at once, and numbers of vectors copied for that.
_LISTED, _COPIED = 1 << 20, 1 << 22
# Vectors of which the undecided pairs are counted beforehand, vectors these are paired with, and
# bytes of a pair.
_PILOT, _OTHERS, _PILOT_PAIR = 48, 8192, 28


def search_bytes(rows: VectorSet, columns: VectorSet, k: int) -> int:
    """Return the bytes beyond the features with which a search can do, its lists included.

    An upper estimate, whatever the tiles: of approximations (at most a byte a number, twice while
    they are put together), of candidates with what orders them, and of single tiles. Without a
    bound, or with more to spare, a set that is searched in itself takes more to meet each pair once
    (`one_look.look_bytes`).

    Args:
        rows: vectors whose neighbours are wanted.
        columns: vectors among which they are searched; perhaps `rows` itself.
        k: neighbours wanted.
    """
    width, count = rows.dimension, len(columns)
    if takes_int8(width, rows.device):
        return look_bytes(rows, columns, k)
    vectors = len(rows) + (0 if rows is columns else count)
    sides = vectors * (12 + 2 * (width + 24))
    lists = len(rows) * (60 * (2 * k + 16) + 16 * k)
    tile = max(TILE, tile_for(count)) if rows is columns else TILE
    height, across = min(_TILE_ROWS * tile, len(rows)), min(tile, count)
    sample = min(count, max(1024, 2 * k))
    tiles = height * across * (4 + _PAIR_BYTES) + 6 * width * (height + across)
    tiles += min(tile, len(rows)) * sample * 4 + 4 * width * sample + 8 * TILE * width
    listed = min(_LISTED, len(rows) * k)
    pairs = 40 * listed + (0 if rows.in_place and columns.in_place else 8 * _COPIED)
    return (
        sides + lists + tiles + pairs + _PILOT_PAIR * min(_PILOT, len(rows)) * min(count, _OTHERS)
    )


def check_memory(memory: int | None, needed: int, what: str) -> int | None:
    """Return what is left of a bound on memory, or raise a `UserError` that says what is needed.

    Args:
        memory: bytes that may be allocated, or None.
        needed: bytes that it takes.
        what: takes them.
    """
    if memory is None:
        return None
    if memory < needed:
        raise UserError(
            f"memory: {spell(memory)} does not suffice for {what}; give at least {spell(needed)}"
        )
    return memory - needed
