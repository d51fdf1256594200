"""Everything that the evaluator does on one device, as JSON: `whole_evaluation.py DEVICE`.

`emulated` runs it on the CPU with the CUDA kernels' own source in the place of the CPU's kernels.
"""

import json
import sys
from pathlib import Path

import numpy as np
import torch

import mmga


def features(count: int, seed: int, device: str) -> mmga.Features:
    """Points on an integer grid, whose distances are exact, with duplicates and ties."""
    generator = torch.Generator().manual_seed(seed)
    points = torch.randint(-2, 3, (count, 6), generator=generator).float()
    pids = torch.randint(-1, 9, (count,), generator=generator).numpy()
    camids = torch.randint(0, 3, (count,), generator=generator).numpy()
    return mmga.Features(points.to(device), pids, camids)


def whole(device: str) -> dict[str, object]:
    query, gallery = features(30, 1, device), features(170, 2, device)
    rule = mmga.KReciprocal(k1=7, k2=3)
    result: dict[str, object] = {}
    for metric in ("cosine", "euclidean"):
        report = mmga.evaluate(query, gallery, metric=metric, rerank=rule, verification=True)
        text = report.as_dict()
        for name in ("seconds", "peak_memory_bytes", "process_peak_bytes", "backend"):
            text.pop(name, None)
        result[metric] = text
        near = mmga.nearest(query, gallery, 5, metric)
        result[f"nearest {metric}"] = [part.cpu().tolist() for part in near]
    one = mmga.evaluate(gallery, protocol="all-vs-all", metric="euclidean")
    result["all-vs-all"] = [one.mAP, one.mINP, one.cmc.tolist()]
    for variant in ("zhong", "torchreid", "fastreid"):
        rule = mmga.KReciprocal(k1=7, k2=3, variant=variant)
        matrix = mmga.rerank(query, gallery, rule, metric="euclidean")
        result[f"rerank {variant}"] = matrix.cpu().tolist()
    distances, index = mmga.rerank(query, gallery, rule, topk=9)
    result["topk"] = [distances.cpu().tolist(), index.cpu().tolist()]
    points = gallery.rows.whole()
    jaccard = mmga.jaccard_distance(points, k1=8, k2=3)
    result["jaccard"] = jaccard.to_dense().cpu().tolist()
    return result


if __name__ == "__main__":
    device = sys.argv[1]
    if device == "emulated":
        sys.path.insert(0, str(Path(__file__).parent))
        import emulated

        keep = emulated.serve_the_cpu()
        before = emulated.library().emulation_launches()
    np.random.seed(0)
    answer = whole("cpu" if device == "emulated" else device)
    if device == "emulated":
        answer["launches"] = emulated.library().emulation_launches() - before
    print(json.dumps(answer))
