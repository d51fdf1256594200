"""Neighbours by several processes: the sets, the cases, and what a process finds."""

import contextlib
from unittest import mock

import numpy as np
import torch

import mmga
from mmga.retrieval.bounds.approximation import Int8
from mmga.retrieval.neighbours import knn, shared_knn

NUM_QUERY, NUM_ITEMS, WIDTH = 23, 301, 40
# Where the items of the processes end: evenly, with processes that hold one item or none.
ENDS = {
    1: [[301]],
    2: [[150, 301], [0, 301], [300, 301]],
    3: [[1, 101, 301], [100, 200, 301]],
    5: [[60, 120, 180, 240, 301], [128, 128, 130, 301, 301]],
}
# Arguments of nearest; `kind` of the sets, and the tiles that searches are made of.
CASES = {
    "random": {"k": 7},
    "random, euclidean": {"k": 7, "metric": "euclidean"},
    "duplicates": {"kind": "duplicates", "k": 20},
    "duplicates, euclidean": {"kind": "duplicates", "k": 20, "metric": "euclidean"},
    "near ties": {"kind": "near ties", "k": 9},
    "near ties, euclidean": {"kind": "near ties", "k": 9, "metric": "euclidean"},
    "zeros": {"kind": "zeros", "k": 150},
    "short rows": {"kind": "short", "k": 12},
    "short rows, euclidean": {"kind": "short", "k": 12, "metric": "euclidean"},
    "16 bits": {"kind": "half", "k": 5},
    "8 bits": {"kind": "int8", "k": 5, "metric": "euclidean"},
    "8-bit tiles": {"k": 6, "tiles": "int8"},
    "8-bit tiles, duplicates": {"kind": "duplicates", "k": 6, "tiles": "int8"},
    "more than a share": {"kind": "duplicates", "k": 290},
    "all": {"kind": "near ties", "k": NUM_ITEMS},
    "one": {"kind": "duplicates", "k": 1},
    "blocks of few queries": {"kind": "duplicates", "k": 11, "merged": 1},
    "a bound on memory": {"k": 4, "memory": "1G"},
}


def sides(kind: str) -> tuple[np.ndarray | mmga.Features, np.ndarray | mmga.Features]:
    """Return queries and items, of which some are equal."""
    random = np.random.default_rng(3)
    items = random.standard_normal((NUM_ITEMS, WIDTH)).astype(np.float32)
    some = random.integers(0, 3, NUM_ITEMS) == 0
    if kind == "duplicates":
        items = items[random.integers(0, 12, NUM_ITEMS)]
    elif kind == "near ties":  # a few vectors, each off by last bits
        items = items[random.integers(0, 3, NUM_ITEMS)]
        up = random.integers(0, 2, items.shape) == 0
        items = np.where(up, np.nextafter(items, np.float32(np.inf)), items)
    elif kind == "zeros":
        items[some] = 0
    elif kind == "short":
        items[some] *= np.float32(2.0**-60)
    query = random.standard_normal((NUM_QUERY, WIDTH)).astype(np.float32)
    query[::2] = items[: 4 * len(query[::2]) : 4]
    if kind == "half":
        return query.astype(np.float16), items.astype(np.float16)
    if kind == "int8":
        scale = random.uniform(0.01, 0.02, NUM_ITEMS).astype(np.float32)
        numbers = np.clip(items * 40, -127, 127).astype(np.int8)
        return query, mmga.Features(numbers, np.arange(NUM_ITEMS), scale=scale)
    return query, items


def part(items: np.ndarray | mmga.Features, first: int, last: int) -> object:
    """Return consecutive items; None for none of `Features`, an empty array of an array."""
    return items.cut(first, last) if isinstance(items, mmga.Features) else items[first:last]


def found(
    group, rank: int, name: str, ends: list[int], query_ends: list[int] | None = None
) -> tuple[bytes, bytes]:
    """Return the bytes of distances and indices of a case.

    Args:
        group: of torch.distributed, or None for one process.
        rank: of this process.
        name: of the case.
        ends: where each share of the items ends.
        query_ends: where each share of the queries ends; None: all processes have all.
    """
    options = dict(CASES[name])
    query, items = sides(options.pop("kind", ""))
    row, column = divmod(rank, len(ends))
    own = items if group is None else part(items, *[0, *ends][column : column + 2])
    if query_ends is not None:
        query = query[slice(*[0, *query_ends][row : row + 2])]
        options["query_shares"] = len(query_ends)
    with contextlib.ExitStack() as changed:
        if options.pop("tiles", None):
            changed.enter_context(mock.patch.object(knn, "cheapest_tiles", int8))
        merged = options.pop("merged", shared_knn.MERGED)
        changed.enter_context(mock.patch.object(shared_knn, "MERGED", merged))
        distances, index = mmga.nearest(query, own, group=group, **options)
    assert isinstance(distances, np.ndarray) and index.shape == (len(query), options["k"])
    return distances.tobytes(), index.tobytes()


def int8(rows, columns, *rest, **options) -> Int8:
    """Choose 8-bit tiles, whatever the cost."""
    return Int8(max(float(side.norms.max()) for side in (rows, columns)) ** 0.5)


def spoiled(group, rank: int, what: str) -> tuple[np.ndarray, object, bool]:
    """Return queries, own items of two processes, and whether this is the one that is to differ.

    Its items are as `what` says, if that is one of the words below; "nothing" holds for both.
    """
    query, items = sides("")
    odd = rank == group.size() - 1
    own = items[200:] if odd else items[:200]
    if what == "nothing":
        own = None
    elif what == "values" and odd:
        own = own.copy()
        own[7] = np.nan
    elif what == "kind" and odd:
        own = "items"
    elif what == "width" and odd:
        own = own[:, :9]
    return query, own, odd


def unlike(group, rank: int, what: str) -> object:
    """Search where the last process differs from the others, as `what` says."""
    query, own, odd = spoiled(group, rank, what)
    options = {"k": 5, "group": group}
    if what == "k" and odd:
        options["k"] = 6
    elif what == "k past all":
        options["k"] = NUM_ITEMS + 1
    elif what == "queries" and odd:
        query = query[::-1].copy()
    elif what == "memory":
        options["memory"] = 1000
    elif what == "float32":
        options["exact"] = "float32"
    elif what == "query shares":
        options["query_shares"] = 1 + rank
    elif what == "none in the last" and odd:
        own = None
    elif what == "a tensor":
        query, own = torch.from_numpy(query), torch.from_numpy(own)
    distances, index = mmga.nearest(query, own, **options)
    return distances.tolist(), index.tolist()
