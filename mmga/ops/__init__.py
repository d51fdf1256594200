"""Operators: wrappers, specified by `mmga.ops.reference`, with kernels in C++, CUDA and Triton.

Public are `attention_multiply`, `attention_pool` and `backends`, as well as
`distance.pairwise_distance`, exported as `mmga.pairwise_distance`. Everything else in `mmga.ops`,
the schemas of the operators included, may change without notice.
"""

from mmga.common.threads import survive_forks
from mmga.ops.attention import attention_multiply, attention_pool
from mmga.ops.backends import backends

survive_forks()

__all__ = ["attention_multiply", "attention_pool", "backends"]
