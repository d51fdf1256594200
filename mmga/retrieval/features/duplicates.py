"""Gallery items whose features equal a query's: the same image on both sides, as a rule."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from mmga.common.arrays import among
from mmga.retrieval.features.sharded_matrix import ShardedMatrix

_BLOCK = 4096


def duplicated_items(
    query: ShardedMatrix, query_norms: Tensor, gallery: ShardedMatrix, gallery_norms: Tensor
) -> np.ndarray:
    """Return the gallery rows that equal a query row value by value, ascending int64.

    Equal rows have equal norms, which are known in float64: few others have to be compared.

    Args:
        query: query features.
        query_norms: squared norms, float64 [Q].
        gallery: gallery features.
        gallery_norms: float64 [G].
    """
    items = np.flatnonzero(among(gallery_norms.numpy(), query_norms.numpy()))
    # Zero vectors equal each other without being one image.
    items = items[gallery_norms.numpy()[items] > 0]
    if not len(items):
        return items
    candidates = np.flatnonzero(among(query_norms.numpy(), gallery_norms.numpy()[items]))
    known = set()
    for rows in _contents(query, candidates):
        known.update(rows)
    found = [content in known for rows in _contents(gallery, items) for content in rows]
    return items[np.array(found, dtype=bool)]


def _contents(rows: ShardedMatrix, indices: np.ndarray) -> list[list[bytes]]:
    """Return the values of rows as bytes, -0 as 0, block by block."""
    blocks = []
    for start in range(0, len(indices), _BLOCK):
        values = rows.take(torch.from_numpy(indices[start : start + _BLOCK])).cpu() + 0.0
        blocks.append([row.tobytes() for row in values.flatten(1).numpy()])
    return blocks
