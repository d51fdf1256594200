"""Triton kernels that rank from features in one go: products, keys and counts, no tile in memory.

`mmga.retrieval.metrics.rank_fused` ranks by them in precisions other than float32. The other way,
which `mmga.retrieval.metrics.rank` takes, is a product into a tile by torch's BLAS and
`count_preceding` over it: that moves 8 bytes for each pair of query and item (the tile is written
and read once), these kernels none. What counting costs is the same, so they can win where the inner
dimension is small; which of the two wins for which dimension is not yet measured on a GPU.

The keys of the matches come from products of the same block shape, inner order and instructions as
the counted ones, only of gathered items, so that equal features have equal keys. Counts are
integers and are added atomically, in any order.

Legend: Q queries, G items, D dimensions, M matches of all queries, T matches of one query at most.
Addresses are int64.
"""

# Kernels are typed by Triton.
# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

import contextlib
from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from mmga.ops import reference
from mmga.ops.precision import PRECISIONS
from mmga.ops.ranking import Matches

# (queries, items, dimensions of one step, warps) of a program. One shape for all kernels: it
# decides in which order a product is added up.
TILES = {
    "ieee": (32, 64, 16, 4),
    "tf32x3": (64, 128, 32, 8),
    "tf32": (64, 128, 32, 8),
    "bf16": (64, 128, 64, 8),
}


