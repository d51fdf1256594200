import os
import signal

import numpy as np
import pytest
import torch

from mmga.common.distributed import Group
from mmga.common.errors import UserError
from mmga.data.dataset import ImageTensors, Subset
from mmga.data.loader import Loading, TrainLoader, eval_batches
from mmga.data.masks import PartMask
from mmga.data.sampler import EveryIdentity, EveryImage
from mmga.data.transforms import EvalTransform, TrainTransform, normalise

TRANSFORM = TrainTransform(size=(32, 16), pad=2, erasing_fill="random")


class Images(ImageTensors):
    """Thirty images of six identities; some can be made unreadable."""

    def __init__(self, broken=(), mask_height=32):
        generator = torch.Generator().manual_seed(0)
        shape = (30, 3, 32, 16)
        images = torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8)
        labels = torch.randint(0, 4, (30, mask_height, 16), generator=generator, dtype=torch.uint8)
        masks = [PartMask(m, parts=i % 3 != 1) if i % 3 else None for i, m in enumerate(labels)]
        super().__init__(
            list(images), np.repeat(np.arange(6) * 10, 5), np.arange(30) % 4, masks=masks
        )
        self.unreadable = set(broken)

    def image(self, index):
        if index in self.unreadable:
            raise UserError(f"image {self.paths[index]} cannot be decoded")
        return super().image(index)


def _loader(images=None, **options):
    images = Images() if images is None else images
    return TrainLoader(images, EveryIdentity(images.pids, 4, 3), TRANSFORM, **options)


def _digest(batches):
    return [(b.images.sum().item(), b.labels.sum().item(), b.indices.tolist()) for b in batches]


