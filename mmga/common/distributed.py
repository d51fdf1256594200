"""Process groups of a run: environment, exchange and errors.

Legend: `W` processes. All of a group's processes call its methods together, in the same order.
"""

import contextlib
import datetime
import gc
import hashlib
import importlib
import json
import logging
import math
import os
import traceback
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from mmga.common.device import resolve_device
from mmga.common.errors import PeerError, UserError, set_number
from mmga.common.meeting import meet
from mmga.common.watch import MEETING, Watch, is_lost, told

PATIENCE = datetime.timedelta(hours=2)
"""Longest time that a process waits for the others, such as while the first one evaluates."""
_GATHERED = 64 << 20  # bytes that are exchanged at once where rows of all processes are joined


def environment() -> tuple[int, int, int]:
    """Return the rank, the number of processes and the rank on this machine that torchrun set.

    Raises:
        UserError: WORLD_SIZE is set, but the others are not, or one is not such a number.
    """
    world = set_number("WORLD_SIZE", 1) if "WORLD_SIZE" in os.environ else 1
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
    set_number("MASTER_PORT", 1, 65_535)
    return set_number("RANK", 0, world - 1), world, set_number("LOCAL_RANK", 0, world - 1)


def own_device(name: str) -> torch.device:
    """Return the device that `auto`, `cpu` or `cuda` means to this process, each one its own GPU.

    Raises:
        UserError: there is no such device, or one is named for several processes.
    """
    _, world, local = environment()
    if world > 1 and name.startswith("cuda:"):
        raise UserError(f"--device {name} names one device for {world} processes; use cuda")
    device = resolve_device(name)
    return resolve_device(f"cuda:{local}") if world > 1 and device.type == "cuda" else device


@contextlib.contextmanager
def join(device: torch.device, *, watched: str | None = None) -> Iterator["Group"]:
    """Yield the group of processes that torchrun started, or a group of this one alone.

    gloo's threads end with the last reference to the process group. One that outlives the group
    may release a tensor while the interpreter shuts down, which aborts the process, so no reference
    may be left behind.

    Args:
        device: where this process computes; CUDA devices exchange by nccl, others by gloo.
        watched: name of a command, whose process is its to end: it ends within seconds of one
            that fails or is killed, also while it computes (see `Watch`). The first process logs
            what concerns all.

    Raises:
        UserError: the others did not start in time, or one of them has ended (see `meet`).
    """
    rank, world, local = environment()
    if world == 1:
        yield Group()
        return
    if device.type == "cuda":
        torch.cuda.set_device(device)
    exchanged = device if device.type == "cuda" else torch.device("cpu")
    ours = not dist.is_initialized()
    watch = None
    with meet(rank, world, watched) if ours else contextlib.nullcontext() as store:
        if store is not None:
            store.set_timeout(PATIENCE)  # of nccl's first exchange
            # Default arguments of this module hold the group that exists when it is first
            # imported, which DistributedDataParallel would do.
            importlib.import_module("torch.distributed.nn.functional")
            gloo = device.type != "cuda"  # it connects at once, where another one may be killed
            dist.init_process_group(
                "gloo" if gloo else "nccl",
                store=store,
                rank=rank,
                world_size=world,
                timeout=MEETING if gloo else PATIENCE,
            )
            if gloo:
                _set_timeout(PATIENCE)
        if watched is not None:
            watch = Watch(rank, world, watched)
    if watch is not None and rank:
        logging.getLogger("mmga").setLevel(logging.ERROR)
    group = Group(rank, world, local, exchanged, watch=watch)
    try:
        yield group
        if watch is not None:
            watch.close()
    except BaseException as error:
        if watch is not None:
            group._leave(error)
        if ours:
            traceback.clear_frames(error.__traceback__)  # their locals hold the wrapped network
        raise
    finally:
        if watch is not None:
            watch.end()
        del group, watch
        if ours:
            gc.collect()
            dist.destroy_process_group()


def _set_timeout(seconds: datetime.timedelta) -> None:
    """Set how long processes that are connected by gloo wait for each other."""
    group = dist.distributed_c10d._get_default_group()
    group._get_backend(torch.device("cpu"))._set_default_timeout(seconds)


