"""Networks."""

from mmga.models.network import MMGA, PARTS, Output

__all__ = ["MMGA", "PARTS", "Output"]
