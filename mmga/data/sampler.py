"""Batches of P identities with K images each, drawn anew for every epoch from a seed.

A sampler is a pure function of (seed, epoch): every process of a group computes the same global
batches and takes its share of the identities.
"""

import logging
from abc import ABC, abstractmethod

import numpy as np

from mmga.common.errors import UserError

logger = logging.getLogger(__name__)


class IdentitySampler(ABC):
    """Common part of the samplers.

    Args:
        pids: int64 [N], identities of the training images; negative ones are junk and left out.
        p: identities in a batch.
        k: images of each.
        seed: of all draws.

    Attributes:
        classes: int64, the identities that are used, sorted; an identity's class label is its place
            here.
        singletons: identities left out because they have one image.
        short: identities used that have fewer than K images, which are drawn with replacement.

    Raises:
        UserError: fewer than P identities have two images.
    """

    def __init__(self, pids: np.ndarray, p: int, k: int, seed: int = 0) -> None:
        pids = np.asarray(pids, dtype=np.int64)
        self.p, self.k, self.seed = p, k, seed
        order = np.argsort(pids, kind="stable")
        order = order[pids[order] >= 0]
        names, starts, counts = np.unique(pids[order], return_index=True, return_counts=True)
        usable = counts >= 2
        self.classes = names[usable]
        self.singletons = int((~usable).sum())
        self.short = int((counts[usable] < k).sum())
        self._images = [
            order[start : start + count]
            for start, count in zip(starts[usable], counts[usable], strict=True)
        ]
        if len(self.classes) < p:
            raise UserError(
                f"the training set has {len(self.classes)} identities with two images or more "
                f"({self.singletons} have one), a batch needs {p}; lower --p or add images"
            )
        if self.singletons:
            logger.warning("%d identities with a single image are left out", self.singletons)
        if self.short:
            logger.info("%d identities have fewer than %d images", self.short, k)

    def labels(self, pids: np.ndarray) -> np.ndarray:
        """Return class labels int64 [N] of identities; -1 for those that are not used."""
        pids = np.asarray(pids, dtype=np.int64)
        places = np.searchsorted(self.classes, pids).clip(max=len(self.classes) - 1)
        return np.where(self.classes[places] == pids, places, -1)

    def batches(self, epoch: int, rank: int = 0, world: int = 1) -> list[np.ndarray]:
        """Return the image indices of an epoch's batches, K of an identity side by side.

        Args:
            epoch: number of the epoch.
            rank: number of this process; it gets every `world`-th identity of each batch.
            world: number of processes. Where it does not divide the last batch's identities, that
                batch is filled up with others.

        Raises:
            UserError: P is not a multiple of `world`.
        """
        if self.p % world:
            raise UserError(
                f"--p must be a multiple of the {world} processes, because identities are dealt "
                f"to them whole, got {self.p}"
            )
        random = self._random(epoch)
        batches = []
        for groups in self._draw(random):
            names = [name for name, _ in groups]
            chosen = [images for _, images in groups]
            if len(groups) % world:
                others = np.setdiff1d(np.arange(len(self.classes)), names)
                extra = random.permutation(others)[: -len(groups) % world]
                chosen += [self._choose(int(name), random) for name in extra]
            batches.append(np.concatenate(chosen[rank::world]))
        return batches

    def steps(self, epoch: int) -> int:
        """Return the number of an epoch's batches."""
        return len(self._draw(self._random(epoch)))

    def _random(self, epoch: int) -> np.random.Generator:
        # The class takes part, so that two samplers of one seed do not draw alike.
        return np.random.default_rng((self.seed, epoch, sum(type(self).__name__.encode())))

    @abstractmethod
    def _draw(self, random: np.random.Generator) -> list[list[tuple[int, np.ndarray]]]:
        """Return batches as lists of (class, its K images)."""

    def _choose(self, name: int, random: np.random.Generator) -> np.ndarray:
        """Return K images of a class, each once where there are enough."""
        images = self._images[name]
        if len(images) >= self.k:
            return random.permutation(images)[: self.k]
        # All of them, then the rest with replacement.
        return np.concatenate((images, random.choice(images, self.k - len(images))))


class EveryIdentity(IdentitySampler):
    """Every identity once an epoch; the last batch may hold fewer than P (recipe `mgn`)."""

    def steps(self, epoch: int) -> int:
        """Return the number of an epoch's batches, the same for all."""
        return -(-len(self.classes) // self.p)

    def _draw(self, random: np.random.Generator) -> list[list[tuple[int, np.ndarray]]]:
        order = random.permutation(len(self.classes)).tolist()
        return [
            [(name, self._choose(name, random)) for name in order[i : i + self.p]]
            for i in range(0, len(order), self.p)
        ]


class EveryImage(IdentitySampler):
    """Nearly every image once an epoch (recipe `bot`).

    Each identity's images are shuffled and cut into chunks of K, a remainder is dropped; P random
    identities give a chunk each, until fewer than P have one left.
    """

    def _draw(self, random: np.random.Generator) -> list[list[tuple[int, np.ndarray]]]:
        chunks: dict[int, list[np.ndarray]] = {}
        for name, images in enumerate(self._images):
            if len(images) < self.k:
                chunks[name] = [self._choose(name, random)]
                continue
            shuffled = random.permutation(images)
            count = len(shuffled) // self.k
            chunks[name] = list(shuffled[: count * self.k].reshape(count, self.k))
        batches = []
        while len(chunks) >= self.p:
            names = random.choice(list(chunks), self.p, replace=False).tolist()
            batches.append([(name, chunks[name].pop()) for name in names])
            for name in names:
                if not chunks[name]:
                    del chunks[name]
        return batches


SAMPLERS: dict[str, type[IdentitySampler]] = {"mgn": EveryIdentity, "bot": EveryImage}
"""Samplers by the recipe that they come from."""
