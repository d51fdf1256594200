"""Clothing Co-Parsing in miniature: photographs of painted persons with labels of garments."""

import numpy as np
from PIL import Image

from mmga.common import mat

NAMES = ("null", "skin", "hair", "t-shirt", "jeans", "shoes", "coat", "bag", "dress")


def standing(size=(160, 100)):
    """Return labels [H, W] of a person: hair, skin, t-shirt, jeans, shoes, and a bag beside."""
    garments = np.zeros(size, np.float64)
    for name, top, bottom, left, right in (
        ("hair", 8, 14, 44, 56),
        ("skin", 14, 26, 44, 56),
        ("t-shirt", 26, 78, 36, 64),
        ("jeans", 78, 140, 40, 60),
        ("shoes", 140, 150, 38, 62),
        ("bag", 80, 100, 64, 76),
    ):
        garments[top:bottom, left:right] = NAMES.index(name)
    return garments


def folder(root, count):
    """Write `count` photographs of such a person in other colours, and their labels."""
    for place in ("photos", "annotations/pixel-level"):
        (root / place).mkdir(parents=True)
    mat.write(root / "label_list.mat", {"label_list": np.array(NAMES)})
    rng = np.random.default_rng(0)
    for i in range(1, count + 1):
        garments = standing()
        colours = rng.integers(0, 256, (len(NAMES), 3))
        picture = colours[garments.astype(int)].astype(np.uint8)
        Image.fromarray(picture).save(root / "photos" / f"{i:04d}.jpg")
        mat.write(root / "annotations/pixel-level" / f"{i:04d}.mat", {"groundtruth": garments})
    return root
