"""Evaluation and neighbours by 1, 2 and 4 processes: bytes sent, memory, seconds, one result.

    python benchmarks/scale.py --json scale.json
    python benchmarks/scale.py --gallery 20000 --only 1 2        # a try that takes seconds

A simulated gallery is written as four .npz shards, which are dealt to the processes and read into
memory. The payload of every collective is counted, and what the model of docs/scale.md says stands
beside it. Peaks are those that the report gives, of the process that took most. Processes have one
thread each. In a network of its own (`unshare --net`, with lo up) the bytes that went over lo are
counted, too.
"""

import argparse
import hashlib
import json
import os
import subprocess
import sys
import tempfile
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
from mmga.retrieval.features.load import load_share

SHARDS = 4
NEAREST = 100  # gallery items of a query's list
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
    reduce, gather = dist.all_reduce, dist.all_gather

    def counted_reduce(tensor: torch.Tensor, *args: Any, **options: Any) -> Any:
        sent["all_reduce"] += tensor.numel() * tensor.element_size()
        return reduce(tensor, *args, **options)

    def counted_gather(parts: list[torch.Tensor], tensor: torch.Tensor, **options: Any) -> Any:
        sent["all_gather"] += tensor.numel() * tensor.element_size()
        return gather(parts, tensor, **options)

    dist.all_reduce, dist.all_gather = counted_reduce, counted_gather


def member(folder: Path, out: Path) -> None:
    """Evaluate as one process of torchrun, and let the first one write what was measured."""
    torch.set_num_threads(1)
    memory.baseline()
    sent = {"all_reduce": 0, "all_gather": 0}
    counting(sent)
    with join(torch.device("cpu"), watched="scale") as group:
        query = mmga.load_features(folder / "query.npz")
        gallery = load_share(str(folder / "gallery-*.npz"), group)
        group.texts("")  # all have read theirs
        before, begun, over_lo = time.process_time(), time.perf_counter(), received()
        sent.update(dict.fromkeys(sent, 0))
        report = mmga.evaluate(query, gallery, group=group)
        group.texts("")
        over_lo = received() - over_lo
        seconds, spent = time.perf_counter() - begun, time.process_time() - before
        table = group.table([report.peak_memory_bytes, spent]).tolist()
        payload = dict(sent)
        lists = nearest(query, gallery, group, sent)
        if group.leads:
            values = report.as_dict()
            figures = {name: values[name] for name in values if name not in MEASURED}
            measured = {
                "sent": payload,
                "over_lo": over_lo,
                "peak": max(row[0] for row in table),
                "cpu_seconds": [row[1] for row in table],
                "seconds": seconds,
                "matches": int(report.per_query.num_matches.sum()),
                "report": figures,
                "nearest": lists,
            }
            out.write_text(json.dumps(measured))


def nearest(
    query: mmga.Features, gallery: mmga.Features | None, group: Group, sent: dict[str, int]
) -> dict[str, Any]:
    """Find neighbours, and return what was measured, with a digest of the lists."""
    group.texts("")
    before, over_lo = time.process_time(), received()
    sent.update(dict.fromkeys(sent, 0))
    found = mmga.nearest(query, gallery, NEAREST, group=group)
    payload, spent = dict(sent), time.process_time() - before
    group.texts("")
    digest = hashlib.sha256(b"".join(part.numpy().tobytes() for part in found)).hexdigest()
    return {
        "sent": payload,
        "over_lo": received() - over_lo,
        "cpu_seconds": group.table([spent])[:, 0].tolist(),
        "lists": digest,
    }


def model(processes: int, options: argparse.Namespace, matches: int) -> dict[str, float]:
    """Return the payloads that docs/scale.md derives, in bytes."""
    if processes == 1:
        return {"all_reduce": 0.0, "all_gather": 0.0}
    share = -(-options.gallery // processes)
    return {
        "all_gather": 24.0 * share,
        "all_reduce": 16.0 * matches + 24.0 * options.queries + 2048 * (4 * options.width + 8),
    }


def main() -> None:
    """Measure, and write what was found."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--queries", type=int, default=3368)
    parser.add_argument("--gallery", type=int, default=400_000)
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--only", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    found: dict[str, Any] = {"machine": machine(), "processes": {}}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_sets(folder, options.queries, options.gallery, options.width)
        for processes in options.only:
            out = folder / "measured.json"
            words = ["--nproc-per-node", str(processes), "--rdzv-backend", "c10d"]
            words += ["--rdzv-endpoint", "127.0.0.1:0", __file__, "member", name, str(out)]
            launch = [sys.executable, "-m", "torch.distributed.run", *words]
            subprocess.run(launch, check=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
            one = json.loads(out.read_text())
            one["model"] = model(processes, options, one["matches"])
            one["same"] = one["report"] == found.setdefault("report", one["report"])
            lists = one["nearest"]
            share = min(NEAREST, -(-options.gallery // processes))
            lists["model"] = 12.0 * options.queries * share * (processes > 1)
            one["same"] &= lists["lists"] == found.setdefault("lists", lists["lists"])
            found["processes"][processes] = {k: v for k, v in one.items() if k != "report"}
            told = ", ".join(
                f"{kind} {one['sent'][kind]} B (model {one['model'][kind]:.0f})"
                for kind in one["sent"]
            )
            print(
                f"{processes}: {told}; over lo {one['over_lo']} B; "
                f"peak {one['peak'] / 2**20:.0f} MiB; CPU seconds "
                f"{', '.join(f'{spent:.1f}' for spent in one['cpu_seconds'])}; neighbours "
                f"{lists['sent']['all_gather']} B (model {lists['model']:.0f}), over lo "
                f"{lists['over_lo']} B, CPU seconds "
                f"{', '.join(f'{spent:.1f}' for spent in lists['cpu_seconds'])}; results "
                f"{'the same' if one['same'] else 'OTHERS'}",
                flush=True,
            )
    if options.json is not None:
        options.json.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    if sys.argv[1:2] == ["member"]:
        member(Path(sys.argv[2]), Path(sys.argv[3]))
    else:
        main()
