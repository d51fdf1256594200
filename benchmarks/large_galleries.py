"""Evaluation of large galleries against the bare product of the same features.

    python benchmarks/large_galleries.py --json large.json
    python benchmarks/large_galleries.py --only msmt17 --dimension 2048 --rounds 3
    python benchmarks/large_galleries.py --only market500k --in-full --rounds 1
    python benchmarks/large_galleries.py --scale 20 --rounds 1          # a try that takes seconds

Workloads, with simulated features (seeded, about 15 matches a query, normalised):

    market       3,368 x 15,913, D = 2048, in memory
    market500k   3,368 x 515,913, D = 512, in memory
    msmt17       11,659 x 82,161, D = --dimension, in memory
    disk5m       3,368 x 5,000,000, D = 256, float16 memory-mapped from disk, --memory bounded

Providers: `mmga` (mmga.evaluate, features to metrics), `tiles` (the same tiles without counting)
and `product` (the bare product in blocks of rows; in blocks of the gallery where it lies on disk).
With `--in-full` all items, queries first, are one set on disk (`--stored`), and the providers are
`neighbours` (`mmga.nearest` of the set in itself, k = 30), `former` (`--slice` seconds of the pass
by float32 tiles that computed them formerly, projected to the whole) and `reranked` (features to
plain and re-ranked metrics).
Each measurement is a process of its own, so that peaks of memory do not mix; a round measures all
providers one after the other, and the table shows medians over rounds. `peak` is resident memory
beyond torch itself, without clean pages of mapped files, as `Report.peak_memory_bytes`; `process`
is the raw peak of the process. Features held in memory count in both, mapped files in the latter.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from large_reranking import neighbour_slice
from measure import machine

from mmga import KReciprocal, nearest
from mmga.common import memory
from mmga.common.progress import bar
from mmga.retrieval.evaluate import evaluate
from mmga.retrieval.features import Features, load_features
from mmga.retrieval.features.features import joined
from mmga.retrieval.features.vectors import VectorSet
from mmga.retrieval.metrics.rank import PAIR_LIMIT
from mmga.retrieval.protocols.protocol import protocol_named
from mmga.retrieval.protocols.selection import Labels, select
from mmga.retrieval.tiles.sources import feature_source

PROVIDERS = ("mmga", "tiles", "product")
IN_FULL = ("neighbours", "former", "reranked")
NEIGHBOURS = 30
CAMERAS = 6
BLOCK = 1 << 15  # rows that are simulated at once
OUTPUT_BYTES = 256 << 20  # what one block of the bare product writes
LABEL = "simulated features"


@dataclass(frozen=True)
class Workload:
    """The shape of a data set.

    Attributes:
        queries: Q.
        items: G.
        known: gallery items of the queries' identities; the rest are distractors.
        dimension: D.
        stored: float32 in memory, or the dtype of a memory-mapped file.
    """

    queries: int
    items: int
    known: int
    dimension: int
    stored: str = "memory"

    @property
    def people(self) -> int:
        """Identities, such that about 15 matches are left in other cameras."""
        return max(2, self.known // 18)


WORKLOADS = {
    "market": Workload(3_368, 15_913, 13_115, 2048),
    "market500k": Workload(3_368, 515_913, 13_115, 512),
    "msmt17": Workload(11_659, 82_161, 82_161, 512),
    "disk5m": Workload(3_368, 5_000_000, 13_115, 256, "float16"),
}


def simulate(folder: Path, work: Workload, progress) -> None:
    """Write both sides as folders of .npy files, block by block."""
    generator = torch.Generator().manual_seed(work.dimension)
    centres = torch.randn(work.people, work.dimension, generator=generator)
    noise = 2.0 * (work.dimension / 512) ** 0.27  # leaves mAP near .9
    done, total = 0, work.queries + work.items
    for side, count in (("query", work.queries), ("gallery", work.items)):
        generator.manual_seed(1 if side == "query" else 2)
        pids = torch.arange(count) % work.people
        if side == "gallery":
            pids = torch.randint(0, work.people, (count,), generator=generator)
            pids[torch.randperm(count, generator=generator)[work.known :]] = 10**6
        (folder / side).mkdir(parents=True)
        np.save(folder / side / "pids.npy", pids.numpy())
        camids = torch.randint(0, CAMERAS, (count,), generator=generator)
        np.save(folder / side / "camids.npy", camids.numpy())
        rows = np.lib.format.open_memmap(
            folder / side / "features.npy",
            "w+",
            np.float16 if work.stored == "float16" else np.float32,
            (count, work.dimension),
        )
        for start in range(0, count, BLOCK):
            labels = pids[start : start + BLOCK]
            block = noise * torch.randn(len(labels), work.dimension, generator=generator)
            of_known = labels < work.people
            block[of_known] += centres[labels[of_known]]
            rows[start : start + len(labels)] = torch.nn.functional.normalize(block).numpy()
            done += len(labels)
            progress("simulate", done, total)
        rows.flush()
        del rows


def sides(folder: Path, in_memory: bool) -> tuple[Features, Features]:
    """Read what `simulate` wrote."""
    if not in_memory:
        return load_features(folder / "query"), load_features(folder / "gallery")
    found = []
    for side in ("query", "gallery"):
        arrays = [np.load(folder / side / f"{name}.npy") for name in ("features", "pids", "camids")]
        found.append(Features(*arrays))
    return found[0], found[1]


def run_tiles(query: Features, gallery: Features, bound: str | None, peak: memory.Peak) -> None:
    """Make the tiles of an evaluation and nothing of them."""
    labels = Labels.of(query, gallery)
    selection = select(protocol_named("market1501"), labels)
    queries, items = (
        VectorSet([side.rows], "cosine", [torch.from_numpy(rows)])
        for side, rows in ((query, selection.queries), (gallery, selection.gallery))
    )
    source = feature_source(queries, items, memory.parse(bound))
    begun = time.perf_counter()
    for pairs in selection.pairs(PAIR_LIMIT, source.max_rows):
        for _ in source.tiles(pairs.start, pairs.stop):
            peak.sample()
    print_result(time.perf_counter() - begun, peak)


def run_product(query: Features, gallery: Features, peak: memory.Peak) -> None:
    """Multiply in blocks of rows, their output freed, or of a gallery that is read and widened."""
    begun = time.perf_counter()
    if gallery.features.dtype == torch.float32:
        height = max(64, OUTPUT_BYTES // (4 * len(gallery)) // 64 * 64)
        for top in range(0, len(query), height):
            _ = query.features[top : top + height] @ gallery.features.T
            peak.sample()
            del _
    else:
        rows = query.features.float()
        width = max(64, OUTPUT_BYTES // (4 * max(len(query), query.dimension)) // 64 * 64)
        for left in range(0, len(gallery), width):
            _ = rows @ gallery.features[left : left + width].float().T
            peak.sample()
            del _
    print_result(time.perf_counter() - begun, peak)


def run_neighbours(items: Features, peak: memory.Peak) -> None:
    """Search a set in itself."""
    begun = time.perf_counter()
    nearest(items, items, NEIGHBOURS, progress=lambda *given: peak.sample())
    print_result(time.perf_counter() - begun, peak)


def run_former(items: Features, seconds: float, peak: memory.Peak) -> None:
    """Search by float32 tiles for some seconds and project the whole."""
    found = neighbour_slice(items.rows, NEIGHBOURS, seconds)
    print_result(found.get("projected total seconds", found["seconds"]), peak, share=found["share"])


def run_mmga(
    query: Features, gallery: Features, bound: str | None, rerank: KReciprocal | None = None
) -> None:
    """Evaluate."""
    begun = time.perf_counter()
    report = evaluate(query, gallery, memory=bound, rerank=rerank)
    seconds = time.perf_counter() - begun
    result = {
        "seconds": seconds,
        "rank_seconds": report.seconds["rank"],
        "peak_bytes": report.peak_memory_bytes,
        "process_bytes": report.process_peak_bytes,
        "mAP": report.mAP,
        "backend": report.backend,
    }
    if report.reranked is not None:
        result |= {"mAP_reranked": report.reranked.mAP, "by_stage": report.seconds}
    print(json.dumps(result))


def print_result(seconds: float, peak: memory.Peak, **more: float) -> None:
    """Tell the parent what was measured."""
    peak.sample()
    result = {"seconds": seconds, "peak_bytes": peak.bytes, "process_bytes": memory.process_peak()}
    print(json.dumps(result | more))


def measure(options: argparse.Namespace) -> None:
    """Be the process of one measurement."""
    if options.threads:
        torch.set_num_threads(options.threads)
    memory.baseline()
    query, gallery = sides(options.folder, in_memory=options.stored == "memory")
    if options.queries and options.queries < len(query):
        chosen = np.random.default_rng(0).permutation(len(query))[: options.queries]
        query = query.select(np.sort(chosen))
    peak = memory.Peak()
    if options.measure in ("neighbours", "former"):
        items = joined([query, gallery])
        if options.measure == "neighbours":
            run_neighbours(items, peak)
        else:
            run_former(items, options.slice, peak)
    elif options.measure in ("mmga", "reranked"):
        rerank = KReciprocal() if options.measure == "reranked" else None
        run_mmga(query, gallery, options.memory, rerank)
    elif options.measure == "tiles":
        run_tiles(query, gallery, options.memory, peak)
    else:
        run_product(query, gallery, peak)


def child(provider: str, folder: Path, work: Workload, options: argparse.Namespace) -> dict:
    """Measure one provider in a process of its own."""
    words = [sys.executable, __file__, "--measure", provider, "--folder", str(folder)]
    words += ["--threads", str(options.threads), "--queries", str(options.queries)]
    words += ["--stored", work.stored, "--slice", str(options.slice)]
    if work.stored != "memory" and (options.memory or provider in PROVIDERS):
        words += ["--memory", options.memory or "1G"]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"large_galleries: {provider} failed:\n{done.stderr}")
    result: dict = json.loads(done.stdout.splitlines()[-1])
    return result


def summary(rounds: list[dict]) -> dict:
    """Return medians of the times and the largest peaks of a provider's rounds."""
    last = rounds[-1]
    times = [name for name in last if name.endswith("seconds")]
    peaks = [name for name in last if name.endswith("bytes")]
    kept = {name: statistics.median(one[name] for one in rounds) for name in times}
    kept |= {name: max(one[name] for one in rounds) for name in peaks}
    return {**last, **kept, "rounds": [one["seconds"] for one in rounds]}


