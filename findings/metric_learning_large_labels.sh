#!/bin/sh
# AccuracyCalculator of pytorch-metric-learning 2.9.0 casts labels to float32 before it compares them.
# Its documentation asks for integers. float32 has no odd integers above 2^24 = 16,777,216: persons
# numbered by date, by time or by a hash become one person where their numbers round alike.
# - Features that tell all persons apart are given a low mAP and R-precision: what is far counts as a
#   match that was missed.
# - Where all numbers round alike, as those of seconds since 1970 within two minutes may, random
#   features have every figure at 1. The query itself is left out, so that it is no cause.
# Labels of int64, of float64 and NumPy arrays are all cast. Nothing is said. The package's losses and
# miners compare the same labels as integers, rightly. Labels numbered from 0, as by
# np.unique(labels, return_inverse=True), give the right figures.
#
# Fails if one of this changes. Needs python3 with venv, and 6 GB of disk where torch has CUDA.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet pytorch-metric-learning==2.9.0 faiss-cpu==1.15.1 \
    torch==2.14.1 scikit-learn==1.9.1 numpy==2.4.6
cat > "$folder/look.py" <<'PYTHON'
from importlib.metadata import version

import numpy as np
import torch
from pytorch_metric_learning.utils.accuracy_calculator import AccuracyCalculator
from pytorch_metric_learning.utils.loss_and_miner_utils import get_all_pairs_indices

NAMES = {
    "precision_at_1": "rank 1",
    "mean_average_precision": "mAP",
    "r_precision": "R-precision",
}
random = np.random.default_rng(0)
persons = np.repeat(np.arange(50), 4)
one_hot = np.eye(50, dtype=np.float32)[persons]
features = {
    "all persons apart": one_hot + random.normal(0, 0.01, (200, 50)).astype(np.float32),
    "random": random.standard_normal((200, 50)).astype(np.float32),
}
labels = {
    "0 to 49": persons,
    "up to 2^24": persons + 2**24 - 49,
    "from 20,260,001": persons + 20_260_001,
    "from 20,260,001, float64": (persons + 20_260_001).astype(np.float64),
    "from 1,764,460,800": persons + 1_764_460_800,
    "from 1,764,460,800, renumbered": np.unique(persons + 1_764_460_800, return_inverse=True)[1],
}
calculator = AccuracyCalculator(include=tuple(NAMES), device=torch.device("cpu"))

print(f"pytorch-metric-learning {version('pytorch-metric-learning')}")
for name, numbers in labels.items():
    matches = len(get_all_pairs_indices(torch.from_numpy(numbers))[0])
    print(f"labels {name}: pairs of one person that miners see {matches}")
    for kind, crops in features.items():
        figures = calculator.get_accuracy(crops, numbers)
        print(f"  {kind}: " + ", ".join(f"{NAMES[key]} {figures[key]:.2f}" for key in NAMES))
PYTHON
"$folder/venv/bin/python" "$folder/look.py" | tee "$folder/seen"
cat > "$folder/expected" <<'TEXT'
pytorch-metric-learning 2.9.0
labels 0 to 49: pairs of one person that miners see 600
  all persons apart: rank 1 1.00, mAP 1.00, R-precision 1.00
  random: rank 1 0.04, mAP 0.05, R-precision 0.02
labels up to 2^24: pairs of one person that miners see 600
  all persons apart: rank 1 1.00, mAP 1.00, R-precision 1.00
  random: rank 1 0.04, mAP 0.05, R-precision 0.02
labels from 20,260,001: pairs of one person that miners see 600
  all persons apart: rank 1 1.00, mAP 0.54, R-precision 0.50
  random: rank 1 0.07, mAP 0.07, R-precision 0.05
labels from 20,260,001, float64: pairs of one person that miners see 600
  all persons apart: rank 1 1.00, mAP 0.54, R-precision 0.50
  random: rank 1 0.07, mAP 0.07, R-precision 0.05
labels from 1,764,460,800: pairs of one person that miners see 600
  all persons apart: rank 1 1.00, mAP 1.00, R-precision 1.00
  random: rank 1 1.00, mAP 1.00, R-precision 1.00
labels from 1,764,460,800, renumbered: pairs of one person that miners see 600
  all persons apart: rank 1 1.00, mAP 1.00, R-precision 1.00
  random: rank 1 0.04, mAP 0.05, R-precision 0.02
TEXT
diff "$folder/expected" "$folder/seen"
