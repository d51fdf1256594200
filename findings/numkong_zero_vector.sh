#!/bin/sh
# The cosine distance between a zero vector and another is 1, NaN or 0 in NumKong 7.8.6, as function,
# type and CPU decide. Its page on spatial distances defines angular(a, b) as 1, and as 0 where both
# are zero.
# - angular(a, b) is 1 for every type and CPU.
# - cdist(a, b, "angular") is 1 for float16 and int8. For float32 and float64 it is NaN with AVX2, as
#   SciPy's is, but 0 with the portable kernels, for CPUs that NumKong has no others for.
# - angulars_packed is NaN with AVX2 and 0 without, for all of these types.
# With 0 the zero vector (a crop without a person, say) is the nearest neighbour of every query; with
# NaN it is that by argmin, and the farthest by argsort. Nothing is raised, no warning given.
# USearch 2.26.6, which computes with NumKong, gives 1 in an exact search.
#
# Fails if one of this changes. Needs python3 with venv and an x86-64 CPU with AVX2.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet numkong==7.8.6 numpy==2.4.6
cat > "$folder/look.py" <<'PYTHON'
import numkong
import numpy as np

AVX2 = "haswell"  # NumKong's name of these kernels; "serial", the portable ones, are always there
random = np.random.default_rng(0)
queries = np.rint(20 * random.standard_normal((20, 64)))
gallery = np.rint(20 * random.standard_normal((50, 64)))
gallery[7] = 0


def one(values):
    (value,) = np.unique(values)
    return value


present = {name for name, there in numkong.get_capabilities().items() if there}
assert AVX2 in present, "this CPU has no AVX2"
for kernel in present - {"serial"}:
    numkong.disable_capability(kernel)
print(f"NumKong {numkong.__version__}")
for name in ("portable", "AVX2"):
    if name == "AVX2":
        numkong.enable_capability(AVX2)
    for kind in (np.float32, np.float64, np.float16, np.int8):
        a, b = queries.astype(kind), gallery.astype(kind)
        distances = np.asarray(numkong.cdist(a, b, "angular"))
        packed = np.asarray(numkong.angulars_packed(a, numkong.dots_pack(b)))
        first = (distances.argmin(axis=1) == 7).sum(), (distances.argsort(axis=1)[:, 0] == 7).sum()
        print(
            f"{name}, {kind.__name__}: angular {one([numkong.angular(row, b[7]) for row in a])}, "
            f"cdist {one(distances[:, 7])}, angulars_packed {one(packed[:, 7])}; "
            f"nearest of {first[0]} queries by argmin, of {first[1]} by argsort"
        )
PYTHON
"$folder/venv/bin/python" "$folder/look.py" | tee "$folder/seen"
cat > "$folder/expected" <<'TEXT'
NumKong 7.8.6
portable, float32: angular 1.0, cdist 0.0, angulars_packed 0.0; nearest of 20 queries by argmin, of 20 by argsort
portable, float64: angular 1.0, cdist 0.0, angulars_packed 0.0; nearest of 20 queries by argmin, of 20 by argsort
portable, float16: angular 1.0, cdist 1.0, angulars_packed 0.0; nearest of 0 queries by argmin, of 0 by argsort
portable, int8: angular 1.0, cdist 1.0, angulars_packed 0.0; nearest of 0 queries by argmin, of 0 by argsort
AVX2, float32: angular 1.0, cdist nan, angulars_packed nan; nearest of 20 queries by argmin, of 0 by argsort
AVX2, float64: angular 1.0, cdist nan, angulars_packed nan; nearest of 20 queries by argmin, of 0 by argsort
AVX2, float16: angular 1.0, cdist 1.0, angulars_packed nan; nearest of 0 queries by argmin, of 0 by argsort
AVX2, int8: angular 1.0, cdist 1.0, angulars_packed nan; nearest of 0 queries by argmin, of 0 by argsort
TEXT
diff "$folder/expected" "$folder/seen"
