"""Problems for the attention kernels and the bound within which a kernel equals the reference.

A kernel is given as an object with the four functions `attention_multiply`,
`attention_multiply_backward`, `attention_pool` and `attention_pool_backward` of the ops' schemas;
`torch.ops.mmga` is one such object.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from mmga.ops import reference

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


@dataclass(frozen=True)
class Case:
    """One shape, layout and set of options."""

    name: str
    shape: tuple[int, int, int, int]
    parts: int = 1
    stripes: int = 1
    layout: str = "nchw"

    def __str__(self) -> str:
        return self.name


# B, C, h, w: odd sizes, sizes beyond one vector, block and tile, size 1, an empty batch.
CASES = (
    Case("odd", (2, 5, 7, 3), parts=3, stripes=2),
    Case("odd-last", (2, 5, 7, 3), parts=3, stripes=2, layout="channels_last"),
    Case("blocks", (2, 70, 11, 8), parts=2, stripes=2),
    Case("blocks-last", (1, 300, 8, 4), parts=2, stripes=3, layout="channels_last"),
    Case("parts8", (1, 3, 5, 5), parts=8, stripes=5),
    Case("parts8-last", (1, 33, 5, 5), parts=8, stripes=5, layout="channels_last"),
    Case("rows", (2, 6, 4, 3), parts=2, stripes=2, layout="rows"),
    Case("rows-last", (2, 6, 4, 3), parts=2, stripes=2, layout="rows of channels_last"),
    Case("columns", (2, 6, 4, 3), parts=2, stripes=2, layout="columns"),
    Case("channels-last-slice", (2, 6, 4, 3), parts=2, layout="channels of channels_last"),
    Case("one", (1, 1, 1, 1)),
    Case("pixel", (3, 9, 1, 1), parts=2),
    Case("pixel-last", (3, 9, 1, 1), parts=2, layout="channels_last"),
    Case("column-last", (2, 9, 6, 1), parts=2, layout="channels_last"),
    Case("empty", (0, 4, 3, 2), parts=2),
)


def laid_out(values: Tensor, layout: str) -> Tensor:
    """Return equal values in another place in memory."""
    b, c, h, w = values.shape
    if layout == "nchw":
        return values.contiguous()
    if layout == "channels_last":
        return values.contiguous(memory_format=torch.channels_last)
    if layout == "rows":
        out = values.new_empty(b, c, h + 3, w)[:, :, 2 : 2 + h]
    elif layout == "columns":
        out = values.new_empty(b, c, h, w + 2)[:, :, :, 1 : 1 + w]
    elif layout == "rows of channels_last":
        whole = values.new_empty(b, c, h + 3, w).contiguous(memory_format=torch.channels_last)
        out = whole[:, :, 2 : 2 + h]
    elif layout == "channels of channels_last":
        whole = values.new_empty(b, c + 3, h, w).contiguous(memory_format=torch.channels_last)
        out = whole[:, 1 : 1 + c]
    else:
        raise ValueError(layout)
    return out.copy_(values)


def problem(
    case: Case, dtype: torch.dtype, *, pooled: bool, device: str = "cpu", seed: int = 0
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return x, spatial, channel and a gradient of the result; logits lie in [-3, 3]."""
    b, c, h, w = case.shape
    generator = torch.Generator().manual_seed(seed)
    parts = case.parts if pooled else 1

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).clamp(-3, 3).to(device)

    x = laid_out(normal(b, c, h, w).to(dtype), case.layout)
    spatial = normal(b, parts, h, w)
    channel = normal(b, parts, c) if pooled else normal(b, c)
    grad = normal(b, parts, case.stripes, c) if pooled else normal(b, c, h, w)
    # Logits of other dtypes than x are part of the contract; float64 keeps them all exact.
    logits = torch.float64 if dtype == torch.float64 else torch.float32
    return x, spatial.to(logits), channel.to(dtype), grad.to(dtype)


def assert_within_bound(
    actual: Tensor,
    expected: Tensor,
    magnitude: Tensor,
    terms: int,
    working: torch.dtype,
    truncated: bool = False,
) -> None:
    """Hold `actual` against the float64 result `expected`.

    A sum of `terms` products in `working` arithmetic is off by at most (terms + k) u times the sum
    of magnitudes, whatever its order. k = 64 covers the sigmoids and the products of one term: with
    logits in [-3, 3] the subtraction in S (1 - S) magnifies a sigmoid's 2 u by at most 21. Then one
    rounding to the result's dtype, which for subnormal values is half the smallest step; where
    results are `truncated` to it, a whole unit of the last place.
    """
    out = torch.finfo(actual.dtype)
    bound = (terms + 64) * torch.finfo(working).eps / 2 * magnitude
    unit = out.eps if truncated else out.eps / 2
    bound += unit * (expected.abs() + bound) + out.smallest_normal * out.eps
    assert actual.shape == expected.shape
    error = (actual.double() - expected).abs()
    assert (error <= bound).all(), f"error {error.max():.3g} beyond its bound"


