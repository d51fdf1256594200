"""The sizes of the experiment on photographs: splits, images, epochs. Imports no torch."""

from dataclasses import dataclass

SETS = ("viper", "prid450s", "pku_reid")
"""Sets that are pooled, by the names of their folders."""

TESTS = ("clean", "misaligned", "occluded", "clutter", "clutter-silhouettes")
"""Tests of held-out identities. The last one is of VIPeR alone, whose silhouettes are SDALF's."""

PARTIAL = ("occluded-whole", "partial-whole")
"""Tests on Partial-REID, on which nobody trains."""

HARD = ("misaligned", "occluded", "clutter")
"""Tests of all identities that are harder than the clean one."""

VIPER_SPLITS = 10
"""Random halves of VIPeR, as its reader draws them."""


@dataclass(frozen=True, slots=True)
class Plan:
    """Sizes of the experiment, equal for all rows.

    Attributes:
        splits: parts of the identities of each set; each part is the test of one split.
        validation: training identities held out to draw the learning curve.
        size: (H, W) to which images and masks are resized.
        backbone: of all rows, with ImageNet's weights.
        frozen_stages: of the backbone.
        p: identities in a batch.
        k: images of each.
        pad: pixels of padding before the random crop.
        epochs: of a run on the pooled sets.
        viper_epochs: of a run on half of VIPeR.
        lr: learning rate of every row; chosen by `tuning`.
        eval_every: epochs between validations.
        seed: of the splits and of the degraded tests.
    """

    splits: int = 5
    validation: int = 100
    size: tuple[int, int] = (128, 64)
    backbone: str = "torchvision:mobilenet_v2"
    frozen_stages: int = 3
    p: int = 32
    k: int = 2
    pad: int = 6
    epochs: int = 4
    viper_epochs: int = 12
    lr: float = 1e-3
    eval_every: int = 2
    seed: int = 0
