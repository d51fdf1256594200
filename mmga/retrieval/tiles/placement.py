"""Choose the device that ranks, and copy features to it where they fit."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from mmga.common.memory import spell
from mmga.retrieval.features.sharded_matrix import ShardedMatrix

# Of the room on a device so much may go to features; tiles, lists and neighbours take the rest.
FEATURE_SHARE = 0.75


def total_bytes(device: torch.device) -> int:
    """Return the memory of a CUDA device, free or not."""
    return int(torch.cuda.get_device_properties(device).total_memory)


def free_bytes(device: torch.device) -> int:
    """Return what can still be allocated on a CUDA device, torch's own reserve included."""
    reserve = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return int(torch.cuda.mem_get_info(device)[0]) + reserve


@dataclass(frozen=True, slots=True)
class Placement:
    """Both sides as they are ranked.

    Attributes:
        query: rows of the queries.
        gallery: rows of the gallery, the same object where it is one set.
        memory: bytes that may still be allocated, or None.
        room: bytes by which tiles are sized on a device: `memory` as it was given, or all that the
            device has, not what is free on it. A BLAS may round by the shape of a tile, and ranks
            must not depend on what else runs. None on the CPU.
        note: what was done to get there, None where nothing was.
    """

    query: ShardedMatrix
    gallery: ShardedMatrix
    memory: int | None
    room: int | None
    note: str | None


def place(
    query: ShardedMatrix, gallery: ShardedMatrix, device: torch.device, memory: int | None
) -> Placement:
    """Copy features to a device where they fit it; else they stay and are streamed in blocks.

    They fit a CUDA device if they take at most `FEATURE_SHARE` of what is free on it, and of
    `memory` where that is given. The CPU takes all.

    Args:
        query: rows of the queries.
        gallery: rows of the gallery.
        device: where they are ranked.
        memory: bytes that may be allocated, or None.
    """
    sides = [query] if gallery is query else [query, gallery]
    size = sum(rows.nbytes for rows in sides if rows.device != device)
    room = None
    if device.type == "cuda":
        room = total_bytes(device) if memory is None else memory
    if size == 0:
        return Placement(query, gallery, memory, room, None)
    note = f"{spell(size)} of features were copied to {device}"
    if device.type == "cuda":
        free = free_bytes(device)
        most = free if memory is None else min(memory, free)
        bound = f"{FEATURE_SHARE:.0%} of the {spell(most)} that "
        bound += "are free there" if most == free else "memory allows"
        if size > FEATURE_SHARE * most:
            note = f"{spell(size)} of features exceed {bound} and were streamed to {device}"
            return Placement(query, gallery, memory, room, note)
        note += f", within {bound}"
        memory = None if memory is None else memory - size
    near = {id(rows): rows.to(device) for rows in sides}
    return Placement(near[id(query)], near[id(gallery)], memory, room, note)
