#!/bin/sh
# InMemoryExactNNIndex of DocArray 0.41.0 ("exact" by name) misses nearest neighbours where vectors are
# NumPy arrays. LangChain's DocArrayInMemorySearch searches with it.
# - euclidean_dist is the root of |x|^2 + |y|^2 - 2 <x, y>. Where x and y are equal, or nearly, rounding
#   makes that negative. What is above -1e-7 is set to 0, but float32 numbers above 1 are 1.2e-7 apart:
#   the distance is NaN, which sorts last. Some crops of the gallery are not among the 10 nearest of
#   themselves. sqeuclidean_dist, the same without the root, finds them.
# - cosine_sim, the default, adds 1e-7 to the dot product as it does to the divisor: a zero vector has
#   similarity 1 to every vector, and shares the first place with the query's equal.
# - Vectors of int8, to which features are quantised, are multiplied in int8, and their sums wrap.
# NumPy warns of an invalid value in sqrt; else nothing is said. The index's rules for torch tensors are
# others: it answers those of the same float32 numbers rightly (torch 2.14.1).
#
# Fails if one of this changes. Needs python3 with venv.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet docarray==0.41.0 pydantic==2.14.4 numpy==2.4.6
cat > "$folder/look.py" <<'PYTHON'
from importlib.metadata import version

import numpy as np
from docarray import BaseDoc, DocList
from docarray.index import InMemoryExactNNIndex
from docarray.typing import NdArray
from pydantic import Field

ZERO = 7
random = np.random.default_rng(0)
features = random.standard_normal((400, 64))
features = (features / np.linalg.norm(features, axis=1, keepdims=True)).astype(np.float32)
with_zero = features.copy()
with_zero[ZERO] = 0
small = np.rint(127 * features / abs(features).max()).astype(np.int8)
rows = np.arange(100, 200)


def amount(found):
    return "all" if found.all() else "some" if found.any() else "none"


def look(name, space, gallery, queries):
    class Crop(BaseDoc):
        row: int
        vector: NdArray = Field(space=space)

    crops = DocList[Crop]([Crop(row=row, vector=vector) for row, vector in enumerate(gallery)])
    index = InMemoryExactNNIndex[Crop](crops)
    answers = [index.find(queries[row], search_field="vector", limit=10)[0] for row in rows]
    found = np.array([[crop.row for crop in answer] for answer in answers])
    own, zero = found == rows[:, None], found[:, :2] == ZERO
    print(
        f"{space}, {name}: themselves among the 10 nearest of {amount(own.any(axis=1))}, "
        f"zero vector first or second of {amount(zero.any(axis=1))}"
    )


print(f"DocArray {version('docarray')}")
for space in ("euclidean_dist", "sqeuclidean_dist", "cosine_sim"):
    look("float32", space, features, features)
    look("float32, queries 8e-5 off", space, features, features + np.float32(1e-5))
    look("int8", space, small, small)
look("float32 with a zero vector", "cosine_sim", with_zero, with_zero)
PYTHON
"$folder/venv/bin/python" -W ignore "$folder/look.py" | tee "$folder/seen"
cat > "$folder/expected" <<'TEXT'
DocArray 0.41.0
euclidean_dist, float32: themselves among the 10 nearest of some, zero vector first or second of none
euclidean_dist, float32, queries 8e-5 off: themselves among the 10 nearest of some, zero vector first or second of none
euclidean_dist, int8: themselves among the 10 nearest of some, zero vector first or second of none
sqeuclidean_dist, float32: themselves among the 10 nearest of all, zero vector first or second of none
sqeuclidean_dist, float32, queries 8e-5 off: themselves among the 10 nearest of all, zero vector first or second of none
sqeuclidean_dist, int8: themselves among the 10 nearest of some, zero vector first or second of none
cosine_sim, float32: themselves among the 10 nearest of all, zero vector first or second of none
cosine_sim, float32, queries 8e-5 off: themselves among the 10 nearest of all, zero vector first or second of none
cosine_sim, int8: themselves among the 10 nearest of some, zero vector first or second of none
cosine_sim, float32 with a zero vector: themselves among the 10 nearest of all, zero vector first or second of all
TEXT
diff "$folder/expected" "$folder/seen"
