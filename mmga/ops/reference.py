"""The specification of every op, in plain PyTorch that runs on any device.

Kernels, tests and benchmarks are held against this file; it imports torch and nothing of ours.
Where a result depends on the order of arithmetic, the order written here is the one meant.

Legend: ``B`` batch, ``C`` channels, ``h w`` feature map, ``P`` parts.
"""

from __future__ import annotations

import torch
from torch import Tensor

# attention


def _working_dtype(x: Tensor) -> torch.dtype:
    """Arithmetic is float64 for a float64 feature map and float32 for every other."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def stripe_rows(height: int, stripes: int) -> list[tuple[int, int]]:
    """Split the rows of a feature map into consecutive stripes that share no row.

    Args:
        height: rows of the feature map, at least ``stripes``.
        stripes: number of stripes.

    Returns:
        One (first row, row after the last) per stripe. Equal heights where ``stripes`` divides
        ``height``, which is the only case that MGN knows.
    """
    return [(i * height // stripes, (i + 1) * height // stripes) for i in range(stripes)]


def attention_multiply(
    x: Tensor, spatial: Tensor, channel: Tensor, combine: str = "product"
) -> Tensor:
    """Multiply a feature map by one attention (PAPER: element-wise product of both parts).

    Args:
        x: feature map [B, C, h, w].
        spatial: logits of the spatial part [B, 1, h, w].
        channel: logits of the channel part [B, C].
        combine: ``"product"`` gives x * S * C, ``"residual"`` gives x * (1 + S) * C, where S and C
            are the sigmoids.

    Returns:
        [B, C, h, w] in the dtype of ``x``, rounded once.
    """
    dtype = _working_dtype(x)
    factor = torch.sigmoid(spatial.to(dtype))  # [B, 1, h, w]
    if combine == "residual":
        factor = 1 + factor
    gate = torch.sigmoid(channel.to(dtype))[:, :, None, None]  # [B, C, 1, 1]
    return (x.to(dtype) * factor * gate).to(x.dtype)


def attention_multiply_backward(
    grad: Tensor, x: Tensor, spatial: Tensor, channel: Tensor, combine: str = "product"
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of `attention_multiply`.

    Args:
        grad: gradient of the result [B, C, h, w].
        x: as given to the forward function, like the three arguments that follow.
        spatial: logits [B, 1, h, w].
        channel: logits [B, C].
        combine: ``"product"`` or ``"residual"``.

    Returns:
        Gradients of ``x``, ``spatial`` and ``channel``, each in the shape and dtype of its input.
    """
    dtype = _working_dtype(x)
    s = torch.sigmoid(spatial.to(dtype))  # [B, 1, h, w]
    c = torch.sigmoid(channel.to(dtype))  # [B, C]
    factor = 1 + s if combine == "residual" else s
    g = grad.to(dtype)
    gx = g * x.to(dtype)  # [B, C, h, w]
    grad_x = g * factor * c[:, :, None, None]
    grad_spatial = (gx * c[:, :, None, None]).sum(1, keepdim=True) * (s * (1 - s))
    grad_channel = (gx * factor).sum((2, 3)) * (c * (1 - c))
    return grad_x.to(x.dtype), grad_spatial.to(spatial.dtype), grad_channel.to(channel.dtype)


def attention_pool(
    x: Tensor,
    spatial: Tensor,
    channel: Tensor,
    mode: str = "max",
    combine: str = "product",
    stripes: int = 1,
    exponent: float | Tensor = 3.0,
) -> Tensor:
    """Multiply a feature map by P attentions and pool each product over horizontal stripes.

    Args:
        x: feature map [B, C, h, w].
        spatial: logits of the spatial parts [B, P, h, w].
        channel: logits of the channel parts [B, P, C].
        mode: ``"max"``, ``"avg"`` or ``"gem"`` (generalised mean, values clamped from below at
            1e-6). Pooling runs over x * S or x * (1 + S) and its result is multiplied by C.
        combine: ``"product"`` or ``"residual"``.
        stripes: number of horizontal stripes, split by `stripe_rows`.
        exponent: exponent of the generalised mean; unused by the other modes.

    Returns:
        [B, P, stripes, C] in the dtype of ``x``, rounded once.
    """
    if mode != "gem":
        return attention_pool_with_argmax(x, spatial, channel, mode, combine, stripes)[0]
    dtype = _working_dtype(x)
    factor = torch.sigmoid(spatial.to(dtype))  # [B, P, h, w]
    if combine == "residual":
        factor = 1 + factor
    parts = []
    for p in range(spatial.shape[1]):
        attended = (x.to(dtype) * factor[:, p, None]).clamp(min=1e-6).pow(exponent)  # [B, C, h, w]
        rows = [attended[:, :, a:b].mean((2, 3)) for a, b in stripe_rows(x.shape[2], stripes)]
        parts.append(torch.stack(rows, 1).pow(1 / exponent))  # [B, stripes, C]
    pooled = torch.stack(parts, 1)  # [B, P, stripes, C]
    return (pooled * torch.sigmoid(channel.to(dtype))[:, :, None]).to(x.dtype)


def attention_pool_with_argmax(
    x: Tensor,
    spatial: Tensor,
    channel: Tensor,
    mode: str = "max",
    combine: str = "product",
    stripes: int = 1,
) -> tuple[Tensor, Tensor]:
    """Do what `attention_pool` does, and say where each maximum stood.

    Args:
        x: feature map [B, C, h, w].
        spatial: logits [B, P, h, w].
        channel: logits [B, P, C].
        mode: ``"max"`` or ``"avg"``.
        combine: ``"product"`` or ``"residual"``.
        stripes: number of horizontal stripes.

    Returns:
        The pooled features [B, P, stripes, C] and, for ``"max"``, the index row * w + column of
        each maximum, int32 of the same shape: the lowest among equals, the first NaN where there
        is one. For ``"avg"`` the second is empty.
    """
    dtype = _working_dtype(x)
    width = x.shape[3]
    factor = torch.sigmoid(spatial.to(dtype))  # [B, P, h, w]
    if combine == "residual":
        factor = 1 + factor
    values, indices = [], []
    for p in range(spatial.shape[1]):
        attended = x.to(dtype) * factor[:, p, None]  # [B, C, h, w]
        for first, last in stripe_rows(x.shape[2], stripes):
            flat = attended[:, :, first:last].flatten(2)  # [B, C, rows * w]
            if mode == "avg":
                values.append(flat.mean(2))
            else:
                value, index = flat.max(2)
                values.append(value)
                indices.append(index + first * width)
    shape = (x.shape[0], spatial.shape[1], stripes, x.shape[1])
    pooled = torch.stack(values, 1).view(shape)  # [B, P, stripes, C]
    pooled = (pooled * torch.sigmoid(channel.to(dtype))[:, :, None]).to(x.dtype)
    if mode == "avg":
        return pooled, torch.empty(0, dtype=torch.int32, device=x.device)
    return pooled, torch.stack(indices, 1).view(shape).to(torch.int32)


