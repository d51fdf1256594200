"""What CUDA devices do with 8-bit products: the kernels against the reference.

Those of CUDA C++ run in emulation, those of Triton under its interpreter (tests/conftest.py).
"""

import pytest
import torch
from cuda_cases import assert_same, check, of_reference

from mmga.ops import reference

WIDTHS = [0, 1, 31, 64, 200, 256, 512, 1024, 1027]


@pytest.mark.parametrize("most", [63, 127])
@pytest.mark.parametrize("width", WIDTHS)
def test_int8_rows(cuda, width, most):
    x = torch.randn(9, width, generator=torch.Generator().manual_seed(width))
    x[3] = 0
    x[4] *= 1e-30
    x[5] *= 1e-33
    _, unit, _ = check(cuda, "int8_rows", x, most, rtol=1e-5)
    assert torch.equal(unit, reference.int8_rows(x, most)[1])


@pytest.mark.parametrize("width", WIDTHS)
def test_int16_rows(cuda, width):
    x = torch.randn(9, width, generator=torch.Generator().manual_seed(width))
    x[3] = 0
    x[4] *= 1e-24
    x[5] *= 1e-30
    norms = x.double().square().sum(1)
    check(cuda, "int16_rows", x, norms, rtol=1e-5)


def some_bits(rows, columns, share, seed=0):
    g = torch.Generator().manual_seed(seed)
    chosen = torch.rand(rows, columns, generator=g) < share
    padded = torch.zeros(rows, -(-columns // 32) * 32, dtype=torch.int64)
    padded[:, :columns] = chosen
    words = (padded.view(rows, -1, 32) << torch.arange(32)).sum(2)
    return torch.where(words >= 2**31, words - 2**32, words).to(torch.int32), chosen


@pytest.mark.parametrize("columns", [1, 32, 77, 2100])
@pytest.mark.parametrize("share", [0.0, 0.05, 1.0])
def test_list_bits(cuda, columns, share):
    bits, chosen = some_bits(7, columns, share)
    (pairs,) = check(cuda, "list_bits", bits, columns)
    assert torch.equal(pairs.long(), chosen.nonzero())


def fine_sides(rows, columns, width, seed=0):
    g = torch.Generator().manual_seed(seed)
    x, y = torch.randn(rows, width, generator=g), torch.randn(columns, width, generator=g)
    y[: rows // 2] = x[: rows // 2]  # copies
    sides = [(side, reference.squared_norms(side)) for side in (x, y)]
    numbers = [reference.int16_rows(*side)[0] for side in sides]
    terms = [norms for _, norms in sides]
    errors = [
        torch.rand(count, generator=g, dtype=torch.float64) * scale
        for scale in (0.1, 0.01) for count in (rows, columns)
    ]  # fmt: skip
    return numbers, terms, errors


def empty_lists(count, slots):
    return (
        torch.full((count, slots, 3), 7, dtype=torch.int32),
        torch.zeros(count, dtype=torch.int32),
        torch.full((count,), torch.inf),
    )


def used(lists):
    """Lists as they are read: what is beyond their counts does not matter."""
    candidates, counts, limits = lists
    beyond = torch.arange(candidates.shape[1]) >= counts[:, None]
    return [candidates.masked_fill(beyond[:, :, None], 0), counts, limits]


@pytest.mark.parametrize("metric", [1, 2])
@pytest.mark.parametrize("farthest", [False, True])
def test_add_candidates(cuda, metric, farthest):
    rows, columns, k = 5, 150, 4
    numbers, terms, errors = fine_sides(rows, columns, 29)
    if metric == 1:
        terms = [norms.sqrt() for norms in terms]
    lists = empty_lists(rows + 2, 80)
    far = empty_lists(rows + 2, 70) if farthest else (None, None, None)
    for seed in range(3):  # from the second time on the lists hold something
        bits, _ = some_bits(rows, columns, 0.3, seed)
        given = (*lists, *far, k, bits, *numbers, *terms, *errors, metric, 1, 1000 * seed)
        found = cuda.results("add_candidates_", *given)
        expected = of_reference("add_candidates_", *given)
        for begin in range(0, len(found), 3):
            assert_same(used(found[begin : begin + 3]), used(expected[begin : begin + 3]))
        lists, far = found[:3], found[3:] or far
    assert lists[1][1:-1].min() >= k and lists[1].max() < 60 and int(lists[1][0]) == 0
    assert not lists[2][1:-1].isinf().any()


def test_full_lists_are_pruned(cuda):
    """Of many pairs the few nearest stay; lists without room for them are lost."""
    numbers, terms, errors = fine_sides(5, 600, 29)
    errors = [error * 1e-3 for error in errors]
    bits, _ = some_bits(5, 600, 1.0)
    rest = (bits, *numbers, *terms, *errors, 2, 0, 0)
    many = of_reference("add_candidates_", *empty_lists(5, 700), None, None, None, 4, *rest)
    few = cuda.results("add_candidates_", *empty_lists(5, 12), None, None, None, 4, *rest)
    assert_same(used([few[0], *few[1:]]), used([many[0][:, :12], *many[1:]]))
    tight = [*errors[:2], errors[2] + 10, errors[3]]
    lost = cuda.results(
        "add_candidates_", *empty_lists(5, 12), None, None, None, 4,
        bits, *numbers, *terms, *tight, 2, 0, 0,
    )  # fmt: skip
    assert lost[1].tolist() == [-1] * 5 and lost[2].tolist() == [-torch.inf] * 5


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        (7, torch.zeros(5, 4, dtype=torch.int32), r"bits: expected .* int32 tensor \[5, 5\]"),
        (8, torch.zeros(5, 28, dtype=torch.int16), r"y: expected .* int16 tensor \[\*, 28\]"),
        (6, 80, "k: expected 1 to 79, found 80"),
        (17, 3, "first_row: expected 0 to 2, found 3"),
        (3, torch.zeros(7, 70, 3, dtype=torch.int32), "expected with far_counts and far_limits"),
    ],
)
def test_wrong_arguments_are_refused(cuda, place, value, message):
    numbers, terms, errors = fine_sides(5, 150, 29)
    bits, _ = some_bits(5, 150, 0.3)
    given = [*empty_lists(7, 80), None, None, None, 4, bits, *numbers, *terms, *errors, 2, 1, 0]
    given[place] = value
    with pytest.raises(RuntimeError, match=f"add_candidates_: .*{message}"):
        cuda.results("add_candidates_", *given)
    with pytest.raises(RuntimeError, match=r"list_bits: bits: expected .* \[\*, 3\]"):
        cuda.results("list_bits", bits, 70)
