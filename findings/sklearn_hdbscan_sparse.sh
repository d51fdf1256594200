#!/bin/sh
# HDBSCAN(metric="precomputed") of scikit-learn 1.9.1 answers sparse matrices otherwise than dense
# ones of the same distances, also where all pairs are stored:
# - Equal points, whose distance is a stored zero: edges of zero fall out of the spanning tree. For 41
#   points of which two are equal it returns 40 labels without a warning, or raises a KeyError; which
#   of both is a matter of ties. The dense matrix gives 41 labels, and so does the sparse one with
#   1e-12 in place of its zeros.
# - No diagonal (csr_array(dense) stores none): min_samples no longer "includes the point itself".
#   The merges are those of the dense matrix for min_samples + 1, and the clusters differ. DBSCAN, for
#   which the documentation says the same of min_samples, adds the diagonal: its labels are equal.
# - copy=True leaves the distances alone, but sorts the columns of the caller's matrix in place: rows
#   that ascend by distance, as those of neighbour graphs do, no longer do.
# Apart from the equal points no two distances are equal. Trees are compared by their sorted merges
# and labels by the adjusted Rand index, so that the numbers of clusters play no part.
#
# Fails if one of this changes. Needs python3 with venv.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet scikit-learn==1.9.1 scipy==1.17.1 numpy==2.4.6
cat > "$folder/look.py" <<'PYTHON'
import numpy as np
import sklearn
from scipy.sparse import csr_array
from scipy.spatial.distance import pdist, squareform
from sklearn.cluster import DBSCAN, HDBSCAN
from sklearn.metrics import adjusted_rand_score


def whole(distances, by_distance=False):
    """All pairs, zeros and diagonal stored; columns ascend, or their distances do."""
    order = np.argsort(distances, axis=1, kind="stable")
    columns = order if by_distance else np.indices(distances.shape)[1]
    values = np.take_along_axis(distances, columns, axis=1)
    offsets = np.arange(0, distances.size + 1, len(distances))
    return csr_array((values.ravel(), columns.ravel(), offsets), shape=distances.shape)


def answer(matrix, min_samples=2):
    model = HDBSCAN(
        min_cluster_size=5, min_samples=min_samples, metric="precomputed", copy=True
    )
    return model.fit(matrix)


def labels(matrix):
    try:
        found = len(answer(matrix).labels_)
    except KeyError:
        found = 0
    return f"{found} labels" if found == matrix.shape[0] else "40 labels or a KeyError"


def merges(model):
    return np.sort(model._single_linkage_tree_["value"])


print(f"scikit-learn {sklearn.__version__}")
random = np.random.default_rng(0)
two = np.concatenate([random.normal(0, 1, (20, 3)), random.normal(8, 1, (20, 3))])
for place, where in (("last", 40), ("in between", 7)):
    distances = squareform(pdist(np.insert(two, where, two[0], axis=0)))
    nearly = whole(distances)
    nearly.data[nearly.data == 0] = 1e-12
    print(
        f"41 points, the equal one {place}: dense {labels(distances)}, "
        f"sparse {labels(whole(distances))}, with 1e-12 for 0 {labels(nearly)}"
    )

centres = np.random.default_rng(1).standard_normal((9, 8))
noise = np.random.default_rng(2).standard_normal((90, 8))
distances = squareform(pdist(np.repeat(centres, 10, axis=0) + 0.4 * noise))
assert len(np.unique(distances)) == 90 * 89 // 2 + 1
bare = csr_array(distances)
dense, more = answer(distances, 2), answer(distances, 3)
for name, matrix in (("with", whole(distances)), ("without", bare)):
    sparse = answer(matrix, 2)
    print(
        f"min_samples 2, {name} diagonal: merges of the dense matrix "
        f"{np.array_equal(merges(sparse), merges(dense))}, of 3 "
        f"{np.array_equal(merges(sparse), merges(more))}, clusters of the dense matrix "
        f"{adjusted_rand_score(sparse.labels_, dense.labels_) == 1}"
    )
dbscan = DBSCAN(eps=1.2, min_samples=3, metric="precomputed")
same = np.array_equal(dbscan.fit_predict(distances), dbscan.fit_predict(bare.copy()))
print(f"DBSCAN without diagonal: labels of the dense matrix {same}")

graph = whole(distances, by_distance=True)
before = graph.copy()
answer(graph)
print(
    f"copy=True: columns as before {np.array_equal(before.indices, graph.indices)}, "
    f"distances as before {np.array_equal(before.toarray(), graph.toarray())}"
)
PYTHON
"$folder/venv/bin/python" "$folder/look.py" | tee "$folder/seen"
cat > "$folder/expected" <<'TEXT'
scikit-learn 1.9.1
41 points, the equal one last: dense 41 labels, sparse 40 labels or a KeyError, with 1e-12 for 0 41 labels
41 points, the equal one in between: dense 41 labels, sparse 40 labels or a KeyError, with 1e-12 for 0 41 labels
min_samples 2, with diagonal: merges of the dense matrix True, of 3 False, clusters of the dense matrix True
min_samples 2, without diagonal: merges of the dense matrix False, of 3 True, clusters of the dense matrix False
DBSCAN without diagonal: labels of the dense matrix True
copy=True: columns as before False, distances as before True
TEXT
diff "$folder/expected" "$folder/seen"
