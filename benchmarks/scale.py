"""What several processes cost: bytes sent, memory, seconds, and whether results are those of one.

    python benchmarks/scale.py --json scale.json
    python benchmarks/scale.py --gallery 20000 --only 1 2        # a try that takes seconds
    python benchmarks/scale.py --tasks jaccard --gallery 500000 --only 1x2 2x1
    python benchmarks/scale.py --tasks evaluate --gallery 1000000 --only 1x2 2x1
    python benchmarks/scale.py --tasks one-set --gallery 100000 --only 1 4 4/2 4/4

A simulated gallery is written as four .npz shards, which are dealt to the processes and read into
memory. `--only` names numbers of processes, each of one thread; 1x2: one of two threads; 4/2: four
that deal the queries out in two shares. Every task has processes of its own. The payload of every
collective is counted, and what the model of docs/scale.md says stands beside it. Of memory, each
process samples its peaks: private memory beyond imports, features included; all private memory
(RssAnon); and its proportional set (Pss), in which a page of a library counts once for all
processes that have it. In a network of its own (`unshare --net`, with lo up) the bytes that went
over lo are counted, too.
"""

import argparse
import hashlib
import json
import os
import re
import subprocess
import sys
import tempfile
import threading
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from measure import machine

import mmga
from mmga.common import memory
from mmga.common.distributed import Group, join
from mmga.common.grid import Grid, grid_of
from mmga.retrieval.features.load import load_share
from mmga.retrieval.neighbours.shared_set import SharedSet
from mmga.retrieval.reranking import jaccard as jaccard_module

TASKS = (
    "evaluate",
    "one-set",
    "nearest",
    "rerank",
    "jaccard",
    "index",
    "distances",
    "averages",
)
SHARDS = 4
NEAREST = 100  # gallery items of a query's list
LIMIT = 0.62  # of Jaccard distances
LISTED = 30  # neighbours in a list of the graph that they come from
AVERAGED = 10  # neighbours that a vector is averaged with
ASKED = 32  # queries that an index is asked for, one after the other
RULE = mmga.KReciprocal()
MEASURED = ("seconds", "peak_memory_bytes", "process_peak_bytes")


