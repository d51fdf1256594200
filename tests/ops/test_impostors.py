"""count_impostors: the kernel against the reference, and the reference against a loop."""

import pytest
import torch

from mmga.ops import reference
from mmga.ops.ranking import Impostors, Tile, count_impostors


def case(rows=6, items=2500, dtype=torch.float32, metric=0, seed=0, infinite=False):
    generator = torch.Generator().manual_seed(seed)
    values = torch.randint(-9, 9, (rows, items), generator=generator).to(dtype) / 4
    if metric == 0:
        values = values.abs()
        if infinite:
            values[:, ::3] = torch.inf
    row = torch.randint(1, 4, (rows,), generator=generator).to(dtype) / 2
    column = torch.randint(1, 4, (items,), generator=generator).to(dtype) / 2
    tile = Tile(values, 0, metric, row, column) if metric else Tile.of_keys(values)
    ignored = [
        torch.randperm(items, generator=generator)[: 5 * r].sort().values for r in range(rows)
    ]
    start = torch.tensor([0, *(len(one) for one in ignored)]).cumsum(0)
    codes = torch.randint(0, 3, (rows + items,), generator=generator, dtype=torch.int32)
    return tile, (start, torch.cat(ignored)), {
        "row_camera": codes[:rows],
        "column_camera": codes[rows:],
        "removed": torch.rand(rows, items, generator=generator) < 0.2,
        "known": torch.rand(items, generator=generator) < 0.7,
    }  # fmt: skip


def count(tile, rows, found, options):
    """Call `count_impostors` with options by the names of the reference's arguments."""
    masks = tuple(options.get(name) for name in ("row_camera", "column_camera", "removed"))
    more = {name: options[name] for name in ("cross_camera", "known") if name in options}
    count_impostors(tile, rows, found, masks, **more)


def edges(metric, bins=300, largest=2.0):
    units = largest / bins * torch.arange(1, bins + 1, dtype=torch.float64)
    return units**2 if metric == 2 else units


def by_reference(tile, found, **options):
    ignored = found.ignored_start, found.ignored_item
    fresh = Impostors.of(found.edges, *ignored)
    reference.count_impostors(
        tile.values, tile.row_term, tile.column_term, tile.metric, tile.offset, *ignored,
        options.get("row_camera"), options.get("column_camera"),
        options.get("cross_camera", False), options.get("removed"), options.get("known"),
        fresh.edges, fresh.counts, fresh.nearest, fresh.nearest_item,
    )  # fmt: skip
    return fresh


def assert_equal(found, expected):
    assert torch.equal(found.counts, expected.counts)
    assert torch.equal(found.nearest, expected.nearest)
    assert torch.equal(found.nearest_item, expected.nearest_item)


OPTIONS = [
    [],
    ["row_camera", "column_camera"],
    ["removed", "known"],
    ["row_camera", "column_camera", "removed", "known"],
]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("metric", [0, 1, 2])
@pytest.mark.parametrize("names", OPTIONS, ids=["plain", "cameras", "masks", "all"])
@pytest.mark.parametrize("cross_camera", [False, True])
def test_equals_reference(kernel, dtype, metric, names, cross_camera):
    kernel("count_impostors")
    tile, ignored, everything = case(dtype=dtype, metric=metric, infinite=True)
    options = {name: everything[name] for name in names} | {"cross_camera": cross_camera}
    found = Impostors.of(edges(metric), *ignored)
    count(tile, slice(0, 6), found, options)
    assert_equal(found, by_reference(tile, found, **options))
    assert found.counts.sum() > 3000


@pytest.mark.parametrize("bins", [1, 2, 65536])
def test_bins_of_any_number_and_width(kernel, bins):
    kernel("count_impostors")
    tile, ignored, _ = case(metric=2)
    uneven = torch.rand(bins, dtype=torch.float64).sort().values * 20
    for given in (
        edges(2, bins),
        edges(2, bins, 30),
        uneven,
        torch.full((bins,), 1e308, dtype=torch.float64),
    ):
        found = Impostors.of(given, *ignored)
        count_impostors(tile, slice(0, 6), found)
        assert_equal(found, by_reference(tile, found))


def test_the_reference_equals_a_loop():
    tile, (start, item), options = case(4, 40)
    found = Impostors.of(torch.tensor([0.5, 1.0, 1.75], dtype=torch.float64), start, item)
    fresh = by_reference(tile, found, **options)
    counts, nearest = [0] * 4, []
    for row in range(4):
        best = (float("inf"), 2**63 - 1)
        for column, key in enumerate(tile.values[row].tolist()):
            if column in item[start[row] : start[row + 1]] or options["removed"][row, column]:
                continue
            if options["row_camera"][row] == options["column_camera"][column]:
                continue
            if options["known"][column]:
                best = min(best, (key, column))
            counts[0 if key <= 0.5 else 1 if key <= 1 else 2 if key <= 1.75 else 3] += 1
        nearest.append(best)
    assert fresh.counts.tolist() == counts
    assert list(zip(fresh.nearest.tolist(), fresh.nearest_item.tolist(), strict=True)) == nearest


def test_tiles_and_threads_add_up(kernel):
    kernel("count_impostors")
    tile, ignored, options = case(300, 1500, metric=1)
    whole = Impostors.of(edges(1), *ignored)
    count(tile, slice(0, 300), whole, options)
    threads = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        pieces = Impostors.of(edges(1), *ignored)
        for part in reversed(
            [tile.cut(slice(left, left + 190)) for left in range(0, tile.width, 190)]
        ):
            columns = slice(part.offset, part.offset + part.values.shape[1])
            cut = {name: value[..., columns] for name, value in options.items()}
            count(part, slice(0, 300), pieces, cut | {"row_camera": options["row_camera"]})
    finally:
        torch.set_num_threads(threads)
    assert_equal(pieces, whole)


def test_opcheck(kernel):
    op = kernel("count_impostors")
    tile, (start, item), options = case(3, 30, metric=1)
    found = Impostors.of(edges(1, 8), start, item)
    torch.library.opcheck(
        op.default,
        (tile.values, tile.row_term, tile.column_term, 1, 0, start, item, options["row_camera"],
         options["column_camera"], True, options["removed"], options["known"], found.edges,
         found.counts, found.nearest, found.nearest_item),
    )  # fmt: skip
