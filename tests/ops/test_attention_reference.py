"""The specification itself: against plain loops, and its handwritten gradients against autograd."""

import math

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings

from mmga.ops import reference

COMBINE = ("product", "residual")


def sigmoid(value: float) -> float:
    return 1 / (1 + math.exp(-value)) if value >= 0 else math.exp(value) / (1 + math.exp(value))


def pool_by_loops(x, spatial, channel, mode, combine, stripes):
    """The definition of attention_pool, element by element in Python's float64."""
    b, c, h, w = x.shape
    parts = spatial.shape[1]
    pooled = torch.zeros(b, parts, stripes, c, dtype=torch.float64)
    argmax = torch.zeros(b, parts, stripes, c, dtype=torch.int32)
    for i, p, k, j in torch.cartesian_prod(*map(torch.arange, (b, parts, stripes, c))).tolist():
        best, place, total, count = -math.inf, None, 0.0, 0
        for row in range(k * h // stripes, (k + 1) * h // stripes):
            for column in range(w):
                s = sigmoid(spatial[i, p, row, column].item())
                value = x[i, j, row, column].item() * (1 + s if combine == "residual" else s)
                if place is None or value > best:
                    best, place = value, row * w + column
                total, count = total + value, count + 1
        gate = sigmoid(channel[i, p, j].item())
        pooled[i, p, k, j] = (best if mode == "max" else total / count) * gate
        argmax[i, p, k, j] = place
    return pooled, argmax


@st.composite
def problems(draw):
    b, c, p = draw(st.integers(1, 2)), draw(st.integers(1, 4)), draw(st.integers(1, 3))
    h, w = draw(st.integers(1, 5)), draw(st.integers(1, 4))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    # Few distinct values, so that equal maxima are common; 0.0 among the logits keeps them equal.
    x = torch.randint(-2, 3, (b, c, h, w), generator=generator).double()
    spatial = torch.randint(-1, 2, (b, p, h, w), generator=generator).double()
    channel = torch.randn(b, p, c, generator=generator, dtype=torch.float64)
    return x, spatial, channel, draw(st.integers(1, h))


@settings(max_examples=40, deadline=None, derandomize=True)
@given(problem=problems(), mode=st.sampled_from(["max", "avg"]), combine=st.sampled_from(COMBINE))
def test_pool_equals_plain_loops(problem, mode, combine):
    x, spatial, channel, stripes = problem
    pooled, argmax = reference.attention_pool_with_argmax(
        x, spatial, channel, mode, combine, stripes
    )
    expected, place = pool_by_loops(x, spatial, channel, mode, combine, stripes)
    # float64 against float64: the exponential's last bits and the order of at most 20 additions.
    torch.testing.assert_close(pooled, expected, rtol=1e-13, atol=1e-13)
    if mode == "max":
        assert torch.equal(argmax, place)


@pytest.mark.parametrize("combine", COMBINE)
def test_multiply_equals_plain_loops(combine):
    x = torch.randn(2, 3, 2, 4, dtype=torch.float64)
    spatial = torch.randn(2, 1, 2, 4, dtype=torch.float64)
    channel = torch.randn(2, 3, dtype=torch.float64)
    out = reference.attention_multiply(x, spatial, channel, combine)
    for b, c, i, j in torch.cartesian_prod(*map(torch.arange, x.shape)).tolist():
        s = sigmoid(spatial[b, 0, i, j].item())
        factor = 1 + s if combine == "residual" else s
        expected = x[b, c, i, j].item() * factor * sigmoid(channel[b, c].item())
        assert out[b, c, i, j].item() == pytest.approx(expected, rel=1e-14)


@pytest.mark.parametrize("combine", COMBINE)
def test_multiply_backward_equals_autograd(combine):
    x = torch.randn(2, 5, 3, 4, dtype=torch.float64, requires_grad=True)
    spatial = torch.randn(2, 1, 3, 4, dtype=torch.float64, requires_grad=True)
    channel = torch.randn(2, 5, dtype=torch.float64, requires_grad=True)
    grad = torch.randn(2, 5, 3, 4, dtype=torch.float64)
    out = reference.attention_multiply(x, spatial, channel, combine)
    expected = torch.autograd.grad(out, (x, spatial, channel), grad)
    with torch.no_grad():
        actual = reference.attention_multiply_backward(grad, x, spatial, channel, combine)
    for got, want in zip(actual, expected, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("combine", COMBINE)
@pytest.mark.parametrize("mode", ["max", "avg"])
@pytest.mark.parametrize("stripes", [1, 3])
def test_pool_backward_equals_autograd(mode, combine, stripes):
    # Whole numbers and equal logits: the maximum is shared by several places in most channels.
    x = torch.randint(-2, 3, (2, 5, 7, 3)).double().requires_grad_()
    spatial = torch.zeros(2, 3, 7, 3, dtype=torch.float64, requires_grad=True)
    channel = torch.randn(2, 3, 5, dtype=torch.float64, requires_grad=True)
    grad = torch.randn(2, 3, stripes, 5, dtype=torch.float64)
    pooled, argmax = reference.attention_pool_with_argmax(
        x, spatial, channel, mode, combine, stripes
    )
    expected = torch.autograd.grad(pooled, (x, spatial, channel), grad)
    with torch.no_grad():
        actual = reference.attention_pool_backward(
            grad, x, spatial, channel, argmax, mode, combine, stripes
        )
    for got, want in zip(actual, expected, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-12)


def test_generalised_mean_lies_between_mean_and_maximum():
    x = torch.rand(2, 3, 6, 4) + 0.1
    spatial, channel = torch.randn(2, 2, 6, 4), torch.randn(2, 2, 3)
    mean, gem, top = (
        reference.attention_pool(x, spatial, channel, mode, stripes=2)
        for mode in ("avg", "gem", "max")
    )
    assert (mean < gem).all() and (gem < top).all()
    first = reference.attention_pool(x, spatial, channel, "gem", stripes=2, exponent=1.0)
    # 12 float32 additions and two exponentiations by 1.
    torch.testing.assert_close(first, mean, rtol=1e-6, atol=0)


def test_stripes_cover_every_row_once():
    for height in range(1, 30):
        for stripes in range(1, height + 1):
            rows = [r for a, b in reference.stripe_rows(height, stripes) for r in range(a, b)]
            assert rows == list(range(height))
            assert all(a < b for a, b in reference.stripe_rows(height, stripes))
