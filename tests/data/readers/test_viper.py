import logging

import numpy as np
import pytest
import torch
from miniatures import load
from paths import SHARED_DATA
from PIL import Image

from mmga.common.errors import UserError
from mmga.data.masks import PartMask, write_mask
from mmga.data.readers.viper import read_silhouettes, read_splits

DATA = SHARED_DATA / "sdalf-masks"
PERSONS = (0, 1, 2, 45, 872, 873)


@pytest.fixture
def viper(tmp_path):
    root = tmp_path / "VIPeR"
    for camera, angle in (("cam_a", 45), ("cam_b", 135)):
        (root / camera).mkdir(parents=True)
        for person in PERSONS:
            colour = (person % 256, 100 if camera == "cam_a" else 200, 0)
            Image.new("RGB", (48, 128), colour).save(root / camera / f"{person:03d}_{angle}.bmp")
    return root


def _splits(path, splits):
    text = ""
    for number, persons in enumerate(splits, 1):
        text += f"% Experiment Number {number} \n\n"
        for i, p in enumerate(persons, 1):
            text += f"{i} - cam_a/{p:03d}_45.bmp  cam_b/{p:03d}_135.bmp \n"
        text += "\n \n"
    path.write_text(text)
    return path


def _silhouettes(path, count):
    savemat = pytest.importorskip("scipy.io").savemat
    cells = np.empty((1, count), dtype=object)
    for i in range(count):
        cells[0, i] = np.zeros((128, 48), np.uint8)
        cells[0, i][: i + 1] = 1
    savemat(path, {"msk": cells})
    return path


def test_a_fixed_split_in_both_directions(viper, tmp_path, caplog):
    file = _splits(tmp_path / "sets.txt", [(0, 1, 2), (1, 45, 873)])
    with caplog.at_level(logging.WARNING):
        data = load("viper", tmp_path, split=1, splits_file=file)
    assert "6 persons (published: 632)" in caplog.text
    assert data.query.pids.tolist() == data.gallery.pids.tolist() == [1, 45, 873]
    assert data.query.paths[0] == "cam_a/001_45.bmp"
    assert data.gallery.paths[0] == "cam_b/001_135.bmp"
    assert data.train.pids.tolist() == [0, 0, 2, 2, 872, 872]
    assert data.train.camids.tolist() == [0, 1] * 3
    image = data.gallery.image(1)
    assert image.shape == (3, 128, 48)
    assert image[:, 5, 5].tolist() == [45, 200, 0]
    back = load("viper", viper, split=1, splits_file=file, direction="ba")
    assert back.query.paths == data.gallery.paths
    assert back.gallery.paths == data.query.paths
    assert back.query.camids.tolist() == [1] * 3


def test_drawn_splits_are_fixed_by_their_number(viper):
    one, again, two = (load("viper", viper, split=n) for n in (3, 3, 4))
    assert one.query.pids.tolist() == again.query.pids.tolist()
    assert one.query.pids.tolist() != two.query.pids.tolist()
    assert sorted({*one.query.pids, *one.train.pids}) == list(PERSONS)
    assert len(one.query) == 3
    assert len(one.train) == 6


def test_silhouettes_are_interleaved(viper, tmp_path):
    masks = _silhouettes(tmp_path / "masks.mat", 12)
    data = load("viper", viper, masks=masks)
    for images in (data.train, data.query, data.gallery):
        for i, (pid, camid) in enumerate(zip(images.pids, images.camids, strict=True)):
            mask = images.mask(i)
            assert not mask.parts
            assert (mask.labels != 0).sum() == 48 * (2 * PERSONS.index(pid) + camid + 1)
    halved = load("viper", viper, masks=masks, halved_at=0.01).train.mask(5)
    assert halved.parts
    assert halved.labels.unique().tolist() == [0, 1, 2]


def test_mask_folder(viper, tmp_path):
    mask = PartMask(torch.full((128, 48), 2, dtype=torch.uint8))
    write_mask(tmp_path / "m" / "cam_a" / "000_45.png", mask)
    write_mask(tmp_path / "m" / "cam_a" / "001_45.png", mask)
    file = _splits(tmp_path / "sets.txt", [(1, 2)])
    data = load("viper", viper, masks=tmp_path / "m", splits_file=file)
    assert torch.equal(data.query.mask(0).labels, mask.labels)
    assert data.train.mask(0) is not None
    assert data.train.mask(1) is None


def test_bad_input(viper, tmp_path):
    with pytest.raises(UserError, match="holds 4 silhouettes for 12 images"):
        load("viper", viper, masks=_silhouettes(tmp_path / "m.mat", 4))
    with pytest.raises(UserError, match=r"gone\.mat does not exist"):
        load("viper", viper, masks=tmp_path / "gone.mat")
    (tmp_path / "b.mat").write_bytes(b"nothing" * 100)
    with pytest.raises(UserError, match=r"b\.mat holds no readable cell array"):
        load("viper", viper, masks=tmp_path / "b.mat")
    file = _splits(tmp_path / "sets.txt", [(0, 1, 2), (1, 999)])
    with pytest.raises(UserError, match=r"names person 999 and 0 more that are not in"):
        load("viper", viper, split=1, splits_file=file)
    with pytest.raises(UserError, match=r"split must be 0 to 1, the splits of .*, got 2"):
        load("viper", viper, split=2, splits_file=file)
    with pytest.raises(UserError, match=r"none\.txt cannot be read"):
        load("viper", viper, splits_file=tmp_path / "none.txt")
    file.write_text("% one\n1 - cam_a/001_45.bmp cam_b/002_90.bmp\n")
    with pytest.raises(UserError, match=r"sets\.txt, line 2: expected"):
        load("viper", viper, splits_file=file)
    file.write_text("")
    with pytest.raises(UserError, match="holds no splits"):
        load("viper", viper, splits_file=file)
    with pytest.raises(UserError, match="direction must be ab or ba"):
        load("viper", viper, direction="aa")
    with pytest.raises(UserError, match="split must be 0 or more"):
        load("viper", viper, split=-1)
    (viper / "cam_b" / "045_135.bmp").unlink()
    with pytest.raises(UserError, match="person 045 is in one of cam_a and cam_b only"):
        load("viper", viper)
    with pytest.raises(UserError, match="holds neither cam_a nor VIPeR/cam_a"):
        load("viper", viper / "cam_b")


@pytest.mark.skipif(not DATA.is_dir(), reason=f"{DATA} is absent")
def test_the_ten_published_splits():
    splits = read_splits(DATA / "VIPeR_sets.txt")
    assert len(splits) == 10
    assert all(len(set(persons)) == len(persons) == 316 for persons in splits)
    assert len({tuple(persons) for persons in splits}) == 10


@pytest.mark.skipif(not DATA.is_dir(), reason=f"{DATA} is absent")
def test_the_published_silhouettes():
    pytest.importorskip("scipy")
    order = [f"{i // 2}{'ab'[i % 2]}" for i in range(1264)]
    masks = read_silhouettes(DATA / "aleMasks_VIPeR.mat", order)
    assert masks("0a").labels.shape == (128, 48)
    shares = [(masks(name).labels != 0).float().mean().item() for name in order]
    assert 0.3 < min(shares) < max(shares) < 0.9
    assert masks("other") is None
