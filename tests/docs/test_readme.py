"""What README says is run, at a size that takes seconds."""

import re
import shlex
import subprocess
import sys

import numpy as np
import pytest
from paths import REPOSITORY

from mmga import Features

README = (REPOSITORY / "README.md").read_text()
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", README, re.DOTALL)
PYTHON = [text for language, text in BLOCKS if language == "python"]
SHELL = [
    line
    for language, text in BLOCKS
    if language == "sh"
    for line in text.replace("\\\n", " ").splitlines()
    if line.strip()
]


def side(random, count, persons=6):
    centres = np.random.default_rng(1).normal(size=(persons, 16))
    pids = random.integers(0, persons, count)
    features = centres[pids] + 0.4 * random.normal(size=(count, 16))
    features /= np.linalg.norm(features, axis=1, keepdims=True)
    return features.astype(np.float32), pids, random.integers(0, 4, count)


@pytest.fixture
def names():
    """The variables that README's snippets speak of."""
    random = np.random.default_rng(0)
    query, gallery = side(random, 20), side(random, 80)

    def squared(x, y):
        return ((x[:, None] - y[None]) ** 2).sum(-1)

    found = {
        "q_g": squared(query[0], gallery[0]),
        "q_q": squared(query[0], query[0]),
        "g_g": squared(gallery[0], gallery[0]),
    }
    for prefix, values in (("query", query), ("gallery", gallery)):
        for name, value in zip(("features", "pids", "camids"), values, strict=True):
            found[f"{prefix}_{name}"] = value
    return found


@pytest.mark.parametrize("code", PYTHON, ids=range(len(PYTHON)))
def test_python_snippets_run(code, names, capsys):
    if "sklearn" in code:
        pytest.importorskip("sklearn")
    exec(compile(code, "README.md", "exec"), names)
    if "cmc" in names:
        assert 0 < names["mAP"] <= 1
    if "labels" in names:
        assert len(names["labels"]) == 80


def commands():
    return [line.split("#")[0].strip() for line in SHELL if line.startswith("python -m mmga")]


def test_every_other_shell_line_is_known():
    others = [line.split("#")[0].strip() for line in SHELL if not line.startswith("python -m")]
    makefile = (REPOSITORY / "Makefile").read_text()
    for line in others:
        words = shlex.split(line)
        if words[0] == "make":
            assert re.search(rf"^{words[1]}:", makefile, re.MULTILINE), line
        else:
            assert words[:2] == ["pytest", "benchmarks/"], line


def on_features(line):
    return "--query" in line or "--features" in line


@pytest.mark.parametrize("line", [line for line in commands() if on_features(line)])
def test_commands_on_feature_files_run(line, names, tmp_path):
    from scipy.io import savemat

    for prefix in ("query", "gallery"):
        Features(
            names[f"{prefix}_features"], names[f"{prefix}_pids"], names[f"{prefix}_camids"]
        ).save(tmp_path / f"{prefix}.npz")
    both = {
        f"{prefix}_{short}": names[f"{prefix}_{name}"]
        for prefix in ("query", "gallery")
        for short, name in (("f", "features"), ("label", "pids"), ("cam", "camids"))
    }
    savemat(tmp_path / "pytorch_result.mat", both)
    words = shlex.split(line)[1:]
    done = subprocess.run(
        [sys.executable, *words], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout


@pytest.mark.parametrize("line", [line for line in commands() if not on_features(line)])
def test_options_of_commands_on_data_and_runs_exist(line, tmp_path):
    """Data that is not there is the only thing wrong with them."""
    done = subprocess.run(
        [sys.executable, *shlex.split(line)[1:]],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    said = done.stderr.strip().splitlines()
    assert done.returncode == 2
    assert len(said) == 1
    assert re.search(
        r"does not exist|there is no run|no checkpoint|no folder|not found", said[0]
    ), said
