"""A person to test on."""

import numpy as np

# Upright in 128 x 64, arms away from the body; the order of mmga.bodyparts.skeleton.JOINTS.
STANDING = np.array(
    [
        [32, 6], [32, 22],
        [24, 26], [14, 40], [8, 54],
        [40, 26], [50, 40], [56, 54],
        [27, 66], [26, 92], [26, 116],
        [37, 66], [38, 92], [38, 116],
    ],
    float,
)  # fmt: skip
SIZE = (128, 64)
