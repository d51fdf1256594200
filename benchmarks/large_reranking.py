"""Re-ranking at the sizes users have: Market-1501, a clustering epoch, MSMT17, 500,000 distractors.

`python benchmarks/large_reranking.py [CASE ...]` runs every case (or those named) in a process of
its own, so that peak memories do not mix, on simulated features: centres of identities with noise
around them, normalised. Times are wall seconds (medians where a case is repeated), with the
process' CPU seconds beside them; run it on a machine that does nothing else. What cannot be run in
full is run for `--slice` seconds, and its total is printed as projected. Results are checked
against dense NumPy where there is one. `--json FILE` keeps everything.
"""

from __future__ import annotations

import argparse
import json
import logging
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

GIB = 2**30
Figures = dict[str, Any]


def simulated(items: int, dimension: int, per: int, cosine: float) -> tuple[Tensor, Tensor]:
    """Return normalised features [N, D], `per` to an identity, and the identities.

    Args:
        items: N.
        dimension: D.
        per: images of an identity.
        cosine: of two images of one identity, on average.
    """
    generator = torch.Generator().manual_seed(0)
    identity = torch.randint(0, -(-items // per), (items,), generator=generator)
    centres = torch.randn(int(identity.max()) + 1, dimension, generator=generator)
    centres = torch.nn.functional.normalize(centres, dim=1) * cosine**0.5
    x = torch.empty(items, dimension)
    for begin in range(0, items, 65536):
        part = slice(begin, begin + 65536)
        noise = torch.randn(len(identity[part]), dimension, generator=generator)
        noise *= ((1 - cosine) / dimension) ** 0.5
        x[part] = torch.nn.functional.normalize(centres[identity[part]] + noise, dim=1)
    return x, identity


class Stopwatch:
    """Wall and CPU seconds of repeated calls."""

    def __init__(self) -> None:
        self.wall: list[float] = []
        self.cpu: list[float] = []

    def run(self, call: Callable[[], Any], repeats: int = 1, warm: bool = False) -> Any:
        """Call so many times (once more first, if warm) and return the last result."""
        result = call() if warm else None
        for _ in range(repeats):
            del result
            wall, cpu = time.perf_counter(), time.process_time()
            result = call()
            self.wall.append(time.perf_counter() - wall)
            self.cpu.append(time.process_time() - cpu)
        return result

    @property
    def seconds(self) -> float:
        """The median of the wall seconds."""
        return statistics.median(self.wall)

    def figures(self) -> Figures:
        """Return medians and what they are medians of."""
        return {"seconds": self.seconds, "cpu": statistics.median(self.cpu), "all": self.wall}


def say(text: str) -> None:
    """Report progress on stderr."""
    print(f"  {text}", file=sys.stderr, flush=True)


def products_by_tiles(x: Tensor, tile: int) -> None:
    """Compute the inner product of every pair once, as the tiles of the neighbour pass do."""
    out = torch.empty(tile, tile)
    last = len(x) - tile
    for row in range(0, len(x), tile):
        for column in range(row, len(x), tile):
            # The last tile of a row ends where the set ends: of one shape, as padded ones are.
            top, left = min(row, last), min(column, last)
            torch.mm(x[top : top + tile], x[left : left + tile].t(), out=out)


def market(options: argparse.Namespace) -> Figures:
    """Features to plain and re-ranked metrics at Market-1501's size, beside half the product."""
    import mmga
    from mmga.common import memory
    from mmga.ops import k_reciprocal as ops
    from mmga.retrieval.features.sharded_matrix import ShardedMatrix
    from mmga.retrieval.features.vectors import VectorSet
    from mmga.retrieval.neighbours.knn import search
    from mmga.retrieval.neighbours.tile_sizes import TILE
    from mmga.retrieval.reranking.encode import encode

    memory.baseline()  # before the features are there
    scale = options.divide
    items, queries, dimension = 19281 // scale, 3368 // scale, 2048
    x, identity = simulated(items, dimension, 15, 0.5)
    parts = slice(0, queries), slice(queries, items)
    camids = np.arange(items) % 6
    query, gallery = (mmga.Features(x[p], identity[p].numpy(), camids[p]) for p in parts)
    rule = mmga.KReciprocal()
    watches = {
        name: Stopwatch()
        for name in ("half", "tiles", "neighbours", "sparse", "plain", "evaluate", "rerank")
    }
    half, feature_set = x[: items // 2], VectorSet([ShardedMatrix([x])], "cosine")
    chosen = torch.arange(queries)

    def sparse(near: Any) -> Any:
        rows = encode(near, rule, feature_set.pair_distances)
        return ops.jaccard_rows(rows, ops.transpose_rows(rows, queries), chosen)

    near = report = None
    for round_number in range(options.repeats):  # in turn, so that a slow minute meets them all
        say(f"round {round_number + 1} of {options.repeats}")
        watches["half"].run(lambda: half @ x.t())
        watches["tiles"].run(lambda: products_by_tiles(x, TILE))
        near = watches["neighbours"].run(lambda: search(feature_set, 21).neighbours)
        watches["sparse"].run(lambda found=near: sparse(found), warm=round_number == 0)
        watches["plain"].run(lambda: mmga.evaluate(query, gallery))
        report = watches["evaluate"].run(lambda: mmga.evaluate(query, gallery, rerank=rule))
        watches["rerank"].wall.append(watches["evaluate"].wall[-1] - watches["plain"].wall[-1])
        watches["rerank"].cpu.append(watches["evaluate"].cpu[-1] - watches["plain"].cpu[-1])
    bound = watches["half"].seconds
    d = 2 - 2 * (x[:50] @ x.t()).double()
    taken = d.gather(1, near.index[:50].long()).sort().values
    torch.testing.assert_close(taken, d.topk(21, largest=False).values, rtol=0, atol=1e-5)
    return {
        "items": items,
        "queries": queries,
        "dimension": dimension,
        **{name: watch.figures() for name, watch in watches.items()},
        "tiles / half": watches["tiles"].seconds / bound,
        "neighbours / half": watches["neighbours"].seconds / bound,
        "neighbours / tiles": watches["neighbours"].seconds / watches["tiles"].seconds,
        "features to re-ranked metrics / half": watches["rerank"].seconds / bound,
        "features to plain and re-ranked metrics / half": watches["evaluate"].seconds / bound,
        "seconds of the last": report.seconds,
        "mAP": report.mAP,
        "mAP re-ranked": report.reranked.mAP,
        "evaluate peak beyond the features": report.peak_memory_bytes - 4 * x.nelement(),
    }


def alike(options: argparse.Namespace) -> Figures:
    """Market-1501's size with persons told apart ever less, in float64's order and float32's."""
    import mmga

    items, queries = 19281 // options.divide, 3368 // options.divide
    camids, figures = np.arange(items) % 6, {"items": items, "queries": queries}
    for cosine in (0.3, 0.16, 0.13, 0.1, 0.08):
        x, identity = simulated(items, 512, 15, cosine)
        parts = slice(0, queries), slice(queries, items)
        sides = [mmga.Features(x[p], identity[p].numpy(), camids[p]) for p in parts]
        watches = {exact: Stopwatch() for exact in ("certified", "float32")}
        for number in range(options.repeats):
            for exact, watch in watches.items():
                words = {"exact": exact, "rerank": mmga.KReciprocal()}
                report = watch.run(lambda s=sides, w=words: mmga.evaluate(*s, **w), warm=not number)
        figures[f"images of a person at cosine {cosine}"] = {
            "mAP": report.mAP,
            "mAP re-ranked": report.reranked.mAP,
            **{exact: watch.figures() for exact, watch in watches.items()},
        }
    return figures


def cluster(options: argparse.Namespace) -> Figures:
    """One clustering epoch's Jaccard distances against dense NumPy, with DBSCAN's labels."""
    from test_rerank import numpy_clustering

    import mmga
    from mmga.retrieval.neighbours.sparse import to_scipy

    items = 5783 // options.divide
    figures: Figures = {"items": items}
    for dimension in (256, 2048):
        x, _ = simulated(items, dimension, 17, 0.6)
        dense, half, stages = Stopwatch(), Stopwatch(), {}
        limits = {"sparse": None, "sparse, max_distance 0.62": 0.62}
        watches = {name: Stopwatch() for name in limits}
        seconds = {name: Stages() for name in limits}
        matrices: dict[str, Any] = {}
        for number in range(options.repeats):  # in turn, so that a slow minute meets them all
            say(f"D = {dimension}: round {number + 1} of {options.repeats}")
            expected = dense.run(lambda x=x, s=stages: numpy_clustering(x.numpy(), s))
            half.run(lambda x=x: x[: items // 2] @ x.t(), warm=True)
            for name, limit in limits.items():
                with seconds[name]:
                    matrices[name] = watches[name].run(
                        lambda x=x, limit=limit: to_scipy(
                            mmga.jaccard_distance(x, max_distance=limit)
                        ),
                        warm=True,
                    )
        result: Figures = {"numpy": dense.figures(), "numpy by stage": stages}
        result["half the product"] = half.figures()
        for name, watch in watches.items():
            result[name] = watch.figures() | seconds[name].last()
            result[f"numpy / {name}"] = dense.seconds / watch.seconds
            result[f"numpy / {name}, CPU time"] = statistics.median(dense.cpu) / statistics.median(
                watch.cpu
            )
            result[f"{name}: adjusted Rand index"] = label_agreement(expected, matrices[name])
        figures[f"D = {dimension}"] = result
    return figures


def label_agreement(dense: np.ndarray, sparse: Any) -> dict[str, float]:
    """Return the adjusted Rand index of DBSCAN's labels from both matrices, by eps."""
    import warnings

    from sklearn.cluster import DBSCAN
    from sklearn.metrics import adjusted_rand_score

    result = {}
    for eps in (0.5, 0.6):
        model = DBSCAN(eps=eps, min_samples=4, metric="precomputed")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that a sparse matrix is not sorted by distance
            labels = [model.fit_predict(matrix) for matrix in (dense, sparse)]
        result[str(eps)] = float(adjusted_rand_score(*labels))
    return result


class Stages(logging.Handler):
    """The seconds by stage that `jaccard_distance` logs."""

    def __init__(self) -> None:
        super().__init__(logging.INFO)
        self._records: list[Any] = []
        self._logger = logging.getLogger("mmga.retrieval.reranking.jaccard")
        self._logger.setLevel(logging.INFO)

    def __enter__(self) -> None:
        self._logger.addHandler(self)

    def __exit__(self, *exception: object) -> None:
        self._logger.removeHandler(self)

    def emit(self, record: logging.LogRecord) -> None:
        """Keep a record."""
        self._records.append(record.args)

    def last(self) -> Figures:
        """Return the last call's."""
        _, neighbours, encoding, distances, stored = self._records[-1]
        stages = {"neighbours": neighbours, "encoding": encoding, "distances": distances}
        return {"by stage": stages, "stored": stored}


def jaccard(items: int, options: argparse.Namespace) -> Figures:
    """The Jaccard matrix of a whole training set, D = 256."""
    import mmga

    items //= options.divide
    x, _ = simulated(items, 256, 17, 0.6)
    watch, seconds = Stopwatch(), Stages()
    with seconds:
        matrix = watch.run(lambda: mmga.jaccard_distance(x, max_distance=0.62, progress=shown()))
    symmetric = spot_check_symmetry(matrix)
    return {"items": items, "dimension": 256, **watch.figures(), **seconds.last()} | {
        "rows checked for symmetry": symmetric
    }


def spot_check_symmetry(matrix: Tensor) -> int:
    """Check that some rows' entries stand, with equal values, in their columns' rows."""
    offsets, columns, values = matrix.crow_indices(), matrix.col_indices(), matrix.values()
    rows = range(0, len(offsets) - 1, max(1, (len(offsets) - 1) // 100))
    for i in rows:
        for e in range(int(offsets[i]), int(offsets[i + 1])):
            j = int(columns[e])
            own = slice(int(offsets[j]), int(offsets[j + 1]))
            at = torch.searchsorted(columns[own], i)
            if int(columns[own][at]) != i or abs(float(values[own][at] - values[e])) > 1e-12:
                raise AssertionError(f"entry {i}, {j} has no counterpart")
    return len(rows)


class EnoughError(Exception):
    """The slice of a pass is over."""


def shown(limit: float | None = None) -> Callable[[str, int, int], None]:
    """Return a progress callback that reports, and raises `EnoughError` after `limit` seconds."""
    state = {"phase": "", "begin": 0.0, "told": 0.0}

    def progress(phase: str, done: int, total: int) -> None:
        now = time.perf_counter()
        if phase != state["phase"]:
            state.update(phase=phase, begin=now, told=now)
        if now - state["told"] > 15:
            state["told"] = now
            say(f"{phase}: {done} of {total}, {now - state['begin']:.0f} s")
        if limit is not None and now - state["begin"] > limit:
            raise EnoughError(done / total, now - state["begin"])

    return progress


def neighbour_slice(rows: Any, k: int, seconds: float) -> Figures:
    """Run the neighbour pass over a `ShardedMatrix` for some seconds and project its total."""
    from mmga.retrieval.features.vectors import VectorSet
    from mmga.retrieval.neighbours.knn import float32_neighbours

    items = VectorSet([rows], "cosine")
    begin = time.perf_counter()
    try:
        float32_neighbours(items, k, progress=shown(seconds))
    except EnoughError as slice_of:
        share, spent = slice_of.args
        return {"share": share, "seconds": spent, "projected total seconds": spent / share}
    return {"share": 1.0, "seconds": time.perf_counter() - begin}


def bucketed(items: int, dimension: int) -> tuple[Tensor, Any]:
    """Return features and neighbour lists that are cheap to make: items of a bucket look alike.

    The lists are exact within buckets of about 1,024 items, which hold about 60 identities.
    """
    from mmga.ops.neighbours import Neighbours
    from mmga.retrieval.features.sharded_matrix import ShardedMatrix
    from mmga.retrieval.features.vectors import VectorSet
    from mmga.retrieval.neighbours.knn import float32_neighbours

    generator = torch.Generator().manual_seed(0)
    buckets = -(-items // 1024)
    bucket = torch.randint(0, buckets, (items,), generator=generator)
    order = torch.argsort(bucket, stable=True)
    sizes = torch.bincount(bucket, minlength=buckets).tolist()
    x = torch.empty(items, dimension)
    index = torch.empty(items, 21, dtype=torch.int32)
    distances = torch.empty(items, 21)
    done = 0
    for number, size in enumerate(sizes):
        members = order[done : done + size]  # ascending
        done += size
        common = torch.nn.functional.normalize(torch.randn(1, dimension, generator=generator))
        identities = torch.randn(size // 17 + 1, dimension, generator=generator) / dimension**0.5
        who = torch.randint(0, len(identities), (size,), generator=generator)
        noise = torch.randn(size, dimension, generator=generator) / dimension**0.5
        y = 0.5 * common + 0.35**0.5 * identities[who] + 0.4**0.5 * noise
        x[members] = torch.nn.functional.normalize(y, dim=1)
        near = float32_neighbours(VectorSet([ShardedMatrix([x[members]])], "cosine"), 21)
        index[members] = members.int()[near.index.long()]
        distances[members] = near.distances
        if number % 50 == 0:
            say(f"neighbours for the sparse part: bucket {number} of {buckets}")
    return x, Neighbours(index, distances, torch.full((items,), 2.2))


def graph(items: int, queries: int, options: argparse.Namespace) -> Figures:
    """The sparse part in full on given neighbours, and the neighbour pass on a slice (D = 512)."""
    items, queries = items // options.divide, queries // options.divide
    from mmga.retrieval.features.sharded_matrix import ShardedMatrix

    x, near = bucketed(items, 512)
    figures = {"items": items, "queries": queries, "dimension": 512}
    figures["sparse part"] = sparse_part(x, near, queries)
    figures["peak after the sparse part"] = peak_bytes()
    del near
    say("neighbour pass")
    return figures | {"neighbour pass": neighbour_slice(ShardedMatrix([x]), 21, options.slice)}


def sparse_part(x: Tensor, near: Any, queries: int) -> Figures:
    """Go from neighbour lists to the queries' Jaccard rows and return the seconds by stage."""
    from mmga import KReciprocal
    from mmga.ops import k_reciprocal as ops
    from mmga.retrieval.features.sharded_matrix import ShardedMatrix
    from mmga.retrieval.features.vectors import VectorSet
    from mmga.retrieval.reranking.encode import (
        averaged,
        encoded_distances,
        expanded_sets,
        set_distances,
    )

    feature_set, rule = VectorSet([ShardedMatrix([x])], "cosine"), KReciprocal()
    stages: dict[str, float] = {}

    def stage(name: str, call: Callable[[], Any]) -> Any:
        watch = Stopwatch()
        result = watch.run(call)
        stages[name] = watch.seconds
        return result

    sets = stage("sets", lambda: expanded_sets(near, rule))
    d = stage("distances", lambda: set_distances(sets, near, feature_set.pair_distances))
    encoded = encoded_distances(d, near.maxima, rule)
    weights = stage("weights", lambda: ops.encode(sets, *encoded))
    rows = stage("mean", lambda: averaged(weights, near.index, rule))
    inverted = stage("inverted index", lambda: ops.transpose_rows(rows, queries))
    found = stage("Jaccard rows", lambda: ops.jaccard_rows(rows, inverted, torch.arange(queries)))
    total = sum(stages.values())
    return {"total seconds": total, "by stage": stages, "stored": len(found.values)}


CASES: dict[str, Callable[[argparse.Namespace], Figures]] = {
    "market": market,
    "alike": alike,
    "cluster": cluster,
    "jaccard-32621": lambda options: jaccard(32621, options),
    "jaccard-200000": lambda options: jaccard(200000, options),
    "msmt17": lambda options: graph(93820, 11659, options),
    "distractors": lambda options: graph(519281, 3368, options),
}


def process_peak() -> int:
    """Return the largest resident size of this process in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


_BASE: list[int] = []


def peak_bytes() -> int:
    """Return the peak resident size beyond that after `import torch` and one small product."""
    return process_peak() - _BASE[0]


def run_case(name: str, options: argparse.Namespace) -> Figures:
    """Run one case in this process."""
    if options.threads:
        torch.set_num_threads(options.threads)
    torch.mm(torch.ones(64, 64), torch.ones(64, 64))
    _BASE.append(process_peak())
    figures = CASES[name](options)
    return figures | {"peak_memory_bytes": peak_bytes(), "process_peak_bytes": process_peak()}


def show(name: str, figures: Figures, indent: str = "") -> None:
    """Print figures as a table."""
    if name:
        print(f"{indent}{name}")
    for key, value in figures.items():
        if isinstance(value, dict) and "all" in value:
            rest = {k: v for k, v in value.items() if k not in ("seconds", "cpu", "all")}
            runs = len(value["all"])
            print(
                f"{indent}  {key:44} {value['seconds']:9.3f} s  (CPU {value['cpu']:.3f}, {runs}x)"
            )
            show("", rest, indent + "  ")
        elif isinstance(value, dict):
            show(f"  {key}", value, indent + "  ")
        elif "bytes" in key or "peak" in key:
            print(f"{indent}  {key:44} {value / GIB:9.3f} GiB")
        elif isinstance(value, float):
            print(f"{indent}  {key:44} {value:9.3f}")
        elif not isinstance(value, list):
            print(f"{indent}  {key:44} {value!s:>9}")


def main() -> int:
    """Run the cases, each in a child process, and print what they found."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("cases", nargs="*", metavar="CASE", help=f"of {', '.join(CASES)}; all")
    parser.add_argument("--repeats", type=int, default=5, help="rounds of repeated cases (5)")
    parser.add_argument("--slice", type=float, default=60.0, help="seconds of a sliced pass (60)")
    parser.add_argument("--threads", type=int, default=0, help="torch threads; 0: torch's own")
    parser.add_argument("--divide", type=int, default=1, help="divide all sizes, to try it out")
    parser.add_argument("--json", metavar="FILE", help="write all figures there")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if not 0 <= options.threads <= 1024:
        parser.error(f"--threads: expected 0 to 1024, found {options.threads}")
    unknown = [name for name in options.cases if name not in CASES]
    if unknown:
        parser.error(f"no case {unknown[0]!r}; cases are {', '.join(CASES)}")
    if options.child:
        print(json.dumps(run_case(options.cases[0], options)))
        return 0
    results: dict[str, Figures] = {}
    for name in options.cases or CASES:
        print(f"{name} ...", file=sys.stderr, flush=True)
        arguments = [name, "--child"]
        for option in ("repeats", "slice", "threads", "divide"):
            arguments += [f"--{option}", str(getattr(options, option))]
        child = subprocess.run(
            [sys.executable, __file__, *arguments], stdout=subprocess.PIPE, text=True, check=False
        )
        if child.returncode:
            print(f"{name} failed with exit code {child.returncode}", file=sys.stderr)
            return 1
        results[name] = json.loads(child.stdout.splitlines()[-1])
        show(name, results[name])
    if options.json:
        from mmga.common.files import atomic_path

        with atomic_path(options.json) as path:
            path.write_text(json.dumps(results, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.path.insert(0, sys.path[0] + "/..")  # the checkout's package comes first
    sys.exit(main())
