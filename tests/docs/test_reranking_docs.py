"""What docs/reranking.md says is run."""

import re
import shlex

import numpy as np
import pytest
from paths import REPOSITORY
from PIL import Image
from small_run import write_run

import mmga
from mmga import search

DOCS = REPOSITORY / "docs" / "reranking.md"
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", DOCS.read_text(), re.DOTALL)

LINES = [line for language, text in BLOCKS if language == "sh" for line in text.splitlines()]


@pytest.fixture
def names():
    random = np.random.default_rng(0)
    found = {}
    for prefix, count in (("query", 20), ("gallery", 80)):
        pids = random.integers(0, 6, count)
        centres = np.random.default_rng(1).normal(size=(6, 16))
        features = centres[pids] + 0.4 * random.normal(size=(count, 16))
        found[f"{prefix}_features"] = features.astype(np.float32)
        found[f"{prefix}_pids"] = pids
        found[f"{prefix}_camids"] = random.integers(0, 4, count)
    found["other_features"] = found["gallery_features"][:, ::-1].copy()
    return found


@pytest.mark.parametrize("code", [text for language, text in BLOCKS if language == "python"])
def test_snippets_run(code, names, tmp_path, monkeypatch):
    if "sklearn" in code:
        pytest.importorskip("sklearn")
    monkeypatch.chdir(tmp_path)
    exec(compile(code, "reranking.md", "exec"), names)
    shapes = {"matrix": (20, 80), "labels": (80,), "final": (80,), "indices": (20, 10)}
    found = {name: names[name].shape for name in shapes if name in names}
    assert found and all(tuple(shape) == shapes[name] for name, shape in found.items())


def test_commands_run(names, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for prefix in ("query", "gallery"):
        parts = (names[f"{prefix}_{name}"] for name in ("features", "pids", "camids"))
        mmga.Features(*parts).save(f"{prefix}.npz")
    assert len(LINES) == 7
    for line in LINES[:5]:
        words = shlex.split(line)
        assert words[:3] == ["python", "-m", "mmga.search"]
        with pytest.raises(SystemExit) as leave:
            raise SystemExit(search.main(words[3:]) or 0)
        assert leave.value.code == 0
        assert ("distance" in capsys.readouterr().out) == ("--query" in words)


def test_searches_by_photograph_run(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    write_run(tmp_path / "runs" / "x")
    for index, name in enumerate(
        ("photo.jpg", "more/a.jpg", "photographs/b.jpg", "photographs/c.jpg")
    ):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.new("RGB", (16, 48), (40 * index, 90, 20)).save(tmp_path / name)
    for line, said in zip(LINES[5:], ("2 images were extracted", "all 2 images"), strict=True):
        search.main(shlex.split(line)[3:])
        assert said in capsys.readouterr().err
    assert (tmp_path / "sheet.html").exists() and (tmp_path / "sheet.png").exists()
    assert (tmp_path / "photographs.mmga-features").is_dir()