def test_a_batch():
    images = Images()
    (batch, rest) = _loader(images).epoch(0)
    assert len(batch) == 12
    assert len(rest) == 6
    assert batch.images.shape == (12, 3, 32, 16)
    assert batch.images.dtype == torch.float32
    assert batch.labels.shape == (12, 32, 16)
    indices = batch.indices.numpy()
    assert batch.pids.tolist() == (images.pids[indices] // 10).tolist()
    assert batch.camids.tolist() == images.camids[indices].tolist()
    assert batch.has_mask.tolist() == (indices % 3 != 0).tolist()
    assert batch.parts.tolist() == (indices % 3 == 2).tolist()
    assert not batch.labels[~batch.has_mask].any()


def test_the_same_whatever_the_workers():
    plain, loader = _loader(seed=1), _loader(seed=1, loading=Loading(workers=2))
    for epoch in (0, 1):
        assert _digest(plain.epoch(epoch)) == _digest(loader.epoch(epoch))
    assert _digest(plain.epoch(0)) != _digest(plain.epoch(1))
    assert _digest(plain.epoch(0)) != _digest(_loader(seed=2).epoch(0))


@pytest.mark.parametrize("workers", [0, 2])
def test_a_cache_changes_nothing_but_the_reading(workers, tmp_path):
    log = tmp_path / "read"  # a file, because workers are other processes

    class Logged(Images):
        def image(self, index):
            with log.open("a") as file:
                file.write(f"{index}\n")
            return super().image(index)

    plain = _loader(Images())
    expected = [_digest(plain.epoch(epoch)) for epoch in range(4)]
    slot = 4 * 32 * 16 + 1
    loader = _loader(Logged(), cache=10 * slot + 5, loading=Loading(workers))
    assert [_digest(loader.epoch(epoch)) for epoch in range(4)] == expected
    read = [int(line) for line in log.read_text().split()]
    everything = [i for digests in expected for _, _, indices in digests for i in indices]
    for index in range(30):
        times, wanted = read.count(index), everything.count(index)
        # Two workers may be at a kept image at the same time.
        assert times <= max(1, workers) if index < 10 else times == wanted, index
    assert len(read) < len(everything)


def test_a_cache_keeps_masks_as_they_are():
    from mmga.data.cache import ImageCache

    cache = ImageCache(3 * (4 * 6 + 1), 5, (3, 2))
    assert cache.slots == 3
    assert ImageCache(1 << 20, 5, (3, 2)).slots == 5
    image = torch.arange(18, dtype=torch.uint8).view(3, 3, 2)
    labels = torch.arange(6, dtype=torch.uint8).view(3, 2) % 4
    assert cache.get(0) is None
    for index, mask in enumerate((None, PartMask(labels), PartMask(labels, parts=False))):
        cache.put(index, image, mask)
        back, kept = cache.get(index)
        assert torch.equal(back, image)
        if mask is None:
            assert kept is None
        else:
            assert torch.equal(kept.labels, mask.labels)
            assert kept.parts == mask.parts
    cache.put(3, image, None)
    assert cache.get(3) is None
    assert ImageCache(10, 5, (3, 2)).slots == 0


def test_an_epoch_may_start_in_the_middle():
    loader = _loader()
    assert loader.steps(4) == 2
    assert _digest(loader.epoch(4, start=1)) == _digest(loader.epoch(4))[1:]


def test_an_image_that_stands_twice_differs():
    images = Images()
    images.pids = np.repeat(np.arange(15), 2)
    loader = TrainLoader(images, EveryIdentity(images.pids, 4, 6), TRANSFORM)
    batch = next(loader.epoch(0))
    for index in batch.indices.unique():
        same = batch.images[batch.indices == index].flatten(1)
        assert len(same) >= 2
        assert len(same.unique(dim=0)) >= 2


def test_two_processes_prepare_what_one_would():
    images = Images()
    whole = list(TrainLoader(images, EveryImage(images.pids, 4, 2), TRANSFORM).epoch(0))
    shares = [
        list(
            TrainLoader(
                images, EveryImage(images.pids, 4, 2), TRANSFORM, group=Group(rank, 2)
            ).epoch(0)
        )
        for rank in range(2)
    ]
    for batch, *parts in zip(whole, *shares, strict=True):
        for part in parts:
            for row, index in enumerate(part.indices):
                place = (batch.indices == index).nonzero()[0, 0]
                assert torch.equal(part.images[row], batch.images[place])


@pytest.mark.parametrize("workers", [0, 1])
def test_broken_images_are_named_or_counted(workers):
    images = Images(broken=[3])
    with pytest.raises(UserError, match=r"^image 000003\.png cannot be decoded$"):
        for epoch in range(5):
            list(_loader(images, loading=Loading(workers)).epoch(epoch))
    loader = _loader(images, loading=Loading(workers, skip_broken=True))
    sizes = [len(batch) for epoch in range(5) for batch in loader.epoch(epoch)]
    assert list(loader.broken) == ["000003.png"]
    assert sum(sizes) < 5 * 18


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("how", ["killed", "left"])
def test_a_worker_that_dies_is_named_with_its_image_in_one_sentence(how, workers):
    class Deadly(Images):
        def image(self, index):
            if index != 7:
                return super().image(index)
            # As the system does where memory runs out, or a library that gives up.
            os.kill(os.getpid(), signal.SIGKILL) if how == "killed" else os._exit(3)

    named = r"loads images died over image 000007\.png,.*: lower --workers"
    with pytest.raises(UserError, match=named) as said:
        list(eval_batches(Deadly(), EvalTransform(size=(32, 16)), Loading(workers), batch_size=4))
    assert "\n" not in str(said.value)


def test_masks_of_another_size_are_never_skipped():
    with pytest.raises(UserError, match=r"mask of 0000\d\d\.png is 30 x 16 pixels"):
        list(_loader(Images(mask_height=30), loading=Loading(skip_broken=True)).epoch(0))


def test_evaluation_keeps_the_order():
    images, transform = Images(broken=[7]), EvalTransform(size=(32, 16))
    broken = {}
    skipping = Loading(skip_broken=True)
    batches = list(eval_batches(images, transform, skipping, batch_size=8, broken=broken))
    assert [len(b) for b in batches] == [7, 8, 8, 6]
    indices = torch.cat([b.indices for b in batches]).tolist()
    assert indices == [i for i in range(30) if i != 7]
    assert list(broken) == ["000007.png"]
    pids = torch.cat([b.pids for b in batches])
    assert pids.tolist() == images.pids[indices].tolist()
    torch.testing.assert_close(batches[0].images[2:3], normalise(images.image(2)[None]))
    assert torch.equal(batches[0].labels[2], images.mask(2).labels)
    with pytest.raises(UserError, match=r"000007\.png"):
        list(eval_batches(images, transform))
    bare = list(eval_batches(Subset(images, range(20, 30)), transform, masks=False))
    assert torch.equal(bare[0].images[0], normalise(images.image(20)[None])[0])
    assert not bare[0].has_mask.any()
