"""The CUDA kernels of certified ranks against the reference, bit for bit."""

import pytest
import torch
from cuda_cases import check, of_reference
from test_certified import case

from mmga.ops import certified, reference


def arguments_of(tile, matches, bound, codes, metric=0, terms=None):
    lower, upper = certified.thresholds(matches.match_start, matches.match_key, bound.row_slack)
    return (
        tile.values, *(terms or [torch.empty(0)] * 2), metric, tile.offset,
        bound.row_radius.float(), bound.column_radius.float(), bound.column_slack.float(),
        matches.match_start, matches.match_item, lower, upper,
        matches.ignored_start, matches.ignored_item,
        codes.get("row_camera"), codes.get("column_camera"), codes.get("removed"),
        torch.ones_like(matches.preceding),
    )  # fmt: skip


@pytest.mark.parametrize("width, most", [(1, 6), (33, 0), (200, 6), (70, 140)])
@pytest.mark.parametrize("cameras", [False, True])
def test_count_certain(cuda, width, most, cameras):
    undecided, preceding = check(
        cuda, "count_certain", *arguments_of(*case(width + most, 5, width, most, cameras))
    )
    if width > 33:
        assert len(undecided) > 5 and int((preceding - 1).sum()) > 0


def test_count_certain_many_matches(cuda):
    """More matches than one walk of a row counts."""
    g = torch.Generator().manual_seed(0)
    tile, matches, bound, codes = case(1, rows=2, width=300, most=3)
    start = torch.tensor([0, 700, 1100])
    item = torch.cat([torch.randperm(2000, generator=g)[:n].sort().values for n in (700, 400)])
    key = torch.rand(1100, generator=g, dtype=torch.float64)
    nothing = torch.zeros(3, dtype=torch.int64)
    matches = certified.Matches.of(start, item, key, nothing, nothing[:0])
    undecided, preceding = check(cuda, "count_certain", *arguments_of(tile, matches, bound, codes))
    assert int((undecided[:, 3] - undecided[:, 2]).max()) > 50 and int(preceding[699]) > 100


@pytest.mark.parametrize("metric", [1, 2])
def test_count_certain_of_products(cuda, metric):
    tile, matches, bound, codes = case(3, width=90)
    g = torch.Generator().manual_seed(1)
    terms = torch.rand(5, generator=g), torch.rand(90, generator=g)
    check(cuda, "count_certain", *arguments_of(tile, matches, bound, codes, metric, terms))


@pytest.mark.parametrize("metric", [1, 2])
@pytest.mark.parametrize("rows", ["bounded", "exact", "integers"])
@pytest.mark.parametrize("width", [1, 8, 29])
def test_refine_pairs(cuda, metric, rows, width):
    tile, matches, bound, codes = case(11, rows=6, width=60, most=40)
    undecided = of_reference("count_certain", *arguments_of(tile, matches, bound, codes))[0]
    g = torch.Generator().manual_seed(2)
    x = torch.randint(-2, 3, (6, width), generator=g).float()
    y = torch.randint(-2, 3, (60, width), generator=g).float()
    x[0], y[3] = 0, 0
    norms = [reference.squared_norms(side) for side in (x, y)]
    terms = [n.sqrt() if metric == 1 else n for n in norms]
    row, column = (one.reshape(-1) for one in torch.meshgrid(
        torch.arange(6), torch.arange(60), indexing="ij"
    ))  # fmt: skip
    keys = reference.pair_keys(x, y, *terms, row, column, metric).view(6, 60)
    for one in range(6):  # thresholds among the very keys of the pairs: there are ties
        mine = slice(int(matches.match_start[one]), int(matches.match_start[one + 1]))
        matches.match_key[mine] = keys[one, torch.arange(mine.stop - mine.start)].sort().values
    undecided[:, 2] = 0
    undecided[:, 3] = matches.match_start.diff()[undecided[:, 0].long()].int()
    sides = [bound.row_radius, bound.column_radius, bound.row_slack, bound.column_slack]
    if rows == "integers":
        x, y = (reference.int16_rows(*side)[0] for side in zip((x, y), norms, strict=True))
    still, _, tied = check(
        cuda, "refine_pairs", undecided, x, y, *terms, metric,
        *([None] * 4 if rows == "exact" else sides), tile.offset,
        matches.match_start, matches.match_item, matches.match_key,
        torch.ones_like(matches.preceding), torch.ones_like(matches.tied),
    )  # fmt: skip
    if rows == "exact":
        assert len(still) == 0 and int(tied.sum()) > len(tied)
    elif width == 29:
        assert 0 < len(still) < len(undecided)


def test_nothing_to_settle(cuda):
    tile, matches, _, _ = case(5, rows=3, width=10, most=4)
    x, y = torch.ones(3, 4), torch.ones(10, 4)
    for sides in ([None] * 4, [torch.ones(3), torch.ones(10)] * 2):
        sides = [None if one is None else one.double() for one in sides]
        (still, *_) = check(
            cuda, "refine_pairs", torch.empty((0, 4), dtype=torch.int32), x, y,
            torch.ones(3).double(), torch.ones(10).double(), 1, *sides, tile.offset,
            matches.match_start, matches.match_item, matches.match_key,
            matches.preceding, matches.tied,
        )  # fmt: skip
        assert still.shape == (0, 4)