@triton.jit
def _keys(
    query_ptr,
    gallery_ptr,
    row_term_ptr,
    column_term_ptr,
    row,
    item,
    in_row,
    in_item,
    D,
    query_step,
    gallery_step,
    EUCLIDEAN: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_Q: tl.constexpr,
    BLOCK_G: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Ranking keys [BLOCK_Q, BLOCK_G] of queries `row` and items `item` (int64)."""
    products = tl.zeros([BLOCK_Q, BLOCK_G], tl.float32)
    for start in range(0, D, BLOCK_D):
        d = start + tl.arange(0, BLOCK_D)
        inside = d < D
        q = tl.load(
            query_ptr + row[:, None] * query_step + d[None, :],
            mask=in_row[:, None] & inside[None, :],
            other=0.0,
        )
        g = tl.load(
            gallery_ptr + item[None, :] * gallery_step + d[:, None],
            mask=in_item[None, :] & inside[:, None],
            other=0.0,
        )
        if PRECISION == "bf16":
            products = tl.dot(q.to(tl.bfloat16), g.to(tl.bfloat16), products)
        else:
            products = tl.dot(q, g, products, input_precision=PRECISION)
    own = tl.load(row_term_ptr + row, mask=in_row, other=0.0)[:, None]
    other = tl.load(column_term_ptr + item, mask=in_item, other=0.0)[None, :]
    if EUCLIDEAN:
        return tl.maximum((own + other) - 2.0 * products, 0.0)
    else:
        return 1.0 - (products * own) * other


@triton.jit
def match_keys_kernel(
    query_ptr,
    gallery_ptr,
    row_term_ptr,
    column_term_ptr,
    item_ptr,
    key_ptr,
    Q,
    D,
    W,
    query_step,
    gallery_step,
    EUCLIDEAN: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_Q: tl.constexpr,
    BLOCK_G: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """One program per block of queries and block of the W items that are listed for it.

    It writes their keys [BLOCK_Q, BLOCK_G].
    """
    blocks = tl.cdiv(W, BLOCK_G)
    pid = tl.program_id(0).to(tl.int64)
    run = pid // blocks
    row = run * BLOCK_Q + tl.arange(0, BLOCK_Q)
    place = pid % blocks * BLOCK_G + tl.arange(0, BLOCK_G)
    in_row = row < Q
    in_item = place < W
    item = tl.load(item_ptr + run * W + place, mask=in_item, other=0)
    keys = _keys(
        query_ptr,
        gallery_ptr,
        row_term_ptr,
        column_term_ptr,
        row,
        item,
        in_row,
        in_item,
        D,
        query_step,
        gallery_step,
        EUCLIDEAN,
        PRECISION,
        BLOCK_Q,
        BLOCK_G,
        BLOCK_D,
    )
    tl.store(
        key_ptr + row[:, None] * W + place[None, :],
        keys,
        mask=in_row[:, None] & in_item[None, :],
    )


@triton.jit
def count_preceding_kernel(
    query_ptr,
    gallery_ptr,
    row_term_ptr,
    column_term_ptr,
    row_code_ptr,
    column_code_ptr,
    row_camera_ptr,
    column_camera_ptr,
    match_key_ptr,
    match_item_ptr,
    preceding_ptr,
    tied_ptr,
    nearest_ptr,
    offset,
    Q,
    G,
    D,
    T,
    query_step,
    gallery_step,
    CAMERAS: tl.constexpr,
    EUCLIDEAN: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_Q: tl.constexpr,
    BLOCK_G: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """One program per block of queries and block of items.

    It adds to the counts of its queries and writes their smallest keys among its items.
    """
    runs = tl.cdiv(Q, BLOCK_Q)
    pid = tl.program_id(0).to(tl.int64)
    # Neighbouring programs share the block of items, which then stays in the cache.
    row = pid % runs * BLOCK_Q + tl.arange(0, BLOCK_Q)
    block = pid // runs
    column = block * BLOCK_G + tl.arange(0, BLOCK_G)
    in_row = row < Q
    in_item = column < G
    keys = _keys(
        query_ptr,
        gallery_ptr,
        row_term_ptr,
        column_term_ptr,
        row,
        column,
        in_row,
        in_item,
        D,
        query_step,
        gallery_step,
        EUCLIDEAN,
        PRECISION,
        BLOCK_Q,
        BLOCK_G,
        BLOCK_D,
    )
    row_code = tl.load(row_code_ptr + row, mask=in_row, other=0)
    column_code = tl.load(column_code_ptr + column, mask=in_item, other=0)
    counted = in_item[None, :] & (row_code[:, None] != column_code[None, :])
    if CAMERAS:
        row_camera = tl.load(row_camera_ptr + row, mask=in_row, other=0)
        column_camera = tl.load(column_camera_ptr + column, mask=in_item, other=0)
        counted &= row_camera[:, None] != column_camera[None, :]
    # What is not counted precedes nothing.
    keys = tl.where(counted, keys, float("inf"))
    low = tl.min(keys, 1)
    tl.store(nearest_ptr + block * Q + row, low, mask=in_row)

    tied = tl.zeros([BLOCK_Q], tl.int32)
    # Thresholds ascend, the first is below every key: none is reached below one that is not.
    t = T - 1
    threshold = tl.load(match_key_ptr + row * T + t, mask=in_row, other=-float("inf"))
    while tl.max((threshold >= low).to(tl.int32), 0) > 0:
        of_match = tl.load(match_item_ptr + row * T + t, mask=in_row, other=0)
        equal = counted & (keys == threshold[:, None])
        before = (keys < threshold[:, None]) | (
            equal & ((offset + column)[None, :] < of_match[:, None])
        )
        number = tl.sum(before.to(tl.int32), 1)
        tl.atomic_add(preceding_ptr + row * T + t, number, mask=in_row & (number > 0))
        tied += tl.sum(equal.to(tl.int32), 1)
        t -= 1
        threshold = tl.load(match_key_ptr + row * T + t, mask=in_row, other=-float("inf"))
    tl.atomic_add(tied_ptr + row, tied, mask=in_row & (tied > 0))


@dataclass(frozen=True, slots=True)
class Thresholds:
    """The matches of each query at the end of a row of equal length, ascending by (key, item).

    Attributes:
        key: float32 [Q, T + 1]; what no match takes, at least the first, is below every key.
        item: int64 [Q, T + 1].
        owner: the query of each match, int64 [M].
        place: its place in the row, int64 [M].
    """

    key: Tensor
    item: Tensor
    owner: Tensor
    place: Tensor

    @classmethod
    def of(cls, matches: Matches) -> Thresholds:
        """Lay out matches once for all blocks of a gallery; waits for the device."""
        start, sizes = matches.match_start, matches.match_start.diff()
        most = int(sizes.max()) + 1
        owner = _owners(start)
        place = torch.arange(len(owner), device=start.device) - start[owner] + most - sizes[owner]
        key = matches.match_key.new_full((len(sizes), most), -torch.inf)
        item = torch.zeros_like(key, dtype=torch.int64)
        key[owner, place], item[owner, place] = matches.match_key, matches.match_item
        return cls(key, item, owner, place)


def match_keys(
    query: Tensor,
    gallery: Tensor,
    row_term: Tensor,
    column_term: Tensor,
    metric: int,
    match_start: Tensor,
    match_item: Tensor,
    *,
    precision: str = "ieee",
) -> Tensor:
    """Return the keys of the matches, with the bits that `count_preceding` gives the same pairs.

    Args:
        query: float32 [Q, D], rows contiguous, free of NaN and infinity.
        gallery: float32 [G, D], likewise.
        row_term: float32 [Q], see `reference.ranking_keys`.
        column_term: float32 [G].
        metric: place in `reference.METRICS`, cosine or euclidean.
        match_start: int64 [Q + 1].
        match_item: int64 [M], rows of `gallery`.
        precision: one of `PRECISIONS`.

    Returns:
        float32 [M].

    Raises:
        ValueError: a shape or dtype does not fit, or metric or precision is unknown.
    """
    _check(query, gallery, row_term, column_term, metric, precision)
    rows, block = len(query), TILES[precision][0]
    owner = _owners(match_start)
    if not len(owner):
        return query.new_empty(0)
    # The distinct items of each block of queries, and each match's place among them.
    items = len(gallery)
    pairs, place = torch.unique(owner // block * items + match_item, return_inverse=True)
    run = pairs // items
    runs = triton.cdiv(rows, block)
    sizes = torch.bincount(run, minlength=runs)
    first = sizes.cumsum(0) - sizes
    width = int(sizes.max())
    listed = torch.zeros(runs, width, dtype=torch.int64, device=query.device)
    listed[run, torch.arange(len(pairs), device=query.device) - first[run]] = pairs % items
    keys = query.new_empty(rows, width)
    meta = _meta(metric, precision)
    with _on(query.device):
        match_keys_kernel[(runs * triton.cdiv(width, meta["BLOCK_G"]),)](
            query,
            gallery,
            row_term,
            column_term,
            listed,
            keys,
            rows,
            query.shape[1],
            width,
            query.stride(0),
            gallery.stride(0),
            **meta,
        )
    return keys[owner, place - first[owner // block]]


def count_preceding(
    query: Tensor,
    gallery: Tensor,
    row_term: Tensor,
    column_term: Tensor,
    metric: int,
    row_code: Tensor,
    column_code: Tensor,
    matches: Matches,
    *,
    row_camera: Tensor | None = None,
    column_camera: Tensor | None = None,
    thresholds: Thresholds | None = None,
    offset: int = 0,
    precision: str = "ieee",
) -> None:
    """Add a block of the gallery to the counts of the matches of all queries.

    The same integers as `mmga.ops.ranking.count_preceding` gives for tiles of the same keys, where
    the ignored items are those whose code is the query's (its own identity, as a rule).

    Args:
        query: float32 [Q, D], rows contiguous, free of NaN and infinity.
        gallery: float32 [G, D], likewise.
        row_term: float32 [Q], see `reference.ranking_keys`.
        column_term: float32 [G].
        metric: place in `reference.METRICS`, cosine or euclidean.
        row_code: int32 [Q].
        column_code: int32 [G]; items whose code is the query's are not counted.
        matches: of the Q queries, with keys by `match_keys` of the same precision, ascending by
            (key, item). `preceding`, `tied` and `nearest` are changed in place.
        row_camera: int32 [Q], with `column_camera` int32 [G]: items of equal code are not counted.
        column_camera: see there.
        thresholds: of the matches; where several blocks are counted they are laid out once.
        offset: item number of the block's first row.
        precision: one of `PRECISIONS`.

    Raises:
        ValueError: a shape or dtype does not fit, or metric or precision is unknown.
    """
    _check(query, gallery, row_term, column_term, metric, precision)
    rows, items = len(query), len(gallery)
    if (row_camera is None) != (column_camera is None):
        raise ValueError("row_camera and column_camera go together")
    codes = {"row_code": (row_code, rows), "column_code": (column_code, items)}
    if row_camera is not None and column_camera is not None:
        codes |= {"row_camera": (row_camera, rows), "column_camera": (column_camera, items)}
    for name, (code, count) in codes.items():
        if code.dtype != torch.int32 or tuple(code.shape) != (count,):
            raise ValueError(f"{name} must be int32 [{count}], got {code.dtype} {[*code.shape]}")
    if not rows or not items:
        return
    listed = thresholds or Thresholds.of(matches)
    counts = torch.zeros_like(listed.key, dtype=torch.int32)
    tied = torch.zeros(rows, dtype=torch.int32, device=query.device)
    meta = _meta(metric, precision)
    blocks = triton.cdiv(items, meta["BLOCK_G"])
    nearest = query.new_empty(blocks, rows)
    with _on(query.device):
        count_preceding_kernel[(triton.cdiv(rows, meta["BLOCK_Q"]) * blocks,)](
            query,
            gallery,
            row_term,
            column_term,
            row_code,
            column_code,
            row_code if row_camera is None else row_camera,
            column_code if column_camera is None else column_camera,
            listed.key,
            listed.item,
            counts,
            tied,
            nearest,
            offset,
            rows,
            items,
            query.shape[1],
            listed.key.shape[1],
            query.stride(0),
            gallery.stride(0),
            CAMERAS=row_camera is not None,
            **meta,
        )
    matches.preceding += counts[listed.owner, listed.place]
    matches.tied += tied
    torch.minimum(matches.nearest, nearest.amin(0), out=matches.nearest)


def _meta(metric: int, precision: str) -> dict[str, object]:
    queries, items, dimensions, warps = TILES[precision]
    return {
        "EUCLIDEAN": metric == reference.METRICS.index("euclidean"),
        "PRECISION": precision,
        "BLOCK_Q": queries,
        "BLOCK_G": items,
        "BLOCK_D": dimensions,
        "num_warps": warps,
        # Keys round as `reference.ranking_keys` rounds them, in both kernels.
        "enable_fp_fusion": False,
    }


def _owners(start: Tensor) -> Tensor:
    """Return the row of each entry of CSR offsets."""
    rows = torch.arange(len(start) - 1, device=start.device)
    return torch.repeat_interleave(rows, start.diff())


def _on(device: torch.device) -> contextlib.AbstractContextManager[object]:
    return torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext()


def _check(
    query: Tensor,
    gallery: Tensor,
    row_term: Tensor,
    column_term: Tensor,
    metric: int,
    precision: str,
) -> None:
    if precision not in PRECISIONS:
        raise ValueError(f"precision must be one of {', '.join(PRECISIONS)}, got {precision!r}")
    if metric not in (1, 2):
        raise ValueError(f"metric must be 1 (cosine) or 2 (euclidean), got {metric}")
    for name, side, term in (("query", query, row_term), ("gallery", gallery, column_term)):
        if side.dtype != torch.float32 or side.dim() != 2 or side.stride(1) != 1:
            raise ValueError(f"{name} must be float32 [N, D] with contiguous rows")
        if term.dtype != torch.float32 or tuple(term.shape) != (len(side),):
            raise ValueError(f"the terms of {name} must be float32 [{len(side)}]")
    if query.shape[1] != gallery.shape[1]:
        raise ValueError(
            f"query and gallery must have equal widths, got {query.shape[1]}, {gallery.shape[1]}"
        )
