"""The CUDA kernel of count_impostors against the reference."""

import pytest
import torch
from cuda_cases import check
from ranking_cases import ignored_and_matches


def arguments(rows, width, metric, dtype, bins, masks, cross_camera, seed=0):
    generator = torch.Generator().manual_seed(seed)
    values = torch.randint(-9, 9, (rows, width + 2), generator=generator).to(dtype)[:, :width] / 4
    if metric == 0:
        values = values.abs()
        values[:, ::3] = torch.inf
    row = torch.randint(1, 4, (rows,), generator=generator).to(dtype) / 2
    column = torch.randint(1, 4, (width,), generator=generator).to(dtype) / 2
    lists = ignored_and_matches(rows, width, 7, 20, seed)
    codes = torch.randint(0, 3, (rows + width,), generator=generator, dtype=torch.int32)
    removed = torch.rand(rows, width, generator=generator) < 0.2
    known = torch.rand(width, generator=generator) < 0.7
    edges = 3.0 / bins * torch.arange(1, bins + 1, dtype=torch.float64)
    nearest = torch.full((rows,), torch.inf, dtype=torch.float64)
    nearest[0] = 0.25
    return (
        values, row, column, metric, 20, lists.ignored_start, lists.ignored_item,
        codes[:rows] if masks else None, codes[rows:] if masks else None, cross_camera,
        removed if masks else None, known if masks else None,
        edges**2 if metric == 2 else edges, torch.ones(bins + 1, dtype=torch.int64), nearest,
        torch.full((rows,), torch.iinfo(torch.int64).max),
    )  # fmt: skip


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("metric", [0, 1, 2])
@pytest.mark.parametrize("masks, cross_camera", [(False, False), (True, False), (True, True)])
def test_equals_reference(cuda, metric, dtype, masks, cross_camera):
    case = arguments(4, 500, metric, dtype, 300, masks, cross_camera)
    found = check(cuda, "count_impostors", *case)
    assert found[0].sum() > 800


@pytest.mark.parametrize("bins", [1, 2, 65536])
def test_bins_of_any_number_and_width(cuda, bins):
    case = list(arguments(3, 270, 2, torch.float32, bins, True, False, seed=5))
    generator = torch.Generator().manual_seed(bins)
    uneven = torch.rand(bins, dtype=torch.float64, generator=generator).sort().values * 20
    beyond = torch.full((bins,), 1e308, dtype=torch.float64)
    for edges in (case[12], uneven, beyond, uneven * 0):
        case[12] = edges
        check(cuda, "count_impostors", *case)


def test_one_row_and_one_item(cuda):
    check(cuda, "count_impostors", *arguments(1, 1, 1, torch.float32, 4, False, False))
