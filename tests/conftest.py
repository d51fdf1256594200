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


def pytest_generate_tests(metafunc):
    """Repeat a property under every program-wide setting of torch."""
    if metafunc.definition.get_closest_marker("program_settings"):
        import program_settings

        settings = [None, *program_settings.SETTINGS]
        metafunc.parametrize("_program_setting", settings, indirect=True, ids=["", *settings[1:]])


@pytest.fixture(autouse=True)
def _program_setting(request, monkeypatch):
    """Public functions run under the setting; a fifth of the examples is tried, at least ten."""
    setting = getattr(request, "param", None)
    if setting is None:
        return
    import hypothesis
    import program_settings

    program_settings.apply(setting, monkeypatch, request.module)
    whole = getattr(request.function, "_hypothesis_internal_use_settings", None)
    if whole is not None:
        fewer = hypothesis.settings(whole, max_examples=max(10, whole.max_examples // 5))
        monkeypatch.setattr(request.function, "_hypothesis_internal_use_settings", fewer)


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
