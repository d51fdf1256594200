"""A run can be killed or stopped anywhere and ends as one that ran through."""

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from mmga import engine
from mmga.checkpoint import load_checkpoint
from mmga.config import Config, merged, recipe_config
from mmga.data.dataset import DataSet, ImageTensors, Subset
from mmga.data.masks import PartMask
from mmga.errors import UserError

SMALL = {
    "data": {"height": 32, "width": 16},
    "batch": {"p": 4, "k": 2},
    "run": {"epochs": 3, "log_every": 1, "threads": 1},
}


def small(**sections) -> Config:
    config = merged(recipe_config("synthetic"), SMALL, where="test")
    return merged(config, sections, where="test")


def data(persons: int = 6, images: int = 4) -> DataSet:
    random = np.random.default_rng(0)
    count = persons * images
    pictures = [
        torch.from_numpy(random.integers(0, 256, (3, 32, 16), dtype=np.uint8)) for _ in range(count)
    ]
    masks = [
        PartMask(torch.from_numpy(random.integers(0, 3, (32, 16), dtype=np.uint8)))
        for _ in range(count)
    ]
    pids, camids = np.arange(count) // images, np.arange(count) % 2
    whole = ImageTensors(pictures, pids, camids, masks=masks)
    return DataSet(
        "test",
        whole,
        Subset(whole, np.flatnonzero(camids == 0)[:6]),
        Subset(whole, np.flatnonzero(camids == 1)),
    )


