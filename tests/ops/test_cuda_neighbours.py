"""The CUDA kernels of neighbour search and of float64 products against the reference."""

import itertools
import math

import pytest
import torch
from cuda_cases import check, of_reference

from mmga.ops.reference import nearest_in_rows


def terms(count, cosine, seed):
    values = torch.randint(1, 4, (count,), generator=torch.Generator().manual_seed(seed)).float()
    values = values / 4 if cosine else values * 20
    values[:1] = 0  # a zero vector
    return values


def empty_lists(items, k, slots=None):
    return (
        torch.full((items, slots or 2 * k + 16), 2**40, dtype=torch.int64),
        torch.zeros(items, dtype=torch.int32),
        torch.full((items,), math.inf),
        torch.zeros(items),
    )


@pytest.mark.parametrize("cosine", [False, True])
@pytest.mark.parametrize("items, k, queries", [(1, 1, 0), (45, 3, 9), (70, 16, 0), (90, 64, 30)])
def test_symmetric_tiles(cuda, items, k, queries, cosine):
    """The k nearest of all, with ties, from tiles above the diagonal, some across it."""
    generator = torch.Generator().manual_seed(items)
    points = torch.randint(0, 3, (items, 3), generator=generator).float()
    products = points @ points.T
    term = terms(items, cosine, 5)
    cuts = [0, items // 3, items // 3 + 33, items] if items > 40 else [0, items]
    cuts = [cut for cut in cuts if cut <= items]
    spans = [(a, b) for a, b in itertools.pairwise(cuts) if a < b]
    tiles = [(s, t) for i, s in enumerate(spans) for t in spans[i:]]
    state = [*empty_lists(items, k), torch.full((queries, items - queries), -1.0)]
    state[0][:, 0] = torch.arange(items)
    state[1].fill_(1)
    expected = [one.clone() for one in state]
    for (top, bottom), (left, right) in tiles:
        tile = products[top:bottom, left:right]
        options = (tile, term[top:bottom], term[left:right], cosine, k, top, left, True)
        state = cuda.results("select_neighbours", *state, *options)
        expected = of_reference("select_neighbours", *expected, *options)
    assert torch.equal(state[3], expected[3]) and torch.equal(state[4], expected[4])
    assert (state[1] < state[0].shape[1]).all()
    found = cuda.results("ordered_candidates", state[0], state[1], min(k, items))
    right = of_reference("ordered_candidates", expected[0], expected[1], min(k, items))
    assert torch.equal(found[0], right[0]) and torch.equal(found[1], right[1])


@pytest.mark.parametrize(
    "rows, columns, k, slots", [(3, 200, 5, None), (2, 500, 1, 2), (1, 90, 128, 150)]
)
def test_tiles_beside(cuda, rows, columns, k, slots):
    """Others that are no items; lists as narrow as can be; ties at the bound."""
    generator = torch.Generator().manual_seed(columns)
    state = empty_lists(rows + 4, k, slots)
    expected = [one.clone() for one in state]
    for first_other in (0, columns):
        products = torch.randint(-6, 6, (rows, columns + 3), generator=generator).float()
        options = (
            products[:, :columns], terms(rows, False, 1), terms(columns, False, 2),
            False, k, 2, first_other, False,
        )  # fmt: skip
        state = cuda.results("select_neighbours", *state, None, *options)
        expected = of_reference("select_neighbours", *expected, None, *options)
    assert torch.equal(state[3], expected[3])
    arguments = [one[2 : 2 + rows] for one in state[:2]]
    found = cuda.results("ordered_candidates", *arguments, min(k, 2 * columns))
    right = [one[2 : 2 + rows] for one in expected[:2]]
    right = of_reference("ordered_candidates", *right, min(k, 2 * columns))
    assert torch.equal(found[0], right[0]) and torch.equal(found[1], right[1])


def test_lists_with_too_few_candidates(cuda):
    candidates = torch.tensor([[5 << 32 | 3, 2**41, 2**41], [7, 2**33, 1]])
    counts = torch.tensor([1, 3], dtype=torch.int32)
    found = cuda.results("ordered_candidates", candidates, counts, 2)
    expected = of_reference("ordered_candidates", candidates, counts, 2)
    assert torch.equal(found[0], expected[0])
    assert torch.equal(found[1].view(torch.int32), expected[1].view(torch.int32))


@pytest.mark.parametrize("cosine", [False, True])
@pytest.mark.parametrize("shape", [(1, 1), (5, 300), (0, 4)])
def test_squared_distances(cuda, shape, cosine):
    buffer = torch.randn(shape[0], shape[1] + 3)
    arguments = buffer[:, : shape[1]], terms(shape[0], cosine, 1), terms(shape[1], cosine, 2)
    found = check(cuda, "squared_distances_", *arguments, cosine)
    assert not torch.signbit(found[0]).any()  # -0 would order last


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("rows, columns, k", [(1, 1, 1), (4, 70, 9), (3, 400, 128), (2, 33, 33)])
def test_nearest_in_rows(cuda, rows, columns, k, dtype):
    generator = torch.Generator().manual_seed(k)
    levels = torch.randint(-4, 5, (rows, columns + 2), generator=generator).to(dtype) / 8
    levels[:, ::7] = -0.0
    levels[:, 3::11] = torch.inf
    fine = torch.randn(rows, columns + 2, generator=generator, dtype=dtype)
    for distances in (levels[:, :columns], fine[:, :columns]):
        found = cuda.results("nearest_in_rows", distances, k)
        expected = nearest_in_rows(distances, k)
        assert torch.equal(found[0], expected[0]) and torch.equal(found[1], expected[1])


@pytest.mark.parametrize("rows, width", [(1, 1), (7, 8), (33, 45), (5, 300), (0, 8)])
def test_squared_norms(cuda, rows, width):
    generator = torch.Generator().manual_seed(width)
    x = torch.randn(rows, width + 2, generator=generator)[:, :width]
    check(cuda, "squared_norms", x)
    every = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(torch.float16)
    check(cuda, "squared_norms", every[: rows * width].view(rows, width))
    if rows == 33:
        check(cuda, "squared_norms", every.view(-1, 16))  # subnormal, infinite, NaN


@pytest.mark.parametrize("metric", [1, 2])
@pytest.mark.parametrize("width, pairs", [(1, 1), (45, 70), (8, 5), (3, 0)])
def test_pair_sums(cuda, width, pairs, metric):
    generator = torch.Generator().manual_seed(pairs)
    x = torch.randn(9, width, generator=generator)
    y = torch.randn(6, width, generator=generator)
    rows = torch.randint(0, 9, (pairs,), generator=generator)
    columns = torch.randint(0, 6, (pairs,), generator=generator)
    check(cuda, "pair_sums", x, y, rows, columns, metric)
