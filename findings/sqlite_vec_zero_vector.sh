#!/bin/sh
# One zero vector in a vec0 table of sqlite-vec 0.1.9 with distance_metric=cosine hides other vectors
# from a search. vec0 compares the query with all rows, 1,024 at a time (a chunk); the distance of the
# zero vector is NaN, and nothing is found to be nearer than NaN where it stands first.
# - A zero vector in the first row of a chunk hides all rows of this chunk and of those before it, to
#   every query and for every k, without being in the answer itself. In the last chunk it is the
#   nearest neighbour of every query.
# - A condition on a metadata column makes the first row that it lets through the first: which rows are
#   hidden then depends on the query's camera.
# - ORDER BY vec_distance_cosine(...) without vec0 puts the zero vector first: NaN is NULL to SQLite,
#   and NULL sorts first.
# With L2 on normalised rows, where a zero vector is at distance 1, all are found; but vec_normalize of
# a zero vector is NaN, which is stored and hides rows likewise. Nothing is raised, no warning given. The
# documentation says nothing of zero vectors. A fork (vlasky/sqlite-vec, issue 8) refuses them since
# August 2026. Features of body parts that are hidden in a crop are such vectors.
# LanceDB 0.40.0 leaves these rows out, Milvus Lite 3.2.2 and qdrant-client 1.20.0 in local mode give
# them a similarity of 0, DuckDB 2.0.1 sorts them last.
#
# Fails if one of this changes. Needs python3 with venv; apsw brings an SQLite that loads extensions.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet sqlite-vec==0.1.9 apsw==3.54.1.0 numpy==2.4.6
cat > "$folder/look.py" <<'PYTHON'
from importlib.metadata import version

import apsw
import numpy as np
import sqlite_vec

CHUNK, CHUNKS, EACH = 1024, 3, 32  # rows of a chunk, chunks, rows of an identity
random = np.random.default_rng(0)
people = random.standard_normal((CHUNKS * CHUNK // EACH, 64))
identities = np.repeat(np.arange(len(people)), EACH)
gallery = people[identities] + 0.3 * random.standard_normal((len(identities), 64))
gallery = (gallery / np.linalg.norm(gallery, axis=1, keepdims=True)).astype(np.float32)
queries = (people + 0.3 * random.standard_normal(people.shape)).astype(np.float32)
queries /= np.linalg.norm(queries, axis=1, keepdims=True)
chunk_of_query = np.arange(len(people)) * EACH // CHUNK

SEARCH = "SELECT id FROM gallery WHERE vector MATCH ? AND k = 10"
CAMERA = f"{SEARCH} AND camera != 1"
PLAIN = "SELECT id FROM gallery ORDER BY vec_distance_cosine(vector, ?) LIMIT 10"


def look(name, zero, search=SEARCH, metric="cosine", value="?"):
    database = apsw.Connection(":memory:")
    database.enable_load_extension(True)
    database.load_extension(sqlite_vec.loadable_path())
    database.execute(
        "CREATE VIRTUAL TABLE gallery USING vec0"
        f"(id INTEGER PRIMARY KEY, camera INTEGER, vector FLOAT[64] distance_metric={metric})"
    )
    features = gallery.copy()
    if zero is not None:
        features[zero] = 0
    with database:
        database.executemany(
            f"INSERT INTO gallery VALUES (?, ?, {value})",
            ((row, 1 if row < 5 else 2, vector.tobytes()) for row, vector in enumerate(features)),
        )
    found = np.array([database.execute(search, (query.tobytes(),)).fetchall() for query in queries])
    found = found[:, :, 0]
    right = (identities[found] == np.arange(len(people))[:, None]) & (found != zero)
    seen = [
        f"chunk {chunk + 1} {'all' if own.all() else 'none' if not own.any() else 'some'}"
        for chunk, own in ((n, right[chunk_of_query == n]) for n in range(CHUNKS))
    ]
    first = "all queries" if (found[:, 0] == zero).all() else "none"
    print(f"{name}: right among 10 nearest: {', '.join(seen)}; zero vector first for {first}")


print(f"sqlite-vec {version('sqlite-vec')}")
look("no zero vector", None)
for row in (0, 5, 1023, 1024, 2048):
    look(f"zero vector in row {row}", row)
look("row 5, camera of rows 0 to 4 left out", 5, CAMERA)
look("row 1024, L2", 1024, metric="L2")
look("row 1024, L2 of vec_normalize", 1024, metric="L2", value="vec_normalize(?)")
look("row 1500, ORDER BY", 1500, PLAIN)
PYTHON
"$folder/venv/bin/python" "$folder/look.py" | tee "$folder/seen"
cat > "$folder/expected" <<'TEXT'
sqlite-vec 0.1.9
no zero vector: right among 10 nearest: chunk 1 all, chunk 2 all, chunk 3 all; zero vector first for none
zero vector in row 0: right among 10 nearest: chunk 1 none, chunk 2 all, chunk 3 all; zero vector first for none
zero vector in row 5: right among 10 nearest: chunk 1 all, chunk 2 all, chunk 3 all; zero vector first for none
zero vector in row 1023: right among 10 nearest: chunk 1 all, chunk 2 all, chunk 3 all; zero vector first for none
zero vector in row 1024: right among 10 nearest: chunk 1 none, chunk 2 none, chunk 3 all; zero vector first for none
zero vector in row 2048: right among 10 nearest: chunk 1 some, chunk 2 some, chunk 3 some; zero vector first for all queries
row 5, camera of rows 0 to 4 left out: right among 10 nearest: chunk 1 none, chunk 2 all, chunk 3 all; zero vector first for none
row 1024, L2: right among 10 nearest: chunk 1 all, chunk 2 all, chunk 3 all; zero vector first for none
row 1024, L2 of vec_normalize: right among 10 nearest: chunk 1 none, chunk 2 none, chunk 3 all; zero vector first for none
row 1500, ORDER BY: right among 10 nearest: chunk 1 some, chunk 2 some, chunk 3 some; zero vector first for all queries
TEXT
diff "$folder/expected" "$folder/seen"
