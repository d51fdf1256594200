"""What certified ranks cost beside the float32 path and the bare product.

`python benchmarks/certified_ranks.py [CASE ...] [--json FILE] [--figure FILE]` runs every case, or
those named: market (Market-1501's shape, decaying and flat spectra), distractors (500,000 more
items), neighbours (of 19,281 items) and neighbours-msmt17 (of 93,820), grid (cost by dimension,
gallery and spectrum). Features are simulated (benchmarks/simulated.py); `--figure` draws the grid
beside the similarities that they have. Wall seconds on a machine that does nothing else, medians;
what is compared is run in turn.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from measure import Figures, in_turn, machine
from simulated import market_like, simulate
from torch import Tensor

import mmga
from mmga.common.files import atomic_path
from mmga.retrieval.features.sharded_matrix import ShardedMatrix
from mmga.retrieval.features.vectors import VectorSet
from mmga.retrieval.neighbours.certified_knn import certified_neighbours
from mmga.retrieval.neighbours.search_plan import cheapest_tiles

SPECTRA = (("decaying", 0.0), ("flat", 0.5), ("flat", 0.05))
NEIGHBOURS = 21


def sides(
    width: int, spectrum: str, likeness: float, **shape: int
) -> tuple[mmga.Features, mmga.Features]:
    """Return simulated features of queries and gallery."""
    query_pids, query_camids, gallery_pids, gallery_camids = market_like(**shape)
    found = simulate(
        np.concatenate([query_pids, gallery_pids]),
        np.concatenate([query_camids, gallery_camids]),
        width,
        spectrum,
        likeness,
    )
    count = len(query_pids)
    return (
        mmga.Features(found.features[:count], query_pids, query_camids),
        mmga.Features(found.features[count:], gallery_pids, gallery_camids),
    )


def evaluation(
    query: mmga.Features, gallery: mmga.Features, rounds: int, float32: bool = True
) -> Figures:
    """Time certified and, if wanted, float32 evaluation beside the product in one shot."""
    x, y = query.rows.shards[0], gallery.rows.shards[0]

    def product() -> None:
        x @ y.T

    calls: dict[str, Callable[[], Any]] = {"product": product}
    if float32:
        calls["float32"] = lambda: mmga.evaluate(query, gallery, exact="float32")
    calls["certified"] = lambda: mmga.evaluate(query, gallery, exact="certified")
    figures, results = in_turn(calls, rounds)
    seconds, report = figures["seconds"], results["certified"]
    first = report.extra["certified"]["levels"][0]
    return figures | {
        "queries": len(x),
        "gallery": len(y),
        "dimension": x.shape[1],
        "of_product": seconds["certified"] / seconds["product"],
        "of_float32": seconds["certified"] / seconds["float32"] if float32 else None,
        "levels": report.extra["certified"]["levels"],
        "undecided": first["undecided"] / first["pairs"],
        "mAP": report.mAP,
        "mAP_float32": results["float32"].mAP if float32 else None,
        "peak_memory_bytes": report.peak_memory_bytes,
    }


def market(options: argparse.Namespace) -> Figures:
    """Evaluate Market-1501's shape with every spectrum and two dimensions."""
    scale = options.divide
    shape = {"persons": 750 // scale, "queries": 3368 // scale, "gallery": 15913 // scale}
    found = {}
    for spectrum, likeness in SPECTRA:
        for width in (2048, 512) if spectrum == "decaying" else (2048,):
            name = f"{spectrum}{likeness or ''}-{width}"
            pair = sides(width, spectrum, likeness, distractors=2798 // scale, **shape)
            found[name] = evaluation(*pair, options.rounds)
    return found


def distractors(options: argparse.Namespace) -> Figures:
    """Evaluate Market-1501's shape with 500,000 distractors."""
    scale = options.divide
    pair = sides(
        2048,
        "decaying",
        0.0,
        persons=750 // scale,
        queries=3368 // scale,
        gallery=515913 // scale,
        distractors=502798 // scale,
    )
    return evaluation(*pair, options.rounds, float32=False)


def neighbours_of(count: int, options: argparse.Namespace) -> Figures:
    """Time the certified neighbour pass beside half the product of all with all."""
    persons = max(2, count // 19)
    draw = np.random.default_rng(0)
    pids = draw.integers(0, persons, count)
    features = simulate(pids, pids * 0, 2048).features
    # A product that does not fit is measured on some rows, and its time scaled.
    rows = min(count, 8192)

    def product() -> Tensor:
        return features[:rows] @ features.T

    def search(directions: bool) -> Any:
        items = VectorSet([ShardedMatrix([features])], "cosine")
        chosen = cheapest_tiles(items, items, NEIGHBOURS) if directions else None
        return str(chosen or "features"), certified_neighbours(items, NEIGHBOURS, tiles=chosen)

    calls: dict[str, Callable[[], Any]] = {"rows": product, "certified": lambda: search(True)}
    if count <= 20000:
        calls["plain"] = lambda: search(False)
    figures, results = in_turn(calls, options.rounds)
    half = figures["seconds"]["rows"] * count / rows / 2
    tiles, found = results["certified"]
    if "plain" in results and not torch.equal(found.index, results["plain"][1].index):
        raise SystemExit("neighbours through coordinates differ from those of whole features")
    return figures | {
        "items": count,
        "tiles": tiles,
        "half_product": half,
        "rows_measured": rows,
        "of_half": figures["seconds"]["certified"] / half,
    }


def grid(options: argparse.Namespace) -> Figures:
    """Cost by dimension, gallery size and spectrum."""
    found = []
    for spectrum, likeness in SPECTRA:
        for width in (256, 512, 2048):
            for gallery in (4000, 16000, 64000):
                pair = sides(
                    width,
                    spectrum,
                    likeness,
                    persons=750 // options.divide,
                    queries=3368 // options.divide,
                    gallery=gallery // options.divide,
                    distractors=gallery // 8 // options.divide,
                )
                one = evaluation(*pair, min(2, options.rounds))
                found.append({"spectrum": spectrum, "likeness": likeness} | one)
    return {"points": found}


CASES: dict[str, Callable[[argparse.Namespace], Figures]] = {
    "market": market,
    "distractors": distractors,
    "neighbours": lambda options: neighbours_of(19281 // options.divide, options),
    "neighbours-msmt17": lambda options: neighbours_of(93820 // options.divide, options),
    "grid": grid,
}


def draw(path: Path, points: list[Figures]) -> None:
    """Draw the grid, and the similarities of simulated features."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    figure, (left, right) = pyplot.subplots(1, 2, figsize=(11, 4.2))
    styles = {256: ":", 512: "--", 2048: "-"}
    colours = {("decaying", 0.0): "C0", ("flat", 0.5): "C1", ("flat", 0.05): "C3"}
    for (spectrum, likeness), colour in colours.items():
        for width, style in styles.items():
            mine = [
                point
                for point in points
                if (point["spectrum"], point["likeness"]) == (spectrum, likeness)
                and point["dimension"] == width
            ]
            label = spectrum if spectrum == "decaying" else f"flat, likeness {likeness}"
            left.plot(
                [point["gallery"] for point in mine],
                [point["of_product"] for point in mine],
                style,
                color=colour,
                marker="o",
                markersize=3,
                label=f"{label}, D = {width}",
            )
    left.axhline(1, color="grey", linewidth=0.8)
    highest = max(point["of_product"] for point in points)
    left.set(xscale="log", ylim=(0, 1.4 * max(1.0, highest)), xlabel="gallery items")
    sizes = sorted({point["gallery"] for point in points})
    left.set_xticks(sizes, [f"{size:,}" for size in sizes])
    left.minorticks_off()
    left.set(ylabel="seconds / seconds of the bare product")
    left.set_title("certified evaluation, 3,368 queries")
    left.legend(fontsize=6, ncols=3, loc="upper center")
    for spectrum, likeness in SPECTRA:
        query, gallery = sides(
            512, spectrum, likeness, persons=60, queries=300, gallery=1500, distractors=200
        )
        cosines = query.features @ gallery.features.T
        same = torch.from_numpy(query.pids[:, None] == gallery.pids[None])
        label = spectrum if spectrum == "decaying" else f"flat, likeness {likeness}"
        for which, style in ((same, "-"), (~same, "--")):
            counts, edges = np.histogram(cosines[which].numpy(), bins=120, range=(-0.2, 1))
            what = "matches" if style == "-" else "others"
            right.plot(
                (edges[1:] + edges[:-1]) / 2,
                counts / counts.max(),
                style,
                color=colours[spectrum, likeness],
                label=f"{label}: {what}",
            )
    right.set(xlabel="cosine", ylabel="pairs, relative to the most frequent", ylim=(0, 1.5))
    right.set_title("the simulated features, D = 512")
    right.legend(fontsize=6, ncols=2, loc="upper center")
    figure.tight_layout()
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", dpi=130)


def main() -> None:
    """Run the cases that were asked for."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("cases", nargs="*", metavar="CASE", help=", ".join(CASES))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--divide", type=int, default=1, help="make every size so much smaller")
    parser.add_argument("--json", type=Path)
    parser.add_argument(
        "--figure", type=Path, help="draw the grid of --json's file, or of this run"
    )
    options = parser.parse_args()
    unknown = set(options.cases) - set(CASES)
    if unknown:
        parser.error(f"no case {sorted(unknown)[0]}; there are {', '.join(CASES)}")
    found: Figures = {}
    if options.json is not None and options.json.exists():
        found = json.loads(options.json.read_text())
    cases = options.cases or ([] if options.figure and found else list(CASES))
    for name in cases:
        print(name, file=sys.stderr, flush=True)
        found[name] = CASES[name](options)
        print(json.dumps({name: found[name]}, indent=1))
        found["machine"] = machine()
        if options.json is not None:
            with atomic_path(options.json) as temporary:
                temporary.write_text(json.dumps(found, indent=1) + "\n")
    if options.figure is not None:
        draw(options.figure, found["grid"]["points"])


if __name__ == "__main__":
    main()
