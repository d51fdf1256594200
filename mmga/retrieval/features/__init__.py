"""Feature sets: the class, and reading and writing every file format it comes in."""

from mmga.retrieval.features.features import JUNK, Features, common_labels, joined, named
from mmga.retrieval.features.load import load_features, save_both

__all__ = ["JUNK", "Features", "common_labels", "joined", "load_features", "named", "save_both"]
