import logging
import re

import numpy as np
import pytest
import torch
from miniatures import load
from paths import SHARED_DATA
from PIL import Image

from mmga.common.errors import UserError
from mmga.data.masks import PartMask, write_mask
from mmga.data.readers.folders import IMAGE_SUFFIXES
from mmga.data.readers.image_list import read_images
from mmga.data.readers.market1501 import COUNTS

LISTS = SHARED_DATA / "market1501-lists"

NAMES = {
    "bounding_box_train": [
        "0002_c1s1_000451_03.jpg",
        "0002_c2s1_000776_01.jpg",
        "0007_c3s3_077419_03.jpg",
        "0007_c6s2_000001_02.jpg.jpg",
    ],
    "query": ["0001_c1s1_001051_00.jpg"],
    "bounding_box_test": [
        "-1_c1s1_000401_03.jpg",
        "0000_c2s1_000301_00.jpg",
        "0001_c2s1_000301_01.jpg",
    ],
}


def _make(folder, names=NAMES):
    for split, files in names.items():
        (folder / split).mkdir(parents=True)
        (folder / split / "Thumbs.db").write_bytes(b"")
        for file in files:
            Image.new("RGB", (64, 128), (len(file), 40, 80)).save(folder / split / file)


def test_a_miniature(tmp_path, caplog):
    _make(tmp_path / "Market-1501-v15.09.15")
    mask = PartMask(torch.ones(128, 64, dtype=torch.uint8))
    write_mask(tmp_path / "masks" / "bounding_box_train" / "0002_c1s1_000451_03.png", mask)
    with caplog.at_level(logging.WARNING):
        data = load("market1501", tmp_path, masks=tmp_path / "masks")
    assert "4 training images (published: 12,936)" in caplog.text
    assert "1 junk images (published: 3,819)" in caplog.text
    assert data.name == "market1501"
    assert data.train.pids.tolist() == [2, 2, 7, 7]
    assert data.train.camids.tolist() == [1, 2, 3, 6]
    assert data.train.paths[0] == "bounding_box_train/0002_c1s1_000451_03.jpg"
    assert data.gallery.pids.tolist() == [-1, 0, 1]
    assert data.query.camids.tolist() == [1]
    assert data.train.image(0).shape == (3, 128, 64)
    assert torch.equal(data.train.mask(0).labels, mask.labels)
    assert data.train.mask(1) is None
    itself = load("market1501", tmp_path / "Market-1501-v15.09.15")
    assert itself.gallery.paths == data.gallery.paths
    assert itself.train.mask(0) is None


def test_bad_folders(tmp_path, caplog):
    with pytest.raises(UserError, match="gone does not exist"):
        load("market1501", tmp_path / "gone")
    with pytest.raises(UserError, match="holds neither bounding_box_train nor Market-1501"):
        load("market1501", tmp_path)
    _make(tmp_path, {**NAMES, "query": ["0001_c1_f0046182.jpg"]})
    with pytest.raises(UserError, match=r"query holds no image .* 0001_c1_f0046182\.jpg"):
        load("market1501", tmp_path)
    (tmp_path / "query" / "0001_c1_f0046182.jpg").rename(tmp_path / "query" / "0001.jpg")
    Image.new("RGB", (64, 128)).save(tmp_path / "query" / NAMES["query"][0])
    with caplog.at_level(logging.WARNING):
        assert len(load("market1501", tmp_path).query) == 1
    assert "1 images of other names are left out, 0001.jpg the first" in caplog.text
    for file in (tmp_path / "bounding_box_test").iterdir():
        file.unlink()
    with pytest.raises(UserError, match="bounding_box_test holds no image"):
        load("market1501", tmp_path)
    with pytest.raises(UserError, match="nomasks does not exist"):
        load("market1501", tmp_path, masks=tmp_path / "nomasks")


@pytest.mark.skipif(not LISTS.is_dir(), reason=f"{LISTS} is absent")
def test_all_real_names(tmp_path, caplog):
    """Every name of the published set is read, with the identity and camera of its list."""
    expected = {}
    for line in (LISTS / "list_market_test.txt").read_text().splitlines():
        path, pid, camid, _ = line.split()
        expected[path] = (int(pid), int(camid))
    classes = {}
    for line in (LISTS / "list_market_train.txt").read_text().splitlines():
        name, label, camid, _ = line.split()
        path = f"bounding_box_train/{name}"
        expected[path] = (int(name.split("_")[0]), int(camid))
        classes.setdefault(int(label), set()).add(expected[path][0])
    assert all(len(pids) == 1 for pids in classes.values())
    for folder in NAMES:
        (tmp_path / folder).mkdir()
    for path in expected:
        (tmp_path / path).touch()
    # The list leaves junk out; 3,819 names of its pattern stand in for it.
    for i in range(COUNTS["junk images"]):
        (tmp_path / "bounding_box_test" / f"-1_c{i % 6 + 1}s1_{i:06d}_00.jpg").touch()
    with caplog.at_level(logging.WARNING):
        data = load("market1501", tmp_path)
    assert caplog.text == ""  # all counts are the published ones
    for split in (data.train, data.query, data.gallery):
        for path, pid, camid in zip(split.paths, split.pids, split.camids, strict=True):
            if pid != -1:
                assert expected.pop(path) == (pid, camid)
    assert expected == {}
    assert len(np.unique(data.train.pids)) == COUNTS["training identities"]
    assert (data.gallery.pids == 0).sum() == 2798


