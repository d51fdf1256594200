"""What docs/evaluation.md and docs/certified.md say is run, at a size that takes seconds."""

import re
import shlex
from pathlib import Path

import numpy as np
import pytest
from paths import REPOSITORY

import mmga
from mmga import doctor
from mmga import eval as command

DOCS = REPOSITORY / "docs"
TEXT = (DOCS / "evaluation.md").read_text() + (DOCS / "certified.md").read_text()
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", TEXT, re.DOTALL)
PYTHON = [text for language, text in BLOCKS if language == "python"]
SHELL = [
    line.split("#")[0].strip()
    for language, text in BLOCKS
    if language == "sh"
    for line in text.replace("\\\n", " ").splitlines()
    if line.strip()
]


@pytest.fixture
def names(tmp_path, monkeypatch):
    """The variables and files that the examples speak of."""
    monkeypatch.chdir(tmp_path)
    generator = np.random.default_rng(0)
    centres = generator.standard_normal((8, 3, 6))
    found = {"mmga": mmga, "np": np}
    for side, count in (("query", 24), ("gallery", 120)):
        pids = generator.integers(0, 8, count)
        parts = centres[pids] + generator.standard_normal((count, 3, 6))
        paths = [f"{side}/{i}.png" for i in range(count)]
        columns = {"time": generator.integers(0, 100, count)}
        labels = (pids, generator.integers(0, 3, count), paths)
        rows = parts.reshape(count, 18).astype(np.float32)
        found[side] = mmga.Features(rows, *labels, columns=columns)
        found[f"{side}_parts"] = parts.astype(np.float32)
        found[f"{side}_visibility"] = generator.integers(0, 2, (count, 3))
        for name, values in zip(("pids", "camids", "paths"), labels, strict=True):
            found[f"{side}_{name}"] = values
        found[side].save(f"{side}.npz")
        found[side].save(f"{side[0]}.npz")
        lines = [f"{path},{time}" for path, time in zip(paths, columns["time"], strict=True)]
        Path(f"{side[0]}.csv").write_text("\n".join(["path,seconds", *lines]))
    for name, scale in (("one.npz", 1), ("other.npz", 2)):
        noisy = [
            mmga.Features(
                found[side].features.numpy()
                + scale * generator.standard_normal((len(found[side]), 18)),
                found[side].pids,
                found[side].camids,
            )
            for side in ("query", "gallery")
        ]
        mmga.retrieval.features.save_both(name, *noisy)
    return found


@pytest.mark.parametrize("code", PYTHON, ids=range(len(PYTHON)))
def test_python_examples_run(code, names):
    exec(compile(code, "evaluation.md", "exec"), names)
    if "report" in names:
        assert 0 < names["report"].mAP <= 1


@pytest.mark.parametrize("line", SHELL)
def test_commands_run(line, names, capsys):
    words = shlex.split(line)
    assert words[:2] == ["python", "-m"]
    main = {"mmga.eval": command.main, "mmga.doctor": doctor.main}[words[2]]
    main(words[3:])
    assert capsys.readouterr().out
