"""Masks of whole, upper and bottom body: made by detectors, drawn from skeletons, or imported."""

from typing import Literal

Kind = Literal["lip", "atr", "pascal", "densepose", "mgcam", "bpbreid", "pose14", "silhouette"]
"""Sources of masks that `mmga.bodyparts.importers` reads."""
