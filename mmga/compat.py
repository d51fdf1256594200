"""Drop-ins for code that exists: the signatures and results of other projects' functions.

    from mmga.compat import evaluate_rank                             # torchreid's
    from mmga.compat import fastreid_evaluate_rank as evaluate_rank   # fast-reid's
    from mmga.compat import re_ranking                                # torchreid's, fast-reid's
    from mmga.compat import compute_jaccard_distance                  # cluster-contrast's, SpCL's

torchreid of the package registry has them in `torchreid.reid.metrics.rank` and
`torchreid.reid.utils.rerank`, that of its repository in `torchreid.metrics.rank` and
`torchreid.utils.rerank`.

Equal distances are ranked by gallery index here, by accident of a sort there. A CMC has
min(max_rank, G) ranks, the last value held where a query ranks fewer items; there it is cut to the
items that are left or ends in an error about ragged arrays.
"""

from __future__ import annotations

import numpy as np

from mmga.common import ids
from mmga.common.arrays import as_array, as_tensor
from mmga.common.errors import UserError
from mmga.retrieval.evaluate import evaluate_distances
from mmga.retrieval.features import Features
from mmga.retrieval.features.features import Column, Matrix
from mmga.retrieval.metrics.report import Report
from mmga.retrieval.neighbours.knn import ArrayLike


def evaluate_rank(
    distmat: Matrix,
    q_pids: Column,
    g_pids: Column,
    q_camids: Column,
    g_camids: Column,
    max_rank: int = 50,
    use_metric_cuhk03: bool = False,
    use_cython: bool = True,
) -> tuple[np.ndarray, float]:
    """Stand in for torchreid's `evaluate_rank`.

    Args:
        distmat: [Q, G].
        q_pids: [Q]; no pid is special, as in torchreid, not even -1; NaN equals nothing.
        g_pids: [G].
        q_camids: [Q].
        g_camids: [G].
        max_rank: length of the CMC curve, at most G.
        use_metric_cuhk03: CMC with one gallery image for each identity: the exact expectation,
            where torchreid draws ten times.
        use_cython: ignored.

    Returns:
        CMC [max_rank] and mAP.

    Raises:
        UserError: shapes do not fit, or no query has a match.
    """
    protocol = "cuhk03-single-shot" if use_metric_cuhk03 else "market1501"
    report = _report(distmat, q_pids, g_pids, q_camids, g_camids, max_rank, protocol)
    return report.cmc.astype(np.float32), report.mAP


