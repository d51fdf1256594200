"""The CUDA kernels of re-ranking against the reference, stage by stage."""

import pytest
import torch
from cuda_cases import assert_same, of_reference

from mmga.ops import reference


def graph(items, k, top, seed):
    """Neighbour lists of points on an integer grid, with ties and duplicates."""
    generator = torch.Generator().manual_seed(seed)
    points = torch.randint(0, top + 1, (items, 2), generator=generator).double()
    d = torch.cdist(points, points).square().round()
    near, index = reference.nearest_in_rows(d, k)
    return index, near, d


def stages(index, near, d, k2):
    """The arguments of every stage, each from the reference's results before it."""
    n, k = index.shape
    sets = reference.reciprocal_sets(index, k)
    half = reference.reciprocal_sets(index, (k + 1) // 2)
    joined = reference.expand_sets(*sets, *half)
    rows = torch.arange(n).repeat_interleave(joined[0].diff())
    distances = d[rows, joined[1].long()]
    weights = reference.encode(joined[0], distances, d.amax(1))
    v = reference.average_rows(*joined, weights, index, min(k2, k))
    first = n // 3
    inverted = reference.transpose_rows(*v, first)
    chosen = torch.arange(n - 1, -1, -2)
    overlaps = reference.jaccard_rows(*v, *inverted, chosen, None, False)
    block = d[chosen]
    block[:, :first] = torch.nan  # is not looked at
    block = block[:, first:]
    largest = d.amax(1)[chosen]
    return [
        ("reciprocal_sets", (index, k)),
        ("reciprocal_sets", (index, (k + 1) // 2)),
        ("expand_sets", (*sets, *half)),
        ("listed_distances", (*joined, index, near)),
        ("listed_distances", (*joined, index, near.float())),
        ("encode", (joined[0], distances, d.amax(1))),
        ("encode", (joined[0], distances * 400, None)),
        ("average_rows", (*joined, weights, index, min(k2, k))),
        ("transpose_rows", (*v, first)),
        ("transpose_rows", (*v, n)),
        ("jaccard_rows", (*v, *inverted, chosen, None, False)),
        ("jaccard_rows", (*v, *inverted, chosen, 0.5, False)),
        ("jaccard_rows", (*v, *inverted, chosen, 0.5, True)),
        ("jaccard_rows", (*v, *inverted, chosen[:0], None, False)),
        ("mix_distances", (block, largest, *overlaps, first, 0.3, 1, 1.0)),
        ("mix_distances", (block.float(), largest, *overlaps, first, 0.7, 2, 1.0)),
        ("mix_distances", (block, None, *overlaps, first, 0.3, 1, 0.5)),
    ]


# One item; all equal; more items than one word, one group of words and one word of groups hold.
GRAPHS = [(1, 1, 0, 1), (40, 9, 0, 3), (70, 24, 12, 6), (130, 33, 5, 2), (1100, 4, 40, 2)]


@pytest.mark.parametrize("items, k, top, k2", GRAPHS)
def test_stages_equal_reference(cuda, items, k, top, k2):
    for stage, arguments in stages(*graph(items, k, top, items), k2):
        found = cuda.results(stage, *arguments, orders=(0, 1, 2, 3) if items < 1000 else (2,))
        # Integers are equal; float64 differs by the library's exp (1 ulp) and what follows of it.
        rtol = 1e-14 if stage in ("encode", "jaccard_rows") else 1e-15
        assert_same(found, of_reference(stage, *arguments), rtol)


def test_stages_equal_the_cpu_bit_for_bit(cuda, kernel):
    """Sums are added in the CPU's order."""
    for stage, arguments in stages(*graph(150, 21, 9, 1), 6):
        if stage == "encode" and cuda.kind == "device":
            continue  # its exp is the device's
        expected = kernel(stage)(*arguments)
        expected = [expected] if isinstance(expected, torch.Tensor) else list(expected)
        assert_same(cuda.results(stage, *arguments), expected)


def test_far_apart_columns(cuda):
    """Columns of several words of groups: 32768 columns make one."""
    n = 40_000
    columns = torch.tensor([0, 31, 32, 1023, 1024, 32767, 32768, 33000, 39_999], dtype=torch.int32)
    lengths = torch.zeros(n, dtype=torch.int64)
    lengths[[3, 39_998, 39_999]] = torch.tensor([9, 4, 9])
    offsets = torch.cat([torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)])
    columns = torch.cat([columns, columns[2:6], columns])
    values = torch.linspace(0.01, 0.2, len(columns), dtype=torch.float64)
    found = cuda.results("transpose_rows", offsets, columns, values, 0, orders=(2,))
    assert_same(found, of_reference("transpose_rows", offsets, columns, values, 0))
    chosen = torch.tensor([39_999, 4, 3])
    arguments = (offsets, columns, values, *found, chosen, None, False)
    rows = cuda.results("jaccard_rows", *arguments)
    assert_same(rows, of_reference("jaccard_rows", *arguments), 1e-15)
    assert rows[1].tolist() == [3, 39_998, 39_999] * 2


def test_weights_that_vanish(cuda):
    """exp underflows to 0 for most entries; shared columns of weight 0 are no overlap."""
    offsets = torch.tensor([0, 3, 6, 8])
    columns = torch.tensor([0, 1, 2, 0, 1, 2, 1, 2], dtype=torch.int32)
    values = torch.tensor([1.0, 0, 0, 0, 0, 1.0, 0, 1.0], dtype=torch.float64)
    inverted = cuda.results("transpose_rows", offsets, columns, values, 0)
    result = cuda.results(
        "jaccard_rows", offsets, columns, values, *inverted, torch.arange(3), None, False
    )
    assert [part.tolist() for part in result] == [[0, 1, 3, 5], [0, 1, 2, 1, 2], [0.0] * 5]


def test_offsets_of_many_rows(cuda):
    """More rows than the scan has threads, most of them empty."""
    n = 5000
    index = (torch.arange(n) // 3 * 3)[:, None].to(torch.int32)
    found = cuda.results("reciprocal_sets", index, 1, orders=(2,))
    assert_same(found, of_reference("reciprocal_sets", index, 1))
