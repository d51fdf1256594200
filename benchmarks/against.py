"""Time this checkout in turn with another one, case by case, through the public functions.

    git worktree add ../before COMMIT
    (cd ../before && python setup.py build_ext --inplace)
    python benchmarks/against.py ../before
    python benchmarks/against.py ../before --cases features-2048 rerank --rounds 7

Each round starts one process of either side for each case; the ratio is that of the medians of the
shortest times. Both must give the same figures.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parents[1]


def features(width: int, spectrum: str = "flat") -> Any:
    """Return Market-1501's shape as two feature sets."""
    from simulated import market_like, simulate

    import mmga

    labels = market_like()
    both = [simulate(*labels[i : i + 2], width, spectrum, seed=i) for i in (0, 2)]
    return [mmga.Features(side.features, side.pids, side.camids) for side in both]


def ranking(width: int, spectrum: str = "flat", **options: Any) -> tuple[Callable[[], Any], int]:
    """Return an evaluation from features."""
    import mmga

    query, gallery = features(width, spectrum)
    return lambda: mmga.evaluate(query, gallery, **options), 3


def distances() -> tuple[Callable[[], Any], int]:
    """Return an evaluation of a given matrix."""
    import mmga

    query, gallery = features(64)
    matrix = 1 - query.features @ gallery.features.T
    return lambda: mmga.evaluate_distances(matrix, query, gallery), 9


def reranking() -> tuple[Callable[[], Any], int]:
    """Return an evaluation with re-ranking."""
    import mmga

    query, gallery = features(2048)
    return lambda: mmga.evaluate(query, gallery, rerank=mmga.KReciprocal()), 1


def clustering() -> tuple[Callable[[], Any], int]:
    """Return a clustering epoch's Jaccard distances."""
    import numpy as np
    from simulated import simulate

    import mmga

    pids = np.random.default_rng(0).integers(0, 702, 5783)
    x = simulate(pids, pids % 6, 256, likeness=0.5).features
    return lambda: mmga.jaccard_distance(x, max_distance=0.62), 7


def neighbours() -> tuple[Callable[[], Any], int]:
    """Return a k-NN search of a query set in a gallery."""
    import mmga

    query, gallery = features(512)
    return lambda: mmga.nearest(query, gallery, 21), 3


CASES: dict[str, Callable[[], tuple[Callable[[], Any], int]]] = {
    "distances": distances,
    "features-2048": lambda: ranking(2048),
    "features-512": lambda: ranking(512),
    "features-256": lambda: ranking(256),
    "features-2048-decaying": lambda: ranking(2048, "decaying"),
    "features-512-float32": lambda: ranking(512, exact="float32"),
    "rerank": reranking,
    "jaccard": clustering,
    "nearest": neighbours,
}


def figures(result: Any) -> list[float]:
    """Return numbers that both sides must have in common.

    Distances, whose last digits depend on the arithmetic, count to five digits.
    """
    if hasattr(result, "mAP"):
        again = [] if result.reranked is None else [result.reranked.mAP]
        return [result.mAP, result.mINP, *again]
    distances = result[0].double() if isinstance(result, tuple) else result.values()
    return [float(f"{float(distances.sum()):.5g}"), float(distances.numel())]


def measure(case: str) -> dict[str, Any]:
    """Run one case in this process."""
    call, times = CASES[case]()
    result = call()  # warm
    seconds = []
    for _ in range(times):
        begun = time.perf_counter()
        result = call()
        seconds.append(time.perf_counter() - begun)
    return {"seconds": min(seconds), "figures": figures(result)}


def run(root: Path, case: str) -> dict[str, Any]:
    """Run one case with the package of a checkout."""
    paths = os.pathsep.join(map(str, (root, HERE / "benchmarks")))
    words = [sys.executable, __file__, str(root), "--measure", case]
    environment = {**os.environ, "PYTHONPATH": paths}
    done = subprocess.run(words, cwd=root, env=environment, stdout=subprocess.PIPE, check=True)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def main() -> None:
    """Print one line for each case."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("other", type=Path)
    parser.add_argument("--cases", nargs="*", choices=CASES, default=list(CASES))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--measure", choices=CASES)
    args = parser.parse_args()
    if args.measure:
        print(json.dumps(measure(args.measure)))
        return
    print(f"{'case':<26}{'other s':>10}{'this s':>10}{'ratio':>8}")
    for case in args.cases:
        other, this = [], []
        for _ in range(args.rounds):
            other.append(run(args.other.resolve(), case))
            this.append(run(HERE, case))
        if any(one["figures"] != other[0]["figures"] for one in other + this):
            raise SystemExit(f"{case}: figures differ, {other[0]} and {this[0]}")
        medians = [statistics.median(one["seconds"] for one in side) for side in (other, this)]
        ratio = medians[1] / medians[0]
        print(f"{case:<26}{medians[0]:>10.4f}{medians[1]:>10.4f}{ratio:>8.3f}", flush=True)


if __name__ == "__main__":
    main()
