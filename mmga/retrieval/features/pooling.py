"""Multi-query: all images of one identity in one camera become one query."""

from __future__ import annotations

import numpy as np
import torch

from mmga.common.errors import UserError
from mmga.ops.distance import unit_rows
from mmga.retrieval.features.features import JUNK, UNKNOWN, Features


def pooled(query: Features, pool: str) -> Features:
    """Return one query for each (pid, camid), in ascending order of both.

    Args:
        query: all images of the queries' identities and cameras (Market-1501's ``gt_bbox``); junk
            stays apart, one query for each image.
        pool: ``"mean"`` or ``"max"`` over the L2-normalised features; the result is normalised.
            Part features are pooled part by part, weighted by their visibility; a pooled part is
            as visible as in the image that shows it best.

    Raises:
        UserError: cameras are missing.
    """
    if query.camids is None:
        raise UserError(
            "protocol multi-query needs the camids of the query, which are missing; give them, or "
            "choose protocol no-camera"
        )
    # Junk and what is unknown keep their rows, so that the report counts them.
    apart = np.isin(query.pids, (JUNK, UNKNOWN)) | (query.camids == UNKNOWN)
    own = np.where(apart, np.arange(len(query)), -1)
    groups, inverse = np.unique(
        np.stack([query.pids, query.camids, own]), axis=1, return_inverse=True
    )
    inverse = inverse.reshape(-1)
    count = groups.shape[1]
    result = torch.zeros(
        count, *query.rows.shape[1:], dtype=torch.float32, device=query.rows.device
    )
    if pool == "max":
        result.fill_(-torch.inf)
    for start in range(0, len(query), 4096):
        stop = min(start + 4096, len(query))
        rows = unit_rows(query.rows.block(start, stop))
        if query.visibility is not None:
            weight = query.visibility[start:stop, :, None].to(rows.device)
            # An unseen part takes no part in a maximum, and a part seen by half counts by half.
            rows = rows.masked_fill(weight == 0, -torch.inf) if pool == "max" else rows * weight
        at = torch.from_numpy(inverse[start:stop]).to(rows.device)
        if pool == "max":
            place = at.reshape(-1, *[1] * (rows.dim() - 1)).expand_as(rows)
            result.scatter_reduce_(0, place, rows, "amax")
        else:
            # The sum's direction is the mean's: it is normalised below.
            result.index_add_(0, at, rows)
    result = unit_rows(result.masked_fill_(result == -torch.inf, 0))
    if query.visibility is None:
        made = Features(result, groups[0], groups[1])
    else:
        seen = torch.zeros(count, result.shape[1], dtype=torch.float32, device="cpu")
        at = torch.from_numpy(inverse)[:, None].expand_as(query.visibility)
        seen.scatter_reduce_(0, at, query.visibility, "amax")
        made = Features(None, groups[0], groups[1], parts=result, visibility=seen)
    made.pid_names, made.camid_names = query.pid_names, query.camid_names
    made.source, made.notes = query.source, list(query.notes)
    return made
