from pathlib import Path

import numpy as np
import pytest
import torch
from paths import SHARED_DATA
from persons import STANDING
from PIL import Image

from mmga.bodyparts.importers import KINDS, fitted, is_silhouette, open_importer, read_poses
from mmga.bodyparts.skeleton import from_points
from mmga.common.errors import UserError
from mmga.data.dataset import DataSet, ImageTensors
from mmga.data.masks import PartMask

PATH = "bounding_box_train/0002_c1s1_000451_03.jpg"

POSES, LISTS = SHARED_DATA / "market1501-pose14", SHARED_DATA / "market1501-lists"


def _images(paths, pids=None):
    count = len(paths)
    image = torch.zeros(3, 128, 64, dtype=torch.uint8)
    return ImageTensors([image] * count, pids or [1] * count, [1] * count, paths)


def _data(train=(PATH,), query=("query/a.jpg",), gallery=("bounding_box_test/a.jpg",), pids=None):
    return DataSet("market1501", _images(train), _images(query), _images(gallery, pids))


def _save(file, values, **how):
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(values).save(file, **how)


def _no_image():
    return None


def _poses(folder, split, points):
    """Write points [N, 14, 2], from 0, as the published files have them."""
    h5py = pytest.importorskip("h5py")
    rows = (np.asarray(points, float) + 1).transpose(0, 2, 1).reshape(len(points), 28)
    folder.mkdir(exist_ok=True)
    with h5py.File(folder / f"market1501_14point_{split}.mat", "w") as file:
        file["pp"] = rows


@pytest.mark.parametrize(
    ("kind", "label", "expected"), [("lip", 9, 2), ("atr", 16, 3), ("pascal", 4, 1)]
)
def test_label_maps(kind, label, expected, tmp_path):
    values = np.zeros((4, 2), np.uint8)
    values[1:] = label
    _save((tmp_path / PATH).with_suffix(".png"), values)
    source = open_importer(kind, tmp_path, _data())
    mask = source(PATH, _no_image)
    assert mask.labels.tolist() == [[0, 0], *[[expected] * 2] * 3]
    assert source("bounding_box_train/other.jpg", _no_image) is None
    assert (
        source(PATH, lambda: (8, 4)).labels.tolist()
        == np.repeat(np.repeat(mask.labels.numpy(), 2, 0), 2, 1).tolist()
    )


def test_dresses_are_split_where_a_skeleton_is_known(tmp_path):
    other = PATH.replace("c1", "c2")
    for path in (PATH, other):
        _save((tmp_path / path).with_suffix(".png"), np.full((256, 4), 6, np.uint8))
    data = _data(train=(PATH,))
    _poses(tmp_path / "poses", "train", [STANDING])
    source = open_importer("lip", tmp_path, data, tmp_path / "poses")
    labels = source(PATH, _no_image).labels
    assert (labels[:132] == 1).all()  # the hips are in row 66 of 128
    assert (labels[132:] == 2).all()
    assert (source(other, _no_image).labels == 1).all()


@pytest.mark.parametrize(
    ("name", "on"),
    [("bounding_box_train_seg/{}.png", 255), ("bounding_box_train/{}.png", 1)],
)
def test_silhouettes_of_mgcam(name, on, tmp_path):
    values = np.zeros((4, 3), np.uint8)
    values[1:3, 1] = on
    _save(tmp_path / name.format(Path(PATH).stem), values)
    source = open_importer("mgcam", tmp_path, _data())
    mask = source(PATH, _no_image)
    assert is_silhouette(mask)
    assert ((mask.labels.numpy() != 0) == (values != 0)).all()
    _save(tmp_path / name.format(Path(PATH).stem), np.zeros((4, 3), np.uint8))
    assert source(PATH, _no_image) is None


@pytest.mark.parametrize("ending", [".npy", ".jpg.npy", ".jpg.confidence_fields.npy"])
@pytest.mark.parametrize("last", [False, True])
def test_bpbreids_three_spellings(ending, last, tmp_path):
    fields = np.zeros((36, 4, 2), np.float32)
    fields[5, 1] = 0.9  # left shoulder
    fields[17, 3] = 0.8  # left ankle to left knee
    fields[30, 0] = 0.2  # not confident
    folder = tmp_path / "bounding_box_train"
    folder.mkdir()
    np.save(folder / (Path(PATH).stem + ending), fields.transpose(1, 2, 0) if last else fields)
    source = open_importer("bpbreid", tmp_path, _data())
    labels = source(PATH, lambda: (8, 4)).labels
    assert labels[2:4].unique().tolist() == [1]
    assert labels[6:8].unique().tolist() == [2]
    assert labels[0].unique().tolist() == [0]
    with pytest.raises(UserError, match="whose size is not known"):
        source(PATH, _no_image)
    assert source("bounding_box_train/other.jpg", _no_image) is None


