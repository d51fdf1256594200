"""Cache of resized images and masks from epoch to epoch, shared by all loading processes."""

import mmap
import multiprocessing
from typing import Any

import numpy as np
import torch

from mmga.data.masks import PartMask

_EMPTY, _NO_MASK, _SILHOUETTE, _PARTS = range(4)


class ImageCache:
    """Cache of the first images of a set, as many as fit a number of bytes.

    Anonymous memory that forked workers share: an image that one of them has read, all of them
    have. Pages are taken from the system when they are first written.

    Args:
        memory: bytes to keep at most.
        count: images in the set.
        size: (height, width) of the resized images.
    """

    def __init__(self, memory: int, count: int, size: tuple[int, int]) -> None:
        height, width = size
        area = height * width
        self.slots = min(count, memory // (4 * area + 1))
        self._area, self._size = area, size
        self._lock = multiprocessing.get_context("fork").Lock()
        pages = mmap.mmap(-1, max(1, self.slots * (4 * area + 1)))
        whole = np.frombuffer(pages, np.uint8, self.slots * (4 * area + 1))
        self._state = whole[: self.slots]  # content of each slot
        self._pixels = whole[self.slots :].reshape(self.slots, 4 * area)  # image, then labels

    def get(self, index: int) -> tuple[torch.Tensor, PartMask | None] | None:
        """Return image uint8 [3, H, W] and mask of an index, None where they are not kept."""
        if index >= self.slots:
            return None
        with self._lock:  # a process that reads the state reads the pixels written before it
            state = int(self._state[index])
        if state == _EMPTY:
            return None
        row = torch.from_numpy(self._pixels[index])
        image = row[: 3 * self._area].view(3, *self._size)
        if state == _NO_MASK:
            return image, None
        return image, PartMask(row[3 * self._area :].view(self._size), state == _PARTS)

    def put(self, index: int, image: torch.Tensor, mask: PartMask | None) -> None:
        """Keep an image uint8 [3, H, W] and its mask, if there is a slot for their index."""
        if index >= self.slots or self._state[index] != _EMPTY:
            return
        row = self._pixels[index]
        row[: 3 * self._area] = image.contiguous().numpy().ravel()
        state = _NO_MASK
        if mask is not None:
            row[3 * self._area :] = mask.labels.contiguous().numpy().ravel()
            state = _PARTS if mask.parts else _SILHOUETTE
        # Two processes that read one image at a time write the same bytes twice.
        with self._lock:
            self._state[index] = state

    def __getstate__(self) -> dict[str, Any]:
        raise TypeError("an ImageCache is shared by forking, it cannot be sent to a process")