def table(folder: Path, persons: int = 6, images: int = 4) -> Path:
    """Write a data set as PNG files and a CSV table."""
    random = np.random.default_rng(0)
    with (folder / "table.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["path", "pid", "camid", "split"])
        for index in range(persons * images):
            name, pid = f"{index:03d}.png", index // images
            Image.fromarray(random.integers(0, 256, (32, 16, 3), dtype=np.uint8)).save(
                folder / name
            )
            writer.writerow([name, pid, index % 2, "train"])
            writer.writerow([name, pid, index % 2, "gallery" if index % 2 else "query"])
    return folder / "table.csv"


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_checkpoint(folder / "last.safetensors").weights


def assert_equal_runs(first: Path, second: Path) -> None:
    left, right = weights(first), weights(second)
    assert left.keys() == right.keys()
    for name in left:
        assert torch.equal(left[name], right[name]), name
    rows = [
        [
            {key: value for key, value in json.loads(line).items() if key != "images_per_second"}
            for line in (folder / "metrics.jsonl").read_text().splitlines()
        ]
        for folder in (first, second)
    ]
    assert rows[0] == rows[1]


def test_a_run_leaves_everything_in_its_folder(tmp_path):
    told = []
    result = engine.train(small(), tmp_path, data=data(), progress=lambda *c: told.append(c))
    names = {path.name for path in tmp_path.iterdir()}
    assert {"config.yaml", "metrics.jsonl", "last.safetensors", "tensorboard"} <= names
    assert not any(name.startswith(".") for name in names)
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert result.steps == sum(line["kind"] == "train" for line in lines)
    assert set(lines[0]) >= {"loss", "triplet", "id", "mask", "mask_whole0", "mask_bottom", "lr"}
    assert 0 <= lines[-1]["mAP"] <= 1
    assert set(lines[-1]["attention"]) == {"whole0", "whole", "upper", "bottom"}
    assert {phase for phase, _, _ in told} >= {"train", "query", "gallery"}


@pytest.mark.parametrize("stop_at", [1, 2, 4])
def test_a_stopped_run_goes_on_bit_for_bit(tmp_path, stop_at):
    """SIGTERM in the middle of an epoch saves; the resumed run ends with the same bits."""
    engine.train(small(), tmp_path / "through", data=data())

    def stop(phase, done, total):
        if phase == "train" and done == stop_at:
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(engine.Stopped):
        engine.train(small(), tmp_path / "stopped", data=data(), progress=stop)
    assert load_checkpoint(tmp_path / "stopped" / "last.safetensors").progress.step == stop_at
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    engine.train(small(), tmp_path / "stopped", data=data(), resume=True)
    assert_equal_runs(tmp_path / "through", tmp_path / "stopped")


def command(root: Path, out: Path, *more: str) -> list[str]:
    words = [sys.executable, "-m", "mmga.train", "--out", str(out)]
    if "--resume" in more:
        return [*words, *more]
    flags = {
        "recipe": "synthetic", "data": "csv", "root": root, "height": 32, "width": 16,
        "p": 4, "k": 2, "epochs": 12, "log-every": 1, "threads": 1,
    }  # fmt: skip
    return [*words, *(str(w) for name, v in flags.items() for w in (f"--{name}", v)), *more]


def test_a_killed_run_goes_on_bit_for_bit(tmp_path):
    """SIGKILL wherever it happens to be, as the command is run by a user."""
    root = table(tmp_path)
    through = subprocess.run(
        command(root, tmp_path / "through"), capture_output=True, text=True, check=False
    )
    assert through.returncode == 0, through.stderr
    out = tmp_path / "killed"
    process = subprocess.Popen(command(root, out), stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        lines = out / "metrics.jsonl"
        if lines.is_file() and len(lines.read_text().splitlines()) >= 7:
            break
        time.sleep(0.01)
    process.kill()
    process.wait()
    assert load_checkpoint(out / "last.safetensors").progress.epoch < 12, "killed too late"
    resumed = subprocess.run(
        command(root, out, "--resume"), capture_output=True, text=True, check=False
    )
    assert resumed.returncode == 0, resumed.stderr
    assert_equal_runs(tmp_path / "through", out)


def test_the_command_saves_on_sigterm_and_says_how_to_go_on(tmp_path):
    root, out = table(tmp_path), tmp_path / "run"
    process = subprocess.Popen(
        command(root, out, "--epochs", "4000"), stderr=subprocess.PIPE, text=True
    )
    deadline = time.monotonic() + 60
    while not (out / "last.safetensors").is_file() and time.monotonic() < deadline:
        time.sleep(0.02)
    process.terminate()
    _, said = process.communicate(timeout=60)
    assert process.returncode == 143
    assert f"python -m mmga.train --resume --out {out}" in said


def test_a_loss_that_is_not_finite_stops_the_run(tmp_path, monkeypatch):
    real = engine.total_loss

    def broken(*arguments, **names):
        losses = real(*arguments, **names)
        return losses | {"loss": losses["loss"] * torch.nan}

    monkeypatch.setattr(engine, "total_loss", broken)
    with pytest.raises(UserError, match=r"the loss became nan at step 1 \(batch of 0000"):
        engine.train(small(), tmp_path, data=data())


@pytest.mark.parametrize(
    ("sections", "resume", "sentence"),
    [
        ({}, True, "--resume: there is no checkpoint"),
        ({"batch": {"p": 7}}, False, "6 identities with two images or more"),
        ({"run": {"device": "cuda:99"}}, False, "--device cuda:99: this machine has"),
        ({"run": {"device": "gpu"}}, False, "--device must be auto, cpu, cuda"),
        ({"model": {"backbone": "resnet17"}}, False, "resnet17"),
    ],
)
def test_input_that_cannot_be_trained_on(tmp_path, sections, resume, sentence):
    with pytest.raises(UserError, match=sentence):
        engine.train(small(**sections), tmp_path, data=data(), resume=resume)
    assert not list(tmp_path.iterdir())


def test_a_folder_that_holds_a_run_is_not_overwritten(tmp_path):
    engine.train(small(run={"epochs": 1}), tmp_path, data=data())
    with pytest.raises(UserError, match="already holds a run; add --resume"):
        engine.train(small(), tmp_path, data=data())


def test_masks_that_cover_too_little(tmp_path):
    root, masks = table(tmp_path), tmp_path / "masks"
    masks.mkdir()
    Image.fromarray(np.ones((32, 16), np.uint8)).save(masks / "000.png")
    sections = {"data": {"data": "csv", "root": root, "masks": masks}}
    with pytest.raises(UserError, match=r"1 of 24 training images have a mask; .*allow-missing"):
        engine.train(small(**sections), tmp_path / "run")
    sections["data"]["allow_missing_masks"] = True
    sections["run"] = {"epochs": 1}
    engine.train(small(**sections), tmp_path / "run")
