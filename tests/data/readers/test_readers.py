"""Each reader on a miniature with the set's own file names."""

import logging
import pickle

import numpy as np
import pytest
import torch
from miniatures import CUHK03_NP, DUKE, cuhk03_mat, images, load, msmt17

from mmga.common.errors import UserError
from mmga.config import DataConfig
from mmga.data import datasets
from mmga.data.dataset import concatenated, count_masks, joined
from mmga.data.masks import PartMask, write_mask
from mmga.data.readers import by_name
from mmga.data.readers.by_name import NAMES
from mmga.retrieval.protocols.protocol import PROTOCOLS


@pytest.mark.parametrize(
    ("name", "folder", "camids"),
    [("dukemtmc", "DukeMTMC-reID", [2, 5, 8]), ("occluded-duke", "Occluded_Duke", [2, 5, 8])],
)
def test_duke(name, folder, camids, tmp_path, caplog):
    images(tmp_path / folder, DUKE)
    write_mask(
        tmp_path / "masks" / "bounding_box_train" / "0007_c8_f0055000.png",
        PartMask(torch.ones(32, 16, dtype=torch.uint8)),
    )
    with caplog.at_level(logging.WARNING):
        data = load(name, tmp_path, masks=tmp_path / "masks")
    published = {"dukemtmc": "16,522", "occluded-duke": "15,618"}[name]
    assert f"3 training images (published: {published})" in caplog.text
    assert data.name == name
    assert data.train.pids.tolist() == [1, 1, 7]
    assert data.train.camids.tolist() == camids
    assert data.query.pids.tolist() == [5]
    assert data.gallery.pids.tolist() == [2, 5]
    assert count_masks(data.train) == 1
    assert load(name, tmp_path / folder).gallery.paths == data.gallery.paths


@pytest.mark.parametrize("boxes", ["detected", "labeled"])
def test_cuhk03_np(boxes, tmp_path, caplog):
    images(tmp_path / "cuhk03-np" / boxes, CUHK03_NP)
    with caplog.at_level(logging.WARNING):
        data = load("cuhk03", tmp_path, boxes=boxes)
    assert "2 training images (published: 7,36" in caplog.text
    assert data.train.paths == [f"{boxes}/{path}" for path in CUHK03_NP[:2]]
    assert data.train.camids.tolist() == [1, 2]
    assert data.query.pids.tolist() == data.gallery.pids.tolist() == [768]
    other = "labeled" if boxes == "detected" else "detected"
    with pytest.raises(UserError, match=f"holds neither {other}"):
        load("cuhk03", tmp_path, boxes=other)
    with pytest.raises(UserError, match="boxes must be detected or labeled"):
        load("cuhk03", tmp_path, boxes="both")


@pytest.mark.parametrize(
    ("folder", "train", "test"),
    [("MSMT17_V1", "train", "test"), ("MSMT17_V2", "mask_train_v2", "mask_test_v2")],
)
def test_msmt17(folder, train, test, tmp_path, caplog):
    root = msmt17(tmp_path / folder, train, test)
    with caplog.at_level(logging.WARNING):
        data = load("msmt17", tmp_path)
    assert "3 training images (published: 32,621)" in caplog.text
    assert data.train.pids.tolist() == [0, 1, 0]
    assert data.train.camids.tolist() == [1, 14, 5]
    assert data.train.paths[0] == f"{train}/0000/0000_000_01_0303morning_0015_0.jpg"
    assert data.gallery.pids.tolist() == [0, 2]
    assert data.gallery.image(1).shape == (3, 32, 16)
    assert data.notes == ("msmt17 is trained on train + val",)
    with caplog.at_level(logging.WARNING):
        alone = load("msmt17", root, with_val=False)
    assert "2 training images (published: 30,248)" in caplog.text
    assert alone.train.paths == data.train.paths[:2]
    assert alone.notes == ("msmt17 is trained on train",)


def test_msmt17_with_broken_lists(tmp_path):
    root = msmt17(tmp_path / "MSMT17_V1")
    (root / "list_query.txt").write_text("\n0000/0000.jpg 0\n")
    with pytest.raises(UserError, match=r"list_query\.txt, line 2: expected"):
        load("msmt17", root)
    (root / "list_query.txt").write_text("\n")
    with pytest.raises(UserError, match=r"list_query\.txt is empty"):
        load("msmt17", root)
    (root / "list_query.txt").unlink()
    with pytest.raises(UserError, match=r"list_query\.txt cannot be read"):
        load("msmt17", root)
    (root / "train").rename(root / "elsewhere")
    with pytest.raises(UserError, match="holds neither train nor mask_train_v2"):
        load("msmt17", root)


