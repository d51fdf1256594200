"""Processes of a command, of which one fails or is killed, while others wait or compute."""

import contextlib
import datetime
import functools
import importlib
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import workers
from full_disk import disk_with

_LATE = "before another one is there"


def member(
    rank: int, world: int, port: str, how: str, words: list[str], folder: Path, failing: int
) -> None:
    """Run a command as one of several processes; stdout and stderr go to files.

    Args:
        rank: of this process.
        world: number of processes.
        port: where they meet.
        how: what happens, see below.
        words: the command and its words.
        folder: of the files.
        failing: rank of the process that fails.
    """
    _write_to_files(folder, rank)
    import torch

    from mmga.bodyparts.mask_folder import MaskMaker
    from mmga.extraction import resumable
    from mmga.retrieval.neighbours.shared_knn import SharedItems
    from mmga.retrieval.neighbours.shared_set import SharedSet
    from mmga.retrieval.tiles.share import Share

    torch.set_num_threads(1)
    workers.environment(rank, world, port)
    blocks, embed, calls = Share.blocks, resumable.embed_images, []
    disk = contextlib.ExitStack()
    nearest, searched = SharedItems.nearest, SharedSet._nearest_here
    write = MaskMaker._write_batch

    def happen() -> None:
        if rank != failing:
            if how.endswith("while the others compute"):
                time.sleep(600)
        elif how.startswith("killed"):
            os.kill(os.getpid(), signal.SIGKILL)
        elif how.startswith("out of memory"):
            raise MemoryError("Unable to allocate 3 TiB")
        elif how.startswith("a bug"):
            raise ZeroDivisionError("of all numbers")
        elif how.startswith("interrupted"):
            raise KeyboardInterrupt
        elif how.startswith("a full disk"):
            disk.enter_context(disk_with(400))

    def changed_blocks(self, width):
        if "--rerank" not in words:
            happen()
        return blocks(self, width)

    def changed_search(self, others, k, farthest):
        happen()
        return searched(self, others, k, farthest)

    def changed_nearest(self, queries, k, search):
        def changed(*given):
            happen()
            return search(*given)

        return nearest(self, queries, k, changed)

    def changed_embed(*args, **options):
        happen_second()
        return embed(*args, **options)

    def changed_write(self, made):
        happen_second()
        return write(self, made)

    def happen_second() -> None:
        calls.append(len(calls))
        if len(calls) == 2:
            happen()

    Share.blocks, resumable.embed_images, resumable.SHARD = changed_blocks, changed_embed, 4
    SharedItems.nearest, SharedSet._nearest_here = changed_nearest, changed_search
    MaskMaker._write_batch = changed_write
    _before_meeting(how, rank, failing, world, folder)
    verb, *words = words
    sys.exit(importlib.import_module(f"mmga.{verb}").main(words))


def _write_to_files(folder: Path, rank: int) -> None:
    """Let stdout and stderr of this process go to files."""
    for number, name in ((1, "out"), (2, "err")):
        flags = os.O_CREAT | os.O_WRONLY | os.O_TRUNC
        os.dup2(os.open(folder / f"{name}-{rank}", flags), number)


def _before_meeting(how: str, rank: int, failing: int, world: int, folder: Path) -> None:
    """Let happen what concerns processes that have not met all others."""
    import torch.distributed as dist

    from mmga.common import device, distributed, meeting
    from mmga.common.errors import UserError

    if how == "watched":
        _watched(folder, rank)
        return
    meeting.BEAT, meeting.GRACE = 0.1, 60.0
    kill = functools.partial(os.kill, os.getpid(), signal.SIGKILL)
    if how.endswith(_LATE):
        meeting.LATE = 0.5
        if rank == (failing - 1) % world:
            time.sleep(600)
        count = meeting._Meeting._count
        if how.startswith("waiting"):
            os.environ["MMGA_JOIN_TIMEOUT"] = "5"

        def counted(self: meeting._Meeting, key: str) -> int:
            found = count(self, key)
            if rank == failing and key == "there" and found == world - 1:
                if how.startswith("killed"):
                    kill()
                if how.startswith("interrupted"):
                    raise KeyboardInterrupt
            return found

        meeting._Meeting._count = counted
    elif how == "one speaks slowly":
        if rank == failing:
            meeting.BEAT = 600.0
        if rank == world - 1:  # is waited for
            time.sleep(3)
    elif how.startswith("with a wrong time to wait"):
        os.environ["MMGA_JOIN_TIMEOUT"] = "soon"
        is_first = meeting._Meeting._is_first
        meeting.LATE = 60.0

        def slowly(self: meeting._Meeting, code: int, sentence: str) -> bool:
            time.sleep(3)
            return is_first(self, code, sentence)

        if how.endswith("one tells it slowly") and rank == failing:
            meeting._Meeting._is_first = slowly
    elif how == "killed while the others connect":
        distributed.MEETING = datetime.timedelta(seconds=10)
        if rank == failing:
            dist.init_process_group = lambda *_, **__: kill()
    elif how == "none connects":

        def no_connection(*_: Any, **__: Any) -> None:
            raise RuntimeError("no address is known")

        dist.init_process_group = no_connection
    elif how == "one has the number of another" and rank == world - 1:
        os.environ["RANK"] = str(failing)
    elif how.startswith("without a device"):
        if how.endswith("late") and rank == (failing - 1) % world:
            time.sleep(3)
        if rank != failing:
            return

        def no_device(name: str) -> None:
            raise UserError(f"--device {name}: there is none")

        distributed.resolve_device = device.resolve_device = no_device


def _watched(folder: Path, rank: int) -> None:
    """Write a file once this process is known to the others, and one when it is done.

    In between it takes its time wherever it exchanges or writes, so that it can be killed there.
    """
    from mmga.common import files, meeting, watch
    from mmga.common.distributed import Group

    def after(seconds: float, function: Any) -> Any:
        def changed(*given: Any, **named: Any) -> Any:
            time.sleep(seconds)
            return function(*given, **named)

        return changed

    def telling(name: str, function: Any) -> Any:
        def changed(*given: Any) -> Any:
            (folder / f"{name}-{rank}").touch()
            return function(*given)

        return changed

    Group.table = after(0.05, Group.table)
    files._replace = after(0.05, files._replace)  # when a file is written and has not its name
    meeting._Meeting._hears = telling("there", meeting._Meeting._hears)
    watch.Watch.end = telling("done", watch.Watch.end)


def begin(how: str, words: list[str], folder: Path, world: int = 3, failing: int = 1) -> list[Any]:
    """Start processes; arguments are those of `member`."""
    port = workers.free_port()
    return [
        workers.start(member, rank, world, port, how, words, folder, failing)
        for rank in range(world)
    ]


def run(
    how: str, words: list[str], folder: Path, world: int = 3, failing: int = 1
) -> tuple[list[int | None], str]:
    """Return the exit codes of all processes, None of one that goes on, and what was on stderr.

    Arguments are those of `member`.
    """
    running = begin(how, words, folder, world, failing)
    for rank, process in enumerate(running):
        late = how.endswith(_LATE) and rank == (failing - 1) % world
        process.join(0 if late else 60)
    codes = [process.exitcode for process in running]
    for process in running:
        process.kill()
    return codes, "".join((folder / f"err-{rank}").read_text() for rank in range(world))
