"""Registration of operators: schema, reference and fake kernel.

C++ and CUDA kernels are registered by their libraries for the CPU and CUDA keys and take precedence
over the reference, which is registered for every device.
"""

import functools
import importlib
import importlib.util
from collections.abc import Callable
from typing import Any

import torch

from mmga.ops import _extension

LIBRARY = torch.library.Library("mmga", "FRAGMENT")


def returns_nothing(*inputs: object) -> None:
    """Serve as the fake kernel of an operator that changes its inputs in place."""


def define(
    schema: str,
    reference: Callable[..., Any],
    fake: Callable[..., Any] = returns_nothing,
    *,
    tags: tuple[torch.Tag, ...] = (torch.Tag.pt2_compliant_tag,),
) -> Any:
    """Register `torch.ops.mmga.<name>` and return it.

    Args:
        schema: `name(Tensor x, ...) -> Tensor`, without the namespace.
        reference: the plain PyTorch implementation, used where no kernel is registered.
        fake: allocates outputs of the right shapes for torch.compile and opcheck.
        tags: torch's operator tags.
    """
    name = schema.split("(", 1)[0]
    LIBRARY.define(schema, tags=tags)
    LIBRARY.impl(name, reference, "CompositeExplicitAutograd")
    torch.library.register_fake(f"mmga::{name}", fake, lib=LIBRARY)
    return getattr(torch.ops.mmga, name).default


@functools.cache
def triton_serves() -> bool:
    """Return whether Triton's kernels serve CUDA tensors in this process."""
    return (
        torch.cuda.is_available()
        and importlib.util.find_spec("triton") is not None
        and not _extension.disabled()
    )


def by_triton(module: str, name: str) -> Callable[..., Any]:
    """Return the launcher of an operator; Triton itself is imported at the first call.

    Args:
        module: of `mmga.ops.triton`.
        name: of the function in it.
    """

    def launch(*args: Any) -> Any:
        return getattr(importlib.import_module(f"mmga.ops.triton.{module}"), name)(*args)

    return launch


def has_kernel(name: str, key: str) -> bool:
    """Return whether a kernel other than the reference serves `name` for dispatch key `key`."""
    return torch._C._dispatch_has_kernel_for_dispatch_key(f"mmga::{name}", key)


def refuse_gradient(name: str, *tensors: torch.Tensor) -> None:
    """Raise where an input of a non-differentiable operator requires a gradient.

    Raises:
        ValueError: an input requires a gradient while gradients are recorded.
    """
    if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors):
        raise ValueError(
            f"{name} has no gradient: its inputs must not require one; "
            "pass x.detach() or call it under torch.no_grad()"
        )


_extension.load()
