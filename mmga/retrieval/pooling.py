"""Multi-query: all images of one identity in one camera become one query."""

from __future__ import annotations

import numpy as np
import torch

from mmga.errors import UserError
from mmga.retrieval.features import JUNK, Features


def pooled(query: Features, pool: str) -> Features:
    """Return one query for each (pid, camid), in ascending order of both.

    Args:
        query: all images of the queries' identities and cameras (Market-1501's ``gt_bbox``); junk
            stays apart, one query for each image.
        pool: ``"mean"`` or ``"max"`` over the L2-normalised features; the result is normalised.

    Raises:
        UserError: cameras are missing, or these are part features.
    """
    if query.camids is None:
        raise UserError("protocol multi-query needs the camids of the query, which are missing")
    if len(query.rows.shape) != 2:
        raise UserError("protocol multi-query pools features [N, D], found part features")
    # Junk keeps its rows, so that the report counts it.
    own = np.where(query.pids == JUNK, np.arange(len(query)), -1)
    groups, inverse = np.unique(
        np.stack([query.pids, query.camids, own]), axis=1, return_inverse=True
    )
    inverse = inverse.reshape(-1)
    count = groups.shape[1]
    width = query.dimension
    result = torch.zeros(count, width, device=query.rows.device)
    if pool == "max":
        result.fill_(-torch.inf)
    for start in range(0, len(query), 4096):
        stop = min(start + 4096, len(query))
        rows = torch.nn.functional.normalize(query.rows.block(start, stop))
        at = torch.from_numpy(inverse[start:stop]).to(rows.device)
        if pool == "max":
            result.scatter_reduce_(0, at[:, None].expand(-1, width), rows, "amax")
        else:
            # The sum's direction is the mean's: it is normalised below.
            result.index_add_(0, at, rows)
    made = Features(torch.nn.functional.normalize(result), groups[0], groups[1])
    made.pid_names, made.camid_names = query.pid_names, query.camid_names
    made.source, made.notes = query.source, list(query.notes)
    return made
