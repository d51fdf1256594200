"""Populations: how similarly persons dress, and how much contrast places have."""

import dataclasses

from mmga.data.synthetic.textures import PATTERNS


@dataclasses.dataclass(frozen=True, slots=True)
class Population:
    """Clothes of the persons, and contrast of the places behind them.

    Attributes:
        schemes: number of colour schemes of the clothes; 0 for one to ten tops, at least three.
        common: whether training, validation and test draw their clothes' colours from the same
            schemes; otherwise each split has its own.
        contrast: whether a scheme is a dark, a light and a bright colour; otherwise three colours
            of cloth that can be told apart.
        patterns: of clothes and bags.
        scene_contrast: factor on the contrast of places; objects and bystanders in front of them
            are not affected.
    """

    schemes: int = 0
    common: bool = False
    contrast: bool = False
    patterns: tuple[str, ...] = PATTERNS
    scene_contrast: float = 1.0


POPULATIONS = {
    "varied": Population(),
    # A sixth of all persons wears the same colours, in patterns that show equal shares of them on
    # every height of the body: persons are told apart by patterns, cuts, prints and bags.
    "uniform": Population(
        schemes=6,
        common=True,
        contrast=True,
        patterns=(
            "hoops",
            "narrow hoops",
            "wide check",
            "wide diagonal",
            "chevron",
            "wide dots",
            "check",
            "camouflage",
            "wide stripes",
        ),
        scene_contrast=0.25,
    ),
}
"""Populations by name; `varied` is the built-in data set's."""
