"""What docs/data.md says is run, on data sets in miniature."""

import re
import shlex

import numpy as np
import pytest
import torch
from miniatures import CUHK03_NP, DUKE, MARKET, cuhk03_mat, images, msmt17
from paths import REPOSITORY
from persons import SIZE, STANDING
from PIL import Image

from mmga import masks, train
from mmga.bodyparts.detector import DetectedPerson
from mmga.common import cli
from mmga.config import DataConfig
from mmga.data.build import load_data
from mmga.data.masks import PartMask, write_mask
from mmga.data.readers.by_name import NAMES, load

DOCS = (REPOSITORY / "docs" / "data.md").read_text()
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", DOCS, re.DOTALL)
COMMANDS = [line for kind, text in BLOCKS if kind == "sh" for line in text.splitlines()]
PYTHON = [text for kind, text in BLOCKS if kind == "python"]
TRAINING = [line for line in COMMANDS if line.startswith("python -m mmga.train")]
MASKS = [line for line in COMMANDS if line.startswith("python -m mmga.masks")]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Everything that the examples name."""
    h5py, scipy_io = pytest.importorskip("h5py"), pytest.importorskip("scipy.io")
    data = tmp_path / "data"
    market = data / "Market-1501-v15.09.15"
    images(market, MARKET, SIZE[::-1])
    images(data / "distractors_500k", ["1.jpg", "2.jpg"])
    images(data / "DukeMTMC-reID", DUKE)
    msmt17(data / "MSMT17_V1")
    for boxes in ("detected", "labeled"):
        images(data / "cuhk03-np" / boxes, CUHK03_NP)
    cuhk03_mat(data / "cuhk03_release" / "cuhk-03.mat")
    for camera, angle in (("cam_a", 45), ("cam_b", 135)):
        images(data / "VIPeR", [f"{camera}/{p:03d}_{angle}.bmp" for p in range(4)], (48, 128))
    lines = [f"{path},{i},0,{s}" for i, (path, s) in enumerate(_table_rows())]
    (data / "mine.csv").write_text("path,pid,camid,split\n" + "\n".join(lines) + "\n")

    labels = np.zeros(SIZE, np.uint8)
    labels[20:110, 16:48] = 6
    (tmp_path / "mgcam" / "bounding_box_train_seg").mkdir(parents=True)
    for path in MARKET[:3]:
        place = (tmp_path / "parsing" / path).with_suffix(".png")
        place.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(labels).save(place)
        Image.fromarray(labels // 6 * 255).save(
            tmp_path / "mgcam" / "bounding_box_train_seg" / place.name
        )
        fields = tmp_path / "fields" / f"{path}.confidence_fields.npy"
        fields.parent.mkdir(parents=True, exist_ok=True)
        np.save(fields, np.full((36, 8, 4), 0.7, np.float32))
        whole = PartMask(torch.from_numpy(labels // 6))
        write_mask((tmp_path / "masks" / path).with_suffix(".png"), whole)
    (tmp_path / "poses").mkdir()
    with h5py.File(tmp_path / "poses" / "market1501_14point_train.mat", "w") as file:
        file["pp"] = np.stack([STANDING + 1] * 3).transpose(0, 2, 1).reshape(3, 28)
    cells = np.empty((1, 8), object)
    for i in range(8):
        cells[0, i] = np.ones((128, 48), np.uint8)
    scipy_io.savemat(tmp_path / "aleMasks_VIPeR.mat", {"msk": cells})
    monkeypatch.chdir(tmp_path)
    return tmp_path


def _table_rows():
    root = "Market-1501-v15.09.15"
    return [(f"{root}/{MARKET[i]}", s) for i, s in ((0, "train"), (3, "query"), (5, "gallery"))]


def test_every_command_is_tested():
    assert len(TRAINING) + len(MASKS) == len(COMMANDS)
    named = {shlex.split(line)[shlex.split(line).index("--data") + 1] for line in COMMANDS}
    assert named <= set(NAMES)
    assert all(f"`{name}`" in DOCS for name in NAMES)


@pytest.mark.parametrize("line", TRAINING)
def test_training_commands_find_their_data(line, folder):
    words = shlex.split(line)[3:]
    options = cli.parse("train", train.Options, words, train.starting_point(words))
    data = load_data(options.settings)
    assert len(data.train)
    assert data.query.image(0).shape[0] == 3


@pytest.mark.parametrize("line", MASKS)
def test_mask_commands_make_masks(line, folder):
    def find(batch):
        return [DetectedPerson(np.ones(image.shape[1:], bool), None) for image in batch]

    options = cli.parse("masks", masks.Options, shlex.split(line)[3:])
    if options.kind is None:
        options = cli.parse("masks", masks.Options, [*shlex.split(line)[3:], "--out", "made"])
    assert masks.body(options, find) == 0
    made = list(options.out.rglob("*.png"))
    # VIPeR's split trains on two of four persons, two images each; and the preview.
    assert len(made) == (5 if options.data == "viper" else 4)
    assert (options.out / "manifest.json").is_file()


def test_python_examples_run(folder, capsys):
    names = {"points": STANDING}
    for code in PYTHON:
        exec(compile(code, "docs/data.md", "exec"), names)
    said = capsys.readouterr().out
    assert said == "6 images, 3 with a mask; market1501 msmt17 is trained on train + val\n"
    assert names["halves"].parts


def test_multi_query_from_a_run(folder, capsys):
    """The images of gt_bbox are the queries, where the folder holds them."""
    from mmga import extract
    from mmga.config import as_dict, merged, recipe_config
    from mmga.models.checkpoint import Checkpoint, Position, save_checkpoint
    from mmga.models.loading import build_network
    from mmga.retrieval.features import load_features

    size = {"height": 48, "width": 16}
    config = merged(recipe_config("synthetic"), {"data": size}, where="test")
    network = build_network(config.model, 5)
    checkpoint = Checkpoint(network.state_dict(), Position(1, 0, 9), 5, as_dict(config))
    save_checkpoint(folder / "run/last.safetensors", checkpoint)
    words = ["--run", "run", "--data", "market1501", "--root", "data", "--out", "features"]
    for flag in ((), ("--multi-query",)):
        extract.main([*words, *flag])
        paths = load_features(folder / "features" / "query.npz").paths
        assert paths.tolist() == [MARKET[6 if flag else 3]]
    assert capsys.readouterr().out.strip().endswith("--protocol multi-query")


def test_the_example_table_is_read(tmp_path):
    (text,) = [text for kind, text in BLOCKS if kind == "csv"]
    (tmp_path / "mine.csv").write_text(text)
    (tmp_path / "masks").mkdir()
    Image.new("L", (8, 16)).save(tmp_path / "masks" / "ann_hall_001.png")
    data = load(DataConfig(data="csv", root=tmp_path / "mine.csv"))
    assert data.train.mask(0) is not None
    assert data.train.root == tmp_path
    assert data.gallery.pids.tolist() == [data.query.pids[0], -1]
