"""Load image sets as normalised batches."""

import dataclasses
import hashlib
import logging
import multiprocessing
import os
import re
import signal
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, get_worker_info

from mmga.common.distributed import Group
from mmga.common.errors import UserError, first_line
from mmga.data.cache import ImageCache
from mmga.data.dataset import ImageSet
from mmga.data.masks import PartMask, check_size
from mmga.data.pictures import Note, Notes, take_notes
from mmga.data.sampler import IdentitySampler
from mmga.data.transforms import (
    EvalTransform,
    Sample,
    TrainTransform,
    erase,
    normalise,
    replace_background,
    resize,
)

logger = logging.getLogger(__name__)


@dataclasses.dataclass(slots=True)
class Batch:
    """One batch.

    Attributes:
        images: float32 [B, 3, H, W], normalised.
        pids: int64 [B], class labels in training, the set's own identities in evaluation.
        camids: int64 [B].
        labels: uint8 [B, H, W], label maps; zero where there is no mask.
        parts: bool [B], False for silhouettes and where there is no mask.
        has_mask: bool [B].
        indices: int64 [B], places in the image set.
    """

    images: torch.Tensor
    pids: torch.Tensor
    camids: torch.Tensor
    labels: torch.Tensor
    parts: torch.Tensor
    has_mask: torch.Tensor
    indices: torch.Tensor

    def __len__(self) -> int:
        return len(self.indices)


@dataclasses.dataclass(frozen=True, slots=True)
class Loading:
    """Settings of a loader that do not change its batches.

    Attributes:
        workers: processes that prepare images; 0 uses this one.
        device: where batches are put.
        skip_broken: leave out images that cannot be decoded, instead of raising.
    """

    workers: int = 0
    device: torch.device | str = "cpu"
    skip_broken: bool = False


class TrainLoader:
    """Training batches, epoch by epoch; the same for any number of workers.

    Args:
        images: the training set.
        sampler: draws the images of a batch.
        transform: of the images, drawn from (seed, epoch, index); where an image occurs several
            times in a batch, each time differently.
        seed: of the transforms.
        loading: how images are loaded.
        cache: bytes of images and masks, resized, that are kept from epoch to epoch, once for all
            workers; images without room are read again every time.
        group: the processes that share each batch; by default this one alone.

    Attributes:
        broken: message by path of each image left out.
    """

    def __init__(
        self,
        images: ImageSet,
        sampler: IdentitySampler,
        transform: TrainTransform,
        *,
        seed: int = 0,
        loading: Loading | None = None,
        cache: int = 0,
        group: Group | None = None,
    ) -> None:
        self.sampler = sampler
        self.broken: dict[str, str] = {}
        self._group = group or Group()
        self._fill, self._loading = transform.erasing_fill, loading or Loading()
        self._batches: list[list[_Item]] = []  # the loader's, which reads it in every epoch
        self._paths, self._classes = images.paths, sampler.labels(images.pids)
        kept = ImageCache(cache, len(images), transform.size) if cache else None
        workers = self._loading.workers
        samples = _Samples(images, self._classes, transform, seed, cache=kept, workers=workers)
        samples.new_background = transform.new_background
        self._loader = _data_loader(samples, self._batches, self._loading)

    def steps(self, epoch: int) -> int:
        """Return the number of batches of an epoch."""
        return len(self._indices(epoch))

    def all_steps(self, epochs: int) -> int:
        """Return the number of batches of the first `epochs` epochs, which may differ in theirs."""
        return sum(self.sampler.steps(epoch) for epoch in range(epochs))

    def described(self) -> str:
        """Return the size of the training set, and a digest of its paths and identities."""
        used = self._classes >= 0
        digest = hashlib.sha256(self._classes.tobytes())
        digest.update("\n".join(self._paths).encode(errors="surrogateescape"))
        count = f"{int(used.sum())} images of {len(self.sampler.classes)} identities"
        return f"{count} (digest {digest.hexdigest()[:12]})"

    def _indices(self, epoch: int) -> list[np.ndarray]:
        return self.sampler.batches(epoch, self._group.rank, self._group.world)

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """Yield the batches of an epoch, from batch number `start` on.

        Raises:
            UserError: an image or mask cannot be read, or does not fit, and is not to be skipped.
        """
        batches = self._indices(epoch)[start:]
        self._batches[:] = [_with_repeats(epoch, batch) for batch in batches]
        return _finished(self._loader, self._fill, self._loading, self.broken)


