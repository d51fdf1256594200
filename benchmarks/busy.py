"""What evaluation, neighbours and Jaccard distances lose beside busy processes.

    python benchmarks/busy.py --json benchmarks/results/busy.json
    python benchmarks/busy.py --divide 16 --rounds 1 --busy 0 1     # a try that takes seconds

Four things are timed in turn beside 0, 1, 2 and 4 processes that compute all the time, as loader
workers or other users do: the bare product of Market-1501's shape (3,368 x 15,913, D = 1024), the
evaluation of the same features, the 30 nearest of 8,192 items of D = 512, and the Jaccard distances
of 5,783 items of D = 256 up to 0.62; medians of `--rounds`. `loss` is a time as a multiple of that
beside no other process, `/ product` the loss as a multiple of the bare product's.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from measure import Figures, in_turn, machine
from simulated import market_like, simulate

import mmga
from mmga.common.files import atomic_path

PRODUCT = "product"
# Computes until its parent is gone, should that be killed before it can end its children.
BUSY = """
import os
parent = os.getppid()
while os.getppid() == parent:
    for _ in range(100000):
        pass
"""


@contextlib.contextmanager
def busy(count: int, settle: float = 0.5) -> Iterator[list[subprocess.Popen[bytes]]]:
    """Run processes that compute all the time, and end them."""
    children: list[subprocess.Popen[bytes]] = []
    try:
        for _ in range(count):
            children.append(subprocess.Popen([sys.executable, "-c", BUSY]))
        time.sleep(settle if count else 0)
        yield children
    finally:
        for child in children:
            child.kill()
        for child in children:
            child.wait()


def cases(divide: int) -> dict[str, Callable[[], Any]]:
    """Return what is timed."""
    labels = market_like(750 // divide, 3368 // divide, 15913 // divide, 2798 // divide)
    pids, camids = (np.concatenate(labels[side::2]) for side in (0, 1))
    features = simulate(pids, camids, 1024, "flat").features  # of one world, as matches are
    parts = slice(0, len(labels[0])), slice(len(labels[0]), None)
    query, gallery = (
        mmga.Features(features[part].contiguous(), pids[part], camids[part]) for part in parts
    )
    x, y = query.features, gallery.features
    items, clustered = (
        simulate(pids, pids * 0, width, "flat").features
        for pids, width in (
            (np.arange(8192 // divide) // 17, 512),
            (np.arange(5783 // divide) // 17, 256),
        )
    )
    return {
        PRODUCT: lambda: x @ y.T,
        "evaluation": lambda: mmga.evaluate(query, gallery),
        "neighbours": lambda: mmga.nearest(items, items, 30),
        "jaccard": lambda: mmga.jaccard_distance(clustered, max_distance=0.62),
    }


def losses(found: dict[str, dict[str, float]]) -> dict[str, Figures]:
    """Return, for each number of processes, each case's loss, alone and over the product's."""
    alone = found["0"]
    result = {}
    for count, seconds in found.items():
        loss = {name: value / alone[name] for name, value in seconds.items()}
        result[count] = {
            name: {"loss": value, "of_product": value / loss[PRODUCT]}
            for name, value in loss.items()
        }
    return result


def table(found: dict[str, dict[str, float]]) -> str:
    """Return the figures as text."""
    lines = [f"{'busy':<6}{'':<12}{'seconds':>10}{'loss':>8}{'/ product':>11}"]
    for count, of_cases in losses(found).items():
        for name, one in of_cases.items():
            seconds = found[count][name]
            lines.append(
                f"{count:<6}{name:<12}{seconds:>10.3f}{one['loss']:>8.2f}{one['of_product']:>11.2f}"
            )
    return "\n".join(lines)


def main() -> None:
    """Measure, print and keep the figures."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--busy", nargs="+", type=int, default=[0, 1, 2, 4], help="processes")
    parser.add_argument("--rounds", type=int, default=5, help="timed calls of each (5)")
    parser.add_argument("--threads", type=int, default=2, help="of torch (2)")
    parser.add_argument("--divide", type=int, default=1, help="make every size so much smaller")
    parser.add_argument("--json", type=Path, help="write all figures to this file")
    options = parser.parse_args()
    if min(options.busy) < 0 or max(options.busy) > 64:
        parser.error(f"--busy: expected numbers from 0 to 64, found {options.busy}")
    for name in ("rounds", "threads", "divide"):
        if not 1 <= getattr(options, name) <= 1024:
            parser.error(f"--{name}: expected 1 to 1024, found {getattr(options, name)}")
    torch.set_num_threads(options.threads)
    calls = cases(options.divide)
    for call in calls.values():
        call()  # warm
    found: dict[str, Figures] = {}
    for count in sorted({0, *options.busy}):
        print(f"beside {count}", file=sys.stderr, flush=True)
        with busy(count):
            found[str(count)] = in_turn(calls, options.rounds)[0]
    medians = {count: one["seconds"] for count, one in found.items()}
    print(table(medians))
    if options.json is not None:
        values = {"machine": machine(), "beside": found, "losses": losses(medians)}
        with atomic_path(options.json) as temporary:
            temporary.write_text(json.dumps(values, indent=1) + "\n")


if __name__ == "__main__":
    main()
