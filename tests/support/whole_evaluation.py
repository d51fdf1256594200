"""Everything that the evaluator does on one device, as JSON: `whole_evaluation.py DEVICE`.

`emulated` runs it on a pretended device, whose kernels are those of CUDA: the source of CUDA C++ on
the CPU, and Triton's interpreted.
"""

import functools
import json
import sys
from collections.abc import Callable
from pathlib import Path

import torch

import mmga

# What a report says beside figures.
OF_THE_MACHINE = (
    "seconds",
    "peak_memory_bytes",
    "process_peak_bytes",
    "backend",
    "certified",
    "notes",
)


def features(count: int, seed: int, device: str) -> mmga.Features:
    """Points on an integer grid, whose distances are exact, with duplicates and ties."""
    generator = torch.Generator().manual_seed(seed)
    points = torch.randint(-2, 3, (count, 6), generator=generator).float()
    pids = torch.randint(-1, 9, (count,), generator=generator).numpy()
    camids = torch.randint(0, 3, (count,), generator=generator).numpy()
    return mmga.Features(points.to(device), pids, camids)


def sides(device: str) -> tuple[mmga.Features, mmga.Features]:
    return features(30, 1, device), features(170, 2, device)


def figures(report: mmga.Report) -> dict[str, object]:
    text = report.as_dict()
    for name in OF_THE_MACHINE:
        text.pop(name, None)
    return text


def metrics(device: str, metric: str) -> object:
    return figures(mmga.evaluate(*sides(device), metric=metric, verification=True))


def certified_metrics(device: str, metric: str) -> object:
    options = {"exact": "certified", "exclude": "pid == 3 and camid == query.camid"}
    return figures(mmga.evaluate(*sides(device), metric=metric, **options))


def default_metrics(device: str, metric: str) -> object:
    """Certified, and so the same on every device."""
    report = mmga.evaluate(*sides(device), metric=metric, rerank=mmga.KReciprocal(k1=7, k2=3))
    assert report.exact == "certified"
    assert device == "cpu" or report.extra["certified"]["levels"][0]["precision"] == "int8"
    return figures(report)


def default_search(device: str, metric: str) -> object:
    wide = torch.randn(3, 40, generator=torch.Generator().manual_seed(0))
    points = torch.cat([features(400, 4, "cpu").rows.whole(), torch.zeros(400, 34)], 1)
    points = (points + wide[torch.arange(400) % 3] * 1e-3).to(device)
    return [
        [part.cpu().tolist() for part in mmga.nearest(query, points, 5, metric, exact="certified")]
        for query in (points, points[:50])
    ]


def metrics_of_one_set(device: str) -> object:
    return figures(mmga.evaluate(features(170, 2, device), protocol="all-vs-all", exact="float32"))


def metrics_from_the_host(device: str) -> object:
    return figures(mmga.evaluate(*sides("cpu"), device=device, metric="euclidean", exact="float32"))


def search(device: str, metric: str) -> object:
    return [
        part.cpu().tolist() for part in mmga.nearest(*sides(device), 5, metric, exact="float32")
    ]


def reranked_metrics(device: str, metric: str) -> object:
    rule = mmga.KReciprocal(k1=7, k2=3)
    return figures(mmga.evaluate(*sides(device), metric=metric, rerank=rule, exact="float32"))


def reranked(device: str, variant: str) -> object:
    rule = mmga.KReciprocal(k1=7, k2=3, variant=variant)
    return mmga.rerank(*sides(device), rule, metric="euclidean").cpu().tolist()


def reranked_search(device: str) -> object:
    found = mmga.rerank(*sides(device), mmga.KReciprocal(k1=7, k2=3), metric="euclidean", topk=9)
    return [part.cpu().tolist() for part in found]


def jaccard(device: str) -> object:
    points = features(170, 2, device).rows.whole()
    return mmga.jaccard_distance(points, k1=8, k2=3).to_dense().cpu().tolist()


PARTS: dict[str, Callable[[str], object]] = {
    "metrics cosine": functools.partial(metrics, metric="cosine"),
    "metrics euclidean": functools.partial(metrics, metric="euclidean"),
    "certified cosine": functools.partial(certified_metrics, metric="cosine"),
    "certified euclidean": functools.partial(certified_metrics, metric="euclidean"),
    "default cosine": functools.partial(default_metrics, metric="cosine"),
    "default euclidean": functools.partial(default_metrics, metric="euclidean"),
    "default search cosine": functools.partial(default_search, metric="cosine"),
    "default search euclidean": functools.partial(default_search, metric="euclidean"),
    "metrics of one set": metrics_of_one_set,
    "metrics from the host": metrics_from_the_host,
    "search cosine": functools.partial(search, metric="cosine"),
    "search euclidean": functools.partial(search, metric="euclidean"),
    "re-ranked metrics cosine": functools.partial(reranked_metrics, metric="cosine"),
    "re-ranked metrics euclidean": functools.partial(reranked_metrics, metric="euclidean"),
    "re-ranked zhong": functools.partial(reranked, variant="zhong"),
    "re-ranked torchreid": functools.partial(reranked, variant="torchreid"),
    "re-ranked fastreid": functools.partial(reranked, variant="fastreid"),
    "re-ranked search": reranked_search,
    "jaccard": jaccard,
}


def whole(device: str) -> dict[str, object]:
    return {name: part(device) for name, part in PARTS.items()}


if __name__ == "__main__":
    device = sys.argv[1]
    if device != "emulated":
        print(json.dumps(whole(device)))
        sys.exit()
    sys.path.insert(0, str(Path(__file__).parent))
    import emulated
    from pretended import PretendedDevice

    keep = emulated.serve_the_cpu()
    before = emulated.library().emulation_launches()
    with PretendedDevice():
        answer = json.loads(json.dumps(whole("cuda")))
    print(json.dumps(answer | {"launches": emulated.library().emulation_launches() - before}))
