"""Features averaged with their neighbours by several processes: the cases, and what one gets."""

import contextlib
from unittest import mock

import numpy as np
import shared_neighbours
from shared_neighbours import NUM_ITEMS, NUM_QUERY, WIDTH

import mmga
from mmga.retrieval.neighbours import knn, shared_set

# Arguments of both functions, `kind` of the sets, and the tiles that searches are made of.
CASES = {
    "random": {},
    "8-bit tiles": {"tiles": "int8", "memory": "2G"},  # of sets of more than one vector
    "of many": {"neighbours": 200, "alpha": 0.0},
    "one": {"neighbours": 1},
    "none": {"neighbours": 0},
    "duplicates": {"kind": "duplicates", "neighbours": 20},
    "near ties": {"kind": "near ties", "neighbours": 7, "alpha": 1.0},
    "zeros": {"kind": "zeros"},
    "short rows": {"kind": "short"},
    "16 bits": {"kind": "half"},
    "8 bits": {"kind": "int8"},
}


def averaged(group, rank: int, name: str, ends: list[int]) -> tuple[np.ndarray, np.ndarray]:
    """Return queries and items that are averaged with their nearest items.

    Args:
        group: of torch.distributed, or None for one process.
        rank: of this process.
        name: of the case.
        ends: where each process' items end.
    """
    options = dict(CASES[name])
    query, items = shared_neighbours.sides(options.pop("kind", ""))
    first, last = (0, NUM_ITEMS) if group is None else [0, *ends][rank : rank + 2]
    own = shared_neighbours.part(items, first, last)
    with contextlib.ExitStack() as changed:
        if options.pop("tiles", None):
            changed.enter_context(mock.patch.object(knn, "cheapest_tiles", shared_neighbours.int8))
        changed.enter_context(mock.patch.object(shared_set, "BLOCK", 4 * WIDTH * 700))
        asked = mmga.expand_queries(query, own, group=group, **options)
        wider = mmga.augment_gallery(own, group=group, **options)
    assert asked.shape == (NUM_QUERY, WIDTH) and wider.shape == (last - first, WIDTH)
    return asked.numpy(), wider.numpy()


def unlike(group, rank: int, what: str, side: str) -> object:
    """Average where the last process differs from the others, as `what` says."""
    query, own, odd = shared_neighbours.spoiled(group, rank, what)
    options = {"group": group}
    if what == "alpha" and odd:
        options["alpha"] = 2.0
    elif what == "too many":
        options["neighbours"] = NUM_ITEMS + 1
    elif what == "memory" and odd:
        options["memory"] = "1M"
    elif what == "float32":
        options["exact"] = "float32"
    if side == "gallery":
        return mmga.augment_gallery(own, **options).tolist()
    return mmga.expand_queries(query, own, **options).tolist()
