"""Exact neighbours beside other libraries' and beside the bare products of the same pairs.

    python benchmarks/neighbours.py --json benchmarks/results/neighbours.json
    python benchmarks/neighbours.py --rows '19281x2048-*' --rivals faiss 'product int8'
    python benchmarks/neighbours.py --without-int8 none avx     # these instructions, too
    python benchmarks/neighbours.py --quick --rows '*-flat-k30' # a try that takes seconds

Every row is a search of simulated, unit-length float32 features (benchmarks/simulated.py: 19 images
of a person, or queries and a gallery with distractors; spectra flat and decaying), in a process of
its own in which all are run in turn; seconds are medians of `--rounds` after one call to warm up.
Of calls of more than 12 s there are as many as take 60 s, and of more than 30 s the first alone
counts (the column `runs`). All rows take about an hour on two cores, most of it panorama's and
usearch's.

mmga        `mmga.nearest(x, x, k)`, cosine, in the order of float64 arithmetic
faiss       `IndexFlatIP.search`; adding the rows is not counted
panorama    `IndexFlatL2Panorama.search` of rows rotated by `PCAMatrix`; neither the training of the
            PCA, the rotation nor adding the rows is counted
sklearn     `NearestNeighbors(algorithm="brute", metric="euclidean")`: quicker than its cosine
usearch     `usearch.index.search(..., exact=True)` of inner products: quicker than its cosine
numkong     `dots_packed` of the rows rounded to int8, packing counted, on several threads: the bare
            product, without any search
product ... the bare product by tiles, of float32 (torch.mm) and of int8 (`int8_products_`)

Bare products compute every pair once; seconds are scaled to the pairs that a search needs, half of
them where a set is searched in itself. What is not installed is skipped with a sentence.

`differ` is the share of 64 rows whose neighbours are not, place by place, those by float64 values
of the library's own rule (the cosine, the inner product or the squared distance of the rows as they
are stored); mmga must have none, and ties by index. `duplicates` is the largest cosine distance
that exact duplicates are given: four pairs are planted.
"""

from __future__ import annotations

import argparse
import fnmatch
import hashlib
import importlib
import importlib.metadata
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from measure import Figures, machine
from simulated import market_like, simulate
from torch import Tensor

import mmga
from mmga.common.files import atomic_path
from mmga.ops.certified import int8_products_, int8_rows, multiplies_int8

SAMPLE, DUPLICATES = 64, 4
LONG = 60.0  # seconds within which a call is repeated
LEVELS = 8  # of Panorama
FLOAT32_TILE, INT8_TILE = (1152, 2048), (2048, 4096)


@dataclass(frozen=True)
class Row:
    """One search.

    Attributes:
        queries: Q, 0 where the items are searched in themselves.
        items: N.
        dimension: D.
        spectrum: flat or decaying.
        k: neighbours.
    """

    queries: int
    items: int
    dimension: int
    spectrum: str
    k: int

    @property
    def name(self) -> str:
        """What `--rows` selects by."""
        of = f"{self.queries}x" if self.queries else ""
        return f"{of}{self.items}x{self.dimension}-{self.spectrum}-k{self.k}"


def rows() -> list[Row]:
    """Return all rows."""
    found = [
        (0, 1_000, 512, 30),
        (0, 8_192, 2048, 30),
        (0, 19_281, 2048, 30),
        (0, 32_621, 256, 30),
        *((0, 19_281, 512, k) for k in (1, 10, 30, 100, 1_000)),
        (3_368, 515_913, 512, 30),
    ]
    return [
        Row(queries, items, dimension, spectrum, k)
        for spectrum in ("flat", "decaying")
        for queries, items, dimension, k in found
    ]


@dataclass(frozen=True)
class Work:
    """The features of a row.

    Attributes:
        queries: float32 [Q, D].
        items: float32 [N, D]; the same tensor where the items are searched in themselves.
        duplicates: query numbers and item numbers of equal rows.
        k: neighbours.
        threads: how many may compute.
    """

    queries: Tensor
    items: Tensor
    duplicates: list[tuple[int, int]]
    k: int
    threads: int

    @property
    def own(self) -> bool:
        """Whether the items are searched in themselves."""
        return self.queries is self.items

    @property
    def pairs(self) -> float:
        """How many inner products a search needs."""
        count = len(self.items)
        return count * (count + 1) / 2 if self.own else float(count * len(self.queries))

    def places(self, tile: tuple[int, int]) -> Iterator[tuple[slice, slice]]:
        """Yield the rows and columns of tiles that hold every pair once, columns outermost."""
        height, width = tile
        for left in range(0, len(self.items), width):
            right = min(left + width, len(self.items))
            bottom = right if self.own else len(self.queries)
            for top in range(0, bottom, height):
                yield slice(top, min(top + height, bottom)), slice(left, right)

    def scale(self, tile: tuple[int, int]) -> float:
        """Return the pairs of a search as a share of those in tiles."""
        areas = ((a.stop - a.start) * (b.stop - b.start) for a, b in self.places(tile))
        return self.pairs / sum(areas)