def table(name: str, work: Workload, queries: int, found: dict[str, dict]) -> str:
    """Return the medians as text."""
    lines = [
        f"{name}: {queries} x {work.items:,}, D = {work.dimension}, "
        f"{'float32 in memory' if work.stored == 'memory' else f'{work.stored} on disk'}, {LABEL}",
        f"{'':<10}{'seconds':>10}{'ratio':>8}{'peak MiB':>10}{'process MiB':>13}",
    ]
    bare = found.get("product", found.get("former", {})).get("seconds")
    for provider, one in found.items():
        ratio = f"{one['seconds'] / bare:.2f}" if bare else "-"
        lines.append(
            f"{provider:<10}{one['seconds']:>10.2f}{ratio:>8}{one['peak_bytes'] / 2**20:>10.0f}"
            f"{one['process_bytes'] / 2**20:>13.0f}"
        )
    return "\n".join(lines)


def parsed() -> argparse.Namespace:
    """Return the options."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="+", choices=WORKLOADS, default=list(WORKLOADS))
    every = (*PROVIDERS, *IN_FULL)
    parser.add_argument("--providers", nargs="+", choices=every, help="of all, or of --in-full")
    parser.add_argument("--in-full", action="store_true", help="neighbours and re-ranking of all")
    parser.add_argument("--stored", choices=("memory", "float16", "float32"), help="features")
    parser.add_argument("--slice", type=float, default=60.0, help="seconds of the former pass (60)")
    parser.add_argument("--rounds", type=int, default=5, help="measurements of each provider")
    parser.add_argument("--queries", type=int, default=0, help="a sample of so many; 0 for all")
    parser.add_argument("--dimension", type=int, default=512, help="D of msmt17")
    parser.add_argument("--scale", type=int, default=1, help="divide both sides by this")
    parser.add_argument("--threads", type=int, default=0, help="threads of torch; 0 for its choice")
    parser.add_argument("--memory", default=None, help="bound of what lies on disk (disk5m: 1G)")
    parser.add_argument("--folder", type=Path, default=None, help="where features are simulated")
    parser.add_argument("--json", type=Path, default=None, help="write all figures to this file")
    parser.add_argument("--measure", choices=every, default=None, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if not 0 <= options.threads <= 1024:
        parser.error(f"--threads: expected 0 to 1024, found {options.threads}")
    for name in ("rounds", "scale"):
        if getattr(options, name) < 1:
            parser.error(f"--{name}: expected at least 1")
    options.providers = options.providers or list(IN_FULL if options.in_full else PROVIDERS)
    return options


def main() -> None:
    """Simulate, measure, print."""
    options = parsed()
    if options.measure:
        measure(options)
        return
    results: dict[str, dict] = {}
    for name in options.only:
        shape = WORKLOADS[name]
        work = Workload(
            shape.queries // options.scale,
            shape.items // options.scale,
            shape.known // options.scale,
            options.dimension if name == "msmt17" else shape.dimension,
            options.stored or ("float16" if options.in_full else shape.stored),
        )
        with (
            tempfile.TemporaryDirectory(dir=options.folder, prefix=f"{name}-") as made,
            bar() as progress,
        ):
            folder = Path(made)
            simulate(folder, work, progress)
            measured: dict[str, list[dict]] = {provider: [] for provider in options.providers}
            total = options.rounds * len(measured)
            for number in range(options.rounds):
                for place, (provider, rounds) in enumerate(measured.items()):
                    progress(f"{name}: measure", number * len(measured) + place, total)
                    rounds.append(child(provider, folder, work, options))
            progress(f"{name}: measure", total, total)
        queries = min(options.queries or work.queries, work.queries)
        medians = {provider: summary(rounds) for provider, rounds in measured.items()}
        print(table(name, work, queries, medians), flush=True)
        results[name] = {
            "queries": queries,
            "items": work.items,
            "dimension": work.dimension,
            "providers": medians,
        }
        if options.json is not None:  # after each workload: a long run may be stopped
            values = {"schema": 1, "features": LABEL, **machine(), "workloads": results}
            values["command"] = " ".join(["python", "benchmarks/large_galleries.py", *sys.argv[1:]])
            options.json.write_text(json.dumps(values, indent=1) + "\n")


if __name__ == "__main__":
    main()
