"""The one tuning there is: the learning rate of all rows, chosen on validation identities.

The rule: row 1, which has neither attention nor masks, is trained for TUNING_EPOCHS with each rate
of RATES and seed TUNING_SEED; the rate with the highest validation mAP serves every row.
No other setting is tuned for any row, so that none has had more trials than another.
"""

import dataclasses
import json
import shutil
from pathlib import Path

from benchmarks.ablation.pictures import Pictures
from benchmarks.ablation.rows import configuration
from mmga.common.files import atomic_path
from mmga.config import merged
from mmga.data.dataset import DataSet
from mmga.training import trainer

RATES = (2e-3, 4e-3)
TUNING_EPOCHS = 8
TUNING_SEED = 100
"""A seed that no run of the table has."""


def tune(pictures: Pictures, out: Path, results: Path, *, threads: int = 1) -> dict[str, float]:
    """Return validation mAP by learning rate, and keep it in `results`/tuning.json."""
    file = results / "tuning.json"
    found: dict[str, float] = json.loads(file.read_text()) if file.is_file() else {}
    epochs = min(TUNING_EPOCHS, pictures.plan.epochs)
    short = dataclasses.replace(pictures.plan, epochs=epochs)
    for rate in RATES:
        if f"{rate:g}" in found:
            continue
        folder = out / f"tuning-{rate:g}"
        shutil.rmtree(folder, ignore_errors=True)
        config = merged(
            configuration("1", TUNING_SEED, short, threads),
            {"optimizer": {"lr": rate}},
            where="tuning",
        )
        data = DataSet("synthetic", pictures.train(), *pictures.validation())
        metrics = trainer.train(config, folder, data=data, progress=pictures.progress).metrics
        found[f"{rate:g}"] = round(metrics["mAP"], 5)
        with atomic_path(file) as temporary:
            temporary.write_text(json.dumps(found, indent=1) + "\n")
    return found
