"""Norms in one fixed order, and distances as users see them."""

import numpy as np
import pytest
import torch

from mmga.ops import backends, reference
from mmga.ops._library import has_kernel
from mmga.ops.distance import key_terms, pair_sums, pairwise_distance, squared_norms


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("width", [1, 7, 8, 255, 256, 263, 2048])
def test_squared_norms_equal_the_reference_to_the_bit(dtype, width):
    if "active" in backends()["cpu"]:
        assert has_kernel("squared_norms", "CPU")
    generator = torch.Generator().manual_seed(width)
    x = (10 * torch.randn(9, width, generator=generator)).to(dtype)
    x[3] = 0
    x[4] = torch.tensor(2.0**-20).to(dtype)  # a subnormal half
    assert torch.equal(squared_norms(x), reference.squared_norms(x))
    assert torch.equal(squared_norms(x[:, ::2]), reference.squared_norms(x[:, ::2]))
    assert torch.equal(squared_norms(x[::2]), squared_norms(x)[::2])


def test_every_half_is_widened_rightly():
    every = torch.from_numpy(np.arange(65536, dtype=np.uint16).view(np.float16).copy())[:, None]
    found, expected = squared_norms(every), every.double().square()[:, 0]
    assert torch.equal(found.nan_to_num(-1), expected.nan_to_num(-1))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_infinity_and_nan_stay(dtype):
    x = torch.ones(3, 20, dtype=dtype)
    x[0, 3], x[1, 19] = torch.nan, torch.inf
    assert torch.isfinite(squared_norms(x)).tolist() == [False, False, True]


def test_pairwise_distance_is_what_users_see():
    x, y = torch.randn(5, 6), torch.randn(7, 6)
    x[2] = 0
    wanted = torch.cdist(x.double(), y.double())
    assert torch.allclose(pairwise_distance(x, y, "euclidean").double(), wanted, atol=1e-5)
    cosine = torch.nn.functional.normalize(x) @ torch.nn.functional.normalize(y).T
    assert torch.allclose(pairwise_distance(x, y), 1 - cosine, atol=1e-6)
    assert (pairwise_distance(x, y)[2] == 1).all()


def test_zero_vectors_have_no_inverse_norm():
    assert key_terms(torch.tensor([0.0, 4.0], dtype=torch.float64), "cosine").tolist() == [0, 0.5]


def test_opcheck():
    torch.library.opcheck(torch.ops.mmga.squared_norms.default, (torch.randn(3, 9),))


@pytest.mark.parametrize(
    ("call", "error", "sentence"),
    [
        (lambda: squared_norms(torch.zeros(2, 2, dtype=torch.float64)), TypeError, "float16 or"),
        (lambda: squared_norms(torch.zeros(2)), ValueError, r"\[N, D\]"),
        (lambda: squared_norms(torch.zeros(2, 2, requires_grad=True)), ValueError, "no gradient"),
        (lambda: pairwise_distance(torch.zeros(2, 2), torch.zeros(2, 3)), ValueError, "widths"),
        (
            lambda: pairwise_distance(torch.zeros(2, 2), torch.zeros(2, 2), "l2"),
            ValueError,
            "cosine or euclidean",
        ),
    ],
)
def test_mistakes(call, error, sentence):
    with pytest.raises(error, match=sentence):
        call()


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
@pytest.mark.parametrize("dimensions", [1, 7, 8, 33, 512])
def test_pair_sums_equal_the_reference_to_the_bit(dimensions, metric):
    generator = torch.Generator().manual_seed(dimensions)
    x = torch.randn(50, dimensions, generator=generator)
    y = torch.randn(30, dimensions, generator=generator)
    rows = torch.randint(0, 50, (700,), generator=generator)
    columns = torch.randint(0, 30, (700,), generator=generator)
    number = reference.METRICS.index(metric)
    found = pair_sums(x, y, rows, columns, metric)
    assert torch.equal(found, reference.pair_sums(x, y, rows, columns, number))
    one, other = x[rows].double(), y[columns].double()
    exact = ((one - other).square() if metric == "euclidean" else one * other).sum(1)
    torch.testing.assert_close(found, exact, rtol=0, atol=1e-12 * dimensions)
    torch.library.opcheck(torch.ops.mmga.pair_sums.default, (x, y, rows, columns, number))


def test_squared_distances_of_near_duplicates_keep_their_digits():
    from fractions import Fraction

    generator = torch.Generator().manual_seed(0)
    x = torch.randn(20, 64, generator=generator)
    y = x * (1 + 2.0**-22 * torch.randn(20, 64, generator=generator))
    both = torch.arange(20)
    found = pair_sums(x, y, both, both, "euclidean")
    for one, other, value in zip(x.tolist(), y.tolist(), found.tolist(), strict=True):
        exact = sum((Fraction(a) - Fraction(b)) ** 2 for a, b in zip(one, other, strict=True))
        assert abs(Fraction(value) / exact - 1) < 2.0**-48
    assert not pair_sums(x, x, both, both, "euclidean").any()  # exactly 0