def write_sets(folder: Path, queries: int, gallery: int, width: int) -> None:
    """Write simulated features of normalised float32 rows, about 15 matches a query."""
    random = np.random.default_rng(0)
    persons = random.standard_normal((max(1, gallery // 15), width), np.float32)
    ends = [gallery * shard // SHARDS for shard in range(SHARDS + 1)]
    counts = {f"gallery-{n}": end - start for n, (start, end) in enumerate(pairwise(ends))}
    for name, count in {"query": queries, **counts}.items():
        pids = random.integers(0, len(persons), count)
        rows = persons[pids] + 1.2 * random.standard_normal((count, width), np.float32)
        rows /= np.linalg.norm(rows, axis=1, keepdims=True)
        mmga.Features(rows, pids, random.integers(0, 6, count)).save(folder / f"{name}.npz")


def received() -> int:
    """Return the bytes that have gone over lo."""
    lines = Path("/proc/net/dev").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.strip().startswith("lo:"))


def counting(sent: dict[str, int]) -> None:
    """Count the payload of the collectives of this process, in bytes."""

    def count(name: str, place: int) -> None:
        call = getattr(dist, name)

        def counted(*args: Any, **options: Any) -> Any:
            sent[name] += args[place].numel() * args[place].element_size()
            return call(*args, **options)

        setattr(dist, name, counted)

    for name, place in (("all_reduce", 0), ("all_gather", 1), ("all_to_all_single", 1)):
        sent[name] = 0
        count(name, place)


def noting(seen: dict[str, int]) -> None:
    """Note what the exchanges of a graph depend on: entries of rows, pairs, vectors fetched."""
    csr, sent, fetch = SharedSet.csr_of_all, SharedSet._sent, SharedSet.fetch
    rows = jaccard_module.rows_of_own
    seen |= dict.fromkeys(("set entries", "encoded entries", "fetched", "asked"), 0)

    def noted_csr(self: SharedSet, sparse: Any) -> Any:
        seen["set entries"] += len(sparse.values)
        return csr(self, sparse)

    def noted_sent(self: SharedSet, places: Any) -> Any:
        seen["fetched"] += len(places) if isinstance(places, torch.Tensor) else 0
        return sent(self, places)

    def noted_fetch(self: SharedSet, numbers: Any) -> Any:
        seen["asked"] += len(numbers.unique())
        return fetch(self, numbers)

    def noted_rows(encoded: Any, *args: Any, **options: Any) -> Any:
        seen["encoded entries"] += len(encoded[0].values)
        return rows(encoded, *args, **options)

    SharedSet.csr_of_all, SharedSet._sent = noted_csr, noted_sent  # type: ignore[method-assign]
    SharedSet.fetch = noted_fetch  # type: ignore[method-assign]
    jaccard_module.rows_of_own = noted_rows


class Sampler(threading.Thread):
    """A thread that samples the memory of this process.

    Attributes:
        peaks: in bytes; `peak` is private memory beyond the baseline.
    """

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self._peak, self._done = memory.Peak(), threading.Event()
        self.peaks = {"peak": 0, "private": 0, "proportional": 0}
        self.start()

    def run(self) -> None:
        """Sample until the peaks are asked for."""
        number = 0
        while not self._done.wait(0.05):
            self._peak.sample()
            self._note("private", "status", "RssAnon")
            if number % 6 == 0:  # the kernel looks at every page
                self._note("proportional", "smaps_rollup", "Pss")
            number += 1

    def _note(self, name: str, file: str, line: str) -> None:
        found = re.search(
            rf"^{line}:\s+(\d+) kB", Path("/proc/self", file).read_text(), re.MULTILINE
        )
        if found is not None:
            self.peaks[name] = max(self.peaks[name], int(found.group(1)) * 1024)

    def end(self) -> dict[str, int]:
        """End, and return the peaks."""
        self._done.set()
        self.join()
        return self.peaks | {"peak": self._peak.bytes}


def sides(folder: Path, task: str, grid: Grid) -> tuple[Any, Any]:
    """Return the queries and the gallery that this process reads."""
    items = str(folder / "gallery-*.npz")
    asked = items if task == "one-set" else folder / "query.npz"
    query = load_share(asked, grid.column)
    return query, load_share(items, grid.row) if task != "one-set" or grid.deals else None


def ask(query: Any, gallery: Any, group: Group, sent: dict[str, int]) -> Any:
    """Return the nearest of some queries by an index; `sent` becomes what the index itself took."""
    index = mmga.GalleryIndex.build(gallery, RULE, group=group)
    built, begun = dict(sent), time.process_time()
    lists = [index.nearest(query.features[n], NEAREST) for n in range(ASKED)]
    kind, spent = sum(sent.values()) - sum(built.values()), time.process_time() - begun
    print(f"a query: {kind / ASKED:.0f} B of payload, {spent / ASKED:.3f} CPU seconds", flush=True)
    sent.update(built)
    return [part for one in lists for part in one]


def call(task: str, query: Any, gallery: Any, grid: Grid, sent: dict[str, int]) -> Any:
    """Return what a task makes of the features."""
    group, shares = grid.whole, grid.column.world
    if task == "index":
        return ask(query, gallery, group, sent)
    if task == "jaccard":
        return mmga.jaccard_distance(gallery, max_distance=LIMIT, group=group)
    if task == "nearest":
        return mmga.nearest(query, gallery, NEAREST, group=group, query_shares=shares)
    if task == "distances":
        return mmga.rerank(query, gallery, RULE, topk=NEAREST, group=group)
    if task == "averages":
        wider = mmga.augment_gallery(gallery, AVERAGED, group=group)
        return wider, mmga.expand_queries(query, wider, AVERAGED, group=group)
    rule = RULE if task == "rerank" else None
    protocol = "all-vs-all" if task == "one-set" else "market1501"
    return mmga.evaluate(
        query, gallery, rerank=rule, protocol=protocol, group=group, query_shares=shares
    )


def digest(task: str, result: Any, grid: Grid) -> str:
    """Return a digest of what must be the same for any number of processes."""
    group = grid.whole
    if task == "jaccard":  # the rows of all
        parts = (result.crow_indices().diff(), result.col_indices(), result.values())
        data = [group.rows(part).numpy().tobytes() for part in parts]
    elif task == "nearest":  # those of all queries, of the first process of each row
        first = grid.row.leads
        data = [group.rows(part if first else part[:0]).numpy().tobytes() for part in result]
    elif task == "averages":
        data = [group.rows(result[0]).numpy().tobytes(), result[1].numpy().tobytes()]
    elif task in ("index", "distances"):
        data = [np.asarray(part).tobytes() for part in result]
    else:
        values = result.as_dict()
        same = {name: values[name] for name in values if name not in MEASURED}
        data = [json.dumps(same).encode()]
    return hashlib.sha256(b"".join(data)).hexdigest()


def member(folder: Path, out: Path, task: str, threads: int, query_shares: int) -> None:
    """Run a task as one process of torchrun, and let the first one write what was measured."""
    torch.set_num_threads(threads)
    memory.baseline()
    sent: dict[str, int] = {}
    seen: dict[str, int] = {}
    counting(sent)
    noting(seen)
    with join(torch.device("cpu"), watched="scale") as group:
        grid = grid_of(group, query_shares)
        query, gallery = sides(folder, task, grid)
        sampler = Sampler()
        group.texts("")  # all have read theirs
        spent, begun, over_lo = time.process_time(), time.perf_counter(), received()
        sent.update(dict.fromkeys(sent, 0))
        result = call(task, query, gallery, grid, sent)
        payload, spent = dict(sent), time.process_time() - spent
        group.texts("")
        over_lo, seconds = received() - over_lo, time.perf_counter() - begun
        peaks = sampler.end()
        rows = group.table([*peaks.values(), spent, *payload.values(), *seen.values()])
        result_digest = digest(task, result, grid)
        if group.leads:
            names = (*peaks, "cpu_seconds", *payload, *seen)
            columns = dict(zip(names, rows.t().tolist(), strict=True))
            matches = 0
            if task in ("evaluate", "one-set", "rerank"):
                matches = int(result.per_query.num_matches.sum())
            measured = {"seconds": seconds, "over_lo": over_lo, "digest": result_digest}
            out.write_text(json.dumps(measured | {"matches": matches} | columns))


def model(task: str, grid: Grid, options: argparse.Namespace, one: Any) -> dict[str, float]:
    """Return the payload of the process that gives most, as docs/scale.md derives it, in bytes."""
    payload = {"all_reduce": 0.0, "all_gather": 0.0, "all_to_all_single": 0.0}
    processes, rows, columns = (part.world for part in (grid.whole, grid.column, grid.row))
    if processes == 1:
        return payload
    share = -(-options.gallery // columns)
    queries = options.gallery if task == "one-set" else options.queries
    if task in ("evaluate", "one-set", "rerank"):
        if columns > 1:  # added up along rows, and gathered
            payload["all_gather"] += (8.0 if task == "one-set" else 24.0) * share
            sample = 2048 * (4 * options.width + 8)
            payload["all_reduce"] += (16.0 * one["matches"] + 24.0 * queries) / rows + sample
        if rows > 1:  # gathered along columns
            payload["all_gather"] += 64.0 * -(-queries // rows)
            payload["all_reduce"] += 96 * 4 * options.width
    if task in ("nearest", "distances") and columns > 1:
        payload["all_gather"] += 12.0 * -(-queries // rows) * min(NEAREST, share)
    fetched = (4 * options.width + 8) * max(one["fetched"]) + 8 * max(one["asked"])
    if task == "averages":
        payload["all_gather"] += 12.0 * options.queries * min(AVERAGED, share)
        payload["all_gather"] += share * (4 * options.width + 8)
        answers = (options.gallery - share) * 12 * min(AVERAGED + 1, share)
        payload["all_to_all_single"] += answers + fetched
    if task in ("jaccard", "rerank", "index", "distances"):
        both = options.queries if task in ("rerank", "distances") else 0
        listed = LISTED if task == "jaccard" else RULE.list_length
        items, own = both + options.gallery, -(-both // processes) + share
        payload["all_gather"] += own * (4 * options.width + 8 + 8 * listed + 12)
        payload["all_gather"] += 12 * max(one["set entries"]) + 12 * max(one["encoded entries"])
        answers = (items - own) * (12 * min(listed, own) + 4 * (task != "jaccard"))
        payload["all_to_all_single"] += answers + fetched
        if task == "rerank":
            payload["all_reduce"] += 16.0 * one["matches"] + 24.0 * options.queries
    if task == "jaccard":
        payload["all_gather"] += 16 * own
    if task == "index":  # identities and cameras, and the lists once more
        payload["all_gather"] += (16 + 4 * listed) * own
    return payload


def launch(folder: Path, task: str, processes: int, threads: int, query_shares: int) -> Any:
    """Run a task by several processes and return what was measured."""
    out = folder / "measured.json"
    words = ["--nproc-per-node", str(processes), "--rdzv-backend", "c10d"]
    words += ["--rdzv-endpoint", "127.0.0.1:0", __file__, "member", str(folder), str(out)]
    words += [task, str(threads), str(query_shares)]
    command = [sys.executable, "-m", "torch.distributed.run", *words]
    subprocess.run(command, check=True, env={**os.environ, "OMP_NUM_THREADS": str(threads)})
    return json.loads(out.read_text())


def listed(values: list[float], scale: float = 1.0, form: str = ".1f") -> str:
    """Return numbers in words."""
    return ", ".join(f"{value / scale:{form}}" for value in values)


def main() -> None:
    """Measure, and write what was found."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--queries", type=int, default=3368)
    parser.add_argument("--gallery", type=int, default=400_000)
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=list(TASKS))
    parser.add_argument(
        "--only", nargs="+", default=["1", "2", "4"], metavar="PROCESSES[xTHREADS][/SHARES]"
    )
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    results: dict[str, Any] = {"machine": machine(), "tasks": {}}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_sets(folder, options.queries, options.gallery, options.width)
        for task in options.tasks:
            first: Any = None
            for run in options.only:
                parts = re.fullmatch(r"(\d+)(?:x(\d+))?(?:/(\d+))?", run)
                assert parts is not None, run
                processes, threads, shares = (int(part or 1) for part in parts.groups())
                one = launch(folder, task, processes, threads, shares)
                first = first or one
                grid = grid_of(Group(world=processes), shares)
                one["model"] = model(task, grid, options, one)
                one["same"] = one["digest"] == first["digest"]
                one["ratio"] = one["seconds"] / first["seconds"]
                results["tasks"].setdefault(task, {})[run] = one
                told = ", ".join(
                    f"{kind} {max(one[kind]):.0f} B (model {value:.0f})"
                    for kind, value in one["model"].items()
                )
                print(
                    f"{task}, {run}: {one['seconds']:.2f} s, "
                    f"{one['ratio']:.2f} of the first; CPU seconds {listed(one['cpu_seconds'])}; "
                    f"peaks {listed(one['peak'], 2**20, '.0f')} MiB beyond imports, private "
                    f"{listed(one['private'], 2**20, '.0f')}, proportional "
                    f"{listed(one['proportional'], 2**20, '.0f')}; {told}; over lo "
                    f"{one['over_lo']} B; results {'the same' if one['same'] else 'OTHERS'}",
                    flush=True,
                )
    if options.json is not None:
        options.json.write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    if sys.argv[1:2] == ["member"]:
        member(Path(sys.argv[2]), Path(sys.argv[3]), sys.argv[4], *map(int, sys.argv[5:]))
    else:
        main()
