"""The one tuning: the learning rate of all rows, chosen on validation identities of split 0.

Rows 1 and 6 are trained with each rate for TUNING_EPOCHS, and their validation mAP is kept by
epoch; the rate with the highest mean serves every row. No test is looked at.
"""

import json
import shutil
from pathlib import Path

from benchmarks.photographs.pictures import Pictures
from benchmarks.photographs.rows import configuration
from benchmarks.photographs.trial import curve
from mmga.common.files import atomic_path
from mmga.data.dataset import DataSet, Subset
from mmga.training import trainer

RATES = (3.5e-4, 1e-3)
TUNING_ROWS = ("1", "6")
TUNING_EPOCHS = 6
TUNING_SEED = 100
"""A seed that no run of the table has."""


def tune(
    pictures: Pictures, weights: Path, out: Path, results: Path, rows: tuple[str, ...] = TUNING_ROWS
) -> dict[str, dict[str, float]]:
    """Return validation mAP by row, learning rate and epoch, and keep it in tuning.json."""
    file = results / "tuning.json"
    found: dict[str, dict[str, float]] = {}
    for name in rows:
        for rate in RATES:
            found = json.loads(file.read_text()) if file.is_file() else {}
            key = f"row {name}, lr {rate:g}"
            if str(TUNING_EPOCHS) in found.get(key, {}):
                continue
            folder = out / f"tuning-{name}-{rate:g}"
            shutil.rmtree(folder, ignore_errors=True)
            config = configuration(
                name, TUNING_SEED, pictures.plan, weights.resolve(), lr=rate, epochs=TUNING_EPOCHS
            )
            train, _ = pictures.split(0)
            none = Subset(train, [])
            trainer.train(config, folder, data=DataSet("photographs", train, none, none))
            found = json.loads(file.read_text()) if file.is_file() else {}
            found[key] = curve(folder)
            with atomic_path(file) as temporary:
                temporary.write_text(json.dumps(found, indent=1, sort_keys=True) + "\n")
    return found
