"""Built-in synthetic persons: clothed figures in front of cameras, with exact part masks."""

from mmga.data.synthetic.challenge import CHALLENGES, SETTINGS, SEVERITIES
from mmga.data.synthetic.dataset import SyntheticData, SyntheticImages, synthetic

__all__ = ["CHALLENGES", "SETTINGS", "SEVERITIES", "SyntheticData", "SyntheticImages", "synthetic"]
