"""What docs/evaluation.md and docs/certified.md say is run, at a size that takes seconds."""

import importlib.util
import re
import shlex
import sys
import types
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
        if importlib.util.find_spec("pyarrow"):
            found[side].save(f"{side[0]}.parquet")
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


@pytest.fixture
def fiftyone(monkeypatch):
    """A stand-in for the package: what a recipe gives it."""
    given = types.SimpleNamespace(samples=[], brain={})

    class Dataset:
        def __init__(self, name):
            given.name = name

        def add_samples(self, samples):
            given.samples += samples

    # Their parameters in fiftyone-brain 0.27.
    def compute_visualization(samples, *, embeddings, brain_key, num_dims=2, method=None):
        assert method in ("umap", "tsne", "pca")
        given.brain[brain_key] = embeddings

    def compute_similarity(samples, *, embeddings, brain_key, backend=None):
        given.brain[brain_key] = embeddings

    package, brain = types.ModuleType("fiftyone"), types.ModuleType("fiftyone.brain")
    package.Dataset, package.brain = Dataset, brain
    package.Sample = package.Classification = types.SimpleNamespace
    package.launch_app = lambda dataset: None
    brain.compute_visualization = compute_visualization
    brain.compute_similarity = compute_similarity
    monkeypatch.setitem(sys.modules, "fiftyone", package)
    monkeypatch.setitem(sys.modules, "fiftyone.brain", brain)
    return given


def test_fiftyone_is_given_images_labels_and_features(names, fiftyone):
    (code,) = [code for code in PYTHON if "fiftyone" in code]
    gallery = names["gallery"]
    exec(compile(code, "evaluation.md", "exec"), names)
    assert [one.filepath for one in fiftyone.samples] == [f"images/{p}" for p in gallery.paths]
    assert all(type(one.identity.label) is str for one in fiftyone.samples)
    assert [int(one.identity.label) for one in fiftyone.samples] == gallery.pids.tolist()
    assert [int(one.camera.label) for one in fiftyone.samples] == gallery.camids.tolist()
    for found in fiftyone.brain.values():
        np.testing.assert_array_equal(found, gallery.features)
    assert set(fiftyone.brain) == {"map", "similar"}


def test_the_projector_is_given_features_and_labels(names):
    pytest.importorskip("tensorboard")
    (code,) = [code for code in PYTHON if "SummaryWriter" in code]
    exec(compile(code, "evaluation.md", "exec"), names)
    (table,) = Path("projector").rglob("tensors.tsv")
    rows = np.loadtxt(table, delimiter="\t")
    np.testing.assert_allclose(rows, names["gallery"].features, rtol=1e-5, atol=1e-6)
    head, *lines = table.with_name("metadata.tsv").read_text().splitlines()
    assert head.split("\t") == ["pids", "camids", "paths", "time"]
    assert [line.split("\t")[2] for line in lines] == names["gallery"].paths.tolist()
    config = Path("projector/projector_config.pbtxt").read_text()
    assert "tensors.tsv" in config and "metadata.tsv" in config


PLAIN = [code for code in PYTHON if "fiftyone" not in code and "SummaryWriter" not in code]


@pytest.mark.parametrize("code", PLAIN, ids=range(len(PLAIN)))
def test_python_examples_run(code, names):
    for package in ("pandas", "pyarrow"):
        if package in code or "parquet" in code:
            pytest.importorskip(package)
    exec(compile(code, "evaluation.md", "exec"), names)
    if "report" in names:
        assert 0 < names["report"].mAP <= 1


@pytest.mark.parametrize("line", SHELL)
def test_commands_run(line, names, capsys):
    if "parquet" in line:
        pytest.importorskip("pyarrow")
    words = shlex.split(line)
    assert words[:2] == ["python", "-m"]
    main = {"mmga.eval": command.main, "mmga.doctor": doctor.main}[words[2]]
    main(words[3:])
    assert capsys.readouterr().out
