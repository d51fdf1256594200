"""Features of images are kept beside them, and extracted anew only where that is needed."""

import os
import time

import numpy as np
import pytest
import torch
from PIL import Image
from small_run import SIZE, write_run
from torch import nn

from mmga.common.errors import UserError
from mmga.data.readers.image_list import read_images
from mmga.data.transforms import EvalTransform
from mmga.extraction import feature_cache
from mmga.extraction.embedder import Embedder
from mmga.extraction.feature_cache import cache_folder, cached_features
from mmga.extraction.of_run import embedder_of_run


def picture(file, seed, size=SIZE):
    file.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(file)
    old = time.time_ns() - 60 * 10**9
    os.utime(file, ns=(old, old))


@pytest.fixture
def images(tmp_path, monkeypatch):
    """Six pictures; the clock of the cache is an hour ahead, so that no time is in doubt."""
    for index in range(6):
        picture(tmp_path / "images" / f"{index}.png", index)
    hour = time.time_ns() + 3600 * 10**9
    monkeypatch.setattr(feature_cache.time, "time_ns", lambda: hour)
    return tmp_path / "images"


class Counted(nn.Module):
    """A network that counts the images that it was given."""

    def __init__(self, scale=1.0):
        super().__init__()
        self.scale = nn.Parameter(torch.tensor([scale, 1.0, 1.0], dtype=torch.float32))
        self.seen = 0

    def forward(self, images):
        self.seen += len(images)
        return (images.mean((2, 3)) + torch.arange(3)) * self.scale


def embedder(network, settings="", size=SIZE):
    transform = EvalTransform(size=size)

    def embed(images):
        return network(images), None

    return Embedder("counted", transform, embed, torch.device("cpu"), False, network, settings)


def look(images, network, **more):
    """Return what is found, and how many images the network was given."""
    before = network.seen
    folder, note = cache_folder(images)
    found = cached_features(embedder(network, **more), read_images(images), folder)
    assert note is None and found.faults == []
    return found, network.seen - before


def test_a_second_look_extracts_nothing(images):
    network = Counted()
    first, count = look(images, network)
    assert count == 6 and first.folder == images.with_name("images.mmga-features")
    assert "features of 6 images were extracted, and are kept in" in first.told()
    second, count = look(images, network)
    assert count == 0 and "features of all 6 images are read from" in second.told()
    assert torch.equal(first.features.features, second.features.features)
    assert second.features.paths.tolist() == [f"{i}.png" for i in range(6)]
    assert (first.folder / "CACHEDIR.TAG").read_text().startswith("Signature: 8a477f597d28d172789f")


def test_unchanged_files_are_not_read(images, monkeypatch):
    network = Counted()
    look(images, network)
    monkeypatch.setattr(feature_cache.Path, "read_bytes", lambda path: pytest.fail(str(path)))
    assert look(images, network)[1] == 0


def test_only_what_differs_is_extracted(images):
    network = Counted()
    first, _ = look(images, network)
    picture(images / "1.png", 11)
    picture(images / "9.png", 9)
    (images / "4.png").unlink()
    second, count = look(images, network)
    assert count == 2
    assert second.told().endswith(
        "2 were extracted (1 changed, 1 new); 1 files of before are not there any more"
    )
    assert second.features.paths.tolist() == [f"{i}.png" for i in (0, 1, 2, 3, 5, 9)]
    kept = [0, 2, 3]
    assert torch.equal(first.features.features[kept], second.features.features[kept])
    assert not torch.equal(first.features.features[1], second.features.features[1])
    fresh = cached_features(embedder(Counted()), read_images(images), None)
    torch.testing.assert_close(fresh.features.features, second.features.features)
    assert look(images, network)[1] == 0


def test_renamed_and_touched_files_keep_their_features(images):
    network = Counted()
    look(images, network)
    (images / "2.png").rename(images / "two.png")
    os.utime(images / "3.png")
    found, count = look(images, network)
    assert count == 0 and found.features.paths.tolist()[-1] == "two.png"


