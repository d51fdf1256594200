"""Process groups of a training run: environment, exchange and errors.

Legend: `W` processes. All of a group's processes call its methods together, in the same order.
"""

import contextlib
import datetime
import gc
import importlib
import os
import traceback
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from mmga.common.errors import PeerError, UserError

PATIENCE = datetime.timedelta(hours=2)
"""Longest time that a process waits for the others, such as while the first one evaluates."""


def environment() -> tuple[int, int, int]:
    """Return the rank, the number of processes and the rank on this machine that torchrun set.

    Raises:
        UserError: WORLD_SIZE is set, but the others are not.
    """
    world = int(os.environ.get("WORLD_SIZE", "1"))
    if world == 1:
        return 0, 1, 0
    missing = [
        n for n in ("RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT") if n not in os.environ
    ]
    if missing:
        raise UserError(
            f"WORLD_SIZE={world} is set in the environment, but {missing[0]} is not; "
            "start the processes with torchrun, or unset WORLD_SIZE"
        )
    return int(os.environ["RANK"]), world, int(os.environ["LOCAL_RANK"])


@contextlib.contextmanager
def join(device: torch.device) -> Iterator["Group"]:
    """Yield the group of processes that torchrun started, or a group of this one alone.

    gloo's threads end with the last reference to the process group. One that outlives the group
    may release a tensor while the interpreter shuts down, which aborts the process, so no reference
    may be left behind.

    Args:
        device: where this process computes; CUDA devices exchange by nccl, others by gloo.
    """
    rank, world, local = environment()
    if world == 1:
        yield Group()
        return
    if device.type == "cuda":
        torch.cuda.set_device(device)
    exchanged = device if device.type == "cuda" else torch.device("cpu")
    ours = not dist.is_initialized()
    if ours:
        # Default arguments of this module hold the group that exists when it is first imported,
        # which DistributedDataParallel would do.
        importlib.import_module("torch.distributed.nn.functional")
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=PATIENCE)
    try:
        yield Group(rank, world, local, exchanged)
    except BaseException as error:
        if ours:
            traceback.clear_frames(error.__traceback__)  # their locals hold the wrapped network
        raise
    finally:
        if ours:
            gc.collect()
            dist.destroy_process_group()


@dataclass(frozen=True, slots=True)
class Group:
    """The processes of a run; by default this one alone, which exchanges nothing.

    Attributes:
        rank: number of this process.
        world: number of processes.
        local_rank: number of this process on its machine.
        device: of exchanged tensors.
    """

    rank: int = 0
    world: int = 1
    local_rank: int = 0
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    @property
    def leads(self) -> bool:
        """Whether this is the process that writes and reports."""
        return self.rank == 0

    def table(self, row: Sequence[float]) -> Tensor:
        """Return the rows of all processes, float64 [W, n] on the CPU."""
        mine = torch.tensor(list(row), dtype=torch.float64, device="cpu")
        if self.world == 1:
            return mine[None]
        mine = mine.to(self.device)
        rows = [torch.empty_like(mine) for _ in range(self.world)]
        dist.all_gather(rows, mine)
        return torch.stack(rows).cpu()

    def any(self, flag: bool) -> bool:
        """Return whether the flag is set in one of the processes."""
        return bool(self.table([flag]).any()) if self.world > 1 else flag

    def mean(self, values: Tensor) -> Tensor:
        """Return the mean over processes of a tensor, detached."""
        values = values.detach().clone()
        if self.world > 1:
            dist.all_reduce(values)
            values /= self.world
        return values

    def texts(self, text: str) -> list[str]:
        """Return the texts of all processes."""
        if self.world == 1:
            return [text]
        data = text.encode()
        sizes = self.table([len(data)])[:, 0].long().tolist()
        bytes_ = torch.tensor(list(data), dtype=torch.uint8, device=self.device)
        joined = bytes(gather(bytes_, sizes, self).cpu().tolist())
        ends = torch.tensor(sizes, dtype=torch.int64, device="cpu").cumsum(0).tolist()
        return [joined[end - size : end].decode() for size, end in zip(sizes, ends, strict=True)]

    def broadcast(self, module: torch.nn.Module) -> None:
        """Give every process the first one's buffers: running statistics of batch norms."""
        if self.world > 1:
            for buffer in module.buffers():
                dist.broadcast(buffer, 0)

    @contextlib.contextmanager
    def together(self) -> Iterator[None]:
        """Run a block in which processes exchange nothing; an error of one ends all.

        Raises:
            Exception: the block's own, in the first process that has one.
            PeerError: in all other processes.
        """
        error = None
        try:
            yield
        except Exception as caught:
            error = caught
        self.raise_first(error)

    def raise_first(self, error: Exception | None) -> None:
        """Raise if any process has an error: its own in the first such process, else PeerError.

        Args:
            error: of this process, if it has one.
        """
        if self.world == 1:
            if error is not None:
                raise error
            return
        states = self.table([0 if error is None else 1 + (not isinstance(error, UserError))])
        failed = states[:, 0].nonzero().flatten().tolist()
        if not failed:
            return
        first = failed[0]
        said = self.texts("" if error is None else str(error))
        if error is not None and (first == self.rank or isinstance(error, PeerError)):
            raise error
        code = 2 if states[first, 0] == 1 else 1
        raise PeerError(f"process {first} of the run met an error: {said[first]}", code)


def gather(rows: Tensor, sizes: Sequence[int], group: Group) -> Tensor:
    """Return the rows of all processes, those of process 0 first; not differentiable.

    Args:
        rows: [n, ...], as many as `sizes` says for this process.
        sizes: rows of each process.
        group: the processes.
    """
    if group.world == 1:
        return rows
    # Equal shapes are what every back end can exchange.
    padded = rows.new_zeros(max(*sizes, 1), *rows.shape[1:])
    padded[: len(rows)] = rows
    parts = [torch.empty_like(padded) for _ in sizes]
    dist.all_gather(parts, padded)
    return torch.cat([part[:size] for part, size in zip(parts, sizes, strict=True)])


def gather_with_gradient(rows: Tensor, sizes: Sequence[int], group: Group) -> Tensor:
    """Return the rows of all processes, with a gradient for this process' own.

    It is meant for a loss that every process computes from all rows: each then holds the whole
    gradient of its own rows, and nothing needs to be sent back. The gradient is multiplied by `W`,
    because gradients of parameters are averaged over processes where they should be summed. The
    arguments are those of `gather`.
    """
    if group.world == 1:
        return rows
    gathered: Tensor = _Gather.apply(rows, sizes, group)
    return gathered


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor, sizes: Sequence[int], group: Group) -> Tensor:
        start = sum(sizes[: group.rank])
        ctx.own = slice(start, start + sizes[group.rank])
        ctx.world = group.world
        return gather(rows, sizes, group)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        return gradients[0][ctx.own] * ctx.world, None, None
