"""The kernels of certified ranks against their reference and against float64 brute force."""

import contextlib
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import mmga
from mmga.ops import certified, reference
from mmga.ops._library import has_kernel
from mmga.ops.kernel_threads import kernels_alone
from mmga.ops.ranking import Matches, Tile

KERNEL = mmga.ops.backends()["cpu"].startswith("active")


@pytest.fixture(autouse=True)
def _kernels_are_active():
    if KERNEL:
        assert has_kernel("count_certain", "CPU")
        assert has_kernel("refine_pairs", "CPU")
        assert has_kernel("int16_rows", "CPU")
        assert has_kernel("refine_candidates", "CPU")
        assert has_kernel("int8_rows", "CPU")
        assert has_kernel("int8_products_", "CPU")
        assert has_kernel("float_products_", "CPU")


def case(seed, rows=5, width=150, most=6, cameras=True, offset=70):
    """Return random arguments of count_certain whose intervals overlap many thresholds."""
    g = torch.Generator().manual_seed(seed)
    draw = np.random.default_rng(seed)
    counts = draw.integers(0, most + 1, rows)
    start = torch.from_numpy(np.concatenate([[0], np.cumsum(counts)]))
    item = torch.cat(
        [torch.randperm(400, generator=g)[:n].sort().values for n in counts] or [start[:0]]
    )
    key = torch.rand(len(item), generator=g, dtype=torch.float64)
    ignored_counts = draw.integers(0, 20, rows)
    ignored_start = torch.from_numpy(np.concatenate([[0], np.cumsum(ignored_counts)]))
    ignored = torch.cat(
        [torch.randperm(400, generator=g)[:n].sort().values for n in ignored_counts]
    )
    matches = Matches.of(start, item, key, ignored_start, ignored)
    tile = Tile(
        torch.rand(rows, width, generator=g),
        offset,
        0,
        torch.empty(0),
        torch.empty(0),
    )
    bound = certified.Bound(
        torch.rand(rows, generator=g, dtype=torch.float64) * 0.2,
        torch.rand(width, generator=g, dtype=torch.float64) * 0.2,
        torch.rand(rows, generator=g, dtype=torch.float64) * 0.01,
        torch.rand(width, generator=g, dtype=torch.float64) * 0.01,
    )
    codes = {}
    if cameras:
        codes = {
            "row_camera": torch.randint(0, 3, (rows,), generator=g, dtype=torch.int32),
            "column_camera": torch.randint(0, 3, (width,), generator=g, dtype=torch.int32),
            "removed": torch.rand(rows, width, generator=g) < 0.1,
        }
    return tile, matches, bound, codes


def count(op, tile, matches, bound, codes):
    lower, upper = certified.thresholds(matches.match_start, matches.match_key, bound.row_slack)
    preceding = torch.zeros_like(matches.preceding)
    undecided = op(
        tile.values,
        tile.row_term,
        tile.column_term,
        tile.metric,
        tile.offset,
        bound.row_radius.float(),
        bound.column_radius.float(),
        bound.column_slack.float(),
        matches.match_start,
        matches.match_item,
        lower,
        upper,
        matches.ignored_start,
        matches.ignored_item,
        codes.get("row_camera"),
        codes.get("column_camera"),
        codes.get("removed"),
        preceding,
    )
    return undecided, preceding


@pytest.mark.parametrize("width", [1, 63, 64, 65, 200, 2048, 2049])
@pytest.mark.parametrize("most", [0, 6, 140])
@pytest.mark.parametrize("cameras", [False, True])
def test_counts_and_filter_candidates_equal_the_references(width, most, cameras):
    arguments = case(width + most, width=width, most=most, cameras=cameras)
    undecided, preceding = count(torch.ops.mmga.count_certain, *arguments)
    expected, expected_preceding = count(reference.count_certain, *arguments)
    assert torch.equal(preceding, expected_preceding)
    assert torch.equal(undecided, expected)
    if most and width > 64:
        assert len(undecided) > width // 64 and int(preceding.sum()) > 0