def test_equal_size_and_time_do_not_hide_a_change(images):
    """Copied over with its time kept (cp -p): the entry's own time of change tells."""
    network = Counted()
    for name, value in (("a", 0), ("b", 255)):
        Image.new("L", (8, 8), value).save(images / f"{name}.bmp")
        os.utime(images / f"{name}.bmp", ns=(10**18, 10**18))
    first, _ = look(images, network)
    (images / "a.bmp").write_bytes((images / "b.bmp").read_bytes())
    os.utime(images / "a.bmp", ns=(10**18, 10**18))
    found, count = look(images, network)
    assert count == 0  # what b shows is known
    before, now = (one.features.features[-2:] for one in (first, found))
    assert torch.equal(now[0], now[1]) and not torch.equal(before[0], before[1])


def test_a_file_that_has_just_changed_is_read_again(tmp_path, monkeypatch):
    """Two changes may have one time; equal in size, they differ by their contents alone."""
    images, network = tmp_path / "images", Counted()
    images.mkdir()
    Image.new("L", (8, 8), 0).save(images / "a.bmp")
    first, _ = look(images, network)
    found = os.stat(images / "a.bmp")
    Image.new("L", (8, 8), 255).save(images / "a.bmp")
    stat = os.stat

    def same(path, *more, **named):
        real = stat(path, *more, **named)
        return found if str(path).endswith("a.bmp") else real

    monkeypatch.setattr(feature_cache.os, "stat", same)
    second, count = look(images, network)
    assert count == 1
    assert not torch.equal(first.features.features, second.features.features)


@pytest.mark.parametrize(
    ("other", "more"),
    [(Counted(2.0), {}), (Counted(), {"settings": "max"}), (Counted(), {"size": (24, 8)})],
)
def test_another_network_is_noticed(images, other, more):
    network = Counted()
    first, _ = look(images, network)
    found, count = look(images, other, **more)
    assert count == 6 and found.told().endswith("(it held those of another network)")
    again, count = look(images, network)
    assert count == 0 and torch.equal(first.features.features, again.features.features)


def test_other_weights_of_a_run_are_noticed(images, tmp_path):
    folder = cache_folder(images)[0]
    for file, named in (("a", "6 images were extracted"), ("a", "all 6"), ("b", "another network")):
        run = write_run(tmp_path / file, pool="avg" if file == "a" else "max")
        network = embedder_of_run(run, device="cpu", flip=True, parts=False)
        assert named in cached_features(network, read_images(images), folder).told()


def test_features_of_four_networks_are_kept(images):
    for scale in range(1, 7):
        found, count = look(images, Counted(float(scale)))
        assert count == 6
    assert len([one for one in found.folder.iterdir() if one.is_dir()]) == 4
    assert look(images, Counted(6.0))[1] == 0


def test_a_stopped_extraction_goes_on(images, monkeypatch):
    monkeypatch.setattr(feature_cache, "SHARD", 2)

    class Stopped(Counted):
        def forward(self, images):
            if self.seen >= 4:
                raise KeyboardInterrupt
            return super().forward(images)

    with pytest.raises(KeyboardInterrupt):
        look(images, Stopped())
    found, count = look(images, Counted())
    assert count == 2
    fresh = cached_features(embedder(Counted()), read_images(images), None)
    torch.testing.assert_close(fresh.features.features, found.features.features)


def test_what_another_process_is_writing_is_left_alone(images):
    network = Counted()
    found, _ = look(images, network)
    (shard,) = found.folder.glob("*/*.npz")
    half = shard.with_name(f".{shard.stem}.0-0-0.tmp.npz")
    half.write_bytes(shard.read_bytes()[:100])
    for seed in range(3):
        picture(images / "0.png", 30 + seed)
        assert look(images, network)[1] == 1  # and no fault
    assert half.exists()


