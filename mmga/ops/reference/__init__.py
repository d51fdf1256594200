"""The specification of every op, in plain PyTorch that runs on any device.

Kernels, tests and benchmarks are held against this package; it imports torch and nothing of ours.
Where a result depends on the order of arithmetic, the order written here is the one meant.
"""

from mmga.ops.reference.attention import *  # noqa: F403
from mmga.ops.reference.certified import *  # noqa: F403
from mmga.ops.reference.distance import *  # noqa: F403
from mmga.ops.reference.k_reciprocal import *  # noqa: F403
from mmga.ops.reference.neighbours import *  # noqa: F403
from mmga.ops.reference.ranking import *  # noqa: F403
