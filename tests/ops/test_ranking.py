"""count_preceding: the kernel against the reference and against a sort."""

import os

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mmga.ops import backends, reference
from mmga.ops._library import has_kernel
from mmga.ops.ranking import Matches, Tile, count_preceding, read_matches


@pytest.fixture(autouse=True)
def _kernel():
    if os.environ.get("MMGA_DISABLE_EXTENSION") == "1" or "active" not in backends()["cpu"]:
        pytest.skip(f"no CPU kernels: {backends()['cpu']}")
    assert has_kernel("count_preceding", "CPU")
    assert has_kernel("squared_norms", "CPU")


def lists(rows, items, matches, extra, generator):
    """Random matches and ignored items (matches among them) of every row, ascending."""
    starts, ignored_starts, chosen, ignored = [0], [0], [], []
    for _ in range(rows):
        order = torch.randperm(items, generator=generator)
        mine = order[: min(matches, items)].sort().values
        chosen.append(mine)
        ignored.append(order[: min(matches + extra, items)].sort().values)
        starts.append(starts[-1] + len(mine))
        ignored_starts.append(ignored_starts[-1] + len(ignored[-1]))
    return (
        torch.tensor(starts),
        torch.cat(chosen),
        torch.tensor(ignored_starts),
        torch.cat(ignored),
    )


def case(rows, items, matches, extra=2, levels=9, dtype=torch.float32, metric=0, seed=0):
    """A tile, and matches whose keys are the tile's own."""
    generator = torch.Generator().manual_seed(seed)
    values = torch.randint(-levels, levels, (rows, items), generator=generator).to(dtype)
    row = torch.randint(1, 4, (rows,), generator=generator).to(dtype) / 2
    column = torch.randint(1, 4, (items,), generator=generator).to(dtype) / 2
    tile = Tile(values, 0, metric, row, column) if metric else Tile.of_keys(values)
    start, item, ignored_start, ignored = lists(rows, items, matches, extra, generator)
    owner = torch.repeat_interleave(torch.arange(rows), start.diff())
    return tile, Matches.of(start, item, tile.at(owner, item), ignored_start, ignored)


def counts(matches):
    return [matches.preceding, matches.tied, matches.nearest, matches.mismatched]


def by_reference(tile, matches, **options):
    fresh = Matches.of(
        matches.match_start,
        matches.match_item,
        matches.match_key,
        matches.ignored_start,
        matches.ignored_item,
    )
    # Sorted already: `of` must not change them.
    assert torch.equal(fresh.match_item, matches.match_item)
    reference.count_preceding(
        tile.values,
        tile.row_term,
        tile.column_term,
        tile.metric,
        tile.offset,
        fresh.match_start,
        fresh.match_item,
        fresh.match_key,
        fresh.ignored_start,
        fresh.ignored_item,
        options.get("row_camera"),
        options.get("column_camera"),
        options.get("removed"),
        *counts(fresh),
    )
    return fresh


def assert_equal(found, expected):
    for one, other in zip(counts(found), counts(expected), strict=True):
        assert torch.equal(one, other) or torch.equal(one.isnan(), other.isnan())
        assert torch.equal(one.nan_to_num(), other.nan_to_num())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("metric", [0, 1, 2])
@pytest.mark.parametrize("matches", [0, 1, 15, 128, 129, 700])
def test_equals_reference(dtype, metric, matches):
    # 2,500 columns cross the kernel's segments and end within a group.
    tile, found = case(5, 2500, matches, dtype=dtype, metric=metric)
    count_preceding(tile, slice(0, 5), found)
    assert_equal(found, by_reference(tile, found))
    assert matches == 0 or int(found.tied.sum()) > 0
    assert int(found.mismatched.sum()) == 0


@settings(max_examples=100, derandomize=True, deadline=None)
@given(data=st.data())
def test_equals_a_sort(data):
    rows, items = data.draw(st.integers(1, 4)), data.draw(st.integers(1, 150))
    matches = data.draw(st.integers(0, 140))
    tile, found = case(rows, items, matches, 0, data.draw(st.integers(1, 60)), seed=items)
    width = data.draw(st.integers(1, items))
    for left in range(0, items, width):  # as several tiles
        part = Tile.of_keys(tile.values[:, left : left + width], left)
        count_preceding(part, slice(0, rows), found)
    ranks = found.ranks()
    for row in range(rows):
        order = torch.sort(tile.values[row], stable=True).indices
        place = torch.empty_like(order)
        place[order] = torch.arange(1, items + 1)
        mine = slice(int(found.match_start[row]), int(found.match_start[row + 1]))
        assert torch.equal(ranks[mine], place[found.match_item[mine]])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("metric", [0, 1, 2])
