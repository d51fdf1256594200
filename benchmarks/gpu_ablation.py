"""The ablation of docs/results.md on one GPU, ten seeds in five minutes: `make gpu-ablation`.

Seeds run side by side, each in a process of its own; all rows of a seed come one after the other.
When the time is over the processes save what they have, finished runs are summed up, and the same
command goes on from there.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SECONDS, SAVING = 300, 25
"""All the time, and what of it is left for saving and the summary."""
SEEDS = range(10)
ABLATION = (sys.executable, "-m", "benchmarks.ablation")


def run(
    command: Sequence[str], seeds: Sequence[int], seconds: float, processes: int, saving: float
) -> list[int | None]:
    """Run a command for every seed, some at once, and end those that take too long.

    Args:
        command: words before `--seeds SEED`.
        seeds: in the order in which they are begun.
        seconds: until all are asked to save and end.
        processes: that run at once.
        saving: seconds after which one that was asked is killed.

    Returns:
        The exit code of each seed, None where it was not begun.
    """
    end = time.monotonic() + seconds
    codes: dict[int, int | None] = dict.fromkeys(seeds)
    waiting, running = list(seeds), {}
    while (waiting or running) and time.monotonic() < end:
        while waiting and len(running) < processes:
            seed = waiting.pop(0)
            running[seed] = subprocess.Popen([*command, "--seeds", str(seed)], cwd=ROOT)
        for seed, process in list(running.items()):
            codes[seed] = process.poll()
            if codes[seed] is not None:
                del running[seed]
        time.sleep(0.05)
    for process in running.values():
        process.terminate()
    last = time.monotonic() + saving
    for seed, process in running.items():
        try:
            codes[seed] = process.wait(max(0.0, last - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.kill()
            codes[seed] = process.wait()
    return [codes[seed] for seed in seeds]


def main(argv: Sequence[str] | None = None) -> int:
    """Render the pictures, train and test the seeds, and print the summary."""
    parser = argparse.ArgumentParser(prog="make gpu-ablation")
    parser.add_argument("--results", type=Path, default=ROOT / "build" / "gpu_ablation")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="all the time")
    parser.add_argument("--processes", type=int, default=min(10, max(1, (os.cpu_count() or 1) - 2)))
    options = parser.parse_args(argv)
    begun = time.monotonic()
    options.results.mkdir(parents=True, exist_ok=True)
    command = [*ABLATION, "--results", str(options.results)]
    try:
        subprocess.run([*command, "--prepare"], cwd=ROOT, check=True, timeout=options.seconds / 2)
    except subprocess.TimeoutExpired:
        print("pictures are not all rendered; the same command goes on from here")
        return 1
    left = options.seconds - SAVING - (time.monotonic() - begun)
    codes = run(command, SEEDS, max(0.0, left), options.processes, SAVING / 2)
    done = sum(code == 0 for code in codes)
    print(f"{done} of {len(codes)} seeds are finished; the same command goes on with the others")
    subprocess.run([*command, "--summary", "--seeds", *map(str, SEEDS)], cwd=ROOT, check=True)
    return 0 if done else 1


if __name__ == "__main__":
    sys.exit(main())