def test_classic_cuhk03(tmp_path, caplog):
    pytest.importorskip("h5py")
    mat = cuhk03_mat(tmp_path / "cuhk03_release" / "cuhk-03.mat")
    with caplog.at_level(logging.WARNING):
        data = load("cuhk03-classic", tmp_path)
    assert "4 training identities (published: 1,260)" in caplog.text
    assert "2 test identities (published: 100)" in caplog.text
    assert data.protocol == "cuhk03-single-shot"
    # The fourth pair is no part of the classic protocol.
    assert sorted(set(data.train.pids.tolist())) == [2, 3, 1002, 2001]
    assert data.query.paths[:3] == [f"detected/1_001_{v}.png" for v in ("1_01", "1_05", "2_08")]
    assert data.query.camids.tolist() == [1, 1, 2, 3, 3, 4]
    assert "detected/1_002_1_05.png" not in data.train.paths
    image = data.query.image(2)
    assert image.shape == (3, 8, 5)
    assert image[:, 6, 2].tolist() == [0, 7, 6]
    labeled = load("cuhk03-classic", mat, boxes="labeled", split=1)
    assert set(labeled.query.pids.tolist()) == {3}
    assert labeled.query.image(0)[0, 0, 0] == 102
    again = pickle.loads(pickle.dumps(labeled.query))  # as loader workers get it
    assert torch.equal(again.image(0), labeled.query.image(0))
    with pytest.raises(UserError, match="split must be 0 to 1"):
        load("cuhk03-classic", mat, split=2)


def test_files_that_are_not_cuhk03s(tmp_path):
    h5py = pytest.importorskip("h5py")
    with pytest.raises(UserError, match=r"holds no cuhk-03\.mat"):
        load("cuhk03-classic", tmp_path)
    (tmp_path / "cuhk-03.mat").write_bytes(b"MATLAB 7.3")
    with pytest.raises(UserError, match=r"cuhk-03\.mat cannot be read"):
        load("cuhk03-classic", tmp_path)
    with h5py.File(tmp_path / "cuhk-03.mat", "w") as file:
        file["other"] = 1
    with pytest.raises(UserError, match=r"is not CUHK03's cuhk-03\.mat"):
        load("cuhk03-classic", tmp_path)


def test_sets_trained_on_together(tmp_path):
    images(tmp_path / "DukeMTMC-reID", DUKE)
    msmt17(tmp_path / "MSMT17_V1")
    mask = PartMask(torch.full((32, 16), 2, dtype=torch.uint8))
    write_mask(tmp_path / "m" / "bounding_box_train" / "0001_c2_f0046182.png", mask)
    duke = load("dukemtmc", tmp_path, masks=tmp_path / "m").train
    msmt = load("msmt17", tmp_path).train
    both = concatenated({"dukemtmc": duke, "msmt17": msmt})
    assert len(both) == 6
    assert both.pids.tolist() == [1, 1, 7, 8, 9, 8]
    assert len(set(both.camids.tolist())) == 6
    assert both.sources.tolist() == [0, 0, 0, 1, 1, 1]
    assert both.paths[0] == "dukemtmc/bounding_box_train/0001_c2_f0046182.jpg"
    assert torch.equal(both.image(4), msmt.image(1))
    assert torch.equal(both.image(-1), msmt.image(2))
    assert torch.equal(both.mask(0).labels, mask.labels)
    assert [both.mask(i) for i in range(1, 6)] == [None] * 5
    assert count_masks(both) == 1
    junk = load("dukemtmc", tmp_path).train
    junk.pids = np.array([-1, 0, 3])
    assert concatenated({"a": junk, "b": junk}).pids.tolist() == [-1, 0, 3, -1, 4, 7]
    assert joined(duke, msmt).pids.tolist() == [1, 1, 7, 0, 1, 0]


def test_every_protocol_is_the_evaluators(tmp_path):
    for name in NAMES:
        with pytest.raises(UserError):
            load(name, tmp_path / "nowhere")
    pytest.importorskip("h5py")
    cuhk03_mat(tmp_path / "cuhk-03.mat")
    assert load("cuhk03-classic", tmp_path).protocol in PROTOCOLS


def test_keywords_and_a_configuration_read_the_same(tmp_path):
    images(tmp_path / "DukeMTMC-reID", DUKE)
    one = datasets.load("dukemtmc", str(tmp_path))
    other = by_name.load(DataConfig(data="dukemtmc", root=tmp_path))
    for split in ("train", "query", "gallery"):
        assert getattr(one, split).paths == getattr(other, split).paths