@pytest.mark.parametrize("name", ["0002_c7s1_000451_03.jpg", "02_c1s1_000451_03.jpg", "a.jpg"])
def test_foreign_names(name, tmp_path):
    _make(tmp_path, {**NAMES, "query": [name]})
    with pytest.raises(UserError, match=f"query holds no image .* {re.escape(name)}"):
        load("market1501", tmp_path)


def test_unknown_data_set(tmp_path):
    with pytest.raises(UserError, match="did you mean market1501"):
        load("market", tmp_path)
    with pytest.raises(UserError, match="choose one of market1501, dukemtmc, msmt17"):
        load("xyz", tmp_path)


def test_multi_query_takes_the_queries_identities_and_cameras(tmp_path):
    boxes = [
        "0001_c1s1_001051_00.jpg",
        "0001_c1s1_001076_00.jpg",
        "0001_c2s1_000301_00.jpg",
        "0002_c1s1_000451_00.jpg",
    ]
    _make(tmp_path, {**NAMES, "gt_bbox": boxes})
    data = load("market1501", tmp_path)
    assert data.multi_query.paths == [f"gt_bbox/{name}" for name in boxes[:2]]
    assert data.multi_query.pids.tolist() == [1, 1]
    assert data.multi_query.camids.tolist() == [1, 1]
    for name in boxes[:2]:
        (tmp_path / "gt_bbox" / name).unlink()
    with pytest.raises(UserError, match="gt_bbox holds no image of any query"):
        load("market1501", tmp_path)


def test_distractors_join_the_gallery(tmp_path, caplog):
    _make(tmp_path / "Market-1501-v15.09.15")
    plain = load("market1501", tmp_path)
    assert plain.multi_query is None
    for i in (2, 1):
        (tmp_path / "more").mkdir(exist_ok=True)
        Image.new("RGB", (64, 128), (9, i, 0)).save(tmp_path / "more" / f"{i:08d}.png")
    with caplog.at_level(logging.WARNING):
        data = load("market1501", tmp_path, distractors=tmp_path / "more")
    assert "2 distractors (published: 500,000)" in caplog.text
    (tmp_path / "more" / "._00000001.png").write_bytes(b"what an archive of a Mac leaves behind")
    assert load("market1501", tmp_path, distractors=tmp_path / "more").gallery.paths == (
        data.gallery.paths
    )
    assert data.gallery.paths == [*plain.gallery.paths, "00000001.png", "00000002.png"]
    assert data.gallery.pids.tolist() == [-1, 0, 1, 0, 0]
    assert data.gallery.image(3)[1, 0, 0] == 1
    assert torch.equal(data.gallery.image(1), plain.gallery.image(1))
    with pytest.raises(UserError, match="nowhere does not exist"):
        load("market1501", tmp_path, distractors=tmp_path / "nowhere")
    with pytest.raises(UserError, match="holds no image"):
        load("market1501", tmp_path, distractors=tmp_path)
    with pytest.raises(UserError, match="distractors belong to market1501"):
        load("viper", tmp_path, distractors=tmp_path / "more")


def test_every_suffix_of_an_image_counts(tmp_path):
    """Training and extraction know one list of them, TIFF among them."""
    _make(tmp_path)
    (tmp_path / "more").mkdir()
    names = [f"a{suffix}" for suffix in IMAGE_SUFFIXES]
    for i, name in enumerate(names):
        Image.new("RGB", (64, 128), (i, 0, 0)).save(tmp_path / "more" / name)
    gallery = load("market1501", tmp_path, distractors=tmp_path / "more").gallery
    extracted = read_images(tmp_path / "more")
    assert gallery.paths[3:] == extracted.paths == sorted(names)
    tiff = extracted.paths.index("a.tif")
    assert torch.equal(gallery.image(3 + tiff), extracted.image(tiff))
    assert extracted.image(tiff)[0, 0, 0] == names.index("a.tif")


def test_the_default_folder(tmp_path, monkeypatch):
    _make(tmp_path / "Market-1501-v15.09.15")
    monkeypatch.delenv("MMGA_DATA", raising=False)
    with pytest.raises(UserError, match="set MMGA_DATA"):
        load("market1501")
    monkeypatch.setenv("MMGA_DATA", str(tmp_path))
    assert len(load("market1501").train) == 4
