#!/bin/sh
# voyager 2.2.3 (and 2.0.9, 2.1.0, 2.2.0) reads an array as its memory lies, whatever its strides:
# features that are not stored row by row become other vectors, without an error or a warning. Its
# documentation asks for "a 32-bit floating-point NumPy array, with shape (num_vectors,
# num_dimensions)". Such arrays are the features of a .mat file (scipy.io.loadmat returns column
# order), the transpose of [D, N], and some columns of wider rows, as the features of one part are.
# - add_items, add_item and query misread alike. An index that is filled from an array and asked for
#   the same array finds its items by themselves, so that this usual check passes.
# - Queries that are stored row by row find wrong identities in it.
# faiss-cpu 1.15.1, hnswlib 0.8.0, ScaNN 1.4.2, Annoy 1.17.3 and scikit-learn 1.9.1 take such arrays
# for what they are; USearch 2.26.6 and mrpt 2.0.4 refuse them. np.ascontiguousarray makes voyager
# right.
#
# Fails if one of this changes. Needs python3 with venv.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet voyager==2.2.3 scipy==1.17.1 numpy==2.4.6
cat > "$folder/look.py" <<'PYTHON'
import sys
from importlib.metadata import version

import numpy as np
import scipy.io
from voyager import Index, Space


def index_of(features):
    index = Index(Space.Euclidean, features.shape[1], random_seed=0)
    index.add_items(features, num_threads=1)
    return index


def first(index, queries):
    return index.query(queries, k=1, num_threads=1)[0].ravel()


def share(found):
    return "above 0.9" if found.mean() > 0.9 else "below 0.2" if found.mean() < 0.2 else "between"


random = np.random.default_rng(0)
identities = np.repeat(np.arange(50), 8)
people = random.standard_normal((50, 128))
parts = (people[identities] + 0.3 * random.standard_normal((400, 128))).astype(np.float32)
gallery = parts[:, :64].copy()
queries = (people[:, :64] + 0.3 * random.standard_normal((50, 64))).astype(np.float32)
scipy.io.savemat(f"{sys.argv[1]}/gallery.mat", {"features": gallery})

arrays = {
    "row by row": gallery,
    "np.asfortranarray": np.asfortranarray(gallery),
    "columns [:, :64] of 128": parts[:, :64],
    "scipy.io.loadmat": scipy.io.loadmat(f"{sys.argv[1]}/gallery.mat")["features"],
}
arrays["loadmat, ascontiguousarray"] = np.ascontiguousarray(arrays["scipy.io.loadmat"])
print(f"voyager {version('voyager')}")
rows = np.arange(400)
for name, features in arrays.items():
    assert np.array_equal(features, gallery)
    index = index_of(features)
    single = Index(Space.Euclidean, 64)
    single.add_item(features[3])
    print(
        f"{name}: add_items stores them {np.array_equal(index.get_vectors(rows), gallery)}, "
        f"add_item {np.array_equal(single.get_vectors([0])[0], gallery[3])}, "
        f"rank-1 {share(identities[first(index, queries)] == np.arange(50))}, "
        f"itself first {share(first(index, features) == rows)}"
    )
index = index_of(gallery)
for name, array in (("row by row", queries), ("np.asfortranarray", np.asfortranarray(queries))):
    right = identities[first(index, array)] == np.arange(50)
    print(f"gallery row by row, queries {name}: rank-1 {share(right)}")
PYTHON
"$folder/venv/bin/python" "$folder/look.py" "$folder" | tee "$folder/seen"
cat > "$folder/expected" <<'TEXT'
voyager 2.2.3
row by row: add_items stores them True, add_item True, rank-1 above 0.9, itself first above 0.9
np.asfortranarray: add_items stores them False, add_item False, rank-1 below 0.2, itself first above 0.9
columns [:, :64] of 128: add_items stores them False, add_item True, rank-1 below 0.2, itself first above 0.9
scipy.io.loadmat: add_items stores them False, add_item False, rank-1 below 0.2, itself first above 0.9
loadmat, ascontiguousarray: add_items stores them True, add_item True, rank-1 above 0.9, itself first above 0.9
gallery row by row, queries row by row: rank-1 above 0.9
gallery row by row, queries np.asfortranarray: rank-1 below 0.2
TEXT
diff "$folder/expected" "$folder/seen"
