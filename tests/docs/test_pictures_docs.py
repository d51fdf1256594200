"""What docs/pictures.md says is run, at a size that takes seconds."""

import json
import re
import shlex
from typing import get_args

import numpy as np
import pytest
from paths import REPOSITORY
from PIL import Image
from small_run import write_run

import mmga
from mmga import visualize

TEXT = (REPOSITORY / "docs" / "pictures.md").read_text()
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", TEXT, re.DOTALL)


def test_every_example_runs(tmp_path, monkeypatch):
    pytest.importorskip("matplotlib")
    monkeypatch.chdir(tmp_path)
    persons = {"persons": 2, "test_persons": 2}
    for name in ("x", "y"):
        write_run(tmp_path / "runs" / name, data=persons)
        line = {"kind": "train", "step": 1, "loss": 2.0}
        (tmp_path / "runs" / name / "metrics.jsonl").write_text(json.dumps(line) + "\n")
    names, generator = {"mmga": mmga}, np.random.default_rng(0)
    for side, count in (("query", 12), ("gallery", 36)):
        paths = [f"{side}/{place}.png" for place in range(count)]
        rows = generator.standard_normal((count, 8)).astype(np.float32)
        labels = np.arange(count) % 6, np.arange(count) // 6 % 2
        names[side] = mmga.Features(rows, *labels, paths)
        names[side].save(f"{side[0]}.npz")
        for folder in (tmp_path / "market" / side, tmp_path / "photographs"):
            folder.mkdir(parents=True, exist_ok=True)
            for place in range(count):
                Image.new("RGB", (16, 48), (place, 0, 0)).save(folder / f"{place}.png")
    for language, text in BLOCKS:
        if language == "python":
            exec(compile(text, "docs/pictures.md", "exec"), names)
        for line in text.splitlines() if language == "sh" else ():
            words = shlex.split(line.split("  #")[0])
            assert words[:3] == ["python", "-m", "mmga.visualize"]
            visualize.main(words[3:])
    drawn = {path.name for path in (tmp_path / "pictures").iterdir()}
    assert drawn == {
        *(f"{name}.png" for name in (*get_args(visualize.PlotName), "training")),
        "cmc.svg",
        "roc.svg",
    }
    assert sorted(path.name for path in (tmp_path / "runs" / "x").iterdir()) == [
        "attention.png",
        "last.safetensors",
        "metrics.jsonl",
        "photographs.pdf",
        "ranked.png",
    ]
    assert (tmp_path / "roc.pdf").is_file() and (tmp_path / "hardest.png").is_file()


def test_every_picture_and_function_is_in_the_table():
    from mmga import plots

    rows = [line for line in TEXT.splitlines() if line.startswith("| `")]
    pictures, functions = (
        [name for row in rows for name in re.findall(r"`(\w+)`", row.split("|")[column])]
        for column in (1, 2)
    )
    assert set(pictures) == {*get_args(visualize.PlotName), "photographs", "training"}
    assert all(callable(getattr(plots, name)) for name in functions)
