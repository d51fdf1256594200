"""Rows and controls to compare, each a few changes of one configuration."""

from dataclasses import dataclass, field
from typing import Any

from benchmarks.ablation.plan import Plan
from mmga.common.errors import UserError
from mmga.config import Config, merged, recipe_config


@dataclass(frozen=True, slots=True)
class Row:
    """A row of the table.

    Attributes:
        what: short description.
        values: changes from row 6, as nested mappings.
        degraded: whether it is trained with degraded masks.
    """

    what: str
    values: dict[str, dict[str, Any]] = field(default_factory=dict)
    degraded: bool = False


ROWS = {
    "0": Row("one branch, no attention", {"model": {"attention": "none", "branches": "single"}}),
    "1": Row("three branches, no attention", {"model": {"attention": "none"}}),
    "2": Row(
        "module 1 alone, no masks",
        {"model": {"attention": "first"}, "loss": {"mask_weight": 0.0}},
    ),
    "3": Row("module 1 alone, with masks", {"model": {"attention": "first"}}),
    "4": Row("both modules, no masks", {"loss": {"mask_weight": 0.0}}),
    "5": Row("the whole mask on every map", {"loss": {"guide": "whole"}}),
    "6": Row("full: both modules, guided by masks"),
    "A": Row("the mean mask guides every image", {"loss": {"guide": "mean"}}),
    "B": Row("another person's mask guides", {"loss": {"guide": "other"}}),
    "C": Row("guided maps that are not multiplied in", {"model": {"attention": "auxiliary"}}),
    "D": Row(
        "masks paste new backgrounds, no attention",
        {"model": {"attention": "none"}, "batch": {"new_background": 0.5}},
    ),
    "E": Row("full, with degraded masks", degraded=True),
}
"""Rows by name. Control F (row 4 with average pooling) is row 4: all rows pool by average."""

MAIN = ("1", "6", "4", "A", "B", "D")
"""Rows that decide about the claim, in the order in which they are run."""


def row_named(name: str) -> Row:
    """Return a row.

    Raises:
        UserError: there is none of that name.
    """
    if name not in ROWS:
        raise UserError(f"--rows must be among {', '.join(ROWS)}, got {name!r}")
    return ROWS[name]


def configuration(name: str, seed: int, plan: Plan, threads: int = 1) -> Config:
    """Return the configuration of a row's run; rows differ in `Row.values` alone.

    Args:
        name: of the row.
        seed: of initialisation, sampling and augmentation.
        plan: sizes and learning rate.
        threads: of torch.
    """
    height, width = plan.size
    base = merged(
        recipe_config("synthetic"),
        {
            "data": {
                "height": height,
                "width": width,
                "persons": plan.train_persons,
                "test_persons": plan.test_persons,
                "population": plan.population,
                "data_seed": plan.seed,
            },
            "batch": {"p": plan.p, "k": plan.k, "pad": plan.pad},
            # The triplet weighs a fifth of what it does in the recipe, beside identities and masks,
            # and its large first gradients are forgotten sooner: row 1 then learns faster.
            "loss": {"id_weight": 5.0, "mask_weight": 100.0},
            "optimizer": {"lr": plan.lr, "beta2": 0.95, "amsgrad": False},
            "run": {
                "epochs": plan.epochs,
                "seed": seed,
                "threads": threads,
                "flip_test": False,
                "log_every": plan.log_every,
            },
        },
        where="ablation",
    )
    return merged(base, row_named(name).values, where=f"row {name}")
