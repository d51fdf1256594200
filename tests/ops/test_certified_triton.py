"""Triton's 8-bit kernels: numbers against the reference, and machine code for GPUs.

On a machine with a GPU the kernels run on it; elsewhere under Triton's interpreter, which
tests/conftest.py chooses.
"""

import importlib.util

import pytest
import torch
from machine_code import kernel_reports
from test_certified import case

from mmga.ops import certified, reference
from mmga.retrieval.features.sharded_matrix import ShardedMatrix
from mmga.retrieval.features.vectors import VectorSet
from mmga.retrieval.neighbours import one_look

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


@pytest.fixture(scope="module")
def triton():
    if importlib.util.find_spec("triton") is None:
        pytest.skip("triton is not installed")
    from mmga.ops.triton import certified as kernels

    return kernels


def products_case(seed, rows, columns, width, metric, most=6, masks=()):
    """Arguments of `count_certain_int8` with thresholds among the very keys of the pairs."""
    g = torch.Generator().manual_seed(seed)
    tile, matches, bound, codes = case(seed, rows, columns, most)
    sides = [torch.randn(count, width, generator=g) for count in (rows, columns)]
    (x, row_unit, _), (y, column_unit, _) = (reference.int8_rows(side, 127) for side in sides)
    values = torch.empty(rows, columns)
    reference.int8_products_(x, y, row_unit, column_unit, values)
    if metric == 1:
        terms = [1 / side.norm(dim=1) for side in sides]
    else:
        terms = [side.square().sum(1) for side in sides]
    keys = reference.ranking_keys(values, terms[0][:, None], terms[1], metric)
    for row in range(rows):
        mine = slice(int(matches.match_start[row]), int(matches.match_start[row + 1]))
        chosen = torch.randint(0, columns, (mine.stop - mine.start,), generator=g)
        matches.match_key[mine] = keys[row, chosen].double().sort().values
    scale = float(keys.max() - keys.min()) * 0.03
    bound = certified.Bound(*(part * scale for part in bound))
    limits = certified.thresholds(matches.match_start, matches.match_key, bound.row_slack)
    return (
        x, y, row_unit, column_unit, *terms, metric, tile.offset,
        bound.row_radius.float(), bound.column_radius.float(), bound.column_slack.float(),
        matches.match_start, matches.match_item, *limits,
        matches.ignored_start, matches.ignored_item,
        *(codes[name] if name in masks else None
          for name in ("row_camera", "column_camera", "removed")),
        torch.ones_like(matches.preceding),
    )  # fmt: skip


def on(device, arguments):
    return [a.to(device, copy=True) if isinstance(a, torch.Tensor) else a for a in arguments]


CAMERAS = ("row_camera", "column_camera")


@pytest.mark.parametrize(
    ("rows", "columns", "width", "metric", "most", "masks"),
    [
        (5, 150, 64, 1, 6, CAMERAS),
        (5, 150, 64, 2, 6, ("removed",)),
        (140, 70, 40, 1, 3, ()),
        (3, 33, 260, 2, 80, (*CAMERAS, "removed")),
        (1, 1, 32, 1, 1, ()),
        (6, 20, 32, 1, 0, ()),
    ],
)
def test_counts_equal_the_reference(triton, rows, columns, width, metric, most, masks):
    given = products_case(rows + columns, rows, columns, width, metric, most, masks)
    expected, found = list(given), on(DEVICE, given)
    expected[-1] = expected[-1].clone()
    of_reference = reference.count_certain_int8(*expected)
    of_kernel = triton.count_certain_int8(*found)
    torch.testing.assert_close(of_kernel.cpu(), of_reference, rtol=0, atol=0)
    assert torch.equal(found[-1].cpu(), expected[-1])
    if columns > 100:
        assert 10 < len(of_reference) < rows * columns / 2 and int(expected[-1].max()) > 5


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
@pytest.mark.parametrize("sides", ["one set", "one set, rows in turn", "two sets"])
@pytest.mark.parametrize("k", [1, 7])
def test_neighbours_are_those_of_the_cpu(triton, monkeypatch, metric, sides, k):
    """Several tiles of several panels, each pair met once where there is one set."""
    same = sides != "two sets"
    if sides == "one set, rows in turn":
        monkeypatch.setattr(one_look, "_rows_at_once", lambda *given: 192)
    for name, value in (("_LEAST_TILE", 64), ("_LARGEST_TILE", 64)):
        monkeypatch.setattr(one_look, name, value)
    monkeypatch.setattr(triton, "LEAST_PANEL", 40)
    g = torch.Generator().manual_seed(k)
    items = torch.randn(600, 70, generator=g)
    items[300:340] = items[:40]  # copies, which tie

    def look(device):
        both = (items[::7].to(device), items.to(device))
        queries, gallery = (VectorSet([ShardedMatrix([side])], metric) for side in both)
        options = {"farthest": True, "own_at_zero": same}
        return one_look.Look(gallery if same else queries, gallery, k, **options).run()

    expected = look("cpu")
    collected = []

    def collect(*arguments):
        first_row, first_other, mirrored = arguments[-5:-2]
        collected.append(mirrored and first_row != first_other)
        triton.collect_candidates_(*arguments)

    monkeypatch.setattr(certified, "_COLLECT_CANDIDATES", collect)
    found = look(DEVICE)
    assert torch.equal(found.index.cpu(), expected.index)
    assert torch.equal(found.distances.cpu(), expected.distances)
    assert torch.equal(found.maxima.cpu(), expected.maxima)
    assert any(collected) == same and len(collected) > 8


def test_products_by_torch_are_those_of_the_reference():
    g = torch.Generator().manual_seed(0)
    for rows, columns, width in ((1, 1, 1), (17, 9, 40), (30, 64, 33), (3, 0, 8), (2, 3, 0)):
        (x, one, _), (y, other, _) = (
            reference.int8_rows(torch.randn(count, width, generator=g), 127)
            for count in (rows, columns)
        )
        expected, found = torch.empty(2, rows, columns)
        reference.int8_products_(x, y, one, other, expected)
        certified.int8_products_on_device(x, y, one, other, found)
        assert torch.equal(found, expected)


def test_what_is_undecided_counts_for_no_match():
    given = products_case(0, 4, 90, 64, 1)
    undecided = reference.count_certain_int8(*given)
    values = torch.empty(4, 90)
    reference.int8_products_(*given[:4], values)
    counts = torch.zeros_like(given[-1])
    rest = (*given[4:8], *given[8:-1], counts)
    of_tile = reference.count_certain(values, *rest[:4], *rest[4:])
    assert torch.equal(undecided[:, :2], of_tile[:, :2])
    assert (undecided[:, 2] == 0).all()
    start = given[11]
    assert torch.equal(undecided[:, 3].long(), start.diff()[undecided[:, 0].long()])
    for row, column, _, last in of_tile.tolist():
        del column
        counts[int(start[row]) + last : int(start[row + 1])] -= 1
    assert torch.equal(counts + 1, given[-1])


@pytest.mark.parametrize("arch", [80, 90, 100])
def test_kernels_compile_without_spilling(arch, tmp_path):
    reports = kernel_reports(tmp_path, arch, "certified")
    assert [report["kernel"] for report in reports] == ["count_certain_kernel", "filter_kernel"]
