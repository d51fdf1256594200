"""An index of a gallery that several processes share: the cases, and what a process gets."""

import contextlib
import errno
import os
from unittest import mock

import numpy as np
import shared_neighbours
from shared_neighbours import NUM_ITEMS, WIDTH

import mmga
from mmga.retrieval.neighbours import knn, shared_set
from mmga.retrieval.reranking import index as index_module
from mmga.retrieval.reranking import single_query

# Arguments of GalleryIndex.build, `kind` of the set, and the tiles that searches are made of.
CASES = {
    "cosine": {},
    "8-bit tiles": {"tiles": "int8", "rule": mmga.KReciprocal(9, 4)},  # of more than one vector
    "euclidean": {"metric": "euclidean"},
    "duplicates": {"kind": "duplicates", "metric": "euclidean"},
    "near ties": {"kind": "near ties", "rule": mmga.KReciprocal(12, 3, 0.1, "torchreid")},
    "zeros": {"kind": "zeros", "rule": mmga.KReciprocal(6, 1, half="matlab")},
    "short rows": {"kind": "short", "memory": "2G"},
    "16 bits": {"kind": "half", "rule": mmga.KReciprocal(9, 4, 0.6, "fastreid")},
    "8 bits": {"kind": "int8", "metric": "euclidean", "rule": mmga.KReciprocal(3, 9)},
    "lists of all": {"rule": mmga.KReciprocal(2, 400)},
}


def queries(kind: str) -> np.ndarray:
    """Return queries: one that equals an item, another one, and one that is far from all."""
    same = "" if kind in ("int8", "short") else kind
    query = shared_neighbours.sides(same)[0][:2].astype(np.float32)
    return np.concatenate([query, np.full((1, WIDTH), 9, np.float32)])


@contextlib.contextmanager
def small(options: dict[str, object]):
    """Let blocks be small, so that shares end within them; take what says how."""
    with contextlib.ExitStack() as changed:
        if options.pop("tiles", None):
            changed.enter_context(mock.patch.object(knn, "cheapest_tiles", shared_neighbours.int8))
        changed.enter_context(mock.patch.object(shared_set, "BLOCK", 4 * WIDTH * 130))
        changed.enter_context(mock.patch.object(index_module, "_ROWS", 64))
        yield


def built(group, rank: int, name: str, ends: list[int]) -> mmga.GalleryIndex:
    """Return the index of a case; arguments as those of `found`."""
    options = dict(CASES[name])
    _, items = shared_neighbours.sides(options.pop("kind", ""))
    first, last = (0, NUM_ITEMS) if group is None else [0, *ends][rank : rank + 2]
    with small(options):
        own = shared_neighbours.part(items, first, last)
        return mmga.GalleryIndex.build(own, group=group, **options)


def found(group, rank: int, name: str, ends: list[int]) -> tuple[list[bytes], list[np.ndarray]]:
    """Return what is stored of this process' items, and distances of queries to them.

    Args:
        group: of torch.distributed, or None for one process.
        rank: of this process.
        name: of the case.
        ends: where each process' items end.
    """
    index = built(group, rank, name, ends)
    assert len(index) == NUM_ITEMS
    return stored(index), reranked(index, name)


def stored(index: mmga.GalleryIndex) -> list[bytes]:
    """Return the arrays of an index but for the inverted one; sizes in place of offsets."""
    return [
        (np.diff(array) if name.endswith("offsets") else array).tobytes()
        for name, array in index.arrays.items()
        if not name.startswith("inverted")
    ]


def reranked(index: mmga.GalleryIndex, name: str) -> list[np.ndarray]:
    """Return distances of the queries of a case."""
    with mock.patch.object(index_module, "_ROWS", 64):
        return [index.rerank(query) for query in queries(CASES[name].get("kind", ""))]


def saved(group, rank: int, path: str, ends: list[int]) -> None:
    """Save an index of features with labels."""
    first, last = [0, *ends][rank : rank + 2] if group is not None else (0, NUM_ITEMS)
    own = features().cut(first, last)
    mmga.GalleryIndex.build(own, group=group).save(path)


def features() -> mmga.Features:
    """Return items with labels."""
    _, items = shared_neighbours.sides("")
    pids = np.array([f"p{i % 40}" for i in range(NUM_ITEMS)])
    return mmga.Features(items, pids, paths=np.array([f"{i}.jpg" for i in range(NUM_ITEMS)]))


def loaded(group, rank: int, path: str) -> tuple[list[bytes], list[np.ndarray], object]:
    """Return what a saved index holds here, distances of queries, and its labels."""
    index = mmga.GalleryIndex.load(path, group=group)
    labels = {name: values.tolist() for name, values in index.labels.items()}
    return stored(index), reranked(index, "cosine"), labels


def unlike(group, rank: int, what: str, path: str) -> object:
    """Build and ask an index where the last process differs from the others, as `what` says."""
    query, own, odd = shared_neighbours.spoiled(group, rank, what)
    one = query[2]
    options = {"group": group}
    if what == "rule":
        options["rule"] = mmga.KReciprocal(9 if odd else 8)
    elif what == "junk" and odd:
        own = mmga.Features(own, np.arange(101) - 1)
    elif what == "memory" and odd:
        options["memory"] = "10M"
    elif what == "float32":
        options["exact"] = "float32"
    elif what == "query" and odd:
        one = query[3]
    elif what == "width of the query" and odd:
        one = one[:9]
    failing = mock.Mock(side_effect=ZeroDivisionError("of all numbers"))
    full = mock.Mock(side_effect=OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)))
    changes = {
        "a bug in the index": (index_module, "inverted", failing),
        "a bug in the sets": (single_query.SingleQuery, "_expanded_of", failing),
        "a bug in encodings": (single_query.SingleQuery, "_set", failing),
        "a bug in distances": (single_query.SingleQuery, "_final", failing),
        "a full disk": (np, "save", full),
    }
    with contextlib.ExitStack() as changed:
        if odd and what in changes:
            changed.enter_context(mock.patch.object(*changes[what]))
        index = mmga.GalleryIndex.build(own, **options)
        final = index.rerank(one).tolist()
        index.save(path)
    return final
