"""A disk without room and folders that cannot be written: one sentence in every command."""

import contextlib

import numpy as np
import pytest
import torch
from full_disk import disk_with
from PIL import Image
from small_run import SIZE, write_run

from mmga import eval as evaluation
from mmga import export, extract, search
from mmga.models import export as graph
from mmga.retrieval.features import Features


@pytest.fixture(scope="module")
def given(tmp_path_factory):
    """A run, images, and features."""
    folder = tmp_path_factory.mktemp("given")
    (folder / "run").mkdir()
    write_run(folder / "run")
    draw = np.random.default_rng(0)
    (folder / "images").mkdir()
    for i in range(4):
        image = Image.fromarray(draw.integers(0, 256, (*SIZE, 3), dtype=np.uint8))
        image.save(folder / "images" / f"{i // 2:04d}_c{i % 2 + 1}.png")
    for name, count in (("q", 8), ("g", 30)):
        rows = draw.standard_normal((count, 8)).astype(np.float32)
        Features(rows, np.arange(count) % 4, np.arange(count) % 3).save(folder / f"{name}.npz")
    return folder


SIDES = "--query {0}/q.npz --gallery {0}/g.npz"
COMMANDS = {
    "r.json": (evaluation.main, f"{SIDES} --json"),
    "r.csv": (evaluation.main, f"{SIDES} --per-query"),
    "s.json": (search.main, f"{SIDES} --out"),
    "s.csv": (search.main, f"{SIDES} --out"),
    "x.mmga-index": (search.main, "--gallery {0}/g.npz --save-index"),
    "f.npz": (extract.main, "--run {0}/run --images {0}/images --out"),
    "folder": (extract.main, "--run {0}/run --images {0}/images --out"),
    "n.pt2": (export.main, "--run {0}/run --out"),
}


def traced(network, size):
    class Small(torch.nn.Module):
        def forward(self, images):
            return images.mean((2, 3))

    return torch.export.export(Small(), (torch.zeros(2, 3, *size),))


@pytest.mark.parametrize("name", COMMANDS)
@pytest.mark.parametrize("where", ["full", "no folder"])
def test_a_result_that_cannot_be_written(given, tmp_path, capsys, monkeypatch, name, where):
    monkeypatch.setattr(graph, "trace", traced)  # which takes seconds
    command, words = COMMANDS[name]
    (tmp_path / "file").write_text("")
    out = tmp_path / (name if where == "full" else f"file/folder/{name}")
    with (
        disk_with(60) if where == "full" else contextlib.nullcontext(),
        pytest.raises(SystemExit) as leave,
    ):
        command([*words.format(given).split(), str(out)])
    errors = [line for line in capsys.readouterr().err.splitlines() if "error" in line]
    assert leave.value.code == 2 and len(errors) == 1, errors
    assert f"{out}" in errors[0] and "could not be written" in errors[0]
    left = {path.name for path in tmp_path.iterdir()} - {f"{name}.partial"}  # which goes on
    assert left == {"file"}