def eval_batches(
    images: ImageSet,
    transform: EvalTransform,
    loading: Loading | None = None,
    *,
    batch_size: int = 64,
    broken: dict[str, str] | None = None,
    masks: bool = True,
    notes: Notes | None = None,
) -> Iterator[Batch]:
    """Yield all images in their order.

    Args:
        images: the set.
        transform: the resizing.
        loading: how images are loaded.
        batch_size: images in a batch; the last may hold fewer.
        broken: filled with the message by path of each image left out.
        masks: whether masks are read.
        notes: filled with what was done to images; by default it is said after the last batch.

    Raises:
        UserError: an image or mask cannot be read, or does not fit, and is not to be skipped.
    """
    loading = loading or Loading()
    count = len(images)
    batches = [
        [(0, i, 0) for i in range(a, min(a + batch_size, count))]
        for a in range(0, count, batch_size)
    ]
    samples = _Samples(images, images.pids, transform, 0, masks, workers=loading.workers)
    loader = _data_loader(samples, batches, loading)
    return _finished(loader, "zero", loading, {} if broken is None else broken, notes)


_SCENES = 4
"""Images that a new background is composed of: where one has a body, the next may have none."""

_Item = tuple[int, int, int]
"""Epoch, index and number of times that the index occurs earlier in the batch."""


@dataclasses.dataclass(slots=True)
class _Prepared:
    """A batch before normalisation.

    Attributes:
        batch: with uint8 images; None where no image could be read.
        samples: rectangle to erase, and seed, of each image.
        broken: path and message of each image that cannot be decoded.
        notes: what was done to images and masks beyond decoding them.
        error: message of any other error, which is never skipped.
    """

    batch: Batch | None
    samples: list[tuple[Any, int]]
    broken: list[tuple[str, str]]
    notes: list[Note] = dataclasses.field(default_factory=list)
    error: str | None = None

    def pin_memory(self) -> "_Prepared":
        if self.batch is not None:
            self.batch = _mapped(self.batch, torch.Tensor.pin_memory)
        return self


class _Samples(Dataset[Any]):
    """Reads and transforms images; a `UserError` leaves a worker as a value, not as a copy."""

    def __init__(
        self,
        images: ImageSet,
        classes: np.ndarray,
        transform: TrainTransform | EvalTransform,
        seed: int,
        masks: bool = True,
        cache: ImageCache | None = None,
        workers: int = 0,
    ) -> None:
        self.images, self.classes, self.transform = images, classes, transform
        self.seed, self.masks, self.cache = seed, masks, cache
        self.new_background = 0.0
        # What each worker reads, for the message if one dies: its process and an index plus one.
        self.reading = multiprocessing.RawArray("q", 2 * workers)

    def __getitems__(self, items: Sequence[_Item]) -> _Prepared:
        take_notes()  # none of this batch
        prepared = self._prepared(items)
        prepared.notes = take_notes()
        return prepared

    def _prepared(self, items: Sequence[_Item]) -> _Prepared:
        read: list[tuple[int, Sample, bool]] = []
        broken: list[tuple[str, str]] = []
        for item in items:
            try:
                pair = self._pair(item[1], broken)
                if pair is None:
                    continue
                image, mask = pair
                if mask is not None and self.new_background:
                    image = self._before_another_scene(item, image, mask, broken)
            except UserError as error:
                return _Prepared(None, [], broken, error=str(error))
            random = np.random.default_rng((self.seed, *item))
            labels = None if mask is None else mask.labels
            sample = self.transform(image, labels, random)
            read.append((item[1], sample, mask is not None and mask.parts))
        if not read:
            return _Prepared(None, [], broken)
        indices = torch.tensor([index for index, _, _ in read], dtype=torch.int64, device="cpu")
        samples = [sample for _, sample, _ in read]
        height, width = samples[0].image.shape[-2:]
        empty = torch.zeros(height, width, dtype=torch.uint8, device="cpu")
        batch = Batch(
            images=torch.stack([sample.image for sample in samples]),
            pids=torch.from_numpy(self.classes[indices.numpy()]),
            camids=torch.from_numpy(self.images.camids[indices.numpy()]),
            labels=torch.stack([empty if s.labels is None else s.labels for s in samples]),
            parts=torch.tensor([parts for _, _, parts in read], dtype=torch.bool, device="cpu"),
            has_mask=torch.tensor(
                [sample.labels is not None for sample in samples], dtype=torch.bool, device="cpu"
            ),
            indices=indices,
        )
        return _Prepared(batch, [(sample.erased, sample.seed) for sample in samples], broken)

    def _pair(
        self, index: int, broken: list[tuple[str, str]]
    ) -> tuple[torch.Tensor, PartMask | None] | None:
        """Return an image and its mask, resized; None, with a note in `broken`, without image."""
        pair = None if self.cache is None else self.cache.get(index)
        if pair is None:
            self._begin(index)
            try:
                image = self.images.image(index)
            except UserError as error:
                broken.append((self.images.paths[index], str(error)))
                return None
            pair = self._resized(index, image)
        return pair

    def _begin(self, index: int) -> None:
        worker = get_worker_info()
        if worker is not None:
            self.reading[2 * worker.id], self.reading[2 * worker.id + 1] = os.getpid(), index + 1

    def read_by(self, message: str) -> str | None:
        """Return the path of the image that a worker named in `message` by its process read."""
        named = {int(number) for number in re.findall(r"\d+", message)}
        places = zip(self.reading[::2], self.reading[1::2], strict=True)
        paths = [self.images.paths[place - 1] for pid, place in places if place and pid in named]
        return ", ".join(paths) or None

    def _before_another_scene(
        self, item: _Item, image: torch.Tensor, mask: PartMask, broken: list[tuple[str, str]]
    ) -> torch.Tensor:
        """Return an image, with some probability with the background of other images."""
        # A generator of its own: the other changes are drawn as without a new background.
        random = np.random.default_rng((self.seed, *item, _SCENES))
        if random.random() >= self.new_background:
            return image
        others = []
        for index in random.integers(len(self.images), size=_SCENES).tolist():
            pair = self._pair(index, broken)
            if pair is not None and pair[1] is not None:
                others.append((pair[0], pair[1].labels))
        return replace_background(image, mask.labels, others)

    def _resized(self, index: int, image: torch.Tensor) -> tuple[torch.Tensor, PartMask | None]:
        """Return an image and its mask at the transform's size, and keep them if wanted."""
        mask = self.images.mask(index) if self.masks else None
        if mask is not None:
            check_size(mask, image, self.images.paths[index])
        labels = None if mask is None else mask.labels
        size, interpolation = self.transform.size, self.transform.interpolation
        image, labels = resize(image, labels, size, interpolation)
        if mask is not None and labels is not None:
            mask = PartMask(labels, mask.parts)
        if self.cache is not None:
            self.cache.put(index, image, mask)
        return image, mask


