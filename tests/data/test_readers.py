"""Each reader on a miniature with the set's own file names."""

import logging
import pickle

import numpy as np
import pytest
import torch
from PIL import Image

from mmga.data.dataset import concatenated, count_masks, joined
from mmga.data.datasets import NAMES, load
from mmga.data.masks import PartMask, write_mask
from mmga.errors import UserError
from mmga.retrieval.protocol import PROTOCOLS


def _images(root, paths):
    for i, path in enumerate(paths):
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (16, 32), (i, 40, 80)).save(root / path)


DUKE = [
    "bounding_box_train/0001_c2_f0046182.jpg",
    "bounding_box_train/0001_c5_f0051341.jpg",
    "bounding_box_train/0007_c8_f0055000.jpg",
    "query/0005_c2_f0046985.jpg",
    "bounding_box_test/0002_c1_f0044158.jpg",
    "bounding_box_test/0005_c1_f0046305.jpg",
]
NP = [
    "bounding_box_train/0001_c1_1.png",
    "bounding_box_train/0001_c2_6.png",
    "query/0768_c1_21.png",
    "bounding_box_test/0768_c2_7.png",
]
MSMT = {
    "train": [
        "0000/0000_000_01_0303morning_0015_0.jpg 0",
        "0001/0001_003_14_0302noon_0345_1.jpg 1",
    ],
    "val": ["0000/0000_010_05_0303morning_0520_2.jpg 0"],
    "query": ["0000/0000_001_06_0303noon_0100_0.jpg 0"],
    "gallery": [
        "0000/0000_002_15_0303noon_0200_1.jpg 0",
        "0002/0002_000_01_0303afternoon_0001_0.jpg 2",
    ],
}


@pytest.mark.parametrize(
    ("name", "folder", "camids"),
    [("dukemtmc", "DukeMTMC-reID", [2, 5, 8]), ("occluded-duke", "Occluded_Duke", [2, 5, 8])],
)
def test_duke(name, folder, camids, tmp_path, caplog):
    _images(tmp_path / folder, DUKE)
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
    _images(tmp_path / "cuhk03-np" / boxes, NP)
    with caplog.at_level(logging.WARNING):
        data = load("cuhk03", tmp_path, boxes=boxes)
    assert "2 training images (published: 7,36" in caplog.text
    assert data.train.paths == [f"{boxes}/{path}" for path in NP[:2]]
    assert data.train.camids.tolist() == [1, 2]
    assert data.query.pids.tolist() == data.gallery.pids.tolist() == [768]
    other = "labeled" if boxes == "detected" else "detected"
    with pytest.raises(UserError, match=f"holds neither {other}"):
        load("cuhk03", tmp_path, boxes=other)
    with pytest.raises(UserError, match="boxes must be detected or labeled"):
        load("cuhk03", tmp_path, boxes="both")


def _msmt(root, train, test):
    for split, lines in MSMT.items():
        folder = train if split in ("train", "val") else test
        _images(root / folder, [line.split()[0] for line in lines])
        (root / f"list_{split}.txt").write_text("\n".join(lines) + "\n")
    return root


@pytest.mark.parametrize(
    ("folder", "train", "test"),
    [("MSMT17_V1", "train", "test"), ("MSMT17_V2", "mask_train_v2", "mask_test_v2")],
)
def test_msmt17(folder, train, test, tmp_path, caplog):
    root = _msmt(tmp_path / folder, train, test)
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
    root = _msmt(tmp_path / "MSMT17_V1", "train", "test")
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


def _cuhk_mat(path, persons=(3, 2, 1, 1), empty=((0, 1, 4),)):
    """Write a file laid out as MATLAB 7.3 writes CUHK03's, two of ten images a person."""
    h5py = pytest.importorskip("h5py")
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        hidden = file.create_group("#refs#")

        def stored(value):
            name = f"r{len(hidden)}"
            hidden.create_dataset(name, data=value)
            return hidden[name].ref

        nothing = stored(np.zeros(2, np.uint64))
        for boxes, shade in (("detected", 0), ("labeled", 100)):
            pairs = np.empty((1, len(persons)), h5py.ref_dtype)
            for pair, count in enumerate(persons):
                cells = np.empty((10, count), h5py.ref_dtype)
                cells[:] = nothing
                for person in range(count):
                    for place in (0, 4, 7):
                        if (pair, person, place) in empty:
                            continue
                        pixels = np.zeros((3, 5, 8), np.uint8)  # MATLAB's 8 x 5 x 3
                        pixels[0] = shade + pair * 10 + person
                        pixels[1] = place
                        pixels[2] = np.arange(8)
                        cells[place, person] = stored(pixels)
                pairs[0, pair] = stored(cells)
            file.create_dataset(boxes, data=pairs)
        tests = np.empty((1, 2), h5py.ref_dtype)
        tests[0, 0] = stored(np.array([[1, 2], [1, 1]], float))  # persons (1, 1) and (2, 1)
        tests[0, 1] = stored(np.array([[1], [3]], float))
        file.create_dataset("testsets", data=tests)
    return path


def test_classic_cuhk03(tmp_path, caplog):
    mat = _cuhk_mat(tmp_path / "cuhk03_release" / "cuhk-03.mat")
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
    _images(tmp_path / "DukeMTMC-reID", DUKE)
    _msmt(tmp_path / "MSMT17_V1", "train", "test")
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
    _cuhk_mat(tmp_path / "cuhk-03.mat")
    assert load("cuhk03-classic", tmp_path).protocol in PROTOCOLS
