"""Operators: public functions here, their specification in `mmga.ops.reference`."""

from mmga.ops.attention import attention_multiply, attention_pool
from mmga.ops.backends import backends

__all__ = ["attention_multiply", "attention_pool", "backends"]
