"""Evaluations by several processes: the sets, the cases, and what a process returns."""

import contextlib
import math
from pathlib import Path
from unittest import mock

import numpy as np
import torch
import torch.distributed as dist

import mmga
from mmga.common import distributed
from mmga.common.distributed import Group
from mmga.retrieval.bounds import planner
from mmga.retrieval.metrics import rank_certified
from mmga.retrieval.neighbours import shared_set
from mmga.retrieval.protocols import selection
from mmga.retrieval.reranking import certified_ranks, distances
from mmga.retrieval.tiles import parts, sources

NUM_QUERY, NUM_GALLERY, WIDTH = 53, 701, 24
CASES = {
    "certified": {},
    "certified, euclidean": {"metric": "euclidean"},
    "float32": {"exact": "float32"},
    "float32, euclidean": {"exact": "float32", "metric": "euclidean"},
    "projected": {"kind": "wide", "planned": "coordinates"},
    "projected, euclidean": {"kind": "wide", "planned": "coordinates", "metric": "euclidean"},
    "8-bit tiles": {"kind": "wide", "planned": "int8"},
    "8-bit tiles, euclidean": {"kind": "wide", "planned": "int8", "metric": "euclidean"},
    "a bound on memory": {"exact": "float32", "memory": "200K"},
    "trapezoid": {"protocol": "market1501-matlab"},
    "other cameras": {"protocol": "other-cameras", "exact": "float32"},
    "own paths": {"protocol": "no-camera"},
    "one set": {"protocol": "all-vs-all"},
    "one set, float32": {"protocol": "all-vs-all", "exact": "float32"},
    "pooled": {"protocol": "multi-query"},
    "single shot": {"protocol": "cuhk03-single-shot"},
    "single shot, drawn": {"protocol": "single-shot", "trials": 3, "seed": 5},
    "drawn galleries": {"protocol": "vehicleid", "trials": 2},
    "halves": {"protocol": "viper", "kind": "int8"},
    "a condition": {"exclude": "camid != query.camid and abs(time - query.time) < 20"},
    "a condition, float32": {
        "protocol": "other-cameras",
        "exclude": "time < query.time",
        "exact": "float32",
    },
    "verification": {"verification": True, "fpr": 0.05},
    "verification across cameras": {
        "verification": True,
        "cross_camera": True,
        "strangers": 0.3,
        "metric": "euclidean",
    },
    "parts": {"kind": "parts"},
    "parts, euclidean": {"kind": "parts", "metric": "euclidean", "verification": True},
    "8 bits": {"kind": "int8", "metric": "euclidean"},
    "names": {"kind": "names"},
    "short rows": {"kind": "short"},
    "short rows, float32": {"kind": "short", "exact": "float32"},
    "re-ranked": {"rerank": mmga.KReciprocal()},
    "re-ranked, euclidean": {"rerank": mmga.KReciprocal(7, 3), "metric": "euclidean"},
    "re-ranked, torchreid": {"rerank": mmga.KReciprocal(6, 1, 0.1, "torchreid")},
    "re-ranked, fastreid": {
        "rerank": mmga.KReciprocal(9, 4, 0.6, "fastreid"),
        "protocol": "other-cameras",
    },
    "re-ranked, matlab": {
        "rerank": mmga.KReciprocal(half="matlab"),
        "protocol": "market1501-matlab",
        "verification": True,
    },
    "re-ranked, 8-bit tiles": {"kind": "wide", "planned": "int8", "rerank": mmga.KReciprocal()},
    "re-ranked, pooled": {"protocol": "multi-query", "rerank": mmga.KReciprocal(4, 2)},
    "re-ranked, names": {"kind": "names", "rerank": mmga.KReciprocal(1000, 3)},
    "re-ranked, 8 bits": {"kind": "int8", "rerank": mmga.KReciprocal(5, 9, 1.0)},
    "re-ranked, short rows": {"kind": "short", "rerank": mmga.KReciprocal()},
    "re-ranked, one set": {"protocol": "all-vs-all", "rerank": mmga.KReciprocal()},
    "re-ranked, one set, euclidean": {
        "protocol": "all-vs-all",
        "rerank": mmga.KReciprocal(6, 1, 0.1, "torchreid"),
        "metric": "euclidean",
    },
    "re-ranked, by overlaps alone": {"rerank": mmga.KReciprocal(9, 4, 0.0)},
    "re-ranked, a condition": {
        "exclude": "camid != query.camid and abs(time - query.time) < 20",
        "rerank": mmga.KReciprocal(7, 3, 0.6, "fastreid"),
    },
    "re-ranked, a condition, matlab": {
        "exclude": "time < query.time",
        "protocol": "market1501-matlab",
        "rerank": mmga.KReciprocal(),
    },
}


