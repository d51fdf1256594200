"""What is wrong with the input ends in one sentence and exit code 2, nothing half-written."""

import csv
import importlib

import numpy as np
import pytest
from PIL import Image

from mmga import Features

RANDOM = np.random.default_rng(0)


def fails(capsys, verb, *words):
    """Run a command that must fail and return its sentence."""
    with pytest.raises(SystemExit) as leave:
        importlib.import_module(f"mmga.{verb}").main([str(word) for word in words])
    said = capsys.readouterr().err.splitlines()
    assert leave.value.code == 2
    assert said[-1].startswith(f"mmga {verb}: error: "), said
    assert not any("Traceback" in line for line in said)
    return said[-1]


def image(path, size=(16, 32), array=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    values = RANDOM.integers(0, 256, (size[1], size[0], 3), np.uint8) if array is None else array
    Image.fromarray(values).save(path)


@pytest.fixture
def market(tmp_path):
    """Market-1501 in miniature: 4 identities, 2 cameras, 2 images each, with masks."""
    root = tmp_path / "Market-1501-v15.09.15"
    for folder, first in (("bounding_box_train", 1), ("query", 11), ("bounding_box_test", 11)):
        for pid in range(first, first + 4):
            for camera in (1, 2):
                for frame in (1, 2):
                    name = f"{pid:04d}_c{camera}s1_{frame:06d}_00.jpg"
                    image(root / folder / name)
                    if folder == "bounding_box_train":
                        mask = tmp_path / "masks" / folder / name.replace(".jpg", ".png")
                        image(mask, array=np.ones((32, 16), np.uint8))
    return root


def train(capsys, tmp_path, market, *more):
    flags = {
        "recipe": "synthetic", "data": "market1501", "root": market, "height": 32, "width": 16,
        "p": 2, "k": 2, "epochs": 1, "threads": 1, "masks": tmp_path / "masks",
    }  # fmt: skip
    words = [word for name, value in flags.items() for word in (f"--{name}", value)]
    out = tmp_path / "run"
    said = fails(capsys, "train", "--out", out, *words, *more)
    assert not (out / "last.safetensors").exists()
    return said


def test_a_missing_folder(capsys, tmp_path, market):
    assert "nowhere" in train(capsys, tmp_path, market, "--root", tmp_path / "nowhere")


def test_a_missing_mask_folder(capsys, tmp_path, market):
    assert "nomasks" in train(capsys, tmp_path, market, "--masks", tmp_path / "nomasks")


def test_an_empty_split(capsys, tmp_path, market):
    for path in (market / "bounding_box_train").iterdir():
        path.unlink()
    assert "bounding_box_train" in train(capsys, tmp_path, market)


def test_an_image_that_cannot_be_decoded(capsys, tmp_path, market):
    broken = next((market / "bounding_box_train").iterdir())
    broken.write_bytes(b"\xff\xd8\xff broken")
    said = train(capsys, tmp_path, market)
    assert broken.name in said
    assert "cannot be decoded" in said


def test_a_mask_of_another_size(capsys, tmp_path, market):
    mask = next((tmp_path / "masks" / "bounding_box_train").iterdir())
    image(mask, array=np.ones((30, 16), np.uint8))
    said = train(capsys, tmp_path, market)
    assert mask.stem in said
    assert "30 x 16" in said


def test_a_mask_with_unknown_labels(capsys, tmp_path, market):
    mask = next((tmp_path / "masks" / "bounding_box_train").iterdir())
    image(mask, array=np.full((32, 16), 9, np.uint8))
    said = train(capsys, tmp_path, market)
    assert str(mask) in said
    assert "label 9" in said


def test_fewer_identities_than_a_batch_needs(capsys, tmp_path, market):
    said = train(capsys, tmp_path, market, "--p", 5)
    assert "4 identities" in said
    assert "--p" in said


def test_weights_that_cannot_be_had(capsys, tmp_path, market, monkeypatch):
    import torch

    def offline(*arguments, **names):
        raise OSError("no route to host")

    monkeypatch.setattr(torch.hub, "download_url_to_file", offline)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "hub"))
    more = ("--backbone", "resnet18", "--weights", "IMAGENET1K_V1")
    assert "--weights none" in train(capsys, tmp_path, market, *more)


