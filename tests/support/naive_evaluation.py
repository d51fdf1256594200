"""Every protocol's rule written out in float64 loops: what the evaluator is held against."""

import numpy as np


def kept_items(query, pid, camid, g_pids, g_camids, rule, q_path=None, g_paths=None):
    """Gallery indices that count for a query, in gallery order."""
    kept = []
    for item in range(len(g_pids)):
        if g_pids[item] == -1:
            continue
        if rule in ("market1501", "market1501-matlab", "multi-query", "cuhk03-single-shot") and (
            g_pids[item] == pid and g_camids[item] == camid
        ):
            continue
        if rule == "other-cameras" and g_camids[item] == camid:
            continue
        if rule == "all-vs-all" and item == query:
            continue
        if rule == "no-camera" and g_paths is not None and g_paths[item] == q_path:
            continue
        kept.append(item)
    return kept


def evaluate(
    distances,
    q_pids,
    g_pids,
    q_camids=None,
    g_camids=None,
    rule="market1501",
    max_rank=50,
    q_paths=None,
    g_paths=None,
):
    """CMC, mAP, mINP and what each query scored (None where it has no match)."""
    distances = np.asarray(distances, dtype=np.float64)
    per_query = []
    for query in range(len(q_pids)):
        if q_pids[query] == -1:
            per_query.append("junk")
            continue
        camid = None if q_camids is None else q_camids[query]
        path = None if q_paths is None else q_paths[query]
        kept = kept_items(query, q_pids[query], camid, g_pids, g_camids, rule, path, g_paths)
        kept.sort(key=lambda item: (distances[query, item], item))
        hits = [place + 1 for place, item in enumerate(kept) if g_pids[item] == q_pids[query]]
        if not hits:
            per_query.append(None)
            continue
        if rule == "market1501-matlab":
            total = 0.0
            for h, r in enumerate(hits, 1):
                before = 1.0 if r == 1 else (h - 1) / (r - 1)
                total += (before + h / r) / 2
        else:
            total = sum(h / r for h, r in enumerate(hits, 1))
        per_query.append((total / len(hits), len(hits) / hits[-1], hits[0]))
    if rule == "market1501-matlab":
        counted = [(0.0, 0.0, 10**9) if one is None else one for one in per_query if one != "junk"]
    else:
        counted = [one for one in per_query if one is not None and one != "junk"]
    cmc = [sum(one[2] <= r for one in counted) / len(counted) for r in range(1, max_rank + 1)]
    return {
        "mAP": sum(one[0] for one in counted) / len(counted),
        "mINP": sum(one[1] for one in counted) / len(counted),
        "cmc": cmc,
        "per_query": per_query,
    }


def has_valid_query(*args, **kwargs):
    """Whether any query has a match left."""
    try:
        scored = evaluate(*args, **kwargs)["per_query"]
    except ZeroDivisionError:
        return False
    return any(isinstance(one, tuple) for one in scored)
