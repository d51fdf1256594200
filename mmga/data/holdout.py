"""Training identities held out for validation, so that nothing is ever chosen on test metrics."""

import numpy as np

from mmga.common.errors import UserError
from mmga.data.dataset import ImageSet, Subset

SEED = 0
"""The held-out identities depend on the data set alone: runs of all seeds share them."""


def hold_out(
    images: ImageSet, count: int, *, cameras: bool = True
) -> tuple[Subset, Subset, Subset]:
    """Split a training set into training images, validation queries and validation gallery.

    Identities seen by two cameras or more are drawn. Their images are the gallery; the first image
    of each in every camera is a query as well, which cannot find itself: the protocol excludes
    images of the query's identity and camera.

    Args:
        images: the training set.
        count: identities to hold out.
        cameras: whether a query's matches are of other cameras; else any second image is one.

    Returns:
        Training set, queries and gallery.

    Raises:
        UserError: fewer than `count` identities were seen by two cameras (or have two images).
    """
    pids, camids = np.asarray(images.pids), np.asarray(images.camids)
    pairs = np.unique(np.stack((pids, camids)), axis=1)  # [2, M]
    names, views = np.unique(pairs[0] if cameras else pids, return_counts=True)
    seen = names[(views >= 2) & (names >= 0)]
    if len(seen) < count:
        ways = "hold out fewer, or choose --protocol no-camera" if cameras else "hold out fewer"
        what = "were seen by two cameras" if cameras else "have two images"
        raise UserError(
            f"--val-ids {count}: {len(seen)} training identities {what}, "
            f"which validation needs; {ways}"
        )
    chosen = np.random.default_rng(SEED).permutation(seen)[:count]
    held = np.isin(pids, chosen)
    places = np.flatnonzero(held)
    _, first = np.unique(np.stack((pids[places], camids[places])), axis=1, return_index=True)
    queries = places[np.sort(first)]
    return (
        Subset(images, np.flatnonzero(~held)),
        Subset(images, queries),
        Subset(images, places),
    )