@pytest.mark.parametrize("width", [1, 63, 64, 200, 2049])
@pytest.mark.parametrize("most", [6, 140])
@pytest.mark.parametrize("slack", [0.0, 1e-7, 1e-3, 0.1])
def test_intervals_without_radii_equal_the_references(width, most, slack):
    tile, matches, bound, codes = case(width + most, width=width, most=most)
    # Keys on a grid, of which many are equal to thresholds.
    tile.values.mul_(32).round_().div_(32)
    matches.match_key.mul_(32).round_().div_(32)
    bound.row_radius.zero_()
    bound.row_slack.zero_()
    bound.column_slack.mul_(100 * slack)
    undecided, preceding = count(torch.ops.mmga.count_certain, tile, matches, bound, codes)
    expected, expected_preceding = count(reference.count_certain, tile, matches, bound, codes)
    assert torch.equal(preceding, expected_preceding)
    assert torch.equal(undecided, expected)
    assert width < 64 or (len(undecided) > 0 and int(preceding.sum()) > 0)


@pytest.mark.parametrize("metric", [1, 2])
def test_scaled_tiles_equal_the_references(metric):
    tile, matches, bound, codes = case(3, width=300)
    g = torch.Generator().manual_seed(1)
    tile = Tile(tile.values, 70, metric, torch.rand(5, generator=g), torch.rand(300, generator=g))
    arguments = tile, matches, bound, codes
    undecided, preceding = count(torch.ops.mmga.count_certain, *arguments)
    expected, expected_preceding = count(reference.count_certain, *arguments)
    assert torch.equal(preceding, expected_preceding) and torch.equal(undecided, expected)
    assert len(undecided)


@pytest.mark.parametrize("metric", [1, 2])
@pytest.mark.parametrize("rows", ["bounded", "exact", "integers"])
@pytest.mark.parametrize("width", [1, 7, 8, 29, 67])
def test_settled_pairs_equal_the_references(metric, rows, width):
    bounded = rows != "exact"
    tile, matches, bound, codes = case(11, rows=9, width=130, most=140)
    undecided, _ = count(torch.ops.mmga.count_certain, tile, matches, bound, codes)
    g = torch.Generator().manual_seed(2)
    x = torch.randint(-2, 3, (9, width), generator=g).float()
    y = torch.randint(-2, 3, (130, width), generator=g).float()
    x[0], y[3] = 0, 0
    norms = [reference.squared_norms(side) for side in (x, y)]
    terms = [n.sqrt() if metric == 1 else n for n in norms]
    # Thresholds among the very keys of the pairs, so that there are ties.
    keys = reference.ranking_keys(
        x.double() @ y.double().T,
        *(
            t.reciprocal().where(t > 0, 0) if metric == 1 else t
            for t in (terms[0][:, None], terms[1])
        ),
        metric,
    )
    for row in range(9):
        mine = slice(int(matches.match_start[row]), int(matches.match_start[row + 1]))
        matches.match_key[mine] = (
            keys[row, torch.arange(mine.stop - mine.start) % 130].sort().values
        )
    open_ = undecided.clone()
    open_[:, 2] = 0
    open_[:, 3] = matches.match_start.diff()[open_[:, 0].long()].int()
    sides = [bound.row_radius, bound.column_radius, bound.row_slack, bound.column_slack]
    if rows == "integers":
        x, y = (reference.int16_rows(*side)[0] for side in zip((x, y), norms, strict=True))

    def settle(op):
        preceding, tied = torch.zeros_like(matches.preceding), torch.zeros(9, dtype=torch.int64)
        still = op(
            open_,
            x,
            y,
            *terms,
            metric,
            *(sides if bounded else [None] * 4),
            70,
            matches.match_start,
            matches.match_item,
            matches.match_key,
            preceding,
            tied,
        )
        return still, preceding, tied

    for one, other in zip(
        settle(torch.ops.mmga.refine_pairs), settle(reference.refine_pairs), strict=True
    ):
        assert torch.equal(one, other)
    still, preceding, tied = settle(torch.ops.mmga.refine_pairs)
    assert int(preceding.sum()) > 0
    assert bool(len(still)) == bounded and bool(tied.any()) != bounded


@pytest.mark.parametrize("width", [1, 7, 8, 9, 100])
def test_integers_equal_the_references(width):
    g = torch.Generator().manual_seed(width)
    x = torch.randn(13, width, generator=g) * torch.logspace(-6, 6, 13)[:, None]
    x[2] = 0
    x[4], x[5] = x[4] * 1e-24, x[5] * 1e-30
    x[3], x[3, 0] = 0, -5.0  # alone, it becomes the largest integer there is
    norms = reference.squared_norms(x)
    numbers, error = certified.int16_rows(x, norms)
    expected, left = reference.int16_rows(x, norms)
    assert numbers.dtype == torch.int16 and torch.equal(numbers, expected)
    torch.testing.assert_close(error, left, rtol=1e-5, atol=1e-6)
    assert numbers[3, 0] == -32767 and error[3] == 1
    lengths = numbers[norms > 0].double().norm(dim=1)
    assert ((lengths - 2**15).abs() <= error[norms > 0] + 0.02).all()
    assert (numbers[5] == 0).all() and error[5] == 2**15


