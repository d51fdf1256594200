"""The demo runs every stage; at this size its figures mean nothing."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest

from mmga import visualize
from mmga.retrieval.features import load_features


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    folder = tmp_path_factory.mktemp("demo") / "run"
    done = subprocess.run(
        [sys.executable, "-m", "mmga.demo", "--out", str(folder)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "MMGA_SMOKE": "1"},
    )
    assert done.returncode == 0, done.stderr
    return folder, done.stdout


def run(*words):
    return subprocess.run(
        [sys.executable, "-m", *map(str, words)], capture_output=True, text=True, check=False
    )


def test_the_demo_leaves_what_it_names(demo):
    folder, said = demo
    for name in ("attention.png", "ranked.png", "eval.json", "metrics.jsonl", "config.yaml"):
        assert f"{folder / name}: " in said
        assert (folder / name).stat().st_size > 0
    assert (folder / "attention.png").read_bytes().startswith(b"\x89PNG")
    assert list((folder / "tensorboard").iterdir())
    figures = json.loads((folder / "eval.json").read_text())
    assert figures["schema"] == 1
    assert 0 <= figures["reranked"]["mAP"] <= 1
    for name in ("whole0", "whole", "upper", "bottom"):
        assert any(line.split()[:1] == [name] for line in said.splitlines())


def test_a_run_is_evaluated_as_its_feature_files_are(demo):
    folder, _ = demo
    done = run("mmga.eval", "--run", folder, "--json", folder / "run.json")
    assert done.returncode == 0, done.stderr
    ours, files = (json.loads((folder / name).read_text()) for name in ("run.json", "eval.json"))
    for name in ("mAP", "mINP", "rank1", "cmc", "num_query", "excluded"):
        assert ours[name] == files[name]


def test_pictures_take_a_gallery_of_the_same_images(demo, tmp_path):
    folder, _ = demo
    command = ("mmga.visualize", "--run", folder, "--out", tmp_path, "--rows", "2", "--gallery")
    done = run(*command, folder / "query.npz")
    assert done.returncode == 2
    assert "expected features of the" in done.stderr
    assert not list(tmp_path.iterdir())


def test_pictures_take_a_gallery_in_any_order(demo, tmp_path):
    folder, _ = demo
    gallery = load_features(folder / "gallery.npz")
    gallery.select(np.random.default_rng(0).permutation(len(gallery))).save(tmp_path / "g.npz")
    drawn = []
    for name in (folder / "gallery.npz", tmp_path / "g.npz"):
        visualize.main([f"--run={folder}", f"--out={tmp_path}", "--rows=2", f"--gallery={name}"])
        drawn.append((tmp_path / "ranked.png").read_bytes())
    assert drawn[0] == drawn[1]


def test_features_and_files_do_not_mix(demo):
    folder, _ = demo
    done = run("mmga.eval", "--run", folder, "--query", folder / "query.npz")
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "--run extracts its own features" in done.stderr


@pytest.mark.parametrize("verb", ["extract", "visualize", "eval"])
def test_a_missing_run_is_one_sentence(verb, tmp_path):
    done = run(f"mmga.{verb}", "--run", tmp_path / "none")
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith(f"mmga {verb}: error: no checkpoint")


def test_a_truncated_checkpoint_is_one_sentence(demo, tmp_path):
    folder, _ = demo
    (tmp_path / "last.safetensors").write_bytes((folder / "last.safetensors").read_bytes()[:5000])
    done = run("mmga.extract", "--run", tmp_path)
    assert done.returncode == 2
    assert "cannot be read: truncated" in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["last.safetensors"]