def sides(kind: str) -> tuple[mmga.Features, mmga.Features]:
    """Return queries and gallery with junk, unknown ids, zeros, and images on both sides."""
    random = np.random.default_rng(7)
    centers = random.standard_normal((40, WIDTH))
    directions = random.standard_normal((WIDTH, 512))

    def one(count: int, first: int) -> mmga.Features:
        pids = random.integers(0, 40, count)
        rows = centers[pids] + 0.9 * random.standard_normal((count, WIDTH))
        if kind == "wide":
            rows = rows @ directions + 0.5 * random.standard_normal((count, 512))
        rows[3] = 0
        rows = rows.astype(np.float32)
        names = np.array([f"{i % 50}.jpg" for i in range(first, first + count)])
        camids, time = random.integers(0, 4, count), random.integers(0, 200, count)
        pids[5] = -1
        labels = {"camids": camids, "paths": names, "columns": {"time": time}}
        if kind == "names":
            labels["camids"] = np.array([f"c{camid}" for camid in camids])
            return mmga.Features(rows, np.array(["", *(f"p{pid}" for pid in pids[1:])]), **labels)
        if kind == "int8":
            scale = random.uniform(0.01, 0.02, count).astype(np.float32)
            quantised = np.clip(rows * 40, -127, 127).astype(np.int8)
            return mmga.Features(quantised, pids, scale=scale, **labels)
        if kind == "parts":
            seen = random.uniform(0, 1, (count, 3)).astype(np.float32)
            seen[seen < 0.3] = 0
            split = rows.reshape(count, 3, -1)
            return mmga.Features(None, pids, parts=split, visibility=seen, **labels)
        if kind == "short":
            rows[7::9] *= np.float32(2.0**-60)
        return mmga.Features(rows, pids, **labels)

    query, gallery = one(NUM_QUERY, 0), one(NUM_GALLERY, 30)
    if kind == "":
        gallery.features[11] = query.features[2]
    return query, gallery


def write(folder: Path, kind: str) -> None:
    """Write queries, and the gallery as one file and as four shards, of which some are small."""
    query, gallery = sides(kind)
    query.save(folder / "query.npz")
    gallery.save(folder / "gallery.npz")
    for number, (first, last) in enumerate([(0, 100), (100, 350), (350, 360), (360, 701)]):
        gallery.cut(first, last).save(folder / f"shard-{number}.npz")


@contextlib.contextmanager
def small_tiles(planned: str):
    """Let tiles be small, so that shares end within them, and small sets have several stages.

    Args:
        planned: what tiles are made of: coordinates, int8, or nothing but the features.
    """
    with contextlib.ExitStack() as changed:
        for module, name, value in (
            (sources, "TILE", (64, 128)),
            (parts, "TILE", (64, 128)),
            (rank_certified, "TILE", (64, 100)),
            (rank_certified, "NARROW_TILE", (64, 100)),
            (rank_certified, "_SMALL", 0.0 if planned else 1e18),
            (selection, "_COUNTED_COLUMNS", 100),
            (rank_certified, "making_cost", lambda tiles, width: 0.0),
            (certified_ranks, "_TILE", (64, 100)),
            (planner, "_FIT_SHARE", 1e9 if planned == "coordinates" else 0.0),
            (planner, "takes_int8", lambda width, device: planned == "int8"),
            (planner, "int8_rate", lambda width: 4.0),  # on any machine
        ):
            changed.enter_context(mock.patch.object(module, name, value))
        yield


