"""Preparing training images: read each time, or kept in memory from epoch to epoch.

`pytest benchmarks/test_loader.py --benchmark-only`. JPEG files of Market-1501's size with PNG
masks, recipe bot's changes, one process, one thread. Providers: `read` and `kept` (--cache); both
give the same batches before they are timed. A round is an epoch of 512 images.
"""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from mmga.data.dataset import ImageFiles
from mmga.data.loader import TrainLoader
from mmga.data.masks import MaskFolder, PartMask, write_mask
from mmga.data.sampler import SAMPLERS
from mmga.data.transforms import TrainTransform

COUNT, IMAGES_EACH = 512, 8
SIZES = ((384, 128), (256, 128), (128, 64))


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> ImageFiles:
    """Smooth noise, which JPEG compresses as it does photographs, with masks."""
    root = tmp_path_factory.mktemp("images")
    random = np.random.default_rng(0)
    labels = torch.zeros(128, 64, dtype=torch.uint8)
    labels[10:70, 16:48], labels[70:120, 16:48] = 1, 2
    paths = [f"train/{i:05d}.jpg" for i in range(COUNT)]
    (root / "train").mkdir()
    for path in paths:
        coarse = Image.fromarray(random.integers(0, 256, (16, 8, 3), np.uint8))
        coarse.resize((64, 128), Image.Resampling.BICUBIC).save(root / path, quality=90)
        write_mask(root / "masks" / Path(path).with_suffix(".png"), PartMask(labels))
    pids = np.arange(COUNT) // IMAGES_EACH
    return ImageFiles(root, paths, pids, np.zeros(COUNT), MaskFolder(root / "masks"))


def loader(images: ImageFiles, size: tuple[int, int], cache: int) -> TrainLoader:
    sampler = SAMPLERS["bot"](images.pids, 16, 4, 0)
    return TrainLoader(images, sampler, TrainTransform(size=size, pad=10), cache=cache)


@pytest.mark.parametrize("provider", ["read", "kept"])
@pytest.mark.parametrize("size", SIZES, ids=lambda size: f"{size[0]}x{size[1]}")
def test_an_epoch(benchmark, images, size, provider) -> None:
    benchmark.group = f"{size[0]}x{size[1]}"
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        ours = loader(images, size, 1 << 30 if provider == "kept" else 0)
        for epoch in range(2):  # the first one fills the cache
            for one, other in zip(
                ours.epoch(epoch), loader(images, size, 0).epoch(epoch), strict=True
            ):
                assert torch.equal(one.images, other.images)
                assert torch.equal(one.labels, other.labels)
        benchmark.pedantic(lambda: sum(map(len, ours.epoch(2))), rounds=3, warmup_rounds=1)
    finally:
        torch.set_num_threads(threads)
