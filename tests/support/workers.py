"""Processes that stay for many cases: forked from one that has imported torch and this package.

They start once; smaller groups that cases ask for are made of the first of them.
"""

import contextlib
import datetime
import multiprocessing
import os
import socket
import sys
import traceback
from collections.abc import Callable
from multiprocessing import forkserver
from typing import Any
from unittest import mock

from paths import REPOSITORY

WORLD = 5
SIZES = (1, 2, 3, WORLD)
_PRELOADED = [
    *("mmga.eval", "mmga.retrieval.evaluate", "mmga.retrieval.metrics.bootstrap", "mmga.extract"),
    *("mmga.search", "mmga.retrieval.reranking.ranked_lists", "mmga.masks"),
    *("mmga.bodyparts.mask_folder", "mmga.bodyparts.importers"),
    *("mmga.extraction.of_run", "mmga.extraction.resumable", "mmga.data.readers.image_list"),
    *("torch.distributed.nn.functional", "torchvision.io", "torch._dynamo"),
]
_CONTEXT = multiprocessing.get_context("forkserver")


def free_port() -> str:
    """Return a port of this machine that is free."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])


def start(target: Callable[..., None], *args: object) -> Any:
    """Start a process that has imported `_PRELOADED`."""
    _CONTEXT.set_forkserver_preload(_PRELOADED)
    # Whatever the current folder is, and the version of Python, which may not pass its path on.
    paths = os.pathsep.join([str(REPOSITORY), *sys.path])
    # As commands set it, before torch is imported.
    with mock.patch.dict(os.environ, PYTHONPATH=paths, TORCH_CPP_LOG_LEVEL="ERROR"):
        forkserver.ensure_running()
    process = _CONTEXT.Process(target=target, args=args, daemon=True)
    process.start()
    return process


def environment(rank: int, world: int, port: str) -> None:
    """Set what torchrun sets."""
    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(world),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": port,
    }


def _serve(rank: int, world: int, port: str, pipe: Any) -> None:
    import torch
    import torch.distributed as dist

    torch.set_num_threads(1)
    environment(rank, world, port)
    dist.init_process_group("gloo", timeout=datetime.timedelta(minutes=2))
    groups = {size: dist.new_group(list(range(size))) for size in range(1, world + 1)}
    pipe.send("ready")
    while True:
        function, size, args = pipe.recv()
        try:
            pipe.send(("returned", function(groups[size], rank, *args)))
        except Exception as error:
            pipe.send(("raised", (type(error).__name__, str(error), traceback.format_exc())))


class Workers:
    """Processes that call functions together."""

    def __init__(self, world: int = WORLD) -> None:
        port, self._pipes, self._processes = free_port(), [], []
        for rank in range(world):
            mine, theirs = _CONTEXT.Pipe()
            self._processes.append(start(_serve, rank, world, port, theirs))
            self._pipes.append(mine)
        for pipe in self._pipes:
            assert pipe.recv() == "ready"

    def call(self, size: int, function: Callable[..., Any], *args: object) -> list[tuple[str, Any]]:
        """Return ("returned", value) or ("raised", (kind, sentence, traceback)) of each process.

        Args:
            size: so many processes call.
            function: of a module that the processes can import; called as
                `function(group, rank, *args)`.
            *args: further arguments.
        """
        for pipe in self._pipes[:size]:
            pipe.send((function, size, args))
        answers = []
        for pipe in self._pipes[:size]:
            assert pipe.poll(120), "a process does not answer"
            answers.append(pipe.recv())
        return answers

    def values(self, size: int, function: Callable[..., Any], *args: object) -> list[Any]:
        """Return what each process returns."""
        answers = self.call(size, function, *args)
        for how, value in answers:
            assert how == "returned", value
        return [value for _, value in answers]

    def close(self) -> None:
        """End the processes."""
        for process in self._processes:
            with contextlib.suppress(OSError):
                process.kill()
            process.join()
