"""What benchmark scripts share: timing of calls in turn, and what their seconds depend on."""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

import mmga

Figures = dict[str, Any]


def in_turn(calls: dict[str, Callable[[], Any]], rounds: int) -> tuple[Figures, dict[str, Any]]:
    """Return the median seconds of each call, all of them, and the last results."""
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    results = {}
    for number in range(rounds):
        for name, call in calls.items():
            results.pop(name, None)
            begun = time.perf_counter()
            results[name] = call()
            seconds[name].append(time.perf_counter() - begun)
        print(f"  round {number + 1} of {rounds}", file=sys.stderr, flush=True)
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    return {"seconds": medians, "all": seconds}, results


def machine() -> Figures:
    """Return what the seconds depend on."""
    commit = subprocess.run(
        ["git", "describe", "--always", "--dirty"],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parent,
        check=False,
    )
    return {
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "backend": mmga.ops.backends()["cpu"],
        "commit": commit.stdout.strip() or None,
        "processor": processor(),
    }


def processor() -> str:
    """Return the name of the processor, as far as the system tells."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return "unknown"
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else "unknown"
