"""The C++ stages against their reference, stage by stage."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mmga.ops import _library, backends, k_reciprocal, neighbours, reference

STAGES = [
    "reciprocal_sets",
    "expand_sets",
    "listed_distances",
    "encode",
    "average_rows",
    "transpose_rows",
    "jaccard_rows",
    "prefix_rows",
    "jaccard_join",
    "symmetrise",
    "mix_distances",
    "squared_distances_",
    "nearest_in_rows",
    "select_neighbours",
    "ordered_candidates",
    "pair_sums",
]
KERNEL = pytest.mark.skipif(
    not backends()["cpu"].startswith("active"), reason=f"C++ kernels: {backends()['cpu']}"
)


@pytest.fixture(autouse=True, scope="module")
def _one_thread():
    """Small work is slower with several threads, most of all beside other processes."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


CASES = settings(max_examples=60, deadline=None, derandomize=True)


@KERNEL
@pytest.mark.parametrize("stage", STAGES)
def test_kernel_is_active(stage):
    assert _library.has_kernel(stage, "CPU")


@st.composite
def graphs(draw):
    """Neighbour lists of points on an integer grid, with ties and duplicates."""
    items = draw(st.integers(1, 70))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    top = draw(st.sampled_from([1, 3, 12]))
    points = torch.randint(0, top + 1, (items, 2), generator=generator).double()
    d = torch.cdist(points, points).square().round()
    k = draw(st.integers(1, min(items, 24)))
    near, index = reference.nearest_in_rows(d, k)
    return index, near, d


def stages_of(index, near, d, k2):
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
    whole = reference.transpose_rows(*v, 0)
    chosen = torch.arange(0, n, 2)
    overlaps = reference.jaccard_rows(*v, *inverted, chosen, None, False)
    jaccard_join = []
    for limit in (0.0, 0.5, 0.9):
        heavy = reference.prefix_rows(*v, limit)
        of_heavy = reference.transpose_rows(*heavy, 0)
        jaccard_join.append(("prefix_rows", (*v, limit)))
        jaccard_join.append(("jaccard_join", (*v, *heavy, *of_heavy, chosen, limit)))
    block = d[chosen, first:].contiguous()
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
        ("jaccard_rows", (*v, *inverted, chosen, None, False)),
        ("jaccard_rows", (*v, *inverted, chosen, 0.5, False)),
        ("jaccard_rows", (*v, *inverted, chosen, None, True)),
        ("jaccard_rows", (*v, *inverted, chosen, 0.5, True)),
        *jaccard_join,
        ("symmetrise", reference.jaccard_rows(*v, *whole, torch.arange(n), 0.9, True)),
        ("mix_distances", (block, largest, *overlaps, first, 0.3, 1, 1.0)),
        ("mix_distances", (block.float(), largest, *overlaps, first, 0.7, 2, 1.0)),
        ("mix_distances", (block, None, *overlaps, first, 0.3, 1, 0.5)),
    ]


def assert_same(actual, expected, stage):
    if isinstance(expected, torch.Tensor):
        actual, expected = (actual,), (expected,)
    for left, right in zip(actual, expected, strict=True):
        assert left.dtype == right.dtype, stage
        # Integers are equal; float64 differs by the libraries' exp (1 ulp) and summation order.
        torch.testing.assert_close(
            left, right, rtol=1e-13, atol=1e-14, equal_nan=True, msg=lambda m: f"{stage}: {m}"
        )


@KERNEL
@CASES
@given(graphs(), st.integers(1, 8))
def test_kernels_equal_reference(graph, k2):
    for stage, arguments in stages_of(*graph, k2):
        kernel = getattr(torch.ops.mmga, stage)(*arguments)
        assert_same(kernel, getattr(reference, stage)(*arguments), stage)


@KERNEL
@CASES
@given(graphs())
def test_overlaps_are_taken_off_as_in_the_reference(graph):
    n, first = len(graph[0]), len(graph[0]) // 3
    g = torch.Generator().manual_seed(n)
    rows, item = (torch.rand(n, n, generator=g) < 0.4).nonzero().unbind(1)
    jaccard = torch.rand(len(item), dtype=torch.float64, generator=g)
    shift = torch.randn(n, dtype=torch.float64, generator=g)
    ends = [torch.searchsorted(rows * n + item, torch.arange(n) * n + c) for c in (first, n)]
    found = torch.randn(n, n - first, generator=g)
    expected = found.clone()
    torch.ops.mmga.take_overlaps_(found, *ends, item, jaccard, shift, first)
    reference.take_overlaps_(expected, *ends, item, jaccard, shift, first)
    assert torch.equal(found, expected)


@KERNEL
@pytest.mark.parametrize("threads", [1, 2, 5])
def test_results_do_not_depend_on_threads(threads):
    generator = torch.Generator().manual_seed(3)
    d = torch.cdist(*[torch.randn(700, 6, generator=generator, dtype=torch.float64)] * 2).square()
    near, index = reference.nearest_in_rows(d, 21)
    stages = stages_of(index, near, d, 6)
    expected = [getattr(reference, stage)(*arguments) for stage, arguments in stages]
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        found = [getattr(torch.ops.mmga, stage)(*arguments) for stage, arguments in stages]
    finally:
        torch.set_num_threads(before)
    for (stage, _), kernel, right in zip(stages, found, expected, strict=True):
        assert_same(kernel, right, stage)


