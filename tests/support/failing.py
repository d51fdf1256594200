"""Processes of a command, of which one fails or is killed, while others compute for long."""

import importlib
import os
import signal
import sys
import time
from pathlib import Path

import workers


def member(rank: int, world: int, port: str, how: str, words: list[str], folder: Path) -> None:
    """Run a command as one of several processes; stdout and stderr go to files.

    Args:
        rank: of this process; the second one is that which fails.
        world: number of processes.
        port: where they meet.
        how: what happens, see below.
        words: the command and its words.
        folder: of the files.
    """
    for number, name in ((1, "out"), (2, "err")):
        flags = os.O_CREAT | os.O_WRONLY | os.O_TRUNC
        os.dup2(os.open(folder / f"{name}-{rank}", flags), number)
    import torch

    from mmga.extraction import resumable
    from mmga.retrieval.neighbours.shared_knn import SharedItems
    from mmga.retrieval.neighbours.shared_set import SharedSet
    from mmga.retrieval.tiles.share import Share

    torch.set_num_threads(1)
    workers.environment(rank, world, port)
    blocks, embed, calls = Share.blocks, resumable.embed_images, []
    nearest, searched = SharedItems.nearest, SharedSet._nearest_here

    def happen() -> None:
        if rank != 1:
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
        calls.append(len(calls))
        if len(calls) == 2:
            happen()
        return embed(*args, **options)

    Share.blocks, resumable.embed_images, resumable.SHARD = changed_blocks, changed_embed, 4
    SharedItems.nearest, SharedSet._nearest_here = changed_nearest, changed_search
    verb, *words = words
    sys.exit(importlib.import_module(f"mmga.{verb}").main(words))


def run(how: str, words: list[str], folder: Path, world: int = 3) -> tuple[list[int | None], str]:
    """Return the exit codes of all processes, None of one that goes on, and what was on stderr.

    Arguments are those of `member`.
    """
    port = workers.free_port()
    running = [
        workers.start(member, rank, world, port, how, words, folder) for rank in range(world)
    ]
    for process in running:
        process.join(60)
    codes = [process.exitcode for process in running]
    for process in running:
        process.kill()
    return codes, "".join((folder / f"err-{rank}").read_text() for rank in range(world))
