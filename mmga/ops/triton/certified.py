"""Triton kernels of certified ranks and neighbours: 8-bit products whose tile is never written.

A program multiplies a block of rows by a block of columns on tensor cores, exactly in int32, turns
the sums into keys and compares these with bounds while they are in registers. What is written is a
bit for each pair that bounds do not decide, or not exclude. Bound by the products, 2 R W D
operations.

An item precedes a match if its key, with the width of its interval added, is below the lower
threshold, and does not if its key less the width is above the upper one.
"""

# Kernels are typed by Triton.
# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

import contextlib
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from mmga.ops.reference import METRICS

# Rows, columns and bytes of a product; blocks of rows that share blocks of columns in the cache.
# Larger blocks read less and, with the epilogue, spill on one of sm_80, sm_90 and sm_100.
BLOCKS: dict[str, int] = {"BLOCK_M": 128, "BLOCK_N": 64, "BLOCK_K": 128, "GROUP": 8}
WARPS, STAGES = 8, 3
# Columns that rows without limits meet first: each of their pairs is bounded by 16 bits.
LEAST_PANEL = 64


@triton.jit
def _corner(R, W, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, GROUP: tl.constexpr):
    """Return the number of the program's block of rows, and of its block of columns."""
    down, across = tl.cdiv(R, BLOCK_M), tl.cdiv(W, BLOCK_N)
    program = tl.program_id(0)
    top = program // (GROUP * across) * GROUP
    height = tl.minimum(down - top, GROUP)
    within = program % (GROUP * across)
    return top + within % height, within // height


@triton.jit
def _keys(
    x_ptr,
    y_ptr,
    row_unit_ptr,
    column_unit_ptr,
    row_term_ptr,
    column_term_ptr,
    row,
    column,
    D,
    EUCLIDEAN: tl.constexpr,
    EVEN: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """Return the keys of a block as `reference.ranking_keys` of `reference.int8_products_`."""
    place = tl.arange(0, BLOCK_K)
    x = x_ptr + row.to(tl.int64)[:, None] * D + place[None, :]
    y = y_ptr + column.to(tl.int64)[None, :] * D + place[:, None]
    sums = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.int32)
    for k in range(0, D, BLOCK_K):
        if EVEN:
            one, other = tl.load(x + k), tl.load(y + k)
        else:
            one = tl.load(x + k, mask=(k + place)[None, :] < D, other=0)
            other = tl.load(y + k, mask=(k + place)[:, None] < D, other=0)
        sums = tl.dot(one, other, sums, out_dtype=tl.int32)
    units = tl.load(row_unit_ptr + row), tl.load(column_unit_ptr + column)
    products = (sums.to(tl.float32) * units[0][:, None]) * units[1][None, :]
    row_term, column_term = tl.load(row_term_ptr + row), tl.load(column_term_ptr + column)
    if EUCLIDEAN:
        return tl.maximum((row_term[:, None] + column_term[None, :]) - 2.0 * products, 0.0)
    else:
        return 1.0 - (products * row_term[:, None]) * column_term[None, :]


@triton.jit
def _first(list_ptr, low, high, value, steps):
    """Return the first places from low to high, ascending there, whose entries are not below."""
    for _ in range(0, steps):
        open_ = low < high
        middle = low + (high - low) // 2
        below = tl.load(list_ptr + middle, mask=open_, other=0) < value
        low = tl.where(open_ & below, middle + 1, low)
        high = tl.where(open_ & ~below, middle, high)
    return low


@triton.jit
def _without_ignored(counted, start_ptr, item_ptr, row, items, steps):
    """Return which pairs of a block are counted, less those whose items their row ignores."""
    first, last = tl.load(start_ptr + row), tl.load(start_ptr + row + 1)
    # Those of this block follow one another.
    first = _first(item_ptr, first, last, tl.min(items).to(tl.int64), steps)
    last = _first(item_ptr, first, last, tl.max(items).to(tl.int64) + 1, steps)
    for k in range(0, tl.max(last - first).to(tl.int32)):
        ignored = tl.load(item_ptr + first + k, mask=first + k < last, other=-1)
        counted = counted & (ignored[:, None] != items[None, :])
    return counted