def test_weights_that_vanish():
    """exp underflows to 0 for most entries; shared columns of weight 0 are no overlap."""
    offsets = torch.tensor([0, 3, 6, 8])
    columns = torch.tensor([0, 1, 2, 0, 1, 2, 1, 2], dtype=torch.int32)
    values = torch.tensor([1.0, 0, 0, 0, 0, 1.0, 0, 1.0], dtype=torch.float64)
    inverted = torch.ops.mmga.transpose_rows(offsets, columns, values, 0)
    result = torch.ops.mmga.jaccard_rows(
        offsets, columns, values, *inverted, torch.arange(3), None, False
    )
    assert [part.tolist() for part in result] == [[0, 1, 3, 5], [0, 1, 2, 1, 2], [0.0] * 5]


def test_mirrored_halves_are_the_whole():
    generator = torch.Generator().manual_seed(4)
    d = torch.cdist(*[torch.randn(50, 3, generator=generator, dtype=torch.float64)] * 2).square()
    index = reference.nearest_in_rows(d, 9)[1]
    rows = k_reciprocal.expanded_sets(index, 9, 5)
    rows = k_reciprocal.encode(rows, torch.ones(len(rows[1]), dtype=torch.float64), None)
    inverted = k_reciprocal.transpose_rows(rows)
    every = torch.arange(50)
    half = k_reciprocal.jaccard_rows(rows, inverted, every, 0.9, upper=True)
    found = k_reciprocal.symmetrise(half)
    expected = k_reciprocal.jaccard_rows(rows, inverted, every, 0.9)
    assert all(torch.equal(*both) for both in zip(found, expected, strict=True))
    assert len(half.columns) < len(found.columns)
    if backends()["cpu"].startswith("active"):
        with pytest.raises(RuntimeError, match="row 1 has column 0"):
            k_reciprocal.symmetrise(found)


@pytest.mark.parametrize("limit", [0.0, 0.3, 0.62, 0.9])
@pytest.mark.parametrize("spread", [0.3, 1.0, 3.0])
def test_near_pairs_are_those_of_all_overlaps(limit, spread):
    """Clusters of every tightness: light entries, rows far from each other, and duplicates."""
    generator = torch.Generator().manual_seed(5)
    points = 4 * torch.randn(40, 4, generator=generator, dtype=torch.float64)
    points = points.repeat(15, 1)
    noise = spread * torch.randn(600, 4, generator=generator, dtype=torch.float64)
    noise[500:] = 0
    d = torch.cdist(points + noise, points + noise).square()
    near, index = neighbours.nearest_in_rows(d, 21)
    rows = k_reciprocal.expanded_sets(index, 21, 11)
    rows = k_reciprocal.encode(rows, k_reciprocal.listed_distances(rows, index, near).abs(), None)
    rows = k_reciprocal.average_rows(rows, index, 6)
    every = torch.arange(600)
    found = k_reciprocal.JaccardJoin(rows, limit).upper(every)
    inverted = k_reciprocal.transpose_rows(rows)
    expected = k_reciprocal.jaccard_rows(rows, inverted, every, limit, upper=True)
    assert all(torch.equal(*both) for both in zip(found, expected, strict=True))
    assert len(found.columns) > 400


@pytest.mark.parametrize("limit", [0.5, 0.99, 0.999999])
def test_rows_of_many_equal_weights(limit):
    """No empty slot passes where the least overlap is next to nothing."""
    n = 70
    offsets = torch.arange(n + 1) * n
    columns = torch.arange(n, dtype=torch.int32).repeat(n)
    rows = k_reciprocal.CsrRows(offsets, columns, torch.full((n * n,), 1 / n, dtype=torch.float64))
    found = k_reciprocal.JaccardJoin(rows, limit).upper(torch.arange(n))
    every = k_reciprocal.transpose_rows(rows)
    expected = k_reciprocal.jaccard_rows(rows, every, torch.arange(n), limit, upper=True)
    assert all(torch.equal(*both) for both in zip(found, expected, strict=True))
    assert len(found.columns) == n * (n + 1) // 2


def test_empty_sets_have_no_weights():
    """Duplicates can push self out of its own list: such an item is in no set, J = 1."""
    index = torch.tensor([[0], [0], [0]], dtype=torch.int32)
    sets = k_reciprocal.expanded_sets(index, 1, 1)
    assert [part.tolist() for part in sets] == [[0, 1, 1, 1], [0]]
    rows = k_reciprocal.encode(sets, torch.zeros(1, dtype=torch.float64), None)
    found = k_reciprocal.jaccard_rows(rows, k_reciprocal.transpose_rows(rows), torch.arange(3))
    assert [part.tolist() for part in found] == [[0, 1, 1, 1], [0], [0.0]]


def test_opcheck():
    generator = torch.Generator().manual_seed(1)
    d = torch.cdist(*[torch.randn(40, 3, generator=generator, dtype=torch.float64)] * 2).square()
    near, index = reference.nearest_in_rows(d, 9)
    for stage, arguments in stages_of(index, near, d, 3):
        torch.library.opcheck(getattr(torch.ops.mmga, stage).default, arguments)


def test_bad_neighbours_are_refused():
    index = torch.zeros((4, 3), dtype=torch.int32)
    with pytest.raises(ValueError, match="list_length must be from 1 to the 3"):
        k_reciprocal.expanded_sets(index, 4, 1)
    with pytest.raises(TypeError, match="int32"):
        k_reciprocal.expanded_sets(index.long(), 2, 1)
    with pytest.raises(ValueError, match="its own 4 rows"):
        k_reciprocal.expanded_sets(index + 4, 2, 1)


def test_gradients_are_refused():
    d = torch.zeros((3, 3), requires_grad=True)
    with pytest.raises(ValueError, match="no gradient"):
        neighbours.nearest_in_rows(d, 1)