@pytest.mark.parametrize("most", [1, 63, 90, 127])
@pytest.mark.parametrize("width", [1, 7, 64, 33, 300, 768])
def test_bytes_equal_the_references(width, most, monkeypatch):
    monkeypatch.setattr(certified, "int8_most", lambda width, device: most)
    g = torch.Generator().manual_seed(width)
    x = torch.randn(13, width, generator=g) * torch.logspace(-6, 6, 13)[:, None]
    x[2], x[3] = 0, x[3] * 1e-33
    numbers, unit, error = certified.int8_rows(x)
    expected, units, left = reference.int8_rows(x, most)
    assert numbers.dtype == torch.int8 and torch.equal(numbers, expected)
    assert torch.equal(unit, units)
    torch.testing.assert_close(error, left, rtol=1e-5, atol=2.0**-58)  # squares underflow
    assert (numbers.abs().amax(1) == most)[x.norm(dim=1) > 1e-20].all() and unit[2] == error[2] == 0
    assert (numbers[3] == 0).all()
    grid = torch.randint(-20, 21, (300, width), generator=g) / 2  # halves between two numbers
    assert torch.equal(certified.int8_rows(grid)[0], reference.int8_rows(grid, most)[0])
    count = reference.mixed_entries(width)
    assert count == {64: 4, 300: 4, 768: 16}.get(width, 1)
    rest = reference.mixed(x.double()) / count**0.5 - numbers.double() * unit.double()[:, None]
    # Float32 roundings of an entry's way there, and those of the sum of squares.
    room = 2.0**-21 * x.double().norm(dim=1) + 1e-5 * error + 2.0**-58
    assert ((error - rest.norm(dim=1)).abs() <= room).all()


@pytest.mark.parametrize("width", [1, 9, 64])
@pytest.mark.parametrize("more", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.int8])
@pytest.mark.parametrize("scaled", [True, False])
def test_placed_rows_are_rounded_as_copied_ones(width, more, dtype, scaled):
    g = torch.Generator().manual_seed(width)
    x = (40 * torch.randn(40, width, generator=g)).clamp(-128, 127).to(dtype)
    scale = torch.rand(40, generator=g) if scaled and dtype == torch.int8 else None
    place = torch.randint(40, (25,), generator=g)
    chosen = torch.randint(25, (33,), generator=g)
    values = x.float() if scale is None else x.float() * scale[:, None]
    copied = values[place[chosen]]
    norms = reference.squared_norms(copied)
    sides = (x[:30].contiguous(), x[30:].contiguous()) if more else (x, None)
    vectors = certified.PlacedVectors(*sides, place, scale, norms)
    given = *certified.int8_rows(copied), *certified.int16_rows(copied, norms)
    for one, other in zip(certified.rounded_rows(vectors, chosen, norms), given, strict=True):
        assert torch.equal(one, other)
    most = certified.int8_most(width, x.device)
    expected = reference.rounded_rows(*vectors[:4], chosen, norms, most)
    assert torch.equal(expected[0], given[0]) and torch.equal(expected[3], given[3])
    every = vectors._replace(place=None)
    numbers, *_ = certified.rounded_rows(every, torch.arange(40), reference.squared_norms(values))
    assert torch.equal(numbers, certified.int8_rows(values)[0])


@pytest.mark.parametrize("width", [5, 128, 2048])
def test_mixing_keeps_inner_products(width):
    g = torch.Generator().manual_seed(0)
    x, y = torch.randn(2, 9, width, generator=g, dtype=torch.float64)
    x[:, 3] += 5 * width**0.5
    products = reference.mixed(x) @ reference.mixed(y).T / reference.mixed_entries(width)
    torch.testing.assert_close(products, x @ y.T)
    if width == 2048:  # one entry does not take all others' bits
        _, _, error = certified.int8_rows(x.float())
        step = x.abs().amax(1, keepdim=True) / certified.int8_most(width, x.device)
        alone = (x - (x / step).round() * step).norm(dim=1)
        assert (4 * error < alone).all()


