"""Bounded selection against a stable sort."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mmga.ops import reference
from mmga.ops.neighbours import NearestLists, nearest_in_rows, squared_distances_


@pytest.fixture(autouse=True, scope="module")
def _one_thread():
    """Small work is slower with several threads, most of all beside other processes."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


CASES = settings(max_examples=60, deadline=None, derandomize=True)


@CASES
@given(st.integers(1, 9), st.integers(1, 400), st.integers(1, 60), st.integers(0, 2**31))
def test_nearest_in_rows_equals_stable_sort(rows, columns, k, seed):
    generator = torch.Generator().manual_seed(seed)
    k = min(k, columns)
    for dtype, top in ((torch.float32, 5), (torch.float64, 1000)):
        d = torch.randint(0, top, (rows, columns), generator=generator).to(dtype)
        distances, index = nearest_in_rows(d, k)
        expected, order = reference.nearest_in_rows(d, k)
        assert torch.equal(index, order) and torch.equal(distances, expected)
        assert index.dtype == torch.int32 and distances.dtype == dtype


def symmetric(items, top, seed):
    generator = torch.Generator().manual_seed(seed)
    d = torch.randint(0, top, (items, items), generator=generator).float()
    d = d.triu(1)
    return d + d.t()


def offer(lists, d, item, other, **options):
    """Insert distances: products of -d / 2 between vectors whose norms are 0."""
    zeros = torch.zeros(max(d.shape))
    terms = zeros[: d.shape[0]], zeros[: d.shape[1]]
    lists.add((d * -0.5, *terms), item, other, cosine=False, **options)


def by_tiles(d, k, rows, columns):
    """Insert each pair once, from a tile on or above the diagonal, for both its items."""
    n = len(d)
    lists = NearestLists(n, k)
    lists.add_self()
    for i in range(0, n, rows):
        for j in range(i, n, columns):
            part = d[i : i + rows, j : j + columns].clone()
            # The lower triangle and the diagonal must not be read.
            part += torch.full_like(part, 7.0).tril(i - j)
            offer(lists, part, i, j, symmetric=True)
    return lists.result()


@CASES
@given(
    st.integers(1, 260),
    st.integers(1, 40),
    st.sampled_from([2, 6, 100000]),
    st.sampled_from([(16, 16), (64, 64), (96, 96), (64, 160), (96, 32), (300, 300)]),
    st.integers(0, 2**31),
)
def test_symmetric_tiles_equal_stable_sort(items, k, top, tile, seed):
    d, k = symmetric(items, top, seed), min(k, items)
    found = by_tiles(d, k, *tile)
    expected, order = reference.nearest_in_rows(d, k)
    assert torch.equal(found.index, order) and torch.equal(found.distances, expected)
    assert torch.equal(found.maxima, d.amax(1))


@pytest.mark.parametrize("threads", [1, 2, 3, 5])
def test_lists_do_not_depend_on_threads(threads):
    d = symmetric(900, 40, 1)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        found = by_tiles(d, 21, 256, 300)
        queries = NearestLists(700, 21)
        for j in range(0, 900, 320):
            offer(queries, d[:700, j : j + 320], 0, j)
        one_sided = queries.result()
    finally:
        torch.set_num_threads(before)
    expected, order = reference.nearest_in_rows(d, 21)
    assert torch.equal(found.index, order) and torch.equal(found.distances, expected)
    assert torch.equal(found.maxima, d.amax(1))
    assert torch.equal(one_sided.index, order[:700])
    assert torch.equal(one_sided.maxima, d[:700].amax(1))


def test_order_of_tiles_does_not_matter():
    d = symmetric(300, 9, 0)
    expected = by_tiles(d, 11, 64, 64)
    lists = NearestLists(300, 11)
    lists.add_self()
    pairs = [(i, j) for i in range(0, 300, 64) for j in range(i, 300, 64)]
    for i, j in reversed(pairs):
        offer(lists, d[i : i + 64, j : j + 64], i, j, symmetric=True)
    found = lists.result()
    assert torch.equal(found.index, expected.index)
    assert torch.equal(found.distances, expected.distances)


