"""Find and load the compiled kernels; record which are loaded and, for an absent one, why."""

import ctypes
import functools
import importlib
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PACKAGE = Path(__file__).resolve().parents[1]
"""The folder that setup.py writes the libraries to."""


@dataclass(frozen=True, slots=True)
class Library:
    """One compiled library.

    Attributes:
        loaded: its operators are registered with torch.
        detail: its instruction set or architectures, or why it is absent.
    """

    loaded: bool
    detail: str


@functools.cache
def build_info() -> dict[str, Any]:
    """Return the record that setup.py wrote about the build, empty if it never ran."""
    path = PACKAGE / "_build_info.json"
    try:
        info: dict[str, Any] = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return info


def disabled() -> bool:
    """Return whether MMGA_DISABLE_EXTENSION=1 asks for the reference everywhere."""
    return os.environ.get("MMGA_DISABLE_EXTENSION") == "1"


@functools.cache
def load() -> dict[str, Library]:
    """Load `_C` and `_C_cuda` once and return a record of both, keyed `cpu` and `cuda`.

    `MMGA_DISABLE_EXTENSION=1` loads neither, so that everything runs on the reference.
    """
    if disabled():
        off = Library(False, "switched off by MMGA_DISABLE_EXTENSION=1")
        return {"cpu": off, "cuda": off}
    return {"cpu": _load_cpu(), "cuda": _load_cuda()}


@functools.cache
def int8_instructions() -> str:
    """Return the processor's instructions for products of 8-bit integers, empty if it has none.

    They are "AVX-512 VNNI", "AVX-VNNI" or "AVX2", which has them of 16 bits. `MMGA_INT8=none` says
    that it has none; `avx512`, `avx` and `avx2` choose among those that it has.
    """
    if not load()["cpu"].loaded:
        return ""
    return str(importlib.import_module("mmga._C").int8_instructions())


def _absent(kind: str) -> Library:
    info = build_info()
    reason = info.get("reason" if kind == "cpu" else "cuda_reason")
    if not info:
        reason = "never built; run `pip install -e .`"
    elif kind == "cuda" and not info["kernels"]:
        reason = info["reason"]
    return Library(False, f"not built: {reason or 'the library file is missing'}")


def _load_cpu() -> Library:
    import torch  # noqa: F401  the library needs libtorch in the process

    try:
        module = importlib.import_module("mmga._C")
    except ModuleNotFoundError:
        return _absent("cpu")
    except ImportError as error:
        return Library(False, f"built, but does not load: {error}")
    instructions = module.int8_instructions()
    products = f", 8-bit products by {instructions}" if instructions else ""
    return Library(True, module.instruction_set() + products)


def _load_cuda() -> Library:
    import torch

    path = PACKAGE / "_C_cuda.so"
    if not path.is_file():
        return _absent("cuda")
    if torch.version.cuda is None:
        return Library(False, f"built, but torch {torch.__version__} has no CUDA")
    try:
        ctypes.CDLL(str(path))
    except OSError as error:
        return Library(False, f"built, but does not load: {error}")
    archs = str(build_info().get("cuda_archs") or "?").replace(";", ", ")
    if not torch.cuda.is_available():
        return Library(True, f"sm {archs}; no CUDA device on this machine")
    return Library(True, f"sm {archs}")
