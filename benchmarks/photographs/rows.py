"""Rows and controls on photographs: those of the ablation."""

from pathlib import Path

from benchmarks.ablation.rows import ROWS as ABLATION
from benchmarks.ablation.rows import Row
from benchmarks.photographs.plan import Plan
from mmga.common.errors import UserError
from mmga.config import Config, merged, recipe_config

MAIN = ("6", "4", "1")
"""Rows that decide about the claim."""

CONTROLS = ("A", "B")
"""Controls whose masks are not those of the image."""

STRIPES = {"model": {"heads": 8}}
"""Two stripes of upper and three of bottom body as well (MGN, Wang et al., ACM MM 2018)."""

ROWS = {
    **ABLATION,
    "6a": Row("full, masks with blurred borders", {"loss": {"mask_blur": 0.04}}),
    "6b": Row("full, guidance fades out", {"loss": {"mask_fade": 1.0}}),
    "6c": Row("full, parts of the body covered", {"batch": {"part_drop": 0.3}}),
    "6S": Row("full, with stripes", STRIPES),
    "4S": Row("both modules, no masks, with stripes", {**STRIPES, "loss": {"mask_weight": 0.0}}),
}
"""Rows by name, those of the ablation first."""


def row_named(name: str) -> Row:
    """Return a row.

    Raises:
        UserError: there is none of that name.
    """
    if name not in ROWS:
        raise UserError(f"--rows must be among {', '.join(ROWS)}, got {name!r}")
    return ROWS[name]


def configuration(
    name: str,
    seed: int,
    plan: Plan,
    weights: Path,
    *,
    viper: bool = False,
    lr: float | None = None,
    epochs: int | None = None,
) -> Config:
    """Return the configuration of a row's run; rows differ in `Row.values` alone.

    Args:
        name: of the row.
        seed: of initialisation, sampling and augmentation.
        plan: sizes and learning rate.
        weights: ImageNet weights of the backbone.
        viper: whether the run is of VIPeR alone, which holds out no training identities.
        lr: learning rate in place of the plan's.
        epochs: in place of the plan's.
    """
    height, width = plan.size
    length = epochs or (plan.viper_epochs if viper else plan.epochs)
    base = merged(
        recipe_config("bot"),
        {
            "data": {
                "height": height,
                "width": width,
                "val_ids": 0 if viper else plan.validation,
            },
            # One copy of the late stages serves all branches: twice the epochs in the same time.
            "model": {
                "backbone": plan.backbone,
                "weights": str(weights),
                "branches": "shared",
                "frozen_stages": plan.frozen_stages,
                "pool": "avg",
                "spatial_kernel": 3,
                "read0": "layer2",
            },
            "loss": {"mask_weight": 5.0},
            "batch": {"p": plan.p, "k": plan.k, "pad": plan.pad},
            "optimizer": {
                "lr": lr or plan.lr,
                "attention_lr": 3.0,
                "schedule": "cosine",
                "warmup_epochs": 0,
            },
            "run": {
                "epochs": length,
                "seed": seed,
                "threads": 1,
                "channels_last": True,
                "flip_test": False,
                "eval_every": length if viper else plan.eval_every,
                "checkpoint_every": length if viper else plan.eval_every,
                "log_every": 10,
            },
        },
        where="photographs",
    )
    return merged(base, row_named(name).values, where=f"row {name}")