def attention_pool_backward(
    grad: Tensor,
    x: Tensor,
    spatial: Tensor,
    channel: Tensor,
    argmax: Tensor,
    mode: str = "max",
    combine: str = "product",
    stripes: int = 1,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of `attention_pool_with_argmax`; the maximum's place takes the whole gradient.

    Args:
        grad: gradient of the pooled features [B, P, stripes, C].
        x: as given to the forward function, like all that follow but ``argmax``.
        spatial: logits [B, P, h, w].
        channel: logits [B, P, C].
        argmax: second result of the forward function.
        mode: ``"max"`` or ``"avg"``.
        combine: ``"product"`` or ``"residual"``.
        stripes: number of horizontal stripes.

    Returns:
        Gradients of ``x``, ``spatial`` and ``channel``, each in the shape and dtype of its input.
    """
    dtype = _working_dtype(x)
    width = x.shape[3]
    s = torch.sigmoid(spatial.to(dtype))  # [B, P, h, w]
    c = torch.sigmoid(channel.to(dtype))  # [B, P, C]
    factor = 1 + s if combine == "residual" else s
    features = x.to(dtype)
    grad_x = torch.zeros_like(features)
    grad_s = torch.zeros_like(s)
    grad_c = torch.zeros_like(c)
    for p in range(spatial.shape[1]):
        for i, (first, last) in enumerate(stripe_rows(x.shape[2], stripes)):
            rows = slice(first, last)
            pixels = (last - first) * width
            part = features[:, :, rows].flatten(2)  # [B, C, pixels]
            weight = factor[:, p, None, rows].flatten(2)  # [B, 1, pixels]
            g = grad[:, p, i].to(dtype)  # [B, C]
            upstream = (g * c[:, p])[:, :, None]  # [B, C, 1]
            if mode == "avg":
                to_x = upstream * weight / pixels  # [B, C, pixels]
                to_s = upstream * part / pixels  # [B, C, pixels]
                value = (part * weight).mean(2)  # [B, C]
            else:
                place = argmax[:, p, i].long()[:, :, None] - first * width  # [B, C, 1]
                x_there = part.gather(2, place)
                s_there = weight.expand_as(part).gather(2, place)
                # Scattered into zeros, so that an infinite gradient stays in its place.
                to_x = torch.zeros_like(part).scatter(2, place, upstream * s_there)
                to_s = torch.zeros_like(part).scatter(2, place, upstream * x_there)
                value = (x_there * s_there)[:, :, 0]
            grad_x[:, :, rows] += to_x.unflatten(2, (-1, width))
            grad_s[:, p, rows] = to_s.sum(1).unflatten(1, (-1, width))
            grad_c[:, p] += g * value
    grad_spatial = grad_s * (s * (1 - s))
    grad_channel = grad_c * (c * (1 - c))
    return grad_x.to(x.dtype), grad_spatial.to(spatial.dtype), grad_channel.to(channel.dtype)


# distance

METRICS = ("given", "cosine", "euclidean")
"""How a tile's values become ranking keys; a metric's number is its place here."""


def interleaved_sum(products: Tensor) -> Tensor:
    """Sum float64 values [..., D] in the one order that every device keeps.

    Accumulator l of 8 takes the elements l, l + 8, l + 16, ... in this order; the eight are then
    added as ((0 + 1) + (2 + 3)) + ((4 + 5) + (6 + 7)).
    """
    products = torch.nn.functional.pad(products, (0, -products.shape[-1] % 8))
    accumulators = torch.zeros_like(products[..., :8])
    for start in range(0, products.shape[-1], 8):
        accumulators = accumulators + products[..., start : start + 8]
    pairs = accumulators[..., 0::2] + accumulators[..., 1::2]
    fours = pairs[..., 0::2] + pairs[..., 1::2]
    return fours[..., 0] + fours[..., 1]


def squared_norms(x: Tensor) -> Tensor:
    """Return s(x, x) of every row.

    Args:
        x: float32 or float16 [N, D].

    Returns:
        float64 [N]; the products are exact, the order of their sum is `interleaved_sum`'s.
    """
    return interleaved_sum(x.to(torch.float64).square())


def ranking_keys(values: Tensor, row_term: Tensor, column_term: Tensor, metric: int) -> Tensor:
    """Turn inner products into ranking keys, in the dtype of `values`.

    Args:
        values: inner products [...], or the keys themselves for metric ``given``.
        row_term: cosine: 1 / norm of the query (0 for a zero vector); euclidean: its squared norm.
            Shaped to broadcast against `values`.
        column_term: the same of the gallery item.
        metric: place in `METRICS`.

    Returns:
        cosine: 1 - (value * row_term) * column_term; euclidean: the squared distance
        max(0, (row_term + column_term) - 2 * value).
    """
    if metric == 1:
        return 1 - (values * row_term) * column_term
    if metric == 2:
        return ((row_term + column_term) - 2 * values).clamp_min(0)
    return values


# ranking


def read_matches(
    values: Tensor,
    row_term: Tensor,
    column_term: Tensor,
    metric: int,
    match_start: Tensor,
    match_item: Tensor,
    match_key: Tensor,
) -> None:
    """Read the keys of the matches from a tile of whole rows and sort them by (key, item).

    Args:
        values: [R, W], see `ranking_keys`; column j is item j.
        row_term: [R] in the dtype of `values`.
        column_term: [W] in the dtype of `values`.
        metric: place in `METRICS`.
        match_start: int64 [R + 1], where each row's matches begin in the lists of matches.
        match_item: int64 [M], item numbers; sorted in place within each row.
        match_key: [M] in the dtype of `values`, set to the keys in that order.
    """
    for row in range(values.shape[0]):
        mine = slice(int(match_start[row]), int(match_start[row + 1]))
        item = match_item[mine]
        keys = values[row, item]
        if metric != METRICS.index("given"):
            keys = ranking_keys(keys, row_term[row], column_term[item], metric)
        match_key[mine] = keys
    sort_matches(match_start, match_item, match_key)


def sort_matches(match_start: Tensor, match_item: Tensor, match_key: Tensor) -> None:
    """Sort the matches of every row by (key, item), in place; NaN goes last.

    Args:
        match_start: int64 [R + 1], where each row's matches begin in the lists of matches.
        match_item: int64 [M].
        match_key: float32 or float64 [M].
    """
    for row in range(len(match_start) - 1):
        mine = slice(int(match_start[row]), int(match_start[row + 1]))
        item, by_item = match_item[mine].sort()
        key, by_key = torch.sort(match_key[mine][by_item], stable=True)
        match_item[mine], match_key[mine] = item[by_key], key


def _counted(
    row: int,
    width: int,
    offset: int,
    ignored_start: Tensor,
    ignored_item: Tensor,
    row_camera: Tensor | None,
    column_camera: Tensor | None,
    removed: Tensor | None,
) -> Tensor:
    """Return which items of a row of a tile are counted, bool [W] (see `count_preceding`)."""
    counted = torch.ones(width, dtype=torch.bool, device=ignored_item.device)
    ignored = ignored_item[int(ignored_start[row]) : int(ignored_start[row + 1])]
    here = ignored[(ignored >= offset) & (ignored < offset + width)]
    counted[here - offset] = False
    if row_camera is not None and column_camera is not None:
        counted &= column_camera != row_camera[row]
    if removed is not None:
        counted &= ~removed[row]
    return counted


def count_preceding(
    values: Tensor,
    row_term: Tensor,
    column_term: Tensor,
    metric: int,
    offset: int,
    match_start: Tensor,
    match_item: Tensor,
    match_key: Tensor,
    ignored_start: Tensor,
    ignored_item: Tensor,
    row_camera: Tensor | None,
    column_camera: Tensor | None,
    removed: Tensor | None,
    preceding: Tensor,
    tied: Tensor,
    nearest: Tensor,
    moved: Tensor,
) -> None:
    """Count, for every match of every row of a tile, the items of the tile that rank before it.

    Item j ranks before match m if (key of j, j) < (key of m, m). Matches are not counted: they are
    in the ignored lists and ranked among themselves. Called once for each tile of a gallery, the
    counts add up to the number of kept items that are no match and rank before it.

    Args:
        values: [R, W], see `ranking_keys`.
        row_term: [R] in the dtype of `values`.
        column_term: [W] in the dtype of `values`.
        metric: place in `METRICS`.
        offset: item number of the tile's first column.
        match_start: int64 [R + 1], where each row's matches begin in the lists of matches.
        match_item: int64 [M], item numbers.
        match_key: [M] in the dtype of `values`, ascending by (key, item) in each row.
        ignored_start: int64 [R + 1].
        ignored_item: int64, item numbers that are not counted, ascending in each row.
        row_camera: int32 [R]; items of the same code are not counted. None: no such rule.
        column_camera: int32 [W], or None.
        removed: bool [R, W], items that are not counted, or None.
        preceding: int64 [M], increased by the counts.
        tied: int64 [R], increased by the number of pairs (match, counted item) of equal keys.
        nearest: [R], lowered to the smallest key that is counted; NaN if any key of the row is.
        moved: int64 [R], increased by the matches whose key in this tile is not `match_key`.
    """
    columns = torch.arange(offset, offset + values.shape[1], device=values.device)
    for row in range(values.shape[0]):
        keys = values[row]  # [W]
        if metric != METRICS.index("given"):  # which has no terms
            keys = ranking_keys(keys, row_term[row], column_term, metric)
        counted = _counted(
            row, len(keys), offset, ignored_start, ignored_item, row_camera, column_camera, removed
        )

        mine = slice(int(match_start[row]), int(match_start[row + 1]))
        item, key = match_item[mine], match_key[mine]  # [m]
        equal = counted & (keys == key[:, None])  # [m, W]
        before = (counted & (keys < key[:, None])) | (equal & (columns < item[:, None]))
        preceding[mine] += before.sum(1)
        tied[row] += equal.sum()
        inside = (item >= offset) & (item < offset + len(keys))
        moved[row] += (keys[item[inside] - offset] != key[inside]).sum()
        smallest = torch.where(counted, keys, torch.inf).amin()
        nearest[row] = torch.where(
            keys.isnan().any(), torch.nan, torch.minimum(nearest[row], smallest)
        )


def count_certain(
    values: Tensor,
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
    """Count, for every match, the items of a tile that certainly rank before it.

    A key of the tile is known up to row_radius[i] * column_radius[j] + column_slack[j]; what else
    row i may be wrong by is in its thresholds.

    Args:
        values: float32 [R, W], see `ranking_keys`.
        row_term: float32 [R].
        column_term: float32 [W].
        metric: place in `METRICS`.
        offset: item number of the tile's first column.
        row_radius: float32 [R].
        column_radius: float32 [W].
        column_slack: float32 [W].
        match_start: int64 [R + 1].
        match_item: int64 [M].
        lower: float32 [M]: an item whose key is at most something below it precedes the match.
            Ascending in each row, as are the keys of the matches.
        upper: float32 [M]: an item whose key is at least something above it does not.
        ignored_start: int64 [R + 1], see `count_preceding`.
        ignored_item: int64.
        row_camera: int32 [R], or None.
        column_camera: int32 [W], or None.
        removed: bool [R, W], or None.
        preceding: int64 [M], increased by the counts.

    Returns:
        The undecided pairs, int32 [P, 4], ascending: row, column, and the first and the end of the
        row's matches for which it is open whether the column's item precedes them.
    """
    columns = torch.arange(values.shape[1], device=values.device)
    undecided = []
    for row in range(values.shape[0]):
        keys = values[row]  # [W]
        if metric != METRICS.index("given"):
            keys = ranking_keys(keys, row_term[row], column_term, metric)
        counted = _counted(
            row, len(keys), offset, ignored_start, ignored_item, row_camera, column_camera, removed
        )

        mine = slice(int(match_start[row]), int(match_start[row + 1]))
        width = row_radius[row] * column_radius + column_slack
        before = (keys + width) < lower[mine][:, None]  # [m, W]
        after = (keys - width) > upper[mine][:, None]
        preceding[mine] += (before & counted).sum(1)
        first, last = after.sum(0), (~before).sum(0)
        pending = torch.nonzero(counted & (first < last)).squeeze(1)
        undecided.append(
            torch.stack(
                [torch.full_like(pending, row), columns[pending], first[pending], last[pending]], 1
            )
        )
    return torch.cat(undecided).to(torch.int32)


INTEGER_LENGTH = 2.0**15
"""Length of integer rows. That of a rounded row is below 2^15.5, so that by Cauchy's inequality no
part of an inner product leaves 32 bits."""


def integer_rows(x: Tensor, norms: Tensor) -> tuple[Tensor, Tensor]:
    """Round features, brought to length 2^15 in float32, to integers of at most 32767.

    Args:
        x: float32 [N, D], D at most 2^24.
        norms: their squared norms, float64 [N]; rows of norm 0 become 0.

    Returns:
        int16 [N, D] and float64 [N], the length of what rounding left, in the integers' unit.
    """
    scale = torch.where(norms > 0, INTEGER_LENGTH / norms.sqrt(), 0.0).float()
    scaled = x * scale[:, None]
    whole = scaled.round().clamp(-32767, 32767)
    return whole.to(torch.int16), (scaled - whole).double().norm(dim=1)


def mixed(x: Tensor) -> Tensor:
    """Spread each entry of a row over others, as an orthogonal map times a power of two.

    Rows are taken as [count, D / count], their entries multiplied by signs (the last bits of
    SplitMix64 of their places) and the rows of that combined by sums and differences, a Hadamard
    matrix: a few entries that are much larger than the others, as transformers have them, would
    else leave the others next to no bits. Inner products grow by `count`, the largest power of four
    up to 64 that divides D and leaves 16 columns or more (1: nothing is mixed).

    Args:
        x: float32 [N, D].

    Returns:
        float32 [N, D].
    """
    width = x.shape[1]
    count = mixed_entries(width)
    signs = []
    for place in range(1, width + 1):
        z = place * 0x9E3779B97F4A7C15 % 2**64
        z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
        z = (z ^ (z >> 27)) * 0x94D049BB133111EB % 2**64
        signs.append(-1.0 if (z ^ (z >> 31)) & 1 else 1.0)
    rows = x * torch.tensor(signs, dtype=x.dtype, device=x.device)
    half = 1
    while half < count:
        upper, lower = rows.view(len(x), count // (2 * half), 2, -1).unbind(2)
        rows = torch.stack([upper + lower, upper - lower], 2)
        half *= 2
    return rows.reshape(x.shape)


def mixed_entries(width: int) -> int:
    """Return how many entries of rows of this width `mixed` combines."""
    count = 1
    while count < 64 and width % (4 * count) == 0 and width // (4 * count) >= 16:
        count *= 4
    return count


def byte_rows(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Round `mixed` rows to multiples of a 127th of their largest entry.

    Args:
        x: float32 [N, D].

    Returns:
        int8 [N, D]; the float32 unit [N] of each row's numbers, with which their inner products are
        about those of x; and float64 [N], the length of what rounding left.
    """
    rows, shrink = mixed(x), mixed_entries(x.shape[1]) ** -0.5
    largest = rows.abs().amax(1) if x.shape[1] else x.new_zeros(len(x))
    # A quotient of tensors: torch takes that of a number as a product with the reciprocal.
    scale = torch.where(largest > 0, torch.full_like(largest, 127) / largest, 0.0)
    unit = largest / 127
    numbers = (rows * scale[:, None]).round()
    rest = rows - numbers * unit[:, None]
    return numbers.to(torch.int8), unit * shrink, rest.double().norm(dim=1) * shrink


def floats_of_integers_(values: Tensor, row_unit: Tensor, column_unit: Tensor) -> None:
    """Replace inner products of `byte_rows` by the bits of the float32 that they stand for.

    Args:
        values: int32 [R, W], columns contiguous; float32 afterwards (`values.view(float32)`).
        row_unit: float32 [R].
        column_unit: float32 [W].
    """
    floats = (values.to(torch.float32) * row_unit[:, None]) * column_unit
    values.copy_(floats.view(torch.int32))


def pair_keys(
    x: Tensor,
    y: Tensor,
    row_term: Tensor,
    column_term: Tensor,
    rows: Tensor,
    columns: Tensor,
    metric: int,
) -> Tensor:
    """Return the keys of pairs of rows in float64.

    From float32: 1 - <x, y> / (row_term * column_term), 1 where that divisor is 0, or
    max(0, (row_term + column_term) - 2 <x, y>), with `pair_products`' inner product.
    From `integer_rows`: the same with the exact product of the integers in units of 2^-30, which
    stands for the cosine.

    Args:
        x: float32 or int16 [N, D].
        y: the same [M, D].
        row_term: float64 [N], norms (cosine) or squared norms (euclidean).
        column_term: float64 [M].
        rows: int64 [P].
        columns: int64 [P].
        metric: place in `METRICS`, cosine or euclidean.

    Returns:
        float64 [P].
    """
    one, other = row_term[rows], column_term[columns]
    squared = metric == METRICS.index("euclidean")
    if x.dtype == torch.int16:
        cosines = (x[rows].long() * y[columns].long()).sum(1).double() / INTEGER_LENGTH**2
        if not squared:
            return 1 - cosines
        products = cosines * (one * other).sqrt()
    else:
        products = pair_products(x, y, rows, columns)
    if squared:
        return ((one + other) - 2 * products).clamp_min(0)
    norms = one * other
    return torch.where(norms > 0, 1 - products / norms, 1.0)


def settle_pairs(
    undecided: Tensor,
    x: Tensor,
    y: Tensor,
    row_term: Tensor,
    column_term: Tensor,
    metric: int,
    row_radius: Tensor | None,
    column_radius: Tensor | None,
    row_slack: Tensor | None,
    column_slack: Tensor | None,
    offset: int,
    match_start: Tensor,
    match_item: Tensor,
    match_key: Tensor,
    preceding: Tensor,
    tied: Tensor,
) -> Tensor:
    """Settle pairs that `count_certain` left open by products in float64.

    Args:
        undecided: int32 [P, 4], of a tile, see `count_certain`.
        x: [R, D], of the tile's rows, see `pair_keys`.
        y: [W, D], of its columns.
        row_term: float64 [R], see `pair_keys`.
        column_term: float64 [W].
        metric: place in `METRICS`, cosine or euclidean.
        row_radius: float64 [R], or None where x and y are the features themselves: the keys are
            then exact, and equal ones ordered by item.
        column_radius: float64 [W]; a key may be wrong by row_radius * column_radius + (row_slack +
            column_slack).
        row_slack: float64 [R].
        column_slack: float64 [W].
        offset: item number of the tile's first column.
        match_start: int64 [R + 1].
        match_item: int64 [M].
        match_key: float64 [M], ascending by (key, item) in each row.
        preceding: int64 [M], increased by the pairs that precede.
        tied: int64 [R], increased by the pairs of a match and an item with equal exact keys.

    Returns:
        The pairs that are still undecided, int32 [P', 4].
    """
    row, column, first, last = undecided.long().unbind(1)
    keys = pair_keys(x, y, row_term, column_term, row, column, metric)
    still = []
    for p in range(len(undecided)):
        start = int(match_start[row[p]])
        open_ = torch.arange(start + int(first[p]), start + int(last[p]), device=x.device)
        theirs, key = match_key[open_], keys[p]
        if row_radius is None or column_radius is None or row_slack is None or column_slack is None:
            equal = theirs == key
            tied[row[p]] += equal.sum()
            precedes = (key < theirs) | (equal & (column[p] + offset < match_item[open_]))
            preceding[open_] += precedes.long()
            continue
        width = row_radius[row[p]] * column_radius[column[p]] + (
            row_slack[row[p]] + column_slack[column[p]]
        )
        before, after = key + width < theirs, key - width > theirs
        preceding[open_] += before.long()
        left = open_[~before & ~after] - start
        if len(left):
            still.append(
                torch.stack([row[p], column[p], left[0], left[-1] + 1])  # matches ascend
            )
    return torch.stack(still).to(torch.int32) if still else undecided.new_empty(0, 4)


def part_keys(
    products: Tensor,
    row_term: Tensor,
    column_term: Tensor,
    row_weight: Tensor,
    column_weight: Tensor,
    metric: int,
    keys: Tensor,
) -> None:
    """Write visibility-weighted mean distances of part features.

    Args:
        products: inner products of every part, float32 [P, R, W].
        row_term: float32 [P, R], see `ranking_keys`.
        column_term: float32 [P, W].
        row_weight: float32 [P, R].
        column_weight: float32 [P, W].
        metric: place in `METRICS`, cosine or euclidean.
        keys: float32 [R, W], set to sum_p w_p d_p / sum_p w_p, w_p = row_weight * column_weight,
            d_p = 1 - cosine or the Euclidean distance (not squared), summed in the order of parts;
            to infinity where the weights sum to 0.
    """
    numerator = torch.zeros_like(keys)
    denominator = torch.zeros_like(keys)
    for part, product in enumerate(products):
        distance = ranking_keys(product, row_term[part][:, None], column_term[part], metric)
        if metric == METRICS.index("euclidean"):
            # torch's float32 roots are off by a last bit on some CPUs.
            distance = distance.double().sqrt().to(torch.float32)
        weight = row_weight[part][:, None] * column_weight[part]  # [R, W]
        numerator = numerator + weight * distance
        denominator = denominator + weight
    keys.copy_(torch.where(denominator > 0, numerator / denominator, torch.inf))


def count_impostors(
    values: Tensor,
    row_term: Tensor,
    column_term: Tensor,
    metric: int,
    offset: int,
    ignored_start: Tensor,
    ignored_item: Tensor,
    row_camera: Tensor | None,
    column_camera: Tensor | None,
    cross_camera: bool,
    removed: Tensor | None,
    known: Tensor | None,
    edges: Tensor,
    counts: Tensor,
    nearest: Tensor,
    nearest_item: Tensor,
) -> None:
    """Count the kept items of a tile that are no match by their keys, and find the nearest.

    Args:
        values: [R, W], see `ranking_keys`.
        row_term: [R] in the dtype of `values`.
        column_term: [W] in the dtype of `values`.
        metric: place in `METRICS`.
        offset: item number of the tile's first column.
        ignored_start: int64 [R + 1].
        ignored_item: int64, matches and removed items, ascending in each row.
        row_camera: int32 [R]; items of the same code are left out. None: no such rule.
        column_camera: int32 [W], or None.
        cross_camera: items of the same code are left out of the counts alone.
        removed: bool [R, W], items that are left out, or None.
        known: bool [W], items that may be the nearest, or None.
        edges: float64 [B], ascending upper edges of bins in the unit of keys.
        counts: int64 [B + 1], increased: a key k belongs to the first bin with k <= edge, one
            beyond the last edge to bin B.
        nearest: float64 [R], lowered to the smallest kept key of a known item.
        nearest_item: int64 [R], the first item that has it.
    """
    for row in range(values.shape[0]):
        keys = values[row]  # [W]
        if metric != METRICS.index("given"):
            keys = ranking_keys(keys, row_term[row], column_term, metric)
        kept = torch.ones_like(keys, dtype=torch.bool)
        ignored = ignored_item[int(ignored_start[row]) : int(ignored_start[row + 1])]
        here = ignored[(ignored >= offset) & (ignored < offset + len(keys))]
        kept[here - offset] = False
        if removed is not None:
            kept &= ~removed[row]
        other_camera = torch.ones_like(kept)
        if row_camera is not None and column_camera is not None:
            other_camera = column_camera != row_camera[row]
        eligible = kept if cross_camera else kept & other_camera
        if known is not None:
            eligible = eligible & known
        columns = torch.nonzero(eligible).squeeze(1)
        if len(columns):
            smallest = keys[columns].double().min()
            item = offset + columns[keys[columns].double() == smallest][0]
            if (smallest, item) < (nearest[row], nearest_item[row]):
                nearest[row], nearest_item[row] = smallest, item
        place = torch.searchsorted(edges, keys[kept & other_camera].double())
        counts += torch.bincount(place, minlength=len(counts))


def average_precision(ranks: Tensor, trapezoid: bool = False) -> Tensor:
    """Average precision of one query.

    Args:
        ranks: ranks of its matches among the kept items, ascending from 1, int64 [m], m >= 1.
        trapezoid: the mean of the precisions before and at each hit, as Market-1501's MATLAB code
            has it: hit h at rank r adds ((h - 1) / (r - 1) + h / r) / 2, whose first term is 1
            where r = 1.

    Returns:
        float64 scalar.
    """
    rank = ranks.to(torch.float64)
    hit = torch.arange(1, len(ranks) + 1, dtype=torch.float64, device=ranks.device)
    at = hit / rank
    if not trapezoid:
        return at.mean()
    before = torch.where(ranks == 1, 1.0, (hit - 1) / (rank - 1).clamp_min(1))
    return ((before + at) / 2).mean()


# nearest: bounded selection of distances


def nearest_in_rows(distances: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Return the k smallest entries of each row in the order of (distance, index).

    Args:
        distances: [R, N], float32 or float64, free of NaN.
        k: entries a row, 1 to N.

    Returns:
        distances [R, k] of the input's type and int32 indices [R, k].
    """
    ordered, index = torch.sort(distances, dim=1, stable=True)
    return ordered[:, :k].contiguous(), index[:, :k].to(torch.int32)


def select_neighbours(
    candidates: Tensor,
    counts: Tensor,
    thresholds: Tensor,
    maxima: Tensor,
    kept: Tensor | None,
    products: Tensor,
    row_term: Tensor,
    column_term: Tensor,
    cosine: bool,
    k: int,
    first_item: int,
    first_other: int,
    symmetric: bool,
) -> None:
    """Offer the squared distances of a tile of inner products to the candidate lists of its items.

    A candidate is one int64: the bits of its float32 distance (>= 0, so that they order like the
    number) above its int32 index; the lists are therefore ordered by (distance, index).

    Args:
        candidates: [N, S] int64, S >= k slots an item, changed in place.
        counts: [N] int32 filled slots, changed in place.
        thresholds: [N] float32, infinity while an item has fewer than k candidates, then a bound
            that its k-th smallest distance does not exceed; changed in place.
        maxima: [N] float32 largest distance seen by each item, changed in place.
        kept: [Q, N - Q] float32, gets the distances of items before Q to those from Q on, as far
            as the tile has them; None where they are not wanted. Symmetric tiles only.
        products: [R, C] float32, C contiguous, between items (rows) and others (columns).
        row_term: [R], see `squared_distances_`.
        column_term: [C].
        cosine: see `squared_distances_`.
        k: how many candidates each item needs in the end.
        first_item: item of the tile's first row.
        first_other: index of the candidate of its first column.
        symmetric: the others are the same items. Pairs with item < other are taken, and offered to
            both; what else the tile holds is left out.
    """
    tile = products.clone()
    squared_distances_(tile, row_term, column_term, cosine)
    item = torch.arange(first_item, first_item + len(tile), device=tile.device)
    other = torch.arange(first_other, first_other + tile.shape[1], device=tile.device)
    taken = item[:, None] < other if symmetric else torch.ones_like(tile, dtype=torch.bool)
    lists = candidates, counts, thresholds, maxima, k
    _offer(*lists, tile, taken, item, other)
    if symmetric:
        _offer(*lists, tile.t(), taken.t(), other, item)
    if kept is not None:
        queries = len(kept)
        row, column = (taken & (item[:, None] < queries) & (other >= queries)).nonzero().unbind(1)
        kept[item[row], other[column] - queries] = tile[row, column]


def ordered_candidates(candidates: Tensor, counts: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Return the k nearest of every candidate list, in the order of (distance, index).

    Args:
        candidates: [N, S] int64, see `select_neighbours`.
        counts: [N] int32 filled slots, each at least k.
        k: entries a row, 1 to S.

    Returns:
        Indices int32 [N, k] and distances float32 [N, k].
    """
    slots = torch.arange(candidates.shape[1], device=candidates.device)
    ordered = candidates.masked_fill(slots >= counts[:, None], _EMPTY).sort(dim=1).values[:, :k]
    distances = (ordered >> 32).to(torch.int32).view(torch.float32)
    return (ordered & 0x7FFFFFFF).to(torch.int32), distances.contiguous()


def _offer(
    candidates: Tensor,
    counts: Tensor,
    thresholds: Tensor,
    maxima: Tensor,
    k: int,
    block: Tensor,
    taken: Tensor,
    item: Tensor,
    other: Tensor,
) -> None:
    """Offer the taken entries of a block of distances [I, O] to the items along its rows."""
    if not block.numel():
        return
    packed = (block.contiguous().view(torch.int32).to(torch.int64) << 32) | other  # [I, O]
    packed = packed.masked_fill(~taken, _EMPTY)
    slots = torch.arange(candidates.shape[1], device=block.device)
    held = candidates[item].masked_fill(slots >= counts[item, None], _EMPTY)
    merged = torch.cat([held, packed], dim=1).sort(dim=1).values[:, :k]
    found = (merged != _EMPTY).sum(1)
    candidates[item, : merged.shape[1]] = merged
    counts[item] = found.to(torch.int32)
    bound = (merged[:, -1] >> 32).to(torch.int32).view(torch.float32)
    thresholds[item] = torch.where(found == k, bound, thresholds[item])
    reach = block.masked_fill(~taken, 0).amax(1)
    maxima[item] = torch.maximum(maxima[item], reach)


_EMPTY = torch.iinfo(torch.int64).max


def squared_distances_(tile: Tensor, row_term: Tensor, column_term: Tensor, cosine: bool) -> None:
    """Turn a tile of inner products into squared distances >= 0 in place.

    Args:
        tile: [R, C] float32.
        row_term: [R] float32, 1 / norm (0 for a zero vector) if cosine, else the squared norm.
        column_term: [C] float32, likewise.
        cosine: squared distances of the normalised vectors, 2 - 2 cos, instead of those of the
            vectors as they are.
    """
    if cosine:
        tile.copy_(2 * (1 - (tile * row_term[:, None]) * column_term))
    else:
        tile.copy_((row_term[:, None] + column_term) - 2 * tile)
    tile.copy_(torch.where(tile > 0, tile, 0.0))  # never -0, whose bits would order last


def open_pairs(
    values: Tensor,
    row_term: Tensor,
    column_term: Tensor,
    metric: int,
    row_radius: Tensor,
    column_radius: Tensor,
    row_slack: Tensor,
    column_slack: Tensor,
    near_row: Tensor,
    near_column: Tensor,
    far_row: Tensor,
    far_column: Tensor,
    first_item: int,
    first_other: int,
    symmetric: bool,
) -> Tensor:
    """List the pairs of a tile that may be near enough, or far enough, for one of their items.

    A key is known up to row_radius[i] * column_radius[j] + (row_slack[i] + column_slack[j]).

    Args:
        values: float32 [R, W], see `ranking_keys`.
        row_term: float32 [R].
        column_term: float32 [W].
        metric: place in `METRICS`.
        row_radius: float32 [R].
        column_radius: float32 [W].
        row_slack: float32 [R].
        column_slack: float32 [W].
        near_row: float32 [R], keys up to which a pair is wanted for its row.
        near_column: float32 [W], likewise for its column.
        far_row: float32 [R], keys from which it is wanted.
        far_column: float32 [W].
        first_item: item of the first row.
        first_other: item of the first column.
        symmetric: leave out pairs whose row item is not below the column's.

    Returns:
        int32 [P, 2], rows and columns, ascending.
    """
    keys = values
    if metric != METRICS.index("given"):  # which has no terms
        keys = ranking_keys(values, row_term[:, None], column_term, metric)
    width = row_radius[:, None] * column_radius + (row_slack[:, None] + column_slack)
    least, most = keys - width, keys + width
    wanted = (least <= torch.maximum(near_row[:, None], near_column)) | (
        most >= torch.minimum(far_row[:, None], far_column)
    )
    if symmetric:
        item = torch.arange(first_item, first_item + len(values), device=values.device)
        other = torch.arange(first_other, first_other + values.shape[1], device=values.device)
        wanted &= item[:, None] < other
    return torch.nonzero(wanted).to(torch.int32).contiguous()


def narrow_pairs(
    pairs: Tensor,
    x: Tensor,
    y: Tensor,
    row_term: Tensor,
    column_term: Tensor,
    metric: int,
    row_radius: Tensor,
    column_radius: Tensor,
    row_slack: Tensor,
    column_slack: Tensor,
    near_row: Tensor,
    near_column: Tensor,
    far_row: Tensor,
    far_column: Tensor,
) -> Tensor:
    """Return those of the pairs that may still be near or far enough, by better keys.

    Args:
        pairs: int32 [P, 2], rows and columns of a tile.
        x: [R, D], of the tile's rows, see `pair_keys`.
        y: [W, D], of its columns.
        row_term: float64 [R], see `pair_keys`.
        column_term: float64 [W].
        metric: place in `METRICS`, cosine or euclidean.
        row_radius: float64 [R]; bounds and limits are those of `open_pairs`.
        column_radius: float64 [W].
        row_slack: float64 [R].
        column_slack: float64 [W].
        near_row: float64 [R].
        near_column: float64 [W].
        far_row: float64 [R].
        far_column: float64 [W].

    Returns:
        int32 [P', 2].
    """
    row, column = pairs.long().unbind(1)
    keys = pair_keys(x, y, row_term, column_term, row, column, metric)
    width = row_radius[row] * column_radius[column] + (row_slack[row] + column_slack[column])
    wanted = (keys - width <= torch.maximum(near_row[row], near_column[column])) | (
        keys + width >= torch.minimum(far_row[row], far_column[column])
    )
    return pairs[wanted].contiguous()


def offer_pairs(
    index: Tensor,
    distance: Tensor,
    counts: Tensor,
    maxima: Tensor,
    pairs: Tensor,
    distances: Tensor,
    limits: Tensor,
    first_item: int,
    first_other: int,
    both: bool,
    k: int,
) -> None:
    """Offer exact distances of pairs to the lists of their items.

    A list holds the offered candidates within its item's limit; when all its slots are taken, it
    keeps the k nearest by (distance, index).

    Args:
        index: int32 [N, S], S > k, the candidates of each item; the first `counts` are in use.
        distance: float64 [N, S].
        counts: int32 [N].
        maxima: float64 [N], raised to the largest distance offered.
        pairs: int32 [P, 2], see `open_pairs`.
        distances: float64 [P].
        limits: float64 [N], distances up to which candidates are kept.
        first_item: item of row 0.
        first_other: item of column 0.
        both: offer to the item of the column, too.
        k: candidates that each list must keep.
    """
    for (row, column), value in zip(pairs.tolist(), distances.tolist(), strict=True):
        sides = [(first_item + row, first_other + column)]
        for item, other in sides + ([sides[0][::-1]] if both else []):
            maxima[item] = max(float(maxima[item]), value)
            if value > float(limits[item]):
                continue
            count = int(counts[item])
            index[item, count], distance[item, count] = other, value
            counts[item] = count + 1
            if count + 1 == index.shape[1]:
                mine = sorted(zip(distance[item].tolist(), index[item].tolist(), strict=True))[:k]
                distance[item, :k] = distance.new_tensor([d for d, _ in mine])
                index[item, :k] = index.new_tensor([i for _, i in mine])
                counts[item] = k


def pair_products(x: Tensor, y: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Return <x[rows[p]], y[columns[p]]> for each p in float64.

    Eight interleaved accumulators joined by a fixed tree, so that the result depends on neither
    device nor batch.

    Args:
        x: [N, D] float32.
        y: [M, D] float32.
        rows: [P] int64.
        columns: [P] int64.

    Returns:
        [P] float64.
    """
    result = x.new_zeros(len(rows), dtype=torch.float64)
    for begin in range(0, len(rows), 1024):
        part = slice(begin, begin + 1024)
        terms = x[rows[part]].double() * y[columns[part]].double()  # [P, D], exact products
        result[part] = interleaved_sum(terms)
    return result


# k_reciprocal: Zhong et al., CVPR 2017, as sparse rows
#
# N items, K neighbours a row (self among them), in the order of (distance, index). A set of rows
# is a CSR pair: offsets int64 [N + 1] and columns int32 [E], ascending within a row; weights are
# a third array of E values.


def reciprocal_sets(neighbours: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Return for every item the j among its first k neighbours that have it among theirs.

    Args:
        neighbours: [N, K] int32, nearest first.
        k: length of the lists compared, self included; 1 to K.

    Returns:
        CSR offsets and columns.
    """
    forward = neighbours[:, :k].long()  # [N, k]
    items = torch.arange(len(neighbours), device=neighbours.device)
    mutual = (neighbours[forward, :k] == items[:, None, None]).any(2)  # [N, k]
    rows = items[:, None].expand_as(forward)[mutual]
    return _csr(rows * len(items) + forward[mutual], len(items), len(items))


def expand_sets(
    offsets: Tensor, columns: Tensor, half_offsets: Tensor, half_columns: Tensor
) -> tuple[Tensor, Tensor]:
    """Return each set R(i) joined with every C(j), j in R(i), of which it holds over two thirds.

    Args:
        offsets: of the sets R, [N + 1].
        columns: of the sets R.
        half_offsets: of the sets C of the half list, [N + 1].
        half_columns: of the sets C.

    Returns:
        CSR offsets and columns.
    """
    n = len(offsets) - 1
    rows = _rows(offsets)
    own = rows * n + columns  # ascending, since rows and columns are
    pair, entry = _join(columns, half_offsets)  # for pair (i, j): every l in C(j)
    key = rows[pair] * n + half_columns[entry]
    inside = _contains(own, key)
    sizes = half_offsets[1:] - half_offsets[:-1]
    common = torch.zeros(len(columns), dtype=torch.int64, device=offsets.device)
    common.index_add_(0, pair, inside.long())
    accepted = 3 * common > 2 * sizes[columns.long()]
    return _csr(torch.cat([own, key[accepted[pair]]]).unique(), n, n)


def listed_distances(
    offsets: Tensor, columns: Tensor, neighbours: Tensor, distances: Tensor
) -> Tensor:
    """Return d(i, j) of each entry from i's list or else from j's, -1 where neither has it.

    Args:
        offsets: CSR offsets, [N + 1].
        columns: CSR columns, [E].
        neighbours: [N, K] int32.
        distances: [N, K], float32 or float64.

    Returns:
        [E] float64.
    """
    n = len(offsets) - 1
    items = torch.arange(n, device=offsets.device)[:, None]
    listed, order = (items * n + neighbours).reshape(-1).sort()
    values = distances.reshape(-1).double()[order]
    rows = _rows(offsets)
    result = torch.full((len(columns),), -1.0, dtype=torch.float64, device=offsets.device)
    for key in (columns * n + rows, rows * n + columns):  # the item's own list comes last and wins
        place = torch.searchsorted(listed, key).clamp(max=max(len(listed) - 1, 0))
        found = listed[place] == key if len(listed) else torch.zeros_like(key, dtype=torch.bool)
        result[found] = values[place[found]]
    return result


def encode(offsets: Tensor, distances: Tensor, maxima: Tensor | None) -> Tensor:
    """Return the weights exp(-d) of each row, divided by their sum.

    Args:
        offsets: CSR offsets, [N + 1].
        distances: [E] float64.
        maxima: [N] float64, by which a row's distances are divided first (0: the row's are 0).
            None: no division, and the row's smallest distance is subtracted, which leaves the
            quotient as it is and keeps exp from vanishing.

    Returns:
        [E] float64.
    """
    rows = _rows(offsets)
    if maxima is None:
        least = torch.full((len(offsets) - 1,), torch.inf, dtype=torch.float64)
        least = least.to(offsets.device).scatter_reduce_(0, rows, distances, "amin")
        scaled = distances - least[rows]
    else:
        scaled = torch.where(maxima[rows] > 0, distances / maxima[rows], 0.0)
    weights = torch.exp(-scaled)
    total = torch.zeros(len(offsets) - 1, dtype=torch.float64, device=offsets.device)
    return weights / total.index_add_(0, rows, weights)[rows]


def average_rows(
    offsets: Tensor, columns: Tensor, values: Tensor, neighbours: Tensor, k2: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Return for every item the mean of the rows of its first k2 neighbours.

    Args:
        offsets: CSR offsets, [N + 1].
        columns: CSR columns, [E].
        values: [E] float64.
        neighbours: [N, K] int32, nearest first.
        k2: rows averaged, 1 to K.

    Returns:
        CSR offsets, columns and values.
    """
    n = len(offsets) - 1
    chosen = neighbours[:, :k2].reshape(-1)
    pair, entry = _join(chosen, offsets)
    key, place = ((pair // k2) * n + columns[entry]).unique(return_inverse=True)
    total = torch.zeros(len(key), dtype=torch.float64, device=offsets.device)
    total.index_add_(0, place, values[entry])
    return *_csr(key, n, n), total / k2


def transpose_rows(
    offsets: Tensor, columns: Tensor, values: Tensor, first: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the inverted index of the rows from `first` on: for each column, rows and values.

    Args:
        offsets: CSR offsets of N rows over N columns, [N + 1].
        columns: CSR columns, [E].
        values: [E] float64.
        first: rows before it are left out.

    Returns:
        CSR offsets [N + 1], rows (ascending within a column) and values.
    """
    n = len(offsets) - 1
    begin = int(offsets[first])
    rows, kept = _rows(offsets)[begin:], columns[begin:].long()
    order = torch.argsort(kept, stable=True)
    counts = torch.bincount(kept, minlength=n)
    return _offsets(counts), rows[order].to(torch.int32), values[begin:][order]


def jaccard_rows(
    offsets: Tensor,
    columns: Tensor,
    values: Tensor,
    inverted_offsets: Tensor,
    inverted_rows: Tensor,
    inverted_values: Tensor,
    rows: Tensor,
    max_distance: float | None,
    upper: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the Jaccard distances of chosen rows to the rows of an inverted index.

    J = 1 - m / (2 - m) with m = sum over l of min(V(i, l), V(j, l)), clamped to [0, 1].

    Args:
        offsets: of V, [N + 1].
        columns: of V.
        values: of V, float64.
        inverted_offsets: of the inverted index, [N + 1].
        inverted_rows: of the inverted index.
        inverted_values: of the inverted index, float64.
        rows: [M] int64, the chosen rows.
        max_distance: entries with J <= max_distance are returned; None: those with J < 1.
        upper: leave out the entries before a row's own.

    Returns:
        CSR offsets [M + 1], columns (ascending) and values of J.
    """
    n = len(offsets) - 1
    counts, found, distances = [], [], []
    for i in rows.tolist():
        mine = slice(int(offsets[i]), int(offsets[i + 1]))
        pair, entry = _join(columns[mine], inverted_offsets)
        shared = torch.minimum(values[mine][pair], inverted_values[entry])
        overlap = torch.zeros(n, dtype=torch.float64, device=offsets.device)
        overlap.index_add_(0, inverted_rows[entry].long(), shared)
        jaccard = (1 - overlap / (2 - overlap)).clamp(0, 1)
        kept = jaccard < 1 if max_distance is None else jaccard <= max_distance
        if upper:
            kept[:i] = False
        found.append(kept.nonzero()[:, 0].to(torch.int32))
        distances.append(jaccard[kept])
        counts.append(len(found[-1]))
    nothing = columns.new_empty(0), values.new_empty(0)
    lengths = torch.tensor(counts, dtype=torch.int64, device=offsets.device)
    return _offsets(lengths), torch.cat([nothing[0], *found]), torch.cat([nothing[1], *distances])


LIGHT_SHARE, LIGHTER = 0.35, 0.7
"""Of the least overlap, what a row's light entries may sum to; and the factor between the weights
that are tried as the least of its heavy ones."""


def heavy_rows(
    offsets: Tensor, columns: Tensor, values: Tensor, max_distance: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Leave out the light entries of each row of V.

    What is left out sums to at most a share of the overlap that items within `max_distance` have,
    so small that the heavy entries of two such items share some of it.

    Args:
        offsets: of V, [N + 1].
        columns: of V.
        values: of V, float64.
        max_distance: of pairs that are looked for, below 1.

    Returns:
        CSR offsets [N + 1], columns and values.
    """
    rest = LIGHT_SHARE * 2 * (1 - max_distance) / (2 - max_distance)
    kept = torch.zeros(len(values), dtype=torch.bool, device=values.device)
    for i in range(len(offsets) - 1):
        mine = slice(int(offsets[i]), int(offsets[i + 1]))
        weights = values[mine]
        least = float(weights.max()) if len(weights) else 0.0
        while least > 0 and float(weights[weights < least].sum()) > rest:
            least *= LIGHTER
        kept[mine] = weights >= least
    counts = torch.bincount(_rows(offsets)[kept], minlength=len(offsets) - 1)
    return _offsets(counts), columns[kept], values[kept]


def near_rows(
    offsets: Tensor,
    columns: Tensor,
    values: Tensor,
    heavy_offsets: Tensor,
    heavy_columns: Tensor,
    heavy_values: Tensor,
    index_offsets: Tensor,
    index_rows: Tensor,
    index_values: Tensor,
    rows: Tensor,
    max_distance: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the Jaccard distances up to `max_distance` of chosen rows, from each row's own on.

    These are `jaccard_rows` of V and its inverted index with `upper`. The heavy rows and their
    inverted index say where to look, and change nothing.

    Args:
        offsets: of V, [N + 1].
        columns: of V.
        values: of V, float64.
        heavy_offsets: of `heavy_rows` of V with this distance.
        heavy_columns: likewise.
        heavy_values: likewise.
        index_offsets: of the inverted index of these.
        index_rows: likewise.
        index_values: likewise.
        rows: [M] int64, the chosen rows.
        max_distance: below 1.

    Returns:
        CSR offsets [M + 1], columns (ascending) and values of J.
    """
    inverted = transpose_rows(offsets, columns, values, 0)
    return jaccard_rows(offsets, columns, values, *inverted, rows, max_distance, True)


def mirror_rows(offsets: Tensor, columns: Tensor, values: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the symmetric matrix of which rows hold what is on and above the diagonal.

    Args:
        offsets: CSR offsets [N + 1].
        columns: ascending in each row, none below the row's number.
        values: float64.

    Returns:
        CSR offsets [N + 1], columns (ascending) and values.
    """
    n, rows = len(offsets) - 1, _rows(offsets)
    above = columns > rows
    all_rows = torch.cat([rows, columns[above].long()])
    all_columns = torch.cat([columns.long(), rows[above]])
    order = torch.argsort(all_rows * n + all_columns)
    counts = torch.bincount(all_rows, minlength=n)
    found = all_columns[order].to(torch.int32), torch.cat([values, values[above]])[order]
    return _offsets(counts), *found


def mix_distances(
    squared: Tensor,
    maxima: Tensor | None,
    offsets: Tensor,
    columns: Tensor,
    values: Tensor,
    first: int,
    lambda_value: float,
    power: int,
    scale: float,
) -> Tensor:
    """Return final distances (1 - lambda) J + lambda d', d' from squared distances d.

    Args:
        squared: d, [R, G], float32 or float64.
        maxima: [R] float64, d' = (d / maximum)^power, 0 where the maximum is; None: d' = scale d.
        offsets: of the rows' Jaccard distances, [R + 1].
        columns: their items; gallery item g is item first + g; what is missing is 1.
        values: the Jaccard distances, float64.
        first: item of the gallery's first.
        lambda_value: weight of d'.
        power: 1 or 2: whether distances and maxima are squared (once more) before they are divided.
        scale: factor of d where it is not divided.

    Returns:
        [R, G] float64.
    """
    original = squared.double()
    if maxima is None:
        original = original * scale
    else:
        largest = maxima[:, None]
        if power == 2:
            original, largest = original * original, largest * largest
        original = torch.where(largest > 0, original / largest, 0.0)
    distances = torch.ones_like(original)
    distances[_rows(offsets), columns.long() - first] = values
    return (1 - lambda_value) * distances + lambda_value * original


def _offsets(counts: Tensor) -> Tensor:
    return torch.cat([counts.new_zeros(1), counts.cumsum(0)])


def _rows(offsets: Tensor) -> Tensor:
    """Return the row of each entry, int64 [E]."""
    items = torch.arange(len(offsets) - 1, device=offsets.device)
    return items.repeat_interleave(offsets[1:] - offsets[:-1])


def _csr(keys: Tensor, rows: int, columns: int) -> tuple[Tensor, Tensor]:
    """Return offsets and columns of entries given as row * columns + column, in any order."""
    keys = keys.sort().values
    counts = torch.bincount(keys // columns, minlength=rows)
    return _offsets(counts), (keys % columns).to(torch.int32)


def _join(chosen: Tensor, offsets: Tensor) -> tuple[Tensor, Tensor]:
    """Return, for every entry of every chosen row in turn, (place in `chosen`, entry)."""
    chosen = chosen.long()
    sizes = offsets[chosen + 1] - offsets[chosen]
    places = torch.arange(len(chosen), device=offsets.device)
    pair = places.repeat_interleave(sizes)
    begin = (offsets[chosen] - (sizes.cumsum(0) - sizes))[pair]
    return pair, torch.arange(len(pair), device=offsets.device) + begin


def _contains(ordered: Tensor, keys: Tensor) -> Tensor:
    """Return whether each key is in an ascending tensor."""
    if not len(ordered):
        return torch.zeros_like(keys, dtype=torch.bool)
    place = torch.searchsorted(ordered, keys).clamp(max=len(ordered) - 1)
    return ordered[place] == keys