def test_fewer_bits_are_taken_where_their_products_are_faster(monkeypatch):
    cpu = torch.device("cpu")
    for instructions, widths in (
        ("AVX2", {1: 63, 1024: 63, 1025: 90, 4096: 90}),
        ("AVX-512 VNNI", {1: 127, 4096: 127}),
        ("", {256: 127}),
    ):
        monkeypatch.setattr(certified._extension, "int8_instructions", lambda i=instructions: i)
        assert {w: certified.int8_most(w, cpu) for w in widths} == widths
        assert certified.int8_most(256, torch.device("cuda")) == 127
        assert all(certified.int8_rate(w) > 1 for w in widths)


@pytest.mark.parametrize(
    ("rows", "columns", "width"), [(1, 1, 1), (33, 70, 1), (3, 70, 33), (65, 17, 2048)]
)
def test_products_of_bytes_are_exact(rows, columns, width):
    g = torch.Generator().manual_seed(width)
    x = torch.randint(-127, 128, (rows, width), generator=g, dtype=torch.int8)
    y = torch.randint(-127, 128, (columns, width), generator=g, dtype=torch.int8)
    x[0], y[0] = 127, -127  # the largest sums there are
    one, other = (torch.rand(n, generator=g) for n in (rows, columns))
    out = torch.empty(rows, columns)
    found = certified.int8_products_(x, y, one, other, out)
    assert found is out
    integers = (x.double() @ y.double().T).to(torch.int32)
    expected = (integers.to(torch.float32) * one[:, None]) * other
    assert torch.equal(found, expected)
    assert int(integers.min()) == -(127**2) * width
    torch.library.opcheck(torch.ops.mmga.int8_products_.default, (x, y, one, other, out))


@pytest.mark.parametrize("held", [False, True])
@pytest.mark.parametrize("block", [1, 3, 64, 200])
@pytest.mark.parametrize("rows, columns", [(0, 5), (5, 0), (1, 1), (7, 400), (400, 7), (300, 290)])
@pytest.mark.parametrize("inference", [False, True])
def test_products_of_floats_are_sums_of_blocks(rows, columns, block, held, inference):
    g = torch.Generator().manual_seed(rows + block)
    whole = torch.randint(-9, 10, (130, rows + columns), generator=g).float()
    with torch.inference_mode(inference), kernels_alone() if held else contextlib.nullcontext():
        x, y = whole[:, :rows].T, whole.T[rows:].clone()  # of other strides
        out = torch.full((rows, columns + 3), torch.nan)
        assert certified.float_products_(x, y, block, out[:, :columns]) is not None
    assert torch.equal(out[:, :columns], (x.double() @ y.double().T).float())
    assert out[:, columns:].isnan().all()
    expected = torch.empty_like(out[:, :columns])
    reference.float_products_(x, y, block, expected)
    assert torch.equal(out[:, :columns], expected)


@pytest.mark.parametrize("held", [False, True])
@pytest.mark.parametrize("rows, columns", [(1, 2), (3, 64), (64, 3), (256, 130)])
@pytest.mark.parametrize("multiply", [certified.float_products_, reference.float_products_])
def test_products_of_floats_add_up_sums_of_their_own(rows, columns, held, multiply):
    block, width = 16, 512
    x, out = torch.ones(rows, width), torch.empty(rows, columns)
    x[:, 0], x[:, 1:block] = 2.0**24, 0  # a one more would be rounded off, 16 at once are not
    with kernels_alone() if held else contextlib.nullcontext():
        for y in (torch.ones(columns, width), torch.ones(width, columns).T):
            multiply(x, y, block, out)
            assert (out == 2.0**24 + width - block).all()


def test_products_of_floats_leave_what_others_have_set():
    x = torch.randn(400, 300, requires_grad=True)
    threads = torch.get_num_threads()
    with torch.autocast("cpu", torch.bfloat16), kernels_alone():
        out = certified.float_products_(x, x, 64, torch.empty(400, 400))
    assert out.dtype == torch.float32 and not out.requires_grad
    assert torch.get_num_threads() == threads
    bound = certified.gamma(64 + 5 + 1) * x.detach().double().abs() @ x.detach().double().abs().T
    assert ((out.double() - x.detach().double() @ x.detach().double().T).abs() <= bound).all()


