#!/bin/sh
# scikit-learn 1.9.1 reads one sparse matrix of distances in two ways. DBSCAN(metric="precomputed")
# takes it as a "sparse graph": a pair that is not stored is far. silhouette_score and
# silhouette_samples take the same matrix with the same metric and count such a pair as distance 0.
# Their documentation allows sparse matrices and says nothing of it.
# A cluster to which a point has no stored pair then is its nearest one, at mean distance 0. Clusters
# that lie far apart have -1, the worst score; random labels of the same points score higher, and of
# two eps the wrong one is best. Nothing is raised, no warning given. The dense matrix is scored as it
# should be, and so is the sparse one where all pairs are stored.
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
from scipy.spatial.distance import pdist, squareform
from sklearn.cluster import DBSCAN
from sklearn.metrics import adjusted_rand_score, silhouette_score
from sklearn.neighbors import radius_neighbors_graph

random = np.random.default_rng(0)
identities = np.repeat(np.arange(10), 20)
places = np.stack([8.0 * identities, np.zeros(200)], axis=1)
points = places + random.normal(0, 0.5, (200, 2))
dense = squareform(pdist(points))


def within(radius):
    return radius_neighbors_graph(points, radius, mode="distance", include_self=True)


def score(matrix, labels):
    return f"{silhouette_score(matrix, labels, metric='precomputed'):.2f}"


print(f"scikit-learn {sklearn.__version__}")
all_labels = {}
for eps in (0.5, 1.5):
    model = DBSCAN(eps=eps, min_samples=4, metric="precomputed")
    labels = model.fit_predict(dense)
    agree = all(np.array_equal(labels, model.fit_predict(within(r))) for r in (3, 12))
    right = adjusted_rand_score(identities, labels) == 1
    print(f"DBSCAN, eps {eps}: labels of sparse and dense equal {agree}, identities {right}")
    all_labels[f"eps {eps}"] = labels
all_labels["random labels"] = random.permutation(identities)
for name, labels in all_labels.items():
    print(
        f"silhouette, {name}: dense {score(dense, labels)}, "
        f"pairs up to 3 stored {score(within(3), labels)}, "
        f"up to 12 {score(within(12), labels)}, all {score(within(100), labels)}"
    )
PYTHON
"$folder/venv/bin/python" "$folder/look.py" | tee "$folder/seen"
cat > "$folder/expected" <<'TEXT'
scikit-learn 1.9.1
DBSCAN, eps 0.5: labels of sparse and dense equal True, identities False
DBSCAN, eps 1.5: labels of sparse and dense equal True, identities True
silhouette, eps 0.5: dense 0.65, pairs up to 3 stored -0.98, up to 12 -1.00, all 0.65
silhouette, eps 1.5: dense 0.88, pairs up to 3 stored -1.00, up to 12 -1.00, all 0.88
silhouette, random labels: dense -0.17, pairs up to 3 stored -0.72, up to 12 -0.46, all -0.17
TEXT
diff "$folder/expected" "$folder/seen"