def working_dtype(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


def combine_of(residual: bool) -> str:
    return "residual" if residual else "product"


def mode_of(average: bool) -> str:
    return "avg" if average else "max"


def check_layout(actual: Tensor, x: Tensor) -> None:
    """The rule for results shaped like x: channels_last where x is, else NCHW; always dense."""
    last = x.shape[1] > 1 and x.shape[2] * x.shape[3] > 1 and x.stride(1) == 1
    expected = torch.channels_last if last else torch.contiguous_format
    assert actual.is_contiguous(memory_format=expected)


def check_multiply(
    kernel,
    case: Case,
    dtype: torch.dtype,
    residual: bool,
    device: str = "cpu",
    truncated: bool = False,
) -> None:
    """Hold forward and backward of attention_multiply against the reference in float64."""
    x, spatial, channel, grad = problem(case, dtype, pooled=False, device=device)
    combine = combine_of(residual)
    working = working_dtype(dtype)
    x64, s64, c64, g64 = (t.double() for t in (x, spatial, channel, grad))

    out = kernel.attention_multiply(x, spatial, channel, residual)
    expected = reference.attention_multiply(x64, s64, c64, combine)
    assert out.dtype == dtype
    check_layout(out, x)
    assert_within_bound(out, expected, expected.abs(), 0, working, truncated)

    grads = kernel.attention_multiply_backward(grad, x, spatial, channel, residual)
    expected = reference.attention_multiply_backward(g64, x64, s64, c64, combine)
    sizes = reference.attention_multiply_backward(g64.abs(), x64.abs(), s64, c64, combine)
    terms = (0, x.shape[1], x.shape[2] * x.shape[3])
    check_layout(grads[0], x)
    inputs = (x, spatial, channel)
    for got, given, want, size, n in zip(grads, inputs, expected, sizes, terms, strict=True):
        assert got.dtype == given.dtype
        assert_within_bound(got, want, size, n, working, truncated)


def check_pool(
    kernel,
    case: Case,
    dtype: torch.dtype,
    average: bool,
    residual: bool,
    device: str = "cpu",
    truncated: bool = False,
) -> None:
    """Hold forward and backward of attention_pool against the reference in float64."""
    x, spatial, channel, grad = problem(case, dtype, pooled=True, device=device)
    options = (mode_of(average), combine_of(residual), case.stripes)
    working = working_dtype(dtype)
    x64, s64, c64, g64 = (t.double() for t in (x, spatial, channel, grad))
    _, c, h, w = x.shape

    pooled, argmax = kernel.attention_pool(x, spatial, channel, average, residual, case.stripes)
    expected = reference.attention_pool(x64, s64, c64, *options)
    size = reference.attention_pool(x64.abs(), s64, c64, *options)
    assert pooled.dtype == dtype and pooled.is_contiguous()
    assert argmax.dtype == torch.int32
    assert_within_bound(pooled, expected, size, h * w if average else 0, working, truncated)
    if average:
        assert argmax.shape == (0,)
    else:
        check_places(argmax, x64, s64, options, working)

    grads = kernel.attention_pool_backward(
        grad, x, spatial, channel, argmax, average, residual, case.stripes
    )
    expected = reference.attention_pool_backward(g64, x64, s64, c64, argmax, *options)
    sizes = reference.attention_pool_backward(g64.abs(), x64.abs(), s64, c64, argmax, *options)
    terms = (case.parts, c, h * w + case.stripes)
    check_layout(grads[0], x)
    inputs = (x, spatial, channel)
    for got, given, want, size, n in zip(grads, inputs, expected, sizes, terms, strict=True):
        assert got.dtype == given.dtype
        assert_within_bound(got, want, size, n, working, truncated)


def check_places(
    argmax: Tensor, x: Tensor, spatial: Tensor, options: tuple, working: torch.dtype
) -> None:
    """Every place lies in its stripe, and no other element there is larger beyond rounding."""
    _, combine, stripes = options
    factor = torch.sigmoid(spatial) + (combine == "residual")
    w = x.shape[3]
    for i, (first, last) in enumerate(reference.stripe_rows(x.shape[2], stripes)):
        place = argmax[:, :, i].long()  # [B, P, C]
        assert ((place >= first * w) & (place < last * w)).all()
        attended = x[:, None] * factor[:, :, None]  # [B, P, C, h, w]
        best = attended[..., first:last, :].flatten(3).amax(3)
        there = attended.flatten(3).gather(3, place[..., None])[..., 0]
        assert (there >= best - 8 * torch.finfo(working).eps * best.abs()).all()


def tied_problem(case: Case, dtype: torch.dtype, device: str = "cpu") -> tuple[Tensor, ...]:
    """Return a pooling problem full of equal maxima whose arithmetic is exact in every dtype.

    Whole numbers, and logits whose sigmoids are exactly 0, 1/2 and 1.
    """
    b, c, h, w = case.shape
    generator = torch.Generator().manual_seed(1)
    x = torch.randint(-2, 3, (b, c, h, w), generator=generator).to(dtype).to(device)
    logits = torch.tensor([-200.0, 0.0, 200.0])
    spatial = logits[torch.randint(0, 3, (b, case.parts, h, w), generator=generator)].to(device)
    channel = torch.zeros(b, case.parts, c, device=device)
    grad = torch.randint(-2, 3, (b, case.parts, case.stripes, c), generator=generator)
    return laid_out(x, case.layout), spatial, channel, grad.to(dtype).to(device)


def check_ties(kernel, case: Case, dtype: torch.dtype, residual: bool, device: str = "cpu") -> None:
    """Among equals the lowest place is found and takes the whole gradient."""
    x, spatial, channel, grad = tied_problem(case, dtype, device)
    options = ("max", combine_of(residual), case.stripes)
    pooled, argmax = kernel.attention_pool(x, spatial, channel, False, residual, case.stripes)
    expected, places = reference.attention_pool_with_argmax(x, spatial, channel, *options)
    assert torch.equal(pooled, expected)
    assert torch.equal(argmax, places)
    actual = kernel.attention_pool_backward(
        grad, x, spatial, channel, argmax, False, residual, case.stripes
    )
    wanted = reference.attention_pool_backward(grad, x, spatial, channel, places, *options)
    # Sums of small multiples of 1/8: exact in every order.
    for got, want in zip(actual, wanted, strict=True):
        assert torch.equal(got, want)