@pytest.mark.parametrize("instructions", ["none", "avx2", "avx", "avx512"])
def test_products_of_bytes_are_equal_for_all_instructions(instructions):
    code = """
import itertools, torch
from mmga.ops import certified, reference
limits = [(128, 128), (63, 63), (64, 63), (63, 64), (90, 90), (91, 90), (90, 91), (128, 1), (0, 0)]
shapes = (1, 1, 1), (50, 70, 3), (7, 129, 513), (49, 64, 2050), (5, 3, 12)
for (rows, columns, width), (most, others) in itertools.product(shapes, limits):
    x = torch.randint(-most, min(most, 127) + 1, (rows, width), dtype=torch.int8)
    y = torch.randint(-others, min(others, 127) + 1, (columns, width), dtype=torch.int8)
    x[-1], y[-1] = -most, min(others, 127) if width % 2 else -others  # the largest sums there are
    x[0] = min(most, 127)
    y[0] = min(others, 127)
    units = torch.rand(rows), torch.rand(columns)
    found, expected = torch.empty(2, rows, columns)
    certified.int8_products_(x, y, *units, found)
    reference.int8_products_(x, y, *units, expected)
    assert torch.equal(found, expected)
print(certified.multiplies_int8())
"""
    environment = os.environ | {"MMGA_INT8": instructions}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    fast = certified.multiplies_int8() and instructions != "none"
    fast |= instructions == "avx2" and "x86-64-v" in mmga.ops.backends()["cpu"]
    assert done.stdout.strip() == str(fast)


@pytest.mark.parametrize("metric", [1, 2])
@pytest.mark.parametrize("integers", [False, True])
@pytest.mark.parametrize("width", [5, 64, 70])
def test_narrowed_pairs_equal_the_references(metric, integers, width):
    g = torch.Generator().manual_seed(width)
    sides = torch.randn(20, width, generator=g), torch.randn(90, width, generator=g)
    norms = [reference.squared_norms(side) for side in sides]
    terms = [n.sqrt() if metric == 1 else n for n in norms]
    if integers:
        sides = [reference.int16_rows(*side)[0] for side in zip(sides, norms, strict=True)]
    pairs = (torch.rand(20, 90, generator=g) < 0.4).nonzero().int().contiguous()
    near, far = (0.8, 1.2) if metric == 1 else (1.6 * width, 2.4 * width)
    draw = [torch.rand(n, generator=g, dtype=torch.float64) * 0.1 for n in (20, 90) * 4]
    limits = [near - d for d in draw[4:6]] + [far + d for d in draw[6:]]
    arguments = pairs, *sides, *terms, metric, *draw[:4], *limits
    found = torch.ops.mmga.refine_candidates(*arguments)
    assert torch.equal(found, reference.refine_candidates(*arguments))
    assert 0 < len(found) < len(pairs)
    if KERNEL:
        with pytest.raises(RuntimeError, match="outside the tile"):
            torch.ops.mmga.refine_candidates(pairs + 10, *arguments[1:])


def test_products_of_the_longest_integers_do_not_overflow():
    x = torch.ones(2, 4096) * torch.tensor([[1.0], [-1.0]])
    numbers, _ = certified.int16_rows(x, reference.squared_norms(x))
    one = torch.ones(2, dtype=torch.float64)
    nothing = [torch.zeros(2, dtype=torch.float64)] * 4
    pairs = torch.tensor([[0, 0], [0, 1], [1, 1]], dtype=torch.int32)
    for near, expected in ((1e-6, [0, 2]), (2.0, [0, 1, 2])):
        limits = [one * near] * 2 + [one * 3] * 2
        found = torch.ops.mmga.refine_candidates(
            pairs, numbers, numbers, one, one, 1, *nothing, *limits
        )
        assert torch.equal(found, pairs[expected])


def test_threads_settle_what_one_settles():
    tile, matches, bound, codes = case(5, rows=40, width=2000, most=5, cameras=False)
    undecided, _ = count(torch.ops.mmga.count_certain, tile, matches, bound, codes)
    assert len(undecided) > 4096
    g = torch.Generator().manual_seed(2)
    x, y = torch.rand(40, 16, generator=g), torch.rand(2000, 16, generator=g)
    terms = [reference.squared_norms(side).sqrt() for side in (x, y)]
    vectors = certified.PairVectors(x, y, *terms, 1)
    found = []
    threads = torch.get_num_threads()
    for number in (1, 2, 3):
        torch.set_num_threads(number)
        try:
            for counts in (matches.preceding, matches.tied):
                counts.zero_()
            again, certain = count(torch.ops.mmga.count_certain, tile, matches, bound, codes)
            certified.refine_pairs(again, vectors, 70, slice(0, 40), matches)
        finally:
            torch.set_num_threads(threads)
        found.append((again, certain, matches.preceding.clone(), matches.tied.clone()))
    for other in found[1:]:
        assert all(torch.equal(*both) for both in zip(found[0], other, strict=True))


