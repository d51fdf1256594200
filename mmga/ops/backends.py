"""Report which kernels are active on this machine."""

import importlib.util

import torch

from mmga.ops import _extension


def backends() -> dict[str, str]:
    """Return, for each back end, `active: ...` or the reason why it is not.

    The keys are `reference` (plain PyTorch, always there), `cpu` (C++), `cuda` (CUDA C++) and
    `triton` (attention and products of 8 bits on CUDA devices).
    """
    record = _extension.load()
    cuda = record["cuda"]
    no_device = "no CUDA device on this machine"
    has_device = torch.cuda.is_available()
    cuda_text = f"active: {cuda.detail}"
    if not cuda.loaded:
        cuda_text = cuda.detail
    elif not has_device:
        cuda_text = f"loaded, idle: {cuda.detail}"
    if _extension.disabled():
        triton_text = "switched off by MMGA_DISABLE_EXTENSION=1"
    elif importlib.util.find_spec("triton") is None:
        triton_text = "not installed: pip install triton"
    else:
        triton_text = "active" if has_device else f"installed, idle: {no_device}"
    return {
        # Nothing else serves the generalised mean, nor float64 on CUDA devices.
        "reference": f"active: torch {torch.__version__}; alone for attention_pool(mode='gem')",
        "cpu": f"active: {record['cpu'].detail}" if record["cpu"].loaded else record["cpu"].detail,
        "cuda": cuda_text,
        "triton": triton_text,
    }
