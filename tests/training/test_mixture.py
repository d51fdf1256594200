"""Several data sets trained on together, and others tested, in one table."""

import json

import numpy as np
import pytest
from PIL import Image

from mmga import config as configuration
from mmga import eval as evaluation
from mmga import train
from mmga.common.errors import UserError
from mmga.config import DataName, RecipeName, check, load_config, merged, recipe_config
from mmga.data.build import load_mixture
from mmga.models.checkpoint import load_checkpoint

NAMES = {
    "market1501": ("Market-1501-v15.09.15", "{pid:04d}_c{camera}s1_{frame:06d}_00.jpg"),
    "dukemtmc": ("DukeMTMC-reID", "{pid:04d}_c{camera}_f{frame:07d}.jpg"),
}
"""Folder and file names of the two sets in miniature."""


@pytest.fixture
def root(tmp_path):
    random = np.random.default_rng(0)
    for name, (folder, pattern) in NAMES.items():
        for part, first in (("bounding_box_train", 1), ("query", 11), ("bounding_box_test", 11)):
            for pid in range(first, first + 3):
                for camera, frame in ((1, 1), (1, 2), (2, 3)):
                    file = pattern.format(pid=pid, camera=camera, frame=frame)
                    path = tmp_path / folder / part / file
                    path.parent.mkdir(parents=True, exist_ok=True)
                    pixels = random.integers(0, 256, (32, 16, 3), dtype=np.uint8)
                    Image.fromarray(pixels).save(path)
                    if part == "bounding_box_train" and name == "market1501":
                        mask = tmp_path / "masks" / name / part / file.replace(".jpg", ".png")
                        mask.parent.mkdir(parents=True, exist_ok=True)
                        Image.fromarray(np.ones((32, 16), np.uint8)).save(mask)
    return tmp_path


def words(root, out, *more):
    flags = {
        "recipe": "synthetic", "data": "market1501", "root": root, "height": 32, "width": 16,
        "p": 3, "k": 2, "epochs": 1, "threads": 1, "out": out,
    }  # fmt: skip
    return [*(str(w) for name, v in flags.items() for w in (f"--{name}", v)), *map(str, more)]


def last_line(folder):
    return json.loads((folder / "metrics.jsonl").read_text().splitlines()[-1])


def test_sets_trained_on_together_are_tested_in_one_table(root, capsys):
    more = ("--also", "dukemtmc", "--masks", root / "masks")
    train.main(words(root, root / "run", *more))
    assert load_checkpoint(root / "run" / "last.safetensors").num_classes == 6
    line = last_line(root / "run")
    assert list(line["sets"]) == ["market1501", "dukemtmc"]
    assert line["mAP"] == np.mean([figures["mAP"] for figures in line["sets"].values()])
    assert line["sets"]["dukemtmc"]["setting"]["trained_on"] == ["market1501", "dukemtmc"]
    said = capsys.readouterr().out.splitlines()
    table = said[1:5]
    assert [row.split()[0] for row in table] == ["tested", "market1501", "dukemtmc", "mean"]
    assert table[0].split()[2:] == ["mAP", "mINP", "rank-1", "rank-5", "rank-10"]
    names = ("mAP", "mINP", "rank1", "rank5", "rank10")
    assert table[3].split()[1:] == [f"{line[name]:.2%}" for name in names]
    assert said[5] == "protocol market1501, cosine"
    assert f"python -m mmga.eval --run {root / 'run'} --rerank" in said[7]


def test_another_set_is_tested_on(root, capsys):
    train.main(words(root, root / "run", "--test", "dukemtmc"))
    line = last_line(root / "run")
    assert "sets" not in line
    assert line["num_valid_query"] == 9
    row = capsys.readouterr().out.splitlines()[2].split()
    assert row[:2] == ["dukemtmc", f"{line['mAP']:.2%}"]
    assert load_config(root / "run" / "config.yaml").data.test == ("dukemtmc",)
    report = root / "report.json"
    evaluation.main(["--run", str(root / "run"), "--json", str(report)])
    assert json.loads(report.read_text())["mAP"] == line["mAP"]


def test_identities_masks_and_paths_of_sets_stay_apart(root):
    values = {
        "data": {
            "data": "market1501", "also": ["dukemtmc"], "test": ["dukemtmc"], "root": root,
            "masks": root / "masks",
        }
    }  # fmt: skip
    settings = merged(recipe_config("mgn"), values, where="test")
    check(settings)
    images, tests = load_mixture(settings)
    assert len(images) == 18
    assert len(set(images.pids)) == 6
    assert images.paths[0].startswith("market1501/")
    assert images.paths[-1].startswith("dukemtmc/")
    assert [images.mask(index) is not None for index in (0, 17)] == [True, False]
    assert list(tests) == ["dukemtmc"]


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        ({"also": ["market1501"]}, "--also names market1501 a second time"),
        ({"test": ["viper", "viper"]}, "--test names viper a second time"),
        ({"also": ["csv"]}, "name the table of csv with --root TABLE.csv"),
        ({"data": "csv", "root": "t.csv", "test": ["viper"]}, "name the folder of viper"),
        ({"test": ["dukemtcm"]}, "data.test must be one of .*, got dukemtcm"),
    ],
)
def test_sets_that_do_not_fit_together(data, sentence, monkeypatch):
    monkeypatch.delenv("MMGA_DATA", raising=False)
    values = {"data": {"data": "market1501", "root": "data", **data}}
    with pytest.raises(UserError, match=sentence):
        check(merged(recipe_config("mgn"), values, where="test"))


@pytest.mark.parametrize("recipe", configuration.typing.get_args(RecipeName))
def test_every_recipe_prints_its_whole_configuration_for_every_set(recipe, tmp_path, capsys):
    """What is printed is a configuration file; nothing needs to be there for it."""
    for name in configuration.typing.get_args(DataName):
        train.main(["--recipe", recipe, "--data", name, "--print-config"])
        (tmp_path / "c.yaml").write_text(capsys.readouterr().out)
        expected = merged(recipe_config(recipe), {"data": {"data": name}}, where="test")
        assert load_config(tmp_path / "c.yaml") == expected
