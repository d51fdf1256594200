"""A process of `mmga eval` that fails, is killed, or computes for long while another one does."""

import os
import signal
import sys
import time
from pathlib import Path

import workers


def member(rank: int, world: int, port: str, how: str, words: list[str], folder: Path) -> None:
    """Run the command as one of several processes; stdout and stderr go to files.

    Args:
        rank: of this process; the second one is that which fails.
        world: number of processes.
        port: where they meet.
        how: what happens, see below.
        words: of the command.
        folder: of the files.
    """
    for number, name in ((1, "out"), (2, "err")):
        os.dup2(os.open(folder / f"{name}-{rank}", os.O_CREAT | os.O_WRONLY), number)
    import torch

    from mmga import eval as command
    from mmga.retrieval.tiles.share import Share

    torch.set_num_threads(1)
    workers.environment(rank, world, port)
    blocks = Share.blocks

    def changed(self, width):
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
        return blocks(self, width)

    Share.blocks = changed
    sys.exit(command.main(words))


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
