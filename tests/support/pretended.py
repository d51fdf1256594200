"""A CUDA device that is none: which tensors would lie on it, and where code would mix devices.

Under `PretendedDevice` a tensor that is asked for on `cuda` is made on the CPU and says that it is
on `cuda:0`, as does everything computed from it. What a real device refuses is an error here: host
and device tensors in one operation (but for copies, numbers, and indices that lie on the host), and
NumPy arrays of device tensors. Kernels run on the CPU all the while.
"""

from collections.abc import Iterator
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from mmga.retrieval.features import transfer
from mmga.retrieval.tiles import placement

CUDA = torch.device("cuda", 0)
# Operations that may take tensors of both.
COPIES = {"copy_", "__get__", "__set__", "to"}
INDEXED = {"__getitem__", "__setitem__", "index_put_"}


class MixedDevices(Exception):
    """An operation that a real device would refuse."""


def is_near(tensor: Tensor) -> bool:
    return getattr(tensor, "pretended", False)


def tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (list, tuple)):
        for one in value:
            yield from tensors(one)
    elif isinstance(value, dict):
        yield from tensors(list(value.values()))


def as_device(value: Any) -> torch.device | None:
    if isinstance(value, torch.device):
        return value
    if isinstance(value, str) and value.split(":")[0] in ("cuda", "cpu"):
        return torch.device(value)
    return None


class EagerStreams:
    """Queues of a device that computes at once but copies late, and spoils what it may not use.

    A copy overwrites its target with NaN as soon as it may begin and gives it its values when work
    waits for it: a block used too early, or after the next one was asked for, is NaN. What the host
    overwrites too early is copied wrong.
    """

    pinned = False

    def __init__(self) -> None:
        self._copies: list[tuple[Tensor, Tensor] | None] = []

    def copy(self, target: Tensor, source: Tensor) -> int:
        target.fill_(torch.nan)
        self._copies.append((target, source))
        return len(self._copies) - 1

    def mark_work(self) -> None:
        pass

    def copy_waits(self, mark: None) -> None:
        pass

    def work_waits(self, mark: int) -> None:
        copy, self._copies[mark] = self._copies[mark], None
        if copy is not None:
            copy[0].copy_(copy[1])

    host_waits = work_waits


class PretendedDevice(TorchFunctionMode):
    """See above. `near` counts the operations that ran on the device.

    Args:
        free: bytes that are free on it.
        total: bytes that it has.
    """

    near = 0

    def __init__(self, free: int = 8 << 30, total: int = 8 << 30) -> None:
        super().__init__()
        self.transfers = self.passes = 0
        blocks = transfer.BlockTransfer.blocks

        def counted(given: transfer.BlockTransfer, *read: Any) -> Iterator[torch.Tensor]:
            self.passes += 1
            return blocks(given, *read)

        self._patches = [
            mock.patch.object(placement, "free_bytes", lambda device: free),
            mock.patch.object(placement, "total_bytes", lambda device: total),
            mock.patch("mmga.retrieval.evaluate.resolve_device", self._resolved),
            mock.patch("mmga.retrieval.bounds.planner.device_multiplies_int8", lambda device: True),
            mock.patch.object(transfer, "streams_on", self._streams),
            mock.patch.object(transfer.BlockTransfer, "blocks", counted),
        ]

    @staticmethod
    def _resolved(name: str | torch.device, argument: str) -> torch.device:
        wanted = torch.device(name)
        return CUDA if wanted.type == "cuda" else wanted

    def _streams(self, device: torch.device) -> EagerStreams:
        self.transfers += 1
        return EagerStreams()

    def __enter__(self) -> "PretendedDevice":
        for patch in self._patches:
            patch.start()
        return super().__enter__()

    def __exit__(self, *reason: Any) -> None:
        super().__exit__(*reason)
        for patch in self._patches:
            patch.stop()

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        name = getattr(func, "__name__", str(func))
        if func == Tensor.device.__get__:
            return CUDA if is_near(args[0]) else func(*args)
        if func == Tensor.is_cuda.__get__:
            return is_near(args[0])
        if name in ("numpy", "__array__") and is_near(args[0]):
            raise MixedDevices("a NumPy array of a tensor on the device")
        if name in ("cpu", "cuda"):
            return self.moved(args[0], torch.device(name))
        wanted = None
        if name == "to":
            wanted = next(filter(None, map(as_device, (*args[1:], kwargs.get("device")))), None)
            args = tuple(a for a in args if as_device(a) is None)
            kwargs.pop("device", None)
            if len(args) > 1 and isinstance(args[1], Tensor):
                wanted = CUDA if is_near(args[1]) else torch.device("cpu")
                args = (args[0], args[1].dtype)
            result = args[0] if len(args) == 1 and not kwargs else func(*args, **kwargs)
            near = is_near(args[0])
            result = self.marked(result, near) if result is not args[0] else result
            return result if wanted is None else self.moved(result, wanted)
        if as_device(kwargs.get("device")) is not None:
            wanted = as_device(kwargs["device"])
            kwargs["device"] = torch.device("cpu")
        given = list(tensors(args)) + list(tensors(kwargs))
        near = any(map(is_near, given))
        if near and name not in COPIES:
            self.check(name, args, given)
            self.near += 1
        result = func(*args, **kwargs)
        if name == "copy_":
            return result
        if wanted is not None:
            near = wanted.type == "cuda"
        for one in tensors(result):
            if not any(one is other for other in given):
                self.marked(one, near)
        return result

    def check(self, name: str, args: tuple[Any, ...], given: list[Tensor]) -> None:
        if name in INDEXED:
            if not is_near(args[0]):
                raise MixedDevices(f"{name}: a host tensor with an index or values on the device")
            given = list(tensors(args[2:])) if name != "__getitem__" else []
        if any(one.dim() > 0 and not is_near(one) for one in given):
            raise MixedDevices(f"{name}: tensors of the host and of the device")

    @staticmethod
    def marked(tensor: Tensor, near: bool) -> Tensor:
        tensor.pretended = near
        return tensor

    def moved(self, tensor: Tensor, device: torch.device) -> Tensor:
        near = device.type == "cuda"
        return tensor if is_near(tensor) == near else self.marked(tensor.clone(), near)
