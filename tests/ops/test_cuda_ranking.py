"""The CUDA kernels of the ranking operators against the reference."""

import pytest
import torch
from cuda_cases import check, of_reference
from ranking_cases import ignored_and_matches


def tile(rows, width, metric, dtype, seed, levels=5, gap=0):
    """Values with many ties, in rows with a gap between them."""
    generator = torch.Generator().manual_seed(seed)
    values = torch.randint(-levels, levels, (rows, width + gap), generator=generator).to(dtype)
    row = torch.randint(1, 4, (rows,), generator=generator).to(dtype) / 2
    column = torch.randint(1, 4, (width,), generator=generator).to(dtype) / 2
    return values[:, :width], row if metric else row[:0], column if metric else column[:0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("metric", [0, 1, 2])
@pytest.mark.parametrize(
    "rows, width, matches", [(1, 1, 1), (5, 37, 4), (3, 700, 0), (2, 900, 600)]
)
def test_count_preceding(cuda, rows, width, matches, metric, dtype):
    offset = 40
    values, row, column = tile(rows, width, metric, dtype, rows + width)
    lists = ignored_and_matches(rows, width, matches, offset, seed=matches)
    generator = torch.Generator().manual_seed(1)
    key = torch.randint(-5, 5, lists.match_item.shape, generator=generator).to(dtype)
    item, key = of_reference("sort_matches", lists.match_start, lists.match_item, key)
    codes = torch.randint(0, 3, (rows + width,), generator=generator, dtype=torch.int32)
    removed = torch.rand(rows, width + 3, generator=generator)[:, :width] < 0.2
    for cameras, mask in ((False, False), (True, True)):
        arguments = (
            values, row, column, metric, offset, lists.match_start, item, key,
            lists.ignored_start, lists.ignored_item,
            codes[:rows] if cameras else None, codes[rows:] if cameras else None,
            removed if mask else None,
            torch.ones_like(item), torch.ones(rows, dtype=torch.int64),
            torch.full((rows,), torch.inf, dtype=dtype), torch.zeros(rows, dtype=torch.int64),
        )  # fmt: skip
        check(cuda, "count_preceding", *arguments)


def test_count_preceding_names_nan(cuda):
    values = torch.tensor([[1.0, torch.nan, 3.0], [1.0, 2.0, 3.0]])
    empty = torch.empty(0)
    start, nothing = torch.zeros(3, dtype=torch.int64), torch.zeros(0, dtype=torch.int64)
    counts = [torch.zeros(2, dtype=torch.int64) for _ in range(2)]
    found = cuda.results(
        "count_preceding", values, empty, empty, 0, 0, start, nothing, empty, start, nothing,
        None, None, None, nothing, counts[0], torch.full((2,), torch.inf), counts[1],
    )  # fmt: skip
    assert found[2].isnan().tolist() == [True, False] and found[2][1] == 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("metric", [0, 1, 2])
@pytest.mark.parametrize("rows, width, matches", [(1, 1, 1), (6, 50, 33), (9, 300, 5), (4, 20, 0)])
def test_read_and_sort_matches(cuda, rows, width, matches, metric, dtype):
    values, row, column = tile(rows, width, metric, dtype, 3, gap=5)
    lists = ignored_and_matches(rows, width, matches, 0, seed=2)
    key = torch.full(lists.match_item.shape, torch.nan, dtype=dtype)
    arguments = (values, row, column, metric, lists.match_start, lists.match_item, key)
    check(cuda, "read_matches", *arguments)
    # A slice of the rows touches its own matches alone.
    if rows > 2:
        part = (
            values[1:3],
            row[1:3],
            column,
            metric,
            lists.match_start[1:4],
            lists.match_item,
            key,
        )
        check(cuda, "read_matches", *part)
    generator = torch.Generator().manual_seed(4)
    key = torch.randint(0, 4, lists.match_item.shape, generator=generator).to(dtype)
    key[::5] = torch.nan
    arguments = (lists.match_start, lists.match_item, key)
    check(cuda, "sort_matches", *arguments)