def test_matches_are_read_as_the_reference_reads_them(dtype, metric):
    assert has_kernel("read_matches", "CPU")
    tile, sorted_matches = case(300, 130, 17, dtype=dtype, metric=metric)
    tile.values[3, sorted_matches.match_item[3 * 17 + 5]] = torch.nan
    ascending = torch.cat([row.sort().values for row in sorted_matches.match_item.split(17)])
    found = Matches.unread(
        sorted_matches.match_start,
        ascending,
        sorted_matches.ignored_start,
        sorted_matches.ignored_item,
        dtype,
    )
    item, key = ascending.clone(), torch.empty(len(ascending), dtype=dtype)
    reference.read_matches(
        tile.values, tile.row_term, tile.column_term, metric, found.match_start, item, key
    )
    read_matches(tile, slice(0, 300), found)
    assert torch.equal(found.match_item, item)
    assert torch.equal(found.match_key.nan_to_num(nan=-1), key.nan_to_num(nan=-1))
    assert int(key.isnan().sum()) == 1
    ends = torch.cat([key[:17], key[17 * 299 :]]).reshape(2, 17)
    assert torch.equal(ends, ends.sort(1).values)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_matches_are_sorted_as_the_reference_sorts_them(dtype):
    assert has_kernel("sort_matches", "CPU")
    generator = torch.Generator().manual_seed(3)
    start = torch.randint(0, 9, (400,), generator=generator).cumsum(0)
    start = torch.cat([start.new_zeros(1), start])
    item = torch.randperm(int(start[-1]), generator=generator)
    key = torch.randint(0, 3, (len(item),), generator=generator).to(dtype)
    key[::50], key[::70] = torch.nan, torch.inf
    expected = item.clone(), key.clone()
    reference.sort_matches(start, *expected)
    found = Matches.of(start, item, key, start, item)
    assert torch.equal(found.match_item, expected[0])
    assert torch.equal(found.match_key.nan_to_num(nan=-1), expected[1].nan_to_num(nan=-1))
    assert not torch.equal(found.match_item, item)


def test_matches_are_read_from_whole_rows_alone():
    tile, found = case(2, 30, 3)
    with pytest.raises(ValueError, match="begins with item 0, got 7"):
        read_matches(Tile.of_keys(tile.values, 7), slice(0, 2), found)
    found.match_item[1] = 30
    with pytest.raises(RuntimeError, match="outside the tile"):
        read_matches(tile, slice(0, 2), found)


def test_cameras_and_removed_items_are_not_counted():
    tile, found = case(4, 300, 6)
    generator = torch.Generator().manual_seed(1)
    options = {
        "row_camera": torch.tensor([0, 1, 2, 9], dtype=torch.int32),
        "column_camera": torch.randint(0, 3, (300,), generator=generator, dtype=torch.int32),
        "removed": torch.rand(4, 300, generator=generator) < 0.3,
    }
    count_preceding(tile, slice(0, 4), found, tuple(options.values()))
    assert_equal(found, by_reference(tile, found, **options))


def test_infinite_keys_and_nan():
    keys = torch.tensor([[torch.inf, 1.0, torch.inf, torch.inf], [0.0, torch.nan, 1.0, 2.0]])
    start, ignored = torch.tensor([0, 1, 2]), torch.tensor([2, 2])
    tile = Tile.of_keys(keys)
    found = Matches.of(start, ignored.clone(), tile.at(torch.arange(2), ignored), start, ignored)
    count_preceding(tile, slice(0, 2), found)
    # Two items before, one of them at the same infinite distance but a lower index.
    assert found.preceding.tolist() == [2, 1]
    assert found.tied.tolist() == [2, 0]
    assert found.nearest.isnan().tolist() == [False, True]


def test_rows_with_strides_and_threads():
    tile, found = case(64, 700, 9)
    wide = torch.full((64, 900), torch.nan)
    wide[:, 100:800] = tile.values
    count_preceding(tile, slice(0, 64), found)
    again = by_reference(tile, found)
    for counted in counts(again):
        counted.zero_()
    again.nearest.fill_(torch.inf)
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        count_preceding(Tile.of_keys(wide[:, 100:800]), slice(0, 64), again)
    finally:
        torch.set_num_threads(threads)
    assert_equal(again, found)


def test_keys_that_moved_are_noticed():
    tile, found = case(3, 100, 4)
    found.match_key[5] += 1e-3
    count_preceding(tile, slice(0, 3), found)
    assert found.mismatched.tolist() == [0, 1, 0]


def test_opcheck():
    tile, found = case(3, 70, 4, metric=1)
    arguments = (
        tile.values,
        tile.row_term,
        tile.column_term,
        1,
        0,
        found.match_start,
        found.match_item,
        found.match_key,
        found.ignored_start,
        found.ignored_item,
        None,
        None,
        None,
        *counts(found),
    )
    torch.library.opcheck(torch.ops.mmga.count_preceding.default, arguments)
    item, key = found.match_item.clone(), torch.zeros_like(found.match_key)
    arguments = (tile.values, tile.row_term, tile.column_term, 1, found.match_start, item, key)
    torch.library.opcheck(torch.ops.mmga.read_matches.default, arguments)
    torch.library.opcheck(
        torch.ops.mmga.sort_matches.default, (found.match_start, item.clone(), key.clone())
    )


@pytest.mark.parametrize("trapezoid", [False, True])
def test_average_precision(trapezoid):
    found = float(reference.average_precision(torch.tensor([1, 4, 6]), trapezoid))
    if trapezoid:
        assert found == pytest.approx(((1 + 1) / 2 + (1 / 3 + 2 / 4) / 2 + (2 / 5 + 3 / 6) / 2) / 3)
    else:
        assert found == pytest.approx((1 + 2 / 4 + 3 / 6) / 3)
