"""What docs/training.md says is run, on a data set in miniature with the smallest network."""

import contextlib
import importlib
import io
import re
import shlex
from pathlib import Path

import numpy as np
import pytest
import torch
from paths import REPOSITORY
from PIL import Image
from small_run import write_run

from mmga import config, export
from mmga.common import cli
from mmga.models.backbone import build_backbone

DOCS = (REPOSITORY / "docs" / "training.md").read_text()
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", DOCS, re.DOTALL)
COMMANDS = [line for kind, text in BLOCKS if kind == "sh" for line in text.splitlines()]
PYTHON = [text for kind, text in BLOCKS if kind == "python"]
TINY = "--backbone tiny --weights none "
SMALL = TINY + ("--height 48 --width 16 --p 4 --k 2 --epochs 2 --pad 1 --threads 1")
RENAMED = {"--epochs 60": "", "--val-ids 50": "--val-ids 2", "--eval-every 10": "--eval-every 1"}


def pictures(root, names, random):
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(random.integers(0, 256, (32, 16, 3), dtype=np.uint8)).save(path)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Everything that the examples name; later ones use what earlier ones made."""
    random, root = np.random.default_rng(0), tmp_path_factory.mktemp("docs")
    for name, pattern in {
        "Market-1501-v15.09.15": "{pid:04d}_c{camera}s1_{frame:06d}_00.jpg",
        "DukeMTMC-reID": "{pid:04d}_c{camera}_f{frame:07d}.jpg",
    }.items():
        for part, first in (("bounding_box_train", 1), ("query", 11), ("bounding_box_test", 11)):
            names = [
                f"{part}/{pattern.format(pid=pid, camera=camera, frame=frame)}"
                for pid in range(first, first + 6)
                for camera, frame in ((1, 1), (1, 2), (2, 3))
            ]
            pictures(root / "data" / name, names, random)
            if part == "bounding_box_train" and name.startswith("Market"):
                for one in names:
                    mask = (root / "masks" / one).with_suffix(".png")
                    mask.parent.mkdir(parents=True, exist_ok=True)
                    Image.fromarray(random.integers(0, 3, (32, 16), dtype=np.uint8)).save(mask)
    pictures(root / "photographs", ["a.png", "b.png"], random)
    torch.save({"state_dict": build_backbone("osnet_x0_25").state_dict()}, root / "osnet.pth")
    return root


def run(line):
    """Run one command in this process; of torchrun's, what each process runs."""
    for old, new in RENAMED.items():
        line = line.replace(old, new)
    line, _, output = line.partition(" > ")
    words = shlex.split(line)
    module = words[words.index("-m") + 1]
    words = [word for word in words[words.index(module) + 1 :] if word != "--"]
    if module == "mmga.train" and "--resume" not in words:
        words += shlex.split(SMALL if "--backbone" not in words else SMALL.replace(TINY, ""))
    if module == "mmga.export":  # what it writes takes long, and test_export.py is about it
        options = cli.parse("export", export.Options, words)
        assert options.out.suffix == export.FORMATS[options.format][0]
        assert (options.run / "last.safetensors").is_file()
        return
    with contextlib.redirect_stdout(io.StringIO()) as said:
        importlib.import_module(module).main(words)
    if output:
        Path(output.strip()).write_text(said.getvalue())


def test_every_example_runs(folder, monkeypatch):
    """In their order; a command that fails would leave with a code."""
    monkeypatch.chdir(folder)
    for line in COMMANDS:
        run(line)
    for name in ("market", "strong", "four", "changed", "both", "across", "osnet"):
        assert (folder / "runs" / name / "last.safetensors").is_file(), name
    assert config.load_config(folder / "runs" / "changed" / "config.yaml").recipe == "bot"
    assert (folder / "sheets" / "ranked.png").is_file()
    for code in PYTHON:
        if "onnxruntime" in code:
            continue
        names = {}
        exec(compile(code, "docs/training.md", "exec"), names)
        assert names["features"].shape == (2, 768)
        assert list(names["maps"]) == ["whole0", "whole", "upper", "bottom"]


def test_the_onnx_example_runs(tmp_path, monkeypatch):
    for package in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(package)
    (code,) = (code for code in PYTHON if "onnxruntime" in code)
    monkeypatch.chdir(tmp_path)
    run = write_run(tmp_path / "run")
    export.main(["--run", str(run), "--format", "onnx", "--out", "market.onnx"])
    names = {}
    exec(compile(code, "docs/training.md", "exec"), names)
    assert names["batch"] == "batch"
    assert names["features"].shape == (2, 768)
    np.testing.assert_allclose(np.linalg.norm(names["features"], axis=1), 1, rtol=1e-5)
