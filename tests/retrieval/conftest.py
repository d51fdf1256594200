import pytest
import torch


@pytest.fixture(autouse=True, scope="session")
def _one_thread():
    """Small products are slower with several threads, most of all beside other processes."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