@dataclass(frozen=True, slots=True)
class Group:
    """The processes of a run; by default this one alone, which exchanges nothing.

    Attributes:
        rank: number of this process.
        world: number of processes.
        local_rank: number of this process on its machine.
        device: of exchanged tensors.
        processes: group of torch.distributed; None is the default one.
        watch: ends this process when another one fails, or None.
        numbers: of its processes among those that a user counts; None: their ranks.
    """

    rank: int = 0
    world: int = 1
    local_rank: int = 0
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    processes: dist.ProcessGroup | None = None
    watch: Watch | None = None
    numbers: range | None = None

    @classmethod
    def of(cls, given: "dist.ProcessGroup | Group | bool | None") -> "Group":
        """Return the group that callers name: True is the default process group, None no other.

        Raises:
            UserError: torch.distributed was not started, or this process is not in the group.
        """
        if given is None or given is False:
            return cls()
        if isinstance(given, Group):
            return given
        if not dist.is_available() or not dist.is_initialized():
            raise UserError(
                "group: torch.distributed has no process group here; start the processes with "
                "torchrun and call torch.distributed.init_process_group, or leave out group"
            )
        processes = None if given is True else given
        rank, world = dist.get_rank(processes), dist.get_world_size(processes)
        if rank < 0:
            raise UserError("group: this process is not a member; let members alone evaluate")
        if world == 1:
            return cls()
        nccl = dist.get_backend(processes) == "nccl"
        device = torch.device("cuda", torch.cuda.current_device()) if nccl else torch.device("cpu")
        return cls(rank, world, rank, device, processes)

    @property
    def leads(self) -> bool:
        """Whether this is the process that writes and reports."""
        return self.rank == 0

    def number(self, rank: int) -> int:
        """Return the number by which a user knows a process."""
        return rank if self.numbers is None else self.numbers[rank]

    def table(self, row: Sequence[float]) -> Tensor:
        """Return the rows of all processes, float64 [W, n] on the CPU."""
        mine = torch.tensor(list(row), dtype=torch.float64, device="cpu")
        if self.world == 1:
            return mine[None]
        mine = mine.to(self.device)
        rows = [torch.empty_like(mine) for _ in range(self.world)]
        dist.all_gather(rows, mine, group=self.processes)
        return torch.stack(rows).cpu()

    def any(self, flag: bool) -> bool:
        """Return whether the flag is set in one of the processes."""
        return bool(self.table([flag]).any()) if self.world > 1 else flag

    def mean(self, values: Tensor) -> Tensor:
        """Return the mean over processes of a tensor, detached."""
        values = values.detach().clone()
        if self.world > 1:
            dist.all_reduce(values, group=self.processes)
            values /= self.world
        return values

    def sum(self, values: Tensor) -> Tensor:
        """Return the sum over processes of a tensor, on its device."""
        return self._reduced(values, dist.ReduceOp.SUM)

    def least(self, values: Tensor) -> Tensor:
        """Return the minimum over processes of each element, which must not be NaN."""
        return self._reduced(values, dist.ReduceOp.MIN)

    def most(self, value: float) -> float:
        """Return the maximum over processes of a number, exact below 2^53."""
        return float(self.table([value]).max()) if self.world > 1 else value

    def union(self, values: Tensor) -> Tensor:
        """Return a tensor of which each process knows some elements, and holds zeros elsewhere.

        Sums of integers with zeros keep every bit, that of -0 and of NaN included.

        Args:
            values: of 4 or 8 bytes an element; each is zero in all processes but one.
        """
        if self.world == 1:
            return values
        integers = torch.int32 if values.element_size() == 4 else torch.int64
        return self.sum(values.contiguous().view(integers)).view(values.dtype)

    def _reduced(self, values: Tensor, operation: Any) -> Tensor:
        if self.world == 1:
            return values
        shared = values.to(self.device, copy=True).contiguous()
        dist.all_reduce(shared, operation, group=self.processes)
        return shared.to(values.device)

    def rows(self, rows: Tensor) -> Tensor:
        """Return the rows [n, ...] of all processes, as many as each has, on the CPU."""
        if self.world == 1:
            return rows
        sizes = self.table([len(rows)])[:, 0].long().tolist()
        joined = rows.new_empty((sum(sizes), *rows.shape[1:]), device="cpu")
        of_all = joined.split(sizes)
        row_bytes = rows.element_size() * math.prod(rows.shape[1:])
        step = max(1, _GATHERED // max(1, self.world * row_bytes))
        for begin in range(0, max(sizes), step):  # two copies of all are never held
            counts = [min(max(size - begin, 0), step) for size in sizes]
            found = gather(rows[begin : begin + step].to(self.device), counts, self).cpu()
            for part, some in zip(of_all, found.split(counts), strict=True):
                part[begin : begin + len(some)] = some
        return joined

    def columns(self, own: Mapping[str, np.ndarray]) -> list[dict[str, np.ndarray]]:
        """Return the arrays of all processes, each under the names that it gave.

        Args:
            own: numbers or strings of any dtype without objects.
        """
        if self.world == 1:
            return [dict(own)]
        told = [[name, array.dtype.str, list(array.shape)] for name, array in own.items()]
        heads = [json.loads(text) for text in self.texts(json.dumps(told))]
        found: list[dict[str, np.ndarray]] = [{} for _ in heads]
        for name in dict.fromkeys(name for head in heads for name, *_ in head):
            data = np.ascontiguousarray(own[name]).tobytes() if name in own else b""
            # One column after the other, so that two copies of all are never held.
            joined = self.rows(torch.from_numpy(np.frombuffer(bytearray(data), np.uint8))).numpy()
            start = 0
            for arrays, head in zip(found, heads, strict=True):
                for dtype, shape in (rest for one, *rest in head if one == name):
                    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
                    part = joined[start : start + size]
                    arrays[name] = np.frombuffer(part.tobytes(), dtype).reshape(shape).copy()
                    start += size
        return found

    def agree(self, what: str, value: str | bytes) -> None:
        """Refuse to go on unless all processes give one value.

        Raises:
            UserError: they differ; in the first process, a PeerError in the others.
        """
        if self.world == 1:
            return
        data = value.encode() if isinstance(value, str) else value
        digests = self.texts(hashlib.sha256(data).hexdigest())
        with self.together():
            others = [n for n, digest in enumerate(digests) if digest != digests[0]]
            if others:
                raise UserError(
                    f"{what} of process {self.number(others[0])} differ from those of process "
                    f"{self.number(0)}; give every process of the group the same"
                )

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
                dist.broadcast(buffer, 0, group=self.processes)

    @contextlib.contextmanager
    def together(self) -> Iterator[None]:
        """Run a block in which processes exchange nothing; an error of one ends all.

        A connection that is lost, of smaller groups in the block, is none: all lose theirs.

        Raises:
            Exception: the block's own, in the first process that has one.
            PeerError: in all other processes.
        """
        error = None
        try:
            yield
        except Exception as caught:
            if is_lost(caught):
                raise
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
        if error is not None and self.watch is not None:
            self.watch.announce(error)  # to those who compute for a while yet
        peer = isinstance(error, PeerError)
        try:
            states = self.table([0 if error is None else told(error)[0], peer])
        except RuntimeError:
            if error is None:
                raise
            raise self._reported(error) from None  # the others have ended by it
        failed = states[:, 0].nonzero().flatten().tolist()
        if not failed:
            return
        # Those that have heard of an error, in a row of a grid, are not its first.
        first = min(failed, key=lambda rank: (bool(states[rank, 1]), rank))
        said = self.texts("" if error is None else str(error))
        if error is not None and (first == self.rank or peer):
            raise self._reported(error)
        code = int(states[first, 0])
        text = said[first]
        if not states[first, 1]:
            text = f"process {self.number(first)} of the run met an error: {text}"
        raise PeerError(text, code)

    def _reported(self, error: Exception) -> Exception:
        """Return an error of this process for those who called it, or what a command leaves by."""
        if self.watch is None or isinstance(error, PeerError):
            return error
        return self.watch.report(error)

    def _leave(self, error: BaseException) -> None:
        """Tell the others of an error that ends this process, unless all know it.

        Raises:
            PeerError: the error is reported, here or by another process that has met it, too.
        """
        assert self.watch is not None
        verdict = self.watch.leave(error)
        if verdict is not None:
            raise verdict from None
        if not isinstance(error, Exception):
            self.watch.announce(error)
        elif not isinstance(error, PeerError):
            # Of an error that all have met, such as options that do not fit, the first one tells.
            alone = Group(self.rank, self.world, processes=self.watch.control, watch=self.watch)
            alone.raise_first(error)


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
    most = max(*sizes, 1)
    padded = rows.contiguous()
    if len(rows) < most:
        padded = rows.new_zeros(most, *rows.shape[1:])
        padded[: len(rows)] = rows
    found = rows.new_empty(len(sizes) * most, *rows.shape[1:])
    parts = list(found.split(most))
    dist.all_gather(parts, padded, group=group.processes)
    if min(sizes) == most:
        return found
    return torch.cat([part[:size] for part, size in zip(parts, sizes, strict=True)])


def exchange(rows: Tensor, sizes: Sequence[int], group: Group) -> tuple[Tensor, list[int]]:
    """Send rows to each process, and return those that come from each, and how many.

    Args:
        rows: [n, ...] on the CPU, those for process 0 first.
        sizes: how many are for each process.
        group: the processes.
    """
    if group.world == 1:
        return rows, list(sizes)
    coming = group.table(sizes)[:, group.rank].long().tolist()
    sent = rows.to(group.device).contiguous()
    found = sent.new_empty((sum(coming), *rows.shape[1:]))
    dist.all_to_all_single(found, sent, coming, list(sizes), group=group.processes)
    return found.cpu(), coming


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
