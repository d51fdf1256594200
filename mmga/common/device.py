"""Devices by name."""

import torch

from mmga.common.errors import UserError


def resolve_device(name: str | torch.device, argument: str = "--device") -> torch.device:
    """Return the device that `auto`, `cpu`, `cuda` or `cuda:N` means here.

    Args:
        name: of the device; a CUDA device without a number is the current one.
        argument: that the name was given as, for messages.

    Raises:
        UserError: there is no such device.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
        if device.type not in ("cpu", "cuda"):
            raise RuntimeError(f"{device.type} is not supported")
    except RuntimeError as error:
        raise UserError(f"{argument} must be auto, cpu, cuda or cuda:N, got {name!r}") from error
    if device.type != "cuda":
        return device
    count = torch.cuda.device_count()
    if (device.index or 0) >= count:
        raise UserError(
            f"{argument} {name}: this machine has {count} CUDA devices; use cpu or another number"
        )
    return device if device.index is not None else torch.device("cuda", torch.cuda.current_device())
