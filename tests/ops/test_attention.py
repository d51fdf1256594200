"""The public attention functions, and the CPU kernels behind them against the reference."""

import hypothesis.strategies as st
import pytest
import torch
from attention_cases import CASES, DTYPES, Case, check_multiply, check_pool, check_ties, laid_out
from hypothesis import given, settings

from mmga.ops import attention_multiply, attention_pool, reference

OPS = (
    "attention_multiply",
    "attention_multiply_backward",
    "attention_pool",
    "attention_pool_backward",
)


@pytest.fixture
def cpu(kernel):
    for name in OPS:
        kernel(name, "cpu")
    return torch.ops.mmga


@pytest.mark.parametrize("residual", [False, True], ids=["product", "residual"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_cpu_multiply_equals_reference(cpu, case, dtype, residual):
    check_multiply(cpu, case, dtype, residual)


@pytest.mark.parametrize("residual", [False, True], ids=["product", "residual"])
@pytest.mark.parametrize("average", [False, True], ids=["max", "avg"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_cpu_pool_equals_reference(cpu, case, dtype, average, residual):
    check_pool(cpu, case, dtype, average, residual)


@pytest.mark.parametrize("residual", [False, True], ids=["product", "residual"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_cpu_ties_go_to_the_lowest_place(cpu, case, dtype, residual):
    check_ties(cpu, case, dtype, residual)


@pytest.mark.parametrize("layout", ["nchw", "channels_last"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_cpu_maximum_is_the_first_nan(cpu, dtype, layout):
    x = torch.randn(1, 6, 8, 5)
    x[0, 1, 2, 3] = x[0, 1, 6, 1] = float("nan")
    x[0, 2] = -float("inf")
    x[0, 3, 0, 0] = float("nan")
    x[0, 3, 7, 0] = float("inf")
    x = laid_out(x.to(dtype), layout)
    spatial, channel = torch.zeros(1, 1, 8, 5), torch.zeros(1, 1, 6)
    pooled, places = cpu.attention_pool(x, spatial, channel, False, False, 1)
    expected, wanted = reference.attention_pool_with_argmax(x, spatial, channel)
    torch.testing.assert_close(pooled, expected, rtol=0, atol=0, equal_nan=True)
    assert torch.equal(places, wanted)
    assert places[0, 0, 0, [1, 2, 3]].tolist() == [13, 0, 0]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_cpu_rounds_every_value_as_torch_does(cpu, dtype):
    # Every bit pattern of the dtype passes through: widened, halved (S = 1/2, C = 1) and rounded.
    bits = torch.arange(2**16, dtype=torch.int32).to(torch.uint16).view(1, 1, 256, 256)
    x = bits.view(dtype)
    spatial, channel = torch.zeros(1, 1, 256, 256), torch.full((1, 1), 200.0)
    out = cpu.attention_multiply(x, spatial, channel, False)
    expected = (x.float() / 2).to(dtype)
    torch.testing.assert_close(out, expected, rtol=0, atol=0, equal_nan=True)
    # 1 + S = 1.5 meets ties and overflow.
    out = cpu.attention_multiply(x, spatial, channel, True)
    torch.testing.assert_close(out, (x.float() * 1.5).to(dtype), rtol=0, atol=0, equal_nan=True)


def test_cpu_results_do_not_depend_on_threads(cpu):
    x, grad = torch.randn(3, 130, 12, 6), torch.randn(3, 130, 12, 6)
    spatial, channel = torch.randn(3, 1, 12, 6), torch.randn(3, 130)
    threads = torch.get_num_threads()
    results = []
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            results.append(cpu.attention_multiply_backward(grad, x, spatial, channel, False))
    finally:
        torch.set_num_threads(threads)
    for other in results[1:]:
        for got, want in zip(other, results[0], strict=True):
            assert torch.equal(got, want)


@st.composite
def cases(draw):
    shape = (
        draw(st.integers(0, 3)),
        draw(st.integers(1, 80)),
        draw(st.integers(1, 9)),
        draw(st.integers(1, 7)),
    )
    layouts = ["nchw", "channels_last", "rows", "rows of channels_last", "columns"]
    return Case(
        "drawn",
        shape,
        parts=draw(st.integers(1, 8)),
        stripes=draw(st.integers(1, shape[2])),
        layout=draw(st.sampled_from(layouts)),
    )


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    case=cases(),
    dtype=st.sampled_from(DTYPES),
    average=st.booleans(),
    residual=st.booleans(),
)
def test_any_shape_equals_reference(case, dtype, average, residual):
    # Whatever serves the ops here: the CPU kernels, or without them the reference.
    check_multiply(torch.ops.mmga, case, dtype, residual)
    check_pool(torch.ops.mmga, case, dtype, average, residual)
    check_ties(torch.ops.mmga, case, dtype, residual)


def leaves(*shapes: tuple[int, ...]) -> list[torch.Tensor]:
    return [torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in shapes]


@pytest.mark.parametrize("combine", ["product", "residual"])
def test_gradcheck_multiply(combine):
    inputs = leaves((2, 3, 4, 5), (2, 1, 4, 5), (2, 3))
    assert torch.autograd.gradcheck(lambda *a: attention_multiply(*a, combine), inputs)


@pytest.mark.parametrize("stripes", [1, 3])
@pytest.mark.parametrize("combine", ["product", "residual"])
@pytest.mark.parametrize("mode", ["max", "avg", "gem"])
@pytest.mark.parametrize("layout", ["nchw", "channels_last"])
def test_gradcheck_pool(mode, combine, stripes, layout):
    x, spatial, channel = leaves((2, 3, 4, 5), (2, 2, 4, 5), (2, 2, 3))
    # The generalised mean is not smooth at its clamp.
    x = laid_out(x.detach().abs() + 0.1 if mode == "gem" else x.detach(), layout).requires_grad_()
    assert torch.autograd.gradcheck(
        lambda *a: attention_pool(*a, mode, combine, stripes), (x, spatial, channel)
    )


def test_gem_exponent_learns():
    x, spatial, channel = torch.rand(2, 3, 4, 4), torch.randn(2, 1, 4, 4), torch.randn(2, 1, 3)
    exponent = torch.tensor(3.0, requires_grad=True)
    attention_pool(x, spatial, channel, "gem", exponent=exponent).sum().backward()
    assert exponent.grad is not None and exponent.grad.abs() > 0


def test_gradients_of_an_expanded_and_a_transposed_result():
    # Gradients that autograd hands over without memory of their own, or in another layout.
    x = laid_out(torch.randn(2, 5, 4, 3), "channels_last").requires_grad_()
    spatial = torch.randn(2, 1, 4, 3, requires_grad=True)
    channel = torch.randn(2, 5, requires_grad=True)
    inputs = (x, spatial, channel)
    weight = torch.randn(3, 4, 5, 2)
    for reduce in (lambda y: y.sum(), lambda y: (y.permute(3, 2, 1, 0) * weight).sum()):
        actual = torch.autograd.grad(reduce(attention_multiply(*inputs)), inputs)
        expected = torch.autograd.grad(reduce(reference.attention_multiply(*inputs)), inputs)
        for got, want in zip(actual, expected, strict=True):
            # Sums of at most 12 terms of size 1, two orders of addition.
            torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-6)


def arguments(op: str, layout: str, dtype: torch.dtype) -> tuple:
    x = laid_out(torch.randn(2, 6, 4, 3).to(dtype), layout)
    if op.startswith("attention_multiply"):
        inputs = (x, torch.randn(2, 1, 4, 3), torch.randn(2, 6))
        options: tuple = (True,)
        grad = torch.randn(2, 6, 4, 3).to(dtype)
    else:
        inputs = (x, torch.randn(2, 2, 4, 3), torch.randn(2, 2, 6))
        options = (False, False, 2)
        grad = torch.randn(2, 2, 2, 6).to(dtype)
    if not op.endswith("backward"):
        return *(t.requires_grad_() for t in inputs), *options
    saved = ()
    if op == "attention_pool_backward":
        saved = (torch.ops.mmga.attention_pool(*inputs, *options)[1],)
    return grad, *inputs, *saved, *options


@pytest.mark.parametrize("layout", ["nchw", "channels_last", "rows", "columns"])
@pytest.mark.parametrize("op", OPS)
def test_opcheck(op, layout):
    for dtype in (torch.float32, torch.bfloat16):
        torch.library.opcheck(getattr(torch.ops.mmga, op).default, arguments(op, layout, dtype))


def test_opcheck_average():
    x, spatial, channel = torch.randn(2, 6, 4, 3), torch.randn(2, 2, 4, 3), torch.randn(2, 2, 6)
    inputs = [t.requires_grad_() for t in (x, spatial, channel)]
    torch.library.opcheck(torch.ops.mmga.attention_pool.default, (*inputs, True, True, 3))


def test_torch_compile_takes_the_whole_graph():
    def run(x, spatial, channel, gates):
        attended = attention_multiply(x, spatial[:, :1], gates)
        return attention_pool(attended, spatial, channel, "max", "residual", 2)

    inputs = [
        torch.randn(2, 6, 5, 3, requires_grad=True),
        torch.randn(2, 3, 5, 3, requires_grad=True),
        torch.randn(2, 3, 6, requires_grad=True),
        torch.randn(2, 6, requires_grad=True),
    ]
    expected = torch.autograd.grad(run(*inputs).square().sum(), inputs)
    torch._dynamo.reset()
    try:
        result = torch.compile(run, fullgraph=True)(*inputs)
    except torch._inductor.exc.InvalidCxxCompiler as error:
        pytest.skip(f"torch.compile has no C++ compiler: {error}")
    actual = torch.autograd.grad(result.square().sum(), inputs)
    for got, want in zip(actual, expected, strict=True):
        # The same kernels; only the sums that autograd adds up around them may be reordered.
        torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["attention_multiply", "attention_pool"])
def test_second_derivatives_are_refused(name):
    x, spatial, channel = leaves((1, 2, 3, 3), (1, 1, 3, 3), (1, 1, 2))
    if name == "attention_multiply":
        out = attention_multiply(x, spatial, channel[:, 0])
    else:
        out = attention_pool(x, spatial, channel)
    (grad,) = torch.autograd.grad(out.square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match=f"{name} has no second derivative: use mmga.ops.refer"):
        grad.sum().backward()


def test_no_product_of_parts_and_map_is_held(cpu):
    # 8 parts of 64 x 48 x 16 float32 would take 25 MB beside x; the kernels add far less.
    x, spatial = torch.randn(16, 64, 48, 16), torch.randn(16, 8, 48, 16)
    channel = torch.randn(16, 8, 64)
    with torch.profiler.profile(profile_memory=True) as profile:
        cpu.attention_pool(x, spatial, channel, False, False, 1)
    allocated = sum(max(0, event.self_cpu_memory_usage) for event in profile.events())
    assert allocated < x.nbytes


T = torch.randn
MISTAKES = {
    "x dimensions": (ValueError, "x must be a feature map", (T(2, 3, 4), T(2, 1, 4, 4), T(2, 3))),
    "x dtype": (
        TypeError,
        "x must be float32, float64, float16 or bfloat16, got torch.int64",
        (torch.ones(2, 3, 4, 4, dtype=torch.int64), T(2, 1, 4, 4), T(2, 3)),
    ),
    "x type": (TypeError, "x must be a tensor, got list", ([1.0], T(2, 1, 4, 4), T(2, 3))),
    "channel type": (
        TypeError,
        "channel must be a tensor, got NoneType",
        (T(2, 3, 4, 4), T(2, 1, 4, 4), None),
    ),
    "spatial shape": (
        ValueError,
        r"spatial must be \[B, 1, h, w\] = \[2, 1, 4, 4\] for x \[2, 3, 4, 4\], got "
        r"\[2, 1, 4, 5\]",
        (T(2, 3, 4, 4), T(2, 1, 4, 5), T(2, 3)),
    ),
    "channel shape": (
        ValueError,
        r"channel must be \[B, C\] = \[2, 3\] for x \[2, 3, 4, 4\], got \[2, 4\]",
        (T(2, 3, 4, 4), T(2, 1, 4, 4), T(2, 4)),
    ),
    "device": (
        ValueError,
        "spatial must be on the device of x, cpu, got meta",
        (T(2, 3, 4, 4), T(2, 1, 4, 4, device="meta"), T(2, 3)),
    ),
    "combine": (
        ValueError,
        "combine must be one of product, residual, got 'sum'",
        (T(2, 3, 4, 4), T(2, 1, 4, 4), T(2, 3), "sum"),
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_multiply_names_the_mistake(mistake):
    error, message, given_arguments = MISTAKES[mistake]
    with pytest.raises(error, match=message):
        attention_multiply(*given_arguments)


POOL_MISTAKES = {
    "no parts": (r"spatial must be \[B, P, h, w\] with at least one part", T(2, 0, 4, 4), {}),
    "spatial dimensions": (r"spatial must be \[B, P, h, w\] with", T(2, 4, 4), {}),
    "parts differ": (r"channel must be \[B, P, C\] = \[2, 3, 5\]", T(2, 3, 4, 4), {}),
    "mode": ("mode must be one of max, avg, gem, got 'min'", T(2, 2, 4, 4), {"mode": "min"}),
    "stripes": ("stripes must be between 1 and the 4 rows", T(2, 2, 4, 4), {"stripes": 5}),
    "no stripes": ("stripes must be between 1 and the 4 rows", T(2, 2, 4, 4), {"stripes": 0}),
}


@pytest.mark.parametrize("mistake", POOL_MISTAKES)
def test_pool_names_the_mistake(mistake):
    message, spatial, options = POOL_MISTAKES[mistake]
    with pytest.raises(ValueError, match=message):
        attention_pool(T(2, 5, 4, 4), spatial, T(2, 2, 5), **options)


def test_pool_of_an_empty_map_is_refused():
    with pytest.raises(ValueError, match="at least one row and column to pool"):
        attention_pool(T(2, 5, 4, 0), T(2, 2, 4, 0), T(2, 2, 5))
