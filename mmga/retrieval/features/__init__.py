"""Feature sets: the class, and reading and writing every file format it comes in."""

from mmga.retrieval.features.features import (
    JUNK,
    UNKNOWN,
    Features,
    common_labels,
    joined,
)
from mmga.retrieval.features.load import load_features, save_both

__all__ = ["JUNK", "UNKNOWN", "Features", "common_labels", "joined", "load_features", "save_both"]
