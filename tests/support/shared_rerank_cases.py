"""Re-ranked distances by several processes: the cases, and what a process gets."""

import contextlib
from unittest import mock

import numpy as np
import shared_neighbours
import torch
from shared_neighbours import NUM_ITEMS, NUM_QUERY, WIDTH

import mmga
from mmga.ops import k_reciprocal as ops
from mmga.retrieval.neighbours import certified_knn, knn, shared_knn, shared_set, tile_sizes
from mmga.retrieval.reranking import distances, shared_encoding

RULE = mmga.KReciprocal()
# Arguments of rerank; `kind` of the sets, the tiles that searches are made of, whether some of both
# sides are junk, and the bytes of lists that are merged together.
CASES = {
    "matrix": {},
    "matrix, euclidean": {"metric": "euclidean"},
    "nearest": {"topk": 9},
    "duplicates": {"kind": "duplicates", "topk": 30, "metric": "euclidean"},
    "duplicates, matrix": {"kind": "duplicates", "rerank": mmga.KReciprocal(4, 9)},
    "near ties": {"kind": "near ties", "rerank": mmga.KReciprocal(12, 3, 0.1, "torchreid")},
    "zeros": {"kind": "zeros", "topk": 150},
    "short rows": {"kind": "short"},
    "16 bits": {"kind": "half", "topk": 5, "rerank": mmga.KReciprocal(9, 4, 0.6, "fastreid")},
    "8 bits": {"kind": "int8", "metric": "euclidean", "rerank": mmga.KReciprocal(half="matlab")},
    "8-bit tiles": {"tiles": "int8", "topk": 6},
    "junk": {"junk": True},
    "junk, nearest": {"junk": True, "topk": 40, "merged": 1},
    "by the overlap alone": {"rerank": mmga.KReciprocal(7, 2, 0.0), "topk": 50},
    "by the distance alone": {"rerank": mmga.KReciprocal(5, 2, 1.0), "topk": NUM_ITEMS},
    "a bound on memory": {"memory": "2G", "topk": 3},
}


@contextlib.contextmanager
def small(options: dict[str, object]):
    """Let blocks be small, and tiles, so that shares end within them; take what says how."""
    tiles, block = options.pop("tiles", None), 4 * WIDTH * 130
    changes = [
        (shared_set, "BLOCK", block),
        (shared_knn, "MERGED", options.pop("merged", shared_knn.MERGED)),
        (tile_sizes, "TILE", 64),
        (certified_knn, "TILE", 64),
        *([(knn, "cheapest_tiles", shared_neighbours.int8)] * (tiles is not None)),
    ]
    with contextlib.ExitStack() as changed:
        for owner, attribute, value in changes:
            changed.enter_context(mock.patch.object(owner, attribute, value))
        yield


def sides(options: dict[str, object]) -> tuple[object, object]:
    """Return queries and items of a case."""
    query, items = shared_neighbours.sides(options.pop("kind", ""))
    if options.pop("junk", False):
        pids = np.random.default_rng(5).integers(-1, 2, NUM_ITEMS)
        query, items = mmga.Features(query, pids[:NUM_QUERY]), mmga.Features(items, pids)
    return query, items


def reranked(group, rank: int, name: str, ends: list[int]) -> tuple[np.ndarray, ...]:
    """Return what `mmga.rerank` returns of a case.

    Args:
        group: of torch.distributed, or None for one process.
        rank: of this process.
        name: of the case.
        ends: where each process' items end.
    """
    options = dict(CASES[name])
    query, items = sides(options)
    first, last = (0, NUM_ITEMS) if group is None else [0, *ends][rank : rank + 2]
    own = shared_neighbours.part(items, first, last)
    with small(options):
        found = mmga.rerank(query, own, group=group, **options)
    found = found if isinstance(found, tuple) else (found,)
    assert len(found) == 1 + ("topk" in options)
    assert found[0].shape == (NUM_QUERY, options.get("topk", last - first))
    assert isinstance(found[0], np.ndarray) == isinstance(query, np.ndarray)
    return tuple(np.asarray(part) for part in found)


def unlike(group, rank: int, what: str) -> object:
    """Re-rank where the last process differs from the others, as `what` says."""
    query, own, odd = shared_neighbours.spoiled(group, rank, what)
    options = {"topk": 5, "group": group}
    if what == "rule":
        options["rerank"] = mmga.KReciprocal(9 if odd else 8)
    elif what == "kind of rule":
        options["rerank"] = 5
    elif what == "topk past all":
        options["topk"] = NUM_ITEMS + 1
    elif what == "queries" and odd:
        query = query[::-1].copy()
    elif what == "junk of queries" and odd:
        query = mmga.Features(query, np.arange(NUM_QUERY) - 1)
    elif what == "memory" and odd:
        options["memory"] = "10M"
    elif what == "float32":
        options["exact"] = "float32"
    elif what == "all junk":
        own = mmga.Features(own, np.full(len(own), -1))
    failing = mock.Mock(side_effect=ZeroDivisionError("of all numbers"))
    changes = {
        "a bug in the mean": (shared_encoding, "averaged", failing),
        "a bug in the mix": (distances, "mix", failing),
        "a bug in the index": (ops, "transpose_rows", failing),
    }
    with contextlib.ExitStack() as changed:
        if odd and what in changes:
            changed.enter_context(mock.patch.object(*changes[what]))
        found = mmga.rerank(query, own, **options)
    return [np.asarray(part).tolist() for part in found]


def with_none(group, rank: int) -> object:
    """Re-rank tensors of which the last process has none."""
    query, items = map(torch.from_numpy, shared_neighbours.sides(""))
    matrix = mmga.rerank(query, items if rank == 0 else None, group=group)
    return matrix.numpy()
