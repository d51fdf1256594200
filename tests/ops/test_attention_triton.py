"""Triton's attention kernels: numbers against the reference, and machine code for GPUs.

On a machine with a GPU the kernels run on it; elsewhere under Triton's interpreter, which
tests/conftest.py chooses.
"""

import importlib.util
import os

import pytest
import torch
from attention_cases import CASES, Case, check_multiply, check_pool, check_ties
from machine_code import kernel_reports

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
INTERPRETED = DEVICE == "cpu"
BY_NAME = {case.name: case for case in CASES}

# Every layout, size 1, nothing.
NUMERIC = ("odd", "rows-last", "columns", "one", "column-last", "empty")
# Stripes of unequal height, longer than a block of pixels; more channels than one block.
LARGE = Case("large", (1, 70, 20, 12), parts=2, stripes=3, layout="channels_last")


@pytest.fixture(scope="module")
def triton():
    if importlib.util.find_spec("triton") is None:
        absent = "triton is not installed"
        required = os.environ.get("MMGA_REQUIRE_KERNELS", "").split(",")
        (pytest.fail if "triton" in required else pytest.skip)(absent)
    from triton.runtime.interpreter import InterpretedFunction

    from mmga.ops.triton import attention as triton_attention

    # Not the reference, and not a kernel that cannot run here.
    assert isinstance(triton_attention.pool_fwd_kernel, InterpretedFunction) == INTERPRETED
    return triton_attention


def truncated(dtype: torch.dtype) -> bool:
    """Triton's interpreter cuts float32 off where hardware rounds it to bfloat16."""
    return INTERPRETED and dtype == torch.bfloat16


@pytest.mark.filterwarnings("ignore:overflow encountered in exp")
@pytest.mark.parametrize("residual", [False, True], ids=["product", "residual"])
@pytest.mark.parametrize("name", NUMERIC)
def test_float32_equals_reference(triton, name, residual):
    case = BY_NAME[name]
    check_multiply(triton, case, torch.float32, residual, DEVICE)
    for average in (False, True):
        check_pool(triton, case, torch.float32, average, residual, DEVICE)
    check_ties(triton, case, torch.float32, residual, DEVICE)


@pytest.mark.filterwarnings("ignore:overflow encountered in exp")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("name", ["odd-last", "rows"])
def test_half_precision_equals_reference(triton, name, dtype):
    case = BY_NAME[name]
    check_multiply(triton, case, dtype, False, DEVICE, truncated(dtype))
    for average in (False, True):
        check_pool(triton, case, dtype, average, True, DEVICE, truncated(dtype))
    check_ties(triton, case, dtype, False, DEVICE)


@pytest.mark.filterwarnings("ignore:overflow encountered in exp")
def test_eight_parts_equal_reference(triton):
    check_pool(triton, BY_NAME["parts8-last"], torch.float32, False, False, DEVICE)
    check_pool(triton, BY_NAME["parts8"], torch.float32, True, True, DEVICE)
    check_ties(triton, BY_NAME["parts8"], torch.float32, True, DEVICE)


@pytest.mark.filterwarnings("ignore:overflow encountered in exp")
def test_more_than_one_block_equals_reference(triton):
    check_multiply(triton, LARGE, torch.float32, False, DEVICE)
    check_pool(triton, LARGE, torch.float32, False, True, DEVICE)
    check_pool(triton, LARGE, torch.float32, True, False, DEVICE)
    check_ties(triton, LARGE, torch.float32, False, DEVICE)


def test_maximum_is_the_first_nan(triton):
    x = torch.randn(1, 6, 20, 5, device=DEVICE)
    # 64 pixels apart: the same place of two blocks.
    x[0, 1, 2, 3] = x[0, 1, 15, 2] = float("nan")
    x[0, 2] = -float("inf")
    spatial, channel = x.new_zeros(1, 1, 20, 5), x.new_zeros(1, 1, 6)
    pooled, places = triton.attention_pool(x, spatial, channel, False, False, 1)
    assert pooled[0, 0, 0].isnan().tolist() == [False, True, False, False, False, False]
    assert places[0, 0, 0, 1:3].tolist() == [13, 0]


@pytest.mark.cuda
@pytest.mark.skipif(INTERPRETED, reason="no CUDA device on this machine")
def test_triton_serves_cuda_tensors(triton, kernel, monkeypatch):
    op = kernel("attention_multiply", "triton")
    called = []
    original = triton.attention_multiply
    monkeypatch.setattr(triton, "attention_multiply", lambda *a: called.append(1) or original(*a))
    x = torch.randn(2, 3, 4, 5, device=DEVICE)
    op(x, torch.randn(2, 1, 4, 5, device=DEVICE), torch.randn(2, 3, device=DEVICE), False)
    assert called


@pytest.mark.parametrize(
    ("arch", "layouts", "count"),
    [(80, ["nchw"], 8), (90, ["nchw", "channels_last"], 16), (100, ["channels_last"], 8)],
    ids=["sm_80", "sm_90", "sm_100"],
)
def test_kernels_compile_without_spilling(arch, layouts, count, tmp_path):
    reports = kernel_reports(tmp_path, arch, "attention", "--layouts", *layouts)
    assert len({report["kernel"] for report in reports}) == 7 and len(reports) == count