def work_of(row: Row, threads: int) -> Work:
    """Simulate the features of a row, with planted duplicates."""
    if row.queries:
        labels = market_like(
            queries=row.queries, gallery=row.items, distractors=row.items * 502_798 // 515_913
        )
        pids, camids = (np.concatenate(labels[i::2]) for i in (0, 1))
    else:
        pids = np.random.default_rng(0).integers(0, max(2, row.items // 19), row.items)
        camids = pids * 0
    x = simulate(pids, camids, row.dimension, row.spectrum).features
    queries, items = (x[: row.queries], x[row.queries :]) if row.queries else (x, x)
    # Queries are the first of two halves, so that no item is in two pairs.
    draw = np.random.default_rng(1)
    first = draw.choice(min(len(queries), len(items) // 2), DUPLICATES, replace=False)
    second = draw.choice(len(items) // 2, DUPLICATES, replace=False) + len(items) // 2
    items[second] = queries[first]
    duplicates = [*zip(first.tolist(), second.tolist(), strict=True)]
    return Work(queries, items, duplicates, row.k, threads)


@dataclass(frozen=True)
class Contender:
    """Something that is timed.

    Attributes:
        call: one search, or one product.
        found: indices [Q, k] and cosine distances [Q, k] from what `call` returned; None where
            nothing is searched.
        key: whose float64 order the indices have: cosine, product or squared.
        scale: what seconds are multiplied by.
        more: what else is known, such as the seconds of a preparation.
    """

    call: Callable[[], Any]
    found: Callable[[Any], tuple[np.ndarray, np.ndarray]] | None = None
    key: str = "cosine"
    scale: float = 1.0
    more: Figures = field(default_factory=dict)


def mmga_nearest(work: Work) -> Contender:
    """Search as users do."""
    return Contender(
        lambda: mmga.nearest(work.queries, work.items, work.k),
        lambda result: (result[1].numpy(), result[0].numpy()),
    )


def faiss_flat(work: Work) -> Contender:
    """Search an index of faiss."""
    import faiss

    queries, items = work.queries.numpy(), work.items.numpy()
    index = faiss.IndexFlatIP(items.shape[1])
    begun = time.perf_counter()
    index.add(items)
    return Contender(
        lambda: index.search(queries, work.k),
        lambda result: (result[1], 1 - result[0]),
        "product",
        more={"add_seconds": time.perf_counter() - begun},
    )


def panorama(work: Work) -> Contender:
    """Search faiss' exact index by levels of principal components."""
    import faiss

    width = work.items.shape[1]
    begun = time.perf_counter()
    rotation = faiss.PCAMatrix(width, width)
    rotation.train(work.items.numpy())
    trained = time.perf_counter()
    items = rotation.apply(work.items.numpy())
    queries = items if work.own else rotation.apply(work.queries.numpy())
    index = faiss.IndexFlatL2Panorama(width, LEVELS)
    index.add(items)
    return Contender(
        lambda: index.search(queries, work.k),
        lambda result: (result[1], result[0] / 2),
        "squared",
        more={
            "train_seconds": trained - begun,
            "rotate_and_add_seconds": time.perf_counter() - trained,
        },
    )


def sklearn_brute(work: Work) -> Contender:
    """Search with scikit-learn."""
    from sklearn.neighbors import NearestNeighbors

    model = NearestNeighbors(n_neighbors=work.k, algorithm="brute", metric="euclidean")
    model.fit(work.items.numpy())
    return Contender(
        lambda: model.kneighbors(work.queries.numpy()),
        lambda result: (result[1], result[0] ** 2 / 2),
        "squared",
    )


def usearch_exact(work: Work) -> Contender:
    """Search with USearch, without an index."""
    from usearch.index import MetricKind, search

    queries, items = work.queries.numpy(), work.items.numpy()
    return Contender(
        lambda: search(items, queries, work.k, MetricKind.IP, exact=True, threads=work.threads),
        lambda result: (
            result.keys.astype(np.int64).reshape(len(queries), -1),
            result.distances.reshape(len(queries), -1),
        ),
        "product",
    )


def numkong_int8(work: Work) -> Contender:
    """Multiply rows of int8 with NumKong, each thread some rows of a tile."""
    import numkong

    sides = [
        (127 * side / side.abs().max()).round().to(torch.int8).numpy() for side in _sides(work)
    ]
    tile = INT8_TILE[0] // work.threads, INT8_TILE[1]
    columns: dict[int, list[slice]] = {}  # of each block of columns, the rows that meet it
    for mine, theirs in work.places(tile):
        columns.setdefault(theirs.start, []).append(mine)

    outs = [numkong.zeros(tile, dtype="int32") for _ in range(work.threads)]
    pool = ThreadPoolExecutor(work.threads)

    def multiply(thread: int, others: np.ndarray, packed: Any, parts: list[slice]) -> None:
        for part in parts[thread :: work.threads]:
            whole = (part.stop - part.start, len(others)) == tile
            out = outs[thread] if whole else None
            numkong.dots_packed(sides[0][part], packed, out=out)

    def product() -> None:
        for left, parts in columns.items():
            others = sides[-1][left : left + tile[1]]
            packed = numkong.dots_pack(others)
            calls = [
                pool.submit(multiply, thread, others, packed, parts)
                for thread in range(work.threads)
            ]
            for call in calls:
                call.result()

    return Contender(product, scale=work.scale(tile))


def _sides(work: Work) -> list[Tensor]:
    return [work.items] if work.own else [work.queries, work.items]


def float32_product(work: Work) -> Contender:
    """Multiply in float32."""
    out = torch.empty(FLOAT32_TILE, dtype=torch.float32)

    def product() -> None:
        for mine, theirs in work.places(FLOAT32_TILE):
            one, other = work.queries[mine], work.items[theirs]
            torch.mm(one, other.T, out=out[: len(one), : len(other)])

    return Contender(product, scale=work.scale(FLOAT32_TILE))


def int8_product(work: Work) -> Contender:
    """Multiply rows of int8 with the operator that filters by them use, too."""
    if not multiplies_int8():
        raise RuntimeError("the processor has no 8-bit products, or they are switched off")
    sides = [int8_rows(side)[:2] for side in _sides(work)]
    out = torch.empty(INT8_TILE, dtype=torch.float32)

    def product() -> None:
        (x, unit), (y, others) = sides[0], sides[-1]
        for mine, theirs in work.places(INT8_TILE):
            tile = out[: mine.stop - mine.start, : theirs.stop - theirs.start]
            int8_products_(x[mine], y[theirs], unit[mine], others[theirs], tile)

    return Contender(product, scale=work.scale(INT8_TILE))


CONTENDERS: dict[str, Callable[[Work], Contender]] = {
    "mmga": mmga_nearest,
    "faiss": faiss_flat,
    "panorama": panorama,
    "sklearn": sklearn_brute,
    "usearch": usearch_exact,
    "numkong int8": numkong_int8,
    "product float32": float32_product,
    "product int8": int8_product,
}
PACKAGES = {
    "faiss": "faiss-cpu",
    "panorama": "faiss-cpu",
    "sklearn": "scikit-learn",
    "usearch": "usearch",
    "numkong int8": "numkong",
}


def prepared(name: str, work: Work) -> Contender | str:
    """Return a contender, or a sentence that says why there is none."""
    try:
        return CONTENDERS[name](work)
    except (ImportError, AttributeError):  # or an old version, without the name
        return f"skipped: pip install {PACKAGES[name]}"
    except RuntimeError as error:
        return f"skipped: {str(error).splitlines()[0]}"


def exact_keys(work: Work, chosen: np.ndarray, key: str) -> np.ndarray:
    """Return float64 [R, N] of some queries, the smaller the nearer; equal rows have equal keys."""
    queries = work.queries[chosen].double()
    keys = np.empty((len(queries), len(work.items)))
    for begin in range(0, len(work.items), 1 << 14):
        part = slice(begin, begin + (1 << 14))
        items = work.items[part].double()
        values = -(queries @ items.T)
        if key == "cosine":
            values /= queries.norm(dim=1)[:, None] * items.norm(dim=1)
        elif key == "squared":
            values = (items**2).sum(1) + 2 * values
        keys[:, part] = values.numpy()
    for first, second in work.duplicates:
        if work.own:
            keys[:, second] = keys[:, first]
    return keys


def checked(name: str, work: Work, index: np.ndarray, distance: np.ndarray, key: str) -> Figures:
    """Return how far neighbours are from those by float64 values.

    Raises:
        SystemExit: mmga's are others.
    """
    planted = [query for query, _ in work.duplicates]
    drawn = np.random.default_rng(2).choice(
        len(index), min(SAMPLE, len(index)) - len(planted), replace=False
    )
    chosen = np.unique([*planted, *drawn])
    keys, found = exact_keys(work, chosen, key), index[chosen]
    expected = np.argsort(keys, axis=1, kind="stable")[:, : work.k]
    mine, theirs = (np.take_along_axis(keys, which, axis=1) for which in (found, expected))
    once = np.diff(np.sort(found, axis=1), axis=1).all(axis=1)
    differs = (mine != theirs).any(axis=1) | ~once
    if name == "mmga" and (differs.any() or (found != expected).any()):
        raise SystemExit("mmga's neighbours are not those of float64 arithmetic")
    apart = [0.0]
    for query, item in work.duplicates:
        equal = (query, item) if work.own else (item,)
        for one in equal if work.own else (query,):
            apart += np.abs(distance[one][np.isin(index[one], equal)]).tolist()
    return {"differ": float(differs.mean()), "duplicates_apart": max(apart)}


def measure(row: Row, names: list[str], rounds: int, threads: int) -> Figures:
    """Run a row in this process: check all, then time them in turn."""
    work = work_of(row, threads)
    found: dict[str, Figures] = {}
    contenders: dict[str, Contender] = {}
    wanted: dict[str, int] = {}
    for name in names:
        print(f"  {name}", file=sys.stderr, flush=True)
        one = prepared(name, work)
        if isinstance(one, str):
            found[name] = {"skipped": one}
            continue
        begun = time.perf_counter()
        result = one.call()
        first = time.perf_counter() - begun
        figures: Figures = {"package": _version(name), **one.more, "all": []}
        if one.found is not None:
            index, distance = one.found(result)
            figures |= checked(name, work, index, distance, one.key)
            if name == "mmga":
                both = np.ascontiguousarray(index).tobytes() + distance.tobytes()
                figures["sha256"] = hashlib.sha256(both).hexdigest()
        fitting = int(LONG / first)
        wanted[name] = min(rounds, fitting) if fitting > 1 else 0
        if not wanted[name]:
            figures["all"].append(first * one.scale)
        contenders[name], found[name] = one, figures
    for number in range(rounds):
        for name, one in contenders.items():
            if number < wanted[name]:
                begun = time.perf_counter()
                one.call()
                found[name]["all"].append((time.perf_counter() - begun) * one.scale)
        print(f"  round {number + 1} of {rounds}", file=sys.stderr, flush=True)
    for name in contenders:
        figures = found[name]
        figures |= {"seconds": statistics.median(figures["all"]), "runs": len(figures["all"])}
    return {
        "queries": len(work.queries),
        "items": len(work.items),
        "dimension": row.dimension,
        "spectrum": row.spectrum,
        "k": work.k,
        "contenders": found,
        "machine": machine(),
    }


def _version(name: str) -> str | None:
    package = PACKAGES.get(name)
    return f"{package} {importlib.metadata.version(package)}" if package else None


def in_process(row: Row, names: list[str], options: argparse.Namespace, int8: str = "") -> Figures:
    """Run a row in a process of its own, with OpenMP's threads set before anything is loaded."""
    words = [sys.executable, __file__, "--child", json.dumps(vars(row)), "--rivals", *names]
    words += ["--rounds", str(options.rounds), "--threads", str(options.threads)]
    environment = dict(os.environ)
    for library in ("OMP", "OPENBLAS", "MKL"):
        environment[f"{library}_NUM_THREADS"] = str(options.threads)
    if int8:
        environment["MMGA_INT8"] = int8
    done = subprocess.run(words, env=environment, stdout=subprocess.PIPE, check=False)
    if done.returncode:
        raise SystemExit(f"{row.name} failed with exit code {done.returncode}")
    result: Figures = json.loads(done.stdout.splitlines()[-1])
    return result


def measured(row: Row, options: argparse.Namespace) -> Figures:
    """Run a row, and with other instructions for 8-bit products what is asked for.

    Raises:
        SystemExit: other instructions give other neighbours.
    """
    figures = in_process(row, options.rivals, options)
    found = figures["contenders"]
    for int8 in options.without_int8:
        again = in_process(row, ["mmga"], options, int8)
        other = again["contenders"]["mmga"] | {"backend": again["machine"]["backend"]}
        if "mmga" in found and other["sha256"] != found["mmga"]["sha256"]:
            raise SystemExit(f"{row.name}: MMGA_INT8={int8} gives other neighbours")
        found[f"mmga, MMGA_INT8={int8}"] = other
    return figures


def table(name: str, figures: Figures) -> str:
    """Return a row's figures as text."""
    found = figures["contenders"]
    lines = [
        f"{name}: {figures['queries']:,} x {figures['items']:,}, D = {figures['dimension']}, "
        f"{figures['spectrum']}, k = {figures['k']}",
        f"  {'':<22}{'seconds':>10}{'runs':>6}{'/ mmga':>9}{'/ int8':>9}{'differ':>9}"
        f"{'duplicates':>12}",
    ]
    mmga_seconds = found.get("mmga", {}).get("seconds")
    int8_seconds = found.get("product int8", {}).get("seconds")
    for label, one in found.items():
        if "skipped" in one:
            lines.append(f"  {label:<22}  {one['skipped']}")
            continue
        line = f"  {label:<22}{one['seconds']:>10.4f}{one['runs']:>6}"
        for other in (mmga_seconds, int8_seconds):
            line += f"{one['seconds'] / other:>9.2f}" if other else f"{'-':>9}"
        if "differ" in one:
            line += f"{one['differ']:>9.1%}{one['duplicates_apart']:>12.1e}"
        more = [f"{key.replace('_', ' ')} {one[key]:.2f}" for key in one if "_seconds" in key]
        lines.append(f"{line}  {', '.join(more)}".rstrip())
    return "\n".join(lines)


def parsed() -> argparse.Namespace:
    """Return the options."""
    names = ", ".join(row.name for row in rows())
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog=f"rows: {names}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--rows", nargs="+", metavar="PATTERN", default=["*"], help="names, or patterns of them")
    add("--rivals", nargs="+", choices=CONTENDERS, default=list(CONTENDERS), metavar="NAME")
    add(
        "--without-int8",
        nargs="+",
        choices=("none", "avx2", "avx"),
        default=[],
        help="MMGA_INT8, too",
    )
    add("--rounds", type=int, default=5, help="timed calls of each (5)")
    add("--threads", type=int, default=2, help="of everything (2)")
    add("--quick", action="store_true", help="one round; sizes and dimensions by 8")
    add("--json", type=Path, help="keep all figures in this file; rows already in it stay")
    add("--child", type=json.loads, help=argparse.SUPPRESS)
    options = parser.parse_args()
    for name in ("rounds", "threads"):
        if not 1 <= getattr(options, name) <= 1024:
            parser.error(f"--{name}: expected 1 to 1024, found {getattr(options, name)}")
    options.chosen = [
        row for row in rows() if any(fnmatch.fnmatch(row.name, one) for one in options.rows)
    ]
    if not options.chosen:
        parser.error(f"--rows: no row is called {' or '.join(options.rows)}; there are {names}")
    if options.quick:
        options.rounds = 1
    return options


def reduced(row: Row) -> Row:
    """Return a row that takes seconds."""
    items = row.items // 8
    return Row(row.queries // 8, items, row.dimension // 8, row.spectrum, min(row.k, items))


def main() -> None:
    """Measure row after row, print and keep them."""
    options = parsed()
    if options.child:
        row = Row(**options.child)
        print(json.dumps(measure(row, options.rivals, options.rounds, options.threads)))
        return
    kept: Figures = {}
    if options.json is not None and options.json.exists():
        kept = json.loads(options.json.read_text())
    for row in options.chosen:
        row = reduced(row) if options.quick else row
        print(row.name, file=sys.stderr, flush=True)
        figures = measured(row, options)
        print(table(row.name, figures), flush=True)
        if options.json is not None:  # after each row: a long run may be stopped
            kept[row.name] = figures
            with atomic_path(options.json) as temporary:
                temporary.write_text(json.dumps(kept, indent=1) + "\n")


if __name__ == "__main__":
    main()
