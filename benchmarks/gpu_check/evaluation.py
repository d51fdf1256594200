"""Market-1501's figures from features, plain and re-ranked, against their products."""

from __future__ import annotations

import functools
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

import mmga
from benchmarks.gpu_check.report import Figure
from benchmarks.gpu_check.timing import median_seconds, products_in, wall_seconds
from benchmarks.simulated import market_like, simulate
from mmga.ops import distance, reference
from mmga.ops.ranking import Matches, Tile, count_preceding

MARKET = {"persons": 750, "queries": 3368, "gallery": 15913, "distractors": 2798}
MSMT17 = {"persons": 3060, "queries": 11659, "gallery": 82161, "distractors": 0}
DISTRACTORS = 500_000
# Neighbours of each item, and items whose neighbours the CPU finds too.
NEAREST, CHECKED = 20, 1000
# Items of Market-1501's training set, which are clustered.
CLUSTERED = 12_936
CLASSES = {"persons": 751, "queries": 1, "distractors": 0}
# Small dimensions are where a fused kernel of products and counts may win.
DIMENSIONS = (128, 256, 512, 2048)


def market(
    device: torch.device, width: int, sizes: dict[str, int], distractors: int = 0
) -> tuple[Any, Any]:
    """Return simulated query and gallery features of Market-1501's shape on a device."""
    query_pids, query_camids, gallery_pids, gallery_camids = market_like(**sizes)
    pids = np.concatenate([query_pids, gallery_pids, np.full(distractors, -1)])
    camids = np.concatenate([query_camids, gallery_camids, np.zeros(distractors, np.int64)])
    drawn = simulate(pids, camids, width)
    count = len(query_pids)
    # Distractors are persons of their own here, as they are in the data set: nobody's junk.
    strangers = pids < 0
    pids[strangers] = pids.max() + 1 + np.arange(strangers.sum())
    features = drawn.features.to(device)
    return (
        mmga.Features(features[:count], pids[:count], camids[:count]),
        mmga.Features(features[count:], pids[count:], camids[count:]),
    )


def plain(
    device: torch.device, deadline: float, sizes: dict[str, int] = MARKET, width: int = 2048
) -> Iterator[Figure]:
    """Yield the time of all metrics from features, and that of one product of the same features."""
    query, gallery = market(device, width, sizes)
    x, y = query.rows.whole(), gallery.rows.whole()
    operations = 2 * len(x) * len(y) * width
    out = torch.empty(len(x), len(y), device=device)
    with products_in("ieee"):
        call = functools.partial(torch.mm, x, y.T, out=out)
        product = median_seconds([call], device, repeats=10)
    yield Figure(f"one product, D {width}", product, x.nbytes + y.nbytes, operations)
    report = mmga.evaluate(query, gallery)
    seconds = wall_seconds(lambda: mmga.evaluate(query, gallery), device, repeats=5)
    same = same_as_cpu(report, mmga.evaluate(query, gallery, device="cpu"))
    more = {"times_the_product": seconds / product, "mAP": report.mAP, "by_phase": report.seconds}
    more |= {"same_as_cpu": same, "levels": report.extra["certified"]["levels"]}
    bytes_ = x.nbytes + y.nbytes
    yield Figure(f"metrics, certified, D {width}", seconds, bytes_, operations, "int8", more)
    if time.monotonic() > deadline:
        return
    seconds = wall_seconds(lambda: mmga.evaluate(query, gallery, exact="float32"), device)
    yield Figure(f"metrics in float32, D {width}", seconds, bytes_, operations)


def same_as_cpu(found: mmga.Report, expected: mmga.Report) -> bool:
    """Return whether two certified reports have the same integers for every query."""
    sides = found.per_query, expected.per_query
    return all(
        np.array_equal(getattr(sides[0], name), getattr(sides[1], name), equal_nan=True)
        for name in ("first_rank", "num_matches", "tied", "average_precision")
    )