@triton.jit
def _store_bits(
    bits_ptr, wanted, line, word, there, words, LINES: tl.constexpr, ALONG: tl.constexpr
):
    """Write a block of truths, a bit each, 32 of a line to a word.

    Args:
        wanted: [LINES, ALONG].
        line: numbers of the lines, [LINES], with `there` of those that exist.
        word: number of the block's first word in its line.
        words: of a line.
    """
    bit = tl.arange(0, ALONG) % 32
    bits = wanted.to(tl.int32) << bit[None, :]
    packed = tl.sum(tl.reshape(bits, (LINES, ALONG // 32, 32)), 2)
    place = word + tl.arange(0, ALONG // 32)
    to = bits_ptr + line.to(tl.int64)[:, None] * words + place[None, :]
    tl.store(to, packed, mask=there[:, None] & (place < words)[None, :])


@triton.jit(do_not_specialize=["R", "W", "removed_step", "words", "steps", "offset"])
def count_certain_kernel(
    x_ptr,
    y_ptr,
    row_unit_ptr,
    column_unit_ptr,
    row_term_ptr,
    column_term_ptr,
    row_radius_ptr,
    column_radius_ptr,
    column_slack_ptr,
    match_start_ptr,
    lower_ptr,
    upper_ptr,
    ignored_start_ptr,
    ignored_item_ptr,
    row_camera_ptr,
    column_camera_ptr,
    removed_ptr,
    preceding_ptr,
    undecided_ptr,
    R,
    W,
    D,
    removed_step,
    words,
    steps,
    offset,
    EUCLIDEAN: tl.constexpr,
    EVEN: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    GROUP: tl.constexpr,
):
    """Count the items of a block that surely precede matches; set the bits of undecided ones."""
    at_row, at_column = _corner(R, W, BLOCK_M, BLOCK_N, GROUP)
    rows = at_row * BLOCK_M + tl.arange(0, BLOCK_M)
    columns = at_column * BLOCK_N + tl.arange(0, BLOCK_N)
    row, column = tl.minimum(rows, R - 1), tl.minimum(columns, W - 1)
    keys = _keys(
        x_ptr, y_ptr, row_unit_ptr, column_unit_ptr, row_term_ptr, column_term_ptr, row, column, D,
        EUCLIDEAN, EVEN, BLOCK_M, BLOCK_N, BLOCK_K,
    )  # fmt: skip
    radius = tl.load(row_radius_ptr + row)[:, None] * tl.load(column_radius_ptr + column)[None, :]
    width = radius + tl.load(column_slack_ptr + column)[None, :]

    counted = (rows < R)[:, None] & (columns < W)[None, :]
    if row_camera_ptr is not None:
        cameras = tl.load(row_camera_ptr + row), tl.load(column_camera_ptr + column)
        counted = counted & (cameras[0][:, None] != cameras[1][None, :])
    if removed_ptr is not None:
        removed = tl.load(removed_ptr + row.to(tl.int64)[:, None] * removed_step + column[None, :])
        counted = counted & (removed == 0)
    counted = _without_ignored(
        counted, ignored_start_ptr, ignored_item_ptr, row, offset + columns, steps
    )

    start = tl.load(match_start_ptr + row)
    count = (tl.load(match_start_ptr + row + 1) - start).to(tl.int32)
    most = tl.max(count)
    undecided = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.int1)
    for k in range(0, most):
        there = k < count
        lower = tl.load(lower_ptr + start + k, mask=there, other=float("inf"))
        upper = tl.load(upper_ptr + start + k, mask=there, other=-float("inf"))
        open_ = ~(keys + width < lower[:, None]) & ~(keys - width > upper[:, None])
        undecided = undecided | open_
    undecided = undecided & counted
    counted = counted & ~undecided
    for k in range(0, most):
        there = k < count
        lower = tl.load(lower_ptr + start + k, mask=there, other=-float("inf"))
        certain = tl.sum((counted & (keys + width < lower[:, None])).to(tl.int32), 1)
        tl.atomic_add(preceding_ptr + start + k, certain.to(tl.int64), mask=certain > 0)
    word = at_column * (BLOCK_N // 32)
    _store_bits(undecided_ptr, undecided, rows, word, rows < R, words, BLOCK_M, BLOCK_N)


@triton.jit(do_not_specialize=["R", "W", "row_words", "column_words"])
def filter_kernel(
    x_ptr,
    y_ptr,
    row_unit_ptr,
    column_unit_ptr,
    row_term_ptr,
    column_term_ptr,
    row_radius_ptr,
    column_radius_ptr,
    row_slack_ptr,
    column_slack_ptr,
    row_near_ptr,
    column_near_ptr,
    row_far_ptr,
    column_far_ptr,
    of_rows_ptr,
    of_columns_ptr,
    own_ptr,
    R,
    W,
    D,
    row_words,
    column_words,
    EUCLIDEAN: tl.constexpr,
    EVEN: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    GROUP: tl.constexpr,
):
    """Set the bits of pairs that may be near or far enough for their row, and for their column."""
    at_row, at_column = _corner(R, W, BLOCK_M, BLOCK_N, GROUP)
    rows = at_row * BLOCK_M + tl.arange(0, BLOCK_M)
    columns = at_column * BLOCK_N + tl.arange(0, BLOCK_N)
    row, column = tl.minimum(rows, R - 1), tl.minimum(columns, W - 1)
    keys = _keys(
        x_ptr, y_ptr, row_unit_ptr, column_unit_ptr, row_term_ptr, column_term_ptr, row, column, D,
        EUCLIDEAN, EVEN, BLOCK_M, BLOCK_N, BLOCK_K,
    )  # fmt: skip
    radius = tl.load(row_radius_ptr + row)[:, None] * tl.load(column_radius_ptr + column)[None, :]
    slack = tl.load(row_slack_ptr + row)[:, None] + tl.load(column_slack_ptr + column)[None, :]
    width = radius + slack
    there = (rows < R)[:, None] & (columns < W)[None, :]
    if own_ptr is not None:
        there = there & (tl.load(own_ptr + row)[:, None] != columns[None, :])
    wanted = keys - width <= tl.load(row_near_ptr + row)[:, None]
    if row_far_ptr is not None:
        wanted = wanted | (-keys - width <= tl.load(row_far_ptr + row)[:, None])
    word = at_column * (BLOCK_N // 32)
    _store_bits(of_rows_ptr, wanted & there, rows, word, rows < R, row_words, BLOCK_M, BLOCK_N)
    if of_columns_ptr is not None:
        wanted = keys - width <= tl.load(column_near_ptr + column)[None, :]
        if row_far_ptr is not None:
            wanted = wanted | (-keys - width <= tl.load(column_far_ptr + column)[None, :])
        word = at_row * (BLOCK_M // 32)
        _store_bits(
            of_columns_ptr, tl.trans(wanted & there), columns, word, columns < W, column_words,
            BLOCK_N, BLOCK_M,
        )  # fmt: skip


def count_certain_int8(
    x: Tensor,
    y: Tensor,
    row_unit: Tensor,
    column_unit: Tensor,
    row_term: Tensor,
    column_term: Tensor,
    metric: int,
    offset: int,
    row_radius: Tensor,
    column_radius: Tensor,
    column_slack: Tensor,
    match_start: Tensor,
    match_item: Tensor,
    lower: Tensor,
    upper: Tensor,
    ignored_start: Tensor,
    ignored_item: Tensor,
    row_camera: Tensor | None,
    column_camera: Tensor | None,
    removed: Tensor | None,
    preceding: Tensor,
) -> Tensor:
    """Launch the kernels; as `reference.count_certain_int8`."""
    rows, columns, width = len(x), len(y), x.shape[1]
    undecided = _bits(rows, columns, x.device)
    if undecided.numel():
        with _on(x.device):
            count_certain_kernel[(_programs(rows, columns),)](
                x, y, row_unit, column_unit, row_term, column_term,
                row_radius, column_radius, column_slack, match_start, lower, upper,
                ignored_start, ignored_item, row_camera, column_camera, removed,
                preceding, undecided, rows, columns, width,
                0 if removed is None else removed.stride(0),
                undecided.shape[1], ignored_item.numel().bit_length(), offset,
                **_options(metric, width),
            )  # fmt: skip
    pairs: Tensor = torch.ops.mmga.list_bits(undecided, columns)
    matches = match_start.diff().to(torch.int32)[pairs[:, 0]]
    return torch.stack([*pairs.unbind(1), torch.zeros_like(matches), matches], 1)


def collect_candidates_(
    candidates: Tensor,
    counts: Tensor,
    limits: Tensor,
    far_candidates: Tensor | None,
    far_counts: Tensor | None,
    far_limits: Tensor | None,
    k: int,
    x: Tensor,
    y: Tensor,
    row_unit: Tensor,
    column_unit: Tensor,
    row_term: Tensor,
    column_term: Tensor,
    row_radius: Tensor,
    column_radius: Tensor,
    row_slack: Tensor,
    column_slack: Tensor,
    fine_x: Tensor,
    fine_y: Tensor,
    fine_row_term: Tensor,
    fine_column_term: Tensor,
    fine_row_radius: Tensor,
    fine_column_radius: Tensor,
    fine_row_slack: Tensor,
    fine_column_slack: Tensor,
    metric: int,
    own: Tensor | None,
    first_row: int,
    first_other: int,
    mirrored: bool,
    seen: int,
    total: int,
) -> None:
    """Launch the kernels; as `reference.collect_candidates_`.

    Panels of columns grow with what was seen, so that limits are low before most pairs are met. A
    tile that meets itself does so row by row.
    """
    mirrored = mirrored and (first_row != first_other or len(x) != len(y))
    rows, width = len(x), x.shape[1]
    of_rows = slice(first_row, first_row + rows)
    lists = candidates, counts, limits, far_candidates, far_counts, far_limits
    fine_rows = fine_x, fine_row_term, fine_row_radius, fine_row_slack
    fine_columns = fine_y, fine_column_term, fine_column_radius, fine_column_slack
    begin = 0
    while begin < len(y) and rows:
        size = min(max(LEAST_PANEL, seen + begin), len(y) - begin)
        part, item = slice(begin, begin + size), first_other + begin
        items = slice(item, item + size)
        met = _bits(rows, size, x.device)
        mirror = _bits(size, rows, x.device) if mirrored else None
        with _on(x.device):
            filter_kernel[(_programs(rows, size),)](
                x, y[part], row_unit, column_unit[part], row_term, column_term[part],
                row_radius, column_radius[part], row_slack, column_slack[part],
                limits[of_rows], limits[items] if mirrored else None,
                None if far_limits is None else far_limits[of_rows],
                far_limits[items] if mirrored and far_limits is not None else None,
                met, mirror, None if own is None else own - item, rows, size, width,
                met.shape[1], 0 if mirror is None else mirror.shape[1],
                **_options(metric, width),
            )  # fmt: skip
        kept = kept_rank(seen + begin + size, k, total)
        panel = tuple(values[part] for values in fine_columns)
        _add(lists, kept, met, fine_rows, panel, metric, first_row, item)
        if mirror is not None:
            _add(lists, kept, mirror, panel, fine_rows, metric, item, first_row)
        begin += size


def kept_rank(seen: int, k: int, total: int) -> int:
    """Return how many candidates a list surely keeps after so many of all columns.

    Where these come in random order (else `total` is 0), so many of the k nearest are among those
    seen, and hardly ever more: of a Poisson distribution's tail 1e-4.
    """
    if seen >= total:
        return k
    mean = k * seen / total
    return min(k, int(mean + 3.7 * mean**0.5 + 2))


def _add(
    lists: tuple[Tensor | None, ...],
    kept: int,
    bits: Tensor,
    rows: tuple[Tensor, ...],
    columns: tuple[Tensor, ...],
    metric: int,
    first_row: int,
    first_item: int,
) -> None:
    """Add pairs to the lists of their rows, of which both sides have 16-bit numbers and bounds."""
    (x, *of_rows), (y, *of_columns) = rows, columns
    sides = [side for pair in zip(of_rows, of_columns, strict=True) for side in pair]
    torch.ops.mmga.add_candidates_(*lists, kept, bits, x, y, *sides, metric, first_row, first_item)


def _bits(rows: int, columns: int, device: torch.device) -> Tensor:
    """Return room for a bit of each column in every row."""
    return torch.empty((rows, -(-columns // 32)), dtype=torch.int32, device=device)


def _programs(rows: int, columns: int) -> int:
    return triton.cdiv(rows, BLOCKS["BLOCK_M"]) * triton.cdiv(columns, BLOCKS["BLOCK_N"])


def _options(metric: int, width: int) -> dict[str, Any]:
    """Return the options of a kernel for rows of some width."""
    return {
        "EUCLIDEAN": METRICS[metric] == "euclidean",
        "EVEN": width % BLOCKS["BLOCK_K"] == 0,
        "num_warps": WARPS,
        "num_stages": STAGES,
        **BLOCKS,
    }


def _on(device: torch.device) -> contextlib.AbstractContextManager[object]:
    """Return the context in which kernels are launched on a device."""
    return torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext()