@pytest.mark.parametrize("damage", ["cut", "emptied", "foreign", "not finite"])
def test_a_damaged_shard_is_extracted_again(images, damage):
    network = Counted()
    first, _ = look(images, network)
    (shard,) = first.folder.glob("*/*.npz")
    whole = shard.read_bytes()
    if damage == "foreign":
        np.savez(shard, features=np.zeros((6, 2)), sha256=np.zeros((5, 32), np.uint8))
    elif damage == "not finite":
        arrays = dict(np.load(shard))
        np.savez(shard, **arrays | {"features": arrays["features"] * np.float32(np.nan)})
    else:
        shard.write_bytes(whole[: len(whole) // 2] if damage == "cut" else b"")
    found = cached_features(embedder(network), read_images(images), first.folder)
    assert network.seen == 12 and len(found.faults) == 1
    assert f"{shard} is damaged" in found.faults[0]
    assert torch.equal(first.features.features, found.features.features)
    assert look(images, network)[1] == 0 and not shard.exists()


def test_a_damaged_list_of_files_costs_no_extraction(images):
    network = Counted()
    first, _ = look(images, network)
    file = first.folder / "files.npz"
    file.write_bytes(file.read_bytes()[:-40])
    found = cached_features(embedder(network), read_images(images), first.folder)
    assert network.seen == 6 and "files.npz is damaged" in found.faults[0]
    assert look(images, network)[1] == 0


def test_shards_are_joined_where_most_of_them_is_of_no_use(images):
    network = Counted()
    for seed in range(20, 26):
        found, _ = look(images, network)
        for index in range(3):
            picture(images / f"{index}.png", 10 * seed + index)
    rows = sum(len(np.load(file)["features"]) for file in found.folder.glob("*/*.npz"))
    assert rows <= 12
    fresh = cached_features(embedder(Counted()), read_images(images), None)
    torch.testing.assert_close(fresh.features.features, look(images, network)[0].features.features)


def test_a_folder_that_cannot_be_written(images, tmp_path, monkeypatch):
    images.with_name("images.mmga-features").write_text("a file in the place of the folder")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "own"))
    network = Counted()
    for count in (6, 6):
        folder, note = cache_folder(images)
        assert folder.parent == tmp_path / "own" / "mmga" and "--cache-folder" in note
        assert str(folder) in note and "images.mmga-features cannot be written" in note
        cached_features(embedder(network), read_images(images), folder)
        assert network.seen == count
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    folder, note = cache_folder(images)
    assert folder is None and "features are not kept" in note
    found = cached_features(embedder(network), read_images(images), folder)
    assert found.told() == "features of 6 images were extracted"
    with pytest.raises(UserError, match=r"--cache-folder .*file cannot be written"):
        cache_folder(images, tmp_path / "file")
    assert cache_folder(images, tmp_path / "chosen")[0].parent == tmp_path / "chosen"


def test_a_disk_that_is_full_ends_no_search(images, monkeypatch):
    folder = cache_folder(images)[0]

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(feature_cache.np, "savez", full)
    found = cached_features(embedder(Counted()), read_images(images), folder)
    assert len(found.features) == 6
    assert any("No space left" in fault and "are not kept" in fault for fault in found.faults)


def test_broken_images(images):
    (images / "3.png").write_bytes(b"no picture")
    folder, network = cache_folder(images)[0], Counted()
    with pytest.raises(UserError, match=r"3\.png cannot be decoded"):
        cached_features(embedder(network), read_images(images), folder)
    found = cached_features(embedder(network), read_images(images), folder, skip_broken=True)
    assert list(found.broken) == ["3.png"] and len(found.features) == len(found.files) == 5
    assert found.features.paths.tolist() == [f"{i}.png" for i in (0, 1, 2, 4, 5)]
    for file in images.iterdir():
        file.write_bytes(b"no picture either")
    with pytest.raises(UserError, match=r"none of 6 images can be decoded, the first: .*0\.png"):
        cached_features(embedder(network), read_images(images), folder, skip_broken=True)