class Counting:
    """Products of one population, and the ranks counted in them."""

    def __init__(self, device: torch.device, width: int, sizes: dict[str, int]) -> None:
        """Draw features and list each query's items of its own identity as its matches."""
        query, gallery = market(device, width, sizes)
        self.x, self.y = query.rows.whole(), gallery.rows.whole()
        sides = (self.x, self.y)
        self.terms = [distance.key_terms(distance.squared_norms(side), "cosine") for side in sides]
        pids = np.concatenate([query.pids, gallery.pids])
        codes = torch.from_numpy(pids).to(device, torch.int32)
        own, other = codes.split([len(self.x), len(self.y)])
        self.row, self.item = (own[:, None] == other).nonzero().unbind(1)
        counts = torch.bincount(self.row, minlength=len(self.x))
        self.start = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
        self.tile = torch.empty(len(self.x), len(self.y), device=device)
        self.operations = 2 * len(self.x) * len(self.y) * width

    def count(self) -> Matches:
        """Form the products and count what precedes each match in them."""
        with products_in("ieee"):
            torch.mm(self.x, self.y.T, out=self.tile)
        values, terms = self.tile[self.row, self.item], self.terms
        keys = reference.ranking_keys(values, terms[0][self.row], terms[1][self.item], 1)
        matches = Matches.of(self.start, self.item, keys, self.start, self.item)
        count_preceding(Tile(self.tile, 0, 1, *terms), slice(0, len(self.x)), matches)
        return matches


def counting(
    device: torch.device,
    deadline: float,
    sizes: dict[str, int] = MARKET,
    dimensions: tuple[int, ...] = DIMENSIONS,
) -> Iterator[Figure]:
    """Yield the times of products with counting, by width."""
    for width in dimensions:
        if time.monotonic() > deadline:
            return
        work = Counting(device, width, sizes)
        yield Figure(
            f"product and count, D {width}",
            median_seconds([work.count], device, repeats=10, warmup=2),
            work.x.nbytes + work.y.nbytes + 2 * work.tile.nbytes,
            work.operations,
        )


def reranked(
    device: torch.device,
    deadline: float,
    sizes: dict[str, int] = MARKET,
    width: int = 2048,
    distractors: int = 0,
    repeats: int = 3,
) -> Iterator[Figure]:
    """Yield the time from features to re-ranked metrics, and how it divides."""
    query, gallery = market(device, width, sizes, distractors)
    rule = mmga.KReciprocal()
    count = len(query.pids) + len(gallery.pids)
    operations = count * (count + 1) * width  # half of the symmetric product
    report = mmga.evaluate(query, gallery, rerank=rule)
    seconds = wall_seconds(
        lambda: mmga.evaluate(query, gallery, rerank=rule), device, repeats=repeats
    )
    more = {"mAP": report.reranked.mAP, "by_phase": report.seconds}
    yield Figure(
        f"re-ranked metrics from features, {count} items, D {width}",
        seconds,
        4 * count * width,
        operations,
        "int8",
        more,
    )


def neighbours(
    device: torch.device,
    deadline: float,
    sizes: dict[str, int] = MARKET,
    width: int = 512,
    distractors: int = DISTRACTORS,
) -> Iterator[Figure]:
    """Yield the time of the nearest of every item, certified and in float32."""
    query, gallery = market(device, width, sizes, distractors)
    items = torch.cat([query.rows.whole(), gallery.rows.whole()])
    del query, gallery
    operations = len(items) ** 2 * width  # half of the symmetric product
    found = mmga.nearest(items, items, NEAREST)
    few = mmga.nearest(items[:CHECKED].cpu(), items.cpu(), NEAREST)[1]
    same = {"same_as_cpu": torch.equal(found[1][:CHECKED].cpu(), few)}
    for exact, rate in (("certified", "int8"), ("float32", "ieee")):
        if time.monotonic() > deadline:
            return
        seconds = wall_seconds(
            functools.partial(mmga.nearest, items, items, NEAREST, exact=exact), device, repeats=1
        )
        more = same if exact == "certified" else {}
        name = f"{NEAREST} nearest of {len(items)} x {width}, {exact}"
        yield Figure(name, seconds, items.nbytes, operations, rate, more)


def jaccard(
    device: torch.device, deadline: float, count: int = CLUSTERED, width: int = 2048
) -> Iterator[Figure]:
    """Yield the time of the Jaccard distances that clustering takes."""
    items = market(device, width, {**CLASSES, "gallery": count})[1].rows.whole()
    if time.monotonic() > deadline:
        return
    seconds = wall_seconds(functools.partial(mmga.jaccard_distance, items), device, repeats=2)
    operations = len(items) ** 2 * width
    yield Figure(
        f"jaccard distances of {len(items)} x {width}", seconds, items.nbytes, operations, "int8"
    )