@settings(max_examples=60, derandomize=True, deadline=None)
@given(st.integers(0, 10_000))
def test_thresholds_enclose_the_keys(seed):
    g = torch.Generator().manual_seed(seed)
    key = torch.rand(20, generator=g, dtype=torch.float64).sort().values
    slack = torch.rand(2, generator=g, dtype=torch.float64) * 1e-6
    lower, upper = certified.thresholds(torch.tensor([0, 12, 20]), key, slack)
    width = torch.repeat_interleave(slack, torch.tensor([12, 8]))
    assert (lower.double() <= key - width).all() and (upper.double() >= key + width).all()
    assert (upper.double() - lower.double() <= 2 * width + 1e-6).all()


@pytest.mark.parametrize("change", ["row", "column", "order", "last"])
def test_pairs_outside_the_tile_are_refused(change):
    if not KERNEL:
        pytest.skip("the reference indexes, which checks by itself")
    tile, matches, bound, codes = case(11, rows=4)
    undecided, _ = count(torch.ops.mmga.count_certain, tile, matches, bound, codes)
    column = {"row": 0, "column": 1, "last": 3}.get(change)
    if column is None:
        undecided = undecided.flip(0)
    else:
        undecided[-1, column] = 10_000
    x, y = torch.rand(4, 8), torch.rand(150, 8)
    terms = [reference.squared_norms(side).sqrt() for side in (x, y)]
    vectors = certified.PairVectors(x, y, *terms, 1)
    with pytest.raises(RuntimeError, match="outside the tile"):
        certified.refine_pairs(undecided, vectors, 70, slice(0, 4), matches)


def test_opcheck():
    torch.library.opcheck(torch.ops.mmga.int8_rows.default, (torch.randn(4, 9), 90))
    for dtype in (torch.float32, torch.float16, torch.int8):
        sides = [torch.randint(-9, 9, (n, 9)).to(dtype) for n in (4, 2)]
        scale = torch.rand(6) if dtype == torch.int8 else None
        placed = *sides, torch.tensor([5, 1]), scale, torch.tensor([1, 1, 0])
        torch.library.opcheck(
            torch.ops.mmga.rounded_rows.default, (*placed, torch.rand(3, dtype=torch.float64), 127)
        )
    tile, matches, bound, codes = case(7)
    lower, upper = certified.thresholds(matches.match_start, matches.match_key, bound.row_slack)
    radii = bound.row_radius.float(), bound.column_radius.float(), bound.column_slack.float()
    lists = matches.match_start, matches.match_item
    ignored = matches.ignored_start, matches.ignored_item
    head = tile.values, tile.row_term, tile.column_term, 0, 70
    options = codes["row_camera"], codes["column_camera"], codes["removed"]
    torch.library.opcheck(
        torch.ops.mmga.count_certain.default,
        (*head, *radii, *lists, lower, upper, *ignored, *options, matches.preceding),
        test_utils=("test_schema", "test_faketensor"),
    )
    undecided, _ = count(torch.ops.mmga.count_certain, tile, matches, bound, codes)
    x, y = torch.rand(5, 8), torch.rand(150, 8)
    terms = [reference.squared_norms(side) for side in (x, y)]
    sides = bound.row_radius, bound.column_radius, bound.row_slack, bound.column_slack
    torch.library.opcheck(
        torch.ops.mmga.refine_pairs.default,
        (
            undecided,
            x,
            y,
            *terms,
            2,
            *sides,
            70,
            *lists,
            matches.match_key,
            matches.preceding,
            matches.tied,
        ),
        test_utils=("test_schema", "test_faketensor"),
    )
    numbers = [
        certified.int16_rows(side, norms)[0] for side, norms in zip((x, y), terms, strict=True)
    ]
    torch.library.opcheck(
        torch.ops.mmga.int16_rows.default,
        (x, terms[0]),
        test_utils=("test_schema", "test_faketensor"),
    )
    torch.library.opcheck(
        torch.ops.mmga.refine_candidates.default,
        (undecided[:, :2].contiguous(), *numbers, *terms, 2, *sides, *sides),
        test_utils=("test_schema", "test_faketensor"),
    )