@pytest.mark.parametrize(
    "values",
    [np.zeros((35, 4, 2), np.float32), np.zeros((36, 4), np.float32), np.array([{}], object)],
)
def test_other_arrays_are_refused(values, tmp_path):
    (tmp_path / "bounding_box_train").mkdir()
    file = tmp_path / "bounding_box_train" / (Path(PATH).stem + ".npy")
    np.save(file, values, allow_pickle=True)
    source = open_importer("bpbreid", tmp_path, _data())
    with pytest.raises(UserError, match=file.name):
        source(PATH, lambda: (8, 4))


def test_skeletons_go_by_sorted_names(tmp_path):
    data = _data(
        train=("bounding_box_train/b.jpg", "bounding_box_train/a.jpg"),
        gallery=("bounding_box_test/c.jpg",),
        pids=[1],
    )
    _poses(tmp_path, "train", [STANDING, STANDING + 3])
    _poses(tmp_path, "gallery", [STANDING + 9, STANDING + 5])  # junk's comes first
    poses = read_poses(tmp_path, data)
    np.testing.assert_allclose(poses.points["bounding_box_train/a.jpg"], STANDING)
    np.testing.assert_allclose(poses.points["bounding_box_train/b.jpg"], STANDING + 3)
    np.testing.assert_allclose(poses.points["bounding_box_test/c.jpg"], STANDING + 5)
    assert poses.skeleton("query/a.jpg") is None
    mask = poses("bounding_box_train/a.jpg", _no_image)
    assert mask.labels.shape == (128, 64)
    assert poses("bounding_box_train/a.jpg", lambda: (64, 32)).labels.shape == (64, 32)
    _poses(tmp_path, "train", [STANDING])
    with pytest.raises(UserError, match="1 skeletons for 2 train images"):
        read_poses(tmp_path, data)
    with_junk = _data(gallery=("bounding_box_test/c.jpg",), pids=[-1])
    _poses(tmp_path, "train", [STANDING])
    with pytest.raises(UserError, match="2 skeletons for 1 gallery images"):
        read_poses(tmp_path, with_junk)


def test_bad_skeleton_files(tmp_path):
    pytest.importorskip("h5py")
    with pytest.raises(UserError, match=r"holds no market1501_14point_train\.mat"):
        read_poses(tmp_path, _data())
    (tmp_path / "market1501_14point_train.mat").write_bytes(b"x")
    with pytest.raises(UserError, match="holds no readable array 'pp'"):
        read_poses(tmp_path, _data())


def test_sdalfs_silhouettes_are_vipers(tmp_path):
    savemat = pytest.importorskip("scipy.io").savemat
    cells = np.empty((1, 4), object)
    for i in range(4):
        cells[0, i] = np.zeros((8, 4), np.uint8)
        cells[0, i][:i] = 1
    savemat(tmp_path / "m.mat", {"msk": cells})
    paths = ["cam_b/001_90.bmp", "cam_a/001_45.bmp", "cam_a/000_0.bmp", "cam_b/000_45.bmp"]
    viper = DataSet("viper", _images(paths[:2]), _images(paths[2:3]), _images(paths[3:]))
    source = open_importer("silhouette", tmp_path / "m.mat", viper)
    rows = {
        p: source(p, _no_image).labels.bool().any(1).sum().item() for p in paths if "a/000" not in p
    }
    assert rows == {"cam_b/000_45.bmp": 1, "cam_a/001_45.bmp": 2, "cam_b/001_90.bmp": 3}
    assert source("cam_a/000_0.bmp", _no_image) is None  # an empty one
    with pytest.raises(UserError, match="is for viper, not for market1501"):
        open_importer("silhouette", tmp_path / "m.mat", _data())


