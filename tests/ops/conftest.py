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
