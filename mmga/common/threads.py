"""Threads of OpenMP: how they wait, and what a forked process does without them."""

import os
import sys
import threading
from pathlib import Path

_HOW = {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME"}


def wait_asleep() -> None:
    """Make OpenMP's threads sleep while they wait, unless the environment says how they wait.

    By default they spin, which takes the cores from the very threads that they wait for wherever
    other processes run. OpenMP reads the setting once, when torch is imported.
    """
    if not _HOW & os.environ.keys():
        os.environ["OMP_WAIT_POLICY"] = "PASSIVE"


def survive_forks() -> None:
    """Make torch compute with one thread in processes forked from one that used several.

    A fork copies the calling thread alone, and OpenMP would wait for the others forever.
    """
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(before=_look, after_in_child=_compute_alone)


_used = False  # threads besides Python's, before a fork


def _look() -> None:
    global _used
    tasks = Path("/proc/self/task")
    _used = not tasks.is_dir() or len(list(tasks.iterdir())) > threading.active_count()


def _compute_alone() -> None:
    torch = sys.modules.get("torch")
    if _used and torch is not None:
        torch.set_num_threads(1)