def test_sources_that_are_not_there(tmp_path):
    for kind in KINDS:
        with pytest.raises(UserError, match="gone does not exist"):
            open_importer(kind, tmp_path / "gone", _data())
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="must be the folder of lip's files"):
        open_importer("lip", tmp_path / "file", _data())
    with pytest.raises(UserError, match="--from must be one of"):
        open_importer("coco", tmp_path, _data())
    _save(
        tmp_path / "bounding_box_train" / (Path(PATH).stem + ".png"), np.zeros((4, 2, 3), np.uint8)
    )
    with pytest.raises(UserError, match="must be an 8-bit single-channel label map"):
        open_importer("lip", tmp_path, _data())(PATH, _no_image)


def test_fitting_takes_the_nearest_pixel():
    mask = PartMask(torch.tensor([[0, 1], [2, 3]], dtype=torch.uint8))
    assert fitted(mask, None) is fitted(mask, (2, 2)) is mask
    assert fitted(mask, (4, 4)).labels.tolist() == [[0, 0, 1, 1]] * 2 + [[2, 2, 3, 3]] * 2
    assert fitted(mask, (1, 1)).labels.tolist() == [[3]]


@pytest.mark.skipif(
    not (POSES).is_dir(),
    reason=f"{POSES} is absent",
)
def test_published_skeletons_are_persons():
    """Of every hundredth of Market's training images nearly all give a plausible mask."""
    h5py = pytest.importorskip("h5py")
    from mmga.bodyparts.split import drawn

    with h5py.File(POSES / "market1501_14point_train.mat") as file:
        rows = file["pp"][()][::100]
    masks = [drawn(from_points(row.reshape(2, 14).T - 1), (128, 64)) for row in rows]
    shares = np.array(
        [[(m.labels == part).float().mean() for part in (1, 2)] for m in masks if m is not None]
    )
    assert sum(mask is None for mask in masks) <= 2
    assert 0.3 < shares.sum(1).mean() < 0.45
    assert (shares.sum(1) > 0.1).all()
    # Rows rise from head to feet: the upper half lies above the bottom one.
    heights = [
        [(m.labels == part).nonzero()[:, 0].float().mean() for part in (1, 2)]
        for m in masks
        if m is not None
    ]
    assert all(upper < bottom for upper, bottom in heights)


@pytest.mark.skipif(
    not (POSES).is_dir() or not (LISTS).is_dir(),
    reason=f"{POSES} or {LISTS} is absent",
)
def test_published_skeletons_meet_their_names(tmp_path):
    """Persons' heads are near the top; distractors, which are no persons, have them anywhere."""
    pytest.importorskip("h5py")
    names = (LISTS / "list_market_test.txt").read_text().splitlines()
    paths = [line.split()[0] for line in names]
    query = [path for path in paths if path.startswith("query/")]
    gallery = [path for path in paths if path.startswith("bounding_box_test/")]
    train = [
        f"bounding_box_train/{line.split()[0]}"
        for line in (LISTS / "list_market_train.txt").read_text().splitlines()
    ]
    # Any order will do, and junk, whose names come first, is not in the list.
    poses = read_poses(POSES, _data(train[::-1], query, gallery))
    assert len(poses.points) == len(train) + len(query) + len(gallery)

    def head(paths):
        return np.mean([poses.points[path][0, 1] for path in paths])

    distractors = [path for path in gallery if path.startswith("bounding_box_test/0000_")]
    assert len(distractors) == 2798
    assert head(distractors) > 20
    for persons in (train, query, sorted(set(gallery) - set(distractors))):
        assert head(persons) < 8


@pytest.mark.parametrize("name", ["0002_c1s1_000451_03.png", "0002_c1s1_000451_03.jpg.png"])
@pytest.mark.parametrize("kind", ["lip", "silhouette"])
def test_files_are_named_by_stem_or_by_the_whole_name(kind, name, tmp_path):
    values = np.zeros((4, 2), np.uint8)
    values[1:] = 9
    _save(tmp_path / "bounding_box_train" / name, values)
    found = open_importer(kind, tmp_path, _data())(PATH, _no_image)
    assert found is not None and (found.labels[1:] != 0).all()


@pytest.mark.parametrize("kind", ["lip", "silhouette", "bpbreid"])
def test_a_folder_without_any_file_of_the_images_says_what_it_looked_for(kind, tmp_path):
    _save(tmp_path / "elsewhere.png", np.ones((4, 2), np.uint8))
    with pytest.raises(UserError, match=r"for any of the 3 images.*0002_c1s1_000451_03\.jpg\."):
        open_importer(kind, tmp_path, _data())
