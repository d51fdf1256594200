"""The seven steps of k-reciprocal re-ranking (Zhong et al., CVPR 2017), written out in NumPy.

Dense and slow on purpose: what the package computes is held against this.
"""

import numpy as np


def neighbour_order(d):
    """rank(i): items by (d(i, .), index)."""
    return np.argsort(d, axis=1, kind="stable")


def reciprocal(rank, length):
    """For each i, the j in its list that have i in theirs."""
    lists = [row[:length].tolist() for row in rank]
    return [[j for j in near if i in lists[j]] for i, near in enumerate(lists)]


def expanded(rank, length, half):
    """For each i, its set joined with the half sets of which it holds over two thirds."""
    near, candidates = reciprocal(rank, length), reciprocal(rank, half)
    result = []
    for own in near:
        members = set(own)
        for j in own:
            if 3 * len(set(candidates[j]) & set(own)) > 2 * len(candidates[j]):
                members |= set(candidates[j])
        result.append(sorted(members))
    return result


def averaged(v, rank, k2):
    return v if k2 == 1 else np.stack([v[rank[i, :k2]].mean(axis=0) for i in range(len(v))])


def jaccard(v, rows):
    result = np.empty((len(rows), len(v)))
    for r, i in enumerate(rows):
        shared = np.minimum(v[i][None], v).sum(axis=1)
        result[r] = 1 - shared / (2 - shared)
    return np.clip(result, 0, 1)


def zhong_encoding(d, k1, k2, half=None):
    """V of steps 1 to 5 from squared distances d, and dn."""
    n = len(d)
    largest = d.max(axis=1, keepdims=True)
    dn = np.divide(d, largest, out=np.zeros_like(d), where=largest > 0)
    rank = neighbour_order(d)
    half = int(np.around(k1 / 2)) + 1 if half is None else half
    v = np.zeros((n, n))
    for i, members in enumerate(expanded(rank, k1 + 1, half)):
        weights = np.exp(-dn[i, members])
        if members:
            v[i, members] = weights / weights.sum()
    return averaged(v, rank, k2), dn


def cluster_encoding(d, k1, k2):
    """V of the clustering rule (lists of k1, softmax weights) from squared distances d."""
    n = len(d)
    rank = neighbour_order(d)
    half = int(np.around(k1 / 2)) + 1
    # A list of k1 has no more than k1 to offer to the half list.
    half = min(half, k1)
    v = np.zeros((n, n))
    for i, members in enumerate(expanded(rank, k1, half)):
        if members:
            weights = np.exp(-(d[i, members] - d[i, members].min()))
            v[i, members] = weights / weights.sum()
    return averaged(v, rank, k2)


def rerank(d, queries, k1, k2, lambda_value, half=None):
    """The final [Q, G] distances from squared distances d [N, N], queries first."""
    v, dn = zhong_encoding(d, k1, k2, half)
    distances = jaccard(v, range(queries))[:, queries:]
    return (1 - lambda_value) * distances + lambda_value * dn[:queries, queries:]


def rerank_fastreid(d, queries, k1, k2, lambda_value, scale=1.0):
    """fast-reid's mix: the clustering rule's Jaccard and the distance as it is."""
    distances = jaccard(cluster_encoding(d, k1, k2), range(queries))[:, queries:]
    return (1 - lambda_value) * distances + lambda_value * scale * d[:queries, queries:]
