import pytest
import torch


@pytest.fixture(autouse=True)
def poisoned_memory():
    """Fill uninitialised tensors, those of compiled kernels too, with NaN or the largest integer.

    An output that a kernel forgets to write then fails its test.
    """
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    assert torch.empty(3).isnan().all()
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture(
    params=["emulated", pytest.param("device", marks=pytest.mark.cuda)], scope="session"
)
def cuda(request):
    """The CUDA operators: their source on the CPU, and on a card where there is one."""
    from cuda_cases import Backend

    if request.param == "device" and not torch.cuda.is_available():
        pytest.skip("no CUDA device on this machine")
    return Backend(request.param)