def test_a_cache_that_is_no_size(capsys, tmp_path, market):
    assert "--cache: expected a size such as 2G" in train(capsys, tmp_path, market, "--cache", "x")


def test_no_data_folder(capsys, tmp_path, monkeypatch):
    monkeypatch.delenv("MMGA_DATA", raising=False)
    for name in ("msmt17", "cuhk03-classic"):
        said = fails(capsys, "train", "--data", name, "--out", tmp_path / "run")
        assert "--root is missing" in said
        assert "MMGA_DATA" in said
    monkeypatch.setenv("MMGA_DATA", str(tmp_path))
    said = fails(capsys, "train", "--data", "msmt17", "--out", tmp_path / "run")
    assert f"{tmp_path} holds neither list_train.txt nor MSMT17_V1/list_train.txt" in said


def test_an_unknown_option(capsys, tmp_path, market):
    assert "unknown option --epoch" in train(capsys, tmp_path, market, "--epoch", 3)


def test_a_table_without_a_column(capsys, tmp_path):
    with (tmp_path / "t.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["path", "pid", "split"], ["a.png", 1, "train"]])
    said = fails(
        capsys, "train", "--data", "csv", "--root", tmp_path / "t.csv", "--out", tmp_path / "run"
    )
    assert "camid" in said


def features(count=6, dimension=4, pids=None, camids=None):
    return {
        "features": RANDOM.normal(size=(count, dimension)).astype(np.float32),
        "pids": np.arange(count) % 3 if pids is None else pids,
        "camids": np.arange(count) % 2 if camids is None else camids,
    }


def evaluate(capsys, tmp_path, query, gallery, *more):
    for name, arrays in (("q", query), ("g", gallery)):
        np.savez(tmp_path / f"{name}.npz", **arrays)
    out = tmp_path / "out.json"
    words = ("--query", tmp_path / "q.npz", "--gallery", tmp_path / "g.npz", "--json", out)
    said = fails(capsys, "eval", *words, *more)
    assert not out.exists()
    return said


def test_nan_in_features(capsys, tmp_path):
    gallery = features()
    gallery["features"][3, 1] = np.nan
    assert "gallery: 1 of 6 rows" in evaluate(capsys, tmp_path, features(), gallery)


def test_lengths_that_differ(capsys, tmp_path):
    query = features(pids=np.arange(5))
    said = evaluate(capsys, tmp_path, query, features())
    assert "q.npz" in said
    assert "pids" in said


def test_dimensions_that_differ(capsys, tmp_path):
    said = evaluate(capsys, tmp_path, features(dimension=4), features(dimension=5))
    assert "4" in said
    assert "5" in said


def test_a_gallery_without_a_match(capsys, tmp_path):
    said = evaluate(capsys, tmp_path, features(pids=np.full(6, 8)), features())
    assert "8" in said


def test_a_pickle_is_never_opened(capsys, tmp_path):
    query = features()
    query["pids"] = np.array([object()] * 6, dtype=object)
    assert "pids" in evaluate(capsys, tmp_path, query, features())


def test_a_missing_file(capsys, tmp_path):
    words = ("--query", tmp_path / "none.npz", "--gallery", tmp_path / "none.npz")
    assert "none.npz" in fails(capsys, "eval", *words)


def test_a_folder_that_cannot_be_written(capsys, tmp_path):
    for name in ("q", "g"):
        Features(**features()).save(tmp_path / f"{name}.npz")
    (tmp_path / "file").write_text("")
    words = ("--query", tmp_path / "q.npz", "--gallery", tmp_path / "g.npz")
    said = fails(capsys, "eval", *words, "--json", tmp_path / "file" / "out.json")
    assert "could not be written" in said
