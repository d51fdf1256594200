"""Jaccard matrices by several processes: the cases, and what a process returns."""

import contextlib
import errno
import os
from unittest import mock

import numpy as np
import shared_neighbours
from shared_neighbours import NUM_ITEMS, WIDTH

import mmga
from mmga.ops import k_reciprocal as ops
from mmga.retrieval.neighbours import knn, shared_set
from mmga.retrieval.reranking import jaccard, shared_encoding, shared_jaccard

# Arguments of jaccard_distance; `kind` of the set, `tiles` that searches are made of, and whether
# there is no kernel of a prefix filter.
CASES = {
    "all below 1": {},
    "up to a limit": {"max_distance": 0.62},
    "up to a high limit": {"max_distance": 0.95, "variant": "zhong"},
    "duplicates": {"kind": "duplicates", "max_distance": 0.62},
    "duplicates at 0": {"kind": "duplicates", "max_distance": 0, "k1": 8, "metric": "cosine"},
    "near ties": {"kind": "near ties", "variant": "torchreid", "k1": 12},
    "zeros": {"kind": "zeros", "variant": "zhong", "metric": "cosine", "k1": 7},
    "short rows": {"kind": "short", "metric": "cosine", "max_distance": 0.5},
    "no mean": {"k2": 1, "max_distance": 0.4},
    "a mean of many": {"k1": 4, "k2": 15, "max_distance": 0.8},
    "lists of all": {"k1": 400, "max_distance": 0.7},
    "16 bits": {"kind": "half", "max_distance": 0.62},
    "8 bits": {"kind": "int8", "max_distance": 0.62},
    "8-bit tiles": {"tiles": "int8", "variant": "zhong", "max_distance": 0.62},
    "without a prefix filter": {"joins": False, "max_distance": 0.62},
    "a bound on memory": {"memory": "2G"},
}


def rows(group, rank: int, name: str, ends: list[int]) -> tuple[bytes, ...]:
    """Return sizes, columns and values of the rows of a case that this process gets.

    Args:
        group: of torch.distributed, or None for one process.
        rank: of this process.
        name: of the case.
        ends: where each process' items end.
    """
    options = dict(CASES[name])
    _, items = shared_neighbours.sides(options.pop("kind", ""))
    first, last = (0, NUM_ITEMS) if group is None else [0, *ends][rank : rank + 2]
    with contextlib.ExitStack() as changed:
        for owner, attribute, value in (
            (shared_set, "BLOCK", 4 * WIDTH * 130),
            (shared_jaccard, "BLOCK", 12 * 60 * 130),
            *([(knn, "cheapest_tiles", shared_neighbours.int8)] * ("tiles" in options)),
            *([(jaccard, "has_kernel", lambda *names: False)] * ("joins" in options)),
        ):
            changed.enter_context(mock.patch.object(owner, attribute, value))
        options = {key: options[key] for key in options if key not in ("tiles", "joins")}
        matrix = mmga.jaccard_distance(
            shared_neighbours.part(items, first, last), group=group, **options
        )
    assert matrix.shape == (last - first, NUM_ITEMS)
    parts = (matrix.crow_indices().diff(), matrix.col_indices(), matrix.values())
    return tuple(part.numpy().tobytes() for part in parts)


def unlike(group, rank: int, what: str) -> list[int]:
    """Compute distances where the last process differs from the others, as `what` says."""
    _, own, odd = shared_neighbours.spoiled(group, rank, what)
    options = {"group": group}
    if what == "settings":
        options["k1"] = 9 if odd else 30
    elif what == "limit":
        options["max_distance"] = 1
    elif what == "memory" and odd:
        options["memory"] = "10M"
    elif what == "memory of distances" and odd:
        options["memory"] = "1K"
    elif what == "float32":
        options["exact"] = "float32"
    failing = mock.Mock(side_effect=ZeroDivisionError("of all numbers"))
    changes = {
        "memory of distances": (shared_set.SharedSet, "search_bytes", lambda items, k: 0),
        "a bug in the search": (knn, "certified_nearest", failing),
        "a bug in the sets": (shared_encoding, "expanded_sets", failing),
        "a bug in pairs": (shared_set, "exact_pair_keys", failing),
        "a bug in the mean": (shared_encoding, "averaged", failing),
        "a bug in the rows": (ops, "jaccard_rows", failing),
    }
    with contextlib.ExitStack() as changed:
        if odd and what in changes:
            changed.enter_context(mock.patch.object(*changes[what]))
        return mmga.jaccard_distance(own, **options).col_indices().tolist()


def written(group, rank: int, folder: str, ends: list[int]) -> None:
    """Write the rows of this process of the matrix of a set."""
    first, last = [0, *ends][rank : rank + 2]
    own = shared_neighbours.sides("")[1][first:last]
    matrix = mmga.jaccard_distance(own, max_distance=0.62, group=group)
    mmga.save_distances(matrix, f"{folder}/found.json", group=group)


def unwritten(group, rank: int, folder: str) -> None:
    """Write rows of which the last process' cannot be written."""
    matrix = mmga.jaccard_distance(shared_neighbours.sides("")[1])
    fails = mock.Mock(side_effect=OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)))
    with mock.patch.object(np, "save", fails if rank == group.size() - 1 else np.save):
        mmga.save_distances(matrix, f"{folder}/found.json", group=group)