def evaluated(
    group, rank: int, name: str, ends: list[int], query_ends: list[int] | None = None
) -> dict[str, object]:
    """Return the report of a case as plain values, and what every query scored.

    Args:
        group: of torch.distributed, or None for one process.
        rank: of this process.
        name: of the case.
        ends: where each share of the gallery ends, of one set as parts of `NUM_GALLERY`.
        query_ends: where each share of the queries ends; None: all processes have all.
    """
    options = dict(CASES[name])
    query, gallery = sides(options.pop("kind", ""))
    block = mock.patch.object(shared_set, "BLOCK", 4 * math.prod(query.rows.shape[1:]) * 400)
    with small_tiles(options.pop("planned", "")), block:
        row, column = divmod(rank, len(ends))
        own = gallery if group is None else gallery.cut(*[0, *ends][column : column + 2])
        if options.get("protocol") in ("all-vs-all", "vehicleid"):
            own = None
            if query_ends is not None:
                of_set = [end * NUM_QUERY // NUM_GALLERY for end in (0, *ends)]
                own = query.cut(*of_set[column : column + 2])
        if query_ends is not None:
            options["query_shares"] = len(query_ends)
            query = query.cut(*[0, *query_ends][row : row + 2])
        report = mmga.evaluate(query, own, group=group, **options)
    values = report.as_dict()
    for measured in ("seconds", "peak_memory_bytes", "process_peak_bytes"):
        del values[measured]
    scores = report.per_query
    if scores is not None:
        values["per_query"] = {
            name: getattr(scores, name).tobytes() for name in scores.__dataclass_fields__
        }
        values["queries"] = report._queries()
    return values


def unlike(group, rank: int, what: str) -> object:
    """Evaluate where the last process differs from the others, as `what` says."""
    query, gallery = sides("")
    odd = rank == group.size() - 1
    own = gallery.cut(*((0, 400) if rank == 0 else (400, NUM_GALLERY)))
    options = {"group": group}
    if what == "options":
        options["max_rank"] = 20 if odd else 50
    elif what == "queries" and odd:
        query = query.select(np.arange(NUM_QUERY)[::-1])
    elif what == "values" and odd:
        own = own.select(slice(None))
        own.features[7] = np.nan
    elif what == "kind" and odd:
        own = own.features
    elif what == "columns" and odd:
        own.camids = None
    elif what == "width" and odd:
        own.rows, own.source = mmga.Features(own.features[:, :9], own.pids).rows, "narrow"
    elif what == "nothing":
        own = None
    elif what == "memory":
        options["memory"] = 1000
    elif what.startswith("rerank"):
        options["rerank"] = mmga.KReciprocal()
        if what == "rerank float32":
            options["exact"] = "float32"
        elif what == "rerank jaccard and fail":
            options["rerank"] = mmga.KReciprocal(lambda_value=0)
    failing = mock.Mock(side_effect=ZeroDivisionError("of all numbers"))
    owner, name = certified_ranks._Queries, "settle_overlaps"
    if "jaccard" in what:
        owner, name = distances, "mix"
    broken = mock.patch.object(owner, name, failing)
    with broken if odd and what.endswith("and fail") else contextlib.nullcontext():
        return mmga.evaluate(query, own, **options).mAP


def unlike_in_grid(group, rank: int, what: str) -> object:
    """Evaluate by two rows of two processes, where some differ from others as `what` says."""
    query, gallery = sides("")
    row, column = divmod(rank, 2)
    own, items = query.cut(*((0, 20), (20, NUM_QUERY))[row]), ((0, 400), (400, NUM_GALLERY))
    options = {"group": group, "query_shares": 2}
    if what == "shares":
        options["query_shares"] = 3
    elif what == "unlike shares":
        options["query_shares"] = 1 + row
    elif what == "rerank":
        options["rerank"] = mmga.KReciprocal()
    elif what == "queries" and rank == 1:
        own = own.select(np.arange(20)[::-1])
    elif what == "no queries":
        own = None
    elif what == "one set":
        options["protocol"], gallery = "all-vs-all", query
        items = ((0, 10), (10, NUM_QUERY)) if row == 0 else ((10, NUM_QUERY), (0, 10))
    elif what == "a part of one set":
        options["protocol"], gallery, items = "all-vs-all", query, ((0, 10), (10, 50))
    mine = gallery.cut(*items[column])
    if what == "values" and rank == 3:
        mine = mine.select(slice(None))
        mine.features[7] = np.nan
    elif what == "gallery" and rank == 2:
        mine.features[5] += 1
    failing = mock.Mock(side_effect=ZeroDivisionError("of all numbers"))
    broken = mock.patch.object(rank_certified.CertifiedPass, "_count", failing)
    with broken if what == "fails" and rank == 2 else contextlib.nullcontext():
        return mmga.evaluate(own, mine, **options).mAP


def sent(group, rank: int, kind: str) -> dict[str, int]:
    """Return the bytes that this process gives to collectives, and what they depend on."""
    query, gallery = sides(kind)
    own = gallery.cut(*((0, 350) if rank == 0 else (350, NUM_GALLERY)))
    counts = {"all_reduce": 0, "all_gather": 0}

    def counted(name: str):
        function = getattr(dist, name)

        def call(*args, **options):
            tensor = args[1] if name == "all_gather" else args[0]
            counts[name] += tensor.numel() * tensor.element_size()
            return function(*args, **options)

        return mock.patch.object(dist, name, call)

    with counted("all_reduce"), counted("all_gather"), small_tiles(""):
        report = mmga.evaluate(query, own, group=group)
    counts["matches"] = int(report.per_query.num_matches.sum())
    counts["queries"] = report.num_valid_query
    return counts


def exchanged(group, rank: int) -> list[object]:
    """Return what the methods of a group of two make of odd values."""
    ours = Group.of(group)
    odd = torch.tensor([0.0, -0.0, torch.nan, 1.5, torch.inf], dtype=torch.float64)
    own = torch.tensor([rank == n % 2 for n in range(5)])
    union = ours.union(torch.where(own, odd, 0.0))
    arrays = {"name": np.array(["a", "bcd"][: 1 + rank])}
    if rank == 1:
        arrays["more"] = np.zeros((2, 3), np.int16)
    columns = [
        {name: (array.dtype.str, array.tolist()) for name, array in one.items()}
        for one in ours.columns(arrays)
    ]
    rows = [ours.rows(torch.full((2 * rank, 2), float(rank)))]
    with mock.patch.object(distributed, "_GATHERED", 1):  # row by row
        rows.append(ours.rows(torch.arange(3 + 4 * rank) + 10 * rank))
    dealt, sizes = distributed.exchange(torch.arange(3) + 10 * rank, [2 - rank, 1 + rank], ours)
    own = rank, dealt.tolist(), sizes
    values = [union.view(torch.int64).tolist(), columns, [part.tolist() for part in rows]]
    return [own, *values, ours.most(rank - 3)]