@pytest.mark.parametrize("cosine", [False, True])
@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("threads", [1, 3])
def test_select_neighbours_equals_reference(cosine, symmetric, threads):
    """Bit for bit, on tiles beside, on and across the diagonal."""
    generator = torch.Generator().manual_seed(5)
    buffer = torch.randn(450, 450, generator=generator)  # tiles are views with a row stride
    buffer[7] = buffer[8]
    terms = torch.rand(450, generator=generator)
    terms[3] = 0  # a zero vector
    before, outcomes = torch.get_num_threads(), []
    for select in (torch.ops.mmga.select_neighbours, reference.select_neighbours):
        lists = NearestLists(450, 5)
        state = (lists._candidates, lists._counts, lists._thresholds, lists._maxima)
        lists.add_self()
        kept = torch.full((130, 320), -1.0) if symmetric else None
        try:
            torch.set_num_threads(threads)
            for rows, columns in (
                (slice(0, 200), slice(0, 200)),
                (slice(0, 200), slice(100, 450)),
                (slice(200, 450), slice(230, 430)),
                (slice(17, 150), slice(300, 450)),
            ):
                sides = buffer[rows, columns], terms[rows], terms[columns]
                starts = rows.start, columns.start
                select(*state, kept, *sides, cosine, 5, *starts, symmetric)
        finally:
            torch.set_num_threads(before)
        lists_held = [sorted(r[:c].tolist())[:5] for r, c in zip(state[0], state[1], strict=True)]
        outcomes.append((lists_held, state[3].tolist(), None if kept is None else kept.tolist()))
    assert outcomes[0] == outcomes[1]
    assert kept is None or (kept >= 0).sum() > 20000


def test_opcheck_select_neighbours():
    lists = NearestLists(20, 3)
    lists.add_self()
    state = (lists._candidates.fill_(0), lists._counts, lists._thresholds, lists._maxima)
    tile = torch.rand(20, 20), torch.rand(20), torch.rand(20), True, 3, 0, 0, True
    for kept in (None, torch.zeros(8, 12)):
        torch.library.opcheck(torch.ops.mmga.select_neighbours.default, (*state, kept, *tile))


def test_ordered_candidates_equal_reference():
    generator = torch.Generator().manual_seed(2)
    distances = torch.randint(0, 4, (200, 30), generator=generator).float()
    index = torch.argsort(torch.rand(200, 30, generator=generator), dim=1)  # as they came
    candidates = (distances.view(torch.int32).long() << 32) | index
    counts = torch.randint(9, 31, (200,), generator=generator, dtype=torch.int32)
    found = torch.ops.mmga.ordered_candidates(candidates, counts, 9)
    expected = reference.ordered_candidates(candidates, counts, 9)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    torch.library.opcheck(torch.ops.mmga.ordered_candidates.default, (candidates, counts, 9))


@pytest.mark.parametrize("cosine", [False, True])
@pytest.mark.parametrize("shape", [(1, 1), (70, 129), (64, 512)])
def test_squared_distances_equal_reference_bit_for_bit(shape, cosine):
    generator = torch.Generator().manual_seed(7)
    buffer = torch.randn(shape[0], shape[1] + 3, generator=generator)
    row, column = (torch.rand(n, generator=generator) for n in shape)
    row[0] = 0.0  # a zero vector
    expected = buffer[:, : shape[1]].clone()
    reference.squared_distances_(expected, row, column, cosine)
    tile = buffer[:, : shape[1]]  # a view with a row stride, as the tiles are
    rest = buffer[:, shape[1] :].clone()
    squared_distances_(tile, row, column, cosine=cosine)
    assert torch.equal(tile, expected) and torch.equal(buffer[:, shape[1] :], rest)
    assert not torch.signbit(tile).any()  # -0 would order last
    arguments = (expected.clone(), row, column, cosine)
    torch.library.opcheck(torch.ops.mmga.squared_distances_.default, arguments)


def test_too_few_candidates_is_an_error():
    lists = NearestLists(4, 3)
    offer(lists, torch.ones(4, 2), 0, 0)
    with pytest.raises(RuntimeError, match="fewer than 3"):
        lists.result()


def test_k_out_of_range():
    with pytest.raises(ValueError, match="from 1 to the 3 columns"):
        nearest_in_rows(torch.zeros(2, 3), 4)
