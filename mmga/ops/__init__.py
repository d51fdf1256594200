"""Operators: public functions here, their specification in `mmga.ops.reference`."""

from mmga.ops.backends import backends

__all__ = ["backends"]
