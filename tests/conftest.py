"""Fixtures for all tests.

Environment variables:
    MMGA_REQUIRE_KERNELS   comma-separated back ends (cpu, cuda, triton) whose absence fails the
                           tests that would otherwise skip
"""

import os

import pytest
import torch

# Without a GPU, Triton kernels run under Triton's interpreter, which must be chosen before Triton
# is first imported (torch.compile imports it, too).
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


@pytest.fixture(autouse=True, scope="session")
def _one_thread():
    """Small products are slower with several threads, most of all beside other processes."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def kernel():
    """A function from an op's name and a back end to the op, once its kernel is known to run."""
    from mmga.ops import backends
    from mmga.ops._library import has_kernel

    def get(name: str, backend: str = "cpu"):
        state = backends()[backend]
        key = "CPU" if backend == "cpu" else "CUDA"
        if not state.startswith("active") or not has_kernel(name, key):
            required = os.environ.get("MMGA_REQUIRE_KERNELS", "").split(",")
            absent = f"no {backend} kernel for {name}: {state}"
            (pytest.fail if backend in required else pytest.skip)(absent)
        return getattr(torch.ops.mmga, name)

    return get