def fastreid_evaluate_rank(
    distmat: Matrix,
    q_pids: Column,
    g_pids: Column,
    q_camids: Column,
    g_camids: Column,
    max_rank: int = 50,
    use_metric_cuhk03: bool = False,
    use_cython: bool = True,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Stand in for fast-reid's `evaluate_rank`.

    Args:
        distmat: [Q, G].
        q_pids: [Q].
        g_pids: [G].
        q_camids: [Q].
        g_camids: [G].
        max_rank: length of the CMC curve, at most G.
        use_metric_cuhk03: as in `evaluate_rank`.
        use_cython: ignored.

    Returns:
        CMC [max_rank], AP and INP of each valid query.

    Raises:
        UserError: shapes do not fit, or no query has a match.
    """
    protocol = "cuhk03-single-shot" if use_metric_cuhk03 else "market1501"
    report = _report(distmat, q_pids, g_pids, q_camids, g_camids, max_rank, protocol)
    scores = report.per_query
    assert scores is not None
    valid = scores.num_matches > 0
    return (
        report.cmc.astype(np.float32),
        scores.average_precision[valid],
        scores.inverse_negative_penalty[valid],
    )


def re_ranking(
    q_g_dist: Matrix,
    q_q_dist: Matrix,
    g_g_dist: Matrix,
    k1: int = 20,
    k2: int = 6,
    lambda_value: float = 0.3,
) -> np.ndarray:
    """Stand in for torchreid's and fast-reid's `re_ranking`, which square what they are given.

    fast-reid's evaluator does not call its `re_ranking` but mixes a Jaccard distance by another
    rule: `KReciprocal(variant="fastreid")`.

    Args:
        q_g_dist: [Q, G] distances.
        q_q_dist: [Q, Q].
        g_g_dist: [G, G].
        k1: neighbours; all items where there are fewer, as there.
        k2: neighbours of the local query expansion, likewise.
        lambda_value: weight of the original distance.

    Returns:
        Re-ranked distances [Q, G], float32.

    Raises:
        UserError: shapes or settings do not fit.
    """
    from mmga.retrieval.reranking.rerank import rerank_distances
    from mmga.retrieval.reranking.settings import KReciprocal

    given = {"q_g_dist": q_g_dist, "q_q_dist": q_q_dist, "g_g_dist": g_g_dist}
    q_g, q_q, g_g = (as_tensor(name, matrix).cpu() for name, matrix in given.items())
    final = rerank_distances(q_g, q_q, g_g, KReciprocal(k1, k2, lambda_value), squared=False)
    return np.asarray(final, dtype=np.float32)


def compute_jaccard_distance(
    target_features: ArrayLike,
    k1: int = 20,
    k2: int = 6,
    print_flag: bool = True,
    search_option: int = 0,
    use_float16: bool = False,
) -> np.ndarray:
    """Stand in for cluster-contrast's and SpCL's `compute_jaccard_distance`.

    Args:
        target_features: [N, D], L2-normalised.
        k1: neighbours; all items where there are fewer.
        k2: neighbours whose encodings are averaged, likewise.
        print_flag: ignored; nothing is printed.
        search_option: ignored.
        use_float16: return float16.

    Returns:
        The dense matrix [N, N]. `mmga.jaccard_distance` gives the sparse one, which takes
        thousands of times less memory.

    Raises:
        UserError: the features or settings do not fit.
    """
    from mmga.retrieval.reranking.jaccard import jaccard_distance

    sparse = jaccard_distance(target_features, k1, k2)
    count = sparse.shape[0]
    dense = np.ones((count, count), dtype=np.float16 if use_float16 else np.float32)
    row = np.repeat(np.arange(count), np.diff(sparse.crow_indices().numpy()))
    dense[row, sparse.col_indices().numpy()] = sparse.values().numpy()
    return dense


def _report(
    distmat: Matrix,
    q_pids: Column,
    g_pids: Column,
    q_camids: Column,
    g_camids: Column,
    max_rank: int,
    protocol: str,
) -> Report:
    given = {"q_pids": q_pids, "g_pids": g_pids, "q_camids": q_camids, "g_camids": g_camids}
    labels = {name: as_array(name, column) for name, column in given.items()}
    distmat = as_tensor("distmat", distmat, lend=True)
    shape = tuple(distmat.shape)
    if len(shape) != 2:
        raise UserError(f"distmat: expected [Q, G], found shape {list(shape)}")
    for name, column in labels.items():
        count, what = (shape[0], "row") if name[0] == "q" else (shape[1], "column")
        if column.shape != (count,):
            raise UserError(
                f"{name}: expected one for each of the {count} {what}s of distmat, found shape "
                f"{list(column.shape)}"
            )
    (query_pids, gallery_pids), pid_names = _coded("pids", labels["q_pids"], labels["g_pids"])
    (q_cams, g_cams), camid_names = _coded("camids", labels["q_camids"], labels["g_camids"])
    query, gallery = (
        Features(np.zeros((len(pids), 1), np.float32), pids, camids, source=side)
        for side, pids, camids in (("q", query_pids, q_cams), ("g", gallery_pids, g_cams))
    )
    query.pid_names = gallery.pid_names = pid_names
    query.camid_names = gallery.camid_names = camid_names
    return evaluate_distances(distmat, query, gallery, protocol, max_rank=min(max_rank, shape[1]))


def _coded(
    name: str, query: np.ndarray, gallery: np.ndarray
) -> tuple[tuple[np.ndarray, np.ndarray], np.ndarray]:
    """Return labels of both sides as places among names, -1 an ordinary one, and the names.

    What is unknown equals nothing, itself included, as NaN does in these packages.
    """
    values = np.concatenate([query, gallery])
    if values.dtype.kind == "O":
        plain = ids.of_objects(values)
        if plain is None:
            raise UserError(f"{name}: expected numbers or strings, found other objects")
        values = plain
    if values.dtype.kind == "i":
        missing = np.flatnonzero(values == ids.UNKNOWN)
    else:
        missing = ids.unknown(values)
    names, codes = np.unique(values, return_inverse=True)
    codes = codes.reshape(-1).astype(np.int64)
    codes[missing] = len(names) + np.arange(len(missing))
    odd = np.asarray([f"unknown {number}" for number in range(len(missing))], np.str_)
    names = np.concatenate([names.astype(np.str_), odd])
    return (codes[: len(query)], codes[len(query) :]), names