def _data_loader(
    samples: _Samples, batches: "list[list[_Item]]", loading: Loading
) -> "DataLoader[Any]":
    return DataLoader(
        samples,
        batch_sampler=batches,
        num_workers=loading.workers,
        # The cache's memory is shared by forking; torch's own choice otherwise.
        multiprocessing_context="fork" if loading.workers and samples.cache is not None else None,
        collate_fn=_identity,
        worker_init_fn=_ignore_ctrl_c,
        pin_memory=torch.device(loading.device).type == "cuda",
        persistent_workers=loading.workers > 0,
    )


def _finished(
    loader: "DataLoader[Any]",
    fill: str,
    loading: Loading,
    broken: dict[str, str],
    notes: Notes | None = None,
) -> Iterator[Batch]:
    """Yield prepared batches, normalised and erased, on the device; broken images are noted."""
    own = Notes() if notes is None else notes
    for prepared in _guarded(loader):
        own.add(prepared.notes)
        if prepared.error is not None:
            raise UserError(prepared.error)
        for path, message in prepared.broken:
            if not loading.skip_broken:
                raise UserError(message)
            if path not in broken:
                broken[path] = message
                logger.warning("left out: %s", message)
        if prepared.batch is None:
            continue
        batch = _mapped(prepared.batch, lambda t: t.to(loading.device, non_blocking=True))
        batch.images = normalise(batch.images)
        erased, seeds = zip(*prepared.samples, strict=True)
        erase(batch.images, erased, seeds, fill)
        yield batch
    if notes is None:
        own.say()


def _guarded(loader: "DataLoader[Any]") -> Iterator[_Prepared]:
    try:
        yield from loader
    except RuntimeError as error:
        if "DataLoader worker" not in str(error):
            raise
        first = first_line(error)
        samples: Any = loader.dataset
        path = samples.read_by(first)
        while_reading = "" if path is None else f" over image {path}, or soon after it"
        raise UserError(
            f"a process that loads images died{while_reading} ({first}); there may be too little "
            "memory: lower --workers; if it dies over the same image again, remove that image"
        ) from error


def _with_repeats(epoch: int, batch: np.ndarray) -> list[_Item]:
    seen: dict[int, int] = {}
    items = []
    for index in batch.tolist():
        items.append((epoch, index, seen.get(index, 0)))
        seen[index] = seen.get(index, 0) + 1
    return items


def _mapped(batch: Batch, change: Any) -> Batch:
    return Batch(**{f.name: change(getattr(batch, f.name)) for f in dataclasses.fields(batch)})


def _ignore_ctrl_c(worker: int) -> None:
    """Leave Ctrl-C, which a terminal sends to all processes, to the one that can save."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _identity(prepared: Any) -> Any:
    return prepared
