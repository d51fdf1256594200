"""What single gallery items are to queries under a protocol: matches, others, or left out and why.

`mmga.retrieval.protocols.selection` applies the same rules to whole sides at once.
"""

from __future__ import annotations

import numpy as np

from mmga.retrieval.features import JUNK
from mmga.retrieval.protocols.protocol import Protocol
from mmga.retrieval.protocols.selection import Labels, own_image

WRONG, RIGHT, CAMERA, JUNK_ITEM, UNKNOWN_ITEM, OWN_IMAGE, EXCLUDED = range(7)
MARKS = (
    "another identity",
    "same identity",
    "left out: camera of the query",
    "left out: junk",
    "left out: identity or camera unknown",
    "left out: image of the query",
    "left out: --exclude",
)
"""What each mark means; those above `RIGHT` are left out."""


def marks(protocol: Protocol, labels: Labels, query: np.ndarray, item: np.ndarray) -> np.ndarray:
    """Return the mark of each pair of a query and a gallery item: places in `MARKS`, uint8 [N].

    Args:
        protocol: the rules.
        labels: of both sides.
        query: rows of the queries, int64 [N].
        item: rows of the gallery, int64 [N].
    """
    same = labels.query_pids[query] == labels.gallery_pids[item]
    found = np.where(same, RIGHT, WRONG).astype(np.uint8)
    if labels.exclusion is not None:
        found[labels.exclusion.pairs(query, item)] = EXCLUDED
    if protocol.camera != "none":
        assert labels.query_camids is not None and labels.gallery_camids is not None
        camera = labels.query_camids[query] == labels.gallery_camids[item]
        found[camera if protocol.camera == "all" else camera & same] = CAMERA
    found[own_image(protocol, labels, query, item)] = OWN_IMAGE
    found[labels.unknown("gallery", protocol.needs_cameras)[item]] = UNKNOWN_ITEM
    found[labels.gallery_pids[item] == JUNK] = JUNK_ITEM
    return found
