"""Masks of whole, upper and bottom body: made by detectors, drawn from skeletons, or imported."""
