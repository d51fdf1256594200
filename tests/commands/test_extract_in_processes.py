"""`mmga extract` under torchrun: the file of one process, and one that goes on after a kill."""

import json

import failing
import numpy as np
import pytest
import torch
from PIL import Image
from small_run import SIZE, write_run

import mmga
from mmga import extract
from mmga.common.errors import UserError
from mmga.extraction import resumable


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A run and 30 images, of which one cannot be decoded: 8 shards of 4."""
    root = tmp_path_factory.mktemp("extract")
    write_run(root / "run")
    random = np.random.default_rng(0)
    (root / "images").mkdir()
    for index in range(30):
        name = f"{index // 4:04d}_c{index % 3 + 1}s1_{index:06d}.png"
        pixels = random.integers(0, 256, (*SIZE, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(root / "images" / name)
    (root / "images" / "0009_c1s1_000099.png").write_bytes(b"no picture")
    return root


def words(folder, out):
    return [
        *("--run", str(folder / "run"), "--images", str(folder / "images"), "--out", str(out)),
        *("--skip-broken", "--batch-size", "2"),
    ]


@pytest.fixture(scope="module")
def one(folder):
    """What one process writes."""
    shard, resumable.SHARD = resumable.SHARD, 4
    extract.main(words(folder, folder / "one.npz"))
    extract.main(words(folder, folder / "one.json"))
    resumable.SHARD = shard
    return mmga.load_features(folder / "one.npz")


def same(one, other):
    for name in ("pids", "camids", "paths"):
        assert getattr(one, name).tolist() == getattr(other, name).tolist()
    return torch.equal(one.features, other.features)


@pytest.mark.parametrize(("out", "world"), [("g.npz", 2), ("g.json", 5)])
def test_any_number_of_processes_writes_the_same(folder, one, tmp_path, out, world):
    made = ["extract", *words(folder, tmp_path / out)]
    codes, said = failing.run("nothing", made, tmp_path, world)
    assert codes == [0] * world
    assert said.count("1 images were left out as broken") == 1
    assert same(one, mmga.load_features(tmp_path / out))
    printed = [(tmp_path / f"out-{rank}").read_text() for rank in range(world)]
    assert f"in {tmp_path / out}" in printed[0] and not any(printed[1:])
    if out == "g.json":
        left, right = tmp_path / "g.shards", folder / "one.shards"
        names = sorted(file.name for file in left.iterdir())
        assert names == sorted(file.name for file in right.iterdir()) and len(names) == 9
        for name in names:
            if name.endswith(".npz"):
                arrays = [np.load(side / name) for side in (left, right)]
                for key in arrays[0]:
                    assert arrays[0][key].tobytes() == arrays[1][key].tobytes(), (name, key)


def test_finished_shards_survive_a_killed_process(folder, one, tmp_path):
    made = ["extract", *words(folder, tmp_path / "g.json")]
    codes, said = failing.run("killed while the others compute", made, tmp_path)
    assert codes == [1, -9, 1]
    assert said.count("process 1 of the 3 of the run ended without a word") == 1
    assert not (tmp_path / "g.json").exists()
    kept = sorted(tmp_path.glob("g.*/*.npz"))
    assert [int(file.stem) for file in kept] == [0, 4, 8]  # the first of each process
    written = {file: file.stat().st_mtime_ns for file in kept}
    codes, _ = failing.run("nothing", made, tmp_path, 2)
    assert codes == [0, 0]
    assert same(one, mmga.load_features(tmp_path / "g.json"))
    assert {file: file.stat().st_mtime_ns for file in kept} == written


def test_a_finished_list_is_made_anew(folder, one, tmp_path, monkeypatch):
    monkeypatch.setattr(resumable, "SHARD", 4)
    extract.main(words(folder, tmp_path / "g.json"))
    first = tmp_path / "g.shards" / "000000000.npz"
    before = first.stat().st_ino, first.stat().st_mtime_ns
    extract.main(words(folder, tmp_path / "g.json"))
    assert (first.stat().st_ino, first.stat().st_mtime_ns) != before
    assert same(one, mmga.load_features(tmp_path / "g.json"))


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ({"shards": []}, "the list of shards is empty"),
        ({"schema": 1}, "expected a list of shards of features"),
        ({"shards": [{"rows": 4}]}, "expected a list of shards of features"),
        ({"shards": [{"file": "one.shards/000000000.npz", "rows": 5}]}, "found 4 rows, but .* 5"),
        ({"shards": [{"file": "gone.npz", "rows": 5}]}, "gone.npz: no such file or folder"),
    ],
)
def test_lists_that_do_not_fit_are_refused(folder, one, content, said):
    (folder / "list.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match=said):
        mmga.load_features(folder / "list.json")
