"""Networks."""

from mmga.models.loading import load
from mmga.models.network import MMGA, PARTS, Output
from mmga.models.pooled import Pooled

__all__ = ["MMGA", "PARTS", "Output", "Pooled", "load"]
