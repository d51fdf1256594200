"""Networks."""

from mmga.models.loading import load
from mmga.models.network import MMGA, PARTS, Output

__all__ = ["MMGA", "PARTS", "Output", "load"]
